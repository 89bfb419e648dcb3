"""The live screen without a terminal: what it reads, the lines that it makes of that, what keys do."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from daemon.cli import cli
from daemon.commands.watch import open_screen
from daemon.screen import table, text
from daemon.screen.model import SORTS, AwaitedStore, Board, Health, Scene, Wanted, filter_of
from daemon.screen.page import Chart, Content, Detail, Page
from daemon.screen.text import Ink
from daemon.screen.view import View
from sdk.errors import CommError, Error, UsageError
from sdk.query.living import Glance, Load, Spark
from sdk.reader import Store
from tests.builders import START_NS, RunBuilder, make_run, make_store
from tests.terminal import SCREENS, same_screen

SMALL, LARGE = (80, 24), (200, 50)
NOW = START_NS / 1e9 + 3600
HOSTILE = "\x1b[2J[red]\x07\u202e\u0300猫" + "x" * 10_000


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are shown in the zone of the reader."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def loss(count: int, first: float = 2.3) -> tuple[float, ...]:
    return tuple(first / (1 + n / 4) for n in range(count))


def glance(number: int = 0, **more: Any) -> Glance:
    """A run that goes on, with a sweep's worth of differences."""
    usual = Glance(
        id=f"a4{number:02x}", name=f"calm-otter-{number}", project="digits", group="", tags=(), state="running",
        started=NOW - 3000 - number, updated=NOW, step=1000 * number + 599, steps=100_000, rate=19.2 - number,
        eta_seconds=4980.0 + 60 * number, last_time=NOW - 1,
        sparks=(
            Spark("train/loss", tuple(range(40)), loss(40, 2.3 - number / 10), 0.041),
            Spark("val/acc", tuple(range(10)), tuple(n / 10 for n in range(10)), 0.934),
        ),
        load=Load(97.0, 30.2e9, 80e9, 125.0, 1.21e9) if number % 2 == 0 else Load(cpu=8.0, memory_bytes=312e6),
    )  # fmt: skip
    return usual._replace(**more)


def ended(number: int, state: str, **more: Any) -> Glance:
    return glance(number, state=state, updated=NOW - 720, rate=None, eta_seconds=None, load=Load(), **more)


def scene_of(*glances: Glance, **more: Any) -> Scene:
    health = Health(True, "", 0, 0, 0.03, 1180.0, 412 * 10**9)
    running = sum(one.state == "running" for one in glances)
    return Scene("/data/store", glances, running, len(glances) + 31, health, NOW, False)._replace(**more)


def test_runs_that_may_not_be_read_are_said() -> None:
    """The line of the daemon's health says which runs are left out, whatever they are called."""
    scene = scene_of(glance(), left_out="1 run cannot be read: Permission denied: '\x1bx'")
    assert table.draw(scene, table.Place(), 80, 24, Ink(True, False))[1].startswith(
        "! 1 run cannot be read: Permission denied: '"
    )


def full_scene() -> Scene:
    quiet = glance(
        3, quiet_seconds=1300.0, rate=None, eta_seconds=None, name="a name that is much longer than its column"
    )
    return scene_of(
        glance(0), glance(1), glance(2), quiet, ended(4, "finished"), ended(5, "crashed"), ended(6, "failed")
    )


def view_of(scene: Scene, size: tuple[int, int] = SMALL, ink: Ink | None = None) -> View:
    return View(scene, size, ink or Ink(True, False))


def shown(view: View) -> str:
    """The screen as text, when it has the right size."""
    lines = [click.unstyle(line) for line in view.draw()]
    assert len(lines) == view.size[1]
    assert all(text.width_of(line) <= view.size[0] for line in lines), max(lines, key=text.width_of)
    return "\n".join(line.rstrip() for line in lines) + "\n"


# ---- frames


def test_list_of_80_by_24() -> None:
    """Two lines for a run that goes on, one for one that is over."""
    same_screen("watch-list-80x24", shown(view_of(full_scene())))


def test_list_of_200_by_50() -> None:
    """In a wide terminal a line for each run."""
    same_screen("watch-list-200x50", shown(view_of(full_scene(), LARGE)))


