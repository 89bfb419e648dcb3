"""One event file that grows: what was written of each tag, and what comes too late for it.

TensorBoard's fast loader drops of a tag what it has at or behind a step that comes after it. So the steps of a tag only rise here;
a value whose step does not is not written but counted, and the run's files are written anew once the run is over.
"""

from __future__ import annotations

from typing import Any

from daemon.formats import events
from daemon.formats.plugins import Shown
from daemon.formats.tfrecord import record
from daemon.sync.appending import AppendFile
from sdk.files import Buffer
from sdk.limits import MIB

GRAPHS = "graphs"
_WRITE_BYTES = 4 * MIB


class EventFile:
    """The file of one lane in one directory.

    Args:
        told: What `force` returned the last time; None: the file begins anew.
        wall_time: Of its first event.

    Attributes:
        late: How many values were not written.
        size: How many bytes were written by this pass.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is shorter than it was.
    """

    def __init__(self, path: str, told: dict[str, Any] | None, wall_time: float) -> None:
        self.late = self.size = 0
        self._parts: list[Buffer] = []
        self._waiting = 0
        self._file = AppendFile(path, told["length"] if told else 0)
        # By plugin: the last step of each of its tags.
        self._steps: dict[str, dict[str, int]] = (
            {name: dict(tags) for name, tags in told["tags"].items()} if told else {}
        )
        if told is None:
            self.add(record(events.first_event(wall_time)))
            # Readers take the first START that they meet in a directory for the beginning, and each further one for a restart: where
            # this file replaces another, what they have of that goes.
            self.add(record(events.session_start(wall_time, 0)))

    def tag_of(self, tag: str, plugin: str) -> str:
        """The tag for values of a plugin: readers take a tag to belong to one, that of its first value."""
        own = self._steps.setdefault(plugin, {})
        while tag not in own and any(tag in tags for tags in self._steps.values()):
            tag = f"{tag}/{plugin}"
        return tag

    def last_steps(self, plugin: str) -> dict[str, int]:
        """The last step of each tag of a plugin, by its tag; whoever writes rows keeps it up to date."""
        return self._steps.setdefault(plugin, {})

    def show(self, tag: str, shown: Shown, step: int, wall_time: float) -> bool:
        """Writes one value; False: its step is not above the tag's last, and it is counted as late."""
        tag = self.tag_of(tag, shown.plugin)
        steps = self._steps[shown.plugin]
        if step <= steps.get(tag, -1):
            self.late += 1
            return False
        steps[tag] = step
        if shown.plugin == GRAPHS:
            self.add(record(events.event(wall_time, step, events.GRAPH_DEF, shown.tensor)))
        else:
            value = events.value(tag, shown.tensor, shown.described)
            self.add(record(events.summary(wall_time, step, [value])))
        return True

    def rewind(self, step: int, wall_time: float) -> bool:
        """Says that rows from a step on count no more; False: none were written."""
        behind = [(tags, tag) for tags in self._steps.values() for tag, last in tags.items() if last >= step]
        if not behind:
            return False
        for tags, tag in behind:
            tags[tag] = step - 1
        self.add(record(events.session_start(wall_time, step)))
        return True

    def add(self, data: Buffer) -> None:
        """Appends whole records. The bytes must stay as they are until the next `force`."""
        size = memoryview(data).nbytes
        self._parts.append(data)
        self._waiting += size
        self.size += size
        if self._waiting >= _WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._parts:
            self._file.write(self._parts)
        self._parts, self._waiting = [], 0

    def force(self) -> dict[str, Any]:
        """Forces everything to the disk, and returns what the next pass wants to know."""
        self._flush()
        return {"length": self._file.force(), "tags": {name: dict(tags) for name, tags in self._steps.items() if tags}}

    def close(self) -> None:
        self._parts = []
        self._file.close()
