"""sdk._strangers: what others write into the file that stdout is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdk._strangers import LAST_BYTES_MAX, LOOK_BYTES_MAX, SUSPECT_SECONDS, Strangers, descriptor_of, kind_of


class File:
    """A file that we write to, and others."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.write(self.descriptor, b"before us\n")
        self.strangers = Strangers(self.descriptor)
        self.now = 0.0

    def ours(self, *lines: str) -> None:
        for line in lines:
            os.write(self.descriptor, f"{line}\n".encode())
            self.strangers.wrote("stdout", f"{line}\n")
            self.strangers.said([line])

    def theirs(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def looks(self) -> list[str]:
        """What two looks find, as the first one only suspects."""
        return self.look() + self.look()

    def look(self, *, is_last: bool = False) -> list[str]:
        self.now += SUSPECT_SECONDS
        return self.strangers.look(self.now, is_last=is_last)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    made = File(tmp_path / "out")
    yield made
    os.close(made.descriptor)


def test_our_own_lines_are_none_of_theirs(file: File) -> None:
    """A file that grew by what we wrote is not even read."""
    file.ours("one", "two")
    assert file.looks() == []
    file.ours("three")
    assert file.look(is_last=True) == []


def test_lines_of_others_are_found(file: File) -> None:
    """Among ours, in their order, each once; equal ones as often as they are too many."""
    file.ours("one")
    file.theirs("x\none\n")
    file.ours("two", "one")
    assert file.looks() == ["x", "one"]
    file.theirs("y\n")
    file.ours("three")
    assert file.looks() == ["y"]
    file.ours("four")
    assert file.looks() == [] and file.look(is_last=True) == []


def test_a_line_is_stored_when_it_is_whole(file: File) -> None:
    """Half a line waits for its rest, or for the end."""
    file.theirs("hal")
    assert file.looks() == []
    file.theirs("f\nrest")
    assert file.looks() == ["half"]
    assert file.look(is_last=True) == ["rest"]


def test_a_thread_that_has_not_told_us_yet(file: File) -> None:
    """What is in the file at one look and ours at the next is ours."""
    os.write(file.descriptor, b"mine\n")
    assert file.look() == []
    file.strangers.wrote("stdout", "mine\n")
    file.strangers.said(["mine"])
    assert file.looks() == []


def test_what_lies_in_a_buffer(file: File) -> None:
    """Lines that we have written and that are not in the file yet hide others until they are there."""
    file.strangers.wrote("stdout", "mine\n")
    file.strangers.said(["mine"])
    file.theirs("x\n")
    assert file.looks() == []
    os.write(file.descriptor, b"mine\n")
    assert file.looks() == ["x"]


def test_bars_and_colours_of_others(file: File) -> None:
    """They are folded like ours."""
    file.theirs("\r1 %\r2 %\x1b[31m!\x1b[0m\n")
    assert file.looks() == ["2 %!"]


def test_lines_of_forked_children(file: File) -> None:
    """A child tells what it stores itself; the rest of what it writes is found."""
    child = os.fork()
    if not child:
        file.strangers.become_child()
        file.ours("of the child")
        file.theirs("of its child\n")
        os._exit(0 if file.look(is_last=True) == [] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file.looks() == ["of its child"]


def test_a_file_that_was_cut(file: File) -> None:
    """A log rotation that empties the file is a new beginning."""
    file.ours("one")
    assert file.looks() == []
    os.truncate(file.descriptor, 0)
    assert file.looks() == []
    file.ours("two")
    file.theirs("x\n")
    assert file.looks() == ["x"]


@pytest.mark.parametrize(("is_last", "limit"), [(False, LOOK_BYTES_MAX), (True, LAST_BYTES_MAX)])
def test_too_much_is_counted(file: File, is_last: bool, limit: int) -> None:
    """What is more than a look reads is passed over, and its bytes are told."""
    line = "x" * 999 + "\n"
    file.theirs(line * (limit // 1000 + 100))
    found = file.looks() if not is_last else file.look(is_last=True)
    assert found.count(line[:-1]) == limit // 1000
    assert file.strangers.missed == (limit // 1000 + 100) * 1000 - limit


def test_trouble_with_the_file_is_nobodys(file: File) -> None:
    """A descriptor that was closed gives no lines."""
    os.close(file.descriptor)
    assert file.looks() == []
    file.descriptor = os.open(os.devnull, os.O_WRONLY)


def test_kinds(tmp_path: Path) -> None:
    """What a descriptor is."""
    reader, writer = os.pipe()
    with open(tmp_path / "x", "w", encoding="utf-8") as text, open(os.devnull, "w", encoding="utf-8") as null:
        assert kind_of(text.fileno()) == "file" and kind_of(null.fileno()) == "device" and kind_of(reader) == "pipe"
        assert descriptor_of(text) == text.fileno()
    assert descriptor_of(text) is None and descriptor_of(object()) is None
    os.close(reader)
    os.close(writer)
