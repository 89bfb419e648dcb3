from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import StoreError
from sdk.reader import Run, Store, follow
from sdk.reader.facts import StreamFacts
from sdk.reader.follow import _within, united
from tests.builders import RunBuilder, StreamBuilder, Writer, make_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


class Trainer:
    """A made-up trainer: logs while somebody waits, and lives until told otherwise."""

    def __init__(self, store: str) -> None:
        self.run = RunBuilder(store)
        self.main: StreamBuilder = self.run.stream()
        self.lives = True
        self.script: list[Callable[[], object]] = []
        self.run.flush()
        self.found: Run = Store(store, alive=self.alive).run("a41f")

    def alive(self, stream: StreamFacts) -> bool:
        return self.lives

    def wait(self, seconds: float) -> None:
        assert self.script, "the follower waits for what never comes"
        self.script.pop(0)()
        self.run.flush()

    def end(self) -> None:
        self.main.finish()
        self.lives = False

    def follow(self, **options: Any) -> list[tuple[int, Any]]:
        return [(row["_step"], row.get("v")) for row in self.found.follow(wait=self.wait, **options)]


def test_follow_gives_every_row_once_and_ends(store: str) -> None:
    """Rows as they come, a changed row again, the last ones before the end."""
    trainer = Trainer(store)
    main = trainer.main
    main.log({"v": 0})
    main.log({"v": 1}, commit=False)
    trainer.run.flush()
    trainer.script = [
        lambda: main.log({"v": 1.5}),
        lambda: None,
        lambda: (main.log({"v": 2}), main.log({"v": -1}, step=0)),
        lambda: (main.log({"v": 3}), trainer.end()),
    ]
    assert trainer.follow() == [(0, 0), (1, 1), (1, 1.5), (0, -1), (2, 2), (3, 3)]
    assert trainer.found.state == "finished"


def test_follow_from_the_end(store: str) -> None:
    """`last` begins with that many rows of what is there."""
    trainer = Trainer(store)
    for value in range(50):
        trainer.main.log({"v": value})
    trainer.run.flush()
    trainer.script = [lambda: trainer.main.log({"v": 50}), trainer.end]
    assert trainer.follow(last=2) == [(48, 48), (49, 49), (50, 50)]


