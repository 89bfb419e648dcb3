"""How costs grow: `python benches/growth.py [--only NAME…] [--json FILE] [--markdown FILE] [--quick]`.

10³ to 10⁷ steps, 10 to 10⁴ keys (all at each step, or a random hundredth of them), 1 to 500 live runs, 10 to 2000 finished
ones: latency of `log()`, memory of trainer and daemon, disk, reading. Below each table stands where it bends, computed from
its numbers. benches/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import common
import made_runs
from common import Results, Table
from made_runs import Noisy

RUN = "run"
METRICS = 5
BEND_FACTOR = 1.5
SPARSE_SHARE = 0.01
TABLE_ROWS = 1024  # a power of two: the loop takes row i & (TABLE_ROWS - 1)
# A loop flat out outruns the daemon where both share two cores; so many calls, then a pause, are about 500 000 a second.
BURST_CALLS, PAUSE_SECONDS = 5000, 0.005
PAUSE_PER_VALUE = PAUSE_SECONDS / (BURST_CALLS * METRICS)
CHUNK_VALUES = 200_000
SAMPLES_MAX = 1_000_000
LIVE_PERIOD_SECONDS = 0.1
CASE_SECONDS_MAX = 180.0


# ---- where it bends


class Bend(NamedTuple):
    """A cost that should not grow with the size.

    Attributes:
        name: Of the number in the results. `per`: of the number by which it is divided, "" for none.
    """

    title: str
    name: str
    per: str = ""

    def line(self, size: str, results: Sequence[Results]) -> str:
        """What the numbers say: the first size behind the cheapest one whose cost is over BEND_FACTOR times the cheapest."""
        pairs = [
            (r[size], r[self.name] / (r[self.per] if self.per else 1)) for r in results if r.get(self.name) is not None
        ]
        if not pairs:
            return f"{self.title}: not measured"
        at = min(range(len(pairs)), key=lambda index: pairs[index][1])
        cheapest = pairs[at][1]
        for where, cost in pairs[at + 1 :]:
            if cost > BEND_FACTOR * cheapest:
                return f"{self.title}: bends at {where:,} ({cost:.4g}; {cheapest:.4g} at {pairs[at][0]:,})"
        return f"{self.title}: flat ({cheapest:.4g} at {pairs[at][0]:,}, {pairs[-1][1]:.4g} at {pairs[-1][0]:,})"


def attempt(case: Callable[..., Results], *arguments: Any, **more: Any) -> Results:
    """A case's numbers; why there are none if it failed or took too long, so that the others are measured."""
    try:
        return case(*arguments, **more)
    except SystemExit as error:
        first, *_, last = (str(error) or "?").strip().splitlines() * 2
        return {"trouble": f"{first} {last}"}


def per(name: str, compacted: Results, count: int, unit: float = 1e6) -> Results:
    """CPU of compaction for each of `count`, in microseconds or another unit of a second; or why there is none."""
    return compacted if "trouble" in compacted else {name: compacted["cpu_seconds"] / count * unit}


# ---- one run, ever longer: what the loop feels


def case_log(arguments: Results) -> Results:
    """One run; latencies since the last size, and memory, whenever a size is reached."""
    import numpy

    import sdk

    names = common.metric_names(METRICS)
    table = [dict(zip(names, row)) for row in numpy.random.default_rng(1).normal(size=(TABLE_ROWS, METRICS)).tolist()]
    samples = array("q", bytes(8 * SAMPLES_MAX))
    found, called = [], 0
    before = common.anonymous_mb(os.getpid())
    sdk.init(project="bench", id=RUN)
    for calls in arguments["sizes"]:
        count = calls - called
        log_in_bursts(sdk.log, table, samples, count)
        called = calls
        memory = common.process_memory(arguments["daemon"])
        found.append({
            "calls": calls, **common.percentiles_us(samples[: min(count, SAMPLES_MAX)]),
            "trainer_mb": more_mb(before), "daemon_mb": common.anonymous_mb(arguments["daemon"]),
            "daemon_rss_mb": memory.get("rss_mb"),
        })  # fmt: skip
    start = time.perf_counter()
    sdk.finish()
    return {"sizes": found, "finish_ms": round((time.perf_counter() - start) * 1e3, 1)}


