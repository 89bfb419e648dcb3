"""One stored run: its facts, its state and its values, from the files alone.

Facts (name, config, streams) are as of the moment the run was opened or `refresh`ed; values are read from the disk at
every call, so a run that is still growing gives what is stored by then: what was logged more than about a second ago.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .. import clock
from ..errors import NotFoundError
from . import join, looks
from .console import ConsoleReading
from .drawing import Drawing
from .follow import Follower, follow_run
from .lanes import TRAINING, Lane, lanes_of
from .media import MediaList, kind_of
from .metrics import Definition, Definitions
from .names import list_names, nearest
from .state import RUNNING

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from .additions import Additions
    from .epochs import Maker
    from .series import Series
    from .summaries import Numbers
    from .tables import Table

# Limit: as in `sample`: 8 blocks of 4 MiB are about 40 ms.
_QUICK_BLOCKS_MAX = 8
_PATTERN = re.compile(r"[*?\[]")
# The kind of the streams that hold what was observed, and what their keys begin with (docs/system.md).
_SYSTEM, SYSTEM_PREFIX = "system", "system/"


class Run(Drawing, ConsoleReading):
    """A run in a store. Reads only; not thread-safe; holds no file open between calls.

    Damaged bytes never raise: what is whole is given, what is not is listed in `damage` and `gaps`.
    """

    def __repr__(self) -> str:
        return f"<stepd run {self.id} {self.name!r} of {self.project!r}, {self.state}>"

    def _repr_html_(self) -> str:
        from .cards import run_card

        return run_card(self)

    @property
    def summary(self) -> dict[str, Any]:
        """What the user set, over the last logged value of every key, or what `define_metric(summary=…)` asked for. Of columns
        reads the last rows only; all values of keys of which more was asked.
        """
        from .summaries import summary_of

        last = self._reading(lambda: looks.last_values(self._scan, self._lanes))
        last = {key: value for key, value in last.items() if key[:1] != "_"}
        found = summary_of(last, self._definitions(), self._read_all, self._extremes)
        shown = {key: value for key, value in found.items() if key not in self._facts.removed}
        return {**shown, **self._facts.summary}

    def _packed_digest(self) -> bytes | None:
        from .digest import ROW_BYTES_MAX, digest_of, pack_digest, row_bytes
        from .listing import NOT_YET

        return pack_digest(digest_of(self)) if row_bytes(self) <= ROW_BYTES_MAX else NOT_YET

    @property
    def last_step(self) -> int | None:
        """The largest step of a row; None before the first one. Reads from the end."""
        steps = self._reading(lambda: looks.last_steps(self._scan, self._lanes, 1))
        return int(steps[-1]) if len(steps) else None

    def of_kind(self, kind: str | None) -> Run:
        """What accompanies the training, as a run of its own: the streams of kind "system" or "console" (docs/system.md,
        docs/console.md). None, or a kind of the training: this run.
        """
        if kind is None or kind in TRAINING:
            return self
        from .beside import Beside

        return Beside(self, kind)

    def _system(self, keys: Iterable[str]) -> Run | None:
        """What was observed of the run, where one of some keys may be there."""
        if not any(map(_is_system, keys)):
            return None
        self.refresh()
        found = self.of_kind(_SYSTEM) if self._side_lanes(_SYSTEM) else self
        return None if found is self else found

    def keys(self, *, quick: bool = False, kind: str | None = None) -> list[str]:
        """All keys, sorted: nested dicts as dotted names, without those that begin with an underscore. `media_keys` tells
        which of them hold media.

        Args:
            quick: Look at a few blocks of a long run only, as `sample` does; a rare key may not be found.
            kind: As in `of_kind`.
        """
        if (chosen := self.of_kind(kind)) is not self:
            return chosen.keys(quick=quick)
        return [key for key in self.all_keys(quick=quick) if key[:1] != "_"]

    def all_keys(self, *, quick: bool = False) -> list[str]:
        """All keys, sorted, with those that begin with an underscore."""
        found = self._logged_keys(quick)
        return sorted(found.union(self._definitions().made_of(found)))

    def _logged_keys(self, quick: bool) -> set[str]:
        blocks_max = _QUICK_BLOCKS_MAX if quick else None
        return self._reading(lambda: looks.keys_of(self._scan, self._lanes, blocks_max))

    def shown_keys(self, *, quick: bool = False) -> list[str]:
        """As `keys`, without those that `define_metric(hidden=True)` leaves out of lists, and without the second name that
        values have beside those of their epochs.
        """
        logged = self._logged_keys(quick)
        said = self._definitions()
        made = {key for key, one in said.made_of(logged).items() if one.by_epoch}
        return sorted(key for key in logged | made if key[:1] != "_" and not said.of(key).hidden)

    def metric(self, key: str) -> Definition:
        """What `define_metric` said that holds for a key: of itself, or of the longest prefix."""
        self._open()
        return self._definitions().of(key)

    def _read_all(self, keys: list[str]) -> dict[str, Series]:
        return self._read_several(keys, None) if keys else {}

    def _extremes(self, keys: list[str]) -> dict[str, Numbers]:
        from .extremes import read_extremes

        return self._reading(lambda: read_extremes(self._scan, self._lanes, keys)) if keys else {}

    def numbers(self, keys: Iterable[str]) -> dict[str, Numbers]:
        """What is known of the numbers under some keys without their values: the first, the last, the smallest, the largest. Keys that
        hold none are left out. Of columns only directories, the first and the last block are read.
        """
        asked = list(dict.fromkeys(keys))
        system = self._system(asked)
        found = system._extremes([key for key in asked if _is_system(key)]) if system is not None else {}
        self._open()
        found.update(self._extremes([key for key in asked if key not in found]))
        said = self._definitions()
        made = self._read_all([key for key in asked if key not in found and said.made(key) is not None])
        for key, series in made.items():
            if len(series) and series.value.dtype.kind in "fiub":
                from .summaries import Numbers

                found[key] = Numbers()
                found[key].add(series.value)
        return found

    def _definitions(self) -> Definitions:
        return Definitions(self._facts.metrics)

    def _maker(self, ends: Mapping[str, int] | None = None) -> Maker:
        from .epochs import Maker

        def has_ended(lane: Lane) -> bool:
            return self._stream_state(lane.last) != RUNNING

        return Maker(self._definitions(), has_ended, ends or {})

    def series(
        self, key: str, stream: str | int | None = None, rank: int | None = None, *, points: int | None = None,
        x: str = "auto", kind: str | None = None,
    ) -> Series:  # fmt: skip
        """All values of one key, as numpy arrays; with `points` those that a chart needs.

        Of a long series of numbers that was compacted the points are chosen without reading all of it. The first, the last,
        the smallest and the largest value are always among them; infinities count as values, NaN are left out. Where there are
        no more values than points, all are given, NaN too. `Series.sample_of` tells which it is.

        Args:
            stream: None: the main lane among those that hold the key. An id: this stream alone, rows that a resume hid
                included. "all": every lane's values, ordered by step and time.
            rank: Only streams of this rank.
            points: At most so many values, at least 7; they are chosen by the library tsdownsample (extra `plot`) where it is installed.
            x: What `Series.x` is to give: "auto", what `define_metric(step_metric=…)` said, else the step; "step"; "time"; "relative",
                seconds since the run was created; or a key.
            kind: As in `of_kind`; None: "system" for keys below ``system/``, where there is one of that name.

        Raises:
            NotFoundError: No such key, stream or rank.
            UsageError: More values than `points`, and they are no numbers.
        """  # fmt: skip
        if (chosen := self.of_kind(kind)) is not self:
            return chosen.series(key, stream, rank, points=points, x=x)
        missing = None
        if kind is None and (system := self._system([key])) is not None:
            try:
                return system.series(key, stream, rank, points=points, x=x)
            except NotFoundError as error:
                missing = error
        every = stream == "all"
        found = self._read_several([key], points, None if every else stream, rank, every=every).get(key)
        if found is None:
            raise missing or self._no_series(key)
        if points is not None and found.sample_of is None and len(found) > points:
            from .points import no_points

            raise no_points(found, points)
        return self._with_axis(found, x, stream, rank)

    def _with_axis(self, series: Series, x: str, stream: str | int | None, rank: int | None) -> Series:
        from .axes import axis_of, named_axis

        name, synced = named_axis(self._definitions().of(series.key), x)
        if name == "step":
            return series
        if name in ("time", "relative") and x == name:
            from dataclasses import replace

            return replace(series, axis=series.time - (self.created if name == "relative" else 0.0), x_name=name)
        found = self._read_several([name], None, None if stream == "all" else stream, rank, every=stream == "all")
        if name not in found and x == name:
            raise self._no_series(name)
        return axis_of(series, found.get(name), name, synced=synced)

    def several(self, keys: str | Iterable[str], *, points: int | None = None) -> dict[str, Series]:
        """The series of all keys that match some names or patterns ("train/*"), by key, in one pass; {} where none does.

        Args:
            points: As in `series`; values that are no numbers are all given.
        """
        asked = [keys] if isinstance(keys, str) else list(keys)
        system = self._system(asked)
        found = system.several(filter(_is_system, asked), points=points) if system is not None else {}
        wanted = [key for key in self.keys_like(asked) if key not in found]
        return {**(self._read_several(wanted, points) if wanted else {}), **found}

    def keys_like(self, patterns: Iterable[str]) -> list[str]:
        """The keys that are one of some names, or match one of them as a pattern. A name without ``*?[`` is given as it is."""
        found: dict[str, None] = {}
        names: list[str] | None = None
        for pattern in patterns:
            if _PATTERN.search(pattern):
                names = self.keys() if names is None else names
                found.update(dict.fromkeys([pattern] if pattern in names else fnmatch.filter(names, pattern)))
            else:
                found[pattern] = None
        return list(found)

    def _read_several(
        self, keys: list[str], points: int | None, stream: str | int | None = None, rank: int | None = None, *,
        every: bool = False,
    ) -> dict[str, Series]:  # fmt: skip
        from .points import check_points, read_points
        from .series import read_several

        check_points(points)

        def read() -> dict[str, Series]:
            lanes = self._chosen(stream, rank)
            maker = self._maker()
            if points is not None:
                return read_points(self._scan, lanes, keys, points, every=every, maker=maker)
            logged = maker.definitions.logged
            return read_several(self._scan, lanes, keys, every=every, collected=maker.collect, logged=logged)

        return self._reading(read)

    def _chosen(self, stream: str | int | None, rank: int | None = None) -> list[Lane]:
        lanes = self._lanes
        if stream is not None:
            wanted = stream if isinstance(stream, str) else f"{stream:016x}"
            facts = [s for s in self._facts.streams.values() if s.hex == wanted]
            if not facts:
                known = [s.hex for s in self._facts.streams.values()]
                near = list_names(nearest(wanted, known) or known[:3])
                raise NotFoundError(
                    f"run {self.id} has no stream {wanted!r}. Nearest: {near}", "run.streams", command=self._shown_by()
                )
            lanes = lanes_of({facts[0].id: facts[0]}, {facts[0].kind})
        if rank is not None:
            lanes = [lane for lane in lanes if any(s.number("rank") == rank for s in lane.streams)]
            if not lanes:
                raise NotFoundError(
                    f"run {self.id} has no stream of rank {rank}", "run.streams", command=self._shown_by()
                )
        return lanes

    def _no_series(self, key: str) -> NotFoundError:
        names = self.keys()
        if not names:
            told = f"run {self.id} has no series {key!r}: it holds no values yet"
            return NotFoundError(told, "run.gaps, run.damage", command=self._shown_by())
        if key in names and self._scan.noted:
            told = f"run {self.id} has series {key!r}, but none of its values can be read"
            return NotFoundError(told, "run.damage, stepd verify", command=self._shown_by("verify"))
        near = nearest(key, names)
        told = f"Nearest: {list_names(near)}" if near else f"It has {list_names(names[:5])}{', …' if names[5:] else ''}"
        return NotFoundError(f"run {self.id} has no series {key!r}. {told}", "run.keys()", command=self._shown_by())

    def _shown_by(self, verb: str = "show") -> str:
        """The command that shows what an error is about."""
        return f"stepd {verb} {self.id}"

    def rows(
        self,
        keys: Iterable[str] | None = None,
        stream: str | int | None = None,
        *,
        first_step: int = 0,
        kind: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Rows in step order: ``{"_step": int, "_timestamp": float, key: value, …}``, one per step, nulls as None, media
        as `MediaItem`s, which read their bytes when asked.

        Lanes are joined: at a step that several hold, the main one's values win. Memory holds a window, not the run.
        What was logged under `_step` or `_timestamp` is given as `_logged_step` and `_logged_timestamp`.

        Args:
            keys: Only these, and only rows that hold one of them.
            stream: Only this stream (an id).
            first_step: No row below it; blocks that hold none are not read.
            kind: As in `of_kind`.
        """  # fmt: skip
        if (chosen := self.of_kind(kind)) is not self:
            return chosen.rows(keys, stream, first_step=first_step)
        wanted = self.check_keys(keys)
        return self._rows(join.Selection(wanted, first_step=first_step), stream)

    def check_keys(self, keys: Iterable[str] | None) -> frozenset[str] | None:
        """The keys as a set.

        Raises:
            TypeError: One text was given, whose letters would be taken for keys.
        """
        if isinstance(keys, str):
            raise TypeError(f"keys is the str {keys!r}, expected a list of them: [{keys!r}]")
        return None if keys is None else frozenset(keys)

    def _rows(self, selection: join.Selection, stream: str | int | None = None) -> Iterator[dict[str, Any]]:
        return self._added_rows(selection, stream, self._additions(selection.keys, stream))

    def _added_rows(
        self, selection: join.Selection, stream: str | int | None, added: Additions | None
    ) -> Iterator[dict[str, Any]]:
        if added is None:
            return self._logged_rows(selection, stream)
        return added.added(self._logged_rows(added.selection(selection), stream))

    def _additions(
        self, keys: frozenset[str] | None, stream: str | int | None = None, *, ends: Mapping[str, int] | None = None,
        known: Iterable[str] = (),
    ) -> Additions | None:  # fmt: skip
        self._open()
        if not self._definitions().makes:  # as nearly always: nothing is read to find out
            return None
        from .additions import read_additions

        maker = self._maker(ends)
        return self._reading(lambda: read_additions(self._scan, self._chosen(stream), keys, maker, known))

    def _logged_rows(self, selection: join.Selection, stream: str | int | None) -> Iterator[dict[str, Any]]:
        following = selection.first_step

        def rest() -> Iterator[dict[str, Any]]:
            # Rows come in step order, so what is left begins after the last one that was given.
            nonlocal following
            for row in join.rows(self._scan, self._chosen(stream), selection._replace(first_step=following)):
                following = row[join.STEP] + 1  # before it is the caller's, who may change it
                yield row

        return self._giving(rest)

    def steps(self, keys: Iterable[str] | None = None) -> NDArray[numpy.int64]:
        """The steps that `rows(keys)` would give, ascending, without making the rows."""
        selection = join.Selection(self.check_keys(keys))
        added = self._additions(selection.keys) if keys is not None else None
        if added is not None:
            selection = added.selection(selection)
        return self._reading(lambda: looks.steps_of(self._scan, self._lanes, selection))

    def steps_by_key(self, keys: Iterable[str]) -> list[NDArray[numpy.int64]]:
        """For each key the steps at which some lane holds a value that is not null; one pass over the run."""
        from .tables import read_cells

        wanted = list(self.check_keys(keys) or ())
        found = self._reading(lambda: read_cells(self._scan, self._lanes, wanted, self._maker().collect))
        import numpy

        return [found[key].spine.step if key in found else numpy.empty(0, numpy.int64) for key in wanted]

    def rows_at(self, steps: NDArray[numpy.int64], keys: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows at these steps (sorted, ascending), reading only the blocks that may hold them."""
        return self._rows(join.Selection(self.check_keys(keys), steps))

    def tail(self, count: int = 10, keys: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """The last `count` rows in step order; reads from the end."""
        return self.tail_and_mark(count, Follower(self.check_keys(keys)))

    def tail_and_mark(self, count: int, follower: Follower) -> list[dict[str, Any]]:
        """As `tail`; `follower` takes all that is stored by now for seen."""
        selection = join.Selection(follower.keys)
        added = self._additions(follower.keys)
        if added is not None:
            follower.added = added
            selection = added.selection(selection)

        def look() -> NDArray[numpy.int64]:
            follower.mark(self._scan)
            return looks.last_steps(self._scan, self._lanes, count, selection)

        steps = self._reading(look)
        return list(self._rows(join.Selection(follower.keys, steps))) if len(steps) else []

    def follow(
        self,
        poll_seconds: float = 0.2,
        timeout: float | None = None,
        *,
        keys: Iterable[str] | None = None,
        last: int | None = None,
        wait: Callable[[float], None] = clock.pause,
    ) -> Iterator[dict[str, Any]]:
        """Rows as they become visible, each again whenever it changes; ends after the run did and all was given.

        Args:
            poll_seconds: How often to look.
            timeout: End after this many seconds of looking without a new row.
            keys: As in `rows`.
            last: Begin with the last so many rows of what is stored when the iteration begins; None: with the first.
            wait: What passes the time between two looks; gets seconds.
        """
        wanted = self.check_keys(keys)
        return follow_run(self, Follower(wanted), poll_seconds, timeout, wait, last)

    def look_for_new(self, follower: Follower) -> list[dict[str, Any]]:
        """The rows that became visible or changed since this follower last looked."""
        steps = self._reading(lambda: follower.new_steps(self._scan, self._lanes, self._definitions().needed))
        added = self._followed(follower, steps)
        if added is not None:
            steps = follower.with_epochs(steps, added)
        return list(self._added_rows(join.Selection(follower.keys, steps), None, added)) if len(steps) else []

    def _followed(self, follower: Follower, steps: NDArray[numpy.int64]) -> Additions | None:
        """What is made of rows, read behind the last epoch that the follower knows; None: nothing, or nothing new."""
        if not self._definitions().makes:
            return None
        ended = [self._maker().ended(lane) for lane in self._lanes]
        # An epoch gets its value when rows behind it come, or when the run ends.
        if not len(steps) and ended == follower.ended:
            return None
        ends = follower.settled(steps) if len(ended) == 1 else {}
        before = follower.added if ends else None
        added = self._additions(follower.keys, ends=ends, known=before.names if before else ())
        if added is not None and before is not None:
            added.follow(before)
        follower.ended = ended
        return added

    def sample(self, keys: Iterable[str], points: int = 40) -> dict[str, tuple[NDArray[numpy.int64], NDArray[Any]]]:
        """A cheap, evenly spread look: key to (steps, values), at most `points` of each.

        Exact (every value is a candidate) below 20 000 records; of a longer run only a few blocks are read. A key that
        they do not hold has two empty arrays.
        """
        from .sample import sample, spread

        wanted = sorted(self.check_keys(keys) or ())
        self._open()
        makes = {key: made for key in wanted if (made := self._definitions().made(key)) is not None}
        logged = sorted({*wanted, *(made.base for made in makes.values())})
        found = self._reading(lambda: sample(self._scan, self._lanes, logged, points))
        makes = {
            key: made for key, made in makes.items() if not len(found[key][0])
        }  # others were logged under that name
        epochs = self._read_all([key for key, made in makes.items() if made.by_epoch])
        for key, made in makes.items():
            if key in epochs:
                found[key] = spread(epochs[key].step, epochs[key].value, points)
            elif not made.by_epoch:
                found[key] = found[made.base]
        return {key: found[key] for key in wanted}

    def to_pandas(self, keys: Iterable[str] | None = None, *, kind: str | None = None) -> Any:
        """A pandas.DataFrame, one row per step (the index), one column per key, joined as in `rows`.

        Integer columns with holes are `Int64`, booleans `boolean`, so that no integer passes through a float.

        Args:
            keys: Which, in which order; None: all but those that begin with an underscore.
            kind: As in `of_kind`; what accompanies the training is indexed by the time.

        Raises:
            Error: pandas is not installed.
            NotFoundError: A key that the run does not have.
        """
        if (chosen := self.of_kind(kind)) is not self:
            return chosen.to_pandas(keys)
        from .frames import pandas_frame, pandas_module

        pandas = pandas_module("to_pandas()")
        return pandas_frame(self._table(keys), pandas)

    def to_arrow(self, keys: Iterable[str] | None = None, *, kind: str | None = None) -> Any:
        """A pyarrow.Table, one row per step: `step` (int64), `time` (timestamp[us, UTC]; of a row the latest of its values), then
        a column per key, joined as in `rows`.

        Floats are `double`, integers `int64` or `uint64`, booleans `bool`; a hole is null, and NaN stays NaN. Texts are
        `string`, bytes `binary`. Everything else (lists, media, tensors, integers beyond 64 bits, a key whose values are of
        several kinds) is a `string` with the JSON of each value; of media without their bytes, which `media` gives. What was
        logged under "step" and "time" is in `_logged_step` and `_logged_time`.

        Args:
            keys, kind: As in `to_pandas`.

        Raises:
            Error: pyarrow is not installed.
            NotFoundError: A key that the run does not have.
        """  # fmt: skip
        from .frames import arrow_module, arrow_table

        arrow = arrow_module("to_arrow()")
        return arrow_table(self.of_kind(kind)._table(keys), arrow)

    def to_polars(self, keys: Iterable[str] | None = None, *, kind: str | None = None) -> Any:
        """A polars.DataFrame with the columns of `to_arrow`.

        Raises:
            Error: polars or pyarrow is not installed.
            NotFoundError: A key that the run does not have.
        """
        from .frames import arrow_module, arrow_table, polars_module

        polars = polars_module("to_polars()")
        return polars.from_arrow(arrow_table(self.of_kind(kind)._table(keys), arrow_module("to_polars()")))

    def _table(self, keys: Iterable[str] | None) -> Table:
        from .tables import read_table

        ordered = None if keys is None else list(dict.fromkeys(keys))
        self.check_keys(keys if isinstance(keys, str) else ordered)
        table = self._reading(lambda: read_table(self._scan, self._lanes, ordered, self._maker().collect))
        if isinstance(table, str):
            raise self._no_series(table)
        return table

    def media(
        self, key: str, stream: str | int | None = None, rank: int | None = None, *, step: int | None = None
    ) -> MediaList:
        """The images, tables, tensors and the like logged under a key, in order of steps; lists item by item.

        Args:
            key: A key, or a pattern of keys: "val/*".
            stream, rank: As in `series`.
            step: Only those of this step.

        Raises:
            NotFoundError: No such key, stream or rank, or only plain values under it.
        """
        from .series import read_media

        keys = self.keys_like([key])
        if not keys:
            raise self._no_series(key)
        every = stream == "all"
        chosen = None if every else stream
        found = self._reading(lambda: read_media(self._scan, self._chosen(chosen, rank), keys, every=every))
        if found is None:
            raise self._no_series(key)
        if not found:
            raise NotFoundError(
                f"run {self.id} has no media under {key!r}: its values are plain",
                f"run.series({key!r})",
                command=self._shown_by(),
            )
        if step is not None:
            found[:] = [item for item in found if item.step == step]
        return found

    def media_keys(self) -> dict[str, str]:
        """Key to kind ("image", "table", "tensor", …) of the keys whose last value is media. Reads as `summary`."""
        last = self._reading(lambda: looks.last_values(self._scan, self._lanes))
        found = {key: kind_of(value) for key, value in sorted(last.items()) if key[:1] != "_"}
        return {key: kind for key, kind in found.items() if kind is not None}


def _is_system(key: str) -> bool:
    return key.startswith(SYSTEM_PREFIX)
