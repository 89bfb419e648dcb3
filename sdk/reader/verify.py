"""Checks all that a run has on disk, and says what is lost of it: the library under `stepd verify` and `stepd repair`.

Damage is what is not as it was written; a gap is what is missing and accounted for. A run whose damage was repaired has
gaps and no damage. A live run is fine: what its writer is in the middle of is neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from ..files import Files
from ..ids import hex_u64
from ..journal.announcements import Announcement, announcements
from ..record import Record, pack
from ..segment.check import Announced, Checked, Finding, check_segment
from ..segment.format import BLOCKS_OFFSET, KIND_ROWS
from ..segment.naming import parse_segment
from .blobs import Blobs
from .facts import Facts
from .gaps import Gap, broken_chains
from .scan import Scan


class Verified(NamedTuple):
    """What a look at a run came to.

    Attributes:
        segments: One for each segment that holds anything, in order of their names.
        chains: Where blocks are missing between two segments of a writer; `path` is the one behind.
        gaps: What is not there, whatever the cause; refused calls included.
        notes: What a user may wonder about and that is no damage.
    """

    segments: list[Checked]
    chains: list[Finding]
    gaps: list[Gap]
    notes: list[str]

    @property
    def findings(self) -> list[Finding]:
        return [finding for checked in self.segments for finding in checked.findings] + self.chains


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
                if finding.records and finding.block is not None and finding.block.kind == KIND_ROWS:
                    scan.unreadable.add((os.path.basename(checked.path), finding.block.offset))
        gaps = facts.refused() + facts.missing(scan)
        chains = [Finding(d.path, d.start, d.end, d.reason) for d in broken_chains(scan, facts.replaced)]
    finally:
        scan.close()
    return Verified(segments, chains + _missing_blobs(files, directory, announced, gaps), gaps, notes)


def _missing_blobs(files: Files, directory: str, announced: list[Announcement], gaps: list[Gap]) -> list[Finding]:
    """Large values whose rows are there and whose bytes are not, but for those of which a gap or a tombstone tells."""
    blobs = Blobs(files, directory)
    told = {(gap.key, gap.step_min) for gap in gaps if gap.key is not None}
    found = []
    for one in dict.fromkeys((one.ref, one.key, one.step) for one in announced):
        ref, key, step = one
        if (key, step) not in told and not blobs.find(ref) and blobs.removal(ref) is None:
            text = f"the {ref.size} bytes of {key!r} at step {step} (blob {ref.number} of stream {hex_u64(ref.stream)}) are missing"
            found.append(Finding(directory, 0, 0, text))
    return found


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
