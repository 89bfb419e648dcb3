"""What a run says of itself: identity, names, places, mode; a part of `sdk.Run`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ._config import Config, StaticConfig
from .files import DISK
from .location import StoreIdentity
from .segment.naming import run_path
from .settings import Settings


class RunStatus(dict[str, Any]):
    """What `run.status()` gives; W&B's three fields, of which nothing ever waits here."""

    sync_items_total = 0
    sync_items_pending = 0
    sync_time = None


class RunAbout:
    """The properties of a run. Those that may be set are stored as facts."""

    config: Config
    settings: Settings
    _about: dict[str, Any]
    _files: str | None
    _store: StoreIdentity

    def _emit(self, facts: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _say(self, text: str) -> None:
        raise NotImplementedError

    @property
    def id(self) -> str:
        """Unique in the store."""
        return str(self._about["id"])

    @property
    def name(self) -> str:
        """The name for people; may be set."""
        return str(self._about.get("name") or self.id)

    @name.setter
    def name(self, value: str) -> None:
        self._set_fact("name", str(value))

    @property
    def notes(self) -> str:
        """A longer text; may be set."""
        return str(self._about.get("notes") or "")

    @notes.setter
    def notes(self, value: str | None) -> None:
        self._set_fact("notes", None if value is None else str(value))

    @property
    def tags(self) -> tuple[str, ...]:
        """Words to find the run by; may be set, for instance ``run.tags += ("final",)``. A tag that cannot be is left
        out with a note.
        """
        return tuple(self._about.get("tags") or ())

    @tags.setter
    def tags(self, value: str | Iterable[str]) -> None:
        kept: list[str] = []
        for tag in [value] if isinstance(value, str) else value or ():
            try:
                kept.extend(Settings(tags=(tag,)).tags)
            except ValueError as error:
                self._say(f"stepd: {error}")
        self._set_fact("tags", list(dict.fromkeys(kept)))

    def _set_fact(self, key: str, value: Any) -> None:
        self._emit({"run": {key: value}})
        self._about[key] = value

    @property
    def group(self) -> str:
        return str(self._about.get("group") or "")

    @property
    def job_type(self) -> str:
        return str(self._about.get("job_type") or "")

    @property
    def project(self) -> str:
        return str(self._about.get("project") or "")

    @property
    def path(self) -> str:
        """``project/id``, what `sdk.Api().run` takes."""
        return f"{self.project}/{self.id}"

    @property
    def dir(self) -> str:
        """A directory for the user's own files of this run, made when first asked for."""
        if self._files is None:
            wanted = os.path.join(self.sync_dir, "files") if self._store.path else ""
            try:
                if wanted:
                    DISK.make_directory(wanted)
            except OSError as error:
                self._say(f"stepd: cannot make {wanted}: {error}; run.dir is a temporary directory")
                wanted = ""
            if not wanted:
                import tempfile

                wanted = tempfile.mkdtemp(prefix="stepd-files-")
            self._files = wanted
        return self._files

    @property
    def sync_dir(self) -> str:
        """The run's directory in the store."""
        return run_path(self._store.path, self.id) if self._store.path else ""

    @property
    def config_static(self) -> StaticConfig:
        """The config now, read-only."""
        return StaticConfig(self.config.as_dict())

    @property
    def disabled(self) -> bool:
        """Whether nothing is recorded because the user said so."""
        return self.settings.disabled

    @property
    def offline(self) -> bool:
        """Whether the user asked for W&B's offline mode; stepd never needs a network."""
        return self.settings.mode in ("offline", "dryrun")

    @property
    def mode(self) -> str:
        return self.settings.mode

    @property
    def _attach_id(self) -> str:
        return self.id

    def project_name(self) -> str:
        """As `project`."""
        return self.project

    def status(self) -> RunStatus:
        """Nothing waits to be uploaded."""
        return RunStatus()
