"""W&B's package, offline: the `.wandb` files that it wrote, joined as `wandb sync` joins them."""

from __future__ import annotations

from pathlib import Path

from daemon.formats import wandb_file
from sdk.files import DISK
from tests.contracts.sides import (
    AGAIN,
    BOOL,
    FLOAT64,
    INFINITY,
    INTEGER,
    LISTS,
    MEDIA,
    NAN,
    NULL,
    TEXT,
    Held,
    bytes_below,
    digests,
)
from tests.wandb_rig import own_directories

_OWN = {"_step", "_timestamp", "_runtime"}


def records_of(path: Path) -> list[wandb_file.Record]:
    """All of a file, which must be whole."""
    file = DISK.open(str(path))
    try:
        log = wandb_file.Log(file)
        found = list(log.records())
    finally:
        file.close()
    assert not log.damage
    assert not log.is_torn
    return found


class Side:
    scheme = "wandb"
    exact = frozenset({NAN, INFINITY, NULL, TEXT, BOOL, INTEGER, FLOAT64, LISTS, MEDIA, AGAIN})
    is_shared = False
    is_huge = False
    is_slow = True

    def start(self, directory: Path) -> str:
        self.root = directory / "wandb"
        self._own = own_directories(directory)
        self._own.__enter__()
        return f"wandb:?mode=offline&dir={directory}"

    def read(self, url: str) -> Held:
        held: Held = {}
        for path in sorted(self.root.glob("offline-run-*/*.wandb")):
            run_id = ""
            for record in records_of(path):
                if isinstance(record, wandb_file.Run):
                    run_id = record.id
                    held.setdefault(run_id, {})
                elif isinstance(record, wandb_file.History):
                    for names, value in record.values:
                        if names[0] not in _OWN:
                            held[run_id].setdefault(".".join(names), []).append((record.step or 0, value))
        return held

    def written(self, url: str) -> dict[str, str]:
        return digests(self.root)

    def texts(self, url: str) -> list[bytes]:
        return bytes_below(self.root.parent)

    def key(self, key: str) -> str:
        return key.encode("utf-8", "replace").decode("utf-8")

    def stop(self) -> None:
        self._own.__exit__(None, None, None)
