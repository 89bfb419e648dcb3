"""What the encoding worker does with a store: every raw sealed segment of every run, one blob at a time.

Values that are equal, in their bytes and in how these are to be read, are stored once in a run. A blob whose encoder is missing
or fails stays raw and says so; it is tried again when the package is there, or the encoders are newer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple, Protocol

from daemon.encode.known import Key, Known
from daemon.store.replacing import Sealed, remove_drafts, remove_replaced
from daemon.store.rewrite import FILE_BYTES_MAX, Result, Same, identity, rewrite, sealed_media
from sdk import clock
from sdk.encoders import VERSION, EncoderMissing, available, encode
from sdk.errors import Error
from sdk.files import Files
from sdk.location import StoreIdentity
from sdk.record import BlobRef, StoredBlob
from sdk.segment.naming import MEDIA, RUNS, SegmentName
from sdk.segment.reader import SegmentReader

# Limit: sources of one rewriting, so that what a crash makes be done again is a minute's work.
_SOURCES_BYTES_MAX = FILE_BYTES_MAX
# Limit: files that one rewriting holds open at once; a process may usually have 1024.
_SOURCES_MAX = 128
# More encoded segments of a run than this are joined when it is done, so that a finished run is few files.
_SEGMENTS_MAX = 4


class Done(NamedTuple):
    """What a pass over a store came to.

    Attributes:
        blobs: Encoded or looked at. `failed`: those that stay raw because their encoder failed.
        missing: Package to how many blobs wait for it.
        waiting: Replaced segments that are still to be removed.
        errors: What could not be done, for people.
    """

    blobs: int
    failed: int
    missing: dict[str, int]
    waiting: int
    errors: list[str]


class Lookup(Protocol):
    """Finds a value that is stored already: `Known`, or a dict."""

    def get(self, digest: bytes, /) -> Key | None: ...


class Encoding:
    """The transform of one rewriting: encodes, and finds doubles.

    Invariant: what becomes `Same` never had bytes that another one shares, and what it is the same as has bytes. So a blob
    with a digest, which others may know, stays what it is or is encoded, and is never the same as another.
    """

    def __init__(self, known: Lookup) -> None:
        self._known = known
        # What this rewriting has written.
        self._made: dict[bytes, Key] = {}
        self.failed = 0
        self.missing: Counter[str] = Counter()
        self.last_error = ""

    def __call__(self, ref: BlobRef, stored: StoredBlob) -> Result:
        data, meta = stored
        key = ref.stream, ref.number
        if "same" in meta or "removed" in meta:
            return stored
        if "digest" in meta:
            self._made.setdefault(identity(meta), key)
            return self._encoded(stored, meta["digest"]) if "encode_error" in meta else stored
        digest = hashlib.sha256(data).digest()
        value = identity({**meta, "digest": digest})
        there = self._made.get(value) or self._known.get(value)
        if there is not None:
            # Its own copy: a replay after a crash has stored it twice.
            return None if there == key else Same(*there, _facts(meta))
        self._made[value] = key
        return self._encoded(stored, digest)

    def _encoded(self, stored: StoredBlob, digest: object) -> StoredBlob:
        data, meta = stored
        raw = {name: value for name, value in meta.items() if name not in ("encode_error", "encode_missing")}
        try:
            encoded = encode(data, raw)
        except EncoderMissing as error:
            self.missing[error.package] += 1
            trouble = {"encode_error": str(error)[:200], "encode_missing": error.package}
            return StoredBlob(data, {**raw, "digest": digest, **trouble})
        except Exception as error:  # whatever a library raises of bytes that it does not like: they stay as they are
            self.failed += 1
            self.last_error = f"{raw.get('media')!r} of key {raw.get('key')!r}: {error!r}"[:300]
            return StoredBlob(data, {**raw, "digest": digest, "encode_error": repr(error)[:200]})
        found = {"digest": digest, "raw_size": len(data)}
        return StoredBlob(encoded.data, {**encoded.meta, **found}) if encoded else StoredBlob(data, {**raw, **found})

    def told(self) -> dict[str, Any]:
        """What the new segment says of this pass."""
        return {"encoders": VERSION, "failed": self.failed, "missing": dict(self.missing)}


def _facts(meta: dict[str, Any]) -> dict[str, Any]:
    """What a blob says of itself beside how its bytes are stored."""
    return {name: meta[name] for name in ("media", "key", "step") if name in meta}


def wants_work(segment: Sealed) -> bool:
    """Whether a segment has blobs that could be encoded now."""
    if segment.is_raw:
        return True
    told = segment.told
    missing = told.get("missing")
    missing = missing if isinstance(missing, dict) else {}
    if (told.get("failed") or missing) and told.get("encoders") != VERSION:
        return True
    return any(available(str(package)) for package in missing)


def work(
    files: Files,
    store: StoreIdentity,
    *,
    is_wanted: Callable[[], bool] = lambda: True,
    progress: Callable[[Done], None] = lambda done: None,
) -> Done:
    """Encodes everything in a store that is sealed and raw. The caller holds the right to rewrite.

    Args:
        is_wanted: Asked between two rewritings; False ends the pass.
        progress: Hears how far it is.
    """
    runs = os.path.join(store.path, RUNS)
    done = Done(0, 0, {}, 0, [])
    for entry, _, _ in files.entries(runs):
        if not is_wanted():
            break
        try:
            done = _add(done, _one_run(files, store, os.path.join(runs, entry), is_wanted))
        except (OSError, Error) as error:
            done = done._replace(errors=[*done.errors, f"{entry}: {error}"])
        progress(done)
    return done


def _add(one: Done, two: Done) -> Done:
    missing = dict(Counter(one.missing) + Counter(two.missing))
    return Done(
        one.blobs + two.blobs, one.failed + two.failed, missing, one.waiting + two.waiting, one.errors + two.errors
    )


class _Ended(Exception):
    """Nobody wants this pass any more."""


def _one_run(files: Files, store: StoreIdentity, directory: str, is_wanted: Callable[[], bool]) -> Done:
    blobs = failed = 0
    missing, errors = Counter[str](), list[str]()
    remove_drafts(files, directory)
    with contextlib.suppress(_Ended):
        for sources in plans(files, directory):
            others = [segment for segment in sealed_media(files, directory) if segment not in sources]
            with contextlib.closing(Known(files, others)) as known:
                encoding = Encoding(known)
                transform = _while_wanted(encoding, is_wanted)
                run = _run_of(files, sources[0].path)
                blobs += rewrite(files, store, directory, run, sources, transform, encoding.told).blobs
            failed += encoding.failed
            missing += encoding.missing
            if encoding.last_error:
                errors.append(encoding.last_error)
    return Done(
        blobs, failed, dict(missing), remove_replaced(files, directory, clock.wall_ns(), kinds=(MEDIA,)), errors
    )


def _while_wanted(encoding: Encoding, is_wanted: Callable[[], bool]) -> Callable[[BlobRef, StoredBlob], Result]:
    def transform(ref: BlobRef, stored: StoredBlob) -> Result:
        if not is_wanted():
            raise _Ended
        return encoding(ref, stored)

    return transform


def plans(files: Files, directory: str, also: Collection[SegmentName] = ()) -> Iterator[list[Sealed]]:
    """What of a run is rewritten together: first what can be encoded now, then small segments where there are many.

    Each source is given once, and joining goes on only while there become fewer: what a rewriting made may have blobs that
    nobody can encode here, and would be given for ever.

    Args:
        also: Segments that are to be rewritten in any case.
    """
    group: list[Sealed] = []
    size = 0
    for segment in sealed_media(files, directory):
        if segment.name not in also and not wants_work(segment):
            continue
        if group and (size + segment.size > _SOURCES_BYTES_MAX or len(group) >= _SOURCES_MAX):
            yield group
            group, size = [], 0
        group.append(segment)
        size += segment.size
    if group:
        yield group
    before = 0
    while sources := joinable(segments := sealed_media(files, directory)):
        if len(segments) == before:
            return
        before = len(segments)
        yield sources


def joinable(segments: list[Sealed]) -> list[Sealed]:
    """The smallest segments of a run, where there are more than a finished run should have: as many as one file can hold."""
    chosen: list[Sealed] = []
    size = 0
    for segment in sorted(segments, key=lambda segment: segment.size)[
        : min(len(segments) - _SEGMENTS_MAX + 1, _SOURCES_MAX)
    ]:
        size += segment.size
        if size <= _SOURCES_BYTES_MAX:
            chosen.append(segment)
    return chosen if len(segments) > _SEGMENTS_MAX and len(chosen) > 1 else []


def _run_of(files: Files, path: str) -> str:
    """The run's id, as a segment's first block says."""
    reader = SegmentReader(files, path)
    try:
        return str(reader.read_map(reader.blocks[0]).get("run", ""))
    finally:
        reader.close()
