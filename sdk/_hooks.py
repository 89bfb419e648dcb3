"""How a process ends, for the runs that it left unfinished: what the script's outermost frame, `sys.exit` and Python's last words tell.

`begin` is called for every main run. While one is unfinished, `sys.exit` is a function that notes its argument and calls the
one that was there; the last run's end puts that back, unless somebody has wrapped ours meanwhile. Nothing else is hooked:
`sys.excepthook` stays the user's (whoever set it, before or after), and so do signal handlers and the hooks of threads. An exception
that nobody caught is found where Python leaves it, in ``sys.last_value``, before it calls any hook.

Why the frame: it is the one witness of whether the script came to its end or was left, so that neither an old exception
(a debugger, a test that failed) nor a `SystemExit` that somebody caught counts. It is the frame of the main module, whose
variables live as long as the process does anyway: holding it keeps nothing alive.

What stays unknown: the argument of a `SystemExit` that is raised inside a function without `sys.exit`. Python has freed it
before any code of ours can run, and watching every exception (`sys.monitoring`) costs 0.1 µs each. Such an end counts as finished.
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


class _Watch:
    """What is known of this process's end.

    Attributes:
        frame: The outermost frame of the main thread while it runs the main module; None where that is not Python's to tell.
        old_error: The exception that Python had printed last when the first run began.
        said: What `sys.exit` was called with last, in a tuple.
        runs: Tokens of the runs that are watched.
    """

    def __init__(self) -> None:
        self.frame: FrameType | None = None
        self.old_error: BaseException | None = None
        self.said: tuple[object] | None = None
        self.runs: set[str] = set()
        self.exit: Callable[..., Any] | None = None
        self.original: Callable[..., Any] | None = None


_watch = _Watch()


def begin(run: Run) -> None:
    """Watches for the end of the process until this run has ended."""
    if not _watch.runs:
        _install()
    _watch.runs.add(run._token)
    run._at_end(lambda state, exit_code: _forget(run._token))


def _install() -> None:
    _watch.frame, _watch.old_error, _watch.said = _outermost_frame(), last_error(), None
    original = sys.exit
    if original is _watch.exit:
        return

    def leave(status: Any = None, /) -> Any:
        if _is_main_thread():
            _watch.said = (status,)
        return original(status)

    leave.__name__ = leave.__qualname__ = "exit"
    leave.__doc__, leave.__module__ = original.__doc__, "sys"
    _watch.exit, _watch.original = leave, original
    sys.exit = leave


def _forget(token: str) -> None:
    _watch.runs.discard(token)
    if not _watch.runs:
        _watch.frame = None
        if sys.exit is _watch.exit and _watch.original is not None:
            sys.exit, _watch.exit = _watch.original, None


def _is_main_thread() -> bool:
    import threading

    return threading.get_ident() == threading.main_thread().ident


def _outermost_frame() -> FrameType | None:
    """The frame whose end is the script's: the main module's own, or that of ``python -m``."""
    import threading

    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    main = sys.modules.get("__main__")
    if frame is None or main is None:
        return None
    is_main = frame.f_globals is main.__dict__ or frame.f_code.co_name == "_run_module_as_main"
    return frame if is_main else None


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
        if error is not None and (error.__traceback__ is None or error.__traceback__.tb_frame is not frame):
            error = None
    if error is not None:
        return end_of(error)
    if said is None and frame is not None:
        said = _raised_constant(frame)
    return end_of(SystemExit(*said)) if said is not None else Ending("finished", 0)


def end_of(error: BaseException | None) -> Ending:
    """How a run ends that this exception ended, or none."""
    if error is None:
        return Ending("finished", 0)
    if isinstance(error, KeyboardInterrupt):
        return Ending("interrupted", INTERRUPTED_EXIT_CODE, error)
    if isinstance(error, SystemExit):
        code = error.code
        number = code if isinstance(code, int) else 0 if code is None else 1
        return Ending("failed" if number else "finished", int(number), error if isinstance(code, str) else None)
    return Ending("failed", 1, error)


def _has_returned(frame: FrameType) -> bool:
    """Whether a frame that is over came to its end. It remembers its last instruction."""
    import opcode

    last = frame.f_lasti
    return last >= 0 and opcode.opname[frame.f_code.co_code[last]].startswith("RETURN")


def _raised_constant(frame: FrameType) -> tuple[object] | None:
    """The argument of a statement like ``raise SystemExit(3)`` that was the module's last one."""
    import dis

    done = [i for i in dis.get_instructions(frame.f_code) if i.offset <= frame.f_lasti]
    if not done or done[-1].opname != "RAISE_VARARGS":
        return None
    rest = [i for i in done[:-1] if i.opname not in ("CACHE", "PRECALL") and not i.opname.startswith("CALL")]
    return (rest[-1].argval,) if rest and rest[-1].opname in ("LOAD_CONST", "LOAD_SMALL_INT") else None


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
