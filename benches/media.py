"""What images, tables, tensors cost the training loop, and what arrives: `python benches/media.py [--json FILE] [--quick]`.

Held: how long one value holds the loop, constructor and `log` together, beside its budget, beside a plain copy of the same
bytes, and beside W&B (offline) and SummaryWriter in the same run. Sustained: images or tensors at a steady rate through to
`written` with scalars at 1 kHz beside them; memory of the daemon; and a comparison of what is read back with what was logged.
benches/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import common
import media_values
from common import Results
from media_values import Missing

WARM_UP_CALLS = 2
CALLS_MIN = 3
# tight: some values one after the other, then a pause in which they are written away, so that no rate is asked for that no
# disk has. sleep: a pause before each, as a loop has that waits for an accelerator: caches and clock frequency are cold.
PACES = ("tight", "sleep")
BURST_BYTES = 16 << 20
PAUSE_SECONDS = 0.02
PAUSE_BYTES_PER_SECOND = 100e6
PERIOD_NS = 1_000_000
SCALARS = 5
SCALAR_KEY = "train/metric_00"
MEDIA_KEY = "examples"
SCALAR_P99_BUDGET_US = 10.0
BASES = 8


# ---- in the case's process: how long a value holds the loop


def case_held(arguments: Results) -> Results:
    """Times of one kind of value with one tool; `first_ms` is what the first call costs, its imports included."""
    import numpy

    name, directory = arguments["value"], arguments["directory"]
    value = media_values.VALUES[name].make(numpy.random.default_rng(4))
    try:
        log, finish = media_values.open_tool(arguments["tool"], name, directory)
    except Missing as missing:
        return {"missing": str(missing)}
    pace = Pace(arguments["pace"], media_values.bytes_of(value), arguments["calls"], arguments["seconds"])
    # W&B prints to stdout where it likes; what we say there comes after this.
    with contextlib.redirect_stdout(sys.stderr):
        start = time.perf_counter_ns()
        log(MEDIA_KEY, value, 0)
        first = time.perf_counter_ns() - start
        for step in range(1, WARM_UP_CALLS):
            log(MEDIA_KEY, value, step)
        samples = pace.time(lambda index: log(MEDIA_KEY, value, WARM_UP_CALLS + index))
        finish()
    held = common.percentiles_us(samples)
    return {
        "calls": WARM_UP_CALLS + len(samples),
        "first_ms": round(first / 1e6, 3),
        "p50_ms": round(held["p50"] / 1e3, 4),
        "p99_ms": round(held["p99"] / 1e3, 4),
        "copy_ms": copy_ms(value, pace),
    }


class Pace(NamedTuple):
    """How often a value comes."""

    name: str
    size: int
    calls: int
    seconds: float

    @property
    def burst(self) -> int:
        """How many come one after the other."""
        return max(1, BURST_BYTES // max(self.size, 1 << 20)) if self.name == "tight" else 1

    def time(self, call: Callable[[int], object]) -> list[int]:
        """The nanoseconds of each call, at most `calls` and as many as begin within `seconds`."""
        clock, deadline = time.perf_counter_ns, time.monotonic() + self.seconds
        burst = self.burst
        pause = PAUSE_SECONDS + burst * self.size / PAUSE_BYTES_PER_SECOND
        samples: list[int] = []
        for index in range(self.calls):
            if index % burst == 0:
                if index >= CALLS_MIN and time.monotonic() > deadline:
                    break
                time.sleep(pause)
            start = clock()
            call(index)
            samples.append(clock() - start)
        return samples


def copy_ms(value: Any, pace: Pace) -> float | None:
    """A plain copy of the same bytes at the same pace: the median; None where there is no array.

    The source is copied in the order in which it lies in memory. The target was touched before, and is as large as a burst:
    what was written a moment ago is not written again, or the copy would never leave the caches.
    """
    import numpy

    if not pace.size:
        return None
    source = numpy.ascontiguousarray(value).reshape(-1)
    targets = numpy.zeros((max(pace.burst, 2), source.size), source.dtype)
    targets[:] = 1
    copies = pace._replace(calls=min(pace.calls, 2 * len(targets)))
    samples = copies.time(lambda index: numpy.copyto(targets[index % len(targets)], source))
    return round(common.median(samples) / 1e6, 4)


# ---- in the case's process: a steady load


class Load(NamedTuple):
    """What comes at a steady rate.

    Attributes:
        title: For the table.
        images: Images in each call, 0: a raw float32 tensor.
        shape: Of each.
        per_second: Calls.
    """

    title: str
    images: int
    shape: tuple[int, ...]
    per_second: float


SIDE = media_values.SIDE
LOADS = {
    "nothing": Load("scalars alone", 0, (), 0),
    "tensors": Load("200 MB/s of float32 tensors", 0, (1000, 1000), 50),
    "images": Load("50 images 512²×3 a second", 1, (SIDE, SIDE, 3), 50),
    "list": Load("a list of 108 images every 2 s", 108, (SIDE, SIDE, 3), 0.5),
}


class Content:
    """What is logged, so that reading can make it again: one of a few noises that bears its number in its first bytes."""

    def __init__(self, load: Load) -> None:
        import numpy

        rng = numpy.random.default_rng(5)
        self._load = load
        if load.images:
            self._bases = [rng.integers(0, 256, load.shape, "u1") for _ in range(BASES)]
        else:
            self._bases = [rng.standard_normal(load.shape, "f4") for _ in range(BASES)]

    def array(self, number: int) -> Any:
        """The number's array; the one `BASES` numbers earlier is overwritten, as training overwrites its buffers."""
        import numpy

        found = self._bases[number % BASES]
        found.reshape(-1).view("u1")[:8] = numpy.frombuffer(number.to_bytes(8, "little"), "u1")
        return found

    def log(self, sdk: Any, call: int) -> None:
        """One call of the load."""
        first = call * max(1, self._load.images)
        if self._load.images == 1:
            sdk.log({MEDIA_KEY: sdk.Image(self.array(first))})
        elif self._load.images:
            # Each is copied by its constructor, so the arrays of a list may be the same few ones.
            sdk.log({MEDIA_KEY: [sdk.Image(self.array(first + i)) for i in range(self._load.images)]})
        else:
            sdk.log({MEDIA_KEY: self.array(first)})


