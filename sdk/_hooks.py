"""How a process ends, for the runs that it left unfinished: what the script's own frame, `sys.exit` and Python's last words tell.

`begin` is called for every main run. While one is unfinished, `sys.exit` (and what `exit` and `quit` call) is a function that calls the
one that was there and notes what it raises; the last run's end puts that back, unless somebody has wrapped ours meanwhile. Nothing else
is hooked: `sys.excepthook` stays the user's (whoever set it, before or after), and so do signal handlers and the hooks of threads. An
exception that nobody caught is found where Python leaves it, in ``sys.last_value``, before it calls any hook.

Why the frame: it is the one witness of whether the script came to its end or was left, so that neither an old exception
(a debugger, a test that failed) nor a `SystemExit` that somebody caught counts. It is the frame of the main module, whose
variables live as long as the process does anyway: holding it keeps nothing alive.

What stays unknown: the argument of a `SystemExit` that is raised inside a function without `sys.exit`. Python has freed it before any code
of ours can run, and watching every exception (`sys.monitoring`) costs 0.1 µs each. Such an end counts as failed, and says why.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ._run import Run

INTERRUPTED_EXIT_CODE = 130
# Limit: facts wait in the ring, whose part for them is some 100 KiB; the last lines of a traceback say most, and the first where it began.
TRACEBACK_CHARACTERS_MAX = 16_384
MESSAGE_CHARACTERS_MAX = 2_000


class Ending(NamedTuple):
    """How a run ended: its state, its exit code, and the exception that ended it, if one did."""

    state: str
    exit_code: int
    error: BaseException | None = None


class _Wrapped:
    """A function of the interpreter that ends the process, and what stands for it while a run is unfinished."""

    def __init__(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._owner, self._name = owner, name
        self._original = getattr(owner, name)
        self._ours = make(self._original)
        for attribute in ("__name__", "__qualname__", "__doc__", "__module__"):
            value = getattr(self._original, attribute, None)
            if isinstance(value, str):  # a partial has no name
                setattr(self._ours, attribute, value)
        setattr(owner, name, self._ours)

    def restore(self) -> bool:
        """Puts back what was there; False where somebody has put something over ours, which then stays and calls ours."""
        if getattr(self._owner, self._name) is not self._ours:
            return False
        setattr(self._owner, self._name, self._original)
        return True


class _Watch:
    """What is known of this process's end.

    Attributes:
        frame: The main module's, while the main thread runs it; None where that is not Python's to tell (a prompt, a greenlet).
        old_error: The exception that Python had printed last when the first run began.
        said: The code of the `SystemExit` that `sys.exit`, `exit` or `quit` raised last, in a tuple.
        runs: Tokens of the runs that are watched.
        wrapped: What is ours now, by name; what could not be put back stays, and is not wrapped again.
        python_exit: What `sys.exit` was before.
    """

    def __init__(self) -> None:
        self.frame: FrameType | None = None
        self.old_error: BaseException | None = None
        self.said: tuple[Any] | None = None
        self.runs: set[str] = set()
        self.wrapped: dict[str, _Wrapped] = {}
        self.python_exit: Callable[..., Any] | None = None


_watch = _Watch()


def begin(run: Run) -> None:
    """Watches for the end of the process until this run has ended (`Settings.watch_exit`)."""
    if not run.settings.watch_exit:
        return
    if not _watch.runs:
        _watch.frame, _watch.old_error, _watch.said = _script_frame(), last_error(), None
        _wrap()
    _watch.runs.add(run._token)
    run._at_end(lambda state, exit_code: _forget(run._token))


def _wrap() -> None:
    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        def leave(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            except SystemExit as error:
                if _is_main_thread():
                    _watch.said = (error.code,)
                raise

        return leave

    if "exit" not in _watch.wrapped:
        _watch.python_exit = sys.exit
        _watch.wrapped["exit"] = _Wrapped(sys, "exit", noting)
    quitter = getattr(sys.modules.get("_sitebuiltins"), "Quitter", None)
    if (
        quitter is not None and "quit" not in _watch.wrapped
    ):  # `exit(3)` and `quit()`, which raise SystemExit themselves
        _watch.wrapped["quit"] = _Wrapped(quitter, "__call__", noting)


def _forget(token: str) -> None:
    _watch.runs.discard(token)
    if not _watch.runs:
        _watch.frame = None
        _watch.wrapped = {name: wrapped for name, wrapped in _watch.wrapped.items() if not wrapped.restore()}


def _is_main_thread() -> bool:
    import threading

    return threading.get_ident() == threading.main_thread().ident


def _script_frame() -> FrameType | None:
    """The frame whose end is the script's: the main module's own."""
    import threading

    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    names = getattr(sys.modules.get("__main__"), "__dict__", None)
    found = None
    while frame is not None:
        if frame.f_globals is names and frame.f_code.co_name == "<module>":
            found = frame
        frame = frame.f_back
    return found


def _came_through(error: BaseException, frame: FrameType) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame is not frame:
        trace = trace.tb_next
    return trace is not None


def last_error() -> BaseException | None:
    """The exception that Python printed last because nobody caught it."""
    found = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return found if isinstance(found, BaseException) else None


def in_notebook() -> bool:
    """Whether IPython runs this code."""
    return hasattr(builtins, "get_ipython") or hasattr(builtins, "__IPYTHON__")


def process_end() -> Ending:
    """How this process ends; to be asked when the interpreter is about to.

    A notebook's kernel, and a prompt, keep the exception of any old line: those say nothing about the run.
    """
    if in_notebook():
        return Ending("interrupted", 0)
    if hasattr(sys, "ps1"):
        return Ending("finished", 0)
    frame, error, said = _watch.frame, last_error(), _watch.said
    if error is _watch.old_error:
        error = None
    if frame is not None:
        if _has_returned(frame):
            return Ending("finished", 0)
        if error is not None and not _came_through(error, frame):
            error = None
    if error is not None:
        return end_of(error)
    if said is None and frame is not None:
        return _unsaid_end(frame)
    return end_of(SystemExit(*said)) if said is not None else Ending("finished", 0)


def _unsaid_end(frame: FrameType) -> Ending:
    """The end of a script that was left by a `SystemExit` that somebody raised."""
    import dis

    done = [i for i in dis.get_instructions(frame.f_code) if i.offset <= frame.f_lasti]
    if done and done[-1].opname == "RAISE_VARARGS":
        # The script's last statement: ``raise SystemExit(3)`` can be read; in ``raise SystemExit(main())`` main came to its end.
        rest = [i for i in done[:-1] if i.opname not in ("CACHE", "PRECALL") and not i.opname.startswith("CALL")]
        constant = bool(rest) and rest[-1].opname in ("LOAD_CONST", "LOAD_SMALL_INT")
        return end_of(SystemExit(rest[-1].argval)) if constant else Ending("finished", 0)
    if any(value is _watch.python_exit for value in frame.f_globals.values()):
        return Ending("finished", 0)  # ``from sys import exit``, before we were there
    return Ending("failed", 1, SystemExit("raised inside a function, not by sys.exit(): its exit code is not known"))


def say_interrupted_again() -> None:
    """Lets the interpreter end by SIGINT, as after every Ctrl-C that nobody caught: a shell then stops its loop over seeds, too."""
    # Why exec: CPython remembers the interrupt only until text is compiled and run again, which every NamedTuple that is imported
    # on the way out does.
    try:
        exec("raise KeyboardInterrupt", {})
    except KeyboardInterrupt:
        pass


def end_of(error: BaseException | None) -> Ending:
    """How a run ends that this exception ended, or none."""
    if error is None:
        return Ending("finished", 0)
    if isinstance(error, KeyboardInterrupt):
        return Ending("interrupted", INTERRUPTED_EXIT_CODE, error)
    if isinstance(error, SystemExit):
        code = error.code
        number = code if isinstance(code, int) else 0 if code is None else 1
        # What an int of C cannot hold Python makes -1, as it does here.
        number = int(number) if -(1 << 31) <= number < 1 << 31 else -1
        return Ending("failed" if number else "finished", number, error if isinstance(code, str) else None)
    return Ending("failed", 1, error)


def _has_returned(frame: FrameType) -> bool:
    """Whether a frame that is over came to its end. It remembers its last instruction."""
    import opcode

    last = frame.f_lasti
    return last >= 0 and opcode.opname[frame.f_code.co_code[last]].startswith("RETURN")


def error_facts(error: BaseException) -> Mapping[str, Any]:
    """An exception as facts of a run: type, message, and the traceback as Python prints it, its middle left out if it is long."""
    import traceback

    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    try:
        message = str(error)
    except Exception:
        message = "<its text cannot be had>"
    lines = [] if isinstance(error, SystemExit) else traceback.format_exception(kind, error, error.__traceback__)
    return {
        "type": name,
        "message": _shortened(message, MESSAGE_CHARACTERS_MAX),
        "traceback": _shortened("".join(lines), TRACEBACK_CHARACTERS_MAX),
    }


def _shortened(text: str, characters_max: int) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= characters_max:
        return text
    head, tail = text[: characters_max // 4], text[-(characters_max * 3 // 4) :]
    return f"{head}\n… {len(text) - len(head) - len(tail):,} characters left out …\n{tail}"
