"""What is new of a run since it was last carried: each row once, whenever it comes and however it is stored."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import pytest

from daemon.compact.work import compact_run
from sdk.files import DISK
from sdk.location import read_store
from sdk.reader import open_store
from sdk.reader.delivery import Batch, Delivered, RowsInOrder, deliver
from tests.builders import RunBuilder, StreamBuilder, Writer, make_store


def _values(batches: Iterable[Batch]) -> dict[tuple[str, str], dict[int, tuple[int, Any]]]:
    """(stream, key) -> step -> (sequence, value), the highest sequence of each."""
    found: dict[tuple[str, str], dict[int, tuple[int, Any]]] = {}
    for batch in batches:
        for points in batch.points:
            assert all(len(column) == len(points) for column in points.columns.values())
            assert (points.sequence[1:] > points.sequence[:-1]).all()
            for key, column in points.columns.items():
                values = column if isinstance(column, list) else column.tolist()
                mine = found.setdefault((batch.stream.hex, key), {})
                for sequence, step, value in zip(points.sequence.tolist(), points.step.tolist(), values):
                    mine[step] = max(mine.get(step, (0, None)), (sequence, value), key=lambda pair: pair[0])
    return found


def _expected(streams: Iterable[StreamBuilder], store: str, run: str) -> dict[tuple[str, str], dict[int, Any]]:
    found = {}
    reader = open_store(store).run(run)
    for stream in streams:
        for key in sorted(reader.keys()):
            try:
                series = reader.series(key, stream=stream.hex)
            except KeyError:
                continue
            found[stream.hex, key] = dict(zip(series.step.tolist(), series.value.tolist()))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_each_row_once_however_it_is_stored(tmp_path: Path, seed: int) -> None:
    """Looks between flushes, seals, compactions and late rows give together what the run holds, and nothing twice."""
    rng = random.Random(seed)
    store = make_store(tmp_path)
    run = RunBuilder(store)
    streams = [run.stream(), run.stream("fork", rank=1)]
    delivered: Delivered = {}
    batches: list[Batch] = []
    for _ in range(rng.randint(3, 8)):
        for _ in range(rng.randint(0, 60)):
            stream = rng.choice(streams)
            values = {key: rng.choice([rng.random(), 3, True, "text", [1, 2]]) for key in rng.sample("abc", 2)}
            late = rng.random() < 0.1 and stream.step > 3
            stream.log(values, step=rng.randrange(stream.step) if late else None)
        rng.choice([run.flush, run.flush, run.seal])()
        if rng.random() < 0.3:
            run.seal()
            compact_run(DISK, read_store(store), run.directory)
        if rng.random() < 0.7:
            batches += deliver(open_store(store).run(run.id), delivered)
    run.close()
    batches += deliver(open_store(store).run(run.id), delivered)
    assert list(deliver(open_store(store).run(run.id), delivered)) == []
    found = {name: {step: value for step, (_, value) in by.items()} for name, by in _values(batches).items()}
    assert found == _expected(streams, store, run.id)
    sequences = [(batch.stream.id, row[0]) for batch in batches for row in batch.rows()]
    assert len(sequences) == len(set(sequences))


def test_small_blocks_come_together_with_their_types(tmp_path: Path) -> None:
    """Blocks of a slow training are one batch; a column of floats is an array, whether rows came one by one or alike."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    main = run.stream()
    for index in range(40):
        main.log({"loss": index / 4, "n": index, "ok": True, "word": "w"})
        if index % 3 == 0:
            run.flush()
    run.close()
    (batch,) = deliver(open_store(store).run(run.id), {})
    (points,) = batch.points
    loss, n, ok, word = (points.columns[key] for key in ("loss", "n", "ok", "word"))
    assert isinstance(loss, numpy.ndarray)
    assert isinstance(n, numpy.ndarray)
    assert isinstance(ok, numpy.ndarray)
    assert (loss.dtype, n.dtype, ok.dtype, type(word)) == (numpy.float64, numpy.int64, bool, list)
    assert (batch.first, batch.last, len(points), batch.values) == (1, 41, 40, 160)


