"""Where two runs part: the first step at which a series that both have holds different values.

Two series are walked side by side, piece by piece in order of steps (`sdk.reader.pieces`), and no further than to the first
difference. Of pieces that stand on the disk byte for byte alike nothing is decoded. Memory holds a piece of each, and of rows that
are no columns yet what they hold of the next keys.

Values are the same where their bits are, and a NaN is like any other NaN; so 0.0 and -0.0 differ. An integer is the same as the float of
exactly its value, and `Divergence.kinds` tells. Beside that a tolerance may be asked for, relative to the larger of the two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from ..errors import StoreError
from ..reader.about import TRIES_MAX
from ..reader.pieces import Piece, Together, Values, are_stored_alike, looked_at, pieces_of
from ..reader.plain import to_json
from ..reader.scan import Gone

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..reader import Run

# Limits: of rows that are no columns yet so many keys are decoded at a time, and so many values of them kept: 60 MB.
_TOGETHER_KEYS, _TOGETHER_VALUES_MAX = 64, 1_000_000
# Beyond it a float does not hold every integer.
_EXACT_MAX = 2.0**53


class Parting(NamedTuple):
    """A step at which both have a value, and the two values."""

    step: int
    one: Any
    other: Any


class Divergence(NamedTuple):
    """How one series differs between two runs.

    Attributes:
        first: Where their values differ first; None: nowhere.
        beyond: Where they differ first by more than the tolerance; None where none was asked for, or nowhere.
        lone: The first step, before `first` (where a tolerance was asked for, before `beyond`), at which only one of them has a value;
            None: there is none.
        lone_in: Which one has it, 0 or 1.
        shared: How many steps of both were compared: all of them, or those up to where it was decided.
        last_shared: The last of these; None: they share none.
        kinds: What their values are: "float64", "int64", "bool", "object", several joined by a comma.
        ends: The last step and value of each; None of one without values.
    """

    key: str
    first: Parting | None
    beyond: Parting | None
    lone: int | None
    lone_in: int | None
    shared: int
    last_shared: int | None
    kinds: tuple[str, str]
    ends: tuple[tuple[int, Any] | None, tuple[int, Any] | None]

    @property
    def is_same(self) -> bool:
        """Whether both hold the same values at the same steps."""
        return self.first is None and self.lone is None

    @property
    def is_cut(self) -> bool:
        """Whether the only difference is that one of them ends before the other."""
        return self.first is None and self.lone is not None and self.lone > (self.last_shared or -1)

    def differs_before(self, step: int, *, tolerant: bool = False) -> bool:
        """Whether there is a difference at a step below that one: of values (beyond the tolerance), or of steps."""
        parted = self.beyond if tolerant else self.first
        return (parted is not None and parted.step < step) or (self.lone is not None and self.lone < step)


def first_difference(
    one: Run, other: Run, key: str, *, tolerance: float | None = None, before: int | None = None,
    moved: Callable[[int], None] = lambda count: None,
) -> Divergence | None:  # fmt: skip
    """How a series differs between two runs, two objects; None where one of them does not have it.

    Args:
        tolerance: See `Divergence.beyond`. 1e-6: a millionth of the larger one.
        before: Steps from this one on are not looked at.
        moved: Hears how many values of each were compared.

    Raises:
        StoreError: Segments keep disappearing.
    """
    found = differences(one, [other], [key], tolerance=tolerance, before=before, moved=moved)
    return next(found)[0]


def differences(
    one: Run, others: Sequence[Run], keys: Iterable[str], *, tolerance: float | None = None, before: int | None = None,
    moved: Callable[[int], None] = lambda count: None,
) -> Iterator[list[Divergence | None]]:  # fmt: skip
    """For each key how it differs between the first run and each other one, as it is found out. All are looked at once, in the beginning:
    of runs that go on nothing later counts.

    Args:
        tolerance, before, moved: As in `first_difference`.
    """  # fmt: skip
    together: dict[str, Together] = {}

    def side(run: Run, key: str) -> _Side:
        return _Side(pieces_of(run, key, together.get(run.directory)), before)

    def difference(key: str, other: Run) -> Divergence | None:
        for _ in range(TRIES_MAX):
            try:
                sides = side(one, key), side(other, key)
                return _Walk(key, sides, tolerance, moved).run() if all(side.holds for side in sides) else None
            except Gone:
                together.clear()
                one.refresh()
                other.refresh()
        raise StoreError(f"segments of run {one.id!r} or {other.id!r} keep disappearing")

    with looked_at(one, *others):
        wanted = list(keys)
        for place, key in enumerate(wanted):
            if place % _TOGETHER_KEYS == 0:
                batch = wanted[place : place + _TOGETHER_KEYS]
                values_max = _TOGETHER_VALUES_MAX // (1 + len(others)) if len(batch) > 1 else 0
                together = {run.directory: Together(batch, values_max) for run in (one, *others)}
            yield [difference(key, other) for other in others]


def first_step(run: Run, key: str) -> int | None:
    """The first step at which a series has a value; None where it has none.

    Raises:
        StoreError: Segments keep disappearing.
    """
    for _ in range(TRIES_MAX):
        with contextlib.suppress(Gone), looked_at(run):
            return next(
                (int(found.step[0]) for piece in pieces_of(run, key) if len((found := piece.read()).step)), None
            )
    raise StoreError(f"segments of run {run.id!r} keep disappearing")


class _Side:
    """One of the two series: pieces to come, and what was read and not compared yet."""

    def __init__(self, pieces: list[Piece], before: int | None) -> None:
        self.holds = bool(pieces)
        self._before = before
        self._all_last = pieces[-3:]
        self._left = [piece for piece in reversed(pieces) if before is None or piece.low < before]
        self.values: Values | None = None
        self.kinds: dict[str, None] = {}

    @property
    def next(self) -> Piece | None:
        """The piece that comes next and lies wholly inside of what is asked for, where nothing else is waiting."""
        if self.values is not None or not self._left:
            return None
        piece = self._left[-1]
        return piece if self._before is None or piece.high < self._before else None

    def skip(self) -> None:
        """Takes the next piece for compared."""
        piece = self._left.pop()
        self.kinds.update(dict.fromkeys(_KINDS[group.kind(piece.key)] for group in piece.groups))

    def fill(self) -> bool:
        """Reads on where nothing is waiting; whether there is something then."""
        while self.values is None and self._left:
            found = self._left.pop().read()
            count = len(found.step) if self._before is None else int(found.step.searchsorted(self._before))
            if count:
                self.values = Values(found.step[:count], found.value[:count])
                self.kinds[str(found.value.dtype)] = None
        return self.values is not None

    def take(self, top: int) -> Values:
        """What is waiting up to a step, this one included."""
        assert self.values is not None
        step, value = self.values
        count = int(step.searchsorted(top, side="right"))
        self.values = Values(step[count:], value[count:]) if count < len(step) else None
        return Values(step[:count], value[:count])

    def end(self) -> tuple[int, Any] | None:
        for piece in reversed(self._all_last):
            step, value = piece.read()
            if len(step):
                return int(step[-1]), _plain(value[-1])
        return None


_KINDS = {"float": "float64", "int": "int64", "uint": "uint64", "bool": "bool"}


class _Walk:
    """Both series from the first step to where all is known."""

    def __init__(
        self, key: str, sides: tuple[_Side, _Side], tolerance: float | None, moved: Callable[[int], None]
    ) -> None:
        self._key = key
        self._sides = sides
        self._tolerance = tolerance
        self._moved = moved
        self._first: Parting | None = None
        self._beyond: Parting | None = None
        self._lone: tuple[int, int] | None = None
        self._shared = 0
        self._last_shared: int | None = None

    def run(self) -> Divergence:
        one, other = self._sides
        while not self._is_decided:
            if self._skip_alike(one, other):
                continue
            is_there = one.fill(), other.fill()
            if not all(is_there):
                for place, side in enumerate(self._sides):
                    if side.values is not None:
                        self._note_lone(int(side.values.step[0]), place)
                break
            assert one.values is not None
            assert other.values is not None
            top = min(int(one.values.step[-1]), int(other.values.step[-1]))
            self._compare(one.take(top), other.take(top))
        lone, lone_in = self._lone or (None, None)
        # What a tolerance allows does not hide that one of them has a step alone.
        parted = self._first if self._tolerance is None else self._beyond
        if parted is not None and lone is not None and lone > parted.step:
            lone = lone_in = None
        kinds = ", ".join(one.kinds), ", ".join(other.kinds)
        ends = one.end(), other.end()
        return Divergence(
            self._key, self._first, self._beyond, lone, lone_in, self._shared, self._last_shared, kinds, ends
        )

    @property
    def _is_decided(self) -> bool:
        return self._first is not None and (self._tolerance is None or self._beyond is not None)

    def _skip_alike(self, one: _Side, other: _Side) -> bool:
        """Whether both go on with a piece that is stored alike; then it is behind us."""
        mine, theirs = one.next, other.next
        if mine is None or theirs is None or (mine.low, mine.high) != (theirs.low, theirs.high):
            return False
        if not are_stored_alike(mine, theirs):
            return False
        count = sum(map(len, mine.groups))
        one.skip()
        other.skip()
        self._shared, self._last_shared = self._shared + count, mine.high
        self._moved(count)
        return True

    def _note_lone(self, step: int, place: int) -> None:
        if self._lone is None:
            self._lone = step, place

    def _compare(self, one: Values, other: Values) -> None:
        self._moved(max(len(one.step), len(other.step)))
        if len(one.step) != len(other.step) or not (one.step == other.step).all():
            one, other = self._both(one, other)
        if not len(one.step):
            return
        self._first = self._first or self._parting(one, other, same(one.value, other.value))
        if self._tolerance is not None and self._beyond is None:
            self._beyond = self._parting(one, other, alike(one.value, other.value, self._tolerance))
        parted = (self._first if self._tolerance is None else self._beyond) if self._is_decided else None
        count = len(one.step) if parted is None else int(one.step.searchsorted(parted.step)) + 1
        self._shared, self._last_shared = self._shared + count, int(one.step[count - 1])

    def _both(self, one: Values, other: Values) -> tuple[Values, Values]:
        """What both have; the first step that only one has is noted."""
        step, mine, theirs = numpy.intersect1d(one.step, other.step, assume_unique=True, return_indices=True)
        alone = [numpy.setdiff1d(side.step, step, assume_unique=True)[:1].tolist() for side in (one, other)]
        for lone, place in sorted((found[0], place) for place, found in enumerate(alone) if found):
            self._note_lone(int(lone), place)
        return Values(step, one.value[mine]), Values(step, other.value[theirs])

    @staticmethod
    def _parting(one: Values, other: Values, is_same: NDArray[numpy.bool_]) -> Parting | None:
        if is_same.all():
            return None
        at = int(is_same.argmin())
        return Parting(int(one.step[at]), _plain(one.value[at]), _plain(other.value[at]))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, numpy.generic) else value


def same(one: NDArray[Any], other: NDArray[Any]) -> NDArray[numpy.bool_]:
    """bool[n]: where the values are the same."""
    kinds = {one.dtype.kind, other.dtype.kind}
    if kinds == {"f"}:
        bits = numpy.asarray(one.view(numpy.int64) == other.view(numpy.int64))
        return bits if bits.all() else bits | (numpy.isnan(one) & numpy.isnan(other))
    if one.dtype == other.dtype and kinds <= {"i", "u", "b"}:
        return numpy.asarray(one == other)
    if kinds <= {"i", "u", "f"}:
        found = numpy.asarray(one.astype(numpy.float64) == other.astype(numpy.float64))
        for at in numpy.flatnonzero(found & (numpy.abs(one.astype(numpy.float64)) >= _EXACT_MAX)).tolist():
            found[at] = one[at].item() == other[at].item()  # Python compares an integer with a float exactly
        return found
    return numpy.array([_same_object(a, b) for a, b in zip(one.tolist(), other.tolist())], bool)


def _same_object(one: Any, other: Any) -> bool:
    """Of texts, lists and the like; of media what they say of themselves, the digest of their bytes among it."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (str, int)) and isinstance(other, (str, int, float)):
        return one == other
    if isinstance(one, float) and isinstance(other, int):
        return one == other
    return to_json(one) == to_json(other)


