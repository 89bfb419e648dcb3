"""How far one run was carried to one target: a JSON file, replaced as a whole each time something more is safe there.

    {"format": 1, "run": id, "target": URL, "streams": {hex: [[first, last], …]}, "rows": {"next_step": n, "seen": {…}} or null,
     "made": [last sequence, digest], "state": what the target keeps, "lost": {what: {key: count}}, "told": [remark, …], "source": {…}}

It lies in the target where that is a directory here, else in the store (`<store>/sync/<digest of the URL>/`): sync writes nothing
into a run's directory. What cannot be read counts as not there, so the run is carried again from its first row; a target that took
rows already knows what to do with them (docs/sync.md). What is too large is an error instead, or every pass would begin anew.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any

from sdk.errors import StoreError
from sdk.files import DISK, Files, read_whole
from sdk.ids import hex_u64, run_directory
from sdk.limits import MIB
from sdk.reader.delivery import Delivered, RowsInOrder

SYNC = "sync"
_FORMAT = 1
# Limit: a run of 10 000 ranks with a range for each is under 1 MiB; the state of a target may have a line for each key.
_BYTES_MAX = 64 * MIB


class Cursor:
    """How far one run was carried.

    Attributes:
        delivered: Of streams that are carried row by row.
        rows: Of whole rows in order of steps; None: nobody asked for them.
        made: Of values that are made of others: the last sequence they were given under, and their digest.
        state: What the target keeps.
        lost: What the target could not hold -> key ("" of none) -> how often.
        told: Remarks.
        source: What the driver knows of the source: its looks and the damage it had.
        was_for: The URL of the target as it was named by whoever wrote the file.
        run_id: None: of whichever run the file is.
    """

    def __init__(self, path: str, run_id: str | None, target: str, files: Files = DISK) -> None:
        self.path = path
        self.run_id, self._target, self._files = run_id, target, files
        self.delivered: Delivered = {}
        self.rows: RowsInOrder | None = None
        self.made: tuple[int, str] = (0, "")
        self.state: dict[str, Any] = {}
        self.lost: dict[str, dict[str, int]] = {}
        self.told: list[str] = []
        self.source: dict[str, Any] = {}
        self.is_new = True
        self.was_for = ""

    def read(self) -> None:
        """Takes over what the file says.

        Raises:
            StoreError: It was written by a newer version, which may mean something else by it, or is too large to be read.
        """
        try:
            found = json.loads(self._whole())
            if found["format"] != _FORMAT:
                raise StoreError(
                    f"{self.path!r} is of format {found['format']!r}, this version knows {_FORMAT}",
                    hint="pip install . in a newer clone of stepd",
                )
            if self.run_id is not None and found["run"] != self.run_id:
                return
            delivered = _ranges(found["streams"])
            rows = found["rows"]
            in_order = None if rows is None else RowsInOrder(int(rows["next_step"]), _ranges(rows["seen"]))
            made = int(found["made"][0]), str(found["made"][1])
            lost = {str(what): {str(k): int(n) for k, n in keys.items()} for what, keys in found["lost"].items()}
            run_id = str(found["run"])
            was_for = str(found["target"])
            state, told, source = dict(found["state"]), [str(text) for text in found["told"]], dict(found["source"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return
        self.delivered, self.rows, self.made, self.state, self.lost = delivered, in_order, made, state, lost
        self.run_id = run_id
        self.told, self.source, self.was_for, self.is_new = told, source, was_for, False

    def _whole(self) -> bytes:
        try:
            return read_whole(self._files, self.path, _BYTES_MAX)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise StoreError(
                f"cannot read how far a run was carried: {self.path!r} {error.strerror}",
                hint="remove the file: the run is then carried again from its first row",
            ) from None

    def write(self) -> None:
        """Replaces the file; the directory is made if it is not there.

        Raises:
            OSError: The disk refuses. The file is as it was.
            StoreError: There is too much to be kept, so that nothing could read it. Likewise.
        """
        rows = self.rows
        told = {
            "format": _FORMAT, "run": self.run_id, "target": self._target, "streams": _named(self.delivered),
            "rows": None if rows is None else {"next_step": rows.next_step, "seen": _named(rows.seen)},
            "made": list(self.made), "state": self.state, "lost": self.lost, "told": self.told, "source": self.source,
        }  # fmt: skip
        data = json.dumps(told, separators=(",", ":")).encode("ascii")
        if len(data) > _BYTES_MAX:
            raise StoreError(
                f"cannot note in {self.path!r} how far a run was carried: {len(data)} bytes, expected at most {_BYTES_MAX}",
                hint="a target whose state is smaller: fewer keys, or ?layout=long of parquet",
            )
        self._files.make_directory(os.path.dirname(self.path))
        self._files.write_whole(self.path, data)
        self.is_new = False

    def forget(self) -> None:
        """Begins anew. The file stays until `write`."""
        self.delivered, self.rows, self.made = {}, None, (0, "")
        self.state, self.lost, self.told = {}, {}, []


def cursor_path(directory: str, run_id: str) -> str:
    return os.path.join(directory, f"{run_directory(run_id)}.json")


def _named(ranges: Delivered) -> dict[str, list[list[int]]]:
    return {hex_u64(stream): [list(pair) for pair in pairs] for stream, pairs in ranges.items() if pairs}


def _ranges(found: dict[str, Any]) -> Delivered:
    return {int(stream, 16): [(int(first), int(last)) for first, last in pairs] for stream, pairs in found.items()}
