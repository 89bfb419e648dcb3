"""The `.wandb` files that W&B's package writes beside every run: read without that package.

A file begins with seven bytes: ``:W&B``, the u16 0xBEE1, the version 0. What follows is LevelDB's log: blocks of 32 KiB, counted from
the file's first byte, of chunks: u32 CRC-32 of the type and the data, u16 length, u8 type (1 a whole record, 2 its first part, 3 one in
the middle, 4 its last), data; what is left of a block and shorter than a chunk's head is filled up. All numbers are little-endian. A
record is a `wandb_internal.Record` of https://github.com/wandb/wandb/blob/main/wandb/proto/wandb_internal.proto, of which only what a
run is made of is looked at here. Values are JSON, as Python writes it: with NaN and Infinity. Newer versions may write plain ones as
fields of their own instead.

Nothing that is read is believed: what makes no sense is left out and counted, and reading goes on at the next block.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from struct import Struct
from typing import Any, NamedTuple, Protocol

from daemon.formats import protobuf

MAGIC = b":W&B\xe1\xbe\x00"
BLOCK_BYTES = 32 << 10
_HEAD = Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_CRC_OF_TYPE = {kind: zlib.crc32(bytes([kind])) for kind in (_WHOLE, _FIRST, _MIDDLE, _LAST)}
# Limit: W&B's server takes lines of 10 MiB; a record of this size is damage that looks like one. JSON of empty lists takes some
# fifty times its size as objects and rows, so that a record is at most about 800 MB of memory.
RECORD_BYTES_MAX = 16 << 20
# Limit: of one message; a field of two bytes takes 300 as an object.
_FIELDS_MAX = 1 << 18
# Limit: places of damage that are kept, of which all are counted: a file may be nothing else.
_DAMAGE_MAX = 1000
# Limit: an int of more digits is no number that a program logs, and takes a time with their square to read.
_DIGITS_MAX = 400
# Limit: of a value's names ("a.b.c"); what W&B writes nests as deep as the user's dicts.
_PATH_MAX = 64
# Two lengths of one byte each, and their fields.
_PLAIN_BYTES_MAX = 2 * 127 + 5

# The fields of a `Record`.
_HISTORY, _SUMMARY, _OUTPUT, _CONFIG, _FILES, _STATS, _ARTIFACT, _ALERT, _METRIC, _OUTPUT_RAW = (
    2, 3, 4, 5, 6, 7, 8, 10, 12, 13,
)  # fmt: skip
_RUN, _EXIT, _USE_ARTIFACT, _ENVIRONMENT, _OUTPUT_LOGGER = 17, 18, 25, 26, 27
_NEVER_DATA = frozenset({1, 16, 19, 200})  # number, control, uuid, info
# What says nothing of the run: telemetry, the file's own head and end, requests of the package to itself.
_SILENT = frozenset({11, 20, 21, 22, 24, 100})
# Artifacts that the package makes by itself: of every table, of rows, of the code that ran. The user logged none.
_OWN_ARTIFACTS = frozenset({"run_table", "wandb-history", "job"})
_NAMES = {9: "tbrecord", 23: "preempting", _ARTIFACT: "artifact", _USE_ARTIFACT: "use_artifact"}


class Source(Protocol):
    """A file, as far as it is there."""

    def read(self, offset: int, size: int) -> bytes: ...


class Run(NamedTuple):
    """What the run was made with. Empty texts were not given."""

    id: str = ""
    entity: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    notes: str = ""
    tags: tuple[str, ...] = ()
    host: str = ""
    started_ns: int = 0
    config: Changes = ((), ())


class History(NamedTuple):
    """A row. Keys of nested maps are the names around them and their own."""

    step: int | None
    values: tuple[tuple[tuple[str, ...], Any], ...]


class Summary(NamedTuple):
    changes: Changes


class Config(NamedTuple):
    changes: Changes


class Output(NamedTuple):
    """What was printed: a piece of text, not always a line. `time_ns` is 0 where it was not noted."""

    stream: str
    time_ns: int
    text: str


class Logged(NamedTuple):
    """A line that went through W&B's logger of the run."""

    text: str


class Stats(NamedTuple):
    """A sample of the system's metrics."""

    time_ns: int
    values: tuple[tuple[tuple[str, ...], Any], ...]


class Metric(NamedTuple):
    """What `define_metric` said. `summary` holds names of aggregates: "min", "max", "mean", "last", "best", "first", "none"."""

    name: str
    is_glob: bool
    step_metric: str
    step_sync: bool
    hidden: bool
    summary: frozenset[str]
    goal: str


