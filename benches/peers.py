"""stepd beside its peers, in one run: `python benches/peers.py [--json FILE] [--figure FILE.png] [--quick] [--only PART …]`.

stepd, wandb (offline), SummaryWriter, JSON lines and logging.FileHandler, each case in a process and a directory of its
own: how long a call holds the loop, CPU of all threads and of the processes that help, import, init and finish, bytes on
disk, reading one metric back, the slowdown of a real torch loop, and what a SIGKILL of the trainer loses. Parquet stands
beside size and reading as a yardstick. benches/README.md says how to read it.

What was measured is in the JSON; `--from FILE` makes the tables, the figure and the text of the README from it again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import common
import overhead
import peer_report
import peer_tools
from common import Results
from media_values import Missing
from overhead import Log
from peer_tools import TOOLS, Tool, by_name

METRICS = 5
READ_METRICS = 10
KINDS = ("float32", "float64")
PACES = ("tight", "sleep")
# A step of the written runs takes 50 to 150 µs, evenly spread: the times that stepd compresses are then as irregular as a
# loop's are, which has them vary by tens of microseconds. Flat out they would cost next to nothing.
STEP_NS = (50_000, 150_000)
COUNTER = "counter"
READ_SECONDS_MAX = 10.0
SETTLE_SECONDS_MAX = 30.0
DRAIN_SECONDS_MAX = 20.0


# ---- in the case's process


def open_tool(arguments: Results) -> tuple[Log, overhead.Finish]:
    """Imports and opens the case's tool."""
    tool, directory = by_name(arguments["tool"]), arguments["directory"]
    tool.load(directory)
    return tool.open(directory)


def case_available(arguments: Results) -> Results:
    """The version of the tool that is installed, or why there is none."""
    try:
        return {"version": by_name(arguments["tool"]).load(arguments["directory"])}
    except Missing as missing:
        return {"missing": str(missing)}


def case_latency(arguments: Results) -> Results:
    """Latencies and CPU; at its end it waits, so that the processes that help can be looked at while they live."""
    result = overhead.time_calls(*open_tool(arguments), arguments)
    common.tell_and_wait("finished")
    return result


def case_init(arguments: Results) -> Results:
    """The tool's import, its opening, the first call and the end, in a fresh process."""
    clock, tool = time.perf_counter, by_name(arguments["tool"])
    names = common.metric_names(METRICS)
    times = [clock()]
    tool.load(arguments["directory"])
    times.append(clock())
    log, finish = tool.open(arguments["directory"])
    times.append(clock())
    log(dict.fromkeys(names, 0.5))
    times.append(clock())
    finish()
    times.append(clock())
    words = ("import_ms", "init_ms", "first_log_ms", "finish_ms")
    return {word: (after - before) * 1e3 for word, before, after in zip(words, times, times[1:])}


def case_write(arguments: Results) -> Results:
    """Logs a run of noise: `numpy.random.default_rng(1).normal`, rounded to float32 where that is asked for."""
    import numpy

    steps, names = arguments["steps"], common.metric_names(arguments["metrics"])
    table: Any = overhead.noise(len(names), steps)
    if arguments["kind"] == "float32":
        table = numpy.array(table, "f4").tolist()
    log, finish = open_tool(arguments)
    pauses = numpy.random.default_rng(2).integers(*STEP_NS, steps).tolist()
    clock, paced = time.perf_counter_ns, arguments["paced"]
    due = clock()
    for row, pause in zip(table, pauses):
        if paced:
            due = max(due + pause, clock())
            overhead.spin_until(due)
        log(dict(zip(names, row)))
    start = clock()
    finish()
    return {"finish_ms": round((clock() - start) / 1e6, 1)}


def case_read(arguments: Results) -> Results:
    """Opens the run and reads one metric, some times over; `first_ms` holds what reading imports."""
    tool, directory = by_name(arguments["tool"]), arguments["directory"]
    import numpy  # noqa: F401 - all of them give arrays

    tool.load(directory)
    key, samples = common.metric_names(arguments["metrics"])[-1], []
    deadline = time.monotonic() + READ_SECONDS_MAX
    while len(samples) < arguments["repeat"] and (not samples or time.monotonic() < deadline):
        start = time.perf_counter()
        try:
            steps, values = tool.read(directory, key)
        except Missing as missing:
            return {"missing": str(missing)}
        samples.append((time.perf_counter() - start) * 1e3)
    assert len(steps) == len(values)
    result = {"points": len(steps), "first_ms": samples[0], "reads": len(samples)}
    return {**result, "ms": common.median(samples[1:] or samples)}


