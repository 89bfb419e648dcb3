"""What the keeper does: jobs that trainers left in the store (`sdk._keeping`), one module for each kind.

A kind is a function ``work(store, body, is_wanted)``. It does the whole job and returns, or raises:

* `OSError`, `StoreError`: the disk does not take it now. The job waits and is done again from its beginning.
* `Abandoned`: `is_wanted()` became false. The same, and it is no trouble.
* anything else: the job can never be done. It is set aside and said.

It may be killed anywhere and begun again, so it must leave nothing that a second time would take for whole. What fails of the
job for good (a file that is gone) is its own business: it says so where its reader looks, and returns.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from sdk._keeping import Abandoned as Abandoned
from sdk.location import StoreIdentity

Wanted = Callable[[], bool]
Work = Callable[[StoreIdentity, Mapping[str, Any], Wanted], None]

# Kind of a job -> module of this package whose function `work` does it.
KINDS = {"artifact": "artifacts", "files": "files"}


def find_work(kind: str) -> Work:
    """What does jobs of this kind.

    Raises:
        ValueError: Nobody does; a newer version left it.
    """
    if kind not in KINDS:
        raise ValueError(f"jobs of kind {kind!r} are not known; this version does {', '.join(KINDS)}")
    work: Work = importlib.import_module(f"{__name__}.{KINDS[kind]}").work
    return work
