"""Every torture with the counts of the default suite. All of them, with counts to choose: bash scripts/torture.sh."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.ahead import AHEAD, Done, in_a_process
from tests.torture.__main__ import line, load
from tests.torture.harness import TORTURES, Missing, Tally, Torture, run

load()

# Those that may run two at a time come first, the longest of them before the others, and nothing else begins meanwhile.
LONG = (
    "daemon-killed",
    "both-killed",
    "schedules",
    "segment-bit-flip",
    "traversal-names",
    "segment-cut",
    "store-model",
)
IN_ORDER = sorted(
    TORTURES.values(),
    key=lambda torture: (not torture.beside, torture.name not in LONG, torture.name if torture.beside else ""),
)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Done]]]:
    """What becomes of those that run two at a time, as far as they are asked for; some have been run ahead."""
    asked = {item.name for item in request.session.items}
    AHEAD.enough()
    with ThreadPoolExecutor(2) as pool:
        yield {
            torture.name: pool.submit(AHEAD.result, torture.name)
            for torture in IN_ORDER
            if torture.beside and f"test_torture[{torture.name}]" in asked
        }


def main(name: str) -> None:
    """In that process: prints its line, or why this machine cannot run it."""
    torture = TORTURES[name]
    try:
        print(line("ok", torture, run(torture, torture.cases(full=False), Tally())))
    except Missing as missing:
        print(f"skip {missing}")


@pytest.mark.parametrize("torture", IN_ORDER, ids=[torture.name for torture in IN_ORDER])
def test_torture(torture: Torture, outcomes: dict[str, Future[Done]]) -> None:
    """Nothing is lost that is not reported; a failure names the case that shows it."""
    done = outcomes[torture.name].result() if torture.beside else in_a_process(torture.name)
    # What cannot be raised, of a file that nobody closed, is told there.
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    if done.stdout.startswith("skip"):
        pytest.skip(done.stdout)
    print(done.stdout)
