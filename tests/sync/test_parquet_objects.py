"""A dataset in a bucket: against a real server, and against one that refuses."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import numpy
import pandas
import polars
import pytest
from pyarrow import dataset, fs

import sdk
from daemon.sync.carrying import carry_run
from daemon.sync.place import parse
from daemon.sync.registry import make
from daemon.sync.target import Retriable
from daemon.sync.targets.parquet import objects
from daemon.sync.targets.parquet.objects import Bucket
from sdk.errors import UsageError
from tests import bucket
from tests.builders import RunBuilder, make_run, make_store
from tests.media_rig import MediaBuilder


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in bucket.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def place() -> str:
    """A prefix in a new bucket."""
    return f"{bucket.make_bucket()}/runs/of us"


def system() -> Any:
    return fs.S3FileSystem(endpoint_override=bucket.endpoint(), region="us-east-1")


class TestBucket:
    """Objects as files."""

    def test_objects_appear_when_they_are_whole(self, place: str) -> None:
        """What is drafted is seen by nobody; what is published or put is there with its size, over what had its name."""
        there = Bucket(f"s3://{place}", bucket.endpoint())
        there.check()
        draft = there.draft("a41f")
        draft.write(b"first ")
        draft.write(b"second")
        assert there.list("rows/project=a%20b") == {}
        assert there.publish(draft, "rows/project=a%20b/x.parquet") == 12
        there.put("rows/project=a%20b/y", b"small")
        there.put("rows/project=a%20b/y", b"smaller")
        there.put("rows/project=a%20b/below/z", b"")
        assert there.list("rows/project=a%20b") == {"x.parquet": 12, "y": 7}
        assert there.get("rows/project=a%20b/y") == b"smaller"
        assert there.source("rows/project=a%20b/x.parquet").read() == b"first second"
        there.close()

    def test_a_large_object_goes_in_parts(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is held in memory whole, and every byte arrives."""
        monkeypatch.setattr(objects, "_SEND_BYTES", 1 << 20)
        there = Bucket(f"s3://{place}", bucket.endpoint())
        draft = there.draft("a41f")
        portion = bytes(range(256)) * 4096
        for _ in range(11):
            draft.write(portion)
        assert there.publish(draft, "large") == 11 << 20
        assert system().open_input_stream(f"{place}/large").read() == portion * 11

    def test_many_small_objects_are_sent_side_by_side(self, place: str) -> None:
        """They are there when they have settled; one that cannot be sent is an error then, and is dropped with the rest."""
        there = Bucket(f"s3://{place}", bucket.endpoint())
        for number in range(40):
            there.put_later(f"media/{number}", b"%d" % number)
        there.settle()
        assert {int(name): size for name, size in there.list("media").items()} == {n: len(str(n)) for n in range(40)}
        gone = Bucket("s3://not-there/x", bucket.endpoint())
        gone.put_later("media/1", b"x")
        with pytest.raises(UsageError, match="no bucket"):
            gone.settle()
        gone.put_later("media/2", b"x")
        gone.abandon()
        gone.settle()
        for one in (there, gone):
            one.close()

    def test_small_objects_are_joined(self, tmp_path: Path, place: str) -> None:
        """A run that was carried while it was written is one object at its end; the small ones are gone."""
        store = make_store(tmp_path)
        run = RunBuilder(store, "growing")
        main = run.stream()
        target = make(parse(f"parquet:s3://{place}?endpoint={bucket.endpoint()}"))
        for step in range(4):
            main.log({"loss": step / 2})
            run.flush()
            assert carry_run(store, "growing", target).state == "live"
        main.finish()
        run.seal()
        assert carry_run(store, "growing", target).is_exact
        target.close()
        found = dataset.dataset(f"{place}/rows", filesystem=system(), format="parquet")
        assert len(found.files) == 1
        assert found.to_table()["loss"].to_pylist() == [0.0, 0.5, 1.0, 1.5]

    def test_what_is_not_there_is_no_error(self, place: str) -> None:
        """Of an object that is gone there is nothing to remove, to read or to list."""
        there = Bucket(f"s3://{place}", bucket.endpoint())
        there.remove("rows/none")
        assert there.get("rows/none") is None
        assert there.list("rows") == {}

    def test_the_endpoint_may_be_in_the_environment(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """As Amazon's own tools take it."""
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.endpoint())
        Bucket(f"s3://{place}").check()


