"""What every target must do, case by case. A case makes runs, yields whenever they are to be carried, and looks at what has arrived.

A case is a generator: ``seen = yield`` carries everything, so that the cases of a slow target share its passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy
import pytest

import sdk
from daemon.sync import outcome
from daemon.sync.outcome import Outcome
from tests.builders import RunBuilder, StreamBuilder, compact
from tests.contracts import sides
from tests.contracts.sides import Held, Side
from tests.media_rig import MediaBuilder

Case = Generator[None, "Seen", None]
ODD_KEYS = (
    "a/b.c", "..", "../../up", "/etc/x", "a\\b", "nul\0byte", "lone \ud800 surrogate", "emoji 😀", "Ümläut", "k" * 1000, " ", "-x",
    "CON", "a:b", "a=b&c", "new\nline", "%2e%2e", "'quotes\"", "loss", "Loss",
)  # fmt: skip
ODD_IDS = ("Ä b", "a%41", "~x", "CON", "x" * 100)


class Seen:
    """What came of carrying everything once."""

    def __init__(self, side: Side, outcomes: dict[str, Outcome], held: Held) -> None:
        self.side, self.outcomes, self.held = side, outcomes, held

    def values(self, run: RunBuilder, key: str) -> list[tuple[int, Any]]:
        return self.held.get(run.id, {}).get(self.side.key(key), [])

    def outcome(self, run: RunBuilder) -> Outcome:
        return self.outcomes[run.id]

    def is_exact(self, what: str) -> bool:
        return what in self.side.exact

    def steps(self, run: RunBuilder, key: str) -> list[int]:
        return [step for step, _ in self.values(run, key)]


class Runs:
    """Makes runs whose ids nobody else has, in one store."""

    def __init__(self, store: str, prefix: str) -> None:
        self.store, self.prefix = store, prefix

    def run(self, end: str, /, **facts: Any) -> tuple[RunBuilder, StreamBuilder]:
        run = RunBuilder(self.store, f"{self.prefix}{end}", **facts)
        return run, run.stream(rank=0)


def order(new: Runs) -> Case:
    """Every value of every key once, in order of steps, under the step that was logged; keys come and go."""
    run, main = new.run("order")
    expected: dict[str, list[tuple[int, float]]] = {"train/loss": [], "val/acc": [], "lr": []}
    for step in range(300):
        row = {
            "train/loss": step / 4,
            **({"val/acc": step / 8} if step % 7 == 0 else {}),
            **({"lr": 0.5} if step > 200 else {}),
        }
        main.log(row)
        for key, value in row.items():
            expected[key].append((step, value))
    main.log({"train/loss": 9.5}, step=5000)
    expected["train/loss"].append((5000, 9.5))
    main.finish()
    run.seal()
    seen = yield
    assert seen.outcome(run).state == outcome.DELIVERED, seen.outcome(run)
    assert seen.outcome(run).is_exact
    for key, values in expected.items():
        assert seen.values(run, key) == values


def values(new: Runs) -> Case:
    """What the target holds comes back; what it cannot hold is counted and in the outcome, and the rest is there all the same."""
    big, exact = 2**53 + 1, 0.1
    logged: dict[str, Any] = {
        sides.NAN: math.nan, sides.INFINITY: -math.inf, sides.NULL: None, sides.TEXT: "a text ü", sides.BOOL: True,
        sides.INTEGER: big, sides.FLOAT64: exact, sides.LISTS: [1, 2],
    }  # fmt: skip
    runs = {}
    for number, (what, value) in enumerate(logged.items()):
        run, main = new.run(f"value{number}")
        main.log({"x": value, "loss": 1.5})
        main.log({"loss": 2.5})
        main.finish()
        run.seal()
        runs[what] = run
    run, main = new.run("media")
    media = MediaBuilder(run, main)
    media.log({"x": sdk.Image(numpy.zeros((4, 5, 3), numpy.uint8), caption="c"), "loss": 1.5})
    main.log({"loss": 2.5})
    main.finish()
    media.seal()
    runs[sides.MEDIA] = run
    seen = yield
    for what, run in runs.items():
        assert seen.values(run, "loss") == [(0, 1.5), (1, 2.5)], what
        found = seen.outcome(run)
        assert found.state == outcome.DELIVERED, found
        if seen.is_exact(what):
            assert not found.lost, (what, found)
            assert seen.steps(run, "x") == [0], what
            if what in logged:
                assert _same(seen.values(run, "x")[0][1], logged[what]), what
        elif what not in sides.UNCOUNTED:
            assert found.lost, what
            assert not found.is_exact


def _same(found: Any, logged: Any) -> bool:
    if isinstance(logged, float) and math.isnan(logged):
        return isinstance(found, float) and math.isnan(found)
    return type(found) is type(logged) and bool(found == logged)


def empty(new: Runs) -> Case:
    """A run without a row is carried without harm, and its outcome is delivered."""
    run, main = new.run("empty")
    main.finish()
    run.seal()
    seen = yield
    assert seen.outcome(run).is_exact, seen.outcome(run)
    assert seen.outcome(run).state == outcome.DELIVERED
    assert not seen.held.get(run.id)


def odd_names(new: Runs) -> Case:
    """Any text is a key, a name or a project; none is taken for a path, and no two become one."""
    run, main = new.run("odd", project="../../up/\ud800\n", name="na/me \0 😀 ..", tags=["a,b", "../x"])
    for step in range(3):
        main.log({key: float(step + place) for place, key in enumerate(ODD_KEYS)})
    main.finish()
    run.seal()
    others = []
    for name in ODD_IDS:
        other, stream = new.run(name, project="", name="")
        stream.log({"loss": 1.5})
        stream.finish()
        other.seal()
        others.append(other)
    seen = yield
    assert seen.outcome(run).state == outcome.DELIVERED, seen.outcome(run)
    for place, key in enumerate(ODD_KEYS):
        assert seen.values(run, key) == [(step, float(step + place)) for step in range(3)], repr(key)
    for other in others:
        assert seen.outcome(other).state == outcome.DELIVERED, seen.outcome(other)
        assert seen.values(other, "loss") == [(0, 1.5)], other.id


def growing(new: Runs) -> Case:
    """Each pass over a run that goes on brings what is new, and nothing twice; the last one says that it is over."""
    run, main = new.run("growing")
    for step in range(20):
        main.log({"loss": float(step)})
    run.flush()
    seen = yield
    assert seen.outcome(run).state == outcome.LIVE, seen.outcome(run)
    shown = seen.values(run, "loss")
    assert shown == [(step, float(step)) for step in range(len(shown))]
    for step in range(20, 30):
        main.log({"loss": float(step), "late/key": 1.0})
    run.flush()
    seen = yield
    main.finish()
    run.seal()
    seen = yield
    assert seen.outcome(run).state in (outcome.DELIVERED, outcome.UP_TO_DATE), seen.outcome(run)
    assert seen.outcome(run).is_exact
    assert seen.values(run, "loss") == [(step, float(step)) for step in range(30)]
    assert seen.values(run, "late/key") == [(step, 1.0) for step in range(20, 30)]


def late_rows(new: Runs) -> Case:
    """A row for an older step is delivered when it comes, or counted as lost."""
    run, main = new.run("late")
    for step in range(5000, 5020):
        main.log({"loss": float(step)}, step=step, commit=True)
    run.flush()
    yield
    main.log({"extra": 7.5}, step=4000)
    main.log({"loss": 1.0}, step=5020, commit=True)
    main.finish()
    run.seal()
    seen = yield
    assert seen.values(run, "loss")[-1] == (5020, 1.0)
    if seen.is_exact(sides.LATE):
        assert seen.values(run, "extra") == [(4000, 7.5)]
        assert seen.outcome(run).is_exact
    elif not seen.values(run, "extra"):
        assert seen.outcome(run).lost


def again(new: Runs) -> Case:
    """What is logged twice under a step is there with its later value, also when the first was carried already."""
    run, main = new.run("again")
    main.log({"x": 1.0, "loss": 0.5}, step=0)
    main.log({"x": 2.0}, step=0)
    main.log({"loss": 0.25}, step=1)
    run.flush()
    yield
    main.log({"loss": 0.125}, step=1)
    main.log({"loss": 0.0625}, step=2, commit=True)
    main.finish()
    run.seal()
    seen = yield
    if seen.is_exact(sides.AGAIN):
        assert seen.values(run, "x") == [(0, 2.0)]
        if seen.is_exact(sides.LATE):
            assert seen.values(run, "loss") == [(0, 0.5), (1, 0.125), (2, 0.0625)]
    else:
        assert (0, 2.0) in seen.values(run, "x")


def lanes(new: Runs) -> Case:
    """Values of every rank are there, or those of the main one where the target knows one value a step."""
    run, main = new.run("lanes")
    other = run.stream(rank=1)
    fork = run.stream(kind="fork", parent=main.hex, rank=0)
    for step in range(10):
        main.log({"loss": float(step)})
        other.log({"loss": step + 0.5, "only/one": 1.5})
        fork.log({"loader/wait": step / 4})
    for stream in (main, other, fork):
        stream.finish()
    run.seal()
    seen = yield
    assert seen.outcome(run).state == outcome.DELIVERED, seen.outcome(run)
    assert seen.values(run, "only/one") == [(step, 1.5) for step in range(10)]
    assert seen.values(run, "loader/wait") == [(step, step / 4) for step in range(10)]
    found = sorted(seen.values(run, "loss"))
    if seen.is_exact(sides.LANES):
        assert found == sorted([(step, float(step)) for step in range(10)] + [(step, step + 0.5) for step in range(10)])
    else:
        assert found == [(step, float(step)) for step in range(10)]


def attempts(new: Runs) -> Case:
    """Rows that a resume hid before they were carried are nowhere."""
    run, first = new.run("attempts")
    for step in range(10):
        first.log({"loss": float(step)})
    first.finish("crashed")
    second = run.stream(continues=first.hex, attempt=2, first_step=6, rank=0)
    second.meta({"hide": {"from_step": 6}})
    for step in range(6, 9):
        second.log({"loss": step + 100.0})
    second.finish()
    run.seal()
    seen = yield
    assert seen.values(run, "loss") == [(s, float(s)) for s in range(6)] + [(s, s + 100.0) for s in range(6, 9)]
    assert seen.outcome(run).is_exact, seen.outcome(run)


def rewind(new: Runs) -> Case:
    """Rows that a resume hides after they were carried are taken back, where the target can."""
    run, first = new.run("rewind")
    for step in range(10):
        first.log({"loss": float(step)})
    first.finish("crashed")
    run.seal()
    yield
    second = run.stream(continues=first.hex, attempt=2, first_step=6, rank=0)
    second.meta({"hide": {"from_step": 6}})
    for step in range(6, 9):
        second.log({"loss": step + 100.0})
    second.finish()
    run.seal()
    seen = yield
    kept = [(s, float(s)) for s in range(6)] + [(s, s + 100.0) for s in range(6, 9)]
    if seen.is_exact(sides.REWIND):
        assert seen.values(run, "loss") == kept
    else:
        assert seen.values(run, "loss")[:6] == kept[:6]


def rewind_to_the_start(new: Runs) -> Case:
    """A resume that hides all there was leaves nothing of it, where rows can be taken back."""
    run, first = new.run("restart")
    for step in range(5):
        first.log({"loss": float(step), "old/key": 1.0})
    first.finish("crashed")
    run.seal()
    yield
    second = run.stream(continues=first.hex, attempt=2, first_step=0, rank=0)
    second.meta({"hide": {"from_step": 0}})
    for step in range(3):
        second.log({"loss": step + 100.0})
    second.finish()
    run.seal()
    seen = yield
    if seen.is_exact(sides.REWIND):
        assert seen.values(run, "loss") == [(s, s + 100.0) for s in range(3)]
        assert not seen.values(run, "old/key")


def compaction(new: Runs) -> Case:
    """A run whose segments are rewritten between two passes is not carried again."""
    run, main = new.run("compacted")
    for step in range(200):
        main.log({"loss": step / 2})
    run.seal()
    seen = yield
    compact(run, window=64)
    seen = yield
    assert seen.outcome(run).points == 0, seen.outcome(run)
    main.log({"loss": 7.0})
    main.finish()
    run.seal()
    seen = yield
    assert seen.values(run, "loss") == [(step, step / 2) for step in range(200)] + [(200, 7.0)]


def damaged(new: Runs) -> Case:
    """A damaged source is told; what can be read of it is there."""
    run, main = new.run("damaged")
    for part in range(4):
        for step in range(part * 10, part * 10 + 10):
            main.log({"loss": float(step)})
        run.flush()
    main.finish()
    path = Path(run.seal())
    data = bytearray(path.read_bytes())
    place = data.find(b"loss", len(data) // 2)
    data[place : place + 4] = b"LOSS"
    path.write_bytes(data)
    seen = yield
    if not getattr(seen.side, "is_copy", False):  # there the damage is to be seen as here
        assert seen.outcome(run).trouble, seen.outcome(run)
        assert not seen.outcome(run).is_exact
    assert (0, 0.0) in seen.values(run, "loss")


CASES: list[Callable[[Runs], Case]] = [
    order, values, empty, odd_names, growing, late_rows, again, lanes, attempts, rewind, rewind_to_the_start, compaction, damaged,
]  # fmt: skip


def close(cases: list[Case], sent: Seen) -> list[Case]:
    """Tells each case what it has seen; those that go on."""
    going = []
    for case in cases:
        try:
            case.send(sent)
            going.append(case)
        except StopIteration:
            pass
    return going


def check_no_outside(before: set[Path], directory: Path, made: Path) -> None:
    """Nothing appeared but what is below `made`."""
    new = {path for path in directory.rglob("*") if made not in (path, *path.parents)} - before
    if new:
        pytest.fail(f"written outside of the target: {new}")
