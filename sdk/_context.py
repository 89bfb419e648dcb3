"""What accompanies a run, begun by `init` after the run is there: each part by itself, and none may keep a training from starting."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._run import Run

# Modules with a function `begin(run)`, in this order; each registers with `Run._at_end` what ends it.
_PARTS: tuple[str, ...] = ("_console", "_hooks", "_notebook", "_process")

# The same, for what only a program that uses it loads.
_IF_LOADED: tuple[str, ...] = ("_handler",)


def begin(run: Run) -> None:
    """Begins every part. Trouble of one becomes a note."""
    loaded = (name for name in _IF_LOADED if f"{__package__}.{name}" in sys.modules)
    _begin(run, *_PARTS, *loaded, *_carried(run))


def begin_beside(run: Run) -> None:
    """The same for a run that another process began, and that this one has joined."""
    _begin(run, "_console", *_carried(run))


def _carried(run: Run) -> tuple[str, ...]:
    """What a run that goes to targets while it is written has besides. A forked or spawned worker's is its parent's."""
    return ("_carrying",) if run.settings.sync_to and run._kind in ("main", "attach") else ()


def _begin(run: Run, *names: str) -> None:
    for name in names:
        try:
            importlib.import_module(f".{name}", __package__).begin(run)
        except Exception as error:
            run._say(f"stepd: {name[1:]} of run {run.id!r} cannot begin: {type(error).__name__}: {error}")