def case_sustained(arguments: Results) -> Results:
    """Scalars at one call per millisecond, and the load whenever it is due, in the same thread, as loops do it."""
    import sdk

    load = LOADS[arguments["load"]]
    content = Content(load) if load.per_second else None
    names = [f"train/metric_{index:02d}" for index in range(SCALARS)]
    sdk.init(project="bench", id="media")
    calls = max(1, round(load.per_second * arguments["seconds"])) if content is not None else 0
    scalars, held = array("q"), array("q")
    common.tell_and_wait("ready")
    clock, start = time.perf_counter_ns, time.perf_counter_ns()
    due, call, steps = start, 0, round(arguments["seconds"] * 1000)
    for step in range(steps):
        due = max(due + PERIOD_NS, clock())
        rest = due - clock()
        if rest > 0:
            time.sleep(rest / 1e9)
        if content is not None and call < calls and clock() - start >= call / load.per_second * 1e9:
            before = clock()
            content.log(sdk, call)
            held.append(clock() - before)
            call += 1
        data = dict.fromkeys(names, step / 7)
        before = clock()
        sdk.log(data)
        scalars.append(clock() - before)
    while content is not None and call < calls:  # a machine that cannot keep the rate still logs all of it
        content.log(sdk, call)
        call += 1
    looped = clock()
    sdk.finish()
    return {
        "loop_seconds": (looped - start) / 1e9,
        "finish_seconds": (clock() - looped) / 1e9,
        "media_calls": call,
        "scalar_calls": steps,
        "scalar_us": common.percentiles_us(scalars),
        "held_ms": {name: us / 1e3 for name, us in common.percentiles_us(held).items()} if held else None,
        "trainer_memory": common.process_memory(os.getpid()),
    }


# ---- in the parent


