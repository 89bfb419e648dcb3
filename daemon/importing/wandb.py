"""``stepd import wandb:PATH``: runs that W&B's package has written, from a `.wandb` file or from all of them below a directory.

Files with the same entity, project and run id are one run: a run that was resumed has a directory for each part. Their order is that of
their directories' names, which begin with the time; each is an attempt. What W&B's server knows alone (a run that was never written
here, an artifact) cannot be had.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from daemon.formats import wandb_file, wandb_names
from daemon.importing.source import Found, Source, files_below, fingerprint_of, id_of, leads_below
from daemon.importing.wandb_media import Media, MissingFileError
from daemon.importing.writing import ImportedRun
from sdk._folding import Folding
from sdk.errors import UsageError
from sdk.files import DISK, Files
from sdk.ids import check_run_id
from sdk.limits import NESTING_MAX
from sdk.reader.metrics import Definitions
from sdk.values import plain

_END = ".wandb"
_FILES = "files"
# What W&B adds to rows and summaries for itself.
_OWN = frozenset({"_step", "_timestamp", "_runtime", "_wandb"})
# Files that say again what the records say.
_DERIVED = frozenset({"config.yaml", "wandb-summary.json", "wandb-history.jsonl", "wandb-events.jsonl", "output.log"})
_MOVED_BYTES = 1 << 20
# Limit: the year 2262, in which 64 bits of nanoseconds end.
_SECONDS_MAX = 9.2e9
# Limit: kinds of values that are not known, each of which is counted by its name, and the length of that.
_KINDS_MAX, _KIND_CHARACTERS_MAX = 20, 60
_NUMBER_MAX = 1e300
# Where the first row is looked for.
_FIRST_RECORDS = 1000


class WandbSource(Source):
    """Runs of W&B, by their `.wandb` files."""

    scheme: ClassVar[str] = "wandb"

    def __init__(self, path: str, files: Files = DISK) -> None:
        super().__init__(path)
        self._files = files
        self._paths: dict[str, list[str]] = {}

    def runs(self) -> Iterable[Found]:
        """One for each run id in each project."""
        parts: dict[tuple[str, str, str], list[tuple[str, wandb_file.Run]]] = {}
        for path in self._logs():
            about = self._about(path)
            if about is not None and about.id:
                parts.setdefault((about.entity, about.project, about.id), []).append((path, about))
        if not parts and not self.troubles:
            raise UsageError(
                f"there is no run of W&B at {self.path!r}, expected a {_END} file or a directory with some below it",
                hint="stepd import wandb:wandb/offline-run-20260504_170000-a41f",
            )
        taken: set[str] = set()
        for key, found in parts.items():
            run_id = _run_id(key, taken)
            taken.add(run_id)
            about = found[-1][1]
            paths = self._paths[run_id] = [path for path, _ in found]
            fingerprint, size = fingerprint_of(paths)
            source = f"wandb:{paths[0] if len(paths) == 1 else os.path.dirname(os.path.dirname(paths[0]))}"
            yield Found(run_id, about.name or about.id, about.project, source, paths[0], fingerprint, len(paths), size)

    def _logs(self) -> Iterator[str]:
        # Why once each: a pattern may match a directory and what is in it.
        seen: set[str] = set()
        for path in (path for match in self.matches for path in self._logs_of(match)):
            real = os.path.realpath(path)
            if real not in seen and self.is_inside(path):
                seen.add(real)
                yield path

    def _logs_of(self, match: str) -> Iterator[str]:
        if match.endswith(_END) and not os.path.isdir(match):
            if self._files.exists(match):
                yield match
        elif not os.path.isdir(match):
            # Of what a pattern matches the rest may be anything.
            if match == self.path:
                raise UsageError(
                    f"there is no run of W&B: {match!r} is no {_END} file and no directory with some below it"
                )
        elif self.is_inside(match):
            below = files_below(match, follows=self._refuse, trouble=lambda error: self.troubles.append(str(error)))
            for where, names in below:
                yield from (os.path.join(where, name) for name in names if name.endswith(_END))

    def _refuse(self, link: str) -> bool:
        """No link to a directory is followed: W&B's own lead to runs that are there beside them. One that leads out is told."""
        self.is_inside(link)
        return False

    def _about(self, path: str) -> wandb_file.Run | None:
        """What the first records say; None of what is no file of W&B, says nothing yet, or cannot be read."""
        try:
            # Why first: opening a FIFO would wait for its other end.
            if not self._files.status(path).is_regular:
                raise OSError(errno.EINVAL, "is not a regular file", path)
            file = self._files.open(path)
        except OSError as error:
            self.troubles.append(str(error))
            return None
        log = wandb_file.Log(file)
        try:
            for record in log.records():
                if isinstance(record, wandb_file.Run):
                    return record
        except ValueError:
            return None
        finally:
            file.close()
        # Where it is damaged, its name tells the id.
        name = os.path.basename(path)
        return wandb_file.Run(id=name.removeprefix("run-").removesuffix(_END)) if log.damage else None

    def read(self, found: Found, run: ImportedRun, moved: Callable[[int], None]) -> None:
        paths = self._paths[found.run_id]
        reading = _Reading(run, found, self.root)
        for path in paths:
            file = self._files.open(path)
            try:
                reading.part(path, file, moved)
            finally:
                file.close()
        reading.end()


