"""sdk.query.divergence: the first step at which two runs differ, however each of them is stored."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest

from sdk.errors import StoreError
from sdk.query import divergence
from sdk.query.divergence import Divergence, alike, differences, first_difference, same
from sdk.reader import Run
from sdk.reader.pieces import Together, looked_at, pieces_of
from sdk.reader.scan import Gone
from sdk.segment.naming import run_path
from tests.builders import RunBuilder, compact, make_store

SEED = 20261121
NAN = float("nan")
_numbers = itertools.count()


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def made(store: str, run_id: str, values: Sequence[Any] | dict[int, Any], *, window: int = 0, key: str = "loss") -> Run:
    """A run of these values, by step; with `window` as columns of so many rows."""
    builder = RunBuilder(store, run_id)
    main = builder.stream()
    for step, value in values.items() if isinstance(values, dict) else enumerate(values):
        main.log({key: value}, step=step, commit=True)
    main.finish()
    builder.seal()
    if window:
        compact(builder, window=window)
    return Run(run_path(store, run_id))


def difference(store: str, one: Any, other: Any, *, windows: tuple[int, int] = (0, 0), **more: Any) -> Divergence:
    runs = [
        made(store, f"r{next(_numbers)}", values, window=windows[place]) for place, values in enumerate((one, other))
    ]
    found = first_difference(*runs, "loss", **more)
    assert found is not None
    return found


class TestValues:
    """Which values are the same."""

    @pytest.mark.parametrize("windows", [(0, 0), (4, 4), (4, 7), (0, 5)])
    def test_the_first_step_of_another_value(self, store: str, windows: tuple[int, int]) -> None:
        """With both values, and both last ones; whether rows or columns hold them."""
        values = [float(step) for step in range(20)]
        found = difference(store, values, [*values[:13], 13.5, *values[14:]], windows=windows)
        assert found.first == (13, 13.0, 13.5)
        assert (found.shared, found.last_shared, found.lone) == (14, 13, None)
        assert found.ends == ((19, 19.0), (19, 19.0))
        assert not found.is_same
        assert found.differs_before(14)
        assert not found.differs_before(13)

    @pytest.mark.parametrize("windows", [(0, 0), (4, 4), (4, 7)])
    def test_the_same(self, store: str, windows: tuple[int, int]) -> None:
        """All of them were compared; NaN and infinities are like themselves."""
        values = [0.1, NAN, math.inf, -math.inf, *map(float, range(10))]
        found = difference(store, values, values, windows=windows)
        assert found.is_same
        assert (found.shared, found.last_shared, found.kinds) == (14, 13, ("float64", "float64"))

    @pytest.mark.parametrize(
        ("one", "other", "is_same"),
        [
            (0.1, 0.1, True),
            (0.1, 0.1 + 1e-18, True),
            (0.1, math.nextafter(0.1, 1), False),
            (0.0, -0.0, False),
            (NAN, -NAN, True),
            (NAN, 0.0, False),
            (math.inf, -math.inf, False),
            (1, 1.0, True),
            (2**53 + 1, float(2**53), False),
            (2**62, float(2**62), True),
            (2**63, 2**63 + 1, False),
            (-1, 2**64 - 1, False),
            (True, True, True),
            (True, False, False),
            (True, 1, False),
            ("a", "a", True),
            ("a", "b", False),
            ([1, 2], [1, 2], True),
            ([1, NAN], [1, NAN], True),
            ([1, 2], [1, 3], False),
            ("1", 1, False),
        ],
    )
    def test_one_value(self, store: str, one: Any, other: Any, is_same: bool) -> None:
        """Bits decide between floats, the number between an integer and a float, kind and value between all others."""
        assert difference(store, [one], [other]).is_same is is_same

    def test_kinds_are_told(self, store: str) -> None:
        """Integers equal to floats are the same, and it can be seen that they are integers."""
        assert difference(store, [1, 2], [1.0, 2.0]).kinds == ("int64", "float64")
        assert difference(store, [1, 2.5], [1.0, 2.5], windows=(0, 1)).kinds == ("float64", "float64")

    def test_a_tolerance(self, store: str) -> None:
        """Beside the first other bit it says where they are further apart than that, relative to the larger one."""
        values = [100.0] * 10
        found = difference(store, values, [100.0, 100.0, 100.05, 100.1, 101.0, 150, NAN, *values[7:]], tolerance=0.005)
        assert found.first == (2, 100.0, 100.05)
        assert found.beyond == (4, 100.0, 101.0)
        assert found.differs_before(3)
        assert not found.differs_before(3, tolerant=True)

    def test_a_tolerance_hides_no_missing_step(self, store: str) -> None:
        """A first difference within it is none, so a step that only one of them has behind that still counts."""
        found = difference(store, [1.0] * 10, [1.0, 1.0000001, *[1.0] * 4], tolerance=1e-3)
        assert (found.first and found.first.step, found.beyond, found.lone, found.lone_in) == (1, None, 6, 0)
        assert found.differs_before(100, tolerant=True)
        assert not found.differs_before(6, tolerant=True)

    def test_a_tolerance_among_texts(self, store: str) -> None:
        """Numbers of a series that holds other values as well are held against it too; a truth value is no number."""
        found = difference(
            store, ["on", 1.0, 2**64 - 1, 7], ["on", 1.0001, 1.8446744073709552e19, True], tolerance=1e-2
        )
        assert (found.first and found.first.step, found.beyond) == (1, (3, 7, True))
        assert not alike(numpy.array([True]), numpy.array([1]), 0.5).any()

    @pytest.mark.parametrize(
        ("one", "other", "is_alike"),
        [(1e308, -1e308, False), (math.inf, 1.0, False), (math.inf, math.inf, True), (NAN, NAN, True), (NAN, 1.0, False),
         (0.0, -0.0, True), (0.0, 1e-9, False), (1e308, 1.0000000001e308, True), (-5.0, -5.0000000001, True)],
    )  # fmt: skip
    def test_what_is_within_a_tolerance(self, one: float, other: float, is_alike: bool) -> None:
        """Infinities are near to nothing but themselves, and nothing overflows."""
        assert alike(numpy.array([one]), numpy.array([other]), 1e-6).tolist() == [is_alike]
        assert alike(numpy.array([other]), numpy.array([one]), 1e-6).tolist() == [is_alike]

    def test_arrays_of_every_kind_can_be_compared(self) -> None:
        """Whatever two dtypes meet, nothing raises, and a value is the same as itself."""
        arrays = [
            numpy.array([1, 2]), numpy.array([1, 2], numpy.uint64), numpy.array([1.0, NAN]), numpy.array([True, False]),
            numpy.array(["a", None], object), numpy.array([[1], {"b": 2}], object),
        ]  # fmt: skip
        for one in arrays:
            for other in arrays:
                assert same(one, other).dtype == bool
                assert (same(one, other) == same(other, one)).all()
            assert same(one, one).all()


class TestSteps:
    """Which steps only one of them has."""

    def test_one_ends_before(self, store: str) -> None:
        """That is no difference of values; the step after which only one goes on is told."""
        found = difference(store, [1.0] * 10, [1.0] * 7, windows=(3, 3))
        assert found.first is None
        assert found.is_cut
        assert (found.lone, found.lone_in, found.last_shared, found.shared) == (7, 0, 6, 7)
        assert found.ends == ((9, 1.0), (6, 1.0))
        assert found.differs_before(8)
        assert not found.differs_before(7)

    def test_steps_between(self, store: str) -> None:
        """A step that one leaves out is told where nothing differed before; the others are compared."""
        one, other = {0: 1.0, 5: 2.0, 10: 3.0}, {0: 1.0, 4: 9.0, 5: 2.0, 10: 3.0}
        found = difference(store, one, other)
        assert (found.first, found.lone, found.lone_in, found.shared) == (None, 4, 1, 3)
        assert not found.is_cut
        assert not found.is_same
        assert difference(store, {0: 1.0, 2: 1.0}, {0: 2.0, 3: 1.0}).lone is None

    def test_no_step_in_common(self, store: str) -> None:
        """Nothing was compared, and the first of all steps is told."""
        found = difference(store, {1: 1.0, 3: 1.0}, {2: 1.0, 4: 1.0})
        assert (found.first, found.lone, found.lone_in, found.shared, found.last_shared) == (None, 1, 0, 0, None)

    @pytest.mark.parametrize("windows", [(0, 0), (4, 4), (3, 7)])
    def test_before_a_step(self, store: str, windows: tuple[int, int]) -> None:
        """What comes from there on is not looked at."""
        values = [0.0] * 20
        other = [*values[:10], 1.0, *values[11:]]
        runs = [made(store, name, one, window=size) for name, one, size in zip("ab", (values, other), windows)]
        for before, first in [(10, None), (11, 10)]:
            found = first_difference(*runs, "loss", before=before)
            assert found is not None
            assert (found.first and found.first.step) == first
            assert found.lone is None

    def test_a_series_that_one_does_not_have(self, store: str) -> None:
        """There is nothing to say."""
        runs = made(store, "a", [1.0]), made(store, "b", [1.0], key="other")
        assert first_difference(*runs, "loss") is None
        assert first_difference(*reversed(runs), "loss") is None


class TestStorage:
    """However it is stored, it is what `Run.series` gives."""

    def test_by_chance(self, store: str) -> None:
        """Runs with late rows, resumes, holes and windows of any size: the first difference is that of the whole series."""
        source = random.Random(SEED)
        for number in range(25):
            runs = [
                self._by_chance(store, f"{number}-{place}", random.Random(source.random() * 3 // 1)) for place in (0, 1)
            ]
            one, other = (run.series("loss") for run in runs)
            shared, mine, theirs = numpy.intersect1d(one.step, other.step, return_indices=True)
            differs = numpy.flatnonzero(one.value[mine] != other.value[theirs])
            found = first_difference(*runs, "loss")
            assert found is not None
            expected = int(shared[differs[0]]) if len(differs) else None
            assert (found.first and found.first.step) == expected, (SEED, number)
            alone = numpy.setxor1d(one.step, other.step)
            before = alone[alone < expected] if expected is not None else alone
            assert found.lone == (int(before[0]) if len(before) else None), (SEED, number)

    def _by_chance(self, store: str, run_id: str, source: random.Random) -> Run:
        """The same rows for the same state of `source`, cut and stored in another way each time."""
        how = random.Random(f"{run_id}{SEED}")
        builder = RunBuilder(store, run_id)
        main = builder.stream()
        before = None
        for attempt in range(2):
            for _ in range(source.randint(1, 60)):
                if source.random() < 0.1:
                    main.log({"loss": source.random()}, step=max(main.step - source.randint(1, 5), 0))
                elif source.random() < 0.2:
                    main.log({"other": 1.0})
                else:
                    main.log({"loss": source.random()})
                if how.random() < 0.1:
                    builder.flush()
            if attempt == 0 and source.random() < 0.5:
                before, first = main, max(main.step - 5, 0)
                main = builder.stream(continues=before.hex, attempt=2, first_step=first)
                main.meta({"hide": {"attempt": 2, "from_step": first}})
                main.step = first
        if how.random() < 0.1:
            # At times one value is another one.
            main.log({"loss": how.random()}, step=main.step)
        builder.seal()
        if how.random() < 0.7:
            compact(builder, window=how.randint(1, 40))
        return Run(run_path(store, run_id))

    def test_what_stands_alike_on_the_disk_is_not_decoded(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of equal windows only bytes are compared; decoded are the one that differs, and the last, for its value."""
        values = [float(step) for step in range(1000)]
        runs = [made(store, "a", values, window=100), made(store, "b", [*values[:750], 0.5, *values[751:]], window=100)]
        decoded = []
        read = divergence.Piece.read
        monkeypatch.setattr(divergence.Piece, "read", lambda piece: decoded.append(piece.low) or read(piece))
        found = first_difference(*runs, "loss")
        assert found is not None
        assert found.first == (750, 750.0, 0.5)
        assert len(decoded) == 4
        assert {low // 100 for low in decoded} <= {6, 7, 9}

    def test_a_run_that_is_compacted_meanwhile(self, store: str) -> None:
        """Segments that were replaced since they were looked at are looked for again; the answer is the same."""
        values = [float(step) for step in range(100)]
        other = made(store, "b", [*values[:70], 0.5, *values[71:]])
        builder = RunBuilder(store, "a")
        main = builder.stream()
        for value in values:
            main.log({"loss": value, "lr": 0.1})
            builder.flush()
        main.finish()
        builder.seal()
        one = Run(run_path(store, "a"))
        found = divergence.differences(one, [other], ["lr", "loss"])
        assert next(found) == [None]
        one._scan.close()  # descriptors would keep the removed files alive
        compact(builder, window=30)
        (difference,) = next(found)
        assert difference is not None
        assert difference.first == (70, 70.0, 0.5)

    @pytest.mark.parametrize("values_max", [0, 30, 10_000])
    def test_many_keys(self, store: str, monkeypatch: pytest.MonkeyPatch, values_max: int) -> None:
        """Rows are decoded for several keys at once, as far as there is room; each key gets what it gets alone."""
        keys = [f"k{number}" for number in range(7)]
        runs = []
        for place, run_id in enumerate(("a", "b")):
            builder = RunBuilder(store, run_id)
            main = builder.stream()
            for step in range(40):
                # From one step on another value under each key.
                main.log({key: step * n + place * (step > 12 + n) for n, key in enumerate(keys)})
                if step in (11, 23):
                    builder.flush()
                if step == 17 and place:
                    builder.seal()
                    compact(builder)
            builder.close()
            runs.append(Run(run_path(store, run_id)))
        monkeypatch.setattr(divergence, "_TOGETHER_KEYS", 3)
        monkeypatch.setattr(divergence, "_TOGETHER_VALUES_MAX", values_max)
        found = [row[0] for row in differences(runs[0], runs[1:], keys)]
        assert found == [first_difference(*runs, key) for key in keys]
        assert [one and one.first and one.first.step for one in found] == [13 + n for n in range(7)]

    def test_a_run_that_never_stands_still(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """After some tries it is an error that says so."""
        runs = made(store, "a", [1.0]), made(store, "b", [1.0])

        def gone(run: Run, key: str, together: Together | None) -> list[Any]:
            raise Gone(key)

        monkeypatch.setattr(divergence, "pieces_of", gone)
        with pytest.raises(StoreError, match="keep disappearing"):
            first_difference(*runs, "loss")

    def test_pieces_do_not_overlap(self, store: str) -> None:
        """Each step is in one piece, and together they are the series."""
        run = self._by_chance(store, "a", random.Random(SEED))
        with looked_at(run):
            pieces = pieces_of(run, "loss")
            found = [piece.read() for piece in pieces]
        steps = numpy.concatenate([values.step for values in found])
        assert (numpy.diff(steps) > 0).all()
        assert steps.tolist() == run.series("loss").step.tolist()
        assert numpy.concatenate([values.value for values in found]).tolist() == run.series("loss").value.tolist()
        for piece, values in zip(pieces, found):
            assert piece.low <= values.step[0] <= values.step[-1] <= piece.high

    def test_damage_is_left_out(self, store: str) -> None:
        """A column that is damaged is not there in one run: the others are compared, and nothing raises."""
        values = [float(step) for step in range(100)]
        made(store, "a", values, window=50)
        run = made(store, "b", values, window=50)
        (path,) = Path(run.directory).glob("*.seg")
        data = bytearray(path.read_bytes())
        at = (
            data.index(numpy.arange(60.0, 61.0).tobytes())
            if numpy.arange(60.0, 61.0).tobytes() in data
            else len(data) // 2
        )
        data[at] ^= 0xFF
        path.write_bytes(bytes(data))
        runs = Run(run_path(store, "a")), Run(run_path(store, "b"))
        found = first_difference(*runs, "loss")
        assert found is None or found.first is None

    def test_epochs_can_be_compared(self, store: str) -> None:
        """What `define_metric(reduce=…)` makes is a series like any other."""
        runs = []
        for place in (0, 1):
            builder = RunBuilder(store, f"r{place}")
            main = builder.stream()
            main.meta({"metric": {"loss": {"reduce": "mean"}}})
            for step in range(40):
                main.log({"loss": float(step + 100 * place * (step > 25)), "epoch": step // 10})
            main.finish()
            builder.seal()
            runs.append(Run(run_path(store, f"r{place}")))
        found = first_difference(*runs, "loss_epoch")
        assert found is not None
        assert found.first is not None
        assert found.first.step == 29
