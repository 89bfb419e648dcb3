"""Deferred records and `watch` on a GPU, where there is one (docs/journal.md#deferred-records)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from sdk import _watching
from sdk.record import KIND_ROW
from sdk.values import reduced

from .test_appender import journal
from .test_large import Stream

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

# Long enough that nothing here overtakes it, in cycles of the device.
BUSY_CYCLES = 500_000_000


@pytest.fixture(autouse=True)
def _ready() -> Iterator[None]:
    """Pinned memory and streams are there before, and everything is done behind."""
    torch.empty(1 << 20, pin_memory=True)
    torch.ones(8, device="cuda").sum().item()
    yield
    torch.cuda.synchronize()


@contextlib.contextmanager
def waiting_raises() -> Iterator[None]:
    """Inside, torch raises at everything that waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_log_does_not_wait() -> None:
    """It returns while the device is busy; nothing is placed before, everything after, in order."""
    log_journal, reader = journal()
    value = torch.full((), 0.5, device="cuda")
    torch.cuda._sleep(BUSY_CYCLES)
    busy = torch.cuda.Event()
    busy.record()
    with waiting_raises():
        log_journal.log({"loss": value * 2, "half": value.bfloat16()})
        log_journal.log({"b": 1})
    assert not busy.query()
    assert not log_journal.look_waiting() and not reader.rows()
    torch.cuda.synchronize()
    assert log_journal.look_waiting()
    assert [row for _, _, row in reader.rows()] == [{"loss": 1.0, "half": 0.5}, {"b": 1}]


def test_what_is_overwritten_later_is_stored_as_it_was() -> None:
    """The copy stands in the stream before what the loop does next with the tensor, or with its memory."""
    with contextlib.closing(Stream(None)) as into:
        tensor = torch.arange(100_000, dtype=torch.float32, device="cuda")
        torch.cuda._sleep(BUSY_CYCLES // 10)
        with waiting_raises():
            into.log({"w": tensor, "first": tensor[:3]})
        tensor.zero_()
        del tensor
        torch.zeros(100_000, device="cuda")
        torch.cuda.synchronize()
        assert into.journal.look_waiting()
        assert bytes(into.large.pending[0].blob.view()) == numpy.arange(100_000, dtype="f4").tobytes()
        assert into.row()["first"].tolist() == [0, 1, 2]


def test_a_capture_is_not_disturbed() -> None:
    """Another thread, as the sender is one, may ask while this one captures a graph; inside of it a value is an error."""
    log_journal, reader = journal()
    value = torch.ones((), device="cuda")
    log_journal.log({"a": value})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = value * 2
        thread = threading.Thread(target=log_journal.look_waiting)
        thread.start()
        thread.join()
        with pytest.raises(ValueError, match="outside of the capture"):
            log_journal.log({"b": doubled})
        log_journal.log({"c": 1})
    graph.replay()
    log_journal.log({"d": doubled})
    torch.cuda.synchronize()
    assert log_journal.look_waiting()
    assert [row for _, _, row in reader.rows()] == [{"a": 1.0}, {"c": 1}, {"d": 2.0}]


def test_watch_waits_for_nothing() -> None:
    """Its histograms are those that the CPU makes of the same numbers, and training is the same to the bit."""

    def trained(watched: bool, into: Stream) -> Any:
        torch.manual_seed(5)
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)).cuda()
        watching = _watching.Watching(lambda data: into.log(data, commit=False), pytest.fail)
        if watched:
            watching.add([model], "all", 2, 0)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with waiting_raises():
            for _ in range(4):
                optimizer.zero_grad()
                model(torch.randn(16, 64, device="cuda")).square().mean().backward()
                optimizer.step()
                into.log({"loss": 1.0})
        watching.remove(None)
        return model

    with contextlib.closing(Stream(None)) as into:
        plain, watched = trained(False, into), trained(True, into)
        torch.cuda.synchronize()
        assert into.journal.look_waiting()
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
        count = into.kinds().count(KIND_ROW)
        last = next(row for row in map(into.row, reversed(range(count))) if "gradients/0.weight" in row)
    gradient = dict(watched.named_parameters())["0.weight"].grad.cpu()
    expected = reduced.histogram_from(reduced.reduce_tensor(gradient)).describe()
    assert numpy.allclose(last["gradients/0.weight"]["bins"], expected["bins"], rtol=1e-4, atol=1e-7)
    assert sum(last["gradients/0.weight"]["values"]) == sum(expected["values"])
    assert len(last) == 8
