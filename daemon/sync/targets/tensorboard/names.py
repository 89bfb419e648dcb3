"""Where a run lies in a log directory: names that a user knows again, and that no key, id or project can lead elsewhere."""

from __future__ import annotations

import re

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
