"""What `open_journal` returns: the functions of one stream, and the types they speak in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from .large import Large
from .page import Mark, Refusals, Taken
from .ring import Ring
from .waiting import Waiting

# (open step) -> ring and arena for this process, the facts of its first META record, what to call at the first log().
ChildMaker = Callable[[int], "tuple[Ring, Large | None, Mapping[str, Any], Callable[[], None] | None]"]


class Journal:
    """One stream's way into its ring.

    Attributes:
        log: The function; see the module's docstring. Signature ``log(data, step=None, commit=None, sync=None)``.
        mark: Call it for (position, next sequence, open step): consistent, from any thread.
        refusals: Call it for what was refused so far. `set_reason`: an index into `REFUSED_REASONS`, why from now on.
        replace_ring: Goes on in another file, when somebody removed the ring's; the sender's business.
        boundaries: Marks between which a batch may be cut, oldest first; the sender removes what it passed.
        piece_end, meta_end: Call them for the position behind the last record that does not commit its row / that is
            META or GAP: a batch that begins behind it holds none. `blob_end`: the same of records that announce blobs.
        lend: Lets the daemon read the ring as a session, or (0) nobody any more; `filling` is called by `log()` while a
            quarter of the ring waits for it. `look`: what it has stored so far. `open_gate`: blobs of private memory were stored.
            The sender's business.
        large: The blobs that are on their way; None: there may be none.
        waiting: The calls that wait for values from a device. `look_waiting` places those that have come (about as many as it
            is given), and says whether none waits any more; `give_up_waiting` refuses the rest. `open_step`: that of the next call,
            which the mark has only when nothing waits.
    """

    __slots__ = (
        "append_meta",
        "bind_child",
        "blob_end",
        "boundaries",
        "close_log",
        "deferred",
        "drain_deferred",
        "give_up_waiting",
        "hold",
        "is_inside",
        "is_unbound",
        "large",
        "late_dropped",
        "left_out",
        "lend",
        "let_go",
        "log",
        "look",
        "look_waiting",
        "mark",
        "meta_end",
        "open_gate",
        "open_step",
        "piece_end",
        "refusals",
        "release",
        "replace_ring",
        "report_gap",
        "ring",
        "set_reason",
        "waiting",
    )

    log: Callable[..., None]
    mark: Callable[[], Mark]
    piece_end: Callable[[], int]
    meta_end: Callable[[], int]
    blob_end: Callable[[], int]
    large: Large | None
    refusals: Callable[[], Refusals]
    release: Callable[[Mark], None]
    replace_ring: Callable[[], None]
    lend: Callable[[int, Callable[[], None]], None]
    look: Callable[[], Taken | None]
    open_gate: Callable[[], None]
    open_step: Callable[[], int]
    set_reason: Callable[[int], None]
    append_meta: Callable[[Mapping[str, Any]], int]
    drain_deferred: Callable[[], None]
    report_gap: Callable[[], bool]
    bind_child: Callable[[ChildMaker], None]
    hold: Callable[[], None]
    is_inside: Callable[[], bool]
    is_unbound: Callable[[], bool]
    let_go: Callable[[], None]
    close_log: Callable[[str], None]
    late_dropped: Callable[[], int]
    left_out: Callable[[], dict[str, str]]
    ring: Ring
    boundaries: deque[Mark]
    deferred: deque[Any]
    waiting: deque[Waiting]
    look_waiting: Callable[..., bool]
    give_up_waiting: Callable[[], None]
