"""`define_metric`: what a user says about a key, or about all keys with a prefix, before logging it."""

from __future__ import annotations

from typing import Any, NamedTuple

from .errors import Error

_OPERATIONS = ("min", "max", "mean", "last", "first", "best", "copy", "none")
_REDUCTIONS = ("mean", "sum", "min", "max", "last")
_GOALS = {"min": "minimize", "max": "maximize"}
OVER_DEFAULT = "epoch"


class Metric(NamedTuple):
    """A definition (docs/metrics.md).

    Attributes:
        name: A key, or a prefix followed by one `*`.
        step_metric: The key that serves as x axis, or None.
        step_sync: Whether rows that lack the step metric get its last value; None: not said.
        hidden: Whether it should stay out of automatic charts; None: not said.
        summary: Operations; () means the last value, as for every key.
        goal: "minimize" or "maximize".
        reduce: What makes one value of all those of an epoch; None: nothing does.
        over: The key whose changes begin a new epoch; only with `reduce`.
        weight: The key that says how much each value counts; only with reduce="mean".
    """

    name: str
    step_metric: str | None = None
    step_sync: bool | None = None
    hidden: bool | None = None
    summary: tuple[str, ...] = ()
    goal: str | None = None
    reduce: str | None = None
    over: str | None = None
    weight: str | None = None

    def said(self) -> dict[str, Any]:
        """Only what was said, without the name."""
        return {key: value for key, value in self._asdict().items() if key != "name" and value not in (None, ())}

    def facts(self) -> dict[str, Any]:
        """The definition as it is stored: only what was said."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in self.said().items()}

    def checked(self) -> Metric:
        """Itself, where what was said goes together.

        Raises:
            Error: It does not.
        """
        if "best" in self.summary and self.goal is None:
            raise _error(f"summary of {self.name!r} holds 'best'", "goal='minimize' or goal='maximize' as well")
        if self.reduce is None and (self.over or self.weight):
            raise _error(f"over={self.over!r}, weight={self.weight!r} of {self.name!r}", "reduce='mean' as well")
        if self.weight is not None and self.reduce != "mean":
            raise _error(f"weight={self.weight!r} with reduce={self.reduce!r} of {self.name!r}", "reduce='mean'")
        if self.reduce is not None and self.name in (self.over or OVER_DEFAULT, self.weight):
            raise _error(f"name {self.name!r} as its own over or weight", "another key")
        return self


def make_metric(
    name: Any, step_metric: Any = None, step_sync: Any = None, hidden: Any = None, summary: Any = None, goal: Any = None,
    reduce: Any = None, over: Any = None, weight: Any = None,
) -> Metric:  # fmt: skip
    """A definition of which each part is right; see `Metric.checked`.

    Raises:
        Error: A wrong type, an unknown operation, a `*` that is not the last character.
    """
    name = _name(name, "name")
    if "*" in name[:-1]:
        raise _error(f"name is {name!r}", "a key, or a prefix and one '*' at its end")
    step_metric, over, weight = (
        _plain_key(value, what) for value, what in ((step_metric, "step_metric"), (over, "over"), (weight, "weight"))
    )
    for option, value in (("step_sync", step_sync), ("hidden", hidden)):
        if value is not None and not isinstance(value, bool):
            raise _error(f"{option} is {value!r}", "a bool")
    if reduce is not None and reduce not in _REDUCTIONS:
        raise _error(f"reduce is {reduce!r}", f"one of {', '.join(map(repr, _REDUCTIONS))}")
    if step_sync is None and step_metric is not None:
        step_sync = True
    return Metric(name, step_metric, step_sync, hidden, _operations(summary), _goal(goal), reduce, over, weight)


def _error(found: str, expected: str) -> Error:
    return Error(f"define_metric() {found}, expected {expected}")


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise _error(f"{what} is {value!r}", "a non-empty str")
    return value


def _plain_key(value: Any, what: str) -> str | None:
    if isinstance(value, Metric):
        value = value.name
    if value is None:
        return None
    if "*" in _name(value, what):
        raise _error(f"{what} is {value!r}", "a key without '*'")
    return str(value)


def _goal(goal: Any) -> str | None:
    """As in W&B, whose rule is the first three letters."""
    if goal is None:
        return None
    found = _GOALS.get(goal[:3].lower()) if isinstance(goal, str) else None
    if found is None:
        raise _error(f"goal is {goal!r}", "'minimize' or 'maximize'")
    return found


def _operations(summary: Any) -> tuple[str, ...]:
    if summary is None:
        return ()
    if not isinstance(summary, str):
        raise _error(f"summary is {summary!r}", "a comma list such as 'min,last'")
    found = tuple(dict.fromkeys(part.strip().lower() for part in summary.split(",") if part.strip()))
    for operation in found:
        if operation not in _OPERATIONS:
            raise _error(f"summary holds {operation!r}", f"some of {', '.join(_OPERATIONS)}")
    return found
