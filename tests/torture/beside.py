"""Whoever looks while things happen: a reader beside everything else, and copies of a store that is still growing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import sdk
from sdk.errors import Error
from sdk.files import DISK
from sdk.ids import random_u64
from sdk.reader.run import Run
from sdk.segment.format import KIND_ROWS
from sdk.segment.naming import SegmentName, format_segment, parse_segment, run_path
from sdk.segment.reader import SegmentReader
from sdk.segment.writer import SegmentWriter
from tests.end_to_end.world import Trainer, until, until_drained
from tests.forked import Loop, answers, end_all, fork_daemon, quiet, ready_to_die, rows_of, stored_exactly
from tests.serving import temporary_store
from tests.torture.harness import Result, chance, torture

_EVENTS = 4


@torture(full=100, default=6)
def reader_beside(cases: Iterable[int]) -> Iterator[Result]:
    """A reader while segments roll, their daemons die, they are mended and replaced: each look is a prefix that grows."""
    for case in cases:
        with quiet(STEPD_AUTOSTART="0"), temporary_store() as store:
            daemons = [fork_daemon(store.path, flush_commit_seconds=0.02)]
            until(lambda: answers(store.path) is not None)
            trainer = Loop(store.path)
            until(lambda: rows_of(store.path) > 0)
            readers = [Trainer(lambda count, look=look: look(store.path, count)) for look in (_look_again, _follow)]
            try:
                _happen(case, store.path, trainer, daemons)
                assert trainer.stop() == 0
                until_drained(Path(store.path))
                assert [reader.wait() for reader in readers] == [0, 0]
                found = stored_exactly(store.path, "run", trainer.returned, more=0)
                assert [reader.returned for reader in readers] == [found, found]
            finally:
                end_all(*daemons, trainer, *readers)
        yield Result(case, found)


def _happen(case: int, store: str, trainer: Loop, daemons: list[Trainer]) -> None:
    """What the readers stand beside: sealed segments are replaced; the daemon rolls, is killed and follows itself."""
    source = chance("beside", case)
    events = ["killed", "replaced", "stopped", "replaced"]
    for event in source.sample(events, _EVENTS):
        trainer.past(source.randrange(20, 100))
        if event == "replaced":
            replace_segments(store, "run")
            continue
        os.kill(daemons[-1].pid, 9 if event == "killed" else 15)
        if event == "stopped":
            os.kill(daemons[-1].pid, 2)  # asked twice it leaves beside a living trainer
        daemons[-1].wait()
        daemons.append(fork_daemon(store, flush_commit_seconds=0.02))
        until(lambda: answers(store) is not None)


def _look_again(store: str, count: Callable[[int], None]) -> None:
    """Opens the run and looks in every way until it has ended; tells how many rows the last look gave."""
    ready_to_die()
    seen, running = 0, True
    run = sdk.open_store(store).run("run")
    while running:
        run.refresh()
        # Race: asked before looking, so that what comes before the end is still seen.
        running = run.state == "running"
        for look in (_by_series, _by_rows, _by_tail):
            now = look(run)
            assert now >= seen, f"{look.__name__}: {seen} rows were there, now {now}"
            seen = now
    count(seen)


def _by_series(run: Run) -> int:
    series = run.series("x")
    assert series.value.tolist() == series.step.tolist() == list(range(len(series.step)))
    return len(series.step)


def _by_rows(run: Run) -> int:
    found = [(row["_step"], row["x"]) for row in run.rows()]
    assert found == [(n, n) for n in range(len(found))]
    return len(found)


def _by_tail(run: Run) -> int:
    found = [row["x"] for row in run.tail(20)]
    assert found == list(range(found[0], found[0] + len(found)))
    return int(found[-1]) + 1


def _follow(store: str, count: Callable[[int], None]) -> None:
    """Follows the run from its first row to its end: every row comes, in order, once."""
    ready_to_die()
    found = [row["x"] for row in sdk.open_store(store).run("run").follow(poll_seconds=0.01)]
    wrong = [(before, now) for before, now in zip([-1, *found], found) if now != before + 1]
    assert not wrong, f"rows that do not follow one another: {wrong[:10]}"
    count(len(found))


def replace_segments(store: str, run: str) -> int:
    """Does what a compaction will: every sealed segment's blocks are written again by another writer, and it is removed."""
    directory, replaced = run_path(store, run), 0
    for name, _, _ in DISK.entries(directory):
        parsed = parse_segment(name)
        reader = SegmentReader(DISK, os.path.join(directory, name)) if parsed is not None else None
        if reader is not None and reader.sealed:
            _write_again(directory, reader)
            os.unlink(reader.path)
            replaced += 1
        if reader is not None:
            reader.close()
    return replaced


