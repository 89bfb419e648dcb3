from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from sdk.query.living import SPARK_POINTS, LivingRun
from sdk.query.living_runs import LivingRuns
from sdk.reader import Store
from sdk.reader.facts import StreamFacts
from sdk.reader.newest import Newest
from sdk.reader.parts import values_of
from sdk.record import Record
from tests.builders import START_NS, RunBuilder, compact, make_run, make_store
from tests.store_rig import Watched

SECOND = 10**9


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


class Trainer:
    """A made-up trainer with a clock of its own, which lives until told otherwise."""

    def __init__(self, store: str, run_id: str = "a41f", **config: object) -> None:
        self.files = Watched()
        self.lives = True
        self.run = RunBuilder(store, run_id, name=f"run-{run_id}")
        self.main = self.run.stream()
        self.system = self.run.stream("system")
        if config:
            self.main.meta({"config": config})
        self.store = Store(store, files=self.files, alive=self.alive, now_ns=lambda: self.main.time_ns)

    def alive(self, stream: StreamFacts) -> bool:
        return self.lives

    def steps(self, count: int, seconds: float = 1.0, **values: float) -> None:
        """Logs rows that take so long each; their block is written."""
        for _ in range(count):
            self.main.time_ns += int(seconds * SECOND) - 10**6
            self.main.log(dict(values))
        self.run.flush()

    def living(self) -> LivingRun:
        return LivingRun(self.store.run(self.run.id), lambda: self.main.time_ns)

    def opened(self) -> int:
        """How many files were opened since this was asked last."""
        count, self.files.opened = len(self.files.opened), []
        return count


# ---- what came since the last look


def test_each_record_comes_once(store: str) -> None:
    """What is new is given, in order; a second look without anything new gives nothing, and opens nothing."""
    trainer = Trainer(store)
    trainer.steps(3, loss=1.0)
    newest = Newest(trainer.store.run("a41f"))
    (first,) = newest.look(8)
    assert [part.step for part in first.parts if isinstance(part, Record)] == [0, 1, 2]
    trainer.opened()
    assert not newest.has_changed()
    trainer.steps(1, loss=0.5)
    assert newest.has_changed()
    (second,) = newest.look(8)
    assert [values_of(part) for part in second.parts if isinstance(part, Record)] == [{"loss": 0.5}]
    assert newest.look(8) == []
    assert trainer.opened() == 0, "the segment that grows stays open"
    assert newest.step_max == 3
    newest.close()


def test_many_blocks_are_not_all_read(store: str) -> None:
    """Of many new blocks the last ones are read; the others are counted, and their steps known."""
    trainer = Trainer(store)
    for _ in range(10):
        trainer.steps(1, loss=1.0)
    newest = Newest(trainer.store.run("a41f"))
    (found,) = newest.look(2)
    assert [part.step for part in found.parts if isinstance(part, Record)] == [8, 9]
    assert (found.skipped, newest.step_max) == (8, 9)
    newest.close()


def test_what_was_rewritten_is_not_new(store: str) -> None:
    """Columns that say again what was seen bring nothing, and rows behind them are new."""
    trainer = Trainer(store)
    trainer.steps(5, loss=1.0)
    newest = Newest(trainer.store.run("a41f"))
    newest.look(8)
    trainer.run.seal()
    compact(trainer.run)
    assert newest.look(8) == []
    trainer.steps(1, loss=0.5)
    (found,) = newest.look(8)
    assert [part.step for part in found.parts if isinstance(part, Record)] == [5]
    newest.close()


# ---- what is seen of it


def test_rate_and_time_left_by_steps(store: str) -> None:
    """The rate is that of the last minute; what is left is by the steps that the config promises, on whatever level."""
    trainer = Trainer(store, trainer={"max_steps": 1000})
    trainer.steps(100, seconds=10.0, loss=1.0)
    living = trainer.living()
    living.look()
    for _ in range(10):
        trainer.steps(40, seconds=0.5, loss=1.0)
        living.look()
    glance = living.glance
    assert (glance.step, glance.steps, glance.state) == (499, 1000, "running")
    assert glance.rate == pytest.approx(2.0)
    assert glance.eta_seconds == pytest.approx(250.0)
    living.close()


