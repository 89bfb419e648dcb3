"""Finding what the user meant: nearest names for an error, and a run for a text."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ..errors import NotFoundError

if TYPE_CHECKING:
    from .run import Run

_LATEST = re.compile(r"latest(?:~([0-9]{1,9}))?")
_NEAR = 0.55
_LISTED_MAX = 5


def nearest(text: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` names that look like `text`, the nearest first: the whole name, or its part after the last slash."""
    text = text.lower()
    scored = []
    for name in names:
        low = name.lower()
        score = max(_likeness(text, low), _likeness(text, low.rpartition("/")[2]))
        if text and text in low:
            score = max(score, _NEAR)
        if score >= _NEAR:
            scored.append((-score, name))
    return [name for _, name in sorted(scored)[:count]]


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def list_names(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def find_run(text: str, where: str, runs: Callable[[str | None], list[Run]], ago: Callable[[float], str]) -> Run:
    """The run that `text` names: an id, a name, an id's prefix, `latest`, `latest~2`, or one of these after `project/`.

    Args:
        where: The store's path, for errors.
        runs: The runs of a project (None: of all), newest first.
        ago: A Unix time as people say it.

    Raises:
        NotFoundError: None, or more than one.
    """
    everything = runs(None)
    if not everything:
        raise NotFoundError(f"there is no run in {where} yet", hint='sdk.init(project="…") in a training script')
    exact = [run for run in everything if run.id == text]
    if exact:
        return exact[0]
    # Why before projects: imported runs are called "mnist/train", and what `stepd runs` prints must find its run.
    if any(run.name == text for run in everything):
        return _among(text, text, where, everything, everything, ago)
    inside, rest = _within_project(text, everything)
    if inside:
        return _among(rest or "latest", text, where, inside, everything, ago)
    return _among(text, text, where, everything, everything, ago)


def _within_project(text: str, runs: list[Run]) -> tuple[list[Run], str]:
    """The runs of the project that stands before a slash, and the text behind it; no runs where none does.

    Projects and names may hold slashes themselves: where two projects fit, the one in which a run is called as the rest
    says, and otherwise the longest.
    """
    places = [place for place, letter in enumerate(text) if letter == "/"][::-1]
    found: list[tuple[list[Run], str]] = []
    projects = {run.project for run in runs}
    for place in places:
        project, rest = text[:place], text[place + 1 :]
        if project in projects:
            inside = [run for run in runs if run.project == project]
            if any(rest in (run.id, run.name) for run in inside):
                return inside, rest
            found.append((inside, rest))
    return found[0] if found else ([], "")


def _among(
    text: str, said: str, where: str, runs: list[Run], everything: list[Run], ago: Callable[[float], str]
) -> Run:
    latest = _LATEST.fullmatch(text)
    if latest is not None:
        back = int(latest[1] or 0)
        if back < len(runs):
            return runs[back]
        raise NotFoundError(f"no run matches {said!r}: there are only {len(runs)} runs", hint="stepd runs")
    for found in (
        [run for run in runs if run.id == text],
        [run for run in runs if run.name == text],
        [run for run in runs if text and run.id.startswith(text)],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            candidates = _describe(found, ago)
            raise NotFoundError(
                f"{said!r} matches {len(found)} runs in {where}: {candidates}",
                hint=f"stepd show {found[0].id}",
                instead=found[0].id,
            )
    near = nearest(text, [name for run in runs for name in (run.id, run.name)])
    close = [run for run in runs if run.id in near or run.name in near]
    if not close:
        near = nearest(said, [name for run in everything for name in (run.name, f"{run.project}/{run.name}")])
        close = [run for run in everything if run.name in near or f"{run.project}/{run.name}" in near] or runs
    raise NotFoundError(
        f"no run matches {said!r}. In {where}: {_describe(close, ago)}",
        hint=f"stepd show {close[0].id}",
        instead=close[0].id,
    )


def _describe(runs: list[Run], ago: Callable[[float], str]) -> str:
    listed = ", ".join(f"{run.id} {run.name} ({ago(run.started)})" for run in runs[:_LISTED_MAX])
    return listed + (f" and {len(runs) - _LISTED_MAX} more" if len(runs) > _LISTED_MAX else "")
