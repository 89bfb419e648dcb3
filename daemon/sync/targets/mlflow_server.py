"""The door to the library mlflow: one tracking server, or a data base in its place, with its errors as ours.

The library is imported by whoever makes a `Server`, which is a worker process of `stepd sync`. It would retry for minutes by itself,
report its use, draw progress bars and warn; all that is turned off before it is imported, unless the environment says otherwise.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from daemon.sync.target import Retriable
from daemon.sync.targets import mlflow_database as database
from sdk.errors import Error, UsageError, install_hint

# Limit: those of a server's API, the same in all versions (mlflow.utils.validation).
METRICS_MAX = 1000
PAIRS_MAX = 100
# Limit: a server gives at most 25 000 at a time; as objects they take some 10 MiB.
_PAGE_METRICS = 25_000
# Limit: a request may have 1 000 000 bytes; a metric is its name as JSON and at most 180 bytes around it.
_REQUEST_BYTES_MAX = 900_000
_METRIC_BYTES = 180
# Limit: 5000 characters until MLflow 2.12, 8000 since.
TAG_CHARACTERS_MAX = 5000
_EXPERIMENT_CHARACTERS_MAX = 500
_NAME_CHARACTERS_MAX = 250

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the driver waits and tries again, and says so
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
_RETRIABLE = frozenset({
    "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "ABORTED",
    "CANCELLED", "RESOURCE_CONFLICT",
})  # fmt: skip
_UNKNOWN = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"})
_STRANGER = frozenset({"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"})
_STATUS_RETRIABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
# What stands between "//" and "@" in a URL that the environment gave.
_CREDENTIALS = re.compile(r"(//|^)[^/@\s]*@")
_CAUSE = re.compile(r"\(Caused by (.*)\)")
# Of a network's error what the system says: "[Errno 111] Connection refused".
_ERRNO = re.compile(r"\[Errno -?\d+\] ([^\"'()]+)")
_REASON_CHARACTERS_MAX = 300
_DATABASES = ("sqlite", "mysql", "postgresql", "mssql")


class Unknown(Error):
    """The server has no such run or experiment."""


class Found(NamedTuple):
    """A run as the server has it.

    Attributes:
        id: MLflow's.
        is_deleted: It lies in the trash.
        metrics: The latest value of each, by MLflow's name; `params` likewise.
    """

    id: str
    is_deleted: bool
    metrics: Mapping[str, float]
    params: Mapping[str, str]


class Server:
    """A tracking server. Cheap to make once the library is there; nothing is asked before it is needed.

    Args:
        uri: As MLflow takes it.

    Raises:
        UsageError: A package is not installed, or the URI is none that MLflow knows.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        scheme = re.split(r"[:+]", uri, maxsplit=1)[0]
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import mlflow.entities
                import mlflow.tracking
                from mlflow.exceptions import MlflowException
                from requests.exceptions import RequestException
        except ImportError as error:
            raise UsageError(
                f"the target needs the package mlflow: {error}",
                hint=install_hint("mlflow-skinny"),
            ) from None
        if scheme in _DATABASES and importlib.util.find_spec("sqlalchemy") is None:
            raise UsageError(
                f"{self.said} is a data base, for which MLflow needs more than its client",
                hint=install_hint("mlflow"),
            )
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what it logs as an error is raised as well
        self._entities, self._tracking = mlflow.entities, mlflow.tracking
        self._failures: tuple[type[Exception], ...] = (MlflowException, RequestException)
        if scheme in _DATABASES:
            self._failures += database.failures()
        with self.asked("be opened", UsageError):
            if (path := database.sqlite_path(uri)) is not None:
                database.make_once(path, lambda new: _close(mlflow.tracking.MlflowClient(f"sqlite:///{new}")))
            self._client = mlflow.tracking.MlflowClient(uri)

    @property
    def said(self) -> str:
        """The URI as it may be printed."""
        return repr(_hidden(self.uri))

    def close(self) -> None:
        """Closes the connections to a data base; those to a server end with the process."""
        _close(self._client)

    # -- experiments and runs --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Asks it something.

        Raises:
            Retriable: It does not answer now. UsageError: It lets nobody in, or is no tracking server.
        """
        with self.asked("be reached", UsageError):
            self._client.search_experiments(max_results=1)

    def experiment(self, name: str, artifacts: str | None = None) -> str:
        """The id of the experiment of this name, which is made where there is none.

        Args:
            artifacts: Where a new one is to keep its files; None: as the server thinks best.

        Raises:
            Error: It was deleted.
        """
        name = name[:_EXPERIMENT_CHARACTERS_MAX]
        with self.asked(f"find the experiment {name!r}"):
            found = self._client.get_experiment_by_name(name)
            if found is None:
                try:
                    return str(self._client.create_experiment(name, artifact_location=artifacts))
                except self._failures as error:
                    if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                        raise
                    found = self._client.get_experiment_by_name(name)  # another worker was quicker
        if found is None or found.lifecycle_stage != "active":
            raise Error(
                f"the experiment {name!r} of {self.said} was deleted, expected one that is active",
                hint="restore it in MLflow, or name another: --to 'mlflow:…?experiment=NAME'",
            )
        return str(found.experiment_id)

    def find(self, experiment: str, tag: str, value: str) -> str | None:
        """The id of the oldest run of an experiment with a tag; None without one. `value` holds no quotes."""
        with self.asked("look for a run"):
            found = self._client.search_runs(
                [experiment], f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time ASC"]
            )
        # Why compared: some data bases do not tell A from a.
        return next((str(run.info.run_id) for run in found if run.data.tags.get(tag) == value), None)

    def create(self, experiment: str, name: str, started: float, tags: Mapping[str, str]) -> str:
        """Makes a run; its id."""
        with self.asked("make a run"):
            made = self._client.create_run(
                experiment,
                start_time=max(int(started * 1000), 0),
                tags={tag: text[:TAG_CHARACTERS_MAX] for tag, text in tags.items()},
                run_name=name[:_NAME_CHARACTERS_MAX] or None,
            )
        return str(made.info.run_id)

    def look(self, run: str) -> Found:
        """A run as it is now.

        Raises:
            Unknown: There is none of this id.
        """
        with self.asked("read a run"):
            found = self._client.get_run(run)
        is_deleted = found.info.lifecycle_stage != "active"
        return Found(str(found.info.run_id), is_deleted, dict(found.data.metrics), dict(found.data.params))

    def rename(self, run: str, name: str) -> None:
        with self.asked("name a run"):
            self._client.update_run(run, name=name[:_NAME_CHARACTERS_MAX])

    def set_status(self, run: str, status: str, ended: float) -> None:
        """RUNNING, or another status and when it was reached."""
        with self.asked("say how a run ended"):
            if status == "RUNNING":
                self._client.update_run(run, status=status)
            else:
                self._client.set_terminated(run, status, int(ended * 1000))

    # -- what a run holds ------------------------------------------------------------------------------------------------

    def log_metrics(self, run: str, metrics: Sequence[tuple[str, float, int, int]]) -> None:
        """Sends values: (name, value, time in milliseconds, step). What is there already is sent without effect: its primary
        key is all of that.
        """
        make = self._entities.Metric
        for some in _portions(metrics):
            with self.asked("log metrics"):
                self._client.log_batch(run, metrics=[make(*metric) for metric in some])

    def history(self, run: str, name: str) -> Iterator[tuple[list[float], list[int], list[int]]]:
        """All values of a metric: (values, times in milliseconds, steps), some at a time."""
        # Why not the client's own method: it holds all of them as objects.
        store, token = self._client._tracking_client.store, None
        while True:
            with self.asked("read a metric"):
                page = store.get_metric_history(run, name, max_results=_PAGE_METRICS, page_token=token)
            if page:
                yield [one.value for one in page], [one.timestamp for one in page], [one.step for one in page]
            token = page.token
            if not token:
                return

    def log_params(self, run: str, params: Mapping[str, str]) -> None:
        """Sets parameters that are not there yet: none can be changed."""
        make = self._entities.Param
        for some in _by_hundred([make(*pair) for pair in params.items()]):
            with self.asked("log parameters"):
                self._client.log_batch(run, params=some)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        make = self._entities.RunTag
        for some in _by_hundred([make(name, text[:TAG_CHARACTERS_MAX]) for name, text in tags.items()]):
            with self.asked("set tags"):
                self._client.log_batch(run, tags=some)

    def remove_tag(self, run: str, name: str) -> None:
        with contextlib.suppress(Unknown), self.asked("remove a tag"):
            self._client.delete_tag(run, name)

    def upload(self, run: str, path: str, directory: str) -> None:
        """Puts a file of this machine below a directory of the run's artifacts ("": at their top); one of that name is replaced."""
        with self.asked("store a file"):
            self._be_the_one()
            self._client.log_artifact(run, path, directory or None)

    def _be_the_one(self) -> None:
        """Clients before MLflow 3 look for a server of files under the address that the whole process uses, not under their own."""
        if self._tracking.get_tracking_uri() != self.uri:
            before = os.environ.get("MLFLOW_TRACKING_URI")
            self._tracking.set_tracking_uri(self.uri)  # sets the variable too, which another target may yet ask for
            os.environ.pop("MLFLOW_TRACKING_URI", None)
            if before is not None:
                os.environ["MLFLOW_TRACKING_URI"] = before

    # -- errors ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def asked(self, what: str, fallback: type[Error] = Error) -> Iterator[None]:
        """Turns what the library raises into our errors, without secrets.

        Args:
            fallback: What an error becomes that waiting does not mend, and of which no more is known.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the libraries about each other
                yield
        except self._failures as error:
            raise self._meant(what, error, fallback) from None
        except ImportError as error:
            raise UsageError(
                f"MLflow at {self.said} cannot {what}: {error}",
                hint=install_hint(error.name or "mlflow"),
            ) from None

    def _meant(self, what: str, error: Any, fallback: type[Error]) -> Error:
        code, reason = getattr(error, "error_code", ""), _reason(error)
        said = f"MLflow at {self.said} cannot {what}"
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if code in _STRANGER or status == 401:
            return UsageError(
                f"{said}: it does not know us (401)",
                hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
            )
        if code == "PERMISSION_DENIED" or status == 403:
            return fallback(f"{said}: this is not allowed (403): {reason}")
        if code in _UNKNOWN:
            return Unknown(f"{said}: {reason}")
        if code == "ENDPOINT_NOT_FOUND":
            return UsageError(f"{said}: it is no tracking server: {reason}")
        if "must be in the 'active' state" in reason:
            return Retriable(f"{said}: it was deleted in this moment")
        if database.is_made_by_others(error):
            return Retriable(f"{said} now: another process is making its tables", after=database.TABLES_SECONDS)
        if "unsupported URI" in reason:
            return UsageError(f"{said}: it is no URI that MLflow knows", hint=_meant_by(self.uri))
        if "filesystem tracking backend" in reason:
            return UsageError(
                f"{said}: this MLflow takes no directory unless it is told to",
                hint="MLFLOW_ALLOW_FILE_STORE=true, or --to mlflow:sqlite:///FILE",
            )
        if type(error).__name__ == "InvalidUrlException" or "[SSL: " in reason or "credential configuration" in reason:
            return UsageError(f"{said}: {reason}")
        if "mlflow db upgrade" in reason:
            return UsageError(f"{said}: {reason}")
        is_network = code == "" and status is None and not database.is_final(error)
        if code in _RETRIABLE or status in _STATUS_RETRIABLE or is_network or "database is locked" in reason:
            return Retriable(f"{said} now: {reason}", after=_retry_after(response))
        return fallback(f"{said}: {reason}")


def _reason(error: BaseException) -> str:
    """What an error says, on one line; of a network's only the cause, since the rest is the URL once more."""
    text = _hidden(" ".join(str(error).split())).partition(" [SQL: ")[0]
    if cause := _CAUSE.search(text):
        text = cause[1]
    if number := _ERRNO.search(text):
        text = f"{number[1][:1].lower()}{number[1][1:]}"
    return text if len(text) <= _REASON_CHARACTERS_MAX else f"{text[:_REASON_CHARACTERS_MAX]}…"


