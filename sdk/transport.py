"""The SDK's only door to ZeroMQ: a DEALER for a session, and one-shot requests for the command line.

One socket per session: after a broken connection or silence the owner closes it (LINGER 0) and makes a new one; libzmq
is never left to reconnect and deliver stale batches before a new Hello. `send` succeeding means nothing; only an Ack
does.

Not safe between threads, and nothing here may be used in a forked child: the owner abandons it there.
"""

from __future__ import annotations

import os
from typing import Any

import zmq

from . import clock, platform
from .errors import CommError, RemoteProtocolError, StoreError
from .limits import MESSAGE_BYTES_MAX
from .wire.codec import decode, encode
from .wire.messages import Control, Message

# A backstop only: byte credit is what bounds memory.
_QUEUE_MESSAGES = 64
# Limit: what one context and its socket open (libzmq 4.3: 3 mailboxes, 2 epolls, the connection), twice.
_DESCRIPTORS = 12


def endpoint_path(store: str) -> str:
    """The socket file of the daemon that serves `store` on this host."""
    return os.path.join(platform.runtime_directory(), f"{platform.store_digest(store)}.sock")


def lock_path(store: str) -> str:
    """The file that this daemon holds locked while it lives."""
    return os.path.join(platform.runtime_directory(), f"{platform.store_digest(store)}.lock")


def known_lock_path(store: str) -> str:
    """As `lock_path`; "" while the directory of sockets cannot be used: nobody can be found there, and no run ends of it.

    In /tmp any user of the machine can make a directory of our name before us.
    """
    try:
        return lock_path(store)
    except (OSError, StoreError):
        return ""


def stopped_path(store: str) -> str:
    """A mark that a user stopped the daemon, so that senders do not start another."""
    return os.path.join(platform.runtime_directory(), f"{platform.store_digest(store)}.stopped")


class Connection:
    """A DEALER connected to one daemon."""

    def __init__(self, path: str) -> None:
        """Opens the socket; never waits, and never fails because nobody answers.

        Raises:
            CommError: ZeroMQ refuses (too many open files, a path that is too long).
        """
        try:
            _check_descriptors()
            self._context = zmq.Context(io_threads=1)
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.linger = 0
            self._socket.set(zmq.SNDHWM, _QUEUE_MESSAGES)
            self._socket.set(zmq.RCVHWM, 0)
            self._socket.set(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
            self._socket.set(zmq.HANDSHAKE_IVL, 5000)
            self._socket.set(zmq.RECONNECT_IVL, 20)
            self._socket.connect(f"ipc://{path}")
        except (zmq.ZMQError, OSError) as error:
            self.close()
            raise CommError(f"cannot open a connection to {path!r}: {error}") from error

    def send(self, message: Message, *, payload_crc: int | None = None) -> bool:
        """Hands a message to ZeroMQ; False when its queue is full. Copies. `payload_crc`: as for `encode`."""
        try:
            self._socket.send_multipart(encode(message, payload_crc=payload_crc), zmq.DONTWAIT, copy=True)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise CommError(f"cannot send {type(message).__name__}: {error}") from error
        return True

    def receive(self) -> Message | None:
        """The next message that is here, or None.

        Raises:
            RemoteProtocolError: What came is not of this protocol.
        """
        try:
            # Why ask first: an empty recv would give the GIL away, and getting it back costs up to 5 ms.
            if not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                return None
            frames = self._socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            raise CommError(f"cannot receive: {error}") from error
        return decode(frames)

    def wait(self, seconds: float) -> bool:
        """Waits until something can be received, at most so long; gives the GIL away."""
        return bool(self._socket.poll(int(seconds * 1000)))

    def close(self) -> None:
        """Closes at once; what was not sent is dropped here (and still in the ring)."""
        socket = getattr(self, "_socket", None)
        if socket is not None:
            socket.close(linger=0)
        context = getattr(self, "_context", None)
        if context is not None:
            context.destroy(linger=0)


def _check_descriptors() -> None:
    """Makes sure that some descriptors are free. Why: libzmq aborts the whole process when epoll_create finds none.

    Raises:
        OSError: There are not (EMFILE, ENFILE).
    """
    opened = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
    try:
        while len(opened) < _DESCRIPTORS:
            opened.append(os.dup(opened[0]))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def request(store: str, verb: str, arguments: dict[str, Any] | None = None, timeout: float = 5.0) -> dict[str, Any]:
    """Asks the daemon of `store` one thing.

    Raises:
        CommError: None is running, or it does not answer within `timeout` seconds.
        RemoteProtocolError: It answers that it cannot do this.
    """
    if not platform.is_locked(lock_path(store)):
        raise CommError(f"no daemon serves {store}", hint="stepd start")
    connection = Connection(endpoint_path(store))
    try:
        number = int.from_bytes(os.urandom(4), "little")
        connection.send(Control(number, verb, arguments or {}))
        deadline = clock.monotonic() + timeout
        while (left := deadline - clock.monotonic()) > 0:
            if not connection.wait(min(left, 0.1)):
                continue
            answer = connection.receive()
            if isinstance(answer, Control) and answer.id == number:
                if answer.verb == "error":
                    raise RemoteProtocolError(str(answer.arguments.get("text", "the daemon refused")))
                return answer.arguments
    finally:
        connection.close()
    raise CommError(f"the daemon of {store} does not answer within {timeout:g} s", hint="stepd restart")
