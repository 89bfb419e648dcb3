"""The daemon: takes records from trainers, writes segments, and does everything slow in processes of its own.

What may live here: whatever runs outside the training process. It stands on `sdk` and nothing in `sdk` imports it.

The distribution python-daemon owns this import name too. So this file holds no code of ours but what forwards names that
are not ours to its `daemon.daemon`, where that is installed beside us; both packages then work.
"""

from __future__ import annotations


def __getattr__(name: str) -> object:
    import importlib

    try:
        theirs = importlib.import_module(f"{__name__}.daemon")
    except ImportError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    if name == "daemon":
        return theirs
    return getattr(theirs, name)
