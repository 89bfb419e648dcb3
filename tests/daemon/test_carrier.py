"""daemon.carrier: turn after turn while there is a job, a while longer, and told to the daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from daemon import carrier
from daemon.commands.status import command
from daemon.sync.rounds import LINGER_SECONDS
from sdk import clock
from sdk._syncing import Told, put_job, tell
from sdk.errors import StoreError
from sdk.location import StoreIdentity
from tests.serving import temporary_store


class Desk:
    """Rounds with jobs for so many turns, and a clock.

    Attributes:
        turns: How many there were.
        told: What the daemon heard.
    """

    def __init__(self, store: StoreIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.now = 1000.0
        self.jobs, self.turns, self.ended = 5, 0, 0
        self.pause, self.progressed, self.trouble = 0.5, 1000.0, ""
        self.told: list[dict[str, Any]] = []
        self.errors: list[Exception] = []
        monkeypatch.setattr(carrier, "Rounds", lambda store: self)
        monkeypatch.setattr(carrier, "request", lambda store, verb, facts, timeout: self.told.append({verb: facts}))
        monkeypatch.setattr(carrier.clock, "monotonic", lambda: self.now)
        monkeypatch.setattr(carrier.clock, "pause", self._pause)

    def _pause(self, seconds: float) -> None:
        self.now += seconds

    @property
    def entries(self) -> list[int]:
        return [1] * (self.turns < self.jobs)

    def turn(self) -> None:
        self.turns += 1
        if self.errors:
            raise self.errors.pop()

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with temporary_store() as store:
        yield Desk(store, monkeypatch)


def test_it_ends_a_while_after_the_last_job(desk: Desk) -> None:
    """The next short run need not wait for a process; its workers end with it, and the daemon hears that nothing waits."""
    assert carrier.carry(desk.store, lambda: True) == 0
    assert desk.turns == pytest.approx(desk.jobs + LINGER_SECONDS / desk.pause, abs=2)
    assert desk.ended == 1
    assert desk.told[0]["carrying"]["waiting"] == 1
    assert desk.told[-1] == {"carrying": {"waiting": 0, "quiet_seconds": desk.now - 1000.0, "trouble": ""}}


def test_it_ends_when_it_is_told(desk: Desk) -> None:
    """With its workers."""
    assert carrier.carry(desk.store, lambda: desk.turns < 3) == 0
    assert (desk.turns, desk.ended) == (3, 1)


def test_a_store_that_is_away_is_waited_for(desk: Desk) -> None:
    """It comes back; what is told has a limit."""
    desk.errors = [OSError(116, "Stale file handle"), StoreError("away")]
    desk.trouble = "x" * 10_000
    carrier.carry(desk.store, lambda: True)
    assert desk.turns > 5
    assert len(desk.told[0]["carrying"]["trouble"]) == carrier._TROUBLE_CHARACTERS_MAX


def test_the_status_has_a_line_for_each_target() -> None:
    """With no daemon too; what a target has answered cannot steer the terminal."""
    with temporary_store() as store:
        for number, reason in enumerate(["", "refused \x1b[2J"]):
            job = put_job(store, f"run{number}", "jsonl:/data/out", 10.0)
            tell(
                job,
                Told(f"run{number}", "jsonl:/data/out", reason=reason, at_ns=clock.wall_ns() - (2 - number) * 10**9),
            )
        put_job(store, "run9", "wandb:x", 10.0)
        lines = CliRunner().invoke(command, ["--dir", store.path]).output.splitlines()
        assert lines[1:] == [
            "  sync     jsonl:/data/out   2 runs; 1 behind: refused ?[2J; last heard of 1 s ago",
            "  sync     wandb:x   1 run; nothing delivered yet",
        ]
        told = json.loads(CliRunner().invoke(command, ["--dir", store.path, "--json"]).output)
        assert [entry["runs"] for entry in told["syncing"]] == [2, 1]
        assert told["syncing"][1]["age_seconds"] is None
