"""What a run is besides its rows, in W&B's words: names, config, summary, definitions, samples, lines, files, artifacts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from daemon.sync.targets.wandb.values import LEFT_OUT, Values
from sdk.files import Files
from sdk.ids import check_run_id, run_directory
from sdk.reader import Run
from sdk.reader.media import items_in
from sdk.reader.metrics import Definitions
from sdk.reader.state import RUNNING

# Files that W&B writes itself into the directory of a run's files.
RESERVED = frozenset({"config.yaml", "wandb-summary.json", "wandb-metadata.json", "wandb-history.jsonl", "output.log"})
# Limit: of W&B's server.
TAG_CHARACTERS_MAX = 64
NAME_CHARACTERS_MAX = 128
_FORBIDDEN = "/\\#?%:"

Lost = Callable[..., None]


def facts_of(run: Run, is_over: bool, lost: Lost) -> dict[str, Any]:
    """All that a pass tells anew when it differs from what the last one told."""
    values = Values(None, "", lost)
    state = run.state
    tags = []
    for tag in run.tags:
        if 0 < len(tag) <= TAG_CHARACTERS_MAX:
            tags.append(values.text(tag, "tags"))
        else:
            lost("tags that are longer than W&B's", "tags")
    return {
        "id": _id_of(run.id),
        "name": values.text(run.name, "name")[:NAME_CHARACTERS_MAX],
        "project": "".join("-" if c in _FORBIDDEN else c for c in values.text(run.project, "project"))[:NAME_CHARACTERS_MAX],
        "group": values.text(run.group, "group"),
        "job_type": values.text(run.job_type, "job_type"),
        "notes": values.text(run.notes, "notes"),
        "tags": tags,
        "host": values.text(_host_of(run), "host"),
        "program": environment_of(run).get("program") or "<unknown>",
        "config": _plain_map(values, run.config),
        "summary": _plain_map(
            Values(None, "", _unsaid), {key: value for key, value in run.summary.items() if not items_in(value)}
        ),
        "metrics": run.metrics,
        "exit_code": _exit_code(run, state) if is_over else 0,
        "state": state if is_over else RUNNING,
    }  # fmt: skip


def _host_of(run: Run) -> str:
    said = run.context.get("host")
    known = [said, *(stream.host for stream in run.streams)]
    return next((host for host in known if isinstance(host, str) and host), "unknown")


def _unsaid(what: str, key: str = "") -> None:
    """Most of a summary are values of rows, of which it was said; of what a user set this is the price of not counting twice."""


def _id_of(run_id: str) -> str:
    """An id that W&B takes: its rules are those of `check_run_id`."""
    try:
        return check_run_id(run_id)
    except ValueError:
        return run_directory(run_id)


def _exit_code(run: Run, state: str) -> int:
    """W&B knows "finished" and "failed", by this."""
    if state == "finished":
        return 0
    return run.exit_code or 1


def _plain_map(values: Values, found: Mapping[str, Any]) -> dict[str, Any]:
    made = {values.text(str(key), str(key)): _plain(values, str(key), value) for key, value in found.items()}
    return {key: value for key, value in made.items() if key and value is not LEFT_OUT}


def _plain(values: Values, key: str, value: Any) -> Any:
    if isinstance(value, bytes):
        values._lost("bytes", key)
        return LEFT_OUT
    return values.value(key, value)


def environment_of(run: Run) -> dict[str, Any]:
    """Where it ran, by the names of W&B's `EnvironmentRecord`."""
    said = run.context
    program, python, git, command = (said.get(name) for name in ("program", "python", "git", "command"))
    found: dict[str, Any] = {
        "os": said.get("os"), "host": said.get("host"), "username": said.get("user"), "root": said.get("cwd"),
        "python": _python_of(python) if isinstance(python, dict) else None,
        "executable": python.get("executable") if isinstance(python, dict) else None,
        "program": program.get("path") if isinstance(program, dict) else None,
    }  # fmt: skip
    found = {name: _utf8(value) for name, value in found.items() if isinstance(value, str)}
    if isinstance(command, list):
        found["args"] = [_utf8(one) for one in command[2:] if isinstance(one, str)]
    if isinstance(git, dict) and isinstance(git.get("commit"), str):
        remote = git.get("remote")
        found["git"] = {"commit": _utf8(git["commit"]), "remote": _utf8(remote) if isinstance(remote, str) else ""}
    found["started_ns"] = max(int(run.created * 1e9), 0)
    return found


