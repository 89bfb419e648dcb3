"""`define_metric`: what a user says about a key, or about all keys with a prefix, before logging it."""

from __future__ import annotations

from typing import Any, NamedTuple

from .errors import Error

_OPERATIONS = ("min", "max", "mean", "last", "first", "best", "copy", "none")
_GOALS = ("minimize", "maximize")


class Metric(NamedTuple):
    """A definition.

    Attributes:
        name: A key, or a prefix followed by one `*`.
        step_metric: The key that serves as x axis, or None.
        step_sync: Whether rows that lack the step metric get its last value; None: not said.
        hidden: Whether it should stay out of automatic charts; None: not said.
        summary: Operations; () means the last value, as for every key.
        goal: "minimize" or "maximize" (W&B before 0.29).
    """

    name: str
    step_metric: str | None = None
    step_sync: bool | None = None
    hidden: bool | None = None
    summary: tuple[str, ...] = ()
    goal: str | None = None

    def facts(self) -> dict[str, Any]:
        """The definition as it is stored: only what was said."""
        said = {key: value for key, value in self._asdict().items() if key != "name" and value not in (None, ())}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in said.items()}


def make_metric(
    name: Any, step_metric: Any = None, step_sync: Any = None, hidden: Any = None, summary: Any = None, goal: Any = None
) -> Metric:
    """A checked definition.

    Raises:
        Error: A wrong type, an unknown operation, a `*` that is not the last character.
    """
    if isinstance(step_metric, Metric):
        step_metric = step_metric.name
    name = _name(name, "name")
    if "*" in name[:-1]:
        raise Error(f"define_metric() name is {name!r}, expected a key, or a prefix and one '*' at its end")
    if step_metric is not None and "*" in _name(step_metric, "step_metric"):
        raise Error(f"define_metric() step_metric is {step_metric!r}, expected a key without '*'")
    for option, value in (("step_sync", step_sync), ("hidden", hidden)):
        if value is not None and not isinstance(value, bool):
            raise Error(f"define_metric() {option} is {value!r}, expected a bool")
    if goal is not None and goal not in _GOALS:
        raise Error(f"define_metric() goal is {goal!r}, expected 'minimize' or 'maximize'")
    if step_sync is None and step_metric is not None:
        step_sync = True
    return Metric(name, step_metric, step_sync, hidden, _operations(summary), goal)


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise Error(f"define_metric() {what} is {value!r}, expected a non-empty str")
    return value


def _operations(summary: Any) -> tuple[str, ...]:
    if summary is None:
        return ()
    if not isinstance(summary, str):
        raise Error(f"define_metric() summary is {summary!r}, expected a comma list such as 'min,last'")
    found = tuple(dict.fromkeys(part.strip().lower() for part in summary.split(",") if part.strip()))
    for operation in found:
        if operation not in _OPERATIONS:
            raise Error(f"define_metric() summary holds {operation!r}, expected some of {', '.join(_OPERATIONS)}")
    return found
