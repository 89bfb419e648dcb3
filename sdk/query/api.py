"""W&B's reading names over the reader: ``Api().run("project/id").history(keys=["loss"])``.

Everything is local: `Api` opens the store that `init` would use, and `Run.update` writes there. An entity (`entity/project/id`) is
accepted and ignored.
What a server would do (filters in MongoDB's language, reports) raises `UnsupportedError` and names the way here.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..arrays import distinct
from ..artifacts.artifact import Artifact
from ..artifacts.format import check_name
from ..artifacts.shelf import Shelf
from ..artifacts.waiting import settle_name
from ..errors import NotFoundError, UnsupportedError, UsageError
from ..location import read_store
from ..reader.run import Run as StoredRun
from ..reader.store import open_store

if TYPE_CHECKING:
    from ..reader.kept import KeptFile

_RUNTIME = "_runtime"
_STEP = "_step"
_TIMESTAMP = "_timestamp"
_OUR_KEYS = frozenset({_STEP, _TIMESTAMP, _RUNTIME})


class Summary(dict[str, Any]):
    """A run's summary; `_json_dict` is what W&B's own export recipe reads. Changes are stored by `update`."""

    def __init__(self, values: Mapping[str, Any], save: Callable[[Summary], None] = lambda summary: None) -> None:
        super().__init__(values)
        self._save = save

    def __reduce__(self) -> tuple[Any, ...]:
        return Summary, (dict(self),)  # a copy is nobody's summary any more

    def update(self, key_vals: Mapping[str, Any] | None = None, overwrite: bool = True) -> None:  # type: ignore[override]
        """Takes these values, with `overwrite=False` those that are not there, and stores all that was changed.

        Raises:
            UsageError, StoreError: As `stored.set`.
        """
        for key, value in (key_vals or {}).items():
            if overwrite or key not in self:
                self[key] = value
        self._save(self)

    @property
    def _json_dict(self) -> dict[str, Any]:
        return dict(self)


class Api:
    """The runs of a store under W&B's names.

    Args:
        overrides, timeout, api_key: Accepted for compatibility; there is no server and no account.
        dir: The store; None: as `init` would choose.

    Raises:
        StoreError: There is no store.
    """

    def __init__(
        self,
        overrides: dict[str, Any] | None = None,
        timeout: float | None = None,
        api_key: str | None = None,
        *,
        dir: str | os.PathLike[str] | None = None,
    ) -> None:
        del timeout, api_key
        self._project = str((overrides or {}).get("project") or "")
        self._store = open_store(dir)

    @property
    def default_entity(self) -> str:
        """There are no entities."""
        return ""

    def run(self, path: str = "") -> Run:
        """The run at ``"project/id"``, ``"entity/project/id"`` or ``"id"``; names and prefixes of ids do as well.

        Raises:
            NotFoundError: No run or several match.
        """
        parts = [part for part in path.strip("/").split("/") if part and part != "runs"]
        if len(parts) == 1 and self._project:
            parts = [self._project, *parts]
        return Run(self._store.run("/".join(parts[-2:]) or "latest"))

    def runs(
        self,
        path: str | None = None,
        filters: dict[str, Any] | None = None,
        order: str = "+created_at",
        per_page: int = 50,
        include_sweeps: bool = True,
        lazy: bool = True,
    ) -> list[Run]:
        """The runs of ``"project"`` or ``"entity/project"`` (None: of all), the oldest first, as W&B's default order.

        Raises:
            UnsupportedError: `filters`, or another order than ``+created_at`` and ``-created_at``.
        """
        del per_page, include_sweeps, lazy
        if filters:
            raise UnsupportedError(
                "Api.runs(filters=…) is not served",
                hint="[run for run in api.runs(project) if run.config['lr'] < 1e-3]",
            )
        if order.lstrip("+-") != "created_at":
            raise UnsupportedError(f"Api.runs(order={order!r}) is not served", hint="sorted(api.runs(project), key=…)")
        project = (path or "").strip("/").rpartition("/")[2] or self._project or None
        found = sorted(self._store.runs(project), key=lambda run: run.created, reverse=order.startswith("-"))
        return [Run(run) for run in found]

    def artifact(self, name: str, type: str | None = None) -> Artifact:
        """The version that ``name``, ``name:v3`` or ``name:alias`` means; what this machine is about to store is waited for.

        Raises:
            NotFoundError: There is none. ValueError: It is of another type.
        """
        shelf = Shelf(self._store.path)
        settle_name(read_store(self._store.path), name)
        found = Artifact._stored(shelf, shelf.find(name))
        if type is not None and found.type != type:
            raise ValueError(f"artifact {found.name!r} is of type {found.type!r}, expected {type!r}")
        return found

    def artifacts(self, type_name: str, name: str, per_page: int = 50, tags: Any = None) -> list[Artifact]:
        """All versions of a name, the newest first; with `tags`, those that have them all."""
        shelf, wanted = Shelf(self._store.path), {tags} if isinstance(tags, str) else set(tags or ())
        heads = reversed(shelf.versions(check_name(name.rpartition("/")[2].partition(":")[0])))
        return [Artifact._stored(shelf, head) for head in heads if head.type == type_name and wanted <= set(head.tags)]

    def artifact_exists(self, name: str, type: str | None = None) -> bool:
        """Whether `artifact` would find it."""
        try:
            self.artifact(name, type)
        except (NotFoundError, ValueError):
            return False
        return True

    def artifact_collection_exists(self, name: str, type: str) -> bool:
        """Whether there is a version of this name and type."""
        return self.artifact_exists(name.partition(":")[0], type)


class Run:
    """A stored run under W&B's names. The run of the reader itself is `stored`.

    name, display_name, notes, tags, group, job_type, config and summary may be changed; `update` stores what was.
    """

    def __init__(self, stored: StoredRun) -> None:
        self.stored = stored
        self._given: dict[str, Any] = {}
        # What was there when it was first asked for: what somebody else sets meanwhile is no change of ours.
        self._tags_before: list[str] | None = None
        self._config_before: dict[str, Any] = {}
        self._config: dict[str, Any] | None = None
        self._summary: Summary | None = None
        self._summary_before: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<Run {'/'.join(self.path)} ({self.state})>"

    @property
    def id(self) -> str:
        return self.stored.id

    def _fact(self, name: str) -> Any:
        return self._given[name] if name in self._given else getattr(self.stored, name)

    @property
    def name(self) -> str:
        return str(self._fact("name"))

    @name.setter
    def name(self, value: str) -> None:
        self._given["name"] = value

    display_name = name

    @property
    def project(self) -> str:
        return self.stored.project

    @property
    def entity(self) -> str:
        return ""

    @property
    def path(self) -> list[str]:
        """Entity, project and id; the entity is empty."""
        return [self.entity, self.project, self.id]

    @property
    def url(self) -> None:
        """There is no server."""
        return

    @property
    def group(self) -> str:
        return str(self._fact("group"))

    @group.setter
    def group(self, value: str) -> None:
        self._given["group"] = value

    @property
    def job_type(self) -> str:
        return str(self._fact("job_type"))

    @job_type.setter
    def job_type(self, value: str) -> None:
        self._given["job_type"] = value

    @property
    def tags(self) -> list[str]:
        """A list that may be changed."""
        if "tags" not in self._given:
            self._tags_before = self.stored.tags
            self._given["tags"] = list(self._tags_before)
        found: list[str] = self._given["tags"]
        return found

    @tags.setter
    def tags(self, value: Iterable[str]) -> None:
        self._given["tags"] = list(value)
        self._tags_before = None

    @property
    def notes(self) -> str:
        return str(self._fact("notes"))

    @notes.setter
    def notes(self, value: str) -> None:
        self._given["notes"] = value

    @property
    def state(self) -> str:
        return self.stored.state

    @property
    def config(self) -> dict[str, Any]:
        """May get keys that it lacks; one that is there stays as it is."""
        if self._config is None:
            self._config_before = self.stored.config
            self._config = copy.deepcopy(self._config_before)
        return self._config

    @property
    def summary(self) -> Summary:
        """As it was when it was first asked for, or at the last `load`."""
        if self._summary is None:
            self._summary_before = self.stored.summary
            self._summary = Summary(_own(self._summary_before), self._save_summary)
        return self._summary

    def _save_summary(self, summary: Summary) -> None:
        before = self._summary_before
        changed = {
            key: value for key, value in summary.items() if key not in before or not _is_same(before[key], value)
        }
        self.stored.set(summary=changed, summary_removed=before.keys() - summary.keys())
        self._summary_before = _own(dict(summary))

    def update(self) -> None:
        """Stores what was changed (docs/compare.md#set).

        Raises:
            UsageError: A value cannot be stored, or a key of the config was changed or taken out.
            StoreError: The store cannot be written.
        """
        config = self._config or {}
        gone = self._config_before.keys() - config.keys() if self._config is not None else ()
        if gone:
            raise UsageError(f"update() cannot take {min(gone)!r} out of the config: the run was started with it")
        given = {name: value for name, value in self._given.items() if value != getattr(self.stored, name)}
        if given.get("tags") == self._tags_before:
            given.pop("tags", None)
        self.stored.set(config=config, **given)
        self._given.clear()
        self._config_before = dict(config)
        if self._summary is not None:
            self._save_summary(self._summary)

    @property
    def created_at(self) -> str:
        """ISO 8601, UTC."""
        import datetime

        when = datetime.datetime.fromtimestamp(self.stored.created, datetime.timezone.utc)
        return when.isoformat(timespec="seconds").replace("+00:00", "Z")

    @property
    def lastHistoryStep(self) -> int:  # noqa: N802 - W&B's name
        """The largest step, -1 before the first row."""
        last = self.stored.last_step
        return -1 if last is None else last

    def load(self, force: bool = False) -> None:
        """Reads the facts again; what was changed and not stored is forgotten."""
        self._given.clear()
        self._config = self._summary = None
        self.stored.refresh()

    def history(
        self,
        samples: int = 500,
        keys: Iterable[str] | None = None,
        x_axis: str = _STEP,
        pandas: bool = True,
        stream: str = "default",
    ) -> Any:
        """At most `samples` rows, evenly spread, the first and the last included.

        Args:
            keys: Only rows that hold all of these, and only `x_axis` and these; None: every row with all its keys,
                `_timestamp` and `_runtime` included.
            pandas: A pandas.DataFrame; else a list of dicts.
            stream: "default", or "system" for what was observed of the processes, the machine and its GPUs (also "events").

        Raises:
            Error: pandas is wanted and not installed.
            UnsupportedError: `stream` is something else.
        """
        if stream in ("system", "events"):
            return Run(self.stored.of_kind("system")).history(samples, keys, x_axis, pandas)
        if stream != "default":
            raise UnsupportedError(
                f"history(stream={stream!r}) is not served: there are 'default' and 'system'",
                hint="history(keys=run.stored.keys())",
            )
        if pandas:
            from ..reader.frames import pandas_module

            module = pandas_module("history()")
        wanted = _names(keys)
        if wanted is None:
            found = list(self._rows(_evenly(self.stored.steps(), samples), None))
        else:
            wanted = list(dict.fromkeys([x_axis, *wanted]))
            steps = self._steps_with_all(wanted)
            found = [{key: row[key] for key in wanted} for row in self._rows(_evenly(steps, samples), wanted)]
        return module.DataFrame(found, columns=wanted) if pandas else found

    def scan_history(
        self,
        keys: Iterable[str] | None = None,
        page_size: int = 1000,
        min_step: int | None = None,
        max_step: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Every row in step order.

        Args:
            keys: Only rows that hold all of these (not null), and only these; None: every row with all its keys.
            page_size: Accepted for compatibility: rows come from the disk as they are asked for.
            min_step: No row below it.
            max_step: No row at or above it, as in W&B.
        """
        del page_size
        return self._scan(_names(keys), min_step, max_step)

    def _scan(self, wanted: list[str] | None, min_step: int | None, max_step: int | None) -> Iterator[dict[str, Any]]:
        stored = None if wanted is None else [key for key in wanted if key not in _OUR_KEYS] or None
        created = self.stored.created
        for row in self.stored.rows(stored, first_step=min_step or 0):
            if max_step is not None and row[_STEP] >= max_step:
                return
            row[_RUNTIME] = row[_TIMESTAMP] - created
            if wanted is None:
                yield row
            elif all(row.get(key) is not None for key in wanted):
                yield {key: row[key] for key in wanted}

    def _rows(self, steps: Any, wanted: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        stored = None if wanted is None else [key for key in wanted if key not in _OUR_KEYS] or None
        created = self.stored.created
        for row in self.stored.rows_at(steps, stored):
            row[_RUNTIME] = row[_TIMESTAMP] - created
            yield row

    def _steps_with_all(self, wanted: Sequence[str]) -> Any:
        """The steps at which no wanted key is missing or null."""
        import numpy

        stored = [key for key in wanted if key not in _OUR_KEYS]
        if not stored:
            return self.stored.steps()
        common = None
        for steps in self.stored.steps_by_key(stored):
            common = steps if common is None else numpy.intersect1d(common, steps, assume_unique=True)
        return common

    def files(self, names: Iterable[str] | None = None, *_: Any, **__: Any) -> list[KeptFile]:
        """The run's files, or those of `names`; each has `name`, `size` and `download()`."""
        wanted = None if names is None else set(names)
        return [file for file in self.stored.files() if wanted is None or file.name in wanted]

    def file(self, name: str) -> KeptFile:
        """One of them. Raises NotFoundError."""
        return self.stored.file(name)

    def logged_artifacts(self, *_: Any, **__: Any) -> list[Artifact]:
        """What it logged, as far as it is stored."""
        return self.stored.logged_artifacts()

    def used_artifacts(self, *_: Any, **__: Any) -> list[Artifact]:
        """What it used."""
        return self.stored.used_artifacts()


def _own(value: Any) -> Any:
    """The value, whose maps and lists are copies that may be changed."""
    if isinstance(value, dict):
        return {key: _own(inner) for key, inner in value.items()}
    return [_own(inner) for inner in value] if isinstance(value, list) else value


def _is_same(before: Any, value: Any) -> bool:
    """Whether nobody has set or changed it; what was set to an equal number was set."""
    return bool(before == value) if isinstance(value, (dict, list)) else before is value


def _names(keys: Iterable[str] | None) -> list[str] | None:
    if isinstance(keys, str):
        raise TypeError(f"keys is the str {keys!r}, expected a list of them: [{keys!r}]")
    return None if keys is None else list(keys)


def _evenly(steps: Any, samples: int) -> Any:
    import numpy

    count = max(int(samples), 0)
    if len(steps) <= count:
        return steps
    index = numpy.linspace(0, len(steps) - 1, count).round().astype(numpy.int64)
    return steps[distinct(index)]


__all__ = ["Api", "Run", "Summary"]
