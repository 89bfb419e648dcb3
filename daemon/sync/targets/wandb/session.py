"""One run of W&B's package, from `init` to `finish`: what goes through its public functions, and what through its records.

Rows are given to it as finished records (`HistoryRecord`), as its own tool for syncing does. `run.log` would put the moment of
syncing in the place of `_runtime`, and round large integers; a record is kept as it is. What was printed, samples of the system and
the facts of the machine have their original times likewise, which no public function takes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from daemon.sync.target import Retriable
from daemon.sync.targets.wandb.values import dumped
from sdk.errors import Error, UsageError
from sdk.files import DISK, read_whole

# What of W&B's environment is about the server and the machine. All else (a project, a run id, a sweep) steers a training that runs
# in this environment, and must not steer the runs that are carried.
_KEPT = frozenset({
    "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_APP_URL", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR",
    "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CREDENTIALS_FILE", "WANDB_HTTP_TIMEOUT", "WANDB_INIT_TIMEOUT", "WANDB_INSECURE_DISABLE_SSL",
    "WANDB_X_EXTRA_HTTP_HEADERS", "WANDB_CORE_DEBUG", "WANDB_USERNAME", "WANDB_USER_EMAIL",
})  # fmt: skip

# The package's own tries go on for hours; the driver's begin again with what arrived.
_TRIES = 6
_LOG_BYTES_MAX = 64 << 20
# Nothing of this process, of its machine or of its directory belongs to the run. Names that a version does not know are left out.
_SETTINGS: dict[str, Any] = {
    "silent": True, "quiet": True, "console": "off", "show_errors": False, "show_warnings": False, "show_info": False,
    "disable_git": True, "disable_code": True, "save_code": False, "disable_job_creation": True, "symlink": False,
    "sync_tensorboard": False, "x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True,
    "x_disable_viewer": True, "x_save_requirements": False, "reinit": "finish_previous", "x_file_stream_retry_max": _TRIES,
    "x_file_transfer_retry_max": _TRIES, "x_graphql_retry_max": _TRIES,
}  # fmt: skip

# What the package raises of a network, a server or its own service that fails, and words of such errors.
_TROUBLE = frozenset({
    "CommError", "TimeoutError", "ConnectionError", "HandleAbandonedError", "MailboxClosedError", "ServiceStartTimeoutError",
    "WandbServiceConnectionError", "WandbServiceNotOwnedError",
})  # fmt: skip
_SILENCES = ("did not respond", "timed out", "timeout", "connection refused", "no such host", "unreachable")


def outside_environment() -> dict[str, str]:
    """Takes W&B's variables that are not about the server out of the environment; returns them, for `put_back`."""
    taken = {name: value for name, value in os.environ.items() if name.startswith("WANDB_") and name not in _KEPT}
    for name in taken:
        del os.environ[name]
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    return taken


