"""The worker process: ``python -m daemon.rewriter STORE``. Started by the daemon; ends when nothing is left to do.

It encodes large values (`daemon.encode`) and makes columns of rows (`daemon.compact`), one after the other: the right to rewrite
is one per store. It is nice, idle in I/O, and ends when its parent has. Exit codes: 0 done, 1 trouble.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable

from daemon.compact import work as compacting
from daemon.compact.work import Report
from daemon.encode import work as encoding
from daemon.encode.work import Done
from daemon.lifecycle import behave_as_worker
from daemon.store.listing import remember_all
from daemon.store.replacing import KEPT_SECONDS, hold
from sdk import clock
from sdk.errors import CommError, Error
from sdk.files import DISK
from sdk.location import StoreIdentity, read_store
from sdk.transport import request

_LOOK_SECONDS = 1.0


def main(store_path: str) -> int:
    """Rewrites what there is, waits until what was replaced may be removed, removes it."""
    is_wanted = behave_as_worker()
    store = read_store(store_path)
    total, code = Report(), 0
    while True:
        lock = hold(store.path)
        if lock is None and not total.sources:
            return code
        waiting = True
        if lock is not None:
            try:
                rows, media = _pass(store, total, is_wanted)
            finally:
                # Not held while we wait, so that `stepd compact` need not.
                lock.release()
            remember_all(store.path)
            total += rows._replace(waiting=0, alone=())
            waiting, code = bool(rows.waiting or media.waiting), 1 if rows.errors or media.errors else 0
        if not waiting or not is_wanted():
            return code
        # What is new meanwhile is done on the way: the next pass looks at everything.
        until = clock.monotonic() + KEPT_SECONDS / 6
        while is_wanted() and clock.monotonic() < until:
            clock.pause(_LOOK_SECONDS)


def _pass(store: StoreIdentity, before: Report, is_wanted: Callable[[], bool]) -> tuple[Report, Done]:
    """Looks at every run once."""
    # Rows first: they are little, and somebody may be waiting to look at them.
    rows = compacting.work(DISK, store, is_wanted=is_wanted)
    tell = functools.partial(_tell, store.path, (before + rows)._replace(alone=rows.alone))
    media = encoding.work(DISK, store, is_wanted=is_wanted, progress=tell)
    tell(media)
    return rows, media


def _tell(store: str, rows: Report, media: Done) -> None:
    """Says to the daemon how far we are; it shows that in `stepd status`."""
    with contextlib.suppress(CommError, Error, OSError):
        told = {
            "blobs": media.blobs, "failed": media.failed, "missing": media.missing,
            "errors": [*media.errors[-1:], *rows.errors[-1:]], "rows": rows.rows, "bytes_before": rows.bytes_before,
            "bytes_after": rows.bytes_after, "alone": list(rows.alone[:10]),
        }  # fmt: skip
        request(store, "rewritten", told, timeout=1.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
