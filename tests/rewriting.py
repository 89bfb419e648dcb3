"""A run with media segments, to be rewritten: what is in it must be read afterwards, whatever happens."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.encode.known import Known
from daemon.encode.work import Encoding
from daemon.store import rewrite as rewriting
from daemon.store.replacing import Sealed
from daemon.store.rewrite import Report, Transform, sealed_media
from sdk.errors import Error
from sdk.files import DISK, Files
from sdk.location import read_store
from sdk.reader import blobs as reading
from sdk.reader.blobs import Blobs
from sdk.reader.contents import raw_of
from sdk.record import BlobRef, StoredBlob
from sdk.segment import blobs as segment_blobs
from sdk.segment.naming import MEDIA, parse_segment
from tests.builders import RunBuilder, make_store
from tests.media_rig import MediaBuilder

SMALL_CHUNK = 4096


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets blobs of a few pages have several chunks."""
    for module in (rewriting, reading, segment_blobs):
        monkeypatch.setattr(module, "CHUNK_BYTES", SMALL_CHUNK)


def as_it_is(ref: BlobRef, stored: StoredBlob) -> StoredBlob:
    return stored


class Scene:
    """A run and what was stored in it.

    Attributes:
        blobs: Each blob's raw bytes.
    """

    def __init__(self, path: Path | str) -> None:
        self.store = make_store(path)
        self.run = RunBuilder(self.store)
        self.media = MediaBuilder(self.run, self.run.stream())
        self.directory = self.run.directory
        self.blobs: dict[BlobRef, bytes] = {}

    def put(self, data: bytes, meta: dict[str, Any] | None = None, *, media: MediaBuilder | None = None) -> BlobRef:
        """Stores a blob of a format that nothing encodes, if not told otherwise."""
        ref = (media or self.media).store(data, {"media": "m", "format": "png"} if meta is None else meta)
        self.blobs[ref] = data
        return ref

    def seal(self) -> str:
        path = self.media.seal()
        assert path is not None
        return path

    def sealed(self, files: Files = DISK) -> list[Sealed]:
        return sealed_media(files, self.directory)

    def rewrite(self, transform: Transform = as_it_is, files: Files = DISK, sources: Any = None) -> Report:
        store = read_store(self.store)
        found = self.sealed(files) if sources is None else sources
        return rewriting.rewrite(files, store, self.directory, self.run.id, found, transform)

    def encode(self, sources: list[Sealed] | None = None, files: Files = DISK) -> Encoding:
        """As the worker does with these sources; what it made of them."""
        sources = self.sealed(files) if sources is None else sources
        others = [segment for segment in self.sealed(files) if segment not in sources]
        with contextlib.closing(Known(files, others)) as known:
            encoding = Encoding(known)
            store = read_store(self.store)
            rewriting.rewrite(files, store, self.directory, self.run.id, sources, encoding, encoding.told)
        return encoding

    def trouble(self, directory: str | None = None) -> list[str]:
        """What cannot be read as it was stored; nothing is the good case."""
        blobs, found = Blobs(DISK, directory or self.directory), []
        for ref, data in self.blobs.items():
            try:
                stored = blobs.read(ref)
                if stored.meta.get("encoding") in (None, "lz4", "shuffle"):
                    is_right = bytes(raw_of(stored).data) == data
                else:
                    is_right = stored.meta["digest"] == hashlib.sha256(data).digest()
                found += [] if is_right else [f"{ref} has other bytes"]
            except Error as error:
                found.append(f"{ref}: {error}")
        return found

    def names(self) -> list[str]:
        """The files of media in the run's directory."""
        return [name for name in sorted(os.listdir(self.directory)) if name.startswith(MEDIA)]

    def drafts(self) -> list[str]:
        return [name for name in self.names() if parse_segment(name) is None]

    def close(self) -> None:
        self.media.close()


def damage(path: str, needle: bytes, change: Callable[[bytes], bytes] = lambda found: bytes(len(found))) -> None:
    """Changes bytes of a file, all copies of them."""
    with open(path, "rb") as file:
        content = file.read()
    assert needle in content
    with open(path, "wb") as file:
        file.write(content.replace(needle, change(needle)))
