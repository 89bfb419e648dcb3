"""daemon.pipeline.coalesce: the payload and the header facts of a ROWS block, against the reader's view."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.pipeline.coalesce import Payload, Waiting, coalesce, first_block
from sdk.errors import DamageError
from sdk.limits import BLOCK_ROWS_BYTES_MAX, STEP_MAX
from sdk.record import (
    EXT_TENSOR,
    FLAG_COMMIT,
    FLAG_LATE,
    HEADER,
    KIND_GAP,
    KIND_META,
    KIND_ROW,
    Record,
    decode_map,
    encode_map,
    walk,
)
from sdk.rows import Piece, merge
from sdk.segment.format import FLAG_HAS_META, FLAG_HAS_PIECES, FLAG_MERGED
from sdk.values import plain
from sdk.wire.messages import BATCH_HAS_META, BATCH_HAS_PIECES
from tests.serving import packed, row


def meta(sequence: int, step: int, values: dict[str, Any] | None = None, kind: int = KIND_META) -> Record:
    return Record(sequence, step, 0, kind, 10**18 + sequence, encode_map(values or {"summary": {"n": sequence}}))


def batch(records: Sequence[Record], flags: int | None = None) -> Waiting:
    """A batch as the sender makes it: `step_max` is the open step after it."""
    if flags is None:
        pieces = any(r.kind == KIND_ROW and (not r.flags & FLAG_COMMIT or r.flags & FLAG_LATE) for r in records)
        flags = BATCH_HAS_PIECES if pieces else 0
        flags |= BATCH_HAS_META if any(r.kind != KIND_ROW for r in records) else 0
    step_max = max(r.step for r in records) + 1
    return Waiting(records[0].sequence, records[-1].sequence, flags, step_max, packed(records))


def view(raw: Any) -> list[Piece]:
    """What a reader makes of the ROW records in some bytes."""
    return merge(
        Piece(r.sequence, r.step, r.flags, r.time_ns, decode_map(r.payload)) for r in walk(raw) if r.kind == KIND_ROW
    )


def counted(records: Sequence[Record]) -> dict[str, int]:
    keys: dict[str, int] = {}
    for record in records:
        if record.kind == KIND_ROW:
            for key in merge([Piece(1, 1, 0, 0, decode_map(record.payload))])[0].values:
                keys[key] = keys.get(key, 0) + 1
    return keys


def facts(payload: Payload) -> tuple[int, int, int, int, int, int]:
    return payload.first, payload.last, payload.records, payload.step_min, payload.step_max, payload.flags


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 300])
def test_committed_rows_pass_through(count: int) -> None:
    """Not a byte is touched, and the header tells first, last, steps, count and keys exactly."""
    records = [row(n, values={"loss": n / 4, "n": n, "ok": True}) for n in range(5, 5 + count)]
    payload = coalesce([batch(records)])
    assert payload.raw == packed(records)
    assert facts(payload) == (5, 4 + count, count, 4, 3 + count, 0)
    assert payload.keys == {"loss": count, "n": count, "ok": count}


def test_one_batch_is_not_copied() -> None:
    """The bytes that came from the socket go to the disk."""
    one = batch([row(1), row(2)])
    assert coalesce([one]).raw is one.records


def test_batches_are_joined() -> None:
    """In their order, as one block."""
    records = [row(n) for n in range(1, 10)]
    payload = coalesce([batch(records[:3]), batch(records[3:4]), batch(records[4:])])
    assert payload.raw == packed(records)
    assert facts(payload) == (1, 9, 9, 0, 8, 0)


def test_records_with_other_keys_pass_through_with_their_keys() -> None:
    """Validation every tenth step, nested names and text are counted like everything else."""
    records = []
    for n in range(1, 101):
        values: dict[str, Any] = {"loss": 0.5} if n % 10 else {"loss": 0.5, "val": {"acc": 1, "text": "x"}}
        records.append(row(n, values=values))
    payload = coalesce([batch(records)])
    assert payload.raw == packed(records)
    assert payload.keys == {"loss": 100, "val.acc": 10, "val.text": 10}


def test_too_many_singles_have_no_keys() -> None:
    """Collecting them would cost more than it saves; the block says that it does not know, and its steps still hold."""
    records = [row(n, values={"text": "x" * (n % 7)}) for n in range(1, 400)]
    payload = coalesce([batch(records)])
    assert payload.keys is None
    assert payload.step_min == 0
    assert payload.step_max >= 398


def test_pieces_meet() -> None:
    """Three calls for one step become one record that holds all of it, with the sequence of the last."""
    records = [
        row(1, 0, {"a": 1, "b": 1}, 0),
        row(2, 0, {"b": 2, "c": {"d": 3}}, 0),
        row(3, 0, {"e": "x"}, FLAG_COMMIT),
        row(4, 1, {"a": 5}, FLAG_COMMIT),
    ]
    payload = coalesce([batch(records[:2]), batch(records[2:])])
    merged = list(walk(payload.raw))
    assert [(r.sequence, r.step, r.flags) for r in merged] == [(3, 0, FLAG_COMMIT), (4, 1, FLAG_COMMIT)]
    assert decode_map(merged[0].payload) == {"a": 1, "b": 2, "c.d": 3, "e": "x"}
    assert merged[0].time_ns == records[2].time_ns
    assert facts(payload) == (1, 4, 2, 0, 1, FLAG_HAS_PIECES | FLAG_MERGED)
    assert payload.keys == {"a": 2, "b": 1, "c.d": 1, "e": 1}


def test_pieces_of_different_rows_are_not_decoded() -> None:
    """`log(x, step=n)` without commit: steps only grow, so there is nothing to merge and the bytes stay."""
    records = [row(n, n * 2, {"a": n}, 0) for n in range(1, 40)]
    payload = coalesce([batch(records)])
    assert payload.raw == packed(records)
    assert facts(payload) == (1, 39, 39, 2, 78, FLAG_HAS_PIECES)
    assert payload.keys == {"a": 39}


def test_late_rows_merge_into_their_row() -> None:
    """A late piece finds its row in the window, or stays a record of its own."""
    records = [
        row(1, 7, {"a": 1}, FLAG_COMMIT),
        row(2, 8, {"a": 2}, FLAG_COMMIT),
        row(3, 7, {"b": 3}, FLAG_LATE),
        row(4, 2, {"c": 4}, FLAG_LATE),
    ]
    payload = coalesce([batch(records)])
    assert [(r.sequence, r.step, r.flags) for r in walk(payload.raw)] == [
        (2, 8, FLAG_COMMIT),
        (3, 7, FLAG_COMMIT | FLAG_LATE),
        (4, 2, FLAG_LATE),
    ]
    assert facts(payload) == (1, 4, 3, 2, 8, FLAG_HAS_PIECES | FLAG_MERGED)


def test_facts_and_gaps_keep_their_sequences() -> None:
    """META and GAP records stand between merged rows as they were, bytes and all."""
    said, gap = meta(3, 1, {"config": {"lr": 0.1}}), meta(5, 1, {"episode": 1, "count": 7}, KIND_GAP)
    records = [row(1, 0, {"a": 1}, 0), row(2, 0, {"b": 1}, 0), said, row(4, 0, {"c": 1}, 0), gap]
    payload = coalesce([batch(records)])
    found = list(walk(payload.raw))
    assert [r.sequence for r in found] == [3, 4, 5]
    assert found[0] == said
    assert found[2] == gap
    assert facts(payload) == (1, 5, 3, 0, 0, FLAG_HAS_META | FLAG_HAS_PIECES | FLAG_MERGED)


def test_facts_among_committed_rows_pass_through() -> None:
    """They carry the open step, which may be one above the last row."""
    records = [meta(1, 0), row(2, 0), row(3, 1), meta(4, 2)]
    payload = coalesce([batch(records)])
    assert payload.raw == packed(records)
    assert facts(payload) == (1, 4, 4, 0, 1, FLAG_HAS_META)
    assert payload.keys == {"loss": 2}


def test_facts_alone() -> None:
    """A block of META records only: the open step they carry has no row, so it is not the run's highest."""
    payload = coalesce([batch([meta(1, 9), meta(2, 9)])])
    assert (payload.step_min, payload.step_max) == (8, 8)
    assert facts(coalesce([batch([meta(1, 0)])]))[3:5] == (0, 0)
    assert payload.keys == {}
    assert facts(coalesce([batch([meta(1, 9)], BATCH_HAS_META | BATCH_HAS_PIECES)]))[3:5] == (0, 0)


