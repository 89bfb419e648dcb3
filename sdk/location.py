"""Where the store is: one rule for the SDK, the reader, the daemon and the command line.

`dir=`, else STEPD_DIR (else WANDB_DIR), else the nearest `.stepd/` upwards that a user made (`stepd start --here`), else
`~/.stepd`; without a usable home, a directory under the system's temporary one, which is said.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from .errors import StoreError
from .files import DISK, Files, read_whole
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
        files.make_directory(os.path.join(path, RUNS))
        name = os.path.join(path, STORE_FILE)
        if not files.exists(name):
            text = json.dumps({"format": STORE_FORMAT, "id": os.urandom(16).hex()}).encode()
            _create_once(files, name, text)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"cannot create a store at {path!r}: {error}", hint="STEPD_DIR=/a/writable/directory"
        ) from error
    identity = read_store(path, files)
    if not identity.writable:
        raise StoreError(
            f"the store {path!r} belongs to uid {os.stat(path).st_uid} or is open to others; you are uid {os.getuid()}",
            hint="STEPD_DIR=/a/directory/of/yours, or STEPD_TRUST_STORE=1 if you trust everybody who can write there",
        )
    return identity


def _create_once(files: Files, name: str, text: bytes) -> None:
    """Writes `name` whole, unless somebody else just did: the first one wins, and nobody sees a part of it."""
    draft = f"{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    files.write_whole(draft, text)
    try:
        os.link(draft, name)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        files.rename(draft, name)
        return
    files.remove(draft)


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
    except FileNotFoundError:
        raise StoreError(f"there is no store at {path!r}", hint="STEPD_DIR=/path/of/the/store, or --dir PATH") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreError(f"cannot read {name!r}: {error}") from error
    if number > STORE_FORMAT:
        raise StoreError(f"the store {path!r} has format {number}; this stepd reads up to {STORE_FORMAT}")
    return StoreIdentity(path, identity, _may_write(path))


def _may_write(path: str) -> bool:
    status = os.stat(path)
    trusted = os.environ.get("STEPD_TRUST_STORE", "") not in ("", "0")
    return trusted or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
