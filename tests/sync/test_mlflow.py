"""Runs as MLflow has them: a real server with SQLite, started once."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import math
import os
import posixpath
import pwd
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import sqlalchemy.exc

import sdk
from daemon.sync.carrying import carry_run
from daemon.sync.outcome import GOOD, Outcome
from daemon.sync.place import parse
from daemon.sync.registry import make
from daemon.sync.target import Retriable
from daemon.sync.targets import mlflow_database as database
from daemon.sync.targets.mlflow import _user
from daemon.sync.targets.mlflow_names import key_of, name_of
from daemon.sync.targets.mlflow_server import Server
from sdk._keeping import keeping_path
from sdk.errors import UsageError
from sdk.ids import run_directory
from sdk.platform import hold_lock
from tests.builders import RunBuilder, make_run, make_store
from tests.end_to_end.world import kill_daemon
from tests.mlflow_rig import artifacts, client, tracking_server


class World:
    """A store, and an experiment of its own on the server."""

    def __init__(self, directory: Path) -> None:
        self.store = make_store(directory)
        self.url = f"mlflow:{tracking_server().uri}?experiment={directory.name}"
        self.experiment = directory.name

    def carry(self, run: str = "a41f") -> Outcome:
        target = make(parse(self.url))
        try:
            return carry_run(self.store, run_directory(run), target)
        finally:
            target.close()

    def found(self) -> list[Any]:
        experiment = client().get_experiment_by_name(self.experiment)
        return list(client().search_runs([experiment.experiment_id])) if experiment else []

    def one(self) -> Any:
        (run,) = self.found()
        return run

    def history(self, name: str) -> list[tuple[int, float]]:
        return sorted((m.step, m.value) for m in client().get_metric_history(self.one().info.run_id, name))

    def forget(self) -> None:
        """As if whoever cleans up had removed all cursors."""
        for path in Path(self.store, "sync").rglob("*.json"):
            path.unlink()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    kill_daemon(Path(made.store))  # of a test that has a real run


def test_a_finished_run_is_there_as_its_user_would_look_for_it(world: World) -> None:
    """Name, parameters, metrics with steps and times, tags and status stand where MLflow's page shows them."""
    run = RunBuilder(world.store, notes="as before", tags=["good", "a/b"], group="sweep")
    main = run.stream()
    main.meta({"config": {"lr": 0.1, "model": {"layers": 3, "act": None}, "ids": [1, 2]}})
    main.meta(
        {"context": {"user": "ada", "git": {"commit": "f" * 40}, "program": {"kind": "script", "path": "train.py"}}}
    )
    for step in range(5):
        main.log({"train/loss": 1 / (step + 1), "epoch": step // 2})
    main.finish()
    run.seal()
    outcome = world.carry()
    assert (outcome.state, outcome.points, dict(outcome.lost)) == ("delivered", 10, {})
    there = world.one()
    assert (there.info.run_name, there.info.status) == ("calm-otter-12", "FINISHED")
    assert there.data.params == {"lr": "0.1", "model.layers": "3", "model.act": "None", "ids": "[1, 2]"}
    assert world.history("train/loss") == [(step, 1 / (step + 1)) for step in range(5)]
    assert there.data.metrics["epoch"] == 2.0
    tags = there.data.tags
    assert tags["stepd.run_id"] == "a41f"
    assert tags["mlflow.note.content"] == "as before"
    assert (tags["mlflow.user"], tags["mlflow.source.name"]) == ("ada", "train.py")
    assert tags["mlflow.source.git.commit"] == "f" * 40
    assert (tags["tag.good"], tags["tag.a/b"], tags["stepd.group"]) == ("true", "true", "sweep")
    first = min(client().get_metric_history(there.info.run_id, "train/loss"), key=lambda metric: metric.step)
    assert abs(first.timestamp - 1_700_000_000_000) < 1000


def test_values_that_mlflow_cannot_hold_are_counted(world: World) -> None:
    """NaN comes back; infinities and large integers are counted, texts and lists too; a null is no value."""
    values = [
        {"x": math.nan, "n": 2**53 + 1, "t": "a", "b": True},
        {"x": math.inf, "n": 1, "t": None, "l": [1, 2]},
        {"x": 1, "n": 2**64 - 1, "b": False},
    ]
    make_run(world.store, values=values)
    outcome = world.carry()
    assert outcome.state == "delivered"
    assert outcome.size > 80 * outcome.points > 0, "what was sent is counted"
    assert dict(outcome.lost) == {"infinities": 1, "integers beyond 2^53": 2, "values that are no numbers": 2}
    (_, nan), (_, large), (_, one) = world.history("x")
    assert math.isnan(nan)
    assert (large, one) == (1.7976931348623157e308, 1.0)
    assert world.history("b") == [(0, 1.0), (2, 0.0)]
    assert world.history("n") == [(0, 2.0**53), (1, 1.0), (2, 2.0**64)]


def test_an_odd_config_is_there_as_far_as_parameters_go(world: World) -> None:
    """Empty texts and maps, names and texts that MLflow does not take, long ones; the whole is in a file."""
    config = {
        "": 1,
        "a*b": "",
        "empty": {},
        "long": "x" * 7000,
        "text": "\ud800\0é",
        "deep": {"a.b": {"c": [None, True]}},
    }
    make_run(world.store, config=config)
    outcome = world.carry()
    assert dict(outcome.lost) == {"parameters that were cut": 1}
    world.forget()
    assert world.carry().lost == outcome.lost
    there = world.one()
    assert there.data.params == {
        "_x_": "1", "a_x002A_b": "", "empty": "{}", "long": "x" * 6000, "text": "\ufffd\ufffdé", "deep.a.b.c": "[null, true]",
    }  # fmt: skip
    assert artifacts(there.info.run_id)["config.json"] > 7000


def test_odd_keys_lead_back_to_what_they_were(world: World) -> None:
    """Any key has a name there, from which the key can be told; a file says which were changed."""
    keys = ["a*b", "..", "a//b", "/x", "😀", "_x002A_", "\ud800", "z" * 300, "ok 1:2"]
    make_run(world.store, values=[dict.fromkeys(keys, 1.5)])
    outcome = world.carry()
    assert outcome.state == "delivered"
    assert any("_xHHHH_" in text for text in outcome.told)
    there = world.one()
    assert len(there.data.metrics) == len(keys)
    assert {"a_x002A_b", "ok 1:2", "_x005F_x002A_"} <= set(there.data.metrics)
    assert "names.json" in artifacts(there.info.run_id)


def test_without_a_cursor_nothing_doubles(world: World) -> None:
    """A second sync that knows of no first one finds the run by its tag and changes no line of the data base."""
    run = RunBuilder(world.store)
    main = run.stream()
    main.meta({"config": {"lr": 0.1}, "summary": {"best": 0.25}})
    for step in range(600):
        main.log({"loss": math.nan if step % 7 == 0 else 1 / (step + 1), "same": 1.0})
    main.finish()
    run.seal()
    assert world.carry().state == "delivered"
    before, files = _lines(world.one().info.run_id), artifacts(world.one().info.run_id)
    assert len(before["metrics"]) == 1201
    world.forget()
    assert world.carry().state == "delivered"
    assert _lines(world.one().info.run_id) == before
    assert artifacts(world.one().info.run_id) == files


def _lines(run: str) -> dict[str, list[Any]]:
    return {
        table: sorted(map(repr, tracking_server().select(f"SELECT * FROM {table} WHERE run_uuid = ?", run)))
        for table in ("metrics", "latest_metrics", "params", "tags", "runs")
    }


def test_a_run_that_grows_is_gone_on_with(world: World) -> None:
    """Each pass brings what is new, late rows too; the latest value is that of the highest step; the end comes with the end."""
    run = RunBuilder(world.store)
    main = run.stream()
    main.log({"loss": 1.0}, step=10)
    run.flush()
    first = world.carry()
    main.log({"loss": 9.0}, step=3)
    main.log({"loss": 0.5}, step=11)
    main.meta({"run": {"name": "other", "tags": ["new"]}, "config": {"late": 1}})
    run.flush()
    second = world.carry()
    there = world.one()
    assert world.history("loss") == [(3, 9.0), (10, 1.0), (11, 0.5)]
    assert there.data.metrics["loss"] == 0.5
    assert (there.info.run_name, there.data.tags["tag.new"], there.data.params) == ("other", "true", {"late": "1"})
    main.meta({"config": {"late": 2}, "run": {"tags": []}})
    main.finish("failed", 1)
    run.seal()
    third = world.carry()
    there = world.one()
    assert there.info.status == "FAILED"
    assert there.info.end_time is not None
    assert "tag.new" not in there.data.tags
    assert dict(third.lost) == {"parameters that were changed": 1}
    assert there.data.params == {"late": "1"}
    assert [outcome.points for outcome in (first, second, third)] == [1, 2, 0]


def test_killed_at_any_request_it_goes_on_to_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever request is the last, and whether the server has done it, the next sync leaves what an undisturbed one would."""
    for run_id in ("calm", "cut"):
        run = RunBuilder(world.store, run_id, name="same")
        main = run.stream()
        main.meta({"config": {"lr": 0.1}, "summary": {"best": 0.25}})
        for step in range(5):
            main.log({"loss": 1 / (step + 1)})
        main.finish()
        run.seal()
    asked = Server.asked
    count, last, is_answered = 0, 0, False

    class Killed(BaseException):
        pass

    @contextlib.contextmanager
    def counting(self: Server, *what: Any) -> Iterator[None]:
        nonlocal count
        count += 1
        if count == last and not is_answered:
            raise Killed
        with asked(self, *what):
            yield
        if count == last:
            raise Killed

    monkeypatch.setattr(Server, "asked", counting)
    world.carry("calm")
    requests = count
    for kill in itertools.product(range(1, requests + 1), (False, True)):
        count, (last, is_answered) = 0, kill
        if last % 3 == 0:
            world.forget()
        with contextlib.suppress(Killed):  # where what was noted leaves fewer requests
            world.carry("cut")
    last = 0
    assert world.carry("cut").state in ("delivered", "up to date")
    (calm,), (cut,) = (
        [one for one in world.found() if one.data.tags["stepd.run_id"] == name] for name in ("calm", "cut")
    )
    assert cut.data.metrics == calm.data.metrics
    assert cut.data.params == calm.data.params
    assert cut.info.status == calm.info.status == "FINISHED"
    histories = [_lines(one.info.run_id)["metrics"] for one in (calm, cut)]
    assert len(histories[0]) == len(histories[1]) == 6
    assert artifacts(calm.info.run_id) == artifacts(cut.info.run_id)


def test_lanes_stand_under_their_rank_and_the_machine_under_system(world: World) -> None:
    """The main process has the plain names; what was observed stands where MLflow shows system metrics."""
    run = RunBuilder(world.store)
    streams = [run.stream(rank=0), run.stream("attach", rank=1), run.stream("fork", rank=0)]
    system = [run.stream("system", host="a"), run.stream("system", host="b", rank=4)]
    for place, stream in enumerate(streams):
        stream.log({"loss": float(place)})
        stream.finish()
    for stream in system:
        stream.log({"system/cpu": 50.0})
        stream.finish()
    run.seal()
    assert world.carry().state == "delivered"
    names = set(world.one().data.metrics)
    assert names == {"loss", "rank1/loss", "lane1/loss", "system/cpu", "system/rank4/cpu"}
    assert world.history("loss") == [(0, 0.0)]


def test_what_a_resume_took_back_is_counted(world: World) -> None:
    """A metric cannot be taken back: where the new attempt logs the step again both are there, and it is said."""
    run = RunBuilder(world.store)
    first = run.stream()
    for step in range(6):
        first.log({"loss": float(step)})
    run.flush()
    assert world.carry().is_exact
    second = run.stream(attempt=2, continues=first.hex, first_step=4)
    second.meta({"hide": {"from_step": 4}})
    second.log({"loss": 40.0}, step=4)
    run.flush()
    outcome = world.carry()
    assert world.history("loss")[-3:] == [(4, 4.0), (4, 40.0), (5, 5.0)]
    assert dict(outcome.lost) == {"steps that a resume took back": 2}


def test_names_lead_back_whatever_they_are_made_of() -> None:
    """Every name is one that MLflow takes, as a path too, and is the name of one key only."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    for _ in range(3000):
        key = "".join(
            chosen.choices(
                ["a", "_", "x", "0", "00", "2A", "F", "/", ".", "\n", "\0", "😀", "\ud800", ":", "_x002A_"], k=7
            )
        )
        name = name_of(key)
        assert key_of(name) == key
        assert re.fullmatch(r"[/\w.\- :]+", name), (key, name)
        assert posixpath.normpath(name) == name, (key, name)
        assert not name.startswith(("..", "/")), (key, name)


def test_what_is_counted_stands_on_the_page() -> None:
    """docs/mlflow.md has every word that the table of `stepd sync` may say of this target, and no other."""
    root = Path(__file__).parents[2]
    code = "".join(path.read_text(encoding="utf-8") for path in (root / "daemon/sync/targets").glob("mlflow*.py"))
    counted = set(re.findall(r"(?:\.lost|_lose)\(\"([^\"]+)\"", code))
    section = (
        (root / "docs/mlflow.md")
        .read_text(encoding="utf-8")
        .partition("## What MLflow cannot hold")[2]
        .partition("##")[0]
    )
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    on_the_page = set(re.findall("`([^`]+)`", "".join(rows)))
    assert counted <= on_the_page
    assert all(f'"{what}"' in code for what in on_the_page)


class TestArtifacts:
    """What is no number."""

    def test_files_media_and_console(self, world: World, tmp_path: Path) -> None:
        """A real run: its images, tables, files and what it printed can be downloaded; artifacts are listed, or uploaded."""
        with sdk.init(dir=world.store, id="a41f", mode="offline", config={"lr": 0.1}) as run:
            image = numpy.zeros((2, 3, 3), numpy.uint8)
            run.log({"val/image": sdk.Image(image), "loss": 1.0, "t": sdk.Table(columns=["a"], data=[[1]])})
            Path(run.dir, "notes.txt").write_text("kept", encoding="utf-8")
            print("as it was printed")
        outcome = world.carry()
        assert outcome.state == "delivered", outcome
        there = world.one().info.run_id
        found = artifacts(there)
        assert {"config.json", "files/notes.txt", "console.log", "media/val/image/0_0.png"} <= set(found)
        table = client().download_artifacts(there, "media/t/0_0.table.json", str(tmp_path))
        assert json.loads(Path(table).read_text(encoding="utf-8"))["data"] == [[1]]

    def test_files_that_are_yet_to_be_copied(self, world: World) -> None:
        """A run that is over is not delivered while files of it wait for the daemon; the rest is there meanwhile, and they come."""
        run = RunBuilder(world.store)
        main = run.stream()
        main.log({"loss": 1.0})
        main.meta(
            {"file": {"net.bin": {"size": 3, "modified_ns": 10**18}, "gone.bin": {"size": 1, "modified_ns": 10**18}}}
        )
        main.finish()
        run.seal()
        job = Path(keeping_path(world.store), "1.files.json")
        job.parent.mkdir()
        job.write_text("{}", encoding="utf-8")
        outcome = world.carry()
        assert (outcome.state, world.history("loss")) == ("deferred", [(0, 1.0)])
        assert "2 files" in outcome.reason
        job.unlink()
        path = Path(run.directory, "files", "net.bin")
        path.parent.mkdir()
        path.write_bytes(b"net")
        os.utime(path, ns=(10**18, 10**18))
        outcome = world.carry()
        assert outcome.state in GOOD
        assert dict(outcome.lost) == {"files that are not there": 1}
        assert artifacts(world.one().info.run_id)["files/net.bin"] == 3

    def test_logged_artifacts_are_listed_or_uploaded(self, world: World, tmp_path: Path) -> None:
        """By default MLflow gets names, sizes and digests; with `artifacts=upload` the files too."""
        (tmp_path / "net.bin").write_bytes(b"weights")
        with sdk.init(dir=world.store, id="a41f", mode="offline") as run:
            artifact = sdk.Artifact("net", type="model")
            artifact.add_file(str(tmp_path / "net.bin"), "a/net#1.bin")
            run.log_artifact(artifact).wait()
        assert world.carry().state == "delivered"
        there = world.one().info.run_id
        assert "artifacts.json" in artifacts(there)
        world.forget()
        world.url += "&artifacts=upload"
        assert world.carry().state == "delivered"
        assert artifacts(there)["artifacts/net/v0/a/net_x0023_1.bin"] == len(b"weights")


class TestTheServersSide:
    """What happens to runs in MLflow's page, or between here and there."""

    def test_a_run_that_was_deleted_is_carried_into_a_new_one(self, world: World) -> None:
        """The driver asks again when there is something new; then all of it is carried, and said."""
        run = RunBuilder(world.store)
        main = run.stream()
        main.log({"loss": 1.0})
        run.flush()
        world.carry()
        first = world.one().info.run_id
        client().delete_run(first)
        main.log({"loss": 2.0})
        run.flush()
        outcome = world.carry()
        assert world.one().info.run_id != first
        assert world.history("loss") == [(0, 1.0), (1, 2.0)]
        assert any("deleted in MLflow" in text for text in outcome.told)

    def test_a_deleted_experiment_is_an_error_that_says_so(self, world: World) -> None:
        """The run fails, and the error names the ways out."""
        make_run(world.store, values=[{"loss": 1.0}])
        client().delete_experiment(client().create_experiment(world.experiment))
        outcome = world.carry()
        assert outcome.state == "failed"
        assert "was deleted" in outcome.reason
        assert "experiment=" in outcome.reason

    def test_a_data_base_without_a_server(self, world: World, tmp_path: Path) -> None:
        """`mlflow:sqlite:///FILE` writes into the same tables; files lie beside the data base, wherever the process is."""
        world.url = f"mlflow:sqlite:///{tracking_server().database}?experiment={world.experiment}"
        make_run(world.store, values=[{"loss": 1.0}], config={"lr": 1})
        outcome = world.carry()
        assert outcome.state == "delivered", outcome
        assert world.history("loss") == [(0, 1.0)]
        assert world.one().info.artifact_uri.startswith(f"file://{tracking_server().directory}/mlartifacts/")

    @pytest.mark.parametrize(
        ("status", "state", "text"),
        [
            (429, "deferred", "429"),
            (503, "deferred", "503"),
            (500, "deferred", "500"),
            (401, "misuse", "MLFLOW_TRACKING_TOKEN"),
            (403, "misuse", "not allowed"),
            (404, "misuse", "no tracking server"),
        ],
    )
    def test_what_a_server_may_answer(self, world: World, status: int, state: str, text: str) -> None:
        """What may pass is tried again by the driver; what does not pass says what to do, without the password."""
        with _answering(status) as port:
            world.url = "mlflow:"
            make_run(world.store, values=[{"loss": 1.0}])
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{port}")
                outcome = world.carry()
        assert (outcome.state, text in outcome.reason) == (state, True), outcome.reason
        assert "hunter2" not in repr(outcome)

    def test_nobody_there(self, world: World) -> None:
        """A refused connection is tried again later, and said in a few words."""
        world.url = "mlflow:http://127.0.0.1:1"
        make_run(world.store, values=[{"loss": 1.0}])
        outcome = world.carry()
        assert outcome.state == "deferred"
        assert outcome.reason == "MLflow at 'http://127.0.0.1:1' cannot be reached now: connection refused"

    @pytest.mark.parametrize(
        ("uri", "cure"),
        [
            ("localhost:5077", "--to mlflow:http://localhost:5077"),
            ("nosuch://x", "--to mlflow:http://HOST:PORT"),
            ("DIRECTORY", "MLFLOW_ALLOW_FILE_STORE=true"),
        ],
    )
    def test_the_cure_is_named(self, uri: str, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A beginning that is missing, a URI that nobody knows, a directory: what to write instead, not MLflow's long text."""
        monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
        with pytest.raises(UsageError) as raised:
            Server(str(tmp_path / "mlruns") if uri == "DIRECTORY" else uri)
        assert cure in (raised.value.hint or "")
        assert "See " not in raised.value.message

    def test_credentials_without_a_scheme_are_not_said(self) -> None:
        """A URI from the environment that lacks its beginning may hold a password all the same."""
        with pytest.raises(UsageError) as raised:
            Server("me:hunter2@mlflow.example.com")
        assert "hunter2" not in str(raised.value)

    def test_a_fresh_sqlite_file_is_made_whole(self, tmp_path: Path) -> None:
        """Its tables are there when it gets its name; nothing else stays, also of one that was killed while it made them."""
        (tmp_path / "new.db.stepd-new").write_bytes(b"torn")
        server = Server(f"sqlite:///{tmp_path}/new.db")
        server.check()
        server.close()
        assert [path.name for path in tmp_path.iterdir()] == ["new.db"]


class TestTables:
    """Making a data base while others want to."""

    def test_one_makes_it_and_the_others_wait(self, tmp_path: Path) -> None:
        """Of many at once one makes the file; all find it whole."""
        path, made, found = tmp_path / "new.db", [], []

        def make(name: str) -> None:
            made.append(name)
            Path(name).write_bytes(b"half")
            barrier.wait()
            Path(name).write_bytes(b"whole")

        def want() -> None:
            database.make_once(str(path), make)
            found.append(path.read_bytes())

        barrier = threading.Barrier(2)
        threads = [threading.Thread(target=want) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert not path.exists()
        barrier.wait()
        for thread in threads:
            thread.join()
        assert (len(made), found) == (1, [b"whole"] * 4)

    def test_who_waits_too_long_comes_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then the driver waits, which can be told to stop."""
        monkeypatch.setattr(database, "WAIT_SECONDS_MAX", 0.0)
        lock = hold_lock(f"{tmp_path}/new.db.stepd-lock")
        assert lock is not None
        with pytest.raises(Retriable, match="another process is making the tables"):
            database.make_once(f"{tmp_path}/new.db", lambda name: None)
        lock.release()

    @pytest.mark.parametrize(
        "said", ["(OperationalError) table metrics already exists", "(OperationalError) duplicate column name: step"]
    )
    def test_tables_that_others_make_are_waited_for(self, said: str) -> None:
        """In a data base that is no file here the second one fails with what the first has made, and comes again."""
        server = Server(f"sqlite:///{tracking_server().database}")
        with pytest.raises(Retriable) as raised, server.asked("be opened"):
            raise sqlalchemy.exc.OperationalError("CREATE TABLE metrics (\n\tkey …)", {}, Exception(said))
        assert "another process is making its tables" in raised.value.message
        assert "CREATE" not in raised.value.message
        server.close()


def test_a_user_that_is_a_number_gets_a_name() -> None:
    """Where the environment named nobody the run holds a number, of which only its own machine knows the name."""
    here = {"user": str(os.getuid()), "host": os.uname().nodename}
    assert _user(here) == pwd.getpwuid(os.getuid()).pw_name
    assert _user({**here, "host": "another"}) == here["user"]
    assert _user({**here, "user": "4294967294"}) == "4294967294"
    assert _user({"user": "me"}) == "me"

    @pytest.mark.parametrize("url", ["mlflow:", "mlflow:nosuch://x", "mlflow:http://127.0.0.1:1?artifacts=all"])
    def test_what_can_never_work_is_misuse(self, world: World, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """No server, one that MLflow does not know, an option that does not exist: nothing is tried again."""
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        world.url = url
        make_run(world.store, values=[{"loss": 1.0}])
        assert world.carry().state == "misuse"


@contextlib.contextmanager
def _answering(status: int) -> Iterator[int]:
    """A server that says nothing but this; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(1 << 16)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"what")

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()
