"""A data base in the place of a tracking server: MLflow makes its tables when it is opened for the first time, one process at a time.

Two that open an empty data base at once both run all of MLflow's migrations, and fail with whatever the other has made already. An
SQLite file is therefore made by one process under another name, while the rest wait for its lock, and gets its name when it is whole:
a kill leaves nothing that looks like a data base. Elsewhere who comes second tries again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from urllib.parse import urlsplit

from daemon.sync.target import Retriable
from sdk import clock
from sdk.errors import UsageError
from sdk.files import EXPORTS, Files
from sdk.platform import HeldLock, hold_lock

# Making the tables takes two seconds, and some more on a slow disk; who waits longer than the second of these tries again later.
TABLES_SECONDS = 5.0
WAIT_SECONDS_MAX = 30.0
_LOOK_SECONDS = 0.05
# What data bases say of a table, a column or a version that somebody else has made meanwhile.
_MADE = (
    "already exists",
    "duplicate column",
    "duplicate key",
    "duplicate entry",
    "unique constraint",
    "expected to match",
)


def sqlite_path(uri: str) -> str | None:
    """The file of an SQLite data base; None of any other, or of one in memory."""
    if not uri.startswith("sqlite:///"):
        return None
    name = urlsplit(uri).path[1:]
    return os.path.abspath(name) if name and name != ":memory:" else None


def make_once(path: str, make: Callable[[str], None], files: Files = EXPORTS) -> None:
    """Makes a file that is not there, unless another process does: then it waits until that one has.

    Args:
        make: Writes it, under the name that it is given.

    Raises:
        Retriable: Another one takes too long.
        UsageError: Nothing can be written there.
    """
    if files.exists(path):
        return
    try:
        files.make_directory(os.path.dirname(path))
        lock = _lock(path)
    except OSError as error:
        raise UsageError(f"{path!r} cannot be made: {error.strerror}") from None
    new = f"{path}.stepd-new"
    try:
        if not files.exists(path):
            for left in (new, f"{new}-journal"):  # by one that was killed
                with contextlib.suppress(FileNotFoundError):
                    files.remove(left)
            make(new)
            files.rename(new, path)
    finally:
        # Invariant: removed while it is held; `hold_lock` sees that a file it has waited for is gone.
        with contextlib.suppress(OSError):
            files.remove(lock.path)
        lock.release()


def _lock(path: str) -> HeldLock:
    began = clock.monotonic()
    while (lock := hold_lock(f"{path}.stepd-lock")) is None:
        if clock.monotonic() - began >= WAIT_SECONDS_MAX:
            raise Retriable(f"another process is making the tables of {path!r}", after=TABLES_SECONDS)
        clock.pause(_LOOK_SECONDS)
    return lock


def failures() -> tuple[type[Exception], ...]:
    """What a data base and MLflow's migrations raise, beside MLflow's own; the packages come with MLflow's full one."""
    found: list[type[Exception]] = []
    with contextlib.suppress(ImportError):
        from sqlalchemy.exc import SQLAlchemyError

        found.append(SQLAlchemyError)
    with contextlib.suppress(ImportError):
        from alembic.util.exc import CommandError

        found.append(CommandError)
    return tuple(found)


def is_made_by_others(error: BaseException) -> bool:
    """Whether an error is that of a data base which another process is giving its tables."""
    return isinstance(error, failures()) and any(said in str(error).lower() for said in _MADE)


def is_final(error: BaseException) -> bool:
    """Whether it is a data base's error that waiting does not mend: not that nobody answers there."""
    return isinstance(error, failures()) and type(error).__name__ not in ("OperationalError", "InterfaceError")
