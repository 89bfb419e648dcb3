"""sdk.budget: the decision by itself, and what a keeper knows of a real store at what time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sdk import budget as module
from sdk.budget import Budget, Keeper, Use, exceeded, explain, free_floor
from sdk.files import DISK
from sdk.limits import (
    BUDGET_REASONS,
    FREE_BYTES_MIN,
    FREE_SHARE_MAX,
    REFUSED_FREE,
    REFUSED_REASONS,
    REFUSED_RUN,
    REFUSED_STORE,
)
from sdk.segment.naming import TRASH, run_path


@pytest.mark.parametrize(
    ("budget", "use", "code"),
    [
        (Budget(), Use(FREE_BYTES_MIN, FREE_BYTES_MIN, None, None), 0),
        (Budget(), Use(FREE_BYTES_MIN - 1, FREE_BYTES_MIN, None, None), REFUSED_FREE),
        (Budget(), Use(None, 0, 10**15, 10**15), 0),
        (Budget(store_bytes_max=100), Use(10**9, 0, 99, None), 0),
        (Budget(store_bytes_max=100), Use(10**9, 0, 100, None), REFUSED_STORE),
        (Budget(store_bytes_max=100), Use(10**9, 0, None, None), 0),
        (Budget(run_bytes_max=100), Use(10**9, 0, None, 99), 0),
        (Budget(run_bytes_max=100), Use(10**9, 0, None, 100), REFUSED_RUN),
        (Budget(1, 1, 1), Use(0, 1, 1, 1), REFUSED_FREE),
        (Budget(1, 1, 0), Use(0, 0, 1, 1), REFUSED_STORE),
    ],
)
def test_the_decision(budget: Budget, use: Use, code: int) -> None:
    """Reached is exceeded; what is not known exceeds nothing; of several the widest is named."""
    assert exceeded(budget, use) == code


def test_the_default_is_modest_on_a_small_disk() -> None:
    """The default keeps at most a sixteenth free; what somebody asked for counts as it is."""
    assert free_floor(FREE_BYTES_MIN, 1 << 40) == FREE_BYTES_MIN
    assert free_floor(FREE_BYTES_MIN, 1 << 20) == (1 << 20) // FREE_SHARE_MAX
    assert free_floor(10 * FREE_BYTES_MIN, 1 << 20) == 10 * FREE_BYTES_MIN
    assert free_floor(FREE_BYTES_MIN, 0) == 0


def make(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


def test_the_store_is_everything_in_it(tmp_path: Path) -> None:
    """Runs, what lies aside, the trash and the store's own files count; what a link points to does not."""
    keeper = Keeper(DISK, str(tmp_path), Budget(store_bytes_max=10**6))
    for name, size in [("store.json", 10), ("runs/a/x.seg", 100), ("runs/a/aside/y", 1000), (f"{TRASH}/1-b/z", 10_000)]:
        make(tmp_path / name, size)
    os.symlink("/", tmp_path / "runs" / "b")
    assert keeper.store_bytes is None
    assert not keeper.step(0.0, 1.0)
    assert keeper.store_bytes == 11_110
    keeper.note_written("a", 5)
    assert keeper.store_bytes == 11_115


def test_a_walk_stops_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step looks at a few names only; what is written meanwhile is not forgotten."""
    for n in range(50):
        make(tmp_path / f"{n}", 1)
    keeper = Keeper(DISK, str(tmp_path), Budget(store_bytes_max=10**6))
    assert keeper.step(0.0, -1.0)
    assert keeper.refusal("a", 0.0) == 0
    keeper.note_written("a", 100)
    steps = 1
    while keeper.step(0.0, -1.0):
        steps += 1
    assert steps >= 3
    assert keeper.store_bytes == 150


def test_room_that_was_made_is_seen_soon(tmp_path: Path) -> None:
    """While over its budget the store is looked at every few seconds, else once a minute."""
    keeper = Keeper(DISK, str(tmp_path), Budget(store_bytes_max=100, free_bytes_min=0))
    make(tmp_path / "x", 99)
    keeper.step(0.0, 1.0)
    make(tmp_path / "y", 99)
    keeper.step(module._LOOK_SECONDS - 1, 1.0)
    assert keeper.refusal("a", 0.0) == 0
    keeper.step(module._LOOK_SECONDS, 1.0)
    assert keeper.refusal("a", 0.0) == REFUSED_STORE
    (tmp_path / "y").unlink()
    keeper.step(module._LOOK_SECONDS + module._LOOK_SECONDS_OVER, 1.0)
    assert keeper.refusal("a", 0.0) == 0


def test_a_runs_own_budget(tmp_path: Path) -> None:
    """The smallest of those that were said counts, for that run only, until it is forgotten."""
    keeper = Keeper(DISK, str(tmp_path), Budget(free_bytes_min=0))
    make(Path(run_path(str(tmp_path), "a")) / "x.seg", 1000)
    keeper.limit_run("a", 0)
    assert keeper.refusal("a", 0.0) == 0
    keeper.limit_run("a", 5000)
    keeper.limit_run("a", 1001)
    keeper.limit_run("a", 2000)
    assert keeper.refusal("a", 0.0) == 0
    keeper.note_written("a", 1)
    assert keeper.refusal("a", 0.0) == REFUSED_RUN
    assert keeper.refusal("b", 0.0) == 0
    keeper.forget_run("a")
    assert keeper.refusal("a", 0.0) == 0


def test_a_disk_that_does_not_answer_refuses_nothing(tmp_path: Path) -> None:
    """Free bytes that cannot be asked for are not known, which is no reason to refuse."""
    keeper = Keeper(DISK, str(tmp_path / "gone"), Budget())
    assert keeper.refusal("a", 0.0) == 0


def test_free_bytes_are_asked_again(tmp_path: Path) -> None:
    """Somebody else fills the disk: within a second we hold back; it is free again: sooner we go on."""

    class Shrinking:
        free = 100

        def __getattr__(self, name: str) -> Any:
            return getattr(DISK, name)

        def free_bytes(self, path: str) -> int:
            return self.free

    disk = Shrinking()
    keeper = Keeper(disk, str(tmp_path), Budget(free_bytes_min=50))  # type: ignore[arg-type]
    assert keeper.refusal("a", 0.0) == 0
    disk.free = 49
    assert keeper.refusal("a", 0.5) == 0
    assert keeper.refusal("a", 1.0) == REFUSED_FREE
    disk.free = 51
    assert keeper.refusal("a", 1.3) == 0
    keeper.note_written("a", 2)
    assert keeper.refusal("a", 1.3) == REFUSED_FREE


def test_every_reason_is_explained() -> None:
    """Each code says what is wrong and what to do; budgets are those that name a setting of a budget."""
    for code in range(1, len(REFUSED_REASONS)):
        what, cure = explain(code, "/s")
        assert what
        assert "stepd" in cure or "STEPD_" in cure
    assert {REFUSED_REASONS[code] for code in BUDGET_REASONS} == set(Budget._fields)
