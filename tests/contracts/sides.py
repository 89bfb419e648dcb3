"""What every target of `stepd sync` shows of itself to the tests that all of them pass (`test_targets.py`).

A module ``<scheme>_side.py`` beside this one holds a class `Side` like the protocol here. A test makes stores, has them carried by the
driver's own code, and asks the side what a user of the target would read.

    class Side:
        scheme = "jsonl"
        exact = frozenset(EVERYTHING)

        def start(self, directory): return f"jsonl:{directory / 'out'}"     # once for each test, or for the module if `is_shared`
        def read(self, url): return {run_id: {key: [(step, value), …]}}
        def written(self, url): return {name: digest}
        def stop(self): ...
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any, Protocol

# What a target may be able to hold, as named in `Side.exact`. What is not there must be counted by `Passage.lost`, unless it is one of
# `UNCOUNTED`, which a target may do in a way of its own that its page tells.
NAN = "nan"  # NaN comes back as NaN
INFINITY = "infinity"
NULL = "null"  # a null that was logged comes back as None; else the key has no value at that step
TEXT = "text"
BOOL = "bool"  # as True and False; else as 1 and 0
INTEGER = "integer"  # 2**53 + 1 as that
FLOAT64 = "float64"  # 0.1 as that; else to 7 digits
LISTS = "lists"  # [1, 2] as that, or as its JSON
MEDIA = "media"  # a value for an image, whatever it is
LATE = "late"  # a row for an older step that came after later ones were carried
AGAIN = "again"  # a key logged twice at a step gives one value, the later one; else both are there
LANES = "lanes"  # values of every rank and fork; else those of the main lane win at a step
REWIND = "rewind"  # rows that were carried, and hidden by a resume afterwards, are gone
ODD_KEYS = "odd keys"  # any text comes back as the key; else `Side.key` says what becomes of it
EVERYTHING = (NAN, INFINITY, NULL, TEXT, BOOL, INTEGER, FLOAT64, LISTS, MEDIA, LATE, AGAIN, LANES, REWIND, ODD_KEYS)
UNCOUNTED = (NULL, BOOL, FLOAT64, LISTS, AGAIN, LANES, REWIND, ODD_KEYS)

# By run id, by key: (step, value) in order of steps.
Held = dict[str, dict[str, list[tuple[int, Any]]]]


class Side(Protocol):
    """One target as the contract's tests see it. May also have: `in_process` (False: carried by a worker process), `is_slow` (all cases
    share their passes), `is_copy` (nothing is decoded on the way), `own_secrets` (variables that it needs itself), `may_fork` (no threads
    of a library mind a fork).

    Attributes:
        scheme: Of its URLs.
        exact: Which of the things above it holds as they were logged.
        is_shared: `start` is slow (a server): it is asked once for all tests of the module, and runs have other ids and projects in each.
        is_huge: It takes a few 10⁵ points in some seconds.
    """

    scheme: str
    exact: frozenset[str]
    is_shared: bool
    is_huge: bool

    def start(self, directory: Path) -> str:
        """Makes an empty target; its URL."""

    def read(self, url: str) -> Held:
        """What a user reads of it: all values of the training, under the keys that were logged. Nothing before the first run."""

    def written(self, url: str) -> dict[str, str]:
        """What must not change when nothing is new: names of files and digests of what is in them (`digests`), or counts of what a
        server holds. Without cursors.
        """

    def texts(self, url: str) -> list[bytes]:
        """All that it keeps, for a search for secrets."""

    def key(self, key: str) -> str:
        """What becomes of an odd key; the key itself where it is held as it is."""

    def stop(self) -> None: ...


def digests(directory: Path) -> dict[str, str]:
    """Every file below a directory but for cursors, with a digest of its bytes."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and ".stepd-sync" not in path.parts
    }


def bytes_below(directory: Path) -> list[bytes]:
    """Every file's bytes, cursors included."""
    return [path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()]


def sides() -> list[str]:
    """The names of those that there are."""
    return sorted(path.name.removesuffix("_side.py") for path in Path(__file__).parent.glob("*_side.py"))


def side_of(name: str) -> Side:
    """A new one."""
    made: Side = importlib.import_module(f"tests.contracts.{name}_side").Side()
    return made
