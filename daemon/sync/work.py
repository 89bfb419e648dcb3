"""The worker process of `stepd sync`: ``python -m daemon.sync.work STORE``. Carries the runs that its parent names, one at a time.

Lines of JSON: ``{"run": NAME, "target": URL}`` comes on standard input, progress and an outcome go to standard output
(`daemon.sync.crew`). What libraries print there is not ours and goes nowhere. It is nice, holds a target open from run to run, and
ends with its input, on SIGTERM, or when its parent is gone; a run that it carries then stops at the next `Passage.check`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any

from daemon.lifecycle import behave_as_worker
from daemon.sync.carrying import carry_run, misused
from daemon.sync.outcome import GOOD, Outcome
from daemon.sync.place import parse
from daemon.sync.registry import make
from daemon.sync.target import Target
from sdk.errors import Error

_NICE = 5


def main(store: str) -> int:
    """Does what standard input says until it ends."""
    is_wanted = behave_as_worker(_NICE, is_idle=False)
    # Invariant: nobody but us writes where the parent reads. What a target's library starts does not inherit it either.
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    targets = _Targets()
    try:
        for line in _lines(is_wanted):
            told = json.loads(line)
            _tell(
                output, {"outcome": _carry(store, told["run"], told["target"], targets, is_wanted, output).as_plain()}
            )
    finally:
        targets.close()
    return 0


def _lines(is_wanted: Callable[[], bool]) -> Any:
    """Lines of standard input. A signal interrupts no read: it is looked for each second."""
    import select

    rest = b""
    while is_wanted():
        if not select.select([0], [], [], 1.0)[0]:
            continue
        data = os.read(0, 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


class _Targets:
    """The targets that this process has open, by URL."""

    def __init__(self) -> None:
        self._open: dict[str, Target] = {}

    def get(self, url: str) -> Target:
        """The target of a URL, made when it is asked for first; carrying checks it before its first run."""
        if url not in self._open:
            self._open[url] = make(parse(url))
        return self._open[url]

    def drop(self, url: str) -> None:
        """After trouble: the next run gets a new one, which is checked again."""
        target = self._open.pop(url, None)
        if target is not None:
            with contextlib.suppress(Exception):  # the trouble has been told
                target.close()

    def close(self) -> None:
        for url in list(self._open):
            self.drop(url)


def _carry(
    store: str, run: str, url: str, targets: _Targets, is_wanted: Callable[[], bool], output: IO[bytes]
) -> Outcome:
    def report(points: int, size: int, share: float) -> None:
        _tell(output, {"moved": [points, size, share]})

    try:
        target = targets.get(url)
    except Error as error:
        return misused(run, url, error)
    found = carry_run(store, run, target, is_stopped=lambda: not is_wanted(), report=report)
    if found.state not in GOOD:
        targets.drop(url)
    return found


def _tell(output: IO[bytes], message: dict[str, Any]) -> None:
    try:
        output.write(json.dumps(message).encode() + b"\n")
    except OSError:
        os._exit(1)  # nobody listens any more; what is delivered is committed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