def _python_of(python: Mapping[str, Any]) -> str:
    """As W&B says it: "CPython 3.11.7"."""
    said = (python.get("implementation"), python.get("version"))
    return " ".join(one for one in said if isinstance(one, str))


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def metrics_of(run: Run, told: Callable[[str], None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What `define_metric` said: a name, and arguments of W&B's function of that name."""
    for name, one in Definitions(run.metrics)._said.items():
        if one.reduce is not None:
            told("values of epochs (define_metric(reduce=…)) are carried as rows; W&B computes none itself")
        said: dict[str, Any] = {}
        if one.step_metric is not None:
            said["step_metric"], said["step_sync"] = one.step_metric, one.step_sync
        if one.hidden:
            said["hidden"] = True
        if one.summary:
            said["summary"] = ",".join(one.summary)
        if one.goal is not None:
            said["goal"] = one.goal
        yield name, said


# -- what was observed ---------------------------------------------------------------------------------------------------


class Console:
    """Rows of a console as text with newlines.

    Attributes:
        live: Lines that had not ended, by stream and number: what they were last, and on which of its outputs.
    """

    def __init__(self, live: Mapping[str, Any], lost: Lost) -> None:
        self.live = {name: list(line) for name, line in live.items()}
        self._lost = lost

    def lines(self, stream: str, lane: int, rank: int | None, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """("stdout" or "stderr", text) of a row."""
        missed = row.get("missed")
        if isinstance(missed, int):
            self._lost("lines of the console that are missing in the store", count=max(missed, 1))
            return
        text = row.get("text")
        if not isinstance(text, str):
            return
        source = row.get("from")
        output = "stdout" if source == "stdout" else "stderr"
        if source == "log":
            text = _log_line(row, text)
        text = _utf8(f"[rank {lane if rank is None else rank}] {text}" if lane else text)
        live, ends = row.get("live"), row.get("ends")
        if live is not None:
            self.live[f"{stream} {live}"] = [output, text]
            return
        if ends is not None:
            self.live.pop(f"{stream} {ends}", None)
        yield output, f"{text}\n"

    def rest(self) -> Iterator[tuple[str, str]]:
        """Lines that never ended, when nothing more will come."""
        for output, text in self.live.values():
            yield output, f"{text}\n"
        self.live = {}


def _log_line(row: Mapping[str, Any], text: str) -> str:
    level = row.get("level")
    head = logging.getLevelName(level) if isinstance(level, int) else ""
    parts = [f"{head}:{row.get('logger') or 'root'}: {text}"]
    parts += [row[name] for name in ("error", "stack") if isinstance(row.get(name), str)]
    return "\n".join(parts)


# -- files ---------------------------------------------------------------------------------------------------------------


def artifact_of(wandb: Any, artifact: Any, directory: str) -> Any:
    """An artifact of W&B's package with the same name, kind, metadata and files.

    Raises:
        Exception: A file that is not there, or what the package raises.
    """
    made = wandb.Artifact(
        artifact.collection, type=artifact.type, description=artifact.description or None,
        metadata={**(artifact.metadata or {}), "stepd": artifact.name},
    )  # fmt: skip
    for entry in artifact.files():
        path = entry.download(os.path.join(directory, run_directory(artifact.name)))
        made.add_file(path, name=entry.path, policy="immutable", skip_cache=True)
    return made


def force(directory: str, files: Files) -> int:
    """Forces all files below a directory to the disk; their size in bytes."""
    total = 0
    for name, size, _ in files.entries(directory):
        path = os.path.join(directory, name)
        below = _is_directory(files, path)
        if below:
            total += force(path, files)
        else:
            file = files.open(path, write=True)
            try:
                file.sync()
            finally:
                file.close()
            total += size
    files.sync_directory(directory)
    return total


def _is_directory(files: Files, path: str) -> bool:
    return files.owner(path)[1] & 0o170000 == 0o040000
