"""`stepd compare` and `stepd set`: what is printed, for people and for programs."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from daemon.commands.cells import cells
from daemon.commands.compare import told_apart
from daemon.commands.set import Assignment, assignment_of, value_of
from sdk.errors import UsageError
from sdk.reader import Store
from tests.builders import RunBuilder, make_run, make_store
from tests.called import said, stepd
from tests.daemon.compared import make_compared


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Runs base, wide and again; nobody writes to it."""
    store = make_store(tmp_path_factory.mktemp("compared"))
    make_compared(store)
    return store


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = make_store(tmp_path)
    make_run(path, "a41f", [{"loss": 1.0}], name="first", config={"lr": 0.1}, tags=["one"])
    make_run(path, "b7c2", [{"loss": 1.0}], name="second")
    return path


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def sections(text: str) -> dict[str, list[str]]:
    """The first word of each block of lines -> the block's lines."""
    return {block.split()[0]: block.splitlines() for block in text.strip().split("\n\n")}


class TestCompare:
    """Facts, results, series."""

    def test_only_what_differs(self, compared: str) -> None:
        """Each section has the facts that differ, side by side, and how many do not."""
        found = sections(said(compared, "compare", "base", "wide"))
        assert [line.split() for line in found["config"][1:4]] == [
            ["lr", "0.1", "0.2"], ["model.width", "64", "128"], ["schedule", "-", "cosine"],
        ]  # fmt: skip
        assert found["config"][4:] == ["  (3 more the same)", "  (equal, but integers and floats: epochs)"]
        assert [line.split() for line in found["packages"][1:4]] == [
            ["torch", "2.9.0", "2.9.1"], ["tqdm", "4.66.1", "-"], ["rich", "-", "13.0"],
        ]  # fmt: skip
        assert "  gpu         2 x NVIDIA H200  1 x NVIDIA H200" in found["hardware"]
        assert any(line.split()[:5] == ["diff.patch", "-", "+1", "-1", "lines,"] for line in found["code"])
        assert "    wide  train.py --lr 0.2 --width 128 --schedule 'cosine with restarts'" in found["code"]
        assert "$OMP_NUM_THREADS" in "\n".join(found["environment"])

    def test_results_mark_the_better_one(self, compared: str) -> None:
        """By the goal that the name tells; a value that was set in the summary has a section of its own."""
        found = sections(said(compared, "compare", "base", "wide"))
        rows = [line.split() for line in found["results"]]
        assert ["duration", "30", "s", "30", "s"] in rows
        assert ["train/loss", "0.0647249", "0.0328947", "*"] in rows
        assert ["val/acc", "0.967638", "0.983553", "*"] in rows
        assert [line.split() for line in found["summary"][1:]] == [["test/acc", "0.9", "0.92"]]

    def test_where_they_part(self, compared: str) -> None:
        """The step, how the ends compare, both values; what is the same is counted."""
        lines = sections(said(compared, "compare", "base", "wide"))["series"]
        assert lines[1].split()[:3] == ["train/loss", "step", "120"]
        assert lines[2].split()[:3] == ["val/acc", "step", "149"]
        assert lines[-1] == "  (1 more the same, bit by bit)"

    def test_a_run_that_ends_before(self, compared: str) -> None:
        """Is told as such, and is no other value."""
        lines = sections(said(compared, "compare", "base", "again"))["series"]
        assert (
            lines[1].split() == "train/loss ends 199 +33.1 % only base goes on after step 199".split()
            or "ends 199" in lines[1]
        )
        assert "only base goes on after step 199" in lines[1]

    def test_what_nobody_wrote_down_is_no_difference(self, compared: str) -> None:
        """A run without an observer has no packages and no commit that could be compared."""
        text = said(compared, "compare", "base", "again")
        assert "packages  not known of again" in text
        assert "commit" not in text
        assert "?" in said(compared, "compare", "base", "again", "--all")

    def test_three_runs(self, compared: str) -> None:
        """A column for each of the others, against the first."""
        found = sections(said(compared, "compare", "base", "wide", "again"))
        assert found["where"][1].split() == ["series", "wide", "again"]
        assert found["where"][-1].split() == ["val/acc", "step", "149", "ends", "199"]

    def test_more_runs_than_fit(self, tmp_path: Path) -> None:
        """Below one another, in the terminal's width."""
        store = make_store(tmp_path)
        names = [f"r{number}" for number in range(12)]
        for place, name in enumerate(names):
            make_run(store, name, [{"loss": float(place)}], name=f"name-{name}")
        text = said(store, "compare", *names)
        assert max(map(len, text.splitlines())) <= 80
        assert sections(text)["where"][2:4] == ["  loss", "    name-r1         step 0"]

    def test_without_names(self, compared: str) -> None:
        """The last two of the latest one's project; of one name, that and the one before it."""
        assert said(compared, "compare").splitlines()[0].split()[:2] == ["reference", "b7c2"]
        assert said(compared, "compare", "wide").splitlines()[0].split()[:2] == ["reference", "a41f"]

    def test_code(self, compared: str) -> None:
        """--code prints how patches and scripts differ."""
        text = said(compared, "compare", "base", "wide", "--code")
        assert "  -width = 64\n  +width = 128\n   depth = 3" in text
        assert "diff.patch: base and wide" in text

    def test_code_of_endless_lines(self, tmp_path: Path) -> None:
        """A notebook's pictures are not printed."""
        store = make_store(tmp_path)
        for name in ("r1", "r2"):
            builder = RunBuilder(store, name)
            builder.stream().meta({"context": {"git": {"commit": "c"}}})
            builder.close()
            path = Path(builder.directory, "files", "diff.patch")
            path.parent.mkdir()
            path.write_text(f"+{name * 100_000}\n", encoding="utf-8")
        text = said(store, "compare", "r1", "r2", "--code", "--only", "code")
        assert "  -+r1r1r1" in text
        assert max(map(len, text.splitlines())) < 1100

    def test_tolerance(self, compared: str) -> None:
        """A column says where they are further apart than that."""
        line = sections(said(compared, "compare", "base", "wide", "--tolerance", "0.2"))["series"][1]
        assert line.split()[1:5] == ["step", "120", "step", "120"]
        assert "nowhere" in sections(said(compared, "compare", "base", "wide", "--tolerance", "0.9"))["series"][1]

    def test_keys(self, compared: str) -> None:
        """Only those are compared, and a name that is none is told with near ones."""
        assert "train/loss" not in said(compared, "compare", "base", "wide", "--keys", "val/*")
        result = stepd(compared, "compare", "base", "wide", "--keys", "val/ac")
        assert result.exit_code == 1
        assert "They share 'val/acc'" in result.stderr

    @pytest.mark.parametrize(("step", "code"), [("120", 0), ("121", 1)])
    def test_fail_before(self, compared: str, step: str, code: int) -> None:
        """Exit code 1 where something differs before that step, and the error says what."""
        result = stepd(compared, "compare", "base", "wide", "--fail-before", step)
        assert result.exit_code == code
        assert ("stepd: 1 series differs before step 121: train/loss" in result.stderr) is bool(code)

    def test_a_series_that_only_one_has(self, tmp_path: Path) -> None:
        """It is told, and a difference where it has a value before the step."""
        store = make_store(tmp_path)
        make_run(store, "r1", [{"loss": 1.0}] * 5 + [{"loss": 1.0, "val/acc": 0.5}] * 5, name="one")
        make_run(store, "r2", [{"loss": 1.0}] * 10, name="two")
        words = ("compare", "r1", "r2", "--only", "series")
        assert "  (only one: val/acc)" in said(store, *words, "--fail-before", "5")
        result = stepd(store, *words, "--fail-before", "6")
        assert (result.exit_code, "1 series differs before step 6: val/acc" in result.stderr) == (1, True)
        told = json.loads(stepd(store, *words, "--fail-before", "6", "--json").stdout)
        assert (told["failed"], told["lone_series"]) == (["val/acc"], {"val/acc": ["r1"]})
        assert "only" not in said(store, *words, "--keys", "loss", "--fail-before", "6")

    def test_fail_before_wants_what_can_differ(self, compared: str) -> None:
        """A run that ended before the step, while the other goes on, does not pass; nor do runs without a common series."""
        assert stepd(compared, "compare", "base", "again", "--fail-before", "200").exit_code == 0
        assert stepd(compared, "compare", "base", "again", "--fail-before", "201").exit_code == 1
        tolerant = ("--tolerance", "0.9", "--fail-before", "300", "--keys", "train/*")
        assert stepd(compared, "compare", "base", "wide", *tolerant).exit_code == 0

    def test_no_common_series(self, tmp_path: Path) -> None:
        """Said, and no test of reproducibility passes on it."""
        store = make_store(tmp_path)
        make_run(store, "a1", [{"a": 1.0}])
        make_run(store, "b2", [{"b": 1.0}], name="other")
        assert "series  the runs share none" in said(store, "compare", "a1", "b2")
        result = stepd(store, "compare", "a1", "b2", "--fail-before", "5")
        assert result.exit_code == 1
        assert "share no series" in result.stderr

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (("base", "base"), "expected two or more runs, each once, got 'a41f', 'a41f'"),
            (("base", "none"), "no run matches 'none'"),
            (("base", "wide", "--only", "config", "--fail-before", "3"), "needs the series"),
            (("base", "wide", "--only", "config,cod"), "'cod', expected some of config, code"),
        ],
    )
    def test_errors_of_use(self, compared: str, words: tuple[str, ...], text: str) -> None:
        """One line that says what is wrong."""
        result = stepd(compared, "compare", *words)
        assert result.exit_code != 0
        assert text in result.stderr

    def test_a_run_alone(self, tmp_path: Path) -> None:
        """There is nothing to compare it with."""
        store = make_store(tmp_path)
        make_run(store, "a1", [{"a": 1.0}])
        result = stepd(store, "compare")
        assert result.exit_code == 1
        assert "has no other run than 'a1'" in result.stderr

    def test_only(self, compared: str) -> None:
        """Chosen parts, in their order."""
        found = sections(said(compared, "compare", "base", "wide", "--only", "series,config"))
        assert list(found) == ["reference", "config", "series"]
        told = json.loads(said(compared, "compare", "base", "wide", "--only", "packages", "--json"))
        assert set(told) == {"runs", "packages"}

    def test_json(self, compared: str) -> None:
        """One document: facts that differ, results and series by run."""
        told = json.loads(said(compared, "compare", "base", "wide", "--json", "--fail-before", "100"))
        assert [run["id"] for run in told["runs"]] == ["a41f", "b7c2"]
        assert told["config"]["schedule"] == {"b7c2": "cosine"}
        assert told["results"]["val/acc"]["goal"] == "max"
        assert told["series"]["train/loss"]["b7c2"]["same"] is True
        assert told["failed"] == []
        whole = json.loads(said(compared, "compare", "base", "wide", "--json"))
        assert whole["series"]["train/loss"]["b7c2"]["first"]["step"] == 120

    def test_hostile_texts(self, tmp_path: Path) -> None:
        """Nothing of a store steers the terminal."""
        store = make_store(tmp_path)
        bad = "\x1b[31m\x07\u202e"
        for run_id, value in (("a1", 1.0), ("b2", 2.0)):
            builder = RunBuilder(store, run_id, name=f"{bad}{run_id}", project=bad)
            main = builder.stream()
            main.meta(
                {
                    "config": {f"k{bad}": bad + run_id},
                    "context": {"environment": {bad: run_id}, "git": {"commit": bad + run_id}},
                }
            )
            main.meta(
                {
                    "context": {
                        "command": [bad, bad + run_id],
                        "gpus": [{"name": bad + run_id}, 3],
                        "packages": 3,
                        "launcher": [],
                    }
                }
            )
            main.log({f"loss{bad}": value, "text": bad + run_id})
            main.finish()
            builder.seal()
            Path(builder.directory, "files").mkdir()
            Path(builder.directory, "files", "diff.patch").write_text(f"+{bad}{run_id}\n")
        for more in ((), ("--all", "--code"), ("--tolerance", "1e-9")):
            text = said(store, "compare", "a1", "b2", *more)
            assert all(c.isprintable() or c == "\n" for c in text)

    def test_settings_that_differ_look_different(self, tmp_path: Path) -> None:
        """However close they are, and whatever kind they are of; a name without end takes no more room than it needs."""
        store = make_store(tmp_path)
        make_run(store, "r1", [{"loss": 0.1234567}], name="n" * 5000, config={"lr": 0.1, "seed": 1, "wd": 0.5})
        make_run(store, "r2", [{"loss": 0.1234568}], name="short", config={"lr": 0.10000001, "seed": "1", "wd": 0.6})
        found = sections(said(store, "compare", "r1", "r2"))
        assert [line.split() for line in found["config"][1:]] == [
            ["lr", "0.1", "0.10000001"], ["seed", "1", '"1"'], ["wd", "0.5", "0.6"],
        ]  # fmt: skip
        assert ["loss", "0.1234567", "*", "0.1234568"] in [line.split() for line in found["results"]]
        assert max(map(len, found["reference"])) < 120

    def test_wide_letters_take_two_cells(self, tmp_path: Path) -> None:
        """Columns stay below one another whatever script a name, a key or a value is written in."""
        made = make_store(tmp_path)
        for n, name in enumerate(("日本語テスト", "plain")):
            config = {"データ": ("猫", "dog")[n], "lr": 1.0 + n}
            make_run(made, f"a{n}", [{"損失": 1.0 + n}, {"loss": 2.0}], name=name, config=config)
        lines = said(made, "compare", "a0", "a1").splitlines()
        head, *rows = (line for line in lines if line.lstrip().startswith(("config", "データ", "lr")))
        assert [cells(row[: row.rindex(text)]) for row, text in zip(rows, ("dog", "2"))] == [
            cells(head[: head.index("plain")])
        ] * 2
        first, second = (line for line in lines if line.startswith(("reference", "against")))
        assert cells(first[: first.index("digits")]) == cells(second[: second.index("digits")])

    def test_a_narrow_terminal_and_a_large_difference(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What does not fit stands in a line of its own, the heading too; a percentage of thousands is written out."""
        monkeypatch.setenv("COLUMNS", "60")
        store = make_store(tmp_path)
        for run_id, value in (("a41f", 0.01), ("b52e", 0.271)):
            make_run(store, run_id, [{"loss": value}], name=f"momentum-{run_id}")
        lines = sections(said(store, "compare", "a41f", "b52e", "--only", "series", "--tolerance", "0.1"))["series"]
        assert lines == [
            "series  first differs   beyond 0.1      at the end", "    momentum-a41f → momentum-b52e",
            "  loss  step 0          step 0          +2,610 %", "    0.01 → 0.271",
        ]  # fmt: skip

    def test_a_tolerance_hides_no_missing_steps(self, tmp_path: Path) -> None:
        """Where values are within it, and one run ends before: said, and a failure."""
        store = make_store(tmp_path)
        make_run(store, "r1", [{"loss": 1.0}] * 10, name="long")
        make_run(store, "r2", [{"loss": 1.0000001}] * 5, name="short")
        result = stepd(store, "compare", "r1", "r2", "--only", "series", "--tolerance", "1e-3", "--fail-before", "9")
        assert result.exit_code == 1
        assert sections(result.stdout)["series"][1].split()[:5] == ["loss", "step", "0", "ends", "4"]
        make_run(store, "r3", [{"loss": 1.0}] * 10, name="other")
        several = said(store, "compare", "r1", "r2", "r3", "--only", "series", "--tolerance", "1")
        assert sections(several)["where"][2].split() == ["loss", "ends", "4", "nowhere"]

    def test_values_that_differ_look_different(self) -> None:
        """As many digits as that takes, and no more."""
        assert told_apart(0.1, 0.2) == ("0.1", "0.2")
        assert told_apart(0.1234567891, 0.1234567892) == ("0.1234567891", "0.1234567892")
        assert told_apart(1.0, 1.0000000000000002) == ("1.0", "1.0000000000000002")
        assert told_apart(0.0, -0.0) == ("0", "-0")

    @pytest.mark.parametrize(
        ("size", "words"), [("small", ("base", "wide", "--code")), ("large", ("base", "wide", "again"))]
    )
    def test_screens(self, compared: str, size: str, words: tuple[str, ...]) -> None:
        """What a person sees, in a small and in a large terminal."""
        from tests.terminal import LARGE, SMALL, same_screen, screen_of

        shape = SMALL if size == "small" else LARGE
        same_screen(f"compare-{size}", screen_of(["--dir", compared, "compare", *words], shape, env={"TZ": "UTC"}))


class TestPage:
    """docs/compare.md."""

    def test_its_outputs_are_real(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each of its commands prints what stands under it, one after the other in one store; `STEPD_TEST_WRITE_SCREENS` writes it."""
        store = make_store(tmp_path)
        make_compared(store)
        monkeypatch.setenv("TZ", "UTC")
        time.tzset()
        page = Path(__file__).parents[2] / "docs" / "compare.md"
        text = page.read_text(encoding="utf-8")

        def ran(block: re.Match[str]) -> str:
            return f"```console\n$ stepd {block[1]}\n{stepd(store, *shlex.split(block[1])).output}```"

        real = re.sub(r"```console\n\$ stepd (.*)\n(?:(?!```).*\n)*```", ran, text)
        if os.environ.get("STEPD_TEST_WRITE_SCREENS"):
            page.write_text(real, encoding="utf-8")
            text = real
        monkeypatch.undo()
        time.tzset()
        assert text == real
        assert real.count("```console") == 6


class TestSet:
    """Facts from the command line."""

    def test_its_help_is_a_table(self, store: str) -> None:
        """What can be set stands in lines."""
        lines = said(store, "set", "--help").splitlines()
        assert "  tags=A,B   tags+=A,B   tags-=A,B" in lines
        assert not any("\b" in line or "\\b" in line for line in lines)

    def test_set(self, store: str) -> None:
        """Each fact with what it was and what it is."""
        words = [
            "name=best",
            "tags+=b,c",
            "tags-=one",
            "notes=two words",
            "group=g",
            "summary.test=0.9",
            "config.method=sgd",
        ]
        text = said(store, "set", "first", *words)
        assert [" ".join(line.split()) for line in text.splitlines()] == [
            "a41f best",
            "name first → best",
            "notes (none) → two words",
            "group (none) → g",
            "tags one → b, c",
            "summary.test (none) → 0.9",
            "config.method (none) → sgd",
        ]
        run = Store(store).run("a41f")
        assert (run.name, run.tags, run.notes, run.config) == (
            "best",
            ["b", "c"],
            "two words",
            {"lr": 0.1, "method": "sgd"},
        )
        assert run.summary == {"loss": 1.0, "test": 0.9}

    def test_several_runs(self, store: str) -> None:
        """All that are named get it, with --json too."""
        told = json.loads(said(store, "set", "first", "second", "group=night", "tags+=one", "--json"))
        assert told == {"a41f": {"group": ["", "night"]}, "b7c2": {"group": ["", "night"], "tags": [[], ["one"]]}}

    def test_many_edits_are_shown_as_few(self, store: str) -> None:
        """`stepd show` lists the last ones, and how many there are besides."""
        for number in range(7):
            Store(store).run("first").set(summary={"n": number})
        shown = said(store, "show", "first")
        assert [line.split()[1] for line in shown.splitlines() if line.startswith("  ") and " edit " in line] == [
            "edit"
        ] * 5
        assert "(2 more edits, by stepd set)" in shown

    def test_what_was_done_before_an_error_is_told(self, store: str) -> None:
        """Of several runs the first ones are changed when a later one cannot be."""
        result = stepd(store, "set", "second", "first", "config.lr=0.5")
        assert result.exit_code != 0
        assert result.stdout.split() == ["b7c2", "second", "config.lr", "(none)", "→", "0.5"]
        assert Store(store).run("second").config["lr"] == 0.5

    def test_what_is_so_already(self, store: str) -> None:
        """Nothing is written."""
        before = os.listdir(Store(store).run("a41f").directory)
        assert "is as it was" in said(store, "set", "first", "name=first", "tags+=one")
        assert os.listdir(Store(store).run("a41f").directory) == before

    def test_values_are_taken_out(self, store: str) -> None:
        """An empty value empties a text, all tags, a key of the summary."""
        said(store, "set", "first", "tags=", "summary.loss=", "name=")
        run = Store(store).run("a41f")
        assert (run.tags, run.summary, run.name) == ([], {}, "a41f")

    def test_a_run_that_goes_on(self, tmp_path: Path) -> None:
        """It is set, and said that the training has the last word."""
        store = make_store(tmp_path)
        builder = RunBuilder(store, "a41f")
        builder.stream(boot_id="elsewhere", host="elsewhere").log({"a": 1.0})
        builder.flush()
        builder.close()
        assert "It is running" in said(store, "set", "a41f", "name=x")

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["first"], "lacks what to set"),
            (["name=x"], "lacks a run"),
            (["first", "lr=1"], "cannot set 'lr'"),
            (["first", "naem=1"], "Nearest: 'name'"),
            (["first", "name+=1"], "only tags take"),
            (["first", "summary.a-=1"], "only tags take"),
            (["first", "summary=1"], "which key?"),
            (["first", "config.lr=2"], "the run was started with 0.1"),
            (["first", "config.a=1", "config.a.b=2"], "both config.a and"),
            (["none", "name=x"], "no run matches"),
            (["first", f"tags={'x' * 65}"], "1 to 64 characters"),
        ],
    )
    def test_errors_of_use(self, store: str, words: list[str], text: str) -> None:
        """One line that says what is wrong, and nothing is written."""
        before = os.listdir(Store(store).run("a41f").directory)
        result = stepd(store, "set", *words)
        assert result.exit_code == 1
        assert text in result.stderr
        assert os.listdir(Store(store).run("a41f").directory) == before

    def test_words(self) -> None:
        """Names with dots, slashes and dashes; a value may hold anything, an equals sign too."""
        assert assignment_of("summary.val/acc-top.1=3") == Assignment("summary", "val/acc-top.1", "=", "3")
        assert assignment_of("notes=a=b\nc+=d") == Assignment("notes", "", "=", "a=b\nc+=d")
        assert assignment_of("tags-=a") == Assignment("tags", "", "-=", "a")

    @pytest.mark.parametrize(
        ("text", "value"),
        [("1", 1), ("1e-3", 1e-3), ("true", True), ("null", None), ('"a"', "a"), ("a b", "a b"), ("[1]", [1]), ("0x", "0x")],
    )  # fmt: skip
    def test_values(self, text: str, value: Any) -> None:
        """JSON where it is some, else the text."""
        assert value_of(text) == value

    def test_deep_json_is_a_text(self) -> None:
        """What Python's parser does not want to descend stays what was typed."""
        assert value_of("[" * 100_000) == "[" * 100_000
        with pytest.raises(UsageError):
            assignment_of("x")
