"""The part of `Run` that draws it; what is drawn is `sdk.query.curves`, how it looks `sdk.query.figure`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .about import About

if TYPE_CHECKING:
    from .run import Run

# Limit: lines that can be told apart where nobody said which runs.
RUNS_MAX = 10


class Drawing(About):
    """`plot`."""

    def plot(
        self, *keys: str, x: str = "auto", smooth: float | None = None, log: bool = False, points: int = 2000,
        title: str | None = None, size: tuple[float, float] | None = None,
    ) -> Any:  # fmt: skip
        """A matplotlib figure of series of this run; the last line of a notebook's cell shows it.

        Args:
            keys: Names, or patterns ("train/*"); none: those worth showing first.
            x: "auto", "step", "time", "relative" or a key, as in `series`.
            smooth: From 0 to below 1, as TensorBoard's; the raw values stay visible behind.
            log: A logarithmic y axis.
            points: At most so many of each line, extremes kept.
            title, size: As `sdk.query.figure.figure` takes them.

        Raises:
            Error: matplotlib is not installed.
            NotFoundError: The run has no such key, or it holds no numbers.
            UsageError: `smooth` is none.
        """
        return draw([self], keys, {"x": x, "smooth": smooth, "points": points}, log=log, title=title, size=size)  # type: ignore[list-item]


def draw(runs: Sequence[Run], keys: Iterable[str], how: dict[str, Any], **look: Any) -> Any:
    """A figure of some runs.

    Args:
        how: As `read_lines` takes it. look: As `figure` takes it.
    """
    from ..query.figure import figure, matplotlib_module

    matplotlib_module("a figure")  # before anything is read
    from ..query.curves import default_keys, read_lines

    notes = look.pop("notes", ())
    lines = read_lines(runs, list(keys) or default_keys(runs), **how)
    return figure(lines._replace(notes=[*notes, *lines.notes]), **look)
