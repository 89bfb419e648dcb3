"""Processes that begin and end in every way: pipes, forks, spawns, several at once, exits of all kinds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sdk
from sdk import _spawn
from tests.end_to_end.world import Trainer, settle, steps, until, until_drained

ROOT = Path(__file__).parents[2]

SCRIPT = """\
import sys
sys.path.insert(0, {root!r})
import sdk
run = sdk.init(id="run", project="lives")
for i in range(100):
    sdk.log({{"x": i}})
{end}
"""


def script(tmp_path: Path, end: str = "") -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(root=str(ROOT), end=end))
    return path


@pytest.mark.parametrize(
    "command",
    ["{python} {script} | tee {log}", "x=$({python} {script}); echo done", "{python} {script} > {log} 2>&1"],
    ids=["pipe", "substitution", "file"],
)
def test_a_pipeline_ends_with_its_trainer(store: Path, tmp_path: Path, command: str) -> None:
    """No pipe is kept open by the daemon that the trainer started: whoever reads the output sees its end at once."""
    text = command.format(
        python=sys.executable, script=script(tmp_path, "print('end', flush=True)"), log=tmp_path / "log"
    )
    stamp = time.monotonic()
    done = subprocess.run(["bash", "-c", text], capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    # The trainer itself takes about a second to import and finish; a daemon that held the pipe would keep it a minute.
    assert time.monotonic() - stamp < 20
    until(lambda: _spawn.is_serving(str(store)))
    assert steps(store, "run") == list(range(100))


def test_captured_output_ends_with_the_trainer(store: Path, tmp_path: Path) -> None:
    """`subprocess.run(capture_output=True)` of a script without finish() returns, and stdout holds only the script's own."""
    done = subprocess.run([sys.executable, script(tmp_path, "print('own')")], capture_output=True, timeout=30)
    assert done.stdout == b"own\n"
    assert sdk.open_store(store).run("run").state == "finished"


@pytest.mark.parametrize(
    ("end", "state", "code"),
    [
        ("sdk.finish()", "finished", 0),
        ("", "finished", 0),
        ("raise RuntimeError('x')", "failed", 1),
        ("raise KeyboardInterrupt", "interrupted", -signal.SIGINT),
        ("import os; os._exit(3)", "crashed", 3),
        ("import os; os.abort()", "crashed", -signal.SIGABRT),
        ("sys.exit(4)", "failed", 4),
        ("run.mark_preempting(); import os; os.kill(os.getpid(), 15)", "preempted", -signal.SIGTERM),
    ],
)
def test_the_state_tells_how_it_ended(store: Path, tmp_path: Path, end: str, state: str, code: int) -> None:
    """finish, exit, exception, Ctrl-C, os._exit and a crash: each is told apart, ends the process as it would, and every call is stored."""
    done = subprocess.run([sys.executable, script(tmp_path, end)], capture_output=True, timeout=30)
    assert done.returncode == code, done.stderr
    until_drained(store)
    run = sdk.open_store(store).run("run")
    assert run.state == state
    assert run.exit_code == (130 if state == "interrupted" else None if state in ("crashed", "preempted") else code)
    assert (run.error is not None and "train.py" in run.error.traceback) == ("raise" in end)
    assert run.series("x").step.tolist() == list(range(100))


def test_eight_processes_with_one_id_keep_all_their_values(store: Path) -> None:
    """Same id, same keys, same steps: rows of different streams never merge, so 8 x n values come back."""
    n = 50

    def train(rank: int) -> None:
        sdk.init(id="shared", project="lives")
        for i in range(n):
            sdk.log({"x": rank * 1000 + i})
        sdk.finish()

    trainers = [Trainer(lambda _, rank=rank: train(rank)) for rank in range(8)]
    assert [trainer.wait() for trainer in trainers] == [0] * 8
    series = sdk.open_store(store).run("shared").series("x", stream="all")
    assert sorted(series.value.tolist()) == sorted(rank * 1000 + i for rank in range(8) for i in range(n))


