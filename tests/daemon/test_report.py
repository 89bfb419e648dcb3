"""What stands in a report, what is left out of it and said, and the command. How it behaves in a browser: test_report_browser."""

from __future__ import annotations

import errno
import io
import json
import random
import re
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

import sdk
from daemon.commands import report as report_command
from daemon.report import charts, media
from daemon.report.budget import POINTS_MIN, SIZE_MIN, points_for
from daemon.report.markup import data_url, frame_source, place, script_data, tag, text
from daemon.report.page import RUNS_MAX, Wishes, report
from sdk.query.why.postmortem import postmortem
from sdk.reader import Store
from tests.builders import RunBuilder, compact, make_run, make_store
from tests.called import stepd
from tests.media_rig import MediaBuilder, packed
from tests.terminal import screen_of


def made(store: str, *runs: str, **wishes: Any) -> Any:
    opened = Store(store)
    return report([opened.run(name) for name in runs or ("a41f",)], Wishes(**wishes))


def data_of(page: str) -> Any:
    """What the page's script gets."""
    found = re.search('<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def words_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", re.sub("<(style|script).*?</\\1>", "", page, flags=re.DOTALL)))


# -- markup


def test_a_text_is_never_a_tag() -> None:
    """Whatever is no markup is escaped, in children and in attributes, without what misleads a reader."""
    evil = "<b>'\"&\x00\x1b[2J\u202e\ud800"
    assert text(evil) == "&lt;b&gt;&#x27;&quot;&amp;\ufffd\ufffd[2J\ufffd\ufffd"
    assert (
        tag("p", [evil, tag("b", 1), None], title=evil, class_="x")
        == f'<p title="{text(evil)}" class="x">{text(evil)}<b>1</b></p>'
    )


@pytest.mark.parametrize(
    "words", [{"onclick": "x"}, {"src": "http://x"}, {"href": "javascript:x"}, {"srcdoc": "<p>"}, {"a b": "x"}]
)
def test_what_no_element_gets(words: dict[str, str]) -> None:
    """Handlers, and addresses that are not ours."""
    with pytest.raises(ValueError, match="attribute"):
        tag("img", **words)


def test_addresses_that_are_ours() -> None:
    """Data of the kinds that a page shows, places of the page, and a frame whose content is an attribute."""
    assert tag("a", "x", href=place("runs")) == '<a href="#runs">x</a>'
    assert data_url("image/png", b"x") == "data:image/png;base64,eA=="
    assert 'sandbox="" srcdoc="&lt;meta' in tag("iframe", sandbox="", srcdoc=frame_source('"><script>'))
    for call in (
        lambda: data_url("image/svg+xml", b""),
        lambda: data_url("text/html", b""),
        lambda: place("x y"),
        lambda: tag("x y"),
    ):
        with pytest.raises(ValueError):
            call()


def test_data_cannot_end_its_element() -> None:
    """JSON is read back as it was, and has no character of a tag."""
    value = {"a": "</script><!--&\u2028"}
    found = script_data(value)
    assert json.loads(found[found.index(">") + 1 : -len("</script>")]) == value
    assert re.search("[<>&\u2028]", found[found.index(">") + 1 : -len("</script>")]) is None


# -- what is in it


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    """Config that differs first and the rest folded; last and best of a key; a line for each run in one chart, sections by slash."""
    store = make_store(tmp_path)
    for number, name in enumerate(("a41f", "b41f")):
        config = {"same": 1, "lr": 0.1 * (number + 1), "optimizer": {"name": "adam"}}
        rows = [{"train/loss": 3.0 - step + number, "val/acc": step / 10} for step in range(3)]
        make_run(store, name, rows, name=f"run-{number}", config=config)
    found = made(store, "a41f", "b41f")
    words = words_of(found.html)
    assert "lr 0.1 0.2" in words
    assert words.index("lr 0.1") < words.index("2 values, the same in all runs") < words.index("optimizer.name adam")
    assert "1 min 1 @ 2" in words
    assert "0.2 max 0.2 @ 2" in words
    assert "train (1)" in words
    data = data_of(found.html)
    assert [(chart["key"], [line["run"] for line in chart["lines"]]) for chart in data["charts"]] == [
        ("train/loss", [0, 1]), ("val/acc", [0, 1]),
    ]  # fmt: skip
    assert data["charts"][0]["lines"][1]["value"] == [4, 3, 2]
    assert found.html.count("<polyline") == 4
    assert (found.runs, found.charts, found.media, found.left_out) == (2, 2, 0, [])


def test_facts_of_one_run(tmp_path: Path) -> None:
    """How it ended, what is missing, where it came from and what it printed."""
    store = make_store(tmp_path)
    run = RunBuilder(store, tags=["baseline"], notes="first try")
    main = run.stream()
    main.meta(
        {"context": {"command": ["python", "train.py"], "git": {"commit": "4f0c", "branch": "main"}, "host": "node-7"}}
    )
    main.meta({"error": {"type": "ValueError", "message": "no", "traceback": "Traceback\n  line 1"}})
    for step in range(20):
        main.log({"loss": 1.0 / (step + 1)})
    main.gap(
        episode="e", count=3, step_min=5, step_max=8, start_ns=main.time_ns, end_ns=main.time_ns, reason="disk full"
    )
    main.finish("failed", 1)
    console = run.stream("console")
    for line in ("epoch 1", "\x1b[31mred\x1b[0m"):
        console.log({"text": line, "source": "stdout"})
    run.seal()
    found = made(store)
    words = words_of(found.html)
    for part in (
        "calm-otter-12", "failed exit code 1", "baseline", "first try", "git.commit 4f0c", "command python train.py", "host node-7",
        "gap: 3 records, steps 5 to 8: disk full", "ended by ValueError: no", "epoch 1 red",
    ):  # fmt: skip
        assert part in words, part
    assert "\x1b" not in found.html
    assert data_of(found.html)["runs"][0]["gaps"][0][:2] == [5, 8]
    assert 'class="gap"' in found.html


def test_a_run_without_last_words(tmp_path: Path) -> None:
    """Of one that did not end well and left no exception the page says what is known; of a finished one nothing."""
    store = make_store(tmp_path)
    make_run(store, "a41f", [{"loss": 1.0}], state="interrupted")
    make_run(store, "b52e", [{"loss": 1.0}])
    (verdict,) = re.findall(r"<p>([^<]*\])</p>", made(store).html)
    told = postmortem(Store(store).run("a41f")).verdict
    assert verdict == text(f"{told.text} [{told.confidence}]")
    assert not re.findall(r"<p>[^<]*\]</p>", made(store, "b52e").html)


def test_the_places_of_console_lines_are_no_facts(tmp_path: Path) -> None:
    """Where in its file the output of each run began would always differ."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    main = run.stream()
    main.meta({"context": {"host": "node-7", "console": {"stdout": {"kind": "file", "path": "log", "from": 105}}}})
    main.finish()
    run.seal()
    words = words_of(made(store).html)
    assert "host node-7" in words
    assert "console.stdout" not in words


def test_where_an_attempt_began(tmp_path: Path) -> None:
    """A resumed run is marked at the first step behind its resume, over steps and over seconds."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    first = run.stream()
    for step in range(10):
        first.log({"loss": float(step)})
    again = run.stream(continues=first.hex, attempt=2, first_step=10, started_ns=first.time_ns + 10**9)
    for step in range(10, 20):
        again.log({"loss": float(step)})
    run.seal()
    page = made(store).html
    ((step, seconds),) = data_of(page)["runs"][0]["attempts"]
    assert step == 10
    assert seconds == pytest.approx(1, abs=0.1)
    assert page.count('class="attempt"') == 1
    assert "2 attempts" in words_of(page)


def test_what_was_observed_stands_over_seconds(tmp_path: Path) -> None:
    """The machine has no steps: its charts come last, folded, over the time since the run was created."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    main = run.stream()
    main.log({"loss": 1.0})
    main.finish()
    observed = run.stream("system")
    for cpu in (10.0, 20.0):
        observed.log({"system/cpu": cpu})
    run.seal()
    page = made(store).html
    chart = data_of(page)["charts"][1]
    assert (chart["key"], chart["seconds"], len(chart["lines"][0]["time"])) == ("system/cpu", True, 2)
    assert '<details class="section"><summary>system (1)' in page


def test_an_axis_of_its_own(tmp_path: Path) -> None:
    """A key that `define_metric` gave another axis says where its points stand on it."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    main = run.stream()
    main.meta({"metric": {"val/acc": {"name": "val/acc", "step_metric": "epoch"}}})
    for epoch in range(3):
        main.log({"epoch": epoch * 10, "val/acc": epoch / 4})
    run.seal()
    line = data_of(made(store, keys=["val/*"]).html)["charts"][0]["lines"][0]
    assert (line["x_name"], line["x"]) == ("epoch", [0, 10, 20])


@pytest.mark.parametrize(
    "values", [[], [float("nan")], [float("inf"), 1.0], [1.7e308, -1.7e308], [5e-324, 0.0], [2**63, True]], ids=str
)
def test_any_numbers_can_be_reported(tmp_path: Path, values: list[Any]) -> None:
    """None at all, those that are not finite, and those beyond everything give a page with numbers that JSON and SVG have."""
    store = make_store(tmp_path)
    make_run(store, values=[{"x": value} for value in values])
    page = made(store).html
    data_of(page)
    assert not re.search(r'points="[^"]*(nan|inf)', page)


# -- what it weighs


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    """However many values there are: a line has `points` of them, the smallest and the largest included, and the page says so."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    main = run.stream()
    for step in range(6000):
        main.log({"loss": 2.0 + (step == 4321) - (step == 1234)})
    run.flush()
    compact(run)
    found = made(store, points=200)
    line = data_of(found.html)["charts"][0]["lines"][0]
    assert len(line["value"]) <= 200
    assert {1, 3} <= set(line["value"])
    assert f"{len(line['value'])} of 6,000 points, extremes kept" in words_of(found.html)


def test_points_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library that chooses points is not installed, extremes are kept all the same."""
    monkeypatch.setitem(__import__("sys").modules, "tsdownsample", None)
    store = make_store(tmp_path)
    make_run(store, values=[{"loss": 2.0 + (step == 321) - (step == 123)} for step in range(500)])
    line = data_of(made(store, points=20).html)["charts"][0]["lines"][0]
    assert len(line["value"]) <= 20
    assert {1, 3} <= set(line["value"])


def test_extremes_of_any_values() -> None:
    """Never more than asked for, in order, with the first, the last, the smallest and the largest."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chosen = numpy.random.default_rng(seed)
    for count in (2, 3, 20, 21, 5000):
        value = chosen.normal(size=count)
        at = charts.extremes(value, 20)
        assert len(at) <= 20
        assert {0, count - 1, int(value.argmin()), int(value.argmax())} <= set(at.tolist())
        assert (numpy.diff(at) > 0).all()


def test_many_series_share_the_room(tmp_path: Path) -> None:
    """Points, then charts are left out where a file would grow beyond its size, and both are said."""
    store = make_store(tmp_path)
    make_run(store, values=[{f"key/{i:03d}": random.random() for i in range(150)} for _ in range(300)])
    found = made(store, size_max=SIZE_MIN)
    assert len(found.html) <= SIZE_MIN
    assert found.charts < 150
    assert [line for line in found.left_out if line.startswith("Charts of ")]
    assert [line for line in found.left_out if line.startswith("A line has at most ")]
    assert all(line in words_of(found.html) for line in found.left_out)


def test_points_for() -> None:
    """As many as wished where there is room, fewer where there is not, and never too few to see anything."""
    assert points_for(1, 2000, 10**6) == 2000
    assert POINTS_MIN < points_for(20, 2000, 10**6) < 2000
    assert points_for(10**4, 2000, 10**6) == POINTS_MIN


def test_long_words_are_cut(tmp_path: Path) -> None:
    """Of a console and a traceback the end stays, of a config the first names; how many more there are is said."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    main = run.stream()
    main.meta({"config": {f"name_{i:04d}": "x" * 2000 for i in range(500)}})
    main.meta({"error": {"type": "E", "message": "m" * 2000, "traceback": "start" + "x" * 50_000 + "end"}})
    main.log({"loss": 1.0})
    main.finish("failed", 1)
    console = run.stream("console")
    for number in range(90):
        console.log({"text": f"line {number} " + "x" * 2000, "source": "stdout"})
    run.seal()
    words = words_of(made(store, size_max=SIZE_MIN).html)
    assert "line 89 " in words
    assert "line 79 " not in words
    assert "xend" in words
    assert "startx" not in words
    assert re.search("… 4[0-9][0-9] more", words)
    assert "(2,000 characters)" in words


def test_no_text_makes_a_report_too_large(tmp_path: Path) -> None:
    """Names, notes, keys, alerts and what is wrong are cut, and bytes are counted, not characters."""
    store = make_store(tmp_path)
    long = "長" * 30_000
    run = RunBuilder(store, name=long, project=long, group=long, notes=long, tags=[long])
    main = run.stream()
    main.meta({"config": {f"{long[:300]}{n}": long[:300] for n in range(500)}, "misuse": {long: "x"}})
    main.meta({"error": {"type": long, "message": long, "traceback": long}, "context": {long: long}})
    main.meta({"alert": {str(n): {"title": long[:9000], "text": long[:9000], "level": "WARN"} for n in range(20)}})
    main.log({f"{long[:300]}{n}/x": n for n in range(100)})
    main.gap(episode=long, count=3, step_min=0, step_max=1, reason=long, start_ns=1, end_ns=2)
    main.finish("failed", 1)
    run.seal()
    for size in (SIZE_MIN, 2 * SIZE_MIN):
        found = made(store, title=long, size_max=size)
        assert len(found.html.encode()) <= size
        assert found.charts > 0
    for number in range(60):
        facts_of = {"name": f"{number}{long[:500]}", "config": {f"c{n}": f"{number}" * 200 for n in range(40)}}
        make_run(store, f"{number:02x}", [{f"k{n}": n for n in range(20)}], **facts_of)
    assert len(made(store, size_max=SIZE_MIN).html.encode()) <= SIZE_MIN


def test_more_runs_than_anybody_compares(tmp_path: Path) -> None:
    """The first ones are there, and how many there were is said."""
    store = make_store(tmp_path)
    for number in range(RUNS_MAX + 2):
        make_run(store, f"{number:04x}", [{"loss": float(number)}])
    found = report(Store(store).runs(), Wishes())
    assert found.runs == RUNS_MAX
    assert f"The first {RUNS_MAX} of {RUNS_MAX + 2} runs are here." in found.left_out
    assert f"Charts show the first {charts.LINES_MAX} of {RUNS_MAX} runs." in found.left_out


# -- media


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """A run with large pictures, a table, a histogram, a sound, a page and a tensor."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    found = MediaBuilder(run, run.stream())
    noise = numpy.random.default_rng(0).integers(0, 255, (300, 400, 3), "uint8")
    for step in range(6):
        found.log({"val/examples": [sdk.Image(noise, caption=f"step {step}"), sdk.Image(noise[:8, :8])]})
    cells = [sdk.Image(noise[:9, :9]) if row < 2 else None for row in range(media.TABLE_ROWS_MAX + 20)]
    table = sdk.Table(columns=["n", "picture"], data=[[row, cell] for row, cell in enumerate(cells)])
    found.log(
        {
            "table": table,
            "hist": sdk.Histogram([1, 2, 2]),
            "page": sdk.Html("<b>hello</b>"),
            "points": numpy.zeros((3, 4)),
        }
    )
    found.log({"sound": sdk.Audio(numpy.zeros(800, "float32"), sample_rate=8000)})
    found.seal()
    return store


def test_the_newest_of_each_key(pictures: str) -> None:
    """Newest first, lists in their order; a table's first rows; frames in which nothing runs; what no page shows is named."""
    found = made(pictures, media=4)
    captions = re.findall("<figcaption>.*?</figcaption>", found.html)
    assert [words_of(one).strip() for one in captions[-4:]] == [
        "step 5 step 5",
        "step 5 [1]",
        "step 4 step 4",
        "step 4 [1]",
    ]
    assert f"{media.TABLE_ROWS_MAX} of {media.TABLE_ROWS_MAX + 20} rows, 2 of 2 columns" in words_of(found.html)
    assert found.html.count('class="cell small"') == 2, "of 9 pixels: shown larger"
    assert found.html.count('class="small"') == 2
    assert '<iframe sandbox="" srcdoc="&lt;meta http-equiv=&quot;Content-Security-Policy&quot;' in found.html
    assert '<audio src="data:audio/' in found.html
    assert "tensor · npy · 3×4" in found.html
    assert found.html.count('class="f0"') >= 1
    assert found.left_out == []


def test_pictures_become_smaller_before_they_are_left_out(pictures: str) -> None:
    """In a small file they are JPEGs of less; what still does not fit is counted."""
    large, small = made(pictures), made(pictures, size_max=SIZE_MIN)
    assert len(small.html) <= SIZE_MIN < len(large.html)
    assert "data:image/jpeg" in small.html
    assert made(pictures, media=0).media == 0
    assert made(pictures, keys=["sound"]).media == 1


def test_a_smaller_picture() -> None:
    """As large as the room allows; transparent ones on white; none where even the smallest is too large."""
    out = io.BytesIO()
    Image.new("RGBA", (2000, 1000), (0, 0, 0, 0)).save(out, "PNG")
    smaller = media.smaller_image(out.getvalue(), 50_000, (1024, 320))
    assert smaller is not None
    picture = Image.open(io.BytesIO(smaller))
    assert (picture.size, picture.getpixel((0, 0))) == ((1024, 512), (255, 255, 255))
    assert media.smaller_image(out.getvalue(), 10, (1024, 320)) is None


def test_a_picture_that_says_it_is_huge(tmp_path: Path) -> None:
    """A few bytes that would be gigabytes are neither decoded nor given to a browser."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    rig = MediaBuilder(run, run.stream())
    for number, side in enumerate((9_000, 60_000)):  # the second is more than Pillow itself would open
        head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
        data = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
        blob = rig.blob(data, {"format": "png", "media": "image-file"})
        rig.log_packed({f"huge{number}": packed("image-file", format="png", data=blob, width=1, height=1)})
        with pytest.raises(ValueError, match="pixels"):
            media.smaller_image(data, 1_000_000, (100,))
    rig.seal()
    found = made(store)
    assert (found.media, len(found.left_out)) == (0, 1)


def test_films(tmp_path: Path) -> None:
    """They play in the page where they fit."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    found = MediaBuilder(run, run.stream())
    found.log({"film": sdk.Video(numpy.zeros((4, 3, 32, 32), "uint8"), fps=4, format="mp4")})
    found.seal()
    assert '<video src="data:video/mp4;base64,' in made(store).html


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"), (b"RIFF1234WEBP", "image/webp"), (b"RIFF1234WAVE", "audio/wav"), (b"<svg", None), (b"", None),
        (b"MZ", None),
    ],
)  # fmt: skip
def test_a_file_is_what_its_bytes_say(data: bytes, kind: str | None) -> None:
    """Not what the store calls it."""
    assert media.sniff(data) == kind


