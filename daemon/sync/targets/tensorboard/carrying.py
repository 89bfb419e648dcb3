"""One run to its event files, pass by pass.

Rows are appended as they come. What only rising steps cannot say (a late row, rows that a resume hid, a config that changed) is noted
in the state as `again`, and once the run is over all its files are written anew, row by row in order of steps: into files of the next
generation, which count from the commit on. Files of another generation are removed by whoever meets them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy

from daemon.formats import plugins
from daemon.sync.passage import Passage
from daemon.sync.place import Place
from daemon.sync.target import Target
from daemon.sync.targets.tensorboard import facts, projector
from daemon.sync.targets.tensorboard.eventfile import EventFile
from daemon.sync.targets.tensorboard.names import directory_of, event_file, is_ours, is_sound, lane_directory
from daemon.sync.targets.tensorboard.points import Lost, add_numbers
from daemon.sync.targets.tensorboard.showing import MEDIA, Shower
from sdk import clock
from sdk.errors import UsageError
from sdk.files import EXPORTS
from sdk.limits import MIB
from sdk.reader.delivery import Batch, Points, made_batch
from sdk.reader.facts import StreamFacts
from sdk.reader.lanes import TRAINING
from sdk.reader.ordered import rows_by_lane

_SYSTEM = frozenset({"system"})
_COMMIT_SECONDS = 5.0
_COMMIT_BYTES = 32 * MIB
# Limit: of files that are open at a time; a run of thousands of ranks has one for each.
_FILES_MAX = 64
_ROWS_AT_A_TIME = 4096


class TensorBoardTarget(Target):
    scheme = "tensorboard"
    options = frozenset({"precision"})
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"precision": ("float", "double")}

    def check(self) -> None:
        """Raises UsageError where no directory can be made."""
        if not self.place.path:
            raise UsageError("tensorboard: names no directory", hint="--to tensorboard:DIR")
        try:
            EXPORTS.make_directory(self.place.path)
        except OSError as error:
            raise UsageError(f"cannot write to {self.place.text!r}: {error.strerror}") from error

    def carry(self, passage: Passage) -> None:
        carrying = _Carrying(self.place, passage)
        try:
            carrying.carry()
        finally:
            carrying.close()


class _Carrying:
    """One pass. `state` is what the last commit said, and becomes what the next one says; docs/tensorboard.md#state."""

    def __init__(self, place: Place, passage: Passage) -> None:
        self._root, self._passage, self._run = place.path, passage, passage.run
        self._precision = place.options.get("precision", "float")
        if not is_sound(passage.state):
            passage.start_again()
        self._state: dict[str, Any] = json.loads(json.dumps(passage.state))
        self._open: dict[str, EventFile] = {}
        self._lanes: dict[tuple[bool, int], str] = {}
        self._lost: Lost = passage.lost
        self._is_again = False
        self._committed, self._since = clock.monotonic(), 0

    def carry(self) -> None:
        if self._state and (self._state["precision"] != self._precision or not self._are_whole()):
            self._passage.start_again()
            self._state = {}
        if not self._state:
            self._state = self._begin()
        self._remove_others()
        self._file("")
        self._rewind()
        for kinds in (TRAINING, _SYSTEM):
            for batch in self._passage.batches(kinds):
                self._add_batch(batch)
                self._commit_now_and_then()
        self._tell_config()
        if self._passage.is_over:
            if not self._state["again"]:
                self._tell_end()
            if self._state["again"] and self._has_all():
                self._write_again()
        if self._run._side_lanes("console"):
            self._passage.told("what was printed is not carried: TensorBoard has no place for it")
        self._commit()

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open = {}

    # -- the state -------------------------------------------------------------------------------------------------------

    def _begin(self) -> dict[str, Any]:
        run = self._run
        hosts = [stream.host for stream in run.streams if stream.host]
        return {
            # A run stays where it was put first, whatever it is called later.
            "directory": directory_of(run.project, run.name, run.id), "created": run.created, "host": hosts[0] if hosts else "",
            "precision": self._precision, "generation": 0, **self._nothing(),
        }  # fmt: skip

    @staticmethod
    def _nothing() -> dict[str, Any]:
        """What a state says of files that do not exist yet."""
        return {
            "files": {}, "lanes": {}, "hidden": {}, "embeddings": {}, "config": None, "end": None, "last_us": 0,
            "late": 0, "again": False,
        }  # fmt: skip

    def _path(self, lane: str, name: str = "") -> str:
        return os.path.join(self._root, *self._state["directory"].split("/"), *filter(None, (lane, name)))

    def _name(self) -> str:
        return event_file(self._state["created"], self._state["host"], self._state["generation"])

    def _are_whole(self) -> bool:
        """Whether what was written before is still there."""
        try:
            files = self._state["files"].items()
            return all(EXPORTS.status(self._path(lane, self._name())).size >= told["length"] for lane, told in files)
        except OSError:
            return False

    def _remove_others(self) -> None:
        """Removes event files of passes that did not come to their commit, and of former generations."""
        below = [name for name, _, _ in EXPORTS.entries(self._path("")) if name not in (MEDIA, projector.DIRECTORY)]
        for lane in ("", *below):
            known = self._name() if lane in self._state["files"] else None
            for name, _, _ in EXPORTS.entries(self._path(lane)):
                if is_ours(name) and name != known:
                    with contextlib.suppress(FileNotFoundError):
                        EXPORTS.remove(self._path(lane, name))

    def _commit_now_and_then(self) -> None:
        is_due = clock.monotonic() - self._committed >= _COMMIT_SECONDS
        # While files are written anew nothing of them counts before all of it is there.
        if not self._is_again and (is_due or self._since >= _COMMIT_BYTES):
            self._commit()
        elif len(self._open) >= _FILES_MAX:
            self._force()

    def _commit(self) -> None:
        self._force()
        self._passage.commit(json.loads(json.dumps(self._state)))
        self._committed, self._since = clock.monotonic(), 0

    def _force(self) -> None:
        """Makes what was written safe, and closes the files."""
        for lane, file in self._open.items():
            self._state["files"][lane] = file.force()
            if file.late:
                self._state["late"] += file.late
                self._state["again"] = True
        for lane in self._open:
            if self._state["embeddings"].get(lane):
                EXPORTS.write_whole(
                    self._path(lane, projector.CONFIG), projector.config(self._state["embeddings"][lane])
                )
        self.close()

    def _file(self, lane: str) -> EventFile:
        if lane not in self._open:
            path = self._path(lane, self._name())
            told = self._state["files"].get(lane)
            self._open[lane] = EventFile(path, told, self._state["created"])
        return self._open[lane]

    # -- rows ------------------------------------------------------------------------------------------------------------

    def _rewind(self) -> None:
        """Says in the files what a resume hid of rows that are in them."""
        known = self._state["hidden"]
        for stream, limit in self._run.hidden_from.items():
            lane = self._state["lanes"].get(stream)
            if lane is not None and known.get(stream) != limit:
                started = max((other.started for other in self._run.streams), default=self._state["created"])
                if len(self._open) >= _FILES_MAX:
                    self._force()
                if self._file(lane).rewind(limit, started):
                    # The fast loader knows nothing of this: of a tag that nobody logs any more it keeps what was hidden.
                    self._state["again"] = True
            known[stream] = limit

    def _lane(self, stream: StreamFacts, place: int) -> str:
        """The directory of a stream's lane below the run's."""
        known: dict[str, str] = self._state["lanes"]
        is_system = stream.kind in _SYSTEM
        lane = self._known_lane(stream)
        if lane is None:
            lane = self._lanes.get((is_system, place))
        if lane is None:
            taken = set(known.values())
            is_main = place == 0 and not is_system
            lane = "" if is_main and "" not in taken else lane_directory(stream, taken)
        if place == 0 and not is_system and lane:
            self._state["again"] = True  # another lane was taken for the main one before this one came
        self._lanes[is_system, place] = known[stream.hex] = lane
        return lane

    def _known_lane(self, stream: StreamFacts) -> str | None:
        """The directory of a stream, or of the one that it goes on with, and so on; a stream without rows has none."""
        seen: set[int] = set()
        found: StreamFacts | None = stream
        while found is not None and found.id not in seen:
            if found.hex in self._state["lanes"]:
                return str(self._state["lanes"][found.hex])
            seen.add(found.id)
            found = self._run._facts.streams.get(found.link("continues") or 0)
        return None

    def _add_batch(self, batch: Batch) -> None:
        if batch.stream.hex not in self._state["lanes"]:
            self._rewind()  # a process that began after this pass did may have hidden rows of the one before it
        size = self._add(self._lane(batch.stream, batch.lane), batch.points)
        if batch.stream.kind not in _SYSTEM:
            latest = max((int(points.time_us.max()) for points in batch.points), default=0)
            self._state["last_us"] = max(self._state["last_us"], latest)
        self._passage.moved(batch.values, size)

    def _add(self, lane: str, points: Sequence[Points]) -> int:
        """Appends rows; returns how many bytes that took."""
        file = self._file(lane)
        before = file.size
        others = add_numbers(file, points, self._lost, as_double=self._precision == "double")
        shower = Shower(
            self._path(lane), self._state["embeddings"].setdefault(lane, []), self._lost, self._passage.told
        )
        for other in others:
            for tag, shown in shower.shown(other.key, other.value):
                file.show(tag, shown, other.step, other.time_us / 1e6)
        self._since += file.size - before
        return file.size - before

    # -- facts -----------------------------------------------------------------------------------------------------------

    def _tell_config(self) -> None:
        config = facts.hyperparameters(self._run.config)
        digest = _digest(config)
        if self._state["config"] is None and config:
            shown = plugins.session_start(config, self._state["created"])
            self._file("").show(plugins.SESSION_START_TAG, shown, 0, self._state["created"])
            self._state["config"] = digest
        elif self._state["config"] not in (None, digest):
            self._state["again"] = True  # the page takes the first one that a file has

    def _tell_end(self) -> None:
        """How the run ended, and numbers of its summary that are no series."""
        self._force()
        run, file = self._run, self._file("")
        status = facts.status(run.state)
        logged: dict[str, int] = {}
        for told in self._state["files"].values():
            logged.update(told["tags"].get(plugins.SCALARS, {}))
        known = set(self._state["end"]["summary"]) if self._state["end"] else set()
        numbers = {key: value for key, value in facts.numbers(run.summary).items() if key in known or key not in logged}
        end = {"status": status, "summary": numbers}
        if self._state["end"] == end:
            return
        if self._state["end"] is not None:
            self._state["again"] = True
            return
        seconds = self._state["last_us"] / 1e6 or self._state["created"]
        step = max(logged.values(), default=0)
        for key, value in numbers.items():
            file.show(key, plugins.number(value, as_double=self._precision == "double"), step, seconds)
        if self._state["config"] is not None:
            file.show(plugins.SESSION_END_TAG, plugins.session_end(status, seconds), 0, seconds)
        self._state["end"] = end

    def _has_all(self) -> bool:
        """Whether the run can be written anew from this store alone; what is late otherwise is lost."""
        streams = self._run._facts.streams
        if all(stream in streams or not stream for stream in self._passage.delivered):
            return True
        self._force()
        if self._state["late"]:
            self._passage.lost("late values of a run that lies in several stores", count=self._state["late"])
            self._passage.told("put its parts into one store first: stepd sync --to stepd:DIR")
        self._state.update(late=0, again=False)
        return False

    # -- all of it again -------------------------------------------------------------------------------------------------

    def _write_again(self) -> None:
        """Writes the whole run in order of steps; its rows were all given by now."""
        self._force()
        last_us = self._state["last_us"]
        self._state.update(self._nothing(), generation=self._state["generation"] + 1)
        self._state.update(hidden=self._run.hidden_from, last_us=last_us)
        # What cannot be held was counted when it came.
        self._lost, self._is_again, self._lanes = _count_nothing, True, {}
        self._file("")
        for kinds in (TRAINING, _SYSTEM):
            for (place, stream), rows in _in_portions(rows_by_lane(self._run, kinds)):
                self._passage.check()
                self._add(self._lane(stream, place), _as_points(rows))
                self._commit_now_and_then()
        made, _ = made_batch(self._run)
        if made is not None:
            self._add("", made.points)
        self._tell_config()
        self._tell_end()
        self._force()
        assert not self._state["again"], "rows in order of steps were late"
        self._commit()
        self._remove_others()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _count_nothing(what: str, key: str | None = None, count: int = 1) -> None: ...