def test_frames_without_colours_and_without_unicode() -> None:
    """Without colours there are none; in ASCII nothing else is written; the lines are the same otherwise."""
    plain = "\n".join(view_of(full_scene(), SMALL, Ink(True, False)).draw())
    assert "\x1b[3" not in plain
    view = view_of(full_scene(), SMALL, Ink(False, True))
    shown(view)
    assert "\n".join(view.draw()).isascii()


@pytest.mark.parametrize("size", [(20, 8), (33, 9), (80, 24), (129, 30), (130, 30), (300, 90)])
def test_hostile_names_stay_in_their_cells(size: tuple[int, int]) -> None:
    """Control characters, marks, wide characters and megabytes of names neither steer the terminal nor break a line."""
    spark = Spark(HOSTILE, (1, 2), (1e308, -1e308), float("inf"))
    bad = glance(0, id=HOSTILE, name=HOSTILE, project=HOSTILE, step=2**62, steps=2**63, rate=1e300, eta_seconds=1e300)
    bad = bad._replace(sparks=(spark, spark), load=Load(1e300, 1e300, -1.0, float("nan"), 1e30), state=HOSTILE)
    other = bad._replace(state="running", name="猫" * 100, eta_seconds=float("nan"), rate=float("inf"))
    view = view_of(scene_of(bad, other, trouble=HOSTILE), size)
    lines = shown(view)
    assert lines.replace("\n", "").isprintable()
    view.press("slash", "/")
    for key in HOSTILE[:30]:
        view.press("", key)
    shown(view)
    view.press("enter")
    view.open(bad.id)
    shown(view)


def test_health_says_what_is_lost(store: str) -> None:
    """Losses and what the daemon warns of are in the line; no daemon and no answer are said as they are."""
    told = {
        "refused": 3, "gaps": {"disk full": 300, "late": 13}, "free_bytes": 1, "records_per_second": 1.0,
        "runs": [{"lag_seconds": 0.2}, {"lag_seconds": 12.0}, "nonsense"], "warnings": ["the disk is full"],
    }  # fmt: skip
    unknown = Scene("/s", (), 0, 0, None, NOW, False)
    assert "3 refused · 313 dropped · lag 12s" in _health_line(store, told)
    assert "! the disk is full" in _health_line(store, told)
    assert "no daemon serves this store" in _health_line(store, None)
    assert "does not answer" in _health_line(store, CommError("the daemon does not answer"))
    assert "0 refused" in _health_line(store, {"runs": 7, "gaps": [], "refused": "many", "warnings": [None]})
    assert table.draw(unknown, table.Place(), 80, 24, Ink(True, False))[1].strip() == ""


def _health_line(store: str, told: Mapping[str, Any] | Exception | None) -> str:
    def ask(path: str) -> Mapping[str, Any] | None:
        if isinstance(told, Exception):
            raise told
        return told

    scene = Board(Store(store), ask=ask).look(Wanted())
    return click.unstyle(table.draw(scene, table.Place(), 200, 24, Ink())[1])


def test_numbers_in_few_characters() -> None:
    """Every number has its width, whatever it is."""
    for value in (
        0.0,
        1e-300,
        123456.7,
        0.1 + 0.2,
        float("nan"),
        float("-inf"),
        99999.6,
        -0.00012345,
        1e15,
        12345.6,
        0.0033333,
        -1.2e-10,
    ):
        assert len(text.number(value)) <= 7, value
        assert value != value or float(text.number(value)) == pytest.approx(value, rel=0.25), value
    assert [text.number(value) for value in (12345.6, 0.0033333, -0.0012345)] == ["12346", "0.00333", "-0.0012"]
    for size in (0, 999_499_999, 999.5e6, 9.96e9, 999.6e9, 1e15, 9e17):
        assert len(text.gigabytes(size)) <= 5, size
    for seconds in (0, 59.9, 60, 599, 3599, 3600, 86399, 86400, 86400 * 99.9, 86400 * 5000):
        assert len(text.span(seconds)) <= 6, seconds
    assert [text.rate(value) for value in (1.25, 0.5, 0.01, 1e5, 0, None)] == [
        "1.25/s",
        "30/min",
        "36/h",
        "100k/s",
        "",
        "",
    ]
    assert text.spark((0, 1), (1e308, -1e308), 8).strip() == "█▁"
    assert len(set(text.spark(tuple(range(61)), (0.0002511886431509582,) * 61, 12))) == 1
    assert len(text.spark(tuple(range(100)), loss(100), 12)) == 12
    assert text.spark((0, 1, 2, 3, 96, 97, 98, 99, 100), (8.0,) * 4 + (1.0,) * 5, 8) == "███████▁"


