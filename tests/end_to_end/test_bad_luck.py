"""Bad input and bad luck: each has a clear error or a counted, visible fallback, and the training loop never notices."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import zmq

import sdk
from sdk import _globals, _spawn
from sdk.location import make_store
from sdk.platform import hold_lock
from sdk.transport import endpoint_path, lock_path
from sdk.wire.codec import decode, encode
from sdk.wire.messages import Hello, Reject
from tests.end_to_end.world import Trainer, kill_daemon, settle, start_daemon, steps, until, until_drained

ROOT = Path(__file__).parents[2]


def log_some(n: int, run: str = "run", **settings: object) -> Callable[[Callable[[int], None]], None]:
    """A trainer's body: one run of n steps."""

    def train(count: Callable[[int], None]) -> None:
        sdk.init(id=run, project="luck", **settings)
        log = sdk.log
        for i in range(n):
            log({"x": i})
            count(i + 1)
        sdk.finish()

    return train


def test_a_million_steps_flat_out_arrive_complete(store: Path) -> None:
    """10^6 calls in a tight loop, daemon started by init in the same second: none is refused, each is there once."""
    assert Trainer(log_some(1_000_000)).wait() == 0
    run = sdk.open_store(store).run("run")
    series = run.series("x")
    assert len(series.step) == 1_000_000
    assert (series.step == numpy.arange(1_000_000)).all()
    assert (series.value == series.step).all()
    assert run.gaps == []


