"""What is known about a run and its streams, folded from META and GAP records.

META records are the only home of facts: `run.json` is a cache that the reader never opens. Records are de-duplicated by
(stream, sequence), because the same ones may lie in a spool, a drain and a daemon's segment.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from ..editing import KIND as EDIT
from ..errors import DamageError
from ..files import Buffer
from ..ids import hex_u64
from ..record import HEADER, HEADER_SIZE, KIND_GAP, KIND_META
from ..segment import format as segment
from ..segment.format import Block, Claim
from ..segment.naming import SegmentName
from .entries import Source
from .gaps import Gap, Loss, missing
from .parts import decoded
from .scan import Scan

# What a GAP map that tells of a lost blob is called (docs/segment.md#gap).
_BLOB_EPISODE = re.compile(r"blob ([0-9]{1,19})\b", re.ASCII)
_LENGTH_AND_KIND = struct.Struct("<IB")


class StreamFacts:
    """One stream: what it said about itself, how it ended and by what error, which rows of earlier attempts it hides."""

    __slots__ = ("about", "end", "error", "hide_from", "id")

    def __init__(self, stream: int) -> None:
        self.id = stream
        self.about: dict[str, Any] = {}
        self.end: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.hide_from: int | None = None

    def text(self, name: str) -> str | None:
        value = self.about.get(name)
        return value if isinstance(value, str) else None

    def number(self, name: str) -> int | None:
        value = self.about.get(name)
        return value if type(value) is int else None

    def link(self, name: str) -> int | None:
        """The stream id that `parent` or `continues` names."""
        try:
            return int(self.text(name) or "", 16)
        except ValueError:
            return None

    @property
    def hex(self) -> str:
        return hex_u64(self.id)

    @property
    def kind(self) -> str:
        return self.text("kind") or "main"

    @property
    def started(self) -> float:
        return (self.number("started_ns") or 0) / 1e9

    @property
    def attempt(self) -> int:
        return self.number("attempt") or 1


class Facts:
    """Everything that META and GAP say, brought up to date by `update`.

    Attributes:
        streams: Stream id to `StreamFacts`.
        run, config, summary, metrics, misuse, context, artifacts, files, alerts: The folded maps; see `docs/segment.md#meta`.
        removed: Summary keys that the user deleted.
        run_id: The id that the segments' first blocks give, or None.
        created: When the oldest segment was made, Unix seconds.
        claims: What CHECKPOINT blocks say is stored.
        replaced: Segments whose blocks were rewritten into others.
    """

    def __init__(self) -> None:
        self.streams: dict[int, StreamFacts] = {}
        self.run: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.misuse: dict[str, Any] = {}
        self.context: dict[str, Any] = {}
        self.artifacts: dict[str, Any] = {}
        self.files: dict[str, Any] = {}
        self.alerts: dict[str, Any] = {}
        self.removed: set[str] = set()
        self.run_id: str | None = None
        self.created = 0.0
        self.claims: list[Claim] = []
        self.replaced: set[SegmentName] = set()
        self._records: dict[int, dict[int, tuple[int, dict[str, Any]]]] = {}
        self._episodes: dict[tuple[int, Any], dict[str, Any]] = {}
        self._seen: set[tuple[str, int]] = set()
        # By segment how many of its blocks were looked at, and the last one of them.
        self._looked_at: dict[str, tuple[int, Block | None]] = {}
        self._is_folded = True

    def update(self, scan: Scan) -> None:
        """Reads the blocks that came since the last call."""
        before, self._looked_at = self._looked_at, {}
        for source in scan.all_sources():
            for block in _new_blocks(source, before):
                self._is_folded = False
                if block.kind in (segment.KIND_ROWS, segment.KIND_COLUMNS):
                    self.streams.setdefault(block.stream, StreamFacts(block.stream))
                if (source.name, block.offset) in self._seen or not _has_facts(block):
                    continue
                try:
                    self._read(scan, source, block)
                except DamageError as error:
                    scan.note(source, block, error.message)
                self._seen.add((source.name, block.offset))
            self._looked_at[source.name] = (len(source.blocks), source.blocks[-1] if source.blocks else None)
        if not self._is_folded:
            self._fold()
            self._is_folded = True

    def _read(self, scan: Scan, source: Source, block: Block) -> None:
        payload = scan.payload(source, block)
        if block.kind == segment.KIND_GAP:
            self._note_gap(block.stream, decoded(payload))
        elif block.kind == segment.KIND_META:
            self._note_writer(scan, source, block, decoded(payload))
        elif block.kind == segment.KIND_CHECKPOINT:
            self.claims += _claims(decoded(payload))
        else:
            for kind, sequence, time_ns, packed in _fact_records(payload):
                values = decoded(packed)
                if kind == KIND_GAP:
                    self._note_gap(block.stream, values)
                else:
                    self._records.setdefault(block.stream, {})[sequence] = (time_ns, values)

    def _note_gap(self, stream: int, values: dict[str, Any]) -> None:
        episode = values.get("episode")
        key = (stream, episode if isinstance(episode, (int, str)) else str(episode))
        old = self._episodes.get(key)
        if old is None or _integer(values, "count") > _integer(old, "count"):
            self._episodes[key] = values

    def _note_writer(self, scan: Scan, source: Source, block: Block, values: dict[str, Any]) -> None:
        if isinstance(values.get("run"), str) and self.run_id is None:
            self.run_id = values["run"]
        if "damage" in values:
            scan.note(source, block, f"noted by its writer: {values['damage']}")
        for entry in replaced if isinstance(replaced := values.get("replaces"), list) else ():
            with contextlib.suppress(ValueError, TypeError):
                writer, number = entry
                self.replaced.add(SegmentName(int(writer, 16), int(number)))
        if source.reader is not None and source.reader.header.created_ns > 0:
            created = source.reader.header.created_ns / 1e9
            self.created = min(self.created or created, created)

    def _fold(self) -> None:
        """Folds all records again: they are few, and a late one (a spool that appears) may belong before others."""
        for stream in self._records:
            facts = self.streams.setdefault(stream, StreamFacts(stream))
            facts.about, facts.end, facts.error, facts.hide_from = {}, None, None, None
        self.run, self.config, self.summary, self.metrics, self.misuse, self.removed = {}, {}, {}, {}, {}, set()
        self.context, self.artifacts, self.files, self.alerts = {}, {}, {}, {}
        for stream, values in self._in_order():
            facts = self.streams[stream]
            facts.about.update(_map(values, "stream"))
            facts.end = _map(values, "end") or facts.end
            facts.error = _map(values, "error") or facts.error
            hide = _map(values, "hide").get("from_step")
            if type(hide) is int:
                facts.hide_from = hide if facts.hide_from is None else min(hide, facts.hide_from)
            self.run.update(_map(values, "run"))
            self.config.update(_map(values, "config"))
            self.metrics.update(_map(values, "metric"))
            self.misuse.update(_map(values, "misuse"))
            self.context.update(_map(values, "context"))
            self.artifacts.update(_map(values, "artifact"))
            self.files.update(_map(values, "file"))
            self.alerts.update(_map(values, "alert"))
            self._fold_summary(values)

    def _fold_summary(self, values: dict[str, Any]) -> None:
        removed = values.get("summary_removed")
        for key in removed if isinstance(removed, list) else ():
            if isinstance(key, str):
                self.summary.pop(key, None)
                self.removed.add(key)
        added = _map(values, "summary")
        self.summary.update(added)
        self.removed.difference_update(added)

    def _in_order(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The records by sequence within a stream and by time between streams (clocks that jump back stand still)."""
        found = []
        for stream, records in self._records.items():
            latest = 0
            for sequence in sorted(records):
                time_ns, values = records[sequence]
                latest = max(latest, time_ns)
                found.append((latest, stream, sequence, values))
        found.sort(key=lambda item: item[:3])
        for _, stream, _, values in found:
            yield stream, values

    @property
    def latest_ns(self) -> int:
        """The time of the latest record, 0 without any: what is said later must say a later one (`sdk.editing`)."""
        return max((time_ns for records in self._records.values() for time_ns, _ in records.values()), default=0)

    def edits(self) -> list[dict[str, Any]]:
        """What was said from outside (`sdk.editing`), in order, without who said it."""
        said = ((self.streams[stream].kind, values) for stream, values in self._in_order())
        return [
            {name: told for name, told in values.items() if name not in ("stream", "end")}
            for kind, values in said
            if kind == EDIT
        ]

    def refused(self) -> list[Gap]:
        """What GAP maps say was refused."""
        return [_told(stream, values) for (stream, _), values in self._episodes.items() if _sequences(values) is None]

    @property
    def lost_blobs(self) -> dict[tuple[int, int], str]:
        """(stream, number) of the blobs that GAP maps tell of, and why they are not there."""
        found = {}
        for (stream, episode), values in self._episodes.items():
            match = _BLOB_EPISODE.match(episode) if isinstance(episode, str) else None
            if match is not None:
                found[stream, int(match[1])] = _told(stream, values).reason
        return found

    def missing(self, scan: Scan) -> list[Gap]:
        """What is known to have been accepted and that no readable block holds."""
        losses: dict[int, list[Loss]] = {}
        for (stream, _), values in self._episodes.items():
            sequences = _sequences(values)
            if sequences is not None:
                losses.setdefault(stream, []).append(Loss(*sequences, _told(stream, values)))
        return missing(scan, self.claims, losses)


