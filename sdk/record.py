"""A record: what one `log()` call made, packed once, in the trainer.

The same bytes are its entry in the ring, its place in a batch and its place in a ROWS block: a 32-byte binary header
(`docs/journal.md#records`) and a msgpack payload. Nothing on the way decodes the payload of a record that commits its
own row.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from .dtypes import dtype_of, widened
from .errors import DamageError
from .files import Buffer
from .limits import MAP_BYTES_MAX, MEDIA_NESTING_MAX, STEP_MAX

# length u32 (header and payload), kind u8, flags u8, reserved u16, sequence u64, step u64, time in ns i64.
HEADER = struct.Struct("<IBBHQQq")
HEADER_SIZE = HEADER.size
# The same 32 bytes as four words, for the hot path: the first is length | kind << 32 | flags << 40.
WORDS = struct.Struct("<QQQQ")
KIND_SHIFT = 32
FLAGS_SHIFT = 40

KIND_ROW = 1  # payload: msgpack map of key -> value, a piece of the row at (stream, step)
KIND_META = 2  # payload: msgpack map of facts about the run or the stream (docs/segment.md#meta)
KIND_GAP = 3  # payload: msgpack map that says what was refused before this record (docs/segment.md#gap)
KIND_SHAPED = 4  # reserved: shape id + values
KIND_BLOB = 5  # payload: msgpack map that announces a blob of a later record (docs/media.md#announcement)

FLAG_COMMIT = 1  # the row is complete with this record
FLAG_LATE = 2  # the step is below the stream's open step
FLAG_MARKED = 4  # misuse="warn" left at least one key out

EXT_TENSOR = 1  # msgpack array [dtype name, shape, raw little-endian bytes in C order]
EXT_BLOB = 3  # msgpack array [stream, number, size]: bytes that are stored apart; or map of meta and data: a small one
EXT_MEDIA = 4  # msgpack map: what a value that is more than plain data says of itself
EXT_CELL = 5  # msgpack integer: inside the rows of a table, the media value of that index (docs/media.md#tables)
EXT_BIG_INT = 2  # decimal text of an integer beyond 64 bits, inside a tensor-free value


class BlobRef(NamedTuple):
    """A record's word for bytes that are stored apart: the `number`-th blob of `stream`, of `size` bytes."""

    stream: int
    number: int
    size: int


class StoredBlob(NamedTuple):
    """Bytes and what they say of themselves (docs/media.md#meta); small ones stand inside a record like this."""

    data: Buffer
    meta: dict[str, Any]


class MediaValue(dict[str, Any]):
    """What a logged image, table, ... says of itself: "_type" and more; its blobs are `BlobRef` or `StoredBlob`."""


class Record(NamedTuple):
    """One decoded header with its payload still packed (a view into the buffer it was read from)."""

    sequence: int
    step: int
    flags: int
    kind: int
    time_ns: int
    payload: Buffer


def pack(record: Record) -> bytes:
    """The bytes of a record, header and payload."""
    size = HEADER_SIZE + len(record.payload)
    head = HEADER.pack(size, record.kind, record.flags, 0, record.sequence, record.step, record.time_ns)
    return head + bytes(record.payload)


def walk(buffer: Buffer) -> Iterator[Record]:
    """The records of a batch, a block or a drained ring, in order.

    Raises:
        DamageError: A length does not fit the buffer, or a step or sequence cannot be.
    """
    view = memoryview(buffer)
    offset, end = 0, len(view)
    unpack_from = HEADER.unpack_from
    new = tuple.__new__
    while offset < end:
        if end - offset < HEADER_SIZE:
            raise DamageError(f"record at byte {offset} is cut: {end - offset} bytes, a header has {HEADER_SIZE}")
        size, kind, flags, _, sequence, step, time_ns = unpack_from(view, offset)
        if size < HEADER_SIZE or offset + size > end or step > STEP_MAX:
            raise DamageError(
                f"record at byte {offset} claims {size} bytes and step {step}; {end - offset} bytes are left"
            )
        # A NamedTuple made without its own __new__, which would cost as much as all the rest of this loop.
        yield new(Record, (sequence, step, flags, kind, time_ns, view[offset + HEADER_SIZE : offset + size]))
        offset += size


def encode_map(values: dict[str, Any]) -> bytes:
    """Packs a map of plain values (what `sdk.values.plain` returns)."""
    packed: bytes = msgpack.packb(values, unicode_errors="surrogatepass")
    return packed


def map_encoder() -> Callable[[dict[str, Any]], bytes]:
    """`encode_map` for many maps, by one thread: a third of the price."""
    pack: Callable[[dict[str, Any]], bytes] = msgpack.Packer(unicode_errors="surrogatepass").pack
    return pack


