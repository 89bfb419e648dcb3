"""A real MLflow server, read through its client as a user's script would."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from pathlib import Path
from typing import Any

from daemon.sync.targets.mlflow_names import key_of, name_of
from tests.contracts.sides import FLOAT64, LANES, LATE, MEDIA, NAN, ODD_KEYS, Held
from tests.mlflow_rig import artifacts, client, tracking_server

# What stands before the keys of all lanes but the main one.
_LANE = re.compile(r"(?:rank|lane)\d+/")


class Side:
    scheme = "mlflow"
    exact = frozenset({NAN, FLOAT64, MEDIA, LATE, LANES, ODD_KEYS})
    is_shared = True
    is_huge = False
    is_slow = True  # each look at it reads all that it has

    def start(self, directory: Path) -> str:
        return f"mlflow:{tracking_server().uri}"

    def read(self, url: str) -> Held:
        held: Held = {}
        experiments = [found.experiment_id for found in client().search_experiments()]
        for run in client().search_runs(experiments, max_results=1000):
            keys = held[key_of(run.data.tags["stepd.run_id"])] = {}
            for name in run.data.metrics:
                if name.startswith(("system/", "summary/")):
                    continue
                found = keys.setdefault(_LANE.sub("", key_of(name), count=1), [])
                found += [(metric.step, metric.value) for metric in client().get_metric_history(run.info.run_id, name)]
            for path in artifacts(run.info.run_id):
                if path.startswith("media/"):
                    above, _, name = path.removeprefix("media/").rpartition("/")
                    keys.setdefault(_LANE.sub("", key_of(above), count=1), []).append(
                        (int(name.partition("_")[0]), path)
                    )
            for values in keys.values():
                values.sort(key=lambda pair: pair[0])
        return held

    def written(self, url: str) -> dict[str, str]:
        """Every line of the tables that hold runs, and the files."""
        found = {}
        with sqlite3.connect(tracking_server().database) as database:
            for table in ("runs", "metrics", "params", "tags", "experiments"):
                lines: list[Any] = sorted(map(repr, database.execute(f"SELECT * FROM {table}")))
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
