"""What stands in a dataset beside the rows: the runs' own rows, media, and what engines make of the whole."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import duckdb
import numpy
import pandas
import polars
from PIL import Image

import sdk
from sdk.segment.naming import STORE_FILE
from tests.builders import RunBuilder
from tests.media_rig import MediaBuilder
from tests.sync.parquet_rig import Rig


class TestRuns:
    """One row for each run."""

    def test_the_row_says_what_is_known(self, tmp_path: Path) -> None:
        """Facts, the maps as JSON, what is plain in them as columns, and every stream."""
        rig = Rig(tmp_path)
        run, main = rig.run(project="digits", name="calm-otter-1", tags=["a", "b"])
        main.meta({"config": {"lr": 0.1, "layers": 3, "net": {"kind": "cnn"}, "sizes": [1, 2], "nan": math.nan}})
        main.log({"loss": 0.5})
        main.finish()
        run.seal()
        rig.carry()
        (row,) = rig.rows("runs")
        assert (row["id"], row["name"], row["state"], row["tags"]) == ("a41f", "calm-otter-1", "finished", ["a", "b"])
        assert (row["config.lr"], row["config.layers"], row["config.net.kind"]) == (0.1, 3.0, "cnn")
        assert json.loads(row["config"]) == {
            "lr": 0.1, "layers": 3, "net": {"kind": "cnn"}, "sizes": [1, 2], "nan": "NaN",
        }  # fmt: skip
        assert row["summary.loss"] == 0.5
        assert row["last_step"] == 0
        assert [(one["stream"], one["kind"], one["attempt"]) for one in row["streams"]] == [(main.hex, "main", 1)]

    def test_it_is_written_when_something_changed(self, tmp_path: Path) -> None:
        """A pass that brings no news of the run leaves its row as it is."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        main.log({"loss": 0.5})
        run.flush()
        rig.carry()
        before = rig.paths("runs")[0].stat().st_mtime_ns
        rig.carry()
        assert rig.paths("runs")[0].stat().st_mtime_ns == before
        main.meta({"config": {"lr": 0.5}})
        run.flush()
        rig.carry()
        (row,) = rig.rows("runs")
        assert row["config.lr"] == 0.5

    def test_a_row_stays_under_one_name(self, tmp_path: Path) -> None:
        """It is named by the oldest stream; an older one that comes takes the name over."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        main.log({"loss": 0.5})
        run.flush()
        rig.carry()
        assert rig.names("runs") == [f"{main.hex}.parquet"]
        older = run.stream("fork", started_ns=1)
        older.log({"loss": 0.25})
        run.flush()
        rig.carry()
        assert rig.names("runs") == [f"{older.hex}.parquet"]

    def test_hostile_facts_stop_nothing(self, tmp_path: Path) -> None:
        """Lone surrogates, integers beyond doubles and odd types have a place too."""
        rig = Rig(tmp_path)
        run, main = rig.run(name="a\udc80", tags=["\ud800", 7])
        main.meta({"config": {"k\ud800": "v\ud800", "large": 2**63, "deep": {"a": {"b": 1}}}})
        run.stream(rank=2**40, host=7)
        run.stream("fork", rank=2**64 - 1, pid=2**64 - 1, attempt=2**64 - 1, host="\ud800").log({"loss": 1.0})
        run.stream("k\ud800").log({"loss": 1.0})
        main.log({"loss": 0.5})
        run.seal()
        assert rig.carry().state == "live"
        (row,) = rig.rows("runs")
        assert row["name"] == "a?"
        assert row["config.large"] == 2.0**63


def _media(rig: Rig) -> MediaBuilder:
    run, main = rig.run()
    return MediaBuilder(run, main)


class TestMedia:
    """Files beside the rows."""

    def test_a_cell_names_the_file(self, tmp_path: Path) -> None:
        """The cell is JSON of what the value says of itself, with the path of its file below the root."""
        rig = Rig(tmp_path)
        media = _media(rig)
        pixels = numpy.arange(60, dtype=numpy.uint8).reshape(4, 5, 3)
        media.log({"samples": [sdk.Image(pixels, caption="a"), sdk.Image(pixels, caption="b")], "loss": 0.5})
        media.seal()
        assert rig.carry().is_exact
        cells = json.loads(rig.rows()[0]["samples"])
        assert [(cell["caption"], cell["width"], cell["height"]) for cell in cells] == [("a", 5, 4), ("b", 5, 4)]
        for cell in cells:
            assert cell["path"].startswith("media/project=digits/run=a41f/")
            found = Image.open(io.BytesIO((rig.root / cell["path"]).read_bytes()))
            assert numpy.array_equal(numpy.asarray(found), pixels)
        assert len({cell["path"] for cell in cells}) == 2

    def test_histograms_stand_in_the_cell(self, tmp_path: Path) -> None:
        """One for each layer and step would be more files than rows."""
        rig = Rig(tmp_path)
        media = _media(rig)
        media.log({"weights": sdk.Histogram(np_histogram=([1, 2, 3], [0.0, 1.0, 2.0, 3.0]))})
        media.seal()
        assert rig.carry().is_exact
        cell = json.loads(rig.rows()[0]["weights"])
        assert (cell["values"], cell["bins"]) == ([1, 2, 3], [0.0, 1.0, 2.0, 3.0])
        assert not (rig.root / "media").exists()

    def test_a_table_is_a_file_that_names_its_pictures(self, tmp_path: Path) -> None:
        """Media in its cells lie beside it."""
        rig = Rig(tmp_path)
        media = _media(rig)
        table = sdk.Table(columns=["n", "x"], data=[[1, sdk.Image(numpy.zeros((2, 2), numpy.uint8))]])
        media.log({"table": table})
        media.seal()
        assert rig.carry().is_exact
        cell = json.loads(rig.rows()[0]["table"])
        found = json.loads((rig.root / cell["path"]).read_bytes())
        assert found["columns"] == ["n", "x"]
        assert (rig.root / found["data"][0][1]["path"]).read_bytes()[:4] == b"\x89PNG"

    def test_without_media_cells_say_what_there_was(self, tmp_path: Path) -> None:
        """Nothing is put beside, and nothing is counted: it was asked for."""
        rig = Rig(tmp_path, "?media=no")
        media = _media(rig)
        media.log({"x": sdk.Image(numpy.zeros((2, 3), numpy.uint8))})
        media.seal()
        assert rig.carry().is_exact
        cell = json.loads(rig.rows()[0]["x"])
        assert cell["width"] == 3
        assert "path" not in cell
        assert not (rig.root / "media").exists()

    def test_what_is_not_stored_is_counted(self, tmp_path: Path) -> None:
        """The row is there, its cell says what is missing, and the outcome is not exact."""
        rig = Rig(tmp_path)
        media = _media(rig)
        media.log({"x": sdk.Image(numpy.random.default_rng(1).integers(0, 255, (300, 300), numpy.uint8)), "loss": 0.5})
        media.run.seal()
        media.close()
        for path in media.paths:
            Path(path).unlink()
        found = rig.carry()
        assert found.lost == {"media whose bytes are not stored": 1}
        (row,) = rig.rows()
        assert row["loss"] == 0.5
        assert "missing" in json.loads(row["x"])


def _views(rig: Rig) -> Any:
    connection = duckdb.connect()
    connection.execute((rig.root / "views.sql").read_text(encoding="utf-8"))
    return connection


def _two_attempts(rig: Rig) -> None:
    """A run whose second attempt took back the steps from 3 on, after they had been carried; beside another run."""
    run, main = rig.run()
    for step in range(5):
        main.log({"loss": step / 2, "acc": 1.0})
    main.log({"loss": 9.0}, step=1)
    run.flush()
    rig.carry()
    again = run.stream(continues=main.hex, attempt=2, first_step=3)
    again.meta({"hide": {"from_step": 3}})
    again.log({"loss": 7.0, "text": "x"})
    run.seal()
    other, stream = rig.run("0012", project="other ü")
    stream.log({"loss": 4, "Project": "kept"})
    stream.finish()
    other.seal()
    rig.carry()


class TestDuckDb:
    """`views.sql` in the dataset's root."""

    def test_the_view_keeps_the_highest_sequence_and_the_surviving_branch(self, tmp_path: Path) -> None:
        """A late value wins, rows that a resume took back are not there, projects and run ids are the texts they were."""
        rig = Rig(tmp_path)
        _two_attempts(rig)
        found = _views(rig).sql("SELECT project, run, _step, loss, acc, text FROM rows ORDER BY run, _step").fetchall()
        assert found == [
            ("other ü", "0012", 0, 4.0, None, None),
            ("digits", "a41f", 0, 0.0, 1.0, None),
            ("digits", "a41f", 1, 9.0, 1.0, None),
            ("digits", "a41f", 2, 1.0, 1.0, None),
            ("digits", "a41f", 3, 7.0, None, "x"),
        ]

    def test_the_view_of_the_long_layout(self, tmp_path: Path) -> None:
        """The same, value by value; a null takes away what was there."""
        rig = Rig(tmp_path, "?layout=long")
        _two_attempts(rig)
        run, main = rig.run("nulls")
        main.log({"x": 1.0}, step=0)
        main.log({"x": None}, step=0)
        run.seal()
        rig.carry()
        asked = "SELECT _step, value FROM points WHERE run = '{}' AND key = '{}' ORDER BY _step"
        views = _views(rig)
        assert views.sql(asked.format("a41f", "loss")).fetchall() == [(0, 0.0), (1, 9.0), (2, 1.0), (3, 7.0)]
        assert views.sql(asked.format("nulls", "x")).fetchall() == []

    def test_runs_join_to_rows(self, tmp_path: Path) -> None:
        """Hyperparameters and values in one question."""
        rig = Rig(tmp_path)
        for number, rate in enumerate((0.1, 1)):
            run, main = rig.run(f"run{number}")
            main.meta({"config": {"lr": rate}})
            main.log({"loss": rate * 2})
            main.finish()
            run.seal()
        rig.carry()
        asked = 'SELECT "config.lr", min(loss) FROM rows JOIN runs USING (project, run) GROUP BY ALL ORDER BY ALL'
        assert _views(rig).sql(asked).fetchall() == [(0.1, 0.2), (1.0, 2.0)]

    def test_a_run_of_two_stores_is_one(self, tmp_path: Path) -> None:
        """Each ships its streams and its row; neither touches the other's, and the view has one run with both streams."""
        rigs = []
        for rank in (1, 0):
            (tmp_path / str(rank)).mkdir()
            rig = Rig(tmp_path / str(rank))
            Path(rig.store, STORE_FILE).write_text(json.dumps({"format": 1, "id": f"{rank:032x}"}), encoding="utf-8")
            rig.root = tmp_path / "set"
            rig.url = f"parquet:{rig.root}"
            run = RunBuilder(rig.store, "a41f", name=f"of rank {rank}")
            run.stream(rank=rank).log({"loss": float(rank)})
            run.flush()
            rig.carry()
            rigs.append((rig, run))
        for rig, run in rigs:
            run.streams[0].log({"loss": 5.0})
            run.streams[0].finish()
            run.seal()
            assert rig.carry().is_exact
        views = _views(rigs[0][0])
        assert views.sql("SELECT run, name FROM runs").fetchall() == [("a41f", "of rank 0")]
        assert views.sql("SELECT rank FROM streams ORDER BY rank").fetchall() == [(0,), (1,)]
        found = views.sql("SELECT _rank, loss FROM rows ORDER BY ALL").fetchall()
        assert found == [(0, 0.0), (0, 5.0), (1, 1.0), (1, 5.0)]


class TestOthers:
    """Readers that know nothing of views."""

    def test_polars_reads_the_directory(self, tmp_path: Path) -> None:
        """Project and run are columns."""
        rig = Rig(tmp_path)
        _two_attempts(rig)
        frame = polars.scan_parquet(
            f"{rig.root}/rows/**/*.parquet", hive_partitioning=True, try_parse_hive_dates=False, missing_columns="insert",
            extra_columns="ignore", cast_options=polars.ScanCastOptions(integer_cast="allow-float"),
        )  # fmt: skip
        found = frame.filter(polars.col("run") == "a41f").select("project", "_step", "loss").collect()
        assert set(found["project"]) == {"digits"}
        assert len(found) == 7

    def test_pandas_reads_the_directory(self, tmp_path: Path) -> None:
        """And filters by run without opening the others."""
        rig = Rig(tmp_path)
        _two_attempts(rig)
        found = pandas.read_parquet(rig.root / "rows", filters=[("run", "==", "a41f")])
        assert sorted(found["loss"].dropna()) == [0.0, 0.5, 1.0, 1.5, 2.0, 7.0, 9.0]
