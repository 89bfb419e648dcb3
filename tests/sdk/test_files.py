"""sdk.files: the promises of `Files` and `File`, kept by the real disk."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdk import files
from sdk.files import DISK, EXPORTS, Disk, DiskFile, read_whole, sync_names


def mode(path: object) -> int:
    return stat.S_IMODE(os.stat(str(path)).st_mode)


def test_append_returns_offsets_and_read_gives_the_bytes_back(tmp_path: Path) -> None:
    """What is appended stands at the returned offset; reading past the end gives what there is."""
    file = DISK.create(str(tmp_path / "f"))
    assert file.append([b"abc", b"", memoryview(b"de")]) == 0
    assert file.append([bytearray(b"f")]) == 5
    assert file.append([]) == 6
    assert (file.size, file.read(0, 100), file.read(4, 1), file.read(6, 1), file.read(99, 1)) == (
        6,
        b"abcdef",
        b"e",
        b"",
        b"",
    )
    file.close()
    file.close()


@pytest.mark.parametrize("count", [files._IOV_MAX - 1, files._IOV_MAX, files._IOV_MAX + 1, 2 * files._IOV_MAX + 3])
def test_any_number_of_parts_is_written(tmp_path: Path, count: int) -> None:
    """More parts than one system call takes are written in order."""
    file = DISK.create(str(tmp_path / "f"))
    parts = [bytes([i % 251]) * (i % 3) for i in range(count)]
    file.append(parts)
    assert file.read(0, file.size + 1) == b"".join(parts)
    file.close()


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes one byte at a time changes nothing."""
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, views, offset: real(fd, [views[0][:1]], offset))
    file = DISK.create(str(tmp_path / "f"))
    file.append([b"hello", b"", b"world"])
    assert file.read(0, 100) == b"helloworld"
    file.close()


@pytest.mark.parametrize("written_before", range(11))
def test_failed_append_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_before: int) -> None:
    """A disk that fills up in the middle of an append leaves the file as it was, and the next append goes on there."""
    file = DISK.create(str(tmp_path / "f"))
    file.append([b"before"])
    real, room = os.pwritev, [written_before]

    def full_soon(descriptor: int, views: list[memoryview], offset: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "no space")
        part = views[0][: room[0]]
        room[0] -= len(part)
        return real(descriptor, [part], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full_soon)
        with pytest.raises(OSError, match="no space"):
            file.append([b"hello", b"world!"])
    assert (file.size, os.path.getsize(file.path)) == (6, 6)
    assert file.append([b"after"]) == 6
    assert file.read(0, 100) == b"beforeafter"
    file.close()


def test_exports_are_as_the_umask_says(tmp_path: Path) -> None:
    """What a user has written for others can be read by them, if the umask lets them; each operation that makes something."""
    old = os.umask(0o027)
    try:
        EXPORTS.create(str(tmp_path / "f")).close()
        EXPORTS.make_directory(str(tmp_path / "a" / "b"))
        EXPORTS.write_whole(str(tmp_path / "w"), b"x")
    finally:
        os.umask(old)
    assert [mode(tmp_path / name) for name in ("f", "a", "a/b", "w")] == [0o640, 0o750, 0o750, 0o640]


def test_create_is_exclusive_private_and_follows_no_link(tmp_path: Path) -> None:
    """A taken name is FileExistsError, modes do not depend on who looks, a link is refused."""
    old = os.umask(0)
    try:
        DISK.create(str(tmp_path / "f")).close()
        DISK.make_directory(str(tmp_path / "a" / "b"))
        DISK.make_directory(str(tmp_path / "a" / "b"))
    finally:
        os.umask(old)
    assert (mode(tmp_path / "f"), mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o600, 0o700, 0o700)
    DISK.make_directory(str(tmp_path / "c" / "d") + "/")
    with pytest.raises(FileExistsError):
        DISK.make_directory(str(tmp_path / "f"))
    with pytest.raises(NotADirectoryError):
        DISK.make_directory(str(tmp_path / "f" / "g"))
    with pytest.raises(FileExistsError):
        DISK.create(str(tmp_path / "f"))
    (tmp_path / "link").symlink_to(tmp_path / "f")
    for attempt in (
        lambda: DISK.open(str(tmp_path / "link")),
        lambda: DISK.open(str(tmp_path / "link"), write=True),
        lambda: DISK.create(str(tmp_path / "link")),
    ):
        with pytest.raises(OSError):
            attempt()


def test_refresh_sees_what_another_writer_appended(tmp_path: Path) -> None:
    """`size` is what was known; `refresh` asks again."""
    writer, reader = DISK.create(str(tmp_path / "f")), None
    writer.append([b"one"])
    reader = DISK.open(str(tmp_path / "f"))
    writer.append([b"two"])
    assert reader.size == 3
    reader.refresh()
    assert reader.size == 6
    with pytest.raises(OSError):
        reader.append([b"x"])
    writer.truncate(2)
    assert writer.append([b"!"]) == 2
    reader.refresh()
    assert reader.read(0, 9) == b"on!"
    writer.sync()
    writer.close()
    reader.close()


