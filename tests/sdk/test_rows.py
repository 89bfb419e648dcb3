"""sdk.rows: one merge for everybody, harmless to repeat, in any order."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from sdk.limits import NESTING_MAX
from sdk.record import FLAG_COMMIT, FLAG_LATE, FLAG_MARKED, decode_map, encode_map
from sdk.rows import Piece, committed, flatten, merge, open_step_after

leaf = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.integers(-9, 9), max_size=2)
)
key = st.sampled_from(["a", "b", "c", "a.b", "a.b.c", ""])
values = st.dictionaries(
    key, st.recursive(leaf, lambda inner: st.dictionaries(key, inner, max_size=3), max_leaves=6), max_size=4
)


@st.composite
def streams(draw: st.DrawFn) -> list[Piece]:
    """What a stream can hold: consecutive sequences, steps and flags as `log` makes them."""
    pieces: list[Piece] = []
    open_step = draw(st.integers(0, 3))
    for sequence in range(1, draw(st.integers(0, 12)) + 1):
        step = max(0, open_step + draw(st.integers(-3, 2)))
        commit = draw(st.booleans())
        flags = draw(st.sampled_from([0, FLAG_MARKED]))
        if step < open_step:
            flags |= FLAG_LATE
        elif commit:
            flags |= FLAG_COMMIT
        open_step = max(open_step, step + 1 if flags & FLAG_COMMIT else step)
        pieces.append(Piece(sequence, step, flags, sequence * 10, draw(values)))
    return pieces


def content(rows: list[Piece]) -> list[Any]:
    """Rows as comparable things: order of keys does not matter, NaN equals itself, 1 and True and 1.0 differ."""
    return [(r.sequence, r.step, r.flags, r.time_ns, sorted((k, repr(v)) for k, v in r.values.items())) for r in rows]


def naive_flatten(given_values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for k, v in given_values.items():
        if isinstance(v, dict) and v:
            found += naive_flatten(v, f"{prefix}{k}.")
        else:
            found.append((f"{prefix}{k}", v))
    return found


def naive_merge(pieces: list[Piece]) -> list[Piece]:
    """The rule in the slowest words: write every value in order of sequence; a row is as late as its last record."""
    unique = {p.sequence: p for p in pieces}
    cells: dict[tuple[int, str], Any] = {}
    last: dict[int, Piece] = {}
    flags: dict[int, int] = {}
    for sequence in sorted(unique):
        piece = unique[sequence]
        for name, value in naive_flatten(piece.values):
            cells[piece.step, name] = value
        last[piece.step] = piece
        flags[piece.step] = flags.get(piece.step, 0) | piece.flags
    rows = [
        Piece(p.sequence, step, flags[step], p.time_ns, {n: v for (s, n), v in cells.items() if s == step})
        for step, p in last.items()
    ]
    return sorted(rows, key=lambda row: row.sequence)


@given(streams())
def test_merge_is_the_naive_model(pieces: list[Piece]) -> None:
    """Last write of a key wins by sequence, flags are united, a row stands where its last record stood."""
    assert content(merge(pieces)) == content(naive_merge(pieces))


@given(streams(), st.randoms(use_true_random=False))
def test_merge_does_not_depend_on_order(pieces: list[Piece], chance: random.Random) -> None:
    """Records may arrive in any order."""
    shuffled = list(pieces)
    chance.shuffle(shuffled)
    assert content(merge(shuffled)) == content(merge(pieces))


@given(streams(), st.data())
def test_merge_is_idempotent(pieces: list[Piece], data: st.DataObject) -> None:
    """Duplicates change nothing, and merging what was merged changes nothing."""
    again = data.draw(st.lists(st.sampled_from(pieces), max_size=6)) if pieces else []
    assert content(merge(pieces + again)) == content(merge(pieces))
    assert content(merge(merge(pieces))) == content(merge(pieces))


@given(streams(), st.data())
def test_merged_windows_and_raw_records_give_the_same(pieces: list[Piece], data: st.DataObject) -> None:
    """Any windows of the stream, overlapping, merged and written again, beside any of the raw records: the same rows."""
    mixed: list[Piece] = []
    covered: set[int] = set()
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(pieces)))
        end = data.draw(st.integers(start, len(pieces)))
        covered.update(range(start, end))
        for row in merge(pieces[start:end]):
            mixed.append(row._replace(values=decode_map(encode_map(row.values))))
    for index, piece in enumerate(pieces):
        if index not in covered or data.draw(st.booleans()):
            mixed.append(piece)
    data.draw(st.randoms(use_true_random=False)).shuffle(mixed)
    assert content(merge(mixed)) == content(merge(pieces))


@given(streams(), st.integers(0, 3))
def test_the_open_step_can_be_found_from_merged_rows(pieces: list[Piece], first: int) -> None:
    """Coalescing may not change which row a stream has open."""
    assert open_step_after(merge(pieces), first) == open_step_after(pieces, first)


@given(streams())
def test_the_open_step_is_that_of_the_table(pieces: list[Piece]) -> None:
    """A commit opens the next row, a later step opens itself, a late record opens nothing."""
    step = 0
    for piece in pieces:
        if piece.flags & FLAG_LATE:
            continue
        step = max(step, piece.step + bool(piece.flags & FLAG_COMMIT))
    assert open_step_after(pieces, 0) == step


@given(streams())
def test_only_the_open_row_is_not_committed(pieces: list[Piece]) -> None:
    """Rows below the open step are committed, all are when the stream has ended."""
    rows = merge(pieces)
    open_step = open_step_after(pieces, 0)
    assert committed(rows, open_step) == {row.step: row.step < open_step for row in rows}
    assert all(committed(rows, None).values())


def test_flatten_rules() -> None:
    """Dotted names, text of other keys, empty dicts stay, lists are values, the later of two equal names wins."""
    assert flatten({"a": {"b": 1, 2: {"c": 3}}, "d": {}, "e": [{"f": 1}]}) == {
        "a.b": 1,
        "a.2.c": 3,
        "d": {},
        "e": [{"f": 1}],
    }
    assert list(flatten({"a.b": 1, "x": 0, "a": {"b": 2}}).items()) == [("x", 0), ("a.b", 2)]
    assert flatten({"a": {"b": 2}, "a.b": 1}) == {"a.b": 1}
    assert flatten({"a": {1: "int", "1": "text"}}) == {"a.1": "text"}
    assert flatten({"a": {None: 1, True: 2, (1, 2): 3}}) == {"a.None": 1, "a.True": 2, "a.(1, 2)": 3}
    assert flatten({}) == {}


@given(values)
@example({"a": {"b": {}}})
def test_flatten_is_idempotent_and_changes_nothing(given_values: dict[str, Any]) -> None:
    """Flat stays flat, and the argument is not touched."""
    before = repr(given_values)
    flat = flatten(given_values)
    assert repr(given_values) == before
    assert repr(flatten(flat)) == repr(flat)
    assert repr(dict(naive_flatten(given_values))) == repr(flat) or {k: repr(v) for k, v in flat.items()} == {
        k: repr(v) for k, v in naive_flatten(given_values)
    }


def test_flatten_of_any_depth_is_idempotent() -> None:
    """The packer takes 1000 levels; a row that was merged once must have the same names as one that was not."""
    for depth in (NESTING_MAX - 1, NESTING_MAX, NESTING_MAX + 1, 2 * NESTING_MAX + 3, 1000):
        nested: Any = 1
        for _ in range(depth):
            nested = {"a": nested}
        flat = flatten({"k": nested})
        assert flat == {".".join(["k"] + ["a"] * depth): 1}
        assert flatten(flat) == flat
