"""``jsonl:DIR``: lines of JSON, one for each row as it was logged. The simplest target, and the model for others (docs/sync.md#jsonl).

    DIR/<project>/<run>/facts.json               what is known of the run, replaced as a whole
                        rows-<stream>.jsonl      {"_step", "_timestamp", "_sequence", "_stream", key: value, …}
                        system-<stream>.jsonl    the same of what was observed
                        console-<stream>.jsonl   the same of what was printed
                        media/<stream>-<sequence>-<n>-<name>

A file of lines only grows; the state says how long each is, and what is longer was written by a pass that did not come to its commit.
What is under the same stream, step and key twice was logged twice, and the higher sequence counts. Rows that a resume hid before they
were carried are left out; when a resume hides some that are in the files, these are written anew.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

from daemon.sync.appending import AppendFile, is_count, is_inside
from daemon.sync.passage import Passage
from daemon.sync.target import Target
from sdk import clock
from sdk.errors import Error, UsageError
from sdk.files import EXPORTS
from sdk.ids import run_directory
from sdk.limits import MIB, NESTING_MAX
from sdk.reader import MediaItem, Run
from sdk.reader.delivery import Batch
from sdk.reader.lanes import TRAINING
from sdk.reader.plain import to_json

_KINDS = TRAINING | {"system", "console"}
_COMMIT_SECONDS = 5.0
_COMMIT_BYTES = 32 * MIB
_LINES = ".jsonl"
# What stands beside our files is not ours: only names that nobody else gives are ever removed.
_OWN_LINES = re.compile(r"(rows|system|console)-[0-9a-f]{16}\.jsonl")
_OWN_MEDIA = re.compile(r"[0-9a-f]{16}-\d+-\d+-.*", re.DOTALL)
FACTS = "facts.json"
MEDIA = "media"
# What was logged under our own names, as `Run.rows` calls it.
_LOGGED = {name: f"_logged{name}" for name in ("_step", "_timestamp", "_sequence", "_stream")}


class JsonlTarget(Target):
    scheme = "jsonl"

    def check(self) -> None:
        """Raises UsageError where no directory can be made."""
        try:
            EXPORTS.make_directory(self.place.path)
        except OSError as error:
            raise UsageError(f"cannot write to {self.place.text!r}: {error.strerror}") from error

    def carry(self, passage: Passage) -> None:
        _Lines(self.place.path, passage).carry()


class _Lines:
    """The files of one run in one pass."""

    def __init__(self, root: str, passage: Passage) -> None:
        self._root, self._passage = root, passage
        if not _is_sound(passage.state):
            passage.start_again()
        self._state: dict[str, Any] = dict(passage.state)
        self._file: AppendFile | None = None
        self._committed, self._since = clock.monotonic(), 0

    def carry(self) -> None:
        run = self._passage.run
        # A run stays where it was put first, whatever its project is called later.
        directory = self._state.get("directory") or os.path.join(_directory(run.project), run_directory(run.id))
        if self._state and not (self._are_whole() and self._are_shown(run)):
            self._passage.start_again()
            self._state = {}
        lengths, steps = (dict(self._state.get(name, {})) for name in ("lengths", "steps"))
        self._state = {**self._state, "directory": directory, "lengths": lengths, "steps": steps}
        self._mend()
        try:
            for batch in self._passage.batches(_KINDS):
                self._append(batch)
                if clock.monotonic() - self._committed >= _COMMIT_SECONDS or self._since >= _COMMIT_BYTES:
                    self._commit()
            self._tell_facts(run)
            self._commit()
        finally:
            if self._file is not None:
                self._file.close()

    def _path(self, *names: str) -> str:
        return os.path.join(self._root, self._state["directory"], *names)

    def _are_whole(self) -> bool:
        """Whether what was written before is still there."""
        try:
            return all(EXPORTS.status(self._path(name)).size >= size for name, size in self._state["lengths"].items())
        except OSError:
            return False

    def _mend(self) -> None:
        """Takes away what no commit knows: of a row that was hidden since then, nothing comes that would be written over it."""
        lengths = self._state["lengths"]
        for name, size, _ in EXPORTS.entries(self._path()):
            if _OWN_LINES.fullmatch(name) and name not in lengths:
                EXPORTS.remove(self._path(name))
            elif size > lengths.get(name, size):
                AppendFile(self._path(name), lengths[name]).close()
        for name, _, _ in EXPORTS.entries(self._path(MEDIA)) if not lengths else ():
            if _OWN_MEDIA.fullmatch(name):
                EXPORTS.remove(self._path(MEDIA, name))

    def _are_shown(self, run: Run) -> bool:
        """Whether no resume has hidden a row that was written."""
        steps = self._state["steps"]
        return all(steps.get(stream, -1) < limit for stream, limit in run.hidden_from.items())

    def _append(self, batch: Batch) -> None:
        if not batch.points:  # all of it is hidden
            return
        file = self._file_of(batch)
        lines = []
        for sequence, step, time_us, values in batch.rows():
            head = {"_step": step, "_timestamp": time_us / 1e6, "_sequence": sequence, "_stream": batch.stream.hex}
            row = {_LOGGED.get(key, key): self._plain(value, key, head) for key, value in values.items()}
            lines.append(to_json({**head, **row}) + "\n")
        data = "".join(lines).encode("ascii")
        file.write([data])
        self._since += len(data)
        steps = self._state["steps"]
        last = max(int(points.step.max()) for points in batch.points)
        steps[batch.stream.hex] = max(steps.get(batch.stream.hex, -1), last)
        self._passage.moved(batch.values, len(data))

    def _file_of(self, batch: Batch) -> AppendFile:
        kind = batch.stream.kind
        name = f"{'rows' if kind in TRAINING else kind}-{batch.stream.hex}{_LINES}"
        path = self._path(name)
        if self._file is None or self._file.path != path:
            self._force()
            self._file = AppendFile(path, self._state["lengths"].get(name, 0))
        return self._file

    def _force(self) -> None:
        """What was written to the open file is safe, and is in the state; it is closed."""
        if self._file is not None:
            self._state["lengths"][os.path.basename(self._file.path)] = self._file.force()
            self._file.close()
            self._file = None

    def _commit(self) -> None:
        self._force()
        self._passage.commit(self._state)
        self._committed, self._since = clock.monotonic(), 0

    def _tell_facts(self, run: Run) -> None:
        text = to_json(facts_of(run), indent=1).encode("ascii")
        digest = hashlib.sha256(text).hexdigest()
        if self._state.get("facts") != digest or not EXPORTS.exists(self._path(FACTS)):
            EXPORTS.make_directory(self._path())
            EXPORTS.write_whole(self._path(FACTS), text)
            self._state["facts"] = digest

    # -- media -----------------------------------------------------------------------------------------------------------

    def _plain(self, value: Any, key: str, head: dict[str, Any], depth: int = 0) -> Any:
        """A value with media written into files; each becomes what it says of itself, and the path of its file."""
        if isinstance(value, MediaItem):
            return self._saved(value, key, head)
        if depth > NESTING_MAX:
            return value
        if type(value) is list and any(isinstance(part, (MediaItem, list, dict)) for part in value):
            return [self._plain(part, key, head, depth + 1) for part in value]
        if type(value) is dict:
            return {name: self._plain(part, key, head, depth + 1) for name, part in value.items()}
        return value

    def _saved(self, item: MediaItem, key: str, head: dict[str, Any]) -> dict[str, Any]:
        # Of stream and sequence, so that no two are one, and a pass that is begun again writes the same file.
        name = f"{head['_stream']}-{head['_sequence']}-{item.index}-{item.file_name}"
        facts = {**item.as_plain(), "kind": item.kind}
        EXPORTS.make_directory(self._path(MEDIA))
        try:
            self._since += EXPORTS.status(item.save(self._path(MEDIA, name))).size
        except Error as error:
            self._passage.lost(f"files of {item.kind} that cannot be read", key)
            return {**facts, "path": None, "error": error.message}
        return {**facts, "path": f"{MEDIA}/{name}"}


def _is_sound(state: dict[str, Any]) -> bool:
    """Whether a state leads to nothing but files of ours below the root."""
    if not state:
        return True
    lengths, steps = state.get("lengths"), state.get("steps")
    return (
        is_inside(state.get("directory"))
        and isinstance(lengths, dict)
        and all(_OWN_LINES.fullmatch(name) and is_count(size) for name, size in lengths.items())
        and isinstance(steps, dict)
        and all(type(step) is int for step in steps.values())
    )


def _directory(project: str) -> str:
    return run_directory(project) if project else "_"


def facts_of(run: Run) -> dict[str, Any]:
    """What is known of a run, for JSON; the same as long as nothing new is known."""
    facts = {
        name: getattr(run, name)
        for name in (
            "id", "name", "project", "group", "job_type", "notes", "tags", "state", "created", "exit_code", "config", "summary",
            "metrics", "context", "artifacts", "misuse",
        )
    }  # fmt: skip
    streams = [
        {"id": one.id, "kind": one.kind, "rank": one.rank, "host": one.host, "started": one.started, "attempt": one.attempt,
         "parent": one.parent, "continues": one.continues, "records": one.records}
        for one in run.streams
    ]  # fmt: skip
    return {
        **facts,
        "error": run.error._asdict() if run.error is not None else None,
        "alerts": [alert._asdict() for alert in run.alerts],
        "files": [file.name for file in run.files()],
        "streams": streams,
    }