def test_a_name_that_goes_while_we_look_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that takes another's place between the listing and the look at its size is among the entries."""
    (tmp_path / "a").write_bytes(b"123")
    real, calls = os.scandir, []

    def scandir(path: str) -> Any:
        calls.append(path)
        if len(calls) > 1:
            return real(path)
        listed = list(real(path))
        os.rename(tmp_path / "a", tmp_path / "b")
        return contextlib.nullcontext(iter(listed))

    monkeypatch.setattr(os, "scandir", scandir)
    assert [entry[:2] for entry in DISK.entries(str(tmp_path))] == [("b", 3)]


def test_entries_are_sorted_and_tell_size_and_time(tmp_path: Path) -> None:
    """Names in order with sizes; a missing directory and a plain file have no entries; a link is not followed."""
    (tmp_path / "b").write_bytes(b"12345")
    (tmp_path / "a").write_bytes(b"")
    os.utime(tmp_path / "b", (1000, 2000))
    (tmp_path / "c").symlink_to(tmp_path / "b")
    found = DISK.entries(str(tmp_path))
    assert [(name, size) for name, size, _ in found][:2] == [("a", 0), ("b", 5)]
    assert found[1][2] == 2000
    assert found[2][0] == "c" and found[2][1] != 5
    assert DISK.entries(str(tmp_path / "none")) == []
    assert DISK.entries(str(tmp_path / "b")) == []


def test_write_whole_replaces_by_rename(tmp_path: Path) -> None:
    """A reader that has the old file open keeps the old bytes, the name gives the new ones, and no draft is left."""
    path = str(tmp_path / "f")
    DISK.write_whole(path, b"old")
    reader = DISK.open(path)
    DISK.write_whole(path, b"newer")
    assert (reader.read(0, 9), read_whole(DISK, path, 5), mode(path)) == (b"old", b"newer", 0o600)
    reader.close()
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("broken", ["append", "sync"])
def test_write_whole_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """A failure before the rename leaves the old bytes and no draft."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    path = str(tmp_path / "f")
    DISK.write_whole(path, b"old")
    monkeypatch.setattr(DiskFile, broken, fail)
    with pytest.raises(OSError, match="broken disk"):
        DISK.write_whole(path, b"new")
    monkeypatch.undo()
    assert read_whole(DISK, path, 3) == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_read_whole_refuses_a_larger_file(tmp_path: Path) -> None:
    """Size at the limit is read, one more byte is EFBIG."""
    (tmp_path / "f").write_bytes(b"x" * 10)
    assert read_whole(DISK, str(tmp_path / "f"), 10) == b"x" * 10
    with pytest.raises(OSError) as caught:
        read_whole(DISK, str(tmp_path / "f"), 9)
    assert caught.value.errno == errno.EFBIG


def test_names(tmp_path: Path) -> None:
    """exists, rename, remove, remove_tree, sync_directory and free_bytes do what they say; a dangling link exists."""
    path = str(tmp_path / "f")
    DISK.write_whole(path, b"x")
    DISK.rename(path, path + "2")
    assert not DISK.exists(path) and DISK.exists(path + "2")
    DISK.remove(path + "2")
    assert not DISK.exists(path + "2")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert DISK.exists(str(tmp_path / "dangling"))
    DISK.make_directory(str(tmp_path / "d" / "e"))
    DISK.remove_tree(str(tmp_path / "d"))
    assert not DISK.exists(str(tmp_path / "d"))
    DISK.sync_directory(str(tmp_path))
    assert DISK.free_bytes(str(tmp_path)) > 0
    assert isinstance(DISK, Disk)


def test_a_patch_changes_bytes_that_are_there_and_nothing_else(tmp_path: Path) -> None:
    """`patch` never grows a file: what reaches beyond the end is refused before a byte changes."""
    file = DISK.create(str(tmp_path / "a"))
    file.append([b"0123456789"])
    file.patch(3, b"xyz")
    assert file.read(0, 20) == b"012xyz6789"
    assert file.size == 10
    for offset in (8, -1):
        with pytest.raises(ValueError, match="cannot patch"):
            file.patch(offset, b"abc")
    file.close()


def test_a_torn_tail_that_stayed_is_cut_before_the_next_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses the cut as well leaves the tail; no append goes in front of it, and none behind it."""
    file = DISK.create(str(tmp_path / "f"))
    file.append([b"before"])
    real = os.pwritev
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", raising(errno.EIO))
        patch.setattr(
            os, "pwritev", lambda fd, views, offset: real(fd, [views[0][:3]], offset) if offset == 6 else fail()
        )
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                file.append([b"much longer than what follows"])
            assert (file.size, os.path.getsize(file.path)) == (6, 9)
    assert file.append([b"x"]) == 6
    assert Path(file.path).read_bytes() == b"beforex"
    file.close()


