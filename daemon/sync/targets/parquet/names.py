"""Names in the dataset: directories as hive readers take them apart, files by stream and sequences.

    <root>/rows/project=digits/run=a41f/0000000000005001-1-20000.parquet      likewise system/, console/
    <root>/runs/project=digits/run=a41f/0000000000005001.parquet              what is known of the run
    <root>/media/project=digits/run=a41f/0000000000005001/17-5f1c09aa-samples_17.png

Projects and run ids are anybody's text. Percent-encoded they are one name each, never ``..``, a slash or two directories; what is too
long for a name, or no text that every reader can decode, is cut and ends in a digest: the runs' own files hold the whole.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple
from urllib.parse import quote

from daemon.sync.appending import is_count, is_inside, is_name

# What hive calls the partition of those that have no value.
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
# Limit: a name on disk has 255 bytes, some of which are "project=".
_CHARACTERS_MAX = 200
_STREAM = re.compile(r"[0-9a-f]{16}", re.ASCII)
_PART = re.compile(r"([0-9a-f]{16})-([0-9]{1,20})-([0-9]{1,20})\.parquet", re.ASCII)


class PartName(NamedTuple):
    """The name of a file of rows: all sequences in it are of one stream, from `first` to `last`.

    Two files of a stream never hold the same sequence, except while small ones are being joined.
    """

    stream: str
    first: int
    last: int

    @property
    def text(self) -> str:
        return f"{self.stream}-{self.first}-{self.last}.parquet"


def parse_part(name: str) -> PartName | None:
    """The name taken apart; None: it is not one of ours."""
    match = _PART.fullmatch(name)
    return PartName(match[1], int(match[2]), int(match[3])) if match else None


def is_sound(state: dict[str, Any]) -> bool:
    """Whether a state leads to nothing but files of the run below the root, and is of the form that it is written in."""
    if not state:
        return True
    files, facts, made = (state.get(name) for name in ("files", "facts", "made"))
    return (
        is_inside(state.get("where"))
        and isinstance(state.get("layout"), str)
        and isinstance(files, dict)
        and all(
            isinstance(held, dict) and all(parse_part(name) and is_count(size) for name, size in held.items())
            for held in files.values()
        )
        and isinstance(facts, dict)
        and all(map(is_name, facts))
        and isinstance(made, str)
        and _STREAM.fullmatch(made) is not None
    )


def partition(project: str, run_id: str) -> str:
    """The two directories of a run: ``project=digits/run=a41f``."""
    return f"project={_value(project)}/run={_value(run_id)}"


def _value(text: str) -> str:
    if not text:
        return NO_VALUE
    encoded = text.encode("utf-8", "surrogatepass")
    quoted = quote(encoded, safe="")
    if len(quoted) <= _CHARACTERS_MAX and text.isprintable() and text != NO_VALUE:
        return quoted
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    plain = "".join(c for c in text if c.isascii() and (c.isalnum() or c in "-_"))
    return f"{plain[: _CHARACTERS_MAX - 17]}~{digest}"
