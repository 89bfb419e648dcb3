"""daemon.store.recovery: whose unsealed segments are mended, and whose are left alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from daemon.store.recovery import Judge, Mended, lock_identity, mend_segments, mend_stream, ring_is_locked
from sdk import platform
from sdk.files import DISK
from sdk.ids import hex_u64, random_u64
from sdk.journal.format import CAPACITY_MIN
from sdk.journal.ring import Ring
from sdk.location import StoreIdentity
from sdk.segment.format import FILE_HEADER_SIZE, KIND_META, KIND_ROWS, FileHeader
from sdk.segment.naming import ASIDE, SegmentName, format_segment, run_path
from sdk.segment.writer import SegmentWriter
from tests.serving import RUN, FailingFiles, held, rows

OWN_WRITER = 0x111
OWN_LOCK = "1:2"
STREAM = 0x77
NO_PID = 2**22 + 1  # above any pid that Linux gives


def origin(**changes: Any) -> dict[str, Any]:
    """What a daemon of this host and boot, dead by our lock, wrote about itself."""
    whole: dict[str, Any] = {
        "kind": "daemon", **platform.identity(), "pid": NO_PID, "stream": None, "lock": OWN_LOCK,
    }  # fmt: skip
    return {**whole, **changes}


SPOOL = {"kind": "spool", "stream": hex_u64(STREAM), "lock": None}


def unsealed(store: StoreIdentity, writer: Any, number: int = 0, *, writer_id: int | None = None) -> str:
    """A segment of `writer` that was never sealed; its path."""
    directory = run_path(store.path, RUN)
    DISK.make_directory(directory)
    identity = writer_id or random_u64()
    path = os.path.join(directory, format_segment(SegmentName(identity, number)))
    segment = SegmentWriter.create(DISK, path, FileHeader(store.id, identity, number, 0))
    if writer is not None:
        segment.append_map(KIND_META, {"run": RUN, "writer": writer})
    segment.append(KIND_ROWS, rows(1, 3), stream=STREAM, first=1, last=3, records=3, step_max=2)
    segment.close()
    return path


def judge(*, alive: bool = False) -> Judge:
    return Judge(lambda writer: writer == OWN_WRITER, OWN_LOCK, lambda stream: alive)


def mend(store: StoreIdentity, *, alive: bool = False, files: Any = DISK) -> list[Mended]:
    return [m for m in mend_segments(files, store.path, judge(alive=alive)) if m is not None]


@pytest.mark.parametrize(
    "writer",
    [
        origin(),
        origin(boot_id="an earlier boot", lock="9:9"),
        origin(boot_id="an earlier boot", **{**SPOOL, "stream": None}),
        origin(**SPOOL),
    ],
    ids=["daemon", "daemon before the reboot", "spool before the reboot", "spool of a dead trainer"],
)
def test_segments_of_the_dead_are_sealed(store: StoreIdentity, writer: dict[str, Any]) -> None:
    """All their blocks stay, and a second look has nothing to do."""
    path = unsealed(store, writer)
    (mended,) = mend(store)
    assert (mended.path, mended.error) == (path, None)
    assert mended.result is not None
    assert (mended.result.torn_bytes, mended.result.was_sealed) == (0, False)
    found = held(store.path)
    assert not found.unsealed
    assert found.sequences(STREAM) == [1, 2, 3]
    assert mend(store) == []


@pytest.mark.parametrize(
    ("writer", "alive"),
    [
        (origin(machine="another machine", boot_id="another boot"), False),
        (origin(machine="another machine", lock="9:9"), False),
        (origin(boot_id="another boot", machine=""), False),
        (origin(boot_id=None, machine=None), False),
        (origin(**{**SPOOL, "pid_namespace": "pid:[1]"}), False),
        (origin(**{**SPOOL, "pid_namespace": None}), False),
        (origin(lock="9:9"), False),
        (origin(**SPOOL), True),
        (origin(**{**SPOOL, "pid": os.getpid()}), False),
        (origin(**{**SPOOL, "stream": None}), False),
        (origin(**{**SPOOL, "stream": 5}), False),
        ({}, False),
        (None, False),
        ("not a map", False),
        (["not", "a", "map"], False),
    ],
    ids=[
        "other machine",
        "other container",
        "machine that cannot keep an id",
        "nothing said",
        "other pids",
        "pids of nowhere",
        "other lock",
        "living trainer",
        "living process",
        "no stream",
        "odd stream",
        "empty",
        "none",
        "text",
        "list",
    ],
)
def test_segments_of_whoever_may_live_are_left_alone(store: StoreIdentity, writer: Any, alive: bool) -> None:
    """Two containers may share host name and store; whoever cannot be judged is not."""
    path = unsealed(store, writer)
    before = Path(path).read_bytes()
    assert [m for m in mend(store, alive=alive) if m.result is not None] == []
    assert Path(path).read_bytes() == before


def test_our_own_segments_are_left_alone(store: StoreIdentity) -> None:
    """This daemon writes them right now."""
    unsealed(store, origin(), writer_id=OWN_WRITER)
    assert mend(store) == []


def test_a_torn_tail_is_cut_and_kept_aside(store: StoreIdentity) -> None:
    """What a killed daemon had half written is no block; its bytes can still be looked at."""
    path = unsealed(store, origin())
    size = os.path.getsize(path)
    with open(path, "ab") as file:
        file.write(b"half a block" * 20)
    (mended,) = mend(store)
    assert mended.result is not None
    assert mended.result.torn_bytes == 240
    aside = Path(run_path(store.path, RUN), ASIDE)
    assert [p.read_bytes() for p in aside.iterdir()] == [b"half a block" * 20]
    assert [p.name.endswith(f".{size}") for p in aside.iterdir()] == [True]
    assert held(store.path).sequences(STREAM) == [1, 2, 3]


def test_a_tail_torn_inside_the_last_block_takes_that_block(store: StoreIdentity) -> None:
    """Cut at any byte of the file, whole blocks before the cut stay and the segment can be read."""
    path = unsealed(store, origin())
    whole = Path(path).read_bytes()
    for size in range(FILE_HEADER_SIZE, len(whole), 37):
        Path(path).write_bytes(whole[:size])
        mend(store)
        assert held(store.path).sequences(STREAM) in ([], [1, 2, 3])


def test_the_host_name_proves_nothing(store: StoreIdentity) -> None:
    """Containers are all called localhost; a machine may be renamed."""
    unsealed(store, origin(host="renamed", boot_id="an earlier boot"))
    assert len(mend(store)) == 1


def test_machines_that_cannot_tell_who_they_are_seal_nothing_of_another_boot(
    store: StoreIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No place to keep an id: whose the segment is cannot be known."""
    unsealed(store, origin(boot_id="an earlier boot"))
    unsealed(store, origin(boot_id="an earlier boot", machine=""))
    monkeypatch.setattr(platform, "machine_id", lambda: "")
    assert mend(store) == []
    monkeypatch.setattr(platform, "boot_id", lambda: "")
    unsealed(store, origin())
    assert mend(store) == []