def _told(stream: int, values: dict[str, Any]) -> Gap:
    return Gap(
        hex_u64(stream),
        _integer(values, "count"),
        _integer(values, "step_min"),
        _integer(values, "step_max"),
        _seconds(values, "start_ns"),
        _seconds(values, "end_ns"),
        str(values.get("reason") or "refused"),
        key=key if isinstance(key := values.get("key"), str) else None,
        values=lost if type(lost := values.get("values")) is int else None,
    )


def _sequences(values: dict[str, Any]) -> tuple[int, int] | None:
    """The sequences of the accepted records that a GAP map is about; None where it is about refused calls."""
    first, last = _integer(values, "first"), _integer(values, "last")
    return (first, last) if 0 < first <= last < 1 << 64 else None


def _claims(values: dict[str, Any]) -> Iterator[Claim]:
    """What a CHECKPOINT says: stream -> [last sequence], or [last sequence, highest step]."""
    for name, numbers in _map(values, "streams").items():
        with contextlib.suppress(ValueError, TypeError):
            last, step = [*numbers, 0][:2]
            if type(last) is int and type(step) is int and 0 < last < 1 << 64 and step >= 0:
                yield Claim(int(name, 16), last, step)


def _new_blocks(source: Source, looked_at: Mapping[str, tuple[int, Block | None]]) -> list[Block]:
    """The blocks of a segment that the last call did not see; all of them where those before are not the same any more."""
    count, last = looked_at.get(source.name, (0, None))
    blocks = source.blocks
    return blocks[count:] if 0 < count <= len(blocks) and blocks[count - 1] == last else blocks


