"""A report in a real browser: what hostile logs say stays text, and what a person does with the page works."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import sdk
from daemon.report.page import Wishes, report
from sdk.reader import Store
from tests.browser import Browser, Page, find_browser
from tests.builders import RunBuilder, make_run, make_store
from tests.media_rig import MediaBuilder, packed

# Each would leave its mark if any of it were run, as an element, an attribute, a style, an address or the end of the page's own data.
MARK = "document.title = window.pwned = 'pwned'"
EVIL = (
    f"</title></script><script>{MARK}</script></td><img src=x onerror=\"{MARK}\"><svg onload=\"{MARK}\"></svg>"
    f"'\"><iframe srcdoc=\"<script>parent.{MARK}</script>\"></iframe><a href=\"javascript:{MARK}\">x</a>"
    f"<style>* {{ background: url(http://evil.test/x) }}</style><!-- \u2028 ]]> ${{{MARK}}} \u202e\x1b[2J\0<base href=//evil.test>"
    f"<meta http-equiv=refresh content=\"0;url=http://evil.test/\"><form action=http://evil.test/><input autofocus onfocus=\"{MARK}\">"
)  # fmt: skip
EVIL_PAGE = (
    f"<html><h1>logged page</h1><script>parent.{MARK}; {MARK}; alert(1)</script><img src=http://evil.test/y onerror=\"{MARK}\">"
    f"<svg><script>{MARK}</script><animate onbegin=\"{MARK}\"/></svg><meta http-equiv=refresh content=\"0;url=http://evil.test/\">"
    "<link rel=stylesheet href=http://evil.test/s><a id=out target=_top href=http://evil.test/>out</a></html>"
)  # fmt: skip
EVIL_SVG = f'<svg xmlns="http://www.w3.org/2000/svg" onload="{MARK}"><script>{MARK}</script></svg>'.encode()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("Chromium is not installed here: bash scripts/_browser.sh")
    found = Browser(path)
    yield found
    found.close()


def hostile_run(store: str, run_id: str = "a41f") -> None:
    """A run whose every text is hostile, with media of every kind that a page shows."""
    run = RunBuilder(store, run_id, name=EVIL, project=EVIL, group=EVIL, notes=EVIL, tags=[EVIL])
    main = run.stream(host=EVIL)
    media = MediaBuilder(run, main, writer=0xB000 + int(run_id, 16))
    main.meta(
        {"config": {EVIL: EVIL, "deep": {EVIL: [EVIL]}, "lr": run_id}, "summary": {EVIL: EVIL}, "misuse": {EVIL: EVIL}}
    )
    main.meta({"context": {EVIL: EVIL, "command": [EVIL], "git": {"branch": EVIL, "commit": EVIL}, "host": EVIL}})
    main.meta({"alert": {"1": {"title": EVIL, "text": EVIL, "level": EVIL}}})
    main.meta({"error": {"type": EVIL, "message": EVIL, "traceback": EVIL}})
    main.meta({"metric": {"axis/y": {"name": "axis/y", "step_metric": EVIL}}})
    for step in range(20):
        main.log({EVIL: float(step), f"{EVIL}/{EVIL}": 1.0 / (step + 1), "axis/y": step, "text": EVIL})
    picture = sdk.Image(numpy.zeros((4, 4, 3), "uint8"), caption=EVIL)
    table = sdk.Table(
        columns=[EVIL, "picture", "number"], data=[[EVIL, picture, 2.0], ["b", picture, 10.0], ["c", picture, -1.0]]
    )
    media.log({EVIL + "/image": picture, "page": sdk.Html(EVIL_PAGE), "table": table, "hist": sdk.Histogram([1, 2, 2])})
    media.log({"sound": sdk.Audio(numpy.zeros(800, "float32"), sample_rate=8000, caption=EVIL)})
    svg = media.blob(EVIL_SVG, {"format": "svg", "media": "image-file"})
    media.log_packed({"svg": packed("image-file", format="svg", data=svg, width=1, height=1, caption=EVIL)})
    media.log_packed({"as png": packed("image-file", format="png", data=media.blob(EVIL_SVG, {"format": "png"}))})
    media.log_packed({"odd": packed(EVIL, format=EVIL, data=media.blob(b"x", {"format": EVIL}))})
    gap = {"episode": EVIL, "count": 3, "step_min": 5, "step_max": 8, "reason": EVIL}
    main.gap(**gap, start_ns=main.time_ns - 15 * 10**6, end_ns=main.time_ns - 12 * 10**6)
    main.finish("failed", 1)
    console = run.stream("console")
    for line in (EVIL, "\x1b[31mred\x1b[0m", EVIL_PAGE):
        console.log({"text": line, "source": "stdout"})
    media.seal()


def written(tmp_path: Path, store: str, runs: tuple[str, ...], **wishes: Any) -> Path:
    path = tmp_path / "report.html"
    opened = Store(store)
    path.write_text(report([opened.run(name) for name in runs], Wishes(**wishes)).html, encoding="utf-8")
    return path


def asked(browser: Browser) -> list[str]:
    """What a hostile text made the browser ask for; it has questions of its own, too."""
    return [address for address in browser.asked if "evil.test" in address]


def ready(page: Page) -> None:
    """The scripts have begun, and charts that came into sight are drawn."""
    page.until("document.documentElement.dataset.ready === 'yes'")
    page.box("figure.chart")
    page.until("document.querySelector('canvas')")


def test_nothing_of_a_hostile_log_runs(tmp_path: Path, browser: Browser) -> None:
    """No script, handler, style or address out of a name, key, config, console line, caption, cell, page or SVG has an effect, the
    page's policy never even had to refuse one, and the texts are there to be read.
    """
    store = make_store(tmp_path)
    hostile_run(store)
    hostile_run(store, "b41f")
    path = written(tmp_path, store, ("a41f", "b41f"), title=EVIL)
    with browser.page(path) as page:
        ready(page)
        # The tip is made of labels, and a frame is loaded when it comes into sight.
        for selector in ("figure.chart .u-over", "iframe"):
            left, top, width, height = page.box(selector)
            page.mouse("Moved", left + width / 2, top + height / 2)
        page.value("document.querySelectorAll('details').forEach(one => one.open = true)")
        frames = "[...document.querySelectorAll('iframe')]"
        load = "new Promise(done => { f.addEventListener('load', done); f.loading = 'eager'; f.srcdoc = f.srcdoc; })"
        page.value(f"Promise.all({frames}.map(f => {load})).then(found => found.length)")
        page.value("document.querySelectorAll('th button').forEach(one => one.click())")
        assert page.value("window.pwned === undefined")
        assert page.dialogs == asked(browser) == []
        assert page.said == [], "the policy had nothing to refuse"
        found = page.value(
            "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes].filter(a => a.name.startsWith('on') || "
            "/javascript:|evil/.test(['href', 'src', 'action'].includes(a.name) ? a.value : '')).map(a => e.tagName + ' ' + a.name))"
        )
        assert found == []
        counts = page.value(
            "['base', 'form', 'link', 'body meta', 'object', 'body style', 'script:not([type])', 'iframe:not([sandbox=\"\"])', 'title']"
            ".map(s => document.querySelectorAll(s).length)"
        )
        assert counts == [0, 0, 0, 0, 0, 0, 2, 0, 1]
        text = page.value("document.body.textContent")
        assert text.count(f"<script>{MARK}</script>") > 20
        assert "\x1b" not in text
        assert "red" in text
        assert page.value("document.querySelectorAll('iframe').length") == 2
        assert page.value("document.querySelectorAll('img').length") == 2 + 2 * 3


def test_the_traps_would_snap(tmp_path: Path, browser: Browser) -> None:
    """The same texts as tags of a page do run; below the report's policy not even then: it is the second lock."""
    store = make_store(tmp_path)
    make_run(store, values=[{"loss": 1.0}])
    policy = re.search("<meta http-equiv=.Content-Security-Policy.*?>", written(tmp_path, store, ("a41f",)).read_text())
    assert policy is not None
    for head, has_run in (("", True), (policy[0], False)):
        path = tmp_path / f"{has_run}.html"
        # Without what would lead the whole page away.
        path.write_text(f"<!doctype html>{head}<title>" + EVIL.replace("http-equiv=refresh", ""), encoding="utf-8")
        with browser.page(path) as page:
            assert page.value("window.pwned === 'pwned'") == has_run
            assert asked(browser) == (["http://evil.test/x"] if has_run else [])
        browser.asked.clear()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two runs with a gap and a second attempt."""
    directory = tmp_path_factory.mktemp("report")
    store = make_store(directory)
    for number in range(2):
        run = RunBuilder(store, f"a41{number}", name=f"run-{number}")
        first = run.stream()
        first.meta({"config": {"lr": 0.1 * (number + 1), "same": 1}})
        for step in range(100):
            first.log({"train/loss": 100.0 - step + number, "val/acc": step / 100 - 0.5})
        again = run.stream(continues=first.hex, attempt=2, first_step=100, started_ns=first.time_ns + 10**9)
        for step in range(100, 200):
            again.log({"train/loss": 200.0 - step + number, "val/acc": step / 200})
        first.gap(
            episode="e",
            count=10,
            step_min=50,
            step_max=60,
            start_ns=first.time_ns - 10**7,
            end_ns=first.time_ns,
            reason="disk full",
        )
        again.finish()
        run.seal()
    return written(directory, store, ("a410", "a411"))


ZOOM = "(() => {{ const p = document.querySelectorAll('figure.chart')[{0}]; return p.dataset.zoomed; }})()"


def test_charts_are_worked_with(plain: Path, browser: Browser) -> None:
    """Dragging zooms, a double click goes back, the pointer tells values, and so do the keys; axis, logarithm and smoothing redraw."""
    with browser.page(plain) as page:
        ready(page)
        assert page.value("document.querySelectorAll('figure.chart').length") == 2
        left, top, width, height = page.box("figure.chart .u-over")
        middle = top + height / 2
        page.drag((left + width * 0.25, middle), (left + width * 0.5, middle))
        page.until(f"{ZOOM.format(0)} === 'yes'")
        page.mouse("Moved", left + width / 2, middle)
        tip = page.until("(t => !t.hidden && t.textContent)(document.querySelector('.tip'))")
        assert "run-0 (a410)" in tip
        assert "run-1 (a411)" in tip
        for _ in range(2):
            page.mouse("Pressed", left + width / 2, middle, 2)
            page.mouse("Released", left + width / 2, middle, 2)
        page.until(f"{ZOOM.format(0)} === 'no'")
        page.value("document.querySelector('figure.chart').focus()")
        for key, zoomed in (("+", "yes"), ("0", "no"), ("+", "yes"), ("Escape", "no")):
            page.press(key)
            page.until(f"{ZOOM.format(0)} === '{zoomed}'")
        page.press("ArrowRight")
        assert page.value("!document.querySelector('.tip').hidden")
        for change in ("'x-axis', 'relative', 'change'", "'x-axis', 'time', 'change'", "'smooth', '0.8', 'input'"):
            page.value(
                f"((id, v, e) => {{ const i = document.getElementById(id); i.value = v; i.dispatchEvent(new Event(e)) }})({change})"
            )
            assert page.value("document.querySelectorAll('canvas').length") == 2
        page.value("document.getElementById('log').click()")
        page.value("document.querySelector('.runs input').click()")
        page.value("(i => { i.value = 'acc'; i.dispatchEvent(new Event('input')) })(document.getElementById('filter'))")
        assert page.value("[...document.querySelectorAll('figure.chart')].map(f => f.hidden)") == [True, False]
        assert page.said == []


def test_charts_out_of_sight_wait(tmp_path: Path, browser: Browser) -> None:
    """A slider redraws what is seen; a chart that is not is drawn with the new choice when it comes into sight."""
    store = make_store(tmp_path)
    make_run(store, values=[{f"k{n:02}": float(n + step) for n in range(40)} for step in range(5)])
    with browser.page(written(tmp_path, store, ("a41f",))) as page:
        page.until("document.documentElement.dataset.ready === 'yes'")
        first, last = "document.querySelector('figure.chart')", "[...document.querySelectorAll('figure.chart')].at(-1)"
        for figure in (first, last):
            page.value(f"{figure}.scrollIntoView()")
            page.until(f"{figure}.querySelector('canvas')")
        page.value(f"window.before = [{first}, {last}].map(f => f.querySelector('canvas'))")
        page.value("(s => { s.value = '0.9'; s.dispatchEvent(new Event('input')) })(document.getElementById('smooth'))")
        same = f"[{first}, {last}].map((f, i) => f.querySelector('canvas') === before[i])"
        assert page.value(same) == [True, False]
        page.value(f"{first}.scrollIntoView()")
        page.until(f"!({same})[0]")
        assert page.said == []


def test_tables_sort(tmp_path: Path, browser: Browser) -> None:
    """A click on a heading sorts by number where there are numbers, and once more the other way."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    media = MediaBuilder(run, run.stream())
    media.log({"table": sdk.Table(columns=["name", "n"], data=[["b", 10], ["a", 9], ["c", None]])})
    media.seal()
    with browser.page(written(tmp_path, store, ("a41f",))) as page:
        page.until("document.documentElement.dataset.ready === 'yes'")
        column = "[...document.querySelectorAll('#tables tbody tr')].map(r => r.cells[0].textContent).join('')"
        click = "document.querySelectorAll('#tables th button')[{}].click()"
        for head, order in ((1, "abc"), (1, "bac"), (0, "abc")):
            page.value(click.format(head))
            assert page.value(column) == order


