"""Values on a device, in a run that ends, forks or is killed while they are on their way (docs/journal.md#deferred-records)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk import clock
from sdk.limits import REFUSED_DEVICE, REFUSED_REASONS
from tests.end_to_end.world import Trainer, settle, steps, until, until_drained
from tests.sdk import fake_device


@pytest.mark.parametrize("autostart", [True, False])
def test_flush_and_finish_wait_for_the_device(store: Path, monkeypatch: pytest.MonkeyPatch, autostart: bool) -> None:
    """Both return when what was logged has come and is stored, by a daemon or in the spool, in order; nothing is refused."""
    torch, stream = fake_device.install(monkeypatch)
    run: Any = sdk.init(id="r", settings={"autostart": autostart})
    pause = clock.pause

    def pause_and_advance(seconds: float) -> None:
        stream.advance()
        pause(seconds)

    run.log({"x": torch.Tensor(0.0, "cuda")})
    run.log({"x": 1.0})
    assert not run._stream.flush(0.0)
    monkeypatch.setattr(clock, "pause", pause_and_advance)
    assert run._stream.flush(20.0)
    assert steps(store, "r") == [0, 1]
    for n in range(2, 30):
        run.log({"x": torch.Tensor(float(n), "cuda")})
    run.finish()
    assert sdk.open_store(store).run("r").series("x").value.tolist() == list(range(30))


def test_what_a_stuck_device_keeps_is_a_gap(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """finish() gives up in time; what came before is stored, the rest is refused, counted, and a gap with its steps."""
    torch, stream = fake_device.install(monkeypatch)
    run: Any = sdk.init(id="r", settings={"finish_seconds_max": 0.4})
    for n in range(5):
        run.log({"x": torch.Tensor(n, "cuda")})
        run.log({"y": n})
    stream.fire(2)
    run.finish()
    receipt = run._stream.finish("finished", 0, 1.0)
    assert (receipt.accepted, receipt.stored, receipt.refused) == (4, 4, 6)
    found = sdk.open_store(store).run("r")
    (gap,) = found.gaps
    assert (gap.count, gap.step_min, gap.step_max, gap.reason) == (6, 4, 9, REFUSED_REASONS[REFUSED_DEVICE])
    assert steps(store, "r") == [0, 2]


def test_a_fork_with_records_that_wait(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the parent's: it places them; the child goes on at the open step, in a stream of its own, and asks no device."""
    torch, stream = fake_device.install(monkeypatch)
    run: Any = sdk.init(id="r")
    run.log({"x": torch.Tensor(0, "cuda")})
    run.log({"x": 1})
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            stream.broken = True
            run.log({"child": 7})
            run.finish()
            code = 0 if not run._stream.journal.waiting and not run._stream.journal.left_out() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    stream.advance()
    run.finish()
    assert steps(store, "r") == [0, 1]
    assert steps(store, "r", "child", stream="all") == [2]


def test_killed_while_records_wait(store: Path) -> None:
    """SIGKILL: what waits was not accepted. Everything before it is stored, and there is no gap."""

    def body(count: Callable[[int], None]) -> None:
        patch = pytest.MonkeyPatch()
        torch, stream = fake_device.install(patch)
        run = sdk.init(id="r")
        for n in range(6):
            run.log({"x": torch.Tensor(n, "cuda")})
            run.log({"y": n})
        stream.fire(3)
        run.log({"y": 6})
        count(1)
        while True:
            clock.pause(60)

    trainer = Trainer(body)
    until(lambda: trainer.returned == 1)
    trainer.kill()
    trainer.wait()
    settle(store)
    until_drained(store)
    settle(store)
    found = sdk.open_store(store).run("r")
    assert (steps(store, "r"), steps(store, "r", "y")) == ([0, 2, 4], [1, 3, 5])
    assert not found.gaps
