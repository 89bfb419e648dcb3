"""daemon.sync.targets.store: a kill, a power loss or a failing disk at any operation on the target."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest

from sdk.files import DISK
from sdk.files.failing import FAULTS, FailingFiles
from sdk.files.recording import WRITE, RecordingFiles
from sdk.reader.verify import verify_run
from sdk.segment.naming import run_path
from tests.builders import RunBuilder
from tests.builders import compact as make_columns
from tests.crash import Fate, build, by_chance, nothing, safe_from, torn, write_tree, zeros
from tests.media_rig import MediaBuilder
from tests.store_rig import Road, segments, store_at, told

RUN = "a41f"
SEED = 20261121
# Some hundred small trees: a disk that forces them would take its time.
MEMORY = "/dev/shm"


class Carried:
    """A run that grows, is sealed and rewritten, with a pass after each; every operation on the target was noted."""

    def __init__(self, path: Path) -> None:
        self.source = store_at(path / "here")
        target = store_at(path / "there")
        files = RecordingFiles(target)
        road = Road(self.source, target, files)
        self.run = run = RunBuilder(self.source, RUN)
        media = MediaBuilder(run, run.stream())
        for number in range(3):
            media.log_page(b"%d" % number * 20_000, "page")
            media.flush()
            road.carry(RUN)
        media.seal()
        road.carry(RUN)
        run.streams[0].log({"loss": 1.0})
        run.seal()
        road.carry(RUN)
        make_columns(run)
        road.carry(RUN)
        self.expected = told(run.directory)
        self.segments = segments(run.directory)
        assert segments(road.there(RUN)) == self.segments
        self.operations = files.operations
        self.known = files.known
        self.safe = safe_from(self.operations, files.known)

    def look(self, end: int, *, power: bool, fate: Fate, what: str) -> None:
        """After a crash the target is whole as far as it goes, and one pass makes it what it would have been."""
        cut = self.operations[:end]
        tree = build(cut, [power and safe > end for safe in self.safe[:end]], fate)
        with tempfile.TemporaryDirectory(dir=MEMORY) as root:
            write_tree(tree, root)
            there = run_path(root, RUN)
            text = f"{what} after {end} of {len(self.operations)} operations"
            if os.path.exists(there):
                assert verify_run(DISK, there).findings == [], text
            Road(self.source, root).carry(RUN)
            assert told(there) == self.expected, text
            assert segments(there) == self.segments, text
            assert not [name for name in os.listdir(there) if name.endswith(".copy")], text


def test_killed_at_any_operation(tmp_path: Path) -> None:
    """Whatever was done before a SIGKILL, half a write included: nothing is broken there, and the next pass makes it equal."""
    carried = Carried(tmp_path)
    for end in range(carried.known, len(carried.operations) + 1):
        carried.look(end, power=False, fate=nothing, what="killed")
        whole = carried.operations[end - 1]
        if end > carried.known and whole.kind == WRITE and len(whole.data) > 1:
            carried.operations[end - 1] = torn(whole, len(whole.data) // 2)
            carried.look(end, power=False, fate=nothing, what="killed in a write")
            carried.operations[end - 1] = whole


def test_power_lost_at_any_operation(tmp_path: Path) -> None:
    """What was not forced may be gone, zeros, or there in parts: a name is only given to what was forced."""
    carried = Carried(tmp_path)
    print(f"seed {SEED}")
    draw = random.Random(SEED)
    for end in range(carried.known, len(carried.operations) + 1):
        what = draw.choice(("nothing", "zeros", "chance"))
        fate = {"nothing": nothing, "zeros": zeros, "chance": by_chance(draw)}[what]
        carried.look(end, power=True, fate=fate, what=f"power lost, {what}")


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "short write"])
def test_a_disk_that_fails_once(name: str) -> None:
    """Every operation on either store fails once: the pass fails or not, and the next one makes it whole."""
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    with tempfile.TemporaryDirectory(dir=MEMORY) as root:
        source = store_at(os.path.join(root, "here"))
        run = RunBuilder(source, RUN)
        media = MediaBuilder(run, run.stream())
        media.log_page(b"page" * 5000, "page")
        media.seal()
        media.log_page(b"more" * 5000, "page")
        media.flush()
        media.close()
        expected = told(run.directory)["streams"]
        at, fired = 0, 1
        while fired:
            at += 1
            files = FailingFiles()
            road = Road(source, os.path.join(root, f"there{at}"), files)
            files.fail(fault, at)
            trouble = None
            try:
                road.carry(RUN)
            except Exception as error:
                trouble = error
            fired = files.fired
            assert fired or trouble is None, f"at {at}: {trouble!r}"
            Road(source, road.target).carry(RUN)
            assert told(road.there(RUN))["streams"] == expected, f"at {at}"
            assert verify_run(DISK, road.there(RUN)).findings == [], f"at {at}"
        assert at > 9
