"""For other people's tests: what a training logged, with no daemon, thread, file or socket.

    from sdk.testing import captured

    def test_training_logs_its_loss():
        with captured() as rows:
            train()
        assert rows[-1]["loss"] < 0.1
        assert rows.runs[0].config["lr"] == 1e-3

Inside the block `init`, `log`, `finish`, `attach`, `config` and `summary` work as always, values become what they would
become in a store, and rows follow the same rule of step and commit. Errors of use raise. Nothing is printed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _greeting, clock, values
from ._globals import module, state
from .errors import NotFoundError, UsageError
from .ids import hex_u64, random_u64
from .journal.steps import check_step
from .limits import INLINE_TENSOR_BYTES_MAX
from .location import StoreIdentity
from .record import (
    FLAG_COMMIT,
    FLAG_LATE,
    FLAG_MARKED,
    BlobRef,
    StoredBlob,
    decode_map,
    encode_blob_ref,
    encode_inline_blob,
    encode_map,
)
from .rows import Piece, committed, merge
from .settings import Settings

if TYPE_CHECKING:
    from .reader.tally import Tally

__all__ = ["CapturedRow", "CapturedRows", "CapturedRun", "FakeClock", "captured"]


class CapturedRow(dict[str, Any]):
    """Everything logged for one step: flat (dotted) names to values.

    Attributes:
        run: The run's id.
        step: Its step.
        committed: Whether the row is complete.
        time: Unix seconds of the last call that added to it.
    """

    def __init__(self, values: Mapping[str, Any], run: str, step: int, committed: bool, time: float) -> None:
        super().__init__(values)
        self.run = run
        self.step = step
        self.committed = committed
        self.time = time


class CapturedReceipt(NamedTuple):
    """As `sdk._stream.Receipt`: everything that was accepted is stored."""

    accepted: int
    stored: int
    refused: int = 0
    late_dropped: int = 0
    left_out: dict[str, str] = {}  # noqa: RUF012 - never changed
    spooled: int = 0
    synced: bool = True
    wait_seconds: float = 0.0
    cost_seconds: float = 0.0
    calls: int = 0
    ended_in: str = "written"
    facts_lost: int = 0
    refused_reasons: dict[str, int] = {}  # noqa: RUF012 - never changed


class CapturedStream:
    """A stream in memory; the same table of step and commit as `sdk.journal` (DESIGN, "What `log` means").

    Attributes:
        blobs: The bytes of large values, by the number that a row's `BlobRef` has.
    """

    def __init__(self, run_id: str, settings: Settings, kind: str, first_step: int, store: str = "") -> None:
        self.id = hex_u64(random_u64())
        self.run_id = run_id
        self.settings = settings
        self.kind = kind
        self.store = store
        self.notes: list[str] = []
        self.facts: list[dict[str, Any]] = []
        self.pieces: list[Piece] = []
        self.blobs: list[StoredBlob] = []
        self.ended: tuple[str, int] | None = None
        self._first_step = self._open_step = first_step
        self._late_dropped = 0
        self._left_out: dict[str, str] = {}
        self._lock = threading.RLock()
        self.log: Callable[..., None] = self._append

    def _append(
        self, data: Mapping[str, Any], step: int | None = None, commit: bool | None = None, sync: object = None
    ) -> None:
        if self.ended is not None:
            raise UsageError(f"log() was called after finish() of run {self.run_id!r}")
        if not isinstance(data, Mapping):
            raise TypeError(f"log() data is {type(data).__name__}, expected a dict of str to values")
        plain, bad = values.plain(data, keep_going=self.settings.misuse == "warn", put=self._put)
        number = None if step is None else check_step(step)
        with self._lock:
            self._left_out.update(bad)
            self._place(decode_map(encode_map(plain)), number, commit, FLAG_MARKED if bad else 0)

    def _put(self, blob: values.Blob, key: str) -> object:
        stored = StoredBlob(bytes(blob.view()), blob.meta)
        if blob.size <= INLINE_TENSOR_BYTES_MAX:
            return encode_inline_blob(stored)
        with self._lock:
            self.blobs.append(stored)
            return encode_blob_ref(BlobRef(0, len(self.blobs) - 1, blob.size))

    def _place(self, plain: dict[str, Any], step: int | None, commit: bool | None, flags: int) -> None:
        row = self._open_step if step is None else step
        after = self._open_step
        if row < after:
            if self.settings.late_steps == "error":
                raise UsageError(f"log() step {row} is below the open step {after}, and late_steps is 'error'")
            if self.settings.late_steps == "drop":
                self._late_dropped += 1
                return
            flags |= FLAG_LATE
        elif commit or (commit is None and step is None):
            flags |= FLAG_COMMIT
            after = row + 1
        else:
            after = row
        self.pieces.append(Piece(len(self.pieces) + 1, row, flags, clock.wall_ns(), plain))
        self._open_step = after

    def step(self) -> int:
        """The open step."""
        return self._open_step

    def append_meta(self, facts: Mapping[str, Any]) -> None:
        """Keeps the facts as they would be read back."""
        self.facts.append(decode_map(encode_map(dict(facts))))

    def flush(self, timeout: float) -> bool:
        """Everything is in memory."""
        return True

    def finish(self, state: str, exit_code: int, timeout: float) -> CapturedReceipt:
        """Ends the stream."""
        if self.ended is None:
            self.ended = (state, exit_code)
            self.append_meta({"end": {"state": state, "exit_code": exit_code, "time_ns": clock.wall_ns()}})
        count = len(self.pieces)
        return CapturedReceipt(count, count, late_dropped=self._late_dropped, left_out=self._left_out, calls=count)

    def rows(self) -> list[CapturedRow]:
        """The rows in step order."""
        rows = sorted(merge(self.pieces), key=lambda row: row.step)
        whole = committed(rows, None if self.ended is not None else self._open_step)
        return [CapturedRow(r.values, self.run_id, r.step, whole[r.step], r.time_ns / 1e9) for r in rows]


class CapturedRun:
    """A captured run with the names of the reader's.

    Attributes:
        id: Its id.
        streams: Its streams, the first one first.
    """

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.streams: list[CapturedStream] = []

    def _folded(self, key: str) -> dict[str, Any]:
        folded: dict[str, Any] = {}
        for stream in self.streams:
            for facts in stream.facts:
                folded.update(facts.get(key) or {})
        return folded

    def _about(self, key: str) -> str:
        return str(self._folded("run").get(key) or "")

    @property
    def name(self) -> str:
        return self._about("name") or self.id

    @property
    def project(self) -> str:
        return self._about("project")

    @property
    def group(self) -> str:
        return self._about("group")

    @property
    def job_type(self) -> str:
        return self._about("job_type")

    @property
    def notes(self) -> str:
        return self._about("notes")

    @property
    def tags(self) -> list[str]:
        return list(self._folded("run").get("tags") or ())

    @property
    def config(self) -> dict[str, Any]:
        return self._folded("config")

    @property
    def metrics(self) -> dict[str, Any]:
        """What `define_metric` said."""
        return self._folded("metric")

    @property
    def summary(self) -> dict[str, Any]:
        """What was logged last, or what `define_metric` asked for, and over it what was set."""
        found = self._tally().summary()
        for stream in self.streams:
            for facts in stream.facts:
                for key in facts.get("summary_removed") or ():
                    found.pop(key, None)
                found.update(facts.get("summary") or {})
        return found

    def latest(self, key: str, *, partial: bool = True) -> Any:
        """As `Run.latest`."""
        return self._tally().latest(key, partial=partial)

    def _tally(self) -> Tally:
        """Counts everything again, as a reader counts what is stored."""
        from .reader.tally import tally_of

        rows = [(row.step, row.time, dict(row)) for row in self.rows()]
        return tally_of(self.metrics, rows, is_over=self.state != "running")

    @property
    def state(self) -> str:
        """One of "running", "finished", "failed" or "interrupted"."""
        ended = self.streams[0].ended if self.streams else None
        return ended[0] if ended is not None else "running"

    def rows(self) -> list[CapturedRow]:
        """Its rows, stream by stream, each in step order."""
        return [row for stream in self.streams for row in stream.rows()]

    def tail(self, count: int = 10) -> list[dict[str, Any]]:
        """The last rows in step order, each with its `_step`."""
        rows = sorted(self.rows(), key=lambda row: row.step)[-count:]
        return [{"_step": row.step, **row} for row in rows]


class CapturedRows(Sequence[CapturedRow]):
    """The rows that were logged so far, run by run; equal to a list of equal dicts.

    Attributes:
        runs: The runs, the first one first.
    """

    def __init__(self) -> None:
        self.runs: list[CapturedRun] = []

    def _rows(self) -> list[CapturedRow]:
        return [row for run in self.runs for row in run.rows()]

    def __getitem__(self, index: Any) -> Any:
        return self._rows()[index]

    def __len__(self) -> int:
        return len(self._rows())

    def __iter__(self) -> Iterator[CapturedRow]:
        return iter(self._rows())

    def __eq__(self, other: object) -> bool:
        return self._rows() == (list(other) if isinstance(other, Sequence) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._rows())

    # What `_api` needs in place of a store, streams and a reader.

    def open_stream(
        self, store: StoreIdentity, run_facts: Mapping[str, Any], settings: Settings, *, run_id: str, kind: str = "main",
        first_step: int = 0, **stream_facts: Any,
    ) -> CapturedStream:  # fmt: skip
        """A stream in memory."""
        stream = CapturedStream(run_id, settings, kind, first_step, store.path)
        stream.append_meta(
            {"stream": {"id": stream.id, "kind": kind, "first_step": first_step, **stream_facts}, **run_facts}
        )
        run = next((run for run in self.runs if run.id == run_id), None)
        if run is None:
            run = CapturedRun(run_id)
            self.runs.append(run)
        run.streams.append(stream)
        return stream

    def read(self, run_id: str) -> CapturedRun:
        """The run of this id."""
        for run in reversed(self.runs):
            if run_id in (run.id, "latest"):
                return run
        raise NotFoundError(f"no run {run_id!r} was captured")


@contextlib.contextmanager
def captured() -> Iterator[CapturedRows]:
    """Captures what is logged in the block; see the module's docstring. Blocks may be nested; the inner one captures.

    A run that is active when the block begins is set aside and goes on after it. Runs left unfinished are finished.
    """
    rows = CapturedRows()
    before = (state.run, state.last, state.capture, state.unfinished)
    names = ("run", "log", "config", "summary")
    bound = {name: module()[name] for name in names if name in module()}
    quiet = _greeting._quiet
    state.run, state.last, state.capture, state.unfinished = None, None, rows, {}
    _unbind(names)
    try:
        yield rows
    finally:
        for run in list(state.unfinished.values()):
            run.end("finished", 0)
        state.run, state.last, state.capture, state.unfinished = before
        _unbind(names)
        module().update(bound)
        _greeting.set_quiet(quiet)


def _unbind(names: Sequence[str]) -> None:
    for name in names:
        module().pop(name, None)
    module()["run"] = None


class FakeClock:
    """A clock that stands until it is moved; as a context manager it takes the place of `sdk.clock` for every module that
    asks `clock.…` at the moment of use.

    Attributes:
        seconds: Monotonic seconds since it was made.
        start_ns: What `wall_ns` gave then.
    """

    _NAMES = ("wall_ns", "monotonic", "cpu", "pause")

    def __init__(self, start_ns: int = 1_700_000_000_000_000_000) -> None:
        self.start_ns = start_ns
        self.seconds = 0.0
        self._before: dict[str, Any] = {}

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return self.start_ns + round(self.seconds * 1e9)

    def monotonic(self) -> float:
        """Seconds."""
        return self.seconds

    def cpu(self) -> float:
        """No work is done on a clock that stands."""
        return 0.0

    def pause(self, seconds: float) -> None:
        """Passes the time at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Moves the clock on."""
        self.seconds += max(seconds, 0.0)

    def __enter__(self) -> FakeClock:
        self._before = {name: getattr(clock, name) for name in self._NAMES}
        for name in self._NAMES:
            setattr(clock, name, getattr(self, name))
        return self

    def __exit__(self, *error: object) -> None:
        for name, function in self._before.items():
            setattr(clock, name, function)
