"""Jobs of artifacts: what `log_artifact` took becomes a version (`sdk.artifacts.making`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from sdk import clock
from sdk._keeping import jobs, keeping_path, read_job
from sdk.artifacts.format import staging_path
from sdk.artifacts.making import make
from sdk.artifacts.staging import staged_at
from sdk.errors import DamageError
from sdk.files import DISK, Files
from sdk.location import StoreIdentity

# What a killed trainer took and never logged stays so long: it may be one that lives and has not logged it yet.
_STAGED_SECONDS = 7 * 86_400.0


def work(store: StoreIdentity, body: Mapping[str, Any], is_wanted: Callable[[], bool]) -> None:
    """Makes the version; removes, on the way, what nobody will ever log."""
    make(store.path, body, is_wanted)
    sweep(DISK, store.path, clock.wall_ns() / 1e9)


def sweep(files: Files, store: str, now: float) -> None:
    """Removes staging directories that are older than a week and that no job names."""
    root = staging_path(store)
    old = {
        os.path.join(root, name)
        for name, _, _ in files.entries(root)
        if (made := staged_at(name)) is not None and now - made > _STAGED_SECONDS
    }
    if not old:
        return
    waiting = jobs(store, files)
    if len(waiting) < len(files.entries(keeping_path(store))):
        return  # a job of another machine, or one that was set aside, may name any of them
    for job in waiting:
        try:
            old.discard(str(read_job(job, files).get("staging")))
        except (OSError, DamageError):
            return  # what cannot be read may name any of them
    for path in old:
        files.remove_tree(path)