def _has_facts(block: Block) -> bool:
    if block.kind == segment.KIND_ROWS:
        return bool(block.flags & segment.FLAG_HAS_META)
    return block.kind in (segment.KIND_META, segment.KIND_GAP, segment.KIND_CHECKPOINT)


def _fact_records(payload: Buffer) -> Iterator[tuple[int, int, int, Buffer]]:
    """(kind, sequence, time, payload) of the META and GAP records among many rows.

    Why not `record.walk`: a block holds 40 000 rows and two facts, and a list of a thousand runs walks a thousand such
    blocks; looking only at length and kind takes a quarter of the time.
    """
    view = memoryview(payload)
    offset, end = 0, len(view)
    look = _LENGTH_AND_KIND.unpack_from
    while end - offset >= HEADER_SIZE:
        size, kind = look(view, offset)
        if size < HEADER_SIZE or offset + size > end:
            raise DamageError(f"record at byte {offset} claims {size} bytes; {end - offset} are left")
        if kind in (KIND_META, KIND_GAP):
            _, _, _, _, sequence, _, time_ns = HEADER.unpack_from(view, offset)
            yield kind, sequence, time_ns, view[offset + HEADER_SIZE : offset + size]
        offset += size


def _map(values: Mapping[str, Any], name: str) -> dict[Any, Any]:
    value = values.get(name)
    return value if type(value) is dict else {}


def _integer(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return value if type(value) is int else 0


def _seconds(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    return value / 1e9 if type(value) is int else None
