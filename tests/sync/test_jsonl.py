"""Lines of JSON: the files of a run, cut back after a kill, written anew when somebody changed them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import sdk
from daemon.sync import outcome
from daemon.sync.appending import AppendFile
from daemon.sync.carrying import carry_run
from daemon.sync.cursor import Cursor
from daemon.sync.outcome import Outcome
from daemon.sync.place import parse
from daemon.sync.registry import make
from daemon.sync.targets import jsonl
from tests.builders import START_NS, RunBuilder, make_store
from tests.contracts.sides import digests
from tests.media_rig import MediaBuilder


class Killed(BaseException):
    """In the place of SIGKILL."""


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def carry(store: str, out: Path, run: str = "a41f") -> Outcome:
    return carry_run(store, run, make(parse(f"jsonl:{out}")))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_a_row_is_a_line(store: str, tmp_path: Path) -> None:
    """With its step, time, sequence and stream; what was logged under these names has another one."""
    run = RunBuilder(store)
    main = run.stream()
    main.log({"loss": 0.1, "_step": 7, "big": 2**60, "text": "ü\ud800", "none": None, "list": [1, {"a": b"\0"}]})
    main.finish()
    run.seal()
    assert carry(store, tmp_path / "out").is_exact
    (row,) = read(tmp_path / f"out/digits/a41f/rows-{main.hex}.jsonl")
    assert row == {
        "_step": 0, "_timestamp": START_NS / 1e9 + 0.002, "_sequence": 2, "_stream": main.hex, "_logged_step": 7, "loss": 0.1,
        "big": 2**60, "text": "ü\ud800", "none": None, "list": [1, {"a": {"base64": "AA=="}}],
    }  # fmt: skip


def test_others_may_read_what_the_umask_lets_them(store: str, tmp_path: Path) -> None:
    """Files, directories and media of the target are like any program's; those of the store are nobody else's."""
    run = RunBuilder(store)
    media = MediaBuilder(run, run.stream())
    media.log({"x": sdk.Image(numpy.zeros((4, 5), numpy.uint8))})
    media.stream.finish()
    media.seal()
    old = os.umask(0o027)
    try:
        carry(store, tmp_path / "out")
    finally:
        os.umask(old)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {0o640}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_dir()} == {0o750}


def test_what_accompanies_a_run(store: str, tmp_path: Path) -> None:
    """Console and system metrics are files of their own; facts say what is known and change with it."""
    run = RunBuilder(store, tags=["one"])
    main = run.stream()
    main.meta({"config": {"lr": 0.1}, "summary": {"best": 3}})
    main.log({"loss": 1.5})
    console, system = run.stream("console"), run.stream("system")
    console.log({"text": "hello"})
    system.log({"system/cpu": 12.5})
    run.flush()
    assert carry(store, tmp_path / "out").state == outcome.LIVE
    place = tmp_path / "out/digits/a41f"
    assert read(place / f"console-{console.hex}.jsonl")[0]["text"] == "hello"
    assert read(place / f"system-{system.hex}.jsonl")[0]["system/cpu"] == 12.5
    facts = json.loads((place / "facts.json").read_text())
    assert (facts["config"], facts["summary"]) == ({"lr": 0.1}, {"loss": 1.5, "best": 3})
    assert (facts["state"], facts["tags"], len(facts["streams"])) == ("running", ["one"], 3)
    main.meta({"run": {"name": "renamed", "project": "elsewhere"}})
    for stream in (main, console, system):
        stream.finish()
    run.seal()
    carry(store, tmp_path / "out")
    facts = json.loads((place / "facts.json").read_text())
    assert (facts["state"], facts["name"], facts["project"]) == ("finished", "renamed", "elsewhere")
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."] == ["digits"]


def test_media_are_files_beside(store: str, tmp_path: Path) -> None:
    """A row holds what a value says of itself and the path of its file; what cannot be read is counted."""
    run = RunBuilder(store)
    main = run.stream()
    media = MediaBuilder(run, main)
    pixels = numpy.arange(60, dtype=numpy.uint8).reshape(4, 5, 3)
    media.log({"val/x": [sdk.Image(pixels, caption="c"), sdk.Image(pixels)], "t": numpy.zeros(5000)})
    main.finish()
    media.seal()
    assert carry(store, tmp_path / "out").is_exact
    place = tmp_path / "out/digits/a41f"
    (row,) = read(place / f"rows-{main.hex}.jsonl")
    first, second = row["val/x"]
    assert (first["kind"], first["caption"], first["width"]) == ("image", "c", 5)
    assert (place / first["path"]).read_bytes()[:4] == b"\x89PNG"
    assert first["path"] != second["path"]
    assert numpy.load(place / row["t"]["path"]).shape == (5000,)
    for path in media.paths:
        Path(path).unlink()
    found = carry(store, tmp_path / "other")
    assert found.state == outcome.DELIVERED
    assert found.lost == {"files of tensor that cannot be read": 1}
    (row,) = read(tmp_path / f"other/digits/a41f/rows-{main.hex}.jsonl")
    assert row["t"]["path"] is None
    assert "is not stored" in row["t"]["error"]
    assert carry(store, tmp_path / "other").lost == found.lost, "counted once"


def test_deep_values(store: str, tmp_path: Path) -> None:
    """What is nested as deep as it can be logged is written too."""
    deep: Any = 1
    for _ in range(1000):
        deep = [deep]
    run = RunBuilder(store)
    main = run.stream()
    main.log({"deep": deep, "loss": 1.0})
    main.finish()
    run.seal()
    assert carry(store, tmp_path / "out").is_exact
    (line,) = (tmp_path / f"out/digits/a41f/rows-{main.hex}.jsonl").read_text().splitlines()
    assert line.count("[") == 1000


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_files_that_somebody_changed_are_written_anew(store: str, tmp_path: Path, harm: Callable[[Path], Any]) -> None:
    """A file that is gone or shorter than it was: everything of the run is carried again, once."""
    run = RunBuilder(store)
    main = run.stream()
    main.log({"loss": 1.0})
    run.flush()
    carry(store, tmp_path / "out")
    path = tmp_path / f"out/digits/a41f/rows-{main.hex}.jsonl"
    harm(path)
    main.log({"loss": 2.0})
    main.finish()
    run.seal()
    carry(store, tmp_path / "out")
    assert [row["loss"] for row in read(path)] == [1.0, 2.0]


def test_what_others_put_beside_stays(store: str, tmp_path: Path) -> None:
    """Of files that no cursor knows only those are removed that have names as only this target gives."""
    run = RunBuilder(store)
    main = run.stream()
    main.log({"loss": 1.0})
    main.finish()
    run.seal()
    place = tmp_path / "out/digits/a41f"
    (place / "media").mkdir(parents=True)
    names = ("notes.jsonl", "rows.jsonl", "media/figure.png", f"rows-{5:016x}.jsonl", f"media/{5:016x}-3-0-x_1_0.png")
    for name in names:
        (place / name).write_text("mine\n")
    assert carry(store, tmp_path / "out").is_exact
    assert [(place / name).exists() for name in names] == [True, True, True, False, False]


def test_killed_anywhere_the_files_are_the_same(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at each write, forcing and commit in turn, again and again: bytes are those of an undisturbed sync."""
    monkeypatch.setattr(jsonl, "_COMMIT_BYTES", 1)
    run = RunBuilder(store)
    streams = [run.stream(rank=rank) for rank in range(3)]
    for step in range(30):
        for stream in streams:
            stream.log({"loss": step / 4, "text": "x" * step})
    for stream in streams:
        stream.finish()
    run.seal()
    carry(store, tmp_path / "undisturbed")
    left = 0

    def dying(do: Any) -> Any:
        def done(*args: Any) -> Any:
            nonlocal left
            found = do(*args)
            left -= 1
            if left == 0:
                raise Killed
            return found

        return done

    for owner, name in ((AppendFile, "write"), (AppendFile, "force"), (Cursor, "write")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    kills = 0
    for k in range(1, 40):
        left = 1 + k % 4
        try:
            carry(store, tmp_path / "killed")
        except Killed:
            kills += 1
            with (tmp_path / f"killed/digits/a41f/rows-{streams[0].hex}.jsonl").open("ab") as file:
                file.write(b'{"half a li')  # what a kill in the middle of a write leaves
    left = 0
    carry(store, tmp_path / "killed")
    assert kills > 5
    found, expected = digests(tmp_path / "killed"), digests(tmp_path / "undisturbed")
    # Of a stream that was delivered nothing is opened again, so what was not written by us stays.
    del found[f"digits/a41f/rows-{streams[0].hex}.jsonl"], expected[f"digits/a41f/rows-{streams[0].hex}.jsonl"]
    assert found == expected
