"""Finding versions: what is in a store, under which name, version and alias. Reads only, and needs no daemon.

A manifest never changes. What is said of a version later, that an alias moved or that its description is another, is a *mark*, a
small file of its own that nobody rewrites: whoever reads takes them in the order of time, and the last word counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import DamageError, NotFoundError
from ..files import DISK, Files, read_whole
from ..ids import hex_u64, random_u64, run_directory
from .format import (
    HEAD_BYTES_MAX,
    LATEST,
    MANIFEST_BYTES_MAX,
    MARK_BYTES_MAX,
    Entry,
    Head,
    check_name,
    content_digest,
    decode_entry,
    decode_head,
    manifest_path,
    marks_path,
    name_path,
    names_path,
    parse_manifest_name,
    parse_version,
    texts,
)

_MARK = re.compile(r"([0-9]{20})-[0-9a-f]{16}\.json", re.ASCII)
_HEAD_CHUNK = 16 << 10


class Mark(NamedTuple):
    """What was said of version `number` at `time_ns`: see docs/artifacts.md#marks."""

    time_ns: int
    number: int
    job: str
    said: dict[str, Any]


def mark_name(time_ns: int) -> str:
    """A name for a mark's file that nobody else takes."""
    return f"{time_ns:020d}-{hex_u64(random_u64())}.json"