def case_lost(arguments: Results) -> Results:
    """How many of the first `calls` steps are not there. What is still on its way has `seconds` to arrive."""
    tool, directory, calls = by_name(arguments["tool"]), arguments["directory"], arguments["calls"]
    key = common.metric_names(METRICS)[-1]
    deadline = time.monotonic() + arguments["seconds"]
    while True:
        try:
            found = {int(step) for step in tool.read(directory, key)[0]}
        except Missing as missing:
            return {"missing": str(missing), "lost": None}
        except (OSError, LookupError):  # nothing of it is there yet
            found = set()
        lost = calls - len(found & set(range(calls)))
        if not lost or time.monotonic() > deadline:
            return {"lost": lost}
        time.sleep(0.1)


def case_training(arguments: Results) -> Results:
    """A small network on the CPU, its loss, learning rate and gradient norm logged each step, beside the same loop without."""
    try:
        import torch
    except ImportError as error:
        return {"missing": f"not installed: {error}"}
    torch.manual_seed(3)
    torch.set_num_threads(1)
    layers = [
        torch.nn.Linear(64, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 1),
    ]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9999)
    inputs, targets = torch.randn(64, 64), torch.randn(64, 1)

    def train() -> dict[str, float]:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return {"train/loss": loss.item(), "train/lr": schedule.get_last_lr()[0], "train/grad_norm": norm.item()}

    log, finish = open_tool(arguments)
    result = overhead.in_turns(lambda _: train(), lambda _: log(train()), arguments["iterations"], arguments["blocks"])
    finish()
    return {**result, "torch": torch.__version__}


def case_victim(arguments: Results) -> Results:
    """One call per millisecond until it is killed. How many have returned stands in a shared mapping, which survives that."""
    log, _ = open_tool(arguments)
    names, table = common.metric_names(METRICS), overhead.noise(METRICS)
    with open(os.path.join(arguments["directory"], COUNTER), "w+b") as file:
        file.write(bytes(8))
        file.flush()
        counter = mmap.mmap(file.fileno(), 8)
    common.tell_and_wait("ready")
    due = time.perf_counter_ns()
    for index in range(10_000_000):
        due += overhead.PERIOD_NS
        overhead.sleep_until(due)
        log(dict(zip(names, table[index & (overhead.TABLE_ROWS - 1)])))
        struct.pack_into("<Q", counter, 0, index + 1)
    return {}


CASES = {
    "available": case_available, "latency": case_latency, "init": case_init, "write": case_write, "read": case_read,
    "lost": case_lost, "training": case_training, "victim": case_victim,
}  # fmt: skip


# ---- in the parent: a place for a case


class Place(NamedTuple):
    """Where a case runs: its arguments' common part, its environment, and stepd's daemon (0: there is none)."""

    arguments: Results
    env: dict[str, str]
    store: str
    daemon: int

    def run(self, name: str, **arguments: Any) -> Results:
        """A case with which there is nothing to talk about."""
        return common.run_case(name, {**self.arguments, **arguments}, self.env)

    def start(self, name: str, **arguments: Any) -> common.Case:
        """A case to talk to; it is ready."""
        case = common.Case(name, {**self.arguments, **arguments}, self.env)
        case.wait_for("ready")
        return case


@contextlib.contextmanager
def place(name: str, *, daemon: bool = True) -> Iterator[Place]:
    """A directory of its own, with a daemon that is up when the tool is stepd."""
    tool: Tool = by_name(name)
    with common.fresh_store() as store:
        is_ours = name == "stepd" and daemon
        # Started by us, so that the trainer's own numbers do not hold the daemon's start; `init` tells that one apart.
        pid = common.start_daemon(store) if is_ours else 0
        more = {**tool.environment, **({"STEPD_AUTOSTART": "0"} if is_ours else {})}
        directory = os.path.dirname(store)
        # Temporary files, too: W&B's and torch's stay behind when they are killed.
        env = common.environment(store, TMPDIR=directory, **more)
        yield Place({"tool": name, "directory": directory}, env, store, pid)


def settle(pid: int, pause: float) -> None:
    """Waits until a daemon and its workers do nothing for `pause` seconds: what they do for a run is part of what it costs."""
    deadline, used = time.monotonic() + SETTLE_SECONDS_MAX, -1.0
    while pid and time.monotonic() < deadline:
        before, used = used, common.tree_cpu_seconds(pid)
        if used - before < 0.02:  # the clock of /proc has ticks of 10 ms; an idle daemon may use one
            return
        time.sleep(pause)


