"""Who saw what was logged and what was claimed of it, and compares that with what a store holds.

    witness = Witness()
    witness.logged(RUN, STREAM, 40)                      # rows 1 to 40 as `tests.serving.rows` makes them
    witness.claimed(RUN, STREAM, written=30, synced=10)
    witness.check(look(path, witness.names()), "synced")

A claim counts from the moment it was made: `at` is whatever the witness's clock says, for a recorded disk the number of
operations that were done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from sdk.errors import NotFoundError
from sdk.files import DISK, Files
from sdk.ids import hex_u64
from sdk.reader.run import Run
from sdk.reader.store import Store

WRITTEN, SYNCED = "written", "synced"
Name = tuple[str, int]


class Claim(NamedTuple):
    """Somebody said at `at` that of a stream of a run everything up to `upto` was logged, written or synced."""

    at: int
    name: Name
    word: str
    upto: int


class Found(NamedTuple):
    """What a reader finds of a stream: its sequences, and of each reported gap (count, lowest step, highest step)."""

    sequences: frozenset[int]
    gaps: tuple[tuple[int, int, int], ...]

    @property
    def told(self) -> set[int]:
        """The sequences that may be meant by the gaps: those of their steps."""
        return {step + 1 for _, low, high in self.gaps for step in range(low, high + 1)}

    @property
    def last(self) -> int:
        return max(self.sequences, default=0)


NOTHING = Found(frozenset(), ())


class Witness:
    """What was logged and claimed, in order of time."""

    def __init__(self, clock: Callable[[], int] = lambda: 0) -> None:
        self._clock = clock
        self._claims: list[Claim] = []

    def names(self) -> list[Name]:
        return sorted({claim.name for claim in self._claims})

    def logged(self, run: str, stream: int, upto: int) -> None:
        self._claims.append(Claim(self._clock(), (run, stream), "logged", upto))

    def claimed(self, run: str, stream: int, *, written: int, synced: int) -> None:
        self._claims.append(Claim(self._clock(), (run, stream), WRITTEN, written))
        self._claims.append(Claim(self._clock(), (run, stream), SYNCED, synced))

    def upto(self, name: Name, word: str, at: int | None = None) -> int:
        """The most that was said until `at` (None: ever)."""
        said = (c.upto for c in self._claims if c.name == name and c.word == word and (at is None or c.at <= at))
        return max(said, default=0)

    def check(
        self, found: dict[Name, Found], word: str, at: int | None = None, *, or_told: bool = False
    ) -> tuple[int, int]:
        """Compares what a store holds with what had been said until `at`.

        Args:
            or_told: What was claimed may also be in a reported gap.

        Returns:
            (records of which `word` had been said, records in gaps).

        Raises:
            AssertionError: A claimed record is not there, a hole is not reported, or one is that is none.
        """
        claimed = lost = 0
        for name in self.names():
            held = found.get(name, NOTHING)
            upto = self.upto(name, word, at)
            missing = sorted(set(range(1, upto + 1)) - held.sequences - (held.told if or_told else set()))
            assert not missing, f"{name}: {word} up to {upto} was claimed; {missing} are not there; gaps {held.gaps}"
            claimed += upto
            lost += self._check_gaps(name, held, self.upto(name, "logged", at))
        return claimed, lost

    def _check_gaps(self, name: Name, held: Found, logged: int) -> int:
        """Rows are logged one for each step: the step is one less than the sequence."""
        assert held.last <= logged, f"{name}: {held.last} is there, {logged} were logged"
        holes = set(range(1, held.last + 1)) - held.sequences
        told = sum(count for count, _, _ in held.gaps)
        # A gap at the end is of records that a CHECKPOINT claims and nothing holds.
        assert len(holes) <= told <= len(holes) + logged - held.last, (
            f"{name}: {sorted(holes)} are missing below {held.last}, reported are {held.gaps}"
        )
        for sequence in holes:
            assert any(low <= sequence - 1 <= high for _, low, high in held.gaps), (
                f"{name}: {sequence} is missing, and is in none of {held.gaps}"
            )
        return told


def look(path: str, names: Iterable[Name], files: Files = DISK) -> dict[Name, Found]:
    """What a reader finds of these streams. Values that were never logged are an AssertionError."""
    store = Store(path, files=files, alive=lambda stream: False)
    found: dict[Name, Found] = {}
    runs: dict[str, Run] = {}
    for run_id, stream in names:
        try:
            run = runs.get(run_id) or runs.setdefault(run_id, store.run(run_id))
            found[run_id, stream] = Found(_sequences(run, stream), _gaps(run, stream))
        except NotFoundError:
            found[run_id, stream] = NOTHING
    return found


def _sequences(run: Run, stream: int) -> frozenset[int]:
    sequences = []
    for row in run.rows(stream=stream):
        sequence = row["_step"] + 1
        assert row["loss"] == sequence / 4, f"step {row['_step']} holds {row}, which was never logged"
        sequences.append(sequence)
    assert len(sequences) == len(set(sequences)), f"steps are there twice: {sequences}"
    return frozenset(sequences)


def _gaps(run: Run, stream: int) -> tuple[tuple[int, int, int], ...]:
    own = [gap for gap in run.gaps if gap.stream == hex_u64(stream)]
    return tuple((gap.count, gap.step_min, gap.step_max) for gap in own)
