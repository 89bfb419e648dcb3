"""Reading over columns: the same as over rows, with less read."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sdk.errors import NotFoundError
from sdk.files import DISK, File, Files
from sdk.files.over import FileOver, FilesOver
from sdk.reader import Run, Store
from sdk.reader.follow import Follower
from sdk.reader.media import MediaItem
from sdk.record import EXT_BIG_INT
from sdk.segment.columns import Columns
from sdk.segment.format import KIND_COLUMNS, Block
from sdk.segment.reader import SegmentReader
from tests.builders import RunBuilder, compact, make_store
from tests.media_rig import MediaBuilder, packed


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def opened(store: str, run_id: str = "a41f") -> Run:
    return Store(store).run(run_id)


def flip(path: str, at: int) -> None:
    """Changes a byte; once more, and it is what it was."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x55]))


def plain(value: Any) -> Any:
    """A value that `==` compares whole: types, bits of floats, items by what they say of themselves."""
    if isinstance(value, dict):
        return {key: plain(held) for key, held in value.items()}
    if isinstance(value, list):
        return [plain(held) for held in value]
    if isinstance(value, numpy.ndarray):
        return str(value.dtype), value.shape, plain(value.tolist()) if value.dtype == object else value.tobytes()
    if isinstance(value, MediaItem):
        return value.key, value.step, value.time, value.index, value.kind, value.bytes()
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return type(value).__name__, value


def everything(run: Run) -> dict[str, Any]:
    """What every reading method gives, so that two runs can be compared."""
    found: dict[str, Any] = {
        "keys": run.all_keys(), "summary": plain(run.summary), "media": run.media_keys(), "last": run.last_step,
        "rows": [plain(row) for row in run.rows()], "steps": run.steps().tolist(), "gaps": run.gaps,
        "tail": [plain(row) for row in run.tail(3)], "streams": [s[:10] for s in run.streams],
        "followed": [plain(row) for row in run.follow(timeout=0)], "step_max": run.step_max, "damage": run.damage,
        "config": run.config, "records": run.records,
    }  # fmt: skip
    for key in run.all_keys():
        for stream in (None, "all"):
            series = run.series(key, stream=stream)
            held = [series.step, series.time, series.value, series.stream, series.others]
            found[f"series {key} {stream}"] = [plain(part) for part in held]
        found[f"rows {key}"] = [plain(row) for row in run.rows([key], first_step=2)]
        found[f"sample {key}"] = plain(run.sample([key])[key][1])
    found["by key"] = [plain(steps) for steps in run.steps_by_key(run.all_keys())]
    return found


BIG = msgpack.ExtType(EXT_BIG_INT, b"1180591620717411303424")
KEYS = ("a", "b", "n.x", "note", "mixed")
VALUES = st.one_of(
    st.floats(allow_nan=False), st.just(math.nan), st.just(-0.0), st.integers(-(2**63), 2**64 - 1), st.just(BIG),
    st.booleans(), st.sampled_from(["", "warm", "\ud800", "ü"]), st.none(), st.just([1, [2, "x"]]), st.just(b"raw"), st.just({}),
)  # fmt: skip
CALLS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
        st.one_of(st.none(), st.none(), st.integers(0, 12)),
        st.one_of(st.none(), st.booleans()),
    ),
    max_size=40,
)


