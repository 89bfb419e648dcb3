"""`watch` without PyTorch: which passes are logged, and what is done with tensors of a device. `test_watch_torch` has the rest."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import Any

import numpy
import pytest

import sdk
from sdk import _watching
from sdk.testing import captured
from sdk.values import reduced

from . import fake_device
from .test_large import Stream


class Handle:
    def __init__(self, hooks: list[Any], hook: Any) -> None:
        self._hooks, self._hook = hooks, hook
        hooks.append(hook)

    def remove(self) -> None:
        self._hooks.remove(self._hook)


class Parameter:
    """A parameter with hooks; its gradient is what a test says."""

    def __init__(self, data: Any, device: str = "cpu", requires_grad: bool = True) -> None:
        self.data = numpy.asarray(data, "f4")
        self.device = device
        self.requires_grad = requires_grad
        self.hooks: list[Callable[[Any], None]] = []

    def register_hook(self, hook: Callable[[Any], None]) -> Handle:
        return Handle(self.hooks, hook)


class Module:
    """A module of named parameters."""

    def __init__(self, **parameters: Parameter) -> None:
        self.parameters = parameters
        self.after: list[Any] = []

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        return list(self.parameters.items())

    def register_forward_hook(self, hook: Any) -> Handle:
        return Handle(self.after, hook)


class Autograd:
    """The engine: what is queued in a pass is called at its end."""

    def __init__(self) -> None:
        self.calls: list[list[Callable[[], None]]] = []
        self.count = 0

    def queue_callback(self, callback: Callable[[], None]) -> None:
        self.calls[-1].append(callback)

    def backward(self, module: Module, *names: str) -> None:
        """A pass that gives those parameters a gradient, in this order."""
        self.count += 1
        self.calls.append([])
        for name in names or module.parameters:
            parameter = module.parameters[name]
            for hook in list(parameter.hooks):
                hook(parameter)
        for callback in self.calls.pop():
            callback()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Autograd:
    """A torch of these, with a device, and a reduction that numpy does."""
    torch, _ = fake_device.install(monkeypatch)
    made = Autograd()
    torch.nn = types.SimpleNamespace(Module=Module)
    torch.autograd = types.SimpleNamespace(Variable=types.SimpleNamespace(_execution_engine=made))
    torch._C = types.SimpleNamespace(_current_graph_task_id=lambda: made.count)
    torch.no_grad = contextlib.nullcontext
    torch.stack = lambda rows: fake_device.Tensor(numpy.stack([row.data for row in rows]), "cuda")
    monkeypatch.setattr(_watching, "reduce_tensor", reduce)
    return made


def reduce(parameter: Parameter) -> Any:
    counts, edges = numpy.histogram(parameter.data, reduced.BINS)
    numbers = [edges[0], edges[-1], 0, 0, 0, 0, *counts]
    return numbers if parameter.device == "cpu" else fake_device.Tensor(numpy.array(numbers, "f8"), "cuda")


def watched(module: Module, **options: Any) -> tuple[_watching.Watching, list[dict[str, Any]]]:
    """Somebody who watches, and what was logged."""
    records: list[dict[str, Any]] = []
    watching = _watching.Watching(records.append, lambda text: pytest.fail(text))
    watching.add([module], options.get("what", "gradients"), options.get("log_freq", 1), options.get("index"))
    return watching, records


def test_every_nth_pass(engine: Autograd) -> None:
    """One record of all gradients at the end of the n-th, 2n-th, … pass; none after unwatch."""
    module = Module(a=Parameter([1, 2]), b=Parameter([3]))
    watching, records = watched(module, log_freq=3)
    for _ in range(7):
        engine.backward(module)
    assert [sorted(record) for record in records] == [["gradients/a", "gradients/b"]] * 2
    watching.remove(None)
    assert not module.parameters["a"].hooks
    for _ in range(7):
        engine.backward(module)
    assert len(records) == 2


@pytest.mark.parametrize("log_freq", [1, 2, 4])
def test_a_parameter_that_learns_seldom(engine: Autograd, log_freq: int) -> None:
    """It is in the records of exactly those passes that gave it a gradient, whether it comes first or last in them."""
    module = Module(often=Parameter([1]), seldom=Parameter([2]))
    _, records = watched(module, log_freq=log_freq)
    expected = []
    for number in range(1, 25):
        names = ("often",) if number % 3 else ("seldom", "often") if number % 2 else ("often", "seldom")
        engine.backward(module, *names)
        if number % log_freq == 0:
            expected.append(sorted(f"gradients/{name}" for name in names))
    assert [sorted(record) for record in records] == expected


def test_parameters_and_names(engine: Autograd) -> None:
    """Frozen ones too; the second model has a prefix; what torch.compile puts before a name is left out."""
    module = Module(**{"_orig_mod.a": Parameter([1]), "b": Parameter([2], requires_grad=False)})
    _, records = watched(module, what="all", index=1)
    engine.backward(module, "_orig_mod.a")
    assert sorted(records[0]) == ["gradients/graph_1a", "parameters/graph_1a", "parameters/graph_1b"]
    assert records[0]["parameters/graph_1b"].describe()["values"].count(1) == 1


def test_a_model_that_is_watched_again(engine: Autograd) -> None:
    """It goes on with its keys; another one gets the next number."""
    first, second = Module(a=Parameter([1])), Module(a=Parameter([2]))
    watching, records = watched(first)
    watching.remove(first)
    watching.add([first, second], "gradients", 1, None)
    engine.backward(first)
    engine.backward(second)
    assert [list(record) for record in records] == [["gradients/a"], ["gradients/graph_1a"]]


def test_a_model_on_a_device(engine: Autograd) -> None:
    """One copy for all its histograms, without waiting; they stand in the row of their step when they have come."""
    module = Module(a=Parameter([1, 2], "cuda"), b=Parameter([3, 4, 5], "cuda"))
    (stream,) = fake_device.STREAM
    with contextlib.closing(Stream(None)) as into:
        watching = _watching.Watching(lambda data: into.log(data, commit=False), lambda text: pytest.fail(text))
        watching.add([module], "gradients", 1, None)
        engine.backward(module)
        assert len(stream.work) == 2  # a copy and its event
        into.log({"loss": 1.0})
        assert not into.records()
        stream.advance()
        into.journal.look_waiting()
        assert [record.step for record in into.records()] == [0, 0]
        assert into.row(1) == {"loss": 1.0}
        found = {key: sum(value["values"]) for key, value in into.row(0).items()}
    assert found == {"gradients/a": 2, "gradients/b": 3}


def test_errors_of_use(engine: Autograd) -> None:
    """They raise what W&B raises, before any hook is put anywhere."""
    module = Module(a=Parameter([1]))
    with captured() as rows:
        run = sdk.init()
        with pytest.raises(ValueError, match="log is 'weights', expected"):
            run.watch(module, log="weights")
        with pytest.raises(ValueError, match="log_freq is 0, expected a positive int"):
            run.watch(module, log_freq=0)
        with pytest.raises(TypeError, match=r"is given a builtins\.str, expected a torch\.nn\.Module"):
            run.watch([module, "model"])
        assert not module.parameters["a"].hooks
        run.watch(module, log_freq=1)
        with pytest.raises(ValueError, match=r"watched already. Try: run\.unwatch"):
            run.watch([Module(), module])
        engine.backward(module)
        run.log({"loss": 1})
        run.unwatch(module)
        run.unwatch("nothing")
        run.watch(module, log="parameters", log_freq=1)
        run.finish()
        assert not module.parameters["a"].hooks
        run.watch(module)
        assert not module.parameters["a"].hooks
    assert [sorted(row) for row in rows] == [["gradients/a", "loss"]]


def test_without_torch() -> None:
    """Nothing is imported for a model that is none."""
    with captured():
        run = sdk.init()
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
            run.watch(object())
        run.unwatch()
