"""Named points inside the product at which a forked process can be made to SIGKILL itself.

A `Trap` names a point and which passing of it is the last. It is set in the forked child only, by putting wrappers in
place of the product's functions there: the product knows nothing of it and pays nothing for it.

    trap = Trap("after append", 3)
    fork_daemon(store, prepare=lambda: set_in_daemon(trap))    # kills itself right after its third append to a file
    trap.sprung                                                # whether it came that far, told through shared memory
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from sdk import _sender, _stream
from sdk.files import DISK, Buffer, File
from sdk.journal import appender
from sdk.wire.codec import decode
from sdk.wire.session import Outbox

Function = Callable[..., Any]

# What a file system does, as `sdk.files` names it. "inside append" leaves a torn tail.
_CHANGES = ("create", "make_directory", "rename", "remove", "write_whole", "sync_directory")
_FILE_CHANGES = ("append", "patch", "truncate", "sync")


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{when} {name}" for name in names for when in ("before", "after"))


# In `log()`: header and payload are put into the window of the ring, then a word of its header page publishes them.
LOG_POINTS = _both("header", "payload", "word")
# Where a daemon reads the ring.
LENT_POINTS = _both("lend", "look", "taken")
SENDER_POINTS = (
    *_both("send Hello", "send Batch", "acknowledge", "release", "spool append", "spool seal", "create", "append"),
    "inside append",
    "take Welcome",
    "take Ack",
    *LENT_POINTS,
)
# Those that only a trainer passes whose ring no daemon reads.
SENDING_POINTS = (*_both("send Batch", "acknowledge"), "take Ack")
FINISH_POINTS = (*_both("send Finish", "close ring", "finish"), "take Finished")
DAEMON_POINTS = (
    *_both("create", "append", "patch", "sync", "sync_directory", "make_directory", "truncate", "write_whole"),
    "inside append",
    *_both("send Welcome", "send Ack", "send Flushed", "send Finished"),
    *("take Hello", "take Batch", "take Flush", "take Finish"),
    *_both("coalesce", "block", "roll", "seal", "drain", "mend", "remove ring", "read", "tell"),
)


class Trap:
    """Kills this process at the `nth` passing of `point`; in a process where it is not set it does nothing."""

    def __init__(self, point: str, nth: int) -> None:
        self.point = point
        self.nth = nth
        self._memory = mmap.mmap(-1, 4096)  # shared with the child

    def __repr__(self) -> str:
        return f"{self.point} #{self.nth}"

    @property
    def sprung(self) -> bool:
        return self._memory[0] == 1

    def at(self, point: str) -> None:
        """The process passes `point`."""
        if point == self.point:
            self.nth -= 1
            if self.nth == 0:
                self._memory[0] = 1
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str, function: Function) -> Function:
        """`function` with a point before and one after it; itself where this trap is elsewhere."""
        if self.point not in (f"before {name}", f"after {name}"):
            return function

        def watched(*arguments: Any, **named: Any) -> Any:
            self.at(f"before {name}")
            result = function(*arguments, **named)
            self.at(f"after {name}")
            return result

        return watched

    def put_around(self, name: str, owner: Any, attribute: str) -> None:
        setattr(owner, attribute, self.around(name, getattr(owner, attribute)))


def set_in_trainer(trap: Trap) -> None:
    """Sets a trap of LOG_POINTS, SENDER_POINTS or FINISH_POINTS in this process, before it opens a stream."""
    _watch_messages(trap)
    _replace(DISK, WatchedFiles(trap))
    for name in ("append", "seal"):
        trap.put_around(f"spool {name}", _sender.Spool, name)
    for name in ("acknowledge", "taken"):
        trap.put_around(name, Outbox, name)
    trap.put_around("finish", _sender.Sender, "finish")
    trap.put_around("close ring", _stream.Ring, "close")
    if trap.point.endswith("header"):
        appender.WORDS = _WatchedStruct(trap, appender.WORDS)  # type: ignore[assignment]
    open_journal = _stream.open_journal

    def watched_open(ring: Any, **settings: Any) -> Any:
        journal = open_journal(_WatchedRing(trap, ring), **settings)  # type: ignore[arg-type]
        journal.ring = ring
        for name in ("release", "lend", "look"):
            trap.put_around(name, journal, name)
        return journal

    _stream.open_journal = watched_open


def set_in_daemon(trap: Trap) -> None:
    """Sets a trap of DAEMON_POINTS in this process, before it serves."""
    from daemon import server
    from daemon.ingest.lent import RingReader
    from daemon.pipeline.coalesce import coalesce
    from daemon.store.run_writer import RunWriter
    from sdk.journal.drain import drain
    from sdk.journal.lent import LentRing
    from sdk.segment.recovery import recover
    from sdk.segment.writer import SegmentWriter

    _watch_messages(trap)
    files = WatchedFiles(trap)
    _replace(DISK, files)
    for function in (server.serve, server.Server.__init__):
        function.__defaults__ = tuple(files if d is DISK else d for d in function.__defaults__ or ())  # type: ignore[attr-defined]
    for name, function in (("coalesce", coalesce), ("drain", drain), ("mend", recover)):
        _replace(function, trap.around(name, function))
    trap.put_around("roll", RunWriter, "roll")
    trap.put_around("block", RunWriter, "append")
    trap.put_around("seal", SegmentWriter, "seal")
    trap.put_around("read", RingReader, "next")
    trap.put_around("tell", LentRing, "tell")
    unlink = os.unlink

    def unlink_watched(path: Any, **named: Any) -> None:
        is_ring = str(path).endswith(".ring")
        (trap.around("remove ring", unlink) if is_ring else unlink)(path, **named)

    os.unlink = unlink_watched  # type: ignore[assignment]


def _replace(old: object, new: object) -> None:
    """Puts `new` wherever a module of ours names `old`."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("sdk", "daemon"):
            for attribute, value in list(vars(module).items()):
                if value is old:
                    setattr(module, attribute, new)