def logged(
    store: str, lanes: list[list[tuple[dict[str, Any], int | None, bool | None]]], *, pieces: bool
) -> RunBuilder:
    """A run of some streams: the second resumes the first and hides its rows from step 5 on, the third is another rank."""
    run = RunBuilder(store)
    first = None
    for number, calls in enumerate(lanes):
        about: dict[str, Any] = {"continues": first.hex, "attempt": 2} if first and number == 1 else {"rank": number}
        stream = run.stream(**about)
        if first and number == 1:
            stream.meta({"hide": {"from_step": 5}})
        first = first or stream
        for values, step, commit in calls:
            done = pieces or step is None or step > stream.step
            stream.log(values, step if done else None, commit if pieces else True)
            if stream.step % 5 == 0:
                run.flush()
        stream.finish()
    run.seal()
    return run


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CALLS, min_size=1, max_size=3), st.sampled_from([2, 7, 1000]), st.booleans())
def test_nothing_changes_when_rows_become_columns(
    tmp_path_factory: pytest.TempPathFactory, lanes: list[Any], window: int, indexed: bool
) -> None:
    """Every reading method gives the same values, types, dtypes and times before and after."""
    store = make_store(tmp_path_factory.mktemp("run"))
    run = logged(store, lanes, pieces=False)
    before = everything(opened(store))
    compact(run, window=window, indexed=indexed)
    after = everything(opened(store))
    assert before == after


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CALLS, min_size=1, max_size=3), st.sampled_from([3, 1000]))
@example(lanes=[[({}, None, False), ({}, 5, None)], []], window=3)  # a row that a resume hides
def test_pieces_that_meet_are_the_same_row(
    tmp_path_factory: pytest.TempPathFactory, lanes: list[Any], window: int
) -> None:
    """Where pieces of a row are merged, only the times of its values become the row's, as `Series.time` says."""
    store = make_store(tmp_path_factory.mktemp("run"))
    run = logged(store, lanes, pieces=True)
    before = everything(opened(store))
    compact(run, window=window)
    after = everything(opened(store))
    # A value that a null took away again within its row still counts as the last one, until the pieces of the row have met.
    before["summary"] = after["summary"] = before["media"] = after["media"] = None
    for key in before:
        if key.startswith("series"):
            before[key][1] = after[key][1] = None
            if key.endswith(" all"):  # at one step, lanes stand in the order of their times
                before[key] = after[key] = None
        if key.startswith("rows ") or key == "tail":
            for row in (*before[key], *after[key]):
                row["_timestamp"] = None
    assert before == after


class Counted(FilesOver):
    """Counts what is read."""

    def __init__(self) -> None:
        super().__init__(DISK)
        self.reads: list[int] = []

    def open(self, path: str) -> File:
        counted = self

        class CountedFile(FileOver):
            def read(self, offset: int, size: int) -> bytes:
                found = self._file.read(offset, size)
                counted.reads.append(len(found))
                return found

        return CountedFile(super().open(path))


def ten_keys(store: str, rows: int = 6000) -> RunBuilder:
    """Ten noisy keys in every row, one more in every hundredth, a text in one row."""
    generator = numpy.random.default_rng(0)
    noise = generator.normal(size=(rows, 10))
    run = RunBuilder(store)
    main = run.stream()
    for step in range(rows):
        row: dict[str, Any] = {f"k{n}": noise[step, n].item() for n in range(10)}
        if step % 100 == 0:
            row["val"] = float(step)
        if step == 77:
            row["note"] = "warm"
        main.log(row)
        if step % 200 == 100:
            run.flush()
    main.finish()
    run.seal()
    return run


def reading(store: str, files: Files) -> Run:
    return Store(store, files=files).run("a41f")


def test_one_of_ten_keys_reads_a_tenth(store: str) -> None:
    """A series reads the directories of blocks that hold its key, and of those step, time and the key: no sequences."""
    run = ten_keys(store)
    path = compact(run, window=2000)
    files = Counted()
    found = reading(store, files)
    files.reads.clear()
    series = found.series("k3")
    assert len(series) == 6000
    assert sum(files.reads) < 0.25 * os.path.getsize(path)
    # Per window a directory and three columns; besides, what opening the segment takes.
    assert len(files.reads) <= 3 * 6 + 12


def test_what_needs_no_values_reads_none(store: str) -> None:
    """Keys come from the index, the last step from the end, a key that nobody has costs no block."""
    run = ten_keys(store)
    path = compact(run, window=500)
    files = Counted()
    found = reading(store, files)
    for look, share in (
        (lambda: found.keys(), 0.05), (lambda: found.last_step, 0.05), (lambda: found.summary, 0.25),
        (lambda: found.tail(3), 0.25), (lambda: found.series("note"), 0.1),
    ):  # fmt: skip
        files.reads.clear()
        look()
        assert sum(files.reads) < share * os.path.getsize(path), look
    with pytest.raises(NotFoundError):
        found.series("nowhere")


