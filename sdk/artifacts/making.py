"""From a job to a version: every file stored under its digest, then the manifest, at once and for good.

Run by the keeper, or by a trainer that waits. It may be killed anywhere and begun again: an object appears whole, by rename,
after it was forced to the disk; the manifest appears after all objects, under the first number that is free, which the file
system gives to one process only; and a version that this job made already is found by the job's id. Nothing of a version is
seen before its manifest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .. import clock
from .._keeping import Abandoned
from ..budget import free_floor
from ..errors import DamageError
from ..files import DISK, File, Files, sync_names
from ..ids import hex_u64, random_u64
from ..limits import FREE_BYTES_MIN
from ..platform import boot_id
from ..segment.naming import SUSPECT_SUFFIX, mark_suspect
from .format import (
    Entry,
    Head,
    check_aliases,
    check_name,
    check_path,
    check_tags,
    check_type,
    content_digest,
    digest_text,
    drafts_path,
    encode_manifest,
    manifest_path,
    marks_path,
    name_path,
    object_path,
)
from .shelf import Shelf, mark_name
from .staging import has_object, is_staging, known_digest, pack_path, remember_digest

_CHUNK_BYTES = 1 << 20
# Clocks of two machines may differ by so much and a version is still found by its job.
_CLOCK_NS = 3600 * 10**9
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EINVAL, errno.EISDIR)


class Made(NamedTuple):
    """What a job led to: version `number` of `name`, which was there already where `is_new` is false."""

    name: str
    number: int
    is_new: bool


class _Gone(Exception):
    """A file that was to be stored cannot be had any more, and never will."""


def make(
    store: str, body: Mapping[str, Any], is_wanted: Callable[[], bool] = lambda: True, files: Files = DISK
) -> Made:
    """Does the job.

    Raises:
        OSError: The disk does not take it now.
        Abandoned: `is_wanted()` became false.
        ValueError, TypeError, KeyError: It is no job of an artifact.
    """
    if body.get("format") != 1:
        raise ValueError(f"an artifact's job has format {body.get('format')!r}; this version does 1")
    name, job = check_name(body["name"]), str(body["id"])
    made = _made_before(Shelf(store, files), name, job, int(body["created_ns"]))
    if made is None:
        with contextlib.closing(_Maker(store, job, body, is_wanted, files)) as maker:
            entries = [maker.entry(given) for given in body["files"]]
            maker.force()
        made = _publish(files, store, body, entries)
    staging = str(body.get("staging") or "")
    if is_staging(staging):
        with contextlib.suppress(FileNotFoundError):
            files.remove_tree(staging)
    return made


def _made_before(shelf: Shelf, name: str, job: str, created_ns: int) -> Made | None:
    """What this job led to when it was done before."""
    for number in reversed(shelf.numbers(name)):
        with contextlib.suppress(DamageError):
            head = shelf.head(name, number)
            if head.job == job:
                return Made(name, number, True)
            if head.created_ns < created_ns - _CLOCK_NS:
                break
    for mark in shelf.marks(name):
        if mark.job == job:
            return Made(name, mark.number, False)
    return None


class _Maker:
    """Stores the files of one job."""

    def __init__(
        self, store: str, job: str, body: Mapping[str, Any], is_wanted: Callable[[], bool], files: Files
    ) -> None:
        self._store = store
        self._job = job
        self._staging = str(body.get("staging") or "")
        self._boot = body.get("boot_id")
        self._is_wanted = is_wanted
        self._files = files
        self._pack: File | None = None
        self._directories: set[str] = set()
        files.make_directory(drafts_path(store))
        self._tidy()  # after one that was killed

    def entry(self, given: Mapping[str, Any]) -> Entry:
        """Stores one file. One that is gone is an entry that says so."""
        if not self._is_wanted():
            raise Abandoned
        path, how = check_path(given["path"]), given["how"]
        doers = {
            "pack": self._packed, "staged": self._staged, "linked": self._copied, "source": self._copied,
            "object": self._stored, "reference": self._referenced, "plain": self._named, "nothing": self._lost,
        }  # fmt: skip
        try:
            return doers[how](path, given)
        except _Gone as error:
            return Entry(path, "", given.get("size"), str(given.get("reference") or ""), str(error))

    def _packed(self, path: str, given: Mapping[str, Any]) -> Entry:
        if self._pack is None:
            self._pack = self._open(pack_path(self._staging))
        data = self._pack.read(given["offset"], given["size"])
        if len(data) != given["size"] or zlib.crc32(data) != given["crc"]:
            raise _Gone("what was taken of it is not whole; the machine went down before it was stored")
        digest = hashlib.sha256(data).hexdigest()
        if not self._has(digest, len(data)):
            self._check_room(len(data))
            draft = self._draft()
            file = self._files.create(draft)
            try:
                file.append([data])
                file.sync()
            finally:
                file.close()
            self._name(draft, digest)
        return Entry(path, digest, len(data))

    def _staged(self, path: str, given: Mapping[str, Any]) -> Entry:
        """A file of the store's own, which becomes the object by a second name, without a copy where that can be."""
        staged = self._staged_path(given)
        digest, size = self._hashed(staged)
        if not self._has(digest, size):
            draft = self._draft()
            if not self._linked(staged, draft):
                self._check_room(size)
                digest, size = self._copy(staged, draft)
            self._name(draft, digest)
        went_down = self._boot != boot_id()
        return Entry(path, digest, size, trouble="the machine went down before it was stored" if went_down else "")

    def _staged_path(self, given: Mapping[str, Any]) -> str:
        return os.path.join(self._staging, os.path.basename(given["staged"]))

    def _linked(self, staged: str, draft: str) -> bool:
        """Whether `draft` is a second name of a file that was forced to the disk."""
        if self._files.exists(staged + SUSPECT_SUFFIX):
            return False  # a failed fsync is final: what the next one says of that file means nothing
        file = self._open(staged)
        try:
            file.sync()
        except OSError:
            mark_suspect(self._files, staged)
            raise
        finally:
            file.close()
        try:
            self._files.link(staged, draft)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
                raise
            return False
        return True

    def _copied(self, path: str, given: Mapping[str, Any]) -> Entry:
        """A file that may still change: copied, and looked at before and after."""
        source = self._staged_path(given) if given["how"] == "linked" else given["source"]
        began_ns = clock.wall_ns()
        before = self._status(source)
        self._check_room(before.size)
        draft = self._draft()
        digest, size = self._copy(source, draft)
        after = self._status(source)
        if self._has(digest, size):
            self._files.remove(draft)
        else:
            self._name(draft, digest)
        if (after.size, after.modified_ns) != (given["size"], given["modified_ns"]) or size != given["size"]:
            return Entry(path, digest, size, trouble="changed after it was added; what it was then is not known")
        with contextlib.suppress(OSError):
            now = self._files.status(given["source"])
            if now == after:
                remember_digest(self._files, self._store, given["source"], now, digest, began_ns)
        return Entry(path, digest, size)

    def _stored(self, path: str, given: Mapping[str, Any]) -> Entry:
        digest, size = given["digest"], given["size"]
        if not self._has(digest, size):
            # Somebody removed what no version had; the file that was not taken because of it may still be there.
            if "source" in given:
                return self._copied(path, given)
            raise _Gone("the store had its bytes and has them no more")
        return Entry(path, digest, size)

    def _referenced(self, path: str, given: Mapping[str, Any]) -> Entry:
        """A local file that stays where it is; read once, and again only when it has changed."""
        source, reference = given["source"], str(given["reference"])
        began_ns = clock.wall_ns()
        before = self._status(source)
        digest = known_digest(self._files, self._store, source, before)
        if not digest:
            digest, _ = self._hashed(source)
            if self._status(source) != before:
                return Entry(path, digest, before.size, reference, "changed while it was read")
            remember_digest(self._files, self._store, source, before, digest, began_ns)
        trouble = ""
        if (before.size, before.modified_ns) != (given["size"], given["modified_ns"]):
            trouble = "changed between the call that added it and the reading"
        return Entry(path, digest, before.size, reference, trouble)

    def _named(self, path: str, given: Mapping[str, Any]) -> Entry:
        reference = str(given["reference"])
        return Entry(path, digest_text(reference), given.get("size"), reference)

    def _lost(self, path: str, given: Mapping[str, Any]) -> Entry:
        raise _Gone("the store took nothing when it was made")

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _open(self, path: str) -> File:
        try:
            return self._files.open(path)
        except OSError as error:
            if error.errno in _GONE:
                raise _Gone(f"cannot be read any more: {error}") from None
            raise

    def _status(self, path: str) -> Any:
        try:
            return self._files.status(path)
        except OSError as error:
            if error.errno in _GONE:
                raise _Gone(f"cannot be read any more: {error}") from None
            raise

    def _hashed(self, path: str) -> tuple[str, int]:
        return self._read(path, lambda data: None)

    def _copy(self, source: str, target: str) -> tuple[str, int]:
        """(digest, size) of what was cloned or copied and forced to the disk; the bytes are read once for both."""
        try:
            self._files.clone(source, target)
        except OSError:
            pass  # most file systems cannot; what else is wrong, the copy meets too
        else:
            clone = self._files.open(target, write=True)
            try:
                clone.sync()
            finally:
                clone.close()
            return self._hashed(target)
        file = self._files.create(target)
        try:
            found = self._read(source, lambda data: file.append([data]))
            file.sync()
        finally:
            file.close()
        return found

    def _read(self, path: str, take: Callable[[bytes], object]) -> tuple[str, int]:
        file = self._open(path)
        try:
            digest, size = hashlib.sha256(), 0
            while data := file.read(size, _CHUNK_BYTES):
                digest.update(data)
                take(data)
                size += len(data)
                if not self._is_wanted():
                    raise Abandoned
        finally:
            file.close()
        return digest.hexdigest(), size

    def _check_room(self, size: int) -> None:
        # Why: what is kept for the training's own rows is not for copies of files.
        free = self._files.free_bytes(self._store)
        least = free_floor(FREE_BYTES_MIN, self._files.disk_bytes(self._store))
        if free - size < least:
            text = f"{size} bytes of an artifact would leave less than {least} of the {free} that are free"
            raise OSError(errno.ENOSPC, text, self._store)

    def _has(self, digest: str, size: int) -> bool:
        found = has_object(self._files, self._store, digest, size)
        if found:  # whoever made it may not have forced its name yet
            self._directories.add(os.path.dirname(object_path(self._store, digest)))
        return found

    def _draft(self) -> str:
        return os.path.join(drafts_path(self._store), f"{self._job}-{hex_u64(random_u64())}")

    def _name(self, draft: str, digest: str) -> None:
        """Makes an object of a draft that was forced to the disk. One that is there has the same bytes."""
        target = object_path(self._store, digest)
        self._files.make_directory(os.path.dirname(target))
        self._files.rename(draft, target)
        self._directories.add(os.path.dirname(target))

    def force(self) -> None:
        """Forces the names of all objects to the disk, and those of the directories above them."""
        for directory in sorted(self._directories):
            self._files.sync_directory(directory)
        if self._directories:
            sync_names(self._files, os.path.dirname(next(iter(self._directories))), 3)

    def close(self) -> None:
        if self._pack is not None:
            self._pack.close()
        # Half a large file would fill the disk that the job waits for.
        with contextlib.suppress(OSError):
            self._tidy()

    def _tidy(self) -> None:
        """Removes the drafts of this job."""
        directory = drafts_path(self._store)
        for name, _, _ in self._files.entries(directory):
            if name.startswith(f"{self._job}-"):
                self._files.remove(os.path.join(directory, name))


