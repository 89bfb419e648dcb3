"""COLUMNS blocks: rows that hold the same keys, a column for each key (docs/segment.md#columns). Pure: bytes in, arrays out.

A block holds groups. A group has a sequence, a step, a time and a flags column, and one column for each of its keys, without
holes. Whoever reads takes the directory at the block's head, and then only the columns that he wants: each has a checksum of its
own. Every byte is treated as hostile, as in `reader`.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import compression
from ..arrays import distinct
from ..errors import DamageError, Error
from ..files import Buffer
from ..limits import BLOCK_STORED_BYTES_MAX, STEP_MAX
from ..record import decode_map, encode_map
from .encoding import (
    Plan,
    Source,
    pack_booleans,
    pack_floats,
    pack_integers,
    pack_items,
    total_bytes,
    unpack_booleans,
    unpack_floats,
    unpack_integers,
    unpack_items,
)
from .format import (
    COLUMNS_HEAD,
    COLUMNS_MAX,
    COLUMNS_RAW_BYTES_MAX,
    COLUMNS_VERSION,
    DIRECTORY_BYTES_MAX,
    ROW_BYTES,
    ZONE_ROWS,
)

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

# Physical types, as the directory names them.
FLOAT, INT, UINT, BOOL, STR, NULL, PACKED = "float", "int", "uint", "bool", "str", "null", "packed"
# Those whose values are byte strings of any length.
_ITEMS = (STR, PACKED)
# The first columns of a group, in this order.
_SYSTEM = (("sequence", UINT), ("step", INT), ("time", INT), ("flags", INT))
# How much is read at first: head, directory and, of a small block, everything.
_FIRST_BYTES = 4096
_KINDS = {"f": FLOAT, "i": INT, "u": UINT, "b": BOOL}


class Group:
    """Rows that hold the same keys, in order of their sequences, to be packed.

    Attributes:
        sequence: uint64[n], rising.
        step: int64[n].
        time_us: int64[n], Unix time.
        flags: uint8[n].
        values: Key to n values: an array of float64, float32, int64, uint64 or bool; a list of str, of None, or of
            bytes: msgpack of each value.
    """

    __slots__ = ("flags", "sequence", "step", "time_us", "values")

    def __init__(
        self,
        sequence: NDArray[numpy.uint64],
        step: NDArray[numpy.int64],
        time_us: NDArray[numpy.int64],
        flags: NDArray[numpy.uint8],
        values: dict[str, Any],
    ) -> None:
        self.sequence, self.step, self.time_us, self.flags, self.values = sequence, step, time_us, flags, values

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def columns(self) -> int:
        """How many columns it takes of the `COLUMNS_MAX` of a block."""
        return len(_SYSTEM) + len(self.values)

    @property
    def raw_bytes(self) -> int:
        """What it takes of the `COLUMNS_RAW_BYTES_MAX` of a block: texts and packed values count by their bytes as well."""
        texts = sum(
            sum(map(len, column)) for column in self.values.values() if type(column) is list and column[0] is not None
        )
        return len(self) * (ROW_BYTES + 8 * len(self.values)) + texts


class Packed(NamedTuple):
    """A COLUMNS block's payload in parts, and what its header and the index say of it."""

    parts: list[Buffer]
    records: int
    step_min: int
    step_max: int
    keys: dict[str, int]


class Statistics(NamedTuple):
    """Of a numeric column: the smallest and the largest value, NaN left out (None: there are only NaN), and how many NaN."""

    minimum: float | int | None
    maximum: float | int | None
    nans: int


class Preview(NamedTuple):
    """The rows of a numeric column that hold the smallest and the largest value of each zone of `ZONE_ROWS` rows."""

    steps: NDArray[numpy.int64]
    times_ns: NDArray[numpy.int64]
    values: NDArray[Any]


class AsStored(NamedTuple):
    """The steps and the values of a column as they stand on the disk. Where two are equal, head and bytes, their values are, bit by bit.

    Attributes:
        head: Kind, count, how they are encoded, sizes and checksums: what can be compared without reading them.
        read: Gives the bytes of the steps and of the values.
    """

    head: tuple[Any, ...]
    read: Callable[[], tuple[bytes, bytes]]


# ---- writing