# -- the command


@pytest.fixture
def two(tmp_path: Path) -> str:
    store = make_store(tmp_path)
    for number, name in enumerate(("a41f", "b41f")):
        make_run(store, name, [{"loss": 1.0, "acc": 0.5}], name=f"run-{number}", config={"lr": number + 1})
    return store


def test_the_command(tmp_path: Path, two: str) -> None:
    """Says that it writes, then writes one file, and what is in it; a second time it replaces it."""
    path = tmp_path / "x.html"
    path.write_text("old")
    result = stepd(two, "report", "a41f", "run-1", "-o", str(path), "--title", "Two runs", "--keys", "loss")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith(f"writing {path}\n")
    assert re.fullmatch(rf"{re.escape(str(path))}: [0-9.]+ kB, 2 runs, 1 chart, 0 media\n", result.stdout)
    page = path.read_text()
    assert "<title>Two runs</title>" in page
    assert [chart["key"] for chart in data_of(page)["charts"]] == ["loss"]
    assert sorted(tmp_path.iterdir()) == sorted([path, tmp_path / "store"])


def test_a_file_that_cannot_be_written(tmp_path: Path, two: str) -> None:
    """Is said in a line, what is there stays, and no draft; a file that is replaced is open to nobody who could not read it before."""
    path = tmp_path / "x.html"
    path.write_text("old")
    path.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.replace", failing(OSError(errno.ENOSPC, "No space left on device")))
        result = stepd(two, "report", "a41f", "-o", str(path))
    assert result.exit_code == 1
    assert f"cannot write '{path}': No space left on device\n  Try: " in result.stderr
    assert path.read_text() == "old"
    assert stepd(two, "report", "a41f", "-o", "/dev/full").exit_code == 1
    assert stepd(two, "report", "a41f", "-o", str(path)).exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == sorted([path, tmp_path / "store"])


