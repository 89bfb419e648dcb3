"""A file that a command writes where its user says: it appears when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from typing import IO, Any

from sdk.errors import UsageError


@contextlib.contextmanager
def complete_file(path: str, *, is_binary: bool = False) -> Iterator[IO[Any]]:
    """A file that replaces what is there, whose mode it gets, when it is complete; through a link, and into a pipe or a device as it comes.

    Why not click's: it puts the file there after an error as well, leaves its draft behind where the name turns out not
    to be possible, and replaces /dev/null by a file when root writes there.
    """
    path = os.path.realpath(path)
    kind = "b" if is_binary else ""
    coding = {} if is_binary else {"encoding": "utf-8", "errors": "surrogatepass"}
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, f"w{kind}", **coding) as file:  # type: ignore[call-overload]
            yield file
        return
    draft = os.path.join(os.path.dirname(path), f".stepd-output-{os.urandom(8).hex()}")
    try:
        with open(draft, f"x{kind}", **coding) as file:  # type: ignore[call-overload]
            with contextlib.suppress(FileNotFoundError):
                os.chmod(draft, os.stat(path).st_mode & 0o777)
            yield file
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def write_file(path: str, data: bytes) -> None:
    """Writes a file whole, as `complete_file` does.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        with complete_file(path, is_binary=True) as file:
            file.write(data)
    except OSError as error:
        raise UsageError(
            f"cannot write {path!r}: {error.strerror}",
            hint=f"df -h {shlex.quote(os.path.dirname(os.path.realpath(path)))}",
        ) from error
