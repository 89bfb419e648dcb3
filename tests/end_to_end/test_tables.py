"""Tables, histograms, charts and tensors through a real run: W&B's example as it stands, and the budget of raw arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

import sdk


@pytest.fixture
def away(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that no daemon serves."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    return store


def test_a_growing_table(away: Path) -> None:
    """Each step shows the table as it was then; what is stored grows by the new rows alone."""
    run = sdk.init()
    table = sdk.Table(["n", "image", "text"], log_mode="INCREMENTAL")
    for step in range(3):
        for number in range(2000):
            image = sdk.Image(numpy.full((2, 2), step, "u1")) if number == 0 else None
            table.add_data(number, image, f"text of row {number}")
        sdk.log({"table": table})
    run.finish()
    items = sdk.open_store(away).run(run.id).media("table")
    assert [len(item.rows) for item in items] == [2000, 4000, 6000]
    assert items[-1].rows[4001] == [1, None, "text of row 1"]
    assert items[-1].rows[4000][1].to_numpy().tolist() == [[2, 2], [2, 2]]
    stored = sum(path.stat().st_size for path in away.rglob("media-*.seg"))
    assert stored < 1.1 * 6000 * 24


def test_the_example_of_histograms_and_curves(away: Path) -> None:
    """As the pages of W&B have it."""
    wandb = sdk
    gradients = numpy.random.default_rng(0).standard_normal((100, 100))
    run = wandb.init()
    run.log({"gradients": wandb.Histogram(gradients)})
    run.log({"pr": wandb.plot.pr_curve([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], ["cat", "dog"])})
    run.finish()
    found = sdk.open_store(away).run(run.id)
    (histogram,) = found.media("gradients")
    counts, edges = numpy.histogram(gradients, 64)
    assert (histogram.values, histogram.bins) == (counts.tolist(), edges.tolist())
    (chart,) = found.media("pr")
    assert chart.kind == "chart"


def test_the_budget_of_tensors(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is beyond it statistics are stored, the receipt says so, and another key is not touched."""
    monkeypatch.setenv("STEPD_TENSOR_BYTES_PER_MINUTE_MAX", "100K")
    run: Any = sdk.init()
    array = numpy.random.default_rng(0).standard_normal(20_000)
    for _ in range(3):
        sdk.log({"weights": array})
    sdk.log({"others": array})
    run.finish()
    found = sdk.open_store(away).run(run.id)
    first, *reduced = found.media("weights")
    assert numpy.array_equal(first.to_numpy(), array)
    assert numpy.array_equal(found.media("others")[0].to_numpy(), array)
    assert [item.value["over_budget"] for item in reduced] == [True, True]
    assert reduced[0].statistics == first.statistics
