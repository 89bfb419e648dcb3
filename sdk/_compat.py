"""Names that exist so that scripts written for W&B run: what stepd does not do, and says so.

Two kinds, and nothing that pretends. Harmless ones take any arguments, return something usable and say once per process
that nothing happened. Those whose result a script would go on with (a download, a sweep) raise `UnsupportedError` with
the cure.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from . import _greeting
from .errors import UnsupportedError

if TYPE_CHECKING:
    from .values.chart import CustomChart

_REQUIREMENTS = frozenset({"service", "core", "legacy-service", "report-editing:v0", "nexus"})

patched: dict[str, list[Any]] = {"tensorboard": [], "keras": [], "gym": []}


def harmless(name: str, why: str) -> None:
    """Says once per process that a call did nothing."""
    _greeting.note_once(name, f"{name} does nothing here: {why}")


def unsupported(name: str, cure: str) -> UnsupportedError:
    """The error for a call whose result a script would go on with."""
    return UnsupportedError(f"{name} is not supported by stepd", hint=cure)


class AlertLevel(enum.Enum):
    """How bad an alert is."""

    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"


# -- functions of the module -----------------------------------------------------------------------------------------


def login(
    key: Any = None, relogin: Any = None, host: Any = None, force: Any = None, timeout: Any = None, verify: Any = True,
    referrer: Any = None, prompt: Any = True, anonymous: Any = None,
) -> bool:  # fmt: skip
    """Always True: there are no accounts and nothing leaves this machine."""
    harmless("login()", "stepd has no accounts; nothing leaves this machine")
    return True


class Setup:
    """What `setup` returns."""

    def __init__(self, settings: Any = None) -> None:
        self.settings = settings


def setup(settings: Any = None) -> Setup:
    """Nothing: `init` starts what is needed."""
    return Setup(settings)


def teardown(exit_code: int | None = None) -> None:
    """Nothing: `finish` has stored everything, and the daemon leaves by itself."""


def ensure_configured() -> None:
    """Nothing."""


def require(requirement: Any = None, experiment: Any = None) -> None:
    """Accepts what W&B's scripts require and stepd need not do.

    Raises:
        UnsupportedError: A requirement that stepd does not know.
    """
    given = requirement if requirement is not None else experiment
    for name in [given] if isinstance(given, str) else list(given or ()):
        if name not in _REQUIREMENTS:
            raise unsupported(f"require({name!r})", "remove the call")


def sweep(*args: Any, **kwargs: Any) -> str:
    """Raises UnsupportedError."""
    raise unsupported("sweep()", "a loop over configurations, or optuna; group the runs with init(group=…)")


def agent(*args: Any, **kwargs: Any) -> None:
    """Raises UnsupportedError."""
    raise unsupported("agent()", "a loop over configurations, or optuna; group the runs with init(group=…)")


def controller(*args: Any, **kwargs: Any) -> None:
    """Raises UnsupportedError."""
    raise unsupported("controller()", "a loop over configurations, or optuna; group the runs with init(group=…)")


def _term(string: str, newline: bool, repeat: bool, prefix: str = "") -> None:
    text = f"stepd: {prefix}{string}"
    if not repeat:
        if text in _greeting._said:
            return
        _greeting._said.add(text)
    if not _greeting.is_quiet():
        _greeting.say(text)


def termlog(string: str = "", newline: bool = True, repeat: bool = True, prefix: bool = True) -> None:
    """A line on stderr; with ``repeat=False`` once per process."""
    _term(string, newline, repeat)


def termwarn(string: str, newline: bool = True, repeat: bool = True, prefix: bool = True) -> None:
    """As `termlog`, marked as a warning."""
    _term(string, newline, repeat, "warning: ")


def termerror(string: str, newline: bool = True, repeat: bool = True, prefix: bool = True) -> None:
    """As `termlog`, marked as an error."""
    _term(string, newline, repeat, "error: ")


def termsetup(settings: Any = None, logger: Any = None) -> None:
    """Nothing."""


class ApiStub:
    """`sdk.api`: what scripts ask before they log in."""

    api_key: str | None = None
    default_entity: str | None = None

    def viewer(self) -> dict[str, Any]:
        """An empty account."""
        return {}


api = ApiStub()


# -- methods of a run ------------------------------------------------------------------------------------------------


class RunCompat:
    """The methods of a run that W&B has and stepd does not serve yet. All but `watch` and `unwatch` raise `UsageError`
    after `finish`.
    """

    def _require_running(self, what: str) -> None:
        raise NotImplementedError

    def pin_config_keys(self, keys: Any) -> None:
        """Nothing: there is no page to pin them to."""

    def _label(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: W&B's telemetry."""

    def get_url(self) -> None:
        """None: nothing was uploaded."""

    def get_project_url(self) -> None:
        """None."""

    def get_sweep_url(self) -> None:
        """None."""

    def plot_table(self, *args: Any, **kwargs: Any) -> CustomChart:
        """As `sdk.plot_table`."""
        from .plot import plot_table

        return plot_table(*args, **kwargs)
