"""Puts media into runs made by `tests.builders`: rows that hold them, and media segments with their blobs.

    run = RunBuilder(store)
    media = MediaBuilder(run, run.stream())
    media.log_packed({"x": packed("image-file", data=media.blob(b"…", {"format": "png"}))})
    media.seal()                          # rows and blobs
"""  # fmt: skip

from __future__ import annotations

import os
from typing import Any

from sdk.record import KIND_BLOB, BlobRef, StoredBlob, encode_blob_ref, encode_inline_blob, encode_media
from sdk.segment import format as segment
from sdk.segment.blobs import append_blob
from sdk.segment.format import FileHeader
from sdk.segment.naming import MEDIA, SegmentName, format_segment
from sdk.segment.writer import SegmentWriter
from sdk.values import plain
from sdk.values.blobs import Blob
from tests.builders import START_NS, STORE_ID, RunBuilder, StreamBuilder

_INLINE_MAX = 16 * 1024


class MediaBuilder:
    """The blobs of one stream, in one writer's media segments."""

    def __init__(self, run: RunBuilder, stream: StreamBuilder, writer: int = 0xB10B) -> None:
        self.run = run
        self.stream = stream
        self.writer = writer
        self.count = self._number = self._first_block = 0
        self._open: SegmentWriter | None = None
        self.paths: list[str] = []

    @property
    def segment(self) -> SegmentWriter:
        """The open media segment; made when there is none."""
        return self._open or self.open({"kind": "daemon"})

    def open(self, origin: dict[str, Any]) -> SegmentWriter:
        """Makes the next media segment; `origin` is what it says of its writer."""
        if self._open is None:
            path = os.path.join(self.run.directory, format_segment(SegmentName(self.writer, self._number, MEDIA)))
            header = FileHeader(STORE_ID, self.writer, self._number, START_NS)
            self._open = SegmentWriter.create(self.run.files, path, header, first_block_number=self._first_block)
            self.paths.append(path)
            self._open.append_map(segment.KIND_META, {"run": self.run.id, "writer": origin})
        return self._open

    def store(
        self, data: bytes, meta: dict[str, Any], *, number: int | None = None, size: int | None = None
    ) -> BlobRef:
        """Appends a blob to the segment; what a row says of it."""
        self.count = self.count + 1 if number is None else self.count
        number = self.count if number is None else number
        append_blob(self.segment, BlobRef(self.stream.id, number, len(data)), data, meta)
        return BlobRef(self.stream.id, number, len(data) if size is None else size)

    def blob(self, data: bytes, meta: dict[str, Any], **kind: Any) -> Any:
        """As `store`, packed for a record."""
        return encode_blob_ref(self.store(data, meta, **kind))

    def announce(self, ref: BlobRef, key: str, meta: dict[str, Any] | None = None) -> None:
        """Logs what stands before a row that names `ref` under `key`."""
        told = {"n": ref.number, "size": ref.size, "key": key, "meta": meta or {}}
        self.stream._add(KIND_BLOB, self.stream.step, 0, told)

    def log_page(self, text: bytes, key: str, **meta: Any) -> BlobRef:
        """One row with a page, announced as a trainer does."""
        ref = self.store(text, {"media": "html-file", "format": "html", "key": key, "step": self.stream.step, **meta})
        self.announce(ref, key)
        self.log_packed({key: packed("html-file", format="html", data=encode_blob_ref(ref))})
        return ref

    def put(self, blob: Blob, key: str) -> Any:
        """As the journal's: small ones inside of the record."""
        if blob.size <= _INLINE_MAX:
            return encode_inline_blob(StoredBlob(bytes(blob.view()), blob.meta))
        return self.blob(bytes(blob.view()), blob.meta)

    def log(self, values: dict[str, Any], **kind: Any) -> None:
        """As `sdk.log`, media and arrays included."""
        self.stream.log(plain(values, put=self.put)[0], **kind)

    def log_packed(self, values: dict[str, Any], **kind: Any) -> None:
        """Logs what is packed already."""
        self.stream.log(values, **kind)

    def seal(self) -> str | None:
        """Seals rows and blobs; the path of the media segment."""
        self.run.seal()
        if self._open is None:
            return None
        closing, self._open = self._open, None
        closing.seal()
        self._number += 1
        self._first_block = closing.next_block_number
        return closing.path

    def flush(self) -> None:
        """Writes rows; both segments stay open."""
        self.run.flush()

    def close(self) -> None:
        self.run.close()
        if self._open is not None:
            self._open.close()


def packed(kind: str, **described: Any) -> Any:
    """A media value, packed for a record."""
    return encode_media({"_type": kind, **described})