def test_tensors_survive_a_merge() -> None:
    """A small array is written as it came: nothing here makes numpy of it or fails to write it again."""
    array = numpy.arange(6, dtype="float32").reshape(2, 3)
    tensor, bad = plain({"w": array})
    assert not bad
    odd = msgpack.ExtType(77, b"later")
    records = [row(1, 0, {**tensor, "odd": odd}, 0), row(2, 0, {"loss": 1.0}, FLAG_COMMIT)]
    payload = coalesce([batch(records)])
    (merged,) = walk(payload.raw)
    values = decode_map(merged.payload)
    assert numpy.array_equal(values["w"], array)
    assert values["w"].dtype == array.dtype
    assert values["odd"] == odd
    assert payload.keys == {"w": 1, "odd": 1, "loss": 1}


def test_all_kinds_of_values_survive_a_merge() -> None:
    """Whatever the packer takes comes back the same."""
    values: dict[str, Any] = {
        "none": None, "nan": float("inf"), "big": 2**64 - 1, "small": -(2**63), "text": "lone \ud800", "bytes": b"\xff",
        "list": [1, [2, {"x": 3}], "y"], "empty": {}, "": 0, "a.b": 1, "a": {"b": 2}, "deep": [[[[[[[[1]]]]]]]],
        "keys": [{(1, 2): 3}],
    }  # fmt: skip
    records = [row(1, 0, values, 0), row(2, 0, {"z": 1}, FLAG_COMMIT)]
    (merged,) = walk(coalesce([batch(records)]).raw)
    assert decode_map(merged.payload) == view(packed(records))[0].values


