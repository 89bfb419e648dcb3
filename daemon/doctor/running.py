r"""Runs checks where they can do no harm: in a child, each with a time limit.

A store on a server that is away holds whoever touches it, and SIGKILL does not help; a driver may crash its caller. So the child runs
check after check and writes what each found into a pipe. One that takes too long, dies or raises is a finding itself; then that child
is killed, and another one goes on with the next check. Who only wants to look never waits for more than the limits together.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from daemon.doctor.finding import Finding, bad, warn
from daemon.doctor.machine import Machine
from sdk import clock

_READ_BYTES = 1 << 16
# Limit: of a line; a variable's name may have 128 KiB.
_TEXT_CHARACTERS_MAX = 2000


class Check(NamedTuple):
    """One thing that is looked at.

    Attributes:
        group: The heading it stands below.
        function: ``module:function`` in this package; imported by the child alone.
        about: What is looked at, for docs/doctor.md.
        seconds: It is given up after so long.
        measures: It takes a second and writes; `--quick` leaves it out.
    """

    group: str
    name: str
    function: str
    about: str
    seconds: float = 5.0
    measures: bool = False


def examine(checks: Sequence[Check], machine: Machine) -> Iterator[tuple[Check, list[Finding]]]:
    """What each check found, as it comes. Leaves no process behind, but one that the kernel does not let go."""
    left = list(checks)
    while left:
        child = _Child(left, machine)
        try:
            while left:
                check = left[0]
                found = child.next(check.seconds)
                left.pop(0)
                yield check, [child.trouble(check)] if found is None else found
                if found is None:
                    break
        finally:
            child.end()


def within(seconds: float, call: Callable[[], Iterable[Finding]]) -> list[Finding] | None:
    """What one function gives, from a child as well; None: it did not end in time, or died."""
    child = _Child([call], None)
    try:
        return child.next(seconds)
    finally:
        child.end()


class _Child:
    """A process that runs checks one after the other."""

    def __init__(self, checks: Sequence[Check | Callable[[], Iterable[Finding]]], machine: Machine | None) -> None:
        self._pipe, side = os.pipe()
        self._rest = b""
        self._late = False
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._pipe)
                _run(checks, machine, side)
            finally:
                os._exit(0)
        os.close(side)

    def next(self, seconds: float) -> list[Finding] | None:
        """What the next check found; None: nothing within so long, or the child is gone."""
        deadline = clock.monotonic() + seconds
        while b"\n" not in self._rest:
            left = deadline - clock.monotonic()
            if left <= 0 or not select.select([self._pipe], [], [], left)[0]:
                self._late = True
                return None
            data = os.read(self._pipe, _READ_BYTES)
            self._rest += data
            if not data:
                return None
        line, _, self._rest = self._rest.partition(b"\n")
        return [Finding(level, text, tuple(mend)) for level, text, mend in json.loads(line)]

    def trouble(self, check: Check) -> Finding:
        """Why `next` gave nothing."""
        if self._late:
            return bad(f"no answer within {check.seconds:g} s: whatever this looks at hangs")
        with contextlib.suppress(ChildProcessError):
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            self._pid = 0
            return bad(f"the check died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})")
        return bad("the check died")

    def end(self) -> None:
        """Kills it and what it started, unless it has ended; never waits for a process that cannot die."""
        os.close(self._pipe)
        if self._pid:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(self._pid, signal.SIGKILL)
            deadline = clock.monotonic() + 0.5
            with contextlib.suppress(ChildProcessError):
                while not os.waitpid(self._pid, os.WNOHANG)[0] and clock.monotonic() < deadline:
                    clock.pause(0.001)


def _run(checks: Sequence[Check | Callable[[], Iterable[Finding]]], machine: Machine | None, pipe: int) -> None:
    """In the child: a line of JSON for each check."""
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # a library that prints must not write between our lines
        os.dup2(null, descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for check in checks:
        try:
            found = [_cut(one) for one in _function(check)(machine)] if isinstance(check, Check) else list(check())
        except Exception as error:
            found = [warn(f"this check failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")]
        data = json.dumps(found).encode() + b"\n"
        while data:
            data = data[os.write(pipe, data) :]


def _cut(finding: Finding) -> Finding:
    text, *mend = (
        line if len(line) <= _TEXT_CHARACTERS_MAX else f"{line[:_TEXT_CHARACTERS_MAX]}…"
        for line in (finding.text, *finding.mend)
    )
    return Finding(finding.level, text, tuple(mend))


def _function(check: Check) -> Callable[[Machine | None], Iterable[Finding]]:
    module, _, name = check.function.partition(":")
    function: Callable[[Machine | None], Iterable[Finding]] = getattr(
        importlib.import_module(f"daemon.doctor.{module}"), name
    )
    return function
