"""daemon.compact.work: rows become columns, and nothing else changes, whatever happens."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from daemon.compact import work as working
from daemon.compact.work import work
from daemon.store import replacing
from daemon.store.replacing import sealed
from sdk.errors import DamageError
from sdk.files import DISK
from sdk.limits import FREE_BYTES_MIN
from sdk.location import read_store
from sdk.reader.run import Run
from sdk.segment.format import KIND_COLUMNS, KIND_ROWS
from sdk.segment.naming import HISTORY, SUSPECT_SUFFIX
from sdk.segment.reader import SegmentReader
from tests.builders import Writer
from tests.compacting import Scene, expected, log_by_chance, shown, write_by_chance


def blocks_of(scene: Scene) -> list[int]:
    """Kinds of all blocks of sealed segments that hold rows."""
    found = []
    for segment in sealed(DISK, scene.directory, HISTORY):
        reader = SegmentReader(DISK, segment.path)
        found += [block.kind for block in reader.blocks if block.kind in (KIND_ROWS, KIND_COLUMNS)]
        reader.close()
    return found


@pytest.mark.parametrize("seed", range(6))
def test_a_reader_sees_the_same_rows(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several streams and writers, with pieces, late steps, copies and overlaps; and again when more has come."""
    draw = random.Random(seed)
    if seed % 2:
        monkeypatch.setattr(working, "_WINDOW_RAW_BYTES", 6000)
        monkeypatch.setattr(working, "_LARGE_RAW_BYTES", 2000)
    scene = Scene(tmp_path)
    streams = [scene.run.stream(), scene.run.stream(kind="attach")]
    writers = [scene.run.daemon, Writer(scene.run, "spool")]
    for turn in range(3):
        written = [len(stream.records) for stream in streams]
        for stream in streams:
            log_by_chance(draw, stream, draw.randint(1, 300))
            if turn == 2:
                stream.finish()
        rests = [(stream, stream.records[start:]) for stream, start in zip(streams, written)]
        for stream, records in rests:
            for start in range(0, len(records), 50):
                draw.choice(writers).rows(stream, records[start : start + 50])
        if turn == 0:
            write_by_chance(draw, writers, streams)
        for writer in writers:
            if writer._open is not None:
                writer.seal()
        before = scene.read()
        for stream in streams:
            rows = expected(stream)
            assert [row["_step"] for row in Run(scene.directory).rows(stream=stream.hex)] == [row.step for row in rows]
        report = scene.compact(kept_seconds=0.0)
        assert report.errors == report.alone == (), f"seed {seed}"
        assert scene.read() == before, f"seed {seed}"
        assert set(scene.names()) == {os.path.basename(one.path) for one in sealed(DISK, scene.directory, HISTORY)}
    assert len(scene.names()) == 1


def test_a_run_of_small_blocks_is_few_blocks_while_it_lives(tmp_path: Path) -> None:
    """Once a minute for a week: what was sealed is at most ten blocks of rows in a few files."""
    scene = Scene(tmp_path)
    stream = scene.run.stream()
    scene.run.flush()
    for number in range(10_080):
        stream.log({"loss": 1.0 / (number + 1), "lr": 0.5})
        scene.run.flush()
        if len(scene.run.daemon.segment.blocks) >= 512:
            scene.run.daemon.seal()
            scene.compact(kept_seconds=0.0)
    assert len(blocks_of(scene)) <= 10
    assert len(scene.names()) <= 6
    scene.run.close()
    series = Run(scene.directory).series("loss")
    assert len(series.step) == 10_080 and series.value[-1] == 1.0 / 10_080


def test_suspects_and_open_segments_are_left_alone(tmp_path: Path) -> None:
    """The first may be lost at the next power cut, the second belong to somebody."""
    scene = Scene(tmp_path)
    stream = scene.run.stream()
    stream.log({"a": 1})
    suspect = scene.run.seal()
    Path(suspect + SUSPECT_SUFFIX).touch()
    stream.log({"a": 2})
    scene.run.flush()
    report = scene.compact()
    assert (report.rows, len(report.alone)) == (0, 1) and "suspect" in report.alone[0]
    assert len(scene.names()) == 3
    scene.run.close()


