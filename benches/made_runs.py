"""Finished runs of any length in seconds: what a daemon would have written, without a trainer that logs it.

The records are laid out with numpy, and written by the daemon's own code: `coalesce` makes the blocks, `RunWriter` the
segments. `compact` is `stepd compact`, the real one. What is logged is named here once, for every table that says
"noisy metrics": metric k at step s is `(k + 1) * exp(-5 s / steps)`, a curve that decays, plus normal noise of 0.1
(`numpy.random.default_rng(0)`); from one call to the next pass 1 ms and a normal jitter of 50 µs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import common
from common import Results

SEED = 0
PERIOD_NS, JITTER_NS = 1_000_000, 50_000
START_NS = 1_760_000_000 * 10**9
# A daemon writes a block at 256 KiB in a tight loop, and what has come after 0.2 s in a slower one.
TIGHT_BLOCK_BYTES = 256 * 1024
SLOW_BLOCK_ROWS = 200
CHUNK_ROWS = 1 << 16
KINDS = ("float32", "float64")


class Noisy(NamedTuple):
    """What is logged in one run.

    Attributes:
        kind: float32: every value is one of float32's, as those are that come from a tensor. float64: full mantissas.
    """

    steps: int
    metrics: int
    kind: str = "float64"

    @property
    def names(self) -> list[str]:
        """The keys."""
        return common.metric_names(self.metrics)

    def chunks(self) -> Iterator[tuple[int, Any, Any]]:
        """(first step, times in ns int64[n], values float64[n, metrics]) of consecutive rows."""
        import numpy

        rng = numpy.random.default_rng(SEED)
        heights = numpy.arange(1, self.metrics + 1)
        now = START_NS
        for first in range(0, self.steps, CHUNK_ROWS):
            count = min(CHUNK_ROWS, self.steps - first)
            curve = numpy.exp(-5 * numpy.arange(first, first + count) / self.steps)
            values = curve[:, None] * heights + 0.1 * rng.standard_normal((count, self.metrics))
            if self.kind == "float32":
                values = values.astype("f4").astype("f8")
            passed = PERIOD_NS + (JITTER_NS * rng.standard_normal(count)).astype("i8")
            times = now + numpy.cumsum(numpy.maximum(passed, 0))
            now = int(times[-1])
            yield first, times, values


class Trained(NamedTuple):
    """A short training of a sweep: a loss that falls the faster the larger its learning rate, and an accuracy that rises with it.

    Attributes:
        number: Of the run in its sweep; also its seed.
    """

    number: int
    steps: int = 300
    names: tuple[str, ...] = ("loss", "val/acc", "lr")

    @property
    def facts(self) -> Results:
        """What `init` would have stored of it."""
        model, method = ("cnn", "mlp", "vit")[self.number // 5 % 3], ("adam", "sgd")[self.number // 15 % 2]
        config = {
            "lr": self.rate, "batch_size": 32 << self.number // 30 % 3, "method": method, "seed": self.number % 5,
            "model": {"name": model, "depth": 12}, "data": "digits",
        }  # fmt: skip
        project = ("digits", "letters")[self.number % 2]
        return {"run": {"name": f"{model}-{method}-{self.number}", "project": project}, "config": config}

    @property
    def start_ns(self) -> int:
        """When it began: one a minute."""
        return START_NS + self.number * 60 * 10**9

    @property
    def rate(self) -> float:
        """Its learning rate: one of six, from 1e-5 to 3e-2."""
        return float(10.0 ** -(1.5 + 0.7 * (self.number // 90 % 6)))

    def chunks(self) -> Iterator[tuple[int, Any, Any]]:
        """As those of `Noisy`; 1 ms a step."""
        import numpy

        rng = numpy.random.default_rng(self.number)
        step = numpy.arange(self.steps)
        falling = numpy.exp(-step * (0.002 + self.rate) * 5)
        loss = 2.3 * falling + 0.05 * numpy.abs(rng.standard_normal(self.steps))
        accuracy = 0.95 - 0.8 * falling + 0.01 * rng.standard_normal(self.steps)
        yield 0, self.start_ns + step * PERIOD_NS, numpy.stack([loss, accuracy, numpy.full(self.steps, self.rate)], 1)


def make_run(
    store_path: str, run_id: str, noisy: Noisy | Trained, *, slow: bool = False, state: str = "finished"
) -> Results:
    """Writes a run that has ended: sealed segments of rows, as a daemon leaves them.

    Args:
        slow: Blocks as of a loop of one call per millisecond, else as of a tight one.
        state: How it ended; "crashed": it says nothing of its end.

    Returns:
        `seconds` it took, `bytes` of its `directory`.
    """
    from daemon.store.run_writer import RunWriter
    from sdk import ids, location
    from sdk.files import DISK

    start = time.monotonic()
    writer = RunWriter(
        DISK, location.make_store(store_path), run_id, ids.random_u64(), {"kind": "daemon", "stream": None}
    )
    blocks = Blocks(writer, ids.random_u64())
    told = noisy.facts if isinstance(noisy, Trained) else {"run": {"project": "bench", "name": run_id}}
    started_ns = noisy.start_ns if isinstance(noisy, Trained) else START_NS
    blocks.note({"stream": blocks.facts(started_ns), **told, "run": {"id": run_id, **told["run"]}})
    layout = Layout(list(noisy.names))
    block_rows = SLOW_BLOCK_ROWS if slow else max(1, TIGHT_BLOCK_BYTES // layout.size)
    for first, times, values in noisy.chunks():
        for begin in range(0, len(times), block_rows):
            part = slice(begin, begin + block_rows)
            blocks.rows(layout.records(blocks.next, first + begin, times[part], values[part]), first + begin)
    if state != "crashed":
        end_ns = int(times[-1]) + PERIOD_NS
        blocks.note({"end": {"state": state, "exit_code": int(state != "finished"), "time_ns": end_ns}})
    writer.roll()
    blocks.close_retired()
    for entry in os.scandir(writer.directory):  # a run lives while something writes to it
        os.utime(entry.path, ns=(int(times[-1]), int(times[-1])))
    seconds = round(time.monotonic() - start, 3)
    return {"seconds": seconds, "bytes": directory_bytes(writer.directory), "directory": writer.directory}


class Layout:
    """The bytes of a record that holds these keys, each with a float: only numbers in it change."""

    def __init__(self, names: list[str]) -> None:
        import numpy

        from sdk import record

        payload = record.encode_map(dict.fromkeys(names, 0.5))
        self.size = record.HEADER_SIZE + len(payload)
        head = record.HEADER.pack(self.size, record.KIND_ROW, record.FLAG_COMMIT, 0, 0, 0, 0)
        places, place = [], record.HEADER_SIZE + len(record.encode_map({})) + (2 if len(names) > 15 else 0)
        for name in names:
            place += len(record.encode_map({name: None})) - 2 + 1  # the name, and the byte that says "a float"
            places.append(place)
            place += 8
        fields: list[tuple[str, str, int]] = [("sequence", "<u8", 8), ("step", "<u8", 16), ("time", "<i8", 24)]
        fields += [(f"value{index}", ">f8", offset) for index, offset in enumerate(places)]
        labels, formats, offsets = zip(*fields)
        named = {"names": labels, "formats": formats, "offsets": offsets, "itemsize": self.size}
        self._fields = numpy.dtype(named)
        self._bytes = numpy.frombuffer(head + payload, "u1")

    def records(self, sequence: int, step: int, times: Any, values: Any) -> Any:
        """The bytes of consecutive rows."""
        import numpy

        # Tiled as bytes: of a structured array numpy copies the fields, and not what lies between them.
        found = numpy.tile(self._bytes, len(times)).view(self._fields)
        found["sequence"] = numpy.arange(sequence, sequence + len(times))
        found["step"] = numpy.arange(step, step + len(times))
        found["time"] = times
        for index in range(values.shape[1]):
            found[f"value{index}"] = values[:, index]
        return found


class Blocks:
    """One stream's way into a run.

    Attributes:
        next: The sequence of its next record.
    """

    def __init__(self, writer: Any, stream: int) -> None:
        self._writer = writer
        self._stream = stream
        self.next = 1

    def facts(self, started_ns: int = START_NS) -> Results:
        """What the stream says of itself in its first record."""
        from sdk.ids import hex_u64

        return {
            "id": hex_u64(self._stream), "kind": "main", "attempt": 1, "first_step": 0, "pid": os.getpid(),
            "host": "bench", "started_ns": started_ns,
        }  # fmt: skip

    def note(self, facts: Results) -> None:
        """Writes one META record."""
        from sdk import record
        from sdk.wire.messages import BATCH_HAS_META

        packed = record.pack(record.Record(self.next, 0, 0, record.KIND_META, START_NS, record.encode_map(facts)))
        self._append(packed, 1, 0, BATCH_HAS_META)

    def rows(self, records: Any, step: int) -> None:
        """Writes one block of consecutive rows that begin at `step`."""
        self._append(records.tobytes(), len(records), step + len(records) - 1, 0)

    def _append(self, packed: bytes, count: int, step_max: int, flags: int) -> None:
        from daemon.pipeline.coalesce import Waiting, coalesce

        last = self.next + count - 1
        self._writer.append(self._stream, coalesce([Waiting(self.next, last, flags, step_max, packed)]))
        self.next = last + 1
        self.close_retired()

    def close_retired(self) -> None:
        """Closes the segments that were sealed, as the daemon's syncer does."""
        while self._writer.retired:
            self._writer.retired.pop()[0].close()


