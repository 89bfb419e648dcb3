"""The files of artifacts: names, paths and the manifest of a version (docs/artifacts.md#format).

What is read from a store is hostile: everything that is decoded here is checked before it is believed, above all paths.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import DamageError
from ..ids import run_directory
from ..segment.naming import ARTIFACTS

FORMAT = 1
LATEST = "latest"
NAME_CHARACTERS_MAX = 128
# Limit: 100 000 files at 300 bytes a line are 30 MB.
MANIFEST_BYTES_MAX = 256 << 20
# Description, metadata, aliases; what a listing reads of each version.
HEAD_BYTES_MAX = 4 << 20
MARK_BYTES_MAX = HEAD_BYTES_MAX

_NAME = re.compile(r"[a-zA-Z0-9_.-]+", re.ASCII)
_TAG = re.compile(r"[-\w]+(?: +[-\w]+)*")
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_VERSION = re.compile(r"v(0|[1-9][0-9]{0,17})", re.ASCII)
_MANIFEST = re.compile(_VERSION.pattern + r"\.jsonl", re.ASCII)


def artifacts_path(store: str) -> str:
    return os.path.join(store, ARTIFACTS)


def object_path(store: str, digest: str) -> str:
    """Where the bytes of this digest lie, once for all versions that have them."""
    return os.path.join(store, ARTIFACTS, "objects", digest[:2], digest)


def drafts_path(store: str) -> str:
    """Objects that are not whole yet."""
    return os.path.join(store, ARTIFACTS, "drafts")


def names_path(store: str) -> str:
    return os.path.join(store, ARTIFACTS, "names")


def name_path(store: str, name: str) -> str:
    """The directory of all versions of a name, and of what was said of them later."""
    return os.path.join(names_path(store), run_directory(name))


def marks_path(store: str, name: str) -> str:
    return os.path.join(name_path(store, name), "marks")


def staging_path(store: str) -> str:
    return os.path.join(store, ARTIFACTS, "staging")


def known_path(store: str, machine: str, path: str) -> str:
    """Where the digest of a file at `path` on `machine` is remembered."""
    key = hashlib.sha256(f"{machine}:{path}".encode("utf-8", "surrogatepass")).hexdigest()
    return os.path.join(store, ARTIFACTS, "known", key[:2], f"{key[2:40]}.json")


class Entry(NamedTuple):
    """One file of a version.

    Attributes:
        path: Its name in the artifact, with slashes.
        digest: SHA-256 of its bytes; of a reference that was not read, of its URI; "" where nothing could be read.
        size: In bytes; None where that is not known.
        reference: The URI, where the bytes are not in the store.
        trouble: What is wrong with it, for people; "" for nothing.
    """

    path: str
    digest: str
    size: int | None
    reference: str = ""
    trouble: str = ""

    @property
    def is_read(self) -> bool:
        """Whether the digest is that of bytes, and not of a reference's name."""
        return bool(self.digest) and not (self.reference and self.digest == digest_text(self.reference))

    @property
    def is_there(self) -> bool:
        """Whether the store has, or names, what was added."""
        return bool(self.digest)


class Head(NamedTuple):
    """What is known of a version besides its files.

    Attributes:
        name, number, type: The version is called ``name:v<number>``.
        digest: Of paths and digests of all files: equal for equal content.
        job: The id of the job that made it.
        run, run_name, project: The run that logged it; "" for none.
        created_ns: When it was published, Unix time.
    """

    name: str
    number: int
    type: str
    digest: str
    size: int
    file_count: int
    created_ns: int
    job: str
    run: str
    run_name: str
    project: str
    description: str | None
    metadata: dict[str, Any]
    aliases: tuple[str, ...]
    tags: tuple[str, ...]
    ttl_seconds: float | None
    troubles: int

    @property
    def version(self) -> str:
        return f"v{self.number}"


# -- names that users give -----------------------------------------------------------------------------------------------


def check_name(name: object) -> str:
    """Returns `name` if W&B would take it for an artifact.

    Raises:
        TypeError, ValueError: It is no str, is empty or too long, or has other than letters, digits and ``- _ .``.
    """
    if not isinstance(name, str):
        raise TypeError(f"artifact name is {type(name).__name__}, expected str: {name!r}")
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"artifact name may only contain letters, digits, dashes, underscores and dots: {name!r}")
    if len(name) > NAME_CHARACTERS_MAX:
        raise ValueError(f"artifact name has {len(name)} characters, at most {NAME_CHARACTERS_MAX}: {name[:40]!r}…")
    return name


def check_type(kind: object) -> str:
    """Returns `kind` if it can be the type of an artifact.

    Raises:
        TypeError, ValueError: It is no str, is empty, or one that W&B keeps for itself.
    """
    if not isinstance(kind, str):
        raise TypeError(f"artifact type is {type(kind).__name__}, expected str: {kind!r}")
    if not kind or len(kind) > NAME_CHARACTERS_MAX or not kind.isprintable() or ":" in kind or "/" in kind:
        raise ValueError(f"artifact type is {kind[:40]!r}, expected a word such as 'dataset' or 'model'")
    if kind == "job" or kind.startswith("wandb-"):
        raise ValueError(f"artifact type {kind!r} is reserved; expected a word such as 'dataset' or 'model'")
    return kind