def fail() -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def raising(number: int) -> Callable[..., None]:
    """A function that fails with this errno."""

    def call(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def test_a_disk_that_takes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of zero bytes is not repeated for ever."""
    file = DISK.create(str(tmp_path / "f"))
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="takes nothing"):
        file.append([b"x"])
    file.close()


def test_who_cannot_tell_does_not_say_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`exists` is False where there is nothing, and an error where the disk does not answer."""
    assert not DISK.exists(str(tmp_path / "none"))
    assert not DISK.exists(str(tmp_path / "none" / "below"))
    monkeypatch.setattr(os, "lstat", raising(errno.ESTALE))
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        DISK.exists(str(tmp_path))


def test_of_many_who_make_a_file_the_first_wins(tmp_path: Path) -> None:
    """`write_new` changes nothing that is there, says so, and leaves no draft."""
    path = str(tmp_path / "f")
    assert DISK.write_new(path, b"first")
    assert not DISK.write_new(path, b"second")
    assert read_whole(DISK, path, 9) == b"first"
    assert os.listdir(tmp_path) == ["f"]
    assert mode(path) == 0o600


@pytest.mark.parametrize(("number", "made"), [(errno.EPERM, True), (errno.ENOSPC, False)])
def test_a_file_is_made_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, made: bool
) -> None:
    """Where there are none it is renamed into place; any other trouble is told, and nothing is left behind."""
    monkeypatch.setattr(os, "link", raising(number))
    path = str(tmp_path / "f")
    if made:
        assert DISK.write_new(path, b"x")
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            DISK.write_new(path, b"x")
    assert os.listdir(tmp_path) == ["f"] * made


def test_owner_tells_whose_it_is(tmp_path: Path) -> None:
    """Uid and mode of what a link leads to."""
    (tmp_path / "f").touch(mode=0o640)
    (tmp_path / "link").symlink_to(tmp_path / "f")
    uid, found = DISK.owner(str(tmp_path / "link"))
    assert (uid, stat.S_IMODE(found)) == (os.getuid(), mode(tmp_path / "f"))


def test_names_are_forced_from_below(tmp_path: Path) -> None:
    """A directory, then the one that holds its name, as many as asked for."""
    forced: list[str] = []

    class Noting(Disk):
        def sync_directory(self, path: str) -> None:
            forced.append(path)

    sync_names(Noting(), str(tmp_path / "a" / "b"), 2)
    assert forced == [str(tmp_path / "a" / "b"), str(tmp_path / "a")]


@pytest.mark.parametrize(("number", "fine"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_force_directories_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fine: bool
) -> None:
    """It says EINVAL and would always; EIO is what it says."""
    monkeypatch.setattr(os, "fsync", raising(number))
    if fine:
        DISK.sync_directory(str(tmp_path))
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            DISK.sync_directory(str(tmp_path))


@pytest.mark.parametrize("room", range(0, 300, 64))
def test_the_kernels_own_short_writes_leave_nothing(tmp_path: Path, room: int) -> None:
    """A limit on a file's size lets the kernel write a part and then refuse: the part is cut off again."""
    file = DISK.create(str(tmp_path / "f"))
    file.append([b"before"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 + room, hard))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            file.append([b"x" * 200, b"y" * 200])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (file.size, os.path.getsize(file.path)) == (6, 6)
    assert file.append([b"after"]) == 6
    file.close()


def test_a_clone_is_a_new_private_file_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system shares no bytes, or the name is taken, nothing is left; the kernel is asked on both files."""
    import fcntl

    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    Path(source).write_bytes(b"abc")

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no such thing")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(OSError, match="no such thing"):
        DISK.clone(source, target)
    assert not os.path.exists(target)
    monkeypatch.setattr(fcntl, "ioctl", lambda made, number, whole: os.write(made, os.read(whole, 10)))
    DISK.clone(source, target)
    assert Path(target).read_bytes() == b"abc"
    assert os.stat(target).st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        DISK.clone(source, target)
    assert Path(target).read_bytes() == b"abc"


def test_status_follows_links(tmp_path: Path) -> None:
    """Size, time and identity are those of the file."""
    (tmp_path / "file").write_bytes(b"abc")
    os.utime(tmp_path / "file", ns=(5, 7))
    os.symlink(tmp_path / "file", tmp_path / "link")
    found = DISK.status(str(tmp_path / "link"))
    assert found == DISK.status(str(tmp_path / "file"))
    assert (found.size, found.modified_ns, found.is_regular) == (3, 7, True)
    assert not DISK.status(str(tmp_path)).is_regular
