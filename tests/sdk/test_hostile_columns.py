"""Columns made by an attacker: a result or an error of ours, never another one, and no memory that the rows do not need."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdk import compression
from sdk.errors import DamageError, Error, NotFoundError
from sdk.files import DISK
from sdk.reader.verify import verify_run
from sdk.record import decode_map, encode_map
from sdk.segment.check import check_segment
from sdk.segment.columns import Columns, pack
from sdk.segment.format import COLUMNS_HEAD, ZONE_ROWS, FileHeader
from sdk.segment.repair import rewrite
from tests.builders import make_run, make_store
from tests.sdk.test_hostile_bytes import edited, edits, grown_bytes
from tests.sdk.test_hostile_bytes import look_at_all as look
from tests.windows import append_window, begin, end, fact, group


def look_at_all(store: str) -> None:
    """As of rows; a key of which every value is damaged may have a name and no series."""
    with contextlib.suppress(NotFoundError):
        look(store)


MANY = settings(max_examples=200, deadline=None)
ROWS = 2 * ZONE_ROWS
WIDE = group(
    range(1, ROWS + 1),
    {
        "loss": np.random.default_rng(1).normal(size=ROWS), "count": np.arange(ROWS) * 3, "big": np.arange(ROWS, dtype="u8"),
        "text": ["a", "b"] * (ROWS // 2), "list": [msgpack.packb([n % 7]) for n in range(ROWS)], "none": [None] * ROWS,
        "is": np.arange(ROWS) % 3 == 0,
    },
)  # fmt: skip
SMALL = group([3], {"x": np.array([1.5])})
PAYLOAD = b"".join(pack([WIDE, SMALL]).parts)


def split(payload: bytes) -> tuple[Any, bytes]:
    """(the directory, the columns behind it)."""
    _, codec, _, size, raw_size, _ = COLUMNS_HEAD.unpack_from(payload)
    body = COLUMNS_HEAD.size + size
    return decode_map(compression.decompress(codec, payload[COLUMNS_HEAD.size : body], raw_size)), payload[body:]


DIRECTORY, BODY = split(PAYLOAD)


def joined(directory: Any, body: bytes) -> bytes:
    """The payload with a directory, whose checksum is right."""
    raw = encode_map(directory)
    return COLUMNS_HEAD.pack(1, 0, 0, len(raw), len(raw), zlib.crc32(raw)) + raw + body


def read_all(payload: bytes) -> None:
    """Everything that can be asked of a block; each by itself, since one that is bad must not be the last."""

    def attempt(call: Callable[[], Any]) -> Any:
        with contextlib.suppress(DamageError):
            return call()

    columns = attempt(lambda: Columns(lambda offset, size: payload[offset : offset + size], len(payload)))
    for one in columns.groups if columns is not None else ():
        for call in (one.sequences, one.steps, one.times_ns, one.flags):
            found = attempt(call)
            assert found is None or len(found) == len(one)
        for key in one.keys:
            found = attempt(lambda one=one, key=key: one.values(key))
            assert found is None or len(found) == len(one)
            told = attempt(lambda one=one, key=key: one.statistics(key))
            assert told is None or {type(told.minimum), type(told.maximum)} <= {int, float, type(None)}
            for call in (one.packed, one.kind, one.preview):
                attempt(lambda call=call, key=key: call(key))


JUNK = st.sampled_from([
    None, -1, 0, 1, 2, 3, 8, 255, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 1.5, float("nan"), "", "x", "uint", "packed", b"", b"\xc1",
    [], {}, True, [0, 0, 0], [[0, 8, 1, 9]], {"a": 1}, [[[[]]]], "loss",
])  # fmt: skip


def changed(tree: Any, path: list[int], value: Any) -> Any:
    """A copy of nested lists and maps in which the item at some path is another one."""
    if not path or not isinstance(tree, (list, dict)) or not tree:
        return value
    places = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    chosen = places[path[0] % len(places)]
    copy: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[chosen] = changed(tree[chosen], path[1:], value)
    return copy


@MANY
@given(st.lists(st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=8), JUNK), min_size=1, max_size=3))
def test_directories_of_anything(changes: list[tuple[list[int], Any]]) -> None:
    """Whatever a directory says whose checksum is right: columns of as many values as it has rows, or DamageError."""
    directory = DIRECTORY
    for path, value in changes:
        directory = changed(directory, path, value)
    read_all(joined(directory if isinstance(directory, dict) else {"groups": directory}, BODY))


@MANY
@given(edits, st.integers(0, 1 << 20))
def test_payloads_of_anything(changes: list[tuple[int, bytes]], cut: int) -> None:
    """Edited bytes, too."""
    read_all(edited(PAYLOAD, changes, cut))


@pytest.mark.parametrize("rows", [2**20, 2**31, 2**63])
def test_rows_without_bytes(rows: int) -> None:
    """Constant columns take no bytes, so nothing but the limit keeps a small file from filling the memory."""
    constant = [0, 0, 5, 0, []]
    system = [[None, kind, constant, 0, 0, 0, None] for kind in ("uint", "int", "int", "int")]
    columns = [[str(n), "int", constant, 0, 0, 0, None, None] for n in range(200)]
    payload = joined({"groups": [[rows, 5, 5, system, columns]]}, b"")
    assert grown_bytes(lambda: read_all(payload)) < 64 << 20


@pytest.mark.parametrize("size", [300, 4 << 20])
def test_a_small_text_that_is_large(size: int) -> None:
    """A dictionary of one long entry that every row points at: an error, or one object and not as many."""
    text = b"x" * size
    codec, packed = compression.compress(text)
    plan = [1, len(text), 200_000 * len(text), codec, len(packed), [0, 0, len(text), 0, []], [0, 0, 0, 0, []]]
    constant = [0, 0, 5, 0, []]
    system = [[None, kind, constant, 0, 0, 0, None] for kind in ("uint", "int", "int", "int")]
    column = ["text", "str", plan, 0, len(packed), zlib.crc32(packed), None, None]
    payload = joined({"groups": [[200_000, 5, 5, system, [column]]]}, packed)
    assert grown_bytes(lambda: read_all(payload)) < 64 << 20


@pytest.fixture(scope="module")
def compacted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sealed segment of windows."""
    writer = begin(tmp_path_factory.mktemp("compacted"))
    append_window(
        writer, [[group(range(1, 61), {"loss": np.arange(60) / 7, "text": ["a", "b"] * 30})]], (1, 61), [fact(61)]
    )
    append_window(writer, [[group(range(62, 90), {"loss": np.arange(28) / 3})]], (62, 89))
    return Path(end(writer)).read_bytes()


