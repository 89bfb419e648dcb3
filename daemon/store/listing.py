"""Keeps what lists show of runs that are over, in the store's cache (`sdk.reader.listing`): the reader itself never writes.

Written by `stepd runs`, when it had to open such a run, and by the worker after a pass; of two at once the last one stays. Nothing
depends on it, so trouble is no trouble: a store of someone else's, a full disk, a file system that is gone.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable

from sdk import clock
from sdk.errors import Error
from sdk.files import DISK, Files
from sdk.location import read_store
from sdk.reader import Run, Store
from sdk.reader.listing import CACHE_FILE, NOT_YET, Cards, encode_cards, is_short


def remember(store: str, runs: Iterable[Run], files: Files = DISK, *, seconds: float = math.inf) -> bool:
    """Writes the cache if some of `runs`, which are all of the store's, are over and not in it yet; whether it did.

    Args:
        runs: As `Store.runs` gives them.
        seconds: How long values may be looked at, for whoever waits for it; what is left is done the next time.
    """
    until = clock.monotonic() + seconds
    with contextlib.suppress(OSError, ValueError, Error):
        kept: Cards = {}
        new = 0
        for run in runs:
            if run.look is None or not run.look.is_settled:
                continue
            told = card = run.card
            has_time = clock.monotonic() < until
            if card is None or (card.packed_digest == NOT_YET and has_time):
                card = run.card_if_over(digest=has_time)
                if card is None or not is_short(card):
                    continue
                new += card != told
            kept[os.path.basename(run.directory)] = (run.look.changed, run.look.signature, card)
        if new and read_store(store, files).writable:
            files.write_whole(os.path.join(store, CACHE_FILE), encode_cards(kept))
            return True
    return False


def remember_all(store: str, files: Files = DISK) -> bool:
    """Opens what is new in a store, and keeps what is over of it."""
    with contextlib.suppress(Error):
        return remember(store, Store(store, files=files).runs(), files)
    return False