def test_time_left_by_epochs(store: str) -> None:
    """Without a number of steps the epochs tell, by the steps that one takes."""
    trainer = Trainer(store, epochs=4)
    for epoch in range(1, 3):
        trainer.steps(50, loss=1.0, epoch=epoch)
    living = trainer.living()
    living.look()
    assert living.glance.eta_seconds == pytest.approx(2 * 99 / 2)
    living.close()


@pytest.mark.parametrize("said", [-1, 0, True, "many", math.nan, 1e300, None, {}])
def test_totals_that_are_none(store: str, said: object) -> None:
    """A config that names no positive number of steps promises nothing, and raises nothing."""
    trainer = Trainer(store, max_steps=said, epochs=said)
    trainer.steps(5, loss=1.0, epoch=2.0)
    living = trainer.living()
    living.look()
    assert (living.glance.steps, living.glance.eta_seconds) == (None, None)
    living.close()


def test_a_silent_run_is_quiet(store: str) -> None:
    """A run that lives and logs nothing for long has no rate and no time left, but says for how long."""
    trainer = Trainer(store, max_steps=100)
    trainer.steps(5, loss=1.0)
    living = trainer.living()
    living.look()
    assert living.glance.quiet_seconds == 0
    trainer.main.time_ns += 600 * SECOND
    assert living.look()
    assert living.glance[10:12] == (None, None)
    assert living.glance.quiet_seconds == pytest.approx(600)
    living.close()


