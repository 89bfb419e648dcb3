"""What `sdk.log` costs the training loop: `python benches/overhead.py [--json FILE] [--quick]`.

Latency of each call (percentiles) and CPU of the whole process, all threads, per call above the same loop without a call:
for 5 and 50 metrics, in a tight loop and at one call per millisecond, with the daemon up, stopped (SIGSTOP) and dead
(SIGKILL, not started again). In the same run json.dumps + write and logging.FileHandler; the slowdown of a pure-Python and
of a numpy loop; import, init and finish. benches/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any

import common
from common import Results, progress

WARM_UP_CALLS = 2000
TABLE_ROWS = 1024  # a power of two: the loop takes row i & (TABLE_ROWS - 1)
PERIOD_NS = 1_000_000
PACES = ("tight", "sleep", "spin")
METRIC_COUNTS = (5, 50)
Log = Callable[[dict[str, Any]], object]
Finish = Callable[[], object]
Iteration = Callable[[int], object]


# ---- in the case's process: what is called


def noise(count: int, rows: int = TABLE_ROWS) -> list[tuple[float, ...]]:
    """Values with full mantissas, as losses have: round numbers are shorter as text and would flatter the text formats."""
    import numpy

    return [tuple(row) for row in numpy.random.default_rng(1).normal(size=(rows, count)).tolist()]


def open_target(name: str, directory: str) -> tuple[Log, Finish]:
    """The function under test, and what ends its use."""
    return {"stepd": _open_stepd, "json": _open_json, "logging": _open_logging, "nothing": _open_nothing}[name](
        directory
    )


def _open_stepd(directory: str) -> tuple[Log, Finish]:
    import sdk

    sdk.init(project="bench")
    return sdk.log, sdk.finish


def _open_json(directory: str) -> tuple[Log, Finish]:
    file = open(os.path.join(directory, "peer.jsonl"), "w", encoding="utf-8")  # noqa: SIM115 - open for the whole loop
    dumps, write = json.dumps, file.write

    def log(data: dict[str, Any]) -> None:
        write(dumps(data) + "\n")

    return log, file.close


def _open_logging(directory: str) -> tuple[Log, Finish]:
    handler = logging.FileHandler(os.path.join(directory, "peer.log"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("peer")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)

    def log(data: dict[str, Any]) -> None:
        logger.info("metrics %s", data)

    return log, handler.close


def _open_nothing(directory: str) -> tuple[Log, Finish]:
    return lambda data: None, lambda: None


# ---- in the case's process: the loops


def loop_tight(log: Log, names: list[str], table: list[tuple[float, ...]], samples: array[int]) -> None:
    """One call after the other; making the dict is outside the measured time, as it is outside `log`."""
    clock, mask = time.perf_counter_ns, TABLE_ROWS - 1
    for index in range(len(samples)):
        data = dict(zip(names, table[index & mask]))
        start = clock()
        log(data)
        samples[index] = clock() - start


def loop_paced(
    log: Log, names: list[str], table: list[tuple[float, ...]], samples: array[int], wait_until: Callable[[int], None]
) -> None:
    """One call per millisecond. After a late one the next is due a full period later: no burst makes up for it."""
    clock, mask = time.perf_counter_ns, TABLE_ROWS - 1
    due = clock()
    for index in range(len(samples)):
        data = dict(zip(names, table[index & mask]))
        due = max(due + PERIOD_NS, clock())
        wait_until(due)
        start = clock()
        log(data)
        samples[index] = clock() - start


def sleep_until(due: int) -> None:
    """Waits as a loop does that waits for an accelerator: GIL given away, caches and clock frequency cooling down."""
    rest = due - time.perf_counter_ns()
    if rest > 0:
        time.sleep(rest / 1e9)


def spin_until(due: int) -> None:
    """Waits as a loop does that computes in Python: the GIL is held, and the sender has to ask for it."""
    clock = time.perf_counter_ns
    while clock() < due:
        pass


def case_latency(arguments: Results) -> Results:
    """Latencies and CPU of one target."""
    return time_calls(*open_target(arguments["target"], arguments["directory"]), arguments)


def time_calls(log: Log, finish: Finish, arguments: Results) -> Results:
    """The loop and its end. Says `ready` before and `measured` behind the loop, for the daemon's fate."""
    names, table = common.metric_names(arguments["metrics"]), noise(arguments["metrics"])
    for index in range(WARM_UP_CALLS):
        log(dict(zip(names, table[index % TABLE_ROWS])))
    samples = array("q", bytes(8 * arguments["calls"]))
    time.sleep(0.2)  # the sender falls into its rhythm
    common.tell_and_wait("ready")
    cpu, start = time.process_time(), time.perf_counter()
    if arguments["pace"] == "tight":
        loop_tight(log, names, table, samples)
    else:
        loop_paced(log, names, table, samples, sleep_until if arguments["pace"] == "sleep" else spin_until)
    loop_cpu, seconds = time.process_time() - cpu, time.perf_counter() - start
    common.tell_and_wait("measured")
    cpu, start = time.process_time(), time.perf_counter()
    finish()
    return {
        **common.percentiles_us(samples),
        "loop_seconds": round(seconds, 3),
        "loop_cpu_us_per_call": loop_cpu / len(samples) * 1e6,
        "finish_ms": round((time.perf_counter() - start) * 1e3, 1),
        "finish_cpu_ms": round((time.process_time() - cpu) * 1e3, 1),
    }


