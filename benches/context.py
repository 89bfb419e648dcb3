"""What the context of a run costs the training: `python benches/context.py [--json FILE] [--quick] [--only PART …]`.

Slowdown of a loop of 1 ms steps by each feature, and by all together, beside the same loop with all of them off; `init` with
and without them; the cost of a printed line, of a log record, of a step of `track`; `watch` on a model of 10 million parameters,
wandb's beside it; CPU and memory of the observer. benches/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import common
import media_values
import overhead
from common import Results, Table, progress

STEP_SECONDS = 0.001
# What a step prints and logs besides: ten lines and ten records in a second are what a talkative script does.
EVERY = 100
LINE = "epoch 3 step 123456 train/loss 0.123456 lr 3.000e-04 12.3 it/s"
OFF = {"STEPD_CONSOLE": "off", "STEPD_SYSTEM_METRICS": "0", "STEPD_SAVE_CODE": "0", "STEPD_DISABLE_GIT": "1"}
# Feature -> what it takes away from OFF.
FEATURES = {
    "nothing": (),
    "console": ("STEPD_CONSOLE",),
    "system metrics": ("STEPD_SYSTEM_METRICS",),
    "code state": ("STEPD_SAVE_CODE", "STEPD_DISABLE_GIT"),
    "log records": (),
    "all together": tuple(OFF),
}
WITH_RECORDS = ("log records", "all together")
WATCHERS = ("stepd", "wandb")


# ---- in the case's process


def environment_of(store: str, feature: str) -> dict[str, str]:
    """The settings under which a feature is on."""
    left = {name: value for name, value in OFF.items() if name not in FEATURES[feature]}
    if "STEPD_SAVE_CODE" not in left:
        left["STEPD_SAVE_CODE"] = "1"
    return common.environment(store, STEPD_SILENT="1", **left)


@contextlib.contextmanager
def printing_into(path: str) -> Iterator[Any]:
    """stdout as a batch job has it: a file, line by line. The conversation with the parent keeps the real one."""
    real = sys.stdout
    with open(path, "w", encoding="utf-8", buffering=1) as file:
        sys.stdout = file
        try:
            yield real
        finally:
            sys.stdout = real


def wait_for_turn(real: Any) -> None:
    """Tells the parent, over the stdout that it reads, that the next block may begin."""
    real.write("ready\n")
    real.flush()
    if not sys.stdin.readline():
        raise SystemExit("the benchmark went away")


def piece_of_work() -> Callable[[], object]:
    """A product of matrices, then bytecode, as a step of training is both."""
    import numpy

    left = numpy.random.default_rng(2).normal(size=(128, 128))
    out = numpy.empty_like(left)
    python = overhead.work_python()

    def piece() -> None:
        numpy.matmul(left, left, out=out)
        python()

    return piece


def case_pieces(arguments: Results) -> Results:
    """How many pieces of work take about a millisecond here: the same number for all cases."""
    piece = piece_of_work()
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            piece()
        seconds.append((time.perf_counter() - start) / 100)
    return {"pieces": max(round(STEP_SECONDS / common.median(seconds)), 1)}


def case_loop(arguments: Results) -> Results:
    """Blocks of steps whenever the parent says so. A step works, logs five values, and now and then prints and tells."""
    import sdk

    names, table = common.metric_names(5), overhead.noise(5)
    with printing_into(arguments["output"]) as real:
        run = sdk.init(project="bench")
        logger = logging.getLogger("bench")
        logger.propagate = False
        logger.setLevel(logging.INFO)
        if arguments["records"]:
            logger.addHandler(sdk.LogHandler())
        work, log, clock = piece_of_work(), sdk.log, time.perf_counter_ns
        pieces = range(arguments["pieces"])
        steps = 0
        samples = array("q")
        blocks: list[float] = []
        for block in range(arguments["blocks"] + 1):
            wait_for_turn(real)
            begun = clock()
            for _ in range(arguments["steps"]):
                start = clock()
                for _ in pieces:
                    work()
                log(dict(zip(names, table[steps & (overhead.TABLE_ROWS - 1)])))
                steps += 1
                if not steps % EVERY:
                    print(LINE)
                    logger.info("step %d of %s", steps, "many")
                samples.append(clock() - start)
            if block:  # the first one warms up
                blocks.append((clock() - begun) / arguments["steps"] / 1e3)
        wait_for_turn(real)
        run.finish()
    return {"blocks_us": blocks, **common.percentiles_us(samples)}


def case_init(arguments: Results) -> Results:
    """One `init` in a fresh process with the imports of the package paid, and its end."""
    return overhead.case_init(arguments)


def case_line(arguments: Results) -> Results:
    """Lines printed one by one with capture and without, in turns, into a file; records of logging likewise."""
    import sdk

    count = arguments["count"]
    found: dict[str, list[float]] = {"plain": [], "captured": [], "no handler": [], "FileHandler": [], "LogHandler": []}
    clock = time.perf_counter

    def lines() -> float:
        start = clock()
        for _ in range(count):
            print(LINE)
        return (clock() - start) / count * 1e6

    logger = logging.getLogger("bench")
    logger.propagate = False
    logger.setLevel(logging.INFO)

    def records(handler: logging.Handler) -> float:
        logger.addHandler(handler)
        start = clock()
        for number in range(count):
            logger.info("step %d of %s", number, "many")
        seconds = clock() - start
        logger.removeHandler(handler)
        return seconds / count * 1e6

    file_handler = logging.FileHandler(arguments["output"] + ".log")
    with printing_into(arguments["output"]):
        for _ in range(arguments["blocks"]):
            found["plain"].append(lines())
            run = sdk.init(project="bench")
            found["captured"].append(lines())
            found["no handler"].append(records(logging.NullHandler()))
            found["FileHandler"].append(records(file_handler))
            found["LogHandler"].append(records(sdk.LogHandler()))
            run.finish()
            time.sleep(0.2)
    result: Results = {name: round(common.median(values), 2) for name, values in found.items()}
    result["stored"] = sum(1 for _ in sdk.open_store(arguments["store"]).runs()[0].logs())
    result["written"] = 2 * count
    return result


def case_line_wandb(arguments: Results) -> Results:
    """The same lines with wandb's capture."""
    count = arguments["count"]
    seconds = []
    with printing_into(arguments["output"]):
        wandb = media_values.import_wandb(arguments["directory"])  # patches what is stdout then
        for _ in range(arguments["blocks"]):
            run = wandb.init(project="bench", dir=arguments["directory"], mode="offline")
            start = time.perf_counter()
            for _ in range(count):
                print(LINE)
            seconds.append((time.perf_counter() - start) / count * 1e6)
            run.finish()
    return {"captured": round(common.median(seconds), 2)}


