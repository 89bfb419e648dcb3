"""sdk.journal.survey: what stands in a stretch of a ring, from its headers."""

from __future__ import annotations

import random

import pytest

from sdk.errors import DamageError
from sdk.journal.survey import Survey
from sdk.record import FLAG_COMMIT, FLAG_LATE, KIND_BLOB, KIND_GAP, KIND_META, KIND_ROW, Record, pack


def records(dice: random.Random, count: int, first: int) -> list[Record]:
    """Runs of alike records, and others between them."""
    made: list[Record] = []
    step = dice.randint(0, 5)
    while len(made) < count:
        kind = dice.choice([KIND_ROW] * 6 + [KIND_META, KIND_GAP, KIND_BLOB])
        flags = dice.choice([FLAG_COMMIT, FLAG_COMMIT, 0, FLAG_LATE]) if kind == KIND_ROW else 0
        payload = b"x" * dice.choice([1, 9, 40])
        for _ in range(dice.choice([1, 1, 3, 15, 16, 200]) if kind == KIND_ROW else 1):
            late = bool(flags & FLAG_LATE)
            row = dice.randint(0, step) if late else step + (dice.randint(0, 2) if not flags else 0)
            made.append(Record(first + len(made), row, flags, kind, 0, payload))
            if kind == KIND_ROW and not late:
                step = row + bool(flags)
    return made


def test_it_says_what_a_walk_would_say() -> None:
    """Of records in any order: sizes, sequences, steps and kinds, also where the last one is cut."""
    for seed in range(60):
        dice = random.Random(seed)
        first, made = dice.randint(1, 2**40), []
        made = records(dice, dice.choice([1, 17, 600]), first)
        packed = [pack(record) for record in made]
        data = b"".join(packed)
        cut = dice.choice([0, 1, len(packed[-1]) - 1])
        whole = made if not cut else made[:-1]
        found = Survey(data[: len(data) - cut], first, made[0].step)
        rows = [record for record in whole if record.kind == KIND_ROW]
        ahead = [r.step + (r.flags & FLAG_COMMIT) for r in rows if not r.flags & FLAG_LATE]
        assert found.size == sum(map(len, packed[: len(whole)])), seed
        assert found.last == first + len(whole) - 1, seed
        assert found.step_max == max((record.step for record in whole), default=0), seed
        assert found.step == max([made[0].step, *ahead]), seed
        assert found.has_pieces == any(r.flags != FLAG_COMMIT for r in rows), seed
        assert found.has_blobs == any(record.kind == KIND_BLOB for record in whole), seed
        assert found.has_meta == any(record.kind in (KIND_META, KIND_GAP) for record in whole), seed


@pytest.mark.parametrize("at", [0, 3, 100])
@pytest.mark.parametrize("change", [{"sequence": 7_000}, {"kind": 9}, {"step": 2**63}])
def test_what_cannot_be_is_no_record(at: int, change: dict[str, int]) -> None:
    """A sequence that does not follow, a kind that nobody knows, a step beyond all: in a run of alike ones, or not."""
    made = [Record(n + 1, n, FLAG_COMMIT, KIND_ROW, 0, b"x" * 20) for n in range(120)]
    made[at] = made[at]._replace(**change)
    with pytest.raises(DamageError):
        Survey(b"".join(map(pack, made)), 1, 0)


def test_a_length_that_cannot_be() -> None:
    """A length below that of a header is no record either."""
    with pytest.raises(DamageError):
        Survey(bytes(64), 1, 0)