def _meant_by(uri: str) -> str:
    """What somebody may have meant by a URI that MLflow does not know: "host:5000" lacks its beginning."""
    port = uri.partition(":")[2]
    if port.partition("/")[0].isdecimal():
        return f"--to mlflow:http://{_hidden(f'//{uri}')[2:]}"
    return "--to mlflow:http://HOST:PORT, mlflow:sqlite:///FILE"


def _close(client: Any) -> None:
    engine = getattr(client._tracking_client.store, "engine", None)
    if engine is not None:
        engine.dispose()


def _hidden(text: str) -> str:
    return _CREDENTIALS.sub(r"\1***@", text)


def _retry_after(response: Any) -> float | None:
    try:
        return float(response.headers["Retry-After"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _portions(metrics: Sequence[tuple[str, float, int, int]]) -> Iterator[Sequence[tuple[str, float, int, int]]]:
    """As many as fit into one request. What lies together has mostly one name, whose size is asked once."""
    start, size, last, bytes_each = 0, 0, "", 0
    for place, metric in enumerate(metrics):
        if metric[0] != last:
            last = metric[0]
            bytes_each = len(json.dumps(last)) + _METRIC_BYTES
        if place - start == METRICS_MAX or size + bytes_each > _REQUEST_BYTES_MAX:
            yield metrics[start:place]
            start, size = place, 0
        size += bytes_each
    if start < len(metrics):
        yield metrics[start:]


def _by_hundred(pairs: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(pairs), PAIRS_MAX):
        yield pairs[start : start + PAIRS_MAX]
