"""`stepd show RUN KEY` and what `stepd export` writes beside the rows."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import CliRunner

import sdk
from daemon.cli import cli
from sdk.record import BlobRef, encode_blob_ref
from tests.builders import RunBuilder, make_store
from tests.called import said, stepd
from tests.media_rig import MediaBuilder, packed

PNG = {"media": "image-file", "format": "png"}
EVIL = "\x1b]0;owned\x07\x1b[2J"


@pytest.fixture
def made(tmp_path: Path) -> MediaBuilder:
    run = RunBuilder(make_store(tmp_path))
    return MediaBuilder(run, run.stream())


@pytest.fixture
def store(tmp_path: Path, made: MediaBuilder) -> str:
    """Three steps: images in a list, a table, a tensor, a histogram, plain values."""
    for step in range(3):
        pictures = [image(made, bytes([step, n]), caption=f"cat {n}") for n in range(2)]
        made.log_packed({"val/x": pictures, "loss": step / 2})
    made.log({
        "t": sdk.Table(columns=["id", "word"], data=[[1, "a"], [2, EVIL]]),
        "w": numpy.arange(9000, dtype="f4"),
        "h": sdk.Histogram([1.0, 2.0, 2.5]),
    })  # fmt: skip
    made.seal()
    return str(tmp_path / "store")


def image(made: MediaBuilder, data: bytes, **more: Any) -> Any:
    return packed("image-file", format="png", width=4, height=3, data=made.blob(data, PNG), **more)


def test_the_run_tells_kinds(store: str) -> None:
    """Keys of media say which, the summary shows them in a few words."""
    text = said(store, "show", "a41f")
    assert "val/  x (image)" in text
    assert "h (histogram), loss, t (table), w (tensor)" in text
    assert "2 media: <image 'val/x' step 2 4×3 png 'cat 0'>, …" in text
    document = json.loads(said(store, "show", "a41f", "--json"))
    assert document["media"] == {"val/x": "image", "t": "table", "w": "tensor", "h": "histogram"}
    assert document["summary"]["val/x"][0]["caption"] == "cat 0"


def test_a_key(store: str) -> None:
    """One line for each value, with what it says of itself; a step narrows it; the run may be left out."""
    lines = said(store, "show", "a41f", "val/x").splitlines()
    assert lines[0].split() == ["KEY", "STEP", "INDEX", "KIND", "WHAT", "CAPTION", "SIZE"]
    assert len(lines) == 7 and lines[1].split() == ["val/x", "0", "0", "image", "4×3", "png", "cat", "0", "2", "B"]
    assert said(store, "show", "val/*", "--step", "2").count("cat") == 2
    found = json.loads(said(store, "show", "val/x", "--step", "1", "--json"))
    assert [(f["step"], f["index"], f["kind"], f["stored"]) for f in found] == [
        (1, 0, "image", True),
        (1, 1, "image", True),
    ]
    assert "nothing under 'val/x' at step 9" in stepd(store, "show", "val/x", "--step", "9").stderr


def test_what_is_inside(store: str) -> None:
    """A single table shows rows, a tensor its statistics, a histogram its range, a plain key its last value."""
    text = said(store, "show", "t")
    assert "2 rows, 2 columns table.json" in text and "\nid  word\n" in text
    text = said(store, "show", "w")
    assert "float32[9000]" in text and "mean       4499.5" in text
    assert "3 values in 64 bins from 1 to 2.5" in said(store, "show", "h")
    assert said(store, "show", "loss") == "loss  step 2  1\n"
    assert said(store, "show", "loss", "--step", "1") == "loss  step 1  0.5\n"


def test_writing_one(store: str, tmp_path: Path) -> None:
    """To a file, which is not replaced unless asked for; into a directory that is there; to a pipe."""
    target = str(tmp_path / "w.npy")
    assert said(store, "show", "w", "-o", target).endswith(f"wrote {target}\n")
    assert numpy.load(target).tolist() == list(range(9000))
    result = stepd(store, "show", "w", "-o", target)
    assert result.exit_code == 1 and "exists" in result.stderr and "--overwrite" in result.stderr
    said(store, "show", "w", "-o", target, "--overwrite")
    assert f"wrote {tmp_path}/t_3_0.table.json" in said(store, "show", "t", "-o", str(tmp_path))
    result = CliRunner().invoke(cli, ["--dir", store, "show", "w", "-o", "-"])
    assert numpy.load(io.BytesIO(result.stdout_bytes)).tolist() == list(range(9000))


def test_writing_several(store: str, tmp_path: Path) -> None:
    """Into a directory, which is made; standard output takes one only."""
    target = tmp_path / "out"
    said(store, "show", "val/x", "-o", str(target))
    assert sorted(os.listdir(target)) == [f"val_x_{step}_{n}.png" for step in range(3) for n in range(2)]
    assert (target / "val_x_2_1.png").read_bytes() == b"\x02\x01"
    found = json.loads(said(store, "show", "val/x", "--step", "0", "-o", str(target), "--overwrite", "--json"))
    assert [f["file"] for f in found] == [str(target / f"val_x_0_{n}.png") for n in range(2)]
    assert "takes one file" in stepd(store, "show", "val/x", "-o", "-").stderr
    assert "no media to write" in stepd(store, "show", "loss", "-o", str(target)).stderr


def test_misuse(store: str) -> None:
    """--step and -o are about keys; an unknown word is neither a run nor a key."""
    assert stepd(store, "show", "a41f", "--step", "1").exit_code == 2
    assert "no run matches 'nix'" in stepd(store, "show", "nix").stderr
    assert "no series 'nix'" in stepd(store, "show", "a41f", "nix").stderr


def test_hostile_media(made: MediaBuilder, tmp_path: Path) -> None:
    """Keys, captions, columns and formats of a hostile run neither steer the terminal nor leave the directory."""
    key = f"../../{EVIL}x"
    made.log_packed({key: image(made, b"<svg onload=x>", caption=EVIL, masks={EVIL: EVIL})})
    made.log({"t": sdk.Table(columns=[EVIL], data=[[EVIL]])})
    made.log_packed({"p": packed(EVIL, format="../../x.sh", data=made.blob(b"#!/bin/sh", {"format": "sh"}))})
    made.log_packed({"nul\0": image(made, b"1"), "nul_": image(made, b"2"), "NUL_": image(made, b"3")})
    made.seal()
    store, out = str(tmp_path / "store"), tmp_path / "deep" / "out"
    for words in (["show"], ["show", "*"], ["show", "t"], ["show", "p"], ["tail"], ["show", key], ["show", "--json"],
                  ["show", "*", "--json"], ["show", "*", "-o", str(out)]):  # fmt: skip
        text = said(store, *words)
        assert "\x1b" not in text and "\x07" not in text, words
    names = os.listdir(out)
    assert len(names) == len({name.lower() for name in names}) == 6
    assert {name.rpartition(".")[2] for name in names} == {"png", "json", "bin"}
    assert os.listdir(tmp_path / "deep") == ["out"]
    assert not any(os.access(out / name, os.X_OK) for name in names)


def test_bytes_that_are_gone(made: MediaBuilder, tmp_path: Path) -> None:
    """They are told as missing, in a table and in JSON; writing them says why."""
    ref = encode_blob_ref(BlobRef(made.stream.id, 5, 70))
    made.log_packed({"x": packed("image-file", format="png", data=ref)})
    gap = {"episode": "blob 5", "count": 0, "key": "x", "step_min": 0, "step_max": 0, "reason": "it died"}
    made.run.daemon.gap(made.stream, gap)
    made.seal()
    store = str(tmp_path / "store")
    assert said(store, "show", "x").splitlines()[1].endswith("missing")
    assert json.loads(said(store, "show", "x", "--json"))[0]["stored"] is False
    result = stepd(store, "show", "x", "-o", str(tmp_path / "x.png"))
    assert result.exit_code == 1 and "it died" in result.stderr and not (tmp_path / "x.png").exists()
    assert "the bytes of 'x' (step 0)" in said(store, "show")


# -- export --------------------------------------------------------------------------------------------------------------


def test_export_lines(store: str, tmp_path: Path) -> None:
    """Each media value is a file in NAME_media, whose path stands in its row."""
    result = stepd(store, "export", "-o", str(tmp_path / "run.jsonl"))
    assert result.exit_code == 0 and "and 9 media files into" in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    cell = rows[1]["val/x"][1]
    assert (cell["kind"], cell["caption"], cell["path"]) == ("image", "cat 1", "run_media/val_x_1_1.png")
    assert (tmp_path / cell["path"]).read_bytes() == b"\x01\x01"
    assert numpy.load(tmp_path / rows[3]["w"]["path"]).tolist() == list(range(9000))
    assert json.loads((tmp_path / rows[3]["t"]["path"]).read_text())["data"][0] == [1, "a"]
    assert len(os.listdir(tmp_path / "run_media")) == 9


def test_export_csv(store: str, tmp_path: Path) -> None:
    """A cell is the path of one value, or JSON of several."""
    said(store, "export", "--format", "csv", "-o", str(tmp_path / "run.csv"))
    with open(tmp_path / "run.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[3]["w"] == "run_media/w_3_0.npy"
    assert [part["path"] for part in json.loads(rows[0]["val/x"])] == [
        "run_media/val_x_0_0.png",
        "run_media/val_x_0_1.png",
    ]


def test_export_without_files(store: str, tmp_path: Path) -> None:
    """To standard output, and with --no-media, rows describe media and no file is written."""
    rows = [json.loads(line) for line in said(store, "export").splitlines()]
    assert rows[0]["val/x"][0]["caption"] == "cat 0"
    said(store, "export", "--no-media", "-o", str(tmp_path / "run.jsonl"))
    assert sorted(os.listdir(tmp_path)) == ["run.jsonl", "store"]


def test_export_replaces_no_directory(store: str, tmp_path: Path) -> None:
    """A directory of that name is left as it is, and nothing is left behind."""
    (tmp_path / "run_media").mkdir()
    result = stepd(store, "export", "-o", str(tmp_path / "run.jsonl"))
    assert result.exit_code == 1 and "run_media" in result.stderr and "--no-media" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["run_media", "store"]


def test_export_goes_on_without_what_is_gone(made: MediaBuilder, tmp_path: Path) -> None:
    """The row says why, the end how many."""
    ref = encode_blob_ref(BlobRef(made.stream.id, 5, 70))
    made.log_packed({"x": packed("image-file", format="png", data=ref), "y": image(made, b"y")})
    made.seal()
    result = stepd(str(tmp_path / "store"), "export", "-o", str(tmp_path / "run.jsonl"))
    assert result.exit_code == 0 and "1 media could not be written" in result.stderr
    row = json.loads((tmp_path / "run.jsonl").read_text())
    assert row["x"]["path"] is None and "is not stored" in row["x"]["error"]
    assert os.listdir(tmp_path / "run_media") == ["y_0_0.png"]


def test_export_of_what_a_blob_is_too_damaged_for(made: MediaBuilder, tmp_path: Path) -> None:
    """A run of which no media can be written leaves no directory."""
    ref = encode_blob_ref(BlobRef(made.stream.id, 5, 70))
    made.log_packed({"x": packed("image-file", format="png", data=ref)})
    made.seal()
    said(str(tmp_path / "store"), "export", "-o", str(tmp_path / "run.jsonl"))
    assert sorted(os.listdir(tmp_path)) == ["run.jsonl", "store"]
