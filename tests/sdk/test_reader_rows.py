from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from sdk.reader import Run, open_store
from sdk.record import KIND_ROW, decode_map
from sdk.rows import Piece, merge
from tests.builders import RunBuilder, StreamBuilder, Writer, make_run, make_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def opened(store: str, run_id: str = "a41f") -> Run:
    return open_store(store).run(run_id)


def values(rows: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "_timestamp"} for row in rows]


def test_rows(store: str) -> None:
    """One dict per step in step order, nulls as None, the time of the row's last piece."""
    run = RunBuilder(store)
    main = run.stream()
    main.log({"loss": 1.0}, commit=False)
    last = main.log({"acc": None})
    main.log({"loss": 2.0}, step=5)
    main.log({"note": "late"}, step=0)
    run.close()
    rows = list(opened(store).rows())
    assert values(rows) == [{"_step": 0, "loss": 1.0, "acc": None, "note": "late"}, {"_step": 5, "loss": 2.0}]
    assert rows[0]["_timestamp"] > last.time_ns / 1e9
    assert list(rows[0])[:2] == ["_step", "_timestamp"]


def test_a_row_is_its_callers(store: str) -> None:
    """Whoever takes keys out of a row, or empties it, gets the next one all the same."""
    make_run(store, "a41f", [{"loss": i / 4} for i in range(5)])
    seen = []
    for row in opened(store).rows():
        seen.append(row.pop("_step"))
        row.clear()
    assert seen == [0, 1, 2, 3, 4]


def test_keys_narrow_values_and_rows(store: str) -> None:
    """Only rows that hold one of the keys, only with these."""
    make_run(store, "a41f", [{"a": i, "b": i, **({"c": "x"} if i % 5 == 0 else {})} for i in range(40)])
    run = opened(store)
    assert values(run.rows(["c", "a"]))[4:6] == [{"_step": 4, "a": 4}, {"_step": 5, "a": 5, "c": "x"}]
    assert [row["_step"] for row in run.rows(["c"])] == list(range(0, 40, 5))
    assert run.steps(["c"]).tolist() == list(range(0, 40, 5))
    with pytest.raises(TypeError, match="expected a list"):
        run.rows("loss")


def test_our_names_are_ours(store: str) -> None:
    """A user who logs `_step` does not break the rows."""
    make_run(store, "a41f", [{"_step": "x", "_timestamp": "y", "_mine": 1}])
    (row,) = opened(store).rows()
    assert (row["_step"], type(row["_timestamp"]), row["_mine"]) == (0, float, 1)
    assert opened(store).keys() == []


def test_lanes_are_joined_by_step(store: str) -> None:
    """At a step that two lanes hold, the main one's values win, the other's are added."""
    run = RunBuilder(store)
    rank1 = run.stream(rank=1)
    rank0 = run.stream(rank=0)
    for step in range(3):
        rank1.log({"loss": -1.0, "gpu1": step})
        rank0.log({"loss": float(step)})
    run.close()
    assert values(opened(store).rows())[1] == {"_step": 1, "loss": 1.0, "gpu1": 1}
    assert values(opened(store).rows(stream=rank1.hex))[1] == {"_step": 1, "loss": -1.0, "gpu1": 1}