def test_a_damaged_segment_is_left_alone(tmp_path: Path) -> None:
    """`verify` goes on telling of it; the others are compacted."""
    scene = Scene(tmp_path)
    stream = scene.run.stream()
    stream.log({"a": 1})
    bad = scene.run.seal()
    stream.log({"a": 2})
    scene.run.seal()
    data = bytearray(Path(bad).read_bytes())
    data[len(data) // 2] ^= 1
    Path(bad).write_bytes(data)
    report = scene.compact(kept_seconds=0.0)
    assert report.sources == 1 and len(report.alone) == 1 and os.path.basename(bad) in report.alone[0]
    assert os.path.basename(bad) in scene.names() and len(scene.names()) == 2


def test_what_is_not_the_same_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value is compared with the sources before anything gets a name."""
    scene = Scene(tmp_path)
    stream = scene.run.stream()
    for number in range(100):
        stream.log({"a": float(number), "b": "x"})
    old = scene.run.seal()
    merged = working.merged

    def wrong(parts: list[object]) -> list[object]:
        groups = merged(parts)  # type: ignore[arg-type]
        groups[-1].values["a"] = groups[-1].values["a"] + (groups[-1].step == 50)
        return groups  # type: ignore[return-value]

    monkeypatch.setattr(working, "merged", wrong)
    with pytest.raises(DamageError, match="'a' differ"):
        scene.compact()
    assert scene.names() == [os.path.basename(old)]


def test_a_row_that_cannot_be_flat_stays_as_it_is(tmp_path: Path) -> None:
    """Rows whose nesting msgpack reads and does not write are copied, block by block."""
    scene = Scene(tmp_path)
    stream = scene.run.stream()
    stream.log({"a": 1})
    scene.run.flush()
    nested = b"\x81\xa1a" + b"\x91" * 600 + b"\x01"
    stream.records.append(stream.records[-1]._replace(sequence=len(stream.records) + 1, step=1, payload=nested))
    scene.run.flush()
    stream.log({"a": 2}, step=2)
    scene.run.seal()
    before = list(Run(scene.directory).rows())
    assert scene.compact(kept_seconds=0.0).files == 1
    assert KIND_ROWS in blocks_of(scene) and list(Run(scene.directory).rows()) == before
    assert len(before) == 3


def test_a_worker_of_another_host_makes_copies_that_are_joined(tmp_path: Path) -> None:
    """Two hosts that compact the same at once leave every row once."""
    scene = Scene(tmp_path)
    stream = scene.run.stream()
    for number in range(50):
        stream.log({"a": number})
    stream.finish()
    scene.run.seal()
    before = scene.read()
    sources = sealed(DISK, scene.directory, HISTORY)
    for _ in range(2):
        working.rewrite_rows(DISK, read_store(scene.store), scene.directory, sources)
    assert scene.read() == before
    scene.compact(kept_seconds=0.0)
    assert len(scene.names()) == 1 and scene.read() == before
    assert blocks_of(scene).count(KIND_COLUMNS) == 1


def test_keys_that_never_come_again_stay_rows(tmp_path: Path) -> None:
    """Each would be a column with an entry in a directory and a row of its own; a key is found as fast as before."""
    scene = Scene(tmp_path)
    stream = scene.run.stream()
    for number in range(3000):
        stream.log({f"key{number}": 0.5, f"other{number}": number})
    stream.finish()
    scene.run.daemon.rows(stream, stream.records, keys={f"key{number}": 1 for number in range(3000)})
    scene.run.daemon.seal()
    before = scene.read()
    report = scene.compact(kept_seconds=0.0)
    assert blocks_of(scene) == [KIND_ROWS] and report.bytes_after < 1.1 * report.bytes_before
    assert scene.read() == before and scene.compact() == (0, 0, 0, 0, 0, 0, (), ())
    reader = SegmentReader(DISK, sealed(DISK, scene.directory, HISTORY)[0].path)
    assert reader.key_index is not None and len(reader.key_index) == 3000
    reader.close()


def test_a_disk_that_is_nearly_full_is_left_to_those_who_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction needs room beside what it replaces; where there is little it waits."""
    scene = Scene(tmp_path)
    scene.run.stream().log({"a": 1})
    scene.run.seal()
    with monkeypatch.context() as patch:
        patch.setattr(type(DISK), "free_bytes", lambda *_: FREE_BYTES_MIN)
        report = scene.compact()
    assert (report.sources, len(report.alone)) == (0, 1) and "free on the disk" in report.alone[0]
    assert scene.compact().sources == 1


def test_many_streams(tmp_path: Path) -> None:
    """Each has windows of its own in one file."""
    scene = Scene(tmp_path)
    for _ in range(40):
        stream = scene.run.stream(kind="attach")
        stream.log({"a": 1.5})
        scene.run.flush()
    scene.run.seal()
    before = scene.read()
    assert scene.compact(kept_seconds=0.0).files == 1
    assert scene.read() == before


def test_a_pass_over_a_store_goes_on_after_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that the disk refuses is told of, and the next pass tries again."""
    scene = Scene(tmp_path)
    stream = scene.run.stream()
    stream.log({"a": 1})
    scene.run.seal()
    with monkeypatch.context() as patch:
        patch.setattr(replacing.SegmentWriter, "sync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
        report = work(DISK, read_store(scene.store))
    assert len(report.errors) == 1 and len(scene.names()) == 1
    assert work(DISK, read_store(scene.store)).sources == 1
    assert work(DISK, read_store(scene.store)).sources == 0


def test_a_pass_ends_when_it_is_not_wanted(tmp_path: Path) -> None:
    """Between two windows; nothing is left of what was begun."""
    scene = Scene(tmp_path)
    scene.run.stream().log({"a": 1})
    scene.run.seal()
    before = scene.names()
    answers = iter((True, False, False))
    assert work(DISK, read_store(scene.store), is_wanted=lambda: next(answers)).rows == 0
    assert scene.names() == before
    assert shown(1.0) != shown(1)
