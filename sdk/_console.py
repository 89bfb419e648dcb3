"""The console: what the process prints to `sys.stdout` and `sys.stderr`, stored line by line (docs/console.md).

Life: `begin`, called by `init`, puts a function before the `write` of the two stream *objects*, so that whoever holds them (a
`StreamHandler` made before `init`, a progress bar) is captured too; nothing is replaced in modules, and no descriptor is
touched. The program's own write comes first, with its value and its exceptions. What was written then goes into an inbox
(`sdk._tap`), from where lines are made (`sdk._folding`) and put into the run's console (`sdk._lines`). At the end of the run the
streams are as they were.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from . import clock
from ._folding import Folding
from ._lines import Lines, lines_of
from ._strangers import file_of
from ._tap import Around, Tap, put_long

if TYPE_CHECKING:
    from ._run import Run

_taps: dict[str, Tap] = {}


def begin(run: Run) -> None:
    """Captures what is printed, until the run ends. Called by `init`."""
    console = lines_of(run)  # also without capture: log records go there, and it must end after all that may print
    if run.settings.console == "off":
        if run._kind == "main":
            run._emit({"context": {"console": {"off": True}}})
        return
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}
    if streams["stdout"] is streams["stderr"]:
        del streams["stderr"]
    facts = {source: _tap(source, stream, run, console) for source, stream in streams.items() if stream is not None}
    if run._kind == "main":
        run._emit({"context": {"console": facts}})

    def end(state: str, exit_code: int) -> None:
        _end(console)
        if run._kind == "main" and any("until" in fact for fact in facts.values()):
            run._emit({"context": {"console": facts}})

    _tell_notebook("unregister")
    _tell_notebook("register")
    console.on_look = _look
    console.on_end.append(lambda: _end(console))
    run._at_end(end)


def _tap(source: str, stream: Any, run: Run, console: Lines) -> dict[str, Any]:
    """Taps a stream, or joins the run before that does; what the stream is."""
    if (file := file_of(stream)) is not None and file in run._watched_outside:
        return {"kind": "file"}  # whoever began the run looks at this file
    tap = _taps.get(source)
    # In a forked child that begins a run of its own, what it prints is not its parent's any more.
    consoles = tuple(other for other in tap.consoles if other.pid == os.getpid()) if tap is not None else ()
    if tap is not None and tap.stream is not stream:
        # Another object since the run before began (a test's, a notebook's): runs that are there follow to it.
        tap.settle()
        tap.remove()
        tap = None
    if tap is None:
        tap = Tap(stream, source)
        try:
            tap.install()
        except (AttributeError, TypeError):
            tap = Tap(Around(stream), source)
            tap.install()
            setattr(sys, source, tap.stream)
        tap.facts = tap.watch(_taps.values(), is_alone=not run._launch.is_parallel)
        _taps[source] = tap
    tap.consoles = (*consoles, console)
    return tap.facts


def _end(console: Lines) -> None:
    """What is printed from now on is not this run's; with the last run the streams are as they were."""
    taps = [(source, tap) for source, tap in _taps.items() if console in tap.consoles]
    for _, tap in taps:
        with contextlib.suppress(Exception):  # the streams are given back whatever happens
            tap.settle()
    for source, tap in taps:
        with contextlib.suppress(Exception):
            tap.settle_strangers(is_last=len(tap.consoles) == 1)
        tap.consoles = tuple(other for other in tap.consoles if other is not console)
        if not tap.consoles:
            tap.remove()
            del _taps[source]
            if isinstance(tap.stream, Around) and getattr(sys, source) is tap.stream:
                setattr(sys, source, tap.stream._stepd_stream)
    if not _taps:
        _tell_notebook("unregister")


def _again(*event: Any) -> None:
    """Before each cell of a notebook."""
    for tap in list(_taps.values()):
        tap.install_again()


def _tell_notebook(what: str) -> None:
    shell: Any = getattr(builtins, "get_ipython", lambda: None)()
    with contextlib.suppress(Exception):  # "unregister" of what is not registered; an IPython of another kind
        getattr(shell.events, what)("pre_run_cell", _again)


def watched_files() -> tuple[tuple[int, int], ...]:
    """The files that this process looks at: a process that it starts need not store what it writes there."""
    return tuple(tap.strangers.file for tap in _taps.values() if tap.strangers is not None)


def _look() -> None:
    """Called by the console's sender at each of its looks."""
    now = clock.monotonic()
    for tap in list(_taps.values()):
        tap.look(now)


def _forked() -> None:
    for tap in list(_taps.values()):
        tap.become_child()


class RunConsole:
    """`Run.write_logs`, and the end of the console, which is stored while the run's own stream is."""

    # Files (device, inode) at which the process that this run was pickled in looks.
    _watched_outside: tuple[tuple[int, int], ...] = ()

    def _join_console(self: Any) -> None:
        console: Lines | None = self.__dict__.get("_lines")
        if console is not None:
            console.join()

    def write_logs(self: Any, text: str) -> None:
        """Adds lines to the run's console without printing them.

        Raises:
            UsageError: The run is finished.
            TypeError: `text` is no str.
        """
        self._require_running("write_logs()")
        if not isinstance(text, str):
            raise TypeError(f"write_logs() text is {type(text).__name__}, expected str")
        folding, console = Folding(), lines_of(self)
        for line in folding.feed(text) + folding.settle():
            put_long(console, "stdout", line, {})


os.register_at_fork(after_in_child=_forked)