def test_a_forked_child_logs_into_a_stream_of_its_own(store: Path) -> None:
    """A child starts at its parent's open step; neither loses a value, and both go on with the same function."""

    def train(_: Callable[[int], None]) -> None:
        sdk.init(id="forked", project="lives")
        log = sdk.log
        for i in range(10):
            log({"x": i})
        child = os.fork()
        if child == 0:
            for i in range(5):
                log({"x": 100 + i})
            os._exit(0)
        os.waitpid(child, 0)
        for i in range(10, 20):
            log({"x": i})
        sdk.finish()

    assert Trainer(train).wait() == 0
    until_drained(store)
    run = sdk.open_store(store).run("forked")
    assert run.series("x").value.tolist() == list(range(20))
    everything = run.series("x", stream="all")
    child = [(int(s), int(v)) for s, v in zip(everything.step, everything.value) if v >= 100]
    assert child == [(10 + i, 100 + i) for i in range(5)]
    assert run.state == "finished"


SPAWN = """\
import sys, multiprocessing
sys.path.insert(0, {root!r})
import sdk

def work(run, number):
    for i in range(10):
        run.log({{"worker": number * 100 + i}})

if __name__ == "__main__":
    run = sdk.init(id="spawned", project="lives")
    run.log({{"x": 1}})
    context = multiprocessing.get_context({method!r})
    children = [context.Process(target=work, args=(run, n)) for n in range(2)]
    for child in children: child.start()
    for child in children: child.join()
    assert all(child.exitcode == 0 for child in children)
    run.log({{"x": 2}})
    run.finish()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_store_what_they_log(store: Path, tmp_path: Path, method: str) -> None:
    """A Run that goes to a worker as an argument works there, whatever way the worker was started."""
    path = tmp_path / "train.py"
    path.write_text(SPAWN.format(root=str(ROOT), method=method))
    done = subprocess.run([sys.executable, path], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    until_drained(store)
    run = sdk.open_store(store).run("spawned")
    values = run.series("worker", stream="all").value.tolist()
    assert sorted(values) == sorted(n * 100 + i for n in range(2) for i in range(10))
    assert run.series("x").value.tolist() == [1, 2]


def test_no_signal_handler_is_installed(store: Path) -> None:
    """Signals are the trainer's own."""

    def train(_: Callable[[int], None]) -> None:
        before = {number: signal.getsignal(number) for number in signal.valid_signals()}
        sdk.init(id="signals", project="lives")
        sdk.log({"x": 1})
        sdk.finish()
        assert before == {number: signal.getsignal(number) for number in signal.valid_signals()}

    assert Trainer(train).wait() == 0


def test_a_run_is_readable_while_it_is_logged(store: Path) -> None:
    """Rows younger than the flush age are there after a second, the open row included, without any daemon's help."""
    go = store / "go"

    def train(_: Callable[[int], None]) -> None:
        sdk.init(id="live", project="lives")
        sdk.log({"x": 1})
        sdk.log({"x": 2}, commit=False)
        while not go.exists():
            time.sleep(0.01)
        sdk.finish()

    trainer = Trainer(train)

    def seen() -> bool:
        try:
            return steps(store, "live") == [0, 1]
        except sdk.Error:
            return False

    until(seen)
    assert sdk.open_store(store).run("live").state == "running"
    go.touch()
    assert trainer.wait() == 0
    settle(store)
    assert sdk.open_store(store).run("live").state == "finished"


def test_finish_from_inside_log(store: Path) -> None:
    """A finaliser that calls finish() while log() runs (verl does it in `__del__`) neither hangs nor loses anything."""

    def train(_: Callable[[int], None]) -> None:
        run = sdk.init(id="inside", project="lives")

        def handler(*_: object) -> None:
            if run._stream.journal.is_inside():
                run.finish()

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
        stamp = time.monotonic()
        with pytest.raises(sdk.UsageError):
            for i in range(10_000_000):
                run.log({"x": i})
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert time.monotonic() - stamp < 30

    trainer = Trainer(train)
    assert trainer.wait() == 0
    settle(store)
    until_drained(store)
    found = steps(store, "inside")
    assert found == list(range(len(found)))
    assert found