def test_sparks_grow_and_stay_short(store: str) -> None:
    """A series' points are spread over the whole run however long it goes on; the last value is there, NaN too."""
    trainer = Trainer(store)
    trainer.steps(10, loss=5.0)
    living = trainer.living()
    living.look()
    for number in range(5 * SPARK_POINTS):
        trainer.steps(1, loss=float(number))
        living.look()
    trainer.steps(1, loss=math.nan)
    living.look()
    (spark,) = living.glance.sparks
    assert len(spark.values) <= 2 * SPARK_POINTS
    assert spark.steps[0] == 0
    assert spark.values[-1] == 5 * SPARK_POINTS - 1
    assert math.isnan(spark.last)
    middle = spark.steps[len(spark.steps) // 2]
    assert 0.3 < middle / spark.steps[-1] < 0.7
    living.close()


def test_a_key_that_comes_later_gets_a_spark(store: str) -> None:
    """Validation begins after the first look; a text under a main key's name is no series."""
    trainer = Trainer(store)
    trainer.steps(5, loss=1.0)
    living = trainer.living()
    living.look()
    trainer.main.log({"loss": 0.5, "val/acc": 0.7, "best_loss": "none"})
    trainer.run.flush()
    living.look()
    assert [(spark.key, spark.last) for spark in living.glance.sparks] == [("loss", 0.5), ("val/acc", 0.7)]
    living.close()


def test_a_key_for_every_step_does_not_grow_without_end(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of keys so many are kept and no more, and texts are not looked for again."""
    monkeypatch.setattr("sdk.query.living._KEYS_MAX", 50)
    trainer = Trainer(store)
    trainer.steps(1, loss=1.0)
    living = trainer.living()
    for number in range(100):
        trainer.main.log({"loss": 0.5, f"at/{number}": "a text"})
        trainer.run.flush()
        living.look()
    assert len(living._keys) <= 51
    assert [spark.key for spark in living.glance.sparks] == ["loss"]
    living.close()


def test_the_main_series_of_thousands(store: str) -> None:
    """Of more keys than are kept, those that are worth a look first are."""
    trainer = Trainer(store)
    trainer.steps(2, **{"train/loss": 1.0}, **{f"a{number:04}": 0.0 for number in range(2_100)})
    living = trainer.living()
    living.look()
    assert living.glance.sparks[0].key == "train/loss"
    living.close()


def test_the_main_process_speaks_for_a_series(store: str) -> None:
    """What another rank logs under the same key is not mixed in; what only it logs is shown."""
    trainer = Trainer(store)
    other = trainer.run.stream("attach", rank=1)
    trainer.steps(3, loss=1.0)
    living = trainer.living()
    living.look()
    for _ in range(5):
        other.log({"loss": 9.0, "rank1/loss": 3.0})
    trainer.steps(1, loss=0.5)
    living.look()
    assert {spark.key: spark.last for spark in living.glance.sparks} == {"loss": 0.5, "rank1/loss": 3.0}
    living.close()


def test_load_of_all_hosts_and_devices(store: str) -> None:
    """GPUs' use is a mean, everything else a sum; what is not sampled is not known."""
    trainer = Trainer(store)
    other = trainer.run.stream("system", rank=1, host="host-b")
    trainer.steps(1, loss=1.0)
    living = trainer.living()
    living.look()
    assert set(living.glance.load) == {None}
    sample = {
        "system/cpu": 100.0,
        "system/memory_rss": 1e9,
        "system/gpu.0.utilization": 90.0,
        "system/gpu.0.memory_used": 2e9,
    }
    trainer.system.log({**sample, "system/gpu.0.memory_total": 8e9})
    other.log({**sample, "system/gpu.0.utilization": 50.0, "system/gpu.0.memory_total": 8e9})
    trainer.run.flush()
    living.look()
    assert tuple(living.glance.load) == (70.0, 4e9, 16e9, 200.0, 2e9)
    living.close()


def test_the_last_rows_before_the_end_are_seen(store: str) -> None:
    """A run that ended has no rate, no load, and its last step."""
    trainer = Trainer(store)
    trainer.steps(5, loss=1.0)
    runs = LivingRuns(trainer.store, lambda: trainer.main.time_ns)
    runs.look()
    trainer.steps(2, loss=0.5)
    trainer.main.finish()
    trainer.run.seal()
    trainer.lives = False
    runs.look()
    (glance,) = runs.glances.values()
    assert (glance.state, glance.step, glance.rate, glance.sparks[0].last) == ("finished", 6, None, 0.5)
    runs.close()


def test_a_resume_that_goes_back(store: str) -> None:
    """What it hid is gone: the step, the curve, the rate and the time left are those of the attempt that goes on."""
    trainer = Trainer(store, max_steps=60)
    trainer.steps(50, loss=9.0)
    living = trainer.living()
    living.look()
    before = trainer.main
    trainer.main = trainer.run.stream(
        continues=before.hex, attempt=2, first_step=10, started_ns=before.time_ns + SECOND
    )
    trainer.main.meta({"hide": {"from_step": 10}})
    trainer.steps(11, seconds=2.0, loss=1.0)
    living.look()
    trainer.steps(1, seconds=2.0, loss=0.5)
    living.look()
    glance = living.glance
    (spark,) = glance.sparks
    assert (glance.step, glance.rate, glance.quiet_seconds) == (21, pytest.approx(0.5), 0.0)
    assert glance.eta_seconds == pytest.approx(2 * (59 - 21))
    assert (max(spark.steps), spark.last) == (21, 0.5)
    assert {value for step, value in zip(spark.steps, spark.values) if step >= 10} <= {1.0, 0.5}
    assert living.run.step_max == living.run.last_step == 21
    living.close()


def test_a_row_that_is_said_again(store: str) -> None:
    """Of a value that is logged twice in one row the later one holds; a late row is not the last one."""
    trainer = Trainer(store)
    trainer.steps(3, loss=1.0)
    living = trainer.living()
    living.look()
    trainer.main.log({"loss": 0.5}, step=3, commit=False)
    trainer.main.log({"loss": 0.25, "other": 1.0}, step=3)
    trainer.main.log({"loss": math.nan}, step=4)
    trainer.main.log({"loss": 7.0, "late": 1.0}, step=2)
    trainer.run.flush()
    living.look()
    spark = next(spark for spark in living.glance.sparks if spark.key == "loss")
    assert (spark.steps[-1], spark.values[-1]) == (3, 0.25)
    assert math.isnan(spark.last)
    living.close()


def test_what_became_columns_before_it_was_seen(store: str) -> None:
    """The last values of a run that ended and was compacted between two looks are those of its columns."""
    trainer = Trainer(store)
    trainer.steps(5, loss=1.0)
    living = trainer.living()
    living.look()
    trainer.steps(5, loss=0.25)
    trainer.main.finish()
    trainer.system.finish()
    trainer.run.seal()
    compact(trainer.run)
    living.look()
    assert (living.glance.state, living.glance.step, living.glance.sparks[0].last) == ("finished", 9, 0.25)
    living.close()


# ---- the runs of a store


def test_runs_come_end_and_go(store: str) -> None:
    """New runs are taken up, those that go on are looked at, those that are gone leave."""
    trainer = Trainer(store)
    trainer.steps(5, loss=1.0)
    runs = LivingRuns(trainer.store, lambda: trainer.main.time_ns)
    runs.look()
    assert {glance.id: glance.state for glance in runs.glances.values()} == {"a41f": "running"}
    done = make_run(store, "b2", [{"loss": 1.0}] * 3)
    runs.look()
    assert {glance.id: glance.state for glance in runs.glances.values()} == {"a41f": "running", "b2": "finished"}
    done.files.remove_tree(done.directory)
    trainer.files.remove_tree(trainer.run.directory)
    runs.look()
    assert runs.glances == {} and runs.runs == {}
    runs.close()


def test_a_look_without_news_opens_nothing(store: str) -> None:
    """Runs that are over and have settled cost one listing of the store; a growing one opens no file a second time."""
    for number in range(5):
        make_run(store, f"b{number}", [{"loss": 1.0}])
    trainer = Trainer(store)
    trainer.steps(3, loss=1.0)
    # As if all of it had been made long ago: what changed within the last seconds is looked at again.
    runs = LivingRuns(Store(store, files=trainer.files, alive=trainer.alive, now_ns=lambda: 2 * START_NS))
    runs.look()
    trainer.opened()
    runs.look()
    assert trainer.opened() == 0
    trainer.steps(1, loss=0.5)
    runs.look()
    assert trainer.opened() == 0
    assert runs.glances["a41f"].sparks[0].last == 0.5
    runs.close()


def test_series_of_runs_that_are_over_are_read_when_they_are_wanted(store: str) -> None:
    """`fill` samples the wanted ones, once."""
    make_run(store, "b1", [{"loss": 1.0}, {"loss": 0.5}])
    make_run(store, "b2", [{"loss": 1.0}])
    runs = LivingRuns(Store(store))
    runs.look()
    assert runs.fill(["b1"], 10.0)
    assert not runs.fill(["b1"], 10.0)
    assert {glance.id: len(glance.sparks) for glance in runs.glances.values()} == {"b1": 1, "b2": 0}
    assert runs.glances["b1"].state == "finished"
    runs.close()


def test_a_run_of_another_host_was_only_silent(store: str) -> None:
    """Nobody here knows whether it lives: silent for long it counts as crashed, and as running when its file grows again."""
    run = RunBuilder(store, "far")
    main = run.stream()
    now = 4 * 10**9  # the directory has not changed for long
    runs = LivingRuns(Store(store, alive=lambda stream: None, now_ns=lambda: now * SECOND), lambda: now * SECOND)

    def seen(values: int) -> str:
        for _ in range(values):
            main.log({"loss": 1.0})
        run.flush()
        if values:
            os.utime(run.daemon.paths[0], (now, now))
        runs.look()
        return runs.glances["far"].state

    assert seen(3) == "running"
    now += 3600
    assert (seen(0), seen(0)) == ("crashed", "crashed")
    assert (seen(1), runs.glances["far"].step) == ("running", 3)
    main.finish()
    assert (seen(1), seen(0)) == ("finished", "finished")
    runs.close()


def test_an_attempt_that_nobody_saw(store: str) -> None:
    """A run that was over, was resumed and ended between two looks has the values of its last attempt when they are wanted."""
    run = make_run(store, "b1", [{"loss": 1.0}])
    runs = LivingRuns(Store(store))
    runs.look()
    runs.fill(["b1"], 10.0)
    again = run.stream(continues=run.streams[0].hex, attempt=2, first_step=1)
    again.log({"loss": 0.25})
    again.finish()
    run.seal()
    runs.look()
    runs.fill(["b1"], 10.0)
    assert (runs.glances["b1"].step, runs.glances["b1"].sparks[0].last) == (1, 0.25)
    runs.close()
