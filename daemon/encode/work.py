"""What the encoding worker does with a store: every raw sealed segment of every run, one blob at a time.

Values that are equal, in their bytes and in how these are to be read, are stored once in a run. A blob whose encoder is missing
or fails stays raw and says so; it is tried again when the package is there, or the encoders are newer.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from daemon.store.rewrite import (
    FILE_BYTES_MAX,
    MediaSegment,
    Report,
    Result,
    Same,
    digests_of,
    identity,
    remove_drafts,
    remove_replaced,
    rewrite,
    sealed_media,
)
from sdk import clock
from sdk.encoders import VERSION, EncoderMissing, encode
from sdk.errors import Error
from sdk.files import Files
from sdk.location import StoreIdentity
from sdk.record import BlobRef, StoredBlob
from sdk.segment.naming import RUNS
from sdk.segment.reader import SegmentReader

# Limit: sources of one rewriting, so that what a crash makes be done again is a minute's work.
_SOURCES_BYTES_MAX = FILE_BYTES_MAX
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


class Encoding:
    """The transform of one run: encodes, and finds doubles."""

    def __init__(self, digests: dict[bytes, tuple[int, int]]) -> None:
        self._digests = digests
        self.failed = 0
        self.missing: Counter[str] = Counter()
        self.last_error = ""

    def __call__(self, ref: BlobRef, stored: StoredBlob) -> Result:
        data, meta = stored
        if "digest" in meta and "encode_error" not in meta:
            return stored  # done before
        if "same" in meta or "removed" in meta:
            return stored
        digest = meta.get("digest") or hashlib.sha256(data).digest()
        known = identity({**meta, "digest": digest})
        if known in self._digests and self._digests[known] != (ref.stream, ref.number):
            return Same(*self._digests[known], _facts(meta))
        raw = {name: value for name, value in meta.items() if name not in ("encode_error", "encode_missing")}
        self._digests[known] = (ref.stream, ref.number)
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


def wants_work(segment: MediaSegment) -> bool:
    """Whether a segment has blobs that could be encoded now."""
    if segment.is_raw:
        return True
    told = segment.told
    if told.get("failed") and told.get("encoders") != VERSION:
        return True
    missing = told.get("missing")
    return isinstance(missing, dict) and any(importable(str(package)) for package in missing)


def importable(package: str) -> bool:
    """Whether a package could be imported, without doing so."""
    names = {"pillow": "PIL"}
    try:
        return importlib.util.find_spec(names.get(package, package.partition(" ")[0])) is not None
    except (ImportError, ValueError):
        return False


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


def _one_run(files: Files, store: StoreIdentity, directory: str, is_wanted: Callable[[], bool]) -> Done:
    blobs = failed = 0
    missing, errors = Counter[str](), list[str]()
    remove_drafts(files, directory)
    while is_wanted():
        segments = sealed_media(files, directory)
        sources = _next_sources(segments)
        if not sources:
            break
        encoding = Encoding(digests_of(segment for segment in segments if segment not in sources))
        report = _rewrite(files, store, directory, sources, encoding)
        blobs += report.blobs
        failed += encoding.failed
        missing += encoding.missing
        if encoding.last_error:
            errors.append(encoding.last_error)
    return Done(blobs, failed, dict(missing), remove_replaced(files, directory, clock.wall_ns()), errors)


def _rewrite(
    files: Files, store: StoreIdentity, directory: str, sources: list[MediaSegment], encoding: Encoding
) -> Report:
    return rewrite(files, store, directory, _run_of(files, sources[0].path), sources, encoding, encoding.told)


def _next_sources(segments: list[MediaSegment]) -> list[MediaSegment]:
    """What is rewritten next: raw segments, as many as fit; or small encoded ones to be joined; or nothing."""
    wanted = [segment for segment in segments if wants_work(segment)]
    if not wanted:
        return joinable(segments)
    chosen: list[MediaSegment] = []
    size = 0
    for segment in wanted:
        if chosen and size + segment.size > _SOURCES_BYTES_MAX:
            break
        chosen.append(segment)
        size += segment.size
    return chosen


def joinable(segments: list[MediaSegment]) -> list[MediaSegment]:
    """The smallest segments of a run, where there are more than a finished run should have and one file can hold them."""
    if len(segments) <= _SEGMENTS_MAX:
        return []
    chosen = sorted(segments, key=lambda segment: segment.size)[: len(segments) - _SEGMENTS_MAX + 1]
    return chosen if sum(segment.size for segment in chosen) <= _SOURCES_BYTES_MAX else []


def _run_of(files: Files, path: str) -> str:
    """The run's id, as a segment's first block says."""
    reader = SegmentReader(files, path)
    try:
        return str(reader.read_map(reader.blocks[0]).get("run", ""))
    finally:
        reader.close()
