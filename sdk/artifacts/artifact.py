"""`Artifact`: what users build, log, find again and download."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sys
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from .. import clock
from .._keeping import put_job
from ..errors import (
    ArtifactFinalizedError,
    ArtifactNotLoggedError,
    DamageError,
    Error,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from ..files import DISK, sync_names
from ..ids import hex_u64, random_u64
from ..location import StoreIdentity, find_store, make_store
from ..platform import boot_id
from .building import OBJECTS_MAX, Contents
from .fetching import read_bytes
from .format import (
    HEAD_BYTES_MAX,
    LATEST,
    Entry,
    Head,
    check_aliases,
    check_name,
    check_path,
    check_tags,
    check_type,
    marks_path,
)
from .shelf import Shelf, mark_name
from .using import ArtifactFiles, ArtifactManifestEntry, Manifest
from .waiting import wait_for

if TYPE_CHECKING:
    import datetime


_TABLE = ".table.json"
_TABLE_BYTES_MAX = 1 << 30
_POLICIES = ("mutable", "immutable")


class ArtifactTTL(enum.Enum):
    """How long an artifact should live."""

    INHERIT = "inherit"


class Artifact(ArtifactFiles):
    """A named, versioned set of files: a data set, a model. Build it, hand it to `run.log_artifact`; find it again with
    `run.use_artifact` or `sdk.Api().artifact`. Not thread-safe.

    What `add_file`, `add_dir` and `new_file` are given is the artifact's as soon as they return, as far as the file system allows
    it without copying a large file (docs/artifacts.md#when-a-file-is-taken). A version never changes once it is there.

    Args:
        name: Letters, digits, ``- _ .``
        type: A word such as "dataset" or "model".
        metadata: Plain values by name.

    Attributes:
        description, metadata, aliases, tags, ttl: May be set; after it was logged, `save` stores them.

    Raises:
        TypeError, ValueError: A name, type or metadata that cannot be.
    """

    def __init__(
        self, name: str, type: str = "unspecified", description: str | None = None, metadata: Mapping[str, Any] | None = None,
        incremental: bool = False, use_as: str | None = None, storage_region: str | None = None, *args: Any, **kwargs: Any,
    ) -> None:  # fmt: skip
        self._name, self._type = check_name(name), check_type(type)
        self.description = description
        self.metadata = _plain(metadata)
        self.aliases: list[str] = []
        self.tags: list[str] = []
        self.ttl: datetime.timedelta | ArtifactTTL | None = None
        self.use_as = use_as
        self.incremental = incremental
        self._contents: Contents | None = None
        self._finalized = False
        self._job: Job | None = None
        self._head: Head | None = None
        self._shelf: Shelf | None = None
        self._listed: dict[str, ArtifactManifestEntry] | None = None

    @classmethod
    def _stored(cls, shelf: Shelf, head: Head) -> Artifact:
        """The artifact of a version that is there."""
        artifact = cls(head.name, head.type, head.description, head.metadata)
        artifact._finalized = True
        artifact._shelf = shelf
        artifact._settle(head)
        return artifact

    def _settle(self, head: Head) -> None:
        self._head = head
        self._type = head.type
        self.aliases, self.tags = list(head.aliases), list(head.tags)
        self._contents = None
        if head.ttl_seconds is not None:
            import datetime

            self.ttl = datetime.timedelta(seconds=head.ttl_seconds)

    # -- what it is --------------------------------------------------------------------------------------------------

    def _known(self) -> Head | None:
        """The version it became, as soon as it is there."""
        if self._head is None and self._job is not None and self._job.is_done():
            head = Shelf(self._job.store.path).by_job(self._name, self._job.id)
            if head is not None:
                self._shelf = Shelf(self._job.store.path)
                self._settle(head)
        return self._head

    def _require(self, what: str) -> tuple[Shelf, Head]:
        """Raises ArtifactNotLoggedError while there is no version."""
        head = self._known()
        if head is None or self._shelf is None:
            hint = "artifact.wait()" if self._job is not None else "run.log_artifact(artifact)"
            how = "is not stored yet" if self._job is not None else "was not logged"
            raise ArtifactNotLoggedError(f"{what}: artifact {self._name!r} {how}", hint=hint)
        return self._shelf, head

    @property
    def name(self) -> str:
        """``name``, and ``name:v3`` once the version is there."""
        head = self._known()
        return self._name if head is None else f"{head.name}:{head.version}"

    qualified_name = source_name = source_qualified_name = name

    @property
    def type(self) -> str:
        return self._type

    @property
    def version(self) -> str:
        """``v3``. Raises ArtifactNotLoggedError (an AttributeError) until it is there."""
        return self._require("version")[1].version

    source_version = version

    @property
    def collection(self) -> str:
        """The name without a version."""
        return self._name

    source_collection = collection

    @property
    def state(self) -> str:
        """Either "PENDING" or, once the version is there, "COMMITTED"."""
        return "PENDING" if self._known() is None else "COMMITTED"

    @property
    def id(self) -> str | None:
        """What names it in this store once it was logged."""
        head = self._known()
        return head.job if head is not None else self._job.id if self._job is not None else None

    @property
    def digest(self) -> str:
        """Equal for equal content; "" until the version is there."""
        head = self._known()
        return head.digest if head is not None else ""

    commit_hash = digest

    @property
    def size(self) -> int:
        """Bytes of all files together, those of references included as far as they are known."""
        head = self._known()
        return head.size if head is not None else sum(entry.size or 0 for entry in self.manifest.entries.values())

    @property
    def file_count(self) -> int:
        return len(self.manifest.entries)

    @property
    def created_at(self) -> str:
        """ISO 8601, UTC."""
        import datetime

        seconds = self._require("created_at")[1].created_ns / 1e9
        return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds")

    updated_at = created_at

    @property
    def project(self) -> str:
        """The project of the run that logged it; "" if none did."""
        head = self._known()
        return head.project if head is not None else ""

    source_project = project
    entity = source_entity = ""
    url: str | None = None
    is_link = False
    linked_artifacts: tuple[Any, ...] = ()

    def is_draft(self) -> bool:
        """Whether there is no version of it yet."""
        return self._known() is None

    @property
    def manifest(self) -> Manifest:
        """Its files: `.entries`, by path."""
        head = self._known()
        if head is None or self._shelf is None:
            given = self._contents.entries if self._contents is not None else {}
            drafts = [Entry(path, "", one.get("size"), one.get("reference", "")) for path, one in given.items()]
            return Manifest({entry.path: ArtifactManifestEntry(self, entry) for entry in drafts})
        if self._listed is None:
            found = self._shelf.entries(head)
            self._listed = {entry.path: ArtifactManifestEntry(self, entry) for entry in found}
        return Manifest(dict(self._listed))

    def __repr__(self) -> str:
        return f"<Artifact {self.name!r} of type {self.type!r}, {self.state.lower()}>"

    # -- building ----------------------------------------------------------------------------------------------------

    def _building(self, what: str) -> Contents:
        if self._finalized:
            raise ArtifactFinalizedError(
                f"{what}: artifact {self.name!r} is finalized",
                hint="artifact.new_draft(), or a new Artifact of this name",
            )
        if self._contents is None:
            self._contents = Contents(_staging_store())
        return self._contents

    def add_file(
        self, local_path: str | os.PathLike[str], name: str | None = None, is_tmp: bool = False, skip_cache: Any = None,
        policy: str | None = "mutable", overwrite: bool = False,
    ) -> ArtifactManifestEntry:  # fmt: skip
        """Adds a file; under its own name without one.

        Takes some 50 µs, and a millisecond for each MiB of a file up to 1 MiB; a larger one is cloned, linked, or read by the
        keeper from where it lies. `policy`, `is_tmp` and `skip_cache` change nothing.

        Raises:
            ValueError: It is no file, or another one has the name already and `overwrite` is not set. OSError: It cannot be read.
            ArtifactFinalizedError: It was logged.
        """
        _check_policy(policy)
        source = os.fspath(local_path)
        entry = self._building("add_file()").add_file(source, name or os.path.basename(source), overwrite)
        return self._shown(entry)

    def add_dir(
        self, local_path: str | os.PathLike[str], name: str | None = None, skip_cache: Any = None,
        policy: str | None = "mutable", merge: bool = False,
    ) -> None:  # fmt: skip
        """Adds all files below a directory, at the top of the artifact or below `name`; all or, with an error, none.

        Raises:
            ValueError: It is no directory, or other files have the names and `merge` is not set. OSError: One cannot be read.
        """
        _check_policy(policy)
        self._building("add_dir()").add_tree(os.fspath(local_path), name, merge)

    def add_reference(
        self,
        uri: str | ArtifactManifestEntry,
        name: str | None = None,
        checksum: bool = True,
        max_objects: int | None = None,
    ) -> list[ArtifactManifestEntry]:
        """Notes where something is instead of storing it: a local path or ``file://`` URI (of a directory, each file), with size
        and, unless `checksum` is off, digest, which the keeper reads; anything else (``s3://…``) as it is given, and nothing is
        fetched.

        Raises:
            ValueError: There is no such path, or more than `max_objects` files.
        """
        given = uri.ref_target() if isinstance(uri, ArtifactManifestEntry) else os.fspath(uri)
        limit = OBJECTS_MAX if max_objects is None else max_objects
        return [
            self._shown(one) for one in self._building("add_reference()").add_reference(given, name, checksum, limit)
        ]

    def new_file(
        self, name: str, mode: str = "x", encoding: str | None = None
    ) -> contextlib.AbstractContextManager[IO[Any]]:
        """A context manager that gives a file to write into; it is added when the block ends without an error.

        Raises:
            ValueError: There is a file of this name.
        """
        return self._building("new_file()").new_file(name, mode, encoding)

    def add(self, obj: Any, name: str, overwrite: bool = False) -> ArtifactManifestEntry:
        """Adds a `Table` of plain cells, as JSON in ``<name>.table.json``.

        Raises:
            UnsupportedError: Anything else.
        """
        contents = self._building("add()")
        if type(obj).__name__ in ("Table", "EvalTable"):
            with contextlib.suppress(TypeError, ValueError):
                data = json.dumps({"columns": list(obj.columns), "data": obj.data}).encode()
                path = check_path(name if name.endswith(_TABLE) else name + _TABLE)
                if overwrite and path in contents.entries:
                    contents.remove(path)
                return self._shown(contents.add_bytes(data, path))
        raise UnsupportedError(
            f"Artifact.add() takes tables of plain cells, not {type(obj).__name__}",
            hint="run.log({'name': value}), or write it to a file and artifact.add_file(path)",
        )

    def __setitem__(self, name: str, item: Any) -> None:
        self.add(item, name)

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    def get(self, name: str) -> Any:
        """The `Table` that was added as `name`, or None."""
        from ..values.table import Table

        shelf, head = self._require("get()")
        for entry in shelf.entries(head):
            if entry.path == (name if name.endswith(_TABLE) else name + _TABLE):
                found = json.loads(read_bytes(shelf.store, entry, _TABLE_BYTES_MAX))
                return Table(columns=found["columns"], data=found["data"])
        return None

    def remove(self, item: str | os.PathLike[str] | ArtifactManifestEntry) -> None:
        """Takes a file, or all below a directory, out again. Raises FileNotFoundError if there is neither."""
        path = item.path if isinstance(item, ArtifactManifestEntry) else os.fspath(item)
        self._building("remove()").remove(path)

    def _shown(self, entry: Mapping[str, Any]) -> ArtifactManifestEntry:
        return ArtifactManifestEntry(
            self, Entry(entry["path"], "", entry.get("size"), str(entry.get("reference") or ""))
        )

    def finalize(self) -> None:
        """Nothing can be added any more."""
        self._finalized = True

    def new_draft(self) -> Artifact:
        """A new artifact of this name that holds the same files."""
        shelf, head = self._require("new_draft()")
        draft = Artifact(head.name, head.type, self.description, self.metadata)
        contents = draft._building("new_draft()")
        for entry in shelf.entries(head):
            if entry.reference:
                contents.add_reference(entry.reference, entry.path, checksum=True, max_objects=OBJECTS_MAX)
            elif entry.is_there:
                taken = {"how": "object", "digest": entry.digest, "size": entry.size, "path": entry.path}
                contents.entries[entry.path] = taken
        return draft

    # -- logging -----------------------------------------------------------------------------------------------------

    def _log(self, store: StoreIdentity, about: Mapping[str, str], aliases: Any, tags: Any) -> str:
        """Leaves the job and returns its id. A second time it only adds aliases and tags.

        Raises:
            OSError: The store takes no file now.
        """
        added, added_tags = check_aliases(aliases), check_tags(tags)
        if self._job is not None or self._head is not None:
            self.aliases += [alias for alias in added if alias not in self.aliases]
            self.tags += [tag for tag in added_tags if tag not in self.tags]
            if self._known() is not None:
                self.save()
            return self.id or ""
        contents = self._building("log_artifact()") if not self._finalized else self._contents or Contents("")
        self.aliases = check_aliases([*self.aliases, *added])
        self.tags = check_tags([*self.tags, *added_tags])
        job = hex_u64(random_u64())
        body = {
            "format": 1, "id": job, "created_ns": clock.wall_ns(), "name": self._name, "type": self._type,
            "description": self.description, "metadata": _plain(self.metadata), "aliases": self.aliases, "tags": self.tags,
            "ttl_seconds": _seconds(self.ttl), **about, "boot_id": boot_id(), "staging": contents.flush(), "files": contents.job_files(),
        }  # fmt: skip
        _check_head({**body, "files": None})
        path = put_job(store, "artifact", body)
        contents.hand_over()
        self._finalized = True
        self._job = Job(job, path, store)
        return job

    def wait(self, timeout: float | None = None) -> Artifact:
        """Waits until the version is there, and makes it itself where no daemon does; returns the artifact.

        Raises:
            WaitTimeoutError: It was not within `timeout` seconds (None: as long as it takes). Error: It cannot be stored.
            ArtifactNotLoggedError: It was never logged.
        """
        if self._known() is None:
            if self._job is None:
                if _staging_store() == "":  # a run that records nothing
                    return self
                self._require("wait()")
            assert self._job is not None
            wait_for(self._job.store, self._name, self._job.path, lambda: self._known() is not None, timeout)
        return self

    def save(self, project: str | None = None, settings: Any = None) -> None:
        """Stores what was changed of description, metadata, aliases, tags and ttl; logs a draft to the current run.

        Raises:
            ArtifactNotLoggedError: It was logged and is not stored yet. Error: There is no run to log a draft to.
        """
        if self._job is None and self._head is None:
            run = _package().get("run")
            if run is None:
                raise Error("save() of a draft needs a run", hint="run = sdk.init(); run.log_artifact(artifact)")
            run.log_artifact(self)
            return
        _, head = self._require("save()")
        held, wanted = set(head.aliases) - {LATEST}, check_aliases(self.aliases)
        tags = check_tags(self.tags)
        said: dict[str, Any] = {
            "add": [alias for alias in wanted if alias not in held], "remove": sorted(held.difference(wanted)),
            "add_tags": [tag for tag in tags if tag not in head.tags], "remove_tags": sorted(set(head.tags).difference(tags)),
        }  # fmt: skip
        said = {key: value for key, value in said.items() if value}
        if self.description != head.description:
            said["description"] = self.description
        if self.metadata != head.metadata:
            said["metadata"] = _plain(self.metadata)
        if _seconds(self.ttl) != head.ttl_seconds:
            said["ttl_seconds"] = _seconds(self.ttl)
        _check_head(said)
        if said:
            self._say_of_it(said)

    def _say_of_it(self, said: Mapping[str, Any]) -> None:
        """Writes a mark."""
        shelf, head = self._require("save()")
        directory = marks_path(shelf.store, head.name)
        text = json.dumps({"number": head.number, **said}, separators=(",", ":")).encode("ascii")
        DISK.make_directory(directory)
        DISK.write_new(os.path.join(directory, mark_name(clock.wall_ns())), text)
        sync_names(DISK, directory, 2)
        for found in shelf.versions(head.name):
            if found.number == head.number:
                self._head = found

    def delete(self, delete_aliases: bool = False) -> None:
        """Removes the version from all lists; its number is not given again, and bytes that others share stay.

        Raises:
            ValueError: It has aliases and `delete_aliases` is not set.
        """
        _, head = self._require("delete()")
        held = set(head.aliases) - {LATEST}
        if held and not delete_aliases:
            raise ValueError(
                f"{self.name!r} has the aliases {sorted(held)}; delete(delete_aliases=True) removes it all the same"
            )
        self._say_of_it({"removed": True})

    def link(self, target_path: str, aliases: Any = None) -> None:
        """Nothing: there is no registry."""

    def unlink(self) -> None:
        """Nothing."""

    def json_encode(self) -> dict[str, Any]:
        """Name and type as plain values."""
        return {"name": self.name, "type": self.type, "version": self.version, "digest": self.digest}


class Job(NamedTuple):
    """What was left for the keeper."""

    id: str
    path: str
    store: StoreIdentity

    def is_done(self) -> bool:
        return not DISK.exists(self.path)


def _package() -> dict[str, Any]:
    return sys.modules[__name__.partition(".")[0]].__dict__


def _staging_store() -> str:
    """Where files are taken to: the store of the current run, else the one that `init` would use; "" while nothing is recorded."""
    package = _package()
    run = package.get("run")
    if run is not None:
        return "" if run.disabled else str(run._store.path)
    mode = os.environ.get("STEPD_MODE") or os.environ.get("WANDB_MODE")
    state = getattr(package.get("_globals"), "state", None)
    if mode == "disabled" or getattr(state, "capture", None) is not None:
        return ""
    try:
        return make_store(find_store().path).path
    except StoreError:
        return ""


def _plain(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata as it is stored.

    Raises:
        TypeError: It is no map, or holds what is no plain value.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata is {type(metadata).__name__}, expected a dict: {metadata!r}")
    found: dict[str, Any] = json.loads(json.dumps(dict(metadata), default=_plain_value))
    return found


def _plain_value(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy, torch
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    return str(value)


def _seconds(ttl: Any) -> float | None:
    if ttl is None or ttl is ArtifactTTL.INHERIT:
        return None
    if not hasattr(ttl, "total_seconds") or ttl.total_seconds() <= 0:
        raise ValueError(f"ttl is {ttl!r}, expected a positive datetime.timedelta, ArtifactTTL.INHERIT or None")
    return float(ttl.total_seconds())


def _check_head(said: Mapping[str, Any]) -> None:
    """Raises ValueError for more than a reader would look at."""
    size = len(json.dumps(said))
    if size > HEAD_BYTES_MAX // 2:
        raise ValueError(
            f"description, metadata, aliases and tags of an artifact have {size} bytes, at most {HEAD_BYTES_MAX // 2}; "
            "put what is larger into a file of it"
        )


def _check_policy(policy: str | None) -> None:
    if policy not in (*_POLICIES, None):
        raise ValueError(f"policy is {policy!r}, expected 'mutable' or 'immutable'")


def artifacts_of(store: str, facts: Mapping[str, Any], how: str) -> list[Artifact]:
    """The versions that a run's facts name ("logged" or "used"), as far as they are there; each once."""
    shelf, found = Shelf(store), dict[tuple[str, int], Artifact]()
    for said in facts.values():
        if not isinstance(said, dict) or said.get("how") != how:
            continue
        with contextlib.suppress(TypeError, ValueError, NotFoundError, DamageError, OSError):
            name = check_name(said.get("name"))
            version, job = said.get("version"), said.get("job")
            head = shelf.find(f"{name}:{version}") if isinstance(version, str) else shelf.by_job(name, str(job))
            if head is not None:
                found.setdefault((name, head.number), Artifact._stored(shelf, head))
    return list(found.values())
