"""The relations of SQL that every store has, and their columns (docs/sql.md#relations); `known` reads them."""

from __future__ import annotations

# What a type is called here -> what DuckDB calls it.
TYPES = {
    "text": "VARCHAR", "integer": "BIGINT", "number": "DOUBLE", "time": "TIMESTAMP WITH TIME ZONE", "texts": "VARCHAR[]",
    "boolean": "BOOLEAN", "struct": "STRUCT(…)",
}  # fmt: skip

_WHOSE = {"run": "text", "project": "text"}
_VALUES = {
    **_WHOSE, "key": "text", "step": "integer", "time": "time", "value": "number", "text": "text", "stream": "text",
    "rank": "integer",
}  # fmt: skip

COLUMNS = {
    "runs": {
        "id": "text", "name": "text", "project": "text", "group": "text", "job_type": "text", "tags": "texts", "notes": "text",
        "state": "text", "created": "time", "started": "time", "updated": "time", "duration": "number", "step": "integer",
        "records": "integer", "size": "integer", "exit_code": "integer", "host": "text", "config": "struct", "summary": "struct",
    },
    "metrics": _VALUES,
    "system": _VALUES,
    "logs": {
        **_WHOSE, "time": "time", "source": "text", "level": "integer", "level_name": "text", "text": "text", "step": "integer",
        "rank": "integer", "host": "text", "logger": "text", "error": "text", "place": "text", "missed": "integer",
    },
    "media": {
        **_WHOSE, "key": "text", "step": "integer", "time": "time", "index": "integer", "kind": "text", "format": "text",
        "caption": "text", "size": "integer", "is_stored": "boolean", "digest": "text", "file_name": "text",
    },
    "tables": {
        **_WHOSE, "key": "text", "relation": "text", "step": "integer", "rows": "integer", "columns": "texts",
    },
    "gaps": {
        **_WHOSE, "stream": "text", "count": "integer", "step_min": "integer", "step_max": "integer", "started": "time",
        "ended": "time", "reason": "text", "first": "integer", "last": "integer", "key": "text",
    },
    "artifacts": {
        "name": "text", "version": "text", "type": "text", **_WHOSE, "created": "time", "size": "integer", "files": "integer",
        "digest": "text", "aliases": "texts", "tags": "texts", "description": "text", "metadata": "text",
    },
}  # fmt: skip