@settings(max_examples=40, deadline=None)
@given(changes=edits, cut=st.integers(0, 1 << 20), whole=st.booleans())
def test_compacted_segments_of_anything(
    tmp_path_factory: pytest.TempPathFactory,
    compacted: bytes,
    changes: list[tuple[int, bytes]],
    cut: int,
    whole: bool,
) -> None:
    """Readers and `verify` never raise, verify names each change, and what repair makes of it is good."""
    data = edited(compacted, changes, len(compacted) if whole else cut)
    store = make_store(tmp_path_factory.mktemp("edited"))
    run = make_run(store, "a41f", [{"x": 1.0}])
    path = Path(run.directory, "history-0000000000000abc-000000.seg")
    path.write_bytes(data)
    look_at_all(store)
    found = verify_run(DISK, run.directory)
    cut_short = len(data) < len(compacted)
    assert found.findings or data == compacted or (cut_short and not check_segment(DISK, str(path)).sealed)
    with contextlib.suppress(Error):
        rewrite(DISK, str(path), "a41f", FileHeader(b"s" * 16, 0xDEF, 0, 5), {"kind": "repair"})
        assert verify_run(DISK, run.directory).findings == []
        look_at_all(store)


def test_every_flip_of_a_compacted_segment(tmp_path: Path, compacted: bytes) -> None:
    """Readers never raise, and verify names each."""
    store = make_store(tmp_path)
    run = make_run(store, "a41f", [{"x": 1.0}])
    path = Path(run.directory, "history-0000000000000abc-000000.seg")
    for at in range(0, len(compacted), 29):
        data = bytearray(compacted)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        look_at_all(store)
        assert verify_run(DISK, run.directory).findings, f"byte {at}"


def test_the_head_of_columns() -> None:
    """A head that is cut, of another version, or with sizes that cannot be."""
    for payload in (b"", PAYLOAD[:7], b"\xff" + PAYLOAD[1:], PAYLOAD[:4] + struct.pack("<II", 1 << 31, 1 << 31)):
        with pytest.raises(DamageError):
            Columns(lambda offset, size, payload=payload: payload[offset : offset + size], len(payload))  # type: ignore[misc]