def test_without_any_daemon_everything_is_in_the_spool(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """STEPD_AUTOSTART=0: no process is started, and after finish the store holds all rows."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    assert Trainer(log_some(5000)).wait() == 0
    assert not _spawn.is_serving(str(store))
    assert steps(store, "run") == list(range(5000))
    assert sdk.open_store(store).run("run").state == "finished"


def test_a_stopped_daemon_is_bridged(store: Path) -> None:
    """SIGSTOP of the daemon while the trainer logs: the spool takes over, and after SIGCONT nothing is there twice."""
    pid = start_daemon(store)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert Trainer(log_some(200_000)).wait() == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    settle(store)
    run = sdk.open_store(store).run("run")
    assert run.series("x").value.tolist() == list(range(200_000))
    assert not run.gaps


def test_a_daemon_that_is_killed_and_may_not_come_back(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `stop` by a user no sender starts another daemon; the records are in the spool."""
    start_daemon(store)
    monkeypatch.setenv("STEPD_RESTART_SECONDS", "0.05")
    go = store / "go"

    def train(count: Callable[[int], None]) -> None:
        sdk.init(id="run", project="luck")
        for i in range(100):
            sdk.log({"x": i})
        count(100)
        while not go.exists():
            time.sleep(0.01)
        for i in range(100, 200):
            sdk.log({"x": i})
        sdk.finish()

    trainer = Trainer(train)
    until(lambda: trainer.returned == 100)
    from daemon.commands.stop import stop

    assert stop(str(store)) is not None
    go.touch()
    assert trainer.wait() == 0
    assert not _spawn.is_serving(str(store))
    assert steps(store, "run") == list(range(200))


def test_a_daemon_that_took_over_from_another_finishes_an_idle_run(store: Path) -> None:
    """It does not know the stream and asks for a Hello; `finish` says it, and nothing goes to the spool."""
    start_daemon(store)

    def train(count: Callable[[int], None]) -> None:
        run = sdk.init(id="run", project="bad")
        run.log({"x": 0})
        assert run._stream.flush(20)
        stream = run._stream
        count(1)
        until((store / "go").exists)
        run.finish()
        assert stream._receipt.ended_in == "written", stream._receipt

    trainer = Trainer(train)
    until(lambda: trainer.returned == 1)
    kill_daemon(store)
    start_daemon(store)
    (store / "go").touch()
    assert trainer.wait() == 0
    assert steps(store, "run") == [0]


def test_a_full_disk_is_counted_and_recovers(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for the spool: the ring fills, calls are refused and counted; with room again logging goes on, and the
    reader shows the gap with exactly the steps that are missing.
    """
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    monkeypatch.setenv("STEPD_RING_BYTES", str(256 * 1024))

    def train(count: Callable[[int], None]) -> None:
        sdk.init(id="run", project="luck")
        # Files may not grow beyond 8 KiB: every append to the spool fails with EFBIG, as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        for i in range(20_000):
            sdk.log({"x": i})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        deadline = time.monotonic() + 30
        ring = sdk.run._stream.journal.ring
        while ring.words[8] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        sdk.log({"x": 20_000})
        count(1)
        sdk.finish()

    trainer = Trainer(train)
    assert trainer.wait() == 0
    assert trainer.returned == 1
    run = sdk.open_store(store).run("run")
    found = run.series("x").value.tolist()
    assert found[-1] == 20_000
    kept = len(found) - 1
    assert found[:kept] == list(range(kept))
    assert 0 < kept < 20_000
    (gap,) = run.gaps
    assert gap.reason in ("disk error", "ring full")  # whichever was known when the last call was refused
    assert gap.count == 20_000 - kept


def test_a_run_that_ends_while_its_ring_is_full(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is accepted or refused in the receipt, and the run's end and last facts have room that no row takes: what
    was in the ring is stored later, and is that of a run that finished.
    """
    for name, value in {
        "AUTOSTART": "0",
        "SPOOL_BYTES_MAX": "0",
        "RING_BYTES": "64K",
        "FINISH_SECONDS_MAX": "0.2",
    }.items():
        monkeypatch.setenv(f"STEPD_{name}", value)

    def body(count: Callable[[int], None]) -> None:
        run = sdk.init(id="r", settings={"silent": True})
        for n in range(8000):
            run.log({"x": n})
        stream = run._stream
        run.summary["best"] = 3
        run.finish()
        receipt = stream._receipt
        assert receipt is not None
        assert receipt.refused > 0
        assert receipt.accepted + receipt.refused == 8000
        assert (receipt.stored, receipt.ended_in, receipt.facts_lost) == (0, "ring", 0)

    assert Trainer(body).wait() == 0
    start_daemon(store)
    until_drained(store)
    found = sdk.open_store(store).run("r")
    assert len(found.series("x")) + sum(gap.count for gap in found.gaps) == 8000
    assert (found.state, found.summary["best"]) == ("finished", 3)


def test_shared_memory_is_missing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /dev/shm the ring is private memory: everything works, but for surviving kill -9, and that is said."""
    monkeypatch.setenv("STEPD_SHARED_MEMORY_DIR", str(store / "no" / "such"))

    def train(_: Callable[[int], None]) -> None:
        run = sdk.init(id="run", project="luck")
        assert any("private memory" in note for note in run._stream.notes)
        for i in range(1000):
            sdk.log({"x": i})
        sdk.finish()

    assert Trainer(train).wait() == 0
    assert steps(store, "run") == list(range(1000))


def test_a_daemon_of_another_version(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that rejects our wire version: records go to the spool, log() notices nothing."""
    identity = make_store(str(store))
    lock = hold_lock(lock_path(identity.path))
    assert lock is not None
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.bind(f"ipc://{endpoint_path(identity.path)}")
    ended = threading.Event()

    def refuse() -> None:
        while not ended.is_set():
            if router.poll(20):
                peer, *frames = router.recv_multipart()
                message = decode(frames)
                if isinstance(message, Hello):
                    router.send_multipart([peer, *encode(Reject(message.stream, "version", "too old", False))])

    trainer = Trainer(log_some(5000))
    thread = threading.Thread(target=refuse)
    thread.start()
    try:
        assert trainer.wait() == 0
    finally:
        ended.set()
        thread.join()
        router.close()
        context.term()
        lock.release()
    assert steps(store, "run") == list(range(5000))


def test_noise_on_the_socket_disturbs_nobody(store: Path) -> None:
    """Random bytes on the daemon's raw socket while a run is logged: the run is complete and the daemon still serves."""
    start_daemon(store)
    trainer = Trainer(log_some(100_000))
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(endpoint_path(str(store)))
            raw.sendall(os.urandom(1000))
    assert trainer.wait() == 0
    assert _spawn.is_serving(str(store))
    assert steps(store, "run") == list(range(100_000))


@pytest.mark.parametrize(
    "run_id", ["..", ".", "-rf", "CON", "a b", "ÄÖ ü", "日本", "x" * 128, "a%2e", "~", "A", "a\\b", "history-1.seg"]
)
def test_any_id_at_all(store: Path, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any id W&B takes names a run of its own, inside the store and nowhere else."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    assert Trainer(log_some(3, run_id)).wait() == 0
    assert steps(store, run_id) == [0, 1, 2]
    inside = list((store / "runs").iterdir())
    assert len(inside) == 1
    assert not inside[0].name.startswith((".", "-"))


def test_ids_that_differ_in_case_only(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`A` and `a` are two runs, in directories that differ on a disk that folds case too."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    assert Trainer(log_some(1, "A")).wait() == 0
    assert Trainer(log_some(2, "a")).wait() == 0
    assert (steps(store, "A"), steps(store, "a")) == ([0], [0, 1])
    assert len({p.name.lower() for p in (store / "runs").iterdir()}) == 2


def test_a_store_that_cannot_be_written(tmp_path: Path, store: Path) -> None:
    """`dir=` names a file, or a path no disk takes: training goes on in a temporary store, and stderr says where."""
    (tmp_path / "file").write_text("x")
    for bad in (str(tmp_path / "file"), "/proc/nowhere", "/" + "x" * 5000):
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sdk; r = sdk.init(dir={bad!r}); sdk.log({{'x': 1}}); sdk.finish()"
        environment = {k: v for k, v in os.environ.items() if k != "STEPD_SILENT"} | {
            "STEPD_AUTOSTART": "0",
            "TMPDIR": str(tmp_path),
        }
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=30)
        assert done.returncode == 0, done.stderr
        assert str(tmp_path) in done.stderr


def test_a_store_path_longer_than_a_socket_path(store: Path) -> None:
    """The socket does not lie in the store, so a deep store works like any other."""
    deep = store / ("d" * 100) / ("e" * 100)
    assert Trainer(log_some(100, dir=str(deep))).wait() == 0
    assert steps(deep, "run") == list(range(100))
    kill_daemon(deep)


def test_errors_of_use_raise_and_store_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each error of use names what was wrong, and the calls around it are all there is."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")

    def train(count: Callable[[int], None]) -> None:
        _globals.state.last = None  # of another test, in the process that we were forked from
        with pytest.raises(sdk.Error, match="before init"):
            sdk.log({"x": 1})
        run = sdk.init(id="run", project="luck")
        run.log({"x": 0})
        for error, data, step in [
            (TypeError, {3: 1}, None),
            (TypeError, {"x": object()}, None),
            (TypeError, [1], None),
            (TypeError, {"x": 1}, 1.5),
            (TypeError, {"x": 1}, "3"),
            (ValueError, {"x": 1}, -1),
            (ValueError, {"x": 2**64}, None),
        ]:
            with pytest.raises(error):
                run.log(data, step=step)
        run.log({"x": 1})
        run.finish()
        with pytest.raises(sdk.UsageError):
            run.log({"x": 2})
        with pytest.raises(sdk.UsageError):
            sdk.log({"x": 2})
        count(1)

    trainer = Trainer(train)
    assert trainer.wait() == 0
    assert steps(store, "run") == [0, 1]


def test_misuse_warn_leaves_out_the_bad_key_only(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """STEPD_MISUSE=warn: the other keys of the call are stored, the run says what was left out, nothing raises."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    monkeypatch.setenv("STEPD_MISUSE", "warn")

    def train(_: Callable[[int], None]) -> None:
        run = sdk.init(id="run", project="luck")
        run.log({"x": 0, "bad": object(), 5: 1})
        run.log([1])
        run.log({"x": 1}, step=-3)
        run.finish()

    assert Trainer(train).wait() == 0
    run = sdk.open_store(store).run("run")
    assert run.series("x").value.tolist() == [0, 1]
    assert run.keys() == ["x"]


def test_orphans_of_a_killed_machine_are_found_later(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer killed with no daemon anywhere: the next daemon finds its ring, and the run is shown as crashed."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")

    def train(_: Callable[[int], None]) -> None:
        sdk.init(id="run", project="luck")
        for i in range(1000):
            sdk.log({"x": i})
        os.kill(os.getpid(), signal.SIGKILL)

    assert Trainer(train).wait() == -9
    start_daemon(store)
    until_drained(store)
    run = sdk.open_store(store).run("run")
    assert run.series("x").step.tolist() == list(range(1000))
    assert run.state == "crashed"
