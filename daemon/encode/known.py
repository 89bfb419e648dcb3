"""What the segments of a run that stay as they are hold already, so that equal values are stored once."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator

from daemon.store.replacing import Sealed
from daemon.store.rewrite import Chunks, gathered, identity, read_blob
from sdk.errors import Error
from sdk.files import Files
from sdk.record import BlobRef
from sdk.segment.reader import SegmentReader

# (stream, number) of a blob.
Key = tuple[int, int]


class Known:
    """Looks values up by their identity (`daemon.store.rewrite.identity`). Holds files open until `close`.

    Nothing is taken at its word: who is told that a value is there lets go of his own bytes. So a blob is read whole, once, in
    the segment that notes it, and must be that value, with bytes of its own. That takes memory for one more blob.
    """

    def __init__(self, files: Files, segments: Iterable[Sealed], unwanted: Collection[Key] = ()) -> None:
        """Notes what segments say.

        Args:
            segments: Those that stay: what else lies in the run may be gone soon.
            unwanted: Blobs that are about to be removed.
        """
        self._files = files
        self._open = contextlib.ExitStack()
        self._noted: dict[bytes, tuple[Key, str]] = {}
        self._sure: dict[bytes, Key] = {}
        self._indexes: dict[str, dict[Key, list[tuple[BlobRef, Chunks]]]] = {}
        for segment in segments:
            for key, digest in _notes(segment):
                if key not in unwanted:
                    self._noted.setdefault(digest, (key, segment.path))

    def get(self, digest: bytes) -> Key | None:
        """The blob that holds a value; None: there is none that can be read."""
        noted = self._noted.pop(digest, None)
        if noted is not None and self._holds(*noted, digest):
            self._sure[digest] = noted[0]
        return self._sure.get(digest)

    def _holds(self, key: Key, path: str, digest: bytes) -> bool:
        with contextlib.suppress(OSError, Error):
            for ref, chunks in self._index(path).get(key, ()):
                stored = read_blob(ref, chunks)
                if stored is not None and "digest" in stored.meta and identity(stored.meta) == digest:
                    return True
        return False

    def _index(self, path: str) -> dict[Key, list[tuple[BlobRef, Chunks]]]:
        found = self._indexes.get(path)
        if found is None:
            found = self._indexes[path] = {}
            reader = SegmentReader(self._files, path)
            self._open.callback(reader.close)
            for ref, chunks in gathered([reader]).items():
                found.setdefault((ref.stream, ref.number), []).append((ref, chunks))
        return found

    def close(self) -> None:
        self._open.close()


def _notes(segment: Sealed) -> Iterator[tuple[Key, bytes]]:
    """What a segment says of its values; whatever else stands there is passed over."""
    told = segment.told.get("digests")
    for entry in told if isinstance(told, list) else ():
        if isinstance(entry, list) and [type(part) for part in entry] == [int, int, bytes]:
            yield (entry[0], entry[1]), entry[2]