def check_aliases(aliases: str | Iterable[str] | None) -> list[str]:
    """The aliases without doubles, empty ones and `latest`, which every newest version has.

    Raises:
        TypeError, ValueError: One is no str, has ``/`` or ``:``, or looks like a version.
    """
    found = []
    for alias in [aliases] if isinstance(aliases, str) else aliases or ():
        if not isinstance(alias, str):
            raise TypeError(f"alias is {type(alias).__name__}, expected str: {alias!r}")
        if "/" in alias or ":" in alias or not alias.isprintable() or len(alias) > NAME_CHARACTERS_MAX:
            raise ValueError(f"alias may not contain '/' or ':': {alias[:40]!r}")
        if _VERSION.fullmatch(alias):
            raise ValueError(f"alias {alias!r} is the name of a version, which is given by the store")
        if alias and alias != LATEST:
            found.append(alias)
    return list(dict.fromkeys(found))


def check_tags(tags: str | Iterable[str] | None) -> list[str]:
    """The tags without doubles.

    Raises:
        TypeError, ValueError: One is no str, or has other than words, dashes and spaces between them.
    """
    found = [tags] if isinstance(tags, str) else list(tags or ())
    for tag in found:
        if not isinstance(tag, str):
            raise TypeError(f"tag is {type(tag).__name__}, expected str: {tag!r}")
        if not _TAG.fullmatch(tag) or len(tag) > NAME_CHARACTERS_MAX:
            raise ValueError(f"tag may only contain letters, digits, dashes, underscores and single spaces: {tag!r}")
    return list(dict.fromkeys(found))


def check_path(path: str | os.PathLike[str]) -> str:
    """A file's name in an artifact: relative, with slashes, and never out of the directory it is put into.

    Raises:
        TypeError, ValueError: It is no path, is empty, leaves its directory, or no file can be called that.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"name of a file in an artifact is {type(text).__name__}, expected str: {text!r}")
    found = posixpath.normpath(text.lstrip("/")) if text.strip("/") else ""
    parts = found.split("/")
    if found in ("", ".") or ".." in parts or "\0" in found or any(len(os.fsencode(part)) > 255 for part in parts):
        raise ValueError(
            f"a file in an artifact cannot be called {text!r}: expected a relative path such as 'data/a.csv'"
        )
    return found


def parse_version(text: str) -> int | None:
    """The number in ``v3``; None for anything else."""
    match = _VERSION.fullmatch(text)
    return int(match[1]) if match else None


def parse_manifest_name(text: str) -> int | None:
    """The number in the name of a manifest's file; None for any other file."""
    match = _MANIFEST.fullmatch(text)
    return int(match[1]) if match else None


def manifest_path(store: str, name: str, number: int) -> str:
    return os.path.join(name_path(store, name), f"v{number}.jsonl")


def digest_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def content_digest(entries: Iterable[Entry]) -> str:
    """What two versions share when they have the same files: SHA-256 over the sorted paths, digests and references."""
    lines = sorted(f"{entry.path}\0{entry.digest}\0{entry.reference}\n" for entry in entries)
    return digest_text("".join(lines))


# -- manifests -------------------------------------------------------------------------------------------------------------


def encode_manifest(head: Head, entries: Iterable[Entry]) -> bytes:
    """A line for the version and one for each file."""
    lines = [_line({"format": FORMAT, **head._asdict()})]
    for path, digest, size, reference, trouble in entries:
        line: dict[str, Any] = {"path": path, "digest": digest, "size": size}
        if reference:
            line["reference"] = reference
        if trouble:
            line["trouble"] = trouble
        lines.append(_line(line))
    return b"".join(lines)


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


def decode_head(line: bytes, name: str, number: int) -> Head:
    """The first line of a manifest, which says of itself that it is version `number` of `name`.

    Raises:
        DamageError: It is not that, or of a newer format.
    """
    values = _decoded(line)
    if values.get("format") != FORMAT:
        raise DamageError(f"manifest has format {values.get('format')!r}; this version reads {FORMAT}")
    if (values.get("name"), values.get("number")) != (name, number):
        raise DamageError(f"manifest says that it is {values.get('name')!r}:v{values.get('number')!r}")
    digest = values.get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise DamageError(f"manifest has the digest {digest!r}, expected 64 hex digits")
    metadata, ttl = values.get("metadata"), values.get("ttl_seconds")
    return Head(
        name, number, _text(values, "type") or "unspecified", digest, _count(values, "size"), _count(values, "file_count"),
        _count(values, "created_ns"), _text(values, "job"), _text(values, "run"), _text(values, "run_name"),
        _text(values, "project"), _text(values, "description") or None, metadata if isinstance(metadata, dict) else {},
        texts(values, "aliases"), texts(values, "tags"), ttl if isinstance(ttl, (int, float)) else None,
        _count(values, "troubles"),
    )  # fmt: skip


def decode_entry(line: bytes) -> Entry:
    """Another line.

    Raises:
        DamageError: It is no file that could be given back safely.
    """
    values = _decoded(line)
    path, digest, size = values.get("path"), values.get("digest"), values.get("size")
    try:
        good = isinstance(path, str) and check_path(path) == path
    except ValueError:
        good = False
    good = good and isinstance(digest, str) and (not digest or _DIGEST.fullmatch(digest) is not None)
    if not good or not (size is None or (type(size) is int and size >= 0)):
        raise DamageError(f"manifest lists a file that cannot be: {line[:200]!r}")
    return Entry(str(path), str(digest), size, _text(values, "reference"), _text(values, "trouble"))


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"manifest has a line that is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise DamageError(f"manifest has a line that is {type(values).__name__}, expected a map")
    return values


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return value if isinstance(value, str) else ""


def texts(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The strings of a list of that name."""
    found = values.get(name)
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()


def _count(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return value if type(value) is int and value >= 0 else 0
