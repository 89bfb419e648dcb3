"""What benches/peers.py measured, as tables, as a figure, and as text between two marks of README.md and docs/performance.md.

Everything is made from the results alone, so that a page holds no number that no run has given.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import common
from common import Results, Table

FIGURE = common.ROOT / "docs" / "peers.png"
OURS = "stepd"
# Of the palette of Okabe and Ito, which people with any kind of colour blindness tell apart; peers are grey.
HIGHLIGHT, HIGHLIGHT_LIGHT = "#D55E00", "#F0B48A"
GREY, GREY_LIGHT, INK = "#7A8793", "#C3CAD1", "#22272B"
_MARKS = re.compile(r"(<!-- peers:(\w+)[^>]*-->\n).*?(<!-- /peers:\2 -->)", re.DOTALL)


# ---- looking things up


class Found:
    """The results, by tool: what is missing is None wherever one looks."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.tools: dict[str, Results] = results["tools"]

    def one(self, part: str, tool: str, **where: Any) -> Results:
        """The first row of a part that fits, empty if there is none."""
        return next(iter(self.all(part, tool, **where)), {})

    def all(self, part: str, tool: str, **where: Any) -> list[Results]:
        """All of them."""
        wanted = {"tool": tool, **where}
        rows = self.results.get(part, [])
        return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]

    def title(self, tool: str) -> str:
        """The tool's name; SummaryWriter's with whose it is."""
        whose = str(self.tools[tool].get("version", "")).partition(" ")[0]
        title = str(self.tools[tool]["title"])
        return f"{title} ({whose})" if tool == "SummaryWriter" and whose else title

    def loggers(self) -> list[str]:
        """All but the yardstick."""
        return [tool for tool in self.tools if tool != "parquet"]

    def lost(self, tool: str) -> list[int]:
        """Calls lost by each kill."""
        return [row["lost"] for row in self.all("kill", tool) if row["lost"] is not None]

    def cpu(self, tool: str, pace: str) -> tuple[float, float] | None:
        """Microseconds per call: the trainer's, its end included, and all other processes'."""
        row = self.one("latency", tool, pace=pace)
        if not row:
            return None
        return max(row["cpu_us_per_call"], 0.0) + row["finish_cpu_us_per_call"], row["helpers_us_per_call"]


# ---- tables


def tables(results: Results) -> list[Table]:
    """One for each part that was measured."""
    found = Found(results)
    return [make(found) for name, make in _TABLES.items() if results.get(name)]


def _latency(found: Found) -> Table:
    counts = {row["pace"]: row["calls"] for row in found.results["latency"]}
    rows = [
        [found.title(tool), pace, *(row.get(share) for share in common.SHARES), row.get("cpu_us_per_call")]
        + [row.get("finish_cpu_us_per_call"), row.get("helpers_us_per_call"), row.get("finish_ms"), row.get("lost")]
        for pace in counts
        for tool in found.loggers()
        for row in [found.one("latency", tool, pace=pace)]
    ]
    words = ", ".join(f"{pace}: {count:,} calls" for pace, count in counts.items())
    columns = ["", "pace", *common.SHARES, "CPU µs/call", "+ finish", "+ other processes", "finish ms", "lost"]
    notes = [
        "CPU is that of the loop less that of the same loop without a call: where it sleeps, some µs either way are noise."
    ]
    return Table(f"one call with 5 metrics, µs ({words})", columns, rows, notes)


def _init(found: Found) -> Table:
    words = ("import_ms", "init_ms", "init_ms_worst", "first_log_ms", "finish_ms")
    rows = [[found.title(tool), *(found.one("init", tool).get(word) for word in words)] for tool in found.loggers()]
    notes = [
        "stepd's worst init is the first: no daemon was there, and it started one. SummaryWriter's import is mostly torch's."
    ]
    return Table("a fresh process, ms", ["", "import", "init", "worst", "first log()", "finish()"], rows, notes)


def _size(found: Found) -> Table:
    rows = []
    for tool in found.tools:
        kinds = [found.one("size", tool, kind=kind) for kind in ("float32", "float64")]
        rows.append([found.title(tool), *(kind.get("bytes_per_step") for kind in kinds), kinds[-1].get("lost")])
    notes = [
        "values: numpy.random.default_rng(1).normal(); a step takes 50 to 150 µs, evenly spread. stepd: compacted",
        "SummaryWriter keeps float32, whatever it is given.",
    ]
    steps = found.results["size"][0]["steps"]
    columns = ["", "float32-valued", "float64", "lost"]
    return Table(f"bytes per step of 5 noisy metrics, steps and times included ({steps:,} steps)", columns, rows, notes)


