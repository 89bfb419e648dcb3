"""sdk.segment.columns: what goes in comes out, bit for bit, in few bytes, and one column at a time."""

from __future__ import annotations

import contextlib
import functools
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import DamageError
from sdk.limits import BLOCK_STORED_BYTES_MAX
from sdk.record import encode_map
from sdk.segment.columns import Columns, Group, StoredGroup, pack
from sdk.segment.encoding import FRAME
from sdk.segment.format import COLUMNS_HEAD, COLUMNS_MAX, COLUMNS_RAW_BYTES_MAX, ZONE_ROWS

ROWS_MAX = 40
BITS = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
NARROW = st.floats(width=32)
INTS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=8) | st.sampled_from(["", "a", "\ud800"])


def arrays(elements: st.SearchStrategy[Any], dtype: str, rows: int) -> st.SearchStrategy[Any]:
    return st.lists(elements, min_size=rows, max_size=rows).map(lambda values: numpy.array(values, dtype))


def columns_of(rows: int) -> st.SearchStrategy[Any]:
    return st.one_of(
        arrays(BITS, "f8", rows),
        arrays(NARROW, "f8", rows),
        arrays(NARROW, "f4", rows),
        arrays(INTS, "i8", rows),
        arrays(st.integers(-3, 300), "i8", rows),
        arrays(st.integers(0, 2**64 - 1), "u8", rows),
        arrays(st.booleans(), "?", rows),
        st.lists(TEXTS, min_size=rows, max_size=rows),
        st.just([None] * rows),
        st.lists(st.sampled_from([[1], {"a": 2}, b"x", 2.5]).map(msgpack.packb), min_size=rows, max_size=rows),
    )


