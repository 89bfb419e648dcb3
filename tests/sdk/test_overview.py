from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.store.listing import remember_all
from sdk.errors import NotFoundError, UsageError
from sdk.files import DISK, File
from sdk.files.over import FilesOver
from sdk.query.lookup import inside
from sdk.query.overview import Spread, differing_config, goal_of, lookup_of, overview, select
from sdk.query.table import RunsTable
from sdk.reader import Run, Store
from sdk.segment.naming import RUNS
from tests.builders import START_NS, RunBuilder, compact, make_run, make_store

# lr, method, seed -> the best accuracy.
TRIED = [
    (1e-2, "sgd", 0, 0.80),
    (1e-2, "adam", 0, 0.70),
    (1e-3, "sgd", 1, 0.85),
    (1e-3, "adam", 1, 0.95),
    (1e-4, "sgd", 2, 0.60),
]


def fill(store: str, *, compacted: bool = False) -> None:
    """Five runs r0 to r4, one after the other, and r5, which failed before it had measured anything."""
    for number, (lr, method, seed, best) in enumerate(TRIED):
        config = {
            "lr": lr,
            "method": method,
            "seed": seed,
            "batch": 32,
            "model": {"depth": 2 + number % 2, "name": "cnn"},
            "out": f"/r{number}",
        }
        rows: list[dict[str, Any]] = [
            {"loss": 1.0 / (n + 1), "val/acc": best - 0.1 * (9 - n if n < 9 else 1)} for n in range(9)
        ]
        rows += [{"val/acc": best}, {"val/acc": best - 0.05, "loss": 0.2}]
        about = {"started_ns": START_NS + number * 10**10, "host": f"gpu{number % 2}"}
        made = make_run(
            store, f"r{number}", rows, config=config, name=f"run-{number}", tags=["a"] if number else [], **about
        )
        if compacted:
            compact(made)
    make_run(
        store, "r5", [], state="failed", config={"lr": 1e-2, "batch": 32}, name="run-5", started_ns=START_NS + 10**11
    )
    for name in os.listdir(os.path.join(store, RUNS)):
        os.utime(os.path.join(store, RUNS, name), (START_NS / 1e9, START_NS / 1e9))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = make_store(tmp_path_factory.mktemp("overview"))
    fill(store)
    return store


@pytest.fixture
def runs(filled: str) -> list[Run]:
    return Store(filled).runs()


def ids(found: list[Run]) -> str:
    return " ".join(run.id[1:] for run in found)


def column(table: Any, name: str) -> list[Any]:
    return [one.values for one in table.columns if one.name == name][0]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, "5 4 3 2 1 0"), ("config.lr < 5e-3 and state = finished", "4 3 2"), ("lr < 5e-3", "4 3 2"), ("state != finished", "5"),
        ("best:val/acc > 0.75", "3 2 0"), ("last:val/acc > 0.72", "3 2 0"), ("val/acc > 0.72", "3 2 0"),
        ("summary.val/acc > 0.72", "3 2 0"),
        ("min:loss < 0.2", "4 3 2 1 0"), ("first:loss = 1", "4 3 2 1 0"), ("config.model.depth = 3", "3 1"), ("host = gpu0", "4 2 0"),
        ("tags = a", "4 3 2 1"), ("id in (r1, r5)", "5 1"), ("exit_code = 0", "5 4 3 2 1 0"), ("duration >= 0", "5 4 3 2 1 0"),
        ("step = 0", "5"), ("best:val/acc is null", "5"), ("config.none is null", "5 4 3 2 1 0"), ("name ~ 'run-[23]'", "3 2"),
        ("project = digits and group is null and notes is null", "5 4 3 2 1 0"), ("records > 5 and size > 100", "4 3 2 1 0"),
    ],
)  # fmt: skip
def test_where(runs: list[Run], where: str | None, expected: str) -> None:
    """Facts, config with and without its prefix, summary and the ends of series choose runs; the order stays."""
    assert ids(select(runs, where)) == expected


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("-best:val/acc", "3 2 0 1 4 5"), ("best:val/acc", "4 1 0 2 3 5"), ("lr,-best:val/acc", "4 3 2 0 1 5"), ("-started", "5 4 3 2 1 0"),
        ("method,id", "1 3 0 2 4 5"), ("-method,id", "0 2 4 1 3 5"), ("id", "0 1 2 3 4 5"), ("best:val/acc * 0, -id", "4 3 2 1 0 5"),
    ],
)  # fmt: skip
def test_sort(runs: list[Run], sort: str, expected: str) -> None:
    """Sorted by several expressions, each up or down; a run without the value comes last either way."""
    assert ids(select(runs, None, sort)) == expected


