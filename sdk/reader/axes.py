"""The x axis of a series: another key's values at its steps (docs/metrics.md#axes)."""

from __future__ import annotations

from dataclasses import replace

import numpy

from .metrics import Definition
from .series import Series


def named_axis(definition: Definition, x: str) -> tuple[str, bool]:
    """The name of the axis that a reader asks for, and whether a row without it stands at its last value."""
    if x == "auto":
        return definition.step_metric or "step", definition.step_sync
    return x, definition.step_sync if x == definition.step_metric else True


def axis_of(series: Series, other: Series | None, name: str, *, synced: bool) -> Series:
    """A series with the values of another one as its axis: those of the same step, or the last ones before; NaN where there are
    none.
    """  # fmt: skip
    axis = numpy.full(len(series), numpy.nan)
    if other is not None and len(other) and other.value.dtype.kind in "fiub":
        place = numpy.searchsorted(other.step, series.step, "right") - 1
        there = place >= 0 if synced else (place >= 0) & (other.step[place] == series.step)
        found = other.value[place]
        axis = found if there.all() else numpy.where(there, found.astype(numpy.float64), numpy.nan)
    return replace(series, axis=axis, x_name=name)