def test_the_page_shows_these_frames() -> None:
    """docs/screen.md quotes the screens that are kept, as far as it does."""
    page = (Path(__file__).parents[2] / "docs" / "screen.md").read_text(encoding="utf-8")
    for name, count in (("watch-list-80x24", 14), ("watch-run-80x24", 4)):
        kept = (SCREENS / f"{name}.txt").read_text(encoding="utf-8").splitlines()[:count]
        assert "\n".join(kept) in page


# ---- what is chosen


def test_filters() -> None:
    """Plain words are looked for in what a list shows; with a sign it is an expression; a broken one is said."""
    run: Any = None
    assert filter_of("OTTER digits")(run, glance())
    assert not filter_of("otter letters")(run, glance())
    assert filter_of("running")(run, glance())
    with pytest.raises(UsageError):
        filter_of("config.lr <")


def test_an_expression_chooses_runs(store: str) -> None:
    """The language of `stepd runs --where`; a mistake in it shows everything, and what is wrong."""
    for number in range(4):
        make_run(store, f"a{number}", [{"loss": 1.0 / (number + 1)}], config={"lr": 10.0**-number})
    board = Board(Store(store), ask=lambda path: None)

    def chosen(words: str) -> set[str]:
        return {one.id for one in board.look(Wanted(every=True, text=words)).glances}

    assert chosen("config.lr < 0.05") == {"a2", "a3"}
    assert chosen("best:loss <= 0.5 and id != a3") == {"a1", "a2"}
    assert chosen("lr <") == {"a0", "a1", "a2", "a3"}
    assert "expected" in board.look(Wanted(every=True, text="lr <")).trouble


def test_what_is_over_is_shown_for_an_hour(store: str) -> None:
    """Those that ended long ago are there when they are asked for; what counts is when they said so, not how old their files are."""
    make_run(store, "a1", [{"loss": 1.0}])
    ended = Store(store).run("a1").ended
    assert ended is not None
    for seconds, count in ((3500, 1), (3700, 0)):
        board = Board(Store(store), now_ns=lambda late=seconds: int((ended + late) * 1e9), ask=lambda path: None)
        assert len(board.look(Wanted()).glances) == count
        assert len(board.look(Wanted(every=True)).glances) == 1


def test_runs_that_go_on_come_first_whatever_they_are_sorted_by(store: str) -> None:
    """Each order has those of which it knows nothing last, and those that are over below the others."""
    from daemon.screen.model import _sorted

    bare = glance(7, step=None, rate=None, eta_seconds=None, sparks=(), load=Load())
    runs = [ended(1, "finished"), glance(2), bare, glance(4), ended(5, "failed")]
    for sort in SORTS:
        for is_reversed in (False, True):
            states = [one.state == "running" for one in _sorted(runs, Wanted(sort=sort, is_reversed=is_reversed))]
            assert states == [True, True, True, False, False]
    for sort in ("step", "rate", "time left", "gpu", "series"):
        assert _sorted(runs, Wanted(sort=sort))[2] is bare
    assert [one.id for one in _sorted(runs, Wanted(sort="rate"))[:2]] == ["a402", "a404"]


