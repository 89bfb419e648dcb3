"""Every torture with the counts of the default suite. All of them, with counts to choose: bash scripts/torture.sh."""

from __future__ import annotations

import pytest

from tests.torture.__main__ import line, load
from tests.torture.harness import TORTURES, Missing, Tally, Torture, run

load()


@pytest.mark.parametrize("torture", TORTURES.values(), ids=TORTURES)
def test_torture(torture: Torture) -> None:
    """Nothing is lost that is not reported; a failure names the case that shows it."""
    try:
        print(line("ok", torture, run(torture, torture.cases(full=False), Tally())))
    except Missing as missing:
        pytest.skip(str(missing))
