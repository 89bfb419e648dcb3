"""Which series of a run are worth showing first, and which end of them is good: by what the user defined, then by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def choose_keys(keys: Iterable[str], defined: Mapping[str, Any], count: int) -> list[str]:
    """At most `count` keys: those with a summary defined, then losses and accuracies, then the rest; none with an underscore first.

    Args:
        defined: What `define_metric` said, by name.
    """

    def order(item: tuple[int, str]) -> tuple[int, int]:
        index, key = item
        said = defined.get(key)
        summary = said.get("summary") if isinstance(said, Mapping) else None
        if summary and "none" not in summary:
            return 0, index
        return (1, index) if good_end(key) or "loss" in key.lower() else (2, index)

    visible = [key for key in keys if not key.startswith("_")]
    return [key for _, key in sorted(enumerate(visible), key=order)][:count]


def good_end(key: str) -> str:
    """Which end of a series is good, by its name: "min", "max" or "" (not known)."""
    lower = key.lower()
    if any(word in lower for word in ("loss", "err", "perplexity", "ppl")):
        return "min"
    return "max" if any(word in lower for word in ("acc", "reward", "auc", "f1", "score", "bleu")) else ""
