"""daemon.server and the service commands: real daemon processes, and one server ticked by hand."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import sdk
from daemon.cli import cli
from daemon.commands.stop import stop
from daemon.lifecycle import take_store
from daemon.server import LOG_FILE, Server, serve
from daemon.settings import DaemonSettings
from sdk import _spawn, clock, platform
from sdk.errors import CommError, RemoteProtocolError, StoreError
from sdk.journal.format import CAPACITY_MIN
from sdk.journal.ring import Ring
from sdk.limits import BATCH_BYTES_MAX
from sdk.location import StoreIdentity
from sdk.segment.naming import run_path
from sdk.transport import Connection, endpoint_path, lock_path, request, stopped_path
from sdk.wire.messages import Ack, Batch, Finish, Finished, Flush, Flushed, Hello, Message, Welcome
from tests.end_to_end.world import Trainer as Process
from tests.serving import RUN, held, rows, until

STREAM = 0x77
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(sdk.__file__)))
START_SECONDS = 30.0


def ensure(store: StoreIdentity, *, persistent: bool = True) -> dict[str, Any]:
    return _spawn.ensure(store.path, timeout=START_SECONDS, shared_memory_dir="/dev/shm", persistent=persistent)


def start(store: StoreIdentity, *, idle_seconds: float = 60.0, persistent: bool = False) -> int:
    """Starts a daemon with `idle_seconds`, waits until it answers and reaps its starter; its pid."""
    starter = _spawn.start(store.path, persistent=persistent, idle_seconds=idle_seconds, shared_memory_dir="/dev/shm")
    status = until(lambda: answer(store), "a daemon that answers", START_SECONDS)
    until(lambda: _spawn.reap(starter), "the starter's end")
    return int(status["pid"])


def answer(store: StoreIdentity) -> dict[str, Any] | None:
    with contextlib.suppress(CommError):
        return request(store.path, "status", timeout=1.0)
    return None


def gone(pid: int) -> None:
    """Waits for the end of a process that is nobody's child: whoever reaps it may take his time."""

    def ended() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            return state == "Z" and len(os.listdir(f"/proc/{pid}/task")) == 1
        except OSError:
            return True

    until(ended, f"the end of process {pid}")


