from __future__ import annotations

import math
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pytest

import sdk
from sdk.errors import Error, UsageError
from sdk.limits import STEP_MAX
from sdk.query.sql import aside as aside_module
from sdk.query.sql import known, typed
from sdk.query.sql import query as sql_module
from sdk.query.sql.aside import Aside
from sdk.query.sql.pruning import Filter
from sdk.query.sql.query import Answer, Database, names_in, sql
from sdk.reader import Store, open_store
from sdk.reader.scan import Scan
from tests.builders import START_NS, RunBuilder, compact, make_run, make_store
from tests.media_rig import MediaBuilder
from tests.store_rig import Watched

ODD = 'it\'s "odd" ü/日本 %'
MIXED: list[dict[str, Any]] = [
    {"x": 1.5, "n": 3, "b": True, "t": "one", "l": [1, 2]},
    {"x": math.nan, "n": 2**60 + 1, "b": False, "t": "two"},
    {"x": math.inf, "n": -(2**53), "mixed": "text", ODD: 7.0},
    {"x": -1.0, "n": 0, "mixed": 2.5, "null": None},
]


def tuples(answer: Answer) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in answer]


@pytest.fixture(scope="module", params=["rows", "columns"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three runs of two projects: one of odd values, one of two processes that was resumed, one with an odd name."""
    path = make_store(tmp_path_factory.mktemp("odd"))
    made = [
        make_run(path, "a41f", MIXED, config={"lr": 0.1, "model": {"depth": 2}}, tags=["t", "u"], name="calm"),
        resumed(path),
        make_run(
            path, "c3", [{"loss": 9.0 - i} for i in range(5)], project=ODD, config={"lr": 0.01, "Lr": "text"}, state="failed"
        ),
    ]  # fmt: skip
    if request.param == "columns":
        for run in made:
            compact(run, window=10)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two runs, for what is the same over rows and over columns."""
    path = make_store(tmp_path_factory.mktemp("two"))
    make_run(path, "a41f", MIXED)
    make_run(path, "c3", [{"loss": 9.0 - i} for i in range(5)], project=ODD)
    return path


def resumed(store: str) -> RunBuilder:
    """A run of two ranks, whose first one was resumed at step 30 and says the rows from there on anew."""
    run = RunBuilder(store, "b52e", name="brave")
    first = run.stream(rank=0, started_ns=START_NS + 10**9)
    for step in range(40):
        first.log({"loss": float(step)})
    other = run.stream("fork", rank=1, started_ns=START_NS + 2 * 10**9)
    for step in range(20):
        other.log({"loss": 100.0 + step, "other": step})
    again = run.stream(
        rank=0, continues=first.hex, attempt=2, first_step=30, hide_from=30, started_ns=START_NS + 3 * 10**9
    )
    for step in range(30, 50):
        again.log({"loss": -float(step)})
    first.finish("preempted")
    for stream in (other, again):
        stream.finish()
    run.seal()
    return run


def in_python(store: str) -> Counter[tuple[Any, ...]]:
    """All values of all runs as `series` gives them, of each rank by itself, as a row of `metrics` has them."""
    found: Counter[tuple[Any, ...]] = Counter()
    for run in open_store(store).runs():
        ranks = sorted({stream.rank or 0 for stream in run.streams})
        for key in run.all_keys():
            for rank in ranks:
                try:
                    series = run.series(key, rank=rank if len(ranks) > 1 else None)
                except sdk.NotFoundError:
                    continue
                for step, time, value in zip(series.step.tolist(), series.time.tolist(), series.value):
                    found[run.id, run.project, key, step, round(time * 1e6), rank, repr(as_stored(value))] += 1
    return found


def as_stored(value: Any) -> tuple[float | None, str | None]:
    """A value as `value` and `text` hold it."""
    if isinstance(value, str):
        return None, value
    if isinstance(value, list):
        return None, str(value)
    number = float(value)
    is_exact = isinstance(value, (bool, float, numpy.bool_, numpy.floating)) or int(number) == int(value)
    return number, None if is_exact else str(value)


def test_metrics_are_what_series_gives(both: str) -> None:
    """Every value of every run and rank is a row of `metrics`, with its step, time and rank; what a resume hid is not."""
    answer = sql("select run, project, key, step, epoch_us(time), rank, value, text from metrics", dir=both)
    found = Counter((*row[:6], repr((row[6], row[7]))) for row in tuples(answer))
    assert found == in_python(both)
    assert answer.notes == []


CONDITIONS = [
    "run = 'a41f' and key = 'x'", "step > 2", "step between 12 and 31 and key = 'loss'", "step in (3, 35, 1000)",
    "value > 1", "value = 'nan'::double", "value < 0 or text is not null", "key like 'l%' and not run = 'c3'",
    "run in ('c3', 'b52e') or step = 1", "run = 'none'", "project = 'digits' and rank = 1", "step % 2 = 0",
    "step < 0", "step > 5 and step < 3", "time >= '2023-11-14 22:13:23+00'::timestamptz", "value is null",
    "key = 'run'", "(run = 'a41f' and step = 0) or (run = 'b52e' and key = 'other')", "run > 'a' and run < 'c'",
]  # fmt: skip


def test_conditions_mean_the_same_where_they_are_pushed(both: str) -> None:
    """A filter that a scan gets leaves the rows that it leaves of a table which DuckDB holds itself, NaN included."""
    database = Database(open_store(both))
    try:
        database.reader("create table held as from metrics")
        for condition in CONDITIONS:
            columns = "select run, key, step, value, text from"
            pushed, held = (
                Counter(map(repr, database.reader(f"{columns} {name} where {condition}").read_all().to_pylist()))
                for name in ("metrics", "held")
            )
            assert pushed == held, condition
    finally:
        database.close()


def test_runs(both: str) -> None:
    """`runs` has the facts of each, config and summary as structs; keys that differ in case alone are told apart."""
    found = sql(
        'select id, name, project, state, tags, step, config.lr, config.model.depth, config."Lr_2", summary.loss, '
        "epoch(created)::bigint, duration >= 0 from runs order by id",
        dir=both,
    )
    runs = {run.id: run for run in open_store(both).runs()}
    created = [int(runs[name].created) for name in ("a41f", "b52e", "c3")]
    assert tuples(found) == [
        ("a41f", "calm", "digits", "finished", ["t", "u"], 3, 0.1, 2, None, None, created[0], True),
        ("b52e", "brave", "digits", "finished", [], 49, None, None, None, -49.0, created[1], True),
        ("c3", "calm-otter-12", ODD, "failed", [], 4, 0.01, None, "text", 5.0, created[2], True),
    ]
    assert tuples(sql("select count(*) from runs where config.lr < 0.05", dir=both)) == [(1,)]


def test_a_project_is_a_relation(both: str) -> None:
    """A project's name gives a row for each step of each run and a column for each key, joined as `Run.rows` does."""
    found = sql("select run, step, loss, other, x, t from digits where step in (1, 35) order by all", dir=both)
    assert [tuple(map(str, row)) for row in tuples(found)] == [
        ("a41f", "1", "None", "None", "nan", "two"),
        ("b52e", "1", "1.0", "1.0", "None", "None"),
        ("b52e", "35", "-35.0", "None", "None", "None"),
    ]
    quoted = ODD.replace('"', '""')
    assert tuples(sql(f'select sum(loss), count(*) from "{quoted}"', dir=both)) == [(35.0, 5)]
    assert tuples(sql(f'select sum("{quoted}") from digits', dir=both)) == [(7.0,)]
    assert tuples(
        sql(f"select sum(value) from metrics where key = '{ODD.replace(chr(39), chr(39) * 2)}'", dir=both)
    ) == [(7.0,)]


def test_integers_among_floats_keep_their_digits(tmp_path: Path) -> None:
    """Whatever is read together, and so whatever the filter leaves: the same texts, and a whole float as an integer."""
    store = make_store(tmp_path)
    make_run(store, "a41f", [{"n": value} for value in ("text", 3.0, 3, 0.5, 2**53 + 1, "end")])
    wanted = [(1, None, "3"), (2, None, "3"), (3, None, "0.5"), (4, str(2**53 + 1), str(2**53 + 1))]
    for low in (0, 1, 3, 4):
        found = sql(
            "select m.step, m.text, d.n from metrics m join digits d using (step) "
            f"where m.step >= {low} and m.step < 5 and d.step >= {low} and m.step > 0 order by 1",
            dir=store,
        )
        assert tuples(found) == [row for row in wanted if row[0] >= low]


def test_names_that_sql_does_not_tell_apart(tmp_path: Path) -> None:
    """Keys called as the columns of a row, or alike but for their case, have columns of their own; a project may be called as a
    relation.
    """
    store = make_store(tmp_path)
    make_run(store, "a41f", [{"step": 5.0, "Loss": 1.0, "loss": 2.0, "run": 3.0, "a\0b": 4.0}], project="metrics")
    found = sql('select * from "wide/metrics"', dir=store)
    assert found.columns == ["run", "step", "time", "Loss", "a?b", "loss_2", "run_2", "step_2"]
    assert [row[:2] + row[3:] for row in tuples(found)] == [("a41f", 0, 1.0, 4.0, 2.0, 3.0, 5.0)]


def test_logged_tables(tmp_path: Path) -> None:
    """A logged table is a relation: of each run its last version, with the step at which it was logged."""
    store = make_store(tmp_path)
    for name in ("a41f", "b52e"):
        run = RunBuilder(store, name)
        main = run.stream()
        media = MediaBuilder(run, main)
        for count in (1, 2):
            media.log(
                {"val/predictions": sdk.Table(["id", "word", "run"], [[n, name * n, True] for n in range(count)])}
            )
        main.finish()
        media.seal()
    names = sql("select relation, rows, columns from tables where run = 'a41f'", dir=store)
    assert tuples(names) == [('"digits/val/predictions"', 2, ["id", "word", "run"])]
    found = sql("select * from \"digits/val/predictions\" where run = 'b52e' order by id", dir=store)
    assert found.columns == ["run", "step", "id", "word", "run_2"]
    assert tuples(found) == [("b52e", 1, 0.0, "", True), ("b52e", 1, 1.0, "b52e", True)]
    media_rows = sql("select key, step, kind from media where run = 'a41f' and key = 'val/predictions'", dir=store)
    assert tuples(media_rows) == [("val/predictions", step, "table") for step in (0, 1)]


def test_what_accompanies_a_run(tmp_path: Path) -> None:
    """Logs, observed values and gaps are relations; a read that meets a gap says so."""
    store = make_store(tmp_path)
    run = RunBuilder(store, "a41f")
    main = run.stream()
    main.log({"loss": 1.0})
    main.gap(episode=1, count=7, step_min=1, step_max=2, start_ns=START_NS, end_ns=START_NS + 10**9, reason="disk full")
    console = run.stream("console")
    console.log({"text": "hello", "from": "stdout"})
    system = run.stream("system")
    system.log({"system/cpu": 50.0})
    main.finish()
    run.seal()
    assert tuples(sql("select run, text, source from logs where missed = 0", dir=store)) == [
        ("a41f", "hello", "stdout")
    ]
    assert tuples(sql("select key, value from system", dir=store)) == [("system/cpu", 50.0)]
    assert tuples(sql("select count, reason from gaps", dir=store)) == [(7, "disk full")]
    answer = sql("select key, value from metrics", dir=store)
    assert tuples(answer) == [("loss", 1.0)]
    assert answer.notes == ["7 records of run a41f are missing: select * from gaps where run = 'a41f'"]
    assert tuples(sql("select count(*) from artifacts", dir=store)) == [(0,)]


def test_keys_of_epochs(tmp_path: Path) -> None:
    """Keys that `define_metric` makes of others are in `metrics` and in the project's relation."""
    store = make_store(tmp_path)
    run = RunBuilder(store, "a41f")
    main = run.stream()
    main.meta({"metric": {"loss": {"reduce": "mean"}}})
    for step in range(6):
        main.log({"loss": float(step), "epoch": step // 2})
    main.finish()
    run.seal()
    found = sql("select value from metrics where key = 'loss_epoch' order by step", dir=store)
    assert tuples(found) == [(0.5,), (2.5,), (4.5,)]
    assert tuples(sql("select sum(loss_epoch), count(*) from digits", dir=store)) == [(7.5, 6)]


# -- what is read --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten runs of 400 steps in columns, and one of 4000."""
    store = make_store(tmp_path_factory.mktemp("many"))
    for number in range(10):
        rows = [{"loss": float(n), "acc": n / 400} for n in range(400)]
        compact(make_run(store, f"r{number:02}", rows, config={"n": number}, project=f"p{number % 2}"))
    draw = numpy.random.default_rng(7)
    keys = ["loss", *(f"k{number}" for number in range(9))]
    compact(make_run(store, "long", [dict(zip(keys, row)) for row in draw.random((4000, 10)).tolist()]))
    return store


class Reads:
    """What is read of columns: bytes, and of which runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        self.runs: set[str] = set()
        before = Scan._read_part

        def part(scan: Scan, source: Any, block: Any, offset: int, size: int) -> bytes:
            self.bytes += size
            self.runs.add(scan.directory.rpartition("/")[2])
            return before(scan, source, block, offset, size)

        monkeypatch.setattr(Scan, "_read_part", part)

    def of(self, query: str, store: str) -> tuple[int, set[str]]:
        self.bytes, self.runs = 0, set()
        sql(query, dir=store)
        return self.bytes, self.runs


def test_only_what_a_filter_leaves_is_read(many: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run, a key and a range of steps, only those blocks of that run are read, and of them only that column."""
    reads = Reads(monkeypatch)
    whole, _ = reads.of("select avg(value) from metrics where run = 'long'", many)
    one_key, runs = reads.of("select avg(value) from metrics where run = 'long' and key = 'loss'", many)
    assert runs == {"long"}
    one_range, _ = reads.of("select avg(value) from metrics where run = 'long' and key = 'loss' and step > 3500", many)
    assert one_range * 2 < one_key
    assert one_key * 3 < whole
    assert reads.of("select count(*) from metrics where run = 'none'", many) == (0, set())
    _, runs = reads.of("select avg(value) from metrics where project = 'p1' and key = 'loss'", many)
    assert runs == {f"r{number:02}" for number in range(1, 10, 2)}


def test_only_the_run_that_is_named_is_opened(many: str) -> None:
    """A query that names its run does not look at the files of the others."""
    files = Watched()
    sql("select max(value) from metrics where run = 'r07' and key = 'loss'", store=Store(many, files=files))
    assert {path.split("/runs/")[1].partition("/")[0] for path in files.opened if "/runs/" in path} == {"r07"}


NARROWED = [
    "select max(m.value) from metrics m join runs r on m.run = r.id where r.config.n = 7 and m.key = 'loss'",
    "select max(value) from metrics, runs where id = run and config.n between 7 and 7 and key = 'loss'",
    "select max(value) from metrics where key = 'loss' and run in (select id from runs where config.n = 7)",
    "select max(value) from metrics where run = (select id from runs where config.n = 7) and key = 'loss'",
]


@pytest.mark.parametrize("query", NARROWED)
def test_runs_that_a_join_leaves_out_are_not_read(many: str, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    """Conditions on `runs` reach the values of a join or behind a subquery: only the blocks of those runs are read."""
    answer = sql(query, dir=many)
    assert tuples(answer) == [(399.0,)]
    assert Reads(monkeypatch).of(query, many)[1] == {"r07"}


ODD_QUERIES = [
    "select max(loss) from p1 w join runs r on r.id = w.run where r.name like 'calm%' and r.config.n = 7",
    "select count(*) from metrics m left join runs r on m.run = r.id and r.config.n = 7 where m.key = 'loss'",
    "select count(*) from metrics m join runs r on m.run = r.id where r.config.n = 7 or m.step = 0",
    "with runs as (select 'r03' as id) select count(*) from metrics where run in (select id from runs)",
    "select count(*) from metrics m join runs r on m.run = r.name where r.config.n = 7",
    "select count(*) from metrics m where exists (select 1 from runs r where r.id = m.run and r.config.n < 3)",
    "select count(*) from metrics where run not in (select id from runs where config.n > 1)",
    "select count(*) from metrics where run in (select id from runs where config.n > 99)",
    "select count(*) from metrics where run in (select upper(id) collate nocase from runs where config.n = 7)",
    "select count(*) from metrics a join metrics b using (run, key, step) join runs on runs.id = a.run where config.n < 2",
    "select count(*) from (select * from metrics m join runs r on m.run = r.id where r.config.n = 1) union all select 1",
]


@pytest.mark.parametrize("query", ODD_QUERIES)
def test_what_is_written_into_a_query_changes_no_answer(many: str, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    """A query gives the same with and without the runs that are found for it beforehand."""
    found = tuples(sql(query, dir=many))
    monkeypatch.setattr(sql_module, "narrowed", lambda *_: None)
    assert found == tuples(sql(query, dir=many))


def test_ranges_of_steps() -> None:
    """The range of steps that a filter leaves is the smallest one; a filter that leaves none says so."""
    import pyarrow
    import pyarrow.dataset

    field, schema = pyarrow.dataset.field, pyarrow.schema({"run": pyarrow.string(), "step": pyarrow.int64()})
    cases = [
        (None, (0, STEP_MAX)),
        (field("run") == "a", (0, STEP_MAX)),
        (field("step") > 9_000_000, (9_000_001, STEP_MAX)),
        ((field("step") >= 5) & (field("step") <= 7), (5, 7)),
        (field("step").isin([12, 3, 7]), (3, 12)),
        ((field("step") == 4) | (field("run") == "a"), (0, STEP_MAX)),
        (field("step") < 0, None),
        (field("step") == STEP_MAX, (STEP_MAX, STEP_MAX)),
    ]
    for expression, wanted in cases:
        assert Filter(expression, schema).steps == wanted, expression


# -- asking --------------------------------------------------------------------------------------------------------------


def test_parameters_and_forms(store: str) -> None:
    """Parameters by place and by name; the answer as rows, Arrow, pandas and polars, as text and as HTML."""
    answer = sql("select key, value from metrics where run = ? and step = ? and key = 'x'", ["a41f", 0], dir=store)
    assert answer.rows() == [{"key": "x", "value": 1.5}]
    named = sdk.sql("select 1 as one, '<b>' as \"a<b\" from runs where id = $id", {"id": "c3"}, dir=store)
    assert (len(named), named.columns) == (1, ["one", "a<b"])
    assert named.to_pandas()["one"].tolist() == named.to_polars()["one"].to_list() == [1]
    assert named.to_arrow().num_rows == 1
    assert repr(named) == "one  a<b\n1    <b>"
    assert "&lt;b&gt;" in named._repr_html_()
    assert "<b>" not in named._repr_html_()
    assert "… 30 more rows" in repr(sql("from range(50)", dir=store))
    assert tuples(sql("select sum(step) from metrics where run = 'c3'", dir=store)) == [(10,)]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("select * from rnus", "Table with name rnus does not exist\n  Try: from runs"),
        ("select * from digts", "Table with name digts does not exist\n  Try: from digits"),
        ("select nam from runs", 'Referenced column "nam" not found'),
        ("selec 1", "syntax error"),
        ("select time '10:00' - time '09:00'", "add explicit type casts.\n  Try: stepd sql"),
        (" ", "it is empty"),
    ],
)
def test_errors(store: str, query: str, told: str) -> None:
    """What DuckDB does not take is an error of use in a line or two, with the nearest name."""
    with pytest.raises(UsageError) as caught:
        sql(query, dir=store)
    assert told.lower() in str(caught.value).lower()
    assert len(str(caught.value).split("\n")) <= 2


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_csv('/etc/passwd')", "from '/etc/passwd'", "copy (select 1) to 'out.csv'", "install httpfs",
        "attach 'x.db'", "set enable_external_access = true", "load spatial", "select * from glob('/*')", "import database '.'",
        "select getenv('HOME')",
    ],
)  # fmt: skip
def test_a_query_reaches_no_files(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    """No query reads or writes a file, loads an extension or changes a setting, unless files are allowed."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        sql(query, dir=store)
    assert not (tmp_path / "out.csv").exists()


def test_summaries_are_read_for_who_asks(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting runs opens none; a star takes all columns."""
    asked: list[str] = []
    monkeypatch.setattr(known, "_summary", lambda run: asked.append(run.id) or {})
    sql("select project, count(*), Count ( * ) from runs group by 1", dir=store)
    assert not asked
    for query in ("select * from runs", "select columns('su.*') from runs"):
        asked.clear()
        sql(query, dir=store)
        assert asked


def test_files_where_they_are_allowed(store: str, tmp_path: Path) -> None:
    """With `allow_files` a query writes what it found, and reads it again; settings stay locked."""
    path = tmp_path / "out.parquet"
    sql(f"copy (select * from metrics) to '{path}'", dir=store, allow_files=True)
    count = sql("select count(*) as n from metrics", dir=store).rows()
    assert sql(f"select count(*) as n from '{path}'", dir=store, allow_files=True).rows() == count
    with pytest.raises(UsageError):
        sql("set lock_configuration = false", dir=store, allow_files=True)


def test_variables_are_no_relations(store: str) -> None:
    """A name in a query never means a variable of Python's."""
    secret = sql("select 1 as one", dir=store).to_arrow()
    with pytest.raises(UsageError):
        sql("select * from secret", dir=store)
    assert secret.num_rows == 1


def test_more_than_fits_into_memory(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is larger than the memory that DuckDB may take goes into temporary files, which are gone afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    query = "select count(*) from (select * from range(2_000_000) order by hash(range) limit 1_900_000)"
    assert tuples(sql(query, dir=store, memory_bytes=20 << 20)) == [(1_900_000,)]
    assert not list(tmp_path.glob("stepd-sql-*"))


def test_damaged_runs_do_not_hide_the_others(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that cannot be read is told of, and the values of the others are there."""
    whole = Scan.plan

    def plan(scan: Scan) -> Any:
        if scan.directory.endswith("a41f"):
            raise RuntimeError("a broken disk")
        return whole(scan)

    monkeypatch.setattr(Scan, "plan", plan)
    answer = sql("select distinct run from metrics order by 1", dir=store)
    assert tuples(answer) == [("c3",)]
    assert answer.notes == ["run a41f cannot be read to its end: a broken disk"]


def test_what_is_missing_is_said(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without duckdb or pyarrow the error says how to get them."""
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(Error, match="duckdb is not installed here\n  Try: pip install duckdb pyarrow"):
        sql("select 1", dir=store)


def test_names_of_relations_in_a_query() -> None:
    """Names where a relation may stand are found outside of texts and comments."""
    words, names = names_in(
        """select "a", 'from b' from "x/y" join (c d) -- from e
        join /* from f */ "g""h", i where j in (select k from l) group by m, n"""
    )
    assert names == ["x/y", "c", 'g"h', "i", "l", "n"]
    assert "b" not in words
    assert {"a", "k", "select"} <= words
    assert names_in("describe digits")[1] == ["digits"]


def test_nothing_is_read_for_a_relation_that_is_not_named(store: str) -> None:
    """A query that needs no runs lists none."""
    files = Watched()
    database = Database(Store(store, files=files))
    try:
        opened = len(files.opened)
        assert database.reader("select 1 as one").read_all().to_pylist() == [{"one": 1}]
        assert len(files.opened) == opened
    finally:
        database.close()


# -- parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "cells"),
    [
        ([1, None, 2], "int64", [1, None, 2]),
        ([1, 2.5], "double", [1.0, 2.5]),
        ([2**53 + 1, 2.5], "string", ["9007199254740993", "2.5"]),
        ([2**70], "string", [str(2**70)]),
        ([True, None], "bool", [True, None]),
        ([True, 1], "string", ["true", "1"]),
        (["a", "\ud800"], "string", ["a", "?"]),
        ([[1], [2, None], None], "list<item: int64>", [[1], [2, None], None]),
        ([[1], ["a"]], "string", ["[1]", '["a"]']),
        ([{"a": 1}, {"A": "x"}, None], "struct<a: int64, A_2: string>", [{"a": 1, "A_2": None}, {"a": None, "A_2": "x"}, None]),
        ([{"a": 1}, 2], "string", ['{"a": 1}', "2"]),
        ([{}], "string", ["{}"]),
        ([math.nan], "double", [math.nan]),
        ([], "string", []),
    ],
)  # fmt: skip
def test_types_of_columns(values: list[Any], kind: str, cells: list[Any]) -> None:
    """A column has the type that all its values have in common, and holds each as it is; else the JSON of each."""
    found = typed.column(values)
    assert str(found.type) == kind
    assert repr(found.to_pylist()) == repr(cells)


def test_a_struct_has_a_limit() -> None:
    """What would be more fields than may be is a text, at whatever level they are; so is what is nested too deeply."""
    wide = {f"k{number}": 1 for number in range(typed.FIELDS_MAX + 1)}
    assert str(typed.column([wide]).type) == "string"
    split = [{"a": dict(list(wide.items())[:1500]), "b": dict(list(wide.items())[:1500])}]
    assert [str(field.type)[:6] for field in typed.column(split).type] == ["struct", "string"]
    deep: Any = 1
    for _ in range(2000):
        deep = {"d": deep}
    assert "struct" in str(typed.column([deep]).type)


def test_asked_aside() -> None:
    """A call gives what its function gives or raises; one that is interrupted tells it to end, and waits for that."""
    ending = threading.Event()
    aside = Aside(ending.set)
    assert aside.call(max, 3, 4) == 4
    with pytest.raises(ZeroDivisionError):
        aside.call(lambda: 1 / 0)

    def interrupted() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        ending.wait()

    with pytest.raises(KeyboardInterrupt):
        aside.call(interrupted)
    assert ending.is_set()
    assert not aside.is_lost
    assert aside.call(max, 1, 2) == 2
    aside.close()


def test_what_cannot_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not end soon when it is told to is left alone, and is not waited for."""
    monkeypatch.setattr(aside_module, "_PATIENCE_SECONDS", 0.0)
    ending, ended = threading.Event(), threading.Event()
    aside = Aside(lambda: None)

    def stubborn() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        ending.wait()
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        aside.call(stubborn)
    assert aside.is_lost
    aside.close()
    ending.set()
    assert ended.wait(60)
