"""Importing all runs of a source, one after another: what `stepd import` does, without the command.

A run that cannot be imported does not keep the others from it. Nothing is written for a run whose source has not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from daemon.importing.placing import NEW, SAME, Inbox, Standing, standing_of
from daemon.importing.source import Found, Source
from sdk import clock
from sdk.errors import Error
from sdk.files import DISK, Files
from sdk.location import StoreIdentity

IMPORTED, REPLACED, UP_TO_DATE, FAILED = "imported", "imported anew", "up to date", "failed"
_REASON_CHARACTERS_MAX = 500


class Brought(NamedTuple):
    """What came of one run.

    Attributes:
        run: Its id in the store.
        state: IMPORTED, REPLACED, UP_TO_DATE or FAILED; of a dry run what would come of it.
        points: Values that were written. `size`: bytes of the source.
        reason: Why it failed.
        lost: What the store cannot hold, or is damaged in the source -> how often; of a run that is up to date, when it was
            imported. `told`: remarks.
    """

    run: str
    name: str
    project: str
    source: str
    state: str
    points: int = 0
    size: int = 0
    seconds: float = 0.0
    reason: str = ""
    lost: Mapping[str, int] = {}
    told: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        return self.state != FAILED and not self.lost

    def as_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**self._asdict(), "lost": dict(self.lost), "told": list(self.told)}


def named(runs: list[Found], project: str | None, name: str | None) -> list[Found]:
    """The runs as they are to be called; with a name and several runs each keeps its own behind it."""
    made = []
    for found in runs:
        own = f"{name}/{found.name}" if name and len(runs) > 1 else name or found.name
        where = project or found.project
        # So that an import under other names is one that has something to do.
        fingerprint = f"{found.fingerprint} {project!r} {name!r}"
        made.append(found._replace(name=own, project=where, fingerprint=fingerprint))
    return made


def bring(
    store: StoreIdentity,
    source: Source,
    runs: list[Found],
    *,
    project: str | None = None,
    is_named: bool = False,
    moved: Callable[[int], None] = lambda size: None,
    files: Files = DISK,
) -> Iterator[Brought]:
    """Imports runs, telling of each when it is there.

    Args:
        runs: As `named` gives them.
        project: Was given, and counts more than what the source says; `is_named`: so was a name.
        moved: Hears how many bytes of the source were read, or need not be.

    Raises:
        StoreError: The store cannot be written, or another process imports into it.
    """
    with Inbox(store, files) as inbox:
        for found in runs:
            given = {"project": project, "name": found.name if is_named else None}
            overrides = {name: value for name, value in given.items() if value is not None}
            yield _bring_one(inbox, store, source, found, overrides, moved, files)


def look(store: str | None, runs: list[Found], files: Files = DISK) -> Iterator[Brought]:
    """What `bring` would do; reads names only. Without a store everything is new."""
    for found in runs:
        about = (found.run_id, found.name, found.project, found.source)
        try:
            standing = Standing(NEW) if store is None else standing_of(store, found, files)
        except (OSError, Error) as error:
            yield Brought(*about, FAILED, size=found.size, reason=str(error))
            continue
        if standing.state == SAME:
            yield _unchanged(found, standing)
        else:
            yield Brought(*about, IMPORTED if standing.state == NEW else REPLACED, size=found.size)


def _unchanged(found: Found, standing: Standing) -> Brought:
    """A run that stays as it is: called as in the store, whatever a command that names no name would have called it."""
    about = (found.run_id, standing.name or found.name, standing.project or found.project, found.source)
    return Brought(*about, UP_TO_DATE, size=found.size, lost=standing.lost)


def _bring_one(
    inbox: Inbox,
    store: StoreIdentity,
    source: Source,
    found: Found,
    overrides: Mapping[str, str],
    moved: Callable[[int], None],
    files: Files,
) -> Brought:
    about = (found.run_id, found.name, found.project, found.source)
    begun = clock.monotonic()
    try:
        standing = standing_of(store.path, found, files)
        if standing.state == SAME:
            moved(found.size)
            return _unchanged(found, standing)
        run = inbox.begin(found)
    except (OSError, Error) as error:
        moved(found.size)
        return Brought(*about, FAILED, size=found.size, reason=str(error))
    read = 0

    def note(size: int) -> None:
        nonlocal read
        read += size
        moved(size)

    try:
        run.facts({"run": {"id": found.run_id, "project": found.project, "name": found.name}})
        source.read(found, run, note)
        if overrides:
            run.facts({"run": dict(overrides)})
        inbox.put(found, run)
    except (OSError, ValueError, Error) as error:
        inbox.drop(run)
        return Brought(*about, FAILED, size=found.size, reason=str(error), lost=run.lost, told=tuple(run.told))
    except Exception as error:  # what a decoder raises of made-up bytes must not keep the other runs out
        inbox.drop(run)
        return Brought(
            *about, FAILED, size=found.size, reason=f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS_MAX]
        )
    except BaseException:
        inbox.drop(run)
        raise
    finally:
        moved(found.size - read)
    done = IMPORTED if standing.state == NEW else REPLACED
    seconds = clock.monotonic() - begun
    return Brought(*about, done, run.points, found.size, seconds, lost=dict(run.lost), told=tuple(run.told))