def measure_held(options: argparse.Namespace) -> list[Results]:
    """All kinds of values with all tools."""
    results = []
    for pace in options.paces:
        for value in options.values:
            for tool in options.tools:
                results.append(held(options, pace, value, tool))
                progress(results[-1])
    return results


def held(options: argparse.Namespace, pace: str, value: str, tool: str) -> Results:
    """One case, and how many of its values are not there afterwards."""
    what = {"pace": pace, "value": value, "tool": tool}
    with common.fresh_store() as store:
        if tool == "stepd":
            common.start_daemon(store)
        limits = {"calls": options.calls, "seconds": options.seconds, "directory": os.path.dirname(store)}
        env = common.environment(store, **media_values.ENVIRONMENT[tool])
        result = common.run_case("held", {**what, **limits}, env)
        if tool == "stepd":
            result["lost"] = result["calls"] - stored_media(store)
    return {**what, "budget_ms": budget_ms(value, result), **result}


def budget_ms(value: str, result: Results) -> float | None:
    """What the value may hold the loop for."""
    fixed, copy = media_values.VALUES[value].budget_ms, result.get("copy_ms")
    if fixed is not None:
        return fixed
    return 2 * copy if copy else None


def stored_media(store: str) -> int:
    """How many values the reader finds whose bytes are there."""
    import sdk

    items = sdk.open_store(store).run("media").media(MEDIA_KEY)
    return sum(item.is_stored for item in items)


def measure_sustained(options: argparse.Namespace) -> list[Results]:
    """Each load alone, with a store and a daemon of its own."""
    results = []
    for name in options.loads:
        with common.fresh_store() as store:
            pid = common.start_daemon(store)
            before, cpu = common.process_memory(pid), common.process_cpu_seconds(pid)
            env = common.environment(store, **media_values.ENVIRONMENT["stepd"])
            with common.watched_workers(pid) as workers:
                case = common.Case("sustained", {"load": name, "seconds": options.load_seconds}, env)
                case.wait_for("ready")
                case.say("go")
                result = case.result()
            result["daemon_cpu_seconds"] = round(common.process_cpu_seconds(pid) - cpu, 2)
            result["daemon_memory"] = common.process_memory(pid) | {"rss_before_mb": before.get("rss_mb")}
            result["workers_rss_max_mb"] = workers["rss_max_mb"]
            result |= compare(store, LOADS[name], result)
        results.append({"load": name, **result})
        progress(results[-1])
    return results


def compare(store: str, load: Load, result: Results) -> Results:
    """Reads everything back, whatever the encoder has made of it by now, and compares it with what was logged."""
    import sdk

    run = sdk.open_store(store).run("media")
    rows_lost = result["scalar_calls"] - len(run.series(SCALAR_KEY).step)
    logged = result["media_calls"] * max(1, load.images)
    size = equal = 0
    if logged:
        content = Content(load)
        items = run.media(MEDIA_KEY)
        for number, item in enumerate(items):
            size += item.size
            with contextlib.suppress(sdk.Error):
                equal += item.to_numpy().tobytes() == content.array(number).tobytes()
    seconds = result["loop_seconds"] + result["finish_seconds"]
    return {
        "media_logged": logged,
        "media_not_equal": logged - equal,
        "rows_lost": rows_lost,
        "megabytes": round(size / 1e6, 1),
        "megabytes_per_second": round(size / 1e6 / seconds, 1),
        "gaps": [str(gap) for gap in run.gaps][:10],
    }


# ---- what is printed


def progress(result: Results) -> None:
    """A line on stderr for each case."""
    print(f"  … {list(result.values())}", file=sys.stderr, flush=True)


