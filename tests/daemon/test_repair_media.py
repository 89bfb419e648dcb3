"""Media segments cut and flipped: what is whole is read, what is not is told by key and step, and repair ends it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daemon.cli import cli
from daemon.store.recovery import Judge, mend_stream
from daemon.store.repair import Step, repair_run
from sdk import platform
from sdk.errors import DamageError, NotFoundError
from sdk.files import DISK
from sdk.ids import hex_u64
from sdk.reader import Run
from sdk.reader.verify import verify_run
from sdk.segment.format import BLOCK_HEADER_SIZE, KIND_BLOB
from sdk.segment.naming import MEDIA, parse_segment
from sdk.segment.reader import SegmentReader
from sdk.segment.recovery import recover
from tests.builders import STORE_ID, RunBuilder, make_store
from tests.media_rig import MediaBuilder

PAGES = [random.Random(size).randbytes(size) for size in (300, 1, 700, 0, 120, 40)]
# Primes: every place within a block header and every bit is met.
CUT_EVERY, FLIP_EVERY, MENDED_EVERY = 11, 67, 5


class Scene:
    """A run of six pages under keys of their own, whose media segment is broken in place."""

    def __init__(self, path: Path, *, sealed: bool = True) -> None:
        self.run = RunBuilder(make_store(path))
        media = MediaBuilder(self.run, self.run.stream())
        for number, page in enumerate(PAGES):
            media.log_page(page, f"page{number}")
        media.stream.finish()
        self.path = media.segment.path
        if sealed:
            media.seal()
        else:
            self.run.seal()
            media.close()
        self.whole = Path(self.path).read_bytes()
        self._names = set(os.listdir(self.run.directory))

    def put(self, data: bytes) -> None:
        """The broken bytes in place, and nothing that an earlier case left."""
        for name in set(os.listdir(self.run.directory)) - self._names:
            path = os.path.join(self.run.directory, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        Path(self.path).write_bytes(data)

    def readable(self) -> set[str]:
        """The keys whose pages can be read; each is what was logged."""
        run, found = Run(self.run.directory, alive=lambda _: False), set()
        for item in run.media("page*"):
            with contextlib.suppress(DamageError, NotFoundError):
                assert item.bytes() == PAGES[item.step]
                found.add(item.key)
        return found

    def look(self) -> set[str]:
        """What can be read; `verify` names exactly the others."""
        found = self.readable()
        lost = {blob.announced.key for blob in verify_run(DISK, self.run.directory).blobs}
        assert found | lost == {f"page{number}" for number in range(len(PAGES))}
        assert not found & lost
        return found

    def repair(self) -> list[Step]:
        return list(repair_run(DISK, STORE_ID, self.run.id, self.run.directory, lambda path: True))

    def mend(self) -> None:
        """Recovers an open segment and repairs: nothing more is lost by it, and then nothing is damaged."""
        before = self.look()
        with contextlib.suppress(DamageError, FileNotFoundError):
            recover(DISK, self.path)
        assert self.look() == before
        assert all(step.repaired for step in self.repair())
        assert self.readable() == before
        verified = verify_run(DISK, self.run.directory)
        assert verified.findings == []
        assert {gap.key for gap in verified.gaps} == {f"page{n}" for n in range(len(PAGES))} - before
        assert self.repair() == []


@pytest.mark.parametrize("sealed", [True, False])
def test_cut_anywhere(tmp_path: Path, sealed: bool) -> None:
    """Pages before the cut are read, the others are named, and mending changes neither."""
    scene = Scene(tmp_path, sealed=sealed)
    for case, size in enumerate(range(0, len(scene.whole) + 1, CUT_EVERY)):
        scene.put(scene.whole[:size])
        scene.mend() if case % MENDED_EVERY == 0 else scene.look()
    scene.put(scene.whole)
    assert len(scene.look()) == len(PAGES)


@pytest.mark.parametrize("sealed", [True, False])
def test_any_bit_flipped(tmp_path: Path, sealed: bool) -> None:
    """At most one page is lost, and it is named."""
    scene = Scene(tmp_path, sealed=sealed)
    for case, bit in enumerate(range(0, len(scene.whole) * 8, FLIP_EVERY)):
        data = bytearray(scene.whole)
        data[bit // 8] ^= 1 << bit % 8
        scene.put(bytes(data))
        assert len(scene.look()) >= len(PAGES) - 1
        if case % MENDED_EVERY == 0:
            scene.mend()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def spoiled(scene: Scene, number: int) -> bytes:
    """The segment with a bit of a page's bytes flipped."""
    reader = SegmentReader(DISK, scene.path)
    block = next(block for block in reader.blocks if block.kind == KIND_BLOB and block.first == number)
    reader.close()
    data = bytearray(scene.whole)
    data[block.offset + BLOCK_HEADER_SIZE + block.stored_size - 1] ^= 1
    return bytes(data)


