"""Real processes that cost milliseconds: daemons and trainers forked from the test's process, and what they left behind.

with quiet(STEPD_AUTOSTART="0"), temporary_store() as store:
    daemon = fork_daemon(store.path)                  # serves in 20 ms, looks around 20 times a second
    trainer = Loop(store.path, "run")                 # logs {"x": 0}, {"x": 1}, ... until told
    trainer.stop()
    stored_exactly(store.path, "run", trainer.returned)
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import mmap
import os
import resource
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import sdk
from daemon.server import LOG_FILE, log_to, serve
from daemon.settings import DaemonSettings
from sdk import _spawn, clock, platform
from sdk.errors import CommError, StoreError
from sdk.journal.drain import ring_paths
from sdk.platform import linux
from sdk.transport import request
from tests.end_to_end.world import Trainer, until

# How often a forked daemon looks around: what takes a second in life takes 50 ms here.
LOOK_SECONDS = 0.05


@contextlib.contextmanager
def quiet(**variables: str) -> Iterator[None]:
    """An environment without settings of the user's, silent, and with these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("STEPD_", "WANDB_"))}
    with mock.patch.dict(os.environ, {**kept, "STEPD_SILENT": "1", **variables}, clear=True):
        yield


@contextlib.contextmanager
def private_runtime() -> Iterator[str]:
    """A directory of our own for sockets and locks, in this process and what it forks; its path."""
    with tempfile.TemporaryDirectory(prefix="stepd-run-") as base:
        path = f"{base}/stepd"

        def directory() -> str:
            return linux._private_directory(path)

        with mock.patch.object(platform, "runtime_directory", directory):
            yield path


def ready_to_die() -> None:
    """For a forked process that will be killed in all ways: no core file, no traceback of pytest's, default signals."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def fork_daemon(store: str, prepare: Callable[[], object] = lambda: None, **settings: Any) -> Trainer:
    """A daemon of `store` that is our child. It may find another one serving, and leave.

    Args:
        prepare: Called in the new process first.
    """

    def body(_: Callable[[int], None]) -> None:
        os.setsid()
        ready_to_die()
        logging.getLogger("stepd.daemon").propagate = False
        log_to(os.path.join(store, LOG_FILE))
        prepare()
        os._exit(serve(store, DaemonSettings(**{"liveness_seconds": LOOK_SECONDS, "rewrite": False, **settings})))

    return Trainer(body)


def answers(store: str) -> dict[str, Any] | None:
    """The daemon's status, or None when none answers at once."""
    with contextlib.suppress(CommError, StoreError, OSError):
        return request(store, "status", timeout=0.5)
    return None


def serving(store: str) -> bool:
    try:
        return _spawn.is_serving(store)
    except (StoreError, OSError):
        return False


class Loop(Trainer):
    """A trainer that logs {"x": n} about a thousand times a second until `stop`, then finishes; `returned` counts calls."""

    def __init__(self, store: str, run: str = "run", prepare: Callable[[], object] = lambda: None) -> None:
        self._told = mmap.mmap(-1, 4096)  # shared; a pipe would stay open in whatever is forked meanwhile

        def body(count: Callable[[int], None]) -> None:
            ready_to_die()
            prepare()
            sdk.init(id=run, project="lives", dir=store)
            n = 0
            while not self.is_told:
                sdk.log({"x": n})
                n += 1
                count(n)
                time.sleep(0.001)
            sdk.finish()

        super().__init__(body)

    @property
    def is_told(self) -> bool:
        return self._told[0] != 0

    def past(self, calls: int) -> None:
        """Waits until so many more calls have returned."""
        goal = self.returned + calls

        def reached() -> bool:
            assert os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, "the trainer has ended"
            return self.returned >= goal

        until(reached)

    def stop(self) -> int:
        """Tells it to finish and waits for that; its exit code."""
        self.tell()
        return self.wait()

    def tell(self) -> None:
        self._told[0] = 1


def stored_exactly(store: str, run: str, returned: int, *, more: int = 1) -> int:
    """What returned is there once, in order, without gap or damage; at most `more` calls that were in flight as well.

    Returns:
        How many rows there are.
    """
    opened = sdk.open_store(store).run(run)
    assert [gap for gap in opened.gaps if gap.count] == [], opened.gaps
    assert opened.damage == [], opened.damage
    series = opened.series("x")
    found = len(series.step)
    assert series.step.tolist() == list(range(found)), f"{found} rows of {returned}: {series.step.tolist()[:50]}..."
    assert series.value.tolist() == list(range(found))
    assert returned <= found <= returned + more, f"{returned} calls returned, {found} rows are there"
    return found


def end_all(*processes: Trainer) -> None:
    """Kills and reaps whichever of them still lives."""
    for process in processes:
        # Who was waited for already is asked first: his pid may be somebody else's by now.
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(process.pid, os.WNOHANG)[0] == 0:
                process.kill()
                os.waitpid(process.pid, 0)


def rows_of(store: str, run: str = "run") -> int:
    """How many rows of a run can be read now."""
    try:
        return len(sdk.open_store(store).run(run).series("x").step)
    except sdk.Error:
        return 0


def rings(store: str) -> list[str]:
    """The rings of a store's processes that are still there, the living and the dead."""
    return ring_paths("/dev/shm", platform.store_digest(store))


class WallClock:
    """A wall clock that jumps, in every process that installed it; monotonic time goes on as it does."""

    def __init__(self) -> None:
        self._offset = mmap.mmap(-1, 4096)
        self._real = time.time_ns

    @property
    def offset_ns(self) -> int:
        return int(struct.unpack_from("<q", self._offset, 0)[0])

    def now_ns(self) -> int:
        return self._real() + self.offset_ns

    def jump(self, to: float | str) -> float:
        """Moves the clock to so many seconds from the true time, or to the middle of a year; the new offset in seconds."""
        if isinstance(to, str):
            to = (int(to) - 1970 + 0.5) * 365.2425 * 86_400 - self._real() / 1e9
        struct.pack_into("<q", self._offset, 0, int(to * 1e9))
        return float(to)

    def install(self) -> None:
        """For a forked process: time.time, time.time_ns and our own clock tell what this clock says, until it ends."""
        time.time_ns = clock.wall_ns = self.now_ns
        time.time = lambda: self.now_ns() / 1e9

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """This process reads by it as well, for a while."""
        with mock.patch.object(clock, "wall_ns", self.now_ns):
            yield
