"""Files of runs that trainers left to be copied: `run.save` and `run.log_code` of what is large.

A job is ``{"run": id, "files": [{"source", "name", "size", "modified_ns"}, …]}``. Each file is copied whole or not at all, so
a job that is done again copies what is not there. A source that is gone is passed over: the run's facts tell of it, and a
reader finds that it is missing (`sdk.reader.kept`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from daemon.keep import Abandoned, Wanted
from sdk import runfiles
from sdk.errors import StoreError
from sdk.files import DISK, Files
from sdk.limits import FREE_BYTES_MIN
from sdk.location import StoreIdentity
from sdk.platform import machine_id
from sdk.segment.naming import run_path

# What a source says that will not come back; anything else may be the disk of the store.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG, 0, None)


def work(store: StoreIdentity, body: Mapping[str, Any], is_wanted: Wanted, files: Files = DISK) -> None:
    """Copies what the job names. Raises as `daemon.keep` says."""
    run_directory = run_path(store.path, str(body["run"]))
    if not files.exists(run_directory):
        return  # the run was removed
    directory = runfiles.files_path(run_directory)
    for entry in body["files"]:
        if not is_wanted():
            raise Abandoned
        _keep(directory, str(entry["source"]), str(entry["name"]), files, is_wanted)


def _keep(directory: str, source: str, name: str, files: Files, is_wanted: Wanted) -> None:
    try:
        status = files.status(source)
        path = os.path.join(directory, *runfiles.check_name(name).split("/"))
        if not status.is_regular or runfiles.is_copy(path, status.size, status.modified_ns, files):
            return
    except (OSError, ValueError):
        return
    if (
        not runfiles.can_share(source, directory)
        and files.free_bytes(os.path.dirname(directory)) < status.size + FREE_BYTES_MIN
    ):
        # Logging never takes the last bytes that a checkpoint needs.
        raise OSError(errno.ENOSPC, f"{status.size} bytes do not fit", path)
    try:
        # One keeper of a machine does a job (`sdk._keeping.claim`).
        runfiles.copy_in(source, directory, name, files, is_wanted, drafter=f"keeper of {machine_id()}")
    except InterruptedError:
        raise Abandoned from None
    except StoreError:
        return  # its own link leads out of the run's files
    except OSError as error:
        if error.errno not in _GONE or error.filename not in (source, None):
            raise