def test_nan_has_no_place(tmp_path: Path) -> None:
    """A NaN sorts like a value that is not there; infinity has its place."""
    store = make_store(tmp_path)
    for name, value in (("nan", math.nan), ("one", 1.0), ("inf", math.inf), ("text", "x")):
        make_run(store, name, [], config={"v": value})
    for sort, expected in (
        ("config.v", ["one", "inf", "text", "nan"]),
        ("-config.v", ["text", "inf", "one", "nan"]),
    ):
        assert [run.id for run in select(Store(store).runs(), None, sort)] == expected
    table = overview(Store(store).runs(), columns="config.v", group="config.none is null")
    assert column(table, "config.v") == [None]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"where": "config.lrr < 1"}, "none of 6 runs has 'config.lrr'. Nearest: 'config.lr'"),
        ({"sort": "best:val/ac"}, "'best:val/ac'. Nearest: 'best:val/acc'"), ({"columns": "last:los"}, "Nearest: 'last:loss'"),
        ({"group": "methd"}, "'config.method'"), ({"where": "count > 1"}, "'count'"), ({"columns": "id,count"}, "'count'"),
    ],
)  # fmt: skip
def test_a_name_that_no_run_has(runs: list[Run], asked: dict[str, str], expected: str) -> None:
    """A misspelt name is an error with the nearest ones; in an empty store there is nothing to compare it with."""
    with pytest.raises(NotFoundError) as caught:
        overview(runs, **asked)  # type: ignore[arg-type]
    assert expected in caught.value.message
    assert overview([], **asked).groups == []  # type: ignore[arg-type]


def test_a_name_that_only_other_runs_have(runs: list[Run]) -> None:
    """Columns of runs that have measured nothing yet are empty: the name is no mistake where any run has it."""
    table = overview(runs, where="state = failed", columns="id,best:val/acc,config.seed", sort="-best:val/acc")
    assert [one.values for one in table.columns] == [["r5"], [None], [None]]
    assert overview(runs, where="state = failed", group="config.seed", columns="count,best:val/acc").rows() == [
        {"config.seed": None, "count": 1, "best:val/acc": None}
    ]
    with pytest.raises(NotFoundError):
        overview(runs, where="state = failed", columns="best:val/akk")


def test_what_cannot_be_parsed(runs: list[Run]) -> None:
    """Every option says where its text is wrong, in an empty store too."""
    for option in ("where", "sort", "columns", "group"):
        for some in (runs, []):
            with pytest.raises(UsageError):
                overview(some, **{option: "a <"})  # type: ignore[arg-type]


def test_columns_choose_themselves(runs: list[Run]) -> None:
    """Facts, then the config keys that differ, those that split the runs most evenly first and what is another in every run last; then
    the best of the main series, results before losses.
    """
    table = overview(runs)
    assert [one.name for one in table.columns] == [
        "id", "name", "state", "started", "step", "config.lr", "config.method", "config.model.depth", "config.model.name", "config.seed",
        "config.out", "best:val/acc", "best:loss",
    ]  # fmt: skip
    kinds = ["text", "text", "state", "time", "number", "number", "text", "number"]
    assert [one.kind for one in table.columns[:8]] == kinds
    best = {one.name: (one.goal, one.best) for one in table.columns}
    assert (best["best:val/acc"], best["best:loss"], best["config.lr"]) == (("max", 2), ("min", 1), (None, None))
    assert (table.total, table.by, table.sorted_by, table.chosen, table.unread) == (6, (), None, False, 0)
    assert column(overview(runs, sort="-duration"), "duration") == sorted(
        column(overview(runs, sort="duration"), "duration"), reverse=True
    )


