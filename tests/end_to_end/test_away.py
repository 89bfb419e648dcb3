"""A store that is away for a while: removed, moved, or on a file system that answers with errors for minutes."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk import _sender, platform
from sdk.files import DISK, Disk, DiskFile
from sdk.platform import is_locked
from tests.end_to_end.world import Trainer, kill_daemon, start_daemon, until, until_drained
from tests.forked import Loop, answers, end_all, fork_daemon, rings, rows_of, stored_exactly


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers that are forked here spool after 0.1 s without a daemon."""
    monkeypatch.setattr(_sender, "SPOOL_AGE_SECONDS", 0.1)
    monkeypatch.setattr(_sender, "_SPOOL_INTERVAL_SECONDS", 0.1)


@pytest.fixture
def moved(store: Path) -> Iterator[Path]:
    """Where the tests put the store meanwhile; what is still there at the end goes back, to be tidied up."""
    place = store.with_name(store.name + "-moved")
    yield place
    if place.exists():
        place.rename(store)


@pytest.mark.parametrize("daemon", [True, False], ids=["with a daemon", "without one"])
def test_a_store_that_is_moved_away_and_back(
    store: Path, moved: Path, daemon: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is made where it was; records wait, and when it is back all of them are stored, by a daemon if one may be."""
    monkeypatch.setenv("STEPD_RESTART_SECONDS", "0.05")
    monkeypatch.setenv("STEPD_AUTOSTART", str(int(daemon)))
    if daemon:
        start_daemon(store)
    trainer = Loop(str(store))
    try:
        trainer.past(100)
        if daemon:
            until(lambda: rows_of(str(store)) > 0)
        store.rename(moved)
        if daemon:
            lock = trainer_lock(moved)
            until(lambda: not is_locked(lock))
        trainer.past(600)
        assert not store.exists()
        moved.rename(store)
        if daemon:
            until(lambda: answers(str(store)) is not None)
        trainer.past(100)
        assert trainer.stop() == 0
        stored_exactly(str(store), "run", trainer.returned, more=0)
        assert sdk.open_store(store).run("run").state == "finished"
        said = capfd.readouterr().err
        assert "unexpected" not in said and "Traceback" not in said, said
    finally:
        end_all(trainer)


def trainer_lock(store: Path) -> str:
    """The lock file of a store's daemon, wherever the store is now."""
    return os.path.join(platform.runtime_directory(), f"{platform.store_digest(str(store))}.lock")


def test_a_run_that_ends_while_its_store_is_away(store: Path, moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """finish() returns, everything waits in the ring, and the next daemon takes it from there."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    monkeypatch.setenv("STEPD_FINISH_SECONDS_MAX", "1")
    trainer = Loop(str(store))
    try:
        trainer.past(50)
        store.rename(moved)
        trainer.past(50)
        assert trainer.stop() == 0
        assert not store.exists()
        moved.rename(store)
        assert len(rings(str(store))) == 1
        start_daemon(store)
        until_drained(store)
        stored_exactly(str(store), "run", trainer.returned, more=0)
        assert sdk.open_store(store).run("run").state == "finished"
    finally:
        end_all(trainer)


def test_another_store_in_its_place_stays_clean(store: Path, moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new store under the old path gets nothing of the old one's runs; the records wait for theirs."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    trainer = Loop(str(store))
    try:
        trainer.past(50)
        store.rename(moved)
        other = sdk.location.make_store(str(store))
        trainer.past(600)
        assert list(Path(other.path, "runs").iterdir()) == []
        for path in (store / "runs", store / "store.json", store):
            path.unlink() if path.is_file() else path.rmdir()
        moved.rename(store)
        assert trainer.stop() == 0
        stored_exactly(str(store), "run", trainer.returned, more=0)
    finally:
        end_all(trainer)


class AwayDisk:
    """A disk whose every operation fails while it is away, in all processes that installed it."""

    def __init__(self, code: int) -> None:
        self._code = code
        self._away = mmap.mmap(-1, 4096)

    def leave(self) -> None:
        self._away[0] = 1

    def come_back(self) -> None:
        self._away[0] = 0

    def install(self) -> None:
        """For a forked process, until it ends."""
        for owner, names in (
            (
                Disk,
                ("create", "open", "entries", "make_directory", "rename", "remove", "write_whole", "sync_directory"),
            ),
            (DiskFile, ("append", "read", "refresh", "truncate", "patch", "sync")),
            (platform, ("store_digest",)),
        ):
            for name in names:
                setattr(owner, name, self._failing(getattr(owner, name)))

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            if self._away[0]:
                raise OSError(self._code, os.strerror(self._code))
            return real(*arguments, **named)

        return operation


def test_a_mount_that_hangs(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender is stuck in a call to the disk, as in one to a server that does not answer: log() goes on, first into the
    ring, then counting; when the call returns all that was accepted is stored, and the gap says the rest.
    """
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    monkeypatch.setenv("STEPD_RING_BYTES", "256K")

    def train(count: Callable[[int], None]) -> None:
        stuck, answer, create = threading.Event(), threading.Event(), DISK.create

        def hangs(path: str) -> Any:
            stuck.set()
            assert answer.wait(60)
            return create(path)

        run = sdk.init(id="run", project="away", settings={"silent": True})
        DISK.create = hangs  # type: ignore[method-assign]
        refusals = run._stream.journal.refusals
        calls = 0
        while not (stuck.is_set() and refusals().refused > 1000):
            run.log({"x": calls})
            calls += 1
        answer.set()
        run.finish()
        receipt = run._stream._receipt
        assert receipt.stored == receipt.accepted == calls - receipt.refused
        count(receipt.refused)

    trainer = Trainer(train)
    assert trainer.wait() == 0
    run = sdk.open_store(store).run("run")
    assert sum(gap.count for gap in run.gaps) == trainer.returned > 1000
    assert run.state == "finished"


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EROFS], ids=lambda code: errno.errorcode[code])
def test_a_disk_that_is_away_for_a_while(store: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation of daemon and trainer fails: the same daemon stays, records wait, and all are stored afterwards."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    sdk.location.make_store(str(store))
    disk = AwayDisk(code)
    daemon = fork_daemon(str(store), disk.install)
    until(lambda: answers(str(store)) is not None)
    trainer = Loop(str(store), prepare=disk.install)
    try:
        until(lambda: rows_of(str(store)) > 50)
        disk.leave()
        trainer.past(600)
        assert answers(str(store)) is not None
        disk.come_back()
        trainer.past(100)
        assert trainer.stop() == 0
        status = answers(str(store))
        assert status is not None and status["pid"] == daemon.pid
        stored_exactly(str(store), "run", trainer.returned, more=0)
    finally:
        end_all(daemon, trainer)
        kill_daemon(store)