def _reading(found: Found) -> Table:
    words = ("ms", "first_ms", "reads", "points")
    rows = [[found.title(tool), *(found.one("reading", tool).get(word) for word in words)] for tool in found.tools]
    steps = found.results["reading"][0]["steps"]
    notes = ["W&B has no reader for its local files, and FileHandler's text is for people."]
    return Table(f"one metric of ten over {steps:,} steps, ms", ["", "read", "first", "reads", "points"], rows, notes)


def _training(found: Found) -> Table:
    rows = []
    for tool in found.loggers():
        row = found.one("training", tool)
        seconds = [row[word] / 1000 if word in row else None for word in ("iteration_us", "with_log_us")]
        rows.append([found.title(tool), *seconds, row.get("slowdown_percent"), row.get("slowdown_percent_worst_block")])
    columns = ["", "without", "with", "slower by %", "worst pair %"]
    return Table("a small torch loop on one core, seconds per 1000 steps", columns, rows)


def _kill(found: Found) -> Table:
    rows: list[list[object]] = []
    for tool in found.loggers():
        lost, calls = found.lost(tool), sum(row["calls"] for row in found.all("kill", tool))
        each = ", ".join(map(str, lost)) if lost else None
        rows.append([found.title(tool), len(lost) or None, calls or None, sum(lost) if lost else None, each])
    return Table("SIGKILL of the trainer at one call per ms", ["", "kills", "calls", "lost", "by each kill"], rows)


_TABLES: dict[str, Callable[[Found], Table]] = {
    "latency": _latency, "init": _init, "size": _size, "reading": _reading, "training": _training, "kill": _kill,
}  # fmt: skip


def print_all(results: Results) -> None:
    """All tables, and who is not there."""
    for table in tables(results):
        print(table.text())
    for line in missing(results):
        print(line)


def missing(results: Results) -> list[str]:
    """A line for each tool that is not installed, with the cure."""
    tools = [
        f"{tool['title']}: {tool['missing']}. Try: pip install -e .[bench]   ({tool['install']})"
        for tool in results["tools"].values()
        if "missing" in tool
    ]
    parts = {part: [row for row in results.get(part, []) if "missing" in row] for part in ("training", "reading")}
    cures = {"training": "pip install torch", "reading": "pip install tensorboard"}
    return tools + [f"{part}: {rows[0]['missing']}. Try: {cures[part]}" for part, rows in parts.items() if rows]


# ---- text for pages


def fill(path: str, results: Results) -> None:
    """Writes what belongs between the marks `<!-- peers:NAME -->` and `<!-- /peers:NAME -->` of a page.

    Raises:
        SystemExit: The page has no such marks.
    """
    makers = {"summary": _summary, "tables": _pages}
    with open(path, encoding="utf-8") as file:
        text = file.read()
    where = os.path.dirname(os.path.abspath(path))
    new, count = _MARKS.subn(lambda mark: f"{mark[1]}{makers[mark[2]](results, where)}\n{mark[3]}", text)
    if not count:
        raise SystemExit(f"{path!r} has no place marked <!-- peers:summary --> or <!-- peers:tables -->")
    with open(path, "w", encoding="utf-8") as file:
        file.write(new)


def _about(results: Results) -> str:
    """Machine, versions, date."""
    facts = results["machine"]
    tools = ", ".join(f"{tool['title']}: {tool['version']}" for tool in results["tools"].values() if "version" in tool)
    where = f"{facts['cpus_usable']} CPUs ({facts['cpu']}), {facts['memory_gib']} GiB, Linux {facts['kernel']}"
    quick = " **A quick run: the numbers mean little.**" if results.get("quick") else ""
    return f"{facts['date'][:10]}, {where}, {facts['python']}; {tools}.{quick}"


def _pages(results: Results, where: str) -> str:
    return "\n".join([_about(results) + "\n", *(table.markdown() for table in tables(results))])


def _summary(results: Results, where: str) -> str:
    """The figure, and the lines that a reader of the README wants to see."""
    found = Found(results)
    loggers = found.loggers()
    rows = [[words, *(_cell(of(found, tool)) for tool in loggers)] for words, of in _lines(found)]
    titles = [f"**{found.title(tool)}**" if tool == OURS else found.title(tool) for tool in loggers]
    lines = [["", *titles], ["---"] * (len(titles) + 1), *(row for row in rows if set(row[1:]) != {"–"})]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    picture = os.path.relpath(FIGURE, where)
    notes = (
        f"Measured by `python benches/peers.py` in one run of {results.get('minutes', '?')} minutes: {_about(results)}"
    )
    return f"![stepd beside its peers: {_alternative(found)}]({picture})\n\n{table}\n\n{notes}{_yardstick(found)}"


def _alternative(found: Found) -> str:
    return "latency, CPU, slowdown, size, reading and lost calls of " + ", ".join(map(found.title, found.loggers()))