@st.composite
def groups(draw: st.DrawFn) -> Group:
    rows = draw(st.integers(1, ROWS_MAX))
    sequence = sorted(draw(st.sets(st.integers(1, 2**63), min_size=rows, max_size=rows)))
    step = draw(arrays(st.integers(0, 2**53) | st.integers(0, 5), "i8", rows))
    time_us = draw(arrays(INTS.map(lambda n: n // 1000), "i8", rows))
    flags = draw(arrays(st.integers(0, 255), "u1", rows))
    names = draw(st.lists(TEXTS, max_size=6, unique=True))
    return Group(numpy.array(sequence, "u8"), step, time_us, flags, {name: draw(columns_of(rows)) for name in names})


def opened(payload: bytes) -> Columns:
    return Columns(lambda offset, size: payload[offset : offset + size], len(payload))


def payload_of(*packed_groups: Group) -> bytes:
    return b"".join(map(bytes, pack(packed_groups).parts))


def bits_of(values: Any) -> Any:
    if isinstance(values, list):
        return values
    if values.dtype == numpy.float32:
        values = values.astype("f8")
    return (values.dtype.kind, values.view("u1").tobytes())


def check_equal(stored: StoredGroup, group: Group) -> None:
    assert len(stored) == len(group)
    assert stored.keys == tuple(group.values)
    for found, given_ in (
        (stored.sequences(), group.sequence), (stored.steps(), group.step), (stored.flags(), group.flags),
        (stored.times_ns(), group.time_us * 1000),
    ):  # fmt: skip
        assert found.dtype == given_.dtype
        assert found.tolist() == given_.tolist()
    for key, values in group.values.items():
        if stored.kind(key) == "packed":
            assert stored.packed(key) == values
            assert stored.values(key) == [msgpack.unpackb(value) for value in values]
        else:
            assert bits_of(stored.values(key)) == bits_of(values), key
        if stored.kind(key) in ("float", "int"):
            steps, times, found = numpy.empty(len(group), "i8"), numpy.empty(len(group), "i8"), stored.values(key) * 0
            stored.read_into(key, steps, times, found)
            assert (steps.tolist(), times.tolist()) == (group.step.tolist(), group.time_us.tolist())
            assert bits_of(found) == bits_of(values), key


@given(st.lists(groups(), min_size=1, max_size=3))
def test_what_goes_in_comes_out(given_groups: list[Group]) -> None:
    """Every type, NaN with any bits, -0.0, extremes of integers, differences beyond 64 bits, any text; bit for bit."""
    with numpy.errstate(all="ignore"):
        packed = pack(given_groups)
        found = opened(b"".join(map(bytes, packed.parts)))
        for stored, group in zip(found.groups, given_groups, strict=True):
            check_equal(stored, group)
    assert packed.records == sum(map(len, given_groups))
    assert packed.step_min == min(int(group.step.min()) for group in given_groups)
    assert packed.step_max == max(int(group.step.max()) for group in given_groups)
    names = {name for group in given_groups for name in group.values}
    assert packed.keys == {name: sum(len(g) for g in given_groups if name in g.values) for name in names}


def metrics(rows: int, *, narrow: bool) -> Group:
    """Five curves that fall, with noise; a millisecond and up to 50 us between two rows."""
    draw = numpy.random.default_rng(0)
    step = numpy.arange(rows)
    curve = numpy.exp(-step / 20_000)
    values = {f"metric_{n}": curve + draw.normal(0, 0.05, rows) for n in range(5)}
    if narrow:
        values = {name: value.astype("f4").astype("f8") for name, value in values.items()}
    time_us = 1_790_000_000_000_000 + numpy.cumsum(1000 + draw.integers(-50, 51, rows))
    flags = numpy.ones(rows, "u1")
    return Group(step.astype("u8") + 1, step, time_us, flags, values)


@pytest.mark.parametrize(("narrow", "bytes_max"), [(True, 19), (False, 38)])
def test_bytes_of_a_step(narrow: bool, bytes_max: int) -> None:
    """Five noisy metrics, with sequence, step, time, flags and the preview: near what the noise itself takes."""
    rows = 80_000
    assert len(payload_of(metrics(rows, narrow=narrow))) / rows <= bytes_max


def test_one_column_is_read_alone() -> None:
    """Step, time and one of ten keys: the bytes of the others are never asked for."""
    rows = 20_000
    group = metrics(rows, narrow=False)
    group.values |= {f"other_{n}": values for n, values in enumerate(list(group.values.values()))}
    payload = payload_of(group)
    asked = []

    def read(offset: int, size: int) -> bytes:
        asked.append(size)
        return payload[offset : offset + size]

    stored = Columns(read, len(payload)).groups[0]
    stored.steps(), stored.times_ns(), stored.values("metric_3")
    assert sum(asked) < len(payload) / 5
    stored.values("metric_3")
    assert len(asked) <= 4, "what was read is kept"


def test_statistics_and_previews() -> None:
    """From the directory: extremes without NaN, and how many there are. A preview has both extremes of every zone."""
    rows = 3 * ZONE_ROWS + 17
    draw = numpy.random.default_rng(1)
    noise = draw.normal(size=rows)
    noise[ZONE_ROWS : 2 * ZONE_ROWS] = math.nan  # a zone of nothing else
    noise[5] = math.nan
    group = metrics(rows, narrow=False)
    group.values = {
        "noise": noise,
        "count": numpy.arange(rows) % 7 - 2**60,
        "only nan": numpy.full(rows, math.nan),
        "text": ["a"] * rows,
    }
    stored = opened(payload_of(group)).groups[0]
    low, high, nans = stored.statistics("noise") or (0, 0, 0)
    assert (low, high, nans) == (numpy.nanmin(noise), numpy.nanmax(noise), ZONE_ROWS + 1)
    assert stored.statistics("only nan") == (None, None, rows)
    assert stored.statistics("count") == (-(2**60), 6 - 2**60, 0)
    assert stored.statistics("text") is stored.preview("text") is stored.preview("only nan") is None
    preview = stored.preview("noise")
    assert preview is not None
    expected = set()
    for start in (0, 2 * ZONE_ROWS, 3 * ZONE_ROWS):
        zone = noise[start : start + ZONE_ROWS]
        expected |= {start + int(numpy.nanargmin(zone)), start + int(numpy.nanargmax(zone))}
    rows_of = sorted(expected)
    assert preview.steps.tolist() == group.step[rows_of].tolist()
    assert preview.times_ns.tolist() == (group.time_us[rows_of] * 1000).tolist()
    assert preview.values.tolist() == noise[rows_of].tolist()
    integers = stored.preview("count")
    assert integers is not None
    assert {int(value) for value in integers.values} == {-(2**60), 6 - 2**60}


def test_limits() -> None:
    """More columns or more rows than a block may hold: ValueError, and nothing is written."""
    head = [numpy.arange(1, 3, dtype=dtype) for dtype in ("u8", "i8", "i8", "u1")]
    group = Group(*head, {str(n): numpy.zeros(2) for n in range(COLUMNS_MAX - 3)})
    assert group.columns == COLUMNS_MAX + 1
    with pytest.raises(ValueError, match="at most 256"):
        pack([group])
    rows = COLUMNS_RAW_BYTES_MAX // 25 + 1
    long = Group(*(numpy.arange(1, rows + 1, dtype=dtype) for dtype in ("u8", "i8", "i8")), numpy.ones(rows, "u1"), {})
    with pytest.raises(ValueError, match="raw bytes"):
        pack([long])


def test_values_of_a_block() -> None:
    """Texts count as often as they occur, over all columns, since a dictionary makes them small; too many: ValueError."""
    head = [numpy.arange(1, 3, dtype=dtype) for dtype in ("u8", "i8", "i8", "u1")]
    text = "x" * (BLOCK_STORED_BYTES_MAX // 4)
    assert len(payload_of(Group(*head, {"a": [text] * 2, "b": [text] * 2}))) < 1 << 20
    with pytest.raises(ValueError, match="at most"):
        pack([Group(*head, {"a": [text] * 2, "b": [text] * 2, "c": ["y", ""]})])


def test_a_large_dictionary() -> None:
    """Ten thousand different texts, each twice, are stored once each and come back in their order."""
    rows = 20_000
    texts = [f"name of a thing {n * 7919 % (rows // 2):05}" for n in range(rows)]
    head = [numpy.arange(1, rows + 1, dtype=dtype) for dtype in ("u8", "i8", "i8")]
    payload = payload_of(Group(*head, numpy.ones(rows, "u1"), {"text": texts}))
    assert opened(payload).groups[0].values("text") == texts
    assert len(payload) < sum(map(len, texts)) / 2


def test_every_flipped_bit() -> None:
    """It is a DamageError of the directory, or of the one column that holds the byte; all others are read as they were."""
    rows = 30
    group = metrics(rows, narrow=True)
    group.values |= {
        "text": ["a", "b", ""] * 10,
        "packed": [msgpack.packb([n]) for n in range(rows)],
        "bool": group.step > 9,
    }
    payload = payload_of(group)
    body = len(payload) - sum(map(len, pack([group]).parts[2:]))
    for at in range(len(payload)):
        flipped = bytearray(payload)
        flipped[at] ^= 1 << at % 8
        if at < body:
            # The third byte of the head is not used.
            with pytest.raises(DamageError) if at != 3 else contextlib.nullcontext():
                opened(bytes(flipped))
            continue
        stored = opened(bytes(flipped)).groups[0]
        bad = 0
        for read in (stored.sequences, stored.steps, stored.times_ns, stored.flags):
            bad += is_damaged(read)
        for key in stored.keys:
            bad += is_damaged(functools.partial(stored.values, key))
        assert bad == 1, at


def is_damaged(read: Callable[[], Any]) -> bool:
    try:
        read()
    except DamageError:
        return True
    return False


def test_what_a_newer_version_wrote() -> None:
    """Another version of the payload, another type, another way to pack: damage that says so, not a guess."""
    payload = bytearray(payload_of(metrics(10, narrow=True)))
    payload[0] = 2
    with pytest.raises(DamageError, match="newer version"):
        opened(bytes(payload))
    constant = [FRAME, 0, 5, 0, []]
    system = [[None, kind, constant, 0, 0, 0, None] for kind in ("uint", "int", "int", "int")]
    directory = [["x", "decimal", [], 0, 0, 0, None, None]]
    with pytest.raises(DamageError, match="'decimal'.*newer version"):
        opened(with_directory([[1, 5, 5, system, directory]]))
    directory = [["i", "int", [7, *constant[1:]], 0, 0, 0, None, None], ["f", "float", [2, []], 0, 0, 0, None, None]]
    stored = opened(with_directory([[1, 5, 5, system, directory]])).groups[0]
    for key in stored.keys:
        with pytest.raises(DamageError, match=f"column '{key}'.*newer version"):
            stored.values(key)
    assert stored.steps().tolist() == [5]


def with_directory(entries: list[Any]) -> bytes:
    raw = encode_map({"groups": entries})
    return COLUMNS_HEAD.pack(1, 0, 0, len(raw), len(raw), zlib.crc32(raw)) + raw
