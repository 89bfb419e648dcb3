"""Names that exist so that scripts written for W&B run: what stepd does not do, and says so.

Two kinds, and nothing that pretends. Harmless ones take any arguments, return something usable and say once per process
that nothing happened. Those whose result a script would go on with (a download, a sweep) raise `UnsupportedError` with
the cure.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterator, Mapping
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


# -- artifacts -------------------------------------------------------------------------------------------------------


class Artifact:
    """A named set of files. It can be built and logged without harm; nothing of it is stored yet, and `log_artifact` says
    so. Downloading raises `UnsupportedError`.
    """

    def __init__(
        self, name: str, type: str = "unspecified", description: str | None = None,
        metadata: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.name, self.type, self.description = name, type, description
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.aliases: list[str] = []
        self.tags: list[str] = []
        self.version = "v0"
        self.state = "PENDING"
        self.ttl: Any = None
        self.id: str | None = None
        self.digest = ""
        self.size = 0

    def add_file(self, local_path: str, name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def add_dir(self, local_path: str, name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def add_reference(self, uri: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Nothing."""
        return []

    def add(self, obj: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        """Nothing."""
        return obj

    def remove(self, item: Any) -> None:
        """Nothing."""

    @contextlib.contextmanager
    def new_file(self, name: str, mode: str = "w", encoding: str | None = None) -> Iterator[Any]:
        """A file to write into; it is thrown away."""
        binary = "b" in mode
        with open(os.devnull, "wb" if binary else "w", encoding=None if binary else encoding) as file:
            yield file

    def wait(self, timeout: float | None = None) -> Artifact:
        """Itself, at once."""
        return self

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def finalize(self) -> None:
        """Nothing."""

    def is_draft(self) -> bool:
        """Always: nothing is stored."""
        return True

    def _fetch(self, *args: Any, **kwargs: Any) -> Any:
        """Raises UnsupportedError: there is nothing to fetch from."""
        raise unsupported(f"downloading artifact {self.name!r}", "read the file from where it was written")

    download = checkout = get = get_path = get_entry = file = files = verify = logged_by = used_by = link = _fetch


class ArtifactTTL(enum.Enum):
    """How long an artifact should live."""

    INHERIT = "inherit"


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

_LATER = "files stay where they are and are not copied into the store yet"
_POLICIES = ("live", "now", "end")
_WATCHED = ("gradients", "parameters", "all", None)


class RunCompat:
    """The methods of a run that W&B has and stepd does not serve yet. All but `watch` and `unwatch` raise `UsageError`
    after `finish`.
    """

    def _require_running(self, what: str) -> None:
        raise NotImplementedError

    def watch(
        self, models: Any, criterion: Any = None, log: Any = "gradients", log_freq: int = 1000, idx: int | None = None,
        log_graph: bool = False,
    ) -> None:  # fmt: skip
        """Nothing yet. Raises ValueError for a `log` that W&B would refuse too."""
        if log not in _WATCHED:
            raise ValueError(f"watch() log is {log!r}, expected 'gradients', 'parameters', 'all' or None")
        harmless("watch()", "gradients and parameters are not recorded yet; log their norms")

    def unwatch(self, models: Any = None) -> None:
        """Nothing."""

    def save(self, glob_str: Any = None, base_path: Any = None, policy: str = "live", glob: bool = True) -> list[str]:
        """Nothing yet: an empty list. Raises ValueError for an unknown policy."""
        self._require_running("save()")
        if policy not in _POLICIES:
            raise ValueError(f"save() policy is {policy!r}, expected 'live', 'now' or 'end'")
        harmless("save()", _LATER)
        return []

    def log_artifact(self, artifact_or_path: Any, name: str | None = None, type: str | None = None, aliases: Any = None,
                     tags: Any = None) -> Artifact:  # fmt: skip
        """Nothing yet: the artifact itself."""
        self._require_running("log_artifact()")
        harmless("log_artifact()", _LATER)
        if isinstance(artifact_or_path, Artifact):
            return artifact_or_path
        return Artifact(name or os.path.basename(os.fspath(artifact_or_path)), type or "unspecified")

    def upsert_artifact(self, artifact_or_path: Any, name: str | None = None, type: str | None = None, *args: Any,
                        **kwargs: Any) -> Artifact:  # fmt: skip
        """As `log_artifact`."""
        return self.log_artifact(artifact_or_path, name, type)

    def finish_artifact(self, artifact_or_path: Any, name: str | None = None, type: str | None = None, *args: Any,
                        **kwargs: Any) -> Artifact:  # fmt: skip
        """As `log_artifact`."""
        return self.log_artifact(artifact_or_path, name, type)

    def log_model(self, path: Any, name: str | None = None, aliases: Any = None) -> None:
        """Nothing yet."""
        self._require_running("log_model()")
        harmless("log_model()", _LATER)

    def use_artifact(
        self, artifact_or_name: Any, type: str | None = None, aliases: Any = None, use_as: Any = None
    ) -> Artifact:
        """An artifact whose `download` raises `UnsupportedError`."""
        self._require_running("use_artifact()")
        harmless("use_artifact()", "there is no artifact store; which data a run used can go into its config")
        if isinstance(artifact_or_name, Artifact):
            return artifact_or_name
        return Artifact(str(artifact_or_name), type or "unspecified")

    def link_artifact(self, artifact: Any, target_path: str, aliases: Any = None) -> None:
        """Nothing."""
        harmless("link_artifact()", "there is no registry")

    def link_model(self, path: Any, registered_model_name: str, name: str | None = None, aliases: Any = None) -> None:
        """Nothing."""
        harmless("link_model()", "there is no registry")

    def use_model(self, name: str) -> str:
        """Raises UnsupportedError."""
        raise unsupported("use_model()", "load the file from where it was written")

    def restore(self, name: str, run_path: str | None = None, replace: bool = False, root: str | None = None) -> Any:
        """Raises UnsupportedError."""
        raise unsupported("restore()", "open the file from run.dir of the other run, or from where it was written")

    def log_code(
        self, root: str | None = ".", name: str | None = None, include_fn: Any = None, exclude_fn: Any = None
    ) -> None:
        """Nothing yet."""
        self._require_running("log_code()")
        harmless("log_code()", "code is not stored yet; the commit is what git says")

    def write_logs(self, text: str) -> None:
        """Nothing yet."""
        harmless("write_logs()", "console output is not stored yet")

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
