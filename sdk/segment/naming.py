"""Where things are in a store: every name is made and taken apart here and nowhere else.

<store>/store.json                          format version and id of the store
<store>/runs/<directory of the run id>/     one run (`sdk.ids.run_directory`)
    history-<writer>-<number>.seg           segments of one writer; nobody else ever writes them
    media-<writer>-<number>.seg             the same, with blobs instead of rows
    media-<writer>-<number>.seg.<machine>.draft   what a rewriting on that machine has not finished
    history-<writer>-<number>.seg.suspect   an fsync of that segment failed: never ask again, and never call it safe
    aside/                                  torn tails that recovery cut off
    files/                                  the user's files of the run, and what was kept of its code (`sdk.runfiles`)
<store>/keeping/                            jobs that wait for the keeper (`sdk._keeping`)
<store>/syncing/                            jobs of runs that are carried while they are written (`sdk._syncing`)
<store>/artifacts/                          data sets and models (docs/artifacts.md)
<store>/importing/                          runs that an import has not finished (`daemon.importing.placing`)
<store>/trash/<time>-<directory>/           removed runs, kept for seven days
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from typing import NamedTuple

from ..files import Files
from ..ids import hex_u64, run_directory

STORE_FILE = "store.json"
RUNS = "runs"
TRASH = "trash"
# Jobs for the keeper (`sdk._keeping`), and what becomes of those of artifacts (`sdk.artifacts.format`).
KEEPING = "keeping"
# The same for carriers (`sdk._syncing`).
SYNCING = "syncing"
ARTIFACTS = "artifacts"
IMPORTING = "importing"
ASIDE = "aside"
FILES = "files"
# The directories whose names a segment needs to be found again: its run's, that of the runs, the store's.
RUN_LEVELS = 3

# Why on the disk: whoever comes after would force that file once more, hear "done", and believe it.
SUSPECT_SUFFIX = ".suspect"

# What the name of a segment begins with: what it holds.
HISTORY = "history"
MEDIA = "media"
_SEGMENT = re.compile(rf"({HISTORY}|{MEDIA})-([0-9a-f]{{16}})-([0-9]{{6}})\.seg")
_DRAFT = re.compile(rf"{_SEGMENT.pattern}\.([0-9a-f]{{8}}|unknown)\.draft")


class SegmentName(NamedTuple):
    writer: int
    number: int
    holds: str = HISTORY


def format_segment(name: SegmentName) -> str:
    return f"{name.holds}-{hex_u64(name.writer)}-{name.number:06d}.seg"


def parse_segment(text: str) -> SegmentName | None:
    """The parts of a segment's file name, or None for any other file."""
    match = _SEGMENT.fullmatch(text)
    return SegmentName(int(match[2], 16), int(match[3]), match[1]) if match else None


def format_draft(name: SegmentName, machine: str) -> str:
    """The name of a segment that is not finished; no reader looks at it.

    Args:
        machine: Whose it is, so that nobody else removes it.
    """
    return f"{format_segment(name)}.{machine_tag(machine) or 'unknown'}.draft"


def parse_draft(text: str) -> str | None:
    """The `machine_tag` in the name of a draft, "unknown" if nobody knows; None for any other file."""
    match = _DRAFT.fullmatch(text)
    return match[4] if match else None


def machine_tag(machine: str) -> str:
    """What stands for a machine in names; "" if it is not known."""
    return f"{zlib.crc32(machine.encode()):08x}" if machine else ""


def mark_suspect(files: Files, path: str) -> None:
    """Notes beside the segment at `path` that an fsync of it failed, where the disk still takes a name."""
    with contextlib.suppress(OSError):
        files.create(path + SUSPECT_SUFFIX).close()


def run_path(store: str, run_id: str) -> str:
    return os.path.join(store, RUNS, run_directory(run_id))
