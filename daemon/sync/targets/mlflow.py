"""Target `mlflow:URI`: runs as runs of an MLflow tracking server (docs/mlflow.md).

One run is one MLflow run, which carries the run's id as a tag and is found again by it, so that a kill between making it and noting
it makes no second one. Sending anything twice changes nothing there: a metric's primary key is all of it, parameters are equal, tags
and files are replaced. So nothing but the run's id must be remembered, and what the state holds beside it only spares requests.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from daemon.sync.target import Retriable, Target
from daemon.sync.targets.mlflow_names import clean, digest_of, flattened, name_of
from sdk import clock
from sdk.errors import UsageError
from sdk.reader import state
from sdk.reader.lanes import TRAINING

if TYPE_CHECKING:
    from daemon.sync.passage import Passage
    from daemon.sync.place import Place
    from daemon.sync.targets.mlflow_files import Files
    from daemon.sync.targets.mlflow_points import Sender
    from daemon.sync.targets.mlflow_server import Server

RUN_ID = "stepd.run_id"
_EXPERIMENT = "stepd"
# Limit: what a kill makes the next pass send again is what is delivered in so many seconds, and one batch.
_COMMIT_SECONDS = 5.0
# A parameter longer than this may have been cut by the server, whose limit depends on its version: 250, 500 or 6000.
_PARAM_CUT_MIN = 250
PARAM_CHARACTERS_MAX = 6000

_STATUS = {state.FINISHED: "FINISHED", state.INTERRUPTED: "KILLED", state.PREEMPTED: "KILLED"}


class MlflowTarget(Target):
    """An MLflow tracking server. Options: `experiment`, the name of the one that gets all runs (else each run's project);
    `artifacts`, whether the files of logged artifacts are to be uploaded ("upload") or only listed ("list").
    """

    scheme = "mlflow"
    options = frozenset({"experiment", "artifacts"})
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"artifacts": ("list", "upload")}
    _server: Server | None = None

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._experiments: dict[str, str] = {}

    def check(self) -> None:
        self._open().check()

    def carry(self, passage: Passage) -> None:
        from daemon.sync.targets.mlflow_files import Files
        from daemon.sync.targets.mlflow_points import Sender

        server = self._open()
        carried = _Carried(self, server, passage)
        files = Files(server, passage, carried.id)
        try:
            carried.say_what_it_is(files)
            carried.rows(Sender(server, passage, carried.id, files, carried.state["names"], carried.doubtful()))
            carried.say_the_rest(files, self.place.options.get("artifacts", "list"))
        finally:
            files.close()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _open(self) -> Server:
        if self._server is None:
            from daemon.sync.targets.mlflow_server import Server

            self._server = Server(_uri(self.place.path))
        return self._server

    def experiment(self, project: str) -> str:
        """The id of the experiment for a run of a project; made where there is none."""
        name = self.place.options.get("experiment") or clean(project) or _EXPERIMENT
        server = self._open()
        if server.uri.startswith("databricks") and not name.startswith("/"):
            raise UsageError(
                f"the experiment is {name!r}, expected a path of the workspace",
                hint="--to 'mlflow:databricks?experiment=/Users/NAME/EXPERIMENT'",
            )
        if name not in self._experiments:
            self._experiments[name] = server.experiment(name, _artifacts_beside(server.uri))
        return self._experiments[name]


class _Carried:
    """The MLflow run of one run.

    Attributes:
        id: MLflow's.
        state: What is noted with each commit: "run" (the id), "name", "status", "tags" and "config" (digests of what was set),
            "params" (of those that could not be changed), "files", "artifacts", "ends" (digests of what is written at the end),
            "steps" (the last step of each lane), "streams" (those seen), "names" (MLflow's -> ours), "sending" (values may have
            been sent that are not noted).
    """

    def __init__(self, target: MlflowTarget, server: Server, passage: Passage) -> None:
        self._server, self._passage = server, passage
        self.state: dict[str, Any] = {}
        self._params: dict[str, str] = {}
        self._metrics: list[str] = []
        if not self._is_there(passage.state.get("run")):
            self._find_or_make(target)
        self.id: str = self.state["run"]
        for name in ("tags", "params", "files", "artifacts", "ends", "steps", "names"):
            self.state.setdefault(name, {})
        self.state.setdefault("streams", [])

    def _is_there(self, known: Any) -> bool:
        """Whether the run that was carried before can be gone on with; if not, everything is carried again."""
        from daemon.sync.targets.mlflow_server import Unknown

        if not isinstance(known, str):
            return False
        try:
            found = self._server.look(known)
        except Unknown:
            found = None
        if found is not None and not found.is_deleted:
            # Of its own, because what changes before the next commit must not be taken for committed.
            self.state = json.loads(json.dumps(self._passage.state))
            self._params, self._metrics = dict(found.params), list(found.metrics)
            return True
        self._passage.start_again()
        self._passage.told(f"run {known} was deleted in MLflow; it is carried into a new one")
        return False

    def _find_or_make(self, target: MlflowTarget) -> None:
        run, server = self._passage.run, self._server
        experiment = target.experiment(run.project)
        # As a name, because an id from hostile bytes could hold the quotes of a query.
        marked = name_of(run.id)
        found = server.find(experiment, RUN_ID, marked)
        if found is None:
            tags = _tags(run)
            made = server.create(experiment, clean(run.name), run.created, {RUN_ID: marked, **tags})
            self.state = {"run": made, "name": run.name, "status": "RUNNING", "tags": _digests(tags)}
        else:
            there = server.look(found)
            self._params, self._metrics = dict(there.params), list(there.metrics)
            self.state = {"run": found, "sending": True}
        self._commit()

    def doubtful(self) -> list[str]:
        """The metrics of which values may be there that are not noted, because the last pass was killed or its notes are gone."""
        return self._metrics if self.state.get("sending") else []

    def rows(self, sender: Sender) -> None:
        """Everything that is new of the training and of its machine."""
        passage, noted = self._passage, clock.monotonic()
        self.state["sending"] = True
        self._commit()
        for kinds in (TRAINING, frozenset({"system"})):
            for batch in passage.batches(kinds):
                self._count_taken_back(batch)
                sender.send(batch)
                if clock.monotonic() - noted > _COMMIT_SECONDS:
                    sender.flush()
                    self._commit()
                    noted = clock.monotonic()
        sender.flush()
        self.state["sending"] = False
        if sender.renamed:
            passage.told(
                "names that MLflow does not take are written as _xHHHH_; names.json among the artifacts has them all"
            )

    def _count_taken_back(self, batch: Any) -> None:
        """A resume may hide rows that were delivered before; MLflow cannot take a metric back."""
        from daemon.sync.targets.mlflow_points import lane_name

        last, lane, hidden = (
            self.state["steps"],
            f"{batch.stream.kind == 'system':d}{lane_name(batch)}",
            batch.stream.hide_from,
        )
        if batch.stream.hex not in self.state["streams"]:
            self.state["streams"].append(batch.stream.hex)
            if hidden is not None and last.get(lane, -1) >= hidden:
                self._passage.lost("steps that a resume took back", None, last[lane] - hidden + 1)
        steps = [int(points.step.max()) for points in batch.points if len(points)]
        last[lane] = max([last.get(lane, -1), *steps])

    def _commit(self) -> None:
        self._passage.commit(json.loads(json.dumps(self.state)))

    # -- facts -----------------------------------------------------------------------------------------------------------

    def say_what_it_is(self, files: Files) -> None:
        """Name, tags, parameters and that it runs: first, so that whoever looks at it meanwhile knows what it is."""
        run = self._passage.run
        if self.state.get("name") != run.name:
            if run.name:
                self._server.rename(self.id, clean(run.name))
            self.state["name"] = run.name
        self._set_tags(_tags(run))
        self._set_params(run.config, files)
        if not self._passage.is_over and self.state.get("status") != "RUNNING":
            self._server.set_status(self.id, "RUNNING", 0.0)
            self.state["status"] = "RUNNING"

    def _set_tags(self, wanted: dict[str, str]) -> None:
        known, digests = self.state["tags"], _digests(wanted)
        self._server.set_tags(
            self.id, {name: text for name, text in wanted.items() if known.get(name) != digests[name]}
        )
        for name in known:
            if name not in wanted:
                self._server.remove_tag(self.id, name)
        self.state["tags"] = digests

    def _set_params(self, config: dict[str, Any], files: Files) -> None:
        whole = json.dumps(config, indent=1, default=str).encode()
        if self.state.get("config") == digest_of(whole):
            return
        new: dict[str, str] = {}
        for key, text in flattened(config).items():
            name = name_of(key)
            if name != key:
                self.state["names"][name] = key
            there = self._params.get(name)
            if there is None:
                new[name] = text[:PARAM_CHARACTERS_MAX]
            self._count_param(name, key, text, there)
        self._server.log_params(self.id, new)
        self._params.update(new)
        if config:
            files.put("config.json", whole)
        self.state["config"] = digest_of(whole)

    def _count_param(self, name: str, key: str, text: str, there: str | None) -> None:
        """What of it MLflow does not have is counted, once for each text."""
        is_cut = len(text) > PARAM_CHARACTERS_MAX
        is_changed = there is not None and not _is_same(there, text)
        digest = digest_of(text.encode())
        if (is_cut or is_changed) and self.state["params"].get(name) != digest:
            self._passage.lost("parameters that were changed" if is_changed else "parameters that were cut", key)
            self.state["params"][name] = digest

    def say_the_rest(self, files: Files, artifacts: str) -> None:
        """Files, and of a run that is over how it ended."""
        passage, run = self._passage, self._passage.run
        waiting = files.kept(self.state["files"])
        files.artifacts(artifacts, self.state["artifacts"])
        if passage.is_over:
            self._summary(files)
            if run.has_console:
                files.console()
        if self.state["names"]:
            self._put_once(files, "names.json", json.dumps(self.state["names"], indent=1, sort_keys=True).encode())
        if passage.is_over and self.state.get("status") != (status := _STATUS.get(run.state, "FAILED")):
            self._server.set_status(self.id, status, run.updated)
            self.state["status"] = status
        self._commit()
        if waiting and passage.is_over:
            raise Retriable(f"{waiting} files of the run wait until the daemon has copied them; all else is there")

    def _summary(self, files: Files) -> None:
        """The summary as a file, and of its numbers those that are not what MLflow shows as the latest value anyway."""
        from daemon.sync.targets.mlflow_points import as_float

        run = self._passage.run
        summary = {key: value for key, value in run.summary.items() if _is_plain(value)}
        if not summary or not self._put_once(
            files, "summary.json", json.dumps(summary, indent=1, default=str).encode()
        ):
            return
        latest = self._server.look(self.id).metrics
        step, time_ms = max(run.last_step or 0, 0), int(run.updated * 1000)
        told = []
        for key, value in summary.items():
            if isinstance(value, (int, float)) and abs(number := as_float(value)) < float("inf"):
                if number not in (latest.get(name_of(key)), latest.get(name := name_of(f"summary/{key}"))):
                    told.append((name, number, time_ms, step))
        self._server.log_metrics(self.id, told)

    def _put_once(self, files: Files, name: str, data: bytes) -> bool:
        """Uploads a file that is not the same as the last time; whether it did."""
        if self.state["ends"].get(name) == digest_of(data):
            return False
        files.put(name, data)
        self.state["ends"][name] = digest_of(data)
        return True


def _uri(path: str) -> str:
    uri = path or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise UsageError(
            "the target 'mlflow:' names no server, and MLFLOW_TRACKING_URI is not set",
            hint="--to mlflow:http://localhost:5000",
        )
    return uri


def _artifacts_beside(uri: str) -> str | None:
    """Where the files of a data base without a server are to lie: beside it. MLflow would take the working directory."""
    from daemon.sync.targets.mlflow_database import sqlite_path

    path = sqlite_path(uri)
    return None if path is None else f"file://{os.path.join(os.path.dirname(path), 'mlartifacts')}"


def _tags(run: Any) -> dict[str, str]:
    """What is known of a run in words, under the names that MLflow's page shows."""
    context, error = run.context, run.error
    git, program = _map(context.get("git")), _map(context.get("program"))
    found = {
        "stepd.state": run.state,
        "stepd.project": run.project,
        "stepd.group": run.group,
        "stepd.job_type": run.job_type,
        "stepd.error": f"{error.type}: {error.message}" if error is not None else "",
        "mlflow.note.content": run.notes,
        "mlflow.user": _user(context),
        "mlflow.source.name": program.get("path") or program.get("name"),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.source.git.branch": git.get("branch"),
        "mlflow.source.git.repoURL": git.get("remote"),
        **{name_of(f"tag.{tag}"): "true" for tag in run.tags},
    }
    return {name: clean(text) for name, text in found.items() if isinstance(text, str) and text}


def _user(context: dict[str, Any]) -> Any:
    """Whose run it is. A number, which stands where the environment named nobody, is looked up if the run was on this machine."""
    user = context.get("user")
    if isinstance(user, str) and user.isdecimal() and context.get("host") == os.uname().nodename:
        with contextlib.suppress(KeyError, OverflowError, ValueError):
            return pwd.getpwuid(int(user)).pw_name
    return user


def _digests(texts: dict[str, str]) -> dict[str, str]:
    return {name: digest_of(text.encode()) for name, text in texts.items()}


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_same(there: str, wanted: str) -> bool:
    return there == wanted or (len(there) >= _PARAM_CUT_MIN and wanted.startswith(there))


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, list, dict)) or value is None
