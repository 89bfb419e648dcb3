"""The worker process that carries runs while they are written: ``python -m daemon.carrier STORE``. Started by the daemon.

It does the jobs that trainers of this machine left in the store (`sdk._syncing`, `daemon.sync.rounds`) and ends when none has been
left for a while. It carries nothing itself: each target has a worker process, which this one starts and watches. It is nice, idle in
I/O, holds no more than some MiB, and ends when its parent has; whoever kills it at any moment loses nothing. Exit code: 0.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from daemon.lifecycle import behave_as_worker
from daemon.sync.rounds import LINGER_SECONDS, Rounds
from sdk import clock
from sdk.errors import CommError, Error
from sdk.location import StoreIdentity, check_store, read_store
from sdk.transport import request

# How often the daemon hears of it, which stays while something moves.
_TELL_SECONDS = 2.0
_TROUBLE_CHARACTERS_MAX = 500


def main(store_path: str) -> int:
    """Does every job that waits, and those that come meanwhile."""
    return carry(read_store(store_path), behave_as_worker())


def carry(store: StoreIdentity, is_wanted: Callable[[], bool]) -> int:
    """The work of the process. 0: no job is left, or it is told to end."""
    rounds = Rounds(store.path)
    told_at, used_at = -float("inf"), clock.monotonic()
    try:
        while is_wanted():
            with contextlib.suppress(Error, OSError):  # a store that is away for a moment comes back
                check_store(store)
                rounds.turn()
            used_at = clock.monotonic() if rounds.entries else used_at
            if clock.monotonic() - used_at >= LINGER_SECONDS:
                break
            if clock.monotonic() - told_at >= _TELL_SECONDS:
                told_at = clock.monotonic()
                _tell(store, rounds)
            clock.pause(rounds.pause)
    finally:
        rounds.end()
    if is_wanted():
        _tell(store, rounds)
    return 0


def _tell(store: StoreIdentity, rounds: Rounds) -> None:
    """Says to the daemon how it goes; it stays while something moves, and shows the rest in `stepd status`."""
    facts = {
        "waiting": len(rounds.entries),
        "quiet_seconds": clock.monotonic() - rounds.progressed,
        "trouble": rounds.trouble[:_TROUBLE_CHARACTERS_MAX],
    }
    with contextlib.suppress(CommError, Error, OSError):
        request(store.path, "carrying", facts, timeout=1.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
