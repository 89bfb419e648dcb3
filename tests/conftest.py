"""What every test may rely on: no settings from outside, and quick random tests that print what failed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sdk import _greeting

# derandomize off: a failing example is printed by hypothesis with the call that reproduces it. No data base on disk, no
# deadline: two cores are shared by everything that runs here.
settings.register_profile(
    "quick",
    max_examples=60,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile(os.environ.get("STEPD_TEST_PROFILE", "quick"))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must not depend on the environment of whoever runs it."""
    for name in list(os.environ):
        if name.startswith(("STEPD_", "WANDB_")) and not name.startswith("STEPD_TEST_"):
            monkeypatch.delenv(name)
    # Nor are its daemons to look at the machine: who wants that says so (tests/daemon/test_observer.py).
    monkeypatch.setenv("STEPD_OBSERVE", "0")


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on what an earlier test made this process say, or keep back."""
    monkeypatch.setattr(_greeting, "_said", set())
    monkeypatch.setattr(_greeting, "_quiet", None)


# What mostly computes: it runs beside what mostly waits for real processes, a core each (scripts/test.sh).
ASIDE = frozenset({"contracts", "importing", "sdk", "tidy"})
_TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", choices=("main", "aside"), help="Only this half of the suite; what stands in both is split."
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's script starts what runs in the background so
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "stress: thousands of signals, interrupts or kills; one to three seconds each")
    config.addinivalue_line("markers", "aside: a torture of the half that runs beside the other (--part)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Whole folders belong to one half; of tortures each says itself (tests/torture/harness.py)."""
    part = config.getoption("--part")
    if (
        part is None
        or collection_path.parent != _TESTS
        or not collection_path.is_dir()
        or collection_path.name == "torture"
    ):
        return None
    return True if (collection_path.name in ASIDE) != (part == "aside") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("--part")
    if part is not None:
        torture = _TESTS / "torture"
        items[:] = [
            item
            for item in items
            if torture not in item.path.parents or (item.get_closest_marker("aside") is not None) == (part == "aside")
        ]
