"""Finds the processes that a script started and that outlived it: `_processes.py MARK [--wait SECONDS] [--kill]`.

A daemon is nobody's child, so no process group or parent leads to it. What it does inherit is the environment: the
script sets a variable to a value nobody else has, and MARK (`NAME=VALUE`) is looked for in every process of this user.
Prints a line for each; the exit code is 1 if there was one after the wait.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time


def read(path: str) -> bytes:
    """The file, or nothing: processes end while they are looked at, and other users' cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def is_zombie(pid: str) -> bool:
    """A process that has ended and that its parent has not yet asked for."""
    return read(f"/proc/{pid}/stat").rpartition(b") ")[2][:1] in (b"Z", b"X", b"")


def marked(mark: bytes) -> list[tuple[int, str]]:
    """(pid, command line) of living processes whose environment held the mark when they were started."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) != os.getpid() and mark in read(f"/proc/{pid}/environ").split(b"\0") and not is_zombie(pid):
            words = read(f"/proc/{pid}/cmdline").decode(errors="replace").split("\0")
            # A program given by -c and the path it gets are long and always the same: what it is comes behind them.
            found.append((int(pid), " ".join(word if len(word) <= 100 else "…" for word in words).strip()))
    return found


def main() -> int:
    """Waits for the marked processes to go; then names, and if asked kills, what is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mark")
    parser.add_argument("--wait", type=float, default=0.0)
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    mark = options.mark.encode()
    deadline = time.monotonic() + options.wait
    left = marked(mark)
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = marked(mark)
    for pid, command in left:
        print(f"still running: {pid} {command[:500]}")
        if options.kill:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