def compact(store: str, *runs: str, seconds_max: float | None = None) -> Results:
    """Makes columns of runs that have ended, by `stepd compact` (needs `case_compact` among the program's cases).

    Args:
        seconds_max: It is killed if it takes longer.

    Returns:
        `seconds`, `cpu_seconds`: less those of the same command when there was nothing left to do. `rss_max_mb`.
    """
    return common.run_case("compact", {"store": store, "runs": runs}, common.environment(store), seconds_max)


def case_compact(arguments: Results) -> Results:
    """Why a case: what a process used before it became `stepd` counts as its memory, and we are small here."""
    line = ["compact", "--json", *arguments["runs"]]
    found, idle = (command_usage(arguments["store"], *line) for _ in range(2))
    for name in ("seconds", "cpu_seconds"):
        found[name] = round(max(found[name] - idle[name], 0.001), 3)
    return found


def command_usage(store: str, *arguments: str) -> Results:
    """What a whole `stepd …` takes, from its start to its end: seconds, CPU seconds, memory."""
    line = [sys.executable, "-m", "stepd", *arguments]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        start = time.perf_counter()
        process = subprocess.Popen(line, env=common.environment(store), cwd=common.ROOT, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"stepd {' '.join(arguments)} failed with {process.returncode}: {output.read()[-4000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return {
        "seconds": round(seconds, 4), "cpu_seconds": round(cpu, 4), "rss_max_mb": round(usage.ru_maxrss / 1024, 1)
    }  # fmt: skip


def timed_command(store: str, *arguments: str) -> float:
    """The milliseconds of a whole `stepd …`."""
    return round(float(command_usage(store, *arguments)["seconds"]) * 1e3, 1)


def directory_bytes(directory: str) -> int:
    """The sizes of all files of a run."""
    return sum(entry.stat().st_size for entry in os.scandir(directory) if entry.is_file())


def run_directory(store: str, run_id: str) -> str:
    """Where a run lies."""
    from sdk.segment.naming import run_path

    return run_path(store, run_id)