def work_python() -> Callable[[], object]:
    """About 100 µs of bytecode."""

    def work() -> int:
        total = 0
        for number in range(1500):
            total = (total * 31 + number) & 0xFFFFFF
        return total

    return work


def work_numpy() -> Callable[[], object]:
    """About 100 µs of one thread's matrix product, during which numpy gives the GIL away."""
    import numpy

    left = numpy.random.default_rng(2).normal(size=(128, 128))
    out = numpy.empty_like(left)
    return lambda: numpy.matmul(left, left, out=out)


def case_slowdown(arguments: Results) -> Results:
    """The same work with and without a call of `log` after each piece, in turns, so that both see the same machine."""
    work = {"python": work_python, "numpy": work_numpy}[arguments["work"]]()
    names, table = common.metric_names(5), noise(5)
    log, finish = open_target("stepd", arguments["directory"])
    nothing, _ = open_target("nothing", arguments["directory"])

    def then(call: Log) -> Iteration:
        def iteration(index: int) -> None:
            work()
            call(dict(zip(names, table[index & (TABLE_ROWS - 1)])))

        return iteration

    result = in_turns(then(nothing), then(log), arguments["iterations"], arguments["blocks"])
    finish()
    return result


def in_turns(plain: Iteration, logging_too: Iteration, count: int, blocks: int) -> Results:
    """Blocks of `count` iterations of each, one after the other; medians, and the slowdown of the pairs."""
    clock = time.perf_counter

    def block(iteration: Iteration) -> float:
        start = clock()
        for index in range(count):
            iteration(index)
        return (clock() - start) / count * 1e6

    block(plain), block(logging_too)
    without, with_log = [], []
    for _ in range(blocks):
        without.append(block(plain))
        with_log.append(block(logging_too))
    slower = [(b - a) / a * 100 for a, b in zip(without, with_log)]
    return {
        "iteration_us": round(common.median(without), 2),
        "with_log_us": round(common.median(with_log), 2),
        "slowdown_percent": round(common.median(slower), 2),
        "slowdown_percent_worst_block": round(max(slower), 2),
    }


def case_init(arguments: Results) -> Results:
    """One `init` in a fresh process; the import is paid before."""
    import sdk

    start = time.perf_counter()
    sdk.init(project="bench")
    ready = time.perf_counter()
    sdk.log({"loss": 1.0})
    first = time.perf_counter()
    sdk.finish()
    return {
        "init_ms": (ready - start) * 1e3,
        "first_log_ms": (first - ready) * 1e3,
        "finish_ms": (time.perf_counter() - first) * 1e3,
    }


# ---- in the parent: the cases


def measure_latency(options: argparse.Namespace) -> list[Results]:
    """All combinations; the loop that calls nothing comes first, since the others' CPU is told above it."""
    results = []
    for pace in options.paces:
        calls = options.calls if pace == "tight" else options.paced_calls
        for metrics in METRIC_COUNTS:
            base = latency(options, "nothing", "none", metrics, pace, calls)
            for target, daemon in TARGETS:
                result = latency(options, target, daemon, metrics, pace, calls)
                above = result["loop_cpu_us_per_call"] - base["loop_cpu_us_per_call"]
                # A loop that spins uses a whole core with or without us: the difference would be noise.
                results.append({**result, "cpu_us_per_call": None if pace == "spin" else round(above, 3)})
                progress(results[-1])
    return results


TARGETS = (("stepd", "up"), ("stepd", "stopped"), ("stepd", "dead"), ("json", "none"), ("logging", "none"))


def latency(options: argparse.Namespace, target: str, daemon: str, metrics: int, pace: str, calls: int) -> Results:
    """One case: a store, a daemon in the wanted state, the loop, and what of it was stored."""
    what = {"target": target, "daemon": daemon, "metrics": metrics, "pace": pace, "calls": calls}
    with common.fresh_store() as store:
        pid = common.start_daemon(store) if daemon != "none" else 0
        # Started by us, never by the trainer: a dead daemon shall stay dead while we measure.
        case = common.Case(
            "latency", {**what, "directory": os.path.dirname(store)}, common.environment(store, STEPD_AUTOSTART="0")
        )
        try:
            case.wait_for("ready")
            if daemon in FATES:
                os.kill(pid, FATES[daemon])
            case.say("go")
            case.wait_for("measured")
        finally:
            if daemon == "stopped":  # also when the case failed: nobody could stop a stopped daemon
                os.kill(pid, signal.SIGCONT)
        case.say("go")
        result = case.result()
        if target == "stepd":
            result["lost"] = calls + WARM_UP_CALLS - common.stored_rows(store, common.metric_names(1)[0])
    return {**what, **result}


