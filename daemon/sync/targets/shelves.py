"""Artifacts of a run from one store into another: objects by their digests, then the manifest, then what was said later.

A version keeps its number where that is free in the target, and gets the next one where another version has it: numbers are given
by each store for itself. It is known again by the job that made it (docs/artifacts.md#format).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sdk.artifacts.format import (
    Entry,
    Head,
    check_name,
    drafts_path,
    encode_manifest,
    manifest_path,
    marks_path,
    name_path,
    object_path,
)
from sdk.artifacts.shelf import Shelf
from sdk.errors import DamageError, NotFoundError
from sdk.files import Files, sync_names
from sdk.ids import hex_u64, random_u64

_CHUNK_BYTES = 1 << 20
# The directories whose names a manifest needs to be found again: its name's, `names`, `artifacts`, the store.
_NAME_LEVELS = 4


class Shelves:
    """The artifacts of a store that is read and of one that is written.

    Attributes:
        troubles: What is wrong with versions that could not be carried.
        renumbered: "name:v3" to the number that it has in the target, where that is another.
    """

    def __init__(self, files: Files, source: str, target: str, note: Callable[[int], None]) -> None:
        self._files = files
        self._source, self._target = source, target
        self._from, self._to = Shelf(source, files), Shelf(target, files)
        self._note = note
        self.troubles: list[str] = []
        self.renumbered: dict[str, int] = {}

    def bring(self, facts: Mapping[str, Any]) -> None:
        """Writes the versions that a run's facts name, as far as the target lacks them.

        Args:
            facts: As `Run.artifacts` gives them.

        Raises:
            OSError: A disk refuses.
        """
        for head in self._named(facts.values()):
            text = f"{head.name}:{head.version}"
            try:
                number = self._number(head)
                if number is None:
                    number = self._publish(head, self._from.entries(head))
            except DamageError as error:
                self.troubles.append(f"artifact {text}: {error.message}")
                continue
            if number != head.number:
                self.renumbered[text] = number
            self._bring_marks(head, number)

    def _named(self, facts: Iterable[Any]) -> list[Head]:
        found: dict[tuple[str, int], Head] = {}
        for said in facts:
            # What is not there yet waits for the keeper, what was removed is nobody's: neither is a loss.
            with contextlib.suppress(TypeError, ValueError, AttributeError, NotFoundError, DamageError):
                name = check_name(said.get("name"))
                version, job = said.get("version"), said.get("job")
                head = self._from.find(f"{name}:{version}") if version else self._from.by_job(name, str(job))
                if head is not None:
                    # As the manifest says it: what was said later comes with the marks.
                    found[head.name, head.number] = self._from.head(head.name, head.number)
        return list(found.values())

    def _number(self, head: Head) -> int | None:
        """The number that the target has given to a version; None: it has it not."""
        numbers = self._to.numbers(head.name)
        for number in sorted(numbers, key=lambda number: number != head.number):
            with contextlib.suppress(DamageError):
                there = self._to.head(head.name, number)
                if (there.job, there.digest) == (head.job, head.digest):
                    return number
        return None

    def _publish(self, head: Head, entries: list[Entry]) -> int:
        for entry in entries:
            if entry.is_read and not entry.reference:
                self._bring_object(entry)
        self._files.make_directory(marks_path(self._target, head.name))
        number = head.number
        while not self._files.write_new(
            manifest_path(self._target, head.name, number), encode_manifest(head._replace(number=number), entries)
        ):
            number = max(self._to.numbers(head.name)) + 1
        sync_names(self._files, name_path(self._target, head.name), _NAME_LEVELS)
        return number

    def _bring_object(self, entry: Entry) -> None:
        """Copies the bytes of a digest, and compares them with it.

        Raises:
            DamageError: They are others, or not there.
        """
        path = object_path(self._target, entry.digest)
        if not self._files.exists(path):
            self._files.make_directory(drafts_path(self._target))
            draft = os.path.join(drafts_path(self._target), f"sync-{hex_u64(random_u64())}")
            try:
                self._copy(entry, draft)
                self._files.make_directory(os.path.dirname(path))
                self._files.rename(draft, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._files.remove(draft)
                raise
        # Also where it was there: whoever made it may not have forced its name.
        sync_names(self._files, os.path.dirname(path), _NAME_LEVELS)

    def _copy(self, entry: Entry, draft: str) -> None:
        digest = hashlib.sha256()
        try:
            source = self._files.open(object_path(self._source, entry.digest))
        except FileNotFoundError:
            raise DamageError(f"the bytes of {entry.path!r} are not in the store") from None
        try:
            made = self._files.create(draft)
            try:
                while data := source.read(made.size, _CHUNK_BYTES):
                    digest.update(data)
                    made.append([data])
                    self._note(len(data))
                made.sync()
            finally:
                made.close()
        finally:
            source.close()
        if digest.hexdigest() != entry.digest:
            raise DamageError(f"the bytes of {entry.path!r} are not those that were stored: their SHA-256 differs")

    def _bring_marks(self, head: Head, number: int) -> None:
        directory = marks_path(self._target, head.name)
        was_new = False
        for file, mark in self._from.mark_files(head.name):
            path = os.path.join(directory, file)
            if mark.number == head.number and not self._files.exists(path):
                said = {**mark.said, "number": number}
                self._files.make_directory(directory)
                was_new |= self._files.write_new(path, json.dumps(said, separators=(",", ":")).encode("ascii"))
        if was_new:
            sync_names(self._files, directory, _NAME_LEVELS + 1)