def _run_id(key: tuple[str, str, str], taken: set[str]) -> str:
    """W&B's id, unless it is not one here, or another project of the same source has it."""
    try:
        return id_of(*key) if key[2] in taken else check_run_id(key[2])
    except ValueError:
        return id_of(*key)


class _Reading:
    """What the records of one run come to."""

    def __init__(self, run: ImportedRun, found: Found, root: str) -> None:
        self._run, self._found, self._root = run, found, root
        self._config: dict[str, Any] = {}
        self._summary: dict[str, Any] = {}
        self._metrics: dict[str, Any] = {}
        self._last: dict[str, Any] = {}
        self._about: wandb_file.Run | None = None
        self._exit: wandb_file.Exit | None = None
        self._media: Media = Media(None, {})
        self._labels: dict[str, Any] = {}
        self._folding: dict[str, Folding] = {}
        self._kinds: set[str] = set()
        self._time_ns = self._step = 0
        self._name = ""

    def part(self, path: str, source: wandb_file.Source, moved: Callable[[int], None]) -> None:
        """One file."""
        log = wandb_file.Log(source)
        directory = os.path.join(os.path.dirname(path), _FILES)
        is_ours = leads_below(directory, self._root)
        self._media = Media(directory if is_ours else None, self._labels)
        self._name, self._exit = os.path.basename(os.path.dirname(path)), None
        is_begun, told = False, 0
        for record in log.records():
            if isinstance(record, wandb_file.Run) and not is_begun:
                is_begun = True
                self._begin(record, _start_of(source))
            self._take(record)
            if log.end - told > _MOVED_BYTES:
                moved(log.end - told)
                told = log.end
        moved(log.end - told)
        for stream, folding in self._folding.items():
            for line in folding.settle():
                self._line(line, stream)
        if log.damage_count:
            self._run.lost["damaged places, which are left out"] += log.damage_count
        for damage in log.damage:
            self._run.remark(f"{path!r}: {damage.size} bytes at {damage.offset} left out: {damage.reason}")
        if log.is_torn:
            self._run.remark(f"{path!r} ends inside a record: it is still written, or its writer was killed")
        if is_ours:
            self._copy(directory)
        else:
            self._run.lost["files that are links out of the source"] += 1
            self._run.remark(
                f"{directory!r} is a link out of {self._root!r} and was left out (cp -rL takes what it leads to)"
            )

    def end(self) -> None:
        """What is known when everything was read."""
        config, bad = plain({key: value for key, value in self._config.items() if key not in _OWN}, keep_going=True)
        summary, worse = plain(self._set_by_the_user(), keep_going=True)
        if bad or worse:
            self._run.lost["values that cannot be stored"] += len(bad) + len(worse)
        for why in (*bad.values(), *worse.values()):
            self._run.remark(why)
        self._run.facts({"config": config, **({"summary": summary} if summary else {})})
        if self._exit is None:
            self._run.remark("the run has no end: it is still written, or was killed")
            self._run.end("interrupted", 1)
        else:
            self._run.end("failed" if self._exit.code else "finished", self._exit.code)

    def _begin(self, about: wandb_file.Run, started_ns: int) -> None:
        self._time_ns = started_ns or self._time_ns
        host = {"host": about.host} if about.host else {}
        self._run.attempt(self._name, self._time_ns, about=host)

    def _take(self, record: wandb_file.Record) -> None:
        match record:
            case wandb_file.History():
                self._row(record)
            case wandb_file.Summary():
                _change(self._summary, record.changes)
            case wandb_file.Config():
                self._change_config(record.changes)
            case wandb_file.Run():
                self._run.facts({"run": _about(record)})
                self._change_config(record.config)
            case wandb_file.Output():
                self._time_ns = _moment(record.time_ns / 1e9, record.time_ns) or self._time_ns
                for line in self._folding.setdefault(record.stream, Folding()).feed(record.text):
                    self._line(line, record.stream)
            case wandb_file.Logged():
                self._line(record.text, "stderr")
            case wandb_file.Stats():
                sample = wandb_names.from_wandb({".".join(path): value for path, value in record.values})
                if sample:
                    at = _moment(record.time_ns / 1e9, record.time_ns) or self._time_ns
                    self._run.sample(at, sample)
            case wandb_file.Metric():
                self._metrics[record.name] = _definition(record)
                self._run.facts({"metric": {record.name: self._metrics[record.name]}})
            case wandb_file.Exit():
                self._exit = record
            case wandb_file.Alert():
                level = record.level if record.level in ("INFO", "WARN", "ERROR") else "INFO"
                said = {"title": record.title, "text": record.text, "level": level}
                self._run.facts({"alert": {str(self._time_ns): said}})
            case wandb_file.Environment():
                self._run.facts({"context": _context(record.facts)})
            case wandb_file.Unknown():
                self._run.remark(f"records of the kind {record.name!r} are not taken over")

    def _change_config(self, changes: wandb_file.Changes) -> None:
        _change(self._config, changes)
        own = self._config.get("_wandb")
        if isinstance(own, dict):
            self._labels.update(own)

    def _row(self, record: wandb_file.History) -> None:
        # The package writes a map as one item, its service as one for each of the values in it: media too.
        whole: dict[str, Any] = {}
        _change(whole, (record.values, ()))
        step, at = record.step, whole.get("_timestamp")
        if step is None and isinstance(whole.get("_step"), int):
            step = int(whole["_step"])
        values: dict[str, Any] = {}
        for key, value in whole.items():
            if key not in _OWN:
                self._flatten(key, value, values)
        self._step = self._step + 1 if step is None else step
        self._time_ns = _moment(at) or self._time_ns
        self._run.row(self._step, self._time_ns, values)
        self._last.update(values)

    def _flatten(self, key: str, value: Any, into: dict[str, Any], depth: int = 0) -> None:
        if isinstance(value, dict) and "_type" in value:
            made = self._made(key, value)
            if made is not None:
                into[key] = made
        elif isinstance(value, dict) and value and depth < NESTING_MAX:
            for name, one in value.items():
                self._flatten(f"{key}.{name}", one, into, depth + 1)
        else:
            into[key] = value

    def _made(self, key: str, said: dict[str, Any]) -> Any:
        """A value of media; None where there is none."""
        try:
            made = self._media.value(key, said)
        except MissingFileError:
            self._run.lost["media whose files are not there"] += 1
            return None
        except Exception as error:  # whatever a decoder raises of made-up bytes
            self._run.lost["media that make no sense"] += 1
            self._run.remark(f"{key!r}: {type(error).__name__}: {error}")
            return None
        if made is None or made == []:
            kind = repr(said.get("_type"))
            is_told = len(kind) <= _KIND_CHARACTERS_MAX and (kind in self._kinds or len(self._kinds) < _KINDS_MAX)
            if is_told:
                self._kinds.add(kind)
            self._run.lost[f"values of the kind {kind}" if is_told else "values of other kinds"] += 1
            return None
        return made

    def _line(self, text: str, source: str) -> None:
        self._run.line(self._time_ns, text, source)

    def _set_by_the_user(self) -> dict[str, Any]:
        """Of the summary what is neither the last value of its key nor what `define_metric` made of all of them."""
        flat: dict[str, Any] = {}
        definitions = Definitions(self._metrics)
        for key, value in self._summary.items():
            if key not in _OWN and not (isinstance(value, dict) and definitions.of(key).summary):
                _plain_parts(key, value, flat)
        return {key: value for key, value in flat.items() if not _same(value, self._last.get(key, flat))}

    def _copy(self, directory: str) -> None:
        """The run's own files; media stand in rows."""
        for where, names in files_below(directory):
            below = os.path.relpath(where, directory)
            if below.split(os.sep)[0] == "media":
                continue
            for name in names:
                place = name if below == os.curdir else f"{below}/{name}"
                path = os.path.join(where, name)
                if place in _DERIVED:
                    continue
                if os.path.islink(path):
                    # What a link in a directory of somebody's leads to need not be meant for this store.
                    self._run.lost["files that are links (cp -rL takes what they lead to)"] += 1
                    continue
                self._run.file(place, path)


