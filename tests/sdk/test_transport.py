"""sdk.transport: a real DEALER against a real ROUTER, with no descriptors left, and against nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

import sdk
from sdk import platform
from sdk.errors import CommError, RemoteProtocolError
from sdk.limits import MESSAGE_BYTES_MAX
from sdk.location import StoreIdentity
from sdk.transport import Connection, endpoint_path, lock_path, request, stopped_path
from sdk.wire.codec import decode, encode
from sdk.wire.messages import Ack, Batch, Control, Message, Reject
from tests.serving import rows, temporary_store, until

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(sdk.__file__)))


class Router:
    """The other end."""

    def __init__(self, path: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(f"ipc://{path}")

    def take(self) -> tuple[bytes, Message]:
        assert self.socket.poll(20_000)
        identity, *frames = self.socket.recv_multipart()
        return identity, decode(frames)

    def close(self) -> None:
        self.socket.close()
        self.context.term()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def router(path: str) -> Iterator[Router]:
    made = Router(path)
    yield made
    made.close()


@pytest.fixture
def store() -> Iterator[StoreIdentity]:
    with temporary_store() as made:
        yield made


def test_there_and_back(path: str, router: Router) -> None:
    """A message each way, a Batch in two frames, and None when nothing is here."""
    connection = Connection(path)
    assert connection.receive() is None
    batch = Batch(7, 1, 3, 0, 3, rows(1, 3))
    assert connection.send(batch)
    identity, came = router.take()
    assert came == batch
    router.socket.send_multipart([identity, *encode(Ack(7, 3, 0))])
    assert connection.wait(20)
    assert connection.receive() == Ack(7, 3, 0)
    assert connection.receive() is None
    connection.close()
    connection.close()


def test_garbage_from_the_other_side_is_an_error_of_theirs(path: str, router: Router) -> None:
    """And the next message is read."""
    connection = Connection(path)
    connection.send(Ack(1, 0, 0))
    identity, _ = router.take()
    router.socket.send_multipart([identity, b"garbage"])
    router.socket.send_multipart([identity, *encode(Ack(7, 3, 0))])
    assert connection.wait(20)
    with pytest.raises(RemoteProtocolError):
        connection.receive()
    assert until(connection.receive) == Ack(7, 3, 0)
    connection.close()


def test_nobody_there_costs_nothing(path: str) -> None:
    """Opening, sending and closing never wait for somebody, and a full queue says so."""
    connection = Connection(path)
    sent = 0
    while connection.send(Ack(7, 1, 1)):
        sent += 1
        assert sent < 10_000, "the queue has no bound"
    assert not connection.wait(0.0)
    assert connection.receive() is None
    connection.close()


def test_a_path_that_is_too_long_is_trouble_not_a_crash(tmp_path: Path) -> None:
    """Sockets have 107 bytes for their name."""
    with pytest.raises(CommError, match="cannot open a connection"):
        Connection(str(tmp_path / ("x" * 120)))


def test_descriptors_and_threads_are_given_back(path: str) -> None:
    """A sender that reconnects for a week leaves nothing behind."""
    Connection(path).close()
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for _ in range(20):
        connection = Connection(path)
        connection.send(Ack(1, 1, 1))
        connection.close()
    assert (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before


def test_without_descriptors_the_training_lives_on() -> None:
    """libzmq aborts the process when it finds none for an epoll: we look first. Every small number is tried."""
    code = """
import os, resource, sys
from sdk.errors import CommError
from sdk.transport import Connection
used = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (used + int(sys.argv[1]),) * 2)
try:
    Connection("/tmp/no-such-socket").close()
except CommError:
    print("refused")
else:
    print("opened")
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for n in (*range(8), 30)
    ]
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    assert answers == ["refused"] * 8 + ["opened"]


def test_a_message_has_room_for_the_largest_batch(path: str, router: Router) -> None:
    """4 MiB and its header pass the limit that makes libzmq drop a peer."""
    router.socket.set(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
    connection = Connection(path)
    records = bytes(4 << 20)
    assert connection.send(Batch(7, 1, 1, 0, 0, records))
    assert router.take()[1] == Batch(7, 1, 1, 0, 0, records)
    connection.close()


def test_names_are_short_private_and_one_per_store(store: StoreIdentity) -> None:
    """Below 107 bytes whatever the store is called, in a directory that only we can enter."""
    names = [endpoint_path(store.path), lock_path(store.path), stopped_path(store.path)]
    assert len(set(names)) == 3
    assert max(map(len, names)) < 107
    directory = os.path.dirname(names[0])
    assert {os.path.dirname(name) for name in names} == {directory}
    assert os.stat(directory).st_mode & 0o077 == 0
    with temporary_store() as other:
        assert endpoint_path(other.path) != names[0]


def test_asking_nobody_is_said_at_once(store: StoreIdentity) -> None:
    """A socket file without a lock is stale."""
    Path(endpoint_path(store.path)).touch()
    with pytest.raises(CommError, match=r"no daemon serves.*\n.*stepd start"):
        request(store.path, "status", timeout=60)


def test_a_daemon_that_does_not_answer_is_given_up(store: StoreIdentity) -> None:
    """Locked but silent: stopped by SIGSTOP, or hanging in its disk."""
    lock = platform.hold_lock(lock_path(store.path))
    assert lock is not None
    with pytest.raises(CommError, match="does not answer"):
        request(store.path, "status", timeout=0.05)
    lock.release()


@pytest.mark.parametrize("verb", ["reply", "error"])
def test_answers_are_matched_by_their_number(store: StoreIdentity, verb: str) -> None:
    """Somebody else's answer, and a message of another kind, are passed over."""
    lock = platform.hold_lock(lock_path(store.path))
    assert lock is not None
    router = Router(endpoint_path(store.path))
    pid = os.fork()
    if pid == 0:
        try:
            request(store.path, "status", {"x": 1}, timeout=20)
            os._exit(10)
        except RemoteProtocolError as error:
            os._exit(20 if str(error) == "no" else 30)
        finally:
            os._exit(40)
    identity, asked = router.take()
    assert isinstance(asked, Control)
    assert (asked.verb, asked.arguments) == ("status", {"x": 1})
    for message in (
        Reject(0, "x", "y", True),
        Control(asked.id ^ 1, "error", {}),
        Control(asked.id, verb, {"text": "no"}),
    ):
        router.socket.send_multipart([identity, *encode(message)])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (10 if verb == "reply" else 20)
    router.close()
    lock.release()
