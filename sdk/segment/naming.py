"""Where things are in a store: every name is made and taken apart here and nowhere else.

<store>/store.json                          format version and id of the store
<store>/runs/<directory of the run id>/     one run (`sdk.ids.run_directory`)
    history-<writer>-<number>.seg           segments of one writer; nobody else ever writes them
    aside/                                  torn tails that recovery cut off
<store>/trash/<time>-<directory>/           removed runs, kept for seven days
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from ..ids import hex_u64, run_directory

STORE_FILE = "store.json"
RUNS = "runs"
TRASH = "trash"
ASIDE = "aside"

_SEGMENT = re.compile(r"history-([0-9a-f]{16})-([0-9]{6})\.seg")


class SegmentName(NamedTuple):
    writer: int
    number: int


def format_segment(name: SegmentName) -> str:
    return f"history-{hex_u64(name.writer)}-{name.number:06d}.seg"


def parse_segment(text: str) -> SegmentName | None:
    """The parts of a segment's file name, or None for any other file."""
    match = _SEGMENT.fullmatch(text)
    return SegmentName(int(match[1], 16), int(match[2])) if match else None


def run_path(store: str, run_id: str) -> str:
    return os.path.join(store, RUNS, run_directory(run_id))
