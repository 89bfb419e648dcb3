"""sdk._syncing: one job for each run and target, never lost by whoever ends it, and what was told of it outlives it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdk import _syncing
from sdk._syncing import (
    Told,
    all_told,
    backlog,
    end_job,
    forget_told,
    job_of,
    jobs,
    put_job,
    read_job,
    read_told,
    syncing_path,
    tell,
)
from sdk.errors import DamageError
from sdk.files.failing import FailingFiles
from sdk.location import StoreIdentity
from sdk.platform import boot_id
from tests.serving import temporary_store

TARGET = "jsonl:/data/out"


@pytest.fixture
def store() -> Iterator[StoreIdentity]:
    with temporary_store() as made:
        yield made


def test_a_job_is_one_for_each_run_and_target(store: StoreIdentity) -> None:
    """Left again it has another mark; ids and targets are no file names."""
    first = read_job(put_job(store, "a/../b\ud800", TARGET, 10.0))
    again = put_job(store, "a/../b\ud800", TARGET, 2.5)
    put_job(store, "a/../b\ud800", "wandb:team/x", 10.0)
    assert len(jobs(store.path)) == 2
    order = read_job(again)
    assert order[:2] == first[:2] == ("a/../b\ud800", TARGET)
    assert order.seconds == 2.5
    assert order.mark != first.mark
    assert again == job_of(store.path, "a/../b\ud800", TARGET)
    assert again.is_ours


def test_a_job_of_another_machine_is_not_ours(store: StoreIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found, and stands beside ours; a machine that knows no id of itself takes what has none."""
    put_job(store, "a41f", TARGET, 10.0)
    monkeypatch.setattr(_syncing, "machine_id", lambda: "another")
    assert [job.is_ours for job in jobs(store.path)] == [False]
    put_job(store, "a41f", TARGET, 10.0)
    assert sorted(job.is_ours for job in jobs(store.path)) == [False, True]
    assert backlog(store.path)[0][:2] == (TARGET, 1)
    assert backlog(store.path)[0].elsewhere == 1
    monkeypatch.setattr(_syncing, "machine_id", lambda: "")
    assert put_job(store, "a41f", TARGET, 10.0).is_ours


def test_a_job_that_was_left_again_is_not_ended(store: StoreIdentity) -> None:
    """A run that is resumed in the moment in which its end was delivered is carried on."""
    job = put_job(store, "a41f", TARGET, 10.0)
    order = read_job(job)
    put_job(store, "a41f", TARGET, 10.0)
    assert not end_job(job, order)
    assert jobs(store.path) == [job]
    assert end_job(job, read_job(job))
    assert end_job(job, order), "somebody else has ended it"
    assert os.listdir(syncing_path(store.path)) == []


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "\xff", '{"run":1,"target":"x:y","mark":"m","seconds":1}',
        '{"run":"a","target":"x:y","mark":"m","seconds":-1}',
    ],
)  # fmt: skip
def test_what_is_no_job_is_said(store: StoreIdentity, text: str) -> None:
    """A store is hostile input. It can be ended all the same."""
    job = put_job(store, "a41f", TARGET, 10.0)
    order = read_job(job)
    Path(job.path).write_text(text, encoding="latin-1")
    with pytest.raises(DamageError, match="cannot read"):
        read_job(job)
    assert backlog(store.path) == []
    assert end_job(job, order)
    assert jobs(store.path) == []


def test_what_is_told_outlives_the_job(store: StoreIdentity) -> None:
    """For a week; what is no such text counts as nothing."""
    job = put_job(store, "a41f", TARGET, 10.0)
    assert read_told(job) is None
    told = Told("a41f", TARGET, "delivered", 5.0, 0.0, 10**18, points=3, lost={"nan": 2}, is_over=True, boot=boot_id())
    tell(job, told)
    assert read_told(job) == told
    assert told.began_here == 5.0
    assert told._replace(boot="another").began_here == 0.0
    end_job(job, read_job(job))
    assert all_told(store.path) == [told]
    changed_ns = os.stat(job.told_path).st_mtime_ns
    forget_told(store.path, changed_ns)
    assert all_told(store.path) == [told]
    forget_told(store.path, changed_ns + int(_syncing.TOLD_SECONDS_MAX * 1e9) + 1)
    assert all_told(store.path) == []
    for bad in ("{}", "[", json.dumps({**told._asdict(), "points": "3"}), json.dumps({**told._asdict(), "lost": [1]})):
        Path(job.told_path).write_text(bad, encoding="utf-8")
        assert read_told(job) is None


def test_the_backlog_of_a_target(store: StoreIdentity) -> None:
    """How many runs have a job, how many failed and why, as of the last one."""
    for number, reason in enumerate(["", "refused", "away"]):
        job = put_job(store, f"run{number}", TARGET, 10.0)
        tell(
            job,
            Told(
                f"run{number}", TARGET, "deferred" if reason else "live", at_ns=number + 1, behind=number, reason=reason
            ),
        )
    put_job(store, "run9", "wandb:x", 10.0)
    ours, wandb = backlog(store.path)
    assert ours[:4] == (TARGET, 3, 2, "away")
    assert ours.age_seconds is not None
    assert (ours.behind, wandb.behind) == (3, 0)
    assert wandb[:5] == ("wandb:x", 1, 0, "", None)


@pytest.mark.parametrize("operation", ["create", "append", "rename"])
def test_a_disk_that_refuses_leaves_no_half_job(store: StoreIdentity, operation: str) -> None:
    """What was there stays."""
    disk = FailingFiles()
    put_job(store, "a41f", TARGET, 10.0, disk)
    before = read_job(jobs(store.path)[0])
    disk.refuse(operation)
    with pytest.raises(OSError):
        put_job(store, "a41f", TARGET, 10.0, disk)
    assert len(os.listdir(syncing_path(store.path))) == 1
    assert read_job(jobs(store.path)[0]) == before
