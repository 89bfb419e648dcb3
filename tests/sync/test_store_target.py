"""daemon.sync.targets.store: runs from one store into another; kills and power losses are in test_store_crashes.py."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from daemon.store.replacing import remove_replaced
from daemon.sync.target import Stopped
from sdk import clock
from sdk.errors import DamageError, UsageError
from sdk.files import DISK
from sdk.reader.run import Run
from sdk.reader.verify import verify_run
from sdk.segment.naming import parse_segment, run_path
from tests.builders import RunBuilder, Writer
from tests.builders import compact as make_columns
from tests.compacting import contents, log_by_chance, write_by_chance
from tests.media_rig import MediaBuilder
from tests.store_rig import Road, compact_all, segments, store_at

RUN = "a41f"


@pytest.fixture
def road(tmp_path: Path) -> Road:
    return Road(store_at(tmp_path / "here"), str(tmp_path / "there"))


def logged(store: str, count: int = 5, **about: Any) -> RunBuilder:
    """A run with some rows that are not written yet."""
    run = RunBuilder(store, RUN)
    stream = run.stream(**about)
    for number in range(count):
        stream.log({"loss": float(number)})
    return run


class TestSealed:
    """What is sealed is copied as it is."""

    def test_a_finished_run_is_the_same_there(self, road: Road) -> None:
        """Segments keep their names and bytes, and whatever the reader says of the run it says there too."""
        run = logged(road.source)
        run.streams[0].finish()
        run.seal()
        road.carry(RUN)
        assert segments(road.there(RUN)) == segments(run.directory)
        assert contents(road.there(RUN)) == contents(run.directory)
        assert verify_run(DISK, road.there(RUN)).findings == []

    def test_twice_is_once(self, road: Road) -> None:
        """The second pass changes nothing in the target, whether the cursor is there or lost."""
        logged(road.source).seal()
        road.carry(RUN)
        before = road.changes
        road.carry(RUN)
        road.carry(RUN, forget=True)
        assert road.changes == before

    def test_nothing_is_read_of_what_is_there(self, road: Road) -> None:
        """Of a run that is there whole no segment is opened again: names and sizes say it."""
        logged(road.source).seal()
        road.carry(RUN)
        road.opened.clear()
        road.carry(RUN)
        assert not [path for path in road.opened if path.endswith(".seg")]

    def test_age_is_carried(self, road: Road) -> None:
        """A copy looks as old as what it was made of: of a run of another host only that tells whether it goes on."""
        path = logged(road.source).seal()
        os.utime(path, (1e9, 1e9))
        road.carry(RUN)
        assert os.stat(os.path.join(road.there(RUN), os.path.basename(path))).st_mtime == 1e9

    def test_damage_is_carried_as_damage(self, road: Road) -> None:
        """A segment with a bad block is copied as it is, so that what is lost shows there too."""
        run = logged(road.source)
        path = run.seal()
        data = bytearray(Path(path).read_bytes())
        data[600] ^= 0xFF
        Path(path).write_bytes(data)
        road.carry(RUN)
        assert segments(road.there(RUN)) == segments(run.directory)

    def test_what_is_no_segment_fails_and_the_rest_arrives(self, road: Road) -> None:
        """A file without a readable header is named each time until it is mended; what can be read was carried."""
        run = logged(road.source)
        run.seal()
        bad = os.path.join(run.directory, f"history-{7:016x}-000000.seg")
        Path(bad).write_bytes(b"x" * 500)
        for _ in range(2):
            with pytest.raises(DamageError, match="1 things"):
                road.carry(RUN)
        os.remove(bad)
        road.carry(RUN)
        assert contents(road.there(RUN)) == contents(run.directory)

    def test_a_store_is_not_carried_into_itself(self, tmp_path: Path) -> None:
        """A target that is the store of the run is misuse, and nothing is written."""
        store = store_at(tmp_path / "here")
        logged(store).seal()
        with pytest.raises(UsageError, match="is the store that the run lies in"):
            Road(store, store).carry(RUN)

    def test_a_store_that_is_not_ours_is_misuse(self, road: Road) -> None:
        """A target that others may write to is refused before the first run, with what to do."""
        logged(road.source).seal()
        os.mkdir(road.target)
        os.chmod(road.target, 0o777)
        with pytest.raises(UsageError, match="open to others") as caught:
            road.carry(RUN)
        assert caught.value.hint == "--to stepd:/a/directory/of/yours"

    def test_a_stop_is_heard_between_two_buffers(self, road: Road) -> None:
        """A pass that is told to end leaves no half file, and the next one goes on."""
        run = logged(road.source)
        run.seal()
        with pytest.raises(Stopped):
            road.carry(RUN, stop_after=1)
        assert all(parse_segment(name) for name in os.listdir(road.there(RUN)))
        road.carry(RUN)
        assert contents(road.there(RUN)) == contents(run.directory)


class TestGrowing:
    """What is not sealed comes in portions."""

    def test_each_pass_brings_what_is_new(self, road: Road) -> None:
        """After every pass the target reads as the source, holds sealed segments only, and few of them."""
        run = logged(road.source)
        for count in range(20):
            run.streams[0].log({"loss": float(count)})
            run.flush()
            road.carry(RUN)
            assert contents(road.there(RUN))["streams"] == contents(run.directory)["streams"]
            verified = verify_run(DISK, road.there(RUN))
            assert verified.findings == []
            assert all(checked.sealed for checked in verified.segments)
            assert len(segments(road.there(RUN))) <= 5
        run.streams[0].finish()
        run.seal()
        road.carry(RUN)
        assert segments(road.there(RUN)) == segments(run.directory)

    @pytest.mark.parametrize("compacts", [False, True], ids=["as it is", "compacted"])
    def test_a_lost_cursor_costs_work_and_no_rows(self, road: Road, compacts: bool) -> None:
        """Portions that no cursor knows are brought again and removed; of those that were compacted each row is read once."""
        run = logged(road.source)
        for _ in range(3):
            run.streams[0].log({"loss": 1.0})
            run.flush()
            road.carry(RUN, forget=True)
            if compacts:
                compact_all(road.target)
        expected = contents(run.directory)["streams"]
        assert contents(road.there(RUN))["streams"] == expected
        run.seal()
        road.carry(RUN, forget=True)
        assert contents(road.there(RUN))["streams"] == expected
        assert verify_run(DISK, road.there(RUN)).findings == []

    def test_a_portion_that_was_taken_away_comes_again(self, road: Road) -> None:
        """The cursor is not believed against the target: what is not there, in no form, is brought."""
        run = logged(road.source)
        run.flush()
        road.carry(RUN)
        (name,) = segments(road.there(RUN))
        os.remove(os.path.join(road.there(RUN), name))
        road.carry(RUN)
        assert contents(road.there(RUN))["streams"] == contents(run.directory)["streams"]

    def test_a_writer_that_died_leaves_no_end(self, road: Road) -> None:
        """Half a block at the end of a segment is not carried: in the source it is "not yet", in the target it would be damage."""
        run = logged(road.source)
        run.flush()
        with open(run.daemon.segment.path, "ab") as file:
            file.write(b"\xeb\x57\x0c\xb1 torn")
        road.carry(RUN)
        assert verify_run(DISK, road.there(RUN)).findings == []
        assert contents(road.there(RUN))["streams"] == contents(run.directory)["streams"]

    def test_half_a_block_now_is_a_whole_one_later(self, road: Road) -> None:
        """A pass that meets a writer in the middle of a block carries up to it; the next one begins with that block."""
        run = logged(road.source)
        run.flush()
        path = Path(run.daemon.segment.path)
        before = len(path.read_bytes())
        run.streams[0].log({"loss": 7.0})
        run.flush()
        whole = path.read_bytes()
        os.truncate(path, before + 100)
        road.carry(RUN)
        path.write_bytes(whole)
        road.carry(RUN)
        assert contents(road.there(RUN))["streams"] == contents(run.directory)["streams"]

    def test_what_rotted_since_stays_readable(self, road: Road) -> None:
        """A portion outlives the whole segment where that has a bad block that the portion has not."""
        run = logged(road.source)
        run.flush()
        road.carry(RUN)
        before = contents(road.there(RUN))["streams"]
        path = run.seal()
        data = bytearray(Path(path).read_bytes())
        place = data.index(b"loss")
        data[place] ^= 0xFF
        Path(path).write_bytes(data)
        for _ in range(2):
            road.carry(RUN)
            assert contents(road.there(RUN))["streams"] == before
        assert contents(run.directory)["streams"] != before

    def test_a_run_without_rows_is_there(self, road: Road) -> None:
        """A run that has only begun has its name and its facts in the target."""
        run = logged(road.source, 0)
        run.flush()
        road.carry(RUN)
        assert Run(road.there(RUN)).name == Run(run.directory).name


class TestMedia:
    """Blobs arrive before the rows that name them."""

    def test_large_values_can_be_read_there(self, road: Road) -> None:
        """Of sealed and of open segments, with one blob in pieces of both."""
        run = RunBuilder(road.source, RUN)
        media = MediaBuilder(run, run.stream())
        for number in range(3):
            media.log_page(b"page %d" % number * 3000, "page")
            media.flush()
            road.carry(RUN)
            pages = Run(road.there(RUN)).media("page")
            assert [item.bytes()[:6] for item in pages] == [b"page %d" % n for n in range(number + 1)]
            assert verify_run(DISK, road.there(RUN)).findings == []
        media.seal()
        road.carry(RUN)
        assert segments(road.there(RUN)) == segments(run.directory)

    def test_a_row_that_comes_in_the_middle_of_a_pass_waits_for_its_blob(self, road: Road) -> None:
        """What the rows name that a pass carries was stored before they were looked at, and media are looked at after."""
        run = RunBuilder(road.source, RUN)
        media = MediaBuilder(run, run.stream())
        media.log_page(b"first" * 5000, "page")
        media.flush()

        def grow() -> None:
            media.log_page(b"second" * 5000, "page")
            media.flush()

        road.carry(RUN, at_first_copy=grow)
        assert verify_run(DISK, road.there(RUN)).findings == []
        road.carry(RUN)
        assert len(Run(road.there(RUN)).media("page")) == 2


class TestRewriting:
    """Either side may compact at any time."""

    def test_what_the_source_compacted_replaces_there_too(self, road: Road) -> None:
        """The target gets the rewritten segment and loses those that it replaces, by the rule of the source."""
        run = logged(road.source)
        run.seal()
        run.streams[0].log({"loss": 9.0})
        run.seal()
        road.carry(RUN)
        assert len(segments(road.there(RUN))) == 2
        make_columns(run)
        road.carry(RUN)
        assert segments(road.there(RUN)) == segments(run.directory)
        assert contents(road.there(RUN)) == contents(run.directory)

    def test_portions_of_what_was_compacted_go(self, road: Road) -> None:
        """A segment may be sealed and rewritten between two passes; what was carried of it is in the new one."""
        run = logged(road.source)
        run.flush()
        road.carry(RUN)
        run.seal()
        make_columns(run)
        road.carry(RUN)
        assert segments(road.there(RUN)) == segments(run.directory)

    def test_what_the_target_compacted_is_not_brought_again(self, road: Road) -> None:
        """The target's own columns say what they replace: its segments stay gone, with the cursor and without."""
        run = logged(road.source)
        for _ in range(3):
            run.streams[0].log({"loss": 2.0})
            run.seal()
        road.carry(RUN)
        compact_all(road.target)
        remove_replaced(DISK, road.there(RUN), clock.wall_ns() + 10**12)
        assert len(segments(road.there(RUN))) == 1
        road.carry(RUN)
        road.carry(RUN, forget=True)
        assert len(segments(road.there(RUN))) == 1
        assert contents(road.there(RUN))["streams"] == contents(run.directory)["streams"]

    def test_by_chance(self, tmp_path: Path) -> None:
        """Logging, sealing, compacting here and there, carrying, losing the cursor, in any order: the target reads as the source."""
        for seed in range(8):
            print(f"seed {seed}")
            draw = random.Random(seed)
            road = Road(store_at(tmp_path / f"{seed}"), str(tmp_path / f"{seed}" / "there"))
            run = RunBuilder(road.source, RUN)
            stream = run.stream()
            for _ in range(12):
                what = draw.randrange(6)
                if what < 3:
                    log_by_chance(draw, stream, draw.randrange(40))
                    run.flush()
                elif what == 3:
                    run.seal()
                elif what == 4:
                    compact_all(draw.choice((road.source, road.target)), removes=draw.random() < 0.5)
                road.carry(RUN, forget=draw.random() < 0.2)
                here, there = contents(run.directory), contents(road.there(RUN))
                assert (there["streams"], there["damage"]) == (here["streams"], here["damage"])
            run.seal()
            road.carry(RUN)
            assert contents(road.there(RUN))["streams"] == contents(run.directory)["streams"]
            assert verify_run(DISK, road.there(RUN)).findings == []


