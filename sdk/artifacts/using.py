"""The files of an artifact, as users see them: single ones, and what is done with all of a version."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import StoreError, UnsupportedError
from ..files import DISK
from .building import Contents, walk
from .fetching import bytes_path, digest_of, fetch, local_path
from .format import Entry, Head
from .shelf import Shelf

if TYPE_CHECKING:
    from ..reader.run import Run


class ArtifactManifestEntry:
    """One file of an artifact.

    Attributes:
        path: Its name in the artifact. digest: SHA-256 of its bytes, "" before the version is there. size: In bytes, or None.
        ref: The URI of a reference, else None. trouble: What is wrong with it, "" for nothing.
    """

    def __init__(self, artifact: ArtifactFiles, entry: Entry) -> None:
        self._artifact = artifact
        self._entry = entry
        self.path, self.digest, self.size, _, self.trouble = entry
        self.ref = entry.reference or None

    @property
    def name(self) -> str:
        return self.path

    @property
    def local_path(self) -> str | None:
        """The file that a reference to this machine names."""
        return local_path(self.ref) if self.ref else None

    def parent_artifact(self) -> Any:
        """The artifact it is of."""
        return self._artifact

    def ref_target(self) -> str:
        """What it refers to. Raises ValueError for a file that is in the store."""
        if self.ref is None:
            raise ValueError(f"{self.path!r} is no reference; its bytes are in the store")
        return self.ref

    def download(self, root: str | None = None, skip_cache: Any = None, executor: Any = None) -> str:
        """Puts the file below `root` (as `Artifact.download`) and returns its path."""
        store, root = self._artifact._place(root, f"downloading {self.path!r}")
        return fetch(store, self._entry, root)

    def __repr__(self) -> str:
        return f"<ArtifactManifestEntry {self.path!r}, {self.size} bytes{', ' + self.trouble if self.trouble else ''}>"


class Manifest(NamedTuple):
    """The files of an artifact, by path."""

    entries: dict[str, ArtifactManifestEntry]


class ArtifactFiles:
    """What can be done with the files of a version; a part of `Artifact`."""

    _contents: Contents | None

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def manifest(self) -> Manifest:
        raise NotImplementedError

    def _require(self, what: str) -> tuple[Shelf, Head]:
        raise NotImplementedError

    def _place(self, root: str | os.PathLike[str] | None, what: str) -> tuple[str, str]:
        """(store, directory to put files into)."""
        shelf, head = self._require(what)
        if root is not None:
            return shelf.store, os.path.abspath(os.fspath(root))
        base = os.environ.get("STEPD_ARTIFACT_DIR") or os.environ.get("WANDB_ARTIFACT_DIR") or "artifacts"
        return shelf.store, os.path.abspath(os.path.join(os.path.expanduser(base), f"{head.name}:{head.version}"))

    def download(
        self, root: str | os.PathLike[str] | None = None, allow_missing_references: bool = False, skip_cache: Any = None,
        path_prefix: str | os.PathLike[str] | None = None, multipart: Any = None,
    ) -> str:  # fmt: skip
        """Copies the files into a directory (default ``./artifacts/<name>:<version>``, or below `STEPD_ARTIFACT_DIR`) and returns
        its path. Each is checked against its digest; what is there and right is not copied again.

        Args:
            allow_missing_references: Leave out references whose file is gone or elsewhere.
            path_prefix: Only files whose path begins with it.

        Raises:
            ArtifactNotLoggedError: There is no version yet. FileNotFoundError, UnsupportedError: A reference that cannot be had.
            ValueError: A reference whose file was changed. DamageError: Bytes in the store are damaged.
        """
        store, place = self._place(root, "download()")
        prefix = os.fspath(path_prefix) if path_prefix is not None else ""
        DISK.make_directory(place)
        chosen = [shown for path, shown in self.manifest.entries.items() if path.startswith(prefix)]
        for shown in chosen:
            if shown.ref and not allow_missing_references:
                bytes_path(store, shown._entry)  # before anything is copied
        for shown in chosen:
            try:
                fetch(store, shown._entry, place)
            except (FileNotFoundError, UnsupportedError):
                if not (allow_missing_references and shown.ref):
                    raise
        return place

    def checkout(self, root: str | None = None) -> str:
        """As `download`, and removes what else is below `root`."""
        _, place = self._place(root, "checkout()")
        if os.path.isdir(place):
            for path, file in walk(place):
                if path not in self.manifest.entries:
                    os.unlink(os.path.join(place, path) if os.path.islink(os.path.join(place, path)) else file)
        return self.download(place)

    def verify(self, root: str | None = None) -> None:
        """Compares a directory with the artifact. Raises ValueError for a file that is missing, changed, or too many."""
        _, place = self._place(root, "verify()")
        entries = self.manifest.entries
        for path, _ in walk(place):
            if path not in entries:
                raise ValueError(f"{place!r} holds {path!r}, which is not in {self.name!r}")
        for path, entry in entries.items():
            if entry.ref is not None and not os.path.lexists(os.path.join(place, path)):
                continue
            try:
                found = digest_of(os.path.join(place, path))
            except OSError as error:
                raise ValueError(f"{path!r} of {self.name!r} cannot be read: {error}") from error
            if found != entry.digest:
                raise ValueError(f"{path!r} of {self.name!r} has digest {found}, expected {entry.digest}")

    def file(self, root: str | None = None) -> str:
        """Downloads the only file and returns its path. Raises ValueError if there is more than one."""
        self._require("file()")
        entries = list(self.manifest.entries.values())
        if len(entries) != 1:
            raise ValueError(f"{self.name!r} has {len(entries)} files; file() is for one. Try: download()")
        return entries[0].download(root)

    def files(self, names: Iterable[str] | None = None, per_page: int = 50) -> list[ArtifactManifestEntry]:
        """Its files, or those of these names."""
        self._require("files()")
        chosen = None if names is None else set(names)
        return [entry for path, entry in self.manifest.entries.items() if chosen is None or path in chosen]

    def get_entry(self, name: str | os.PathLike[str]) -> ArtifactManifestEntry:
        """One file. Raises KeyError if there is none of this name."""
        self._require("get_entry()")
        entry = self.manifest.entries.get(os.fspath(name))
        if entry is None:
            raise KeyError(f"{self.name!r} has no file {os.fspath(name)!r}")
        return entry

    get_path = get_entry

    def get_added_local_path_name(self, local_path: str) -> str | None:
        """Under which name a file was added to this object; None: it was not."""
        wanted = os.path.realpath(local_path)
        for path, entry in (self._contents.entries if self._contents is not None else {}).items():
            if wanted in (entry.get("source"), entry.get("from")):
                return path
        return None

    def logged_by(self) -> Run | None:
        """The run that logged it, as the reader gives it; None if it is gone."""
        from ..reader import open_store

        shelf, head = self._require("logged_by()")
        try:
            return open_store(shelf.store).run(head.run) if head.run else None
        except StoreError:
            return None

    def used_by(self) -> list[Run]:
        """The runs of the store that said `use_artifact` of it. Looks at all runs."""
        from ..reader import open_store

        shelf, head = self._require("used_by()")
        fact = {"how": "used", "name": head.name, "version": head.version}
        return [
            run
            for run in open_store(shelf.store).runs()
            if any(isinstance(said, dict) and fact.items() <= said.items() for said in run.artifacts.values())
        ]