class Exit(NamedTuple):
    code: int
    runtime_seconds: int


class Saved(NamedTuple):
    """Names of files that lie in the run's directory `files`."""

    paths: tuple[str, ...]


class Alert(NamedTuple):
    title: str
    text: str
    level: str


class Environment(NamedTuple):
    """Where it ran, name to text or number: "os", "python", "program", "host", …; "args" is a list."""

    facts: dict[str, Any]


class Unknown(NamedTuple):
    """A record of which nothing is taken over: what the proto calls it, or its field number."""

    name: str


Changes = tuple[tuple[tuple[tuple[str, ...], Any], ...], tuple[tuple[str, ...], ...]]
Record = (
    Run | History | Summary | Config | Output | Logged | Stats | Metric | Exit | Saved | Alert | Environment | Unknown
)


class Damage(NamedTuple):
    """Bytes that were left out: where they begin, how many, and why."""

    offset: int
    size: int
    reason: str


class Log:
    """The records of one file, in order, at most a block and a record in memory.

    Attributes:
        damage: What was left out, as far as it was read: the first 1000 places.
        damage_count: How many places there are.
        is_torn: The file ends inside a record: it is still written, or its writer was killed.
        end: The offset behind the last whole record.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._damage = _Damages()
        self.is_torn = False
        self.end = 0

    @property
    def damage(self) -> list[Damage]:
        return self._damage.kept

    @property
    def damage_count(self) -> int:
        return self._damage.count

    def records(self) -> Iterator[Record]:
        """What it holds.

        Raises:
            ValueError: It is no such file.
        """
        for offset, data in self.frames():
            try:
                found = decode(data)
            except (ValueError, RecursionError) as error:
                self._damage.add(Damage(offset, len(data), f"a record that cannot be decoded: {error}"))
                continue
            if found is not None:
                yield found

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of each whole record; offset is that of its first chunk.

        Raises:
            ValueError: It is no such file.
        """
        begin = self._source.read(0, len(MAGIC))
        if begin != MAGIC:
            if MAGIC.startswith(begin):
                self.is_torn = True  # a run that has only just begun
                return
            raise ValueError(f"it begins with {begin!r}, expected {MAGIC!r}")
        at, self.end = len(MAGIC), len(MAGIC)
        parts = _Parts(self._damage)
        while True:
            block = self._source.read(at, BLOCK_BYTES - at % BLOCK_BYTES)
            is_last = len(block) < BLOCK_BYTES - at % BLOCK_BYTES
            place = 0
            while len(block) - place >= _HEAD.size:
                crc, length, kind = _HEAD.unpack_from(block, place)
                data = block[place + _HEAD.size : place + _HEAD.size + length]
                if is_last and len(data) < length and kind in _CRC_OF_TYPE:
                    break  # what is missing may still be written
                if not crc and not length and not kind:
                    place = len(block)  # room that was never filled
                    break
                reason = _fault(crc, length, kind, data)
                if reason is not None:
                    parts.give_up(at + place, len(block) - place, reason)
                    place = len(block)
                    break
                whole = parts.add(at + place, kind, data)
                place += _HEAD.size + length
                if whole is not None:
                    self.end = at + place
                    yield whole
            if is_last:
                self.is_torn = bool(parts) or any(block[place:])
                return
            at += len(block)


class _Damages:
    """What was left out: the first places, and how many there are."""

    def __init__(self) -> None:
        self.kept: list[Damage] = []
        self.count = 0
        self._end = -1

    def add(self, damage: Damage) -> None:
        """Notes one. What follows other damage is part of that."""
        if damage.offset == self._end and damage.size:
            if self.count == len(self.kept):
                last = self.kept[-1]
                self.kept[-1] = last._replace(size=damage.offset + damage.size - last.offset)
        else:
            self.count += 1
            if len(self.kept) < _DAMAGE_MAX:
                self.kept.append(damage)
        self._end = damage.offset + damage.size


