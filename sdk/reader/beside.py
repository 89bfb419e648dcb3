"""What accompanies a run's training, read like a run: the streams of one kind ("system", "console") and nothing else.

The same files and the same ways to read them; the run's identity and state are the training's. Its axis is the time: steps are
only the numbers of its rows. What `define_metric` said is about the training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import looks
from .lanes import lanes_of
from .metrics import Definitions
from .run import Run

if TYPE_CHECKING:
    from .series import Series


class Beside(Run):
    """The streams of one kind. See `Run`."""

    def __init__(self, run: Run, kind: str) -> None:
        self.kind = kind
        super().__init__(run.directory, files=run._files, alive=run._alive, now_ns=run._now_ns)

    def _look(self) -> None:
        super()._look()
        self._lanes = lanes_of(self._facts.streams, {self.kind})

    def _definitions(self) -> Definitions:
        return Definitions({})

    def of_kind(self, kind: str | None) -> Run:
        return self if kind in (None, self.kind) else super().of_kind(kind)

    @property
    def summary(self) -> dict[str, Any]:
        """The last value of every key."""
        return self._reading(lambda: looks.last_values(self._scan, self._lanes))

    def series(
        self, key: str, stream: str | int | None = None, rank: int | None = None, *, points: int | None = None,
        x: str = "auto", kind: str | None = None,
    ) -> Series:  # fmt: skip
        """As of a run; `Series.x` is the time unless `x` says otherwise."""
        return super().series(key, stream, rank, points=points, x="time" if x == "auto" else x, kind=kind)

    def to_pandas(self, keys: Iterable[str] | None = None, *, kind: str | None = None) -> Any:
        """A pandas.DataFrame, one row per sample, indexed by its time (UTC)."""
        from .frames import pandas_frame, pandas_module

        del kind
        pandas = pandas_module("to_pandas()")
        table = self._table(keys)
        frame = pandas_frame(table, pandas)
        frame.index = pandas.DatetimeIndex(table.times_us().astype("datetime64[us]"), name="time").tz_localize("UTC")
        return frame