def pack(groups: Sequence[Group]) -> Packed:
    """The payload of a block.

    Raises:
        ValueError: The groups are more than one block may hold.
    """
    if sum(group.columns for group in groups) > COLUMNS_MAX:
        raise ValueError(f"{sum(group.columns for group in groups)} columns, a block has at most {COLUMNS_MAX}")
    if sum(len(group) * (ROW_BYTES + 8 * len(group.values)) for group in groups) > COLUMNS_RAW_BYTES_MAX:
        raise ValueError(f"more than {COLUMNS_RAW_BYTES_MAX} raw bytes in a block of columns")
    writer = _Writer()
    directory = [writer.group(group) for group in groups]
    items = sum(plan[2] for *_, columns in directory for _, kind, plan, *_ in columns if kind in _ITEMS)
    if items > BLOCK_STORED_BYTES_MAX:
        raise ValueError(f"texts and packed values of {items} bytes, a block has at most {BLOCK_STORED_BYTES_MAX}")
    codec, stored = compression.compress(raw := encode_map({"groups": directory}))
    if len(raw) > DIRECTORY_BYTES_MAX:
        raise ValueError(f"the names in a block of columns take {len(raw)} bytes, at most {DIRECTORY_BYTES_MAX}")
    head = COLUMNS_HEAD.pack(COLUMNS_VERSION, codec, 0, len(stored), len(raw), zlib.crc32(stored))
    keys: dict[str, int] = {}
    for group in groups:
        for key in group.values:
            keys[key] = keys.get(key, 0) + len(group)
    return Packed(
        [head, stored, *writer.parts],
        sum(map(len, groups)),
        min((int(group.step.min()) for group in groups), default=0),
        max((int(group.step.max()) for group in groups), default=0),
        keys,
    )


class _Writer:
    """Collects the bytes of columns, end to end."""

    def __init__(self) -> None:
        self.parts: list[Buffer] = []
        self._size = 0

    def _add(self, parts: Sequence[Buffer]) -> list[int]:
        """[offset behind the directory, size, CRC] of some bytes."""
        start, crc = self._size, 0
        for part in parts:
            crc = zlib.crc32(part, crc)
            self._size += len(part)
        self.parts += parts
        return [start, self._size - start, crc]

    def group(self, group: Group) -> list[Any]:
        system = [self._column(None, array, kind) for (_, kind), array in zip(_SYSTEM, _system_of(group))]
        columns = [self._column(key, column) for key, column in group.values.items()]
        # Behind all columns, so that those that are read together lie together.
        for key, entry in zip(group.values, columns):
            entry.append(self._preview(group, group.values[key]))
        return [len(group), int(group.step.min()), int(group.step.max()), system, columns]

    def _column(self, name: str | None, column: Any, kind: str | None = None) -> list[Any]:
        kind = kind or _kind_of(column)
        plan, parts = _pack_values(kind, column)
        place = self._add(parts)
        return [name, kind, plan, *place, _statistics_of(column) if name is not None else None]

    def _preview(self, group: Group, column: Any) -> list[Any] | None:
        if type(column) is list or column.dtype.kind not in "fiu" or len(column) < 2 * ZONE_ROWS:
            return None
        picked = _extremes(column)
        if not len(picked):
            return None
        plans, parts = [], list[Buffer]()
        for array in (group.step[picked], group.time_us[picked], column[picked]):
            plan, packed = _pack_values(_kind_of(array), array)
            plans.append(plan)
            parts += packed
        return [len(picked), plans, *self._add(parts)]


def _system_of(group: Group) -> tuple[Any, ...]:
    import numpy

    return group.sequence, group.step, group.time_us, group.flags.astype(numpy.int64)


def _kind_of(column: Any) -> str:
    if type(column) is not list:
        return _KINDS[column.dtype.kind]
    first = column[0]
    return NULL if first is None else STR if type(first) is str else PACKED


def _pack_values(kind: str, column: Any) -> tuple[Plan, list[Buffer]]:
    if kind == FLOAT:
        return pack_floats(column)
    if kind in (INT, UINT):
        return pack_integers(column)
    if kind == BOOL:
        return pack_booleans(column)
    if kind == NULL:
        return [], []
    return pack_items([text.encode("utf-8", "surrogatepass") for text in column] if kind == STR else column)