def test_equal_numbers_are_no_difference(tmp_path: Path) -> None:
    """Whether a config holds 10 or 10.0 makes no column and no group of its own."""
    store = make_store(tmp_path)
    for number, epochs in enumerate([10, 10.0, 10]):
        make_run(store, f"r{number}", [{"loss": 1.0}], config={"epochs": epochs, "lr": number / 10})
    found = Store(store).runs()
    assert differing_config(found) == ["lr"]
    assert len(overview(found, group="epochs").groups) == 1


def test_a_bare_word_is_one_column(runs: list[Run]) -> None:
    """What the table is sorted or grouped by under its short name does not come again under its long one."""
    for asked in ({"sort": "lr"}, {"group": "lr"}, {"group": "method", "sort": "-best:val/acc"}):
        names = [one.name.removeprefix("config.") for one in overview(runs, **asked).columns]
        assert len(set(names)) == len(names)
        assert {"lr", "method"} & set(names)


def test_columns_that_were_asked_for(runs: list[Run]) -> None:
    """Columns are expressions; a value that a run lacks is None."""
    table = overview(runs, where="state = failed or id = r3", columns="id, lr * 100,best:val/acc", sort="id")
    assert [one.name for one in table.columns] == ["id", "lr * 100", "best:val/acc"]
    assert table.rows() == [
        {"id": "r3", "lr * 100": 0.1, "best:val/acc": 0.95},
        {"id": "r5", "lr * 100": 1.0, "best:val/acc": None},
    ]
    assert (table.sorted_by, table.chosen) == ("id", True)


def test_groups(runs: list[Run]) -> None:
    """A row for what runs have in common: how many, of results a spread, of facts what all share; runs without it are a group."""
    table = overview(
        runs,
        group="method",
        sort="-best:val/acc",
        columns="count,best:val/acc,config.batch,config.seed,state,best:loss,started",
    )
    assert [ids(row) for row in table.groups] == ["3 1", "4 2 0", "5"]
    assert column(table, "method") == ["adam", "sgd", None]
    assert column(table, "count") == [2, 3, 1]
    adam, sgd, none = column(table, "best:val/acc")
    assert adam == Spread(2, pytest.approx(0.825), pytest.approx(math.sqrt(0.03125)), 0.7, 0.95)
    assert (sgd.runs, sgd.low, sgd.high, none) == (3, 0.6, 0.85, None)
    assert column(table, "config.batch") == [32, 32, 32]
    assert column(table, "config.seed")[0].mean == 0.5
    assert column(table, "state") == ["finished", "finished", "failed"]
    assert column(table, "best:loss")[0] == Spread(2, pytest.approx(1 / 9), pytest.approx(0), 1 / 9, 1 / 9)
    assert column(table, "started")[0] == START_NS / 1e9 + 30
    assert [one.best for one in table.columns if one.name.startswith("best:")] == [0, 0]
    assert [ids(row) for row in overview(runs, group="config.lr,method").groups] == ["5", "4", "3", "2", "1", "0"]


def test_a_table_of_groups_chooses_what_groups_have_in_common(runs: list[Run]) -> None:
    """Of the config only keys that are the same within every group are shown by themselves."""
    table = overview(select(runs, "method is not null"), group="config.method")
    assert [one.name for one in table.columns] == [
        "config.method",
        "count",
        "config.model.depth",
        "best:val/acc",
        "best:loss",
    ]
    assert [one.name for one in overview(select(runs, "lr = 0.01 and method is not null"), group="seed").columns][
        :2
    ] == ["seed", "count"]


def test_differing_config(tmp_path: Path) -> None:
    """Keys whose value is the same in all are left out; a missing key and another type count as other values."""
    store = make_store(tmp_path)
    for number, config in enumerate(
        ({"a": 1, "b": 1, "c": {"d": 1}}, {"a": 1, "b": True, "c": {"d": 2}}, {"a": 1, "b": 1, "c": 3})
    ):
        make_run(store, f"r{number}", [], config=config)
    assert set(differing_config(Store(store).runs())) == {"b", "c.d", "c"}
    assert differing_config(Store(store).runs()[:1]) == []
    assert differing_config([]) == []


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        ({"a": {"b": 1}}, "a.b", 1), ({"a.b": 2, "a": {"b": 1}}, "a.b", 2), ({"a": {"b": 1}}, "a", {"b": 1}),
        ({"a": {"b.c": {"d": 3}}}, "a.b.c.d", 3),
        ({"a": 1}, "a.b", None), ({}, "", None), ({"a": {"": 4}}, "a.", 4), ({"a": None}, "a", None),
    ],
)  # fmt: skip
def test_nested_names(values: dict[str, Any], name: str, expected: Any) -> None:
    """A dotted name leads into nested maps; a key that has the dot itself comes first."""
    assert inside(values, name) == expected


