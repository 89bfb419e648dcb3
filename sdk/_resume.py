"""What a new process does with a run id that may exist already: goes on with it, refuses, or writes beside it.

Decides only; `sdk._api` acts. Reads the store, so it may take as long as a look at the run's last rows takes.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from .errors import Error, UsageError
from .files import DISK
from .limits import STEP_GIVEN_MAX
from .segment.naming import run_path

_FROM = re.compile(r"(?s)(.+)\?_step=(\d+)")


class Plan(NamedTuple):
    """What to do.

    Attributes:
        run_id: The run to write into, or None: a new one.
        found: The reader's run of that id, or None when there is none yet.
        resumed: Whether the new stream continues an earlier one.
        continues, attempt, first_step: Facts of the new stream.
        hide: What of earlier attempts is hidden from now on, or None.
        notes: What a user should know.
    """

    run_id: str | None
    found: Any = None
    resumed: bool = False
    continues: str | None = None
    attempt: int = 1
    first_step: int = 0
    hide: dict[str, int] | None = None
    notes: tuple[str, ...] = ()


def read_store(store: str) -> Any:
    """The reader on a store; tests put their own here."""
    from .reader import open_store

    return open_store(store)


def parse_from(text: Any) -> tuple[str, int]:
    """The run and step of ``"a41f?_step=9000"``.

    Raises:
        ValueError: It is nothing like that.
    """
    match = _FROM.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[2]) > STEP_GIVEN_MAX:
        raise ValueError(f"init() resume_from is {text!r}, expected '<run id>?_step=<step>'")
    return match[1], int(match[2])


def make_plan(
    store: str, run_id: str | None, resume: str | None, resume_step: int | None, project: str, rank: int | None
) -> Plan:
    """Decides by what the store holds.

    Args:
        run_id: The id that was asked for, or None.
        resume: "allow", "must", "never", "auto" or None.
        resume_step: The first step of the new attempt; None: the one after the last stored.

    Raises:
        UsageError: "must" and there is no such run, "never" and there is one.
    """
    found = _find(store, run_id) if run_id is not None else _last_broken(store, project) if resume == "auto" else None
    if run_id is None and found is None:
        if resume == "must":
            raise UsageError("init(resume='must') needs the id of the run to go on with", hint="init(id=…); stepd runs")
        return Plan(None)
    if found is None:
        if resume == "must":
            raise UsageError(
                f"init(resume='must') found no run {run_id!r} in {store}", hint="stepd runs; or resume='allow'"
            )
        return Plan(run_id)
    if resume == "never":
        raise UsageError(f"init(resume='never') found run {run_id!r} in {store}", hint="another id, or resume='allow'")
    if resume is None:
        return Plan(run_id, found, notes=_beside(found, rank))
    return _continue(found, resume_step, rank)


def _find(store: str, run_id: str) -> Any:
    """The stored run of exactly this id, or None."""
    try:
        if not DISK.exists(run_path(store, run_id)):
            return None
        found = read_store(store).run(run_id)
    except (Error, OSError):
        return None
    return found if found.id == run_id else None


def _last_broken(store: str, project: str) -> Any:
    """The newest run of the project that did not end by itself, or None."""
    try:
        runs = read_store(store).runs(project=project)
        return next((run for run in runs if run.state in ("crashed", "interrupted", "preempted")), None)
    except (Error, OSError):
        return None


def _beside(found: Any, rank: int | None) -> tuple[str, ...]:
    """A note that the run exists: this process's rows stand beside the earlier ones, which are what is shown."""
    for stream in found.streams:
        if stream.kind == "main" and stream.rank == rank and stream.state == "running":
            return (
                (
                    f"run {found.id} is being written by pid {stream.pid} on {stream.host} too; this process adds a stream of "
                    "its own from step 0"
                ),
            )
    if any(stream.kind == "main" and stream.rank == rank for stream in found.streams):
        return (
            (
                f"run {found.id} exists and is {found.state}; this process adds a stream of its own from step 0, and readers "
                "show the first one. To go on with it: init(id=…, resume='allow')"
            ),
        )
    return ()


def _continue(found: Any, resume_step: int | None, rank: int | None) -> Plan:
    lane = [stream for stream in found.streams if stream.kind == "main" and stream.rank == rank]
    last_step = _last_step(found)
    first_step = resume_step if resume_step is not None else 0 if last_step is None else last_step + 1
    attempt = max((stream.attempt for stream in lane), default=0) + 1
    before = max(lane, key=lambda stream: (stream.attempt, stream.started), default=None)
    text = f"resumed at step {first_step:,} as attempt {attempt}"
    hide = None
    if resume_step is not None and lane:
        hide = {"attempt": attempt, "from_step": resume_step}
        if last_step is not None and last_step >= resume_step:
            text += f"; steps {resume_step:,} to {last_step:,} of earlier attempts are hidden, not deleted"
    notes = [text]
    if before is not None and before.state == "running":
        notes.append(f"attempt {before.attempt} still runs: pid {before.pid} on {before.host}")
    continues = before.id if before is not None else None
    return Plan(found.id, found, True, continues, attempt, first_step, hide, tuple(notes))


def _last_step(found: Any) -> int | None:
    """The largest step that is visible: rows that an earlier resume hid do not count."""
    try:
        rows = found.tail(1)
    except (Error, OSError):
        return None
    return int(rows[-1]["_step"]) if rows else None