class Shelf:
    """The artifacts of one store. Holds nothing open; looks at the disk at every call."""

    def __init__(self, store: str, files: Files = DISK) -> None:
        self.store = store
        self._files = files

    def names(self) -> list[str]:
        """The names that have a version, sorted."""
        found = []
        for directory, _, _ in self._files.entries(names_path(self.store)):
            with contextlib.suppress(DamageError):
                name = self._name_in(os.path.join(names_path(self.store), directory))
                if name is not None and run_directory(name) == directory:
                    found.append(name)
        return sorted(found)

    def directories(self) -> set[str]:
        """The directories of names that hold anything like a manifest, readable or not."""
        root = names_path(self.store)
        return {
            directory
            for directory, _, _ in self._files.entries(root)
            if any(
                parse_manifest_name(name) is not None
                for name, _, _ in self._files.entries(os.path.join(root, directory))
            )
        }

    def _name_in(self, path: str) -> str | None:
        """What the first manifest in a directory says that its artifact is called."""
        for name, _, _ in self._files.entries(path):
            if parse_manifest_name(name) is not None:
                try:
                    said = json.loads(self._first_line(os.path.join(path, name))).get("name")
                    return check_name(said)
                except (OSError, ValueError, TypeError, AttributeError, RecursionError):
                    continue
        return None

    def numbers(self, name: str) -> list[int]:
        """The numbers of all versions of a name, those that were removed included, ascending."""
        found = (parse_manifest_name(entry[0]) for entry in self._files.entries(name_path(self.store, name)))
        return sorted(number for number in found if number is not None)

    def head(self, name: str, number: int) -> Head:
        """What a manifest says, without the marks.

        Raises:
            DamageError: It cannot be believed. OSError: It cannot be read.
        """
        return decode_head(self._first_line(manifest_path(self.store, name, number)), name, number)

    def _first_line(self, path: str) -> bytes:
        file = self._files.open(path)
        try:
            data = b""
            while b"\n" not in data and len(data) < HEAD_BYTES_MAX:
                more = file.read(len(data), max(len(data), _HEAD_CHUNK))
                if not more:
                    break
                data += more
        finally:
            file.close()
        line, end, _ = data.partition(b"\n")
        if not end:
            raise DamageError(f"manifest {path!r} has no whole first line within {HEAD_BYTES_MAX} bytes")
        return line

    def marks(self, name: str) -> list[Mark]:
        """All marks of a name that can be read, oldest first."""
        return [mark for _, mark in self.mark_files(name)]

    def mark_files(self, name: str) -> list[tuple[str, Mark]]:
        """As `marks`, with the names of their files."""
        found = []
        for file, _, _ in self._files.entries(marks_path(self.store, name)):
            match = _MARK.fullmatch(file)
            if match is None:
                continue
            with contextlib.suppress(OSError, ValueError, RecursionError):
                said = json.loads(
                    read_whole(self._files, os.path.join(marks_path(self.store, name), file), MARK_BYTES_MAX)
                )
                if isinstance(said, dict) and type(said.get("number")) is int:
                    found.append((file, Mark(int(match[1]), said["number"], str(said.get("job") or ""), said)))
        return found

    def is_removed(self, name: str, number: int) -> bool:
        return any(mark.number == number and mark.said.get("removed") is True for mark in self.marks(name))

    def versions(self, name: str) -> list[Head]:
        """All versions that can be read and were not removed, ascending, with their aliases (`latest` among them) and all that
        was said of them later.
        """
        heads: dict[int, Head] = {}
        for number in self.numbers(name):
            with contextlib.suppress(DamageError, FileNotFoundError):
                heads[number] = self.head(name, number)
        holders: dict[str, int] = {}
        events: list[tuple[int, int, Mapping[str, Any]]] = [
            (head.created_ns, number, {"add": list(head.aliases)}) for number, head in heads.items()
        ]
        events += [(mark.time_ns, mark.number, mark.said) for mark in self.marks(name)]
        events.sort(key=lambda event: event[:2])
        for _, number, said in events:
            if number not in heads:
                continue
            holders.update((alias, number) for alias in texts(said, "add"))
            for alias in texts(said, "remove"):
                if holders.get(alias) == number:
                    del holders[alias]
            if said.get("removed") is True:
                del heads[number]
                continue
            heads[number] = _revised(heads[number], said)
        if heads:
            holders[LATEST] = max(heads)
        names: dict[int, list[str]] = {}
        for alias, number in holders.items():
            names.setdefault(number, []).append(alias)
        return [head._replace(aliases=tuple(sorted(names.get(number, ())))) for number, head in sorted(heads.items())]

    def find(self, text: str) -> Head:
        """The version that ``name``, ``name:v3``, ``name:alias`` or ``entity/project/name:alias`` means; the latest without one.

        Raises:
            NotFoundError: There is none.
            ValueError: It is no name.
        """
        name, _, alias = text.rpartition("/")[2].partition(":")
        check_name(name)
        versions = self.versions(name)
        wanted = alias or LATEST
        for head in versions:
            if wanted in head.aliases or head.number == parse_version(wanted):
                return head
        if versions:
            known = ", ".join(dict.fromkeys([*versions[-1].aliases, versions[-1].version, versions[0].version]))
            raise NotFoundError(
                f"artifact {name!r} has no version or alias {wanted!r}; it has {len(versions)} versions: {known}",
                hint=f"stepd artifacts {name}",
            )
        import difflib

        near = difflib.get_close_matches(name, self.names(), 3)
        told = f"; nearest: {', '.join(near)}" if near else ""
        raise NotFoundError(
            f"there is no artifact {name!r} in {self.store!r}{told}",
            hint=f"stepd artifacts {near[0]}" if near else "stepd artifacts",
        )

    def by_job(self, name: str, job: str) -> Head | None:
        """The version that a job led to, or None while it is not done."""
        numbers = {mark.number for mark in self.marks(name) if mark.job == job}
        head: Head
        for head in reversed(self.versions(name)):
            if head.job == job or head.number in numbers:
                return head
        return None

    def entries(self, head: Head) -> list[Entry]:
        """The files of a version.

        Raises:
            DamageError: The manifest is not whole, or not what was written.
            OSError: It cannot be read.
        """
        path = manifest_path(self.store, head.name, head.number)
        lines = read_whole(self._files, path, MANIFEST_BYTES_MAX).split(b"\n")[1:-1]
        found = [decode_entry(line) for line in lines]
        if len(found) != head.file_count or content_digest(found) != head.digest:
            raise DamageError(
                f"manifest {path!r} lists {len(found)} files, expected {head.file_count} of digest {head.digest}"
            )
        return found


def _revised(head: Head, said: Mapping[str, Any]) -> Head:
    """A version after a mark."""
    tags = dict.fromkeys([*head.tags, *texts(said, "add_tags")])
    for tag in texts(said, "remove_tags"):
        tags.pop(tag, None)
    changes: dict[str, Any] = {"tags": tuple(tags)}
    if "description" in said and isinstance(said["description"], (str, type(None))):
        changes["description"] = said["description"]
    if isinstance(said.get("metadata"), dict):
        changes["metadata"] = said["metadata"]
    if "ttl_seconds" in said and isinstance(said["ttl_seconds"], (int, float, type(None))):
        changes["ttl_seconds"] = said["ttl_seconds"]
    return head._replace(**changes)
