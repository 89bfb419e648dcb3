"""sdk._keeping: jobs appear whole, belong to a machine, and are done by one at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdk import _keeping
from sdk._keeping import BAD_SUFFIX, claim, end_job, jobs, keeping_path, put_job, read_job, set_aside
from sdk.errors import DamageError
from sdk.files.failing import FAULTS, FailingFiles
from sdk.location import StoreIdentity, make_store


@pytest.fixture
def store(tmp_path: Path) -> StoreIdentity:
    return make_store(str(tmp_path / "store"))


def test_a_job_is_found_oldest_first(store: StoreIdentity) -> None:
    """With its kind and what was put; until it is done."""
    assert jobs(store.path) == []
    put_job(store, "files", {"path": "/data/\udcff", "size": 3})
    put_job(store, "artifact", {"n": [1, None]})
    first, second = jobs(store.path)
    assert (first.kind, second.kind) == ("files", "artifact")
    assert read_job(first) == {"path": "/data/\udcff", "size": 3}
    assert first.created_ns <= second.created_ns
    assert os.stat(first.path).st_mode & 0o777 == 0o600
    end_job(first)
    end_job(first)
    assert jobs(store.path) == [second]


def test_a_job_of_another_machine_is_not_ours(store: StoreIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths mean nothing here. One whose machine nobody knows is everybody's."""
    monkeypatch.setattr(_keeping, "machine_id", lambda: "there")
    put_job(store, "files", {})
    monkeypatch.setattr(_keeping, "machine_id", lambda: "")
    put_job(store, "files", {"whose": "anybody's"})
    monkeypatch.setattr(_keeping, "machine_id", lambda: "here")
    assert [read_job(job) for job in jobs(store.path)] == [{"whose": "anybody's"}]


def test_one_at_a_time(store: StoreIdentity) -> None:
    """A claimed job is nobody else's; one that is gone is not to be had."""
    put_job(store, "files", {})
    (job,) = jobs(store.path)
    lock = claim(job)
    assert lock is not None
    assert claim(job) is None
    lock.release()
    lock = claim(job)
    assert lock is not None
    end_job(job)
    lock.release()
    assert claim(job) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a": 1'])
def test_what_is_no_job_is_said_and_set_aside(store: StoreIdentity, text: str) -> None:
    """A torn file, as a power loss leaves it, keeps nobody from the next."""
    put_job(store, "files", {})
    (job,) = jobs(store.path)
    Path(job.path).write_text(text)
    with pytest.raises(DamageError):
        read_job(job)
    set_aside(job)
    assert jobs(store.path) == []
    assert os.path.exists(job.path + BAD_SUFFIX)


def test_a_disk_that_refuses_leaves_no_half_job(store: StoreIdentity) -> None:
    """Whatever operation fails: the caller is told, and there is a whole job or none."""
    for fault in FAULTS:
        for at in range(1, 20):
            disk = FailingFiles()
            disk.fail(fault, at)
            told = False
            try:
                put_job(store, "files", {"a": 1}, disk)
            except OSError:
                told = True
            assert disk.fired or not told
            for job in jobs(store.path):
                assert read_job(job) == {"a": 1}
                end_job(job)
            left = os.listdir(keeping_path(store.path)) if os.path.isdir(keeping_path(store.path)) else []
            assert not left, fault
            if not disk.fired:
                break
