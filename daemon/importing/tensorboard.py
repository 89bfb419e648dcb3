"""The way in from TensorBoard: a tree of directories with event files (docs/import.md#tensorboard).

As TensorBoard sees it, every directory that holds event files is a run, and its files are read in the order of their names. Each file
is an attempt of the run, which goes on with the one before; so is what comes behind a SessionLog START within a file, which hides
what was written from its step on. Scalars, which are nearly everything in most files, are read as columns
(`daemon.formats.event_reading`); the other values of a portion one by one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator

import numpy
from numpy.typing import NDArray

from daemon.formats.event_reading import Event, ScalarReader, Scalars, parse_event
from daemon.formats.plugins import STATUS_FAILURE
from daemon.formats.record_files import Portion, Read, RecordFile
from daemon.importing.source import Found, Source, files_below, fingerprint_of, id_of, leads_below
from daemon.importing.tensorboard_values import Values
from daemon.importing.writing import ImportedRun
from sdk.errors import UsageError
from sdk.values import plain

# As TensorBoard knows an event file.
_MARK, _NO_MARK = "tfevents", ".profile-empty"
_FIRST_BYTES = 1 << 16
# What the projector shows; its paths are relative to where it lies.
_PROJECTOR = "projector_config.pbtxt"
_PROJECTOR_PATH = re.compile(r'\b(?:tensor|metadata|image)_path:\s*"([^"\\\n]+)"')
# Limit: what nanoseconds in 64 bits hold.
_MICROSECONDS_MAX = 9_000_000_000_000_000


class TensorBoardSource(Source):
    """A logdir, a directory in it, or one event file."""

    scheme = "tensorboard"

    def runs(self) -> Iterator[Found]:
        seen: set[str] = set()
        for match in self._places():
            for found in self._runs_of(match):
                if found.run_id not in seen:
                    seen.add(found.run_id)
                    yield found
        if not seen and not self.troubles:
            raise UsageError(
                f"there is nothing to import: {self.path!r} has no event file that anything was written to. "
                f"Looked for files with {_MARK!r} in their names and at least one whole record"
            )

    def _places(self) -> list[str]:
        """What is looked through: of what a pattern matches no file that is none, or that a directory has which it matches too."""
        if self.matches == [self.path]:
            return self.matches
        directories = [match for match in self.matches if os.path.isdir(match)]
        files = [match for match in self.matches if _MARK in os.path.basename(match) and match not in directories]
        return directories + [file for file in files if not any(leads_below(file, one) for one in directories)]

    def _runs_of(self, match: str) -> Iterator[Found]:
        if os.path.isfile(match):
            if _MARK not in os.path.basename(match):
                raise UsageError(
                    f"{match!r} is no event file: expected {_MARK!r} in its name, or a directory with such files"
                )
            if self.is_inside(match):
                root = os.path.dirname(match) if match == self.path else self.path
                yield from self._found(os.path.dirname(match), [os.path.basename(match)], root, match)
            return
        if not os.path.isdir(match):
            raise UsageError(f"there is nothing to import: {match!r} is no directory and no event file")
        if not self.is_inside(match):
            return
        for directory, names in files_below(match, follows=self.is_inside, trouble=self._note):
            chosen = self._event_files(directory, names)
            if chosen:
                yield from self._found(directory, chosen, self.path, directory)

    def _event_files(self, directory: str, names: list[str]) -> list[str]:
        chosen = [name for name in names if _MARK in name and not name.endswith(_NO_MARK)]
        return [name for name in chosen if self.is_inside(os.path.join(directory, name))]

    def _note(self, error: OSError) -> None:
        self.troubles.append(str(error))

    def _found(self, directory: str, names: list[str], root: str, where: str) -> Iterator[Found]:
        paths = [os.path.join(directory, name) for name in names]
        try:
            first = next((record for path in paths if (record := _first_record(path))), b"")
            fingerprint, size = fingerprint_of(paths)
        except OSError as error:
            self._note(error)
            return
        if not first:
            if size:
                self.troubles.append(f"{directory!r}: event files of {size} bytes, and no record in them")
            return  # else nothing was written yet
        relative = os.path.relpath(directory, root)
        name = os.path.basename(os.path.realpath(root)) if relative == "." else relative.replace(os.sep, "/")
        # Why the first record, which has the time when it was written: at the same path, or at that of another host, may
        # be another run.
        run_id = id_of("tensorboard", os.path.realpath(where), first)
        project = os.path.basename(os.path.realpath(root)) or "tensorboard"
        yield Found(run_id, name, project, f"tensorboard:{where}", where, fingerprint, len(paths), size)

    def read(self, found: Found, run: ImportedRun, moved: Callable[[int], None]) -> None:
        if os.path.isfile(found.where):
            paths = [found.where]
        else:
            names = self._event_files(found.where, sorted(os.listdir(found.where)))
            paths = [os.path.join(found.where, name) for name in names]
        reading = _Reading(run)
        for path in paths:
            reading.file(path, moved)
        reading.projector(os.path.dirname(paths[0]), self.root)
        reading.end()


def _first_record(path: str) -> bytes:
    """The first whole record of a file, b"" where there is none yet. Nearly always the first bytes hold it."""
    with _opened(path) as (read, size):
        for limit in (min(size, _FIRST_BYTES), size):
            for portion in RecordFile(read, limit).portions():
                if len(portion.starts):
                    start = int(portion.starts[0])
                    return portion.data[start : start + int(portion.sizes[0])]
    return b""


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[Read, int]]:
    """What reads a file, and its size. Its name is all that tells that it holds events, so it may be anything.

    Raises:
        OSError: It is no file, or cannot be read.
    """
    # Why O_NONBLOCK: opening a FIFO would wait for its other end.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", path)
        yield (lambda at, size: os.pread(descriptor, size, at)), status.st_size
    finally:
        os.close(descriptor)


class _Reading:
    """One run's files on their way into it."""

    def __init__(self, run: ImportedRun) -> None:
        self._run = run
        self._values = Values(run.lost, run.remark, self._keep)
        self._kept: Counter[str] = Counter()
        self._scalars = ScalarReader()
        self._name = ""
        self._has_begun = False
        self._starts = 0
        self._step_max = -1

    def file(self, path: str, moved: Callable[[int], None]) -> None:
        self._name, self._has_begun, self._starts = os.path.basename(path), False, 0
        with _opened(path) as (read, size):
            records = RecordFile(read, size)
            at = 0
            for portion in records.portions():
                self._portion(portion)
                moved(portion.end - at)
                at = portion.end
        if records.bad:
            self._run.lost["records with a wrong checksum"] += records.bad
        if records.holes:
            self._run.lost["places without records"] += records.holes
            self._run.remark(f"{self._name!r}: {records.lost_bytes} bytes in which there is no record")
        if records.tail_bytes:
            self._run.remark(f"{self._name!r}: the last {records.tail_bytes} bytes are not a whole record yet")

    def _portion(self, portion: Portion) -> None:
        scalars = self._scalars.read(portion.data, portion.starts, portion.sizes)
        view = memoryview(portion.data)
        at = 0
        # Why first all that hides: its rows are those of the events before it, whichever way these are read.
        waiting: list[Event] = []
        for record in scalars.rest.tolist():
            start = int(portion.starts[record])
            try:
                event = parse_event(view[start : start + int(portion.sizes[record])])
            except ValueError as error:
                self._run.lost["records that are no events"] += 1
                self._run.remark(f"{self._name!r}: {error}")
                continue
            if event.is_start:
                until = int(numpy.searchsorted(scalars.records, record))
                self._write(scalars, at, until, waiting)
                at, waiting = until, []
                self._start(event)
            waiting.append(event)
        self._write(scalars, at, len(scalars.records), waiting)

    def _write(self, scalars: Scalars, at: int, until: int, others: list[Event]) -> None:
        """The scalars from one place to another, and the other events between them."""
        if until > at:
            cut = slice(at, until)
            times = _microseconds(scalars.wall_times[cut])
            self._begin(int(times[0]))
            steps = scalars.steps[cut]
            self._step_max = max(self._step_max, int(steps.max()))
            self._run.points_of(self._scalars.tags, scalars.which[cut], steps, times, scalars.values[cut])
        for event in others:
            self._one(event)

    def _one(self, event: Event) -> None:
        time_us = int(_microseconds(numpy.array([event.wall_time]))[0])
        if event.unknown:
            self._run.lost["unknown parts of events"] += event.unknown
        if event.log is not None:
            self._begin(time_us)
            self._run.line(time_us * 1000, event.log, "log")
        for kind, content in event.graphs:
            self._begin(time_us)
            self._keep(f"graph/{kind}", "pb", bytes(content))
        row = self._values.row_of(event.entries)
        if row:
            self._begin(time_us)
            self._step_max = max(self._step_max, event.step)
            self._run.row(event.step, time_us * 1000, row)

    def _keep(self, name: str, ending: str, content: bytes) -> None:
        """What is no value of the training, as a file of the run."""
        self._kept[name] += 1
        self._run.file(f"{name}-{self._kept[name]}.{ending}", content)

    def projector(self, directory: str, root: str) -> None:
        """The files of the projector, which lie beside the event files; none that a link out of `root` leads to."""
        path = os.path.join(directory, _PROJECTOR)
        if not os.path.isfile(path):
            return
        names: list[str] = []
        if leads_below(path, root):
            with open(path, encoding="utf-8", errors="replace") as file:
                names = _PROJECTOR_PATH.findall(file.read(_FIRST_BYTES))
        for name in dict.fromkeys((_PROJECTOR, *names)):
            # A path that leads elsewhere is refused with its name, and so is an absolute one, which `join` would follow.
            source = os.path.join(directory, name.lstrip("/"))
            if ".." not in name.split("/") and "\0" not in name and not leads_below(source, root):
                self._run.lost["files that are links out of the source"] += 1
                self._run.remark(
                    f"{source!r} is a link out of {root!r} and was left out (cp -rL takes what it leads to)"
                )
                continue
            self._run.file(f"projector/{name}", source)

    def _begin(self, time_us: int) -> None:
        """Something of this file comes, which is an attempt from there on."""
        if not self._has_begun:
            self._run.attempt(self._name, time_us * 1000)
            self._has_begun = True

    def _start(self, event: Event) -> None:
        """The training began again: what it had written from this step on does not count."""
        if self._step_max < event.step:
            return
        self._starts += 1
        time_us = int(_microseconds(numpy.array([event.wall_time]))[0])
        name = f"{self._name}#{self._starts}" if self._has_begun else self._name
        self._run.attempt(name, time_us * 1000, hide_from=event.step)
        self._has_begun, self._step_max = True, event.step - 1

    def end(self) -> None:
        if self._values.config:
            config, bad = plain(self._values.config, keep_going=True)
            self._run.facts({"config": config})
            for why in bad.values():
                self._run.lost["hyperparameters that cannot be stored"] += 1
                self._run.remark(why)
        failed = self._values.status == STATUS_FAILURE
        self._run.end("failed" if failed else "finished", int(failed))


def _microseconds(wall_times: NDArray[numpy.float64]) -> NDArray[numpy.int64]:
    """Unix seconds as whole microseconds; what is no time is 0."""
    with numpy.errstate(over="ignore", invalid="ignore"):
        scaled = numpy.rint(wall_times * 1e6)
    scaled[~(numpy.abs(scaled) <= _MICROSECONDS_MAX)] = 0.0
    return scaled.astype(numpy.int64)
