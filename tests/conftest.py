"""What every test may rely on: no settings from outside, and quick random tests that print what failed."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from sdk import _greeting
from tests.ahead import AHEAD

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


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "stress: thousands of signals, interrupts or kills; one to three seconds each")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """From the first test of tests/sdk on, tortures run beside those tests, when both were asked for (tests/ahead.py)."""
    if item.path.parent.name == "sdk":
        found = [one.callspec.params["torture"] for one in item.session.items if one.name.startswith("test_torture[")]
        AHEAD.begin([torture.name for torture in found if torture.beside])


def pytest_sessionfinish() -> None:
    AHEAD.end()
