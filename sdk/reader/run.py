"""One stored run: its facts, its state and its values, from the files alone.

Facts (name, config, streams) are as of the moment the run was opened or `refresh`ed; values are read from the disk at
every call, so a run that is still growing gives what is stored by then: what was logged more than about a second ago.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .. import clock
from ..errors import NotFoundError, StoreError, UnsupportedError
from ..files import DISK, Files
from ..ids import run_directory
from ..segment.reader import Damage
from . import join, state
from .facts import Facts, Gap, StreamFacts, missing
from .follow import Follower, follow_run
from .lanes import Lane, lanes_of
from .names import list_names, nearest
from .scan import Gone, Scan

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from .series import Series

_Result = TypeVar("_Result")
# A segment replaced during an operation: a replacement stays for at least a minute, so the second try finds it.
_TRIES_MAX = 4


class StreamInfo(NamedTuple):
    """The ordered records of one process into the run.

    Attributes:
        id: 16 hex digits.
        kind: "main", "fork", "spawn" or "attach".
        rank, host, pid: Whose it is, None where it did not say.
        started: Unix seconds.
        state: "running", "finished", "failed", "interrupted", "crashed"; "ended" for a child that did not say goodbye.
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


class Run:
    """A run in a store. Reads only; not thread-safe; holds no file open between calls.

    Damaged bytes never raise: what is whole is given, what is not is listed in `damage` and `gaps`.
    """

    def __init__(
        self,
        directory: str,
        *,
        files: Files = DISK,
        alive: state.Alive = state.alive_here,
        now_ns: Callable[[], int] = clock.wall_ns,
    ) -> None:
        self.directory = directory
        self._scan = Scan(files, directory)
        self._facts = Facts()
        self._lanes: list[Lane] = []
        self._alive = alive
        self._now_ns = now_ns
        self.refresh()

    def __repr__(self) -> str:
        return f"<stepd run {self.id} {self.name!r} of {self.project!r}, {self.state}>"

    # Operations: list again, read, close what was opened, start again if a segment was replaced meanwhile.

    def refresh(self) -> None:
        """Reads the facts again."""
        self._reading(lambda: None)

    def _reading(self, operation: Callable[[], _Result]) -> _Result:
        try:
            for _ in range(_TRIES_MAX):
                with contextlib.suppress(Gone):
                    self._look()
                    return operation()
            raise StoreError(f"segments of run {self.id!r} keep disappearing from {self.directory!r}")
        finally:
            self._scan.close()

    def _look(self) -> None:
        self._scan.refresh()
        self._facts.update(self._scan)
        self._lanes = lanes_of(self._facts.streams)

    # Facts

    @property
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

    @property
    def name(self) -> str:
        return self._text("name") or self.id

    @property
    def project(self) -> str:
        return self._text("project")

    @property
    def group(self) -> str:
        return self._text("group")

    @property
    def job_type(self) -> str:
        return self._text("job_type")

    @property
    def notes(self) -> str:
        return self._text("notes")

    @property
    def tags(self) -> list[str]:
        tags = self._facts.run.get("tags")
        return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []

    @property
    def config(self) -> dict[str, Any]:
        """A copy of the user's hyperparameters."""
        return dict(self._facts.config)

    @property
    def metrics(self) -> dict[str, Any]:
        """What `define_metric` said, by name."""
        return dict(self._facts.metrics)

    @property
    def misuse(self) -> dict[str, Any]:
        """Keys that `misuse="warn"` left out, and why."""
        return dict(self._facts.misuse)

    @property
    def created(self) -> float:
        """When the first stream started, Unix seconds; without one, when the first segment was made."""
        return min((s.started for s in self._facts.streams.values() if s.started > 0), default=self._facts.created)

    @property
    def started(self) -> float:
        """When it was last started or resumed, Unix seconds; what `latest` goes by."""
        return max((s.started for s in self._facts.streams.values() if s.kind == "main"), default=self.created)

    @property
    def updated(self) -> float:
        """When a segment last changed, Unix seconds."""
        return self._scan.changed

    @property
    def size_bytes(self) -> int:
        return self._scan.size_bytes

    @property
    def state(self) -> str:
        """One of "running", "finished", "failed", "crashed", "interrupted": computed now, from locks and last words."""
        if any(stream.end is None for stream in self._facts.streams.values()):
            self.refresh()
        return state.run_state(self._lanes, self._stream_state)

    def _stream_state(self, stream: StreamFacts) -> str:
        return state.stream_state(stream, self._alive, self._now_ns() / 1e9 - self._scan.changed)

    @property
    def streams(self) -> list[StreamInfo]:
        """All streams, in the order of lanes: the main one first."""
        plan = self._scan.plan()
        return [
            self._stream(stream, [(e.block.first, e.block.last) for e in plan.get(stream.id, ())])
            for lane in self._lanes
            for stream in lane.streams
        ]

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

    @property
    def records(self) -> int:
        """Sequence numbers that are stored, of all streams: what was accepted and is not in `gaps`."""
        return sum(stream.records for stream in self.streams)

    @property
    def last_step(self) -> int | None:
        """The largest step by the blocks' headers, hidden rows included; None before the first row."""
        return max((e.block.step_max for entries in self._scan.plan().values() for e in entries), default=None)

    @property
    def gaps(self) -> list[Gap]:
        """Records that are not in the data: refused ones, sequences that no segment holds, damage met so far."""
        found = missing(self._scan)
        if found:
            # Race: 1. we look at writer A, 2. A stores 5, B stores 6, 3. we look at B: 5 seems missing. Look once more.
            self.refresh()
            found = missing(self._scan)
        return self._facts.refused() + found

    @property
    def damage(self) -> list[Damage]:
        """Bytes that could not be read, as far as somebody tried: payloads are checked when they are read."""
        return self._scan.damage()

    @property
    def summary(self) -> dict[str, Any]:
        """What the user set, over the last logged value of every key. Reads all rows."""
        last = self._reading(lambda: join.last_values(self._scan, self._lanes))
        shown = {key: value for key, value in last.items() if key not in self._facts.removed and key[:1] != "_"}
        return {**shown, **self._facts.summary}

    # Values

    def keys(self) -> list[str]:
        """All keys, sorted: nested dicts as dotted names, without those that begin with an underscore."""
        return [key for key in self._all_keys() if key[:1] != "_"]

    def _all_keys(self) -> list[str]:
        return sorted(self._reading(lambda: join.keys_of(self._scan, self._lanes)))

    def series(self, key: str, stream: str | int | None = None, rank: int | None = None) -> Series:
        """All values of one key, as numpy arrays.

        Args:
            stream: None: the main lane among those that hold the key. An id: this stream alone, rows that a resume hid
                included. "all": every lane's values, ordered by step and time.
            rank: Only streams of this rank.

        Raises:
            NotFoundError: No such key, stream or rank.
        """
        from .series import read_series

        every = stream == "all"
        chosen = None if every else stream
        found = self._reading(lambda: read_series(self._scan, self._chosen(chosen, rank), key, every=every))
        if found is None:
            raise self._no_series(key)
        return found

    def _chosen(self, stream: str | int | None, rank: int | None = None) -> list[Lane]:
        lanes = self._lanes
        if stream is not None:
            wanted = stream if isinstance(stream, str) else f"{stream:016x}"
            facts = [s for s in self._facts.streams.values() if s.hex == wanted]
            if not facts:
                known = [s.hex for s in self._facts.streams.values()]
                near = list_names(nearest(wanted, known) or known[:3])
                raise NotFoundError(f"run {self.id} has no stream {wanted!r}. Nearest: {near}", hint="run.streams")
            lanes = [lanes_of({facts[0].id: facts[0]})[0]]
        if rank is not None:
            lanes = [lane for lane in lanes if any(s.number("rank") == rank for s in lane.streams)]
            if not lanes:
                raise NotFoundError(f"run {self.id} has no stream of rank {rank}", hint="run.streams")
        return lanes

    def _no_series(self, key: str) -> NotFoundError:
        names = self.keys()
        if not names:
            return NotFoundError(
                f"run {self.id} has no series {key!r}: it holds no values yet", hint="run.gaps, run.damage"
            )
        near = nearest(key, names)
        told = f"Nearest: {list_names(near)}" if near else f"It has {list_names(names[:5])}{', …' if names[5:] else ''}"
        return NotFoundError(f"run {self.id} has no series {key!r}. {told}", hint="run.keys()")

    def rows(self, keys: Iterable[str] | None = None, stream: str | int | None = None) -> Iterator[dict[str, Any]]:
        """Rows in step order: ``{"_step": int, "_timestamp": float, key: value, …}``, one per step, nulls as None.

        Lanes are joined: at a step that several hold, the main one's values win. Memory holds a window, not the run.

        Args:
            keys: Only these, and only rows that hold one of them.
            stream: Only this stream (an id).
        """
        wanted = self.check_keys(keys)
        return self._rows(join.Selection(wanted), stream)

    def check_keys(self, keys: Iterable[str] | None) -> frozenset[str] | None:
        """The keys as a set.

        Raises:
            TypeError: One text was given, whose letters would be taken for keys.
        """
        if isinstance(keys, str):
            raise TypeError(f"keys is the str {keys!r}, expected a list of them: [{keys!r}]")
        return None if keys is None else frozenset(keys)

    def _rows(self, selection: join.Selection, stream: str | int | None = None) -> Iterator[dict[str, Any]]:
        tries = 0
        try:
            while True:
                try:
                    self._look()
                    for row in join.rows(self._scan, self._chosen(stream), selection):
                        yield row
                        selection = selection._replace(first_step=row[join.STEP] + 1)
                    return
                except Gone:
                    # Rows come in step order, so what is left begins after the last one that was given.
                    tries += 1
                    if tries == _TRIES_MAX:
                        raise
        finally:
            self._scan.close()

    def steps(self, keys: Iterable[str] | None = None) -> NDArray[numpy.int64]:
        """The steps that `rows(keys)` would give, ascending, without making the rows."""
        selection = join.Selection(self.check_keys(keys))
        return self._reading(lambda: join.steps_of(self._scan, self._lanes, selection))

    def rows_at(self, steps: NDArray[numpy.int64], keys: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows at these steps (sorted, ascending), reading only the blocks that may hold them."""
        return self._rows(join.Selection(self.check_keys(keys), steps))

    def tail(self, count: int = 10, keys: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """The last `count` rows in step order; reads from the end."""
        selection = join.Selection(self.check_keys(keys))
        if count < 1:
            return []
        steps = self._reading(lambda: join.last_steps(self._scan, self._lanes, count, selection))
        return list(self._rows(selection._replace(steps=steps)))[-count:]

    def follow(
        self,
        poll_seconds: float = 0.2,
        timeout: float | None = None,
        *,
        keys: Iterable[str] | None = None,
        new_only: bool = False,
        wait: Callable[[float], None] = clock.pause,
    ) -> Iterator[dict[str, Any]]:
        """Rows as they become visible, each again whenever it changes; ends after the run did and all was given.

        Args:
            poll_seconds: How often to look.
            timeout: End after this many seconds of looking without a new row.
            keys: As in `rows`.
            new_only: Leave out what is stored when the iteration begins.
            wait: What passes the time between two looks; gets seconds.
        """
        wanted = self.check_keys(keys)
        return follow_run(self, Follower(wanted), poll_seconds, timeout, wait, new_only)

    def look_for_new(self, follower: Follower) -> list[dict[str, Any]]:
        """The rows that became visible or changed since this follower last looked."""
        steps = self._reading(lambda: follower.new_steps(self._scan, self._lanes))
        return list(self._rows(join.Selection(follower.keys, steps))) if len(steps) else []

    def sample(self, keys: Iterable[str], points: int = 40) -> dict[str, tuple[NDArray[numpy.int64], NDArray[Any]]]:
        """A cheap, evenly spread look: key to (steps, values), at most `points` of each.

        Exact (every value is a candidate) below 20 000 records; of a longer run only a few blocks are read. A key that
        they do not hold has two empty arrays.
        """
        from .sample import sample

        wanted = sorted(self.check_keys(keys) or ())
        return self._reading(lambda: sample(self._scan, self._lanes, wanted, points))

    def to_pandas(self, keys: Iterable[str] | None = None) -> Any:
        """A pandas.DataFrame, one row per step (the index), one column per key, joined as in `rows`.

        Integer columns with holes are `Int64`, booleans `boolean`, so that no integer passes through a float.

        Raises:
            Error: pandas is not installed.
            NotFoundError: A key that the run does not have.
        """
        from .frames import frame_of

        wanted = self.check_keys(keys)
        ordered = None if keys is None else list(dict.fromkeys(wanted or ()))
        frame = self._reading(lambda: frame_of(self._scan, self._lanes, ordered))
        if isinstance(frame, str):
            raise self._no_series(frame)
        return frame

    def to_arrow(self) -> Any:
        """Not served yet."""
        raise UnsupportedError("run.to_arrow() is not served yet", hint="run.to_pandas(), run.series(key)")

    def media(self, key: str) -> Any:
        """Not served yet."""
        raise UnsupportedError(f"run.media({key!r}) is not served yet", hint="run.rows([key])")


def _covered(ranges: list[tuple[int, int]]) -> int:
    """How many numbers lie in ranges that are sorted by their first one."""
    total, end = 0, -1
    for first, last in ranges:
        total += max(0, last - max(first, end + 1) + 1)
        end = max(end, last)
    return total
