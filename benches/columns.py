"""What columns are good for: `python benches/columns.py [--json FILE] [--markdown FILE] [--quick]`.

Bytes a step on disk; one metric of ten over 10⁶ steps beside Parquet; whole runs, samples and lists of runs; how fast rows
become columns, and what the daemon takes meanwhile. Runs are written by benches/made_runs.py as a daemon leaves them, and
compacted by `stepd compact`. benches/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import ingest
import made_runs
import peer_tools
from common import Results, Table
from made_runs import Noisy

RUN = "run"
SIZE_METRICS, READ_METRICS = 5, 10
SIZE_BUDGET = {"float32": 19, "float64": 38}
PEERS = ("wandb", "SummaryWriter", "json")
POINTS = 2000
WAITING_STEPS_MIN = 3_000_000  # some seconds of compaction, for the time in which clients make ready
CASE_SECONDS_MAX = 300.0
# In Parquet's default a row group has 2²⁰ rows at most, and the compression is snappy.
COMPRESSIONS = ("snappy", "zstd")


# ---- in the case's process


def case_peer(arguments: Results) -> Results:
    """Logs the same noisy metrics with another tool; what is left on the disk is counted by the parent."""
    tool, directory = peer_tools.by_name(arguments["tool"]), arguments["directory"]
    noisy = Noisy(arguments["steps"], SIZE_METRICS, arguments["kind"])
    names = common.metric_names(SIZE_METRICS)
    try:
        # W&B prints to stdout where it likes; what we say there comes after this.
        with contextlib.redirect_stdout(sys.stderr):
            tool.load(directory)
            log, finish = tool.open(directory)
            for _, _, values in noisy.chunks():
                for row in values.tolist():
                    log(dict(zip(names, row)))
            finish()
    except peer_tools.Missing as missing:
        return {"missing": str(missing)}
    return {}


def case_read(arguments: Results) -> Results:
    """One metric of a run, and the same from Parquet, in turns in one process; first that both say the same."""
    import numpy

    import sdk

    store, key = arguments["store"], arguments["key"]
    run = sdk.open_store(store).run(RUN)
    ours = run.series(key)
    ways: dict[str, Callable[[], object]] = {
        "stepd: open the store and the run, series()": lambda: sdk.open_store(store).run(RUN).series(key),
        "stepd: open": lambda: sdk.open_store(store).run(RUN),
        "stepd: series() of an open run": lambda: run.series(key),
    }
    for compression, path in arguments["parquet"].items():
        table = read_parquet(path, ["step", "time", key])
        if not numpy.array_equal(ours.value, table[key].to_numpy()) or len(ours) != arguments["steps"]:
            raise SystemExit(f"series() and Parquet ({compression}) differ")
        ways[f"pyarrow: Parquet, {compression}"] = lambda path=path: read_parquet(path, ["step", "time", key])
    return common.alternating(ways, arguments["repeat"])


def case_whole(arguments: Results) -> Results:
    """A whole run as a pandas table, and its rows as dicts."""
    import sdk

    run = sdk.open_store(arguments["store"]).run(RUN)
    rows = min(arguments["steps"], arguments["rows"])
    ways: dict[str, Callable[[], object]] = {"stepd: to_pandas()": run.to_pandas}
    for compression, path in arguments["parquet"].items():
        ways[f"pyarrow: Parquet to pandas, {compression}"] = lambda path=path: read_parquet(path).to_pandas()
    found = common.alternating(ways, arguments["repeat"])
    ways = {f"stepd: the first {rows:,} of rows()": lambda: sum(1 for _ in itertools.islice(run.rows(), rows))}
    return found | common.alternating(ways, max(1, arguments["repeat"] // 5))


def read_parquet(path: str, columns: list[str] | None = None) -> Any:
    """A table, by pyarrow's own defaults: all cores."""
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path, columns=columns)


def case_long(arguments: Results) -> Results:
    """Looks at a very long run."""
    import sdk

    store, key = arguments["store"], arguments["key"]
    run = sdk.open_store(store).run(RUN)

    def look() -> object:
        opened = sdk.open_store(store).run(RUN)
        return opened.name, opened.state, opened.step_max

    ways: dict[str, Callable[[], object]] = {
        "open, with name, state and last step": look,
        "keys()": run.keys,
        "tail(10)": lambda: run.tail(10),
        "series()": lambda: run.series(key),
    }
    if common.is_installed("tsdownsample"):
        ways[f"series(points={POINTS})"] = lambda: run.series(key, points=POINTS)
    return common.alternating(ways, arguments["repeat"])