class TestManyHosts:
    """Stores of several hosts that hold streams of one run."""

    def test_ranks_of_one_run_meet_in_any_order(self, tmp_path: Path) -> None:
        """Three hosts, each with its own ranks: whatever the order, and twice, the run there is the same, and has every row once."""
        sources = []
        for host in range(3):
            run = RunBuilder(store_at(tmp_path / f"node{host}"), RUN)
            streams = [run.stream(rank=2 * host + local, host=f"node{host}") for local in range(2)]
            log_by_chance(random.Random(host), streams[0], 60)
            log_by_chance(random.Random(host + 10), streams[1], 60)
            write_by_chance(random.Random(host), [run.daemon, Writer(run)], streams)
            run.close()
            sources.append(os.path.dirname(os.path.dirname(run.directory)))
        found = []
        for number, order in enumerate(([0, 1, 2], [2, 0, 1], [1, 2, 0, 0, 1, 2])):
            target = str(tmp_path / f"all{number}")
            for host in order:
                Road(sources[host], target).carry(RUN)
            assert verify_run(DISK, run_path(target, RUN)).findings == []
            found.append(contents(run_path(target, RUN)))
            assert compact_all(target)
            found.append(contents(run_path(target, RUN)))
        assert len(found[0]["streams"]) == 6
        assert all(other["streams"] == found[0]["streams"] for other in found)
        assert found[0]["facts"] == found[2]["facts"] == found[4]["facts"]

    def test_what_both_stores_hold_is_there_once(self, tmp_path: Path) -> None:
        """A store and its copy, one of them compacted: each row is read once."""
        first = store_at(tmp_path / "first")
        run = logged(first)
        run.seal()
        run.streams[0].log({"loss": 8.0})
        run.seal()
        second = str(tmp_path / "second")
        Road(first, second).carry(RUN)
        make_columns(run)
        target = str(tmp_path / "all")
        for source in (first, second, first):
            Road(source, target).carry(RUN)
        assert contents(run_path(target, RUN))["streams"] == contents(run.directory)["streams"]
        assert segments(run_path(target, RUN)) == segments(run.directory)

    def test_a_chain_of_stores(self, tmp_path: Path) -> None:
        """From a node to a head node and on: portions of portions are rows like any others."""
        first, second = store_at(tmp_path / "first"), str(tmp_path / "second")
        run = logged(first)
        for number in range(4):
            run.streams[0].log({"loss": float(number)})
            run.flush()
            Road(first, second).carry(RUN)
            Road(second, str(tmp_path / "third")).carry(RUN)
        run.seal()
        Road(first, second).carry(RUN)
        Road(second, str(tmp_path / "third")).carry(RUN)
        third = run_path(str(tmp_path / "third"), RUN)
        assert contents(third)["streams"] == contents(run.directory)["streams"]
        shutil.rmtree(first)
        assert verify_run(DISK, third).findings == []

    def test_a_portion_does_not_come_back(self, tmp_path: Path) -> None:
        """A store that was given a portion, and brings it back when what it is of has arrived whole: it is left out."""
        first, second, head = store_at(tmp_path / "first"), str(tmp_path / "second"), str(tmp_path / "head")
        run = logged(first)
        run.flush()
        Road(first, head).carry(RUN)
        Road(head, second).carry(RUN)  # as a node does after a requeue
        run.seal()
        Road(first, head).carry(RUN)
        Road(second, head).carry(RUN)
        assert segments(run_path(head, RUN)) == segments(run.directory)
