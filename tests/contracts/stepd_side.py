"""Another store, read by the same reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdk.reader import Store
from sdk.reader.lanes import TRAINING
from sdk.reader.media import MediaItem
from sdk.segment.naming import STORE_FILE
from tests.contracts.sides import EVERYTHING, Held, bytes_below, digests

_OWN = ("_step", "_timestamp")


class Side:
    scheme = "stepd"
    exact = frozenset(EVERYTHING)
    is_shared = False
    is_huge = True
    may_fork = True
    is_copy = True

    def start(self, directory: Path) -> str:
        self.root = directory / "store"
        return f"stepd:{self.root}"

    def read(self, url: str) -> Held:
        held: Held = {}
        if not (self.root / STORE_FILE).exists():
            return held
        for run in Store(str(self.root)).runs():
            found: dict[tuple[str, int, int], Any] = {}
            for place, stream in enumerate(stream for stream in run.streams if stream.kind in TRAINING):
                hidden_from = run.hidden_from.get(stream.id)  # a stream that is asked for by its id gives those too
                for row in run.rows(stream=stream.id):
                    if hidden_from is not None and row["_step"] >= hidden_from:
                        continue
                    for key in row.keys() - set(_OWN):
                        found[key, row["_step"], place] = _plain(row[key])
            keys = held[run.id] = {}
            for (key, step, _), value in sorted(found.items(), key=lambda item: item[0][1:]):
                keys.setdefault(key, []).append((step, value))
        return held

    def written(self, url: str) -> dict[str, str]:
        return digests(self.root)

    def texts(self, url: str) -> list[bytes]:
        return bytes_below(self.root)

    def key(self, key: str) -> str:
        return key

    def stop(self) -> None:
        """Nothing runs."""


def _plain(value: Any) -> Any:
    return value.as_plain() if isinstance(value, MediaItem) else value
