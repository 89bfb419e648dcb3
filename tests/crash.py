"""What a disk may hold after a crash, built from the operations that `RecordingFiles` noted.

Two kinds of crash. A killed process leaves everything that its calls did: each operation before the crash, and of the
last write any first part. A power loss leaves what was forced, and of everything else any subset:

* bytes are safe once their file was forced, unless that failed in between: what a failed fsync left behind is never safe,
  whatever a later one says;
* a name (made, moved or removed) is safe once its directory was forced, also after an earlier try that failed: a file
  system that cannot write names becomes read-only. A rename happens whole or not at all;
* a write that is not safe may be there, be gone, have left zeros of its size (the size is a matter of names, the bytes
  came too late), or be there in some of its 512-byte sectors.

This is more than any one file system does (ext4 keeps names in order): what holds here, holds on all of them (Pillai et
al., "All File Systems Are Not Created Equal", OSDI 2014).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence

from sdk.files.recording import FAILED_SYNC, NAME, SYNC, TRUNCATE, UNNAME, WRITE, Operation

SECTOR = 512

# What becomes of an operation that is not safe: what of it was done, in parts.
Fate = Callable[[Operation], "Sequence[Operation]"]
# Path below the root to a file's bytes; None is a directory.
Tree = dict[str, "bytes | None"]


def safe_from(operations: Sequence[Operation], known: int) -> list[int]:
    """For each operation, how many must have been done for it to survive a power loss; more than there are: never."""
    never = len(operations) + 1
    safe = [never] * len(operations)
    waiting: dict[int, list[int]] = {}
    for index, operation in enumerate(operations):
        if index < known:
            safe[index] = 0
        elif operation.kind == SYNC:
            for earlier in waiting.pop(operation.node, ()):
                safe[earlier] = index + 1
        elif operation.kind == FAILED_SYNC:
            if not operation.is_directory:
                waiting.pop(operation.node, None)
        else:
            named = operation.kind in (NAME, UNNAME)
            waiting.setdefault(operation.directory if named else operation.node, []).append(index)
    return safe


def build(operations: Sequence[Operation], unsafe: Sequence[bool], fate: Fate) -> Tree:
    """The tree that is left when each operation marked in `unsafe` becomes what `fate` says."""
    names: dict[int, dict[str, int]] = {}
    contents: dict[int, bytearray] = {}
    for operation, may_fail in zip(operations, unsafe):
        for done in fate(operation) if may_fail else (operation,):
            _do(done, names, contents)
    directories = {operation.node for operation in operations if operation.is_directory}
    tree: Tree = {}
    _walk(tree, "", 0, names, contents, directories)
    return tree


def _do(done: Operation, names: dict[int, dict[str, int]], contents: dict[int, bytearray]) -> None:
    if done.kind == WRITE:
        content = contents.setdefault(done.node, bytearray())
        content.extend(bytes(max(done.offset - len(content), 0)))
        content[done.offset : done.offset + len(done.data)] = done.data
    elif done.kind == TRUNCATE:
        del contents.setdefault(done.node, bytearray())[done.offset :]
    elif done.kind == NAME:
        for directory, name in done.gone:
            names.get(directory, {}).pop(name, None)
        names.setdefault(done.directory, {})[done.name] = done.node
    elif done.kind == UNNAME:
        names.get(done.directory, {}).pop(done.name, None)


def _walk(
    tree: Tree,
    above: str,
    directory: int,
    names: dict[int, dict[str, int]],
    contents: dict[int, bytearray],
    all_: set[int],
) -> None:
    for name, node in names.get(directory, {}).items():
        path = f"{above}/{name}" if above else name
        if node in all_:
            tree[path] = None
            _walk(tree, path, node, names, contents, all_)
        else:
            tree[path] = bytes(contents.get(node, b""))


def write_tree(tree: Tree, root: str) -> None:
    """Makes the tree on the real disk, under the empty directory `root`."""
    for path, content in tree.items():
        full = os.path.join(root, path)
        if content is None:
            os.mkdir(full, 0o700)
        else:
            descriptor = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(descriptor, content)
            os.close(descriptor)


def torn(operation: Operation, size: int) -> Operation:
    """A write of which only the first `size` bytes are there."""
    return operation._replace(data=operation.data[:size])


def nothing(_: Operation) -> Sequence[Operation]:
    """Nothing survives that was not forced."""
    return ()


def names_only(operation: Operation) -> Sequence[Operation]:
    """Files have their names and no bytes."""
    return () if operation.kind in (WRITE, TRUNCATE) else (operation,)


def bytes_only(operation: Operation) -> Sequence[Operation]:
    """Bytes came through, names did not."""
    return (operation,) if operation.kind in (WRITE, TRUNCATE) else ()


def zeros(operation: Operation) -> Sequence[Operation]:
    """Files have their names and sizes, and zeros for bytes."""
    return (operation._replace(data=bytes(len(operation.data))),)


def by_chance(source: random.Random) -> Fate:
    """Any subset: each operation kept, dropped or kept in parts, by a coin that is loaded anew for each state."""
    kept = source.choice((0.1, 0.3, 0.5, 0.7, 0.9))

    def fate(operation: Operation) -> Sequence[Operation]:
        if source.random() < kept:
            return (operation,)
        if operation.kind != WRITE or source.random() < 0.5:
            return ()
        if source.random() < 0.5:
            return zeros(operation)
        return [part for part in _sectors(operation) if source.random() < 0.5]

    return fate


def _sectors(operation: Operation) -> Iterator[Operation]:
    """A write as one for each sector of the file that it touches."""
    start, end = operation.offset, operation.offset + len(operation.data)
    for sector in range(start - start % SECTOR, end, SECTOR):
        low, high = max(sector, start), min(sector + SECTOR, end)
        yield operation._replace(offset=low, data=operation.data[low - start : high - start])