def test_the_spool_of_a_drained_trainer_is_sealed(store: StoreIdentity) -> None:
    """Its ring's lock was ours, so it is dead, although its pid waits to be reaped; other writers are not looked at."""
    other = unsealed(store, origin())
    path = unsealed(store, origin(**{**SPOOL, "pid": os.getpid()}), writer_id=STREAM)
    assert list(mend_stream(DISK, store.path, RUN, STREAM, judge(), is_dead=False)) == [None]
    (mended,) = mend_stream(DISK, store.path, RUN, STREAM, judge(alive=True), is_dead=True)
    assert mended is not None
    assert mended.path == path
    assert held(store.path).unsealed == [os.path.basename(other)]
    assert list(mend_stream(DISK, store.path, RUN, STREAM, judge(), is_dead=True)) == [None]


def test_trouble_with_one_segment_does_not_end_the_look(store: StoreIdentity) -> None:
    """It is named, and the next one is mended; a file that is no segment is none of our business."""
    bad = unsealed(store, origin(), 1)
    data = bytearray(Path(bad).read_bytes())
    data[4] ^= 1
    Path(bad).write_bytes(data)
    Path(os.path.dirname(bad), "notes.txt").write_text("hello", encoding="utf-8")
    Path(os.path.dirname(bad), format_segment(SegmentName(5, 0))).write_bytes(b"short")
    os.symlink("/etc/passwd", os.path.join(os.path.dirname(bad), format_segment(SegmentName(6, 0))))
    Path(store.path, "runs", "a file").write_text("not a directory", encoding="utf-8")
    good = unsealed(store, origin(), 2)
    mended = {m.path: m for m in mend(store)}
    assert mended[good].error is None
    assert mended[bad].error
    assert mended[bad].result is None


def test_a_disk_that_refuses_is_trouble_not_an_end(store: StoreIdentity) -> None:
    """The segment stays as it is and is mended another time."""
    path = unsealed(store, origin())
    files = FailingFiles()
    files.refuse("append")
    (mended,) = mend(store, files=files)
    assert mended.error
    assert mended.path == path
    assert mend(store)[0].error is None


def test_it_does_one_segment_at_a_time(store: StoreIdentity) -> None:
    """A server takes a step between two ticks."""
    for number in range(3):
        unsealed(store, origin(), number)
    steps = mend_segments(DISK, store.path, judge())
    assert isinstance(next(steps), Mended)
    assert len(held(store.path).unsealed) == 2
    steps.close()  # type: ignore[attr-defined]


def test_a_stream_lives_as_long_as_its_ring_is_locked(store: StoreIdentity) -> None:
    """Whoever made the ring is this process here; without a file nobody does."""
    digest = platform.store_digest(store.path)
    is_alive = ring_is_locked("/dev/shm", digest)
    assert not is_alive(hex_u64(STREAM))
    ring, note = Ring.create("/dev/shm", digest, STREAM, CAPACITY_MIN, {"run": RUN, "store": store.id})
    if ring.volatile:
        pytest.skip(f"no shared memory here: {note}")
    assert is_alive(hex_u64(STREAM))
    ring.close()
    assert not is_alive(hex_u64(STREAM))
    assert ring_is_locked("/no/such/memory", digest)(hex_u64(STREAM)), "who cannot be judged counts as living"


def test_the_identity_of_a_lock_is_its_inode(tmp_path: Path) -> None:
    """A file of the same name in another container, or made again, is another lock."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.touch()
    two.touch()
    assert lock_identity(str(one)) != lock_identity(str(two))
    assert lock_identity(str(one)) == lock_identity(str(one))
