"""What a run holds beside numbers, as artifacts of an MLflow run: media, kept files, the console, the config, the summary.

Each is written whole into a temporary directory and uploaded from there; one of the same name is replaced, so sending it again
changes nothing.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from daemon.sync.passage import Passage
from daemon.sync.targets.mlflow_names import clean, digest_of, path_of
from daemon.sync.targets.mlflow_server import Server
from sdk.encoders import EncoderMissing
from sdk.errors import DamageError, NotFoundError
from sdk.reader.filenames import ending
from sdk.reader.kept import MISSING, WAITING
from sdk.reader.logs import LogLine
from sdk.reader.media import MediaItem

CONFIG, SUMMARY, NAMES, CONSOLE, ARTIFACTS = (
    "config.json", "summary.json", "names.json", "console.log", "artifacts.json",
)  # fmt: skip
LISTED, UPLOADED = "list", "upload"
_LINES_AT_A_TIME = 1000
# A part of a key that looks like the file of another key. "~" is in no name that `path_of` makes.
_LIKE_A_FILE = re.compile(r"(?:(?<=/)|^)(?=\d+_\d+\.)")


class Files:
    """Puts files into one MLflow run. `close` removes what is left of them here."""

    def __init__(self, server: Server, passage: Passage, run: str) -> None:
        self._server, self._passage, self._run = server, passage, run
        self._directory = tempfile.TemporaryDirectory(prefix="stepd-mlflow-")
        # Apart, because a copy lies below directories that may be called as another file is.
        self._copies, self._drafts = (os.path.join(self._directory.name, name) for name in ("copies", "drafts"))
        os.mkdir(self._drafts)

    def close(self) -> None:
        self._directory.cleanup()

    def put(self, name: str, data: bytes) -> None:
        """A file of a few bytes, at the top of the artifacts."""
        path = self._draft(name)
        with open(path, "wb") as file:
            file.write(data)
        self._upload(path, "")

    def media(self, item: MediaItem, lane: str) -> None:
        """A value that has bytes, as `media/<lane><key>/<step>_<index>.<format>`."""
        path = self._draft(f"{item.step}_{item.index}{ending(item.kind, item.format)}")
        try:
            item.save(path)
        except (NotFoundError, DamageError):
            self._passage.lost("media without their bytes", item.key)
            return
        except EncoderMissing as error:
            self._passage.lost("media that cannot be encoded", item.key)
            self._passage.told(str(error))
            return
        self._upload(path, f"media/{lane}{_LIKE_A_FILE.sub('~', path_of(item.key))}")

    def kept(self, seen: dict[str, str]) -> int:
        """Uploads the run's files that are new or changed, as `files/<name>`; how many are yet to be copied by the daemon.

        Args:
            seen: What was uploaded or counted; it is kept up to date.
        """
        waiting = 0
        for file in self._passage.run.files():
            stamp = f"{file.state} {file.size} {file.modified}"
            waiting += file.state == WAITING
            if file.state == WAITING or seen.get(file.name) == stamp:
                continue
            if file.state == MISSING:
                self._passage.lost("files that are not there", file.name)
            else:
                try:
                    path = file.copy_to(self._copies)
                except NotFoundError:
                    continue  # gone meanwhile: the next look says so
                self._upload_as(path, f"files/{path_of(file.name)}")
            seen[file.name] = stamp
        return waiting

    def artifacts(self, how: str, seen: dict[str, str]) -> None:
        """What the run logged: the list of its versions, and with `UPLOADED` their files too."""
        versions = self._passage.run.logged_artifacts()
        if not versions:
            return
        told = json.dumps([_described(version) for version in versions], indent=1, default=str).encode()
        if seen.get(ARTIFACTS) != (digest := digest_of(told)):
            self.put(ARTIFACTS, told)
            seen[ARTIFACTS] = digest
        for version in versions if how == UPLOADED else ():
            if version.name in seen:
                continue
            with tempfile.TemporaryDirectory(dir=self._directory.name) as directory:
                version.download(root=directory, allow_missing_references=True)
                above = version.name.replace(":", "/")
                for path in _below(directory):
                    self._upload_as(path, f"artifacts/{path_of(f'{above}/{os.path.relpath(path, directory)}')}")
            seen[version.name] = version.digest

    def console(self) -> None:
        """All that was printed and logged, by time."""
        path = self._draft(CONSOLE)
        with open(path, "w", encoding="utf-8") as file:
            for number, line in enumerate(self._passage.run.logs()):
                if number % _LINES_AT_A_TIME == 0:
                    self._passage.check()
                file.write(f"{clean(_as_text(line))}\n")
        self._upload(path, "")

    def _draft(self, name: str) -> str:
        return os.path.join(self._drafts, name)

    def _upload_as(self, path: str, name: str) -> None:
        """Under another name than it has here."""
        above, _, last = name.rpartition("/")
        there = self._draft(last)
        os.replace(path, there)
        self._upload(there, above)

    def _upload(self, path: str, directory: str) -> None:
        self._passage.check()
        size = os.path.getsize(path)
        self._server.upload(self._run, path, directory)
        self._passage.moved(0, size)
        os.unlink(path)


def _below(directory: str) -> Iterator[str]:
    for above, _, names in os.walk(directory):
        for name in sorted(names):
            yield os.path.join(above, name)


def _described(version: Any) -> dict[str, Any]:
    entries = {path: {"size": entry.size, "digest": entry.digest} for path, entry in version.manifest.entries.items()}
    return {
        "name": version.name,
        "type": version.type,
        "size": version.size,
        "digest": version.digest,
        "files": entries,
    }


def _as_text(line: LogLine) -> str:
    if line.missed:
        return f"… {line.missed} lines are missing: {line.why}"
    text = f"{line.level_name} {line.logger or ''}: {line.text}" if line.level is not None else line.text
    return "\n".join(filter(None, (text, line.error)))
