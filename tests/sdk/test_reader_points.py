from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from sdk.errors import NotFoundError, UsageError
from sdk.files import DISK, File
from sdk.files.over import FileOver, FilesOver
from sdk.reader import Run, Store, open_store
from sdk.reader.points import POINTS_MIN, extremes
from sdk.reader.series import Series
from sdk.segment.format import ZONE_ROWS
from sdk.segment.naming import SegmentName
from tests import windows
from tests.builders import RunBuilder, StreamBuilder, make_run, make_store

ROWS = 3 * ZONE_ROWS
POINTS = 20


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def opened(store: str) -> Run:
    return open_store(store).run("a41f")


def long_run(store: str, arrays: dict[str, list[Any] | numpy.ndarray[Any, Any]], *, rows: int = ROWS) -> RunBuilder:
    """A run whose columns are these: a window for each `rows` rows, steps from 0, sequences from 2."""
    run = RunBuilder(store)
    main = run.stream()
    run.flush()
    writer = windows.begin(run.directory, SegmentName(0xC01, 0))
    count = len(next(iter(arrays.values())))
    for start in range(0, count, rows):
        sequences = range(start + 2, min(start + rows, count) + 2)
        values = {key: array[start : start + rows] for key, array in arrays.items()}
        block = [windows.group(sequences, values, steps=[one - 2 for one in sequences])]
        windows.append_window(writer, [block], (sequences[0], sequences[-1]), stream=main.id)
    windows.end(writer)
    main.records += [main.records[0]._replace(sequence=n) for n in range(2, count + 2)]  # those of the columns
    main.taken = len(main.records)
    main.step = count
    run.seal()
    return run


def noise(count: int, seed: int = 7) -> numpy.ndarray[Any, Any]:
    return numpy.random.default_rng(seed).normal(size=count)


class Reads(FilesOver):
    """A disk that counts the bytes that are read."""

    count = 0

    def open(self, path: str, *, write: bool = False) -> File:
        disk = self

        class Counting(FileOver):
            def read(self, offset: int, size: int) -> bytes:
                disk.count += size
                return super().read(offset, size)

        return Counting(super().open(path, write=write), self._asked)


def ends_and_extremes(series: Series) -> tuple[Any, ...]:
    value = series.value
    return (series.step[0], value[0], series.step[-1], value[-1], value.min(), value.max())


def is_part_of(points: Series, full: Series) -> bool:
    """Whether all points are values of the series, with their steps and times, in order and each once."""
    place = numpy.searchsorted(full.step, points.step)
    same = (full.step[place] == points.step) & (full.time[place] == points.time) & (full.value[place] == points.value)
    return bool(same.all()) and bool((points.step[1:] > points.step[:-1]).all())


def test_points_of_a_long_series_read_little(store: str) -> None:
    """Of compacted history the previews are read and two windows, not all; ends and extremes are those of all values."""
    values = noise(10 * ROWS)
    values[4 * ROWS + 77], values[5 * ROWS + 3] = 99.0, -99.0
    long_run(store, {"v": values, "w": noise(10 * ROWS, 8)})
    full = opened(store).series("v")
    assert (full.sample_of, len(full)) == (None, len(values))
    files = Reads(DISK)
    run = Store(store, files=files).run("a41f")
    before = files.count
    few = run.series("v", points=POINTS)
    read_for_points = files.count - before
    run.series("v")
    assert read_for_points < 0.5 * (files.count - before - read_for_points)
    assert (few.sample_of, run.damage) == (len(values), [])
    assert len(few) <= POINTS
    assert ends_and_extremes(few) == ends_and_extremes(full)
    assert is_part_of(few, full)
    assert f"{len(few)} of {len(values)} values" in repr(few)


@pytest.mark.parametrize("points", [POINTS_MIN, 21, 500, 1999])
def test_points_of_rows(store: str, points: int) -> None:
    """What was not compacted is reduced just the same."""
    values = noise(2000)
    make_run(store, "a41f", [{"v": float(value)} for value in values])
    full, few = opened(store).series("v"), opened(store).series("v", points=points)
    assert points * 0.5 < len(few) <= points
    assert ends_and_extremes(few) == ends_and_extremes(full)
    assert is_part_of(few, full)


@pytest.mark.parametrize("points", [5, 300])
def test_fewer_values_than_points(store: str, points: int) -> None:
    """Then all are given, NaN too, and it is no sample; nothing has to be installed, and texts are fine."""
    make_run(store, "a41f", [{"v": math.nan if n else 1.0, "s": "x"} for n in range(5)])
    points = max(points, POINTS_MIN)
    found = opened(store).series("v", points=points)
    assert (len(found), found.sample_of, numpy.isnan(found.value).sum()) == (5, None, 4)
    assert len(opened(store).series("s", points=points)) == 5