def test_it_is_read_without_scripts(plain: Path, browser: Browser) -> None:
    """Where scripts may not run there are the same words, tables and charts; nothing that would need one is offered."""
    with browser.page(plain, scripts=False) as page:
        assert page.value("document.documentElement.dataset.ready === undefined")
        assert page.value("document.querySelectorAll('svg.still polyline').length") == 4
        assert page.value(
            "[...document.querySelectorAll('svg.still')].every(s => s.getBoundingClientRect().height > 100)"
        )
        assert page.value("document.querySelectorAll('.bar, canvas, th button').length") == 0
        assert "lr" in page.value("document.getElementById('config').textContent")


def test_it_follows_the_light_and_prints(plain: Path, browser: Browser) -> None:
    """Dark where the reader's system is dark; a print has the pictures that need no script, on white."""
    ground = "getComputedStyle(document.body).backgroundColor"
    with browser.page(plain, dark=True, size=(420, 800)) as page:
        ready(page)
        assert page.value(ground) == "rgb(20, 23, 27)"
        assert page.value("document.documentElement.scrollWidth <= 420"), "a narrow window needs no scrolling sideways"
        assert page.pdf().startswith(b"%PDF")
        page.send(
            "Emulation.setEmulatedMedia",
            {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
        )
        assert page.value(ground) == "rgb(255, 255, 255)"
        shown = page.value(
            "['svg.still', '.live', '.bar'].map(s => getComputedStyle(document.querySelector(s)).display)"
        )
        assert json.dumps(shown) == '["block", "none", "none"]'
