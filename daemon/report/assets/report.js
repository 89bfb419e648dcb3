// What a report does when scripts may run: charts that zoom, tables that sort. Everything stands in the file; texts get into the page by
// textContent alone, and nothing here makes HTML of a text.
(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("data").textContent);
  var COLOURS = 10, HEIGHT = 230, WEIGHTS = 1000;
  var state = { x: "own", log: false, smooth: 0, hidden: {} };
  var live = new Map(); // figure -> {plot, tip}
  var near = new Set(), stale = new Set(); // figures in sight, and those drawn with choices that are no longer so

  function make(name, words, text) {
    var element = document.createElement(name);
    Object.keys(words || {}).forEach(function (key) { element.setAttribute(key, words[key]); });
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function style(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
  function colour(run) { return style("--c" + (run % COLOURS)); }
  function hexAlpha(hex, alpha) { return hex + Math.round(alpha * 255).toString(16).padStart(2, "0"); }

  function short(value) {
    if (value === null || value === undefined || !isFinite(value)) return "–";
    if (Number.isInteger(value) && Math.abs(value) < 1e9) return value.toLocaleString("en-US");
    var text = value.toPrecision(5);
    return text.indexOf("e") >= 0 ? text.replace(/\.?0+e/, "e") : text.indexOf(".") >= 0 ? text.replace(/0+$/, "").replace(/\.$/, "") : text;
  }

  // -- the numbers of a chart on the chosen axis

  // What is observed of the machine has no steps: its charts stand over seconds where the others stand over steps.
  function modeOf(chart) { return state.x !== "time" && chart.seconds ? "relative" : state.x; }

  function axisOf(line, mode) {
    if (mode === "own") return line.x || line.step;
    if (mode === "step") return line.step;
    if (mode === "relative") return line.time;
    var created = data.runs[line.run].created;
    return line.time.map(function (t) { return t + created; });
  }

  function sorted(x, y) {
    var order = [];
    for (var i = 0; i < x.length; i++) if (x[i] !== null && !(state.log && y[i] <= 0)) order.push(i);
    order.sort(function (a, b) { return x[a] - x[b]; });
    var xs = [], ys = [];
    order.forEach(function (i) {
      if (xs.length && xs[xs.length - 1] === x[i]) ys[ys.length - 1] = y[i];
      else { xs.push(x[i]); ys.push(y[i]); }
    });
    return [xs, ys];
  }

  // An exponential mean as TensorBoard's, weighted by the distance of the points and without its bias towards zero.
  function smoothed(xs, ys, weight) {
    var range = xs.length ? xs[xs.length - 1] - xs[0] : 0, mean = 0, sum = 0;
    return ys.map(function (y, i) {
      var far = i && range > 0 ? (WEIGHTS * (xs[i] - xs[i - 1])) / range : 1;
      var kept = Math.pow(weight, far);
      mean = mean * kept + y; sum = sum * kept + 1;
      return mean / sum;
    });
  }

  function linesOf(chart, mode) {
    var found = [];
    chart.lines.forEach(function (line) {
      if (state.hidden[line.run]) return;
      var pair = sorted(axisOf(line, mode), line.value);
      if (!pair[0].length) return;
      if (state.smooth > 0) {
        found.push({ run: line.run, table: pair, faint: true });
        found.push({ run: line.run, table: [pair[0], smoothed(pair[0], pair[1], state.smooth)] });
      } else found.push({ run: line.run, table: pair });
    });
    return found;
  }

  // -- drawing

  function marks(lines, mode) {
    var runs = Array.from(new Set(lines.map(function (one) { return one.run; })));
    return function (plot) {
      var context = plot.ctx, box = plot.bbox, ratio = window.devicePixelRatio || 1;
      context.save();
      context.beginPath(); context.rect(box.left, box.top, box.width, box.height); context.clip();
      runs.forEach(function (number) {
        var run = data.runs[number], byStep = mode === "own" || mode === "step";
        var shift = mode === "time" ? run.created : 0;
        run.gaps.forEach(function (gap) {
          var start = byStep ? gap[0] : gap[2], end = byStep ? gap[1] : gap[3];
          if (start === null) return;
          var left = plot.valToPos(start + shift, "x", true), right = plot.valToPos((end === null ? start : end) + shift, "x", true);
          hatch(context, left, Math.max(right, left + 2 * ratio), box, ratio);
        });
        run.attempts.forEach(function (attempt) {
          var x = plot.valToPos((byStep ? attempt[0] : attempt[1]) + shift, "x", true);
          context.strokeStyle = style("--quiet"); context.lineWidth = ratio; context.setLineDash([4 * ratio, 3 * ratio]);
          context.beginPath(); context.moveTo(x, box.top); context.lineTo(x, box.top + box.height); context.stroke();
          context.setLineDash([]);
        });
      });
      context.restore();
    };
  }

  function hatch(context, left, right, box, ratio) {
    left = Math.max(left, box.left); right = Math.min(right, box.left + box.width);
    if (right <= left) return;
    context.save();
    context.beginPath(); context.rect(left, box.top, right - left, box.height); context.clip();
    context.fillStyle = hexAlpha(style("--bad"), 0.1); context.fillRect(left, box.top, right - left, box.height);
    context.strokeStyle = hexAlpha(style("--bad"), 0.5); context.lineWidth = ratio; context.beginPath();
    for (var x = left - box.height; x < right; x += 7 * ratio) { context.moveTo(x, box.top + box.height); context.lineTo(x + box.height, box.top); }
    context.stroke(); context.restore();
  }

  function axisLook(values) {
    return { stroke: style("--quiet"), grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line"), width: 1 }, font: "11px system-ui, sans-serif", values: values };
  }

  function options(figure, lines, mode, width) {
    var time = mode === "time";
    var many = function (plot, splits) { return splits.map(function (v) { return v === null ? "" : short(v); }); };
    return {
      width: width, height: HEIGHT, legend: { show: false },
      cursor: { sync: { key: mode, scales: ["x", null] }, drag: { x: true, y: false }, points: { size: 6 } },
      scales: { x: { time: time }, y: { distr: state.log ? 3 : 1 } },
      axes: [Object.assign(axisLook(time ? undefined : many), { size: time ? 44 : 30 }), Object.assign(axisLook(many), { size: 62 })],
      series: [{}].concat(lines.map(function (one) {
        var ink = colour(one.run);
        return { stroke: one.faint ? hexAlpha(ink, 0.25) : ink, width: one.faint ? 1 : 1.6, dash: one.run >= COLOURS ? [5, 3] : undefined, spanGaps: true, points: { show: one.table[0].length < 2 } };
      })),
      hooks: {
        drawClear: [marks(lines, mode)],
        setCursor: [function (plot) { showTip(figure, plot, lines, mode); }],
        setScale: [function (plot, key) { if (key === "x") figure.dataset.zoomed = isZoomed(plot) ? "yes" : "no"; }],
      },
    };
  }

  function isZoomed(plot) {
    var xs = plot.data[0], scale = plot.scales.x;
    return xs.length > 1 && scale.min !== null && (scale.min > xs[0] || scale.max < xs[xs.length - 1]);
  }

  function nearest(xs, x) {
    var low = 0, high = xs.length - 1;
    while (high - low > 1) { var middle = (low + high) >> 1; if (xs[middle] < x) low = middle; else high = middle; }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  }

  function xText(x, mode) {
    if (mode === "time") return new Date(x * 1000).toISOString().replace("T", " ").slice(0, 19) + " UTC";
    return mode === "relative" ? short(x) + " s" : short(x);
  }

  function showTip(figure, plot, lines, mode) {
    var entry = live.get(figure), left = plot.cursor.left;
    if (!entry) return;
    var tip = entry.tip;
    if (left === undefined || left === null || left < 0) { tip.hidden = true; return; }
    var x = plot.posToVal(left, "x");
    var rows = lines.filter(function (one) { return !one.faint; }).map(function (one) {
      var at = nearest(one.table[0], x);
      return { run: one.run, x: one.table[0][at], y: one.table[1][at] };
    }).sort(function (a, b) { return b.y - a.y; }).slice(0, 14);
    tip.replaceChildren(make("div", { class: "quiet" }, xText(rows.length ? rows[0].x : x, mode)));
    rows.forEach(function (row) {
      var line = make("div");
      line.append(make("span", { class: "swatch b" + (row.run % COLOURS) }), " ", make("b", {}, short(row.y)), data.runs.length > 1 ? " " + data.runs[row.run].label : "");
      tip.append(line);
    });
    tip.hidden = false;
    var wide = plot.over.clientWidth, place = plot.over.offsetLeft + left;
    tip.style.top = "10px";
    tip.style.left = left > wide / 2 ? "" : place + 14 + "px";
    tip.style.right = left > wide / 2 ? figure.querySelector(".live").clientWidth - place + 14 + "px" : "";
  }

  function draw(figure) {
    var entry = live.get(figure), box = figure.querySelector(".live"), chart = data.charts[Number(figure.dataset.chart)];
    if (entry && entry.plot) entry.plot.destroy();
    figure.classList.add("drawn");
    var tip = entry ? entry.tip : make("div", { class: "tip", hidden: "" });
    entry = { tip: tip, plot: null };
    live.set(figure, entry);
    box.replaceChildren();
    var mode = modeOf(chart), lines = linesOf(chart, mode);
    if (!lines.length) { box.append(make("p", { class: "quiet" }, "nothing to draw with these choices")); return; }
    var tables = lines.map(function (one) { return one.table; });
    entry.plot = new uPlot(options(figure, lines, mode, box.clientWidth || 440), uPlot.join(tables), box);
    box.append(tip);
  }

  // Only what is in sight; the others when they come into it: a slider asks many times a second.
  function redraw() { live.forEach(function (entry, figure) { if (near.has(figure)) draw(figure); else stale.add(figure); }); }

  // -- by keys: left and right move the cursor, + and - zoom around it, 0 and Escape go back

  function keyed(event) {
    var figure = event.currentTarget, entry = live.get(figure);
    if (!entry || !entry.plot || event.ctrlKey || event.metaKey || event.altKey) return;
    var plot = entry.plot, scale = plot.scales.x, wide = plot.over.clientWidth, xs = plot.data[0];
    var left = plot.cursor.left >= 0 ? plot.cursor.left : wide / 2;
    var jump = event.shiftKey ? 0.1 : 0.01;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      left += (event.key === "ArrowLeft" ? -1 : 1) * Math.max(1, wide * jump);
      plot.setCursor({ left: Math.min(Math.max(left, 0), wide), top: 40 });
    } else if (event.key === "+" || event.key === "=" || event.key === "-") {
      var centre = plot.posToVal(left, "x"), factor = event.key === "-" ? 2 : 0.5;
      var low = Math.max(centre - (centre - scale.min) * factor, xs[0]), high = Math.min(centre + (scale.max - centre) * factor, xs[xs.length - 1]);
      if (high > low) plot.setScale("x", { min: low, max: high });
    } else if (event.key === "0" || event.key === "Escape") {
      plot.setScale("x", { min: xs[0], max: xs[xs.length - 1] });
    } else return;
    event.preventDefault();
  }

  // -- the bar

  function labelled(text, element) { var label = make("label"); label.append(element, text); return label; }

  function bar() {
    var section = document.getElementById("charts");
    if (!section || !data.charts.length) return;
    var found = make("div", { class: "bar", role: "group", "aria-label": "how charts are drawn" });
    var x = make("select", { id: "x-axis", "aria-label": "x axis" });
    var own = data.charts.some(function (chart) { return chart.lines.some(function (line) { return line.x; }); });
    [["own", own ? "x: as defined" : "x: step"], ["step", "x: step"], ["relative", "x: seconds"], ["time", "x: time"]].forEach(function (pair) {
      if (pair[0] !== "step" || own) x.append(make("option", { value: pair[0] }, pair[1]));
    });
    x.addEventListener("change", function () { state.x = x.value; redraw(); });
    var smooth = make("input", { id: "smooth", type: "range", min: "0", max: "0.99", step: "0.01", value: "0" });
    var weight = make("output", { for: "smooth" }, "0");
    smooth.addEventListener("input", function () { state.smooth = Number(smooth.value); weight.textContent = smooth.value; redraw(); });
    var log = make("input", { id: "log", type: "checkbox" });
    log.addEventListener("change", function () { state.log = log.checked; redraw(); });
    var filter = make("input", { id: "filter", type: "search", placeholder: "charts …", "aria-label": "show charts whose name has" });
    filter.addEventListener("input", function () { narrow(filter.value.toLowerCase()); });
    found.append(x, labelled("smooth", smooth), weight, labelled("log", log), filter);
    if (data.runs.length > 1) found.append(runsBox());
    found.append(make("span", { class: "quiet" }, "drag: zoom · double click: back"));
    section.insertBefore(found, section.querySelector("details"));
  }

  function runsBox() {
    var box = make("div", { class: "runs" }), used = new Set();
    data.charts.forEach(function (chart) { chart.lines.forEach(function (line) { used.add(line.run); }); });
    data.runs.forEach(function (run, number) {
      if (!used.has(number)) return;
      var check = make("input", { type: "checkbox" });
      check.checked = true;
      check.addEventListener("change", function () { state.hidden[number] = !check.checked; redraw(); });
      var label = make("label");
      label.append(check, make("span", { class: "swatch b" + (number % COLOURS) }), run.label);
      box.append(label);
    });
    return box;
  }

  function narrow(words) {
    document.querySelectorAll("figure.chart").forEach(function (figure) {
      figure.hidden = data.charts[Number(figure.dataset.chart)].key.toLowerCase().indexOf(words) < 0;
    });
    document.querySelectorAll("details.section").forEach(function (section) {
      section.hidden = !section.querySelector("figure.chart:not([hidden])");
    });
  }

  // -- tables

  function sortable(table) {
    table.querySelectorAll("thead th").forEach(function (head, column) {
      if (!head.textContent) return;
      var button = make("button", { type: "button" }, head.textContent);
      if (head.firstElementChild) { while (head.firstChild) button.append(head.firstChild); button.firstChild.remove(); }
      head.replaceChildren(button);
      button.addEventListener("click", function () {
        var down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("thead th").forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sortBy(table.tBodies[0], column, down ? -1 : 1);
      });
    });
  }

  function sortBy(body, column, sign) {
    var rows = Array.from(body.rows).map(function (row) {
      var cell = row.cells[column], text = cell ? (cell.dataset.sort || cell.textContent) : "";
      var value = text.trim() === "" ? NaN : Number(text);
      return { row: row, text: text, value: value };
    });
    rows.sort(function (a, b) {
      var an = isNaN(a.value), bn = isNaN(b.value);
      if (!an && !bn) return sign * (a.value - b.value);
      if (an !== bn) return an ? 1 : -1;
      return sign * a.text.localeCompare(b.text);
    });
    rows.forEach(function (one) { body.append(one.row); });
  }

  // -- begin: a chart is drawn when it comes into sight, so that a long report opens at once

  bar();
  document.querySelectorAll("table.sortable").forEach(sortable);
  var figures = Array.from(document.querySelectorAll("figure.chart"));
  var sight = new IntersectionObserver(function (seen) {
    seen.forEach(function (one) {
      if (!one.isIntersecting) { near.delete(one.target); return; }
      near.add(one.target);
      if (stale.delete(one.target) || !live.has(one.target)) draw(one.target);
    });
  }, { rootMargin: "400px" });
  figures.forEach(function (figure) { sight.observe(figure); figure.addEventListener("keydown", keyed); });
  var waiting = 0;
  window.addEventListener("resize", function () { clearTimeout(waiting); waiting = setTimeout(redraw, 150); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.documentElement.dataset.ready = "yes";
})();