class _Refusing(BaseHTTPRequestHandler):
    """Answers everything with one error."""

    status, code = 503, "SlowDown"

    def _answer(self) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>told</Message></Error>".encode()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server that refuses, as `_Refusing` says."""
    monkeypatch.setattr(objects, "_TRIES", 1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


class TestRefusals:
    """What goes away by itself is tried again; what does not is said, with the cure."""

    @pytest.mark.parametrize(
        ("status", "code"),
        [(503, "SlowDown"), (500, "InternalError"), (503, "ServiceUnavailable"), (429, "TooManyRequests")],
    )
    def test_what_may_pass_is_tried_again(
        self, refusing: str, monkeypatch: pytest.MonkeyPatch, status: int, code: str
    ) -> None:
        """A server that has too much to do makes a run wait, not fail."""
        monkeypatch.setattr(_Refusing, "status", status)
        monkeypatch.setattr(_Refusing, "code", code)
        with pytest.raises(Retriable):
            Bucket("s3://some/where", refusing).put("x", b"data")

    @pytest.mark.parametrize(
        ("status", "code"),
        [(403, "AccessDenied"), (403, "InvalidAccessKeyId"), (403, "SignatureDoesNotMatch"), (400, "ExpiredToken")],
    )
    def test_credentials_that_do_not_do(
        self, refusing: str, monkeypatch: pytest.MonkeyPatch, status: int, code: str
    ) -> None:
        """The cure names the variables; the values are nowhere."""
        monkeypatch.setattr(_Refusing, "status", status)
        monkeypatch.setattr(_Refusing, "code", code)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-0815")
        with pytest.raises(UsageError, match="AWS_ACCESS_KEY_ID=…") as caught:
            Bucket("s3://some/where", refusing).put("x", b"data")
        assert "canary" not in str(caught.value)

    def test_a_bucket_in_another_region(self, refusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Amazon answers with a redirection that says nothing; the cure names the option."""
        monkeypatch.setattr(_Refusing, "status", 301)
        monkeypatch.setattr(_Refusing, "code", "PermanentRedirect")
        with pytest.raises(UsageError, match="region=NAME"):
            Bucket("s3://some/where", refusing).check()

    def test_no_such_bucket(self) -> None:
        """Said before the first run, and by every operation."""
        there = Bucket("s3://not-there/x", bucket.endpoint())
        with pytest.raises(UsageError, match="no bucket 'not-there'.*\n.*aws s3 mb"):
            there.check()
        with pytest.raises(UsageError, match="no bucket 'not-there'"):
            there.put("x", b"data")

    def test_no_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A network that is away comes back."""
        monkeypatch.setattr(objects, "_TRIES", 1)
        with pytest.raises(Retriable, match="s3://some/where"):
            Bucket("s3://some/where", "http://127.0.0.1:9").check()


@pytest.fixture
def shipped(tmp_path: Path, place: str) -> str:
    """A bucket with two runs of one project."""
    store = make_store(tmp_path)
    for number in range(2):
        rows = [{"loss": number + step / 8, **({"acc": 1} if number else {})} for step in range(10)]
        make_run(store, f"run{number}", rows, config={"lr": number / 2})
    target = make(parse(f"parquet:s3://{place}?endpoint={bucket.endpoint()}"))
    assert target.cursors() is None, "how far runs are lies in the store"
    for number in range(2):
        assert carry_run(store, f"run{number}", target).is_exact
    target.close()
    return place


class TestReaders:
    """Engines that know nothing of us, without anything that has to be downloaded."""

    def test_duckdb_asks_an_arrow_dataset(self, shipped: str) -> None:
        """As one does where DuckDB's own extension for S3 cannot be installed."""
        schemas = [
            fragment.physical_schema
            for fragment in dataset.dataset(f"{shipped}/rows", filesystem=system()).get_fragments()
        ]
        assert len(schemas) == 2
        parts = dataset.partitioning(flavor="hive")
        rows = dataset.dataset(f"{shipped}/rows", filesystem=system(), partitioning=parts, format="parquet")
        connection = duckdb.connect()
        connection.register("rows", rows)
        found = connection.sql("SELECT run, min(loss), max(_step) FROM rows GROUP BY run ORDER BY run").fetchall()
        assert found == [("run0", 0.0, 9), ("run1", 1.0, 9)]

    def test_pictures_lie_beside_the_rows(self, tmp_path: Path, place: str) -> None:
        """A cell's path is an object below the prefix."""
        store = make_store(tmp_path)
        run = RunBuilder(store, "pictures")
        media = MediaBuilder(run, run.stream())
        for number in range(3):
            media.log({"x": sdk.Image(numpy.full((2, 2), number, numpy.uint8))})
        media.seal()
        target = make(parse(f"parquet:s3://{place}?endpoint={bucket.endpoint()}"))
        assert carry_run(store, "pictures", target).is_exact
        target.close()
        rows = dataset.dataset(f"{place}/rows", filesystem=system(), format="parquet").to_table().to_pylist()
        for row in rows:
            stored = system().open_input_stream(f"{place}/{json.loads(row['x'])['path']}").read()
            assert stored[:4] == b"\x89PNG"
        assert len(rows) == 3

    def test_polars_reads_the_bucket(self, shipped: str) -> None:
        """With its own client."""
        frame = polars.scan_parquet(
            f"s3://{shipped}/rows/**/*.parquet", hive_partitioning=True, missing_columns="insert", extra_columns="ignore",
            storage_options={
                "aws_endpoint_url": bucket.endpoint(), "aws_region": "us-east-1", "aws_access_key_id": "testing",
                "aws_secret_access_key": "testing", "aws_allow_http": "true",
            },
        )  # fmt: skip
        found = frame.group_by("run").agg(polars.col("loss").max()).sort("run").collect()
        assert found.rows() == [("run0", 9 / 8), ("run1", 1 + 9 / 8)]

    def test_pandas_reads_the_bucket(self, shipped: str) -> None:
        """Through pyarrow's client."""
        found = pandas.read_parquet(f"{shipped}/rows", filesystem=system(), filters=[("run", "==", "run1")])
        assert found["loss"].tolist() == [1 + step / 8 for step in range(10)]
