"""daemon.importing.writing: what a source says of a run is what a reader gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

from daemon.importing.bringing import Brought, bring
from daemon.importing.source import Found, Source
from daemon.importing.writing import ImportedRun
from sdk.location import make_store
from sdk.reader import Run, Store
from sdk.values.image import Image

SECOND = 10**9
START = 1_700_000_000 * SECOND


class Says(Source):
    """A source whose one run says what a test has it say."""

    scheme = "says"

    def __init__(self, say: Callable[[ImportedRun], None]) -> None:
        super().__init__("")
        self._say = say

    def runs(self) -> list[Found]:
        return [Found("r1", "name", "project", "says:", "says", "1", 1, 10)]

    def read(self, found: Found, run: ImportedRun, moved: Callable[[int], None]) -> None:
        self._say(run)


def imported(tmp_path: Path, say: Callable[[ImportedRun], None], **options: Any) -> tuple[Run, Brought]:
    source = Says(say)
    store = make_store(str(tmp_path / "store"))
    (one,) = bring(store, source, source.runs(), **options)
    assert one.state == "imported", one
    return Store(store.path).run("r1"), one


def test_facts_before_and_after_rows_count(tmp_path: Path) -> None:
    """What is told later wins; the project of the command wins over both."""

    def say(run: ImportedRun) -> None:
        run.facts({"run": {"name": "early", "tags": ["a"], "project": "theirs"}, "config": {"lr": 1, "old": True}})
        run.row(0, START, {"loss": 1})
        run.facts({"run": {"name": "late"}, "config": {"lr": 2}, "summary": {"best": 0.5}})

    run, _ = imported(tmp_path, say, project="given")
    assert (run.name, run.project, list(run.tags)) == ("late", "given", ["a"])
    assert run.config == {"lr": 2, "old": True}
    assert run.summary["best"] == 0.5


def test_a_run_without_rows_is_there(tmp_path: Path) -> None:
    """With what is known of it."""
    run, one = imported(tmp_path, lambda run: run.facts({"config": {"lr": 1}}))
    assert (run.state, run.config, run.all_keys(), one.points) == ("finished", {"lr": 1}, [], 0)
    source = Says(lambda run: None)
    (again,) = bring(make_store(str(tmp_path / "store")), source, source.runs())
    assert again.state == "up to date"


def test_how_a_run_ended_is_told_once(tmp_path: Path) -> None:
    """All streams of its last attempt say so; the error is its error."""

    def say(run: ImportedRun) -> None:
        run.rows(numpy.arange(3), numpy.arange(3) + START // 1000, {"loss": numpy.arange(3.0)})
        run.line(START, "Traceback", "stderr")
        run.end("failed", 3, {"type": "ValueError", "message": "no", "traceback": ""})
        run.end("finished", 0)

    run, _ = imported(tmp_path, say)
    assert run.state == "failed"
    assert run.error is not None
    assert run.error.type == "ValueError"
    assert {stream.state for stream in run.streams if stream.kind == "main"} == {"failed"}


def test_what_cannot_be_stored_is_counted_and_the_rest_is_there(tmp_path: Path) -> None:
    """Values of a row one by one; steps of rows; files."""

    def say(run: ImportedRun) -> None:
        run.row(-1, START, {"a": 1, "b": 2})
        run.row(5, START, {"good": 1, "bad": 2**70, "odd": object()})
        run.rows(numpy.array([-2, 3]), numpy.array([1, 2]), {"x": numpy.array([1.0, 2.0]), "y": ["p", "q"]})
        run.file("../out", b"no")
        run.file("sub/in.txt", b"yes")

    run, one = imported(tmp_path, say)
    assert one.lost == {
        "values at steps below 0 or above 2**62": 4, "values that cannot be stored": 2, "files that could not be copied": 1,
    }  # fmt: skip
    assert not one.is_exact
    assert run.all_keys() == ["good", "x", "y"]
    assert run.series("y").value.tolist() == ["q"]
    assert [file.name for file in run.files()] == ["sub/in.txt"]
    assert not (tmp_path / "store" / "out").exists()


def test_lines_and_samples_are_streams_beside_the_training(tmp_path: Path) -> None:
    """No reading of the rows meets them."""

    def say(run: ImportedRun) -> None:
        for number in range(3):
            run.row(number, START + number * SECOND, {"loss": number})
            run.line(START + number * SECOND, f"line {number}")
            run.sample(START + number * SECOND, {"system/cpu": number / 2})

    run, _ = imported(tmp_path, say)
    assert run.all_keys() == ["loss"]
    assert [line.text for line in run.logs()] == ["line 0", "line 1", "line 2"]
    assert run.series("system/cpu").value.tolist() == [0.0, 0.5, 1.0]


def test_columns_and_rows_of_an_attempt_are_one_run(tmp_path: Path) -> None:
    """Values of one step that came in either way are one row; a later attempt hides both and nothing of itself."""

    def say(run: ImportedRun) -> None:
        for name, scale in (("one", 1), ("two", 10)):
            run.attempt(name, START, hide_from=3)
            steps = numpy.arange(6) if scale == 1 else numpy.arange(3, 8)
            run.rows(steps, steps + START // 1000, {"loss": steps * float(scale)})
            for step in steps.tolist():
                run.row(step, START, {"text": f"{name} {step}"})

    run, _ = imported(tmp_path, say)
    rows = [(row["_step"], row["loss"], row["text"]) for row in run.rows()]
    assert rows == [
        *((step, float(step), f"one {step}") for step in range(3)),
        *((step, step * 10.0, f"two {step}") for step in range(3, 8)),
    ]


def test_large_values_stand_apart_and_small_ones_in_the_row(tmp_path: Path) -> None:
    """As a training stores them: each can be read, and none is lost."""
    chance = numpy.random.default_rng(3)
    pictures = [chance.integers(0, 255, (size, size, 3), numpy.uint8) for size in (4, 200, 4, 200)]

    def say(run: ImportedRun) -> None:
        for step, pixels in enumerate(pictures):
            run.row(step, START, {"image": Image(pixels), "array": pixels.astype("f8"), "list": [Image(pixels)] * 2})

    run, one = imported(tmp_path, say)
    assert one.lost == {}
    for row, pixels in zip(run.rows(), pictures):
        assert (row["image"].to_numpy() == pixels).all()
        assert (numpy.asarray(row["array"]) == pixels).all()
        assert len(row["list"]) == 2