# ---- in the parent: the parts


def measure_latency(options: Options) -> list[Results]:
    """Flat out and at one call per millisecond; the loop that calls nothing comes first."""
    results = []
    for pace in options.paces:
        calls = options.calls if pace == "tight" else options.paced_calls
        base = latency(options, peer_tools.NOTHING.title, pace, calls)["loop_cpu_us_per_call"]
        for name in options.taking_part("latency"):
            result = latency(options, name, pace, calls)
            result["cpu_us_per_call"] = round(result["loop_cpu_us_per_call"] - base, 3)
            results.append(result)
            common.progress(result)
    return results


def latency(options: Options, name: str, pace: str, calls: int) -> Results:
    """One case, and what its helpers used from the beginning of its loop until they had nothing left to do."""
    what = {"tool": name, "pace": pace, "calls": calls, "metrics": METRICS}
    with place(name) as here:
        case = here.start("latency", **what)

        def helpers() -> float:
            children = common.tree_cpu_seconds(case.process.pid, itself=False)
            return children + (common.tree_cpu_seconds(here.daemon) if here.daemon else 0.0)

        before = helpers()
        case.say("go")
        case.wait_for("measured")
        case.say("go")
        case.wait_for("finished")
        settle(here.daemon, options.settle)
        used = helpers() - before
        case.say("go")
        result = case.result()
        lost: Results = {}
        if name != peer_tools.NOTHING.title:
            lost = here.run("lost", calls=calls + overhead.WARM_UP_CALLS, seconds=0)
    finish = result["finish_cpu_ms"] * 1e3 / calls
    more = {"finish_cpu_us_per_call": round(finish, 3), "helpers_us_per_call": round(used / calls * 1e6, 2)}
    return {**what, **result, **more, **lost}


def measure_init(options: Options) -> list[Results]:
    """Medians and the worst; of stepd the first has no daemon, and starts it."""
    results = []
    for name in options.taking_part("init"):
        with place(name, daemon=False) as here:
            rows = [here.run("init") for _ in range(options.repeat)]
        results.append({"tool": name, **overhead.spread(rows)})
        common.progress(results[-1])
    return results


def measure_size(options: Options) -> list[Results]:
    """Bytes of everything the tool left, for each step: its directory before and behind the run."""
    results = []
    for kind in options.kinds:
        for name in options.taking_part("size"):
            with written(options, name, kind, METRICS, paced=True) as (here, size):
                lost = here.run("lost", calls=options.steps, seconds=0)["lost"]
            result = {"tool": name, "kind": kind, "steps": options.steps, "bytes_per_step": size / options.steps}
            results.append({**result, "lost": lost})
            common.progress(results[-1])
    return results


@contextlib.contextmanager
def written(options: Options, name: str, kind: str, metrics: int, *, paced: bool) -> Iterator[tuple[Place, int]]:
    """A run that has ended, and its bytes. Of stepd compacted: by the worker as far as it came, then by `stepd compact`."""
    with place(name) as here:
        before = common.tree_bytes(here.arguments["directory"])
        here.run("write", kind=kind, metrics=metrics, steps=options.steps, paced=paced)
        if here.daemon:
            settle(here.daemon, options.settle)
            common.end_daemon(here.store)
            done = common.command(here.store, "compact")
            if done.returncode:
                raise SystemExit(f"stepd compact failed: {done.stderr or done.stdout}")
        yield here, common.tree_bytes(here.arguments["directory"]) - before


def measure_reading(options: Options) -> list[Results]:
    """One metric of ten."""
    results = []
    for name in options.taking_part("reading"):
        result: Results = {"tool": name, "metrics": READ_METRICS, "steps": options.steps}
        if TOOLS[name].reads:
            with written(options, name, "float64", READ_METRICS, paced=False) as (here, _):
                result |= here.run("read", metrics=READ_METRICS, repeat=options.reads)
        results.append(result)
        common.progress(result)
    return results


def measure_training(options: Options) -> list[Results]:
    """With and without logging, in turns."""
    results = []
    for name in options.taking_part("training"):
        with place(name) as here:
            result = here.run("training", iterations=options.iterations, blocks=options.blocks)
        results.append({"tool": name, **result})
        common.progress(results[-1])
    return results


def measure_kill(options: Options) -> list[Results]:
    """Each tool is killed at the same random moments."""
    results = []
    for name in options.taking_part("kill"):
        chance = random.Random(options.seed)
        for _ in range(options.kills):
            results.append({"tool": name, **killed(name, chance.uniform(*options.kill_seconds))})
            common.progress(results[-1])
    return results


