"""The SQL that lies in a dataset's root: what keeps, of what was logged twice, the later, and leaves out what a resume hid.

For DuckDB as it is; other engines are in docs/parquet.md#the-view.
"""

from __future__ import annotations

VIEWS_NAME = "views.sql"

_READ = (
    "read_parquet('{root}/%s/*/*/*.parquet',\n"
    "    hive_partitioning = true, hive_types_autocast = false, union_by_name = true)"
)

_HEAD = """\
-- Views over this dataset, for DuckDB: .read views.sql
-- Read it again when there are new keys: a view knows the columns of the moment at which it was made.

-- What is known of each run; where several stores hold streams of one, what that of the lowest rank says.
CREATE OR REPLACE VIEW runs AS
SELECT * FROM {runs}
QUALIFY row_number() OVER (PARTITION BY project, run ORDER BY rank NULLS FIRST, created) = 1;

-- Every process that logged. Rows from step hide_from on were taken back by a resume.
CREATE OR REPLACE VIEW streams AS
SELECT project, run, unnest(streams, recursive := true)
FROM {runs};

-- Everything that was logged and not taken back, as it came: a step may have several.
CREATE OR REPLACE VIEW pieces AS
SELECT logged.*
FROM {rows} AS logged
ANTI JOIN streams ON logged.project = streams.project AND logged.run = streams.run
    AND logged._stream = streams.stream AND logged._step >= streams.hide_from;
"""

_WIDE = """
-- One row for each process and step: of each key the value with the highest _sequence.
CREATE OR REPLACE VIEW rows AS
SELECT project, run, _stream, _attempt, _rank, _step, max(_time) AS _time, max(_sequence) AS _sequence,
    arg_max(COLUMNS(* EXCLUDE (project, run, _stream, _attempt, _rank, _step, _time, _sequence, _null)), _sequence)
FROM (FROM pieces UNION ALL BY NAME SELECT NULL::VARCHAR[] AS _null WHERE false)
GROUP BY project, run, _stream, _attempt, _rank, _step;
"""

_LONG = """
-- One value for each process, step and key: that with the highest _sequence. A null takes away what was there.
CREATE OR REPLACE VIEW points AS
SELECT * FROM (
    SELECT * FROM pieces
    QUALIFY row_number() OVER (PARTITION BY project, run, _stream, _step, key ORDER BY _sequence DESC) = 1
) WHERE type <> 'null';
"""


def views(root: str, *, is_long: bool) -> str:
    """The text of `views.sql`.

    Args:
        root: Of the dataset, as DuckDB is to find it.
    """
    quoted = root.replace("'", "''")
    head = _HEAD
    for name in ("runs", "rows"):
        head = head.replace(f"{{{name}}}", (_READ % name).replace("{root}", quoted))
    return head + (_LONG if is_long else _WIDE)
