"""sdk.files.failing: the N-th operation fails, as it was asked to, and nothing else does."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from sdk.files import DISK, Files
from sdk.files.failing import ALL, FAULTS, LOST, SHORT, FailingFiles, Fault

ERRORS = {errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EINTR, errno.ESTALE}
EVERYTHING = Fault("everything", errno.EIO, ALL)


def fault(name: str) -> Fault:
    return next(found for found in FAULTS if found.name == name)


def everything(files: Files, root: Path) -> None:
    """Each operation at least once."""
    path = str(root / "d" / "f")
    files.make_directory(str(root / "d"))
    file = files.create(path)
    file.append([b"abc", b"def"])
    file.patch(1, b"B")
    file.read(0, 9)
    file.refresh()
    file.truncate(5)
    file.sync()
    file.close()
    files.open(path).close()
    files.write_whole(path + "2", b"x")
    files.write_new(path + "3", b"x")
    files.rename(path + "2", path + "4")
    files.remove(path)
    files.sync_directory(str(root / "d"))
    files.exists(path)
    files.entries(str(root))
    files.owner(str(root))
    files.free_bytes(str(root))
    files.disk_bytes(str(root))
    list(files.sizes(str(root)))
    files.remove_tree(str(root / "d"))


def test_every_errno_that_a_disk_gives_is_there() -> None:
    """And the two failures that are more than an errno."""
    assert {found.error for found in FAULTS} == ERRORS
    assert {found.effect for found in FAULTS} == {"", SHORT, LOST}
    assert all(found.operations <= ALL for found in FAULTS)


def test_a_disk_that_is_not_told_to_fails_nothing(tmp_path: Path) -> None:
    """It is the disk below."""
    files = FailingFiles()
    everything(files, tmp_path)
    files.fail(EVERYTHING, 10**9)
    everything(files, tmp_path)
    assert files.fired == 0
    assert files.count > len(ALL)


@pytest.mark.parametrize("forever", [False, True])
def test_the_nth_operation_fails(tmp_path: Path, forever: bool) -> None:
    """For each N until all is done without: the error is raised, and counted from where it was asked for."""
    n = 0
    while True:
        n += 1
        files, root = FailingFiles(), tmp_path / str(n)
        root.mkdir()
        files.fail(EVERYTHING, n, forever=forever)
        with contextlib.suppress(OSError):
            everything(files, root)
            assert files.fired in (0, 1), "an error that nobody saw: cleaning up is all that may be tried in vain"
        if not files.fired:
            break
        assert files.count >= n
        assert forever or files.fired == 1
    assert n > 30


def test_only_what_can_meet_a_fault_does(tmp_path: Path) -> None:
    """A full disk is read as ever, and a file that was only read closes."""
    files = FailingFiles()
    files.fail(fault("ENOSPC"), forever=True)
    DISK.write_whole(str(tmp_path / "f"), b"abc")
    file = files.open(str(tmp_path / "f"))
    assert file.read(0, 9) == b"abc"
    file.close()
    assert files.entries(str(tmp_path))[0][0] == "f"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        files.create(str(tmp_path / "g"))


def test_a_short_write_leaves_a_tail_that_the_next_append_removes(tmp_path: Path) -> None:
    """`size` is what it was; the bytes are there for whoever reads the file meanwhile."""
    files = FailingFiles()
    file = files.create(str(tmp_path / "f"))
    file.append([b"abc"])
    files.fail(fault("short write"))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        file.append([b"0123", b"4567"])
    assert (file.size, (tmp_path / "f").read_bytes()) == (3, b"abc0123")
    assert file.append([b"d"]) == 3
    assert (tmp_path / "f").read_bytes() == b"abcd"
    file.close()


def test_pages_that_could_not_be_written_may_be_gone(tmp_path: Path) -> None:
    """What was forced before stays, what came since is zeros; the next sync says that all is well, as Linux does."""
    files = FailingFiles()
    file = files.create(str(tmp_path / "f"))
    file.append([b"safe"])
    file.sync()
    file.append([b"gone"])
    files.fail(fault("fsync and the pages are gone"))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        file.sync()
    assert file.read(0, 9) == b"safe\0\0\0\0"
    file.sync()
    assert files.synced == [file.path] * 3
    file.close()


def test_operations_are_refused_by_name(tmp_path: Path) -> None:
    """Some of them go through first, if asked; `allow` ends it all."""
    files = FailingFiles()
    file = files.create(str(tmp_path / "f"))
    files.refuse("append", "create", error=errno.EDQUOT)
    files.allowances["append"] = 1
    file.append([b"one"])
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        file.append([b"two"])
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        files.write_whole(str(tmp_path / "g"), b"x")
    files.allow()
    file.append([b"three"])
    assert file.read(0, 99) == b"onethree"
    file.close()
