from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from daemon.cli import cli
from daemon.commands import runs
from daemon.commands.cells import cells
from daemon.commands.runs_table import Page, number, shortest, table_lines, when
from sdk.query.expression import FACTS, OPERATIONS
from sdk.query.overview import Column, Overview, Spread
from sdk.reader import Store
from sdk.reader.listing import CACHE_FILE
from tests.builders import START_NS, make_run, make_store
from tests.terminal import LARGE, SMALL, Terminal, same_screen, screen_of

DAY = 86400.0
PAGE = Path(__file__).parents[2] / "docs" / "runs.md"
PLAIN = Page(None, unicode=True, color=False, now=START_NS / 1e9)


def fill(store: str) -> None:
    """Twelve runs of two methods, three rates and two seeds; the last one crashed."""
    for n in range(12):
        lr, method, seed = (1e-2, 1e-3, 1e-4)[n % 3], ("adam", "sgd")[n // 3 % 2], n // 6
        config = {
            "lr": lr,
            "method": method,
            "seed": seed,
            "batch_size": 32,
            "model": {"depth": 4 + 4 * (n % 2)},
            "augment": n % 5 == 0,
        }
        acc = 0.5 + 0.04 * (n * 7 % 11)
        curve = [acc - 0.3 / (step + 1) for step in range(8)] + [acc, acc - 0.02 * (n % 3)]
        rows: list[dict[str, Any]] = [
            {"train/loss": 2.0 / (step + 1) + lr, "val/acc": value} for step, value in enumerate(curve)
        ]
        state = "failed" if n == 11 else "finished"
        name = f"{method}-{lr:g}-{seed}"
        make_run(
            store,
            f"{0xA41F + n * 77:04x}",
            rows,
            name=name,
            project="digits",
            state=state,
            config=config,
            started_ns=START_NS + n * 10**12,
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = make_store(tmp_path_factory.mktemp("runs"))
    fill(made)
    return made


def stepd(store: str, *words: str) -> str:
    result = CliRunner().invoke(cli, ["--dir", store, "runs", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_is_facts_and_what_it_is_sorted_by(store: str) -> None:
    """--json gives every run with its facts and config, in order, and the value that it is sorted by; with columns those alone."""
    found = json.loads(stepd(store, "--json", "--sort", "-best:val/acc", "--limit", "2", "--where", "state = finished"))
    assert [run["best:val/acc"] for run in found] == sorted((run["best:val/acc"] for run in found), reverse=True)
    assert set(found[0]) >= {*FACTS, "config", "directory"}
    assert json.loads(stepd(store, "--json", "--columns", "id,lr", "--limit", "1")) == [{"id": "a76e", "lr": 1e-4}]
    groups = json.loads(stepd(store, "--json", "--group", "config.method", "--columns", "count,best:val/acc"))
    assert [(row["config.method"], row["count"], set(row["best:val/acc"])) for row in groups] == [
        (method, 6, {"runs", "mean", "std", "low", "high"}) for method in ("sgd", "adam")
    ]
    assert json.loads(stepd(store, "--json", "--where", "step > 99")) == []


def test_csv(store: str) -> None:
    """--csv is the table with whole numbers and empty cells; a spread is four columns."""
    rows = list(
        csv.DictReader(io.StringIO(stepd(store, "--csv", "--columns", "name,tags,best:val/acc,notes", "--limit", "1")))
    )
    assert [(row["name"], row["tags"], row["notes"]) for row in rows] == [("sgd-0.0001-1", "[]", "")]
    assert float(rows[0]["best:val/acc"]) == 0.5
    head = stepd(store, "--csv", "--group", "method", "--columns", "best:val/acc").splitlines()[0]
    assert head == "method,best:val/acc.mean,best:val/acc.std,best:val/acc.low,best:val/acc.high"


def test_nothing_found_says_what_there_is(store: str, tmp_path: Path) -> None:
    """Where nothing is found it says among how many, and what the names that were asked for are in them."""
    said = stepd(store, "--where", "state = finish and config.lr < 1e-9").splitlines()
    assert re.fullmatch(r"none of 12 runs in \S+ fulfils 'state = finish and config.lr < 1e-9'", said[0])
    assert said[1:] == ["  config.lr: 0.0001 to 0.01 in 12 runs", "  state: finished (11), failed (1)"]
    assert "holds no run of project 'x'" in stepd(store, "--project", "x", "--where", "step > 1")
    assert "holds no run yet" in stepd(make_store(tmp_path))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--where", "lr <"], "    lr <\n        ^\n  Try: "), (["--sort", "best:val/ac"], "Nearest: 'best:val/acc'"),
        (["--columns", "config.lrr"], "Try: stepd runs --columns config.lr\n"), (["--group", "methid"], "'config.method'"),
        (["--where", "finished"], "Try: --where 'state = finished'\n"), (["--where", "qqqqqq > 1"], "There are: 'config.lr'"),
    ],
)  # fmt: skip
def test_errors(store: str, words: list[str], expected: str) -> None:
    """What cannot be read, and what no run has, is an error with the place or the nearest names, and exit code 1."""
    result = CliRunner().invoke(cli, ["--dir", store, "runs", *words])
    assert result.exit_code == 1
    assert result.stderr.startswith("stepd: ")
    assert expected in result.stderr


def test_a_pipe_gets_everything(store: str) -> None:
    """Without a terminal all columns are there, uncut and without bars or colours."""
    text = stepd(store, "--sort", "-best:val/acc")
    assert text.splitlines()[0].split() == [
        "ID", "NAME", "STATE", "STARTED", "STEP", "best:val/acc", "lr", "method", "model.depth", "augment", "seed", "best:train/loss",
    ]  # fmt: skip
    assert text.isascii()
    assert len(text.splitlines()) == 13


def test_small_screen(store: str) -> None:
    """In 80 columns what is sorted by comes first, a bar takes what is left, and what there is no room for is named."""
    words = ["runs", "--dir", store, "--sort", "-best:val/acc"]
    text = screen_of([*words, "--limit", "9"], SMALL)
    same_screen("runs-80x24", text + screen_of([*words, "--limit", "5", "--columns", "id,name,best:val/acc"], SMALL))


def test_large_screen(store: str) -> None:
    """In 200 columns all are shown; groups have spreads."""
    words = ["runs", "--dir", store, "--sort", "-best:val/acc"]
    text = screen_of(words, LARGE)
    text += screen_of([*words, "--group", "config.method,config.lr"], LARGE)
    same_screen("runs-200x50", text)


def test_colours_and_ascii(store: str) -> None:
    """States have their colours and the best value is bold; NO_COLOR takes colours away, an ASCII terminal gets other bars."""
    words = ["runs", "--dir", store, "--sort", "-best:val/acc", "--limit", "12"]
    with Terminal(words, SMALL) as terminal:
        assert terminal.ended() == 0
        line = next(n for n, text in enumerate(terminal.text().splitlines()) if "failed" in text)
        assert "red" in terminal.colors(line)
    plain = {"NO_COLOR": "1", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    with Terminal([*words, "--columns", "name,best:val/acc"], SMALL, env=plain) as terminal:
        assert terminal.ended() == 0
        assert b"\x1b" not in terminal.raw
        assert terminal.raw.isascii()
        assert "  ####" in terminal.text()


@pytest.fixture(autouse=True)
def utc() -> Iterator[None]:
    """Days begin where the test says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def column(name: str, values: list[Any], kind: str = "number", goal: Any = None) -> Column:
    return Column(name, kind, values, goal, None)


def table(
    columns: list[Column], *, sorted_by: str | None = None, chosen: bool = False, by: tuple[str, ...] = ()
) -> Overview:
    return Overview(columns, [[] for _ in columns[0].values], len(columns[0].values), by, sorted_by, chosen)


def test_columns_that_do_not_fit_are_named() -> None:
    """What every run has stays, then results and config take turns while there is room; the last line names the rest and fits too."""
    columns = [
        column("id", ["a41f"], "text"),
        *(column(f"config.c{n}", [n]) for n in range(9)),
        *(column(f"best:s{n}", [0.5]) for n in range(3)),
    ]
    lines = table_lines(table(columns), PLAIN._replace(width=40))
    assert lines[0] == "ID    c0  c1  c2  c3  best:s0  best:s1"
    assert lines[-1] == "+ 6 more columns: --columns config.c4,c…"
    assert max(map(len, lines)) <= 40
    chosen = table_lines(table(columns, chosen=True), PLAIN._replace(width=40))
    assert "best:s2" in chosen[0]


def test_what_was_asked_for_comes_first(store: str) -> None:
    """What runs are chosen and sorted by has columns before all others, unless it is the same in each."""
    words = ["--where", "seed = 1 and config.lr > 1e-4 and step = 9", "--sort", "-last:val/acc,-min:train/loss"]
    head = stepd(store, *words).splitlines()[0].split()
    assert head[:8] == ["ID", "NAME", "STATE", "STARTED", "STEP", "last:val/acc", "min:train/loss", "lr"]
    named = {"named": ("config.lr",)}
    columns = [
        column("id", ["a41f"], "text"),
        column("step", [10**9]),
        column("config.x", [1]),
        column("config.lr", [1]),
    ]
    assert table_lines(table(columns)._replace(**named), PLAIN._replace(width=10))[0] == "ID    lr"


def test_a_bar_takes_what_is_left() -> None:
    """A bar takes no column's place: where fewer than six characters are left there is none."""
    columns = [column("v", [1.0, 2.0]), column("config.x", [10**9, 1])]
    for width, bar in ((21, "█" * 6), (20, ""), (13, "")):
        line = table_lines(table(columns, sorted_by="v"), PLAIN._replace(width=width))[2]
        assert line.split() == ["2", "1", *([bar] if bar else [])], width


def test_ids_are_cut_to_what_tells_them_apart() -> None:
    """In a terminal an id is as long as it must be to name its run, at least four characters; one that somebody gave stays."""
    ids = ["k3f9x0ab", "k3f9x1cd", "zz91aaaa", "baseline", "lr-0.1-seed-3", "lr-0.1-seed-4"]
    assert (shortest(ids), shortest(ids[2:]), shortest([]), shortest(["a", "a"])) == (6, 4, 4, 4)
    made = table([column("id", ids, "text")])
    cut = table_lines(made, PLAIN._replace(id_characters=shortest(ids)))
    assert cut == ["ID", "k3f9x0", "k3f9x1", "zz91aa", "baseline", *ids[4:]]
    assert table_lines(made, PLAIN)[1:] == ids


@pytest.mark.parametrize("room", [None, 60, 30, 22])
def test_wide_letters_take_two_cells(room: int | None) -> None:
    """Columns stay below one another and rows within the terminal, whatever script a name is written in."""
    names = ["日本語テスト", "e\u0301te\u0301", "plain", "한" * 40]
    columns = [column("name", names, "text"), column("id", ["a", "b", "c", "d"], "text")]
    lines = table_lines(table(columns, chosen=True), PLAIN._replace(width=room))[1:]
    assert [line[-1] for line in lines] == ["a", "b", "c", "d"]
    (size,) = set(map(cells, lines))
    assert room is None or size <= room


def test_bars_go_from_the_smallest_to_the_largest() -> None:
    """The largest value fills the bar, the smallest is a sliver, what is no finite number has none; two equal ones are full."""
    values = [0.0, 10.0, 5.0, None, math.nan, math.inf, -math.inf, 10**400, "x", True]
    lines = table_lines(table([column("v", values, "other")], sorted_by="v"), PLAIN._replace(width=20))
    bars = ["".join(c for c in line if c in "▏▎▍▌▋▊▉█") for line in lines[1:]]
    room = len(bars[1])
    assert (bars[0], bars[1], bars[2]) == ("▏", "█" * room, "█" * (room // 2) + ("▌" if room % 2 else ""))
    assert not any(bars[3:])
    assert [
        line.count("█")
        for line in table_lines(table([column("v", [1.0, 1.0])], sorted_by="v"), PLAIN._replace(width=30))[1:]
    ] == [27, 27]
    assert not any(
        "█" in line for line in table_lines(table([column("v", [1.0])], sorted_by="v"), PLAIN._replace(width=30))
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, "1"), (123456789, "123456789"), (10**16, "1e+16"), (10**400, "huge"), (True, "True"), (0.123456, "0.1235"), (1e-7, "1e-07"),
        (math.nan, "nan"), (-math.inf, "-inf"), (1.0, "1"), (99999.0, "1e+05"),
    ],
)  # fmt: skip
def test_numbers(value: float, expected: str) -> None:
    """A number has at most four digits that count; a whole one as many as it has."""
    assert number(value) == expected


@pytest.mark.parametrize(
    ("value", "goal", "expected"),
    [
        (Spread(3, 0.97861, 0.00413, 0.97, 0.9867), "max", "0.9786 ± 0.0041, 0.9867"), (Spread(2, -5.0, 0.5, -6, -5), None, "-5.00 ± 0.50"),
        (Spread(3, 12.3456, 2.5, 10, 15), "min", "12.3 ± 2.5, 10"),
        (Spread(1, 0.5, None, 0.5, 0.5), "max", "0.5"), (Spread(2, 1e-6, 2e-7, 8e-7, 1e-6), None, "1.00e-06 ± 2.0e-07"),
        (Spread(2, 3.0, 0.0, 3, 3), None, "3 ± 0"), (Spread(2, math.inf, None, 1, math.inf), "max", "inf, inf"),
        (Spread(2, 1e300, 1e299, 1, 1e300), None, "1.00e+300 ± 1.0e+299"),
    ],
)  # fmt: skip
def test_spreads(value: Spread, goal: Any, expected: str) -> None:
    """Mean and deviation with as many digits as the deviation makes sense of, then the good end."""
    assert table_lines(table([column("best:x", [value], goal=goal)]), PLAIN)[1].strip() == expected


def test_ages_and_dates() -> None:
    """A time of this week is an age, another one a date; what cannot be a time says so."""
    now = 1_700_000_000.0
    assert [when(now - age, now) for age in (5, 3 * 3600, 8 * DAY)] == ["just now", "3 h ago", "2023-11-06"]
    assert when(now + 10 * DAY, now) == "2023-11-24"
    assert when(1e300, now) == "unknown"


def test_runs_that_may_not_be_read_are_counted(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out since it may not be read is said in a line on stderr, without control characters."""
    monkeypatch.setattr(Store, "left_out", "1 run cannot be read: Permission denied: '\x1bx'")
    result = CliRunner().invoke(cli, ["--dir", store, "runs", "--json", "--limit", "1"])
    assert len(json.loads(result.stdout)) == 1
    assert result.stderr == "stepd: 1 run cannot be read: Permission denied: '?x'\n"


def test_control_characters_and_endless_texts(tmp_path: Path) -> None:
    """Whatever names, keys and values a store holds, a line stays a line and has an end."""
    made = make_store(tmp_path)
    for n in range(2):
        make_run(
            made,
            f"a{n}",
            [{"\x1b[2J": 1.0, "k" * 5000: 2.0}],
            name="\x1b]0;x\x07" + "n" * 10_000,
            config={"\n": n, "\x1b[31m": "\r" * n, "deep": [[n]]},
        )
    for words in (
        [],
        ["--columns", "name,config.deep,tags"],
        ["--group", "config.deep"],
        ["--where", 'config."\n" > 5'],
        ["--sort", 'best:"\x1b[2J"'],
    ):
        text = stepd(made, *words)
        assert all(c.isprintable() or c == "\n" for c in re.sub("\x1b\\[[01]m", "", text)), ascii(text)
        assert max(map(len, text.splitlines())) < 20_000


def test_values_of_a_thousand_levels(tmp_path: Path) -> None:
    """Maps and lists as deep as msgpack reads them, numbers beyond every float and lone surrogates are values like others."""
    made = make_store(tmp_path)
    for n in range(2):
        deep: Any = {"list": n}
        lists: Any = n
        for _ in range(950):
            deep, lists = {"m": deep}, [lists]
        config = {"deep": deep, "lists": lists, "huge": (1.7e308, -1.7e308)[n], "text": "\ud800\0", "g": 1}
        make_run(made, f"a{n}", [{"loss": 1.7e308}, {"loss": -1.7e308}], config=config)
    deepest = "config.deep" + ".m" * 950 + ".list"
    for words in (
        [], ["--columns", "lists,huge"], ["--group", "lists"], ["--sort", "lists,-huge"],
        ["--group", "g", "--columns", "huge,max:loss,lists"], ["--columns", "config.deep" + ".m" * 19],
        ["--where", "lists = 1 or lists = lists or lists ~ 1"],
        ["--where", f"{deepest} is null"], ["--where", "config.deep is not null"], ["--sort", "config.deep"], ["--csv"], ["--json"],
        ["--csv", "--columns", "lists,huge,text", "--group", "g"], ["--json", "--columns", "lists", "--group", "g"],
    ):  # fmt: skip
        stepd(made, *words)


def test_csv_to_a_terminal_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CSV that is looked at in a terminal has its control characters replaced; in a pipe it is exact."""
    made = make_store(tmp_path)
    make_run(made, "a41f", [], name="\x1b[2Jx\0,y")
    (exact,) = list(csv.reader(io.StringIO(stepd(made, "--csv", "--columns", "name").replace("\0", "<nul>"))))[1:]
    assert exact == ["\x1b[2Jx<nul>,y"]
    monkeypatch.setattr(runs, "_is_terminal", lambda: True)
    assert stepd(made, "--csv", "--columns", "name") == 'name\n"?[2Jx?,y"\n'


def test_what_is_meant_to_be_pasted_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of a hostile store stand in quotes where a line is meant for a shell."""
    made = make_store(tmp_path)
    for n in range(2):
        make_run(made, f"a{n}", [{"$(touch x)": 1.0}], config={"`id`" * 30: n, "; id": n})
    monkeypatch.setattr(runs, "_page", lambda: PLAIN._replace(width=60))
    assert "--columns 'config.\"" in stepd(made)
    result = CliRunner().invoke(cli, ["--dir", made, "runs", "--sort", "best:touch"])
    assert "Try: stepd runs --columns 'best:\"$(touch x)\"'" in result.stderr


def test_the_page_shows_what_is_printed(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command in docs/runs.md prints what stands below it there, in 100 columns."""
    monkeypatch.setattr(runs, "_page", lambda: PLAIN._replace(width=100, now=START_NS / 1e9 + 30 * DAY))
    blocks = re.findall(r"```\n\$ (stepd runs.*?)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    for line, shown in blocks:
        result = CliRunner().invoke(cli, [*shlex.split(line)[1:], "--dir", store])
        printed = result.output.replace(store, "~/.stepd")
        assert printed == shown or _is_cut(printed, shown), f"$ {line}\n{printed}"


def test_the_examples_in_python_run(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/runs.md says of Python works."""
    monkeypatch.setenv("STEPD_DIR", store)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, str(PAGE), "exec"), names)
    assert len(names["frame"]) == 7


def _is_cut(printed: str, shown: str) -> bool:
    """Whether the page shows the beginning, up to a line of dots."""
    return shown.endswith("…\n") and printed.startswith(shown.removesuffix("…\n"))


def test_the_page_names_every_fact_and_operation() -> None:
    """docs/runs.md has every name of the language."""
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+):?`", text))
    assert named >= FACTS | set(OPERATIONS)


def test_the_list_is_kept_for_the_next_time(tmp_path: Path) -> None:
    """After it has printed, the command keeps what it learnt of runs that are over."""
    made = make_store(tmp_path)
    make_run(made, "a41f", [{"loss": 1.0}])
    os.utime(os.path.join(made, "runs", "a41f"), (START_NS / 1e9, START_NS / 1e9))
    stepd(made)
    assert os.path.exists(os.path.join(made, CACHE_FILE))
