"""Watching models of PyTorch: hooks on parameters, histograms on their device, one record for each pass that is logged.

A hook of each parameter counts backward passes. In each `log_freq`-th one it reduces its gradient at once, so no gradient is
held, and the first asks the engine of autograd for a callback at the end of the pass, which logs them all, and the
parameters, into the open row. In every other pass a hook adds one and compares.

Why hooks of parameters: one of a module would be traced into a compiled graph, and break it or compile it again. Why counted
by parameter: autograd says of no pass where it begins, and a parameter may get a gradient in some passes only.

Invariant: nothing here raises into a backward pass, draws a random number, changes a tensor or keeps a model alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from .values.device import Computed
from .values.reduced import histogram_from, reduce_tensor

# What torch.compile puts before every name of the model that it wraps.
_COMPILED = "_orig_mod."


def modules_of(models: Any) -> list[Any]:
    """`models` as a list.

    Raises:
        TypeError: One is no module of torch.
    """
    import sys

    listed = list(models) if isinstance(models, (list, tuple)) else [models]
    torch = sys.modules.get("torch")
    for model in listed:
        if torch is None or not isinstance(model, torch.nn.Module):
            kind = type(model)
            raise TypeError(
                f"watch() is given a {kind.__module__}.{kind.__qualname__}, expected a torch.nn.Module or a list of them"
            )
    return listed


class Watching:
    """The models that a run watches.

    Args:
        log: Takes a map of keys to values into the open row.
        say: Tells the user a line.
    """

    def __init__(self, log: Callable[[dict[str, Any]], None], say: Callable[[str], None]) -> None:
        self._log = log
        self._say = say
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._total = 0
        self._watches: weakref.WeakKeyDictionary[Any, _Watch] = weakref.WeakKeyDictionary()

    def add(self, modules: Sequence[Any], what: str | None, log_freq: int, index: int | None) -> None:
        """Begins to watch `modules`, all or none.

        Raises:
            ValueError: One is watched already.
        """
        for module in modules:
            if module in self._watches:
                raise ValueError(
                    f"watch() is given a {type(module).__name__} that is watched already. Try: run.unwatch(model) first"
                )
        for place, module in enumerate(modules):
            # One that was watched before goes on with its keys.
            number = self._numbers.get(module, self._total) if index is None else index + place
            self._total += module not in self._numbers
            self._numbers[module] = number
            watch = _Watch(f"graph_{number}" if number > 0 else "", log_freq, self._log, self._say)
            if what is not None:
                watch.begin(module, gradients=what != "parameters", parameters=what != "gradients")
            self._watches[module] = watch

    def remove(self, models: Any) -> None:
        """Ends it for some, or for all (None)."""
        listed = list(models) if isinstance(models, (list, tuple)) else [models]
        for module in list(self._watches) if models is None else listed:
            watch = self._watches.pop(module, None) if isinstance(module, _hashable_kinds()) else None
            if watch is None:
                self._say(f"stepd: unwatch(): this {type(module).__name__} is not watched")
            else:
                watch.end()


def _hashable_kinds() -> Any:
    import sys

    torch = sys.modules.get("torch")
    return torch.nn.Module if torch is not None else ()


class _Watch:
    """One model's.

    Attributes:
        passes: Backward passes so far: of the parameter that got most gradients.
        due: The pass that is logged next.

    In the pass before that one, and in it, every backward call that a hook sees is heard of at its end. So a parameter that
    gets a gradient seldom, and as the first of a pass, is known to be in the pass that is due.
    """

    def __init__(
        self, prefix: str, log_freq: int, log: Callable[[dict[str, Any]], None], say: Callable[[str], None]
    ) -> None:
        self.passes = 0
        self.due = log_freq
        self._near = log_freq - 1
        self._is_due = log_freq == 1
        self._calls: set[int] = set()
        self._prefix = prefix
        self._log_freq = log_freq
        self._log = log
        self._say = say
        self._names: list[str] = []
        self._parameters: list[weakref.ref[Any]] = []
        self._handles: list[Any] = []
        self._counts: list[int] = []
        self._taken: dict[int, Any] = {}
        self._taken_at: list[int] = []
        self._gradients = self._with_parameters = False
        self._parameters_at = 0
        self._kept: Any = None

    def begin(self, module: Any, *, gradients: bool, parameters: bool) -> None:
        """Puts a hook on every parameter that learns; on the module where none does."""
        self._gradients, self._with_parameters = gradients, parameters
        for name, parameter in module.named_parameters():
            index = len(self._names)
            self._names.append(self._prefix + name.replace(_COMPILED, ""))
            self._parameters.append(weakref.ref(parameter))
            self._counts.append(0)
            self._taken_at.append(0)
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self._hook(index)))
        if parameters and not self._handles:
            self._handles.append(module.register_forward_hook(self._after_forward))

    def end(self) -> None:
        """Takes every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._taken.clear()
        self._kept = None

    def _hook(self, index: int) -> Callable[[Any], None]:
        counts = self._counts

        def count(gradient: Any) -> None:
            passes = counts[index] + 1
            counts[index] = passes
            if passes > self.passes:
                self.passes = passes
            if self.passes >= self._near:
                self._look(index, gradient)

        return count

    def _look(self, index: int, gradient: Any) -> None:
        """In a pass that is logged or the one before: hears of its end, and reduces a gradient."""
        try:
            if self.passes > self.due:  # that pass ended with an error
                self._advance()
            if self.passes < self._near:
                return
            self._hear_of_end()
            if (
                not self._gradients
                or not (self._is_due or self.passes == self.due)
                or self._taken_at[index] == self.due
            ):
                return
            import torch

            self._taken_at[index] = self.due
            with torch.no_grad():
                self._taken[index] = reduce_tensor(gradient)
        except Exception as error:
            self._fail(error)

    def _hear_of_end(self) -> None:
        """Has the engine call back when the backward call that is running now ends; there may be one inside of another."""
        import torch

        call = torch._C._current_graph_task_id()
        if call not in self._calls:
            self._calls.add(call)
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._ended(call))

    def _ended(self, call: int) -> None:
        self._calls.discard(call)
        if self._is_due or self.passes == self.due:
            self._finish()
        if not self._calls:
            if self.passes >= self.due:
                self._advance()
            self._is_due = self.passes >= self._near

    def _advance(self) -> None:
        self.due += self._log_freq
        self._near = self.due - 1
        self._is_due = False
        self._calls.clear()

    def _after_forward(self, module: Any, given: Any, output: Any) -> None:
        self.passes += 1
        if self.passes >= self.due:
            self._finish()
            self._advance()

    def _finish(self) -> None:
        """At the end of a pass that is logged (or, with a checkpoint that goes back again inside of one, of a part)."""
        try:
            import torch

            with torch.no_grad():
                found = {f"gradients/{self._names[i]}": value for i, value in sorted(self._taken.items())}
                self._taken.clear()
                if self._with_parameters and self._parameters_at != self.due:
                    self._parameters_at = self.due
                    for name, reference in zip(self._names, self._parameters, strict=True):
                        parameter = reference()
                        if parameter is not None:
                            found[f"parameters/{name}"] = reduce_tensor(parameter)
                if found and self._handles:
                    self._log(self._values(found))
        except Exception as error:
            self._fail(error)

    def _values(self, found: dict[str, Any]) -> dict[str, Any]:
        """What is logged: histograms, or, from devices, what they will be made of, one copy for each device."""
        import torch

        values: dict[str, Any] = {}
        devices: dict[Any, list[str]] = {}
        for name, numbers in found.items():
            if type(numbers) is list:
                values[name] = histogram_from(numbers)
            else:
                devices.setdefault(numbers.device, []).append(name)
        # Why kept: the engine may have made them on another stream than the one that copies now.
        self._kept = found if devices else None
        for names in devices.values():
            together = torch.stack([found[name] for name in names])
            for row, name in enumerate(names):
                values[name] = Computed(together, _row_of(row))
        return {name: values[name] for name in found}

    def _fail(self, error: Exception) -> None:
        """Watching ends rather than the training."""
        self.end()
        self._say(f"stepd: watch() ended: {type(error).__name__}: {error}")


def _row_of(row: int) -> Callable[[Any], Any]:
    return lambda array: histogram_from(array[row])