def case_track(arguments: Results) -> Results:
    """A loop over numbers, plain and through `track`, in turns."""
    import sdk

    count = arguments["count"]
    plain, tracked = [], []
    for _ in range(arguments["blocks"]):
        start = time.perf_counter()
        for _ in range(count):
            pass
        middle = time.perf_counter()
        for _ in sdk.track(range(count)):
            pass
        plain.append((middle - start) / count * 1e6)
        tracked.append((time.perf_counter() - middle) / count * 1e6)
    return {"plain": round(common.median(plain), 4), "track": round(common.median(tracked), 4)}


def case_watch(arguments: Results) -> Results:
    """Steps of training of a model of about 10 million parameters, a block with `watch` after each without: two processes
    would differ by more (where their memory lies) than what is measured.
    """
    try:
        import torch
    except ImportError:
        raise SystemExit("torch is not installed") from None
    torch.manual_seed(0)
    torch.set_num_threads(1)
    width = 1280
    layers: list[Any] = []
    for _ in range(6):
        layers += [torch.nn.Linear(width, width), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs, labels = torch.randn(32, width), torch.randint(0, 10, (32,))
    run = _open_run(arguments)

    def step(index: int) -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        run.log({"loss": float(loss)})

    def block() -> float:
        start = time.perf_counter()
        for index in range(arguments["steps"]):
            step(index)
        return (time.perf_counter() - start) / arguments["steps"] * 1e6

    block()
    plain, watched = [], []
    for _ in range(arguments["blocks"]):
        plain.append(block())
        run.watch(model, log=arguments["log"], log_freq=100)
        watched.append(block())
        run.unwatch(model)
    run.finish()
    slower = [(b - a) / a * 100 for a, b in zip(plain, watched)]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_us": round(common.median(plain), 1),
        "watched_us": round(common.median(watched), 1),
        "slowdown_percent": round(common.median(slower), 2),
        "slowdown_percent_worst": round(max(slower), 2),
    }


