"""Random schedules of everything that can happen between a trainer and a daemon, against a model in plain dicts.

The real trainer and the real daemon run in one process (`simulation`), with a network that loses, repeats, delays and
delivers late, a disk that refuses at times, and either side killed at any moment. Every record is stored exactly once;
what a trainer is told of being stored is stored, at every wake; and when the faults stop everything is stored soon.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator

import sdk
from sdk.segment.format import KIND_ROWS
from tests.model import StreamModel
from tests.serving import Held, held
from tests.torture.harness import Result, chance, torture
from tests.torture.simulation import Host, SimulatedTrainer, simulated

RUN = "schedule"
OPERATIONS = 200
_TRAINERS_MAX = 4


@torture(full=100_000, default=1_000, beside=True)
def schedules(cases: Iterable[int]) -> Iterator[Result]:
    """Random orders of sends, acks, losses, deaths, spooling and draining: every record is stored exactly once."""
    for case in cases:
        dice = chance("schedules", case)
        with simulated(dice) as host:
            accepted, refused = Schedule(host, dice).run()
            yield Result(case, accepted, refused=refused)


class Schedule:
    """One seed's schedule.

    Attributes:
        models: What each trainer's stream must hold in the end.
    """

    def __init__(self, host: Host, dice: random.Random) -> None:
        self.host, self.dice = host, dice
        self.models: list[tuple[SimulatedTrainer, StreamModel]] = []
        self._count = 0
        self._unsafe = False  # a sync was refused: what it was for is written a second time
        # Calm schedules go deep, stormy ones go wide; in one without trouble nothing may ever have to be put right.
        self._trouble = trouble = dice.choice((0.0, 0.2, 1.0, 3.0))
        self._choices: list[tuple[Callable[[], object], float]] = [
            (self.log, 50), (self.wake, 40), (host.tick, 35), (self.carry, 45), (self.wait, 12),
            (self.be_silent, 2 * trouble), (host.network.lose, trouble), (self.repeat, trouble),
            (self.kill_or_start_daemon, 2 * trouble), (self.disk, trouble), (self.kill_trainer, 0.5 * trouble),
            (self.finish, 0.3 * trouble), (self.new_trainer, 1), (self.flush, 1),
        ]  # fmt: skip

    def run(self) -> tuple[int, int]:
        """(records accepted, records refused)."""
        self.new_trainer()
        if self._trouble == 0 or self.dice.random() < 0.8:
            self.host.start_daemon()
        actions, weights = zip(*self._choices, strict=True)
        for action in self.dice.choices(actions, weights, k=OPERATIONS):
            action()
        self.host.settle()
        on_disk = held(self.host.store.path, RUN)
        for trainer in self.host.living:
            if not self._unsafe:
                check_once(on_disk, trainer.number)
            if self.dice.random() < 0.5:
                trainer.kill()
            else:
                has_session = trainer.has_session
                receipt = trainer.finish()
                assert receipt.ended_in == "written" or not has_session, f"the end went to the {receipt.ended_in}"
        self.host.settle()
        assert self._trouble or not self.host.network.rejects, "a session was rejected though nothing went wrong"
        return self.check()

    # -- what happens --------------------------------------------------------------------------------------------------

    def one(self) -> tuple[SimulatedTrainer, StreamModel] | None:
        living = [pair for pair in self.models if pair[0].is_alive]
        return self.dice.choice(living) if living else None

    def new_trainer(self) -> None:
        if len(self.models) < _TRAINERS_MAX:
            trainer = self.host.trainer(RUN)
            trainer.stream.first_meta({"run": {"id": RUN, "project": "torture"}, "config": {}})
            self.models.append((trainer, StreamModel()))

    def log(self) -> None:
        pair = self.one()
        if pair is None:
            return
        trainer, model = pair
        for _ in range(self.dice.randint(1, 8)):
            log_one(trainer, model, self.dice, self._count)
            self._count += 1

    def wake(self) -> None:
        pair = self.one()
        if pair is not None:
            pair[0].wake()

    def flush(self) -> None:
        """Somebody waits for what was logged so far: here only the wish is noted, the next wakes act on it."""
        pair = self.one()
        if pair is not None:
            pair[0].sender._flush_wanted = pair[0].stream.journal.mark()[1] - 1

    def carry(self) -> None:
        for _ in range(self.dice.randint(1, 4)):
            self.host.network.carry()

    def repeat(self) -> None:
        self.host.network.carry(repeated=True)

    def wait(self) -> None:
        self.host.now += self.dice.uniform(0.001, 0.3)

    def be_silent(self) -> None:
        self.host.now += self.dice.uniform(1.0, 3.0)

    def kill_or_start_daemon(self) -> None:
        if self.host.server is None:
            self.host.start_daemon()
        else:
            self.host.kill_daemon(torn=self.dice.random() < 0.3)

    def kill_trainer(self) -> None:
        pair = self.one()
        if pair is not None:
            pair[0].kill()

    def finish(self) -> None:
        pair = self.one()
        if pair is not None:
            pair[0].finish()

    def disk(self) -> None:
        if self.dice.random() < 0.6:
            self.host.disk.allow()
        else:
            refused = self.dice.sample(("append", "create", "sync"), self.dice.randint(1, 2))
            self._unsafe = self._unsafe or "sync" in refused
            self.host.disk.refuse(*refused)

    # -- what must be true in the end ----------------------------------------------------------------------------------

    def check(self) -> tuple[int, int]:
        on_disk = held(self.host.store.path, RUN)
        run = sdk.open_store(self.host.store.path).run(RUN)
        accepted = refused = 0
        for trainer, model in self.models:
            last = trainer.stream.journal.mark()[1] - 1
            assert sorted(set(on_disk.covered(trainer.number))) == list(range(1, last + 1)), "records are missing"
            found = {
                row["_step"]: {key: value for key, value in row.items() if key[:1] != "_"}
                for row in run.rows(stream=trainer.stream.id)
            }
            assert found == model.rows, f"stream {trainer.stream.id} holds other rows than were logged"
            gaps = [gap for gap in run.gaps if gap.stream == trainer.stream.id]
            assert sum(gap.count for gap in gaps) == len(model.refused), f"{len(model.refused)} were refused: {gaps}"
            untold = [n for n in model.refused if not any(gap.step_min <= n <= gap.step_max for gap in gaps)]
            assert not untold, f"refused at steps {untold[:9]}, in no gap: {gaps}"
            accepted, refused = accepted + last, refused + len(model.refused)
        assert not run.damage, run.damage
        return accepted, refused


def check_once(on_disk: Held, stream: int) -> None:
    """No writer stored a record of a living trainer twice.

    Two writers may: one of them died, or gave up, before it could say so. So may one after the trainer's death, when it
    drained the ring and a closed connection's batch arrives after that. Readers merge them; nothing shows.
    """
    by_writer: dict[str, list[tuple[int, int]]] = {}
    for name, block in on_disk.blocks:
        if block.kind == KIND_ROWS and block.stream == stream:
            by_writer.setdefault(name[:24], []).append((block.first, block.last))
    for name, ranges in by_writer.items():
        for (_, last), (first, _) in itertools.pairwise(sorted(ranges)):
            assert first > last, f"{name} holds records {first} to {last} of stream {stream:016x} twice"


def log_one(trainer: SimulatedTrainer, model: StreamModel, dice: random.Random, count: int) -> None:
    """One random call, and the same of the model: pieces, commits, late and far steps, small and large values."""
    step: int | None = None
    if dice.random() < 0.3:
        near = model.open_step
        step = max(near + dice.choice((-3, -1, 0, 0, 0, 1, 5)), 0)
    data = {"x": count, dice.choice("abc"): "y" * dice.choice((0, 5, 40, 700))}
    commit = dice.choice((None, None, None, True, False))
    refusals = trainer.stream.journal.refusals
    before = refusals().refused
    trainer.stream.log(data, step=step, commit=commit)
    model.log(data, step, commit, accepted=refusals().refused == before)
