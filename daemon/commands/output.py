"""A file that a command writes where its user says: it appears when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import os
import shlex

from sdk.errors import UsageError


def write_file(path: str, data: bytes) -> None:
    """Replaces what is there, whose mode it gets; through a link, and into a pipe or a device as it comes.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        _write(os.path.realpath(path), data)
    except OSError as error:
        raise UsageError(
            f"cannot write {path!r}: {error.strerror}",
            hint=f"df -h {shlex.quote(os.path.dirname(os.path.realpath(path)))}",
        ) from error


def _write(path: str, data: bytes) -> None:
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as file:
            file.write(data)
        return
    draft = f"{path}.{os.urandom(4).hex()}.tmp"
    try:
        with open(draft, "xb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.chmod(draft, os.stat(path).st_mode & 0o777)
            file.write(data)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
