"""`watch` with PyTorch itself, where it is installed (docs/watch.md)."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from sdk import _watching
from sdk.testing import captured
from sdk.values import reduced
from sdk.values.histogram import histogram_of

torch = pytest.importorskip("torch")


class Log:
    """What a watch logged, record by record, and what it said."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.watching = _watching.Watching(self.records.append, self.said.append)

    def watch(self, *models: Any, what: str | None = "gradients", log_freq: int = 1, index: int | None = 0) -> None:
        self.watching.add(models, what, log_freq, index)

    def logged(self) -> list[list[str]]:
        return [sorted(record) for record in self.records]

    def counts(self, key: str, record: int = -1) -> Any:
        return self.records[record][key].describe()

    def total(self, key: str, record: int = -1) -> int:
        return sum(self.counts(key, record)["values"])


@pytest.fixture
def log() -> Log:
    return Log()


def network() -> Any:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))


def train(model: Any, steps: int = 1, passes: int = 1) -> None:
    torch.manual_seed(4)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(passes):
            model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()


GRADIENTS = [f"gradients/{name}" for name in ("0.bias", "0.weight", "2.bias", "2.weight")]


def same(found: dict[str, Any], expected: dict[str, Any], off: int = 0) -> None:
    """Two histograms of the same numbers; `off` values may be in a neighbouring bin."""
    assert numpy.allclose(found["bins"], expected["bins"], rtol=1e-5, atol=1e-6)
    assert numpy.abs(numpy.subtract(found["values"], expected["values"])).sum() <= 2 * off
    assert {k: v for k, v in found.items() if k not in ("values", "bins")} == {
        k: v for k, v in expected.items() if k not in ("values", "bins")
    }


def odd_numbers() -> Any:
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    tensor[3], tensor[4:9], tensor[10] = torch.nan, torch.inf, -torch.inf
    return tensor