def _write_again(directory: str, reader: SegmentReader) -> None:
    writer = random_u64()
    header = reader.header._replace(writer=writer, number=0)
    made = SegmentWriter.create(DISK, os.path.join(directory, format_segment(SegmentName(writer, 0))), header)
    for block in reader.blocks:
        if block.kind == KIND_ROWS:
            made.append(
                KIND_ROWS, reader.payload(block), stream=block.stream, first=block.first, last=block.last,
                records=block.records, step_min=block.step_min, step_max=block.step_max, flags=block.flags,
            )  # fmt: skip
        elif block.kind & 0x80 == 0:
            made.append_map(block.kind, reader.read_map(block), stream=block.stream)
    made.seal()


@torture(full=100, default=3)
def live_copies(cases: Iterable[int]) -> Iterator[Result]:
    """A store copied file by file while it grows, without --delete: each copy opens and holds a prefix, the last holds all."""
    for case in cases:
        source = chance("copies", case)
        with quiet(STEPD_AUTOSTART="0"), temporary_store() as store, temporary_store() as other:
            copy = other.path
            shutil.rmtree(copy)
            daemons = [fork_daemon(store.path, flush_commit_seconds=0.02)]
            until(lambda: answers(store.path) is not None)
            trainer = Loop(store.path)
            try:
                seen = 0
                for turn in range(6):
                    trainer.past(source.randrange(5, 60))
                    copy_changed(store.path, copy)
                    seen = _holds_a_prefix(copy, seen)
                    if turn == case % 6:
                        os.kill(daemons[-1].pid, 9)
                        daemons.append(fork_daemon(store.path, flush_commit_seconds=0.02))
                assert trainer.stop() == 0
                os.kill(daemons[-1].pid, 15)
                assert daemons[-1].wait() == 0
                copy_changed(store.path, copy)
                found = stored_exactly(copy, "run", trainer.returned, more=0)
            finally:
                end_all(*daemons, trainer)
        yield Result(case, found)


def copy_changed(source: str, target: str) -> None:
    """Copies files whose size or time changed, as rsync does: the list first, then each under a draft's name."""
    listed = [(path, path.stat()) for path in sorted(Path(source).rglob("*")) if path.is_file()]
    for path, before in listed:
        there = Path(target, path.relative_to(source))
        if there.exists() and (there.stat().st_size, there.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns):
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        draft = there.with_name(f".{there.name}.draft")
        try:
            shutil.copy2(path, draft)
        except FileNotFoundError:
            continue  # it was removed meanwhile
        draft.rename(there)
    Path(target).chmod(0o700)


def _holds_a_prefix(copy: str, seen: int) -> int:
    """How many rows a copy holds: no fewer than the one before, from the first one on, and nothing is said to be lost."""
    try:
        run = sdk.open_store(copy).run("run")
    except Error:
        assert not seen
        return 0
    found = rows_of(copy)
    assert run.gaps == [], run.gaps
    assert run.damage == [], run.damage
    if found:
        assert _by_series(run) == _by_rows(run) == found
    assert found >= seen
    return found