def alike(one: NDArray[Any], other: NDArray[Any], tolerance: float) -> NDArray[numpy.bool_]:
    """bool[n]: where they are the same, or numbers no further apart than that part of the larger one."""
    found = same(one, other)
    if found.all():
        return found
    if {one.dtype.kind, other.dtype.kind} <= {"i", "u", "f"}:
        return numpy.asarray(found | _near(one.astype(numpy.float64), other.astype(numpy.float64), tolerance))
    kinds = (float, int)  # what is no number among them is left alone, a truth value too
    is_number = numpy.array([type(a) in kinds and type(b) in kinds for a, b in zip(one.tolist(), other.tolist())], bool)
    a, b = (side[is_number].astype(numpy.float64) for side in (one, other))
    found[is_number] |= _near(a, b, tolerance)
    return found


def _near(a: NDArray[numpy.float64], b: NDArray[numpy.float64], tolerance: float) -> NDArray[numpy.bool_]:
    with numpy.errstate(over="ignore", invalid="ignore"):
        # Halves, whose difference is finite; an infinity is near to nothing but itself.
        is_near = numpy.abs(a / 2 - b / 2) <= tolerance * numpy.maximum(numpy.abs(a / 2), numpy.abs(b / 2))
        return numpy.asarray(is_near & numpy.isfinite(a) & numpy.isfinite(b) | (a == b))