# -- publishing ------------------------------------------------------------------------------------------------------------


def _publish(files: Files, store: str, body: Mapping[str, Any], entries: list[Entry]) -> Made:
    """The next version; the latest one, with the aliases, where that has the same content."""
    shelf = Shelf(store, files)
    name, digest = body["name"], content_digest(entries)
    files.make_directory(marks_path(store, name))
    while True:
        numbers = shelf.numbers(name)
        latest = numbers[-1] if numbers else -1
        troubles = any(entry.trouble for entry in entries)
        if numbers and not troubles and _is_same(shelf, name, latest, digest):
            _mark(files, store, body, latest)
            return Made(name, latest, False)
        data = encode_manifest(_head(body, latest + 1, digest, entries), entries)
        if files.write_new(manifest_path(store, name, latest + 1), data):
            sync_names(files, name_path(store, name), 4)
            return Made(name, latest + 1, True)


def _is_same(shelf: Shelf, name: str, number: int, digest: str) -> bool:
    with contextlib.suppress(DamageError):
        head = shelf.head(name, number)
        return head.digest == digest and not head.troubles and not shelf.is_removed(name, number)
    return False


def _mark(files: Files, store: str, body: Mapping[str, Any], number: int) -> None:
    """Says that this job led to a version that was there, which gets its aliases and tags."""
    import json

    said = {
        "job": str(body["id"]), "number": number, "run": str(body.get("run") or ""),
        "add": check_aliases(body.get("aliases")), "add_tags": check_tags(body.get("tags")),
    }  # fmt: skip
    path = os.path.join(marks_path(store, body["name"]), mark_name(clock.wall_ns()))
    files.write_new(path, json.dumps(said, separators=(",", ":")).encode("ascii"))
    sync_names(files, marks_path(store, body["name"]), 5)


def _head(body: Mapping[str, Any], number: int, digest: str, entries: list[Entry]) -> Head:
    metadata, ttl = body.get("metadata"), body.get("ttl_seconds")
    return Head(
        name=body["name"], number=number, type=check_type(body["type"]), digest=digest,
        size=sum(entry.size or 0 for entry in entries), file_count=len(entries), created_ns=clock.wall_ns(), job=str(body["id"]),
        run=str(body.get("run") or ""), run_name=str(body.get("run_name") or ""), project=str(body.get("project") or ""),
        description=body.get("description"), metadata=metadata if isinstance(metadata, dict) else {},
        aliases=tuple(check_aliases(body.get("aliases"))), tags=tuple(check_tags(body.get("tags"))),
        ttl_seconds=ttl if isinstance(ttl, (int, float)) else None, troubles=sum(bool(entry.trouble) for entry in entries),
    )  # fmt: skip
