"""What the benchmarks share: the machine, percentiles, a store with its daemon, a case in a process of its own, a table.

Every case runs in a fresh interpreter with a fresh store, since what an earlier case left (a warm allocator, a backlog in
the daemon, pages of a ring) would be measured as the next one's. A case is a function `case_NAME(arguments) -> results`
of the program itself; `run_case` starts the program again with `--case`, and talks to it over its pipes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(1, str(ROOT))  # the tree that these programs lie in, not another one that is installed
PACKAGES = ("stepd", "msgpack", "pyzmq", "numpy", "lz4")
# One thread for numpy: the loop beside which we measure should use the core that it is said to use.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_RESULT = "result: "

Results = dict[str, Any]


# ---- the machine


def machine() -> Results:
    """What a number depends on: processor, memory, kernel, interpreter, versions, load, date."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: _version(name) for name in PACKAGES},
        "timer_ns": timer_cost_ns(),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "from the tree"


def is_installed(module: str) -> bool:
    """Whether an optional package is there."""
    return importlib.util.find_spec(module) is not None


def timer_cost_ns(calls: int = 100_000) -> int:
    """The median of what the timer measures when nothing is between its two calls: part of every latency below."""
    clock = time.perf_counter_ns
    samples = []
    for _ in range(calls):
        start = clock()
        samples.append(clock() - start)
    return sorted(samples)[calls // 2]


def print_machine(facts: Results) -> None:
    """The same facts as text, above a table."""
    versions = "  ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(
        f"{facts['date']}  {facts['cpu']}, {facts['cpus_usable']} usable, {facts['memory_gib']} GiB, Linux {facts['kernel']}"
    )
    print(f"{facts['python']}  {versions}")
    print(
        f"load before the start {facts['load_1min']}; the timer itself costs {facts['timer_ns']} ns, not subtracted\n"
    )


# ---- numbers


def metric_names(count: int) -> list[str]:
    """Names of the length that users give; all of one length."""
    return [f"train/metric_{index:0{max(2, len(str(count - 1)))}d}" for index in range(count)]


def percentiles_us(samples_ns: Any) -> Results:
    """p50, p99, p99.9, p99.99 and the largest of nanosecond samples (anything numpy takes), in microseconds."""
    import numpy

    ordered = numpy.sort(numpy.asarray(samples_ns))
    # The nearest rank, not an interpolation: a latency that was measured. p99.99 of 1000 samples is the largest.
    ranks = {name: min(len(ordered) - 1, int(len(ordered) * share)) for name, share in SHARES.items()}
    return {name: round(float(ordered[rank]) / 1000, 3) for name, rank in ranks.items()}


SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999, "max": 1.0}