def more_mb(before: float | None) -> float | None:
    """How much private memory this process has gained."""
    now = common.anonymous_mb(os.getpid())
    return None if now is None or before is None else round(now - before, 1)


def log_in_bursts(log: Callable[..., Any], table: list[dict[str, float]], samples: array[int], count: int) -> None:
    """`count` calls; `samples` keeps the last ones."""
    clock, mask, size = time.perf_counter_ns, len(table) - 1, len(samples)
    for first in range(0, count, BURST_CALLS):
        for index in range(first, min(first + BURST_CALLS, count)):
            data = table[index & mask]
            start = clock()
            log(data)
            samples[index % size] = clock() - start
        time.sleep(PAUSE_SECONDS)


def measure_log(options: argparse.Namespace) -> list[Results]:
    """One process, one run, up to the largest size."""
    with common.fresh_store() as store:
        pid = common.start_daemon(store)
        arguments = {"sizes": options.steps, "daemon": pid}
        env = common.environment(store, STEPD_SILENT="1")
        found = attempt(common.run_case, "log", arguments, env, options.case_seconds)
        if "trouble" in found:
            return [found]
        lost = options.steps[-1] - common.stored_rows(store, common.metric_names(METRICS)[0])
    return [{**each, "rows_lost": lost if each is found["sizes"][-1] else None} for each in found["sizes"]]


def table_log(results: list[Results]) -> Table:
    columns = {
        "calls": "calls so far", "p50": "p50 µs", "p99": "p99", "p99.9": "p99.9", "max": "max", "trainer_mb": "trainer, MB more",
        "daemon_mb": "daemon, MB", "daemon_rss_mb": "daemon RSS, MB", "rows_lost": "rows lost",
    }  # fmt: skip
    bends = [
        Bend("p50", "p50"), Bend("p99", "p99"), Bend("trainer's memory", "trainer_mb"), Bend("daemon's memory", "daemon_mb")
    ]  # fmt: skip
    return table_of("one run, 5 metrics: log() since the last line, and memory", columns, "calls", results, bends)


# ---- one run, ever longer: the disk, and reading


def case_steps(arguments: Results) -> Results:
    """Looks at a compacted run."""
    import sdk

    store, key = arguments["store"], common.metric_names(METRICS)[2]
    run = sdk.open_store(store).run(RUN)
    ways: dict[str, Callable[[], object]] = {
        "open": lambda: sdk.open_store(store).run(RUN).state,
        "series": lambda: run.series(key),
        "keys": run.keys,
        "tail": lambda: run.tail(10),
    }
    if common.is_installed("tsdownsample"):
        ways["points"] = lambda: run.series(key, points=2000)
    return milliseconds(common.alternating(ways, arguments["repeat"]))


def milliseconds(found: dict[str, Results]) -> Results:
    """Only the medians."""
    return {f"{name}_ms": numbers["ms"] for name, numbers in found.items()}


def measure_steps(options: argparse.Namespace) -> list[Results]:
    """A run of each size."""
    results = []
    for steps in options.steps:
        with common.fresh_store() as store:
            made = made_runs.make_run(store, RUN, Noisy(steps, METRICS))
            compacted = attempt(made_runs.compact, store, RUN, seconds_max=options.case_seconds)
            size = made_runs.directory_bytes(made["directory"])
            arguments = {"store": store, "repeat": options.repeat}
            env = common.environment(store)
            found = attempt(common.run_case, "steps", arguments, env, options.case_seconds)
        results.append({
            "steps": steps, **found, "rows_bytes_per_step": made["bytes"] / steps, "bytes_per_step": size / steps,
            **per("compact_us_per_step", compacted, steps),
            "series_ns_per_step": found["series_ms"] / steps * 1e6 if "series_ms" in found else None,
        })  # fmt: skip
        common.progress(results[-1])
    return results


