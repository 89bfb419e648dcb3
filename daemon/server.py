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
from collections.abc import Callable, Iterator
from typing import Any

from daemon.ingest import Ingest
from daemon.lifecycle import Leaving, on_termination, take_store
from daemon.settings import DaemonSettings
from daemon.stats import Stats
from daemon.store.recovery import Mended, lock_identity, mend_segments, ring_is_locked
from daemon.store.run_writer import RunWriter
from sdk import __version__, clock, platform
from sdk.errors import Error, StoreError
from sdk.files import DISK
from sdk.ids import random_u64
from sdk.location import StoreIdentity, read_store
from sdk.transport import endpoint_path, lock_path
from sdk.wire.messages import Control

LOG_FILE = "daemon.log"
_LOG_BYTES_MAX = 1 << 20
# A thread switch of the default 5 ms would let the syncer's few microseconds of Python hold up a whole tick.
_SWITCH_SECONDS = 0.0002
_IMPORTED_EARLY = ("numpy", "psutil")
_GC_THRESHOLDS = (200_000, 20, 20)
_SOCKET_CHECK_SECONDS = 5.0

_log = logging.getLogger("stepd.daemon")


class Server:
    """One daemon. `run` returns when it has left."""

    def __init__(self, store: StoreIdentity, settings: DaemonSettings) -> None:
        self._store = store
        self._settings = settings
        self._writer_id = random_u64()
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
        self._ingest = Ingest(DISK, store, settings, self._stats, self._make_writer, _log.info)
        self._ingest.control = self._answer
        self._mending: Iterator[Mended | None] | None = None
        self._looked_at = 0.0
        self._checked_at = now
        self._living = True  # until the first look

    def _make_writer(self, run: str) -> RunWriter:
        origin = {
            "kind": "daemon", "host": platform.host_name(), "boot_id": platform.boot_id(), "pid": os.getpid(),
            "lock": self._lock_identity, "stream": None, "version": __version__,
        }  # fmt: skip
        return RunWriter(DISK, self._store, run, self._writer_id, origin)

    def run(self) -> None:
        """Serves until it is time to leave."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        # Merging a batch makes 100 000 objects that live for milliseconds and no cycles: looking for cycles among them
        # took a fifth of the time.
        gc.set_threshold(*_GC_THRESHOLDS)
        platform.raise_descriptor_limit()
        on_termination(lambda: self._leaving.terminate(clock.monotonic()))
        self._ingest.bind(endpoint_path(self._store.path))
        # Now, when trainers can connect already: the first block would wait 80 ms for numpy, and an environment that is
        # deleted under a running daemon does no harm.
        for name in _IMPORTED_EARLY:
            importlib.import_module(name)
        gc.freeze()
        self._mending = mend_segments(
            DISK,
            self._store.path,
            self._writer_id,
            self._lock_identity,
            ring_is_locked(self._settings.shared_memory_dir, self._digest),
        )
        _log.info("serving %s, pid %d, version %s", self._store.path, os.getpid(), __version__)
        while not (self._is_due() and self._is_still_due()):
            self.tick()
        _log.info("leaving")
        # Rings are looked at once more, then we are gone.
        if self._store_is_there():
            self._ingest.look_for_dead(clock.monotonic())
        self._ingest.close()

    def _is_due(self) -> bool:
        return self._leaving.is_due(clock.monotonic(), living_trainers=self._living)

    def _is_still_due(self) -> bool:
        """Takes what came in meanwhile: a `stay` that is answered must be kept."""
        self._ingest.receive(clock.monotonic())
        return self._is_due()

    def tick(self) -> None:
        """Takes what is there, writes what is due, waits for more."""
        now = clock.monotonic()
        count = self._ingest.receive(now)
        self._ingest.flush(now)
        self._ingest.sync(now)
        if now - self._looked_at >= self._settings.liveness_seconds:
            self._look_around(now)
        if count == 0 and not self._mend_one():
            self._ingest.wait(min(self._ingest.next_deadline(now), self._settings.liveness_seconds))

    def _look_around(self, now: float) -> None:
        self._looked_at = now
        if not self._store_is_there():
            _log.error("the store %s was removed; leaving", self._store.path)
            self._leaving.stop()
            return
        self._living = self._ingest.look_for_dead(now)
        self._leaving.note(now, living_trainers=self._living)
        if now - self._checked_at > _SOCKET_CHECK_SECONDS:
            self._checked_at = now
            self._check_endpoint()

    def _store_is_there(self) -> bool:
        """Whether the path still names the directory that we serve."""
        try:
            return platform.store_digest(self._store.path) == self._digest
        except OSError:
            return False

    def _check_endpoint(self) -> None:
        """Binds again when somebody cleaned /tmp, and leaves when the lock's file went too: then nobody can find us.

        Whoever starts a daemon now makes a new lock file, and its socket must not be taken away from it.
        """
        try:
            locked = lock_identity(lock_path(self._store.path)) == self._lock_identity
        except (OSError, StoreError):
            locked = False
        if not locked:
            _log.error("the lock's file was removed; leaving, a sender or init() starts another daemon")
            self._ingest.forget_socket()
            self._leaving.stop()
        elif not self._ingest.socket_is_ours():
            _log.warning("the socket's file is gone; binding again")
            self._ingest.rebind()

    def _mend_one(self) -> bool:
        """Looks at one segment of a dead writer; False when there is nothing left to look at."""
        if self._mending is None:
            return False
        try:
            mended = next(self._mending)
        except StopIteration:
            self._mending = None
            return False
        except OSError as error:
            _log.warning("looking for unsealed segments: %s", error)
            self._mending = None
            return False
        if mended is not None and mended.result is not None:
            self._stats.mended += 1
            self._stats.torn_bytes += mended.result.torn_bytes
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

    def status(self) -> dict[str, Any]:
        """What `stepd status --json` prints; docs/wire.md#control lists the fields."""
        import psutil

        now = clock.monotonic()
        stats = self._stats
        records, size = stats.rates(now)
        refused = self._ingest.refused_by_stream()
        runs: dict[str, dict[str, Any]] = {}
        for stream, state in self._ingest.streams.items():
            none = {"id": state.run, "streams": 0, "waiting_bytes": 0, "lag_seconds": 0.0, "refused": 0}
            run = runs.setdefault(state.run, none)
            run["streams"] += 1
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
            "refused_reasons": {"journal full": sum(refused.values())} if any(refused.values()) else {},
            "flushes": dict(stats.flushes),
            "synced_age_seconds": self._ingest.synced_age(now),
            "protocol_errors": stats.protocol_errors,
            "write_failures": stats.write_failures,
            "sync_failures": stats.sync_failures,
            "drained_rings": stats.drained,
            "mended_segments": stats.mended,
            "free_bytes": self._free_bytes(),
            "memory_bytes": psutil.Process().memory_info().rss,
            "last_error": stats.last_error,
        }

    def _free_bytes(self) -> int:
        with contextlib.suppress(OSError):
            return DISK.free_bytes(self._store.path)
        return 0


def serve(store_path: str, settings: DaemonSettings) -> int:
    """Serves the store at `store_path`; 0 when it left in order, or when another daemon serves it already.

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
        Server(store, settings).run()
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
    settings = DaemonSettings(
        idle_seconds=options.idle_seconds,
        shared_memory_dir=options.shared_memory_dir,
        persistent=options.persistent,
    )
    try:
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
