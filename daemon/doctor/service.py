"""The daemon of the store: whether one serves, whether it is of this version, and what troubles it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any

from daemon.doctor.finding import Finding, bad, note, ok, warn
from daemon.doctor.machine import Machine
from sdk import __version__, _spawn
from sdk._greeting import count, duration
from sdk.errors import Error
from sdk.files import DISK, read_whole
from sdk.transport import known_lock_path, request

_ANSWER_SECONDS = 2.0
_LOG_FILE = "daemon.log"
_LOG_BYTES_MAX = 8 << 20
_LOG_LINES = 40
_WARNINGS_MAX = 3
_LOCK_BYTES_MAX = 64 << 10
_LINE_CHARACTERS_MAX = 200
# As `daemon.server` logs it when it has begun.
_SERVING = re.compile(r" serving .*, pid ([0-9]{1,9}), version ")


def check_daemon(machine: Machine) -> Iterator[Finding]:
    """Serving, stopped, or none; its version, warnings and last trouble."""
    store = machine.store
    where = f"--dir {shlex.quote(store)}"
    if not DISK.exists(store):
        yield ok("none, and no store yet; the first init() makes both")
        return
    if not _spawn.is_serving(store):
        if _spawn.was_stopped(store):
            yield note("stopped by `stepd stop`: until the next init() records go to the spool", f"stepd start {where}")
        elif trouble := last_trouble(store):
            yield warn(f"none serves, and the last one ended with {trouble}", f"stepd status --log {where}")
        elif killed := killed_one(store):
            pid, last = killed
            text = f"none serves: the last one, process {pid}, was killed; the next init() starts one. Its last line: {last}"
            yield warn(text, f"stepd start {where}", f"stepd status --log {where}")
        else:
            yield ok("none serves now; the next init() starts one")
        return
    try:
        told = request(store, "status", timeout=_ANSWER_SECONDS)
    except Error as error:
        yield bad(f"one holds the store and does not answer: {error.message}", f"stepd restart {where}")
        return
    yield from judge_status(told, where)


def judge_status(told: dict[str, Any], where: str) -> Iterator[Finding]:
    """What is said of the answer of a daemon that serves."""
    version = told.get("version")
    if version != __version__:
        yield warn(f"the daemon is of version {version}, this is {__version__}", f"stepd restart {where}")
    warnings = [str(line) for line in told.get("warnings") or ()]
    for text, _, cure in (line.partition(". Try: ") for line in warnings[:_WARNINGS_MAX]):
        yield bad(text, *([cure] if cure else []))
    failures = int(told.get("write_failures") or 0) + int(told.get("sync_failures") or 0)
    if failures:
        last = f"; the last: {told.get('last_error')}" if told.get("last_error") else ""
        yield warn(f"{count(failures, 'write')} or fsyncs failed since it started{last}", f"stepd status --log {where}")
    refused = int(told.get("refused") or 0)
    if refused:
        yield warn(f"{count(refused, 'record')} of its runs refused", f"stepd status {where}")
    stays = "stays until stopped" if told.get("persistent") else "leaves when idle"
    yield ok(
        f"serves {count(len(told.get('runs') or ()), 'run')}, up {duration(told.get('uptime_seconds') or 0)}, {stays}, "
        f"version {version}"
    )


def last_trouble(store: str) -> str:
    """The last line of a traceback that ends the log of the last daemon; "" where it left in peace."""
    lines = _log_of(store)[-_LOG_LINES:]
    starts = [at for at, line in enumerate(lines) if line.startswith("Traceback ")]
    # Behind it come indented lines, the error, and nothing else.
    after = [line for line in lines[starts[-1] + 1 :] if line and not line.startswith(" ")] if starts else []
    return after[0][:200] if len(after) == 1 else ""


def killed_one(store: str) -> tuple[int, str] | None:
    """The last daemon on this host and the last line that it logged, where it did not say that it leaves.

    The lock's file says who held it last: a log may be that of a daemon on another host, or from before the machine was started.
    """
    try:
        said = json.loads(read_whole(DISK, known_lock_path(store), _LOCK_BYTES_MAX))
        pid = int(said["pid"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    lines = [line for line in _log_of(store) if line.strip()]
    began = max((at for at, line in enumerate(lines) if _SERVING.search(line)), default=None)
    if began is None or any(line.endswith("leaving") for line in lines[began:]):
        return None
    match = _SERVING.search(lines[began])
    assert match is not None
    return (pid, lines[-1].strip()[:_LINE_CHARACTERS_MAX]) if int(match[1]) == pid else None


def _log_of(store: str) -> list[str]:
    """The lines of the daemons' log; [] where it cannot be read."""
    try:
        return read_whole(DISK, os.path.join(store, _LOG_FILE), _LOG_BYTES_MAX).decode(errors="replace").splitlines()
    except OSError:
        return []
