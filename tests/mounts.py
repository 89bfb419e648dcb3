"""File systems of any size for tests: a process forked into a mount namespace of its own, where it may mount what it likes.

def body() -> int:                       # in a process of its own
    with tmpfs(4 << 20) as path: ...

size = in_namespace(body)                # its mounts end with it

As root a namespace for mounts is enough; anybody else gets one for users too, where the kernel allows it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from tests.torture.harness import Missing

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_REMOUNT, _MS_REC, _MS_PRIVATE = 0x20, 0x4000, 0x40000
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _enter() -> None:
    """Leaves the mounts of everybody else.

    Raises:
        OSError: Not allowed here.
    """
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", _CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)


def mount_tmpfs(path: str, size: int, *, again: bool = False) -> None:
    """Mounts a tmpfs of `size` bytes at a directory; `again` changes the size of one that is there."""
    options = f"size={size},mode=700".encode()
    _call("mount", b"tmpfs", path.encode(), b"tmpfs", _MS_REMOUNT if again else 0, options)


def in_namespace(body: Callable[[], Any]) -> Any:
    """What `body()` gives in a forked process with mounts of its own.

    Raises:
        Missing: No such namespace can be had here.
        AssertionError: What `body` raised, as text.
    """
    with tempfile.TemporaryFile() as answer:
        pid = os.fork()
        if pid == 0:
            try:
                kind, value = "done", _run(body)
            except Missing as error:
                kind, value = "missing", str(error)
            except BaseException:
                kind, value = "raised", traceback.format_exc()
            os.write(answer.fileno(), pickle.dumps((kind, value)))
            os._exit(0)
        os.waitpid(pid, 0)
        answer.seek(0)
        data = answer.read()
    kind, value = pickle.loads(data) if data else ("raised", "the process died")
    if kind == "missing":
        raise Missing(value)
    assert kind == "done", value
    return value


def _run(body: Callable[[], Any]) -> Any:
    try:
        _enter()
    except OSError as error:
        raise Missing(f"no mount namespace can be had here: {error}") from error
    return body()


@contextlib.contextmanager
def tmpfs(size: int) -> Iterator[str]:
    """A directory that is a file system of `size` bytes of its own. Only inside `in_namespace`."""
    path = tempfile.mkdtemp(prefix="stepd-mount-")
    mount_tmpfs(path, size)
    try:
        yield path
    finally:
        _call("umount2", path.encode(), _MNT_DETACH)
        os.rmdir(path)
