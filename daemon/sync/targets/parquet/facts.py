"""What is known of a run, as a table of one row, so that SQL can join it to the run's values.

The maps are whole as JSON (`config`, `summary`, `context`); what is plain in config and summary stands in columns of its own too
(``config.lr``), numbers as double, so that two runs, one with an integer and one with a float, go together. `streams` says of each stream
whose it is, and from which step on a resume hides its rows.

Several stores may hold streams of one run: each has a file of its own, named by its oldest stream.
"""

from __future__ import annotations

import hashlib
from typing import Any

from daemon.sync.targets.parquet.cells import strict_json, whole
from sdk.reader import Run
from sdk.reader.about import StreamInfo
from sdk.rows import flatten

# Limit: a column costs each reader of the table a few hundred bytes; the rest is in the JSON.
_COLUMNS_MAX = 500
_NO_STREAM = "0" * 16


def facts_name(run: Run) -> str:
    """The name of the run's file."""
    oldest = min(run.streams, key=lambda stream: (stream.started, stream.id), default=None)
    return f"{_NO_STREAM if oldest is None else oldest.id}.parquet"


def facts_of(run: Run) -> dict[str, Any]:
    """The row, as plain values."""
    config, summary = run.config, run.summary
    main = run.streams[0] if run.streams else None
    error = run.error
    found: dict[str, Any] = {
        "id": run.id, "name": run.name, "state": run.state, "group": run.group, "job_type": run.job_type,
        "notes": run.notes, "tags": run.tags, "created": run.created, "started": run.started, "exit_code": whole(run.exit_code),
        "error": None if error is None else f"{error.type}: {error.message}", "last_step": run.last_step,
        "rank": None if main is None else whole(main.rank), "host": None if main is None else main.host,
        "config": strict_json(config), "summary": strict_json(summary), "context": strict_json(run.context),
        "streams": [_stream(stream, run.hidden_from) for stream in run.streams],
    }  # fmt: skip
    for prefix, values in (("config", config), ("summary", summary)):
        found.update(_columns(prefix, values))
    return {name: _text(value) if isinstance(value, str) else value for name, value in found.items()}


def _stream(stream: StreamInfo, hidden_from: dict[str, int]) -> dict[str, Any]:
    return {
        "stream": stream.id, "kind": _text(stream.kind), "rank": whole(stream.rank), "attempt": whole(stream.attempt),
        "host": None if stream.host is None else _text(stream.host), "pid": whole(stream.pid), "started": stream.started,
        "state": stream.state, "hide_from": hidden_from.get(stream.id),
    }  # fmt: skip


def _columns(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    try:
        flat = flatten(values)
    except ValueError:  # its names would fill the memory
        return {}
    plain = {name: value for name, value in flat.items() if type(value) in (bool, int, float, str)}
    return {
        f"{prefix}.{name.encode('utf-8', 'backslashreplace').decode()}": _number(value)
        for name, value in list(plain.items())[:_COLUMNS_MAX]
    }


def _number(value: Any) -> Any:
    try:
        return float(value) if type(value) is int else value
    except OverflowError:
        return str(value)


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def digest_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(strict_json(facts).encode()).hexdigest()[:16]


def facts_table(arrow: Any, facts: dict[str, Any]) -> Any:
    """The table of the row."""
    text, integer, moment = arrow.string(), arrow.int64(), arrow.timestamp("us", tz="UTC")
    stream = arrow.struct(
        {
            "stream": text, "kind": text, "rank": arrow.int64(), "attempt": arrow.int64(), "host": text, "pid": integer,
            "started": moment, "state": text, "hide_from": integer,
        }
    )  # fmt: skip
    kinds = {
        "created": moment, "started": moment, "tags": arrow.list_(text), "streams": arrow.list_(stream), "error": text,
        "exit_code": arrow.int64(), "last_step": integer, "rank": arrow.int64(), "host": text,
    }  # fmt: skip
    row = dict(facts)
    row["streams"] = [{**one, "started": _moment(one["started"])} for one in row["streams"]]
    row["tags"] = [_text(tag) for tag in row["tags"]]
    row.update(created=_moment(row["created"]), started=_moment(row["started"]))
    return arrow.table({name: arrow.array([value], kinds.get(name)) for name, value in row.items()})


def _moment(seconds: float) -> int:
    return round(seconds * 1e6)
