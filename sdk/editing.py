"""Facts that somebody adds to a run from outside, after the training or beside it: a name, tags, notes, a value of the summary.

Nobody writes into a file of another writer. An edit is a segment of its own, of a writer of its own, with one stream of kind
"edit" that holds one record: the facts (docs/segment.md#meta), who set them, and the stream's end. It is written under a name
that no reader looks at, sealed, forced, and only then renamed: whoever is killed leaves the facts as they were or as they were
to be. Nothing is asked of a daemon or of the trainer, so it works while the run is written, here or on another host.

Which facts hold is decided by time (`sdk.reader.facts`), the later wins. So an edit says that it is later than all that is
known of the run, whatever its host's clock says; what a trainer sets after that wins again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from . import clock, platform
from .errors import StoreError, UsageError
from .files import DISK, Files, sync_names
from .ids import hex_u64, random_u64
from .limits import MIB
from .location import StoreIdentity, check_store, read_store
from .record import KIND_META, Record, encode_map, pack
from .segment import format as segment_format
from .segment.format import FileHeader
from .segment.naming import HISTORY, RUN_LEVELS, SegmentName, format_draft, format_segment
from .segment.writer import SegmentWriter

KIND = "edit"
# Limit: as much as one call of `log` may say.
FACTS_BYTES_MAX = 2 * MIB
_TIME_MAX = 2**63 - 1


def facts_of(
    before: Mapping[str, Any], *, summary: Mapping[str, Any] | None = None, summary_removed: Iterable[str] = (),
    config: Mapping[str, Any] | None = None, **texts: Any,
) -> dict[str, Any]:  # fmt: skip
    """What a user wants to set, as facts; {} where nothing was given.

    Why no value of the config may change: it says what the training was started with, and everybody who compares runs believes it. One
    that it lacks may be added.

    Args:
        before: The config as it is.
        texts: name, notes, group, job_type: texts; tags: a list of them. None: not given.

    Raises:
        UsageError: A value cannot be stored, or the config has another one.
    """
    from .settings import Settings

    told = {name: value for name, value in texts.items() if value is not None}
    try:
        checked = Settings(**told)
        facts: dict[str, Any] = {"run": {name: getattr(checked, name) for name in told}}
        if "tags" in told:
            facts["run"]["tags"] = list(checked.tags)
        facts["summary"] = _plain(summary or {}, "summary")
        facts["config"] = _added(before, _plain(config or {}, "config"))
    except (TypeError, ValueError) as error:
        raise UsageError(f"set() {error}") from None
    facts["summary_removed"] = list(summary_removed)
    return {name: values for name, values in facts.items() if values}


def _plain(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    from .values import plain_value

    for key in values:
        if not isinstance(key, str) or not key:
            raise TypeError(f"{what} key {key!r}, expected a text")
    return {key: plain_value(value, key) for key, value in values.items()}


def _added(before: Mapping[str, Any], given: Mapping[str, Any], above: str = "config") -> dict[str, Any]:
    """What of the given values is new, each with what stands beside it."""
    added: dict[str, Any] = {}
    for key, value in given.items():
        old = before.get(key)
        if key not in before:
            added[key] = value
        elif isinstance(old, dict) and isinstance(value, dict):
            inner = _added(old, value, f"{above}.{key}")
            if inner:
                added[key] = {**old, **inner}
        elif old != value:
            raise UsageError(
                f"cannot set {above}.{key} to {value!r}: the run was started with {old!r}, and its config goes on to say so",
                hint=f"summary.{above}.{key}=…, or notes=…".replace("config.", "", 1),
            )
    return added


def write_edit(
    store: str, directory: str, run_id: str, facts: Mapping[str, Any], *, after_ns: int = 0, modified: float | None = None,
    files: Files = DISK, now_ns: int | None = None,
) -> None:  # fmt: skip
    """Adds facts to a run; when it returns they are on the disk.

    Args:
        store: The store's path.
        directory: The run's.
        facts: Maps of docs/segment.md#meta: "run", "summary", "summary_removed", "config".
        after_ns: The time of the latest fact that is known.
        modified: When the run's segments last changed, Unix seconds, which its files go on to say: of a run of another host
            only that tells whether it lives. None: now.

    Raises:
        UsageError: They are too large.
        StoreError: They cannot be written: the store is read-only, of somebody else, full, away. The run is as it was, unless the
            message says that only forcing failed.
    """  # fmt: skip
    identity = read_store(store, files)
    if not identity.writable:
        raise StoreError(
            f"the store {store!r} is not yours alone, so nothing is written there",
            hint="STEPD_TRUST_STORE=1, if you trust everybody who can write there",
        )
    if after_ns >= _TIME_MAX:
        raise StoreError(
            f"run {run_id!r} holds a fact of the last moment that can be told (the year 2262), and nothing set now would win over it"
        )
    stream = random_u64()
    time_ns = max(clock.wall_ns() if now_ns is None else now_ns, after_ns + 1)
    about = {"id": hex_u64(stream), "kind": KIND, **platform.identity(), "started_ns": time_ns, "user": _user()}
    told = {"stream": about, **facts, "end": {"state": "finished", "exit_code": 0, "time_ns": time_ns}}
    packed = encode_map(told)
    if len(packed) > FACTS_BYTES_MAX:
        raise UsageError(f"facts of {len(packed):,} bytes, expected at most {FACTS_BYTES_MAX:,}")
    try:
        check_store(identity, files)
        path = _write(identity, directory, run_id, stream, Record(1, 0, 0, KIND_META, time_ns, packed), modified, files)
    except OSError as error:
        raise StoreError(f"cannot write to run {run_id!r}: {error}", hint="stepd doctor") from error
    try:
        sync_names(files, directory, RUN_LEVELS)
    except OSError as error:
        raise StoreError(
            f"the facts are written, but {os.path.basename(path)!r} could not be forced to the disk: {error}; a power loss may take them"
        ) from error


def _write(
    store: StoreIdentity, directory: str, run_id: str, stream: int, record: Record, modified: float | None, files: Files
) -> str:
    """Makes the segment and gives it its name; its path."""
    name = SegmentName(random_u64(), 0, HISTORY)
    header = FileHeader(store.id, name.writer, name.number, record.time_ns)
    # Why of no machine: a rewriting on this one removes what has its machine's tag, whose writer it takes for dead.
    draft = os.path.join(directory, format_draft(name, ""))
    path = os.path.join(directory, format_segment(name))
    writer = {"kind": KIND, **platform.identity(), "stream": hex_u64(stream)}
    segment = SegmentWriter.create(files, draft, header)
    try:
        try:
            segment.append_map(segment_format.KIND_META, {"run": run_id, "writer": writer})
            segment.append(
                segment_format.KIND_ROWS, pack(record), stream=stream, first=1, last=1, records=1,
                flags=segment_format.FLAG_HAS_META, keys={},
            )  # fmt: skip
            segment.seal(close=False)
            segment.sync()
        finally:
            segment.close()
        if modified is not None:
            files.set_modified(draft, modified)
        files.rename(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove(draft)
        raise
    return path


def _user() -> str:
    return os.environ.get("USER") or os.environ.get("LOGNAME") or str(os.getuid())