def test_claimed_steps_of_a_dead_ring_are_replaced_by_real_ones() -> None:
    """A drained ring says only "no step is higher than can be"."""
    records = [meta(1, 3), row(2, 3), row(3, 4, flags=0)]
    waiting = batch(records, BATCH_HAS_META | BATCH_HAS_PIECES)._replace(step_max=STEP_MAX)
    assert facts(coalesce([waiting])) == (1, 3, 3, 3, 4, FLAG_HAS_META | FLAG_HAS_PIECES)


@pytest.mark.parametrize("flags", [0, BATCH_HAS_PIECES, BATCH_HAS_PIECES | BATCH_HAS_META])
@pytest.mark.parametrize(
    "records",
    [
        b"x",
        bytes(31),
        bytes(64),
        HEADER.pack(31, 1, 1, 0, 1, 0, 0) + bytes(40),
        HEADER.pack(2**32 - 1, 1, 1, 0, 1, 0, 0) + bytes(40),
        HEADER.pack(33, 1, 1, 0, 1, 2**64 - 1, 0) + b"\x80" + bytes(40),
        packed([row(1), row(2, 0)])[:-1],
        packed([row(1), Record(2, 0, 1, KIND_ROW, 0, b"")]),
        packed([row(1), Record(2, 0, 1, KIND_ROW, 0, b"\xc1")]),
        packed([row(1), Record(2, 0, 1, KIND_ROW, 0, b"\x93\1\2\3")]),
        packed([row(1, values={"a": 1}), Record(2, 0, 1, KIND_ROW, 0, b"\x81\xa1a" + b"\x91" * 900 + b"\xc0")]),
    ],
    ids=range(11),
)
def test_bytes_that_are_no_records_are_damage(records: bytes, flags: int) -> None:
    """They raise DamageError or pass as they are, and nothing else: the daemon lives on."""
    for last in (1, 2):
        try:
            coalesce([Waiting(1, last, flags, 5, records)])
        except DamageError:
            pass


