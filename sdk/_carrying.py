"""Carrying a run to its targets while it is written, the trainer's side: `init(sync_to=)`, and what `finish()` waits for.

The trainer leaves a job in the store and never thinks of it again before its end (`_syncing`); the daemon's carrier does the rest.
At the end the job is left once more, which has the carrier begin a pass at once, and `finish()` looks until a pass that began after
that has come to its end.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

from . import _greeting, _spawn, clock
from ._secrets import is_secret_name
from ._syncing import (
    DIRECTORIES,
    SCHEMES,
    Job,
    Told,
    elsewhere_hint,
    holds_login,
    is_elsewhere,
    is_in_directory,
    put_job,
    read_told,
)
from .errors import Error, UsageError

if TYPE_CHECKING:
    from ._run import Run

_GROUP = "stepd.targets"
# As in `daemon.sync.place`.
_TARGET = re.compile(r"([a-z][a-z0-9_+-]{0,31}):([^?]*)(.*)", re.DOTALL)
_SQLITE = "sqlite:///"
# Between two looks at a small file.
_LOOK_SECONDS = 0.02
# A daemon that `init` started serves by then, or it cannot.
_START_SECONDS = 3.0
# What the observer saw last is stored by then.
_OBSERVED_SECONDS = 5.0
# After such a pass all that was stored when it began is there, or it never will be: words of `daemon.sync.outcome`.
_GOOD = frozenset({"delivered", "up to date", "live"})
_HOPELESS = frozenset({"failed", "misuse"})


def check_targets(targets: Iterable[str]) -> tuple[str, ...]:
    """The targets in words that mean the same to the process that carries, which has another working directory and environment.

    Raises:
        UsageError: One is no target, of a kind that nobody knows, or holds a user or password.
    """
    return tuple(dict.fromkeys(_checked(target) for target in targets))


def _checked(target: str) -> str:
    match = _TARGET.fullmatch(target)
    if match is None:
        raise UsageError(f"init() sync_to is {target!r}, expected KIND:WHERE", hint="init(sync_to='tensorboard:runs')")
    from urllib.parse import parse_qsl

    scheme, path, text = match.groups()
    options = dict(parse_qsl(text[1:], keep_blank_values=True))
    if holds_login(scheme, path + text) or any(is_secret_name(name) for name in options):
        # Why the target is not told: it holds the password.
        raise UsageError(
            f"init() sync_to of kind {scheme!r} holds a user or password, which would be stored and shown with it",
            hint="give them in the environment variables that the service's own library reads",
        )
    if scheme not in SCHEMES and scheme not in _added():
        from .reader.names import nearest

        near = nearest(scheme, SCHEMES)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"init() sync_to {target!r}: no target is called {scheme!r}.{meant} There are {', '.join(SCHEMES)}"
        )
    if scheme in DIRECTORIES and not path:
        raise UsageError(f"init() sync_to is {target!r}, expected a directory behind the colon")
    if is_elsewhere(scheme, path):
        raise UsageError(
            f"init() sync_to is {target!r}, expected a directory of this machine behind the colon",
            hint=elsewhere_hint(scheme, path),
        )
    if is_in_directory(scheme, path) or path.startswith(("./", "../", "~/")) or path in (".", ".."):
        path = _absolute(path)
    return _PINS.get(scheme, _unchanged)(scheme, path, text, options)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _unchanged(scheme: str, path: str, text: str, options: dict[str, str]) -> str:
    return f"{scheme}:{path}{text}"


def _pin_wandb(scheme: str, path: str, text: str, options: dict[str, str]) -> str:
    """Says in the target that W&B is offline, and where: the process that carries has another environment."""
    is_offline = (options.get("mode") or os.environ.get("WANDB_MODE")) in ("offline", "dryrun")
    if not is_offline and "dir" not in options:
        return _unchanged(scheme, path, text, options)
    from urllib.parse import urlencode

    directory = options.get("dir") or os.environ.get("WANDB_DIR") or os.curdir
    pinned = {**options, "dir": _absolute(directory), **({"mode": "offline"} if is_offline else {})}
    return f"{scheme}:{path}?{urlencode(sorted(pinned.items()), safe=':/')}"


def _pin_mlflow(scheme: str, path: str, text: str, options: dict[str, str]) -> str:
    """The same for `MLFLOW_TRACKING_URI`, if it holds no password, and for a data base in a file."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    path = path or ("" if holds_login(scheme, named) else named)
    if path.startswith(_SQLITE) and path[len(_SQLITE) :][:1] not in ("", "/"):
        path = _SQLITE + _absolute(path[len(_SQLITE) :])
    return _unchanged(scheme, path, text, options)


