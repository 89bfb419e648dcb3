"""The worker process that keeps files: ``python -m daemon.keeper STORE``. Started by the daemon; ends when no job is left.

It does the jobs of this machine (`sdk._keeping`), oldest first, one at a time. It is nice, idle in I/O, holds no more than a
few MiB, and ends when its parent has. What the disk refuses now is tried again by the next one, which the daemon starts after
a while. Exit codes: 0 done, 1 trouble.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from daemon.keep import Abandoned, find_work
from daemon.lifecycle import behave_as_worker
from sdk._keeping import Job, claim, end_job, jobs, read_job, set_aside
from sdk.errors import CommError, DamageError, Error, StoreError
from sdk.location import StoreIdentity, check_store, read_store
from sdk.transport import request

_TROUBLE_CHARACTERS_MAX = 500


def main(store_path: str) -> int:
    """Does every job that waits, and those that come meanwhile."""
    return keep(read_store(store_path), behave_as_worker())


def keep(store: StoreIdentity, is_wanted: Callable[[], bool]) -> int:
    """The work of the process. 0: nothing waits that somebody else does not do."""
    troubles: dict[str, str] = {}
    while is_wanted():
        waiting = [job for job in jobs(store.path) if job.path not in troubles]
        done = 0
        for job in waiting:
            if not is_wanted():
                break
            try:
                done += _do(store, job, is_wanted)
            except Abandoned:
                break
            except (OSError, StoreError) as error:
                # The next one may be smaller, or of another disk.
                troubles[job.path] = f"{type(error).__name__}: {error}"
                _tell(store, troubles[job.path])
        if not done:
            break
    _tell(store, next(iter(troubles.values()), ""))
    return 1 if troubles else 0


def _do(store: StoreIdentity, job: Job, is_wanted: Callable[[], bool]) -> bool:
    """Does one job; False when somebody else does."""
    check_store(store)
    try:
        # Invariant: read before it is claimed; closing the file afterwards would give the claim up.
        body = read_job(job)
        work = find_work(job.kind)
    except FileNotFoundError:
        return False
    except (DamageError, ValueError) as error:
        _give_up(store, job, error)
        return True
    lock = claim(job)
    if lock is None:
        return False
    try:
        work(store, body, is_wanted)
        end_job(job)
    except (Abandoned, OSError, StoreError):
        raise
    except Exception as error:
        _give_up(store, job, error)
    finally:
        lock.release()
    return True


def _give_up(store: StoreIdentity, job: Job, error: Exception) -> None:
    set_aside(job)
    _tell(store, f"job {os.path.basename(job.path)} is set aside: {type(error).__name__}: {error}")


def _tell(store: StoreIdentity, trouble: str) -> None:
    """Says to the daemon what keeps a job waiting; it shows that in `stepd status`."""
    with contextlib.suppress(CommError, Error, OSError):
        request(store.path, "keeping", {"trouble": trouble[:_TROUBLE_CHARACTERS_MAX]}, timeout=1.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
