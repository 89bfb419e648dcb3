"""Rows with the keys that are made of others: `loss_step` beside each `loss`, `loss_epoch` at the last step of each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy

from ..arrays import distinct
from . import looks
from .epochs import Maker
from .join import STEP, TIMESTAMP, Selection
from .lanes import Lane
from .metrics import Made
from .parts import listed
from .scan import Scan
from .tables import read_cells

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Additions:
    """What is added to rows, as of the moment it was read.

    Attributes:
        wanted: The keys that the caller asked for; None: all.
        names: All keys that were logged.
        second: Second names by the key that was logged.
        epochs: The values of epochs, by key and step.
    """

    def __init__(self, wanted: frozenset[str] | None, makes: Mapping[str, Made], names: set[str]) -> None:
        self.wanted = wanted
        self.names = names
        self.makes = makes
        self.second = {made.base: key for key, made in makes.items() if not made.by_epoch}
        self.epochs: dict[str, dict[int, Any]] = {}

    def follow(self, before: Additions) -> None:
        """Takes over the epochs that were found before, behind which this was read."""
        for key, values in before.epochs.items():
            self.epochs[key] = {**values, **self.epochs.get(key, {})}

    def selection(self, selection: Selection) -> Selection:
        """The logged rows and keys that are needed."""
        if self.wanted is None:
            return selection
        if all(key in self.epochs for key in self.wanted):
            steps = self.steps()
            if selection.steps is not None:
                steps = steps[numpy.isin(steps, selection.steps)]
            selection = selection._replace(steps=steps)
        bases = {made.base for key, made in self.makes.items()}
        return selection._replace(keys=(self.wanted - self.makes.keys()) | bases)

    def steps(self) -> NDArray[numpy.int64]:
        """The steps at which a wanted epoch has its value."""
        found = [step for values in self.epochs.values() for step in values]
        return distinct(numpy.array(found, numpy.int64))

    def added(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows with what is made, and without what nobody asked for."""
        unwanted = frozenset(made.base for made in self.makes.values()) - (self.wanted or frozenset())
        for row in rows:
            for base, name in self.second.items():
                if base in row:
                    row[name] = row[base]
            for key, values in self.epochs.items():
                if row[STEP] in values:
                    row[key] = values[row[STEP]]
            if self.wanted is not None:
                for key in unwanted:
                    row.pop(key, None)
                if row.keys() <= _ALWAYS:
                    continue
            yield row


_ALWAYS = {STEP, TIMESTAMP}


def read_additions(
    scan: Scan, lanes: list[Lane], wanted: frozenset[str] | None, maker: Maker, known: Iterable[str] = ()
) -> Additions | None:
    """What is to be added to rows with some keys; None: nothing.

    Args:
        known: Keys that were logged below `maker.first_step`.
    """
    said = maker.definitions
    if not said.makes or (wanted is not None and not any(said.made(key) for key in wanted)):
        return None
    names = looks.keys_of(scan, lanes, first_step=maker.first_step).union(known)
    makes = said.made_of(names)
    if wanted is not None:
        makes = {key: made for key, made in makes.items() if key in wanted}
    if not makes:
        return None
    found = Additions(wanted, makes, names)
    epochs = [key for key, made in makes.items() if made.by_epoch]
    cells = read_cells(scan, lanes, epochs, maker.collect) if epochs else {}
    for key in epochs:
        values = cells.get(key)
        found.epochs[key] = dict(zip(values.spine.step.tolist(), listed(values.value))) if values is not None else {}
    return found