def _watch_messages(trap: Trap) -> None:
    """Points around each message that goes through ZeroMQ, by its type."""
    verb, _, kind = trap.point.partition(" ")
    send, receive = zmq.Socket.send_multipart, zmq.Socket.recv_multipart

    def send_watched(socket: Any, frames: Sequence[Any], *arguments: Any, **named: Any) -> Any:
        return trap.around(f"send {_type(frames)}", send)(socket, frames, *arguments, **named)

    def receive_watched(socket: Any, *arguments: Any, **named: Any) -> Any:
        frames = receive(socket, *arguments, **named)
        trap.at(f"take {_type(frames)}")
        return frames

    if kind.startswith("send "):
        zmq.Socket.send_multipart = send_watched  # type: ignore[method-assign]
    if verb == "take":
        zmq.Socket.recv_multipart = receive_watched  # type: ignore[method-assign]


def _type(frames: Sequence[Any]) -> str:
    """The type of a message as either side has it: a ROUTER's frames begin with an identity."""
    plain = [bytes(getattr(frame, "buffer", frame)) for frame in frames]
    for candidate in (plain, plain[1:]):
        try:
            return type(decode(candidate)).__name__
        except Exception:
            continue
    return "unknown"


class WatchedFiles:
    """The real disk with a trap around its operations."""

    def __init__(self, trap: Trap) -> None:
        self._trap = trap

    def __getattr__(self, name: str) -> Any:
        found = getattr(DISK, name)
        return self._trap.around(name, found) if name in _CHANGES else found

    def create(self, path: str) -> Any:
        return _WatchedFile(self._trap, self._trap.around("create", DISK.create)(path))

    def open(self, path: str, *, write: bool = False) -> Any:
        return _WatchedFile(self._trap, DISK.open(path, write=write))


class _WatchedFile:
    def __init__(self, trap: Trap, file: File) -> None:
        self._trap, self._file = trap, file

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._file, name)
        return self._trap.around(name, found) if name in _FILE_CHANGES else found

    def append(self, parts: Sequence[Buffer]) -> int:
        if self._trap.point == "inside append" and self._trap.nth == 1:
            whole = b"".join(bytes(part) for part in parts)
            self._file.append([whole[: len(whole) // 2]])
        self._trap.at("inside append")
        return int(self._trap.around("append", self._file.append)(parts))


class _WatchedStruct:
    """The struct of a record's header in the ring."""

    def __init__(self, trap: Trap, real: Any) -> None:
        self._trap, self._real = trap, real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def pack_into(self, buffer: Any, *arguments: Any) -> None:
        self._trap.around("header", self._real.pack_into)(getattr(buffer, "real", buffer), *arguments)


class _WatchedMemory:
    """A memoryview with a trap around its stores."""

    def __init__(self, trap: Trap, name: str, real: Any) -> None:
        self._trap, self._name, self.real = trap, name, real

    def __getitem__(self, index: Any) -> Any:
        return self.real[index]

    def __len__(self) -> int:
        return len(self.real)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._trap.around(self._name, self.real.__setitem__)(index, value)


class _WatchedRing:
    """What `log()` sees of a ring whose stores are watched; its header is packed by `_WatchedStruct`."""

    def __init__(self, trap: Trap, ring: Any) -> None:
        self._ring = ring
        self.data, self.words = ring.data, ring.words
        if trap.point.endswith("payload"):
            self.data = _WatchedMemory(trap, "payload", ring.data)
            appender.WORDS = _WatchedStruct(trap, appender.WORDS)  # type: ignore[assignment]
        if trap.point.endswith("word"):
            self.words = _WatchedMemory(trap, "word", ring.words)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ring, name)
