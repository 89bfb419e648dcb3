from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from daemon.observe import live
from daemon.observe.live import PERIOD_SECONDS, LiveFiles, refresh
from sdk import runfiles
from sdk._files import LIVE_FILE
from sdk.platform import machine_id
from sdk.segment.naming import machine_tag


class Run:
    """A run's directory, and a working directory with files that change."""

    def __init__(self, path: Path) -> None:
        self.directory, self.work = str(path / "run"), path / "work"
        os.makedirs(self.directory)
        os.makedirs(self.work)

    def tell(self, *patterns: tuple[str, str], machine: str | None = None) -> None:
        """What a trainer leaves."""
        told = [[str(self.work / pattern), str(self.work), True, policy] for pattern, policy in patterns]
        machine = machine_tag(machine_id()) if machine is None else machine
        lines = [json.dumps(line) for line in ({"machine": machine}, *told)]
        Path(self.directory, LIVE_FILE).write_text("\n".join(lines) + "\n")

    def write(self, name: str, text: str, age: float = 100.0) -> None:
        path = self.work / name
        path.write_text(text)
        then = path.stat().st_mtime - age
        os.utime(path, (then, then))

    @property
    def kept(self) -> dict[str, str]:
        files = runfiles.files_path(self.directory)
        return {file.name: Path(files, file.name).read_text() for file in runfiles.walk(files)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_what_has_changed_is_copied(run: Run) -> None:
    """Also a file that the pattern means only now; not what is as it was, nor what may still be written."""
    run.tell(("*.pt", "live"), ("z", "end"))
    run.write("a.pt", "one")
    run.write("z", "end")
    assert refresh(run.directory, False) == 1 and refresh(run.directory, False) == 0
    run.write("a.pt", "three", age=50)
    run.write("b.pt", "new")
    run.write("c.pt", "young", age=0)
    assert refresh(run.directory, False) == 2
    assert run.kept == {"a.pt": "three", "b.pt": "new"}


def test_after_the_end_everything_is_copied_once(run: Run) -> None:
    """Of a trainer that was killed: what it would have copied itself, and its list is gone."""
    run.tell(("*.pt", "live"), ("z", "end"))
    run.write("a.pt", "one", age=0)
    run.write("z", "end", age=0)
    assert refresh(run.directory, True) == 2
    assert run.kept == {"a.pt": "one", "z": "end"} and os.listdir(run.directory) == ["files"]


def test_paths_of_another_machine_mean_nothing(run: Run) -> None:
    """A store on a network file system is seen by several."""
    run.tell(("*", "live"), machine="0badcafe")
    run.write("a", "one")
    assert refresh(run.directory, False) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "{}",
        "[[[",
        '{"machine": 1}',
        '{"machine": "x"}\n[1]\n5\n[[[',
        '{"machine": "x"}\n' + "[" * 10_000,
        "[" * 10_000,
    ],
)
def test_a_hostile_list(run: Run, text: str) -> None:
    """Whatever stands there, nothing is copied and nothing raises."""
    Path(run.directory, LIVE_FILE).write_text(text.replace("x", machine_tag(machine_id())))
    assert refresh(run.directory, False) == 0


def test_a_line_that_is_half_written(run: Run) -> None:
    """Those before it count."""
    run.tell(("a", "live"), ("b", "live"))
    run.write("a", "one")
    run.write("b", "two")
    path = Path(run.directory, LIVE_FILE)
    path.write_text(path.read_text()[:-5])
    assert refresh(run.directory, False) == 1 and run.kept == {"a": "one"}


def test_a_copy_that_comes_too_late_is_made_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's own last copy is newer than one that was begun before: the older one must not stay."""
    run.tell(("a", "live"))
    run.write("a", "old")
    copy = runfiles.copy_in
    calls: list[int] = []

    def late(source: str, directory: str, name: str) -> int:
        copied = copy(source, directory, name)
        if not calls:
            run.write("a", "newer", age=10)
        calls.append(copied)
        return copied

    monkeypatch.setattr(runfiles, "copy_in", late)
    refresh(run.directory, False)
    assert run.kept == {"a": "newer"} and len(calls) == 2


def test_a_disk_without_room_is_left_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look may find some."""
    run.tell(("a", "live"))
    run.write("a", "text")
    monkeypatch.setattr(live, "FREE_BYTES_MIN", 1 << 60)
    assert refresh(run.directory, False) == 0


def test_when_runs_are_looked_at(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, then each period; once more when the trainers are gone; never while a copy is still being made."""
    looked: list[tuple[str, bool]] = []
    files = LiveFiles()
    monkeypatch.setattr(files, "_ask", lambda *asked: looked.append(asked))
    run.tell(("a", "live"))

    def look(now: float, runs: dict[str, bool]) -> list[Any]:
        looked.clear()
        files.look(now, runs)
        return [is_over for _, is_over in looked]

    here = run.directory
    assert look(0.0, {here: False}) == [False]
    assert look(1.0, {here: False}) == []
    assert look(PERIOD_SECONDS, {here: False}) == [False]
    assert look(PERIOD_SECONDS + 1, {here: True}) == [True]
    assert look(PERIOD_SECONDS * 9, {here: True}) == []
    assert look(PERIOD_SECONDS * 9, {here: False}) == [False]  # it was resumed
    assert look(PERIOD_SECONDS * 9, {}) == [] and look(PERIOD_SECONDS * 9, {here: False}) == [False]
    files._busy.add(here)
    assert look(PERIOD_SECONDS * 20, {here: False}) == []
    files._busy.clear()
    os.unlink(os.path.join(here, LIVE_FILE))
    assert look(PERIOD_SECONDS * 30, {here: False}) == []
