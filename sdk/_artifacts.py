"""Artifacts of a run: what it logs and uses; a part of `sdk.Run`. The files themselves are `sdk.artifacts`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from . import _greeting
from .errors import UnsupportedError
from .location import StoreIdentity
from .settings import Settings

if TYPE_CHECKING:
    from .artifacts.artifact import Artifact

_NO_REGISTRY = "there is no registry; an alias of the artifact says as much"
MODEL = "model"


class RunArtifacts:
    """The methods of a run that are about artifacts. All raise `UsageError` after `finish`."""

    settings: Settings
    _store: StoreIdentity

    @property
    def id(self) -> str:
        raise NotImplementedError

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def project(self) -> str:
        raise NotImplementedError

    def _emit(self, facts: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _require_running(self, what: str) -> None:
        raise NotImplementedError

    def log_artifact(
        self, artifact_or_path: Artifact | str | os.PathLike[str], name: str | None = None, type: str | None = None,
        aliases: str | Iterable[str] | None = None, tags: str | Iterable[str] | None = None,
    ) -> Artifact:  # fmt: skip
        """Makes a version of an artifact, or of a file or directory. Returns at once: the daemon's keeper copies and hashes.

        Equal content as the latest version is no new one. `artifact.wait()` waits until the version is there. Small files are
        read in the call, some 50 µs for each (docs/artifacts.md#when-a-file-is-taken).

        Args:
            name: Of a path; without one ``run-<id>-<file name>``.
            aliases: Names of the version besides ``latest``.

        Raises:
            TypeError, ValueError: It is neither an artifact nor a path that is there; a name, type, alias or tag that cannot be.
            OSError: A file cannot be read. A store that takes nothing now is a note, not an error.
        """
        self._require_running("log_artifact()")
        artifact = self._artifact_of(artifact_or_path, name, type, "log_artifact()")
        if self.settings.disabled or not self._store.path:
            return artifact
        about = {"run": self.id, "run_name": self.name, "project": self.project}
        before = artifact.id
        try:
            job = artifact._log(self._store, about, aliases, tags)
        except OSError as error:
            # Operating trouble must not end a training; `wait` says that it was never logged.
            _greeting.note_once(
                f"log_artifact {artifact.collection}", f"artifact {artifact.collection!r} is lost: {error}"
            )
            return artifact
        if job != before:
            fact = {"how": "logged", "name": artifact.collection, "type": artifact.type, "job": job}
            self._emit({"artifact": {job: fact}})
        return artifact

    def _artifact_of(self, given: Any, name: str | None, type: str | None, what: str) -> Artifact:
        from .artifacts.artifact import Artifact

        if isinstance(given, Artifact):
            return given
        if not isinstance(given, (str, os.PathLike)):
            raise TypeError(
                f"{what} is given {given.__class__.__name__}, expected an Artifact or the path of a file or directory"
            )
        text = os.fspath(given)
        path = text[len("file://") :] if isinstance(text, str) and text.startswith("file://") else text
        artifact = Artifact(
            name or _plain_name(f"run-{self.id}-{os.path.basename(os.path.abspath(path))}"), type or "unspecified"
        )
        if "://" in path:
            artifact.add_reference(path)
        elif os.path.isdir(path):
            artifact.add_dir(path)
        elif os.path.isfile(path):
            artifact.add_file(path)
        else:
            raise ValueError(f"{what} is given {path!r}, and there is no such file or directory")
        return artifact

    def upsert_artifact(
        self, artifact_or_path: Any, name: str | None = None, type: str | None = None, aliases: Any = None,
        distributed_id: str | None = None,
    ) -> Artifact:  # fmt: skip
        """As `log_artifact`. Each call makes a version of its own: parts of several processes are not joined.

        Raises:
            UnsupportedError: With `distributed_id`, which asks for that.
        """
        if distributed_id is not None:
            raise UnsupportedError(
                "upsert_artifact(distributed_id=…) is not supported by stepd",
                hint="log one artifact from each process, or all from one",
            )
        return self.log_artifact(artifact_or_path, name, type, aliases)

    def finish_artifact(
        self, artifact_or_path: Any, name: str | None = None, type: str | None = None, aliases: Any = None,
        distributed_id: str | None = None,
    ) -> Artifact:  # fmt: skip
        """As `upsert_artifact`."""
        return self.upsert_artifact(artifact_or_path, name, type, aliases, distributed_id)

    def use_artifact(
        self, artifact_or_name: Artifact | str, type: str | None = None, aliases: Any = None, use_as: str | None = None
    ) -> Artifact:
        """The artifact of this store that a name means (``name``, ``name:v3``, ``name:alias``), and notes that this run uses it.

        An artifact that was not logged yet is logged. What was logged under this name on this machine a moment ago, and is not
        stored yet, is waited for, at most 60 s.

        Raises:
            NotFoundError: There is none. ValueError: It is of another type.
        """
        self._require_running("use_artifact()")
        from .artifacts.artifact import Artifact
        from .artifacts.shelf import Shelf
        from .artifacts.waiting import settle_name

        if isinstance(artifact_or_name, Artifact):
            artifact = artifact_or_name
            if artifact.id is None:
                return self.log_artifact(artifact, aliases=aliases)
        elif not isinstance(artifact_or_name, str):
            raise TypeError(
                f"use_artifact() is given {artifact_or_name.__class__.__name__}, expected an Artifact or its name"
            )
        elif not self._store.path:
            return Artifact(artifact_or_name.rpartition("/")[2].partition(":")[0], type or "unspecified")
        else:
            shelf = Shelf(self._store.path)
            settle_name(self._store, artifact_or_name)
            artifact = Artifact._stored(shelf, shelf.find(artifact_or_name))
        if type is not None and artifact.type != type:
            raise ValueError(f"artifact {artifact.name!r} is of type {artifact.type!r}, expected {type!r}")
        fact: dict[str, Any] = {"how": "used", "name": artifact.collection, "type": artifact.type, "job": artifact.id}
        if not artifact.is_draft():
            fact.update(version=artifact.version, digest=artifact.digest)
        if use_as is not None:
            fact["use_as"] = str(use_as)
        self._emit({"artifact": {f"used {artifact.name}": fact}})
        return artifact

    def log_model(self, path: str | os.PathLike[str], name: str | None = None, aliases: Any = None) -> None:
        """`log_artifact` with the type "model"."""
        self._require_running("log_model()")
        self.log_artifact(path, name, MODEL, aliases)

    def use_model(self, name: str) -> str:
        """The path of a model's file, or of its directory where it has several, downloaded.

        Raises:
            NotFoundError: There is none. ValueError: It is no model.
        """
        self._require_running("use_model()")
        artifact = self.use_artifact(name)
        if MODEL not in artifact.type:
            raise ValueError(
                f"artifact {artifact.name!r} is of type {artifact.type!r}, expected one with 'model' in its name"
            )
        place = artifact.download()
        entries = artifact.files()
        return os.path.join(place, *entries[0].path.split("/")) if len(entries) == 1 else place

    def link_artifact(self, artifact: Any, target_path: str, aliases: Any = None) -> None:
        """Nothing: there is no registry."""
        _greeting.note_once("link_artifact()", f"link_artifact() does nothing here: {_NO_REGISTRY}")

    def link_model(self, path: Any, registered_model_name: str, name: str | None = None, aliases: Any = None) -> None:
        """As `log_model`; there is no registry to link it to."""
        self.log_model(path, name or registered_model_name, aliases)
        _greeting.note_once("link_model()", f"link_model() logs the model and links nothing: {_NO_REGISTRY}")


def _plain_name(text: str) -> str:
    """A name of an artifact made of any text."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in text)[:128]
