"""What real programs print, in a run's console: daemons that die or stand still, threads, children, terminals, the end of a process."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk import platform
from sdk.transport import lock_path
from tests.end_to_end.world import Trainer, until

pytestmark = pytest.mark.usefixtures("store")
LINES = 100_000
ROOT = Path(__file__).resolve().parents[2]


def printing(path: Path, body: Callable[[sdk.Run, Callable[[int], None]], None]) -> Trainer:
    """A trainer whose stdout and stderr are the file `path`."""

    def train(count: Callable[[int], None]) -> None:
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding="utf-8")  # noqa: SIM115 - for life
        sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False), encoding="utf-8", line_buffering=True)  # noqa: SIM115
        run = sdk.init(id="printing")
        body(run, count)
        run.finish()
        sys.stdout.flush()

    return Trainer(train)


def program(text: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a script that begins a run of id "printing"."""
    code = f"import sdk, sys\nrun = sdk.init(id='printing')\n{text}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    return subprocess.run([sys.executable, "-c", code], env=environment, text=True, timeout=60, **options)


def lines(source: str = "all") -> list[Any]:
    return list(sdk.open_store().run("printing").logs(stream=source))


def texts(source: str = "all") -> list[str]:
    return [line.text for line in lines(source)]


def daemon_of(store: Path) -> int:
    found = platform.lock_owner(lock_path(str(store)))
    return found or 0


