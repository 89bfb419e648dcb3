"""`stepd sync --forget`: takes away jobs of `init(sync_to=)` that nobody is to do any more: a target that is gone, or was a mistake.

What was carried stays at the target, and how far that was stays in its cursor. A pass that is under way comes to its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable
from typing import NamedTuple

from daemon.sync.place import parse
from sdk._syncing import end_job, jobs, read_job
from sdk.errors import DamageError, NotFoundError, StoreError, UsageError
from sdk.files import DISK
from sdk.location import read_store
from sdk.reader import Store


class Forgotten(NamedTuple):
    """A job that is gone."""

    run: str
    target: str


def forget(store: Store, words: Iterable[str], targets: Iterable[str]) -> list[Forgotten]:
    """Removes jobs of the store, those of other machines too; what a trainer leaves meanwhile stays.

    Args:
        words: Runs as the command line names them; of one that is not stored, its id as the job has it. None: all runs.
        targets: As `init(sync_to=)` took them, however written. They need not be targets any more.

    Raises:
        StoreError: There is no such store, or one that cannot be written to.
        NotFoundError: A word names no run, and none that has a job.
        OSError: The disk refuses.
    """
    if not read_store(store.path).writable:
        raise StoreError(f"cannot write into {store.path!r}, where the jobs of init(sync_to=) are")
    wanted = {form for target in targets for form in _forms(target)}
    waiting = []
    for job in jobs(store.path):
        with contextlib.suppress(FileNotFoundError, DamageError):
            waiting.append((job, read_job(job)))
    runs = {_run_id(store, word, {order.run for _, order in waiting}) for word in words}
    found = []
    for job, order in waiting:
        if (not runs or order.run in runs) and not wanted.isdisjoint(_forms(order.target)) and end_job(job, order):
            with contextlib.suppress(FileNotFoundError):
                DISK.remove(job.told_path)
            found.append(Forgotten(order.run, order.target))
    return sorted(found)


def _forms(target: str) -> set[str]:
    """A target as it was written, and as it is meant."""
    with contextlib.suppress(UsageError):
        return {target, parse(target).absolute().text}
    return {target}


def _run_id(store: Store, word: str, known: Container[str]) -> str:
    try:
        return store.run(word).id
    except NotFoundError:
        if word in known:
            return word
        raise