def daemons_of(store: StoreIdentity) -> list[int]:
    """The processes that were started for a store."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and store.path.encode() in Path("/proc", name, "cmdline").read_bytes().split(b"\0"):
                found.append(int(name))
    return found


def living_ring(store: StoreIdentity) -> Ring:
    """A ring that this process holds: a living trainer."""
    digest = platform.store_digest(store.path)
    ring, note = Ring.create("/dev/shm", digest, STREAM, CAPACITY_MIN, {"run": RUN, "store": store.id})
    if ring.volatile:
        pytest.skip(f"no shared memory here: {note}")
    return ring


def run_command(store: StoreIdentity, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["--dir", store.path, *arguments], prog_name="stepd")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


class Trainer:
    """A session with a real daemon."""

    def __init__(self, store: StoreIdentity) -> None:
        self.connection = Connection(endpoint_path(store.path))
        limits = {"batch_bytes_max": BATCH_BYTES_MAX}
        self.connection.send(Hello(1, 1, STREAM, RUN, store.id, 0, "", os.getpid(), "0.1.0", limits))
        self.expect(Welcome)

    def expect(self, kind: type[Message]) -> Any:
        deadline = clock.monotonic() + 20
        while clock.monotonic() < deadline:
            self.connection.wait(0.1)
            message = self.connection.receive()
            if isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__}")


# -- starting -------------------------------------------------------------------------------------------------------


def test_start_again_finds_the_same_one(store: StoreIdentity) -> None:
    """And one that init started stays from then on."""
    pid = start(store)
    assert request(store.path, "status")["persistent"] is False
    status = ensure(store)
    assert (status["pid"], status["persistent"]) == (pid, True)
    assert ensure(store, persistent=False)["persistent"] is True


def test_of_eight_started_at_once_one_serves(store: StoreIdentity) -> None:
    """The others find the lock taken and leave; nobody steals the socket."""
    starters = [
        _spawn.start(store.path, persistent=True, idle_seconds=60, shared_memory_dir="/dev/shm") for _ in range(8)
    ]
    pid = until(lambda: answer(store), "an answer", START_SECONDS)["pid"]
    for starter in starters:
        until(lambda starter=starter: _spawn.reap(starter), "a starter's end")
    until(lambda: daemons_of(store) == [pid], "the others' end")
    assert platform.lock_owner(lock_path(store.path)) == pid
    assert request(store.path, "status")["pid"] == pid


def test_what_a_started_daemon_is(store: StoreIdentity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's child, own session, cwd /, null on 0-2, no other descriptor, all CPUs, nice, a clean environment."""
    dropped = {
        "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1", "NCCL_DEBUG": "INFO", "PYTHONSTARTUP": "/no/such.py",
        "PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error", "MKL_NUM_THREADS": "3",
    }  # fmt: skip
    for name, value in dropped.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KEPT_FOR_USERS", "yes")
    inherited = os.open(tmp_path / "secret", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(inherited, True)
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        pid = start(store)
    finally:
        os.sched_setaffinity(0, cpus)
        os.close(inherited)
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    parent, session, nice = int(stat[1]), int(stat[3]), int(stat[16])
    assert parent != os.getpid()
    assert session not in (os.getsid(0), os.getpid())
    assert nice == min(os.nice(0) + 5, 19)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.sched_getaffinity(pid) >= cpus
    links = {int(n): os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}
    assert [links[n] for n in (0, 1, 2)] == ["/dev/null"] * 3
    assert not [link for link in links.values() if str(tmp_path) in link]
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert not [item for item in environment if item.split(b"=")[0].decode() in dropped]
    assert b"KEPT_FOR_USERS=yes" in environment
    limits = next(n for n in Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines() if "open files" in n)
    assert limits.split()[3] == limits.split()[4]
    assert Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() == "stepd"


def test_modules_of_the_user_are_not_taken_for_ours(store: StoreIdentity, tmp_path: Path) -> None:
    """A daemon.py, sdk.py, zmq.py or json.py beside the training script does not end up in the daemon."""
    for name in ("daemon", "sdk", "zmq", "json", "msgpack", "logging", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n", encoding="utf-8")
    other = tmp_path / "elsewhere"
    other.mkdir()
    code = (
        f"from sdk import _spawn\n"
        f"print(_spawn.ensure({store.path!r}, timeout={START_SECONDS}, shared_memory_dir='/dev/shm')['pid'])\n"
    )
    (other / "train.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(
        [sys.executable, str(other / "train.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert request(store.path, "status")["pid"] == int(done.stdout)


def test_stale_files_are_no_obstacle(store: StoreIdentity) -> None:
    """A socket file and a lock file whose owner was killed by SIGKILL mean nothing."""
    pid = start(store)
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    assert os.path.exists(endpoint_path(store.path))
    assert os.path.exists(lock_path(store.path))
    assert not _spawn.is_serving(store.path)
    with pytest.raises(CommError, match="no daemon serves"):
        request(store.path, "status")
    os.unlink(endpoint_path(store.path))
    Path(endpoint_path(store.path)).write_text("a file where the socket should be", encoding="utf-8")
    assert ensure(store)["pid"] != pid


def test_a_second_one_leaves_at_once(store: StoreIdentity) -> None:
    """`serve` returns 0 when another holds the lock, and does not touch its socket."""
    lock = take_store(store.path, "test")
    assert lock is not None
    endpoint = endpoint_path(store.path)
    with socket.socket(socket.AF_UNIX) as first:
        first.bind(endpoint)
        inode = os.stat(endpoint).st_ino
        assert serve(store.path, DaemonSettings(idle_seconds=0.1)) == 0
        assert os.stat(endpoint).st_ino == inode
    os.unlink(endpoint)
    lock.release()


def test_a_store_that_is_none_cannot_be_served(tmp_path: Path) -> None:
    """Nothing is created where nobody made a store."""
    with pytest.raises(StoreError):
        serve(str(tmp_path / "no store"), DaemonSettings())
    assert not (tmp_path / "no store").exists()


# -- serving --------------------------------------------------------------------------------------------------------


def test_a_session_with_a_real_daemon(store: StoreIdentity) -> None:
    """Batches come in, are on the disk when they are acked, are forced a second later, and the end seals."""
    pid = start(store)
    trainer = Trainer(store)
    trainer.connection.send(Batch(STREAM, 1, 100, 0, 100, rows(1, 100)))
    trainer.connection.send(Flush(STREAM, 100))
    assert trainer.expect(Flushed).written == 100
    assert held(store.path).sequences(STREAM) == list(range(1, 101))
    status = request(store.path, "status")
    assert (status["pid"], status["records"], status["runs"][0]["id"]) == (pid, 100, RUN)
    assert set(status) >= {
        "version", "store", "uptime_seconds", "persistent", "draining", "bytes", "records_per_second",
        "bytes_per_second", "duplicates", "refused", "flushes", "synced_age_seconds", "protocol_errors",
        "write_failures", "sync_failures", "drained_rings", "mended_segments", "free_bytes", "memory_bytes", "last_error",
    }  # fmt: skip
    assert set(status["runs"][0]) >= {"id", "streams", "waiting_bytes", "lag_seconds", "refused"}
    json.dumps(status)
    until(lambda: trainer.expect(Ack).synced == 100, "synced")
    trainer.connection.send(Finish(STREAM, 100))
    trainer.expect(Finished)
    until(lambda: held(store.path).unsealed == [], "the seal")
    assert request(store.path, "status")["runs"] == []
    trainer.connection.close()


def test_an_unknown_command_names_the_known_ones(store: StoreIdentity) -> None:
    """A newer command line learns what this daemon can do."""
    start(store)
    with pytest.raises(RemoteProtocolError, match=r"unknown command 'dance'.*status"):
        request(store.path, "dance")
    assert request(store.path, "flush") == {}
    assert request(store.path, "settle") == {}


def test_garbage_and_idle_connections_do_no_harm(store: StoreIdentity) -> None:
    """Random bytes, HTTP and zeros on the raw socket, and two hundred connections that say nothing."""
    pid = start(store)
    before = len(os.listdir(f"/proc/{pid}/fd"))
    raw = []
    for n in range(200):
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.connect(endpoint_path(store.path))
        with contextlib.suppress(OSError):
            if n < 60:
                one.sendall([os.urandom(512), b"GET / HTTP/1.1\r\n\r\n", bytes(1000)][n % 3])
        raw.append(one)
    until(lambda: len(os.listdir(f"/proc/{pid}/fd")) > before + 100, "many connections")
    trainer = Trainer(store)
    trainer.connection.send(Batch(STREAM, 1, 10, 0, 10, rows(1, 10)))
    trainer.connection.send(Flush(STREAM, 10))
    assert trainer.expect(Flushed).written == 10
    trainer.connection.close()
    for one in raw:
        one.close()
    until(lambda: len(os.listdir(f"/proc/{pid}/fd")) < before + 20, "closed connections")
    assert request(store.path, "status")["pid"] == pid


# -- leaving --------------------------------------------------------------------------------------------------------


def test_stop_is_remembered(store: StoreIdentity) -> None:
    """Everything is written and sealed, the files are gone, and no sender starts another until somebody says so."""
    pid = start(store, persistent=True)
    trainer = Trainer(store)
    trainer.connection.send(Batch(STREAM, 1, 10, 0, 10, rows(1, 10)))
    trainer.expect(Ack)
    assert stop(store.path) == 1
    gone(pid)
    assert held(store.path).sequences(STREAM) == list(range(1, 11))
    assert held(store.path).unsealed == []
    assert not os.path.exists(endpoint_path(store.path))
    assert _spawn.was_stopped(store.path)
    assert stop(store.path) is None
    assert ensure(store)["pid"] != pid
    assert not _spawn.was_stopped(store.path)
    trainer.connection.close()


def test_stop_counts_only_trainers_that_live(store: StoreIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has just been killed keeps nothing going, whether the daemon has looked since or not."""
    monkeypatch.setenv("STEPD_SILENT", "1")
    start(store, persistent=True)

    def body(count: Callable[[int], None]) -> None:
        sdk.init(dir=store.path, id=RUN).log({"x": 1})
        count(1)
        os.read(os.pipe()[0], 1)

    trainer = Process(body)
    until(lambda: [run["living"] for run in request(store.path, "status")["runs"]] == [1], "its session")
    trainer.kill()
    trainer.wait()
    assert stop(store.path) == 0


def test_without_living_trainers_sigterm_ends_it(store: StoreIdentity) -> None:
    """Within a tick, in order."""
    pid = start(store, persistent=True)
    os.kill(pid, signal.SIGTERM)
    gone(pid)
    assert not os.path.exists(endpoint_path(store.path))
    assert not _spawn.was_stopped(store.path), "a signal is not a user's stop"
    assert "leaving" in Path(store.path, LOG_FILE).read_text(encoding="utf-8")


def test_with_living_trainers_sigterm_lets_it_serve_a_while(store: StoreIdentity) -> None:
    """It says that it is draining, takes new sessions, and leaves with the last trainer."""
    ring = living_ring(store)
    pid = start(store, persistent=True)
    until(lambda: "serving" in Path(store.path, LOG_FILE).read_text(encoding="utf-8"), "the first look")
    os.kill(pid, signal.SIGTERM)
    until(lambda: request(store.path, "status")["draining"], "draining")
    trainer = Trainer(store)
    trainer.connection.send(Batch(STREAM, 1, 5, 0, 5, rows(1, 5)))
    trainer.connection.send(Finish(STREAM, 5))
    assert trainer.expect(Finished).written == 5
    trainer.connection.close()
    assert request(store.path, "status")["pid"] == pid
    ring.close()
    gone(pid)


def test_two_signals_end_it_at_once(store: StoreIdentity) -> None:
    """Also with living trainers: their records are in their rings."""
    ring = living_ring(store)
    pid = start(store, persistent=True)
    os.kill(pid, signal.SIGTERM)
    until(lambda: request(store.path, "status")["draining"], "draining")
    os.kill(pid, signal.SIGINT)
    gone(pid)
    ring.close()


def test_nobody_needs_it_so_it_leaves(store: StoreIdentity) -> None:
    """After `idle_seconds` without a living trainer; a locked ring keeps it."""
    ring = living_ring(store)
    pid = start(store, idle_seconds=0.5)
    uptime = until(lambda: [s for s in [answer(store)] if s and s["uptime_seconds"] > 1.2], "longer than idle")
    assert uptime[0]["pid"] == pid
    ring.close()
    gone(pid)
    assert not os.path.exists(endpoint_path(store.path))


# -- the command line ------------------------------------------------------------------------------------------------


def test_the_commands_tell_what_happened(store: StoreIdentity) -> None:
    """start, start again, status, restart, stop, stop again."""
    nothing = run_command(store, "status")
    assert (nothing.exit_code, nothing.output.count("no daemon serves")) == (0, 1)
    assert run_command(store, "status", "--check").exit_code == 1
    assert json.loads(run_command(store, "status", "--json").output) == {
        "serving": False, "store": store.path, "pid": None, "runs": [], "syncing": [],
    }  # fmt: skip
    first = run_command(store, "start")
    assert first.exit_code == 0
    assert first.output.startswith(f"serving {store.path} (pid ")
    assert run_command(store, "start").output.startswith(f"already serving {store.path}")
    pid = json.loads(run_command(store, "status", "--json").output)["pid"]
    assert f"pid {pid}" in run_command(store, "status", "--check").output
    restarted = run_command(store, "restart")
    assert restarted.output.startswith(f"serving {store.path} (pid ")
    assert json.loads(run_command(store, "status", "--json").output)["pid"] != pid
    assert "serving" in run_command(store, "status", "--log").output
    assert run_command(store, "stop").output == f"stopped the daemon of {store.path}\n"
    assert run_command(store, "stop").output == f"no daemon serves {store.path}\n"


def test_foreground_serves_in_this_process(store: StoreIdentity) -> None:
    """For a process manager: it logs to stderr and ends with 0 on SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon", "start", "--dir", store.path, "--foreground"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert until(lambda: answer(store), "an answer", START_SECONDS)["pid"] == process.pid
        process.terminate()
        _, text = process.communicate(timeout=20)
        assert process.returncode == 0
        assert f"serving {store.path}" in text
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


# -- one server by hand ----------------------------------------------------------------------------------------------


class ByHand:
    """A Server in this process whose ticks are ours."""

    def __init__(self, store: StoreIdentity) -> None:
        self.lock = take_store(store.path, "test")
        assert self.lock is not None
        self.server = Server(store, DaemonSettings())
        self.server._ingest.bind(endpoint_path(store.path))
        self.due = False

    def look(self) -> None:
        now = clock.monotonic()
        self.server._look_around(now)
        self.due = self.server._leaving.is_due(now, living_trainers=True)

    def close(self) -> None:
        self.server._ingest.close()
        assert self.lock is not None
        self.lock.release()


@pytest.fixture
def by_hand(store: StoreIdentity) -> Iterator[ByHand]:
    made = ByHand(store)
    yield made
    made.close()


def test_a_removed_socket_is_bound_again(store: StoreIdentity, by_hand: ByHand) -> None:
    """Somebody cleaned /tmp; new trainers find us again."""
    os.unlink(endpoint_path(store.path))
    by_hand.look()
    assert os.path.exists(endpoint_path(store.path))
    assert not by_hand.due


@pytest.mark.parametrize("kind", ["file", "link", "socket", "directory"])
def test_a_replaced_socket_is_bound_again(store: StoreIdentity, by_hand: ByHand, kind: str) -> None:
    """Something else stands where it was: it goes; but for a directory, where we wait until somebody removed it."""
    path = endpoint_path(store.path)
    os.rename(path, f"{path}.moved")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        make = {
            "file": lambda: Path(path).touch(),
            "link": lambda: os.symlink(f"{path}.moved", path),
            "socket": lambda: other.bind(path),
            "directory": lambda: os.mkdir(path),
        }
        make[kind]()
        by_hand.look()
        if kind == "directory":
            assert not by_hand.server._ingest.socket_is_ours()
            os.rmdir(path)
            by_hand.look()
    os.unlink(f"{path}.moved")
    assert by_hand.server._ingest.socket_is_ours()
    assert not by_hand.due


def test_a_directory_of_locks_that_cannot_be_used_now(
    store: StoreIdentity, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody changed its mode: sessions that are open go on, and nobody could start another daemon anyway."""

    def refuse() -> str:
        raise StoreError("not private")

    with monkeypatch.context() as patch:
        patch.setattr(platform, "runtime_directory", refuse)
        by_hand.look()
    by_hand.look()
    assert not by_hand.due
    assert by_hand.server._ingest.socket_is_ours()


def test_a_store_that_cannot_be_asked_is_still_there(
    store: StoreIdentity, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ESTALE and EIO of a file system that is away say nothing about the store: no daemon leaves for that."""

    def away(_: str) -> str:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(platform, "store_digest", away)
    by_hand.look()
    assert not by_hand.due


def test_with_its_lock_file_it_loses_its_place(store: StoreIdentity, by_hand: ByHand) -> None:
    """Nobody can find it any more, so the next one takes over: its socket is not stolen and not removed by us."""
    os.unlink(lock_path(store.path))
    os.unlink(endpoint_path(store.path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as successor:
        successor.bind(endpoint_path(store.path))
        inode = os.stat(endpoint_path(store.path)).st_ino
        by_hand.look()
        assert by_hand.due
        by_hand.server._ingest.close()
        assert os.stat(endpoint_path(store.path)).st_ino == inode


def test_a_removed_store_ends_it(store: StoreIdentity, by_hand: ByHand) -> None:
    """Quietly: a traceback for everybody who tidies up helps nobody."""
    moved = store.path + "-moved"
    os.rename(store.path, moved)
    try:
        by_hand.look()
        assert by_hand.due
    finally:
        os.rename(moved, store.path)


def test_a_stay_at_the_last_moment_is_kept(store: StoreIdentity, by_hand: ByHand) -> None:
    """Between "nobody needs us" and the end a user says start: who got an answer may rely on it."""
    server = by_hand.server
    server._leaving._needed_at, server._living = -1e9, False
    assert server._is_due()
    real = server._ingest.receive

    def receive(now: float) -> int:
        server._stay({})
        return real(now)

    server._ingest.receive = receive  # type: ignore[method-assign]
    assert not server._is_still_due()


def test_unsealed_segments_of_the_dead_are_mended_between_ticks(store: StoreIdentity) -> None:
    """A daemon killed by SIGKILL leaves one; its successor seals it."""
    pid = start(store)
    trainer = Trainer(store)
    trainer.connection.send(Batch(STREAM, 1, 10, 0, 10, rows(1, 10)))
    trainer.connection.send(Flush(STREAM, 10))
    trainer.expect(Flushed)
    trainer.connection.close()
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    assert len(held(store.path).unsealed) == 1
    start(store)
    until(lambda: held(store.path).unsealed == [], "the seal")
    assert until(lambda: request(store.path, "status")["mended_segments"], "the count") == 1
    assert held(store.path).sequences(STREAM) == list(range(1, 11))
    assert os.listdir(run_path(store.path, RUN)) == [held(store.path).blocks[0][0]]
    assert not os.path.exists(stopped_path(store.path))
