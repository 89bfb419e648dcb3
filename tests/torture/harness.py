"""What every torture shares: how cases are numbered, counted, resumed, repeated and reported.

A torture is one way of breaking things. It is a generator that takes numbers of cases and yields a `Result` for each,
in the same order; an exception is a broken promise. A case's number alone decides what is broken, so that one that
failed can be run again by itself.

    @torture(full=65_537, every=7)
    def segment_cut(cases: Iterable[int]) -> Iterator[Result]:
        '''A segment cut at a byte: what was whole is read, the rest is reported.'''
        for case in cases:
            ...
            yield Result(case, accepted=900, lost=3)

Two runners call them: `test_torture.py` with the counts of the default suite, and `scripts/torture.sh` (`__main__.py`),
which prints a line for each and goes on where it was stopped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Union

Body = Callable[[Iterable[int]], "Iterator[Result]"]
Count = Union[int, Callable[[], int]]


@dataclass(frozen=True)
class Result:
    """What became of one case.

    Attributes:
        accepted: Records that `log()` had accepted (or that were in the file) when things were broken.
        lost: How many of them are not there afterwards. Each is in a gap that the reader reports; a loss that nobody
            reports is an AssertionError of the torture, never a number.
        refused: Calls that were not accepted, each counted in a gap: the torture left no room for them.
    """

    case: int
    accepted: int = 0
    lost: int = 0
    refused: int = 0


@dataclass(frozen=True)
class Torture:
    """One way of breaking things.

    Attributes:
        name: As on the command line, from the function's name.
        says: The first line of its docstring.
        body: The generator.
        full: How many cases there are; a function where counting them takes work.
        default: How many of them the default suite runs: the first ones, or with `every` one in so many.
        alone, beside: As `torture` says.
    """

    name: str
    says: str
    body: Body
    full: Count
    default: int | None
    every: int
    alone: bool
    beside: bool

    def cases(self, *, full: bool) -> range:
        """The numbers of the cases to run."""
        count = self.full() if callable(self.full) else self.full
        if full:
            return range(count)
        if self.default is not None:
            return range(min(self.default, count))
        return range(0, count, self.every)


TORTURES: dict[str, Torture] = {}


def torture(
    *, full: Count, default: int | None = None, every: int = 1, alone: bool = False, beside: bool = False
) -> Callable[[Body], Body]:
    """Registers a torture.

    Args:
        full: Cases of `torture.sh --full`.
        default: Cases of the default suite; None: all of them, or one in `every`.
        alone: Measures time: never run while anything else runs.
        beside: Measures no time and fills no disk: it runs beside the tests of real processes (tests/conftest.py).
    """

    def register(body: Body) -> Body:
        name = body.__name__.replace("_", "-")  # type: ignore[attr-defined]
        assert name not in TORTURES, f"two tortures are called {name}"
        says = (body.__doc__ or "").strip().partition("\n")[0]
        TORTURES[name] = Torture(name, says, body, full, default, every, alone, beside)
        return body

    return register


def chance(name: str, case: int) -> random.Random:
    """The random source of one case: the same at every run."""
    return random.Random(f"{name}:{case}")


@dataclass
class Tally:
    """What a torture's cases came to so far."""

    cases: int = 0
    accepted: int = 0
    lost: int = 0
    refused: int = 0
    seconds: float = 0.0
    resumed_at: int | None = field(default=None, compare=False)

    def add(self, result: Result) -> None:
        self.cases += 1
        self.accepted += result.accepted
        self.lost += result.lost
        self.refused += result.refused


class Missing(Exception):
    """This machine cannot run a case, and why: it is counted as skipped."""


class Broken(Exception):
    """A case broke its promise; its own exception is the cause."""

    def __init__(self, name: str, case: int) -> None:
        super().__init__(f"{name}, case {case}. Again: bash scripts/torture.sh --only {name} --case {case}")
        self.case = case


def run(
    torture: Torture, cases: Iterable[int], tally: Tally, note: Callable[[int, Tally], None] = lambda case, tally: None
) -> Tally:
    """Runs `cases` and adds them to `tally`; `note` hears of each that is done.

    Raises:
        Broken: At the first case that breaks a promise.
        Missing: At the first case that this machine cannot run.
    """
    given = [-1]

    def numbered() -> Iterator[int]:
        for case in cases:
            given[0] = case
            yield case

    begun, before = time.monotonic(), tally.seconds
    results = torture.body(numbered())
    while True:
        try:
            result = next(results, None)
        except Missing:
            raise
        except Exception as error:
            # One that looks at many cases together says which of them it was.
            shown = getattr(error, "case", None)
            raise Broken(torture.name, given[0] if shown is None else shown) from error
        tally.seconds = before + time.monotonic() - begun
        if result is None:
            return tally
        tally.add(result)
        note(result.case, tally)
