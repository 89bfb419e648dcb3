"""A state machine of the whole store: whatever is done to it in whatever order, the reader equals a model of plain dicts.

Real journals, senders, daemons, segments and readers in one process (`simulation`); hypothesis chooses what happens and,
where a case fails, finds the shortest way there. At every look: the rows are those of the calls whose blocks were
written, less those whose blocks were damaged, and these are reported to the record. In the end: those of every accepted
call. The case's number is the seed.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import sdk
from sdk._resume import make_plan
from sdk._spool import drain_orphans
from sdk.errors import NotFoundError
from sdk.files import DISK
from sdk.limits import REFUSED_REASONS
from sdk.segment.format import BLOCK_HEADER_SIZE, Block
from sdk.segment.reader import SegmentReader
from tests.model import Rows, StreamModel, joined, merged
from tests.torture.harness import Result, torture
from tests.torture.simulation import Host, SimulatedTrainer, simulated

RUNS = ("one", "two")
STEPS = 50
_STREAMS_MAX = 6


@torture(full=20_000, default=150, beside=True)
def store_model(cases: Iterable[int]) -> Iterator[Result]:
    """Up to 50 random operations on a store with trainers, daemons and damage: the reader equals a model of dicts."""
    for case in cases:
        totals = [0, 0, 0]

        class Machine(StoreMachine):
            count = totals

        run_state_machine_as_test(
            seed(case)(Machine),
            settings=settings(
                max_examples=2,  # the first is hypothesis's simplest one
                stateful_step_count=STEPS,
                database=None,
                deadline=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
        yield Result(case, *totals)


class Lane:
    """A stream, its place among the others, and what it was given."""

    def __init__(self, trainer: SimulatedTrainer, rank: int | None, after: Lane | None, hide: int | None) -> None:
        self.trainer, self.rank, self.after, self.hide = trainer, rank, after, hide
        self.model = StreamModel(trainer.stream.step())
        self.sequences: list[int] = []

    @property
    def number(self) -> int:
        return self.trainer.number

    def log(self, data: dict[str, Any], step: int | None, commit: bool | None) -> None:
        journal = self.trainer.stream.journal
        before = journal.refusals().refused
        self.trainer.stream.log(data, step=step, commit=commit)
        accepted = journal.refusals().refused == before
        self.model.log(data, step, commit, accepted=accepted)
        if accepted:
            self.sequences.append(journal.mark()[1] - 1)

    def rows(self, stored: set[int]) -> Rows:
        return merged(
            call for sequence, call in zip(self.sequences, self.model.calls, strict=True) if sequence in stored
        )


_values = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.booleans(), st.none(), st.text(max_size=20),
    st.sampled_from(["x" * 300, [1, 2.5, "y"], {"inner": 1, "deep": {"er": None}}]),
)  # fmt: skip
_data = st.dictionaries(st.sampled_from(["a", "b", "c", "loss/train", "nested"]), _values, max_size=3)
_commits = st.sampled_from([None, None, None, True, False])
_steps = st.sampled_from([None, None, None, None, -4, -1, 0, 0, 1, 5])  # from the open one on
_any = st.integers(0, 2**32 - 1)


class StoreMachine(RuleBasedStateMachine):
    """What may happen to a store, and what must be true of it."""

    count: list[int]

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        self.streams: dict[str, list[Lane]] = {name: [] for name in RUNS}
        self.damaged: set[tuple[str, int]] = set()

    @initialize(chance=_any, serving=st.booleans())
    def begin(self, chance: int, serving: bool) -> None:
        self.host: Host = self._stack.enter_context(simulated(random.Random(chance)))
        if serving:
            self.host.start_daemon()
        self._open("one", None, "main")

    # -- trainers ------------------------------------------------------------------------------------------------------

    def _all(self) -> list[Lane]:
        return [lane for lanes in self.streams.values() for lane in lanes]

    def _living(self) -> list[Lane]:
        return [lane for lane in self._all() if lane.trainer.is_alive]

    def _one(self, choice: int) -> Lane | None:
        living = self._living()
        return living[choice % len(living)] if living else None

    def _open(
        self,
        run: str,
        rank: int | None,
        kind: str,
        after: Lane | None = None,
        hide: dict[str, int] | None = None,
        **facts: Any,
    ) -> None:
        trainer = self.host.trainer(run, kind=kind, rank=rank, **facts)
        first = {"run": {"id": run, "project": "torture"}, "config": {}}
        trainer.stream.first_meta({**first, **({"hide": hide} if hide else {})})
        self.streams[run].append(Lane(trainer, rank, after, hide["from_step"] if hide else None))

    @rule(which=_any, data=_data, step=_steps, commit=_commits)
    def log(self, which: int, data: dict[str, Any], step: int | None, commit: bool | None) -> None:
        lane = self._one(which)
        if lane is not None:
            lane.log(data, None if step is None else max(lane.model.open_step + step, 0), commit)

    @rule(which=_any, count=st.integers(2, 60), wide=st.booleans())
    def log_many(self, which: int, count: int, wide: bool) -> None:
        lane = self._one(which)
        for n in range(count if lane is not None else 0):
            lane.log({"a": n, "b": "z" * 200 if wide else n / 2}, None, None)

    @precondition(lambda self: len(self._all()) < _STREAMS_MAX)
    @rule(run=st.sampled_from(RUNS), rank=st.sampled_from([None, 0, 1]), kind=st.sampled_from(["main", "attach"]))
    def open(self, run: str, rank: int | None, kind: str) -> None:
        self._open(run, rank, kind)

    @precondition(lambda self: len(self._all()) < _STREAMS_MAX)
    @rule(which=_any)
    def fork(self, which: int) -> None:
        lane = self._one(which)
        if lane is not None:
            stream = lane.trainer.stream
            self._open(lane.trainer.run, lane.rank, "fork", parent=stream.id, first_step=stream.step())

    @precondition(lambda self: len(self._all()) < _STREAMS_MAX)
    @rule(run=st.sampled_from(RUNS), back=st.sampled_from([None, 0, 1, 3, 100]))
    def resume(self, run: str, back: int | None) -> None:
        """A new attempt of rank 0 or none, from the end or from some steps before it."""
        self._look_for_dead()
        lanes = [lane for lane in self.streams[run] if lane.rank is None and lane.trainer.kind == "main"]
        if not lanes or not self._is_readable(run) or not all(lane.trainer.is_gone for lane in lanes):
            return
        last = max(self._joined(run), default=None)
        at = None if back is None else max((-1 if last is None else last) + 1 - back, 0)
        plan = make_plan(self.host.store.path, run, "must", at, "torture", None)
        assert plan.first_step == (at if at is not None else 0 if last is None else last + 1)
        assert plan.attempt == max(lane.trainer.stream._facts["attempt"] for lane in lanes) + 1
        before = next(lane for lane in lanes if lane.trainer.stream.id == plan.continues)
        self._open(
            run,
            None,
            "main",
            before,
            plan.hide,
            continues=plan.continues,
            attempt=plan.attempt,
            first_step=plan.first_step,
        )

    @rule(which=_any)
    def wake(self, which: int) -> None:
        lane = self._one(which)
        if lane is not None:
            lane.trainer.wake()

    @rule(which=_any)
    def spool(self, which: int) -> None:
        """No daemon answered for long."""
        lane = self._one(which)
        if lane is not None:
            self.host.now += 3.0
            lane.trainer.wake()

    @rule(which=_any)
    def seal_spool(self, which: int) -> None:
        lane = self._one(which)
        if lane is not None:
            lane.trainer.sender._spool.seal()

    @rule(which=_any, way=st.sampled_from(["", "", "", "kill", "finish"]))
    def end(self, which: int, way: str) -> None:
        """Often nothing: most of what can happen needs trainers that live."""
        lane = self._one(which)
        if lane is not None and way:
            getattr(lane.trainer, way)()

    # -- the daemon ----------------------------------------------------------------------------------------------------

    @rule()
    def move(self) -> None:
        """Everything gets a little further."""
        for lane in self._living():
            lane.trainer.wake()
        self.host.turn(0.3)

    @rule()
    def look(self) -> None:
        """The daemon looks around: dead trainers, segments of the dead. Without one, as a resume does it."""
        self._look_for_dead()

    def _look_for_dead(self) -> None:
        for _ in range(4):
            self.host.turn(1.1)
        if self.host.server is None:
            drain_orphans(self.host.disk, self.host.store, self.host.settings.shared_memory_dir)

    @rule(torn=st.booleans())
    def start_or_kill_daemon(self, torn: bool) -> None:
        if self.host.server is None:
            self.host.start_daemon()
        else:
            self.host.kill_daemon(torn=torn)

    @precondition(lambda self: self.host.server is not None)
    @rule()
    def roll(self) -> None:
        """The next block of each run begins a segment."""
        for writer in self.host.server._ingest.writers.values():
            writer.roll()

    @rule(refused=st.sampled_from([(), (), ("append",), ("create",), ("sync",)]))
    def disk(self, refused: tuple[str, ...]) -> None:
        self.host.disk.allow()
        self.host.disk.refuse(*refused)

    # -- damage --------------------------------------------------------------------------------------------------------

    @rule(which=_any, where=_any)
    def damage(self, which: int, where: int) -> None:
        """A byte of a sealed segment's rows changes."""
        found = [
            (path, block)
            for path, blocks in self._blocks().items()
            for block in blocks
            if (path, block.offset) not in self.damaged and self._is_sealed(path)
        ]
        if not found or len(self.damaged) >= 2:
            return
        path, block = found[which % len(found)]
        place = block.offset + BLOCK_HEADER_SIZE + where % block.stored_size
        with open(path, "r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ (1 + where % 255)]))
        self.damaged.add((path, block.offset))

    def _is_sealed(self, path: str) -> bool:
        reader = SegmentReader(DISK, path)
        reader.close()
        return reader.sealed

    def _blocks(self, stream: int | None = None) -> dict[str, list[Block]]:
        """The blocks of rows that were written, by file."""
        return {
            path: [block for block in blocks if stream is None or block.stream == stream]
            for path, blocks in self.host.blocks.items()
        }

    def _stored(self, stream: int) -> tuple[set[int], set[int]]:
        """The sequences of a stream that can be read, and those that were stored but are damaged."""
        good: set[int] = set()
        bad: set[int] = set()
        for path, blocks in self._blocks(stream).items():
            for block in blocks:
                (bad if (path, block.offset) in self.damaged else good).update(range(block.first, block.last + 1))
        return good, bad - good

    # -- what must be true ---------------------------------------------------------------------------------------------

    @rule(run=st.sampled_from(RUNS))
    def read(self, run: str) -> None:
        """What a reader sees at any moment."""
        try:
            found = sdk.open_store(self.host.store.path).run(run)
        except NotFoundError:
            assert not any(any(self._stored(lane.number)) for lane in self.streams[run])
            return
        everything = plain(found.rows())
        if self._is_readable(run):
            assert everything == self._joined(run)
        for lane in self.streams[run]:
            good, lost = self._stored(lane.number)
            if good or lost:
                assert plain(found.rows(stream=lane.trainer.stream.id)) == lane.rows(good)
            gaps = [gap for gap in found.gaps if gap.stream == lane.trainer.stream.id]
            missing = [gap for gap in gaps if gap.reason not in REFUSED_REASONS]
            reported = {n for gap in missing for n in range(gap.first or 0, (gap.last or 0) + 1)}
            assert reported == lost, f"lost {sorted(lost)}, reported {missing}"
            told = sum(gap.count for gap in gaps if gap.reason in REFUSED_REASONS)
            assert told <= len(lane.model.refused)
            if self.is_over and not lost:
                assert told == len(lane.model.refused), f"refused at {lane.model.refused}, reported {gaps}"
        assert len(found.damage) >= any(self._stored(lane.number)[1] for lane in self.streams[run])

    is_over = False

    def _is_readable(self, run: str) -> bool:
        """Whether what each stream said about itself can be read: it decides how streams are joined."""
        return not any(set(range(1, 6)) & self._stored(lane.number)[1] for lane in self.streams[run])

    def _joined(self, run: str) -> Rows:
        """All lanes of a run, of which a reader knows, in the reader's order."""
        known = [lane for lane in self.streams[run] if 1 in self._stored(lane.number)[0]]
        lanes: list[list[Lane]] = []
        for lane in known:
            earlier = next((found for found in lanes if lane.after in found), None)
            if earlier is not None:
                earlier.append(lane)
            else:
                lanes.append([lane])
        lanes.sort(key=lambda lane: (min(s.rank or 0 for s in lane), all(s.trainer.kind != "main" for s in lane)))
        return joined(
            [[(s.rows(self._stored(s.number)[0]), limit_of(lane, i)) for i, s in enumerate(lane)] for lane in lanes]
        )

    def teardown(self) -> None:
        """The faults are over: everything that was accepted is there."""
        try:
            if not hasattr(self, "host"):
                return
            self.host.settle()
            for place, lane in enumerate(self._living()):
                (lane.trainer.finish if place % 2 else lane.trainer.kill)()
            self.host.settle()
            self.is_over = True
            for run in RUNS:
                self.read(run)
            for lane in self._all():
                good, lost = self._stored(lane.number)
                last = lane.trainer.stream.journal.mark()[1] - 1
                assert good | lost == set(range(1, last + 1)), "accepted records were never stored"
                self.count[0] += last
                self.count[1] += len(lost)
                self.count[2] += len(lane.model.refused)
        finally:
            self._stack.close()


def limit_of(lane: list[Lane], index: int) -> int | None:
    """From which step on later attempts of a lane hide the rows of its stream `index`."""
    return min((later.hide for later in lane[index + 1 :] if later.hide is not None), default=None)


def plain(rows: Iterable[dict[str, Any]]) -> Rows:
    """Step to values, without the reader's own columns."""
    return {row["_step"]: {key: value for key, value in row.items() if key[:1] != "_"} for row in rows}