def decode_map(payload: Buffer, *, tensors: bool = True, bytes_max: int = MAP_BYTES_MAX) -> dict[str, Any]:
    """The map in a payload. Nested maps may have any scalar keys; `sdk.rows.flatten` makes names of them.

    Args:
        tensors: False leaves tensors packed (`msgpack.ExtType`), so that `encode_map` takes the map again.
        bytes_max: More than these are not looked at.

    Raises:
        DamageError: It is not one msgpack map within the limits of `docs/journal.md`.
    """
    if len(payload) > bytes_max:
        raise DamageError(f"map of {len(payload)} bytes, expected at most {bytes_max}")
    unpack = _unpack if tensors else _unpack_keeping_tensors
    try:
        try:
            value: object = unpack(payload)
        except TypeError:
            # A nested map whose key is a tuple: the packer takes it, and it must not make the whole record unreadable.
            value = unpack(payload, object_pairs_hook=_pairs)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise DamageError(f"payload of {len(payload)} bytes is not a msgpack map: {error}") from error
    if type(value) is not dict:
        raise DamageError(f"payload holds {type(value).__name__}, expected a map")
    return value


def decode_rows(payload: Buffer, cells: Sequence[Any]) -> list[Any]:
    """The rows of a part of a table.

    Args:
        cells: What the extension `EXT_CELL` refers to.

    Raises:
        DamageError: It is not a msgpack array, or refers to a cell that there is not.
    """

    def extension(code: int, data: bytes) -> object:
        if code != EXT_CELL:
            return _extension(0, code, data)
        index = msgpack.unpackb(data)
        if type(index) is not int or not 0 <= index < len(cells):
            raise ValueError(f"media cell {index!r} of {len(cells)}")
        return cells[index]

    try:
        value: object = _unpack(payload, ext_hook=extension)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise DamageError(f"payload of {len(payload)} bytes is no rows of a table: {error}") from error
    if type(value) is not list:
        raise DamageError(f"payload holds {type(value).__name__}, expected the rows of a table")
    return value


def _pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in pairs}


def _hashable(key: Any) -> Any:
    return tuple(map(_hashable, key)) if type(key) is list else key


def _extension(level: int, code: int, data: bytes) -> object:
    if code == EXT_TENSOR:
        return _tensor(data)
    if code == EXT_BLOB:
        return _blob(_unpack_inside(data, level))
    if code == EXT_MEDIA:
        return _media(_unpack_inside(data, level))
    return msgpack.ExtType(code, data)


def _unpack_inside(data: Buffer, level: int) -> object:
    """What is packed inside of an extension. Each level takes 40 KiB of the machine's stack, which nobody else bounds."""
    if level > MEDIA_NESTING_MAX:  # one more than a trainer takes, for the blobs of the innermost
        raise ValueError(f"media values inside of one another, more than {MEDIA_NESTING_MAX}")
    hook = functools.partial(_extension, level + 1)
    return msgpack.unpackb(data, strict_map_key=False, unicode_errors="surrogatepass", ext_hook=hook)


def encode_blob_ref(ref: BlobRef) -> msgpack.ExtType:
    """What stands in a record for bytes that are stored apart."""
    return msgpack.ExtType(EXT_BLOB, msgpack.packb(list(ref)))


def encode_inline_blob(blob: StoredBlob) -> msgpack.ExtType:
    """What stands in a record for bytes that are small."""
    return msgpack.ExtType(EXT_BLOB, encode_map({"meta": blob.meta, "data": blob.data}))


def encode_media(described: Mapping[str, Any]) -> msgpack.ExtType:
    """What stands in a record for a value that is more than plain data; nested ones and blobs are encoded already."""
    return msgpack.ExtType(EXT_MEDIA, encode_map(dict(described)))


def decode_media(data: Buffer) -> MediaValue:
    """The map that `encode_media` packed.

    Raises:
        ValueError: These bytes are not one.
    """
    return _media(_unpack_inside(data, 0))


def _media(value: object) -> MediaValue:
    if type(value) is not dict or type(value.get("_type")) is not str:
        raise ValueError("a media value that is no map with a _type")
    return MediaValue(value)


def _blob(value: object) -> BlobRef | StoredBlob:
    if type(value) is dict:
        meta, inside = value.get("meta"), value.get("data")
        if type(meta) is not dict or type(inside) is not bytes:
            raise ValueError("a small blob without metadata or bytes")
        return StoredBlob(inside, meta)
    if type(value) is not list or len(value) != 3 or any(type(n) is not int or n < 0 for n in value):
        raise ValueError(f"a reference to a blob that is {value!r}")
    return BlobRef(*value)


def _tensor(data: bytes) -> object:
    import numpy

    name, shape, raw = msgpack.unpackb(data, raw=False, max_array_len=64)
    if type(shape) is not list or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"tensor of shape {shape!r}")
    flat = numpy.frombuffer(raw, dtype_of(name))
    wide = widened(flat, name)
    return (flat.copy() if wide is flat else wide).reshape(shape)


# msgpack's own limits on lengths are those of the buffer when it unpacks a whole one.
_unpack_keeping_tensors = functools.partial(
    msgpack.unpackb, strict_map_key=False, unicode_errors="surrogatepass", ext_hook=msgpack.ExtType
)
_unpack = functools.partial(_unpack_keeping_tensors, ext_hook=functools.partial(_extension, 0))
