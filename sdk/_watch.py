"""`watch` and `unwatch`, a part of `sdk.Run`; what they do is in `_watching`, imported when somebody watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._compat import harmless

if TYPE_CHECKING:
    from ._watching import Watching

_WATCHED = ("gradients", "parameters", "all", None)


class RunWatch:
    """Histograms of gradients and parameters of PyTorch's models (docs/watch.md)."""

    _watching: Watching | None = None
    _finished: bool

    @property
    def _log(self) -> Callable[..., None]:
        raise NotImplementedError

    @property
    def disabled(self) -> bool:
        raise NotImplementedError

    def _say(self, text: str) -> None:
        raise NotImplementedError

    def _at_end(self, callback: Callable[[str, int], None]) -> None:
        raise NotImplementedError

    def watch(
        self, models: Any, criterion: Any = None, log: Any = "gradients", log_freq: int = 1000, idx: int | None = None,
        log_graph: bool = False,
    ) -> None:  # fmt: skip
        """Logs histograms of every `log_freq`-th backward pass into the row that is open then.

        They are counted on the device where the tensor lives, and nothing waits for it. Training is not changed: no number
        of it, no random state, no graph of the compiler. Ends with the run.

        Args:
            models: A `torch.nn.Module` or several. Only its parameters get hooks.
            criterion: Does nothing.
            log: "gradients" (those of one pass, before they are added up), "parameters", "all" or None.
            log_freq: Of how many backward passes one is logged.
            idx: Number of the first model. From 1 on keys are ``gradients/graph_1…``; default: how many were watched before
                in this run; a model that is watched again keeps its number.
            log_graph: Does nothing yet, and says so.

        Raises:
            ValueError: Another `log`; a `log_freq` that is no positive int; a model that is watched already.
            TypeError: Not a module of torch.
        """
        if log not in _WATCHED:
            raise ValueError(f"watch() log is {log!r}, expected 'gradients', 'parameters', 'all' or None")
        if type(log_freq) is not int or log_freq < 1:
            raise ValueError(f"watch() log_freq is {log_freq!r}, expected a positive int")
        if self.disabled or self._finished:
            return
        from ._watching import Watching, modules_of

        modules = modules_of(models)
        if log_graph:
            harmless("watch(log_graph=True)", "log a sdk.Graph of the model")
        if self._watching is None:
            self._watching = Watching(lambda data: self._log(data, commit=False), self._say)
            self._at_end(lambda state, exit_code: self.unwatch())
        self._watching.add(modules, log, log_freq, idx)

    def unwatch(self, models: Any = None) -> None:
        """Ends watching some models, or all. One that is not watched gets a note."""
        if self._watching is not None:
            self._watching.remove(models)