def test_a_look_rests_twenty_times_as_long_as_it_took(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk, reading takes at most a twentieth of the time; the first look, which opens every run, does not count."""
    board = Board(Store(store), ask=lambda path: None)
    monkeypatch.setattr(board.runs, "look", lambda told: setattr(board.runs, "cost_seconds", 0.5))
    board.look(Wanted())
    assert board.rest_seconds() == 2.0
    board.look(Wanted())
    assert 10.0 <= board.rest_seconds() < 12.0


# ---- keys


def press(view: View, *keys: str) -> bool:
    alive = True
    for key in keys:
        alive = view.press(key, key if len(key) == 1 else None)
    return alive


def test_keys_in_the_list() -> None:
    """Every key does what the help says."""
    view = view_of(full_scene())
    press(view, "j", "down", "j", "k")
    assert view.place.selected == 2
    press(view, "G")
    assert view.place.selected == 6
    press(view, "j", "pagedown")
    assert view.place.selected == 6
    press(view, "g")
    assert view.place.selected == 0
    press(view, "s", "S", "a", "/", *"cnn q", "enter")
    assert view.wanted() == Wanted(True, "cnn q", "name", True)
    assert "filter: cnn q · all runs · by name, reversed" in shown(view)
    press(view, "/", "backspace", "escape")
    assert view.text == "cnn q"
    press(view, "escape")
    assert view.text == ""
    press(view, "?")
    assert "fold the section" in shown(view)
    press(view, "?", "enter")
    assert view.page is not None and view.page.run == "a400"
    assert press(view, "escape") and view.page is None
    assert not press(view, "q")
    assert not press(view, "/", "ctrl+c")


def test_what_the_filter_leaves_is_opened() -> None:
    """Enter, and enter again before the list is another one, opens the run that was looked for."""
    view = view_of(scene_of(*[glance(number) for number in range(40)]))
    press(view, "/", *"otter-7", "enter", "enter")
    assert view.page is None
    view.take(scene_of(glance(7), text="otter-7"))
    assert view.page is not None and view.page.run == "a407"


def test_the_list_begins_with_the_first_run() -> None:
    """While runs are looked at for the first time they come in any order: the screen shows the beginning, not who came first."""
    many = [glance(number) for number in range(40)]
    view = view_of(scene_of(many[30])._replace(is_reading=True))
    view.take(scene_of(*many[10:])._replace(is_reading=True))
    view.take(scene_of(*many))
    assert view.place == table.Place()
    view.take(scene_of(glance(90), *many))
    assert view.place.selected == 1


def test_the_selection_stays_on_its_run() -> None:
    """A run that comes or goes above does not move the mark to another one; what is selected is on the screen."""
    many = [glance(number) for number in range(40)]
    view = view_of(scene_of(*many))
    press(view, *["j"] * 25)
    view.take(scene_of(glance(90), glance(91), *many))
    assert view.scene.glances[view.place.selected].id == "a419"
    assert "calm-otter-25" in shown(view)
    press(view, "G")
    view.take(scene_of(*many[:3]))
    assert view.place == table.Place(2, 0)
    view.take(scene_of(*many))
    press(view, "G", "s")
    view.take(scene_of(*reversed(many)))
    assert view.place == table.Place()
    view.take(scene_of())
    shown(view)
    view.click(3)
    view.resize((200, 12))
    view.take(scene_of(*many))
    view.click(4)
    assert view.place.selected == 1
    view.click(4)
    assert view.page is not None


def test_an_empty_store_says_how_to_begin() -> None:
    """Not an empty table but the lines of code, as they can be pasted."""
    screen = shown(view_of(scene_of(total=0)))
    compile(screen[screen.index("\nimport sdk") : screen.index("\nrun.finish()") + 13], "screen", "exec")
    assert "Press a for all" in shown(view_of(scene_of()))


def test_a_store_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    """On a fresh machine the screen waits for the first run, creates nothing, and shows the run when it comes; --once says it in a line."""
    path = os.path.join(tmp_path, "store")
    board = Board(AwaitedStore(path))
    view = view_of(board.look(Wanted()))
    assert "waiting for the first one" in shown(view) and view.scene.trouble == ""
    result = CliRunner().invoke(cli, ["watch", "--dir", path, "--once"])
    assert (result.exit_code, result.output) == (0, f"no run in {path} yet\n")
    result = CliRunner().invoke(cli, ["watch", "--dir", path, "--json"])
    assert json.loads(result.output)["runs"] == []
    assert CliRunner().invoke(cli, ["watch", "a41f", "--dir", path]).exit_code == 1
    assert os.listdir(tmp_path) == []
    make_run(make_store(tmp_path), "a41f", [{"loss": 1.0}])
    assert [one.id for one in board.look(Wanted(every=True)).glances] == ["a41f"]
    board.close()


def test_each_time_says_what_it_is() -> None:
    """What is left, for how long nothing came and since when a run is over stand in one column, none cut."""

    def told(one: Glance) -> str:
        return table._cells(("", "", "", "", *table._pace(scene_of(), one)), 80)[-11:].strip()

    assert told(glance(eta_seconds=98.0)) == "~1m38s left"
    assert told(glance(eta_seconds=12 * 86400 + 14 * 3600.0)) == "~12d14h"
    assert told(glance(eta_seconds=None)) == ""
    assert told(glance(quiet_seconds=40.0)) == "quiet 40s"
    assert told(glance(quiet_seconds=3900.0)) == "quiet 1h05m"
    assert told(ended(1, "finished")) == "12m ago"
    assert told(ended(1, "failed")._replace(updated=NOW - 98)) == "1m38s ago"
    assert told(ended(1, "failed")._replace(updated=NOW - 3e8)) == "3472d ago"


# ---- a run's page


def make_page(store: str) -> Store:
    run = RunBuilder(store, "a41f")
    main = run.stream()
    main.meta({"config": {"lr": 1e-3, "note": HOSTILE}})
    for step in range(200):
        row = {"train/loss": 2.3 / (1 + step / 20), "train/acc": step / 200, "lr": 1e-3, "text": "words"}
        main.log(row if step % 10 else {**row, "val/acc": step / 220, HOSTILE[:40]: 1.0})
    system, console = run.stream("system"), run.stream("console")
    system.log({"system/cpu": 120.0})
    for number in range(60):
        console.log({"text": f"line {number}", "source": "stdout"})
    main.finish()
    run.seal()
    return Store(store)


def open_page(found: Store, size: tuple[int, int] = SMALL, *keys: str) -> View:
    """A view of the run's page after some keys, with what is read for it."""
    view = View(Scene(found.path, time=NOW), size, Ink(True, False), "a41f")
    page = Page(found, "a41f", view.ink, lambda: int(NOW * 1e9))
    for key in ("", "", *keys):
        if key:
            press(view, key)
        detail = view.detail()
        content = page.read(detail) if detail is not None else None
        if content is not None:
            view.take_content(content)
    page.close()
    return view


def test_page_of_80_by_24(store: str) -> None:
    """Charts in sections, what tells most first; the system's are folded."""
    same_screen("watch-run-80x24", shown(open_page(make_page(store))))


def test_page_of_200_by_50(store: str) -> None:
    """In a wide terminal charts stand beside each other."""
    same_screen("watch-run-200x50", shown(open_page(make_page(store), LARGE)))


def test_charts_are_folded_zoomed_and_drawn_otherwise(store: str) -> None:
    """Keys of the charts change what is asked for, and the screen follows."""
    found = make_page(store)
    view = open_page(found, SMALL, "x", "l", "m")
    assert view.page is not None
    assert view.page.detail(SMALL).chart == Chart(80, 9, "step", True, 0.6)
    assert "x step · log · smooth 0.6" in shown(view)
    assert shown(open_page(found, SMALL, "enter")).count("train/") == 1
    assert "▸ train (2)" in shown(open_page(found, SMALL, "f"))
    assert "system/cpu" in shown(open_page(found, SMALL, "G", "enter", "j"))


@pytest.mark.parametrize(("key", "expected"), [("2", "line 59"), ("3", "199"), ("4", "no images"), ("5", "0.001")])
def test_the_other_tabs(store: str, key: str, expected: str) -> None:
    """Console and rows end at the newest, facts begin at the beginning."""
    view = open_page(make_page(store), SMALL, key)
    assert expected in shown(view)
    press(view, "pageup", "g", "k", "G", "j")
    assert expected in shown(view)


def test_numbers_stand_before_what_is_there_now_and_then(store: str) -> None:
    """In the rows a column of texts or images does not take the room of a metric."""
    make_run(store, "a41f", [{"a_note": "words", "loss": 0.5}, {"loss": 0.25}])
    title = shown(open_page(Store(store), SMALL, "3")).splitlines()[3]
    assert title.split() == ["step", "time", "loss", "a_note"]


def test_what_is_looked_at_stays_while_more_comes(store: str) -> None:
    """A console that was scrolled back shows the same lines when others come; at its end it follows."""
    view = open_page(make_page(store), SMALL, "2")
    assert view.page is not None and view.page.content is not None
    press(view, "pageup")
    before, content = shown(view), view.page.content
    view.take_content(content._replace(lines=(*content.lines, "one more", "and another")))
    assert shown(view) == before
    press(view, "G")
    assert "and another" in shown(view)


def test_a_page_reads_only_what_changed(store: str) -> None:
    """Without anything new nothing is read; a chart that is not on the screen is not drawn."""
    found = make_page(store)
    view = View(Scene(found.path), SMALL, Ink(True, False), "a41f")
    assert view.page is not None
    page = Page(found, "a41f", view.ink, lambda: int(NOW * 1e9))
    first = page.read(view.page.detail(SMALL))
    assert first is not None and first.charts == {} and len(first.sections) == 4
    view.take_content(first)
    detail = view.page.detail(SMALL)
    second = page.read(detail)
    assert second is not None and set(second.charts) == set(detail.keys) == {"train/acc", "train/loss"}
    assert page.read(detail) is None
    page.close()


def test_a_run_that_goes_away_is_said(store: str) -> None:
    """Its page says so, and nothing raises."""
    found = make_page(store)
    page = Page(found, "a41f", Ink())
    shutil.rmtree(os.path.join(store, "runs"))
    content = page.read(Detail("a41f", "rows", 80))
    assert content is None or isinstance(content, Content)
    page.close()


# ---- the command


def test_a_store_that_goes_away_may_come_back(store: str) -> None:
    """A disk that is gone for a moment ends nothing; when it is there again so are the runs."""
    make_run(store, "a41f", [{"loss": 1.0}])
    board = Board(Store(store))
    wanted = Wanted(every=True)
    assert len(board.look(wanted).glances) == 1
    os.rename(store, store + ".away")
    gone = board.look(wanted)
    assert (gone.glances, gone.health) == ((), Health(free_bytes=None))
    os.rename(store + ".away", store)
    assert len(board.look(wanted).glances) == 1
    board.close()


def test_once_prints_a_frame(store: str) -> None:
    """Where nobody looks at a terminal one frame is printed, without escapes; RUN prints its page."""
    make_page(store)
    result = CliRunner().invoke(cli, ["watch", "--dir", store, "--all"])
    assert result.exit_code == 0, result.output
    assert "calm-otter-12" in result.output and "\x1b" not in result.output
    result = CliRunner().invoke(cli, ["watch", "a41f", "--dir", store, "--once"])
    assert "▾ train (2)" in result.output or "v train (2)" in result.output
    result = CliRunner().invoke(cli, ["watch", "a41f", "--dir", store, "--json"])
    told = json.loads(result.output)
    assert [(one["id"], one["state"], one["step"]) for one in told["runs"]] == [("a41f", "finished", 199)]
    assert told["health"]["serving"] is False
    assert (
        told["runs"][0]["last"]["train/loss"] == pytest.approx(2.3 / (1 + 199 / 20)) and "sparks" not in told["runs"][0]
    )
    result = CliRunner().invoke(cli, ["watch", "a41f", "--dir", store, "--json", "--sparks"])
    assert len(json.loads(result.output)["runs"][0]["sparks"][0]["values"]) > 10
    result = CliRunner().invoke(cli, ["watch", "--dir", store, "--where", "lr <"])
    assert result.exit_code != 0


def test_without_textual_it_says_what_is_missing(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the package, how to get it, and what works without it."""
    monkeypatch.delitem(sys.modules, "daemon.screen.app", raising=False)
    monkeypatch.setitem(sys.modules, "textual", None)
    with pytest.raises(Error, match="--once") as caught:
        open_screen(Store(store), view_of(scene_of()))
    assert "pip install textual" in (caught.value.hint or "")
