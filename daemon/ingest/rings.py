"""A trainer's ring, kept open by the daemon from Hello until its stream is forgotten.

Why: a logout may remove the files of a user in shared memory (systemd's RemoveIPC). What has no name cannot be found when
its trainer dies, but what is open can be read, and its lock be asked for. One descriptor for each stream that is served.
"""

from __future__ import annotations

import contextlib
import os

from sdk import platform
from sdk.errors import Error
from sdk.journal.drain import is_ring_path, read_header
from sdk.journal.lookback import Lookback


class WatchedRing:
    """An open ring. Close it only while we hold no lock on it: closing any descriptor of a file drops that."""

    def __init__(self, path: str) -> None:
        """Opens it.

        Raises:
            OSError: It is gone, or no regular file.
            ValueError: The path cannot be one.
        """
        self.path = path
        try:
            self.descriptor = platform.open_regular(path, os.O_RDWR)
        except OSError:  # or a file that is not there: this says so again
            self.descriptor = platform.open_regular(path, os.O_RDONLY)

    def is_locked(self) -> bool:
        """Whether its trainer lives."""
        return platform.is_descriptor_locked(self.descriptor)

    def is_unlinked(self) -> bool:
        """Whether its name was removed: by its trainer when it finished, or by somebody who cleaned up."""
        return os.fstat(self.descriptor).st_nlink == 0

    def file(self) -> tuple[int, int]:
        """Device and inode."""
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino

    def is_at(self, path: str) -> bool:
        """Whether the file at `path` is this one."""
        return is_at(self.descriptor, path)

    def refused(self) -> int | None:
        """Calls refused so far, or None where the ring cannot say."""
        with contextlib.suppress(OSError, Error):
            return read_header(self.path, self.descriptor).refused
        return None

    def look_back(self) -> Lookback | None:
        """What it still holds of what was released, or None: nothing of it can be believed."""
        with contextlib.suppress(OSError, Error):
            return Lookback(self.path, self.descriptor)
        return None

    def close(self) -> None:
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)


def is_at(descriptor: int, path: str) -> bool:
    """Whether `path` is a name of an open file."""
    with contextlib.suppress(OSError, ValueError):
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    return False


def watch(path: str, digest: str, before: WatchedRing | None) -> WatchedRing | None:
    """The ring that a Hello names, opened; `before`, if that is the same. None: it is not ours to look at.

    A ring of this very process (a test) stays closed: closing it would drop the lock of its trainer.
    """
    if not is_ring_path(path, digest):
        return None
    if before is not None and before.is_at(path):
        return before
    if platform.lock_owner(path) == os.getpid():
        return None
    with contextlib.suppress(OSError, ValueError):
        return WatchedRing(path)
    return None