def test_what_is_whole_moves_to_a_new_media_segment(scene: Scene) -> None:
    """The old file is kept; the new one has a media segment's name; what is lost is a gap in a segment of rows."""
    scene.put(spoiled(scene, 3))
    rewritten, told = scene.repair()
    assert (rewritten.path, told.path) == (scene.path, scene.run.directory)
    assert rewritten.repaired is not None
    assert told.repaired is not None
    assert (rewritten.repaired.blobs, rewritten.repaired.lost_blobs, told.repaired.lost_blobs) == (5, 1, 1)
    name = parse_segment(os.path.basename(rewritten.repaired.path))
    assert name is not None
    assert name.holds == MEDIA
    assert rewritten.repaired.aside is not None
    assert Path(rewritten.repaired.aside).read_bytes() != scene.whole
    item = Run(scene.run.directory).media("page2")[0]
    with pytest.raises(NotFoundError, match="damage"):
        item.bytes()


def test_what_the_commands_say(scene: Scene) -> None:
    """`verify` names the value and exits with 1; `repair` says what was saved; then `verify` finds a gap and no damage."""
    scene.put(spoiled(scene, 3))
    store = os.path.dirname(os.path.dirname(scene.run.directory))

    def stepd(*words: str) -> Result:
        return CliRunner().invoke(cli, ["--dir", store, *words])

    found = stepd("verify")
    assert (found.exit_code, "the 700 bytes of 'page2' at step 2 cannot be read: " in found.output) == (1, True)
    done = stepd("repair")
    assert done.exit_code == 0
    assert "  repaired: 5 large values saved, 1 not whole, the old file is " in done.output
    assert "  noted as lost, in history-" in done.output
    after = stepd("verify")
    assert (after.exit_code, "gap in run a41f: the bytes of 'page2' (step 2) of stream " in after.output) == (0, True)
    assert stepd("repair").output == "nothing is damaged\n"


def test_a_dry_run_changes_nothing(scene: Scene) -> None:
    """It finds the same."""
    scene.put(spoiled(scene, 3))
    steps = list(repair_run(DISK, STORE_ID, scene.run.id, scene.run.directory, lambda path: True, dry_run=True))
    assert [(step.path, step.repaired, step.why) for step in steps] == [
        (scene.path, None, None), (scene.run.directory, None, None)
    ]  # fmt: skip
    assert len(os.listdir(scene.run.directory)) == 2


def test_a_media_segment_that_is_gone(scene: Scene) -> None:
    """Only the rows tell that there was one: each page becomes a gap."""
    os.unlink(scene.path)
    (step,) = scene.repair()
    assert step.repaired is not None
    assert step.repaired.lost_blobs == len(PAGES)
    assert verify_run(DISK, scene.run.directory).findings == []


def test_a_chunk_that_makes_no_sense_is_left_out(tmp_path: Path) -> None:
    """Its checksum is right: copied, it would keep the new segment from being read back."""
    run = RunBuilder(make_store(tmp_path))
    media = MediaBuilder(run, run.stream())
    media.segment.append(KIND_BLOB, b"\xff\xff\xff\xff", stream=1, first=1, last=1, step_max=1)
    media.seal()
    (step,) = repair_run(DISK, STORE_ID, run.id, run.directory, lambda path: True)
    assert step.repaired is not None
    assert verify_run(DISK, run.directory).findings == []


def test_the_media_segment_of_a_trainer_is_mended_with_its_rows(tmp_path: Path) -> None:
    """It bears the same writer id, whoever else's are left alone."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    stream = run.stream()
    own, other = MediaBuilder(run, stream, writer=stream.id), MediaBuilder(run, stream)
    run.seal()
    for media in (own, other):
        origin = {"kind": "spool", **platform.identity(), "stream": hex_u64(stream.id)}
        media.open(origin)
        media.store(b"page", {})
        media.close()
    judge = Judge(lambda writer: False, "1:2", lambda stream: True)
    mended = list(mend_stream(DISK, store, run.id, stream.id, judge, is_dead=True))
    assert [each and each.path for each in mended] == own.paths
