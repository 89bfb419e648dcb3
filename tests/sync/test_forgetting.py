"""daemon.sync.forgetting: jobs that nobody is to do any more are gone, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.sync.forgetting import Forgotten, forget
from sdk._syncing import Told, all_told, job_of, jobs, put_job, read_job, tell
from sdk.errors import NotFoundError
from sdk.location import read_store
from sdk.reader import open_store
from tests.builders import make_run, make_store
from tests.sync.test_sync_command import stepd

TARGET = "jsonl:/data/out"


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> str:
    path = make_store(tmp_path)
    make_run(path, "a41f", [{"loss": 1.0}])
    for run, target in (("a41f", TARGET), ("a41f", "odd://x y"), ("never", TARGET)):
        put_job(read_store(path), run, target, 10.0)
    return path


def left(store: str) -> set[tuple[str, str]]:
    return {(order.run, order.target) for order in map(read_job, jobs(store))}


def test_all_jobs_of_a_target(store: str) -> None:
    """However it is written, with what was told of them; the others stay."""
    tell(job_of(store, "a41f", TARGET), Told("a41f", TARGET, reason="no route"))
    assert forget(open_store(store), [], ["jsonl:/data/x/../out"]) == [
        Forgotten("a41f", TARGET),
        Forgotten("never", TARGET),
    ]
    assert left(store) == {("a41f", "odd://x y")}
    assert all_told(store) == []


def test_what_is_no_target_can_be_forgotten(store: str) -> None:
    """As it was written: a mistake that an earlier version took is what one wants to be rid of."""
    assert forget(open_store(store), [], ["odd://x y"]) == [Forgotten("a41f", "odd://x y")]


def test_only_some_runs(store: str) -> None:
    """By any name of theirs; one that is not stored by the id that its job has."""
    assert forget(open_store(store), ["never"], [TARGET]) == [Forgotten("never", TARGET)]
    assert forget(open_store(store), ["latest"], [TARGET]) == [Forgotten("a41f", TARGET)]
    with pytest.raises(NotFoundError):
        forget(open_store(store), ["nobody"], [TARGET])


def test_from_the_shell(store: str) -> None:
    """It says what it took away, or that there was nothing; a target must be named, and options of a sync are none of it."""
    gone = stepd(store, "--forget", "never", "--to", TARGET)
    assert (gone.exit_code, gone.stdout) == (0, f"never to {TARGET}: forgotten\n")
    assert json.loads(stepd(store, "--forget", "--to", TARGET, "--json").stdout) == [{"run": "a41f", "target": TARGET}]
    assert "no such jobs" in stepd(store, "--forget", "--to", TARGET).stdout
    assert stepd(store, "--forget").exit_code == 2
    assert stepd(store, "--forget", "--to", TARGET, "--live").exit_code == 2
