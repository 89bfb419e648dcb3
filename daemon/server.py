"""The serving process, from start to end: lock, recover, bind, serve, drain, seal, leave.

One busy Python thread runs ticks: take messages, write what is due, send acks, and now and then look for dead trainers,
mend a segment, force segments to the disk (in the syncer's thread), decide whether to leave. Anything that needs more
than microseconds of Python for one record belongs into a worker process.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import logging
import logging.handlers
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from daemon.ingest import Ingest
from daemon.lifecycle import Leaving, on_termination, take_store
from daemon.settings import DaemonSettings, budgets_from, observes
from daemon.stats import Stats
from daemon.store.budgets import keep_budgets, read_budgets
from daemon.store.recovery import (
    Judge,
    Mended,
    lock_identity,
    mend_runs,
    mend_segments,
    mend_stream,
    ring_is_locked,
    wrote_segments,
)
from daemon.store.replacing import kinds_in
from daemon.store.run_writer import RunWriter
from daemon.workers import Carrier, Keeper, Observer, Worker
from sdk import __version__, clock, platform
from sdk.budget import Budget, explain
from sdk.errors import Error, StoreError
from sdk.files import DISK, Files
from sdk.ids import random_u64
from sdk.limits import REFUSED_REASONS
from sdk.location import StoreIdentity, read_store
from sdk.segment.naming import HISTORY, MEDIA
from sdk.transport import endpoint_path, lock_path
from sdk.wire.messages import Control

LOG_FILE = "daemon.log"
_LOG_BYTES_MAX = 1 << 20
# A thread switch of the default 5 ms would let the syncer's few microseconds of Python hold up a whole tick.
_SWITCH_SECONDS = 0.0002
# What a worker gets to end by itself when we leave; killed it loses nothing.
_WORKER_END_SECONDS = 0.5
# Rows that were sealed wait so long for a worker: the many runs of a sweep that end together are one worker's work.
_REWRITE_PAUSE_SECONDS = 2.0
# What the worker tells, and `stepd status` shows.
_REWRITTEN = ("blobs", "failed", "missing", "errors", "rows", "bytes_before", "bytes_after", "alone")
_IMPORTED_EARLY = ("numpy", "psutil", "sdk.journal.survey")
_GC_THRESHOLDS = (200_000, 20, 20)

_log = logging.getLogger("stepd.daemon")


class Server:
    """One daemon. `run` returns when it has left."""

    def __init__(self, store: StoreIdentity, settings: DaemonSettings, files: Files = DISK) -> None:
        self._files = files
        self._store = store
        self._settings = settings
        now = clock.monotonic()
        self._stats = Stats(now)
        self._leaving = Leaving(
            now,
            persistent=settings.persistent,
            idle_seconds=settings.idle_seconds,
            drain_seconds=settings.drain_seconds,
        )
        self._lock_identity = lock_identity(lock_path(store.path))
        self._digest = platform.store_digest(store.path)
        self._ingest = Ingest(files, store, settings, self._stats, self._make_writer, _log.info)
        self._ingest.control = self._answer
        self._judge = Judge(
            lambda writer: any(writer in own.writers for own in self._ingest.writers.values()),
            self._lock_identity,
            ring_is_locked(settings.shared_memory_dir, self._digest),
        )
        self._rewriter = Worker("daemon.rewriter", [store.path], _log.warning)
        self._keeper = Keeper(store.path, _log.warning)
        self._carrier = Carrier(store.path, _log.warning)
        self._observer = Observer(
            store.path,
            self._ingest.table,
            _log.warning,
            is_allowed=settings.observe,
        )
        self._rewritten: dict[str, Any] = {}
        self._rewrite_at = float("inf")
        self._is_store_known = False
        self._mending: Iterator[Mended | None] | None = None
        self._has_new_segments = False
        self._looked_at = 0.0
        self._trouble = ""
        self._living = True  # until the first look

    def _make_writer(self, run: str) -> RunWriter:
        origin = {
            "kind": "daemon", **platform.identity(), "lock": self._lock_identity, "stream": None, "version": __version__,
        }  # fmt: skip
        # Why each its own id: one that was forgotten and made again would count its segments from 0 again.
        return RunWriter(self._files, self._store, run, random_u64(), origin)

    def run(self) -> None:
        """Serves until it is time to leave."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        # Merging a batch makes 100 000 objects that live for milliseconds and no cycles: looking for cycles among them
        # took a fifth of the time.
        gc.set_threshold(*_GC_THRESHOLDS)
        platform.raise_descriptor_limit()
        on_termination(lambda: self._leaving.terminate(clock.monotonic()))
        self.open()
        # Now, when trainers can connect already: the first block would wait 80 ms for numpy, and an environment that is
        # deleted under a running daemon does no harm.
        for name in _IMPORTED_EARLY:
            importlib.import_module(name)
        gc.freeze()
        _log.info("serving %s, pid %d, version %s", self._store.path, os.getpid(), __version__)
        while not (self._is_due() and self._is_still_due()):
            self.tick()
        _log.info("leaving")
        # Rings are looked at once more, then we are gone.
        if self._store_is_there():
            self._ingest.look_for_dead(clock.monotonic())
        self._observer.end(_WORKER_END_SECONDS)
        self._rewriter.end(_WORKER_END_SECONDS)
        self._keeper.end(_WORKER_END_SECONDS)
        self._carrier.end(_WORKER_END_SECONDS)
        self._ingest.close()

    def open(self) -> None:
        """Binds the socket, and has `tick` look for what the dead left. The caller holds the store's lock."""
        self._ingest.bind(endpoint_path(self._store.path))
        self._mending = mend_segments(self._files, self._store.path, self._judge)

    def _is_due(self) -> bool:
        now = clock.monotonic()
        return self._leaving.is_due(now, living_trainers=self._living or self._carrier.moves(now))

    def _is_still_due(self) -> bool:
        """Takes what came in meanwhile: a `stay` that is answered must be kept."""
        self._ingest.receive(clock.monotonic())
        return self._is_due()

    def tick(self) -> None:
        """Takes what is there, writes what is due, waits for more."""
        now = clock.monotonic()
        try:
            self._ingest.make_room(now)
        except (OSError, StoreError) as error:
            self._say_once(f"cannot listen: {error}")
        count = self._ingest.receive(now)
        self._ingest.flush(now)
        self._ingest.sync(now)
        self._ingest.measure(now)
        if now - self._looked_at >= self._settings.liveness_seconds:
            self._look_around(now)
        elif self._observer.is_called:
            self._look_after_observer(now)
        if count == 0 and not self._mend_one():
            self._ingest.wait(min(self._ingest.next_deadline(now), self._settings.liveness_seconds))

    def _look_around(self, now: float) -> None:
        self._looked_at = now
        if not self._store_is_there():
            _log.error("the store %s was removed; leaving", self._store.path)
            self._leaving.stop()
            return
        try:
            self._living = self._ingest.look_for_dead(now)
            self._check_endpoint()
            self._trouble = ""
        except (OSError, StoreError) as error:
            # The next look may find it well: a file system that is away for minutes, a mode that somebody changed.
            self._say_once(f"cannot look around: {error}")
        self._look_for_work(now)
        self._keeper.look(now)
        self._carrier.look(now)
        self._look_after_observer(now)
        working = self._rewriter.is_running or self._keeper.is_running or self._carrier.holds(now)
        self._leaving.note(now, living_trainers=self._living or working)

    def _look_after_observer(self, now: float) -> None:
        self._observer.look(now, living=self._living)
        if self._observer.take_sealed():
            self._rewrite_at = min(self._rewrite_at, now + _REWRITE_PAUSE_SECONDS)
        if self._observer.failed and self._mending is None:
            # It was killed: what it had open is sealed now, not when the next daemon comes.
            self._observer.failed = False
            self._mending = mend_runs(self._files, self._store.path, self._observer.runs, self._judge)

    def _look_for_work(self, now: float) -> None:
        """Has rewritten what was sealed since, and at first what an earlier daemon left."""
        if not self._settings.rewrite or self._mending is not None:
            return
        sealed = self._ingest.take_sealed()
        if not self._is_store_known:
            with contextlib.suppress(OSError):
                sealed |= kinds_in(self._files, self._store.path)
                self._is_store_known = True
        if HISTORY in sealed:
            self._rewrite_at = min(self._rewrite_at, now + _REWRITE_PAUSE_SECONDS)
        if MEDIA in sealed or now >= self._rewrite_at:
            self._rewriter.wanted, self._rewrite_at = True, float("inf")
        self._rewriter.look(now)

    def _say_once(self, text: str) -> None:
        """What would be the same at every look stands in the log once."""
        if text != self._trouble:
            self._trouble = text
            _log.error("%s", text)

    def _store_is_there(self) -> bool:
        """Whether the path still names the directory that we serve; so we believe while it cannot be asked (ESTALE, EIO)."""
        try:
            return platform.store_digest(self._store.path) == self._digest
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def _check_endpoint(self) -> None:
        """Binds again when somebody cleaned /tmp, and leaves when the lock's file went too: then nobody can find us.

        Whoever starts a daemon now makes a new lock file, and its socket must not be taken away from it.

        Raises:
            OSError, StoreError: The directory of sockets cannot be used now. Sessions that are open go on.
        """
        try:
            locked = lock_identity(lock_path(self._store.path)) == self._lock_identity
        except FileNotFoundError:
            locked = False
        if not locked:
            _log.error("the lock's file was removed; leaving, a sender or init() starts another daemon")
            self._ingest.forget_socket()
            self._leaving.stop()
        elif not self._ingest.socket_is_ours():
            _log.warning("the socket's file was removed or replaced; binding again")
            self._ingest.rebind()

    def _mend_one(self) -> bool:
        """Looks at one segment of a dead writer; False when there is nothing left to look at."""
        if self._mending is None and (ended := self._ingest.take_ended()) is not None:
            run, stream, is_dead = ended
            self._mending = mend_stream(self._files, self._store.path, run, stream, self._judge, is_dead=is_dead)
            self._has_new_segments = wrote_segments(self._files, self._store.path, run, stream)
        if self._mending is None:
            return False
        try:
            mended = next(self._mending)
        except StopIteration:
            self._mending = None
            self._rewriter.wanted |= self._has_new_segments
            self._has_new_segments = False
            return False
        except OSError as error:
            _log.warning("looking for unsealed segments: %s", error)
            self._mending = None
            return False
        if mended is not None and mended.result is not None:
            self._stats.mended += 1
            self._stats.torn_bytes += mended.result.torn_bytes
            self._ingest.forcing.force(mended.path)
            _log.info("sealed %s, cut %d torn bytes", mended.path, mended.result.torn_bytes)
        elif mended is not None:
            _log.warning("cannot mend %s: %s", mended.path, mended.error)
        return True

    # -- commands ----------------------------------------------------------------------------------------------------

    def _answer(self, message: Control) -> dict[str, Any]:
        verbs: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "status": lambda _: self.status(),
            "stay": self._stay,
            "stop": self._stop,
            "flush": self._flush,
            "settle": self._settle,
            "budget": self._budget,
            "rewritten": self._note_rewritten,
            "keeping": self._note_keeping,
            "observed": self._observer.answer,
            "carrying": self._note_carrying,
        }
        handler = verbs.get(message.verb)
        if handler is None:
            raise Error(
                f"unknown command {message.verb!r}; this daemon (version {__version__}) knows {', '.join(verbs)}"
            )
        return handler(message.arguments)

    def _stay(self, _: dict[str, Any]) -> dict[str, Any]:
        self._leaving.persistent = True
        return self.status()

    def _stop(self, _: dict[str, Any]) -> dict[str, Any]:
        self._leaving.stop()
        return self.status()

    def _flush(self, _: dict[str, Any]) -> dict[str, Any]:
        from daemon.pipeline.flush import Reason

        self._ingest.flush(clock.monotonic(), Reason.REQUEST)
        return {}

    def _settle(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Before a resume: everything of the dead is taken in and everything received is written."""
        self._ingest.look_for_dead(clock.monotonic())
        return self._flush(arguments)

    def _budget(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Other budgets from now on, for the daemons that come after as well; those that are not named stay."""
        unknown = set(arguments) - set(Budget._fields)
        if unknown or not all(type(size) is int and size >= 0 for size in arguments.values()):
            raise Error(f"budgets are {', '.join(Budget._fields)} in bytes, not {arguments!r}")
        self._ingest.budget.budget = self._ingest.budget.budget._replace(**arguments)
        try:
            keep_budgets(self._files, self._store.path, arguments)
        except OSError as error:
            self._say_once(f"the budgets are forgotten when this daemon ends: {error}")
        return self.status()

    def _note_rewritten(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The worker that rewrites tells how far it is."""
        self._rewritten = {name: arguments.get(name) for name in _REWRITTEN}
        return {}

    def _note_keeping(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The keeper tells what keeps a job waiting."""
        trouble = str(arguments.get("trouble") or "")
        if trouble and trouble != self._keeper.trouble:
            _log.warning("keeping: %s", trouble)
        self._keeper.trouble = trouble
        return {}

    def _note_carrying(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The carrier tells whether anything moves."""
        self._carrier.note(clock.monotonic(), arguments)
        return {}

    def status(self) -> dict[str, Any]:
        """What `stepd status --json` prints; docs/wire.md#control lists the fields."""
        import psutil

        now = clock.monotonic()
        stats = self._stats
        records, size = stats.rates(now)
        refused = self._ingest.refused_by_stream()
        runs: dict[str, dict[str, Any]] = {}
        for stream, state in self._ingest.streams.items():
            none = {"id": state.run, "streams": 0, "living": 0, "waiting_bytes": 0, "lag_seconds": 0.0, "refused": 0}
            run = runs.setdefault(state.run, none)
            run["streams"] += 1
            run["living"] += state.lives
            run["waiting_bytes"] += state.waiting_bytes
            run["refused"] += refused.get(stream, 0)
            run["lag_seconds"] = max(run["lag_seconds"], now - state.heard if state.waiting else 0.0)
        return {
            "pid": os.getpid(),
            "version": __version__,
            "store": self._store.path,
            "uptime_seconds": now - stats.started,
            "persistent": self._leaving.persistent,
            "draining": self._leaving.is_terminated,
            "runs": list(runs.values()),
            "records": stats.records,
            "bytes": stats.bytes,
            "records_per_second": records,
            "bytes_per_second": size,
            "duplicates": stats.duplicates,
            "refused": sum(refused.values()),
            "refused_reasons": self._refused_reasons(refused),
            "flushes": dict(stats.flushes),
            "synced_age_seconds": self._ingest.synced_age(now),
            "protocol_errors": stats.protocol_errors,
            "write_failures": stats.write_failures,
            "sync_failures": stats.sync_failures,
            "rewritten_blocks": stats.rewritten_blocks,
            "gaps": dict(+stats.gaps),
            "drained_rings": stats.drained,
            "mended_segments": stats.mended,
            "free_bytes": self._free_bytes(),
            "budget": self._ingest.budget.budget._asdict(),
            "store_bytes": self._ingest.budget.store_bytes,
            "warnings": self._warnings(),
            "memory_bytes": psutil.Process().memory_info().rss,
            "last_error": stats.last_error,
            "rewriting": {"running": self._rewriter.is_running, **self._rewritten},
            "keeping": self._keeper.status(),
            "observing": self._observer.status(),
            "carrying": self._carrier.status(),
        }

    def _refused_reasons(self, refused: dict[int, int]) -> dict[str, int]:
        """Refused calls by what kept the records in the rings, as far as we saw it."""
        reasons: Counter[str] = Counter()
        for stream, count in refused.items():
            state = self._ingest.streams.get(stream)
            reasons[REFUSED_REASONS[state.last_trouble if state else 0]] += count
        return dict(+reasons)

    def _warnings(self) -> list[str]:
        """What keeps streams waiting now, and what to do."""
        lines = []
        for code, count in self._ingest.troubles().items():
            what, cure = explain(code, self._store.path)
            lines.append(
                f"{what}: {count} stream{'' if count == 1 else 's'} wait{'s' if count == 1 else ''}. Try: {cure}"
            )
        return lines

    def _free_bytes(self) -> int:
        with contextlib.suppress(OSError):
            return self._files.free_bytes(self._store.path)
        return 0


def serve(store_path: str, settings: DaemonSettings, files: Files = DISK) -> int:
    """Serves the store at `store_path`; 0 when it left in order, or when another daemon serves it already.

    Args:
        files: What the store is written through; tests give one that fails or dies.

    Raises:
        StoreError: The store cannot be used.
    """
    store = read_store(store_path)
    if not store.writable:
        raise StoreError(f"the store {store_path!r} is not ours to write")
    lock = take_store(store.path, __version__)
    if lock is None:
        return 0
    try:
        Server(store, settings, files).run()
    finally:
        lock.release()
    return 0


def log_to(path: str | None) -> None:
    """Sends the daemon's log to a file that cannot grow beyond 2 MiB, or to stderr."""
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        with contextlib.suppress(OSError):
            handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES_MAX, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)


def main(arguments: list[str]) -> None:
    """Entry of a started daemon (`sdk._spawn`); no click or rich on this path."""
    parser = argparse.ArgumentParser("stepd-server")
    parser.add_argument("--store", required=True)
    parser.add_argument("--idle-seconds", type=float, default=DaemonSettings.idle_seconds)
    parser.add_argument("--shared-memory-dir", default=DaemonSettings.shared_memory_dir)
    parser.add_argument("--persistent", action="store_true")
    options = parser.parse_args(arguments)
    os.umask(0o077)
    log_to(os.path.join(options.store, LOG_FILE))
    try:
        settings = DaemonSettings(
            idle_seconds=options.idle_seconds,
            shared_memory_dir=options.shared_memory_dir,
            persistent=options.persistent,
            observe=observes(os.environ),
            **(read_budgets(DISK, options.store) | budgets_from(os.environ)),
        )
        code = serve(options.store, settings)
    except (StoreError, OSError):
        _log.exception("cannot serve %s", options.store)
        code = 1
    except Exception:
        _log.exception("the daemon met an unexpected error")
        code = 1
    logging.shutdown()
    # Why not sys.exit: nothing is left to do, and no library's exit handler may keep the process.
    os._exit(code)
