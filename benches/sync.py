"""How fast runs are carried: `python benches/sync.py [--json FILE] [--markdown FILE] [--quick]`.

A finished run of 10⁶ steps of ten noisy metrics to each local target, by the real command `stepd sync` with its worker process, beside
tools that write the same kind of file from memory in the same turns; a thousand finished runs that nobody has changed since; and how long
a killed sync takes to go on. benches/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import common
import made_runs
import peer_tools
from common import Results, Table
from made_runs import Noisy

RUN, EMPTY = "run", "empty"
METRICS = 10
TARGETS = ("parquet", "tensorboard", "jsonl", "stepd")
ASKED_POINTS = {"parquet": 10_000_000, "tensorboard": 200_000}
ASKED_AGAIN_SECONDS = 2.0
PEERS = ("SummaryWriter", "json", "arrow")
CASE_SECONDS_MAX = 600.0


# ---- in the case's process


def case_peer(arguments: Results) -> Results:
    """Writes the noisy metrics with another tool, from memory, and says how long the loop and the end took."""
    tool, directory = peer_tools.by_name(arguments["tool"]), arguments["directory"]
    noisy = Noisy(arguments["steps"], METRICS)
    names = common.metric_names(METRICS)
    rows = [dict(zip(names, row)) for _, _, values in noisy.chunks() for row in values.tolist()]
    try:
        version = tool.load(directory)
    except peer_tools.Missing as missing:
        return {"missing": str(missing)}
    start = time.perf_counter()
    log, finish = tool.open(directory)
    for row in rows:
        log(row)
    finish()
    return {"version": version, "seconds": time.perf_counter() - start}


def case_arrow(arguments: Results) -> Results:
    """Writes the noisy metrics as Parquet from arrays in memory: what nobody can be faster than who uses pyarrow."""
    import numpy

    noisy, names = Noisy(arguments["steps"], METRICS), common.metric_names(METRICS)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        return {"missing": f"not installed: {error}"}
    parts = list(noisy.chunks())
    values = numpy.concatenate([part for _, _, part in parts])
    arrays = {"step": numpy.arange(noisy.steps), "time": numpy.concatenate([part for _, part, _ in parts]) // 1000}
    arrays |= {name: numpy.ascontiguousarray(values[:, index]) for index, name in enumerate(names)}
    start = time.perf_counter()
    path = os.path.join(arguments["directory"], "peer.parquet")
    pyarrow.parquet.write_table(pyarrow.table(arrays), path, compression="zstd")
    return {"version": pyarrow.__version__, "seconds": time.perf_counter() - start}


# ---- in the parent


def measure_carry(options: argparse.Namespace) -> list[Results]:
    """One long run to each target, whole command and by its own word, and the peers in the same turns."""
    results: list[Results] = []
    for state in ("rows", "columns"):
        with common.fresh_store() as store:
            made_runs.make_run(store, RUN, Noisy(options.steps, METRICS))
            if state == "columns":
                made_runs.compact(store, RUN)
            made_runs.make_run(store, EMPTY, Noisy(1, METRICS))
            for _ in range(options.repeat):
                for target in options.targets:
                    start = carried(store, target, state, 1, EMPTY)["seconds"]
                    results.append({**carried(store, target, state, options.steps), "start_seconds": start})
                    common.progress(results[-1])
                if state == "columns":
                    results += [peer(options, tool) for tool in options.peers]
                    common.progress(results[-1])
    return results


def carried(store: str, target: str, state: str, steps: int, run: str = RUN) -> Results:
    """A whole `stepd sync` into an empty directory."""
    directory = os.path.join(os.path.dirname(store), target)
    found = made_runs.command_usage(store, "sync", run, "--to", f"{target}:{directory}")
    size = common.tree_bytes(directory)
    shutil.rmtree(directory)
    return {
        "what": f"stepd sync --to {target}:",
        "target": target,
        "state": state,
        "points": steps * METRICS,
        **found,
        "bytes": size,
    }


def peer(options: argparse.Namespace, tool: str) -> Results:
    """The same metrics by another tool; those that take a call for each value get fewer steps."""
    is_arrow = tool == "arrow"
    title = "pyarrow write_table, zstd" if is_arrow else peer_tools.by_name(tool).title
    steps = options.steps if is_arrow else options.peer_steps
    with common.fresh_store() as store:
        directory = os.path.dirname(store)
        arguments = {"tool": tool, "steps": steps, "directory": directory}
        env = common.environment(store, **peer_tools.by_name(tool).environment)
        found = common.run_case("arrow" if is_arrow else "peer", arguments, env, CASE_SECONDS_MAX)
        size = common.tree_bytes(directory)
    return {
        "what": f"{title}, from memory", "target": None, "state": "", "points": steps * METRICS, **found, "bytes": size
    }  # fmt: skip


def measure_again(options: argparse.Namespace) -> list[Results]:
    """A thousand finished runs: the first sync, and again when nothing has changed."""
    results = []
    with common.fresh_store() as store:
        for number in range(options.runs):
            made_runs.make_run(store, f"run-{number:04d}", Noisy(100, METRICS))
        made_runs.compact(store)
        time.sleep(2.1)  # what was changed just before is looked at again
        for target in options.targets:
            directory = os.path.join(os.path.dirname(store), target)
            line = ("sync", "--all", "--to", f"{target}:{directory}")
            first = made_runs.command_usage(store, *line)
            again = [made_runs.timed_command(store, *line) / 1e3 for _ in range(options.repeat)]
            results.append(
                {
                    "target": target,
                    "runs": options.runs,
                    "first": first["seconds"],
                    "again": common.median(again),
                    "worst": max(again),
                }
            )
            common.progress(results[-1])
            shutil.rmtree(directory)
    return results


def measure_killed(options: argparse.Namespace) -> list[Results]:
    """SIGKILL of the command and its workers at random moments, until one sync ends; compared with one that nobody killed."""
    results = []
    draw = random.Random(0)
    with common.fresh_store() as store:
        made_runs.make_run(store, RUN, Noisy(options.killed_steps, METRICS))
        made_runs.compact(store, RUN)
        for target in options.targets:
            parent = os.path.dirname(store)
            calm, killed = os.path.join(parent, "calm"), os.path.join(parent, "killed")
            seconds = made_runs.command_usage(store, "sync", RUN, "--to", f"{target}:{calm}")["seconds"]
            kills = 0
            while kills < options.kills:
                kills += killed_once(store, f"{target}:{killed}", draw.uniform(0.2, 1.0) * seconds)
                if draw.random() < 0.1:  # what has arrived would leave nothing to be killed
                    shutil.rmtree(killed, ignore_errors=True)
            made_runs.command_usage(store, "sync", RUN, "--to", f"{target}:{killed}")
            equal = contents(target, calm) == contents(target, killed)
            results.append({"target": target, "kills": kills, "equal": "yes" if equal else "NO", "seconds": seconds})
            common.progress(results[-1])
            shutil.rmtree(calm)
            shutil.rmtree(killed)
    return results


def killed_once(store: str, url: str, after: float) -> bool:
    """Starts a sync, kills all its processes after some seconds; whether it was still there."""
    line = [sys.executable, "-m", "stepd", "sync", RUN, "--to", url]
    process = subprocess.Popen(
        line,
        env=common.environment(store),
        cwd=common.ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def contents(target: str, directory: str) -> Any:
    """What a target holds, in a form that can be compared: its files; of Parquet its rows, of a store its series."""
    if target == "stepd":
        import sdk

        run = sdk.open_store(directory).run(RUN)
        return {key: (run.series(key).step.tolist(), run.series(key).value.tolist()) for key in sorted(run.keys())}
    if target == "parquet":
        import pyarrow.dataset

        rows = pyarrow.dataset.dataset(os.path.join(directory, "rows"), partitioning="hive").to_table()
        return rows.sort_by("_sequence").to_pydict()
    found = {}
    for path, _, names in os.walk(directory):
        for name in names if ".stepd-sync" not in path else ():
            with open(os.path.join(path, name), "rb") as file:
                found[os.path.relpath(os.path.join(path, name), directory)] = file.read()
    return found


# ---- output


def table_carry(results: list[Results]) -> Table:
    """Points a second, the medians of the turns."""
    rows: list[list[object]] = []
    for name in dict.fromkeys((r["what"], r["state"]) for r in results):
        same = [r for r in results if (r["what"], r["state"]) == name and "seconds" in r]
        if not same:
            continue
        middle = sorted(same, key=lambda r: r["seconds"])[(len(same) - 1) // 2]
        asked = ASKED_POINTS.get(middle["target"] or "")
        title = f"{name[0]} (of {name[1]})" if name[1] else name[0]
        rows.append(
            [title, round(middle["points"] / middle["seconds"]), _without_start(middle), asked, middle["seconds"],
             middle["points"], middle.get("rss_max_mb"),
             round(middle["bytes"] / middle["points"], 2)]
        )  # fmt: skip
    missing = dict.fromkeys(f"{r['what']}: {r['missing']}" for r in results if "missing" in r)
    columns = ["way", "points/s", "less start", "asked", "seconds", "points", "RSS max, MB", "bytes/point"]
    return Table("a finished run of ten noisy metrics, the whole command; peers from memory", columns, rows, [*missing])


def _without_start(result: Results) -> int | None:
    """Points a second in the time that the command takes beyond that for a run of one step."""
    if "start_seconds" not in result:
        return None
    return round(result["points"] / max(result["seconds"] - result["start_seconds"], 0.001))


def table_again(results: list[Results]) -> Table:
    """Runs that nobody has changed."""
    rows = [[f"{r['target']}:", r["runs"], r["first"], r["again"], r["worst"], ASKED_AGAIN_SECONDS] for r in results]
    return Table(
        "finished runs, synced and synced again", ["target", "runs", "first, s", "again, s", "worst", "asked"], rows
    )


def table_killed(results: list[Results]) -> Table:
    """Whether a killed sync ends where an undisturbed one does."""
    rows = [[f"{r['target']}:", r["kills"], r["equal"], r["seconds"]] for r in results]
    return Table(
        "killed at random, then synced: as undisturbed (files byte for byte, Parquet row by row, stores value by value)",
        ["target", "kills", "equal", "undisturbed, s"],
        rows,
    )


PARTS: dict[str, tuple[common.Measure, common.ToTable]] = {
    "carry": (measure_carry, table_carry),
    "again": (measure_again, table_again),
    "killed": (measure_killed, table_killed),
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = common.parser_of(__doc__, PARTS)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--peer-steps", type=int, default=20_000, help="points a second do not depend on it")
    parser.add_argument("--runs", type=int, default=1000, help="that are synced again")
    parser.add_argument("--kills", type=int, default=50, help="for each target")
    parser.add_argument("--killed-steps", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=3)
    return common.parsed(
        parser, steps=20_000, peer_steps=500, runs=20, kills=2, killed_steps=20_000, repeat=1
    )  # fmt: skip


CASES: dict[str, Callable[[Results], Any]] = {
    "peer": case_peer,
    "arrow": case_arrow,
    "compact": made_runs.case_compact,
}


if __name__ == "__main__":
    common.run_program(PARTS, CASES, parse)
