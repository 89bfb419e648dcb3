"""Event files, read with TensorBoard's own reader, as its pages get them: tensors of all tags, without any left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.contracts import sides
from tests.contracts.sides import Held, bytes_below, digests


class Side:
    scheme = "tensorboard"
    exact = frozenset((
        sides.NAN, sides.INFINITY, sides.TEXT, sides.MEDIA, sides.LATE, sides.AGAIN, sides.LANES, sides.REWIND,
    ))  # fmt: skip
    is_shared = False
    is_huge = False  # its reader takes 15 s
    may_fork = True

    def start(self, directory: Path) -> str:
        self.root = directory / "logs"
        return f"tensorboard:{self.root}"

    def read(self, url: str) -> Held:
        held: Held = {}
        # A long id is in its directory's name only as a digest; the cursor says whose that is.
        for cursor in sorted(self.root.glob(".stepd-sync/tensorboard/*.json")):
            told = json.loads(cursor.read_text(encoding="ascii"))
            keys = held.setdefault(told["run"], {})
            for path in sorted(Path(self.root, told["state"]["directory"]).rglob("*tfevents*")):
                for key, values in read_events(path.parent).items():
                    keys.setdefault(key, []).extend((step, value) for step, _, value in values)
        return {run: {key: sorted(keys[key], key=lambda one: one[0]) for key in keys} for run, keys in held.items()}

    def written(self, url: str) -> dict[str, str]:
        return digests(self.root)

    def texts(self, url: str) -> list[bytes]:
        return bytes_below(self.root)

    def key(self, key: str) -> str:
        return key.encode("utf-8", "replace").decode()

    def stop(self) -> None:
        """Nothing runs."""


def read_events(directory: Path) -> dict[str, list[tuple[int, float, Any]]]:
    """By tag (step, wall time, value) of all values in one directory, by TensorBoard's Python reader."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    found = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    found.Reload()
    made: dict[str, list[tuple[int, float, Any]]] = {}
    for tag in found.Tags()["tensors"]:
        plugin = found.SummaryMetadata(tag).plugin_data.plugin_name
        if plugin == "hparams":
            continue
        for event in found.Tensors(tag):
            array = tensor_util.make_ndarray(event.tensor_proto)
            value: Any = array
            if plugin == "scalars":
                value = array.item()
            elif plugin == "text":
                value = array.ravel()[0].decode()
            made.setdefault(tag, []).append((event.step, event.wall_time, value))
    return made
