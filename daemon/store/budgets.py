"""The budgets that a user gave to this store's daemon, kept for the next one: `budgets.json` in the store.

Written when `stepd start` or `restart` names budgets. Whoever starts a daemon later, a sender after a crash too, need not
know of them; what its environment says counts more. A value that cannot be is left out, as one that a newer version means.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping

from sdk.budget import Budget
from sdk.errors import StoreError
from sdk.files import Files, read_whole

BUDGETS_FILE = "budgets.json"
_BYTES_MAX = 4096


def read_budgets(files: Files, store: str) -> dict[str, int]:
    """Those that were given; none where the file cannot be read."""
    with contextlib.suppress(OSError, StoreError, ValueError, RecursionError):
        found = json.loads(read_whole(files, os.path.join(store, BUDGETS_FILE), _BYTES_MAX))
        if isinstance(found, dict):
            return {name: found[name] for name in Budget._fields if type(found.get(name)) is int and found[name] >= 0}
    return {}


def keep_budgets(files: Files, store: str, budgets: Mapping[str, int]) -> None:
    """Adds budgets to those that are kept.

    Raises:
        OSError: They are not kept.
    """
    kept = {**read_budgets(files, store), **budgets}
    files.write_whole(os.path.join(store, BUDGETS_FILE), json.dumps(kept).encode())