def late(run: RunBuilder, main: StreamBuilder) -> None:
    """A step in the middle is overwritten later: the largest value is not there any more."""
    main.log({"v": 0.0}, step=5 * ROWS + 3)


def taken_away(run: RunBuilder, main: StreamBuilder) -> None:
    main.log({"v": None}, step=5 * ROWS + 3)


def hidden(run: RunBuilder, main: StreamBuilder) -> None:
    """A resume hides the end, the largest value with it."""
    second = run.stream(continues=main.hex, attempt=2)
    second.meta({"hide": {"from_step": 5 * ROWS + 2}})
    second.log({"v": 0.25}, step=5 * ROWS + 2)


def hidden_before_columns(run: RunBuilder, main: StreamBuilder) -> None:
    """The same, and the second attempt goes on with columns of its own."""
    second = run.stream(continues=main.hex, attempt=2)
    second.meta({"hide": {"from_step": 5 * ROWS + 2}})
    run.seal()
    writer = windows.begin(run.directory, SegmentName(0xC02, 0))
    for start in range(8 * ROWS, 12 * ROWS, ROWS):
        sequences = range(start, start + ROWS)
        block = [windows.group(sequences, {"v": noise(ROWS, start)})]
        windows.append_window(writer, [block], (sequences[0], sequences[-1]), stream=second.id)
    windows.end(writer)


def other_kind(run: RunBuilder, main: StreamBuilder) -> None:
    """The tail, which is rows, holds integers and the key beside others."""
    for n in range(30):
        main.log({"v": n, "w": "x"})


def nothing(run: RunBuilder, main: StreamBuilder) -> None:
    """The tail does not hold the key."""
    main.log({"w": 1})


@pytest.mark.parametrize(
    "change", [late, taken_away, hidden, hidden_before_columns, other_kind, nothing], ids=lambda change: change.__name__
)
def test_previews_never_show_what_is_not_there(store: str, change: Callable[[RunBuilder, StreamBuilder], None]) -> None:
    """Whatever was overwritten, taken away or hidden is no point; ends and extremes are those of the series as it reads."""
    values = noise(10 * ROWS)
    # Of one zone: a preview tells only the largest.
    values[5 * ROWS + 1 : 5 * ROWS + 5] = 97.0, 50.0, 99.0, 98.0
    run = long_run(store, {"v": values})
    change(run, run.streams[0])
    run.seal()
    full, few = opened(store).series("v"), opened(store).series("v", points=POINTS)
    assert few.sample_of == len(full)
    assert ends_and_extremes(few) == ends_and_extremes(full)
    assert few.value.dtype == full.value.dtype
    assert is_part_of(few, full)


@pytest.mark.parametrize("turn", range(2))
def test_points_of_what_chance_makes(store: str, turn: int) -> None:
    """However windows, late rows, nulls, NaN and attempts lie: points are values, and ends and extremes are those that are finite
    or infinite of the series as it reads.
    """  # fmt: skip
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    values = noise(chance.randrange(6, 12) * 2 * ZONE_ROWS, seed)
    for _ in range(chance.randrange(5)):
        start = chance.randrange(len(values))
        values[start : start + chance.randrange(3 * ZONE_ROWS)] = math.nan
    values[chance.randrange(len(values))] = chance.choice([50.0, math.inf])
    run = long_run(store, {"v": values}, rows=chance.choice([ZONE_ROWS, 2 * ZONE_ROWS, 5 * ZONE_ROWS]))
    main = run.streams[0]
    for _ in range(chance.randrange(4)):
        main.log({"v": chance.choice([None, 60.0, -60.0])}, step=chance.randrange(len(values)))
    if chance.random() < 0.5:
        second = run.stream(continues=main.hex, attempt=2)
        second.meta({"hide": {"from_step": chance.randrange(1, len(values))}})
        second.log({"v": 0.25}, step=chance.randrange(len(values)))
    run.seal()
    full, few = opened(store).series("v"), opened(store).series("v", points=POINTS)
    shown = numpy.flatnonzero(~numpy.isnan(full.value))
    if len(full) > POINTS:
        assert few.sample_of is not None
        assert not numpy.isnan(few.value).any()
    assert is_part_of(few, full)
    if len(shown):
        assert ends_and_extremes(few)[:4] == (
            full.step[shown[0]], full.value[shown[0]], full.step[shown[-1]], full.value[shown[-1]],
        )  # fmt: skip
        assert (few.value.min(), few.value.max()) == (full.value[shown].min(), full.value[shown].max())


