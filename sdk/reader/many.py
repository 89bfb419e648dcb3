"""Series of several runs side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .run import Run

if TYPE_CHECKING:
    from .series import Series


class RunsSeries(dict[tuple[str, str], "Series"]):
    """Series by (run id, key), in the order of the runs.

    Attributes:
        errors: Run id to why it could not be read; all others are there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, Exception] = {}

    def __repr__(self) -> str:
        runs, keys = ({pair[place] for pair in self} for place in (0, 1))
        told = f", {len(self.errors)} runs could not be read" if self.errors else ""
        return f"<{len(self)} series: {len(runs)} runs, {len(keys)} keys{told}>"

    def to_pandas(self) -> Any:
        """A pandas.DataFrame in long form: `run`, `key`, `step`, `time` (Unix seconds), `value`; a row for each value.

        `value` is float64 where numbers of several kinds meet, object where other values do.

        Raises:
            Error: pandas is not installed.
        """
        import numpy

        from .columns import unite
        from .frames import pandas_module

        pandas = pandas_module("to_pandas()")
        counts = [len(series) for series in self.values()]
        ids, keys = ([pair[place] for pair in self] for place in (0, 1))
        values = [s.value if s.value.dtype != object else list(s.value) for s in self.values()]
        columns = {
            "run": numpy.repeat(numpy.array(ids, object), counts),
            "key": numpy.repeat(numpy.array(keys, object), counts),
            "step": numpy.concatenate([numpy.empty(0, numpy.int64), *(series.step for series in self.values())]),
            "time": numpy.concatenate([numpy.empty(0), *(series.time for series in self.values())]),
            "value": unite(values)[0] if values else numpy.empty(0),
        }
        return pandas.DataFrame(columns)


def read_runs(runs: Iterable[Run], keys: list[str], points: int | None) -> RunsSeries:
    """The series of some keys or patterns in some runs. A run that cannot be read does not stop the others."""
    found = RunsSeries()
    for run in runs:
        try:
            for key, series in run.several(keys, points=points).items():
                found[run.id, key] = series
        except (
            Exception
        ) as error:  # Why so broad: a run's files are hostile input, and one of them must not hide the others.
            found.errors[run.id] = error
    return found
