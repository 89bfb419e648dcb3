"""One run on its way into a dataset: which files are there, which are new, which go.

The state names every file of rows that is safe. So:

* Files of the run that the state does not name were published by a pass that was killed before its commit. The next pass removes them
  first: their rows come again. Only names of ours with a stream of this run count, so that what other stores ship into the same run
  stays.
* Where a file that the state names is gone, or has another size, the run is written anew from its first row.
* Small files, as a run that was carried while it was written has them, are joined when the run is over, or when there are many. The joined
  file is safe before it is committed, and the small ones are removed after that: readers see rows twice for a moment, never not at
  all, and the view keeps one of each.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from daemon.sync.passage import Passage
from daemon.sync.targets.parquet.beside import Beside
from daemon.sync.targets.parquet.cells import Writing, long, wide
from daemon.sync.targets.parquet.facts import digest_of, facts_name, facts_of, facts_table
from daemon.sync.targets.parquet.names import PartName, is_sound, parse_part, partition
from daemon.sync.targets.parquet.parts import COLUMNS_MAX, PART_BYTES_MAX, Parts, tables_in
from daemon.sync.targets.parquet.roots import Root
from sdk.ids import run_directory
from sdk.limits import MIB
from sdk.reader.delivery import Batch
from sdk.reader.facts import StreamFacts
from sdk.reader.lanes import TRAINING

LONG, WIDE = "long", "wide"
# A dataset for the training, and one for each of what accompanies it.
KINDS = {"rows": TRAINING, "system": frozenset({"system"}), "console": frozenset({"console"})}
_FACTS = "runs"

# Limit: of a run that lives. A pass each half minute makes 120 files of a stream in an hour, which are one or two of these joined.
JOIN_FILES = 64
_SMALL_BYTES_MAX = 32 * MIB


class Shipping:
    """One call of `carry`."""

    def __init__(self, arrow: Any, root: Root, passage: Passage, layout: str, *, with_media: bool) -> None:
        if not is_sound(passage.state):
            passage.start_again()
        run, state = passage.run, passage.state
        self._arrow, self._root, self._passage, self._layout = arrow, root, passage, layout
        self._where = partition(run.project, run.id)
        # Two stores may ship streams of one run at once.
        self._label = f"{run_directory(run.id)}-{hashlib.sha256(os.fsencode(run.directory)).hexdigest()[:8]}"
        self._files: dict[str, dict[str, int]] = {kind: dict(state.get("files", {}).get(kind, {})) for kind in KINDS}
        self._facts: dict[str, str] = dict(state.get("facts", {}))  # name -> digest
        # What was made of epochs is a stream of no process. Of several stores each makes its own.
        self._made: str = state.get("made") or hashlib.sha256(facts_name(run).encode()).hexdigest()[:16]
        self._beside = Beside(root, self._where, passage, is_wanted=with_media)
        told = {"project": run.project, "run": run.id, "layout": layout}
        self._parts = Parts(arrow, root, self._label, self._where, told, self._published)
        self._uncommitted = 0
        self._is_changed = False

    def go(self, *, look: bool = True) -> None:
        """Ships what is new.

        Args:
            look: Compare what is there with the state first; False: nobody was killed since, as this process knows.
        """
        try:
            self._begin(look)
            for kind, streams in KINDS.items():
                for batch in self._passage.batches(streams):
                    self._take(kind, batch)
                self._parts.finish()
            replaced = list(self._join())
            self._write_facts()
            if self._is_changed:
                self._tell_alike()
                self._commit()
            for name in replaced:
                self._root.remove(name)
        finally:
            self._parts.close()
            self._root.abandon()

    # ---- before the first row

    def _begin(self, look: bool) -> None:
        state = self._passage.state
        where, layout = state.get("where", self._where), state.get("layout", self._layout)
        # The run was given another project, or is written otherwise: nothing of it stays where it was.
        is_elsewhere = (where, layout) != (self._where, self._layout)
        if state and not (look or is_elsewhere):
            return
        self._root.sweep(self._label)
        there = {kind: self._root.list(f"{kind}/{where}") for kind in (*KINDS, _FACTS)}
        known = {kind: dict(files) for kind, files in self._files.items()}
        is_whole = all(there[kind].get(name) == size for kind, files in known.items() for name, size in files.items())
        if is_elsewhere or not is_whole:
            self._passage.start_again()
            self._is_changed = True
            for files in self._files.values():
                files.clear()
        if not is_whole:
            self._passage.told("files were missing from the dataset; all of the run was written anew")
        streams = {stream.id for stream in self._passage.run.streams} | {self._made}
        for kind in KINDS:
            for name in there[kind].keys() - self._files[kind].keys():
                part = parse_part(name)
                if name in known[kind] or (part is not None and part.stream in streams):
                    self._root.remove(f"{kind}/{where}/{name}")
        self._look_at_facts(where, there[_FACTS], streams)

    def _look_at_facts(self, where: str, there: dict[str, int], streams: set[str]) -> None:
        if where != self._where:
            for name in self._facts:
                self._root.remove(f"{_FACTS}/{where}/{name}")
            self._facts = {}
        self._facts = {name: digest for name, digest in self._facts.items() if name in there}
        for name in there.keys() - self._facts.keys():
            if name.removesuffix(".parquet") in streams:
                self._root.remove(f"{_FACTS}/{where}/{name}")

    # ---- rows

    def _take(self, kind: str, batch: Batch) -> None:
        self._is_changed = True
        if batch.stream.id == 0:
            batch = batch._replace(stream=StreamFacts(int(self._made, 16)))
        stream = batch.stream.hex
        before = self._beside.size

        def described(value: Any, key: str, sequence: int) -> Any:
            return self._beside.described(value, key, stream, sequence)

        writing = Writing(self._arrow, described, self._odd, self._mixed)
        tables = long if self._layout == LONG and kind == "rows" else wide
        for table in tables(writing, batch) if batch.points else ():
            self._parts.add(kind, stream, table)
            if table.num_columns > COLUMNS_MAX:
                self._passage.told(f"there are more than {COLUMNS_MAX} keys: ?layout=long is made for that")
        self._passage.moved(batch.values, self._beside.size - before)
        if self._uncommitted >= PART_BYTES_MAX:
            self._parts.finish()  # what was given by now must be safe, this batch too
            self._commit()

    def _odd(self, key: str, count: int) -> None:
        self._passage.lost("texts that are no Unicode", key, count)

    def _mixed(self, key: str) -> None:
        self._passage.told(
            f"{key[:60]!r} holds texts and other values: as JSON where they meet. ?layout=long tells them apart"
        )

    def _tell_alike(self) -> None:
        """Names keys that engines without case take for one column."""
        if self._layout == LONG:
            return
        known: dict[str, str] = {}
        for key in self._passage.run.all_keys(quick=True):
            other = known.setdefault(key.lower(), key)
            if other != key:
                self._passage.told(
                    f"{other[:60]!r} and {key[:60]!r} differ in case only, and are one column to DuckDB and Spark. "
                    "?layout=long keeps them apart"
                )

    def _published(self, kind: str, name: str, size: int) -> None:
        self._files[kind][name] = size
        self._uncommitted += size
        self._passage.moved(0, size)

    def _commit(self) -> None:
        self._root.settle()
        self._uncommitted = 0
        self._passage.commit(
            {
                "where": self._where,
                "layout": self._layout,
                "files": self._files,
                "facts": dict(self._facts),
                "made": self._made,
            }
        )

    # ---- joining

    def _join(self) -> Iterator[str]:
        """Joins small files; the names of those that are to be removed after the commit."""
        count_min = 2 if self._passage.is_over else JOIN_FILES
        for kind, files in self._files.items():
            for group in small_neighbours(files):
                if len(group) >= count_min:
                    yield from self._joined(kind, group)

    def _joined(self, kind: str, group: list[PartName]) -> Iterator[str]:
        files = self._files[kind]
        before = {part.text: files.pop(part.text) for part in group}
        for part in group:
            self._passage.check()
            for table in tables_in(self._arrow, self._root.source(f"{kind}/{self._where}/{part.text}")):
                self._parts.add(kind, part.stream, table)
        self._parts.finish()
        self._is_changed = True
        for name in before:
            if name not in files:
                yield f"{kind}/{self._where}/{name}"

    # ---- the run's own row

    def _write_facts(self) -> None:
        import pyarrow.parquet

        facts, name = facts_of(self._passage.run), facts_name(self._passage.run)
        digest = digest_of(facts)
        if self._facts.get(name) == digest:
            return
        draft = self._root.draft(self._label)
        try:
            table = facts_table(self._arrow, facts)
            pyarrow.parquet.write_table(table, draft, compression="zstd", write_statistics=False, store_schema=False)
            size = self._root.publish(draft, f"{_FACTS}/{self._where}/{name}")
        except BaseException:
            self._root.discard(draft)
            raise
        self._facts[name] = digest
        # Where an older stream of the run has come. What another store ships into the same directory keeps its row.
        streams = {f"{stream.id}.parquet" for stream in self._passage.run.streams}
        for other in [other for other in self._facts if other != name and other in streams]:
            self._root.remove(f"{_FACTS}/{self._where}/{other}")
            del self._facts[other]
        self._passage.moved(0, size)
        self._is_changed = True


def small_neighbours(files: dict[str, int]) -> Iterator[list[PartName]]:
    """Files of one stream that follow one another and are all small, in order of sequences."""
    parts = sorted(part for part in map(parse_part, files) if part is not None)
    group: list[PartName] = []
    for part in parts:
        if group and (part.stream != group[0].stream or files[part.text] >= _SMALL_BYTES_MAX):
            yield group
            group = []
        if files[part.text] < _SMALL_BYTES_MAX:
            group.append(part)
    if group:
        yield group
