"""Artifacts with a real daemon and its keeper: whoever is killed, a version is there whole, once, or not yet."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import sdk
from sdk._keeping import jobs
from sdk.artifacts.format import drafts_path, object_path, staging_path
from sdk.artifacts.shelf import Shelf
from sdk.files import DISK
from sdk.transport import request
from tests.end_to_end.world import Trainer, kill_daemon, start_daemon, until

SMALL_FILES = 100
# Takes a keeper some hundredths of a second, so that it can be met at work.
LARGE_BYTES = 24 << 20


def keepers(store: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command[-2:] == ["daemon.keeper", str(store)] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def check(store: Path, name: str, contents: dict[str, bytes]) -> None:
    """The latest version has these files, each with its bytes."""
    shelf = Shelf(str(store))
    entries = shelf.entries(shelf.find(name))
    assert {entry.path for entry in entries} == set(contents)
    for entry in entries:
        assert entry.trouble == ""
        assert Path(object_path(str(store), entry.digest)).read_bytes() == contents[entry.path]


def numbers(store: Path, name: str) -> list[int]:
    return Shelf(str(store)).numbers(name)


def test_a_killed_trainer_loses_no_artifact(store: Path, tmp_path: Path) -> None:
    """What `log_artifact` took is stored by the keeper, although the trainer and the files are gone at once."""
    contents = {f"{index % 7}/{index}": b"%d" % index * 50 for index in range(SMALL_FILES)}
    contents["large"] = os.urandom(2 << 20)
    for path, data in contents.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    start_daemon(store)

    def train(count: Callable[[int], None]) -> None:
        run = sdk.init(id="r")
        run.log_artifact(str(tmp_path), name="data", type="dataset", aliases=["best"])
        run.log({"x": 1})
        count(1)
        signal.pause()

    trainer = Trainer(train)
    until(lambda: trainer.returned == 1)
    trainer.kill()
    trainer.wait()
    for path in contents:
        (tmp_path / path).unlink()
    until(lambda: numbers(store, "data") == [0])
    check(store, "data:best", contents)
    until(lambda: not jobs(str(store)) and not os.listdir(staging_path(str(store))))
    assert request(str(store), "status")["keeping"]["waiting"] == 0
    until(lambda: bool(sdk.open_store(store).run("r").logged_artifacts()))
    (found,) = sdk.open_store(store).run("r").logged_artifacts()
    assert found.name == "data:v0"
    logger = found.logged_by()
    assert logger is not None
    assert logger.id == "r"


def test_a_job_waits_for_the_next_daemon(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With none to be had it lies in the store; the run is over long before."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    (tmp_path / "a").write_bytes(b"a")
    run = sdk.init(id="r")
    run.log_artifact(tmp_path / "a", name="data")
    run.finish()
    assert numbers(store, "data") == []
    assert len(jobs(str(store))) == 1
    start_daemon(store)
    until(lambda: numbers(store, "data") == [0])
    check(store, "data", {"a": b"a"})


def test_keeper_and_daemon_killed_in_the_middle(store: Path, tmp_path: Path) -> None:
    """Half a file is nobody's; the next keeper begins again, and there is one version."""
    data = os.urandom(1 << 20) + bytes(LARGE_BYTES)
    with open(tmp_path / "large", "wb") as file:
        file.write(data[: 1 << 20])
        file.truncate(len(data))
    start_daemon(store)
    run = sdk.init(id="r")
    run.log_artifact(tmp_path / "large", name="data")
    until(lambda: bool(keepers(store)))
    (keeper,) = keepers(store)
    until(lambda: half_done(store))
    keeper.kill()
    kill_daemon(store)
    assert numbers(store, "data") == []
    start_daemon(store)
    until(lambda: numbers(store, "data") == [0])
    check(store, "data", {"large": data})
    until(lambda: not jobs(str(store)))
    assert os.listdir(drafts_path(str(store))) == []
    run.finish()


def half_done(store: Path) -> bool:
    return any(size for _, size, _ in DISK.entries(drafts_path(str(store))))


def test_many_log_one_name_at_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets a version of its own, and its bytes: the number is taken by making the file."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    processes, each = 4, 5

    def train(rank: int) -> Callable[[Callable[[int], None]], None]:
        def body(count: Callable[[int], None]) -> None:
            run = sdk.init(id=f"r{rank}")
            for index in range(each):
                artifact = sdk.Artifact("data")
                with artifact.new_file("who") as file:
                    file.write(f"{rank} {index}")
                run.log_artifact(artifact).wait(30)
                count(index + 1)
            run.finish()

        return body

    trainers = [Trainer(train(rank)) for rank in range(processes)]
    assert [trainer.wait() for trainer in trainers] == [0] * processes
    shelf = Shelf(str(store))
    assert numbers(store, "data") == list(range(processes * each))
    found = [
        Path(object_path(str(store), shelf.entries(head)[0].digest)).read_text() for head in shelf.versions("data")
    ]
    assert sorted(found) == sorted(f"{rank} {index}" for rank in range(processes) for index in range(each))
    for rank in range(processes):
        mine = [text for text in found if text.startswith(f"{rank} ")]
        assert mine == [f"{rank} {index}" for index in range(each)]
