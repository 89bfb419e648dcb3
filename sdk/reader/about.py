"""What a run is, from the files alone: identity, streams, gaps, damage, state. `run` adds the values.

Also the frame of every operation: list the directory again, read, close what was opened, and start again when a segment
was replaced meanwhile. A run that comes from a list with a `Card` is opened when somebody asks for more than that says.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from .. import clock
from ..errors import DamageError, StoreError
from ..files import DISK, Files
from ..ids import run_directory
from ..limits import STEP_MAX
from ..record import decode_map
from ..segment.reader import Damage
from . import state
from .facts import Facts, StreamFacts
from .gaps import Gap, broken_chains
from .lanes import TRAINING, Lane, lanes_of
from .listing import NOT_YET, Card, Look, pack_config
from .scan import Gone, Scan

if TYPE_CHECKING:
    from ..artifacts.artifact import Artifact
    from .kept import KeptFile

_Result = TypeVar("_Result")
# A segment replaced during an operation: a replacement stays for at least a minute, so the second try finds it.
TRIES_MAX = 4


class StreamInfo(NamedTuple):
    """The ordered records of one process into the run.

    Attributes:
        id: 16 hex digits.
        kind: "main", "fork", "spawn" or "attach"; of what accompanies the training "system", "console", "edit".
        rank, host, pid: Whose it is, None where it did not say.
        started: Unix seconds.
        state: "running", "finished", "failed", "interrupted", "preempted", "crashed"; "ended" for a child that did not say goodbye.
        records: How many of its sequence numbers are stored, facts about the run included.
        first, last: The first and last stored sequence, 0 if none.
        attempt: From 1; a resume counts up.
        parent, continues: Ids of the stream it was forked from, and of the one whose rows it goes on with.
    """

    id: str
    kind: str
    rank: int | None
    host: str | None
    pid: int | None
    started: float
    state: str
    records: int
    first: int
    last: int
    attempt: int
    parent: str | None
    continues: str | None


class RunError(NamedTuple):
    """The exception that ended a run.

    Attributes:
        type: Its class, with the module where that is not the script or Python itself.
        message: Its text, at most 2,000 characters.
        traceback: As Python prints it; the middle of a long one left out. "" of a ``sys.exit("text")``.
    """

    type: str
    message: str
    traceback: str


class Alert(NamedTuple):
    """What `alert` said. `time` is in Unix seconds, `level` "INFO", "WARN" or "ERROR"."""

    time: float
    level: str
    title: str
    text: str


class Fact(Generic[_Result]):
    """A property that a run's `Card` answers while there is one; the method says it of an opened run."""

    def __init__(self, told: Callable[[Any], _Result]) -> None:
        self._told = told
        self.__doc__ = told.__doc__
        self._name = told.__name__

    def __get__(self, run: About, owner: type | None = None) -> _Result:
        # Asked of the class: `inspect` and `help` want the property itself.
        if run is None:
            return self  # type: ignore[unreachable]
        found: _Result = self._told(run) if run.card is None else getattr(run.card, self._name)
        return found


