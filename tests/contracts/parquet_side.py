"""Parquet, read file by file as the documented view does: the highest sequence wins, what a resume hid is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet

from daemon.sync.targets.parquet.cells import column_name
from tests.contracts.sides import EVERYTHING, Held, bytes_below, digests

_OURS = ("_step", "_time", "_sequence", "_stream", "_attempt", "_rank", "_null")


class Side:
    scheme = "parquet"
    exact = frozenset(EVERYTHING)
    is_shared = False
    is_huge = True
    system: Any = None

    def start(self, directory: Path) -> str:
        self.root = str(directory / "set")
        return f"parquet:{self.root}"

    def names(self, kind: str) -> list[str]:
        """The dataset's files of a kind."""
        return [str(path) for path in sorted(Path(self.root, kind).rglob("*.parquet"))]

    def table(self, name: str) -> list[dict[str, Any]]:
        with pyarrow.parquet.ParquetFile(name, filesystem=self.system) as file:
            rows: list[dict[str, Any]] = file.read().to_pylist()
        return rows

    def read(self, url: str) -> Held:
        held: Held = {}
        hidden: dict[str, int] = {}
        ids: dict[str, str] = {}
        for name in self.names("runs"):
            (row,) = self.table(name)
            ids[_partition(name)] = row["id"]
            held[row["id"]] = {}
            hidden.update((one["stream"], one["hide_from"]) for one in row["streams"] if one["hide_from"] is not None)
        found: dict[tuple[str, str, str, int], tuple[int, Any]] = {}
        for name in self.names("rows"):
            for row in self.table(name):
                stream, step, sequence = row["_stream"], row["_step"], row["_sequence"]
                if step >= hidden.get(stream, step + 1):
                    continue
                values = {key: _listed(value) for key, value in row.items() if value is not None and key not in _OURS}
                values.update(dict.fromkeys(row.get("_null") or ()))
                for key, value in values.items():
                    place = (ids[_partition(name)], key, stream, step)
                    found[place] = max(found.get(place, (-1, None)), (sequence, value), key=lambda pair: pair[0])
        for (run, key, _, step), (_, value) in sorted(found.items(), key=lambda item: item[0][3]):
            held[run].setdefault(key, []).append((step, value))
        return held

    def written(self, url: str) -> dict[str, str]:
        return digests(Path(self.root))

    def texts(self, url: str) -> list[bytes]:
        return bytes_below(Path(self.root))

    def key(self, key: str) -> str:
        return column_name(key)

    def stop(self) -> None:
        """Nothing runs."""


def _listed(value: Any) -> Any:
    """A list, of its JSON."""
    return json.loads(value) if isinstance(value, str) and value.startswith("[") else value


def _partition(name: str) -> str:
    """The project and the run that a file's directories name."""
    return unquote("/".join(name.split("/")[-3:-1]))