@pytest.mark.parametrize(
    ("key", "goal"),
    [
        ("loss", "min"), ("val/acc", "max"), ("mAP@50", "max"), ("eval/f1", "max"), ("rmse", "min"), ("reward", "max"),
        ("error_rate", "min"),
        ("mapping", "min"), ("something", "min"), ("val/dice", "max"), ("said", "max"), ("said_low", "min"), ("top_max", "max"),
    ],
)  # fmt: skip
def test_goal(tmp_path: Path, key: str, goal: str) -> None:
    """Which end is good is what `define_metric` said, else what the words of the name say, else the low one."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    main = run.stream()
    main.meta(
        {"metric": {"said": {"goal": "maximize"}, "said_low": {"goal": "minimize"}, "top_*": {"summary": ["max"]}}}
    )
    main.log({"loss": 1.0})
    main.finish()
    run.seal()
    assert goal_of(Store(store).run(), key) == goal


def answers(store: Store) -> list[Any]:
    """Everything that tables ask, of every run."""
    names = [
        "state", "host", "exit_code", "duration", "config.lr", "lr", "summary.val/acc", "summary.text", "summary.set", "summary.top.max",
        "val/acc",
        "best:val/acc", "min:loss", "max:loss", "first:loss", "last:loss", "best:top", "last:text", "best:none", "last:flag", "max:many",
        "max:big", "max:_own", "summary.big",
        "summary.gone", "last:gone", "best:loss_epoch", "system/cpu", "last:system/cpu",
    ]  # fmt: skip
    return [[(name, repr(lookup_of(run)(name))) for name in names] for run in store.runs()] + [
        [(one.name, one.kind, repr(one.values), one.goal, one.best) for one in overview(store.runs()).columns]
    ]


class NoSegments(FilesOver):
    """A disk whose segments nobody opens."""

    def open(self, path: str, *, write: bool = False) -> File:
        assert not path.endswith(".seg")
        return super().open(path, write=write)


def rich_run(store: str) -> RunBuilder:
    """A run with all that a digest must tell apart: texts, definitions, what the user set and took out, what was observed."""
    run = RunBuilder(store, "rich", started_ns=START_NS)
    main, system = run.stream(), run.stream(kind="system")
    said = {"top": {"summary": ["min", "max"]}, "val/*": {"goal": "maximize"}, "loss": {"reduce": "mean"}}
    main.meta(
        {"config": {"lr": 1e-3}, "metric": said, "summary": {"set": 5, "val/acc": "best"}, "summary_removed": ["gone"]}
    )
    for n in range(20):
        main.log(
            {
                "loss": 1.0 / (n + 1),
                "top": float(n % 7),
                "text": f"t{n}",
                "flag": n % 2 == 0,
                "many": 2**60 + n,
                "gone": 1,
                "epoch": n // 5,
            }
        )
        main.log({"val/acc": math.nan if n == 3 else n / 20})
        system.log({"system/cpu": float(n)})
    main.finish()
    system.finish()
    run.seal()
    return run


@pytest.mark.parametrize("compacted", [False, True], ids=["rows", "columns"])
def test_the_list_answers_as_the_runs_do(tmp_path: Path, compacted: bool) -> None:
    """Everything that a table can ask is the same from the store's list and from the runs themselves."""
    store = make_store(tmp_path)
    made = rich_run(store)
    if compacted:
        compact(made)
    fill(store, compacted=compacted)
    before = answers(Store(store))
    assert remember_all(store)
    assert all(run.card is not None for run in Store(store).runs())
    assert answers(Store(store)) == before


