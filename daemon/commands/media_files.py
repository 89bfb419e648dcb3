"""The files that `stepd export` writes beside the rows: one for each image, video, table and the like.

They are written into a directory of their own, which gets its name when the export is complete: nobody takes half an
export for a whole one, and nothing that is there is replaced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from types import TracebackType
from typing import Any

import click

from daemon.commands.service import clean
from sdk.errors import Error
from sdk.limits import NESTING_MAX
from sdk.reader import MediaItem
from sdk.reader.filenames import Names

# In a row: where a value's file lies, from the file of rows; null and "error" where it could not be written.
PATH = "path"


class MediaFiles:
    """The directory of one export. As a context: complete where the block ends well, else as if it had never been.

    Attributes:
        directory: Where the files lie afterwards.
        count, failed: How many were written, and how many could not be.
    """

    def __init__(self, output: str) -> None:
        stem = os.path.splitext(os.path.realpath(output))[0]
        self.directory = f"{stem}_media"
        self._draft = os.path.join(os.path.dirname(stem), f".stepd-export-{os.urandom(8).hex()}")
        self._names = Names()
        self.count = self.failed = 0

    def with_paths(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with its media written: each is what it says of itself, and its path.

        Raises:
            ClickException: The directory is there already.
            OSError: The disk takes no more.
        """
        return {key: self._saved(value) for key, value in row.items()}

    def _saved(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, MediaItem):
            return self._save(value)
        if depth > NESTING_MAX:  # the reader looks no deeper for media
            return value
        if type(value) is list and any(isinstance(part, (MediaItem, list, dict)) for part in value):
            return [self._saved(part, depth + 1) for part in value]
        return {key: self._saved(part, depth + 1) for key, part in value.items()} if type(value) is dict else value

    def _save(self, item: MediaItem) -> dict[str, Any]:
        if not self.count and not self.failed:
            self._begin()
        name = self._names.take(item.file_name)
        facts = {**item.as_plain(), "kind": item.kind}
        try:
            item.save(os.path.join(self._draft, name), overwrite=False)
        except Error as error:
            self.failed += 1
            return {**facts, PATH: None, "error": error.message}
        self.count += 1
        return {**facts, PATH: f"{os.path.basename(self.directory)}/{name}"}

    def _begin(self) -> None:
        if os.path.lexists(self.directory):
            raise click.ClickException(
                clean(f"the run holds media, and {self.directory!r} is there already.")
                + "\n  Try: another -o, --no-media, or remove it"
            )
        os.makedirs(self._draft)

    def __enter__(self) -> MediaFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.count:
            os.rename(self._draft, self.directory)
        else:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._draft)
