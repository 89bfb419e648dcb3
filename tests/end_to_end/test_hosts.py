"""One store directory served from two hosts at once, as over NFS; each host is faked: its own name, machine, locks, memory."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

import sdk
from sdk import platform
from sdk.location import make_store
from sdk.platform import linux
from sdk.segment.naming import parse_segment, run_path
from tests.end_to_end.world import Trainer, until
from tests.forked import Loop, answers, end_all, fork_daemon, quiet, rows_of, stored_exactly
from tests.serving import held


class Host:
    """What a process on another machine would see. `here` makes this process, and what it forks, one of its processes."""

    def __init__(self, name: str, boot: str, runtime: str, memory: str) -> None:
        self.name, self.boot, self.runtime, self.memory = name, boot, runtime, memory

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner in (platform, linux):
                for function, answer in (("host_name", "localhost"), ("machine_id", self.name), ("boot_id", self.boot)):
                    stack.enter_context(mock.patch.object(owner, function, return_value=answer))
            path = f"{self.runtime}/stepd"
            stack.enter_context(mock.patch.object(platform, "runtime_directory", return_value=path))
            stack.enter_context(mock.patch.dict(os.environ, {"STEPD_SHARED_MEMORY_DIR": self.memory}))
            linux._private_directory(path)
            yield

    def daemon(self, store: str) -> Trainer:
        with self.here():
            daemon = fork_daemon(store, shared_memory_dir=self.memory)
            until(lambda: answers(store) is not None)
        return daemon

    def loop(self, store: str, run: str) -> Loop:
        with self.here():
            return Loop(store, run)


@contextlib.contextmanager
def hosts(boots: list[str]) -> Iterator[list[Host]]:
    with contextlib.ExitStack() as stack:
        found = []
        for name, boot in zip(("ada", "bob"), boots):
            runtime = stack.enter_context(tempfile.TemporaryDirectory(prefix="stepd-run-"))
            memory = stack.enter_context(tempfile.TemporaryDirectory(prefix="stepd-test-", dir="/dev/shm"))
            found.append(Host(name, boot, runtime, memory))
        yield found


def writers(store: Path, run: str) -> set[int]:
    names = map(parse_segment, os.listdir(run_path(str(store), run)))
    return {name.writer for name in names if name is not None}


@pytest.mark.parametrize("boots", [["one", "one"], ["of ada", "of bob"]], ids=["two containers", "two machines"])
def test_two_hosts_serve_one_store(store: Path, boots: list[str]) -> None:
    """Both daemons serve, each through segments of its own, and neither touches what the other has not sealed.

    All hosts are called localhost; containers share a boot, machines do not.
    """
    path = make_store(str(store)).path
    with quiet(STEPD_AUTOSTART="0"), hosts(boots) as (ada, bob):
        daemons = [ada.daemon(path), bob.daemon(path)]
        trainers = [ada.loop(path, "of ada"), bob.loop(path, "of bob")]
        try:
            until(lambda: min(rows_of(path, "of ada"), rows_of(path, "of bob")) > 50)
            os.kill(daemons[0].pid, signal.SIGKILL)
            daemons[0].wait()
            unsealed = held(path, "of ada").unsealed
            assert len(unsealed) == 1
            # Another daemon of bob's looks at everything that is not sealed, and leaves alone what is not its to judge.
            os.kill(daemons[1].pid, signal.SIGKILL)
            daemons[1].wait()
            daemons.append(bob.daemon(path))
            until(lambda: "sealed" in (store / "daemon.log").read_text(encoding="utf-8"))
            assert set(unsealed) <= set(held(path, "of ada").unsealed)
            daemons.append(ada.daemon(path))
            until(lambda: not set(unsealed) & set(held(path, "of ada").unsealed))
            for trainer in trainers:
                trainer.past(50)
                assert trainer.stop() == 0
            assert writers(store, "of ada").isdisjoint(writers(store, "of bob"))
            for run, trainer in zip(("of ada", "of bob"), trainers):
                stored_exactly(path, run, trainer.returned, more=0)
                assert sdk.open_store(path).run(run).state == "finished"
        finally:
            end_all(*daemons, *trainers)