def test_follow_misses_nothing_that_is_written_while_it_looks(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a segment that grows finds blocks that were not there when the look began: they come with the next one."""
    trainer = Trainer(store)
    trainer.main.log({"v": 0})
    trainer.run.flush()
    trainer.found.refresh()
    real = follow.items

    def meanwhile(*arguments: Any) -> Any:
        planned = real(*arguments)
        monkeypatch.setattr(follow, "items", real)
        trainer.main.log({"v": 1})
        trainer.run.flush()
        return planned

    monkeypatch.setattr(follow, "items", meanwhile)
    trainer.script = [trainer.end]
    assert trainer.follow() == [(0, 0), (1, 1)]


def test_follow_gives_up_after_its_timeout(store: str) -> None:
    """The timeout counts looks without a new row."""
    trainer = Trainer(store)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            trainer.main.log({"v": 0})
            trainer.run.flush()

    assert [row["v"] for row in trainer.found.follow(0.5, 1.5, wait=wait)] == [0]
    assert waits == [0.5] * 5


def test_follow_some_keys(store: str) -> None:
    """Rows without the key do not show."""
    trainer = Trainer(store)
    trainer.script = [
        lambda: trainer.main.log({"other": 1}),
        lambda: trainer.main.log({"v": 2, "other": 2}),
        trainer.end,
    ]
    assert trainer.follow(keys=["v"]) == [(1, 2)]


def test_the_same_records_stored_again_are_not_new(store: str) -> None:
    """A drain, a recovery or a compaction of what was seen gives nothing twice."""
    trainer = Trainer(store)
    for value in range(5):
        trainer.main.log({"v": value})
    trainer.run.flush()

    def drain() -> None:
        Writer(trainer.run, "drain").rows(trainer.main)

    def drain_more() -> None:
        trainer.main.log({"v": 5})
        Writer(trainer.run, "drain").rows(trainer.main)

    trainer.script = [drain, drain_more, trainer.end]
    assert [value for _, value in trainer.follow()] == [0, 1, 2, 3, 4, 5]


def test_new_segments_and_writers_are_seen(store: str) -> None:
    """A run that is open sees what others add: new segments, sealed ones, a spool."""
    trainer = Trainer(store)
    main, found = trainer.main, trainer.found
    spool = Writer(trainer.run, "spool")
    main.log({"v": 0})
    trainer.run.seal()
    assert found.series("v").value.tolist() == [0]
    spool.rows(main, [main.log({"v": 1})])
    main.take()
    assert found.series("v").value.tolist() == [0, 1]
    main.log({"v": 2})
    trainer.run.flush()
    assert found.series("v").value.tolist() == [0, 1, 2]
    assert found.gaps == []


def test_a_block_being_written_is_not_there_yet(store: str) -> None:
    """A torn end of an unsealed segment is no damage; when it is whole it is read."""
    trainer = Trainer(store)
    for value in range(100):
        trainer.main.log({"v": value})
    trainer.run.close()
    path = Path(trainer.run.daemon.paths[0])
    whole = path.read_bytes()
    for size in (len(whole) - 8, len(whole) - 100, len(whole) - 1000):
        path.write_bytes(whole[:size])
        found = Store(store).run("a41f")
        assert (found.keys(), found.damage) == ([], [])
        path.write_bytes(whole)
        assert len(found.series("v")) == 100


def replace(trainer: Trainer) -> None:
    """What compaction does: the same records in a new segment, the old one removed."""
    old = trainer.run.seal()
    other = Writer(trainer.run)
    other.rows(trainer.main)
    other.seal()
    os.unlink(old)


def test_a_segment_replaced_under_a_reader(store: str) -> None:
    """An open run finds the values in the replacement."""
    trainer = Trainer(store)
    for value in range(30):
        trainer.main.log({"v": value})
    replace(trainer)
    assert trainer.found.series("v").value.tolist() == list(range(30))


@pytest.mark.parametrize("stop", [1, 15, 29])
def test_a_segment_replaced_under_an_iteration(store: str, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go on where they were, none twice and none left out, even when the old file cannot be opened any more."""
    monkeypatch.setattr("sdk.reader.scan._OPEN_MAX", 1)
    trainer = Trainer(store)
    for value in range(30):
        trainer.main.log({"v": value})
        if value % 10 == 9:
            trainer.run.seal()
    rows = trainer.found.rows()
    seen = [next(rows)["v"] for _ in range(stop)]
    for path in trainer.run.daemon.paths:
        os.unlink(path)
    other = Writer(trainer.run)
    other.rows(trainer.main)
    other.seal()
    assert seen + [row["v"] for row in rows] == list(range(30))


def test_a_segment_gone_between_listing_and_opening(store: str) -> None:
    """The directory is listed again."""
    from sdk.files import DISK

    trainer = Trainer(store)
    trainer.main.log({"v": 1})
    old = trainer.run.seal()

    class Racing(type(DISK)):  # type: ignore[misc]
        raced = False

        def open(self, path: str, *, write: bool = False) -> object:
            if path == old and not self.raced:
                self.raced = True
                replace(trainer)
                os.unlink(old)
            return super().open(path, write=write)

    files = Racing()
    assert Store(store, files=files).run("a41f").series("v").value.tolist() == [1]
    assert files.raced


def test_a_disk_that_lists_what_it_does_not_have(store: str) -> None:
    """A segment that is listed and never found ends in an error or in nothing, not in a loop."""
    from sdk.files import DISK

    trainer = Trainer(store)
    trainer.main.log({"v": 1})
    trainer.run.seal()

    class Broken(type(DISK)):  # type: ignore[misc]
        def open(self, path: str, *, write: bool = False) -> object:
            if path.endswith(".seg"):
                raise FileNotFoundError(2, "gone", path)
            return super().open(path, write=write)

    (run,) = Store(store, files=Broken()).runs()
    try:
        assert run.keys() == []
    except StoreError:
        pass


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=12), st.integers(0, 70), st.integers(0, 20))
def test_what_was_seen_is_looked_up_by_number(spans: list[tuple[int, int]], first: int, length: int) -> None:
    """The seen ranges beside a block are those that share a number with it, found without looking at all of them."""
    together = united([(low, low + size) for low, size in spans])
    last = first + length
    assert _within(together, first, last) == [(low, high) for low, high in together if low <= last and first <= high]
