"""A real MLflow server with SQLite."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

from daemon.sync.targets.mlflow_names import key_of, name_of
from tests.contracts.sides import FLOAT64, LANES, LATE, MEDIA, NAN, ODD_KEYS, Held
from tests.mlflow_rig import tracking_server

# What stands before the keys of all lanes but the main one.
_LANE = re.compile(r"(?:rank|lane)\d+/")


class Side:
    scheme = "mlflow"
    exact = frozenset({NAN, FLOAT64, MEDIA, LATE, LANES, ODD_KEYS})
    is_shared = True
    is_huge = False
    is_slow = True  # some ten requests for each pass of a run

    def start(self, directory: Path) -> str:
        return f"mlflow:{tracking_server().uri}"

    def read(self, url: str) -> Held:
        """From its tables, because a request for each metric takes seconds: tests/sync/test_mlflow.py asks for them."""
        held: Held = {}
        select = tracking_server().select
        runs = dict(select("SELECT run_uuid, value FROM tags WHERE key = 'stepd.run_id'"))
        metrics = select("SELECT run_uuid, key, step, value, is_nan FROM metrics ORDER BY step, timestamp")
        for run in runs.values():
            held[key_of(run)] = {}
        for run, name, step, value, is_nan in metrics:
            if not name.startswith(("system/", "summary/")):
                self._add(held[key_of(runs[run])], name, step, math.nan if is_nan else value)
        for path in self._files():
            _, run, _, *above, name = path.relative_to(tracking_server().directory / "artifacts").parts
            if above[:1] == ["media"]:
                self._add(held[key_of(runs[run])], "/".join(above[1:]), int(name.partition("_")[0]), name)
        return held

    def _add(self, keys: dict[str, list[tuple[int, Any]]], name: str, step: int, value: Any) -> None:
        keys.setdefault(_LANE.sub("", key_of(name), count=1), []).append((step, value))

    def written(self, url: str) -> dict[str, str]:
        """Every line of the tables that hold runs, and the files."""
        found = {}
        for table in ("runs", "metrics", "params", "tags", "experiments"):
            lines = sorted(map(repr, tracking_server().select(f"SELECT * FROM {table}")))
            found[table] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return {**found, **{path.name: str(path.stat().st_size) for path in self._files()}}

    def texts(self, url: str) -> list[bytes]:
        return [tracking_server().database.read_bytes(), *(path.read_bytes() for path in self._files())]

    def _files(self) -> list[Path]:
        return [path for path in (tracking_server().directory / "artifacts").rglob("*") if path.is_file()]

    def key(self, key: str) -> str:
        return key_of(name_of(key))  # a long one ends in a digest

    def stop(self) -> None:
        """The next module's tests use it too; it ends with the process."""