def _start_of(source: wandb_file.Source) -> int:
    """When a run began: what is said, or, where what it logged is older than that (it was written later by a sync), its first row."""
    told = 0
    for count, record in enumerate(wandb_file.Log(source).records()):
        if isinstance(record, wandb_file.Run):
            told = record.started_ns
        if isinstance(record, wandb_file.History):
            values: dict[Any, Any] = dict(record.values)
            at: Any = values.get(("_timestamp",))
            runtime: Any = values.get(("_runtime",))
            if _is_number(at) and _is_number(runtime) and at - runtime < told / 1e9:
                return _moment(at - runtime) or told
        if isinstance(record, wandb_file.History) or count == _FIRST_RECORDS:
            break
    return told


def _about(record: wandb_file.Run) -> dict[str, Any]:
    said = {
        "name": record.name or record.id, "project": record.project, "group": record.group, "job_type": record.job_type,
        "notes": record.notes, "tags": list(record.tags),
    }  # fmt: skip
    return {name: value for name, value in said.items() if value}


def _definition(record: wandb_file.Metric) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if record.step_metric:
        said.update(step_metric=record.step_metric, step_sync=record.step_sync)
    if record.hidden:
        said["hidden"] = True
    if record.summary:
        said["summary"] = sorted(record.summary)
    if record.goal:
        said["goal"] = record.goal
    return said