class About:
    """The facts of one run; `Run` is what users hold.

    Attributes:
        directory: Where its segments are.
        card: What a list told, until the run is opened.
        look: What the directory was like before, where a list has looked.
    """

    def __init__(
        self,
        directory: str,
        *,
        files: Files = DISK,
        alive: state.Alive = state.alive_here,
        now_ns: Callable[[], int] = clock.wall_ns,
        card: Card | None = None,
        look: Look | None = None,
    ) -> None:
        self.directory = directory
        self.card = card
        self.look = look
        self._files = files
        self._scan = Scan(files, directory)
        self._facts = Facts()
        self._lanes: list[Lane] = []
        self._alive = alive
        self._now_ns = now_ns
        if card is None:
            self.refresh()

    # Operations: list again, read, close what was opened, start again if a segment was replaced meanwhile.

    def refresh(self) -> None:
        """Reads the facts again."""
        self._reading(lambda: None)

    def _open(self) -> None:
        if self.card is not None:
            self.refresh()

    def _reading(self, operation: Callable[[], _Result]) -> _Result:
        try:
            for _ in range(TRIES_MAX):
                with contextlib.suppress(Gone):
                    self._look()
                    return operation()
            raise self._keep_disappearing()
        finally:
            self._scan.close()

    def _giving(self, rest: Callable[[], Iterator[_Result]]) -> Iterator[_Result]:
        """As `_reading`, of what is given one by one: when a segment was replaced, `rest` is called again for what is left."""
        tries = 0
        try:
            while True:
                try:
                    self._look()
                    for one in rest():
                        tries = 0
                        yield one
                    return
                except Gone:
                    tries += 1
                    if tries == TRIES_MAX:
                        raise self._keep_disappearing() from None
        finally:
            self._scan.close()

    def _keep_disappearing(self) -> StoreError:
        return StoreError(f"segments of run {self.id!r} keep disappearing from {self.directory!r}")

    def _look(self) -> None:
        self._scan.refresh()
        self._facts.update(self._scan)
        self._scan.blobs.lost = self._facts.lost_blobs
        self._lanes = lanes_of(self._facts.streams)
        self.card = None

    def _side_lanes(self, kind: str) -> list[Lane]:
        """The lanes of streams that accompany the training: kind "system" or "console"."""
        return lanes_of(self._facts.streams, {kind})

    @Fact
    def id(self) -> str:
        """The run's id; where the files do not tell one that belongs to this directory, the directory's name."""
        name = os.path.basename(self.directory)
        for claimed in (self._facts.run.get("id"), self._facts.run_id):
            if isinstance(claimed, str) and run_directory(claimed) == name:
                return claimed
        return name

    def _text(self, name: str, default: str = "") -> str:
        value = self._facts.run.get(name)
        return value if isinstance(value, str) else default

    @Fact
    def name(self) -> str:
        return self._text("name") or self.id

    @Fact
    def project(self) -> str:
        return self._text("project")

    @Fact
    def group(self) -> str:
        return self._text("group")

    @Fact
    def job_type(self) -> str:
        return self._text("job_type")

    @Fact
    def notes(self) -> str:
        return self._text("notes")

    @property
    def tags(self) -> list[str]:
        if self.card is not None:
            return list(self.card.tags)
        tags = self._facts.run.get("tags")
        return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []

    @property
    def config(self) -> dict[str, Any]:
        """A copy of the user's hyperparameters."""
        if self.card is not None and self.card.packed_config is not None:
            with contextlib.suppress(DamageError):
                return decode_map(self.card.packed_config)
        self._open()
        return dict(self._facts.config)

    @property
    def explicit_summary(self) -> dict[str, Any]:
        """What was set in the summary, without what was logged."""
        self._open()
        return dict(self._facts.summary)

    @property
    def metrics(self) -> dict[str, Any]:
        """What `define_metric` said, by name."""
        self._open()
        return dict(self._facts.metrics)

    @property
    def context(self) -> dict[str, Any]:
        """Where the run came from: command, working directory, script, Python, host, machine, git; docs/context.md."""
        self._open()
        return dict(self._facts.context)

    @property
    def system_summary(self) -> dict[str, Any]:
        """What the run has used in all, as far as it was sampled, over all hosts; docs/system.md#summary. {} before it ended."""
        self._open()
        told: dict[str, Any] = {}
        for stream in self._facts.streams.values():
            summary = stream.about.get("summary") if stream.kind == "system" else None
            for key, value in summary.items() if isinstance(summary, dict) else ():
                if isinstance(key, str) and isinstance(value, (int, float)):
                    told[key] = max(told.get(key, 0), value) if key.endswith("_max") else told.get(key, 0) + value
        return told

    @property
    def artifacts(self) -> dict[str, Any]:
        """What was logged and used, by name; docs/artifacts.md."""
        self._open()
        return dict(self._facts.artifacts)

    def logged_artifacts(self) -> list[Artifact]:
        """The versions that it logged and that are there, in order; those of equal content once."""
        return self._artifacts("logged")

    def used_artifacts(self) -> list[Artifact]:
        """The versions that it used, as far as they are there."""
        return self._artifacts("used")

    def _artifacts(self, how: str) -> list[Artifact]:
        from ..artifacts.artifact import artifacts_of

        return artifacts_of(os.path.dirname(os.path.dirname(self.directory)), self.artifacts, how)

    def files(self) -> list[KeptFile]:
        """The files of the run, by name: those in its directory `files`, and those that wait to be copied or are missing."""
        from .kept import files_of

        self._open()
        return files_of(self.directory, self._facts.files)

    def file(self, name: str) -> KeptFile:
        """One of `files`.

        Raises:
            NotFoundError: There is none of that name. ValueError: No file of a run can be called so.
        """
        from .kept import find_file

        return find_file(self.files(), name, self.id)

    @property
    def misuse(self) -> dict[str, Any]:
        """Keys that `misuse="warn"` left out, and why."""
        self._open()
        return dict(self._facts.misuse)

    @property
    def alerts(self) -> list[Alert]:
        """What `run.alert` said, in order of time."""
        self._open()
        found = []
        for when, said in self._facts.alerts.items():
            if when.isdecimal() and len(when) <= 19 and isinstance(said, dict):
                texts = (said.get(name) for name in ("level", "title", "text"))
                found.append(Alert(int(when) / 1e9, *(text if isinstance(text, str) else "" for text in texts)))
        return sorted(found)

    @Fact
    def host(self) -> str:
        """Where the training ran last, "" where it did not say."""
        said = [text for lane in self._lanes for stream in lane.streams if (text := stream.text("host"))]
        return said[-1] if said else ""

    @Fact
    def exit_code(self) -> int | None:
        """What the process ended with, as far as it could say; None while it runs, and where it was killed."""
        end = self._last_of_state().end
        code = end.get("exit_code") if end is not None else None
        return code if type(code) is int else None

    @Fact
    def ended(self) -> float | None:
        """When the training said that it ends, Unix seconds; None while it runs, and where it was killed."""
        end = self._last_of_state().end
        time_ns = end.get("time_ns") if end is not None else None
        return time_ns / 1e9 if type(time_ns) is int and time_ns > 0 else None

    @property
    def first_step(self) -> int:
        """The step at which the last attempt began."""
        self._open()
        return max(self._last_of_state().number("first_step") or 0, 0)

    @property
    def error(self) -> RunError | None:
        """The exception that ended the run, or None."""
        found = self._last_of_state().error
        if found is None:
            return None
        texts = (found.get(name) for name in ("type", "message", "traceback"))
        return RunError(*(text if isinstance(text, str) else "" for text in texts))

    def _last_of_state(self) -> StreamFacts:
        """The last stream of the first lane that ended as the run did."""
        state, lanes = self.state, self._lanes
        ended = (lane.last for lane in lanes if self._stream_state(lane.last) == state)
        return next(ended, StreamFacts(0))

    @Fact
    def created(self) -> float:
        """When the first stream started, Unix seconds; without one, when the first segment was made."""
        return min((s.started for s in self._facts.streams.values() if s.started > 0), default=self._facts.created)

    @Fact
    def started(self) -> float:
        """When it was last started or resumed, Unix seconds; what `latest` goes by."""
        return max((s.started for s in self._facts.streams.values() if s.kind == "main"), default=self.created)

    @Fact
    def updated(self) -> float:
        """When a segment last changed, Unix seconds."""
        return self._scan.changed

    @property
    def duration(self) -> float | None:
        """Seconds since it was last started: until it said that it ends, else until it last wrote; of one that runs, until now."""
        if self.started <= 0:
            return None
        ended = self._now_ns() / 1e9 if self.state == state.RUNNING else self.ended
        return max((self.updated if ended is None else ended) - self.started, 0.0)

    @Fact
    def size_bytes(self) -> int:
        return self._scan.size_bytes

    @Fact
    def state(self) -> str:
        """One of "running", "finished", "failed", "crashed", "interrupted", "preempted": computed now, from locks and last words."""
        if any(stream.end is None for stream in self._facts.streams.values()):
            self.refresh()
        return self._state_of_streams()

    def _state_of_streams(self) -> str:
        """The state by the streams that are known. Of a run that has just begun it may be none, or one that only accompanies it."""
        lanes, streams = lanes_of(self._facts.streams), self._facts.streams.values()
        if lanes:
            return state.run_state(lanes, self._stream_state)
        begins = any(self._stream_state(stream) == state.RUNNING for stream in streams)
        if not streams and not self._scan.damage():
            begins = self._now_ns() / 1e9 - self._scan.changed < state.QUIET_SECONDS_MAX
        return state.RUNNING if begins else state.CRASHED

    def _stream_state(self, stream: StreamFacts) -> str:
        return state.stream_state(stream, self._alive, self._now_ns() / 1e9 - self._scan.changed)

    @property
    def streams(self) -> list[StreamInfo]:
        """All streams, in the order of lanes: the main one first, those that accompany the training last."""
        self._open()
        plan = self._scan.plan()
        kinds = {stream.kind for stream in self._facts.streams.values()} - TRAINING
        training = lanes_of(self._facts.streams)
        lanes = [*training, *(lane for kind in sorted(kinds) for lane in self._side_lanes(kind))]
        return [
            self._stream(stream, [(e.first, e.last) for e in plan.get(stream.id, ())])
            for lane in lanes
            for stream in lane.streams
        ]

    @property
    def hidden_from(self) -> dict[str, int]:
        """By stream, the step from which on a resume hid its rows; only of those of which it hid any."""
        self._open()
        return {
            stream.hex: limit
            for lane in self._lanes
            for stream, limit in zip(lane.streams, lane.step_limits)
            if limit <= STEP_MAX
        }

    @property
    def resumed_at(self) -> list[int]:
        """The step at which each attempt after the first began, of the main lane."""
        self._open()
        attempts = self._lanes[0].streams[1:] if self._lanes else []
        return [step for stream in attempts if (step := stream.number("first_step")) is not None]

    def _stream(self, stream: StreamFacts, ranges: list[tuple[int, int]]) -> StreamInfo:
        return StreamInfo(
            stream.hex,
            stream.kind,
            stream.number("rank"),
            stream.text("host"),
            stream.number("pid"),
            stream.started,
            self._stream_state(stream),
            _covered(ranges),
            ranges[0][0] if ranges else 0,
            max((last for _, last in ranges), default=0),
            stream.attempt,
            stream.text("parent"),
            stream.text("continues"),
        )

    @Fact
    def records(self) -> int:
        """Sequence numbers that are stored, of all streams of the training: what was accepted and is not in `gaps`."""
        return sum(stream.records for stream in self.streams if stream.kind in TRAINING)

    @Fact
    def step_max(self) -> int:
        """The largest step of a row that no resume hid: 0 before the first one. For lists: by headers alone, unless some are hidden."""
        plan = self._scan.plan()
        seen = [
            (entry.step_max, limit)
            for lane in self._lanes
            for stream, limit in zip(lane.streams, lane.step_limits)
            for entry in plan.get(stream.id, ())
            if entry.holds_rows
        ]
        if all(step < limit for step, limit in seen):
            return max((step for step, _ in seen), default=0)
        from .looks import last_steps

        steps = self._reading(lambda: last_steps(self._scan, self._lanes, 1))
        return int(steps[-1]) if len(steps) else 0

    def card_if_over(self, *, digest: bool = True) -> Card | None:
        """What lists may keep of the run; None while more may be said of it without a file that comes or goes.

        Args:
            digest: With what tables show of its values, for which these are looked at; else that is left for later.
        """
        self._open()
        seen = self._scan.sources.values()
        if not self._facts.streams or self._scan.damage() or not all(source.sealed for source in seen):
            return None
        quiet = self._now_ns() / 1e9 - self._scan.changed
        for stream in self._facts.streams.values():
            # What nobody here can know may live as long as it is said to.
            if state.stream_state(stream, self._alive, quiet) == state.RUNNING:
                return None
        return Card(
            self.id, self.name, self.project, self.group, self.job_type, self.notes, self.state, self.tags,
            float(self.created), float(self.started), float(self.updated), self.size_bytes, self.records, self.step_max,
            self.host, self.exit_code, self.ended, pack_config(self.config), self._packed_digest() if digest else NOT_YET,
        )  # fmt: skip

    def _packed_digest(self) -> bytes | None:
        """What tables show of the run's values, for its card."""
        return None

    def set(
        self,
        *,
        name: str | None = None,
        notes: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Iterable[str] | None = None,
        summary: Mapping[str, Any] | None = None,
        summary_removed: Iterable[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Sets facts of the run from outside, whether it runs or is over, here or on another host (docs/compare.md#set).

        What is set last holds. It is on the disk when this returns; a training that runs does not hear of it.

        Args:
            name, notes, group, job_type, tags: None: stays as it is. `tags` replaces them all.
            summary: Values by key, over what was logged. `summary_removed`: keys to be taken out.
            config: Values that the config lacks.

        Raises:
            UsageError: A value cannot be stored, or is another one than the config has.
            StoreError: The store cannot be written.
        """
        from ..editing import facts_of, write_edit

        self.refresh()
        facts = facts_of(
            self._facts.config, name=name, notes=notes, group=group, job_type=job_type, tags=tags, summary=summary,
            summary_removed=summary_removed, config=config,
        )  # fmt: skip
        if facts:
            write_edit(
                os.path.dirname(os.path.dirname(self.directory)), self.directory, self.id, facts,
                after_ns=self._facts.latest_ns, modified=self._scan.changed, files=self._files, now_ns=self._now_ns(),
            )  # fmt: skip
            self.refresh()

    @property
    def gaps(self) -> list[Gap]:
        """Records that are not in the data: refused ones, sequences that no segment holds, damage met so far."""
        self._open()
        found = self._facts.missing(self._scan)
        if found:
            # Race: 1. we look at writer A, 2. A stores 5, B stores 6, 3. we look at B: 5 seems missing. Look once more.
            self.refresh()
            found = self._facts.missing(self._scan)
        return self._facts.refused() + found

    def _all_gaps(self) -> list[Gap]:
        """As `gaps`, by what was looked at already."""
        return self._facts.refused() + self._facts.missing(self._scan)

    @property
    def damage(self) -> list[Damage]:
        """Bytes that could not be read, as far as somebody tried: payloads are checked when they are read."""
        self._open()
        found = broken_chains(self._scan, self._facts.replaced)
        if found:  # the same race, between two segments of one writer
            self.refresh()
            found = broken_chains(self._scan, self._facts.replaced)
        return self._scan.damage() + found


def _covered(ranges: list[tuple[int, int]]) -> int:
    """How many numbers lie in ranges that are sorted by their first one."""
    total, end = 0, -1
    for first, last in ranges:
        total += max(0, last - max(first, end + 1) + 1)
        end = max(end, last)
    return total
