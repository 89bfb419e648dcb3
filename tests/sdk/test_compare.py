"""sdk.query.compare: which facts differ, whatever is known of each run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdk.errors import UsageError
from sdk.query.compare import ABSENT, SECTIONS, UNKNOWN, Comparison, compare, equal
from sdk.reader import Store
from tests.builders import RunBuilder, make_store
from tests.daemon.compared import make_compared


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = make_store(tmp_path_factory.mktemp("compared"))
    make_compared(store)
    return Store(store)


def of(store: Store, *names: str) -> Comparison:
    return compare(store.run(name) for name in names)


def values(comparison: Comparison, section: str) -> dict[str, list[Any]]:
    """Name -> values of what differs."""
    return {fact.name: fact.values for fact in comparison.differing(section)}


@pytest.mark.parametrize(
    ("one", "other", "are_equal"),
    [
        (1, 1.0, True), (float("nan"), float("nan"), True), (True, 1, False), (False, 0, False), (True, True, True),
        ([1, {"a": 2}], [1.0, {"a": 2}], True), ([1], [1, 2], False), ({"a": 1}, {"a": 1, "b": 2}, False), ("1", 1, False),
        (None, ABSENT, False), (None, None, True), ([True], [1], False), ((1, 2), [1, 2], True),
    ],
)  # fmt: skip
def test_equal(one: Any, other: Any, are_equal: bool) -> None:
    """Numbers by their value, truth by itself, the rest part by part."""
    assert equal(one, other) is are_equal
    assert equal(other, one) is are_equal


def test_sections(compared: Store) -> None:
    """Each section says what differs, in the order of the runs; a key that one lacks is absent there."""
    found = of(compared, "base", "wide")
    assert tuple(found.sections) == SECTIONS
    assert values(found, "config") == {"lr": [0.1, 0.2], "model.width": [64, 128], "schedule": [ABSENT, "cosine"]}
    assert values(found, "packages") == {
        "torch": ["2.9.0", "2.9.1"],
        "tqdm": ["4.66.1", ABSENT],
        "rich": [ABSENT, "13.0"],
    }
    assert values(found, "hardware") == {
        "gpu": ["2 x NVIDIA H200", "1 x NVIDIA H200"],
        "gpu memory": [300 * 10**9, 150 * 10**9],
    }
    assert values(found, "summary") == {"test/acc": [0.9, 0.92]}
    assert set(values(found, "code")) == {"command", "dirty", "script", "diff.patch"}
    assert [fact.name for fact in found.sections["config"] if fact.is_mixed] == ["epochs"]


def test_what_nobody_wrote_down(compared: Store) -> None:
    """Is unknown, equal to nothing and different from nothing; what the trainer would have said is absent."""
    found = of(compared, "base", "again")
    assert values(found, "packages") == {}
    assert values(found, "hardware") == {}
    by_name = {fact.name: fact.values for name in ("packages", "code", "environment") for fact in found.sections[name]}
    assert by_name["torch"] == ["2.9.0", UNKNOWN]
    assert by_name["commit"][1] is UNKNOWN
    assert by_name["user"] == ["ada", ABSENT]


def test_results_and_measures(compared: Store) -> None:
    """Last and best of every series by its goal, and which run has the best one alone."""
    found = of(compared, "base", "wide", "again")
    results = {result.key: result for result in found.results()}
    assert results["val/acc"].goal == "max"
    assert results["val/acc"].best_run == results["train/loss"].best_run == 1
    assert results["lr"].best_run is None
    assert list(results["lr"].last) == [0.1, 0.1, 0.1]
    assert [result.key for result in found.results(["val/*"])] == ["val/acc"]
    measures = {fact.name: fact.values for fact in found.measures()}
    assert measures["last step"] == [299, 299, 199]
    assert measures["duration"] == pytest.approx([30, 30, 20], rel=0.02)
    assert measures["steps/s"] == pytest.approx([10, 10, 10], rel=0.02)


def test_neither_end_of_an_epoch_is_better(tmp_path: Path) -> None:
    """A better one is only named where `define_metric` or the name says which end is good."""
    store = make_store(tmp_path)
    for at, run_id in enumerate(("a41f", "b52e")):
        run = RunBuilder(store, run_id)
        main = run.stream()
        main.meta({"metric": {"told": {"goal": "minimize"}}})
        main.log({"epoch": 1.0 + at, "grad_norm": 1.0 + at, "rmse": 1.0 + at, "told": 1.0 + at})
        main.finish()
        run.seal()
    found = {result.key: result for result in of(Store(store), "a41f", "b52e").results()}
    assert {key: (result.best_run, result.best_last) for key, result in found.items()} == {
        "epoch": (None, None), "grad_norm": (None, None), "rmse": (0, 0), "told": (0, 0),
    }  # fmt: skip
    assert found["epoch"].goal == "min"


def test_a_resumed_run_counts_its_last_attempt(tmp_path: Path) -> None:
    """Steps per second are those since it was resumed."""
    store = make_store(tmp_path)
    for name in ("one", "two"):
        builder = RunBuilder(store, name, name=name)
        first = builder.stream()
        first.log({"loss": 1.0}, step=10_000, commit=True)
        first.finish("failed")
        main = builder.stream(continues=first.hex, attempt=2, first_step=10_001)
        for _ in range(100):
            main.time_ns += 10**8
            main.log({"loss": 1.0})
        main.finish()
        builder.seal()
    measures = {fact.name: fact.values for fact in of(Store(store), "one", "two").measures()}
    assert measures["steps/s"] == pytest.approx([10, 10], rel=0.02)


def test_media_are_no_series(tmp_path: Path) -> None:
    """A key that holds images is not walked."""
    from tests.media_rig import MediaBuilder

    store = make_store(tmp_path)
    for name in ("one", "two"):
        builder = RunBuilder(store, name, name=name)
        media = MediaBuilder(builder, main := builder.stream())
        media.log_page(b"x" * 100, "page")
        main.log({"loss": 1.0})
        media.seal()
    assert of(Store(store), "one", "two").shared_keys() == ["loss"]


@pytest.mark.parametrize("names", [[], ["base"], ["base", "base"], ["base", "wide", "base"]])
def test_two_runs_at_least(compared: Store, names: list[str]) -> None:
    """One alone, and one twice, cannot be compared."""
    with pytest.raises(UsageError, match="two or more runs, each once"):
        of(compared, *names)


def test_hostile_facts(tmp_path: Path) -> None:
    """Facts of any shape make no section fail: what is no map or list where one should be counts as nothing."""
    store = make_store(tmp_path)
    shapes: list[Any] = [
        None,
        3,
        "x",
        [],
        {},
        [[]],
        {"name": []},
        {3: 4, "A": 1, None: 2},
        float("nan"),
        [{"name": None, "memory_bytes": "x"}],
    ]
    names = (
        "git",
        "program",
        "command",
        "code",
        "gpus",
        "python",
        "launcher",
        "hydra",
        "environment",
        "host",
        "os",
        "cwd",
    )
    for place, shape in enumerate(shapes):
        builder = RunBuilder(store, f"run{place}", name=f"run{place}")
        main = builder.stream()
        main.meta({"config": {"a": shape}, "context": dict.fromkeys(names, shape), "summary": {"b": shape}})
        main.log({"loss": 1.0})
        builder.seal()
        files = Path(builder.directory, "files")
        files.mkdir()
        (files / "requirements.txt").write_bytes(b"\xff\xfe==\n-e x\n @ \n====\n#\n\n-r y\n" + b"a" * 10_000)
        (files / "conda.txt").write_bytes(b"=\n==\nx=1=2\n")
        (files / "diff.patch").write_bytes(b"\x00\xff+\n-\n")
    found = compare(Store(store).runs())
    assert len(found.runs) == len(shapes)
    for section in found.sections:
        found.differing(section)
    list(found.code_diffs(5))
    found.results()
    found.measures()
