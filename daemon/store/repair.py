"""Repairs the damaged segments of a run: what is found by `sdk.reader.verify` is rewritten by `sdk.segment.repair`.

Large values whose bytes are nowhere in the run become GAPs, which name key and step, in a segment of their own: after that
`verify` finds no damage, and whoever reads them is told why they are not there.

Where all segments that a rewriting replaced are still there and good, what is damaged of it is moved aside: nothing is lost.

A sealed segment is nobody's any more and may be repaired at any time, beside a serving daemon too. An unsealed one is
left alone unless its writer is known to be dead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sdk import clock, platform
from sdk.errors import DamageError, Error, StoreError
from sdk.files import Files
from sdk.ids import random_u64
from sdk.reader.verify import Verified, verify_run
from sdk.segment.format import KIND_GAP, KIND_META, FileHeader
from sdk.segment.naming import HISTORY, SegmentName, format_segment, parse_segment
from sdk.segment.reader import SegmentReader
from sdk.segment.recovery import set_aside
from sdk.segment.repair import Repaired, rewrite
from sdk.segment.writer import SegmentWriter


class Step(NamedTuple):
    """One damaged segment and what was done; or what is told of large values that are lost.

    Attributes:
        path: The damaged segment; it need not exist. The run's directory: the large values that no segment holds.
        found: What was wrong with it.
        repaired: What came of it; None where nothing was done, and then `why` says why not (None in a dry run). Its `path` is
            `path` where the segments that it replaced serve again.
    """

    path: str
    found: list[str]
    repaired: Repaired | None
    why: str | None


def repair_run(
    files: Files,
    store_id: bytes,
    run_id: str,
    directory: str,
    may_rewrite: Callable[[str], bool],
    *,
    dry_run: bool = False,
    note: Callable[[int], None] = lambda size: None,
) -> Iterator[Step]:
    """Repairs what is damaged, one segment for each step. Where nothing is, there is no step and nothing changes.

    Args:
        may_rewrite: Says of an unsealed segment whether its writer is known to be dead.
        note: As in `verify_run`.
    """
    verified = verify_run(files, directory, note)
    spared = set()
    for path, (found, sealed) in damaged(verified).items():
        name = parse_segment(os.path.basename(path))
        if name is not None and name.writer in spared:
            continue  # it was moved aside with another one of its writer
        why = None
        if not sealed and not may_rewrite(path):
            why = "its writer may still live"
        if why is not None or dry_run:
            yield Step(path, found, None, why)
            continue
        try:
            done = _spared(files, path, verified)
            if done is not None and name is not None:
                spared.add(name.writer)
            yield Step(path, found, done or rewrite(files, path, run_id, _header(store_id), _origin()), None)
        except (OSError, StoreError, DamageError) as error:
            yield Step(path, found, None, str(error))
    if verified.blobs:
        found = [lost.text for lost in verified.blobs]
        try:
            told = None if dry_run else _tell(files, store_id, run_id, verified)
            yield Step(directory, found, told, None)
        except OSError as error:
            yield Step(directory, found, None, str(error))


def _spared(files: Files, path: str, verified: Verified) -> Repaired | None:
    """Moves a rewriting aside that nobody needs yet; None: something that it replaced is gone or damaged.

    Raises:
        OSError: The disk refuses.
    """
    directory = os.path.dirname(path)
    name = parse_segment(os.path.basename(path))
    good = {parse_segment(os.path.basename(c.path)) for c in verified.segments if c.sealed and not c.findings}
    names = (parse_segment(entry) for entry, _, _ in files.entries(directory))
    own = sorted(found for found in names if found is not None and name is not None and found.writer == name.writer)
    replaced = {other for member in own for other in _replaced(files, os.path.join(directory, format_segment(member)))}
    there = replaced & good
    # What is not there any more must have been replaced by something that is, before that was rewritten again.
    known = {other for member in there for other in _replaced(files, os.path.join(directory, format_segment(member)))}
    if name not in own or not there or not replaced <= there | known:
        return None
    aside = path
    # The last one first: it alone says what is replaced, and a chain of blocks may end early, but not begin late.
    for member in reversed(own):
        moved = set_aside(files, os.path.join(directory, format_segment(member)))
        aside = moved if member == name else aside
    files.sync_directory(os.path.dirname(aside))
    files.sync_directory(directory)
    return Repaired(path, aside, 0, 0)


def _replaced(files: Files, path: str) -> set[SegmentName]:
    """What a segment says that it replaces."""
    name, found = parse_segment(os.path.basename(path)), set()
    with contextlib.suppress(OSError, Error):
        reader = SegmentReader(files, path)
        try:
            for block in reader.blocks:
                entries = reader.read_map(block).get("replaces") if block.kind == KIND_META else None
                for writer, number in entries if isinstance(entries, list) else ():
                    found.add(SegmentName(int(writer, 16), int(number), name.holds if name else HISTORY))
        except (ValueError, TypeError):  # not written by us
            pass
        finally:
            reader.close()
    return found


def _tell(files: Files, store_id: bytes, run_id: str, verified: Verified) -> Repaired:
    """Writes a segment with a GAP for each large value that is lost.

    Raises:
        OSError: The disk refuses.
    """
    opening = [(KIND_META, {"run": run_id, "writer": _origin()})]
    segment, _ = SegmentWriter.begin(files, verified.directory, _header(store_id), opening)
    try:
        for lost in verified.blobs:
            gap = {**lost.announced.as_gap(), "reason": "damage"}
            segment.append_map(KIND_GAP, gap, stream=lost.announced.ref.stream)
        segment.seal(close=False)
        segment.sync()
    finally:
        segment.close()
    files.sync_directory(verified.directory)
    return Repaired(segment.path, None, 0, 0, 0, len(verified.blobs))


def _header(store_id: bytes) -> FileHeader:
    return FileHeader(store_id, random_u64(), 0, clock.wall_ns())


def _origin() -> dict[str, Any]:
    return {"kind": "repair", "host": platform.host_name(), "boot_id": platform.boot_id(), "pid": os.getpid()}


def damaged(verified: Verified) -> dict[str, tuple[list[str], bool]]:
    """Path -> (what was found, whether nobody writes there any more)."""
    paths = {
        checked.path: ([finding.text for finding in checked.findings], checked.sealed or checked.is_rewritten)
        for checked in verified.segments
        if checked.findings
    }
    for finding in verified.chains:
        # Blocks are missing between this segment and the one before, whose writer has left it: its end is gone.
        name = parse_segment(os.path.basename(finding.path))
        if name is not None:
            before = format_segment(name._replace(number=name.number - 1))
            path = os.path.join(os.path.dirname(finding.path), before)
            found, _ = paths.get(path, ([], True))
            paths[path] = ([*found, finding.text], True)
    return paths
