"""What is known of a run as a whole, as hyperparameters and what became of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from daemon.formats import plugins
from sdk.reader.plain import as_json

_FINISHED = "finished"


def hyperparameters(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """The config as what the page can sort by: maps as dotted names, other things as JSON."""
    return {name: _plain(value) for name, value in _flat(config)}


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a summary, maps as dotted names."""
    return {name: float(value) for name, value in _flat(summary) if isinstance(value, (int, float)) and _fits(value)}


def status(state: str) -> int:
    """How a run that is over ended, in the page's words."""
    return plugins.STATUS_SUCCESS if state == _FINISHED else plugins.STATUS_FAILURE


def _flat(values: Mapping[Any, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{before}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, dict) and value else [(name, value)]
    return found


def _plain(value: Any) -> bool | float | str:
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)) and _fits(value):
        # The page's answer is JSON, which has no other numbers: one of these would take all hyperparameters of all runs with it.
        return float(value) if math.isfinite(value) else str(value)
    return as_json(value)


def _fits(value: float) -> bool:
    try:
        float(value)
    except OverflowError:
        return False
    return True