class _Parts:
    """The parts of a record that has begun."""

    def __init__(self, damage: _Damages) -> None:
        self._damage = damage
        self._parts: list[bytes] = []
        self._started = self._size = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, offset: int, kind: int, data: bytes) -> tuple[int, bytes] | None:
        """A chunk; (offset, bytes) of the record that it ends."""
        if kind in (_MIDDLE, _LAST):
            if not self._parts:
                # Its beginning was left out, and so is the rest.
                self.give_up(offset, _HEAD.size + len(data), "the beginning of a record is missing")
                return None
        elif self._parts:
            self.give_up(offset, 0, "the rest of a record is missing")
        if self._size + len(data) > RECORD_BYTES_MAX:
            self.give_up(offset, _HEAD.size + len(data), f"a record of more than {RECORD_BYTES_MAX} bytes")
            return None
        if not self._parts:
            self._started = offset
        self._parts.append(data)
        self._size += len(data)
        if kind not in (_WHOLE, _LAST):
            return None
        found = self._started, b"".join(self._parts)
        self._parts, self._size = [], 0
        return found

    def give_up(self, offset: int, size: int, reason: str) -> None:
        """Notes bytes that are left out, with the parts before them."""
        begun = self._started if self._parts else offset
        self._damage.add(Damage(begun, offset + size - begun, reason))
        self._parts, self._size = [], 0


def _fault(crc: int, length: int, kind: int, data: bytes) -> str | None:
    """What is wrong with a chunk by itself; None: nothing."""
    if kind not in _CRC_OF_TYPE:
        return f"a chunk of type {kind}, expected 1 to 4"
    if len(data) < length:
        return f"a chunk of {length} bytes reaches beyond its block"
    found = zlib.crc32(data, _CRC_OF_TYPE[kind])
    return None if found == crc else f"a chunk's crc is {found:#010x}, expected {crc:#010x}"


# -- one record ----------------------------------------------------------------------------------------------------------


def decode(data: bytes) -> Record | None:
    """One record; None where it says nothing of the run.

    Raises:
        ValueError: The bytes make no sense.
    """
    for number, wire, value in protobuf.fields(data):
        if number in _NEVER_DATA or wire != protobuf.BYTES:
            continue
        if number in _SILENT:
            return None
        assert isinstance(value, memoryview)
        reader = _READERS.get(number)
        return Unknown(_NAMES.get(number, f"field {number}")) if reader is None else reader(value)
    return None


class _Message:
    """The fields of a message by number: the last of each, or all."""

    def __init__(self, data: memoryview) -> None:
        self._fields: dict[int, list[tuple[int, protobuf.Value]]] = {}
        for count, (number, wire, value) in enumerate(protobuf.fields(data)):
            if count == _FIELDS_MAX:
                raise ValueError(f"a message of more than {_FIELDS_MAX} fields")
            self._fields.setdefault(number, []).append((wire, value))

    def messages(self, number: int) -> list[memoryview]:
        return [value for wire, value in self._fields.get(number, ()) if isinstance(value, memoryview)]

    def texts(self, number: int) -> tuple[str, ...]:
        return tuple(map(protobuf.read_text, self.messages(number)))

    def text(self, number: int) -> str:
        found = self.messages(number)
        return protobuf.read_text(found[-1]) if found else ""

    def integer(self, number: int, default: int = 0) -> int:
        found = [value for wire, value in self._fields.get(number, ()) if wire == protobuf.VARINT]
        return protobuf.signed(int(found[-1])) if found else default

    def has(self, number: int) -> bool:
        return number in self._fields

    def number(self, number: int) -> float:
        value = self._fields[number][-1][1]
        if isinstance(value, memoryview):
            raise ValueError(f"field {number} is bytes, expected a number")
        return float(value)


def _time_ns(found: list[memoryview]) -> int:
    """A `google.protobuf.Timestamp`."""
    if not found:
        return 0
    told = _Message(found[-1])
    return told.integer(1) * 10**9 + told.integer(2)


def _items(found: list[memoryview]) -> tuple[tuple[tuple[str, ...], Any], ...]:
    """Names and values of the items of a row, a config, a summary or a sample."""
    return tuple(_plain_item(bytes(one)) or _item(_Message(one)) for one in found)


def _plain_item(data: bytes) -> tuple[tuple[str, ...], Any] | None:
    """An item of one short name and a short JSON text, as nearly all are: at a third of the cost. None: it is another one."""
    if 5 <= len(data) < _PLAIN_BYTES_MAX and data[:1] in (b"\x0a", b"\x12") and data[1] < 0x80:
        end, size = 2 + data[1], len(data) - data[1] - 5
        if 0 <= size < 0x80 and data[end : end + 3] == b"\x82\x01%c" % size:
            return (data[2:end].decode("utf-8", "replace"),), _value(data[end + 3 :].decode("utf-8", "replace"))
    return None


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS_MAX:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


_value = json.JSONDecoder(parse_int=_integer).decode