def median(values: Sequence[float]) -> float:
    """The middle one, or the lower of the two."""
    return sorted(values)[(len(values) - 1) // 2]


class Table(NamedTuple):
    """A table whose first column is text and whose others are numbers.

    Attributes:
        notes: Lines below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """For a terminal."""
        lines = self._cells()
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        lines.insert(1, ["-" * width for width in widths])
        padded = [
            [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:]))]
            for line in lines
        ]
        shown = ["  " + "  ".join(line).rstrip() for line in padded]
        return "\n".join([self.title, *shown, *(f"  {note}" for note in self.notes), ""])

    def markdown(self) -> str:
        """For a page of docs/."""
        lines = [f"| {' | '.join(line)} |" for line in self._cells()]
        lines.insert(1, "|" + "---|" * len(self.columns))
        parts = [f"*{self.title}*", "\n".join(lines), "\n".join(f"* {note}" for note in self.notes)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def _cells(self) -> list[list[str]]:
        return [list(self.columns), *([cell(value) for value in row] for row in self.rows)]


def alternating(ways: Mapping[str, Callable[[], object]], repeat: int) -> dict[str, Results]:
    """Each way once to warm up, then all of them in turns, so that they see the same machine.

    Returns:
        For each: median and worst wall clock, and the median CPU of all threads, in ms.
    """
    clock, cpu_clock = time.perf_counter, time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeat + 1):
        for name, way in ways.items():
            start, cpu_start = clock(), cpu_clock()
            way()
            if turn:
                seconds[name].append(clock() - start)
                cpu[name].append(cpu_clock() - cpu_start)
    return {
        name: {
            "ms": round(median(seconds[name]) * 1e3, 3),
            "worst_ms": round(max(seconds[name]) * 1e3, 3),
            "cpu_ms": round(median(cpu[name]) * 1e3, 3),
        }
        for name in ways
    }


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """One table on stdout."""
    print(Table(title, columns, rows).text(), flush=True)


def write_markdown(path: str, facts: Results, tables: Sequence[Table]) -> None:
    """The tables as they are pasted into a page, with the machine and the date."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    about = f"{facts['date']}; {facts['cpu']}, {facts['cpus_usable']} usable, {facts['memory_gib']} GiB, Linux {facts['kernel']}; "
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{about}{facts['python']}, {versions}\n\n")
        file.write("\n".join(table.markdown() for table in tables))


def cell(value: object) -> str:
    """A number or a text as it stands in a table; a dash for what there is not."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


Measure = Callable[[argparse.Namespace], list[Results]]
"""Measures a part of a benchmark, as the command line wants it."""
ToTable = Callable[[list[Results]], Table]


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """What `measure_parts` wants to know, `only` apart."""
    parser.add_argument("--quick", action="store_true", help="a tenth of everything or less: to see that it runs")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument(
        "--keep", action="store_true", help="leave in the file of --json the parts that are not in --only"
    )
    parser.add_argument("--markdown", metavar="FILE", help="the tables as docs/performance.md has them")


def parser_of(doc: str | None, parts: Mapping[str, Any]) -> argparse.ArgumentParser:
    """The command line of a benchmark of several parts: `--only`, and what `add_output_options` adds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    add_output_options(parser)
    return parser


def parsed(parser: argparse.ArgumentParser, **quick: float) -> argparse.Namespace:
    """The options; with `--quick` those that are named are at most so much."""
    options = parser.parse_args()
    for name, most in quick.items() if options.quick else ():
        setattr(options, name, min(getattr(options, name), most))
    return options


def run_program(
    parts: Mapping[str, tuple[Measure, ToTable]],
    cases: Mapping[str, Callable[[Results], Results]],
    parse: Callable[[], argparse.Namespace],
) -> None:
    """The main of a benchmark of several parts: runs the case that the command line names, else measures what was asked for."""
    if not serve_case(cases):
        measure_parts(parts, parse())


def measure_parts(parts: Mapping[str, tuple[Measure, ToTable]], options: argparse.Namespace) -> None:
    """The main of a benchmark of several parts: each is measured, printed and written before the next begins, so that
    what was measured is there when a later part fails.

    Args:
        options: With `only` (names of parts) and those of `add_output_options`.
    """
    facts = machine()
    print_machine(facts)
    results: Results = {"machine": facts}
    if options.keep and options.json and os.path.exists(options.json):
        results = {**json.loads(Path(options.json).read_text(encoding="utf-8")), **results}
    for name in options.only:
        measure, table_of = parts[name]
        results[name] = measure(options)
        print(table_of(results[name]).text(), flush=True)
        if options.json:
            write_json(options.json, results)
        if options.markdown:
            tables = [table(results[part]) for part, (_, table) in parts.items() if part in results]
            write_markdown(options.markdown, facts, tables)


def progress(result: Results) -> None:
    """A sign of life on stderr: the whole takes minutes."""
    print(f"  … {' '.join(str(value) for value in list(result.values())[:8])}", file=sys.stderr, flush=True)


# ---- a store and its daemon


@contextlib.contextmanager
def fresh_store() -> Iterator[str]:
    """A new store in a directory of its own; its daemon is stopped and its files are removed at the end.

    It lies in the tree's `build/` unless TMPDIR says otherwise: /tmp may be memory, and a disk is what users have.
    """
    parent = os.environ.get("TMPDIR") or str(ROOT / "build")
    os.makedirs(parent, exist_ok=True)
    directory = tempfile.mkdtemp(prefix="bench-", dir=parent)
    store = os.path.join(directory, "store")
    try:
        yield store
    finally:
        end_daemon(store)
        shutil.rmtree(directory, ignore_errors=True)


def environment(store: str, **more: str) -> dict[str, str]:
    """The environment of a case: the tree (or the installed package), this store, none of the user's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STEPD_", "WANDB_"))}
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**kept, **ONE_THREAD, "PYTHONPATH": search, "STEPD_DIR": store, **more}


def command(store: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `stepd …` on the store."""
    line = [sys.executable, "-m", "stepd", *arguments]
    return subprocess.run(
        line, env=environment(store), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def start_daemon(store: str) -> int:
    """Starts the store's daemon and returns its pid."""
    answer = command(store, "start")
    if answer.returncode:
        raise SystemExit(f"the daemon of {store} did not start: {answer.stderr or answer.stdout}")
    return daemon_pid(store)


def daemon_pid(store: str) -> int:
    """The pid of the daemon that serves the store, 0 if there is none."""
    answer = command(store, "status", "--json")
    with contextlib.suppress(ValueError):
        return int(json.loads(answer.stdout).get("pid") or 0)
    return 0


def end_daemon(store: str) -> None:
    """Stops the daemon, however it is: one that a case left stopped is continued first."""
    pid = daemon_pid(store) if os.path.isdir(store) else 0  # a store that nobody made has none
    if pid:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)
        command(store, "stop")


def process_memory(pid: int) -> Results:
    """Resident memory now and at its highest, in MB; empty when the process is gone."""
    names = {"VmHWM": "rss_max_mb", "VmRSS": "rss_mb"}
    found: Results = {}
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in names:
                found[names[name]] = round(int(value.split()[0]) * 1024 / 1e6, 1)
    return found


def anonymous_mb(pid: int) -> float | None:
    """Memory that is a process's own, in MB: without files and shared memory, and its share of what it has from a fork."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Pss_Anon:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return None


def process_cpu_seconds(pid: int) -> float:
    """What all threads of a process used so far, user and system."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@contextlib.contextmanager
def watched_workers(pid: int) -> Iterator[Results]:
    """Resident memory of the daemon's children together at its highest, and the CPU they use, by 20 looks a second."""
    import psutil

    found: Results = {"rss_max_mb": 0.0, "cpu_seconds": 0.0}
    ended = threading.Event()

    def look() -> None:
        first: dict[int, float] = {}
        cpu: dict[int, float] = {}
        while not ended.wait(0.05):
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(pid).children(recursive=True)
                total = 0
                for child in children:
                    with contextlib.suppress(psutil.Error):
                        total += child.memory_info().rss
                        cpu[child.pid] = process_cpu_seconds(child.pid)
                        first.setdefault(child.pid, cpu[child.pid])
                found["rss_max_mb"] = max(found["rss_max_mb"], round(total / 1e6, 1))
                found["cpu_seconds"] = round(sum(cpu[child] - first[child] for child in cpu), 2)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def tree_cpu_seconds(pid: int, *, itself: bool = True) -> float:
    """What a process and all that it started used so far, those that have ended included."""
    import psutil

    found = 0.0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                first = 0 if itself or process is not root else 2
                found += sum(process.cpu_times()[first:4])  # its own user and system, then those of its ended children
    return found


def tree_bytes(directory: str) -> int:
    """The sizes of all files below a directory."""
    return sum(os.path.getsize(os.path.join(path, name)) for path, _, names in os.walk(directory) for name in names)


def stored_rows(store: str, key: str, run: str = "latest") -> int:
    """How many rows of a run hold `key`, by the reader."""
    import sdk

    opened = sdk.open_store(store)
    found = opened.runs()[0] if run == "latest" else opened.run(run)
    return len(found.series(key).step)


# ---- a case in a process of its own


class Case:
    """A case that runs: the parent's side of the conversation."""

    def __init__(
        self, name: str, arguments: Mapping[str, Any], env: Mapping[str, str], seconds_max: float | None = None
    ) -> None:
        """Starts the program again with `--case`.

        Args:
            seconds_max: A case that is not done by then is killed, with all that it has started.
        """
        line = [sys.executable, os.path.abspath(sys.argv[0]), "--case", name, json.dumps(arguments)]
        self.name = name
        # A file, not a pipe: a case that writes more than a pipe holds would wait for us while we wait for it.
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by result()
        self.process = subprocess.Popen(
            line,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=seconds_max is not None,
        )
        self._timer: threading.Timer | None = None
        if seconds_max is not None:
            self._timer = threading.Timer(seconds_max, self._kill)
            self._timer.daemon = True
            self._timer.start()

    def wait_for(self, word: str) -> None:
        """Reads on until the case says `word`; what it prints besides is passed on to stderr."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == word:
                return
            sys.stderr.write(line)
        raise SystemExit(f"case {self.name} ended before it said {word!r}:\n{self._errors()}")

    def say(self, word: str) -> None:
        """Lets the case go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL; there will be no result."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def result(self) -> Results:
        """Waits for the end.

        Raises:
            SystemExit: It failed, or was killed.
        """
        assert self.process.stdout is not None
        found: Results | None = None
        for line in self.process.stdout:
            if line.startswith(_RESULT):
                found = json.loads(line[len(_RESULT) :])
        if self.process.wait() or found is None:
            raise SystemExit(f"case {self.name} failed with {self.process.returncode}:\n{self._errors()}")
        self._end_timer()
        self.errors.close()
        return found

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _errors(self) -> str:
        self.process.wait()
        self._end_timer()
        self.errors.seek(0)
        return self.errors.read()[-4000:]


def run_case(
    name: str, arguments: Mapping[str, Any], env: Mapping[str, str], seconds_max: float | None = None
) -> Results:
    """A case with which there is nothing to talk about."""
    return Case(name, arguments, env, seconds_max).result()


def tell_and_wait(word: str) -> None:
    """In a case: says `word` to the parent, and waits until it answers."""
    print(word, flush=True)
    if not sys.stdin.readline():
        raise SystemExit("the benchmark went away")


def serve_case(cases: Mapping[str, Callable[[Results], Results]]) -> bool:
    """In the program's main: runs the case that the command line names, and says whether it named one."""
    if len(sys.argv) != 4 or sys.argv[1] != "--case":
        return False
    result = cases[sys.argv[2]](json.loads(sys.argv[3]))
    print(_RESULT + json.dumps(result), flush=True)
    return True


def write_json(path: str, results: Results) -> None:
    """Everything that was measured, for a program to read."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
        file.write("\n")