def table_steps(results: list[Results]) -> Table:
    columns = {
        "steps": "steps", "open_ms": "open ms", "keys_ms": "keys() ms", "tail_ms": "tail(10) ms",
        "series_ms": "series() ms", "series_ns_per_step": "ns/step", "points_ms": "points=2000 ms",
        "compact_us_per_step": "compact CPU µs/step", "rows_bytes_per_step": "rows, B/step", "bytes_per_step": "columns, B/step",
    }  # fmt: skip
    bends = [
        Bend("open", "open_ms"), Bend("series() of a step, ns", "series_ns_per_step"), Bend("tail(10)", "tail_ms"),
        Bend("compaction of a step, µs", "compact_us_per_step"), Bend("bytes a step", "bytes_per_step"),
    ]  # fmt: skip
    return table_of("one run, 5 noisy metrics: reading and disk", columns, "steps", results, bends)


# ---- ever more keys


def case_keys(arguments: Results) -> Results:
    """A run with many keys: latencies and memory of the trainer."""
    import numpy

    import sdk

    names = common.metric_names(arguments["keys"])
    each = max(1, round(len(names) * SPARSE_SHARE)) if arguments["sparse"] else len(names)
    rng = numpy.random.default_rng(2)
    # Every value is new, or the disk would be told too small; made before each chunk of calls, outside of what is measured.
    chunk = max(1, min(TABLE_ROWS, CHUNK_VALUES // len(names)))
    before = common.anonymous_mb(os.getpid())
    sdk.init(project="bench", id=RUN)
    samples = array("q")
    for _ in range(max(1, arguments["values"] // (each * chunk))):
        chosen = [names] * chunk
        if arguments["sparse"]:
            places = rng.random((chunk, len(names))).argpartition(each - 1)[:, :each]
            chosen = [[names[index] for index in row] for row in places.tolist()]
        table = [dict(zip(keys, row)) for keys, row in zip(chosen, rng.normal(size=(chunk, each)).tolist())]
        log_timed(sdk.log, table, samples)
        time.sleep(chunk * max(each, METRICS) * PAUSE_PER_VALUE)
    trainer = more_mb(before)
    sdk.finish()
    return {
        "calls": len(samples), "values": len(samples) * each, "values_per_call": each, **common.percentiles_us(samples),
        "trainer_mb": trainer,
    }  # fmt: skip


def log_timed(log: Callable[..., Any], table: list[dict[str, float]], samples: array[int]) -> None:
    """One call for each row, one after the other."""
    clock = time.perf_counter_ns
    for data in table:
        start = clock()
        log(data)
        samples.append(clock() - start)


def case_look(arguments: Results) -> Results:
    """Looks at that run."""
    import sdk

    store = arguments["store"]
    run = sdk.open_store(store).run(RUN)
    keys = run.keys()
    ways: dict[str, Callable[[], object]] = {
        "open": lambda: sdk.open_store(store).run(RUN).state,
        "keys": run.keys,
        "series": lambda: run.series(keys[len(keys) // 2]),
        "tail": lambda: run.tail(10),
    }
    return {"keys_found": len(keys), **milliseconds(common.alternating(ways, arguments["repeat"]))}


def measure_keys(options: argparse.Namespace) -> list[Results]:
    """Dense and sparse, with about as many values each."""
    results = []
    for sparse, keys in itertools.product((False, True), options.keys):
        with common.fresh_store() as store:
            pid = common.start_daemon(store)
            arguments = {"keys": keys, "sparse": sparse, "values": options.values}
            env = common.environment(store, STEPD_SILENT="1")
            found = attempt(common.run_case, "keys", arguments, env, options.case_seconds)
            memory = common.process_memory(pid)
            common.end_daemon(store)
            if "trouble" not in found:
                compacted = attempt(made_runs.compact, store, RUN, seconds_max=options.case_seconds)
                found |= per("compact_us_per_value", compacted, found["values"])
                size = made_runs.directory_bytes(made_runs.run_directory(store, RUN))
                found |= {
                    "bytes_per_value": size / found["values"],
                    "us_per_value": found["p50"] / found["values_per_call"],
                }
                looked = {"store": store, "repeat": options.repeat}
                found |= attempt(common.run_case, "look", looked, env, options.case_seconds)
        results.append({"keys": keys, "sparse": sparse, **found, "daemon_rss_max_mb": memory.get("rss_max_mb")})
        common.progress(results[-1])
    return results


def table_keys(results: list[Results]) -> Table:
    columns = {
        "keys": "keys", "values_per_call": "in a call", "calls": "calls", "p50": "p50 µs", "p99": "p99",
        "us_per_value": "p50 µs/value", "trainer_mb": "trainer, MB more", "daemon_rss_max_mb": "daemon RSS max, MB",
        "bytes_per_value": "B/value", "compact_us_per_value": "compact CPU µs/value", "open_ms": "open ms",
        "keys_ms": "keys() ms", "series_ms": "series() ms", "tail_ms": "tail(10) ms",
    }  # fmt: skip
    kinds = {False: "all keys in a call", True: "a random 1 %"}
    bends = [
        Bend("log() of a value, µs", "us_per_value"), Bend("bytes a value", "bytes_per_value"),
        Bend("compaction of a value, µs", "compact_us_per_value"), Bend("daemon's memory", "daemon_rss_max_mb"),
    ]  # fmt: skip
    table = Table("many keys, as many values in each line", ["", *columns.values()], [])
    rows = [[kinds[r["sparse"]], *(r.get(name) for name in columns)] for r in results]
    notes = list(troubles("keys", results))
    for sparse, title in kinds.items():
        chosen = [r for r in results if r["sparse"] is sparse]
        notes += [f"{title}: {bend.line('keys', chosen)}" for bend in bends]
    return table._replace(rows=rows, notes=notes)


# ---- ever more runs at once


def case_live(arguments: Results) -> Results:
    """Trainers, each a process with a run of its own; forked, so that 500 interpreters need not be started.

    Says `ready` when all have logged once, and `measured` when all have ended their loops.
    """
    # Imported once, before the forks; nothing of it opens anything.
    for name in ("msgpack", "zmq", "lz4.block", "sdk._run", "sdk._sender", "sdk._spool", "sdk._greeting"):
        importlib.import_module(name)
    go_read, go_write = os.pipe()
    finish_read, finish_write = os.pipe()
    pipes = []
    for number in range(arguments["runs"]):
        said_read, said_write = os.pipe()
        if not os.fork():
            os.close(go_write)
            os.close(finish_write)
            os.close(said_read)
            trainer(number, arguments["calls"], go_read, finish_read, said_write)
            os._exit(0)
        os.close(said_write)
        pipes.append(os.fdopen(said_read, encoding="ascii"))
    started = sum(pipe.readline() == "ready\n" for pipe in pipes)
    common.tell_and_wait("ready")
    os.close(go_write)
    texts = [pipe.readline() for pipe in pipes]
    common.tell_and_wait("measured")
    os.close(finish_write)
    codes = [os.wait()[1] for _ in pipes]
    told = [json.loads(text) for text in texts if text]
    samples = array("q", itertools.chain.from_iterable(each["samples"] for each in told))
    return {
        "started": started, "ended_well": codes.count(0), **common.percentiles_us(samples),
        "trainer_mb": common.median([each["mb"] for each in told]),
    }  # fmt: skip


def trainer(number: int, calls: int, go: int, finish: int, said: int) -> None:
    """One trainer's whole life: init, one call, then one call each LIVE_PERIOD_SECONDS."""
    import sdk

    # The loops must not beat together: each begins at its own place in the period.
    table = [dict(zip(common.metric_names(METRICS), [number + step / 7] * METRICS)) for step in range(TABLE_ROWS)]
    sdk.init(project="bench", id=f"live-{number}")
    sdk.log(table[0])
    os.write(said, b"ready\n")
    os.read(go, 1)
    time.sleep(LIVE_PERIOD_SECONDS * (number * 0.618 % 1))
    samples, clock = [], time.perf_counter_ns
    for step in range(1, calls):
        start = clock()
        sdk.log(table[step % TABLE_ROWS])
        samples.append(clock() - start)
        time.sleep(LIVE_PERIOD_SECONDS)
    text = json.dumps({"samples": samples, "mb": common.anonymous_mb(os.getpid()) or 0.0}) + "\n"
    with os.fdopen(said, "w", encoding="ascii") as pipe:
        pipe.write(text)
    os.read(finish, 1)
    sdk.finish()


def measure_live(options: argparse.Namespace) -> list[Results]:
    """Each number of runs with a daemon of its own."""
    results = []
    for runs in options.live:
        with common.fresh_store() as store:
            pid = common.start_daemon(store)
            found = attempt(live, store, pid, runs, options)
        results.append({"runs": runs, **found})
        common.progress(results[-1])
    return results


def live(store: str, pid: int, runs: int, options: argparse.Namespace) -> Results:
    """One number of runs."""
    calls = round(options.live_seconds / LIVE_PERIOD_SECONDS)
    env = common.environment(store, STEPD_SILENT="1", STEPD_AUTOSTART="0")
    case = common.Case("live", {"runs": runs, "calls": calls}, env, options.case_seconds)
    case.wait_for("ready")
    cpu, start = common.process_cpu_seconds(pid), time.monotonic()
    case.say("go")
    time.sleep(options.live_seconds / 2)
    listing = made_runs.timed_command(store, "runs")
    case.wait_for("measured")
    cpu, seconds = common.process_cpu_seconds(pid) - cpu, time.monotonic() - start
    memory = {"daemon_mb": common.anonymous_mb(pid), "daemon_rss_mb": common.process_memory(pid).get("rss_mb")}
    case.say("go")
    start = time.monotonic()
    found = case.result()
    stored = sum(common.stored_rows(store, common.metric_names(1)[0], f"live-{number}") for number in range(runs))
    return {
        **found, **memory, "daemon_cpu_percent": round(cpu / seconds * 100, 1), "runs_command_ms": listing,
        "daemon_cpu_us_per_call": cpu / (runs * calls) * 1e6, "finish_seconds": round(time.monotonic() - start, 2),
        "rows_lost": runs * calls - stored,
    }  # fmt: skip


def table_live(results: list[Results]) -> Table:
    columns = {
        "runs": "live runs", "p50": "p50 µs", "p99": "p99", "p99.9": "p99.9", "trainer_mb": "a trainer, MB",
        "daemon_mb": "daemon, MB", "daemon_rss_mb": "RSS, MB", "daemon_cpu_percent": "daemon CPU %",
        "daemon_cpu_us_per_call": "CPU µs/call", "runs_command_ms": "stepd runs, ms", "finish_seconds": "all finish, s",
        "rows_lost": "rows lost",
    }  # fmt: skip
    bends = [
        Bend("p50", "p50"), Bend("p99", "p99"), Bend("daemon's CPU for a call, µs", "daemon_cpu_us_per_call"),
        Bend("daemon's memory for a run, MB", "daemon_mb", "runs"),
    ]  # fmt: skip
    title = f"live runs, each logging 5 metrics every {LIVE_PERIOD_SECONDS * 1e3:g} ms"
    return table_of(title, columns, "runs", results, bends)


# ---- ever more runs that have ended


def case_list(arguments: Results) -> Results:
    """The list and one run, in a process that has imported everything."""
    import sdk

    store, run = arguments["store"], arguments["run"]
    ways: dict[str, Callable[[], object]] = {
        "list": lambda: sdk.open_store(store).runs(),
        "one": lambda: sdk.open_store(store).run(run).state,
    }
    return milliseconds(common.alternating(ways, arguments["repeat"]))


def measure_finished(options: argparse.Namespace) -> list[Results]:
    """One store that gets more and more runs."""
    results: list[Results] = []
    with common.fresh_store() as store:
        made = 0
        for runs in options.finished:
            names = [f"run-{number:05d}" for number in range(made, runs)]
            size = 0
            for name in names:
                size += made_runs.make_run(store, name, Noisy(100, METRICS))["bytes"]
            compacted = attempt(made_runs.compact, store, *names, seconds_max=options.case_seconds)
            after = sum(made_runs.directory_bytes(made_runs.run_directory(store, name)) for name in names)
            # What is derived from a directory is trusted when the directory was not changed just before.
            time.sleep(2.1)
            first = made_runs.timed_command(store, "runs")
            again = common.median([made_runs.timed_command(store, "runs") for _ in range(options.repeat)])
            arguments = {"store": store, "run": names[0], "repeat": options.repeat}
            env = common.environment(store)
            found = attempt(common.run_case, "list", arguments, env, options.case_seconds)
            results.append({
                "runs": runs, "first_ms": first, "again_ms": again, **found, "rows_bytes_per_run": size / len(names),
                "bytes_per_run": after / len(names),
                **per("compact_ms_per_run", compacted, len(names), 1e3),
                "list_us_per_run": found["list_ms"] / runs * 1e3 if "list_ms" in found else None,
            })  # fmt: skip
            common.progress(results[-1])
            made = runs
    return results


def table_finished(results: list[Results]) -> Table:
    columns = {
        "runs": "runs", "first_ms": "stepd runs, the first time, ms", "again_ms": "again", "list_ms": "store.runs() ms",
        "list_us_per_run": "µs/run", "one_ms": "one run, ms", "rows_bytes_per_run": "rows, B/run",
        "bytes_per_run": "compacted, B/run", "compact_ms_per_run": "compact CPU ms/run",
    }  # fmt: skip
    bends = [
        Bend("the list, µs a run", "list_us_per_run"), Bend("one run, ms", "one_ms"),
        Bend("compaction of a run, ms", "compact_ms_per_run"),
    ]  # fmt: skip
    return table_of("runs that have ended, 100 steps of 5 metrics each", columns, "runs", results, bends)


# ---- output


def troubles(size: str, results: Sequence[Results]) -> list[str]:
    """Cases without numbers."""
    return [f"{size} {r.get(size)}: {r['trouble']}" for r in results if "trouble" in r]


def table_of(title: str, columns: dict[str, str], size: str, results: list[Results], bends: Sequence[Bend]) -> Table:
    """The numbers by name, and below them where they bend."""
    rows = [[r.get(name) for name in columns] for r in results]
    notes = [*troubles(size, results), *(bend.line(size, results) for bend in bends)]
    return Table(title, [*columns.values()], rows, notes)


PARTS: dict[str, tuple[common.Measure, common.ToTable]] = {
    "log": (measure_log, table_log),
    "steps": (measure_steps, table_steps),
    "keys": (measure_keys, table_keys),
    "live": (measure_live, table_live),
    "finished": (measure_finished, table_finished),
}
CASES = {
    "log": case_log,
    "steps": case_steps,
    "keys": case_keys,
    "look": case_look,
    "live": case_live,
    "list": case_list,
    "compact": made_runs.case_compact,
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = common.parser_of(__doc__, PARTS)
    parser.add_argument("--steps", type=int, nargs="+", default=[10**n for n in range(3, 8)])
    parser.add_argument("--keys", type=int, nargs="+", default=[10**n for n in range(1, 5)])
    parser.add_argument("--values", type=int, default=2_000_000, help="of each run with many keys")
    parser.add_argument("--live", type=int, nargs="+", default=[1, 10, 100, 500])
    parser.add_argument("--live-seconds", type=float, default=10.0)
    parser.add_argument("--finished", type=int, nargs="+", default=[10, 100, 500, 2000])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--case-seconds", type=float, default=CASE_SECONDS_MAX, help="a case that takes longer is killed"
    )
    options = common.parsed(parser, values=50_000, repeat=2, live_seconds=1.0)
    if options.quick:
        options.steps = [steps for steps in options.steps if steps <= 100_000]
        options.keys = [keys for keys in options.keys if keys <= 1000]
        options.live = [runs for runs in options.live if runs <= 10]
        options.finished = [runs for runs in options.finished if runs <= 100]
    return options


if __name__ == "__main__":
    common.run_program(PARTS, CASES, parse)