def _context(facts: Mapping[str, Any]) -> dict[str, Any]:
    """docs/context.md#facts, of what W&B says."""
    found: dict[str, Any] = {name: facts[name] for name in ("os", "host") if facts.get(name)}
    if facts.get("username"):
        found["user"] = facts["username"]
    if facts.get("root"):
        found["cwd"] = facts["root"]
    implementation, _, version = str(facts.get("python") or "").rpartition(" ")
    python = {"version": version, "implementation": implementation, "executable": facts.get("executable")}
    python = {name: value for name, value in python.items() if value}
    if python:
        found["python"] = python
    if facts.get("program"):
        name = os.path.basename(facts["program"]) or facts["program"]
        found["program"] = {"kind": "script", "name": name, "path": facts["program"]}
        found["command"] = ["python", facts["program"], *facts.get("args", ())]
    git = facts.get("git")
    if isinstance(git, dict) and git.get("commit"):
        found["git"] = {name: value for name, value in git.items() if value}
    return found


def _change(into: dict[str, Any], changes: wandb_file.Changes) -> None:
    """Sets and removes values by the names around them and their own."""
    updates, removals = changes
    for path, value in updates:
        place = into
        for name in path[:-1]:
            inner = place.get(name)
            if not isinstance(inner, dict):
                inner = place[name] = {}
            place = inner
        place[path[-1]] = value
    for path in removals:
        inside: Any = into
        for name in path[:-1]:
            inside = inside.get(name) if isinstance(inside, dict) else None
        if isinstance(inside, dict):
            inside.pop(path[-1], None)


def _plain_parts(key: str, value: Any, into: dict[str, Any], depth: int = 0) -> None:
    """A value of the summary under dotted names; media are those of the rows."""
    if isinstance(value, dict) and "_type" not in value and depth < NESTING_MAX:
        for name, one in value.items():
            _plain_parts(f"{key}.{name}", one, into, depth + 1)
    elif not isinstance(value, dict):
        into[key] = value


def _same(one: Any, other: Any) -> bool:
    return one == other or (isinstance(one, float) and isinstance(other, float) and one != one and other != other)


def _moment(seconds: Any, ns: int | None = None) -> int:
    """A Unix time in nanoseconds; 0 of what is none."""
    if not _is_number(seconds) or not 0 < seconds < _SECONDS_MAX:
        return 0
    return round(seconds * 1e6) * 1000 if ns is None else ns


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _NUMBER_MAX