def failing(error: OSError) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise error

    return call


def test_runs_by_expression(tmp_path: Path, two: str) -> None:
    """Those for which it holds; a script reads what became of it."""
    path = tmp_path / "x.html"
    result = stepd(two, "report", "--where", "config.lr > 1", "-o", str(path), "--json")
    assert json.loads(result.stdout) == {
        "path": str(path), "bytes": path.stat().st_size, "runs": ["b41f"], "charts": 2, "media": 0, "left_out": [],
    }  # fmt: skip
    assert stepd(two, "report", "--where", "config.lr > 5", "-o", str(path)).exit_code == 1


def test_to_standard_output(two: str) -> None:
    """The page and nothing else, for a pipe."""
    result = stepd(two, "report", "-o", "-")
    assert result.stdout.startswith("<!doctype html>")
    assert result.stdout.rstrip().endswith("</html>")


def test_in_a_terminal(tmp_path: Path, two: str) -> None:
    """What is done is written over by the next thing and gone at the end; a narrow screen shows what came of it."""
    screen = screen_of(["--dir", two, "report", "a41f", "b41f", "-o", str(tmp_path / "x.html")])
    said = re.sub(r"[0-9.]+kB", "…kB", "".join(screen.split()))
    assert said == f"{tmp_path}/x.html:…kB,2runs,2charts,0media"


