"""How soon one sees something: `python benches/look.py [--json FILE] [--markdown FILE] [--quick]`.

Every looking command in a real terminal of 80 x 24, on a store of 2 000 finished runs, and for one finished run of 10⁷ steps: how long from
its start until there is something to read, and until it has ended. The live screen with fifty runs that train: what it costs.
benches/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import common
import made_runs
from common import Results, Table
from made_runs import Noisy, Trained

LONG, OTHER = "long", "other"
METRICS = 10
KEYS = common.metric_names(METRICS)
COLUMNS, LINES = 80, 24
ASKED_PAINT_MS = 500.0
ASKED_LIST_MS = 300.0
ASKED_CPU_PERCENT = 5.0
PERIOD_SECONDS = 0.1
CASE_SECONDS_MAX = 300.0
# After each of them a second more of what nobody has listed yet is in the cache, as after one pass of a daemon's worker.
CACHE_CALLS = 4
# What a terminal does not show: escape sequences, control characters.
_UNSEEN = re.compile(
    rb"\x1b\[[0-9;?<>=]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b[PX^_].*?\x1b\\|\x1b.|[\x00-\x20]", re.DOTALL
)


class Look(NamedTuple):
    """One command.

    Attributes:
        words: Its arguments. RUN and OTHER are the long run and its neighbour, or two of the many.
        shows: What must be on the screen before it counts as painted.
        asked_ms: The whole of it, where that is asked for.
        stays: It does not end by itself: ended by "q" once it has painted.
    """

    words: Sequence[str]
    shows: bytes = b""
    asked_ms: float | None = None
    stays: bool = False


_WHERE = "config.lr < 1e-3 and state = finished"
MANY = {
    "runs": Look(["runs"], asked_ms=ASKED_LIST_MS),
    "runs, sorted": Look(["runs", "--sort", "-best:val/acc", "--where", _WHERE], asked_ms=ASKED_LIST_MS),
    "runs, grouped": Look(["runs", "--group", "config.method,config.model.name"]),
    "compare": Look(["compare", "0003", "0004"]),
    "plot": Look(["plot", "0003", "0004", "loss"]),
    "plot, bands": Look(["plot", "loss", "--where", "project = digits", "--group", "config.method", "--over", "seed"]),
    "watch": Look(["watch"], stays=True),
    "watch --once": Look(["watch", "--once"]),
    "why": Look(["why", "0005"]),
    "sql": Look(["sql", "select project, count(*) from runs group by all"]),
    "sql, metrics": Look(["sql", "select max(value) from metrics where run = '0003' and key = 'val/acc'"]),
    "report": Look(["report", "0003", "0004", "-o", "/dev/null"]),
    "doctor": Look(["doctor", "--quick"]),
}
ONE = {
    "show": Look(["show", LONG]),
    "tail": Look(["tail", LONG]),
    "plot": Look(["plot", LONG, KEYS[0]]),
    "plot, smooth": Look(["plot", LONG, KEYS[0], KEYS[1], "--smooth", "0.9"]),
    "compare": Look(["compare", LONG, OTHER]),
    "watch RUN": Look(["watch", LONG], stays=True),
    "why": Look(["why", LONG]),
    "sql": Look(
        ["sql", f"select max(value) from metrics where run = '{LONG}' and key = '{KEYS[0]}' and step > 9000000"]
    ),
    "report": Look(["report", LONG, "-o", "/dev/null"]),
}


# ---- in the case's process


def case_live(arguments: Results) -> Results:
    """Trainers, a process each, that log ten metrics ten times a second until they are told to end."""
    import sdk

    children = []
    for number in range(arguments["runs"]):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        run = sdk.init(id=f"live-{number:02d}", project="live", config={"lr": 0.1 / (number + 1), "max_steps": 100_000})
        is_over = False

        def end(*_: object) -> None:
            nonlocal is_over
            is_over = True

        signal.signal(signal.SIGTERM, end)
        step = 0
        while not is_over:
            run.log({key: 1 / (step + index + 1) for index, key in enumerate(KEYS)})
            step += 1
            time.sleep(PERIOD_SECONDS)
        run.finish()
        os._exit(0)
    common.tell_and_wait("ready")
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    codes = [os.waitpid(pid, 0)[1] for pid in children]
    return {"failed": sum(map(bool, codes))}


# ---- in the parent


class Painted(NamedTuple):
    """A command in a terminal: milliseconds until something was to be read, and until the end; its CPU seconds."""

    first_ms: float
    whole_ms: float
    cpu_seconds: float
    code: int


def paint(store: str, look: Look, seconds: float = 0.0) -> Painted:
    """Runs it in a terminal. One that stays is left alone for some seconds after its first paint, of which the CPU is told."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    env = {**common.environment(store), "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    start = time.perf_counter()
    line = [sys.executable, "-m", "stepd", *look.words]
    process = subprocess.Popen(
        line, stdin=side, stdout=side, stderr=side, env=env, cwd=common.ROOT, start_new_session=True
    )
    os.close(side)
    first, seen, cpu, left_at = 0.0, b"", 0.0, 0.0
    try:
        while data := _read(main):
            seen += data
            now = time.perf_counter()
            if not first and _UNSEEN.sub(b"", seen) and look.shows in seen:
                first = now
                left_at, cpu = now + max(seconds, 1.0), common.tree_cpu_seconds(process.pid)
            if look.stays and first and now >= left_at:
                cpu = common.tree_cpu_seconds(process.pid) - cpu
                left_at = float("inf")
                os.write(main, b"q")
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        os.close(main)
        if process.returncode is None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    process.returncode = os.waitstatus_to_exitcode(status)
    end = time.perf_counter()
    spent = cpu if look.stays else usage.ru_utime + usage.ru_stime
    return Painted((first - start) * 1e3, (end - start) * 1e3, spent, process.returncode)


