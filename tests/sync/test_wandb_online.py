"""Runs to a server of W&B, through its package; the server is `tests.wandb_rig`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.sync.carrying import carry_run
from daemon.sync.cursor import Cursor
from daemon.sync.outcome import DEFERRED, DELIVERED, LIVE, MISUSE, Outcome
from daemon.sync.place import parse
from daemon.sync.registry import make
from daemon.sync.targets.wandb.target import _SENT, PASS_SECONDS_MIN
from sdk.errors import UsageError
from tests.builders import RunBuilder, make_store
from tests.wandb_rig import KEY, ServedRun, WandbServer, own_directories


class World:
    """A store with a run that goes on, and a server."""

    def __init__(self, directory: Path, server: WandbServer) -> None:
        self.server = server
        self.store = make_store(directory)
        self.builder = RunBuilder(self.store, "a41f", tags=["t"])
        self.main = self.builder.stream(rank=0)
        self.main.meta({"config": {"lr": 0.1}})
        self.logged = 0

    def log(self, count: int) -> None:
        for _ in range(count):
            self.main.log({"loss": float(self.logged)})
            self.logged += 1
        self.builder.flush()

    def carry(self) -> Outcome:
        target = make(parse("wandb:team/digits"))
        try:
            target.check()
            return carry_run(self.store, "a41f", target)
        finally:
            target.close()

    @property
    def served(self) -> ServedRun:
        return self.server.run("team", "digits", "a41f")

    def check(self) -> None:
        assert [(row["_step"], row["loss"]) for row in self.served.history] == [
            (n, float(n)) for n in range(self.logged)
        ]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    with own_directories(tmp_path), WandbServer() as server:
        monkeypatch.setitem(PASS_SECONDS_MIN, "online", 0.0)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield World(tmp_path, server)


def test_a_run_is_carried_as_it_grows(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Passes append; a pass that was killed before it was noted sends nothing twice; the end and the lines arrive."""
    console = world.builder.stream(kind="console", rank=0)
    world.log(150)
    assert world.carry().state == LIVE
    assert len(world.served.history) == 50, "the last steps wait while the run lives"
    assert world.served.exit_code is None
    world.log(50)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Cursor, "write", _interrupted)
        world.carry()
    assert len(world.served.history) == 100, "it arrived, and nobody knows"
    world.log(5)
    console.log({"text": "hello", "from": "stdout"})
    for stream in (world.main, console):
        stream.finish()
    world.builder.seal()
    assert world.carry().state == DELIVERED
    world.check()
    assert world.served.exit_code == 0
    assert world.served.config == {"lr": 0.1}
    assert world.served.said["tags"] == ["t"]
    assert world.served.summary["loss"] == 204.0
    assert "hello" in "".join(world.served.lines["output.log"])
    assert all(user in ("", f"api:{KEY}") for _, _, user in world.server.requests)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not any(KEY.encode() in data for data in written)
    output = capfd.readouterr()
    assert output.out == output.err == ""


def _interrupted(cursor: Cursor) -> None:
    raise KeyboardInterrupt


def test_what_the_server_refuses_is_not_noted_as_delivered(world: World) -> None:
    """W&B's package ends as if all were well; the pass does not, and the next one sends what is missing, once."""
    world.log(120)
    world.server.refuses = 403
    refused = world.carry()
    assert refused.state == DEFERRED, refused
    assert "could not send everything" in refused.reason
    assert not world.served.history
    world.server.refuses = 0
    world.main.finish()
    world.builder.seal()
    assert world.carry().state == DELIVERED
    world.check()


def test_a_server_that_lost_rows_gets_them_again(world: World) -> None:
    """It says how many it has; what was noted beyond that is sent once more, under its own steps."""
    world.log(130)
    world.carry()
    lines = world.served.lines["wandb-history.jsonl"]
    assert len(lines) == 30
    del lines[20:]
    world.main.finish()
    world.builder.seal()
    told = world.carry()
    assert told.state == DELIVERED
    assert any("sent again" in remark for remark in told.told)
    world.check()


def test_without_a_key_nothing_is_tried(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said at once what to set."""
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    target: Any = make(parse("wandb:team/digits"))
    try:
        with pytest.raises(UsageError, match="key") as error:
            target.check()
    finally:
        target.close()
    assert "WANDB_API_KEY" in (error.value.hint or "")


def test_a_key_that_is_refused_is_misuse(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a failure of the run, and nothing to try again."""
    world.log(1)
    monkeypatch.setattr(world.server, "graphql", lambda operation, said: {"viewer": None})
    target = make(parse("wandb:team/digits"))
    try:
        assert carry_run(world.store, "a41f", target).state in (MISUSE, DEFERRED)
    finally:
        target.close()


def test_wandb_sync_makes_one_run_of_what_was_carried_offline(world: World, tmp_path: Path) -> None:
    """W&B's own command takes the directories of all passes, in their order, whatever order it is given."""
    for count in (150, 20):
        world.log(count)
        if count == 20:
            world.main.finish()
            world.builder.seal()
        target = make(parse(f"wandb:team/digits?mode=offline&dir={tmp_path}"))
        carry_run(world.store, "a41f", target)
        target.close()
    directories = sorted(map(str, tmp_path.glob("wandb/offline-run-*")), reverse=True)
    assert len(directories) == 2
    command = [sys.executable, "-m", "wandb", "sync", *directories]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    world.check()
    assert world.served.exit_code == 0
    assert all(list(Path(directory).glob(f"*{_SENT}")) for directory in directories), "by this a sent one is known"


def test_what_a_resume_took_back_stays_and_is_counted(world: World) -> None:
    """W&B takes no row back: the first attempt's stay, the second's are sent behind them, and it is said."""
    world.log(6)
    world.main.finish("preempted")
    world.builder.flush()
    assert world.carry().is_exact
    second = world.builder.stream(attempt=2, continues=world.main.hex, first_step=4)
    second.meta({"hide": {"from_step": 4}})
    for step in range(4, 8):
        second.log({"loss": 10.0 * step}, step=step)
    second.finish()
    world.builder.seal()
    told = world.carry()
    found = [(row["_step"], row["loss"]) for row in world.served.history]
    assert found == [*((step, float(step)) for step in range(6)), (6, 60.0), (7, 70.0)]
    assert dict(told.lost) == {"steps that a resume took back": 2, "late rows": 2}
    assert any("steps 4 to 5" in text for text in told.told)
    assert world.carry().lost == told.lost, "once"