def test_an_error_stands_alone_in_a_terminal(two: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was being done is wiped away before."""
    told: list[str] = []
    monkeypatch.setattr(report_command, "_tell", told.append)
    assert stepd(two, "report", "nosuch").exit_code == 1
    assert told == ["writing report.html", ""]


def test_numbers_among_texts(tmp_path: Path) -> None:
    """A text among numbers takes no chart away; how many values are not drawn, and which keys hold no numbers, is said."""
    store = make_store(tmp_path)
    values: list[Any] = [1.0, "x", 2.0, True]
    make_run(
        store,
        "a41f",
        [{"mixed": value, "ends": value, "text": "a", "odd": [1], "loss": 0.5} for value in [*values, 3]]
        + [{"ends": "end"}],
    )
    found = made(store)
    assert [chart["key"] for chart in data_of(found.html)["charts"]] == ["loss", "ends", "mixed"]
    assert found.left_out == [
        "There are no charts of odd, text: no numbers.",
        "5 values are not drawn, for they are no numbers: of ends, mixed.",
    ]


def test_a_key_that_nobody_has(tmp_path: Path, two: str) -> None:
    """The nearest are named, and nothing is written."""
    result = stepd(two, "report", "-o", str(tmp_path / "x.html"), "-k", "los")
    assert result.exit_code == 1
    assert "no run of the report has a key 'los'. Nearest: 'loss'." in result.stderr
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize("words", [["-o", "no/where/x.html"], ["-o", "."], ["--max-size", "much"], ["--points", "1"]])
def test_what_cannot_be(two: str, words: list[str]) -> None:
    """An error of use, before anything is read."""
    assert stepd(two, "report", *words).exit_code == 2
