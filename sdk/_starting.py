"""Starting a daemon again when none answers: with a pause that doubles, one at a time, and not after a user's `stop`."""

from __future__ import annotations

from collections.abc import Callable

from . import _spawn, clock
from .errors import Error
from .settings import Settings

# When no daemon answered for `restart_seconds` the sender starts one; then it backs off, doubling, up to this.
RESTART_SECONDS_MAX = 300.0
# Where it could not even be tried, again so soon: the store may be back.
_AGAIN_SECONDS = 1.0
# One that somebody else has just started gets so long to come up.
_ADOPTED_SECONDS = 5.0


class Starting:
    """A sender's word on when a daemon is started.

    Attributes:
        contact: When a daemon last answered, or we began to look for one.
    """

    def __init__(self, store: str, settings: Settings, now: float, notice: Callable[[str, str], None]) -> None:
        self._store = store
        self._settings = settings
        self._notice = notice
        self._pause = settings.restart_seconds
        self._next = now + settings.restart_seconds
        self._starter = 0
        self.contact = now

    def adopt(self, pid: int) -> None:
        """Takes over a process started by `_spawn.start`, to be reaped here."""
        self._starter = pid
        self._next = clock.monotonic() + _ADOPTED_SECONDS

    def welcomed(self) -> None:
        """A daemon took us: the next trouble begins with a short pause again."""
        self._pause = self._settings.restart_seconds

    def not_before(self, moment: float) -> None:
        self._next = moment

    def reap(self) -> None:
        """Looks after a starter that has ended."""
        if self._starter and _spawn.reap(self._starter):
            self._starter = 0

    def look(self, now: float, *, is_locked: Callable[[], bool]) -> None:
        """No session is open: starts a daemon if it is time and none has the store's lock."""
        if now < self._next or now - self.contact < self._settings.restart_seconds:
            return
        if not self._settings.autostart or is_locked():
            return
        try:
            if _spawn.was_stopped(self._store):
                return
            self._next = now + self._pause
            self._pause = min(self._pause * 2, RESTART_SECONDS_MAX)
            self._starter = _spawn.start(
                self._store,
                persistent=False,
                idle_seconds=self._settings.idle_seconds,
                shared_memory_dir=self._settings.shared_memory_dir,
                variables=self._settings.for_daemon,
            )
        except (OSError, Error) as error:  # the store or the directory of sockets may be away for a while
            self._next = now + max(self._settings.restart_seconds, _AGAIN_SECONDS)
            self._notice("start", f"no daemon could be started: {error}")