def _in_portions(rows: Iterator[Any]) -> Iterator[tuple[tuple[int, StreamFacts], list[dict[str, Any]]]]:
    """Some rows of one lane at a time, with its place and its first stream."""
    for place, found in itertools.groupby(rows, key=lambda one: one[0]):
        while portion := list(itertools.islice(found, _ROWS_AT_A_TIME)):
            yield (place, portion[0][1].streams[0]), [row for _, _, row in portion]


_LOGGED = {"_logged_step": "_step", "_logged_timestamp": "_timestamp"}


def _as_points(rows: list[dict[str, Any]]) -> list[Points]:
    """Rows as `delivery` gives them: those with the same keys together."""
    found: dict[tuple[str, ...], list[tuple[int, dict[str, Any]]]] = {}
    for place, row in enumerate(rows):
        found.setdefault(tuple(row), []).append((place, row))
    made = []
    for keys, several in found.items():
        columns = {_LOGGED.get(key, key): _column([row[key] for _, row in several]) for key in keys if key not in _HEAD}
        heads = ([place for place, _ in several], [row["_step"] for _, row in several])
        times = [round(row["_timestamp"] * 1e6) for _, row in several]
        made.append(Points(numpy.array(heads[0], "u8"), numpy.array(heads[1], "i8"), numpy.array(times, "i8"), columns))
    return made


_HEAD = ("_step", "_timestamp")
_KINDS: dict[Callable[..., Any], str] = {float: "f8", int: "i8", bool: "?"}


def _column(values: list[Any]) -> Any:
    """As an array where all are numbers of one kind that fit."""
    kinds = set(map(type, values))
    if len(kinds) == 1 and (dtype := _KINDS.get(kinds.pop())):
        with contextlib.suppress(OverflowError):
            return numpy.array(values, dtype)
    return values