def test_a_table_opens_no_run_that_is_listed(tmp_path: Path) -> None:
    """Choosing, sorting, grouping and the columns that choose themselves need the list alone."""
    store = make_store(tmp_path)
    fill(store)
    remember_all(store)
    listed = Store(store, files=NoSegments(DISK)).runs()
    overview(
        listed, where="best:val/acc > 0 and lr < 1 and exit_code = 0 and host ~ gpu", sort="-best:val/acc,last:loss"
    )
    overview(listed, group="config.method", columns="count,best:val/acc,summary.loss,max:loss")
    with pytest.raises(NotFoundError):
        overview(listed, where="best:nothing > 0")
    assert all(run.card is not None for run in listed)


def test_a_running_run_says_what_it_is_now(tmp_path: Path) -> None:
    """What a run logs between two tables is in the second one."""
    store = make_store(tmp_path)
    run = RunBuilder(store, "live")
    main = run.stream()
    main.log({"val/acc": 0.5})
    run.flush()
    alive: Callable[[Any], bool] = lambda stream: True  # noqa: E731
    remember_all(store)
    assert column(overview(Store(store, alive=alive).runs()), "best:val/acc") == [0.5]
    main.log({"val/acc": 0.75})
    run.close()
    (found,) = Store(store, alive=alive).runs()
    assert (lookup_of(found)("best:val/acc"), lookup_of(found)("state")) == (0.75, "running")


def test_what_takes_long_is_not_read_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that choose themselves read few runs that are not listed; columns that were asked for, and what it is sorted by, read all."""
    monkeypatch.setattr("sdk.query.overview._READ_RUNS_MAX", 2)
    store = make_store(tmp_path)
    fill(store)
    table = overview(Store(store).runs())
    assert table.unread == 4
    assert column(table, "best:val/acc") == [None, 0.6, None, None, None, None]
    assert overview(Store(store).runs(), columns="best:val/acc").unread == 0
    table = overview(Store(store).runs(), sort="-best:val/acc")
    assert (table.unread, column(table, "best:val/acc")[:2]) == (0, [0.95, 0.85])
    monkeypatch.setattr("sdk.query.overview._READ_BYTES_MAX", 0)
    assert overview(Store(store).runs()).unread == 6


def test_the_table_of_a_store(filled: str) -> None:
    """`Store.table` is rows, a DataFrame and HTML of one thing; what runs are called is escaped."""
    import pandas

    store = Store(filled)
    table = store.table("state = finished", sort="-best:val/acc", columns=["name", "started", "best:val/acc"])
    assert isinstance(table, RunsTable)
    assert (len(table), table.columns, ids(table.runs)) == (5, ["name", "started", "best:val/acc"], "3 2 0 1 4")
    assert next(iter(table)) == {"name": "run-3", "started": START_NS / 1e9 + 30, "best:val/acc": 0.95}
    assert repr(table) == "<5 runs of 6: name, started, best:val/acc>"
    frame = table.to_pandas()
    assert frame["best:val/acc"].tolist() == [0.95, 0.85, 0.8, 0.7, 0.6]
    assert frame["started"].dtype == pandas.DatetimeTZDtype("us", "UTC") or str(frame["started"].dtype).startswith(
        "datetime64["
    )
    assert table._repr_html_().count("<tr>") == 6
    grouped = store.table(group="config.method").to_pandas()
    assert grouped["best:val/acc"].tolist()[1:] == [pytest.approx(0.75), pytest.approx(0.825)]
    assert "best:val/acc.std" in grouped.columns
    assert "0.82 ± 0.18" in store.table(group="config.method")._repr_html_()


def test_the_html_of_a_hostile_store(tmp_path: Path) -> None:
    """Names and values of a run are text in the page, however they look."""
    store = make_store(tmp_path)
    make_run(
        store,
        "a41f",
        [{"<img src=x>": 1.0}],
        name="<script>alert(1)</script>",
        config={"<b>": "<i>", "s": float("inf")},
    )
    make_run(store, "b52e", [{"<img src=x>": 2.0}], name="\x1b[31m", config={"<b>": ["<u>"], "s": 2**63})
    html = Store(store).table()._repr_html_()
    assert "&lt;script&gt;" in html
    for tag in ("<script", "<img", "<i>", "<u>", "<b>&", "\x1b"):
        assert tag not in html
    assert Store(store).table(columns="s,id", group="name").to_pandas().shape[0] == 2
