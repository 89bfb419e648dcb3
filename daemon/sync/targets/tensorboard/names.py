"""Where a run lies in a log directory: names that a user knows again, and that no key, id or project can lead elsewhere."""

from __future__ import annotations

import re
from typing import Any

from daemon.sync.appending import is_count, is_inside, is_name
from sdk.ids import run_directory
from sdk.reader.facts import StreamFacts
from sdk.reader.filenames import safe_name

_SUFFIX = re.compile(r"events\.out\.tfevents\.\d+\.[^/]*\.stepd\.\d+")


def directory_of(project: str, name: str, run_id: str) -> str:
    """``<project>/<name>-<id>``, as TensorBoard lists it. No two runs share one: behind the last ``-`` stands the whole id."""
    # A "-" within the id would leave open where it begins; run_directory itself writes every other byte as %xx.
    identity = run_directory(run_id).replace("-", "%2d")
    called = identity if name in ("", run_id) else f"{safe_name(name)}-{identity}"
    return f"{safe_name(project or 'uncategorized')}/{called}"


def lane_directory(stream: StreamFacts, taken: set[str]) -> str:
    """A directory below the run's for a lane that is not the main one: ``rank1``, ``rank0-fork``, ``system``, ``system-node7``."""
    if stream.kind == "system":
        host = stream.text("host")
        wanted = "system" if "system" not in taken or not host else f"system-{safe_name(host)}"
    else:
        wanted = f"rank{stream.number('rank') or 0}{'' if stream.kind == 'main' else f'-{safe_name(stream.kind)}'}"
    return wanted if wanted not in taken else f"{wanted}-{stream.hex[:8]}"


def event_file(created: float, host: str, generation: int) -> str:
    """The name of a run's event file; one that replaces another comes behind it in order of names."""
    seconds = int(created) if 0 <= created < 1e10 else 0
    return f"events.out.tfevents.{seconds:010d}.{safe_name(host or 'unknown')}.stepd.{generation:04d}"


def is_ours(name: str) -> bool:
    """Whether a file may be removed: it was written here."""
    return _SUFFIX.fullmatch(name) is not None


def is_sound(state: dict[str, Any]) -> bool:
    """Whether a state of the run leads to nothing but files below the root, and is of the form that it is written in."""
    if not state:
        return True
    files, lanes, embeddings = (state.get(name) for name in ("files", "lanes", "embeddings"))
    if not (isinstance(files, dict) and isinstance(lanes, dict) and isinstance(embeddings, dict)):
        return False
    return (
        is_inside(state.get("directory"))
        and isinstance(state.get("host"), str)
        and isinstance(state.get("precision"), str)
        and isinstance(state.get("created"), (int, float))
        and is_count(state.get("generation"))
        and all(map(is_name, (*files, *lanes.values(), *embeddings)))
        and all(isinstance(told, dict) and is_count(told.get("length")) for told in files.values())
    )