def _item(item: _Message) -> tuple[tuple[str, ...], Any]:
    if item.has(16):
        value = _value(item.text(16))
    elif item.has(8):
        value = _value(item.text(8))
    elif item.has(4):
        value = bool(item.integer(4))
    elif item.has(5):
        # A sint64: zigzag, so that small negative numbers are short.
        coded = item.integer(5) & ((1 << 64) - 1)
        value = coded >> 1 ^ -(coded & 1)
    elif item.has(6):
        value = item.number(6)
    else:
        value = item.text(7) if item.has(7) else None
    return _path(item), value


def _path(item: _Message) -> tuple[str, ...]:
    names = item.texts(2) or (item.text(1),)
    if len(names) > _PATH_MAX:
        raise ValueError(f"a name of {len(names)} parts")
    return names


def _changes(message: _Message) -> Changes:
    return _items(message.messages(1)), tuple(_path(_Message(one)) for one in message.messages(2))


def _read_run(data: memoryview) -> Run:
    told = _Message(data)
    config = told.messages(4)
    return Run(
        told.text(1), told.text(2), told.text(3), told.text(6), told.text(7), told.text(8), told.text(9), told.texts(10),
        told.text(13), _time_ns(told.messages(17)), _changes(_Message(config[-1])) if config else ((), ()),
    )  # fmt: skip


def _read_history(data: memoryview) -> History:
    told = _Message(data)
    step = told.messages(2)
    return History(_Message(step[-1]).integer(1) if step else None, _items(told.messages(1)))


def _read_output(data: memoryview) -> Output:
    told = _Message(data)
    return Output("stdout" if told.integer(1) == 1 else "stderr", _time_ns(told.messages(2)), told.text(3))


def _read_stats(data: memoryview) -> Stats:
    told = _Message(data)
    return Stats(_time_ns(told.messages(2)), _items(told.messages(3)))


_AGGREGATES = {1: "min", 2: "max", 3: "mean", 4: "best", 5: "last", 6: "none", 7: "copy", 8: "first"}
_GOALS = {1: "minimize", 2: "maximize"}


def _read_metric(data: memoryview) -> Metric:
    told = _Message(data)
    name, glob = told.text(1), told.text(2)
    options = _Message(next(iter(told.messages(6)[-1:]), memoryview(b"")))
    summary = _Message(next(iter(told.messages(7)[-1:]), memoryview(b"")))
    asked = frozenset(word for number, word in _AGGREGATES.items() if summary.integer(number))
    return Metric(
        name or glob, not name, told.text(4), bool(options.integer(1)), bool(options.integer(2)), asked,
        _GOALS.get(told.integer(8), ""),
    )  # fmt: skip


def _read_exit(data: memoryview) -> Exit:
    told = _Message(data)
    return Exit(told.integer(1), told.integer(2))


def _read_saved(data: memoryview) -> Saved:
    return Saved(tuple(_Message(one).text(1) for one in _Message(data).messages(1)))


def _read_alert(data: memoryview) -> Alert:
    told = _Message(data)
    return Alert(told.text(1), told.text(2), told.text(3))


def _read_artifact(data: memoryview) -> Unknown | None:
    return None if _Message(data).text(4) in _OWN_ARTIFACTS else Unknown(_NAMES[_ARTIFACT])


_FACTS = {
    1: "os", 2: "python", 4: "docker", 6: "program", 7: "code_path", 11: "root", 12: "host", 13: "username",
    14: "executable", 18: "gpu", 25: "cuda_version",
}  # fmt: skip
_COUNTS = {16: "cpu_count", 17: "cpu_count_logical", 19: "gpu_count"}


def _read_environment(data: memoryview) -> Environment:
    told = _Message(data)
    facts: dict[str, Any] = {name: told.text(number) for number, name in _FACTS.items() if told.has(number)}
    facts.update({name: told.integer(number) for number, name in _COUNTS.items() if told.has(number)})
    if told.has(5):
        facts["args"] = list(told.texts(5))
    for one in told.messages(9):
        git = _Message(one)
        facts["git"] = {"remote": git.text(1), "commit": git.text(2)}
    return Environment(facts)


_READERS: dict[int, Any] = {
    _HISTORY: _read_history,
    _SUMMARY: lambda data: Summary(_changes(_Message(data))),
    _OUTPUT: _read_output,
    _OUTPUT_RAW: _read_output,
    _CONFIG: lambda data: Config(_changes(_Message(data))),
    _FILES: _read_saved,
    _STATS: _read_stats,
    _ARTIFACT: _read_artifact,
    _ALERT: _read_alert,
    _METRIC: _read_metric,
    _RUN: _read_run,
    _EXIT: _read_exit,
    _ENVIRONMENT: _read_environment,
    _OUTPUT_LOGGER: lambda data: Logged(_Message(data).text(1)),
}
