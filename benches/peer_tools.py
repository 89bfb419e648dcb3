"""The tools that benches/peers.py compares: how each is imported, opened, called, ended, and read back.

Each is used as its own documentation shows, with its defaults; none is asked for less than it does by itself. `log` takes
the same dict for all of them. Who needs a step, or a time, adds it inside `log`, as one who uses that tool must.
"""

from __future__ import annotations

import glob
import importlib.metadata
import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import media_values
import overhead
from media_values import Missing
from overhead import Finish, Log

PARTS = ("latency", "init", "size", "reading", "training", "kill")


class Tool:
    """One tool. The methods are called in a case's process, with that case's own directory.

    Attributes:
        title: For the tables.
        install: What makes it available.
        parts: Where it takes part.
        reads: Whether `read` is what its users have; otherwise it only counts what was lost.
        environment: Its own settings.
    """

    title = ""
    install = ""
    parts: ClassVar[tuple[str, ...]] = PARTS
    reads = True
    environment: ClassVar[dict[str, str]] = {}

    def load(self, directory: str) -> str:
        """Imports what `open` needs; the version.

        Raises:
            Missing: It is not installed.
        """
        raise NotImplementedError

    def open(self, directory: str) -> tuple[Log, Finish]:
        """The call under test, and what ends the tool's use; behind `load`."""
        raise NotImplementedError

    def read(self, directory: str, key: str) -> tuple[Any, Any]:
        """Steps and values of one metric as numpy arrays, the way one reads them with this tool.

        Raises:
            Missing: What reads is not installed.
        """
        raise NotImplementedError


class Nothing(Tool):
    """The loop alone: what is taken off the others' CPU."""

    title = "nothing"

    def load(self, directory: str) -> str:
        return ""

    def open(self, directory: str) -> tuple[Log, Finish]:
        return overhead.open_target("nothing", directory)


class Stepd(Tool):
    title = "stepd"
    environment: ClassVar[dict[str, str]] = {"STEPD_SILENT": "1"}

    def load(self, directory: str) -> str:
        import sdk

        return str(sdk.__version__)

    def open(self, directory: str) -> tuple[Log, Finish]:
        return overhead.open_target("stepd", directory)

    def read(self, directory: str, key: str) -> tuple[Any, Any]:
        import sdk

        found = sdk.open_store(os.path.join(directory, "store")).runs()[0].series(key)
        return found.step, found.value


class Wandb(Tool):
    """Offline mode. It has no reader for its local files: `read` is ours, to count what they hold."""

    title = "wandb, offline"
    install = "pip install wandb"
    reads = False
    environment: ClassVar[dict[str, str]] = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}

    def load(self, directory: str) -> str:
        return str(media_values.import_wandb(directory).__version__)

    def open(self, directory: str) -> tuple[Log, Finish]:
        import wandb

        run = wandb.init(project="bench", dir=directory)
        return run.log, run.finish

    def read(self, directory: str, key: str) -> tuple[Any, Any]:
        import numpy

        media_values.import_wandb(directory)
        from wandb.proto import wandb_internal_pb2

        steps, values = [], []
        for path in glob.glob(os.path.join(glob.escape(directory), "wandb", "*run-*", "*.wandb")):
            for payload in _log_records(path):
                record = wandb_internal_pb2.Record.FromString(payload)
                if record.WhichOneof("record_type") == "history":
                    row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                    if key in row:
                        steps.append(int(row["_step"]))
                        values.append(json.loads(row[key]))
        return numpy.array(steps, "i8"), numpy.array(values, "f8")


_LOG_BLOCK = 32768
_LOG_HEADER = struct.Struct("<IHB")  # crc, size, and whether it is a whole record (1), a first, middle or last piece


def _log_records(path: str) -> Iterator[bytes]:
    """The records of a W&B transaction log: seven bytes of its own, then LevelDB's log format. A torn tail is left out."""
    with open(path, "rb") as file:
        data = file.read()
    place, pieces = 7, b""
    while place + _LOG_HEADER.size <= len(data):
        left = _LOG_BLOCK - place % _LOG_BLOCK
        if left < _LOG_HEADER.size:
            place += left
            continue
        _, size, kind = _LOG_HEADER.unpack_from(data, place)
        place += _LOG_HEADER.size
        if not kind or place + size > len(data):
            return
        pieces = data[place : place + size] if kind in (1, 2) else pieces + data[place : place + size]
        place += size
        if kind in (1, 4):
            yield pieces