FATES = {"stopped": signal.SIGSTOP, "dead": signal.SIGKILL}


def measure_slowdown(options: argparse.Namespace) -> list[Results]:
    """With the daemon up."""
    results = []
    for work in ("python", "numpy"):
        with common.fresh_store() as store:
            common.start_daemon(store)
            arguments = {
                "work": work,
                "iterations": 5000,
                "blocks": options.blocks,
                "directory": os.path.dirname(store),
            }
            result = common.run_case("slowdown", arguments, common.environment(store))
        results.append({"work": work, **result})
        progress(results[-1])
    return results


def measure_init(options: argparse.Namespace) -> list[Results]:
    """Cold: a new store and no daemon, so `init` starts one. Warm: the store's daemon runs."""
    rows: dict[str, list[Results]] = {"cold": [], "warm": []}
    for _ in range(options.repeat):
        with common.fresh_store() as store:
            rows["cold"].append(common.run_case("init", {}, common.environment(store)))
    with common.fresh_store() as store:
        common.start_daemon(store)
        for _ in range(options.repeat):
            rows["warm"].append(common.run_case("init", {}, common.environment(store)))
    return [{"state": state, **spread(found)} for state, found in rows.items()]


def spread(rows: list[Results]) -> Results:
    """Median and worst of each number."""
    names = rows[0]
    medians = {name: round(common.median([row[name] for row in rows]), 2) for name in names}
    worst = {f"{name}_worst": round(max(row[name] for row in rows), 2) for name in names}
    return {**medians, **worst}


def measure_import(options: argparse.Namespace) -> list[Results]:
    """`import sdk` in a fresh interpreter, byte code cached, beside an interpreter that imports nothing."""
    code = (
        "import sys, time; before = len(sys.modules); start = time.perf_counter(); import sdk; "
        "print((time.perf_counter() - start) * 1e3, len(sys.modules) - before)"
    )
    rows = []
    for _ in range(options.repeat + 1):
        line = [sys.executable, "-c", code]
        output = subprocess.run(line, env=common.environment(""), capture_output=True, text=True, check=True).stdout
        milliseconds, modules = output.split()
        rows.append({"import_ms": float(milliseconds), "modules": int(modules)})
    return [spread(rows[1:])]  # the first may have compiled


# ---- output


def print_results(results: Results) -> None:
    """The tables, in the order of the issue's sentence."""
    shares = list(common.SHARES)
    if results["latency"]:
        rows = [
            [
                f"{r['target']}, daemon {r['daemon']}" if r["target"] == "stepd" else PEERS[r["target"]],
                r["metrics"],
                r["pace"],
            ]
            + [r[share] for share in shares]
            + [r["cpu_us_per_call"], r["calls"], r["finish_ms"], r.get("lost")]
            for r in results["latency"]
        ]
        columns = ["target", "metrics", "pace", *shares, "CPU µs/call", "calls", "finish ms", "lost"]
        common.print_table("latency of a call, µs", columns, rows)
    for name, first in (("slowdown", "work"), ("init", "state"), ("import", "import_ms")):
        if results[name]:
            rest = [column for column in results[name][0] if column != first]
            table = [[row[first], *(row[column] for column in rest)] for row in results[name]]
            common.print_table(name, [first, *rest], table)


PEERS = {"json": "json.dumps + write", "logging": "logging.FileHandler"}
PARTS = {"latency": measure_latency, "slowdown": measure_slowdown, "init": measure_init, "import": measure_import}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000, help="calls of a tight loop")
    parser.add_argument("--paced-calls", type=int, default=10_000, help="calls at one per millisecond")
    parser.add_argument("--paces", nargs="+", choices=PACES, default=list(PACES))
    parser.add_argument("--blocks", type=int, default=10, help="pairs of blocks of the slowdown")
    parser.add_argument("--repeat", type=int, default=10, help="processes for init and import")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: to see that it runs")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.calls, options.paced_calls = options.calls // 10, options.paced_calls // 10
        options.blocks = options.repeat = 3
    return options


def main() -> None:
    """Measures what was asked for, prints it, and writes it."""
    if common.serve_case({"latency": case_latency, "slowdown": case_slowdown, "init": case_init}):
        return
    options = parse()
    facts = common.machine()
    common.print_machine(facts)
    results: Results = {"machine": facts}
    for name, measure in PARTS.items():
        results[name] = measure(options) if name in options.only else []
    print_results(results)
    if options.json:
        common.write_json(options.json, results)


if __name__ == "__main__":
    main()
