from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from tests.torture.harness import Broken, Result, Tally, Torture, chance, run


def walked(cases: Iterable[int]) -> Iterator[Result]:
    for case in cases:
        assert case != 5
        yield Result(case, accepted=10, lost=1)


TORTURE = Torture("walked", "", walked, 20, None, 7, alone=False, beside=False)


def test_default_cases_are_spread_over_all() -> None:
    """`every=7` takes each seventh number from 0 on."""
    assert list(TORTURE.cases(full=False)) == [0, 7, 14]
    assert len(TORTURE.cases(full=True)) == 20


def test_a_broken_case_is_named_and_what_went_well_before_it_counts() -> None:
    """`Broken` carries the case; what the tally holds is what was checked."""
    tally, done = Tally(), []
    with pytest.raises(Broken) as caught:
        run(TORTURE, range(20), tally, lambda case, _: done.append(case))
    assert caught.value.case == 5
    assert isinstance(caught.value.__cause__, AssertionError)
    assert done == [0, 1, 2, 3, 4]
    assert (tally.cases, tally.accepted, tally.lost) == (5, 50, 5)


def test_a_case_meets_the_same_chance_at_every_run() -> None:
    """The source of randomness hangs on name and number alone."""
    assert chance("a", 3).random() == chance("a", 3).random() != chance("a", 4).random()
