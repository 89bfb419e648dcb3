from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.builders import make_run, make_store
from tests.called import said, stepd
from tests.terminal import LARGE, SMALL, same_screen, screen_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three runs of a sweep and one of another project."""
    path = make_store(tmp_path_factory.mktemp("store"))
    for number, rate in enumerate((0.1, 0.01, 0.001)):
        rows = [{"loss": 2.0 / (n + 1) + rate, "val/acc": n / 60 + number / 10} for n in range(50)]
        config = {"lr": rate, "model": {"name": "mlp", "depth": 2 + number}}
        make_run(path, f"a{number}", rows, name=f"calm-otter-{number}", config=config, tags=["sweep"])
    make_run(path, "b7", [{"reward": 1.0}], project="walker 2", notes="\x1b[31mred\x07")
    return path


BEST = "select id, config.lr, config.model.depth, summary.\"val/acc\" as acc from runs where project = 'digits' order by acc desc"


def test_a_table(store: str) -> None:
    """The rows as a table, numbers at the right; how many more there are."""
    assert said(store, "sql", BEST).splitlines() == [
        "id     lr  depth       acc",
        "a2  0.001      4   1.01667",
        "a1   0.01      3  0.916667",
        "a0    0.1      2  0.816667",
    ]
    shown = said(store, "sql", "--limit", "2", "select run, step from metrics order by run, step").splitlines()
    assert shown[1:] == ["a0      0", "a0      0", "… 299 more rows: --limit 0, --csv, -o FILE"]
    assert len(said(store, "sql", "--limit", "0", "select step from metrics").splitlines()) == 302
    assert said(store, "sql", "select id from runs where id = 'none'") == "id\n"


def test_a_query_from_a_file_and_from_standard_input(store: str, tmp_path: Path) -> None:
    """-f reads a file, - standard input; both at once is an error of use."""
    (tmp_path / "query.sql").write_text("-- the best\n" + BEST, encoding="utf-8")
    wanted = said(store, "sql", BEST)
    assert said(store, "sql", "-f", str(tmp_path / "query.sql")) == said(store, "sql", "-", input=BEST) == wanted
    assert stepd(store, "sql", "-f", str(tmp_path / "query.sql"), "select 1").exit_code == 2


def test_documents(store: str) -> None:
    """--json is one document with structs and times as they are, --csv all rows; without rows both are whole."""
    query = "select id, tags, config, epoch(created) as created, sum(step) over () as steps from runs where id = 'a0'"
    (row,) = json.loads(said(store, "sql", "--json", query))
    assert row == {
        "id": "a0", "tags": ["sweep"], "config": {"lr": 0.1, "model": {"name": "mlp", "depth": 2}},
        "created": 1700000000.0, "steps": 49,
    }  # fmt: skip
    rows = list(csv.reader(io.StringIO(said(store, "sql", "--csv", query))))
    assert rows[0] == ["id", "tags", "config", "created", "steps"]
    assert json.loads(rows[1][2]) == row["config"]
    assert json.loads(said(store, "sql", "--json", "select 1 as one where false")) == []
    assert said(store, "sql", "--csv", "select 1 as one where false") == "one\n"
    assert len(json.loads(said(store, "sql", "--json", "select * from metrics"))) == 301


@pytest.mark.parametrize("ending", ["parquet", "csv", "json", "jsonl"])
def test_files(store: str, tmp_path: Path, ending: str) -> None:
    """-o writes all rows in the form that the name says, and says how many."""
    import pyarrow.parquet

    path = tmp_path / f"out.{ending}"
    result = stepd(store, "sql", "-o", str(path), "select run, step, value from metrics")
    assert (result.stdout, result.stderr) == ("", f"wrote 301 rows to {path}\n")
    if ending == "parquet":
        found = pyarrow.parquet.read_table(path).num_rows
    elif ending == "json":
        found = len(json.loads(path.read_text(encoding="utf-8")))
    else:
        found = len(path.read_text(encoding="utf-8").splitlines()) - (ending == "csv")
    assert found == 301
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_differences_of_times(store: str, tmp_path: Path) -> None:
    """They are texts as DuckDB writes them, on the screen and in every file."""
    query = "select interval 1106500 millisecond as a, interval 14 month - interval 3 day as b, interval 0 day as c, null::interval as d"
    said(store, "sql", "-o", str(tmp_path / "out.parquet"), query)
    back = said(store, "sql", "--allow-files", "--json", f"from '{tmp_path / 'out.parquet'}'")
    assert json.loads(back) == json.loads(said(store, "sql", "--json", query))
    assert json.loads(back) == [{"a": "00:18:26.5", "b": "1 year 2 months -3 days", "c": "00:00:00", "d": None}]
    assert said(store, "sql", "--csv", query).splitlines()[1] == "00:18:26.5,1 year 2 months -3 days,00:00:00,"
    assert "1 year 2 months -3 days" in said(store, "sql", query)


def test_what_there_is(store: str) -> None:
    """Without a query, the relations and their columns: the fields of config and summary, and each project with its keys."""
    lines = said(store, "sql")
    for words in (
        "config.lr,",
        "config.model.name,",
        "summary.reward,",
        "metrics\n  run, project, key, step,",
        '"walker 2"  1 run,',
        'digits  3 runs, a row for each step\n  run, step, time, loss, "val/acc"',
    ):
        assert words in lines
    told = {one["name"]: one for one in json.loads(said(store, "sql", "--json"))}
    assert told["digits"]["columns"] == ["run", "step", "time", "loss", '"val/acc"']
    assert said(store, "sql", 'select reward from "walker 2"') == "reward\n     1\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["select * from rnus"], "Table with name rnus does not exist\n  Try: from runs\n"),
        (["selec"], "syntax error"),
        (["-o", "x.xls", "select 1"], "expected a name that ends in .parquet, .csv, .json, .jsonl"),
        (["copy (select 1) to 'x.csv'"], "file system operations are disabled by configuration\n  Try: --allow-files"),
    ],
)
def test_errors(store: str, words: list[str], told: str) -> None:
    """What is wrong is said in a line or two, with exit code 1 and no traceback."""
    result = stepd(store, "sql", *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert told in result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_nothing_steers_the_terminal(store: str) -> None:
    """Control characters of a stored text are shown as question marks."""
    assert said(store, "sql", "select notes from runs where id = 'b7'") == "notes\n?[31mred?\n"
    assert said(store, "sql", 'select 1 as "a\x1b[31mb"').splitlines()[0] == "a?[31mb"


def test_screen_of_80_by_24(store: str) -> None:
    """In a small terminal a table has the columns that fit, and says which others there are."""
    same_screen(
        "sql-80x24",
        screen_of(
            ["--dir", store, "sql", "select id, * exclude (id, created, updated, started, size) from runs order by id"],
            SMALL,
        ),
    )


def test_screen_of_200_by_50(store: str) -> None:
    """What there is to ask, in a large terminal."""
    same_screen("sql-200x50", screen_of(["--dir", store, "sql"], LARGE))
