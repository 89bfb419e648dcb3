"""`log()` itself: the one function of this package that runs in a training loop.

It packs the caller's dict once, copies the bytes into the ring, and publishes the new head with one aligned store. It
does no I/O, takes one uncontended lock, and its only limit is the ring.

Contract, for the caller who holds `Journal.log`:

* Any thread may call; the order of records is the order of the lock.
* A call that an exception leaves (Ctrl-C anywhere inside) has logged the record or has not; nothing is between.
* A call from a signal handler, a finaliser or a value's own `__float__` inside another call is packed at once and
  appended by the outer call. Foreign code (`__float__`, `__array__`) runs outside the lock.
* A full ring refuses: the record takes no sequence number, and count and steps go into the ring's header page, from
  where they become a GAP record (docs/segment.md#gap). With ``on_full="block"`` the call waits instead.
* A call with a value that is still on a device is accepted when that has come, in its place in the order of calls; later
  calls wait behind it (docs/journal.md#deferred-records).
* A forked child writes nothing until `rebind` gave it a ring of its own.

Shape of the state: one tuple `mark` = (position, next sequence, open step), replaced by a single store after the bytes
are in place. So an interrupt cannot leave half a change, and the sender reads a consistent state without the lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from .. import clock, values
from ..errors import UsageError
from ..limits import BATCH_BYTES_MAX, MIB, REFUSED_DEVICE, STEP_GIVEN_MAX
from ..record import (
    FLAG_COMMIT,
    FLAG_LATE,
    FLAGS_SHIFT,
    HEADER_SIZE,
    KIND_BLOB,
    KIND_GAP,
    KIND_META,
    KIND_ROW,
    KIND_SHIFT,
    WORDS,
    encode_map,
)
from .calls import Foreign, Full, Prepared, is_from_elsewhere, nothing
from .format import WORD_HEAD
from .handle import ChildMaker, Journal
from .large import Call, Large
from .page import Mark, Refusals, Taken
from .preparing import Preparing
from .ring import Ring, reserved_bytes
from .steps import StepError, check_step
from .waiting import PLACED_MAX, Line, Waiting

# Limit: at least every so many bytes the appender notes where a record ends, so that a batch can end there.
_BOUNDARY_BYTES = MIB // 2
# A record takes at most this share of the ring; a wider dict is split into pieces of the same row.
_RECORD_SHARE = 8
# ... and a batch holds any record, however large a ring somebody chose.
_RECORD_BYTES_MAX = BATCH_BYTES_MAX // 2
_FIRST_WORD = KIND_ROW << KIND_SHIFT
_COMMIT_WORD = _FIRST_WORD | FLAG_COMMIT << FLAGS_SHIFT


def _measures(capacity: int) -> tuple[int, int, int]:
    """Of a ring: the mask that makes offsets of positions, the largest record, what is reserved."""
    return capacity - 1, min(capacity // _RECORD_SHARE, _RECORD_BYTES_MAX), reserved_bytes(capacity)


def open_journal(
    ring: Ring,
    *,
    first_step: int = 0,
    late_steps: str = "merge",
    misuse: str = "raise",
    on_full: str = "refuse",
    defers: bool = True,
    on_first_log: Callable[[], None] | None = None,
    on_notice: Callable[[str, str], None] = lambda topic, text: None,
    large: Large | None = None,
) -> Journal:
    """Makes the functions of a stream.

    Args:
        ring: Empty, made by this process.
        first_step: The open step to begin with.
        late_steps: "merge", "drop" or "error": what a step below the open one does.
        misuse: "raise", or "warn": leave out what cannot be stored, count, mark and tell once per key.
        on_full: "refuse" (and count) or "block".
        defers: Whether a call waits in line for values from a device; else they are fetched.
        on_first_log: Called once, by the first call of `log`, before its record is placed.
        on_notice: Gets (topic, text) of what a user should be told once.
        large: Takes the bytes of large values; without it there may be none.
    """
    lock = threading.RLock()
    owned: Callable[[], bool] = lock._is_owned  # type: ignore[attr-defined]
    data, words, capacity = ring.data, ring.words, ring.capacity
    mask, record_max, reserved = _measures(capacity)
    pack_words = WORDS.pack_into
    now = clock.wall_ns
    deferred: deque[tuple[Prepared, int | None, bool | None]] = deque()
    boundaries: deque[Mark] = deque()
    preparing = Preparing(misuse, on_notice, defers=defers)
    # What waits for a device, in order; while anything does, `limit` is 0 and every call takes the slow way (`waiting`).
    line = Line(lambda *placed: put_row(*placed), lambda row: refuse(row, REFUSED_DEVICE), lambda: mark)
    waiting = line.calls
    mark: Mark = (0, 1, first_step)
    released = 0
    refusals, reason = Refusals(), 0
    limit = 0  # the position up to which a record may be placed without a look at anything else
    last_boundary = 0
    piece_end = meta_end = blob_end = 0
    refusing = False
    dropped_late = 0
    stopped: str | None = None
    child_ring: ChildMaker | None = None
    # Whether the daemon reads the ring itself, what it said last, and what to call while half the ring waits for it.
    lent, filling = False, nothing
    taken: Taken | None = None

    def convert_known(value: object) -> object:
        convert = values.KNOWN_SCALARS.get(type(value))
        if convert is None:
            raise Foreign
        return convert(value)

    pack: Callable[[object], bytes] = msgpack.Packer(default=convert_known).pack

    def log(data_: Any, step: int | None = None, commit: bool | None = None, sync: object = None) -> None:
        nonlocal mark, piece_end
        if owned():
            defer(data_, step, commit)
            return
        try:
            if type(data_) is not dict:
                raise Foreign
            # Invariant: no loop inside the `with`, here or wherever a lock is held (tests/tidy). CPython 3.13.0 takes a
            # signal at the jump back of such a loop for one outside of the block, and leaves the lock held when the
            # handler raises: 561 of 3000 interrupts.
            for key in data_:
                if type(key) is not str:
                    raise Foreign
            with lock:
                payload = pack(data_)
                head, sequence, open_step = mark
                size = HEADER_SIZE + len(payload)
                tail = head + size
                start = head & mask
                if tail > limit or start + size > capacity:
                    if size > record_max or waiting:
                        raise Foreign
                    append_row(Prepared([payload], 0, None), step, commit)
                    return
                if step is None and (commit is None or commit is True):
                    pack_words(data, start, size | _COMMIT_WORD, sequence, open_step, now())
                    open_step += 1
                elif commit is None and type(step) is int and open_step <= step <= STEP_GIVEN_MAX:
                    pack_words(data, start, size | _FIRST_WORD, sequence, step, now())
                    open_step, piece_end = step, tail
                else:
                    append_row(Prepared([payload], 0, None), step, commit)
                    return
                data[start + HEADER_SIZE : start + size] = payload
                mark = (tail, sequence + 1, open_step)
                words[WORD_HEAD] = tail
        except (Foreign, UnicodeEncodeError, OverflowError, ValueError, RecursionError, TypeError, Full) as error:
            release_leaked()
            if (isinstance(error, StepError) and misuse != "warn") or is_from_elsewhere(error, convert_known.__code__):
                raise
            log_slowly(data_, step, commit)
        except BaseException:
            release_leaked()
            raise
        # Not inside the try: the record is published, and an error from here must not log it again.
        if deferred:
            drain_deferred()

    def release_leaked() -> None:
        """Frees the lock if an interrupt left it held. Called where this thread cannot own it for another reason.

        Race: CPython 3.10 looks for signals between the end of a `with` block and its `__exit__` as well; an exception
        there leaves the lock held (278 of 10 000 interrupts).
        """
        if owned():
            lock.release()

    def log_slowly(data_: Any, step: int | None, commit: bool | None) -> None:
        """The call again, for everything the fast path does not know: conversion, splitting, waiting, errors of use."""
        call = prepare(data_)
        if not call.payloads and call.awaited is None:
            return
        step, call = preparing.permitted_step(step, call)
        while True:
            if waiting:
                look_waiting(PLACED_MAX)
            try:
                with lock:
                    append_row(call, step, commit)
                break
            except Full:
                clock.pause(0.001)
            except BaseException:
                release_leaked()
                raise
        if call.awaited is not None:  # jax may have it already
            look_waiting(PLACED_MAX)

    def prepare(data_: Any) -> Prepared:
        """Without the lock. In a forked child its own ring comes first: the parent's arena is not for its large values."""
        if child_ring is not None and not owned():
            with lock:
                if child_ring is not None:
                    rebind()
        return preparing.prepare(data_, large, record_max, capacity)

    def defer(data_: Any, step: int | None, commit: bool | None) -> None:
        """A call inside another call of the same thread."""
        if stopped is not None:
            raise UsageError(stopped)
        call = prepare(data_)
        if call.payloads or call.awaited is not None:
            step, call = preparing.permitted_step(step, call)
            deferred.append((call, step, commit))

    def drain_deferred() -> None:
        """Appends what re-entrant calls left: after log() let go of the lock, and by the sender."""
        if not owned():
            with lock:
                append_deferred()

    def append_deferred() -> None:
        """Under the lock, and not while a record is being placed."""
        while deferred:
            call, step, commit = deferred[0]
            before = mark
            try:
                append_row(call, step, commit)
            except Full:
                return  # on_full="block": they wait for room like everything else
            except UsageError as error:
                on_notice("deferred", f"a log() call from inside another one was left out: {error}")
            except BaseException:
                # Race: Python 3.10 looks for signals after the call as well, when the record is there already.
                if mark is not before:
                    del deferred[0]
                raise
            # Race: nothing between the append and this del may be interrupted into losing or doubling the call;
            # CPython looks for signals at calls and jumps back, and here is neither.
            del deferred[0]

    def append_row(call: Prepared, step: int | None, commit: bool | None) -> None:
        """Decides step and flags of one call under the lock, by the table in DESIGN ("What `log` means"), and places it."""
        nonlocal dropped_late, limit, mark, on_first_log
        payloads, flags, _, awaited = call
        if stopped is not None:
            raise UsageError(stopped)
        if child_ring is not None:
            rebind()
        if len(payloads) == 1 and len(payloads[0]) > record_max - HEADER_SIZE:
            raise Foreign  # to be split, outside the lock
        if on_first_log is not None:
            callback, on_first_log = on_first_log, None
            callback()
        open_step = mark[2] if mark[2] > line.after else line.after
        row = (
            open_step
            if step is None
            else step
            if type(step) is int and 0 <= step <= STEP_GIVEN_MAX
            else check_step(step)
        )
        if row < open_step:
            if late_steps == "error":
                raise UsageError(f"log() step {row} is below the open step {open_step}, and late_steps is 'error'")
            if late_steps == "drop":
                dropped_late += 1
                on_notice("late", f"step {row} is below the open step {open_step}: dropped, as late_steps='drop' asks")
                return
            flags |= FLAG_LATE
            after = open_step
        elif (commit is None and step is None) or (commit is not None and commit):
            flags |= FLAG_COMMIT
            after = row + 1
        else:
            after = row
        if awaited is not None or waiting:
            limit = 0  # first: from here on nobody passes it
            if not line.join(Waiting(call, row, flags, after)):
                if on_full == "block":
                    raise Full
                refuse(row, REFUSED_DEVICE)
                line.after = after
            return
        if line.after > mark[2]:  # the last that waited were refused
            mark = (mark[0], mark[1], line.after)
        put_row(call, row, flags, after)
        if deferred and deferred[0][0] is not call:
            append_deferred()

    def put_row(call: Prepared, row: int, flags: int, after: int) -> None:
        """Places the records of a call, or refuses it. Under the lock."""
        nonlocal mark
        payloads, _, blobs, _ = call
        open_step = mark[2]
        announced = blobs.payloads(row, now) if blobs is not None else ()
        if not make_room(sum(map(len, (*payloads, *announced))) + HEADER_SIZE * (len(payloads) + len(announced)), row):
            # A refused call has no record, but its step is gone: the x axis of what follows must not shift.
            mark = (mark[0], mark[1], after)
            return
        if blobs is not None:
            place_blobs(blobs, announced, row, max(row, open_step))
        for payload in payloads[:-1]:
            place(KIND_ROW, flags & ~FLAG_COMMIT, payload, row, max(row, open_step), piece=True)
            note_boundary(mark[0])
        place(KIND_ROW, flags, payloads[-1], row, after, piece=not flags & FLAG_COMMIT or bool(flags & FLAG_LATE))

    def look_waiting(count_max: int | None = None) -> bool:
        """Places what has come of what waits for a device; whether nothing waits any more. Any thread."""
        if owned():
            return not waiting
        try:
            return line.look(lock, lambda call: preparing.complete(call, large, record_max, capacity), count_max)
        except BaseException:
            release_leaked()
            raise

    def place_blobs(blobs: Call, payloads: Sequence[bytes], row: int, open_step: int) -> None:
        """What must stand before a row: a record for each of its blobs, and one for each value that found no room."""
        assert large is not None
        for index, payload in enumerate(payloads):
            before = mark
            if index < len(blobs.announced):
                if lent and blobs.announced[index].blob.is_private:
                    # Invariant: before the announcement is published; only the sender can store those bytes.
                    journal.ring.close_gate(before[0])
                    filling()
                place(KIND_BLOB, 0, payload, row, open_step, piece=False)
                large.placed(blobs.announced[index], before, row)
            else:
                place(KIND_GAP, 0, payload, row, open_step, piece=False)
            large.count += 1
            note_boundary(mark[0])
        for key, size in blobs.dropped:
            text = f"the {size} bytes of {key!r} at step {row} found no room in memory: dropped, and marked in the data"
            on_notice("large", text)

    def place(kind: int, flags: int, payload: bytes, row: int, after: int, *, piece: bool) -> None:
        """Writes one record for which there is room, across the end of the window if need be, and publishes it."""
        nonlocal mark, piece_end, meta_end, blob_end
        head, sequence, _ = mark
        size = HEADER_SIZE + len(payload)
        tail = head + size
        start = head & mask
        first_word = size | kind << KIND_SHIFT | flags << FLAGS_SHIFT
        if start + size <= capacity:
            pack_words(data, start, first_word, sequence, row, now())
            data[start + HEADER_SIZE : start + size] = payload
        else:
            record = WORDS.pack(first_word, sequence, row, now()) + payload
            upto = capacity - start
            data[start:] = record[:upto]
            data[: size - upto] = record[upto:]
        # Invariant: these are stored before the mark that covers them, so a batch never lacks a flag it needs.
        if piece:
            piece_end = tail
        if kind == KIND_BLOB:
            blob_end = tail
        elif kind != KIND_ROW:
            meta_end = tail
        mark = (tail, sequence + 1, after)
        words[WORD_HEAD] = tail

    def make_room(size: int, row: int) -> bool:
        """Whether `size` bytes may be placed now; if not, the call is counted as refused."""
        nonlocal limit, refusing
        head = mark[0]
        if head + size > limit:
            note_boundary(head)
            if lent and not refusing:  # then the sender looks: a loop may be refused for hours
                take_over()
                if head - released > capacity // 4:
                    filling()
            room_until = released + capacity - reserved
            if head + size > room_until:
                if on_full == "block" and size <= capacity - reserved:
                    raise Full
                refuse(row)
                return False
            # Never more than one record away, so that the fast path cannot take a wider one.
            upto = max(head + size, min(room_until, last_boundary + _BOUNDARY_BYTES, head + record_max))
            limit = 0 if waiting else upto
            if refusing:
                refusing = False
                write_gap()
                return make_room(size, row)
        return True

    def note_boundary(head: int) -> None:
        nonlocal last_boundary
        if head - last_boundary >= _BOUNDARY_BYTES // 2:
            boundaries.append(mark)
            last_boundary = head

    def refuse(row: int, why: int = 0) -> None:
        """Counts a call that found no room: in the header page, which survives kill -9."""
        nonlocal refusing, refusals
        if refusals.is_told:
            what = "a device was not ready" if why else "the journal is full"
            on_notice("refused", f"{what}: records from step {row} on are refused and counted")
        refusing = True
        refusals = refusals.counted(row, now(), why or reason)
        journal.ring.write_refusals(refusals)

    def facts_until() -> int:
        """Up to where facts may be placed: they get what is reserved for them once no more rows can come."""
        return released + capacity - (reserved if stopped is None else 0)

    def write_gap() -> bool:
        """Puts the last episode of refusing into the stream, if there is room for it. Under the lock."""
        nonlocal refusals
        gap = refusals.gap()
        if gap is None:
            return True
        payload = encode_map(gap)
        if mark[0] + HEADER_SIZE + len(payload) > facts_until():
            return False
        place(KIND_GAP, 0, payload, mark[2], mark[2], piece=False)
        refusals = refusals._replace(reported=refusals.episode)
        journal.ring.write_refusals(refusals)
        return True

    def report_gap() -> bool:
        """Puts an unreported episode into the stream: for the sender, when the loop has gone quiet, and for finish."""
        nonlocal refusing
        if child_ring is not None or refusals.is_told:
            return True
        if owned():
            return False
        with lock:
            written = write_gap()
            if written:
                refusing = False
            return written

    def append_meta(facts: Mapping[str, Any]) -> int:
        """Places a META record and returns its sequence, or 0 when it cannot be now: then try again later.

        It cannot when the ring has no room, or from inside a call of `log` (a signal handler, a finaliser).
        """
        payload = encode_map(dict(facts))
        if owned():
            return 0
        with lock:
            if child_ring is not None:
                rebind()
            head, sequence, open_step = mark
            if head + HEADER_SIZE + len(payload) > facts_until():
                return 0
            note_boundary(head)
            place(KIND_META, 0, payload, open_step, open_step, piece=False)
            return sequence

    def release(stored: Mark) -> None:
        """Lets `log()` overwrite everything before `stored`. Called by the sender only."""
        if lent:
            with lock:
                let_go(stored)
        else:
            let_go(stored)
        if large is not None:
            large.release(stored[1])

    def let_go(stored: Mark) -> None:
        """Invariant: the ring says so first, so that a drain never takes overwritten bytes for what waits."""
        nonlocal released
        if stored[0] > released:
            journal.ring.write_released(stored)
            released = stored[0]

    def take_over() -> None:
        """Notes what the daemon that reads the ring has stored. Under the lock."""
        nonlocal taken
        now_taken = journal.ring.taken()
        if now_taken is not None and now_taken.position <= mark[0]:
            taken = now_taken
            let_go(taken.mark)

    def look() -> Taken | None:
        if lent:
            with lock:
                take_over()
        return taken

    def lend(session: int, call: Callable[[], None]) -> None:
        nonlocal lent, filling
        with lock:
            if lent:
                take_over()
            open_gate()
            lent, filling = session != 0, call if session else nothing
            journal.ring.lend(session)

    def open_gate() -> None:
        """What the daemon may read ends where a blob is announced that only the sender can store, and has not yet."""
        with lock:
            journal.ring.open_gate(large.first_unstored() if large is not None else None)

    def replace_ring() -> None:
        """The ring's file was removed: goes on in a new one of the same name. Called by the sender only.

        Raises:
            OSError, StoreError: There can be none; everything is as before.
        """
        nonlocal data, words
        copied = mark[0]
        # Most of the copying and all page faults happen here, without the lock.
        twin = journal.ring.twin()
        try:
            with lock:
                journal.ring.replace_by(twin, copied, mark[0])
                data, words = twin.data, twin.words
        except OSError:
            twin.abandon()
            raise

    def set_reason(code: int) -> None:
        nonlocal reason
        reason = code

    def close_log(text: str) -> None:
        """From now on `log` raises `UsageError(text)`."""
        nonlocal stopped, limit
        inside_log = owned()  # a finaliser that calls finish(): the outer call still places its record
        with lock:
            if not inside_log:
                append_deferred()
                refuse_deferred()
            stopped, limit = text, 0

    def refuse_deferred() -> None:
        """What waits for room when log() closes will not find any."""
        while deferred:
            del deferred[0]
            refuse(mark[2])

    def bind_child(make: ChildMaker) -> None:
        """In a forked child: the next append asks `make(open step)` for a ring of the child's own and goes on there."""
        nonlocal lock, owned, pack, limit, child_ring, lent, taken, filling
        lock = threading.RLock()
        owned = lock._is_owned  # type: ignore[attr-defined]
        # Why a new packer: another thread of the parent may have been in the middle of packing.
        pack = msgpack.Packer(default=convert_known).pack
        limit, child_ring = 0, make
        lent, taken, filling = False, None, nothing
        deferred.clear()
        line.forget()
        boundaries.clear()

    def rebind() -> None:
        nonlocal child_ring, data, words, capacity, mask, record_max, reserved, mark, piece_end, meta_end, last_boundary
        nonlocal on_first_log, released, refusals, refusing, large, blob_end
        assert child_ring is not None
        open_step = line.open_step()
        ring, large, facts, first_log = child_ring(open_step)
        payload = encode_map(dict(facts))
        # Invariant: what leaves this function early (Ctrl-C, no memory) leaves `child_ring`, so that the next call comes
        # here again and nothing is ever written into the parent's ring.
        journal.ring, journal.large, on_first_log = ring, large, first_log
        data, words, capacity = ring.data, ring.words, ring.capacity
        mask, record_max, reserved = _measures(capacity)
        mark = (0, 1, open_step)
        piece_end = meta_end = blob_end = last_boundary = released = 0
        refusing, refusals = False, Refusals()
        ring.write_released(mark)
        place(KIND_META, 0, payload, open_step, open_step, piece=False)
        child_ring = None

    def hold() -> None:
        lock.acquire()

    journal = Journal()
    journal.ring = ring
    ring.write_released(mark)
    journal.boundaries, journal.deferred, journal.large = boundaries, deferred, large
    journal.log, journal.mark, journal.refusals = log, lambda: mark, lambda: refusals
    journal.piece_end, journal.meta_end, journal.blob_end = lambda: piece_end, lambda: meta_end, lambda: blob_end
    journal.release, journal.replace_ring, journal.set_reason = release, replace_ring, set_reason
    journal.lend, journal.look, journal.open_gate = lend, look, open_gate
    journal.append_meta, journal.drain_deferred, journal.report_gap = append_meta, drain_deferred, report_gap
    journal.bind_child, journal.close_log = bind_child, close_log
    journal.hold, journal.let_go = hold, lambda: lock.__exit__(None, None, None)
    journal.is_inside, journal.is_unbound = lambda: owned(), lambda: child_ring is not None
    journal.late_dropped, journal.left_out = lambda: dropped_late, lambda: dict(preparing.misused)
    journal.waiting, journal.look_waiting, journal.open_step = waiting, look_waiting, line.open_step
    journal.give_up_waiting = lambda: line.give_up(lock)
    return journal