class Writer(Tool):
    """SummaryWriter: torch's where torch is installed, else tensorboardX's. One `add_scalar` for each metric."""

    title = "SummaryWriter"
    install = "pip install torch tensorboard, or tensorboardX tensorboard"

    def load(self, directory: str) -> str:
        package = media_values.import_summary_writer().__module__.partition(".")[0]
        return f"{package} {importlib.metadata.version(package)}"

    def open(self, directory: str) -> tuple[Log, Finish]:
        writer = media_values.summary_writer(directory)
        add, step = writer.add_scalar, 0

        def log(data: dict[str, Any]) -> None:
            nonlocal step
            for name, value in data.items():
                add(name, value, step)
            step += 1

        return log, writer.close

    def read(self, directory: str, key: str) -> tuple[Any, Any]:
        """`EventAccumulator`, which keeps 10 000 points of a metric unless it is told to keep all."""
        import numpy

        try:
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        except ImportError as error:
            raise Missing(f"not installed: {error}") from None
        events = EventAccumulator(os.path.join(directory, "events"), size_guidance={"scalars": 0}).Reload()
        found = events.Scalars(key) if key in events.Tags()["scalars"] else []
        return numpy.array([each.step for each in found], "i8"), numpy.array([each.value for each in found], "f8")


class Lines(Tool):
    """JSON lines with step and time, into a buffered file: no flush, so that nobody could read it live."""

    title = "json.dumps + write"

    def load(self, directory: str) -> str:
        return f"Python {sys.version.partition(' ')[0]}"

    def open(self, directory: str) -> tuple[Log, Finish]:
        file = open(os.path.join(directory, "peer.jsonl"), "w", encoding="utf-8")  # noqa: SIM115 - open for the loop
        dumps, write, clock, step = json.dumps, file.write, time.time, 0

        def log(data: dict[str, Any]) -> None:
            nonlocal step
            write(dumps({"step": step, "time": clock(), **data}) + "\n")
            step += 1

        return log, file.close

    def read(self, directory: str, key: str) -> tuple[Any, Any]:
        import numpy

        steps, values = [], []
        with open(os.path.join(directory, "peer.jsonl"), encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):  # a kill may leave half a line
                    row = json.loads(line)
                    steps.append(row["step"])
                    values.append(row[key])
        return numpy.array(steps, "i8"), numpy.array(values, "f8")


class Handler(Tool):
    """`logging.FileHandler` with its usual format, which flushes each record to the kernel. Its text is for people."""

    title = "logging.FileHandler"
    reads = False

    def load(self, directory: str) -> str:
        return f"Python {sys.version.partition(' ')[0]}"

    def open(self, directory: str) -> tuple[Log, Finish]:
        return overhead.open_target("logging", directory)

    def read(self, directory: str, key: str) -> tuple[Any, Any]:
        """The lines are the steps; no values."""
        import numpy

        with open(os.path.join(directory, "peer.log"), "rb") as file:
            return numpy.arange(sum(line.endswith(b"\n") for line in file)), None


class Parquet(Tool):
    """A yardstick for size and reading, no logger: all rows are held in memory, and written at the end."""

    title = "Parquet (pyarrow)"
    install = "pip install pyarrow"
    parts: ClassVar[tuple[str, ...]] = ("size", "reading")

    def load(self, directory: str) -> str:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise Missing(f"not installed: {error}") from None
        return str(pyarrow.__version__)

    def open(self, directory: str) -> tuple[Log, Finish]:
        rows: list[dict[str, Any]] = []

        def log(data: dict[str, Any]) -> None:
            rows.append({"step": len(rows), "time_us": time.time_ns() // 1000, **data})

        def finish() -> None:
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), os.path.join(directory, "peer.parquet"))

        return log, finish

    def read(self, directory: str, key: str) -> tuple[Any, Any]:
        """Step, time and the metric, as `series` of stepd gives them."""
        import pyarrow.parquet

        path = os.path.join(directory, "peer.parquet")
        table = pyarrow.parquet.read_table(path, columns=["step", "time_us", key])
        return tuple(table.column(name).to_numpy() for name in ("step", key))


NOTHING = Nothing()
TOOLS: dict[str, Tool] = {
    "stepd": Stepd(),
    "wandb": Wandb(),
    "SummaryWriter": Writer(),
    "json": Lines(),
    "logging": Handler(),
    "parquet": Parquet(),
}


def by_name(name: str) -> Tool:
    """The tool, or the loop alone."""
    return TOOLS.get(name, NOTHING)
