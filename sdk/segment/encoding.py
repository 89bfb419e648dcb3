"""Arrays as few bytes, and back: what the columns of a COLUMNS block are made of (docs/segment.md#columns). Pure.

Nothing here is lossy. Integers become the differences to their smallest value or to the one before, whichever needs narrower
words; floats become float32 where every value comes back bit for bit. Words are then cut into byte planes: a byte position that
lz4 shrinks (signs and exponents, high bytes) is a plane of its own, and neighbouring ones that it does not shrink (mantissas)
stay together as words of 1, 2, 4 or 8 bytes, since that is five times as fast to put back as single bytes.

A **plan** is the list that tells how a column was packed; it stands in the directory of the block, whose checksum is known to
be right when it is read here. It is hostile all the same: sizes are checked before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import compression
from ..errors import DamageError
from ..files import Buffer
from ..limits import BLOCK_RAW_BYTES_MAX

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

# What a plan of integers begins with: the words are differences to the smallest value, or to the value before.
FRAME = 0
DELTA = 1
# How much of a byte plane is looked at to see whether lz4 shrinks it: three slices.
_SAMPLE_BYTES = 8192
_WIDTHS = (8, 4, 2, 1)
_WRAP = 1 << 64

Plan = list[Any]


class Source:
    """The stored bytes of one column, taken from the front."""

    def __init__(self, stored: Buffer) -> None:
        self._view = memoryview(stored)
        self._at = 0

    def take(self, size: Any) -> memoryview:
        """The next `size` bytes.

        Raises:
            DamageError: There are not so many.
        """
        if type(size) is not int or not 0 <= size <= len(self._view) - self._at:
            raise DamageError(f"a part of {size!r} bytes, {len(self._view) - self._at} are left")
        found = self._view[self._at : self._at + size]
        self._at += size
        return found


# ---- words: unsigned integers of 1, 2, 4 or 8 bytes


def pack_words(words: NDArray[Any]) -> tuple[Plan, list[Buffer]]:
    """Words as planes: `[position, width, codec, size]` of each; an empty plan where all words are the same one."""
    import numpy

    width, count = words.dtype.itemsize, len(words)
    words = numpy.ascontiguousarray(words)
    if not (words != words[0]).any():
        return [], [words[:1].tobytes()]
    matrix = words.view(numpy.uint8).reshape(count, width)
    shrinks = [_shrinks(matrix[:, position]) for position in range(width)]
    plan: Plan = []
    parts: list[Buffer] = []
    position = 0
    while position < width:
        wide = 1
        if not shrinks[position]:
            wide = next(
                w for w in _WIDTHS if position % w == 0 and not any(shrinks[position : position + w]) and w <= width
            )
        plane = numpy.ascontiguousarray(words.view(f"<u{wide}").reshape(count, width // wide)[:, position // wide])
        codec, packed = compression.compress(plane.tobytes()) if shrinks[position] else (0, plane.tobytes())
        plan.append([position, wide, codec, len(packed)])
        parts.append(packed)
        position += wide
    return plan, parts


def _shrinks(plane: NDArray[Any]) -> bool:
    third = _SAMPLE_BYTES // 3
    if len(plane) <= _SAMPLE_BYTES:
        sample = plane.tobytes()
    else:
        middle = len(plane) // 2
        sample = plane[:third].tobytes() + plane[middle : middle + third].tobytes() + plane[-third:].tobytes()
    return compression.compress(sample)[0] != compression.CODEC_NONE


def unpack_words(plan: Any, source: Source, count: int, width: int) -> NDArray[Any]:
    """The words that `pack_words` packed.

    Raises:
        DamageError: They are not `count` words of `width` bytes.
    """
    import numpy

    dtype = numpy.dtype(f"<u{width}")
    if not plan:
        return numpy.full(count, numpy.frombuffer(source.take(width), dtype)[0], dtype)
    words = numpy.empty(count, dtype)
    expected = 0
    for position, wide, codec, size in plan:
        if position != expected or wide not in _WIDTHS or position % wide or position + wide > width:
            raise DamageError(f"a plane of {wide!r} bytes at byte {position!r} of words of {width}")
        raw = compression.decompress(codec, source.take(size), count * wide)
        words.view(f"<u{wide}").reshape(count, width // wide)[:, position // wide] = numpy.frombuffer(raw, f"<u{wide}")
        expected += wide
    if expected != width:
        raise DamageError(f"planes of {expected} bytes make no words of {width}")
    return words


# ---- integers


def pack_integers(values: NDArray[Any]) -> tuple[Plan, list[Buffer]]:
    """Integers (int64 or uint64) as `[FRAME or DELTA, first, base, width, planes]`; arithmetic is modulo 2^64."""
    import numpy

    wrapped = numpy.ascontiguousarray(values).view(numpy.uint64)
    low, high = int(values.min()), int(values.max())
    mode, first, base, span, words = FRAME, 0, low, high - low, wrapped
    if len(values) > 1:
        steps = (wrapped[1:] - wrapped[:-1]).view(numpy.int64)
        smallest, largest = int(steps.min()), int(steps.max())
        if _width(largest - smallest) < _width(high - low):
            mode, first, base, span = DELTA, int(wrapped[0]), smallest, largest - smallest
            words = steps.view(numpy.uint64)
    width = _width(span)
    head = [mode, first % _WRAP, base % _WRAP, width]
    if not width:
        return [*head, []], []
    plan, parts = pack_words((words - numpy.uint64(base % _WRAP)).astype(f"<u{width}"))
    return [*head, plan], parts


def _width(span: int) -> int:
    """Bytes of the narrowest words that hold 0 to `span`; 0 for a constant."""
    return next((width for width in (1, 2, 4, 8) if span < 1 << 8 * width), 8) if span else 0


def unpack_integers(plan: Any, source: Source, count: int, dtype: Any) -> NDArray[Any]:
    """The integers that `pack_integers` packed.

    Raises:
        DamageError: They are not `count` integers.
    """
    import numpy

    mode, first, base, width, planes = plan
    if mode not in (FRAME, DELTA) or width not in (0, 1, 2, 4, 8) or not 0 <= first < _WRAP or not 0 <= base < _WRAP:
        raise DamageError(
            f"integers packed in mode {mode!r} with words of {width!r} bytes: a newer version wrote them?"
        )
    held = count - (mode == DELTA)
    values = numpy.empty(count, numpy.uint64)
    target = values[count - held :]
    if mode == DELTA:
        values[0] = first
    if not width:
        if mode == FRAME:
            values[:] = base
        else:
            values[:] = numpy.arange(count, dtype=numpy.uint64) * numpy.uint64(base) + numpy.uint64(first)
        return values.view(dtype)
    if held:
        numpy.add(unpack_words(planes, source, held, width), numpy.uint64(base), out=target, dtype=numpy.uint64)
    if mode == DELTA:
        numpy.cumsum(values, out=values)
    return values.view(dtype)


# ---- floats


def pack_floats(values: NDArray[Any]) -> tuple[Plan, list[Buffer]]:
    """Floats as `[width, planes]`: width 4 where every value is a float32, to the last bit of a NaN."""
    import numpy

    if values.dtype.itemsize == 4:
        narrow, fits = numpy.ascontiguousarray(values), True
    else:
        values = numpy.ascontiguousarray(values)
        with numpy.errstate(all="ignore"):
            narrow = values.astype(numpy.float32)
            fits = bool((narrow.astype(numpy.float64).view(numpy.uint64) == values.view(numpy.uint64)).all())
    words = narrow.view(numpy.uint32) if fits else values.view(numpy.uint64)
    plan, parts = pack_words(words)
    return [words.dtype.itemsize, plan], parts


def unpack_floats(plan: Any, source: Source, count: int) -> NDArray[numpy.float64]:
    """The floats that `pack_floats` packed, as float64.

    Raises:
        DamageError: They are not `count` floats.
    """
    import numpy

    width, planes = plan
    if width not in (4, 8):
        raise DamageError(f"floats of {width!r} bytes: a newer version wrote them?")
    words = unpack_words(planes, source, count, width)
    with numpy.errstate(all="ignore"):
        return words.view(f"<f{width}").astype(numpy.float64, copy=False)


# ---- booleans


def pack_booleans(values: NDArray[Any]) -> tuple[Plan, list[Buffer]]:
    """Booleans as bits: `[codec, size]`."""
    import numpy

    codec, packed = compression.compress(numpy.packbits(values).tobytes())
    return [codec, len(packed)], [packed]


def unpack_booleans(plan: Any, source: Source, count: int) -> NDArray[numpy.bool_]:
    """The booleans that `pack_booleans` packed.

    Raises:
        DamageError: They are not `count` booleans.
    """
    import numpy

    codec, size = plan
    raw = compression.decompress(codec, source.take(size), (count + 7) // 8)
    return numpy.unpackbits(numpy.frombuffer(raw, numpy.uint8), count=count).view(numpy.bool_)


# ---- bytes of any length


def pack_items(items: Sequence[bytes]) -> tuple[Plan, list[Buffer]]:
    """Byte strings as `[entries, raw size, codec, size, lengths, places]`.

    Where at most half of them differ, each is stored once and `places` tells which one stands where; else `places` is None.
    """
    import numpy

    entries: Sequence[bytes] = items
    places: list[Any] | None = None
    place_parts: list[Buffer] = []
    known = {item: place for place, item in enumerate(dict.fromkeys(items))}
    if 2 * len(known) <= len(items):
        entries = list(known)
        places, place_parts = pack_integers(numpy.array([known[item] for item in items], numpy.int64))
    lengths, length_parts = pack_integers(numpy.array([len(item) for item in entries], numpy.int64))
    raw = b"".join(entries)
    codec, packed = compression.compress(raw)
    plan = [len(entries), len(raw), codec, len(packed), lengths, places]
    return plan, [*length_parts, *place_parts, packed]


def unpack_items(plan: Any, source: Source, count: int) -> list[bytes]:
    """The byte strings that `pack_items` packed.

    Raises:
        DamageError: They are not `count` byte strings.
    """
    import numpy

    entries, raw_size, codec, size, lengths, places = plan
    if not (
        type(entries) is int and 0 < entries <= count and type(raw_size) is int and raw_size <= BLOCK_RAW_BYTES_MAX
    ):
        raise DamageError(f"{entries!r} entries of {raw_size!r} bytes for {count} values")
    sizes = unpack_integers(lengths, source, entries, numpy.int64)
    indices = None if places is None else unpack_integers(places, source, count, numpy.int64)
    raw = bytes(compression.decompress(codec, source.take(size), raw_size))
    if int(sizes.min()) < 0 or int(sizes.max()) > raw_size or int(sizes.sum()) != raw_size:
        raise DamageError(f"{entries} entries whose lengths are not those of {raw_size} bytes")
    ends = sizes.cumsum().tolist()
    found = [raw[end - length : end] for end, length in zip(ends, sizes.tolist())]
    if indices is None:
        if entries != count:
            raise DamageError(f"{entries} entries for {count} values")
        return found
    if int(indices.min()) < 0 or int(indices.max()) >= entries:
        raise DamageError(f"places up to {int(indices.max())} of {entries} entries")
    return [found[index] for index in indices.tolist()]
