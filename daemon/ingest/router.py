"""The ROUTER socket: the daemon's only door to ZeroMQ. Messages in, messages out; what they mean is `sessions`."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import Any

import zmq

from sdk.limits import MESSAGE_BYTES_MAX
from sdk.wire.codec import encode
from sdk.wire.messages import Message

# Limit: descriptors that stay free for segments, rings and the lock: a sixteenth of what the process may have, and so many.
_SPARE_MIN = 48
_COUNT_SECONDS = 0.1
# Longer than the time for a handshake: what is connected then and says nothing is not going to.
_DEAF_SECONDS_MAX = 8.0
_HANDSHAKE_MS = 5000
_HIDDEN = ".full"


class Router:
    """One socket file, bound by one daemon; the caller holds the store's lock.

    libzmq aborts the whole process when `accept` finds no descriptor. So connections are counted (a monitor wakes us for
    each), and while nearly all descriptors are taken the socket's file is hidden: sessions that are open go on, who comes
    new does not find it and tries again. Race: so many connections between two ticks that none is left; then the
    daemon dies, and a sender starts another.

    Attributes:
        knows_users: The kernel is asked who connects; else the directory's mode alone keeps others out.
        is_deaf: The file is hidden now.
    """

    def __init__(self) -> None:
        self._context = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        self._path = ""
        self._file: tuple[int, int] | None = None
        self._left = self._spare = 0
        self._counted_at = self._deaf_since = 0.0
        self.knows_users = False
        self.is_deaf = False

    @property
    def is_bound(self) -> bool:
        return self._socket is not None

    @property
    def path(self) -> str:
        return self._path

    def bind(self, path: str) -> None:
        """Opens the socket at `path`, in the place of any file that is there.

        Raises:
            OSError: It cannot be bound there.
        """
        socket = self._context.socket(zmq.ROUTER)
        socket.linger = 200
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        # Limit: acks that wait for a trainer that was stopped. A lost one is made good by the next, or by a new session.
        socket.set(zmq.SNDHWM, 1000)
        socket.set(zmq.RCVHWM, 64)
        socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        socket.set(zmq.BACKLOG, 512)
        with contextlib.suppress(AttributeError, zmq.ZMQError):
            socket.set(zmq.IPC_FILTER_UID, os.getuid())
            self.knows_users = True
        before = os.umask(0o077)
        try:
            socket.bind(f"ipc://{path}")
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise OSError(error.errno, f"cannot bind: {error}", path) from error
        finally:
            os.umask(before)
        self._monitor = socket.get_monitor_socket(zmq.EVENT_ACCEPTED)
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket, self._path, self._file = socket, path, _file_at(path)
        self._left, self.is_deaf = 0, False

    def make_room(self, now: float, peers: int) -> bool:
        """Hides the socket's file while descriptors are short, and shows it again; call it often.

        Args:
            peers: Connections that speak for a stream.

        Returns:
            Whether to bind anew: what is connected and says nothing takes so much room that all connections should be
            shed, or the file is gone.

        Raises:
            OSError: The file cannot be renamed now.
        """
        if self._socket is None or self._monitor is None:
            return False
        with contextlib.suppress(zmq.Again):
            while self._monitor.recv_multipart(zmq.DONTWAIT):
                self._left -= 1
        if (self._left > self._spare and not self.is_deaf) or now - self._counted_at < _COUNT_SECONDS:
            return False
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._counted_at, self._spare = now, _SPARE_MIN + limit // 16
        left = limit - len(os.listdir("/proc/self/fd"))
        # Counted again after half as many connections as there is room for: segments and rings take some of it too.
        self._left = (left + self._spare) // 2 if left > self._spare else left
        if not self.is_deaf and left <= self._spare:
            self.is_deaf, self._deaf_since = True, now
            # Why not unbind: libzmq ends with a listener all that it ever accepted.
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._path, self._path + _HIDDEN)
        elif self.is_deaf and left > self._spare + _SPARE_MIN // 2:
            try:
                os.rename(self._path + _HIDDEN, self._path)
            except FileNotFoundError:
                return True  # somebody cleaned /tmp meanwhile
            self.is_deaf = False
        return self.is_deaf and now - self._deaf_since > _DEAF_SECONDS_MAX and peers < limit // 2

    def file_is_ours(self) -> bool:
        """Whether trainers still find us: somebody may have cleaned /tmp, or put something else where our socket was."""
        if self.is_deaf:
            return True
        return self._socket is not None and self._file is not None and _file_at(self._path) == self._file

    def forget_file(self) -> None:
        """The file at our path, if there is one, is another daemon's: it stays when we leave."""
        self._path = ""

    def unbind(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            if self.is_deaf:
                with contextlib.suppress(OSError):
                    os.rename(self._path + _HIDDEN, self._path)
            self._close_monitor(socket)
            if _file_at(self._path) == self._file:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
            socket.close()

    def _close_monitor(self, socket: zmq.Socket[bytes]) -> None:
        monitor, self._monitor, self.is_deaf = self._monitor, None, False
        if monitor is not None:
            with contextlib.suppress(zmq.ZMQError):
                socket.disable_monitor()
            monitor.close(linger=0)

    def poll(self, seconds: float) -> bool:
        """Waits until a message is there or somebody connects, at most `seconds`; whether so."""
        if self._socket is not None:
            with contextlib.suppress(zmq.ZMQError):
                return bool(self._poller.poll(max(int(seconds * 1000), 0)))
        return True

    def send(self, peer: bytes, message: Message) -> None:
        """Sends, or forgets it when that peer is gone: it will say Hello again."""
        if self._socket is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send_multipart([peer, *encode(message)], zmq.DONTWAIT)

    def receive(self) -> tuple[bytes, list[Any]] | None:
        """(peer, frames) of the next message that is there; the frames are borrowed from ZeroMQ.

        Raises:
            OSError: The socket cannot be read now.
        """
        if self._socket is None:
            return None
        try:
            frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            raise OSError(error.errno, str(error)) from error
        return frames[0].bytes, [frame.buffer for frame in frames[1:]]

    def close(self) -> None:
        """Ends the socket; what was sent has 200 ms to leave."""
        self.unbind()
        self._context.destroy(linger=200)


def _file_at(path: str) -> tuple[int, int] | None:
    """Which file a path names; None where there is none, or none that we may see."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
