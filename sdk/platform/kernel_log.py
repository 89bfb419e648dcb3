"""Lines of the kernel's log that tell why a process ended: the OOM killer, a crash, a GPU's Xid, a disk; where we may read it.

/dev/kmsg first (where `kernel.dmesg_restrict` is 0, or for root), else the journal (for members of `adm` or `systemd-journal`).
The kernel names processes by the numbers of the outermost pid namespace: in a container those are other ones.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import time
from collections.abc import Iterable
from typing import NamedTuple

KMSG = "/dev/kmsg"
# Limits: a record of /dev/kmsg is at most 8 KiB. Of a log that is a flood the newest records are what matters; it is read from the
# oldest on, a microsecond each, and may be 16 MiB of short ones.
_RECORDS_MAX, _RECORD_BYTES_MAX, _READS_MAX = 20_000, 8192, 400_000
_LINE_CHARACTERS_MAX = 400
_JOURNAL_SECONDS_MAX = 3.0
_JOURNAL_BYTES_MAX = 4 << 20

# Kind of a line -> what it looks like; the first group, where there is one, is the process.
_KINDS = {
    "oom": re.compile(r"(?:[Oo]ut of memory|oom-kill)\b.*?(?:Kill(?:ed)? process |[,\s]pid=)(\d+)"),
    "xid": re.compile(r"NVRM: Xid \([^)]*\): \d+(?:, pid='?(\d+))?"),
    "crash": re.compile(r"(?:traps: )?[^\s\[\]]{1,16}\[(\d+)\]:? (?:segfault|general protection|trap |bad frame)"),
    "disk": re.compile(
        r"I/O error|EXT4-fs error|XFS \([^)]*\).*(?:shut ?down|corrupt)|nfs: server \S+ not responding|Remounting filesystem read-only"
    ),
}  # fmt: skip
_XID = re.compile(r"NVRM: Xid \(([^)]*)\): (\d+)")


class KernelLine(NamedTuple):
    """One line. `time` is in Unix seconds; `kind` "oom", "xid", "crash" or "disk"; `pid` 0 where it names none."""

    time: float
    kind: str
    pid: int
    text: str


def read_kernel_log(since: float, path: str = KMSG, *, journal: bool = True) -> list[KernelLine] | None:
    """The telling lines that are not older than `since` (Unix seconds), oldest first; None: we may not read the log.

    Args:
        journal: Ask journalctl where /dev/kmsg may not be read, which can take seconds.
    """
    try:
        lines: Iterable[tuple[float, str]] = _kmsg(path, since)
    except OSError:
        if not journal or (found := _journal(since)) is None:
            return None
        lines = found
    return [line for when, text in lines if when >= since and (line := classified(when, text)) is not None]


def classified(when: float, text: str) -> KernelLine | None:
    """What a line tells; None: nothing about why a process ended."""
    for kind, pattern in _KINDS.items():
        match = pattern.search(text)
        if match is not None:
            pid = int(match[1]) if match.groups() and match[1] and len(match[1]) < 12 else 0
            return KernelLine(when, kind, pid, text[:_LINE_CHARACTERS_MAX])
    return None


def xid_of(text: str) -> tuple[str, int] | None:
    """Of a line of kind "xid": the GPU's place on the bus, and the number."""
    match = _XID.search(text)
    return (match[1], int(match[2])) if match is not None and len(match[2]) < 6 else None


def _kmsg(path: str, since: float) -> Iterable[tuple[float, str]]:
    """(Unix seconds, text) of the newest records that are not older than `since`. Raises OSError: it may not be read."""
    offset = time.time() - time.monotonic()
    found: collections.deque[tuple[float, str]] = collections.deque(maxlen=_RECORDS_MAX)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        for _ in range(_READS_MAX):
            try:
                data = os.read(descriptor, _RECORD_BYTES_MAX)
            except BlockingIOError:
                break
            except BrokenPipeError:  # what we were about to read was overwritten; the next call goes on behind it
                continue
            if not data:
                break
            for record in data.split(b"\n"):
                head, is_record, text = record.partition(b";")
                fields = head.split(b",", 3)
                if is_record and len(fields) > 2 and fields[2].isdigit():
                    when = offset + int(fields[2]) / 1e6
                    if when >= since:
                        found.append((when, text.decode("utf-8", "replace")))
    finally:
        os.close(descriptor)
    return found


def _journal(since: float) -> list[tuple[float, str]] | None:
    import subprocess

    words = [
        "journalctl",
        "-k",
        "-q",
        "--no-pager",
        "-o",
        "short-unix",
        "-n",
        str(_RECORDS_MAX),
        f"--since=@{int(since)}",
    ]
    try:
        done = subprocess.run(
            words, capture_output=True, timeout=_JOURNAL_SECONDS_MAX, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    found = []
    for line in done.stdout[-_JOURNAL_BYTES_MAX:].decode("utf-8", "replace").splitlines():
        stamp, _, rest = line.partition(" ")
        with contextlib.suppress(ValueError):
            found.append((float(stamp), rest.partition("kernel: ")[2]))
    return found