def killed(name: str, seconds: float) -> Results:
    """One trainer that is killed, and how many of its calls that had returned are not there when all helpers are done."""
    import psutil

    with place(name) as here:
        case = here.start("victim")
        helpers = psutil.Process(case.process.pid).children(recursive=True)
        case.say("go")
        time.sleep(seconds)
        case.kill()
        _, left = psutil.wait_procs(helpers, timeout=DRAIN_SECONDS_MAX)
        with open(os.path.join(here.arguments["directory"], COUNTER), "rb") as file:
            (calls,) = struct.unpack("<Q", file.read(8))
        result = here.run("lost", calls=calls, seconds=DRAIN_SECONDS_MAX if here.daemon else 0.0)
    return {"seconds": round(seconds, 3), "calls": calls, **result, "helpers_left": len(left)}


MEASURES = {
    "latency": measure_latency, "init": measure_init, "size": measure_size, "reading": measure_reading,
    "training": measure_training, "kill": measure_kill,
}  # fmt: skip


# ---- the program


class Options(argparse.Namespace):
    """The command line, and who is there."""

    available: dict[str, Results]

    def taking_part(self, part: str) -> list[str]:
        """The tools that are installed and have something to do in a part."""
        return [name for name in self.tools if part in TOOLS[name].parts and "missing" not in self.available[name]]


def parse() -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--calls", type=int, default=200_000, help="calls of a tight loop")
    parser.add_argument("--paced-calls", type=int, default=10_000, help="calls at one per millisecond")
    parser.add_argument("--paces", nargs="+", choices=PACES, default=list(PACES))
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="values of the runs that are weighed"
    )
    parser.add_argument("--repeat", type=int, default=5, help="processes for import, init and finish")
    parser.add_argument("--steps", type=int, default=100_000, help="of the runs that are weighed and read")
    parser.add_argument("--reads", type=int, default=15)
    parser.add_argument("--iterations", type=int, default=1000, help="training steps of a block")
    parser.add_argument("--blocks", type=int, default=8, help="pairs of blocks")
    parser.add_argument("--kills", type=int, default=5, help="of each tool")
    parser.add_argument("--kill-seconds", type=float, nargs=2, default=(0.5, 3.0), help="they come between these")
    parser.add_argument("--seed", type=int, default=5, help="of the moments of the kills")
    parser.add_argument("--settle", type=float, default=1.0, help="so many seconds without work: a daemon is done")
    parser.add_argument("--quick", action="store_true", help="a few of everything: to see that it runs")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--from", dest="source", metavar="FILE", help="measure nothing, take this JSON")
    parser.add_argument("--figure", metavar="FILE.png")
    parser.add_argument("--readme", metavar="FILE", nargs="+", default=[], help="fill in the places marked for it")
    options = parser.parse_args(namespace=Options())
    if options.quick:
        options.calls, options.paced_calls, options.steps = 5000, 200, 3000
        options.repeat = options.blocks = options.kills = 2
        options.reads, options.iterations, options.kill_seconds = 3, 100, (0.1, 0.5)
    return options


def measure(options: Options) -> Results:
    """All parts; what took part and in which version stands beside them."""
    start = time.monotonic()
    facts = common.machine()
    common.print_machine(facts)
    options.available = {}
    for name in options.tools:
        with place(name, daemon=False) as here:
            options.available[name] = {
                "title": TOOLS[name].title,
                "install": TOOLS[name].install,
                **here.run("available"),
            }
    results: Results = {"machine": facts, "tools": options.available, "quick": options.quick, "seed": options.seed}
    for name in options.only:
        began = time.monotonic()
        results[name] = MEASURES[name](options)
        if options.json:  # what was measured is there when a later part fails
            common.write_json(options.json, results)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    results["minutes"] = round((time.monotonic() - start) / 60, 1)
    return results


def main() -> None:
    """Measures, or takes what was measured; prints it, draws it, writes it."""
    if common.serve_case(CASES):
        return
    options = parse()
    if options.source:
        with open(options.source, encoding="utf-8") as file:
            results = json.load(file)
    else:
        results = measure(options)
        if options.json:
            common.write_json(options.json, results)
    peer_report.print_all(results)
    if options.figure:
        peer_report.draw(results, options.figure)
    for path in options.readme:
        peer_report.fill(path, results)


if __name__ == "__main__":
    main()