def _yardstick(found: Found) -> str:
    """What Parquet takes of the same, where it was measured."""
    size, read = found.one("size", "parquet", kind="float64"), found.one("reading", "parquet")
    if not (size and read):
        return ""
    return (
        f" As a yardstick, Parquet written at the end by pyarrow with its defaults: {_number(size['bytes_per_step'])} bytes "
        f"a step of float64, {_number(read['ms'])} ms to read."
    )


def _lines(found: Found) -> list[tuple[str, Callable[[Found, str], Iterable[float] | None]]]:
    """(words, numbers of a tool) of each line of the summary."""
    counts = {part: found.results[part][0] for part in ("latency", "reading", "kill") if found.results.get(part)}
    steps = counts.get("reading", {}).get("steps", 0)
    calls = counts.get("latency", {}).get("calls", 0)
    kills = max((len(found.lost(tool)) for tool in found.loggers()), default=0)

    def shares(pace: str) -> Callable[[Found, str], Iterable[float] | None]:
        return lambda found, tool: _values(found.one("latency", tool, pace=pace), ("p50", "p99", "p99.9"))

    return [
        ("a call with 5 metrics holds the loop, flat out: p50 / p99 / p99.9, µs", shares("tight")),
        ("the same at one call a millisecond", shares("sleep")),
        (
            "CPU per call: the trainer, all its threads / other processes, µs",
            lambda found, tool: found.cpu(tool, "tight"),
        ),
        (
            "a torch loop of a small network gets slower by, %",
            lambda found, tool: _values(found.one("training", tool), ("slowdown_percent",)),
        ),
        ("init, ms", lambda found, tool: _values(found.one("init", tool), ("init_ms",))),
        (
            f"finish after {calls:,} calls flat out, ms",
            lambda found, tool: _values(found.one("latency", tool, pace="tight"), ("finish_ms",)),
        ),
        (
            "bytes on disk per step: 5 float32-valued / float64 metrics",
            lambda found, tool: [
                value
                for kind in ("float32", "float64")
                for value in _values(found.one("size", tool, kind=kind), ("bytes_per_step",)) or ()
            ],
        ),
        (
            f"reading one metric of ten over {steps:,} steps, ms",
            lambda found, tool: _values(found.one("reading", tool), ("ms",)),
        ),
        (
            f"calls lost by {kills} × `kill -9` of the trainer",
            lambda found, tool: [sum(found.lost(tool))] if found.lost(tool) else None,
        ),
    ]


def _values(row: Results, names: Sequence[str]) -> list[float] | None:
    return [row[name] for name in names] if all(row.get(name) is not None for name in names) else None


def _cell(values: Iterable[float] | None) -> str:
    return " / ".join(map(_number, values or ())) or "–"