def test_rows_of_groups_are_joined_by_step(store: str) -> None:
    """A key of every hundredth row stands in its row; memory for that is a portion, which the row at its edge shows."""
    run = ten_keys(store, 9000)
    before = list(opened(store).rows())
    compact(run, window=10_000)
    assert list(opened(store).rows()) == before
    assert [row["_step"] for row in before if "val" in row] == list(range(0, 9000, 100))


def test_rows_while_they_are_replaced(store: str) -> None:
    """Readers see every row exactly once while another thread replaces the segments again and again."""
    run = RunBuilder(store)
    main = run.stream()
    for step in range(300):
        main.log({"v": step})
        if step % 50 == 49:
            run.flush()
    run.seal()
    done = threading.Event()

    def replace() -> None:
        for turn in range(12):
            compact(run, window=(1000, 40, 7)[turn % 3], keep=turn % 2 == 0)
        done.set()

    thread = threading.Thread(target=replace)
    found = opened(store)
    thread.start()
    looks = 0
    try:
        while not done.is_set() or not looks:
            assert [row["v"] for row in found.rows()] == list(range(300))
            assert found.series("v").value.tolist() == list(range(300))
            assert (found.last_step, found.gaps) == (299, [])
            looks += 1
    finally:
        thread.join()


def blocks_of(path: str) -> list[Block]:
    reader = SegmentReader(DISK, path)
    reader.close()
    return [block for block in reader.blocks if block.kind == KIND_COLUMNS]


@contextlib.contextmanager
def damaged(path: str, block: Block, key: str) -> Iterator[None]:
    """A column of a block is damaged meanwhile."""
    offset, _, _ = place_of(path, block, key)
    flip(path, block.start + offset)
    yield
    flip(path, block.start + offset)


def place_of(path: str, block: Block, key: str) -> tuple[int, int, bytes]:
    """(offset in the payload, size, bytes) of the column that is read for a key."""
    reader = SegmentReader(DISK, path)
    seen: list[tuple[int, int, bytes]] = []

    def read(offset: int, size: int) -> bytes:
        found = reader.read_part(block, offset, size)
        seen.append((offset, size, found))
        return found

    try:
        groups = Columns(read, block.stored_size).groups
        next(group for group in groups if key in group.keys).values(key)
        return seen[-1]
    finally:
        reader.close()


def test_a_damaged_column_costs_its_key_only(store: str) -> None:
    """The other keys of its rows are there, the damage is listed, and no gap is made up."""
    run = ten_keys(store, 3000)
    path = compact(run)
    middle = blocks_of(path)[1]
    with damaged(path, middle, "k3"):
        found = opened(store)
        assert len(found.series("k3")) == 2000
        assert found.damage[0].start == middle.offset and "k3" in found.damage[0].reason
        assert len(found.series("k4")) == 3000
        assert sum("k3" in row for row in found.rows()) == 2000
        assert len(list(found.rows())) == 3000
        assert found.gaps == []


def test_a_key_of_which_nothing_can_be_read(store: str) -> None:
    """It is there, and whoever asks for its values hears why there are none."""
    run = ten_keys(store, 900)
    path = compact(run)
    with damaged(path, blocks_of(path)[0], "k3"):
        found = opened(store)
        assert found.keys()[3] == "k3"
        with pytest.raises(NotFoundError, match="none of its values can be read"):
            found.series("k3")


def test_what_a_damaged_window_was_made_of_is_read_instead(store: str) -> None:
    """While the replaced rows are still there, damage in columns costs nothing."""
    run = ten_keys(store, 700)
    before = everything(opened(store))
    path = compact(run, window=350, keep=True)
    for key in ("k3", "val"):
        with damaged(path, blocks_of(path)[1], key):
            found = everything(opened(store))
            assert found.pop("damage") != []
            assert found == {name: value for name, value in before.items() if name != "damage"}


