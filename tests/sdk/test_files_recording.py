"""sdk.files.recording and tests.crash: what was done is noted, and every state after a crash can be built from it."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from sdk.files.failing import FAULTS, FailingFiles
from sdk.files.recording import FAILED_SYNC, NAME, SYNC, WRITE, RecordingFiles
from tests.crash import (
    SECTOR,
    Tree,
    build,
    by_chance,
    bytes_only,
    names_only,
    nothing,
    safe_from,
    torn,
    write_tree,
    zeros,
)


def on_disk(root: Path) -> Tree:
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }


def left(files: RecordingFiles, fate: object) -> Tree:
    """What is left after power loss now."""
    safe = safe_from(files.operations, files.known)
    return build(files.operations, [one > len(safe) for one in safe], fate)  # type: ignore[arg-type]


def everything(files: RecordingFiles, root: Path) -> None:
    path = str(root / "d" / "f")
    files.make_directory(str(root / "d" / "e"))
    file = files.create(path)
    file.append([b"abc", b"def"])
    file.patch(1, b"B")
    file.truncate(4)
    file.append([b"!"])
    file.sync()
    file.close()
    again = files.open(path, write=True)
    again.append([b"?"])
    again.close()
    files.write_whole(path + "2", b"x")
    files.write_new(path + "3", b"y")
    files.rename(path + "2", str(root / "moved"))
    files.rename(str(root / "d" / "e"), str(root / "e"))
    files.remove(path + "3")
    files.make_directory(str(root / "t" / "u"))
    files.remove_tree(str(root / "t"))


def test_a_record_played_again_is_what_is_on_the_disk(tmp_path: Path) -> None:
    """Also where there was something before, and on another disk."""
    root, copy = tmp_path / "root", tmp_path / "copy"
    (root / "old").mkdir(parents=True)
    (root / "old" / "f").write_bytes(b"what was there")
    copy.mkdir()
    files = RecordingFiles(str(root))
    assert files.known == 3
    everything(files, root)
    tree = build(files.operations, [False] * len(files.operations), nothing)
    assert tree == on_disk(root)
    write_tree(tree, str(copy))
    assert on_disk(copy) == tree


def test_what_was_not_forced_may_be_gone(tmp_path: Path) -> None:
    """Bytes need their file's sync, a name that of its directory, and every directory that of the one above."""
    files = RecordingFiles(str(tmp_path))
    files.make_directory(str(tmp_path / "d"))
    file = files.create(str(tmp_path / "d" / "f"))
    file.append([b"abc"])
    file.sync()
    assert left(files, nothing) == {}
    files.sync_directory(str(tmp_path / "d"))
    assert left(files, nothing) == {}, "the directory itself is not there"
    files.sync_directory(str(tmp_path))
    assert left(files, nothing) == {"d": None, "d/f": b"abc"}
    file.append([b"def"])
    assert left(files, nothing) == {"d": None, "d/f": b"abc"}
    assert left(files, zeros) == {"d": None, "d/f": b"abc\0\0\0"}
    files.rename(str(tmp_path / "d" / "f"), str(tmp_path / "d" / "g"))
    assert left(files, bytes_only) == {"d": None, "d/f": b"abcdef"}
    assert left(files, names_only) == {"d": None, "d/g": b"abc"}
    file.close()


def test_what_a_failed_fsync_left_behind_is_never_safe(tmp_path: Path) -> None:
    """Whatever the next one says; what came after the failure is."""
    below = FailingFiles()
    files = RecordingFiles(str(tmp_path), below)
    file = files.create(str(tmp_path / "f"))
    files.sync_directory(str(tmp_path))
    file.append([b"abc"])
    below.fail(next(fault for fault in FAULTS if fault.name == "fsync"))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        file.sync()
    file.append([b"def"])
    file.sync()
    assert left(files, nothing) == {"f": b"\0\0\0def"}
    assert [operation.kind for operation in files.operations] == [NAME, SYNC, WRITE, FAILED_SYNC, WRITE, SYNC]
    file.close()


def test_chance_takes_any_part(tmp_path: Path) -> None:
    """Of two writes: both, either, neither, zeros, and single sectors; never a byte that was not written there."""
    files = RecordingFiles(str(tmp_path))
    file = files.create(str(tmp_path / "f"))
    files.sync_directory(str(tmp_path))
    file.append([b"a" * 100])
    file.append([b"b" * (2 * SECTOR)])
    file.close()
    whole = b"a" * 100 + b"b" * (2 * SECTOR)
    found = set()
    for seed in range(400):
        content = left(files, by_chance(random.Random(seed)))["f"]
        assert content is not None
        assert all(byte in (0, there) for byte, there in zip(content, whole))
        found.add(content)
    assert {b"", b"a" * 100, whole, b"\0" * 100 + b"b" * (2 * SECTOR), b"\0" * len(whole)} <= found
    assert len(found) > 10
    assert torn(files.operations[2], 7).data == b"a" * 7


def test_nothing_outside_may_be_changed(tmp_path: Path) -> None:
    """A record of half of what happens would prove nothing."""
    (tmp_path / "root").mkdir()
    files = RecordingFiles(str(tmp_path / "root"))
    with pytest.raises(ValueError, match="is not under"):
        files.create(str(tmp_path / "elsewhere"))
