"""Checks all that a run has on disk, and says what is lost of it: the library under `stepd verify` and `stepd repair`.

Damage is what is not as it was written; a gap is what is missing and accounted for. A run whose damage was repaired has
gaps and no damage. A live run is fine: what its writer is in the middle of is neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import DamageError, NotFoundError
from ..files import Files
from ..journal.announcements import Announcement, announcements
from ..record import BlobRef, Record, pack
from ..segment.check import Announced, Checked, Finding, check_segment
from ..segment.format import BLOCKS_OFFSET, KIND_BLOB, KIND_COLUMNS, KIND_ROWS
from ..segment.naming import parse_segment
from ..segment.windows import is_window, range_of, windows
from .blobs import Blobs
from .contents import raw_of
from .facts import Facts
from .gaps import Gap, broken_chains
from .scan import Scan


class LostBlob(NamedTuple):
    """A large value whose row is there and whose bytes cannot be had, and why; no gap and no tombstone tells of it."""

    announced: Announcement
    text: str


class Verified(NamedTuple):
    """What a look at a run came to.

    Attributes:
        segments: One for each segment that holds anything, in order of their names.
        chains: Where blocks are missing between two segments of a writer; `path` is the one behind.
        gaps: What is not there, whatever the cause; refused calls included.
        notes: What a user may wonder about and that is no damage.
        blobs: Large values that are lost, and nothing accounts for it.
        directory: The run's.
    """

    segments: list[Checked]
    chains: list[Finding]
    gaps: list[Gap]
    notes: list[str]
    blobs: list[LostBlob]
    directory: str

    @property
    def findings(self) -> list[Finding]:
        broken = [finding for checked in self.segments for finding in checked.findings]
        return broken + self.chains + [Finding(self.directory, 0, 0, lost.text) for lost in self.blobs]


def verify_run(files: Files, directory: str, note: Callable[[int], None] = lambda size: None) -> Verified:
    """Reads every block of every segment in a run's directory.

    Args:
        note: Hears how many more bytes were looked at.
    """
    segments, notes = [], []
    announced: list[Announcement] = []

    def heard(stream: int, record: Record) -> None:
        announced.extend(announcements(stream, pack(record)))

    for name, size, _ in files.entries(directory):
        if parse_segment(name) is None:
            continue
        path = os.path.join(directory, name)
        checked = _checked(files, path, note, heard)
        if checked is None:
            continue
        if not checked.is_file:
            notes.append(f"{name} is ignored: it {checked.findings[0].text}")
            continue
        if size < BLOCKS_OFFSET:
            notes.append(f"{name} holds nothing: its writer is just making it, or died there")
            continue
        segments.append(checked)
    scan, facts = Scan(files, directory), Facts()
    try:
        scan.refresh()
        facts.update(scan)
        for checked in segments:
            for finding in checked.findings:
                scan.unreadable.update(_unreadable(scan, os.path.basename(checked.path), finding))
        gaps = facts.refused() + facts.missing(scan)
        chains = [Finding(d.path, d.start, d.end, d.reason) for d in broken_chains(scan, facts.replaced)]
    finally:
        scan.close()
    suspects = {
        (finding.block.stream, finding.block.first)
        for checked in segments
        for finding in checked.findings
        if finding.block is not None and finding.block.kind == KIND_BLOB
    }
    told = {(gap.key, gap.step_min) for gap in gaps if gap.key is not None}
    blobs = [
        LostBlob(one, f"the {one.ref.size:,} bytes of {one.key!r} at step {one.step} {trouble}")
        for one in {(one.ref.stream, one.ref.number): one for one in announced}.values()
        if (one.key, one.step) not in told
        and (one.ref.stream, one.ref.number) not in facts.lost_blobs
        and (trouble := _blob_trouble(scan.blobs, one.ref, suspects)) is not None
    ]
    return Verified(segments, chains, gaps, notes, blobs, directory)


def _unreadable(scan: Scan, name: str, finding: Finding) -> Iterator[tuple[str, int]]:
    """Where the blocks are of which not a row can be read; a window of which some can is told of by its findings."""
    block = finding.block
    if block is None or not finding.records or block.kind not in (KIND_ROWS, KIND_COLUMNS):
        return
    if not is_window(block):
        yield name, block.offset
    elif finding.records > block.last - block.first and name in scan.sources:
        members = windows(scan.sources[name].blocks).get(range_of(block), [])
        yield from ((name, member.offset) for member in members)


def _blob_trouble(blobs: Blobs, ref: BlobRef, suspects: set[tuple[int, int]]) -> str | None:
    """Why the bytes of a blob cannot be had, or are not those that were logged.

    Those that say their digest are compared with it, as far as what is stored gives back what was logged (a PNG does not).
    The others are read only where a block of theirs is damaged.
    """
    try:
        meta, chunks = blobs.stream(ref)
        with contextlib.closing(chunks):
            digest = meta.get("digest")
            if type(digest) is not bytes:
                if (ref.stream, ref.number) in suspects:
                    deque(chunks, 0)
                return None
            if "encoding" not in meta:
                hashed = hashlib.sha256()
                deque(map(hashed.update, chunks), 0)
                return None if hashed.digest() == digest else "are not those that were logged: their SHA-256 differs"
        stored = blobs.read(ref)
        raw = raw_of(stored)
        if raw is not stored and hashlib.sha256(raw.data).digest() != digest:
            return "are not those that were logged: their SHA-256 differs"
    except NotFoundError:
        return None if blobs.removal(ref) is not None else "are missing"
    except DamageError as error:
        return f"cannot be read: {error.message}"
    return None


def _checked(files: Files, path: str, note: Callable[[int], None], heard: Announced) -> Checked | None:
    """None: it was replaced meanwhile."""
    try:
        checked = check_segment(files, path, note, heard)
        if checked.findings and not checked.sealed:
            # Race: its writer was in the middle of a block or of sealing.
            checked = check_segment(files, path, announced=heard)
    except FileNotFoundError:
        return None
    return checked