def test_random_bytes_are_damage_or_pass() -> None:
    """The same for bent records at any place."""
    rng = random.Random(7)
    whole = packed([row(1, 0, {"a": 1.5, "t": "x"}, 0), row(2, 0, {"b": [1, 2]}, 0), meta(3, 0), row(4, 0)])
    for _ in range(3000):
        bent = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            bent[rng.randrange(len(bent))] = rng.randrange(256)
        try:
            coalesce([Waiting(1, 4, rng.choice([0, 1, 3]), 5, bytes(bent))])
        except DamageError:
            pass


def test_more_records_than_bytes_are_damage() -> None:
    """A batch that claims what cannot be in it would be acknowledged without being there."""
    with pytest.raises(DamageError):
        coalesce([Waiting(1, 1000, 0, 5, packed([row(1)]))])


def test_blocks_end_at_holes_and_at_their_size() -> None:
    """What a header says to lie between first and last is in the block, and a block is at most 4 MiB."""
    small = [Waiting(n, n, 0, n, b"x" * 100) for n in (1, 2, 3, 7, 8)]
    assert first_block(small) == 3
    assert first_block(small[3:]) == 2
    assert first_block(small[4:]) == 1
    half = b"x" * (BLOCK_ROWS_BYTES_MAX // 2)
    assert first_block([Waiting(n, n, 0, n, half) for n in (1, 2, 3)]) == 2
    assert first_block([Waiting(n, n, 0, n, half * 2 + b"x") for n in (1, 2)]) == 1


_values = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(max_size=3),
    st.binary(max_size=3), st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9), max_size=2),
    st.builds(lambda n: msgpack.ExtType(EXT_TENSOR, msgpack.packb(["<f8", [n], bytes(8 * n)])), st.integers(0, 3)),
)  # fmt: skip
_call = st.tuples(
    st.sampled_from(["row", "row", "row", "open", "late", "meta", "gap"]),
    st.dictionaries(st.sampled_from(["a", "b", "c", "d.x"]), _values, max_size=3),
    st.integers(0, 2),
)


@given(st.lists(_call, min_size=1, max_size=14), st.lists(st.integers(1, 5), max_size=5))
def test_a_block_reads_like_its_records(calls: list[tuple[str, dict[str, Any], int]], cuts: list[int]) -> None:
    """Whatever was merged, a reader finds the same rows, facts and gaps; the header holds them all and no more steps."""
    records: list[Record] = []
    step = 3
    for sequence, (what, values, back) in enumerate(calls, 10):
        if what == "row":
            records.append(row(sequence, step, values, FLAG_COMMIT))
            step += 1
        elif what == "open":
            step += back
            records.append(row(sequence, step, values, 0))
        elif what == "late":
            records.append(row(sequence, step - 1 - back, values, FLAG_LATE))
        else:
            records.append(meta(sequence, step, kind=KIND_META if what == "meta" else KIND_GAP))
    waiting, rest = [], records
    for cut in cuts:
        if rest[:cut]:
            waiting.append(batch(rest[:cut]))
        rest = rest[cut:]
    if rest:
        waiting.append(batch(rest))
    payload = coalesce(waiting)
    found = list(walk(payload.raw))

    assert repr(view(payload.raw)) == repr(view(packed(records)))
    assert [r for r in found if r.kind != KIND_ROW] == [r for r in records if r.kind != KIND_ROW]
    assert [r.sequence for r in found] == sorted(r.sequence for r in found)
    assert (payload.first, payload.last) == (records[0].sequence, records[-1].sequence)
    assert payload.records == len(found)
    steps = [r.step for r in found if r.kind == KIND_ROW]
    if steps:
        assert payload.step_min <= min(steps)
        assert payload.step_max == max(steps)
    assert payload.step_min <= payload.step_max
    assert bool(payload.flags & FLAG_HAS_META) == any(r.kind != KIND_ROW for r in records)
    assert bool(payload.flags & FLAG_MERGED) or payload.raw == packed(records)
    assert payload.keys == counted(found)
