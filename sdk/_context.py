"""What accompanies a run, begun by `init` after the run is there: each part by itself, and none may keep a training from starting."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._run import Run

# Modules with a function `begin(run)`, in this order; each registers with `Run._at_end` what ends it.
_PARTS: tuple[str, ...] = ()


def begin(run: Run) -> None:
    """Begins every part. Trouble of one becomes a note."""
    for name in _PARTS:
        try:
            importlib.import_module(f".{name}", __package__).begin(run)
        except Exception as error:
            run._say(f"stepd: {name[1:]} of run {run.id!r} cannot begin: {type(error).__name__}: {error}")
