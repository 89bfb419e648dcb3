"""Where the store is: one rule for the SDK, the reader, the daemon and the command line.

`dir=`, else STEPD_DIR (else WANDB_DIR), else the nearest `.stepd/` upwards that a user made (`stepd start --here`), else
`~/.stepd`; without a usable home, a directory under the system's temporary one, which is said.
"""

from __future__ import annotations

import errno
import json
import os
from typing import NamedTuple

from .errors import StoreError
from .files import DISK, Files, read_whole, sync_names
from .segment.naming import RUNS, STORE_FILE

DIRECTORY = ".stepd"
STORE_FORMAT = 1
_STORE_FILE_BYTES_MAX = 64 * 1024


class Location(NamedTuple):
    """A store's absolute path, and what a user should know about the choice (None: nothing)."""

    path: str
    note: str | None


class StoreIdentity(NamedTuple):
    """What `store.json` says, and whether we may write there."""

    path: str
    id: bytes
    writable: bool


def find_store(directory: str | os.PathLike[str] | None = None) -> Location:
    """The store to use; nothing is created or checked."""
    chosen = os.fspath(directory) if directory is not None else ""
    chosen = chosen or os.environ.get("STEPD_DIR") or os.environ.get("WANDB_DIR") or ""
    if chosen:
        return Location(os.path.abspath(os.path.expanduser(chosen)), None)
    here = _nearest(_working_directory())
    if here is not None:
        return Location(here, None)
    home = os.path.expanduser("~")
    if home not in ("~", "/", "") and os.access(home, os.W_OK | os.X_OK):
        return Location(os.path.join(home, DIRECTORY), None)
    import tempfile

    path = os.path.join(tempfile.gettempdir(), f"stepd-{os.getuid()}-store")
    return Location(path, f"no usable home directory: the store is {path}, which may vanish; set STEPD_DIR")


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


def _nearest(directory: str) -> str | None:
    """The `.stepd` in `directory` or above that holds a store."""
    while True:
        candidate = os.path.join(directory, DIRECTORY)
        if os.path.isfile(os.path.join(candidate, STORE_FILE)):
            return candidate
        parent = os.path.dirname(directory)
        if parent == directory:
            return None
        directory = parent


def make_store(path: str, files: Files = DISK) -> StoreIdentity:
    """Opens the store at `path` for writing, creating it if there is none. Safe when many processes do it at once.

    Raises:
        StoreError: It cannot be created or written, is someone else's, or has a newer format.
    """
    try:
        runs, name = os.path.join(path, RUNS), os.path.join(path, STORE_FILE)
        missing = _missing(files, runs)
        files.make_directory(runs)
        if not files.exists(name):
            # Invariant: who finds store.json may rely on its directory and all above it. So their names are forced first.
            sync_names(files, path, max(missing, 2))
            files.write_new(name, json.dumps({"format": STORE_FORMAT, "id": os.urandom(16).hex()}).encode())
            files.sync_directory(path)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"cannot create a store at {path!r}: {error}", hint="STEPD_DIR=/a/writable/directory"
        ) from error
    identity = read_store(path, files)
    if not identity.writable:
        raise StoreError(
            f"the store {path!r} belongs to uid {files.owner(path)[0]} or is open to others; you are uid {os.getuid()}",
            hint="STEPD_DIR=/a/directory/of/yours, or STEPD_TRUST_STORE=1 if you trust everybody who can write there",
        )
    return identity


def _missing(files: Files, directory: str) -> int:
    """How many directories would have to be made for `directory` to be there."""
    count = 0
    while not files.exists(directory) and os.path.dirname(directory) != directory:
        directory, count = os.path.dirname(directory), count + 1
    return count


def read_store(path: str, files: Files = DISK) -> StoreIdentity:
    """The identity of an existing store.

    Raises:
        StoreError: There is none at `path`, or this version cannot read it.
    """
    name = os.path.join(path, STORE_FILE)
    try:
        facts = json.loads(read_whole(files, name, _STORE_FILE_BYTES_MAX))
        number, identity = int(facts["format"]), bytes.fromhex(facts["id"])
        if len(identity) != 16:
            raise ValueError(f"id has {len(identity)} bytes, expected 16")
        writable = _may_write(files, path)
    except FileNotFoundError:
        hint = "sdk.init(), whose first run makes it; for another one STEPD_DIR=/path/of/the/store, or --dir PATH"
        raise StoreError(f"there is no store at {path!r}", hint=hint) from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreError(f"cannot read {name!r}: {error}") from error
    if number > STORE_FORMAT:
        raise StoreError(f"the store {path!r} has format {number}; this stepd reads up to {STORE_FORMAT}")
    return StoreIdentity(path, identity, writable)


def check_store(store: StoreIdentity, files: Files = DISK) -> None:
    """Makes sure that the store is still where it was; whoever writes for a long time asks before each new file.

    Why not make it again: where a file system is away for a while, its mount point is an empty directory. What is written
    there is hidden when it is back, and nobody would find it. So it is trouble like a full disk: records wait.

    Raises:
        OSError: It is not (ENOENT), or another one is in its place (ESTALE).
    """
    try:
        found = read_store(store.path, files)
    except StoreError as error:
        raise OSError(errno.ENOENT, f"the store is away: {error.message}", store.path) from error
    if found.id != store.id:
        raise OSError(errno.ESTALE, "another store is in the place of this one", store.path)


def _may_write(files: Files, path: str) -> bool:
    uid, mode = files.owner(path)
    trusted = os.environ.get("STEPD_TRUST_STORE", "") not in ("", "0")
    return trusted or (uid == os.getuid() and not mode & 0o022)
