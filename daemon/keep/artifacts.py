"""Jobs of artifacts: what `log_artifact` took becomes a version (`sdk.artifacts.making`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from sdk import clock
from sdk._keeping import JOB_SUFFIX, jobs, keeping_path, read_job
from sdk.artifacts.format import names_path, staging_path
from sdk.artifacts.making import make
from sdk.artifacts.staging import staged_at
from sdk.errors import DamageError
from sdk.files import DISK, DRAFT_SUFFIX, Files
from sdk.location import StoreIdentity

# What a killed trainer took and never logged stays so long: it may be one that lives and has not logged it yet.
_OLD_SECONDS = 7 * 86_400.0


def work(store: StoreIdentity, body: Mapping[str, Any], is_wanted: Callable[[], bool]) -> None:
    """Makes the version; removes, on the way, what nobody will ever log."""
    make(store.path, body, is_wanted)
    with contextlib.suppress(OSError):  # the job is done
        sweep(DISK, store.path, clock.wall_ns() / 1e9)


def sweep(files: Files, store: str, now: float) -> None:
    """Removes what processes left that were killed long ago: drafts of jobs and manifests, and staging directories that are older
    than a week and that no job names.
    """
    waiting = files.entries(keeping_path(store))
    _remove_drafts(files, keeping_path(store), waiting, now)
    for name, _, _ in files.entries(names_path(store)):
        directory = os.path.join(names_path(store), name)
        _remove_drafts(files, directory, files.entries(directory), now)
    root = staging_path(store)
    old = {
        os.path.join(root, name)
        for name, _, _ in files.entries(root)
        if (made := staged_at(name)) is not None and now - made > _OLD_SECONDS
    }
    ours = jobs(store, files) if old else []
    if not old or len(ours) < sum(name.endswith(JOB_SUFFIX) for name, _, _ in waiting):
        return  # a job of another machine may name any of them
    for job in ours:
        try:
            old.discard(str(read_job(job, files).get("staging")))
        except (OSError, DamageError):
            return  # what cannot be read may, too
    for path in old:
        files.remove_tree(path)


def _remove_drafts(files: Files, directory: str, entries: list[tuple[str, int, float]], now: float) -> None:
    for name, _, modified in entries:
        if name.endswith(DRAFT_SUFFIX) and now - modified > _OLD_SECONDS:
            files.remove(os.path.join(directory, name))
