"""Large values while everything dies: what returned is there bit for bit, or a gap names its key and step."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

import sdk
from sdk import _sender
from sdk.errors import NotFoundError
from sdk.journal import arena
from sdk.reader.media import MediaItem
from sdk.values import Media, snapshot
from tests.end_to_end.world import until
from tests.forked import serving
from tests.torture.harness import Result, chance, torture
from tests.torture.kills import _CASES_PER_STORE, Lost, World, groups, kill_at, world

# Some in the record, some of one chunk, now and then one of several.
_SIZES = (100, 20_000, 300_000, 300_000, 5_000_000)


class Raw(Media):
    """Bytes that the number of their step and their size determine."""

    _type = "raw"

    def __init__(self, step: int, size: int) -> None:
        self._blob = snapshot(content(step, size), {"media": "raw"})

    def describe(self) -> dict[str, Any]:
        return {"data": self._blob}


def content(step: int, size: int) -> np.ndarray[Any, Any]:
    return np.arange(step, step + size, dtype="u4").astype("u1")


def size_of(run: str, step: int) -> int:
    return chance(run, step).choice(_SIZES)


def logging_media(run: str) -> Callable[[Callable[[int], None]], None]:
    """Logs rows with large values until it is killed, twice the same in every tenth."""

    def train(count: Callable[[int], None]) -> None:
        n = 0
        while True:
            value = Raw(n, size_of(run, n))
            sdk.log({"x": n, "raw": value, "again": value} if n % 10 == 0 else {"x": n, "raw": value})
            n += 1
            count(n)
            time.sleep(0.001)

    return train


def check_media(store: str, run: str, *, may_lose: bool) -> tuple[int, int]:
    """(values that are there as they were logged, values that gaps say are lost)."""
    try:
        opened = sdk.open_store(store).run(run)
    except NotFoundError:  # killed before its first row; the world has looked whether that may be
        return 0, 0
    lost = {(gap.key, gap.step_min) for gap in opened.gaps if gap.key is not None}
    found = 0
    for row in opened.rows():
        step = row["_step"]
        for key in ("raw", "again"):
            value = row.get(key)
            if value is None:
                continue
            assert isinstance(value, MediaItem), value
            if ("raw", step) in lost:  # a value that is logged twice is announced once
                continue
            assert value.value["data"] is not None, f"the {key!r} of step {step} was dropped and no gap says so"
            raw = value.to_numpy()
            wanted = content(step, size_of(run, step))
            assert np.array_equal(raw, wanted), f"{key!r} of step {step} is not what was logged"
            found += 1
    assert may_lose or not lost, f"lost: {lost}"
    return found, len(lost)


@torture(full=2_000, default=40)
def media_killed(cases: Iterable[int]) -> Iterator[Result]:
    """SIGKILL of trainer, daemon or both while large values flow: each is there bit for bit; from private memory, or told."""
    for group in groups(cases, _CASES_PER_STORE // 2):
        with world("media-killed") as here:
            runs, values = {}, 0
            for case in group:
                dice = chance("media-killed", case)
                runs[f"run{case}"] = case, _WAYS[case % len(_WAYS)](here, case, dice)
            here.settle()
            yield from here.check()
            for run, (case, may_lose) in runs.items():
                try:
                    values += check_media(here.store, run, may_lose=may_lose)[0]
                except Exception as error:
                    raise Lost(f"case {case}, run {run!r}: {error!r}", case) from error
            assert values or len(group) < len(_WAYS), "no large value was ever stored"


def trainer_dies(here: World, case: int, dice: random.Random) -> bool:
    """Beside a daemon."""
    if not serving(here.store):
        here.daemon()
        until(lambda: serving(here.store))
    _kill_soon(here, case, dice)
    return False


def daemon_dies(here: World, case: int, dice: random.Random) -> bool:
    """Under a trainer, which is killed when a second one serves, or before."""
    daemon = here.daemon()
    trainer = here.trainer(f"run{case}", case, logging_media(f"run{case}"))
    until(lambda: trainer.returned > 0)
    kill_at(daemon, time.monotonic() + dice.uniform(0, 0.1))
    if dice.random() < 0.5:
        here.daemon()
    kill_at(trainer, time.monotonic() + dice.uniform(0, 0.1))
    return False


def nobody_serves(here: World, case: int, dice: random.Random) -> bool:
    """The trainer spools what it can, and dies."""

    def soon() -> None:
        _sender.SPOOL_AGE_SECONDS = _sender._SPOOL_INTERVAL_SECONDS = dice.choice((0.002, 1.0))
        _sender.is_locked = lambda path: False

    _kill_soon(here, case, dice, soon)
    return False


def in_private_memory(here: World, case: int, dice: random.Random) -> bool:
    """No shared memory for large values: what is not stored when the trainer dies is lost, and said."""

    def without() -> None:
        arena.Arena.take = lambda self, size: None  # type: ignore[method-assign]

    _kill_soon(here, case, dice, without)
    return True


def _kill_soon(here: World, case: int, dice: random.Random, prepare: Callable[[], object] = lambda: None) -> None:
    run = f"run{case}"
    trainer = here.trainer(run, case, logging_media(run), prepare)
    until(lambda: trainer.returned > 0)
    kill_at(trainer, time.monotonic() + dice.uniform(0, 0.15))


_WAYS = (trainer_dies, daemon_dies, nobody_serves, in_private_memory)