def _open_run(arguments: Results) -> Any:
    if arguments["tool"] == "wandb":
        wandb = media_values.import_wandb(arguments["directory"])
        return wandb.init(project="bench", dir=arguments["directory"], mode="offline")
    import sdk

    return sdk.init(project="bench")


def case_alive(arguments: Results) -> Results:
    """A run that logs now and then until the parent is done."""
    import sdk

    run = sdk.init(project="bench")
    run.log({"loss": 1.0})
    common.tell_and_wait("ready")
    run.finish()
    return {}


# ---- in the parent


def in_turns(cases: dict[str, common.Case], blocks: int) -> dict[str, Results]:
    """Lets the cases work one after the other, so that all see the same machine; what each measured."""
    for case in cases.values():
        case.wait_for("ready")
    for _ in range(blocks + 1):  # the first one warms up
        for case in cases.values():
            case.say("go")
            case.wait_for("ready")
    for case in cases.values():
        case.say("go")
    return {name: case.result() for name, case in cases.items()}


def compared(found: dict[str, Results], base: str) -> list[Results]:
    """Each case's blocks beside those of `base` in the same turn."""
    rows = []
    for name, result in found.items():
        pairs = [(b - a) / a * 100 for a, b in zip(found[base]["blocks_us"], result["blocks_us"])]
        rows.append(
            {
                "feature": name,
                "step_us": round(common.median(result["blocks_us"]), 1),
                "slowdown_percent": round(common.median(pairs), 2),
                "slowdown_percent_worst": round(max(pairs), 2),
                **{share: result[share] for share in common.SHARES if share in result},
            }
        )
    return rows


def measure_loop(options: argparse.Namespace) -> list[Results]:
    """All features beside each other, each with a store and a daemon of its own."""
    pieces = common.run_case("pieces", {}, common.environment(""))["pieces"]
    with contextlib.ExitStack() as stack:
        cases = {}
        for feature in options.features:
            store = stack.enter_context(common.fresh_store())
            common.start_daemon(store)
            arguments = {
                "blocks": options.blocks, "steps": options.steps, "pieces": pieces, "records": feature in WITH_RECORDS,
                "output": os.path.join(os.path.dirname(store), "output.txt"),
            }  # fmt: skip
            cases[feature] = common.Case("loop", arguments, environment_of(store, feature))
        rows = compared(in_turns(cases, options.blocks), options.features[0])
    for row in rows:
        progress(row)
    return rows


def measure_init(options: argparse.Namespace) -> list[Results]:
    """Cold and warm, with everything off and on."""
    rows = []
    for feature in ("nothing", "all together"):
        found: dict[str, list[Results]] = {"cold": [], "warm": []}
        for _ in range(options.repeat):
            with common.fresh_store() as store:
                found["cold"].append(common.run_case("init", {}, environment_of(store, feature)))
        with common.fresh_store() as store:
            common.start_daemon(store)
            for _ in range(options.repeat):
                found["warm"].append(common.run_case("init", {}, environment_of(store, feature)))
        rows += [{"feature": feature, "daemon": state, **overhead.spread(some)} for state, some in found.items()]
        progress(rows[-1])
    return rows


def measure_line(options: argparse.Namespace) -> list[Results]:
    """µs for each printed line and each record."""
    rows = []
    with common.fresh_store() as store:
        common.start_daemon(store)
        directory = os.path.dirname(store)
        arguments = {
            "count": options.lines, "blocks": options.repeat, "store": store, "directory": directory,
            "output": os.path.join(directory, "output.txt"),
        }  # fmt: skip
        mine = common.run_case("line", arguments, environment_of(store, "all together"))
        rows.append({"what": "print, plain", "us": mine["plain"]})
        rows.append({"what": "print, captured", "us": mine["captured"], "above_us": mine["captured"] - mine["plain"]})
        if common.is_installed("wandb"):
            its = common.run_case("line_wandb", arguments, common.environment(store, WANDB_SILENT="true"))
            rows.append({"what": "print, wandb", "us": its["captured"], "above_us": its["captured"] - mine["plain"]})
        none = mine["no handler"]
        handlers = ("no handler", "FileHandler", "LogHandler")
        rows += [{"what": f"record, {name}", "us": mine[name], "above_us": mine[name] - none} for name in handlers]
        rows.append(
            {
                "what": "lines and records of the last run, stored of written",
                "us": f"{mine['stored']} of {mine['written']}",
            }
        )
        track = common.run_case(
            "track", {"count": 10 * options.lines, "blocks": options.repeat}, environment_of(store, "nothing")
        )
        rows.append({"what": "step of track", "us": track["track"], "above_us": track["track"] - track["plain"]})
    return rows