def test_nan_and_infinities(store: str) -> None:
    """NaN are left out of points, wherever they are, also at the ends and in whole windows; infinities are extremes."""
    values = noise(10 * ROWS)
    values[: ROWS + 5] = math.nan
    values[9 * ROWS :] = math.nan
    values[4 * ROWS : 5 * ROWS] = math.nan
    values[6 * ROWS + 9], values[7 * ROWS] = math.inf, -math.inf
    long_run(store, {"v": values})
    few = opened(store).series("v", points=POINTS)
    assert not numpy.isnan(few.value).any()
    assert (few.step[0], few.step[-1]) == (ROWS + 5, 9 * ROWS - 1)
    assert (few.value.min(), few.value.max(), few.sample_of) == (-math.inf, math.inf, 10 * ROWS)


@pytest.mark.parametrize(
    "values",
    [
        numpy.arange(2**63, 2**63 + 5 * ROWS, dtype=numpy.uint64), numpy.arange(-(2**63), -(2**63) + 5 * ROWS),
        numpy.arange(5 * ROWS) % 3 == 0, numpy.full(5 * ROWS, 0.5), numpy.full(5 * ROWS, math.nan),
        numpy.where(numpy.arange(5 * ROWS) % 2, 1.7e308, -1.7e308), numpy.full(5 * ROWS, math.inf),
        numpy.full(5 * ROWS, 5e-324),
    ],
    ids=["uint64", "int64", "bool", "constant", "nan", "huge", "infinite", "tiny"],
)  # fmt: skip
def test_points_of_odd_numbers(store: str, values: numpy.ndarray[Any, Any]) -> None:
    """Integers stay exact, and nothing that a float can be makes trouble or a warning."""
    long_run(store, {"v": values})
    few = opened(store).series("v", points=POINTS)
    assert (few.value.dtype, few.sample_of) == (values.dtype, len(values))
    assert len(few) <= POINTS
    if len(few):
        assert ends_and_extremes(few) == ends_and_extremes(opened(store).series("v"))


def test_a_damaged_preview_is_replaced_by_the_values(store: str) -> None:
    """Whatever byte of a segment is damaged: points are values of what can still be read, and nothing raises."""
    run = long_run(store, {"v": noise(8 * ROWS)})
    path = next(path for path in Path(run.directory).iterdir() if "0c01" in path.name)
    good = path.read_bytes()
    seed = random.randrange(1 << 32)
    print("seed", seed)
    for at in random.Random(seed).sample(range(len(good)), 12):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        few = opened(store).series("v", points=POINTS)
        full = opened(store).series("v")
        assert len(few) <= POINTS
        assert full.step[0] in few.step
        assert full.step[-1] in few.step


def test_all_streams(store: str) -> None:
    """Points of several lanes at once: the extremes of all of them."""
    run = RunBuilder(store)
    for rank in range(2):
        stream = run.stream(rank=rank)
        for value in noise(300, rank):
            stream.log({"v": float(value)})
    run.seal()
    full, few = opened(store).series("v", stream="all"), opened(store).series("v", stream="all", points=50)
    assert (few.value.min(), few.value.max(), few.sample_of) == (full.value.min(), full.value.max(), 600)
    assert few.stream is not None
    assert len(few.stream) == len(few) <= 50


def test_what_cannot_be_points(store: str) -> None:
    """Texts, an unknown key, a number that is none, a library that is not there: each says what it is, and what to do."""
    make_run(store, "a41f", [{"s": "x", "v": 1.0}] * 30)
    run = opened(store)
    with pytest.raises(
        UsageError, match=r"30 values of 's' cannot be given as 20 points: they are no numbers\n.*run.series"
    ):
        run.series("s", points=POINTS)
    with pytest.raises(NotFoundError):
        run.series("none", points=POINTS)
    with pytest.raises(ValueError, match=f"points is 6, expected at least {POINTS_MIN}"):
        run.series("v", points=POINTS_MIN - 1)
    for wrong in (True, 20.0, "20"):
        with pytest.raises(TypeError, match="points is"):
            run.series("v", points=wrong)  # type: ignore[arg-type]


def test_extremes_of_each_part() -> None:
    """Of each part of the axis the first, last, smallest and largest place are kept, so that a chart as wide is exact."""
    noise = numpy.random.default_rng(7)
    x, y = numpy.sort(noise.random(5000)), noise.normal(size=5000)
    kept = extremes(x, y, 400)
    assert len(kept) <= 400
    part = numpy.minimum(((x - x[0]) / (x[-1] - x[0]) * 100).astype(int), 99)
    for number in range(100):
        inside, left = y[part == number], y[kept][part[kept] == number]
        assert (inside.min(), inside.max(), inside[0], inside[-1]) == (left.min(), left.max(), left[0], left[-1])
    assert extremes(numpy.zeros(50), noise.normal(size=50), 20).size <= 20