# ---- in the parent


def measure_size(options: argparse.Namespace) -> list[Results]:
    """Bytes a step: our run before and after compaction, then the peers."""
    results = []
    for kind in options.kinds:
        with common.fresh_store() as store:
            made = made_runs.make_run(store, RUN, Noisy(options.steps, SIZE_METRICS, kind))
            made_runs.compact(store, RUN)
            after = made_runs.directory_bytes(made["directory"])
        steps = {"kind": kind, "steps": options.steps}
        results.append(
            {"tool": "stepd, rows before compaction", **steps, "bytes_per_step": made["bytes"] / options.steps}
        )
        results.append({"tool": "stepd", **steps, "bytes_per_step": after / options.steps})
        for tool in options.peers:
            results.append(peer_size(options, tool, kind))
            common.progress(results[-1])
    return results


def peer_size(options: argparse.Namespace, tool: str, kind: str) -> Results:
    """One peer's bytes in a directory of its own."""
    what = {"tool": peer_tools.by_name(tool).title, "kind": kind, "steps": options.peer_steps}
    with common.fresh_store() as store:
        directory = os.path.dirname(store)
        env = common.environment(store, **peer_tools.by_name(tool).environment)
        arguments = {"tool": tool, "kind": kind, "steps": options.peer_steps, "directory": directory}
        found = common.run_case("peer", arguments, env, CASE_SECONDS_MAX)
        size = sum(entry.stat().st_size for entry in Path(directory).rglob("*") if entry.is_file())
    return {**what, **found, "bytes_per_step": None if "missing" in found else size / options.peer_steps}