TENSORS = {
    "normal": lambda: torch.randn(300, 400, generator=torch.Generator().manual_seed(1)),
    "double": lambda: torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    "odd": odd_numbers,
    "equal": lambda: torch.full((50,), 3.0),
    "zeros": lambda: torch.zeros(5),
    "one": lambda: torch.tensor(2.5),
    "nothing": lambda: torch.empty(0),
    "only nan": lambda: torch.full((3,), torch.nan),
    "huge": lambda: torch.tensor([1e38, -3e38, 3e38]),
    "transposed": lambda: torch.arange(12.0).reshape(3, 4).T,
    "whole numbers": lambda: torch.arange(100),
    "bytes": lambda: torch.arange(100, dtype=torch.uint8),
    "close": lambda: torch.tensor([1.0, 1.0000001]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_histograms_are_numpys(name: str) -> None:
    """Of a CPU, and by the way that asks a device nothing, which a mode of determinism changes, but not its result."""
    tensor = TENSORS[name]()
    flat = tensor.reshape(-1) if tensor.is_floating_point() else tensor.reshape(-1).float()
    expected = histogram_of(flat.numpy(), reduced.BINS)
    same(reduced.histogram_from(reduced.reduce_tensor(tensor)).describe(), expected, off=3)
    same(reduced.histogram_from(reduced._of_device(flat, 0).tolist()).describe(), expected, off=3)
    torch.use_deterministic_algorithms(True)
    try:
        same(reduced.histogram_from(reduced._of_device(flat, 0).tolist()).describe(), expected, off=3)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("deterministic", [False, True])
def test_nothing_is_asked_of_a_device(deterministic: bool) -> None:
    """Tensors without data raise at every question that needs data; there is none."""
    torch.use_deterministic_algorithms(deterministic)
    try:
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.uint8):
            found = reduced.reduce_tensor(torch.empty(300, 10, dtype=dtype, device="meta"))
            assert (tuple(found.shape), found.dtype) == ((reduced.WIDTH,), torch.float64)
        assert tuple(reduced.reduce_tensor(torch.empty(0, device="meta")).shape) == (reduced.WIDTH,)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_other_types(dtype: str) -> None:
    """Half types are widened exactly, a complex number is two."""
    tensor = torch.randn(500, generator=torch.Generator().manual_seed(2)).to(getattr(torch, dtype))
    flat = torch.view_as_real(tensor).reshape(-1) if tensor.is_complex() else tensor.float()
    same(reduced.histogram_from(reduced.reduce_tensor(tensor)).describe(), histogram_of(flat.numpy(), 64), off=3)


def test_sparse_gradients(log: Log) -> None:
    """Entries of one index are added up; the zeros that nobody stored count, and are inside of the range."""
    table = torch.nn.Embedding(50, 4, sparse=True)
    log.watch(table)
    table(torch.tensor([1, 1, 7])).sum().backward()
    counts = log.counts("gradients/weight")
    assert sum(counts["values"]) == 200
    assert (counts["bins"][0], counts["bins"][-1]) == (0.0, 2.0)
    assert (counts["values"][0], counts["values"][-1]) == (192, 4)


def test_training_is_the_same_to_the_bit() -> None:
    """Weights, the optimiser's state and the random state after some steps, with and without."""
    plain, watched = network(), network()
    train(plain, 7)
    state = torch.get_rng_state()
    log = Log()
    log.watch(watched, what="all", log_freq=2)
    train(watched, 7)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert all(a.grad.equal(b.grad) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert len(log.records) == 3 and not log.said


def test_every_nth_pass_is_logged(log: Log) -> None:
    """The n-th, the 2n-th, …, whole, in one record each; passes that are added up are counted one by one, as W&B does."""
    model = network()
    log.watch(model, log_freq=3)
    train(model, steps=2)
    assert not log.records
    train(model, steps=2, passes=2)
    assert log.logged() == [GRADIENTS] * 2
    assert log.total("gradients/0.weight") == 128


def test_parameters(log: Log) -> None:
    """At the same passes, the frozen ones too; a model of frozen ones alone is counted by its forward passes."""
    model = network()
    model[0].weight.requires_grad_(False)
    log.watch(model, what="all", log_freq=2)
    train(model, 2)
    (keys,) = log.logged()
    assert [key for key in keys if "0.weight" in key] == ["parameters/0.weight"]
    assert log.total("parameters/0.weight") == 128
    frozen = network().requires_grad_(False)
    other = Log()
    other.watch(frozen, what="parameters", log_freq=2)
    for _ in range(4):
        frozen(torch.randn(2, 8))
    assert len(other.records) == 2


def test_a_parameter_without_a_gradient(log: Log) -> None:
    """One that a pass does not reach is not in its record; the others are, and later passes are as they should."""
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 1), "seldom": torch.nn.Linear(2, 1)})
    log.watch(model, log_freq=2)
    for number in range(6):
        out = model["used"](torch.ones(1, 2))
        if number % 4 == 3:
            out = out + model["seldom"](torch.ones(1, 2))
        out.sum().backward()
    assert [any("seldom" in key for key in keys) for keys in log.logged()] == [False, True, False]


def test_shared_parameters(log: Log) -> None:
    """A weight with two names has one series, of the gradient of both uses."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    log.watch(model, what="all")
    model(torch.ones(1, 3)).sum().backward()
    assert log.logged() == [["gradients/0.weight", "parameters/0.weight"]]
    same(log.counts("gradients/0.weight"), histogram_of(model[0].weight.grad.numpy(), 64), off=2)


def test_names_of_several_models(log: Log) -> None:
    """W&B's: the second is graph_1, right before the name."""
    first, second = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    log.watch(first, second)
    (first(torch.ones(1, 2)) + second(torch.ones(1, 2))).sum().backward()
    assert sorted(key for keys in log.logged() for key in keys) == [
        "gradients/bias", "gradients/graph_1bias", "gradients/graph_1weight", "gradients/weight"
    ]  # fmt: skip


def test_checkpoints_that_go_back_inside_of_a_pass(log: Log) -> None:
    """Reentrant activation checkpoints are passes inside of a pass; together they give each key once."""
    from torch.utils.checkpoint import checkpoint

    model = network()
    log.watch(model, what="all", log_freq=2)
    for _ in range(4):
        x = torch.randn(4, 8, requires_grad=True)
        hidden = checkpoint(model[0], x, use_reentrant=True)
        model[2](torch.relu(hidden)).sum().backward()
    found = [key for keys in log.logged() for key in keys]
    assert sorted(found) == sorted((GRADIENTS + [key.replace("gradients", "parameters") for key in GRADIENTS]) * 2)


