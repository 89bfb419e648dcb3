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
from ..limits import BLOCK_STORED_BYTES_MAX

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


def unpack_words(plan: Any, source: Source, count: int, width: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """The words that `pack_words` packed.

    Args:
        out: Where to put them: an array of words of this width. None: into a new one.

    Raises:
        DamageError: They are not `count` words of `width` bytes.
    """
    import numpy

    dtype = numpy.dtype(f"<u{width}")
    words = numpy.empty(count, dtype) if out is None else out.view(dtype)
    if not plan:
        words.fill(numpy.frombuffer(source.take(width), dtype)[0])
        return words
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


def unpack_integers(plan: Any, source: Source, count: int, dtype: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """The integers that `pack_integers` packed.

    Args:
        out: Where to put them: an array of words of 8 bytes. None: into a new one.

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
    values = numpy.empty(count, numpy.uint64) if out is None else out.view(numpy.uint64)
    target = values[count - held :]
    if mode == DELTA:
        values[0] = first
    if not width:
        if mode == FRAME:
            values[:] = base
        else:
            _fill_line(values, base)
        return values.view(dtype)
    if held:
        numpy.add(unpack_words(planes, source, held, width), numpy.uint64(base), out=target, dtype=numpy.uint64)
    if mode == DELTA:
        numpy.cumsum(values, out=values)
    return values.view(dtype)


def _fill_line(values: NDArray[numpy.uint64], base: int) -> None:
    """Lets each value be `base` more than the one before; the first is there. Why by doubling: no second array is made."""
    import numpy

    done = 1
    while done < len(values):
        more = min(done, len(values) - done)
        numpy.add(values[:more], numpy.uint64(done * base % _WRAP), out=values[done : done + more])
        done += more


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


def unpack_floats(
    plan: Any, source: Source, count: int, out: NDArray[numpy.float64] | None = None
) -> NDArray[numpy.float64]:
    """The floats that `pack_floats` packed, as float64.

    Args:
        out: Where to put them. None: into a new array.

    Raises:
        DamageError: They are not `count` floats.
    """
    import numpy

    width, planes = plan
    if width not in (4, 8):
        raise DamageError(f"floats of {width!r} bytes: a newer version wrote them?")
    words = unpack_words(planes, source, count, width, out if width == 8 else None)
    with numpy.errstate(all="ignore"):
        if out is not None:
            if width == 4:
                out[:] = words.view("<f4")
            return out
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
    """Byte strings as `[entries, raw size, total, codec, size, lengths, places]`; `total` counts the bytes of all of them.

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
    plan = [len(entries), len(raw), sum(map(len, items)), codec, len(packed), lengths, places]
    return plan, [*length_parts, *place_parts, packed]


def unpack_items(plan: Any, source: Source, count: int) -> list[bytes]:
    """The byte strings that `pack_items` packed.

    Raises:
        DamageError: They are not `count` byte strings.
    """
    import numpy

    entries, raw_size, _, codec, size, lengths, places = plan
    total = total_bytes(plan)
    if type(entries) is not int or type(raw_size) is not int or not 0 < entries <= count or not 0 <= raw_size <= total:
        raise DamageError(f"{entries!r} entries of {raw_size!r} bytes for {count} values of {total}")
    sizes = unpack_integers(lengths, source, entries, numpy.int64)
    indices = None if places is None else unpack_integers(places, source, count, numpy.int64)
    raw = bytes(compression.decompress(codec, source.take(size), raw_size))
    if int(sizes.min()) < 0 or int(sizes.max()) > raw_size or int(sizes.sum()) != raw_size:
        raise DamageError(f"{entries} entries whose lengths are not those of {raw_size} bytes")
    ends = sizes.cumsum().tolist()
    found = [raw[end - length : end] for end, length in zip(ends, sizes.tolist())]
    if indices is None:
        if entries != count or raw_size != total:
            raise DamageError(f"{entries} entries of {raw_size} bytes for {count} values of {total}")
        return found
    if int(indices.min()) < 0 or int(indices.max()) >= entries:
        raise DamageError(f"places up to {int(indices.max())} of {entries} entries")
    if int(sizes[indices].sum()) != total:
        raise DamageError(f"{count} values of {int(sizes[indices].sum())} bytes, the plan says {total}")
    return [found[index] for index in indices.tolist()]


def total_bytes(plan: Any) -> int:
    """The bytes of all byte strings that a plan of `pack_items` tells of, each counted as often as it occurs.

    Raises:
        DamageError: More than a block may hold. Why the plan says it: a dictionary of one long entry takes no bytes for the
            rows that point at it, and a block may have hundreds of them.
    """
    total = plan[2] if type(plan) is list and len(plan) > 2 else None
    if type(total) is not int or not 0 <= total <= BLOCK_STORED_BYTES_MAX:
        raise DamageError(f"values of {total!r} bytes, a block has at most {BLOCK_STORED_BYTES_MAX}")
    return total