def _statistics_of(column: Any) -> list[Any] | None:
    import numpy

    if type(column) is list or column.dtype.kind not in "fiu":
        return None
    nans = int(numpy.isnan(column).sum()) if column.dtype.kind == "f" else 0
    if nans == len(column):
        return [None, None, nans]
    low, high = (numpy.nanmin(column), numpy.nanmax(column)) if nans else (column.min(), column.max())
    return [low.item(), high.item(), nans]


def _extremes(column: NDArray[Any]) -> NDArray[numpy.int64]:
    """The places of the smallest and the largest value of each zone, rising."""
    import numpy

    zones = -(-len(column) // ZONE_ROWS)
    if column.dtype.kind == "f":
        filled = numpy.full(zones * ZONE_ROWS, numpy.nan, column.dtype)
        filled[: len(column)] = column
        zoned = filled.reshape(zones, ZONE_ROWS)
        low = numpy.where(numpy.isnan(zoned), numpy.inf, zoned).argmin(axis=1)
        high = numpy.where(numpy.isnan(zoned), -numpy.inf, zoned).argmax(axis=1)
    else:
        zoned = numpy.pad(column, (0, zones * ZONE_ROWS - len(column)), mode="edge").reshape(zones, ZONE_ROWS)
        low, high = zoned.argmin(axis=1), zoned.argmax(axis=1)
    starts = numpy.arange(zones, dtype=numpy.int64) * ZONE_ROWS
    picked = distinct(numpy.minimum(numpy.concatenate([starts + low, starts + high]), len(column) - 1))
    return picked[~numpy.isnan(column[picked])] if column.dtype.kind == "f" else picked


# ---- reading


class Columns:
    """An opened COLUMNS block.

    Attributes:
        groups: What it holds.
    """

    def __init__(self, read: Callable[[int, int], bytes], stored_size: int) -> None:
        """Reads the directory.

        Args:
            read: Gives bytes of the payload by offset and size.
            stored_size: Bytes of the payload.

        Raises:
            DamageError: It is not a directory, or one that cannot be true.
        """
        first = read(0, min(_FIRST_BYTES, stored_size))
        if len(first) < COLUMNS_HEAD.size:
            raise DamageError(f"columns of {len(first)} bytes, the head alone has {COLUMNS_HEAD.size}")
        version, codec, _, size, raw_size, crc = COLUMNS_HEAD.unpack_from(first)
        if version != COLUMNS_VERSION:
            raise DamageError(f"columns of version {version}, expected {COLUMNS_VERSION}: a newer version wrote them")
        body = COLUMNS_HEAD.size + size
        if body > stored_size or raw_size > DIRECTORY_BYTES_MAX:
            raise DamageError(f"a directory of {size} bytes ({raw_size} raw) in columns of {stored_size}")
        stored = first[COLUMNS_HEAD.size : body] if body <= len(first) else read(COLUMNS_HEAD.size, size)
        if len(stored) != size or zlib.crc32(stored) != crc:
            raise DamageError(f"the directory of columns has crc {zlib.crc32(stored):#010x}, expected {crc:#010x}")
        bytes_at = functools.partial(_bytes_at, read, first, body, stored_size - body)
        try:
            entries = decode_map(compression.decompress(codec, stored, raw_size))["groups"]
            self.groups = [StoredGroup(bytes_at, *entry) for entry in entries]
        except DamageError:
            raise
        except Exception as error:  # Why so broad: a directory made to confuse the decoder.
            raise DamageError(f"the directory of columns cannot be understood: {error}") from error
        columns = sum(group.columns for group in self.groups)
        raw = sum(len(group) * (ROW_BYTES + 8 * len(group.keys)) for group in self.groups)
        items = sum(group.items_bytes for group in self.groups)
        if columns > COLUMNS_MAX or raw > COLUMNS_RAW_BYTES_MAX or items > BLOCK_STORED_BYTES_MAX:
            raise DamageError(f"{columns} columns of {raw} raw bytes and values of {items}, more than a block may hold")


def _bytes_at(read: Callable[[int, int], bytes], first: bytes, body: int, size_max: int, place: Sequence[Any]) -> bytes:
    """The bytes of a column.

    Raises:
        DamageError: They are not what was written.
    """
    offset, size, crc = place
    if type(offset) is not int or type(size) is not int or not 0 <= offset <= offset + size <= size_max:
        raise DamageError(f"a column at {offset!r} of {size!r} bytes, the columns have {size_max}")
    start = body + offset
    stored = first[start : start + size] if start + size <= len(first) else read(start, size)
    if len(stored) != size or zlib.crc32(stored) != crc:
        raise DamageError(f"a column has crc {zlib.crc32(stored):#010x}, expected {crc!r}")
    return stored


class _Stored:
    """A column's entry in the directory."""

    __slots__ = ("kind", "place", "plan", "preview", "statistics")

    def __init__(self, kind: str, plan: Any, place: list[Any], statistics: Any = None, preview: Any = None) -> None:
        if kind not in (FLOAT, INT, UINT, BOOL, STR, NULL, PACKED):
            raise DamageError(f"a column of type {kind!r}: a newer version wrote it")
        self.kind, self.plan, self.place, self.statistics, self.preview = kind, plan, place, statistics, preview


class StoredGroup:
    """Rows of one group in a COLUMNS block; as `sdk.shapes.Group`, but each column is read when it is asked for, and kept.

    Everything that reads may raise DamageError.

    Attributes:
        step_min, step_max: The lowest and the highest step, as the directory says.
    """

    __slots__ = ("_bytes_at", "_columns", "_kept", "_rows", "_system", "step_max", "step_min")

    def __init__(
        self, bytes_at: Callable[[Sequence[Any]], bytes], rows: int, low: int, high: int, system: Any, columns: Any
    ) -> None:
        if type(rows) is not int or rows < 1 or type(low) is not int or type(high) is not int:
            raise DamageError(f"a group of {rows!r} rows with steps {low!r}-{high!r}")
        if not 0 <= low <= high <= STEP_MAX or rows * ROW_BYTES > COLUMNS_RAW_BYTES_MAX or len(system) != len(_SYSTEM):
            raise DamageError(f"a group of {rows} rows with steps {low}-{high}")
        self._rows, self.step_min, self.step_max = rows, low, high
        self._bytes_at = bytes_at
        self._system = {name: _Stored(kind, e[2], e[3:6]) for (name, kind), e in zip(_SYSTEM, system)}
        self._columns = {str(e[0]): _Stored(e[1], e[2], e[3:6], e[6], e[7]) for e in columns}
        if len(self._columns) != len(columns):
            raise DamageError("a group with two columns of one name")
        self._kept: dict[tuple[bool, str], Any] = {}

    def __len__(self) -> int:
        return self._rows

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._columns)

    @property
    def columns(self) -> int:
        """How many it has, its own four included."""
        return len(self._system) + len(self._columns)

    @property
    def items_bytes(self) -> int:
        """Bytes of all its texts and packed values, from the directory."""
        return sum(total_bytes(column.plan) for column in self._columns.values() if column.kind in _ITEMS)

    @property
    def has_sequences(self) -> bool:
        """Whether they were read."""
        return (True, "sequence") in self._kept

    def sequences(self) -> NDArray[numpy.uint64]:
        """uint64[n], rising."""
        return self._get(True, "sequence")

    def read_into(
        self, key: str, steps: NDArray[numpy.int64], times_us: NDArray[numpy.int64], values: NDArray[Any]
    ) -> None:
        """Steps, times and the values of a numeric column into arrays of the right types and n elements; nothing is kept.

        Why: a long series comes of many blocks, and new memory for each takes as long as decoding it.
        """
        column = self._columns[key]
        system = self._system
        n = self._rows
        self._decoded(
            "step", system["step"], lambda source: unpack_integers(system["step"].plan, source, n, steps.dtype, steps)
        )
        self._check_steps(steps)
        self._decoded(
            "time",
            system["time"],
            lambda source: unpack_integers(system["time"].plan, source, n, times_us.dtype, times_us),
        )
        if column.kind == FLOAT:
            self._decoded(key, column, lambda source: unpack_floats(column.plan, source, n, values))
        else:
            self._decoded(key, column, lambda source: unpack_integers(column.plan, source, n, values.dtype, values))

    def steps(self) -> NDArray[numpy.int64]:
        """int64[n]."""
        found = self._get(True, "step")
        self._check_steps(found)
        return found

    def _check_steps(self, found: NDArray[numpy.int64]) -> None:
        if int(found.min()) < self.step_min or int(found.max()) > self.step_max:
            raise DamageError(f"steps {found.min()}-{found.max()}, the directory says {self.step_min}-{self.step_max}")

    def times_us(self) -> NDArray[numpy.int64]:
        """int64[n]."""
        return self._get(True, "time")

    def times_ns(self) -> NDArray[numpy.int64]:
        """int64[n], whole microseconds."""
        return self.times_us() * 1000

    def flags(self) -> NDArray[numpy.uint8]:
        import numpy

        return self._get(True, "flags").astype(numpy.uint8)

    def values(self, key: str) -> Any:
        """float64, int64, uint64 or bool [n]; a list of str or None; packed values as `sdk.record.decode_map` gives them."""
        return self._get(False, key)

    def drop(self, key: str) -> None:
        """Takes a column out of what the group holds: it was found bad, and the others are to be used."""
        del self._columns[key]

    def packed(self, key: str) -> list[bytes]:
        """The msgpack of each value of a packed column."""
        column = self._columns[key]
        found: list[bytes] = self._decoded(key, column, lambda source: unpack_items(column.plan, source, self._rows))
        return found

    def as_stored(self, key: str) -> AsStored:
        """A column with its steps, as they stand on the disk."""
        step, column = self._system["step"], self._columns[key]
        head = (column.kind, self._rows, step.plan, step.place[1:], column.plan, column.place[1:])
        return AsStored(head, lambda: (self._bytes_at(step.place), self._bytes_at(column.place)))

    def kind(self, key: str) -> str:
        """The physical type of a column: FLOAT, INT, UINT, BOOL, STR, NULL or PACKED."""
        return self._columns[key].kind

    def statistics(self, key: str) -> Statistics | None:
        """Of a numeric column, from the directory; None of others."""
        told = self._columns[key].statistics
        if self._columns[key].kind not in (FLOAT, INT, UINT) or type(told) is not list or len(told) != 3:
            return None
        if not {type(told[0]), type(told[1])} <= {int, float, type(None)} or type(told[2]) is not int:
            raise DamageError(f"statistics {told!r} of column {key!r}")
        return Statistics(*told)

    def preview(self, key: str) -> Preview | None:
        """The extremes of a long numeric column without the column; None of others."""
        column = self._columns[key]
        if column.preview is None:
            return None
        import numpy

        try:
            rows, plans, *place = column.preview
            if type(rows) is not int or not 0 < rows <= self._rows:
                raise DamageError(f"a preview of {rows!r} of {self._rows} rows")
            source = Source(self._bytes_at(place))
            step, time = (unpack_integers(plan, source, rows, numpy.int64) for plan in plans[:2])
            return Preview(step, time * 1000, _unpack_values(column.kind, plans[2], source, rows))
        except Error:
            raise
        except Exception as error:
            raise DamageError(f"the preview of {key!r} cannot be decoded: {error}") from error

    def _get(self, is_system: bool, name: str) -> Any:
        found = self._kept.get((is_system, name))
        if found is None:
            column = self._system[name] if is_system else self._columns[name]
            found = self._decoded(
                name, column, lambda source: _unpack_values(column.kind, column.plan, source, self._rows)
            )
            self._kept[is_system, name] = found
        return found

    def _decoded(self, name: str, column: _Stored, decode: Callable[[Source], Any]) -> Any:
        try:
            return decode(Source(self._bytes_at(column.place)))
        except DamageError as error:
            raise DamageError(f"column {name!r}: {error.message}") from error
        except Error:  # what reading says, and is no damage
            raise
        except Exception as error:  # Why so broad: bytes made to confuse the decoder, whose checksum is right.
            raise DamageError(f"column {name!r} cannot be decoded: {error}") from error


def _unpack_values(kind: str, plan: Any, source: Source, count: int) -> Any:
    import numpy

    if kind == FLOAT:
        return unpack_floats(plan, source, count)
    if kind in (INT, UINT):
        return unpack_integers(plan, source, count, numpy.int64 if kind == INT else numpy.uint64)
    if kind == BOOL:
        return unpack_booleans(plan, source, count)
    if kind == NULL:
        return [None] * count
    items = unpack_items(plan, source, count)
    if kind == STR:
        # Each text once: a dictionary of one long entry that all rows point at would fill the memory.
        texts = {item: item.decode("utf-8", "surrogatepass") for item in dict.fromkeys(items)}
        return [texts[item] for item in items]
    return [decode_map(b"\x81\xa1v" + item)["v"] for item in items]


__all__ = ["AsStored", "Columns", "Group", "Packed", "Preview", "Statistics", "StoredGroup", "pack"]