def test_a_pass_that_fails_does_not_end_watching(log: Log) -> None:
    """An error in the middle of a pass that is logged: the next one that is due is there, whole."""
    model = network()
    log.watch(model, log_freq=2)
    train(model)

    def fail(gradient: Any) -> None:
        raise ArithmeticError

    hidden = model[0](torch.randn(4, 8))
    hidden.register_hook(fail)
    with pytest.raises(ArithmeticError):
        model[2](torch.relu(hidden)).sum().backward()
    train(model, 4)
    assert log.logged()[-1] == GRADIENTS


def test_a_compiled_model(log: Log) -> None:
    """Names are those of the model inside; hooks neither break its graphs nor have them compiled again."""
    import torch._dynamo as dynamo

    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    dynamo.reset()
    model = torch.compile(network(), backend=backend, fullgraph=True)
    log.watch(model, what="all", log_freq=2)
    train(model, 6)
    log.watching.remove(None)
    train(model, 2)
    assert len(log.records) == 3
    assert [key for key in log.logged()[0] if key.startswith("gradients")] == GRADIENTS
    assert len(compiled) == 1
    dynamo.reset()


def test_a_model_in_ddp(log: Log, tmp_path: Any) -> None:
    """The wrapper's names, as W&B; the gradients are this process's own."""
    import torch.distributed as distributed

    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(network())
        log.watch(model)
        train(model, 2)
    finally:
        distributed.destroy_process_group()
    assert log.logged() == [[key.replace("/", "/module.") for key in GRADIENTS]] * 2


def test_hooks_do_not_pile_up(log: Log) -> None:
    """Watching and unwatching again and again leaves nothing behind; a copy of a model is not watched."""
    model = network()
    hooks = lambda: sum(len(p._backward_hooks or ()) for p in model.parameters())  # noqa: E731
    for _ in range(3):
        log.watch(model, what="all")
        assert hooks() == 4
        log.watching.remove([model])
        assert hooks() == 0
    log.watch(model)
    train(copy.deepcopy(model), 2)
    torch.save(model.state_dict(), io.BytesIO())
    assert not log.records
    with pytest.raises(ValueError, match="watched already"):
        log.watch(network(), model)


def test_a_model_that_goes_is_let_go(log: Log) -> None:
    """Watching keeps no model and no parameter alive."""
    model = network()
    log.watch(model, what="all")
    train(model)
    kept = weakref.ref(model), weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_memory_does_not_grow(log: Log) -> None:
    """A pass that is not logged makes no object that stays; one that is logged leaves its record only."""
    model = network()
    log.watch(model, what="all", log_freq=10)
    train(model, 20)
    log.records.clear()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(5):
        train(model, 10)
        log.records.clear()
    gc.collect()
    assert len(gc.get_objects()) - before < 50


def test_trouble_ends_watching_not_the_training(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong in a hook is said once, and the hooks go."""

    def fail(tensor: Any) -> Any:
        raise ArithmeticError("no such number")

    monkeypatch.setattr(_watching, "reduce_tensor", fail)
    model = network()
    log.watch(model)
    train(model, 3)
    assert log.said == ["stepd: watch() ended: ArithmeticError: no such number"]
    assert not any(p._backward_hooks for p in model.parameters())


@pytest.fixture
def rows() -> Iterator[Any]:
    with captured() as found:
        yield found


def test_into_the_row_of_the_step(rows: Any) -> None:
    """Histograms of a step stand in its row, with what the loop logs; they end with the run."""
    import sdk

    model = network()
    run = sdk.init()
    run.watch(model, log_freq=2)
    for number in range(4):
        train(model)
        run.log({"loss": number})
    run.finish()
    train(model, 2)
    assert [sorted(row) for row in rows] == [["loss"], [*GRADIENTS, "loss"]] * 2
    assert not any(p._backward_hooks for p in model.parameters())


def test_what_cannot_be_watched(rows: Any) -> None:
    """Errors of use raise at once, as W&B's; unwatch of another model is a note."""
    import sdk

    run = sdk.init()
    with pytest.raises(TypeError, match=r"list of them"):
        run.watch(["model"])
    with pytest.raises(ValueError, match="log is 'everything'"):
        run.watch(network(), log="everything")
    run.watch(network(), log=None)
    run.unwatch(network())
    run.unwatch()