_PINS = {"wandb": _pin_wandb, "mlflow": _pin_mlflow}


def _added() -> set[str]:
    from importlib.metadata import entry_points

    return {point.name for point in entry_points(group=_GROUP)}


def begin(run: Run) -> None:
    """Leaves the jobs of a run that has just begun, or was joined. Trouble becomes a note: the run is there all the same."""
    for target in run.settings.sync_to:
        try:
            put_job(run._store, run.id, target, run.settings.sync_seconds, is_beginning=True)
        except (OSError, Error) as error:
            run._say(
                f"stepd: run {run.id!r} is not carried to {_greeting.clean(target)} while it is written: {error}. "
                f"Afterwards: {_command(run, target)}"
            )


def deliver(run: Run, deadline: float) -> list[str]:
    """Waits until the run's targets have all that is stored of it, at most until `deadline`; a line about each for the receipt.

    Args:
        deadline: Of `clock.monotonic`; when it is past, nothing is waited for.
    """
    ended = clock.monotonic()
    jobs = {target: job for target in run.settings.sync_to if (job := _put(run, target)) is not None}
    while (is_served := _is_served(run, ended)) and clock.monotonic() < deadline:
        if all(_is_settled(read_told(job), ended, deadline) for job in jobs.values()):
            break
        clock.pause(_LOOK_SECONDS)
    return [_line(run, target, jobs.get(target), ended, is_served=is_served) for target in run.settings.sync_to]


def _is_served(run: Run, ended: float) -> bool:
    """Whether a daemon is there to carry, or is about to be."""
    if _spawn.is_serving(run._store.path):
        return True
    is_late = clock.monotonic() - ended > _START_SECONDS
    return run.settings.autostart and not is_late and not _spawn.was_stopped(run._store.path)


def _put(run: Run, target: str) -> Job | None:
    try:
        return put_job(run._store, run.id, target, run.settings.sync_seconds)
    except (OSError, Error):
        return None


def _is_settled(told: Told | None, ended: float, deadline: float) -> bool:
    """Whether waiting longer would change nothing."""
    if told is None or told.began_here < ended:
        return False
    if told.state in _GOOD:
        # While other processes of the training live, what there was is there; else the end of the run is worth waiting for.
        return told.is_over or not told.has_ended or clock.monotonic() - ended > _OBSERVED_SECONDS
    return told.state in _HOPELESS or told.again_at > deadline


def _line(run: Run, target: str, job: Job | None, ended: float, *, is_served: bool) -> str:
    told = read_told(job) if job is not None else None
    shown = _greeting.clean(target)
    if told is not None and told.began_here >= ended and told.state in _GOOD:
        text = f"synced to {shown} ({_greeting.count(told.points, 'point')})"
        lost = ", ".join(f"{_greeting.clean(what)} × {count:,}" for what, count in told.lost.items())
        wrong = [f"which cannot hold: {lost}"] if lost else []
        wrong += [f"of a run that is not whole: {_greeting.clean(told.trouble)[:200]}"] if told.trouble else []
        return f"! {', '.join([text, *wrong])}" if wrong else text
    if told is not None and told.reason:
        behind = f", {_greeting.count(told.behind, 'record')}" if told.behind else ""
        return (
            f"! sync to {shown} is behind{behind}: {_greeting.clean(told.reason)[:200]}. Later: {_command(run, target)}"
        )
    if not is_served:
        return f"! not synced to {shown} yet, as no daemon runs: {_greeting.command('sync --drain', run.id, run._store.path)}"
    return f"! sync to {shown} is behind; the daemon goes on with it. Else: {_command(run, target)}"


def _command(run: Run, target: str) -> str:
    # Why the braces are doubled: the words are a format, and a target may hold some.
    quoted = shlex.quote(_greeting.clean(target)).replace("{", "{{").replace("}", "}}")
    return _greeting.command(f"sync {{run}} --to {quoted}", run.id, run._store.path)
