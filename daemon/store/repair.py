"""Repairs the damaged segments of a run: what is found by `sdk.reader.verify` is rewritten by `sdk.segment.repair`.

A sealed segment is nobody's any more and may be repaired at any time, beside a serving daemon too. An unsealed one is
left alone unless its writer is known to be dead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sdk import clock, platform
from sdk.errors import DamageError, StoreError
from sdk.files import Files
from sdk.ids import random_u64
from sdk.reader.verify import Verified, verify_run
from sdk.segment.format import FileHeader
from sdk.segment.naming import format_segment, parse_segment
from sdk.segment.repair import Repaired, rewrite


class Step(NamedTuple):
    """One damaged segment and what was done.

    Attributes:
        path: The damaged segment; it need not exist.
        found: What was wrong with it.
        repaired: What came of it; None where nothing was done, and then `why` says why not (None in a dry run).
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
    for path, (found, sealed) in damaged(verify_run(files, directory, note)).items():
        why = None
        if not sealed and not may_rewrite(path):
            why = "its writer may still live"
        if why is not None or dry_run:
            yield Step(path, found, None, why)
            continue
        header = FileHeader(store_id, random_u64(), 0, clock.wall_ns())
        origin = {"kind": "repair", "host": platform.host_name(), "boot_id": platform.boot_id(), "pid": os.getpid()}
        try:
            yield Step(path, found, rewrite(files, path, run_id, header, origin), None)
        except (OSError, StoreError, DamageError) as error:
            yield Step(path, found, None, str(error))


def damaged(verified: Verified) -> dict[str, tuple[list[str], bool]]:
    """Path -> (what was found, whether nobody writes there any more)."""
    paths = {
        checked.path: ([finding.text for finding in checked.findings], checked.sealed)
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