def put_back(taken: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_") and name not in _KEPT]:
        del os.environ[name]
    os.environ.update(taken)


@contextlib.contextmanager
def explained(wandb: Any, doing: str) -> Iterator[None]:
    """W&B's errors as ours: what may go better later is `Retriable`, what was said wrongly `UsageError`."""
    try:
        yield
    except (Error, KeyboardInterrupt):
        raise
    except Exception as error:
        found = f"cannot {doing}: {type(error).__name__}: {error}"
        names = {kind.__name__ for kind in type(error).__mro__}
        is_silent = any(word in found for word in _SILENCES)  # the package calls it a refused key when nobody answers
        if not is_silent and (names & {"AuthenticationError", "AuthenticationFailedError"} or "API key" in found):
            raise UsageError(
                found, hint="WANDB_API_KEY=… stepd sync …, wandb login, or --to wandb:…?mode=offline"
            ) from error
        if is_silent or names & _TROUBLE:
            raise Retriable(found) from error
        raise


class Session:
    """A run of W&B's package that is open.

    Args:
        wandb: The package.
        about: What `wandb.init` is to be told: project, entity, id, name, group, job_type, tags, notes, config.
        directory: Where W&B puts its directory `wandb`.
        is_offline: Whether it writes files or sends.
        is_last: Whether the run has ended: otherwise its state is left alone.
        host, program: Where the run was, and what.
    """

    def __init__(
        self,
        wandb: Any,
        about: Mapping[str, Any],
        directory: str,
        *,
        is_offline: bool,
        is_last: bool,
        host: str,
        program: str,
    ) -> None:
        # Why: with "off" the package sends no lines at all. What it puts around this process's output is taken away at once.
        # The state is the server's; older packages wait for ever where nobody answers.
        online = {} if is_offline else {"console": "wrap_raw", "x_update_finish_state": is_last}
        known = getattr(wandb.Settings, "model_fields", _SETTINGS)
        chosen = {**_SETTINGS, **online, "host": host, "program": program}
        settings = wandb.Settings(**{name: value for name, value in chosen.items() if name in known and value != ""})
        with explained(wandb, "begin a run of W&B"):
            self._run = wandb.init(
                **about, dir=directory, settings=settings, resume="allow", mode="offline" if is_offline else "online"
            )
        with contextlib.suppress(AttributeError):
            self._run._restore()
        self._wandb = wandb
        self._interface = getattr(self._run, "_interface", None) or self._run._backend.interface
        from wandb.proto import wandb_internal_pb2
        from wandb.sdk.data_types.utils import history_dict_to_json

        self._records, self._to_json = wandb_internal_pb2, history_dict_to_json
        self.summary: dict[str, Any] = {}

    def _publish(self, **record: Any) -> None:
        """Hands a record to W&B's service, and waits until it is sent: what waits needs no bound of ours."""
        self._interface._publish(self._interface._make_record(**record))

    @property
    def files(self) -> str:
        """The directory of the run's files."""
        return str(self._run.dir)

    def row(self, step: int, values: dict[str, Any], media: dict[str, Any], lost: Callable[..., None]) -> None:
        """A whole row. `values` are plain; `media` become plain here, and their files the run's.

        Args:
            lost: Told of media that the package refuses.
        """
        record = self._records.HistoryRecord()
        record.step.num = step
        for key, value in media.items():
            try:
                # Files are named after the key: not every key can be a name.
                name = "".join(c if c.isprintable() else "_" for c in key)
                made = self._to_json(self._run, self._run._serialize_custom_charts({name: value}), step=step)
                values.update((key + end.removeprefix(name), one) for end, one in made.items())
            except Exception as error:  # the package raises what it likes, and a row is more than one of its values
                lost(f"values that W&B's package refused ({type(error).__name__})", key)
        for key, value in (*values.items(), ("_step", step)):
            item = record.item.add()
            item.nested_key.append(key)
            item.value_json = dumped(value)
        self._publish(history=record)
        self.saw(step, values)

    def saw(self, step: int, values: Mapping[str, Any]) -> None:
        """Takes a row into the summary."""
        self.summary.update(values)
        self.summary["_step"] = step

    def define(self, name: str, said: Mapping[str, Any]) -> None:
        """What `define_metric` said.

        Raises:
            Exception: W&B does not take it.
        """
        self._run.define_metric(name, **said)

    def sample(self, time_ns: int, values: Mapping[str, Any]) -> None:
        """A sample of the system's metrics."""
        record = self._records.StatsRecord()
        record.timestamp.FromNanoseconds(time_ns)
        for key, value in values.items():
            item = record.item.add()
            item.key, item.value_json = key, dumped(value)
        self._publish(stats=record)

    def output(self, stream: str, time_ns: int, text: str) -> None:
        """A line with its newline. `stream` is "stdout" or "stderr"."""
        kinds = self._records.OutputRawRecord.OutputType
        record = self._records.OutputRawRecord(
            output_type=kinds.STDOUT if stream == "stdout" else kinds.STDERR, line=text
        )
        record.timestamp.FromNanoseconds(time_ns)
        self._publish(output_raw=record)

    def environment(self, facts: Mapping[str, Any]) -> None:
        """Where the run was: names of `EnvironmentRecord` to texts, numbers, lists; "git" to its remote and commit."""
        record = self._records.EnvironmentRecord()
        for name, value in facts.items():
            if name == "git":
                record.git.remote_url, record.git.commit = value.get("remote") or "", value.get("commit") or ""
            elif name == "started_ns":
                record.started_at.FromNanoseconds(value)
            elif isinstance(value, list):
                getattr(record, name).extend(value)
            elif value:
                setattr(record, name, value)
        record.writer_id = "stepd"
        self._publish(environment=record)

    def save(self, name: str) -> None:
        """A file that lies in `files` belongs to the run."""
        self._run.save(os.path.join(self.files, name), base_path=self.files, policy="now")

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None:
        self._run.log_artifact(artifact, aliases=aliases)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Sets the summary and ends; online it waits until everything is at the server.

        Raises:
            Retriable: The server does not answer.
        """
        record = self._records.SummaryRecord()
        for key, value in {**self.summary, **summary}.items():
            item = record.update.add()
            item.key, item.value_json = key, dumped(value)
        self._publish(summary=record)
        log = os.path.join(os.path.dirname(self.files), "logs", "debug-internal.log")
        with explained(self._wandb, "finish the run at W&B"):
            self._run.finish(exit_code=exit_code)
        # Why its log: `finish` returns as if all were well when the server has refused rows or files.
        for failure in _failures(log):
            raise Retriable(f"W&B's package could not send everything: {failure}")

    def abandon(self) -> None:
        """Ends after a failure: nothing that was given counts."""
        with contextlib.suppress(Exception):
            self._run.finish(exit_code=1)


def _failures(path: str) -> Iterator[str]:
    """What the package's service has noted that it could not send."""
    try:
        lines = read_whole(DISK, path, _LOG_BYTES_MAX).splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        if b"failed to upload" in line:
            try:
                yield str(json.loads(line)["msg"])
            except (ValueError, KeyError, TypeError):
                yield line.decode("utf-8", "replace")
