"""Log records of real programs: daemons that die meanwhile, threads, ranks, forks, other handlers beside, and `stepd logs`."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk import _sender, platform
from sdk.transport import lock_path
from tests.end_to_end.world import Trainer, until

pytestmark = pytest.mark.usefixtures("store")
# Why no more: 100 000 take five seconds, and show the same.
RECORDS = 100_000
ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"run": {"class": "sdk.LogHandler"}},
    "loggers": {"train": {"handlers": ["run"], "level": "INFO", "propagate": False}},
}


def logging_trainer(body: Callable[[sdk.Run, logging.Logger], None], **options: Any) -> Trainer:
    """A trainer that sets up logging, begins a run of id "logged" and finishes it."""

    def train(count: Callable[[int], None]) -> None:
        logging.config.dictConfig(CONFIG)
        logger = logging.getLogger("train")
        logger.info("before init")
        run = sdk.init(id="logged", **options)
        body(run, logger)
        run.finish()

    return Trainer(train)


def texts(**choice: Any) -> list[str]:
    return [f"missed {line.missed}: {line.why}" if line.missed else line.text for line in found().logs(**choice)]


def found() -> Any:
    return sdk.open_store().run("logged")


def test_records_across_a_daemon_that_is_killed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From eight threads, with another daemon coming up: complete, each thread's in its order, and no more than that."""
    monkeypatch.setenv("STEPD_RESTART_SECONDS", "0.1")

    def body(run: sdk.Run, logger: logging.Logger) -> None:
        until(lambda: bool(platform.lock_owner(lock_path(str(store)))))
        first = platform.lock_owner(lock_path(str(store))) or 0

        def work(thread: int) -> None:
            for number in range(RECORDS // 8):
                if thread == 0 and number == RECORDS // 32:
                    os.kill(first, signal.SIGKILL)
                logger.info("%d of %d", number, thread)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: platform.lock_owner(lock_path(str(store))) not in (None, 0, first))
        logger.warning("end")

    assert logging_trainer(body).wait() == 0
    lines = list(found().logs())
    assert [line for line in lines if line.missed] == [] and found().gaps == []
    assert len(lines) == RECORDS + 2 and (lines[0].text, lines[-1].text) == ("before init", "end")
    for thread in range(8):
        expected = [f"{number} of {thread}" for number in range(RECORDS // 8)]
        assert [line.text for line in lines if line.text.endswith(f" of {thread}")] == expected


def test_handler_screen_and_capture_store_a_record_once(store: Path) -> None:
    """With a StreamHandler beside ours and the console captured, a record is one row; what is printed otherwise is another."""
    program = """
import logging, sys
logging.basicConfig(stream=sys.stdout, level="INFO", format="%(levelname)s %(message)s")
import sdk
logging.getLogger().addHandler(sdk.LogHandler())
run = sdk.init(id="logged")
logging.getLogger("a").info("one")
print("printed")
logging.getLogger("b").warning("two")
quiet = logging.getLogger("quiet")
quiet.propagate = False
quiet.addHandler(logging.StreamHandler(sys.stdout))
quiet.warning("only on the screen")
run.finish()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "INFO one\nprinted\nWARNING two\nonly on the screen\n"
    assert [(line.source, line.text) for line in found().logs()] == [
        ("log", "one"), ("stdout", "printed"), ("log", "two"), ("stdout", "only on the screen"),
    ]  # fmt: skip


def test_the_last_traceback_beside_a_handler(store: Path) -> None:
    """The interpreter prints it without a frame of Python's above: it is a line of stderr like others."""
    program = "import sdk\nsdk.init(id='logged', logging=True)\nraise ValueError('boom')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60)
    assert [(line.source, line.text) for line in found().logs()][-1] == ("stderr", "ValueError: boom")


def test_two_ranks_and_a_fork(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has its own lines in the one run, and they are read by time."""
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")

        def body(run: sdk.Run, logger: logging.Logger, rank: int = rank) -> None:
            logger.info("rank %d", rank)
            pid = os.fork()
            if pid == 0:
                logger.info("child of %d", rank)
                sdk.finish()
                logging.shutdown()
                os._exit(0)
            os.waitpid(pid, 0)
            logger.info("again %d", rank)

        assert logging_trainer(body).wait() == 0
    expected = ["before init", "rank 0", "child of 0", "again 0", "before init", "rank 1", "child of 1", "again 1"]

    until(lambda: len(texts()) == len(expected))
    assert texts() == expected and texts(rank=1) == expected[4:]
    assert {stream.kind for stream in found().streams} == {"main", "console"}


def test_a_killed_trainer_keeps_its_records(store: Path) -> None:
    """What was logged before a SIGKILL is there, and following ends when the process is known to be dead."""

    def body(run: sdk.Run, logger: logging.Logger) -> None:
        for number in range(500):
            logger.info("%d", number)
        os.kill(os.getpid(), signal.SIGKILL)

    assert logging_trainer(body).wait() == -signal.SIGKILL
    until(lambda: any(store.glob("runs/logged/*.seg")) and found().state == "crashed" and len(texts()) == 501)
    assert texts(last=3) == ["497", "498", "499"]


def test_the_command_follows_a_run_without_a_daemon(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stepd logs -f` gives lines as they come, from the spool of a trainer that has no daemon, and ends with it."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    monkeypatch.setattr(_sender, "SPOOL_AGE_SECONDS", 0.1)
    monkeypatch.setattr(_sender, "_SPOOL_INTERVAL_SECONDS", 0.1)
    go, wait = os.pipe()

    def body(run: sdk.Run, logger: logging.Logger) -> None:
        os.close(wait)
        logger.warning("first")
        os.read(go, 1)
        logger.error("second", extra={"step": 7})

    trainer = logging_trainer(body)
    until(lambda: store.exists() and any(store.glob("runs/logged/*.seg")) and "first" in texts())
    command = [sys.executable, "-m", "daemon", "logs", "logged", "-f", "--json", "--level", "WARNING"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        first = json.loads(following.stdout.readline())
        os.write(wait, b"x")
        second = json.loads(following.stdout.readline())
        assert trainer.wait() == 0
        assert (first["text"], second["text"], second["extra"]) == ("first", "second", {"step": 7})
        assert following.stdout.read() == "" and following.wait(20) == 0
    os.close(go)
    os.close(wait)