def measure_read(options: argparse.Namespace) -> list[Results]:
    """One metric of ten, and the whole run, before and after compaction, beside Parquet of the same rows."""
    with common.fresh_store() as store:
        noisy = Noisy(options.steps, READ_METRICS)
        made_runs.make_run(store, RUN, noisy)
        arguments = {
            "store": store, "key": common.metric_names(READ_METRICS)[3], "steps": options.steps,
            "repeat": options.repeat, "rows": 200_000, "parquet": write_parquet(os.path.dirname(store), noisy),
        }  # fmt: skip
        rows = {**arguments, "parquet": {}, "repeat": max(1, options.repeat // 5), "rows": 20_000}
        results = []
        for state, given in (("rows", rows), ("columns", arguments)):
            if state == "columns":
                made_runs.compact(store, RUN)
            for case in ("read", "whole"):
                found = common.run_case(case, given, common.environment(store), CASE_SECONDS_MAX)
                results += [{"state": state, "case": case, "way": way, **numbers} for way, numbers in found.items()]
                common.progress(results[-1])
    return results


def write_parquet(directory: str, noisy: Noisy) -> dict[str, str]:
    """The same rows as Parquet files, by compression; none where pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return {}
    import numpy

    parts = list(noisy.chunks())
    values = numpy.concatenate([part for _, _, part in parts])
    times = numpy.concatenate([part for _, part, _ in parts]) // 1000
    columns = {"step": pyarrow.array(numpy.arange(noisy.steps)), "time": pyarrow.array(times, pyarrow.timestamp("us"))}
    columns |= {name: pyarrow.array(values[:, i]) for i, name in enumerate(common.metric_names(noisy.metrics))}
    paths = {}
    for compression in COMPRESSIONS:
        paths[compression] = os.path.join(directory, f"{compression}.parquet")
        pyarrow.parquet.write_table(pyarrow.table(columns), paths[compression], compression=compression)
    return paths


def measure_long(options: argparse.Namespace) -> list[Results]:
    """Looks at a run of ten times as many steps."""
    with common.fresh_store() as store:
        made_runs.make_run(store, RUN, Noisy(options.long_steps, SIZE_METRICS))
        made_runs.compact(store, RUN)
        arguments = {"store": store, "key": common.metric_names(SIZE_METRICS)[3], "repeat": options.repeat}
        found = common.run_case("long", arguments, common.environment(store), CASE_SECONDS_MAX)
    return [{"steps": options.long_steps, "way": way, **numbers} for way, numbers in found.items()]


def measure_runs(options: argparse.Namespace) -> list[Results]:
    """`stepd runs`, a fresh process each time: before anything but the runs is there, and again."""
    with common.fresh_store() as store:
        for number in range(options.runs):
            made_runs.make_run(store, f"run-{number:04d}", Noisy(100, SIZE_METRICS))
        made_runs.compact(store)
        # What is derived from a directory is trusted when the directory was not changed just before.
        time.sleep(2.1)
        first = made_runs.timed_command(store, "runs")
        again = [made_runs.timed_command(store, "runs") for _ in range(options.repeat)]
        nothing = [made_runs.timed_command(store, "--version") for _ in range(options.repeat)]
    return [
        {"runs": options.runs, "what": "stepd runs, the first time", "ms": first, "worst_ms": first},
        {"runs": options.runs, "what": "stepd runs", "ms": common.median(again), "worst_ms": max(again)},
        {"runs": 0, "what": "stepd --version", "ms": common.median(nothing), "worst_ms": max(nothing)},
    ]


def measure_compaction(options: argparse.Namespace) -> list[Results]:
    """How fast rows become columns: records for each CPU second of the process that does it."""
    results = []
    for blocks in ("tight", "slow"):
        for kind in options.kinds:
            with common.fresh_store() as store:
                made = made_runs.make_run(store, RUN, Noisy(options.steps, SIZE_METRICS, kind), slow=blocks == "slow")
                found = made_runs.compact(store, RUN)
                after = made_runs.directory_bytes(made["directory"])
            results.append({
                "blocks": blocks, "kind": kind, "records": options.steps, **found,
                "records_per_cpu_second": round(options.steps / found["cpu_seconds"]) if after < made["bytes"] else None,
                "megabytes_before": round(made["bytes"] / 1e6, 1), "megabytes_after": round(after / 1e6, 1),
            })  # fmt: skip
            common.progress(results[-1])
    return results


def measure_ingest(options: argparse.Namespace) -> list[Results]:
    """Committed records until `written`, with nothing rewritten meanwhile and with the daemon's own worker rewriting."""
    arguments = argparse.Namespace(records=options.ingest_records, batch_bytes=512 * 1024)
    results = []
    for _ in range(options.ingest_repeat):
        for beside in (nothing_rewritten, worker_rewriting):
            busy = beside is worker_rewriting
            waiting = Noisy(max(3 * options.ingest_records, WAITING_STEPS_MIN) if busy else 1, SIZE_METRICS)
            found = ingest.measure(
                arguments, "wire", "committed", 1,
                prepare=lambda store, waiting=waiting: made_runs.make_run(store, "waiting", waiting), beside=beside,
            )  # fmt: skip
            results.append({"compaction": "meanwhile" if busy else "none", **found})
            common.progress(results[-1])
    return results


@contextlib.contextmanager
def nothing_rewritten(store: str, pid: int) -> Iterator[Results]:
    """Has the right to rewrite, of which each store has one, so that no worker can do anything."""
    from daemon.store.replacing import hold

    deadline = time.monotonic() + 60
    while (lock := hold(store)) is None:
        if time.monotonic() > deadline:
            raise SystemExit("a worker keeps the right to rewrite")
        time.sleep(0.05)
    try:
        yield {"worker_cpu_seconds": 0.0}
    finally:
        lock.release()


@contextlib.contextmanager
def worker_rewriting(store: str, pid: int) -> Iterator[Results]:
    """Waits until the daemon's worker is at the run that was there when the daemon started."""
    with common.watched_workers(pid) as workers:
        deadline = time.monotonic() + 20
        while workers["cpu_seconds"] < 0.3 and time.monotonic() < deadline:
            time.sleep(0.05)
        found: Results = {}
        before = workers["cpu_seconds"]
        yield found
        found["worker_cpu_seconds"] = round(workers["cpu_seconds"] - before, 2)


# ---- output


def table_size(results: list[Results]) -> Table:
    """A line for each tool."""
    found = {(r["tool"], r["kind"]): r for r in results}
    rows: list[list[object]] = []
    for tool in dict.fromkeys(r["tool"] for r in results):
        sizes = [found.get((tool, kind), {}).get("bytes_per_step") for kind in made_runs.KINDS]
        asked = SIZE_BUDGET if tool == "stepd" else {}
        pairs = [number for kind, size in zip(made_runs.KINDS, sizes) for number in (size, asked.get(kind))]
        rows.append([tool, *pairs, next(r["steps"] for r in results if r["tool"] == tool)])
    missing = dict.fromkeys(f"{r['tool']}: {r['missing']}" for r in results if "missing" in r)
    columns = ["bytes a step", "float32-valued", "asked", "float64", "asked", "steps"]
    return Table(
        f"{SIZE_METRICS} noisy metrics with step and time, the run's whole directory", columns, rows, [*missing]
    )


ASKED_MS = {
    "stepd: open the store and the run, series()": 20,
    "stepd: to_pandas()": 500,
    "open, with name, state and last step": 20,
    "stepd runs": 300,
}


def table_read(results: list[Results]) -> Table:
    """One metric, whole runs; rows first, then columns."""
    rows = [
        [f"{r['way']}" + (", before compaction" if r["state"] == "rows" else ""), r["ms"], r["worst_ms"], r["cpu_ms"],
         ASKED_MS.get(r["way"]) if r["state"] == "columns" else None]
        for r in results
    ]  # fmt: skip
    return Table(
        "one metric of ten, and all ten, files in the page cache; in turns",
        ["way", "ms", "worst", "CPU ms", "asked"],
        rows,
    )


def table_long(results: list[Results]) -> Table:
    """A long run."""
    rows = [[r["way"], r["ms"], r["worst_ms"], r["cpu_ms"], ASKED_MS.get(r["way"])] for r in results]
    steps = results[0]["steps"] if results else 0
    return Table("looks at a long run", [f"a run of {steps:,} steps", "ms", "worst", "CPU ms", "asked"], rows)


def table_runs(results: list[Results]) -> Table:
    """Lists of runs."""
    rows = [[r["what"], r["runs"], r["ms"], r["worst_ms"], ASKED_MS.get(r["what"])] for r in results]
    return Table("the list of runs, a fresh process each time", ["command", "runs", "ms", "worst", "asked"], rows)


def table_compaction(results: list[Results]) -> Table:
    """How fast rows become columns."""
    rows = [
        [f"{r['kind']}, blocks of a {r['blocks']} loop", r["records"], r["records_per_cpu_second"], r["cpu_seconds"],
         r["seconds"], r["rss_max_mb"], r["megabytes_before"], r["megabytes_after"]]
        for r in results
    ]  # fmt: skip
    columns = ["run", "records", "records/CPU s", "CPU s", "seconds", "RSS max, MB", "MB before", "MB after"]
    return Table("rows to columns", columns, rows, ["asked: 400,000 records a second"])


def table_ingest(results: list[Results]) -> Table:
    """Ingest with and without company."""
    names = (
        "records_per_second",
        "records_per_daemon_cpu_second",
        "daemon_cpu_seconds",
        "worker_cpu_seconds",
        "rows_lost",
    )
    rows = [[r["compaction"], *(r[name] for name in names)] for r in results]
    columns = ["compaction", "records/s", "records/daemon CPU s", "daemon CPU s", "worker CPU s meanwhile", "rows lost"]
    return Table(
        "committed records until written, one client", columns, rows, ["asked: 1,500,000 a second, while it runs"]
    )


PARTS: dict[str, tuple[common.Measure, common.ToTable]] = {
    "size": (measure_size, table_size),
    "read": (measure_read, table_read),
    "long": (measure_long, table_long),
    "runs": (measure_runs, table_runs),
    "compaction": (measure_compaction, table_compaction),
    "ingest": (measure_ingest, table_ingest),
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = common.parser_of(__doc__, PARTS)
    parser.add_argument("--kinds", nargs="+", choices=made_runs.KINDS, default=list(made_runs.KINDS))
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the runs whose size and reading is measured")
    parser.add_argument("--long-steps", type=int, default=10_000_000)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="tools beside which sizes stand")
    parser.add_argument("--peer-steps", type=int, default=20_000, help="bytes a step do not depend on it")
    parser.add_argument("--runs", type=int, default=2000, help="in the list of runs")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--ingest-records", type=int, default=3_000_000)
    parser.add_argument("--ingest-repeat", type=int, default=3)
    return common.parsed(
        parser, steps=100_000, long_steps=1_000_000, peer_steps=2000, runs=100, repeat=3, ingest_records=300_000, ingest_repeat=1
    )  # fmt: skip


CASES = {
    "peer": case_peer,
    "read": case_read,
    "whole": case_whole,
    "long": case_long,
    "compact": made_runs.case_compact,
    "wire": ingest.case_wire,
}


if __name__ == "__main__":
    common.run_program(PARTS, CASES, parse)