def _number(value: float) -> str:
    """Two digits that mean something, three where the first is a one."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 3 if f"{abs(value):e}"[0] == "1" else 2
    text = f"{value:.{digits}g}"
    return text if "e" not in text else f"{value:.4f}"


# ---- the figure


def draw(results: Results, path: str) -> None:
    """Six panels as a PNG.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(f"cannot draw: {error}. Try: pip install -e .[bench]") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    found = Found(results)
    style = {"font.size": 8.5, "axes.edgecolor": GREY_LIGHT, "text.color": INK, "xtick.color": INK, "ytick.color": INK}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(2, 3, figsize=(9.4, 5.4), dpi=130, facecolor="white", sharey="row")
        for panel, axis in zip(_PANELS, axes.flat):
            panel(found, axis)
        facts = results["machine"]
        quick = "   QUICK RUN: the numbers mean little" if results.get("quick") else ""
        about = f"benches/peers.py, {facts['date'][:10]}, {facts['cpus_usable']} CPUs: {facts['cpu']}{quick}"
        figure.text(0.995, 0.006, about, ha="right", va="bottom", fontsize=7, color=GREY)
        figure.tight_layout(rect=(0, 0.025, 1, 1), w_pad=1.2, h_pad=1.6)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
        pyplot.close(figure)
    # Few colours are used: a palette makes the file a third of its size.
    Image.open(drawn).convert("RGB").quantize(128, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def _names(found: Found, axis: Any, title: str, tools: list[str]) -> None:
    """The rows of a panel, the first at the top, ours in our colour."""
    axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
    axis.set_yticks(range(len(tools)), [str(found.tools[tool]["title"]) for tool in tools])
    for tool, label in zip(tools, axis.get_yticklabels()):
        if tool == OURS:
            label.set(color=HIGHLIGHT, fontweight="bold")
    axis.set_ylim(len(tools) - 0.4, -0.6)
    axis.tick_params(length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_axisbelow(True)
    axis.grid(axis="x", color="#E8EBEE", linewidth=0.8)


def _latency_panel(found: Found, axis: Any) -> None:
    """From p50 to p99.9 for both paces; the dot within is p99."""
    tools = found.loggers()
    _names(found, axis, "log() of 5 metrics holds the loop, µs", tools)
    axis.set_xscale("log")
    for place, tool in enumerate(tools):
        for pace, shift in (("tight", -0.17), ("sleep", 0.17)):
            values = _values(found.one("latency", tool, pace=pace), ("p50", "p99", "p99.9"))
            if values is None:
                continue
            color = HIGHLIGHT if tool == OURS else GREY
            face = color if pace == "tight" else "white"
            axis.plot(values, [place + shift] * 3, color=color, linewidth=1.6, zorder=2)
            axis.scatter(values, [place + shift] * 3, s=[34, 16, 16], marker="o", c=face, edgecolors=color, zorder=3)
            left = (values[0], place + shift)
            axis.annotate(
                _number(values[0]), left, (-6, 0), textcoords="offset points", ha="right", va="center", fontsize=7
            )
    axis.margins(x=0.16)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_xlabel("p50, p99, p99.9; filled: flat out, open: 1 call/ms", fontsize=7.5)


def _bars(
    found: Found, axis: Any, title: str, rows: dict[str, Sequence[float] | None], words: str, *, log: bool = False
) -> None:
    """Bars beside one another in each row (two at most), with their numbers; a dash where there is none."""
    _names(found, axis, title, list(rows))
    highest = max((value for values in rows.values() for value in values or ()), default=1.0) or 1.0
    lowest = min((value for values in rows.values() for value in values or () if value > 0), default=0.1)
    if log:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_xlim(lowest / 3 if log else 0, highest * (6 if log else 1.25))
    axis.axvline(axis.get_xlim()[0], color=GREY_LIGHT, linewidth=1)
    for place, (tool, values) in enumerate(rows.items()):
        colors = (HIGHLIGHT, HIGHLIGHT_LIGHT) if tool == OURS else (GREY, GREY_LIGHT)
        height = 0.68 / max(len(values or ()), 1)
        for index, value in enumerate(values or ()):
            y = place + (index - (len(values or ()) - 1) / 2) * height
            axis.barh(y, max(value, 0.0), height * 0.92, color=colors[index])
            at = (max(value, axis.get_xlim()[0]), y)
            axis.annotate(_number(value), at, (3, 0), textcoords="offset points", va="center", fontsize=7)
        if not values:
            axis.annotate("–", (axis.get_xlim()[0], place), (3, 0), textcoords="offset points", va="center")
    axis.set_xlabel(words, fontsize=7.5)


def _cpu_panel(found: Found, axis: Any) -> None:
    rows = {tool: found.cpu(tool, "tight") for tool in found.loggers()}
    _bars(found, axis, "CPU per call, µs", rows, "dark: trainer, all threads; light: other processes")


def _training_panel(found: Found, axis: Any) -> None:
    rows = {tool: _values(found.one("training", tool), ("slowdown_percent",)) for tool in found.loggers()}
    seconds = [row["iteration_us"] for row in found.results.get("training", []) if "iteration_us" in row]
    words = f"of a step of {common.median(seconds) / 1e3:.2g} ms" if seconds else ""
    _bars(found, axis, "a small torch loop gets slower by, %", rows, words)


def _size_panel(found: Found, axis: Any) -> None:
    rows: dict[str, Sequence[float] | None] = {}
    for tool in found.tools:
        kinds = [found.one("size", tool, kind=kind).get("bytes_per_step") for kind in ("float32", "float64")]
        rows[tool] = [kind for kind in kinds if kind is not None]
    _bars(found, axis, "bytes per step of 5 noisy metrics", rows, "dark: float32-valued, light: float64")


def _reading_panel(found: Found, axis: Any) -> None:
    rows = {tool: _values(found.one("reading", tool), ("ms",)) for tool in found.tools}
    steps = next((row["steps"] for row in found.results.get("reading", [])), 0)
    _bars(found, axis, "reading one metric of ten, ms", rows, f"{steps:,} steps; –: no reader", log=True)


def _kill_panel(found: Found, axis: Any) -> None:
    kills = max((len(found.lost(tool)) for tool in found.loggers()), default=0)
    rows: dict[str, Sequence[float] | None] = {}
    for tool in found.tools:
        rows[tool] = [sum(found.lost(tool))] if found.lost(tool) else None
    _bars(
        found, axis, f"calls lost by {kills} × kill -9 of the trainer", rows, "one call a ms, killed at random moments"
    )


_PANELS = (_latency_panel, _cpu_panel, _training_panel, _size_panel, _reading_panel, _kill_panel)
