"""The global run of a process: what the module's names stand for, before, during and after it.

There is at most one. `init` puts its `log` (the stream's own function, no wrapper), `config` and `summary` into the module;
`finish` puts the placeholders back. Names that were imported before `init` find the run through the placeholder. Every run
that this process made and left unfinished is finished when the interpreter ends, with the state that `_hooks` finds; no signal
handler.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import _hooks
from ._hooks import in_notebook as in_notebook
from ._run import Run
from .errors import Error, UsageError


class State:
    """What this process knows of its runs.

    Attributes:
        run: The global run, or None.
        last: The id of the global run that was finished last, or None.
        unfinished: Every run that this process made and has not finished, by token.
        at_exit: The process that has registered `_at_exit`.
        capture: What `sdk.testing.captured` puts in place of store, stream and reader, or None.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        self.last: str | None = None
        self.unfinished: dict[str, Run] = {}
        self.capture: Any = None
        self.at_exit: int | None = None


state = State()


def module() -> dict[str, Any]:
    return sys.modules[__package__ or "sdk"].__dict__


def bind(run: Run) -> None:
    """Makes a run the global one: `sdk.log` becomes the stream's own function."""
    state.run = run
    module().update(run=run, log=run.log, config=run.config, summary=run.summary)


def forget(run: Run) -> None:
    """Takes a finished run out of the module."""
    state.unfinished.pop(run._token, None)
    if state.run is run:
        state.run, state.last = None, run.id
        module().update(run=None, log=log, config=config, summary=summary)


def remember(run: Run) -> None:
    """Sees to it that the run is finished when the interpreter ends."""
    state.unfinished[run._token] = run
    if state.at_exit != os.getpid():
        state.at_exit = os.getpid()
        atexit.register(_at_exit)
        if _is_child_of_multiprocessing():
            # Before CPython 3.13 a forked one ends without atexit's handlers.
            sys.modules["multiprocessing.util"].Finalize(None, _at_exit, exitpriority=100)


def _at_exit() -> None:
    how = _child_end() if _is_child_of_multiprocessing() else _hooks.process_end()
    _end_all(how)
    if isinstance(how.error, KeyboardInterrupt):
        _hooks.say_interrupted_again()


def _child_end() -> _hooks.Ending:
    """How a child of multiprocessing ends, which is inside of its parent's script.

    Its exception, if it has one, is in flight; from CPython 3.13 on a forked one has forgotten it, and whoever runs its exit
    handlers knows the exit code.
    """
    error = sys.exc_info()[1]
    if sys.hexversion < 0x030D0000:
        return _hooks.end_of(error)
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != "_launch":
        frame = frame.f_back
    code = frame.f_locals.get("code") if frame.f_code.co_name == "_launch" else None
    return _hooks.end_of(SystemExit(code) if error is None and isinstance(code, int) else error)


def _is_child_of_multiprocessing() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def _end_all(how: _hooks.Ending) -> None:
    for run in list(state.unfinished.values()):
        if run._pid == os.getpid():
            run.end(*how, timeout=run.settings.exit_seconds_max)


# -- placeholders ----------------------------------------------------------------------------------------------------


def require_run(what: str) -> Run:
    """The global run.

    Raises:
        UsageError: It is finished. Error: There was none.
    """
    if state.run is not None:
        return state.run
    if state.last is not None:
        raise UsageError(
            f"{what} was called after finish() of run {state.last!r}",
            hint="sdk.init() starts another run; sdk.attach(id)",
        )
    raise Error(
        f"{what} was called before init(); this process (pid {os.getpid()}{_process_kind()}) has no run.",
        hint='run = sdk.init(project="…") once before the loop; in a worker: sdk.attach(run_id)',
    )


def _process_kind() -> str:
    data = sys.modules.get("torch.utils.data")
    if data is not None and data.get_worker_info() is not None:
        return ", a DataLoader worker"
    return ", a child process" if _is_child_of_multiprocessing() else ""


def log(data: Mapping[str, Any], step: int | None = None, commit: bool | None = None, sync: object = None) -> None:
    """`Run.log` of the global run. Before `init` it raises `Error`, after `finish` `UsageError`."""
    require_run("log()").log(data, step, commit, sync)


class Placeholder:
    """`sdk.config` or `sdk.summary` while there is no run; one that was imported before `init` finds the run later."""

    __slots__ = ("_stepd_name",)

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_stepd_name", name)

    def _stepd_target(self, what: str) -> Any:
        name: str = object.__getattribute__(self, "_stepd_name")
        return getattr(require_run(f"{name}{what}"), name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._stepd_target(f".{name}"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._stepd_target(f".{name}"), name, value)

    def __getitem__(self, key: str) -> Any:
        return self._stepd_target(f"[{key!r}]")[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._stepd_target(f"[{key!r}]")[key] = value

    def __delitem__(self, key: str) -> None:
        del self._stepd_target(f"[{key!r}]")[key]

    def __contains__(self, key: object) -> bool:
        return key in self._stepd_target("")

    def __iter__(self) -> Iterator[Any]:
        return iter(self._stepd_target(""))

    def __len__(self) -> int:
        return len(self._stepd_target(""))

    def __repr__(self) -> str:
        if state.run is None:
            return f"<sdk.{object.__getattribute__(self, '_stepd_name')}: no run>"
        return repr(self._stepd_target(""))


config = Placeholder("config")
summary = Placeholder("summary")


def _delegate(name: str) -> Callable[..., Any]:
    """A function of the module that calls the global run's method of the same name."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(require_run(f"{name}()"), name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"`Run.{name}` of the global run. {getattr(Run, name).__doc__ or ''}"
    return call


define_metric = _delegate("define_metric")
watch = _delegate("watch")
unwatch = _delegate("unwatch")
save = _delegate("save")
restore = _delegate("restore")
alert = _delegate("alert")
log_artifact = _delegate("log_artifact")
use_artifact = _delegate("use_artifact")
log_model = _delegate("log_model")
use_model = _delegate("use_model")
link_model = _delegate("link_model")
log_code = _delegate("log_code")
mark_preempting = _delegate("mark_preempting")
pin_config_keys = _delegate("pin_config_keys")