def measure_watch(options: argparse.Namespace) -> list[Results]:
    """`watch(log_freq=100)`, of gradients and of all, and wandb's."""
    if not common.is_installed("torch"):
        return [{"tool": "torch is not installed"}]
    rows = []
    for tool in WATCHERS if common.is_installed("wandb") else WATCHERS[:1]:
        for log in ("gradients", "all"):
            with common.fresh_store() as store:
                directory = os.path.dirname(store)
                arguments = {"tool": tool, "log": log, "blocks": options.blocks, "steps": 100, "directory": directory}
                env = environment_of(store, "nothing") | {"WANDB_SILENT": "true"}
                rows.append({"tool": f"{tool}, {log}", **common.run_case("watch", arguments, env)})
            progress(rows[-1])
    return rows


def measure_observer(options: argparse.Namespace) -> list[Results]:
    """CPU and memory of the observer while runs live that do nothing."""
    rows = []
    for count in (1, 20):
        with common.fresh_store() as store:
            common.start_daemon(store)
            env = environment_of(store, "system metrics")
            cases = [common.Case("alive", {}, env) for _ in range(count)]
            for case in cases:
                case.wait_for("ready")
            time.sleep(5)
            pid = observer_pid(common.daemon_pid(store))
            before, start = common.process_cpu_seconds(pid), time.perf_counter()
            time.sleep(options.idle_seconds)
            used = common.process_cpu_seconds(pid) - before
            share = used / (time.perf_counter() - start) * 100
            rows.append({"runs": count, "cpu_percent": round(share, 2), **common.process_memory(pid)})
            for case in cases:
                case.say("go")
            for case in cases:
                case.result()
        progress(rows[-1])
    return rows


def observer_pid(daemon: int) -> int:
    """The daemon's child that observes."""
    import psutil

    for child in psutil.Process(daemon).children():
        with contextlib.suppress(psutil.Error):
            if any("observer" in part for part in child.cmdline()):
                return int(child.pid)
    raise SystemExit("the daemon has no observer")


def table_of(title: str) -> Callable[[list[Results]], Table]:
    """A table with the columns of its rows."""

    def table(rows: list[Results]) -> Table:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return Table(title, columns, [[row.get(name) for name in columns] for row in rows])

    return table


PARTS = {
    "loop": (measure_loop, table_of("a loop of 1 ms steps, by feature")),
    "init": (measure_init, table_of("init, ms")),
    "line": (measure_line, table_of("a printed line, a log record, a step of track")),
    "watch": (measure_watch, table_of("watch on 10 million parameters, log_freq 100")),
    "observer": (measure_observer, table_of("the observer while nothing happens")),
}


def main() -> None:
    """Measures what was asked for, prints it, and writes it."""
    cases = {
        "pieces": case_pieces, "loop": case_loop, "init": case_init, "line": case_line, "line_wandb": case_line_wandb, "track": case_track,
        "watch": case_watch, "alive": case_alive,
    }  # fmt: skip
    if common.serve_case(cases):
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--features", nargs="+", choices=list(FEATURES), default=list(FEATURES), help="of the loop")
    parser.add_argument("--blocks", type=int, default=20, help="turns of each feature")
    parser.add_argument("--steps", type=int, default=500, help="steps of a turn")
    parser.add_argument("--lines", type=int, default=20_000, help="printed lines and records of a turn")
    parser.add_argument("--repeat", type=int, default=10, help="processes for init, turns for lines")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="how long the observer is watched")
    common.add_output_options(parser)
    options = parser.parse_args()
    if options.quick:
        options.blocks, options.lines, options.repeat, options.idle_seconds = 3, 2000, 3, 10.0
    common.measure_parts(PARTS, options)


if __name__ == "__main__":
    main()
