"""What a filter that DuckDB pushes into a scan leaves to read: which runs and keys, and which range of steps.

DuckDB hands a scan of an Arrow dataset its filter as an Arrow expression. What it admits is not taken from its text: Arrow itself is
asked which of some made-up files a data set would open, of each of which it is said what all rows in it have in common
(`run = 'a41f'`, `step <= 500`). That is how it leaves out the files of a partitioned data set, so it knows every expression that
there is; of one it cannot judge it says that there may be rows. Whatever is read too much the scan's filter takes out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pyarrow
import pyarrow.dataset
import pyarrow.fs

from ...limits import STEP_MAX


class Filter:
    """A filter of a scan, and what it leaves.

    Args:
        expression: As the scanner of a data set gets it; None: everything is wanted.
        schema: Of the relation.
    """

    def __init__(self, expression: Any, schema: Any) -> None:
        self.expression = expression
        self._schema = schema
        self._text = "" if expression is None else str(expression)
        self._keys: dict[str, bool] = {}

    def names(self, column: str) -> bool:
        """Whether it may say anything of a column."""
        return column in self._text

    def admitted(self, facts: Sequence[Any]) -> list[int]:
        """The places of those of some facts, each an expression, with which rows may pass."""
        if self.expression is None:
            return list(range(len(facts)))
        form, system = _form()
        files = [
            form.make_fragment(str(place), filesystem=system, partition_expression=fact)
            for place, fact in enumerate(facts)
        ]
        try:
            data = pyarrow.dataset.FileSystemDataset(files, self._schema, form, system)
            return [int(file.path) for file in data.get_fragments(self.expression)]
        except (pyarrow.ArrowException, ValueError, TypeError):
            return list(range(len(facts)))  # nothing that Arrow can judge

    def keys(self, known: Sequence[str]) -> list[str]:
        """Those of some keys of which rows may pass."""
        if not self.names("key"):
            return list(known)
        fresh = [key for key in known if key not in self._keys]
        field = pyarrow.dataset.field("key")
        kept = {fresh[place] for place in self.admitted([field == text(key) for key in fresh])} if fresh else set()
        self._keys.update((key, key in kept) for key in fresh)
        return [key for key in known if self._keys[key]]

    @functools.cached_property
    def steps(self) -> tuple[int, int] | None:
        """The smallest and the largest step of which rows may pass; None: there is none."""
        if not self.names("step"):
            return 0, STEP_MAX
        step = pyarrow.dataset.field("step")
        if not self.admitted([(step >= 0) & (step <= STEP_MAX)]):
            return None
        low = _first(lambda at: bool(self.admitted([(step >= 0) & (step <= at)])), STEP_MAX)
        behind = _first(lambda at: not self.admitted([(step >= at) & (step <= STEP_MAX)]), STEP_MAX + 1)
        return low, max(low, behind - 1)


def _first(holds: Any, end: int) -> int:
    """The smallest number up to `end` for which something holds that holds for all larger ones too."""
    low = 0
    while low < end:
        middle = (low + end) // 2
        if holds(middle):
            end = middle
        else:
            low = middle + 1
    return low


@functools.cache
def _form() -> tuple[Any, Any]:
    return pyarrow.dataset.IpcFileFormat(), pyarrow.fs.LocalFileSystem()


def text(value: str) -> str:
    """A text as Arrow can hold it: a lone surrogate, which only hostile bytes have, becomes `?`."""
    return value.encode("utf-8", "replace").decode()
