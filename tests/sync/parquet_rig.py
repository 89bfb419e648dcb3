"""A store and a Parquet dataset of it, for the tests of `daemon.sync.targets.parquet`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet

from daemon.sync.carrying import carry_run
from daemon.sync.looking import run_names
from daemon.sync.outcome import Outcome
from daemon.sync.place import parse
from daemon.sync.registry import make
from daemon.sync.targets.parquet import ParquetTarget
from tests.builders import RunBuilder, StreamBuilder, make_store


class Rig:
    """Runs are made with `run`, carried with `carry`, read with `rows` and `files`."""

    def __init__(self, directory: Path, options: str = "") -> None:
        self.store = make_store(directory)
        self.root = directory / "set"
        self.url = f"parquet:{self.root}{options}"

    def run(self, run_id: str = "a41f", **facts: Any) -> tuple[RunBuilder, StreamBuilder]:
        run = RunBuilder(self.store, run_id, **facts)
        return run, run.stream()

    def target(self) -> ParquetTarget:
        made = make(parse(self.url))
        assert isinstance(made, ParquetTarget)
        return made

    def carry(self, target: ParquetTarget | None = None) -> Outcome:
        """All runs, with a new target unless one is given; the last one's outcome."""
        found = target or self.target()
        outcomes = [carry_run(self.store, name, found) for name in run_names(self.store)]
        return outcomes[-1]

    def paths(self, kind: str = "rows") -> list[Path]:
        return sorted((self.root / kind).rglob("*.parquet"))

    def names(self, kind: str = "rows") -> list[str]:
        return [path.name for path in self.paths(kind)]

    def rows(self, kind: str = "rows") -> list[dict[str, Any]]:
        """What is in all files of a kind, holes left out, in order of sequences."""
        found = [row for path in self.paths(kind) for row in read(path).to_pylist()]
        found.sort(key=lambda row: row.get("_sequence", 0))
        return [{key: value for key, value in row.items() if value is not None} for row in found]

    def types(self, kind: str = "rows") -> dict[str, str]:
        """The columns of the first file."""
        return {field.name: str(field.type) for field in read(self.paths(kind)[0]).schema}


def read(path: Path) -> Any:
    """One file, without what its directories say."""
    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read()
