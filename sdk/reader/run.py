"""One stored run: its facts, its state and its values, from the files alone.

Facts (name, config, streams) are as of the moment the run was opened or `refresh`ed; values are read from the disk at
every call, so a run that is still growing gives what is stored by then: what was logged more than about a second ago.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .. import clock
from ..errors import NotFoundError, UnsupportedError
from . import join, looks
from .about import TRIES_MAX, About
from .follow import Follower, follow_run
from .lanes import Lane, lanes_of
from .media import MediaList, kind_of
from .names import list_names, nearest
from .scan import Gone

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from .series import Series

# Limit: as in `sample`: 8 blocks of 4 MiB are about 40 ms.
_QUICK_BLOCKS_MAX = 8
_PATTERN = re.compile(r"[*?\[]")


class Run(About):
    """A run in a store. Reads only; not thread-safe; holds no file open between calls.

    Damaged bytes never raise: what is whole is given, what is not is listed in `damage` and `gaps`.
    """

    def __repr__(self) -> str:
        return f"<stepd run {self.id} {self.name!r} of {self.project!r}, {self.state}>"

    @property
    def summary(self) -> dict[str, Any]:
        """What the user set, over the last logged value of every key. Reads all rows."""
        last = self._reading(lambda: looks.last_values(self._scan, self._lanes))
        shown = {key: value for key, value in last.items() if key not in self._facts.removed and key[:1] != "_"}
        return {**shown, **self._facts.summary}

    @property
    def last_step(self) -> int | None:
        """The largest step of a row; None before the first one. Reads from the end."""
        steps = self._reading(lambda: looks.last_steps(self._scan, self._lanes, 1))
        return int(steps[-1]) if len(steps) else None

    def keys(self, *, quick: bool = False) -> list[str]:
        """All keys, sorted: nested dicts as dotted names, without those that begin with an underscore. `media_keys` tells
        which of them hold media.

        Args:
            quick: Look at a few blocks of a long run only, as `sample` does; a rare key may not be found.
        """
        return [key for key in self.all_keys(quick=quick) if key[:1] != "_"]

    def all_keys(self, *, quick: bool = False) -> list[str]:
        """All keys, sorted, with those that begin with an underscore."""
        blocks_max = _QUICK_BLOCKS_MAX if quick else None
        return sorted(self._reading(lambda: looks.keys_of(self._scan, self._lanes, blocks_max)))

    def series(self, key: str, stream: str | int | None = None, rank: int | None = None) -> Series:
        """All values of one key, as numpy arrays.

        Args:
            stream: None: the main lane among those that hold the key. An id: this stream alone, rows that a resume hid
                included. "all": every lane's values, ordered by step and time.
            rank: Only streams of this rank.

        Raises:
            NotFoundError: No such key, stream or rank.
        """
        from .series import read_series

        every = stream == "all"
        chosen = None if every else stream
        found = self._reading(lambda: read_series(self._scan, self._chosen(chosen, rank), key, every=every))
        if found is None:
            raise self._no_series(key)
        return found

    def _chosen(self, stream: str | int | None, rank: int | None = None) -> list[Lane]:
        lanes = self._lanes
        if stream is not None:
            wanted = stream if isinstance(stream, str) else f"{stream:016x}"
            facts = [s for s in self._facts.streams.values() if s.hex == wanted]
            if not facts:
                known = [s.hex for s in self._facts.streams.values()]
                near = list_names(nearest(wanted, known) or known[:3])
                raise NotFoundError(f"run {self.id} has no stream {wanted!r}. Nearest: {near}", hint="run.streams")
            lanes = [lanes_of({facts[0].id: facts[0]})[0]]
        if rank is not None:
            lanes = [lane for lane in lanes if any(s.number("rank") == rank for s in lane.streams)]
            if not lanes:
                raise NotFoundError(f"run {self.id} has no stream of rank {rank}", hint="run.streams")
        return lanes

    def _no_series(self, key: str) -> NotFoundError:
        names = self.keys()
        if not names:
            return NotFoundError(
                f"run {self.id} has no series {key!r}: it holds no values yet", hint="run.gaps, run.damage"
            )
        near = nearest(key, names)
        told = f"Nearest: {list_names(near)}" if near else f"It has {list_names(names[:5])}{', …' if names[5:] else ''}"
        return NotFoundError(f"run {self.id} has no series {key!r}. {told}", hint="run.keys()")

    def rows(
        self, keys: Iterable[str] | None = None, stream: str | int | None = None, *, first_step: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Rows in step order: ``{"_step": int, "_timestamp": float, key: value, …}``, one per step, nulls as None, media
        as `MediaItem`s, which read their bytes when asked.

        Lanes are joined: at a step that several hold, the main one's values win. Memory holds a window, not the run.
        What was logged under `_step` or `_timestamp` is given as `_logged_step` and `_logged_timestamp`.

        Args:
            keys: Only these, and only rows that hold one of them.
            stream: Only this stream (an id).
            first_step: No row below it; blocks that hold none are not read.
        """
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
        tries = 0
        try:
            while True:
                try:
                    self._look()
                    for row in join.rows(self._scan, self._chosen(stream), selection):
                        yield row
                        selection = selection._replace(first_step=row[join.STEP] + 1)
                    return
                except Gone:
                    # Rows come in step order, so what is left begins after the last one that was given.
                    tries += 1
                    if tries == TRIES_MAX:
                        raise
        finally:
            self._scan.close()

    def steps(self, keys: Iterable[str] | None = None) -> NDArray[numpy.int64]:
        """The steps that `rows(keys)` would give, ascending, without making the rows."""
        selection = join.Selection(self.check_keys(keys))
        return self._reading(lambda: looks.steps_of(self._scan, self._lanes, selection))

    def steps_by_key(self, keys: Iterable[str]) -> list[NDArray[numpy.int64]]:
        """For each key the steps at which some lane holds a value that is not null; one pass over the run."""
        from .series import read_table

        wanted = list(self.check_keys(keys) or ())
        table = self._reading(lambda: read_table(self._scan, self._lanes, wanted))
        import numpy

        return [table[key].step if key in table else numpy.empty(0, numpy.int64) for key in wanted]

    def rows_at(self, steps: NDArray[numpy.int64], keys: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows at these steps (sorted, ascending), reading only the blocks that may hold them."""
        return self._rows(join.Selection(self.check_keys(keys), steps))

    def tail(self, count: int = 10, keys: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """The last `count` rows in step order; reads from the end."""
        return self.tail_and_mark(count, Follower(self.check_keys(keys)))

    def tail_and_mark(self, count: int, follower: Follower) -> list[dict[str, Any]]:
        """As `tail`; `follower` takes all that is stored by now for seen."""
        selection = join.Selection(follower.keys)

        def look() -> NDArray[numpy.int64]:
            follower.mark(self._scan)
            return looks.last_steps(self._scan, self._lanes, count, selection)

        steps = self._reading(look)
        return list(self._rows(selection._replace(steps=steps))) if len(steps) else []

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
        steps = self._reading(lambda: follower.new_steps(self._scan, self._lanes))
        return list(self._rows(join.Selection(follower.keys, steps))) if len(steps) else []

    def sample(self, keys: Iterable[str], points: int = 40) -> dict[str, tuple[NDArray[numpy.int64], NDArray[Any]]]:
        """A cheap, evenly spread look: key to (steps, values), at most `points` of each.

        Exact (every value is a candidate) below 20 000 records; of a longer run only a few blocks are read. A key that
        they do not hold has two empty arrays.
        """
        from .sample import sample

        wanted = sorted(self.check_keys(keys) or ())
        return self._reading(lambda: sample(self._scan, self._lanes, wanted, points))

    def to_pandas(self, keys: Iterable[str] | None = None) -> Any:
        """A pandas.DataFrame, one row per step (the index), one column per key, joined as in `rows`.

        Integer columns with holes are `Int64`, booleans `boolean`, so that no integer passes through a float.

        Raises:
            Error: pandas is not installed.
            NotFoundError: A key that the run does not have.
        """
        from .frames import frame_of

        ordered = None if keys is None else list(dict.fromkeys(keys))
        self.check_keys(keys)
        frame = self._reading(lambda: frame_of(self._scan, self._lanes, ordered))
        if isinstance(frame, str):
            raise self._no_series(frame)
        return frame

    def to_arrow(self) -> Any:
        """Not served yet."""
        raise UnsupportedError("run.to_arrow() is not served yet", hint="run.to_pandas(), run.series(key)")

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

        keys = [key]
        if _PATTERN.search(key):
            names = self.keys()
            keys = [key] if key in names else fnmatch.filter(names, key)
            if not keys:
                raise self._no_series(key)
        every = stream == "all"
        chosen = None if every else stream
        found = self._reading(lambda: read_media(self._scan, self._chosen(chosen, rank), keys, every=every))
        if found is None:
            raise self._no_series(key)
        if not found:
            raise NotFoundError(
                f"run {self.id} has no media under {key!r}: its values are plain", hint=f"run.series({key!r})"
            )
        if step is not None:
            found[:] = [item for item in found if item.step == step]
        return found

    def media_keys(self) -> dict[str, str]:
        """Key to kind ("image", "table", "tensor", …) of the keys whose last value is media. Reads all rows."""
        last = self._reading(lambda: looks.last_values(self._scan, self._lanes))
        found = {key: kind_of(value) for key, value in sorted(last.items()) if key[:1] != "_"}
        return {key: kind for key, kind in found.items() if kind is not None}