def _read(terminal: int) -> bytes:
    """What the command has written by now; a quarter of a second without anything is a blank; nothing at its end."""
    if not select.select([terminal], [], [], 0.25)[0]:
        return b" "
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the last process that held the other end is gone
        return b""


def measure_many(options: argparse.Namespace) -> list[Results]:
    """A store of many runs."""
    with common.fresh_store() as store:
        for number in range(options.runs):
            state = "failed" if number % 17 == 3 else "crashed" if number % 41 == 5 else "finished"
            made_runs.make_run(store, f"{number:04x}", Trained(number), state=state)
        made_runs.compact(store)
        time.sleep(2.1)  # what was changed just before is looked at again
        for _ in range(CACHE_CALLS):
            made_runs.command_usage(store, "runs")
        return _measured(store, MANY, options)


def measure_long(options: argparse.Namespace) -> list[Results]:
    """One long run; its neighbour holds the same values, which is what `compare` has most to do with."""
    with common.fresh_store() as store:
        for run in (LONG, OTHER):
            made_runs.make_run(store, run, Noisy(options.steps, METRICS))
            made_runs.compact(store, run)
        return _measured(store, ONE, options)


def _measured(store: str, looks: dict[str, Look], options: argparse.Namespace) -> list[Results]:
    results = []
    for name, look in looks.items():
        if options.commands and look.words[0] not in options.commands:
            continue
        found = [paint(store, look) for _ in range(options.repeat)]
        results.append(
            {
                "command": name, "line": " ".join(look.words), "stays": look.stays, "asked_ms": look.asked_ms,
                "first_ms": common.median([one.first_ms for one in found]),
                "first_worst_ms": max(one.first_ms for one in found),
                "whole_ms": common.median([one.whole_ms for one in found]), "code": found[-1].code,
            }
        )  # fmt: skip
        common.progress(results[-1])
    return results


def measure_live(options: argparse.Namespace) -> list[Results]:
    """The live screen beside runs that train."""
    with common.fresh_store() as store:
        common.start_daemon(store)
        env = common.environment(store, STEPD_SILENT="1")
        case = common.Case("live", {"runs": options.live}, env, CASE_SECONDS_MAX)
        case.wait_for("ready")
        time.sleep(5.0)  # until what was observed of all of them is there
        found = paint(store, Look(["watch"], stays=True), options.live_seconds)
        case.say("go")
        failed = case.result()["failed"]
    percent = found.cpu_seconds / options.live_seconds * 100
    return [{"runs": options.live, "first_ms": found.first_ms, "cpu_percent": percent, "failed": failed}]


# ---- output


def _table(title: str, results: list[Results]) -> Table:
    rows: list[list[object]] = [
        [
            f"stepd {r['line']}", round(r["first_ms"]), round(r["first_worst_ms"]), ASKED_PAINT_MS,
            None if r["stays"] else round(r["whole_ms"]), r["asked_ms"], r["code"],
        ]
        for r in results
    ]  # fmt: skip
    columns = ["command", "first paint, ms", "worst", "asked", "whole, ms", "asked", "exit code"]
    return Table(title, columns, rows)


def table_many(results: list[Results]) -> Table:
    """Commands on many runs."""
    return _table("in a store of 2 000 finished runs, terminal of 80 x 24", results)


def table_long(results: list[Results]) -> Table:
    """Commands on a long run."""
    return _table("a finished run of 10⁷ steps of ten metrics, terminal of 80 x 24", results)


def table_live(results: list[Results]) -> Table:
    """The live screen."""
    rows = [
        [r["runs"], round(r["first_ms"]), round(r["cpu_percent"], 2), ASKED_CPU_PERCENT, r["failed"]] for r in results
    ]
    columns = ["runs that train", "first paint, ms", "CPU, % of a core", "asked", "trainers that failed"]
    return Table("stepd watch", columns, rows)


PARTS: dict[str, tuple[common.Measure, common.ToTable]] = {
    "many": (measure_many, table_many),
    "long": (measure_long, table_long),
    "live": (measure_live, table_live),
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = common.parser_of(__doc__, PARTS)
    parser.add_argument("--commands", nargs="*", default=[], help="only these, by their verbs")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--live", type=int, default=50, help="runs that train while one watches")
    parser.add_argument("--live-seconds", type=float, default=60.0)
    parser.add_argument("--repeat", type=int, default=5)
    return common.parsed(parser, runs=20, steps=20_000, live=2, live_seconds=2.0, repeat=1)


CASES: dict[str, Callable[[Results], Any]] = {"live": case_live, "compact": made_runs.case_compact}


if __name__ == "__main__":
    common.run_program(PARTS, CASES, parse)
