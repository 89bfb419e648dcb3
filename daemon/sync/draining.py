"""`stepd sync --drain`, the last line of a job script: what `init(sync_to=)` asked for is delivered before the node is taken away.

It waits until what trainers left in shared memory is stored, by the daemon or, where none serves, by this process; then it does all jobs
of the store itself (`daemon.sync.rounds`). A carrier that is at work at the same time is no harm: the lock beside each cursor decides who
carries a run, and whoever comes second waits for the other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from daemon.sync.outcome import GOOD
from daemon.sync.place import parse
from daemon.sync.rounds import Entry, Rounds
from sdk import clock, platform
from sdk._syncing import Job, read_job
from sdk.errors import DamageError, Error, StoreError, UsageError
from sdk.files import DISK
from sdk.journal.drain import ring_paths
from sdk.location import StoreIdentity, read_store
from sdk.segment.naming import run_path
from sdk.settings import Settings
from sdk.transport import lock_path, request

# Without a `timeout`, a target that refuses so often in a row is given up.
TRIES_MAX = 5
# A disk that refuses what is in the rings is not waited for longer: what is stored is delivered.
SETTLE_SECONDS_MAX = 30.0
# A worker that is in the middle of a batch when the time is over gets so long to come to its end.
_END_SECONDS = 2.0
# What dead trainers left has been taken in before the first pass; this is for those that live and have just begun.
_BEGINNING_SECONDS = 2.0
_LOOK_SECONDS = 0.05


class Left(NamedTuple):
    """What stayed behind.

    Attributes:
        behind: Records that the target lacks; 0: not known.
        why: In words.
    """

    run: str
    target: str
    behind: int
    why: str


def drain(
    store_path: str,
    *,
    timeout: float | None = None,
    targets: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[Left]:
    """Delivers every job of the store, and gives what stayed behind; [] means that all is there.

    Args:
        timeout: Seconds; None: until all is delivered, or what is left was refused `TRIES_MAX` times, or can never be.
        targets: Only these, as `stepd sync --to` takes them; none: all.
        say: Told a line now and then.
        is_stopped: Asked some times a second.

    Raises:
        StoreError: There is no such store, or one that cannot be written to.
        UsageError: One of `targets` is no target.
    """
    deadline = float("inf") if timeout is None else clock.monotonic() + timeout
    store = read_store(store_path)
    if not store.writable:
        raise StoreError(
            f"cannot write into {store.path!r}, where the jobs of init(sync_to=) are", hint="stepd sync --all --to …"
        )
    wanted = {parse(target).absolute().text for target in targets}
    _settle(store, min(deadline, clock.monotonic() + SETTLE_SECONDS_MAX), say)
    tries_max = TRIES_MAX if timeout is None else None
    rounds = Rounds(store.path, is_ours=_Choice(wanted), beginning_seconds=_BEGINNING_SECONDS)
    shown = -1
    try:
        rounds.turn()
        while not is_stopped() and clock.monotonic() < deadline:
            if not any(_may_end(store, entry, tries_max) for entry in rounds.entries.values()):
                break
            if len(rounds.entries) != shown:
                shown = len(rounds.entries)
                say(f"{shown} run{'' if shown == 1 else 's'} to deliver")
            clock.pause(rounds.pause)
            rounds.turn()
    finally:
        rounds.end(_END_SECONDS)
    return sorted(_left(store, entry) for entry in rounds.entries.values())


class _Choice:
    """Which jobs are meant. A target may be written in several ways, so what a job says is read, once."""

    def __init__(self, wanted: set[str]) -> None:
        self._wanted = wanted
        self._known: dict[str, bool] = {}

    def __call__(self, job: Job) -> bool:
        if not self._wanted:
            return True
        if job.target not in self._known:
            with contextlib.suppress(OSError, DamageError, UsageError):
                self._known[job.target] = parse(read_job(job).target).absolute().text in self._wanted
        return self._known.get(job.target, False)


def _may_end(store: StoreIdentity, entry: Entry, tries_max: int | None) -> bool:
    """Whether waiting longer may bring it to its end: it has not failed for good, and there is a run to carry."""
    is_refused = tries_max is not None and entry.refusals >= tries_max
    if (entry.is_hopeless or is_refused) and not entry.is_urgent:
        return False
    return entry.handed is not None or DISK.exists(run_path(store.path, entry.order.run))


def _left(store: StoreIdentity, entry: Entry) -> Left:
    told = entry.told
    if not DISK.exists(run_path(store.path, entry.order.run)):
        why = "nothing of it is stored"
    elif told.reason:
        why = told.reason
    elif told.state in GOOD:
        why = "it is still being written"
    else:
        why = "there was no time for it"
    return Left(entry.order.run, entry.order.target, told.behind, why)


def _settle(store: StoreIdentity, deadline: float, say: Callable[[str], None]) -> None:
    """Waits until what dead trainers left in shared memory is stored."""
    base = os.environ.get("STEPD_SHARED_MEMORY_DIR") or Settings.shared_memory_dir
    is_told = False
    while not _take_in(store, base, max(deadline - clock.monotonic(), 0.1)) and clock.monotonic() < deadline:
        if not is_told:
            say("waiting for what trainers left in shared memory")
            is_told = True
        clock.pause(_LOOK_SECONDS)


def _take_in(store: StoreIdentity, base: str, seconds: float) -> bool:
    """Has the rings of the dead stored; whether none is left."""
    daemon = platform.lock_owner(lock_path(store.path))
    try:
        if daemon is not None:
            request(store.path, "settle", timeout=seconds)
        elif store.writable:
            from sdk._spool import drain_orphans

            drain_orphans(DISK, store, base)
    except (Error, OSError):
        return False
    # A daemon holds the lock of a ring while it takes it over.
    dead = (None, daemon) if daemon is not None else (None,)
    rings = ring_paths(base, platform.store_digest(store.path))
    return all(platform.lock_owner(path) not in dead for path in rings)
