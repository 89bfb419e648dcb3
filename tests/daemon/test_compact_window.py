"""daemon.compact.window and compare: records become columns that say the same, and what does not is found out."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
from msgpack import ExtType

from daemon.compact.compare import compare
from daemon.compact.window import Part, merged, parts_of_groups, parts_of_records
from sdk.errors import DamageError
from sdk.record import EXT_BIG_INT, FLAG_COMMIT, FLAG_LATE, KIND_META, KIND_ROW, Record, decode_map, encode_map, pack
from sdk.rows import Piece, merge
from sdk.segment.columns import Columns, Group
from sdk.segment.columns import pack as pack_columns
from sdk.segment.cutting import blocks
from sdk.segment.format import COLUMNS_MAX, COLUMNS_RAW_BYTES_MAX
from tests.compacting import VALUES, shown

TIME = 10**18


def row(sequence: int, step: int, values: dict[str, Any], flags: int = FLAG_COMMIT) -> Record:
    return Record(sequence, step, flags, KIND_ROW, TIME + 1700 * sequence, encode_map(values))


def parts_of(records: list[Record]) -> list[Part]:
    return parts_of_records(b"".join(map(pack, records)))[0]


def pieces_of(records: list[Record]) -> list[Any]:
    """The rows by the rule, times in whole microseconds."""
    pieces = [Piece(r.sequence, r.step, r.flags, r.time_ns // 1000, decode_map(r.payload)) for r in records]
    return [(*piece[:4], shown(piece.values)) for piece in merge(pieces)]


def rows_of(groups: list[Group]) -> list[Any]:
    """The rows in groups that went through blocks and back, in order of their sequences."""
    rows: dict[int, tuple[Any, ...]] = {}
    values: dict[int, dict[str, Any]] = {}
    for block in blocks(groups):
        payload = b"".join(bytes(part) for part in pack_columns(block).parts)
        for group in Columns(
            lambda offset, size, payload=payload: payload[offset : offset + size], len(payload)
        ).groups:
            sequences = group.sequences().tolist()
            heads = zip(sequences, group.steps().tolist(), group.flags().tolist(), group.times_ns().tolist())
            for sequence, step, flags, time_ns in heads:
                head = (sequence, step, flags, time_ns // 1000)
                assert rows.setdefault(sequence, head) == head
                values.setdefault(sequence, {})
            for key in group.keys:
                column = group.values(key)
                listed = column.tolist() if isinstance(column, numpy.ndarray) else column
                for sequence, value in zip(sequences, listed):
                    assert key not in values[sequence]
                    values[sequence][key] = value
    return [(*rows[sequence], shown(values[sequence])) for sequence in sorted(rows)]


@pytest.mark.parametrize("seed", range(30))
def test_windows_hold_the_rows_that_the_rule_makes(seed: int) -> None:
    """Of alike and odd records, pieces of any order, late steps, values that change their type, copies."""
    draw = random.Random(seed)
    records: list[Record] = []
    step = 0
    while len(records) < 150:
        if draw.random() < 0.2:
            keys = draw.sample("abcdef", draw.randint(1, 4))
            for _ in range(draw.randint(16, 40)):
                records.append(row(len(records) + 1, step, {key: draw.random() for key in keys}))
                step += draw.random() < 0.9
        else:
            values = {key: draw.choice(VALUES) for key in draw.sample("abcdef", draw.randint(0, 4))}
            late = draw.random() < 0.2
            where = draw.randrange(step + 1) if late else step
            records.append(row(len(records) + 1, where, values, FLAG_LATE if late else draw.choice((0, FLAG_COMMIT))))
            step += draw.randrange(3)
    expected = pieces_of(records)
    copies = [records[:90], records[70:], records[30:50]]
    draw.shuffle(copies)
    parts = [part for copied in copies for part in parts_of(copied)]
    groups = merged(parts)
    assert rows_of(groups) == expected, f"seed {seed}"
    compare(parts, [], groups, [])
    again = parts_of_groups([group for block in blocks(groups) for group in block])
    assert rows_of(merged(again)) == expected, f"seed {seed}"


def test_keys_of_the_same_rows_are_one_group() -> None:
    """Training metrics of every step are one, evaluation of some steps another, rows without keys a third."""
    records = [row(n + 1, n, {"loss": 0.5, "lr": 1.0, **({"eval": 2.0} if n % 10 == 0 else {})}) for n in range(100)]
    records.append(row(101, 100, {}))
    groups = merged(parts_of(records))
    assert [(tuple(group.values), len(group)) for group in groups] == [(("loss", "lr"), 100), (("eval",), 10), ((), 1)]


def test_integers_that_do_not_fit_are_kept_exact() -> None:
    """Beyond 63 bits unsigned, beyond 64 as they were packed; each in rows of its own."""
    values = [1, 2**63, 2**64 - 1, ExtType(EXT_BIG_INT, b"1" * 40), -1]
    records = [row(n + 1, n, {"n": value}) for n, value in enumerate(values)]
    assert [type(group.values["n"]).__name__ for group in merged(parts_of(records))] == ["ndarray", "ndarray", "list"]
    alike = [row(n + 1, n, {"n": 2**62 + n * 2**57}) for n in range(64)]
    assert rows_of(merged(parts_of(alike))) == pieces_of(alike)


def test_blocks_stay_within_their_limits() -> None:
    """A row of a thousand keys, many long texts, one text longer than a block, and names that take much room."""
    wide = [row(n + 1, n, {f"key{k}": k for k in range(1000)}) for n in range(3)]
    long = [row(n + 4, n + 3, {"text": f"{n}" * 3_000_000}) for n in range(5)]
    huge = [row(9, 8, {"text": "x" * (COLUMNS_RAW_BYTES_MAX + 1)})]
    names = [row(10, 9, {f"{k:04000}": 1.5 for k in range(400)})]
    records = [*wide, *long, *huge, *names]
    groups = merged(parts_of(records))
    cut = list(blocks(groups))
    assert all(sum(group.columns for group in block) <= COLUMNS_MAX for block in cut)
    assert all(sum(group.raw_bytes for group in block) <= COLUMNS_RAW_BYTES_MAX for block in cut if len(block) > 1)
    assert rows_of(groups) == pieces_of(records)


def test_two_steps_of_one_sequence_are_refused() -> None:
    """No trainer writes them, and no order would be right."""
    with pytest.raises(DamageError, match="one sequence"):
        merged(parts_of([row(1, 0, {"a": 1}), row(1, 1, {"a": 1})]))


def test_every_difference_is_found() -> None:
    """A value, a type, the sign of zero, a row, a step, a sequence, a time, a flag, a key, a record."""
    records = [row(n + 1, n, {"a": 0.0, "b": n, "c": "x"}) for n in range(40)]
    parts = parts_of(records)
    fact = Record(41, 40, 0, KIND_META, TIME, encode_map({"config": {}}))
    compare(parts, [fact], merged(parts), [fact])

    def wrong(change: Any) -> list[Group]:
        (group,) = merged(parts_of(records))
        for name in ("sequence", "step", "time_us", "flags"):
            setattr(group, name, getattr(group, name).copy())
        return [change(group) or group]

    def cut(group: Group) -> Group:
        values = {key: column[1:] for key, column in group.values.items()}
        return Group(group.sequence[1:], group.step[1:], group.time_us[1:], group.flags[1:], values)

    changes = [
        lambda group: group.values.update(a=-group.values["a"]),
        lambda group: group.values.update(b=group.values["b"].astype(float)),
        lambda group: group.values.update(c=["x"] * 39 + ["y"]),
        lambda group: group.values.update(d=group.values["a"]),
        lambda group: group.values.pop("b") is None,
        cut,
        lambda group: group.step.__setitem__(-1, 99),
        lambda group: group.sequence.__setitem__(-1, 99),
        lambda group: group.time_us.__setitem__(0, 1),
        lambda group: group.flags.__setitem__(0, 0),
    ]
    for number, change in enumerate(changes):
        with pytest.raises(DamageError):
            compare(parts, [], wrong(change), [])
            pytest.fail(f"change {number} was not found")
    with pytest.raises(DamageError, match="no rows"):
        compare(parts, [fact], merged(parts), [])
    with pytest.raises(DamageError, match="one side"):
        compare(parts, [], [], [])
