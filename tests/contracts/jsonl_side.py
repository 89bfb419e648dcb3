"""Lines of JSON, read as a user would: last write wins by the sequence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.contracts.sides import EVERYTHING, Held, bytes_below, digests

_OWN = {"_step", "_timestamp", "_sequence", "_stream"}


class Side:
    scheme = "jsonl"
    exact = frozenset(EVERYTHING)
    is_shared = False
    is_huge = True
    may_fork = True

    def start(self, directory: Path) -> str:
        self.root = directory / "lines"
        return f"jsonl:{self.root}"

    def read(self, url: str) -> Held:
        held: Held = {}
        for facts in self.root.glob("*/*/facts.json"):
            found: dict[tuple[str, str, int], Any] = {}
            for path in sorted(facts.parent.glob("rows-*.jsonl")):
                for line in path.read_text(encoding="ascii").splitlines():
                    row = json.loads(line)
                    for key in row.keys() - _OWN:
                        found[key, row["_stream"], row["_step"]] = row[key]
            keys = held[json.loads(facts.read_text())["id"]] = {}
            for (key, _, step), value in sorted(found.items(), key=lambda item: item[0][2]):
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
