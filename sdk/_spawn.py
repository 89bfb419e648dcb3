"""Finds or starts the daemon of a store. Never imports it: it is started from the directory this package lies in.

A started daemon is nobody's child (`sdk.platform.spawn_detached`). Which of several started at once serves is decided by
the lock it takes before it binds, so starting one too many is harmless.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from types import MappingProxyType

from . import clock, platform
from .errors import CommError
from .transport import lock_path, request, stopped_path

_START_AGAIN_SECONDS = 3.0
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Runs in the new process. `-c` puts the working directory first on the path: a user's own daemon.py must not be found.
_CODE = f"""\
import sys
sys.path[:] = [p for p in sys.path if p]
root, *packages = sys.argv.pop(1).split({os.pathsep!r})
sys.path[:] = [root, *(p for p in sys.path if p != root), *(p for p in packages if p not in sys.path)]
from sdk.platform import detach_from_starter
detach_from_starter()
try:
    import daemon
    assert daemon.__file__.startswith(sys.path[0]), daemon.__file__
    from daemon.server import main
except BaseException:
    # Nobody sees our stderr: what keeps a daemon from starting must stand where `stepd status --log` looks.
    import os, traceback
    with open(os.path.join(sys.argv[2], "daemon.log"), "a") as log:
        traceback.print_exc(file=log)
    raise
main(sys.argv[1:])
"""


def is_serving(store: str) -> bool:
    """Whether a living daemon holds the lock of `store` on this host. Costs a few system calls, waits for nobody."""
    return platform.is_locked(lock_path(store))


def was_stopped(store: str) -> bool:
    """Whether a user said `stop` and nobody said `start` or `init` since."""
    return os.path.exists(stopped_path(store))


def mark_stopped(store: str, stopped: bool) -> None:
    path = stopped_path(store)
    if stopped:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def start(
    store: str,
    *,
    persistent: bool,
    idle_seconds: float,
    shared_memory_dir: str,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Starts a daemon and returns at once with the pid of a starter, which the caller reaps (`reap`).

    Args:
        persistent: It stays until it is stopped, instead of leaving when no trainer needs it.
        variables: Stronger than those of the environment, which the daemon inherits.

    Raises:
        OSError: No process could be made.
    """
    arguments = ["--store", store, "--idle-seconds", str(idle_seconds), "--shared-memory-dir", shared_memory_dir]
    if persistent:
        arguments.append("--persistent")
    return platform.spawn_detached(_CODE, {**os.environ, **variables}, [os.pathsep.join(_import_path()), *arguments])


def _import_path() -> list[str]:
    """Our own root first, then where this process found its packages; never the script's own directory."""
    packages = [p for p in sys.path if os.path.basename(p.rstrip("/")) in ("site-packages", "dist-packages")]
    return [_ROOT, *(p for p in packages if p != _ROOT)]


def reap(starter: int) -> bool:
    """Whether the starter has ended (it does so within some 50 ms). Never waits."""
    try:
        return os.waitpid(starter, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def ensure(store: str, *, timeout: float, shared_memory_dir: str, persistent: bool = True) -> dict[str, object]:
    """Starts a daemon unless one serves, and returns its status when it answers.

    Raises:
        CommError: None answered within `timeout` seconds.
    """
    deadline = clock.monotonic() + timeout
    mark_stopped(store, False)
    starter, start_at = 0, clock.monotonic()
    while clock.monotonic() < deadline:
        if starter and reap(starter):
            starter = 0
        # Again after a while: the one that served a moment ago may have been dying, and so may the one we started.
        if clock.monotonic() >= start_at and not is_serving(store):
            start_at = clock.monotonic() + _START_AGAIN_SECONDS
            starter = start(store, persistent=persistent, idle_seconds=60.0, shared_memory_dir=shared_memory_dir)
        with contextlib.suppress(CommError):
            return request(store, "stay" if persistent else "status", timeout=min(1.0, timeout))
        clock.pause(0.01)
    raise CommError(
        f"no daemon came up for {store} within {timeout:g} s", hint="stepd status --log; stepd start --foreground"
    )