@pytest.mark.parametrize("alike", [True, False])
def test_rows_that_two_segments_hold_come_once(tmp_path: Path, alike: bool) -> None:
    """A replay to the next daemon, or a spool: blocks that overlap, of rows that are read together or one by one."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    main = run.stream()
    for index in range(80):
        main.log({"loss": float(index)} if alike or index % 2 else {"word": "w" * index})
    other = Writer(run, "spool")
    run.daemon.rows(main, main.records[:50])
    other.rows(main, main.records[30:])
    for writer in (run.daemon, other):
        writer.close()
    delivered: Delivered = {}
    steps = [row[1] for batch in deliver(open_store(store).run(run.id), delivered) for row in batch.rows()]
    assert steps == list(range(80))
    assert delivered == {main.id: [(1, 81)]}


def test_hidden_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    """Rows that a resume hid are not delivered; those of the new attempt are."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    first = run.stream()
    for index in range(10):
        first.log({"loss": float(index), **({"one": index} if index == 8 else {})})
    second = run.stream(attempt=2, continues=first.hex, first_step=6)
    second.meta({"hide": {"attempt": 2, "from_step": 6}})
    second.log({"loss": 60.0})
    run.close()
    batches = list(deliver(open_store(store).run(run.id), {}))
    assert [(b.stream.hex, b.lane, b.hidden) for b in batches] == [(first.hex, 0, 4), (second.hex, 0, 0)]
    steps = [row[1] for batch in batches for row in batch.rows()]
    assert steps == [*range(6), 6]


def test_a_row_in_pieces_is_put_together(tmp_path: Path) -> None:
    """Keys that come and go stand in several groups of columns; `rows` gives each row once, with all of them."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    main = run.stream()
    for index in range(64):
        main.log({"loss": float(index), **({"acc": index} if index % 4 == 0 else {})})
    run.seal()
    compact_run(DISK, read_store(store), run.directory)
    (batch,) = deliver(open_store(store).run(run.id), {})
    rows = list(batch.rows())
    assert [row[1] for row in rows] == list(range(64))
    assert rows[4][3] == {"loss": 4.0, "acc": 4}
    assert rows[5][3] == {"loss": 5.0}


def test_kinds_of_streams_are_chosen(tmp_path: Path) -> None:
    """What accompanies the training comes only to whoever asks for it."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    run.stream().log({"loss": 1.0})
    run.stream("system").log({"system/cpu": 50.0})
    run.close()
    reader = open_store(store).run(run.id)
    assert [key for b in deliver(reader, {}) for p in b.points for key in p.columns] == ["loss"]
    assert [key for b in deliver(reader, {}, {"system"}) for p in b.points for key in p.columns] == ["system/cpu"]


class TestRowsInOrder:
    """Whole rows in order of steps, for those who cannot go back."""

    def test_new_rows_are_given_once(self, tmp_path: Path) -> None:
        """Each look gives what is behind the last one; together they are the run's rows."""
        store = make_store(tmp_path)
        run = RunBuilder(store)
        main = run.stream()
        place, found = RowsInOrder(), []
        for _ in range(5):
            for _ in range(700):
                main.log({"loss": float(main.step)})
            run.flush()
            found += [row for rows in place.new(open_store(store).run(run.id)) for row in rows]
            place = RowsInOrder(place.next_step, place.seen)
        run.close()
        assert found == list(open_store(store).run(run.id).rows())
        assert place.late == 0

    def test_the_last_steps_wait_for_late_pieces(self, tmp_path: Path) -> None:
        """What is held back comes with the late piece in it; what is later than that is counted."""
        store = make_store(tmp_path)
        run = RunBuilder(store)
        main = run.stream()
        for _ in range(10):
            main.log({"loss": 0.5})
        run.flush()
        place = RowsInOrder()
        rows = [row for some in place.new(open_store(store).run(run.id), hold_back=3) for row in some]
        assert [row["_step"] for row in rows] == list(range(7))
        main.log({"late": 1.0}, step=8)
        main.log({"late": 1.0}, step=2)
        run.close()
        rows = [row for some in place.new(open_store(store).run(run.id)) for row in some]
        assert [row["_step"] for row in rows] == [7, 8, 9]
        assert "late" in rows[1]
        assert place.late == 1
