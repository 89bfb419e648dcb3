"""sdk.editing: facts that are added to a run from outside; what of them is there after a kill, a power loss, a failing disk."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from daemon.sync.place import parse
from daemon.sync.registry import make
from sdk.editing import FACTS_BYTES_MAX
from sdk.errors import StoreError, UsageError
from sdk.files import DISK
from sdk.files.failing import FAULTS, FailingFiles
from sdk.files.recording import WRITE, RecordingFiles
from sdk.reader import Run, Store
from sdk.reader.usage import run_use
from sdk.reader.verify import verify_run
from sdk.segment.naming import RUNS, run_path
from tests.builders import START_NS, RunBuilder, compact, make_run, make_store
from tests.crash import Fate, build, by_chance, bytes_only, names_only, nothing, safe_from, torn, write_tree, zeros
from tests.store_rig import Road, compact_all, store_at

SEED = 20261121
SECOND = 10**9


def run_of(store: str, now_ns: int = START_NS + 100 * SECOND) -> Run:
    return Run(run_path(store, "a41f"), now_ns=lambda: now_ns)


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = make_store(tmp_path)
    config = {"lr": 0.1, "model": {"depth": 3}}
    make_run(path, "a41f", [{"loss": 2.0}, {"loss": 1.0}], config=config, tags=["one"], notes="hm")
    return path


class TestSetting:
    """What may be set, and what then holds."""

    def test_what_is_set_is_there(self, store: str) -> None:
        """Every fact, for whoever opens the run next; what was not given stays."""
        run_of(store).set(name="best", group="g", job_type="eval", tags=["two", "three"], summary={"test": 0.9})
        run = run_of(store)
        assert (run.name, run.group, run.job_type, run.tags, run.notes) == ("best", "g", "eval", ["two", "three"], "hm")
        assert run.summary == {"loss": 1.0, "test": 0.9}

    def test_the_later_one_wins(self, store: str) -> None:
        """Also where the clock stands still or runs backwards: an edit is later than all it knows of."""
        for number, now in enumerate([START_NS + 5 * SECOND, START_NS + 5 * SECOND, START_NS - SECOND]):
            run_of(store, now).set(name=f"name {number}")
            assert run_of(store).name == f"name {number}"

    def test_nothing_is_later_than_the_last_moment(self, tmp_path: Path) -> None:
        """Where a store holds a fact of the end of time, an edit that would not hold is refused, and not taken in silence."""
        store = make_store(tmp_path)
        builder = RunBuilder(store, "a41f")
        main = builder.stream()
        main.time_ns = 2**63 - 2 - 10**6
        main.meta({"run": {"name": "future"}})
        builder.close()
        run_of(store).set(name="mine")
        assert run_of(store).name == "mine"
        with pytest.raises(StoreError, match="year 2262"):
            run_of(store).set(name="too late")

    def test_a_training_that_runs_wins_again(self, tmp_path: Path) -> None:
        """What it sets after the edit holds, what it set before does not."""
        store = make_store(tmp_path)
        builder = RunBuilder(store, "a41f", name="first")
        main = builder.stream()
        builder.flush()
        run_of(store, START_NS + SECOND).set(name="edited", notes="edited")
        assert run_of(store).name == "edited"
        main.time_ns = START_NS + 2 * SECOND
        main.meta({"run": {"name": "its own"}})
        builder.flush()
        builder.close()
        run = run_of(store)
        assert (run.name, run.notes) == ("its own", "edited")

    def test_a_value_of_the_summary_goes_and_comes(self, store: str) -> None:
        """Removed, a logged key is gone from the summary too; set again, it is there."""
        run = run_of(store)
        run.set(summary={"test": 1})
        run.set(summary_removed=["test", "loss"])
        assert run.summary == {}
        run.set(summary={"loss": 3})
        assert run_of(store).summary == {"loss": 3}

    def test_the_config_only_grows(self, store: str) -> None:
        """A key that it lacks is added, in nested maps too; another value of one that it has is refused, and nothing is written."""
        run_of(store).set(config={"model": {"width": 8, "depth": 3}, "method": "sgd", "lr": 0.1})
        assert run_of(store).config == {"lr": 0.1, "model": {"depth": 3, "width": 8}, "method": "sgd"}
        before = os.listdir(run_path(store, "a41f"))
        with pytest.raises(UsageError, match=r"config\.model\.depth to 4: the run was started with 3"):
            run_of(store).set(name="x", config={"model": {"depth": 4}})
        assert os.listdir(run_path(store, "a41f")) == before

    def test_nothing_is_nothing(self, store: str) -> None:
        """No fact, no file."""
        before = os.listdir(run_path(store, "a41f"))
        run_of(store).set()
        run_of(store).set(config={"lr": 0.1}, summary={}, summary_removed=[])
        assert os.listdir(run_path(store, "a41f")) == before

    @pytest.mark.parametrize(
        "given",
        [
            {"name": 3},
            {"tags": [""]},
            {"tags": ["x" * 65]},
            {"summary": {"a": object()}},
            {"summary": {"": 1}},
            {"config": {3: 1}},
            {"notes": "x" * FACTS_BYTES_MAX},
        ],
    )
    def test_what_cannot_be_stored_is_refused(self, store: str, given: dict[str, Any]) -> None:
        """As an error of use, and the run is as it was."""
        before = os.listdir(run_path(store, "a41f"))
        with pytest.raises(UsageError):
            run_of(store).set(**given)
        assert os.listdir(run_path(store, "a41f")) == before

    def test_lists_hear_of_it(self, store: str) -> None:
        """A list that knew the run by its cache opens it again."""
        from daemon.store.listing import remember

        later = lambda: START_NS * 2  # noqa: E731
        assert remember(store, Store(store, now_ns=later).runs())
        assert Store(store, now_ns=later).runs()[0].card is not None
        run_of(store).set(name="new")
        assert Store(store, now_ns=later).runs()[0].name == "new"


class TestBesideTheTraining:
    """An edit is no part of the training, and changes nothing that is said of it."""

    def test_it_says_nothing_of_the_training(self, store: str) -> None:
        """State, times, counts and keys are those of before; so a run of another host that fell silent does not live again."""

        def told(run: Run) -> tuple[Any, ...]:
            return (
                run.state, run.created, run.started, run.updated, run.ended, run.records, run.step_max, run.keys(), run.gaps, run.damage,
            )  # fmt: skip

        before = told(run_of(store))
        run_of(store).set(name="new")
        assert told(run_of(store)) == before
        assert [stream.kind for stream in run_of(store).streams] == ["main", "edit"]

    def test_it_is_checked_and_counted(self, store: str) -> None:
        """`verify` finds it whole, `du` counts it."""
        run_of(store).set(name="new")
        report = verify_run(DISK, run_path(store, "a41f"))
        assert report.findings == []
        assert run_use(DISK, run_path(store, "a41f")).segments == run_of(store).size_bytes

    def test_columns_keep_it(self, store: str) -> None:
        """Compaction takes edits into its windows, several times, and they go on to hold."""
        for number in range(3):
            run_of(store).set(name=f"name {number}", summary={f"s{number}": number})
            compact_all(store)
        run = run_of(store)
        assert run.name == "name 2"
        assert run.summary == {"loss": 1.0, "s0": 0, "s1": 1, "s2": 2}
        assert len([name for name in os.listdir(run.directory) if name.endswith(".seg")]) <= 2
        assert verify_run(DISK, run.directory).findings == []

    def test_a_store_gets_it(self, store: str, tmp_path: Path) -> None:
        """A sync to another store carries an edit that came after the run was carried."""
        road = Road(store, str(tmp_path / "there"))
        road.carry("a41f")
        run_of(store).set(name="new")
        road.carry("a41f")
        assert Run(road.there("a41f")).name == "new"
        assert verify_run(DISK, road.there("a41f")).findings == []

    def test_a_copy_may_be_edited_too(self, tmp_path: Path) -> None:
        """What was set in the store that a run was carried to stays there when more of the run comes, and does not come back."""
        source = store_at(tmp_path / "here")
        builder = RunBuilder(source, "a41f", name="here")
        main = builder.stream()
        main.log({"loss": 1.0})
        builder.seal()
        road = Road(source, str(tmp_path / "there"))
        road.carry("a41f")
        Run(road.there("a41f")).set(name="there")
        main.log({"loss": 2.0})
        main.finish()
        builder.seal()
        road.carry("a41f")
        copy = Run(road.there("a41f"))
        assert (copy.name, copy.last_step, run_of(source).name) == ("there", 1, "here")
        assert verify_run(DISK, copy.directory).findings == []

    def test_json_lines_say_it(self, store: str, tmp_path: Path) -> None:
        """A sync to JSON lines writes the facts of a run that was edited after it was carried."""
        from daemon.sync.cursor import Cursor
        from daemon.sync.passage import Passage

        url = f"jsonl:{tmp_path / 'out'}"
        for name in ("before", "after"):
            run_of(store).set(name=name)
            cursor = Cursor(str(tmp_path / "cursor"), "a41f", url)
            cursor.read()
            target = make(parse(url))
            target.check()
            target.carry(Passage(run_of(store), cursor))
            target.close()
            texts = [path.read_text() for path in (tmp_path / "out").rglob("*.json")]
            assert any(f'"{name}"' in text for text in texts), texts
        assert not list((tmp_path / "out").rglob("edit-*"))


class TestRefusing:
    """Where nothing can be written, the error says so and the run is as it was."""

    def test_a_store_of_somebody_else(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """What others may write is not written to, unless one says that one trusts them."""
        os.chmod(store, 0o777)
        with pytest.raises(StoreError, match="not yours alone") as error:
            run_of(store).set(name="new")
        assert "STEPD_TRUST_STORE=1" in str(error.value)
        monkeypatch.setenv("STEPD_TRUST_STORE", "1")
        run_of(store).set(name="new")
        assert run_of(store).name == "new"

    def test_a_run_that_is_gone_stays_gone(self, store: str) -> None:
        """Removed while it was looked at: its directory is not made again."""
        run = run_of(store)
        os.rename(run.directory, run.directory + ".gone")
        with pytest.raises(StoreError):
            run.set(name="new")
        assert not os.path.exists(run.directory)

    @pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
    def test_a_failing_disk(self, store: str, fault: Any) -> None:
        """Whichever operation fails: the old facts or the new ones, no draft, and a StoreError where it is not the new ones."""
        files = FailingFiles()
        for at in range(1, 100):
            name = f"{fault.name} {at}"
            run = Run(run_path(store, "a41f"), files=files)
            files.fail(fault, at)
            raised = False
            try:
                run.set(name=name)
            except StoreError:
                raised = True
            was_hit = bool(files.fired)
            files.allow()
            found = run_of(store)
            assert found.damage == []
            assert raised or found.name == name
            assert not [entry for entry in os.listdir(found.directory) if entry.endswith(".draft")] or raised
            if not was_hit:
                return
        raise AssertionError("it never came to an end")


class TestCrashes:
    """A kill or a power loss at any operation leaves the facts as they were, or as they were to be."""

    def test_at_every_operation(self, tmp_path: Path) -> None:
        """Seen on 40 states by chance for each operation as well; after the call has returned it is the new ones for ever."""
        store = make_store(tmp_path)
        builder = make_run(store, "a41f", [{"loss": 1.0}], name="old")
        compact(builder)
        files = RecordingFiles(store)
        run = Run(run_path(store, "a41f"), files=files)
        run.set(name="new", summary={"test": 1})
        operations, known = files.operations, files.known
        safe = safe_from(operations, known)
        source = random.Random(SEED)
        seen = set()
        for end in range(known, len(operations) + 1):
            last = operations[end - 1]
            fates: list[tuple[bool, Fate]] = [(False, nothing)]
            fates += [(True, fate) for fate in (nothing, names_only, bytes_only, zeros)]
            fates += [(True, by_chance(source)) for _ in range(40)]
            for power, fate in fates:
                seen.add(
                    self._look(
                        operations[:end], [power and when > end for when in safe[:end]], fate, end == len(operations)
                    )
                )
            if last.kind == WRITE:
                for size in range(0, len(last.data), 64):
                    cut = [*operations[: end - 1], torn(last, size)]
                    seen.add(self._look(cut, [False] * end, nothing, False))
        assert seen == {"old", "new"}

    def _look(self, operations: Any, unsafe: list[bool], fate: Fate, is_done: bool) -> str:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
            write_tree(build(operations, unsafe, fate), root)
            run = Run(os.path.join(root, RUNS, "a41f"))
            told = (run.name, run.explicit_summary)
            assert told in [("old", {}), ("new", {"test": 1})], (told, SEED)
            assert not is_done or told[0] == "new", SEED
            assert run.keys() == ["loss"]
            return run.name