def test_a_damaged_directory_costs_its_block(store: str) -> None:
    """Of a window none of whose blocks can be read, the records are a gap with the steps of its header."""
    run = ten_keys(store, 3000)
    path = compact(run)
    middle = blocks_of(path)[1]
    flip(path, middle.start + 20)
    found = opened(store)
    assert len(found.series("k3")) == 2000
    ((gap),) = found.gaps
    assert (gap.first, gap.last, gap.reason) == (middle.first, middle.last, "damage")
    assert (gap.step_min, gap.step_max) == (middle.step_min, middle.step_max)


def test_flipped_bytes_of_columns_never_raise(store: str) -> None:
    """Whatever byte of a compacted segment changes, everything that can be asked is answered."""
    lanes = [[({"a": 1.5, "note": "x"}, None, None), ({"a": 2, "mixed": [1]}, None, None)] * 6]
    run = logged(store, lanes, pieces=False)
    path = compact(run, window=7)
    for offset in range(0, os.path.getsize(path), 97):
        flip(path, offset)
        found = opened(store)
        with contextlib.suppress(NotFoundError):
            everything(found)
        flip(path, offset)


def test_no_byte_of_columns_matters_while_the_rows_are_there(store: str) -> None:
    """Whichever byte changes, header, directory, column or index: what is read is what was written."""
    lanes = [[({"a": 1.5, "note": "x"}, None, None), ({"a": 2, "mixed": [1]}, None, None), ({"a": 3.0}, 1, None)] * 6]
    run = logged(store, lanes, pieces=False)
    before = [plain(row) for row in opened(store).rows()]
    series = plain(opened(store).series("a").value)
    path = compact(run, window=9, keep=True)
    for offset in range(0, os.path.getsize(path), 31):
        flip(path, offset)
        found = opened(store)
        assert ([plain(row) for row in found.rows()], plain(found.series("a").value)) == (before, series), offset
        flip(path, offset)


def test_media_and_tensors(store: str) -> None:
    """Items and arrays are what they were, their steps and times too, alone, in lists, and beside plain values."""
    run = RunBuilder(store)
    made = MediaBuilder(run, run.stream())
    for step in range(30):
        image = packed(
            "image-file", format="png", data=made.blob(bytes([step]), {"media": "image-file", "format": "png"})
        )
        made.log_packed({"x": image, "loss": 1.0} if step % 2 else {"x": [image, 7], "text": "a"})
        made.log({"t": numpy.arange(step, dtype="<f4"), "big": [2**64 - 1, step]})
    made.seal()
    before, items = everything(opened(store)), [plain(item) for item in opened(store).media("x")]
    compact(run, window=17)
    found = opened(store)
    assert everything(found) == before
    assert [plain(item) for item in found.media("x")] == items
    assert [item.to_numpy().tolist() for item in found.media("t")][2] == [0, 1, 2]


def test_the_live_tail_goes_on_from_columns(store: str) -> None:
    """A run that is being written, whose beginning is columns already: late rows, new keys, and who follows it hears once."""
    run = RunBuilder(store)
    main = run.stream()
    for step in range(50):
        main.log({"a": float(step), "b": step})
    run.seal()
    found, follower = opened(store), Follower()
    assert len(found.look_for_new(follower)) == 50
    compact(run, window=20)
    assert found.look_for_new(follower) == []
    for step in range(50, 90):
        main.log({"a": float(step)})
    main.log({"a": -1.0, "c": "late"}, step=7)
    run.flush()
    assert [row["_step"] for row in found.look_for_new(follower)] == [7, *range(50, 90)]
    before = everything(opened(store))
    assert found.series("a").value[7] == -1.0 and found.keys() == ["a", "b", "c"]
    run.seal()
    compact(run, window=33)
    assert everything(opened(store)) == before
    assert found.look_for_new(follower) == []


def test_a_wide_row_is_several_groups(store: str) -> None:
    """More keys than a block has columns: rows are joined from its groups, and one key is still found by itself."""
    run = RunBuilder(store)
    main = run.stream()
    for step in range(20):
        main.log({f"k{n}": step + n for n in range(600)})
    run.seal()
    before = list(opened(store).rows())
    compact(run)
    found = opened(store)
    assert list(found.rows()) == before
    assert found.series("k599").value.tolist() == [step + 599 for step in range(20)]
    assert len(found.keys()) == len(found.summary) == 600