def test_tail_and_selected_steps_read_only_what_they_need(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a long run and single steps come from few blocks."""
    run = RunBuilder(store)
    main = run.stream()
    for step in range(400):
        main.log({"loss": step, **({"rare": 1} if step % 100 == 0 else {})})
        if step % 20 == 19:
            run.flush()
    run.seal()
    found = opened(store)
    reads: list[int] = []
    payload = found._scan.payload
    monkeypatch.setattr(found._scan, "payload", lambda s, b: (reads.append(b.number), payload(s, b))[1])
    assert [row["loss"] for row in found.tail(3)] == [397, 398, 399]
    assert len(reads) <= 2
    assert [row["_step"] for row in found.tail(2, ["rare"])] == [200, 300]
    reads.clear()
    import numpy

    assert [row["loss"] for row in found.rows_at(numpy.array([5, 205]))] == [5, 205]
    assert len(reads) == 2
    assert found.tail(0) == []
    assert len(found.tail(1000)) == 400


def test_first_step(store: str) -> None:
    """Rows below it are left out."""
    make_run(store, "a41f", [{"a": i} for i in range(100)])
    assert [row["a"] for row in opened(store).rows(first_step=97)] == [97, 98, 99]


def oracle(streams: list[StreamBuilder]) -> list[dict[str, Any]]:
    """The rows by `sdk.rows.merge`, lanes in the order given."""
    rows: dict[int, dict[str, Any]] = {}
    for stream in reversed(streams):
        pieces = [
            Piece(r.sequence, r.step, r.flags, r.time_ns, decode_map(r.payload))
            for r in stream.records
            if r.kind == KIND_ROW
        ]
        for piece in merge(pieces):
            rows.setdefault(piece.step, {}).update(piece.values)
    return [{"_step": step, **rows[step]} for step in sorted(rows)]


def scatter(generator: random.Random, run: RunBuilder) -> None:
    """Writes every record at least once, in overlapping blocks of several writers, some sealed."""
    writers = [run.daemon, Writer(run, "spool"), Writer(run, "drain")]
    for stream in run.streams:
        count = len(stream.records)
        cuts = sorted({0, count, *(generator.randrange(count) for _ in range(4))})
        ranges = list(itertools.pairwise(cuts))
        for _ in range(3):
            first = generator.randrange(count)
            ranges.append((first, generator.randrange(first, count) + 1))
        generator.shuffle(ranges)
        for first, end in ranges:
            writer = generator.choice(writers)
            writer.rows(stream, stream.records[first:end])
            if generator.random() < 0.2:
                writer.seal()
    for writer in writers:
        writer.close()


@pytest.mark.parametrize("seed", range(25))
def test_same_as_the_pure_function(store: str, seed: int) -> None:
    """Whatever lies where how often, rows, series, steps, tail and keys are those of `sdk.rows.merge`."""
    generator = random.Random(seed)
    run = RunBuilder(store)
    streams = [run.stream(rank=rank) for rank in range(generator.randint(1, 3))]
    for _ in range(generator.choice([5, 200])):
        stream = generator.choice(streams)
        for _ in range(generator.choice([1, 1, 30])):
            data: dict[str, Any] = {"x": generator.random(), "n": generator.randrange(2**40)}
            if generator.random() < 0.1:
                data = {"s": "text", "x": generator.choice([None, 1.5]), "deep": {"er": 1}}
            step = generator.choice([None, None, None, stream.step, max(stream.step - 3, 0), stream.step + 2])
            stream.log(data, step, commit=generator.choice([None, None, False, True]))
    scatter(generator, run)
    found = opened(store)
    expected = oracle(streams)
    assert values(found.rows()) == expected
    assert found.keys() == sorted({key for row in expected for key in row} - {"_step"})
    assert found.steps().tolist() == [row["_step"] for row in expected]
    assert values(found.tail(7)) == expected[-7:]
    assert (found.gaps, found.damage) == ([], [])
    assert found.records == sum(len(stream.records) for stream in streams)
    (first, *_) = streams
    own = {row["_step"]: row["x"] for row in oracle([first]) if row.get("x") is not None}
    series = found.series("x", rank=0)
    assert dict(zip(series.step.tolist(), series.value.tolist())) == own


def test_what_was_logged_under_our_names_is_given_under_others(store: str) -> None:
    """`_step`, `_timestamp` and the empty key are accepted by log(), so rows and series have them, alone or in a group."""
    values = {"_step": 7.0, "_timestamp": 8.0, "": 9.0}
    run = RunBuilder(store)
    main = run.stream()
    main.log(dict(values))
    main.log({"x": 1.0}, commit=False)
    main.log(dict(values))
    for _ in range(40):
        main.log(dict(values))
    run.close()
    found = opened(store)
    for step, row in enumerate(found.rows()):
        assert (row["_step"], row["_logged_step"], row["_logged_timestamp"], row[""]) == (step, 7.0, 8.0, 9.0)
    assert found.series("_step").value.tolist() == [7.0] * 42
    assert found.keys() == ["", "x"]
    assert next(found.rows(["_step"])).keys() == {"_step", "_timestamp", "_logged_step"}