def print_held(results: list[Results]) -> None:
    """A table for each pace: ours beside the budget and the copy, the peers behind; then what could not be measured."""
    found = {(result["pace"], result["value"], result["tool"]): result for result in results}
    peers = [tool for tool in media_values.TOOLS if tool != "stepd"]
    columns = ["loop held, ms", "stepd p50", "p99", "first", "budget", "copy", "lost"]
    columns += [name for tool in peers for name in (f"{tool} p50", "p99")]
    for pace in dict.fromkeys(result["pace"] for result in results):
        rows: list[list[object]] = []
        for value in dict.fromkeys(result["value"] for result in results):
            ours = found.get((pace, value, "stepd"), {})
            line = [ours.get(name) for name in ("p50_ms", "p99_ms", "first_ms", "budget_ms", "copy_ms", "lost")]
            for tool in peers:
                theirs = found.get((pace, value, tool), {})
                line += [theirs.get("p50_ms"), theirs.get("p99_ms")]
            rows.append([media_values.VALUES[value].title, *line])
        common.print_table(f"one value, constructor and log(): {pace}", columns, rows)
    for line in dict.fromkeys(f"{r['tool']}, {r['value']}: {r['missing']}" for r in results if "missing" in r):
        print(f"  – {line}")
    print()


def print_sustained(results: list[Results]) -> None:
    """Two tables: what the loop feels, and what became of it."""
    rows: list[list[object]] = []
    for result in results:
        scalar, held = result["scalar_us"], result["held_ms"] or {}
        line = [LOADS[result["load"]].title, scalar["p50"], scalar["p99"], scalar["p99.9"], scalar["max"]]
        rows.append([*line, SCALAR_P99_BUDGET_US, held.get("p50"), held.get("p99"), held.get("max")])
    columns = ["meanwhile", "scalars p50 µs", "p99", "p99.9", "max", "budget p99", "media held p50 ms", "p99", "max"]
    common.print_table("log() of 5 scalars at one call per ms, while media are logged", columns, rows)
    rows = []
    for result in results:
        daemon, trainer = result["daemon_memory"], result["trainer_memory"]
        rows.append([
            LOADS[result["load"]].title, result["megabytes"], result["megabytes_per_second"], result["finish_seconds"],
            daemon["rss_before_mb"], daemon.get("rss_max_mb"), result["workers_rss_max_mb"], trainer.get("rss_max_mb"),
            result["daemon_cpu_seconds"], result["media_logged"], result["media_not_equal"], result["rows_lost"],
        ])  # fmt: skip
    columns = [
        "load", "MB", "MB/s to written", "finish s", "daemon RSS before, MB", "max", "workers max", "trainer max",
        "daemon CPU s", "values", "not equal", "rows lost",
    ]  # fmt: skip
    common.print_table("through to written, and read back", columns, rows)


PARTS: dict[str, tuple[Callable[[argparse.Namespace], list[Results]], Callable[[list[Results]], None]]] = {
    "held": (measure_held, print_held),
    "sustained": (measure_sustained, print_sustained),
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--values", nargs="+", choices=list(media_values.VALUES), default=list(media_values.VALUES))
    parser.add_argument("--tools", nargs="+", choices=media_values.TOOLS, default=list(media_values.TOOLS))
    parser.add_argument("--paces", nargs="+", choices=PACES, default=list(PACES))
    parser.add_argument("--calls", type=int, default=300, help="values of each kind for each tool, at most")
    parser.add_argument("--seconds", type=float, default=10.0, help="at most so long for each of these")
    parser.add_argument("--loads", nargs="+", choices=list(LOADS), default=list(LOADS))
    parser.add_argument("--load-seconds", type=float, default=10.0)
    parser.add_argument(
        "--quick", action="store_true", help="one pace, few calls, a second of each load: to see that it runs"
    )
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.calls, options.seconds, options.paces = min(options.calls, 10), 1.0, options.paces[:1]
        options.load_seconds = min(options.load_seconds, 1.0)
    return options


def main() -> None:
    """Measures what was asked for, prints it, and writes it."""
    if common.serve_case({"held": case_held, "sustained": case_sustained}):
        return
    options = parse()
    facts = common.machine()
    common.print_machine(facts)
    results: Results = {"machine": facts}
    for name in options.only:
        measure, show = PARTS[name]
        results[name] = measure(options)
        show(results[name])
    if options.json:
        common.write_json(options.json, results)


if __name__ == "__main__":
    main()
