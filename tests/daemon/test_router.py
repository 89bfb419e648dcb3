"""The socket: who may connect, and how many."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from daemon.ingest import router as module
from daemon.ingest.router import _COUNT_SECONDS, _DEAF_SECONDS_MAX, _SPARE_MIN, Router
from sdk.limits import MESSAGE_BYTES_MAX
from sdk.wire.codec import encode
from sdk.wire.messages import Control
from tests.serving import until

_ROOM = 80


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    made = Router()
    made.bind(str(tmp_path / "socket"))
    yield made
    made.close()


@pytest.fixture
def limited(router: Router, monkeypatch: pytest.MonkeyPatch) -> int:
    """The process may have `_ROOM` descriptors more than it has before the socket falls silent; the limit."""
    limit = (len(os.listdir("/proc/self/fd")) + _SPARE_MIN + _ROOM) * 16 // 15
    monkeypatch.setattr(module.resource, "getrlimit", lambda which: (limit, limit))
    return limit


def connected(path: str) -> socket.socket | None:
    made = socket.socket(socket.AF_UNIX)
    try:
        made.connect(path)
    except OSError:
        made.close()
        return None
    return made


def crowd(router: Router, now: float) -> tuple[float, list[socket.socket]]:
    """Connects until the socket does not listen any more."""
    held: list[socket.socket] = []
    while not router.is_deaf:
        made = connected(router.path)
        assert made is not None
        held.append(made)
        assert len(held) < 4 * _ROOM
        router.poll(1.0)  # a connection wakes it
        now += _COUNT_SECONDS
        assert not router.make_room(now, 0)
    return now, held


def test_it_stops_listening_before_descriptors_run_out(router: Router, limited: int) -> None:
    """With few descriptors left nobody new gets in; open connections go on; when there is room it listens again."""
    context = zmq.Context()
    old = context.socket(zmq.DEALER)
    old.linger = 0
    old.connect(f"ipc://{router.path}")
    old.send_multipart(encode(Control(0, "status", {})))
    until(router.receive)
    now, held = crowd(router, 1000.0)
    assert len(os.listdir("/proc/self/fd")) < limited
    until(lambda: connected(router.path) is None)
    assert router.file_is_ours(), "nobody is to bind again in the meantime"
    old.send_multipart(encode(Control(1, "status", {})))
    until(router.receive)
    for made in held:
        made.close()

    def listens() -> bool:
        nonlocal now
        now += _COUNT_SECONDS
        router.make_room(now, 0)
        return not router.is_deaf

    until(listens)
    again = connected(router.path)
    assert again is not None
    again.close()
    assert router.file_is_ours()
    context.destroy(linger=0)


def test_who_says_nothing_is_shed(router: Router, limited: int) -> None:
    """After longer than a handshake takes, a full socket is to be opened anew, unless those who are there speak."""
    now, held = crowd(router, 1000.0)
    assert not router.make_room(now + _DEAF_SECONDS_MAX / 2, 0)
    assert not router.make_room(now + 2 * _DEAF_SECONDS_MAX, limited)
    assert router.make_room(now + 3 * _DEAF_SECONDS_MAX, 1)
    path = router.path
    router.unbind()
    for made in held:
        made.close()
    router.bind(path)
    assert not router.is_deaf


def test_looks_cost_nothing_while_there_is_room(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors are counted once, and again only after as many connections as there was room for."""
    counted = []
    monkeypatch.setattr(module.resource, "getrlimit", lambda which: counted.append(which) or (20_000, 20_000))
    for tick in range(1000):
        router.make_room(1000.0 + tick, 0)
    assert counted == [resource.RLIMIT_NOFILE]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_other_users_are_never_served(router: Router) -> None:
    """Whoever is not us by the kernel's word is cut off, even where the directory and the socket's mode let them in."""
    assert router.knows_users
    os.chmod(router.path, 0o777)
    directory = os.path.dirname(router.path)
    os.chmod(directory, 0o755)
    inside = os.open(directory, os.O_PATH)
    pid = os.fork()
    if pid == 0:  # all imports are done: another user may not read our packages
        code = 1
        try:
            os.fchdir(inside)
            os.setgroups([])
            os.setgid(54321)
            os.setuid(54321)
            raw = socket.socket(socket.AF_UNIX)
            raw.settimeout(20)
            raw.connect(os.path.basename(router.path))
            code = 0 if raw.recv(64) == b"" else 2  # who is served gets a greeting
        except (ConnectionError, BrokenPipeError):
            code = 0
        finally:
            os._exit(code)
    os.close(inside)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    ours = connected(router.path)
    assert ours is not None
    ours.settimeout(20)
    assert ours.recv(64)[:1] == b"\xff"
    ours.close()


def test_a_message_beyond_the_limit_ends_its_connection_only(router: Router) -> None:
    """`MESSAGE_BYTES_MAX` and a byte: nothing of it is taken, and the next peer is served."""
    context = zmq.Context()
    taken: list[int] = []

    def takes(*sizes: int) -> bool:
        router.poll(0.05)
        message = router.receive()
        if message is not None:
            taken.append(sum(len(frame) for frame in message[1]))
        return taken == list(sizes)

    try:
        greedy, modest = (context.socket(zmq.DEALER) for _ in range(2))
        events = greedy.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        greedy.connect(f"ipc://{router.path}")
        greedy.send(bytes(MESSAGE_BYTES_MAX + 1))
        until(lambda: takes() and events.poll(0), "the end of the connection")
        modest.connect(f"ipc://{router.path}")
        modest.send(bytes(MESSAGE_BYTES_MAX))
        until(lambda: takes(MESSAGE_BYTES_MAX), "the message")
        greedy.disable_monitor()
    finally:
        context.destroy(linger=0)
