"""Media of a run: files beside the rows, and what stands of them in a cell.

A cell holds JSON: what the value says of itself, and the `path` of its file below the dataset's root. Histograms stand in the cell
whole: of a layer each step they would be more files than rows. Masks of an image and cells of a table are described likewise.
"""

from __future__ import annotations

import hashlib
from typing import Any

from daemon.sync.passage import Passage
from daemon.sync.targets.parquet.cells import strict_json
from daemon.sync.targets.parquet.roots import Root
from sdk.errors import DamageError, Error, NotFoundError
from sdk.reader.media import MediaItem

_INSIDE = "histogram"
_BLOB = "blob"
_NESTING_MAX = 64


class Beside:
    """Puts the media of one run beside its rows.

    Args:
        where: The run's directories.
        is_wanted: False: cells say what there was, nothing is put.
    """

    def __init__(self, root: Root, where: str, passage: Passage, *, is_wanted: bool) -> None:
        self._root, self._where, self._passage = root, where, passage
        self._is_wanted = is_wanted
        self.size = 0

    def described(self, value: Any, key: str, stream: str, sequence: int) -> Any:
        """A value as plain ones."""
        return self._plain(value, key, f"media/{self._where}/{stream}/{sequence}", 0)

    def _plain(self, value: Any, key: str, place: str, depth: int) -> Any:
        if isinstance(value, MediaItem):
            return self._item(value, key, place, depth)
        if depth < _NESTING_MAX and isinstance(value, dict):
            return {
                name: self._plain(part, f"{key}.{name}", place, depth + 1)
                for name, part in value.items()
                if not _is_blob(part)
            }
        if depth < _NESTING_MAX and isinstance(value, (list, tuple)):
            return [self._plain(part, f"{key}[{at}]", place, depth + 1) for at, part in enumerate(value)]
        return value

    def _item(self, item: MediaItem, key: str, place: str, depth: int) -> dict[str, Any]:
        told: dict[str, Any] = self._plain(item.value, key, place, depth + 1)
        try:
            if item.kind == _INSIDE:
                told.update(values=item.values, bins=item.bins)
            elif self._is_wanted:
                told["path"] = self._put(item, key, place, depth)
        except (NotFoundError, DamageError) as error:
            self._passage.lost("media whose bytes are not stored", item.key)
            told["missing"] = error.message
        except Error as error:
            self._passage.lost("media that cannot be encoded here", item.key)
            told["missing"] = error.message
        return told

    def _put(self, item: MediaItem, key: str, place: str, depth: int) -> str:
        if item.kind == "table":
            rows = self._plain(item.rows, key, place, depth + 1)
            data = strict_json({"columns": item.columns, "data": rows}).encode()
        else:
            data = item.bytes()
        # Its own name is made for people, and two keys may have the same one.
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        name = f"{place}-{digest}-{item.file_name}"
        self._root.put_later(name, data)
        self.size += len(data)
        return name


def _is_blob(part: Any) -> bool:
    return isinstance(part, MediaItem) and part.kind == _BLOB