def test_lines_across_a_daemon_that_is_killed(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is stored once and in order although the daemon is killed, and another one comes up."""
    monkeypatch.setenv("STEPD_RESTART_SECONDS", "0.2")
    # Nobody waits for a print: on a machine that is busy with other things the lines of a second are more than the usual ring holds.
    monkeypatch.setenv("STEPD_CONSOLE_RING_BYTES", str(32 << 20))

    def body(run: sdk.Run, count: Callable[[int], None]) -> None:
        killed = [0]
        for number in range(LINES):
            if number == LINES // 4:
                until(lambda: daemon_of(store) > 0)
            if number == LINES // 2:
                killed.append(daemon_of(store))
                os.kill(killed[1], signal.SIGKILL)
            if number == LINES * 3 // 4:
                until(lambda: daemon_of(store) not in killed)
            print("line", number)

    trainer = printing(tmp_path / "out", body)
    assert trainer.wait() == 0
    expected = [f"line {number}" for number in range(LINES)]
    assert texts() == expected
    assert (tmp_path / "out").read_text(encoding="utf-8").split("\n")[:-1] == expected


def test_ten_megabytes_while_the_daemon_stands_still(store: Path, tmp_path: Path) -> None:
    """A print waits for no daemon; all of it is in the file and in the run."""
    text = "\n".join(f"{number:08} {'x' * 990}" for number in range(10_000))

    def body(run: sdk.Run, count: Callable[[int], None]) -> None:
        print("first", flush=True)
        until(lambda: daemon_of(store) > 0)
        os.kill(daemon_of(store), signal.SIGSTOP)
        print(text, flush=True)
        count(1)

    trainer = printing(tmp_path / "out", body)
    until(lambda: trainer.returned == 1)
    assert (tmp_path / "out").read_text(encoding="utf-8") == f"first\n{text}\n"
    assert trainer.wait() == 0  # without the daemon, in its own segment
    os.kill(daemon_of(store), signal.SIGCONT)
    assert texts() == ["first", *text.split("\n")]


def test_a_killed_trainer(store: Path, tmp_path: Path) -> None:
    """The daemon takes the lines out of its ring, the bar that was running among them; the run has crashed."""

    def body(run: sdk.Run, count: Callable[[int], None]) -> None:
        for number in range(1000):
            print("line", number)
        sys.stdout.write("\r50 %")
        until(lambda: run._lines._stream.journal.mark()[1] > 1002)
        count(1)
        signal.pause()

    trainer = printing(tmp_path / "out", body)
    until(lambda: trainer.returned == 1)
    trainer.kill()
    trainer.wait()
    until(lambda: sdk.open_store().run("printing").state == "crashed" and len(texts()) == 1001)
    assert texts() == [*(f"line {number}" for number in range(1000)), "50 %"]


def test_a_program_that_writes_in_every_way(store: Path, tmp_path: Path) -> None:
    """Threads, a child process, bytes, the descriptor, atexit and the traceback that ends it: all in the run, each line once."""
    out = tmp_path / "out"
    with open(out, "w", encoding="utf-8") as file:
        ended = program(
            """
import atexit, os, subprocess, threading
atexit.register(print, "at exit")
threads = [threading.Thread(target=lambda n=n: [print("thread", n, i) for i in range(50)]) for n in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
sys.stdout.flush()
subprocess.run(["echo", "of a child"])
os.write(1, b"by the descriptor\\n")
sys.stdout.buffer.write(b"bytes\\n"); sys.stdout.flush()
print("last", flush=True)
raise ValueError("the end")
""",
            stdout=file,
            stderr=file,
        )
    assert ended.returncode == 1
    printed = out.read_text(encoding="utf-8").split("\n")[:-1]
    assert "of a child" in printed and "at exit" in printed and "ValueError: the end" in printed
    assert sorted(texts()) == sorted(printed)
    assert [line.text for line in lines() if line.by == "child"] == ["of a child", "by the descriptor", "bytes"]
    errors = texts("stderr")
    assert errors[0].startswith("Traceback") and errors[-1] == "ValueError: the end"
    assert texts("stdout").index("at exit") > texts("stdout").index("last")


def test_log_records_in_a_file_that_is_looked_at(store: Path, tmp_path: Path) -> None:
    """A record that a `LogHandler` stores is neither stored again as a line nor found as a stranger's."""
    with open(tmp_path / "out", "w", encoding="utf-8") as file:
        program(
            """
import logging, subprocess
logging.basicConfig(stream=sys.stdout, level=logging.INFO, handlers=None)
logging.getLogger().addHandler(sdk.LogHandler())
for number in range(3):
    logging.info("record %d", number)
    subprocess.run(["echo", f"child {number}"])
    print("line", number, flush=True)
""",
            stdout=file,
            stderr=subprocess.DEVNULL,
        )
    found = lines()
    assert [line.text for line in found if line.source == "log"] == ["record 0", "record 1", "record 2"]
    assert [line.text for line in found if line.by] == ["child 0", "child 1", "child 2"]
    assert [line.text for line in found if line.source != "log" and not line.by] == ["line 0", "line 1", "line 2"]


@pytest.mark.parametrize("end", ["", "\\n"])
def test_children_that_are_forked(store: Path, tmp_path: Path, end: str) -> None:
    """What multiprocessing's children print is stored by themselves, once, and the parent's lines are only the parent's."""
    with open(tmp_path / "out" if end else os.devnull, "w", encoding="utf-8") as file:
        program(
            f"""
import multiprocessing
def work(n):
    print("child", n)
    sys.stdout.write(f"half {{n}}{end}")
print("parent")
sys.stdout.flush()
ps = [multiprocessing.get_context("fork").Process(target=work, args=(n,)) for n in range(2)]
[p.start() for p in ps]; [p.join() for p in ps]
print("parent again")
run.finish()
""",
            stdout=file,
            stderr=subprocess.DEVNULL,
        )
    found = lines()
    assert sorted(line.text for line in found) == ["child 0", "child 1", "half 0", "half 1", "parent", "parent again"]
    assert len({line.stream for line in found}) == 3


@pytest.mark.parametrize("to_file", [False, True])
def test_children_that_are_spawned(store: Path, tmp_path: Path, to_file: bool) -> None:
    """A child that uses the run is captured from then on; into a file, its lines are found by the parent, from the start."""
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(
        """
import multiprocessing, sdk
def work(run):
    print("before")
    run.log({"x": 1})
    print("child")
if __name__ == "__main__":
    run = sdk.init(id="printing")
    print("parent", flush=True)
    p = multiprocessing.get_context("spawn").Process(target=work, args=(run,))
    p.start(); p.join()
    run.finish()
""",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(out if to_file else os.devnull, "w", encoding="utf-8") as file:
        subprocess.run([sys.executable, script], env=environment, stdout=file, stderr=subprocess.DEVNULL, timeout=60)
    assert sorted(texts()) == (["before", "child", "parent"] if to_file else ["child", "parent"])
    facts = sdk.open_store().run("printing").context["console"]["stdout"]
    assert facts == (
        {"kind": "file", "path": str(out), "from": 0, "until": out.stat().st_size, "children": True}
        if to_file
        else {"kind": "device"}
    )


def test_a_terminal(store: Path) -> None:
    """A program in a terminal sees a terminal, which shows everything; of its bar the end is stored; children are said to be missing."""
    main, side = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", _BAR], stdin=subprocess.DEVNULL, stdout=side, stderr=side, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )  # fmt: skip
    os.close(side)
    shown = b""
    try:
        while part := os.read(main, 65536):
            shown += part
    except OSError:  # EIO: nobody has the other end any more
        pass
    os.close(main)
    assert child.wait(60) == 0
    assert shown == b"True\r\n" + b"".join(b"\r%d %%" % n for n in range(101)) + b"\r\nend\r\n"
    assert texts() == ["True", "100 %", "end"]
    facts = sdk.open_store().run("printing").context["console"]
    assert facts["stdout"] == {"kind": "terminal"}


_BAR = """
import sdk, sys
run = sdk.init(id="printing")
print(sys.stdout.isatty())
for n in range(101):
    sys.stderr.write(f"\\r{n} %")
    sys.stderr.flush()
sys.stderr.write("\\n")
print("end")
run.finish()
"""


def test_a_pipe_that_nobody_reads_any_more(store: Path) -> None:
    """`BrokenPipeError` is the program's to see, as without us."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = program(
        """
try:
    print("x", flush=True)
except BrokenPipeError:
    run.log({"seen": 1})
run.finish()
os = __import__("os"); os._exit(0)
""",
        stdout=writer,
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    assert ended.returncode == 0
    assert sdk.open_store().run("printing").series("seen").value.tolist() == [1]
