"""A stream: the ordered records of one process into one run, with its ring, its journal and its sender.

Life: `open_stream` makes the ring and puts the first META record into it; the sender starts with the first `log()`;
`finish` stores everything and removes the ring. A process that dies instead leaves its ring to the daemon. A forked
child that logs gets a stream of its own with the same functions: nothing that the user holds changes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import statistics
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import _spawn, clock, platform, values
from ._sender import Sender
from ._spool import drain_orphans
from .files import DISK
from .ids import hex_u64, random_u64
from .journal.appender import open_journal
from .journal.arena import Arena
from .journal.format import WORD_RELEASED
from .journal.handle import Journal
from .journal.large import Large
from .journal.ring import Ring
from .location import StoreIdentity
from .record import KIND_ROW, encode_map, walk
from .segment.naming import run_path
from .settings import Settings
from .transport import request
from .values.budget import TensorBudget
from .values.convert import on_device_value

_META_SECONDS_MAX = 2.0
_META_SHARE = 4
_DEVICE_PAUSE_SECONDS = 0.0005
_CALIBRATION_CALLS = 200
_CALIBRATION_KEYS_MAX = 200
CONSOLE = "console"
_live: weakref.WeakSet[Stream] = weakref.WeakSet()


class Receipt(NamedTuple):
    """What became of a stream's records, for people.

    Attributes:
        accepted: Calls of `log` that got a sequence number. `stored`: how many of them are stored.
        refused: Calls that found ring, spool and disk full; each is in a GAP of the run.
        spooled: Records that lie in the trainer's own segment.
        synced: Whether all of it was forced to the disk already.
        wait_seconds: How long `finish` took. `cost_seconds`: an estimate of what logging cost this process, calls and
            thread together.
        ended_in: "written" (the daemon has it), "spool", "ring" (the disk refused: it waits in shared memory), "nowhere" (the
            disk refused, and there is no shared memory: it is lost with this process), or "later" (finish was called from
            inside log(): a thread does it when that call has returned).
        refused_reasons: How many calls were refused, by what kept records from being stored.
        facts_lost: Facts (config, summary, ...) that found no room either.
    """

    accepted: int
    stored: int
    refused: int
    late_dropped: int
    left_out: dict[str, str]
    spooled: int
    synced: bool
    wait_seconds: float
    cost_seconds: float
    calls: int
    ended_in: str
    refused_reasons: dict[str, int] = {}  # noqa: RUF012 - never changed
    facts_lost: int = 0


class Stream:
    """One process's way into a run. `log` may be called from any thread and keeps working in forked children.

    Attributes:
        on_look: Of a stream of kind "console": called by its sender, some times a second.
    """

    def __init__(
        self,
        store: StoreIdentity,
        settings: Settings,
        run_id: str,
        kind: str,
        facts: Mapping[str, Any],
        first_step: int,
    ) -> None:
        self._identity = store
        self.settings = settings
        self.run_id = run_id
        self.store = store.path
        self.notes: list[str] = []
        self.on_look: Callable[[], None] = _nothing
        self._number = random_u64()
        self._facts = dict(facts)
        self._meta_count = 0
        self._receipt: Receipt | None = None
        self._pid = os.getpid()
        self._stages = kind == "main"
        self._is_console = kind == CONSOLE
        ring = self._make_ring(_capacity(kind, settings))
        self.journal: Journal = open_journal(
            ring,
            first_step=first_step,
            late_steps=settings.late_steps,
            misuse=settings.misuse,
            on_full=settings.on_full,
            defers=settings.defer,
            on_first_log=lambda: self._sender.start(),
            on_notice=self._notice,
            large=self._make_large(ring),
        )
        self.log: Callable[..., None] = self.journal.log
        self._sender = self._make_sender()

    @property
    def id(self) -> str:
        """The stream's id, 16 hex digits."""
        return hex_u64(self._number)

    def _make_ring(self, capacity: int) -> Ring:
        digest = platform.store_digest(self.store)
        identity = {"run": self.run_id, "store": self._identity.id}
        ring, note = Ring.create(self.settings.shared_memory_dir, digest, self._number, capacity, identity)
        if note is not None:
            self.notes.append(note)
        # The first line of a console waits for no pages: its sender maps them.
        self._touches = self._is_console
        if not self._touches:
            ring.touch()
        return ring

    def _make_large(self, ring: Ring) -> Large | None:
        """Where the bytes of large values wait; new values are copied there as long as this stream is the process's own."""
        if self._is_console:
            return None
        base, on_full = self.settings.shared_memory_dir, self.settings.on_full
        arena = Arena(base, ring.path, self._number) if ring.path is not None else None
        if self._stages:
            values.stage_in(arena.take if arena is not None else None)
        budget = TensorBudget(self.settings.tensor_bytes_per_minute_max, self._notice)
        return Large(self._number, arena, self.settings.overflow_bytes_max, lambda: on_full == "block", budget)

    def _make_sender(self) -> Sender:
        from . import __version__

        sender = Sender(self.journal, self._identity, self.run_id, self._number, self.settings, __version__)
        if self._is_console:
            sender.on_look = self._look_at_console
        else:  # the stream that this one accompanies says it
            sender.notices.show = _print_notice
        return sender

    def _look_at_console(self) -> None:
        if self._touches:
            self._touches = False
            self.journal.ring.touch()
        self.on_look()

    def _notice(self, topic: str, text: str) -> None:
        self._sender.notices.note(topic, text)

    def step(self) -> int:
        """The open step: what the next `log` without a step belongs to."""
        return self.journal.open_step()

    def append_meta(self, facts: Mapping[str, Any]) -> None:
        """Adds facts to the stream. Never waits and never raises for operating trouble."""
        size = len(encode_map(dict(facts)))
        if size > self.journal.ring.capacity // _META_SHARE:
            # It would wait for ever for a ring that is larger, and everything behind it would wait too.
            self._notice("meta", f"{', '.join(facts)} of {size} bytes does not fit into the ring and is left out")
            return
        pending = self._sender.facts.waiting
        if not pending and self.journal.append_meta(facts):
            self._meta_count += 1
            return
        if len(pending) == pending.maxlen:
            self._notice(
                "facts", f"more than {len(pending):,} facts wait for room in the ring; the oldest are left out"
            )
        pending.append(dict(facts))

    def first_meta(self, run_facts: Mapping[str, Any]) -> None:
        """The stream's first record, and the config apart from it, so that a huge value cannot keep the rest out."""
        facts = dict(run_facts)
        config = facts.pop("config", None) or {}
        self.append_meta({"stream": {**self._facts, "id": self.id, "ring": self.journal.ring.path}, **facts})
        room = self.journal.ring.capacity // 4
        small: dict[str, Any] = {}
        for key, value in config.items():
            size = len(repr(value))
            if size > room:
                self.notes.append(f"config {key!r} takes about {size} bytes and is left out")
            elif size > room // 64:
                self.append_meta({"config": {key: value}})
            else:
                small[key] = value
        if small:
            self.append_meta({"config": small})

    def flush(self, timeout: float) -> bool:
        """Waits until everything accepted so far is stored, where a reader sees it; whether it is. Any thread."""
        if self._receipt is not None:
            return True
        self.journal.drain_deferred()
        deadline = clock.monotonic() + timeout
        has_come = self._await_devices(deadline)
        left = max(deadline - clock.monotonic(), 0.0)
        return self._sender.flush(self.journal.mark()[1] - 1, left) and has_come

    def finish(self, state: str, exit_code: int, timeout: float) -> Receipt:
        """Ends the stream and returns its receipt; a second call returns the same one.

        Waits while the daemon's acks advance, at most `timeout` seconds, then writes the rest to the spool itself.
        """
        if self._receipt is not None:
            return self._receipt
        if self.journal.is_unbound():
            # A forked child that never logged: the records are its parent's, and it has no stream to end.
            self.journal.close_log(f"log() was called after finish() of run {self.run_id!r}")
            self._receipt = Receipt(0, 0, 0, 0, {}, 0, True, 0.0, 0.0, 0, "written")
            return self._receipt
        if self.journal.is_inside():
            # A finaliser or signal handler inside log(): the sender needs the lock that this very thread holds.
            threading.Thread(target=self.finish, args=(state, exit_code, timeout), name="stepd-finish").start()
            return Receipt(self.journal.mark()[1] - 1, 0, 0, 0, {}, 0, False, 0.0, 0.0, 0, "later")
        begun = clock.monotonic()
        self.journal.close_log(f"log() was called after finish() of run {self.run_id!r}; init() starts another run")
        # Half of the time: what is accepted has to be stored in the rest.
        if not self._await_devices(begun + timeout / 2):
            self.journal.give_up_waiting()
        left_out = self._left_out()
        if left_out:
            self.append_meta({"misuse": left_out})
        end = {"end": {"state": state, "exit_code": exit_code, "time_ns": clock.wall_ns()}}
        # Before all that waits for room: of what the ring keeps free for the last facts it gets the first part.
        if self.journal.append_meta(end):
            self._meta_count += 1
        else:
            self._sender.facts.waiting.append(end)
        self._settle(begun + min(timeout, _META_SECONDS_MAX))
        result = self._sender.finish(max(timeout - (clock.monotonic() - begun), 0.1))
        refusals = self.journal.refusals()
        last = self.journal.mark()[1] - 1
        large = self.journal.large
        announced = large.count if large is not None else 0
        own = self._meta_count + self._sender.facts.placed + refusals.reported + announced
        accepted, refused = last - own, refusals.refused
        is_stored, facts_lost = result.stored >= last, len(self._sender.facts.waiting)
        self._receipt = Receipt(
            accepted=accepted,
            stored=accepted - (0 if is_stored else self._waiting_rows()),
            refused=refused,
            late_dropped=self.journal.late_dropped(),
            left_out=left_out,
            spooled=result.spooled,
            synced=result.synced >= last,
            wait_seconds=clock.monotonic() - begun,
            cost_seconds=self._cost(accepted),
            calls=accepted,
            ended_in="nowhere" if self.journal.ring.volatile and not is_stored else result.ended_in,
            refused_reasons=self._sender.refused_reasons() if refused else {},
            facts_lost=facts_lost,
        )
        self._let_go(is_stored=is_stored)
        _live.discard(self)
        return self._receipt

    def _await_devices(self, deadline: float) -> bool:
        """Waits for the values that are on their way from a device; whether all have come."""
        while not self.journal.look_waiting():
            if clock.monotonic() >= deadline:
                return False
            clock.pause(_DEVICE_PAUSE_SECONDS)
        return True

    def _left_out(self) -> dict[str, str]:
        """Key to what is not stored of it, or not whole."""
        large = self.journal.large
        reduced = large.budget.told() if large is not None and large.budget is not None else {}
        return {**reduced, **self.journal.left_out()}

    def _let_go(self, *, is_stored: bool) -> None:
        """Removes ring and arena when all that was in them is stored; else leaves them to whoever drains them."""
        arena = self.journal.large.arena if self.journal.large is not None else None
        if self._stages:
            values.stage_in(None)
        if arena is not None:
            arena.close() if is_stored else arena.abandon()
        self.journal.ring.close() if is_stored else self.journal.ring.abandon()

    def _waiting_rows(self) -> int:
        """How many rows the ring holds that are not stored. At the end only: it looks at every record."""
        ring = self.journal.ring
        waiting = b"".join(ring.slices(ring.words[WORD_RELEASED], self.journal.mark()[0]))
        return sum(record.kind == KIND_ROW for record in walk(waiting))

    def _settle(self, deadline: float) -> None:
        """Waits for room for the last META records: a sender that still lives is making some."""
        self._sender.make_room()
        while not (self._sender.facts.place() and self.journal.report_gap()) and clock.monotonic() < deadline:
            if not self._sender.is_alive():
                with contextlib.suppress(Exception):  # finish() raises for no trouble of ours; the end tries again
                    self._sender.wake_once(clock.monotonic())
            self._sender.wake()
            clock.pause(0.005)

    def _cost(self, calls: int) -> float:
        """Seconds that logging took of this process: calls at the price measured now, and the sender's own CPU time.

        Why measured now: two looks at a clock in every call would cost more than what they measure.
        """
        if not calls:
            return self._sender.cpu_seconds
        size = self.journal.mark()[0] // max(self.journal.mark()[1] - 1, 1)
        width = max((size - 32) // 18, 1)
        # A wide record is measured by a part of itself: 200 calls of 100 000 keys would take finish() 7 s.
        sample = {f"metric/{i}": 0.1 for i in range(min(width, _CALIBRATION_KEYS_MAX))}
        scratch = Ring.private(1, {})
        log = open_journal(scratch).log
        times = []
        for _ in range(_CALIBRATION_CALLS):
            start = time.perf_counter()
            log(sample)
            times.append(time.perf_counter() - start)
        scratch.abandon()
        return statistics.median(times) * width / len(sample) * calls + self._sender.cpu_seconds

    # -- fork --------------------------------------------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """The parent keeps ring, thread and socket; this process gets its own when it logs."""
        self._sender.abandon()
        self._receipt = None
        self.journal.bind_child(self._become_child)

    def _become_child(self, open_step: int) -> tuple[Ring, Large | None, Mapping[str, Any], Callable[[], None] | None]:
        parent = self.id
        self._number = random_u64()
        self._pid = os.getpid()
        self._meta_count = 1
        ring = self._make_ring(self.settings.secondary_ring_bytes)
        self.journal.ring = ring
        self._facts = {
            **self._facts, **process_facts(), "kind": CONSOLE if self._is_console else "fork", "parent": parent,
            "continues": None, "first_step": open_step,
        }  # fmt: skip
        self._sender = self._make_sender()
        finish_at_exit(self)
        large = self._make_large(ring)
        return ring, large, {"stream": {**self._facts, "id": self.id, "ring": ring.path}}, self._sender.start


def open_stream(
    store: StoreIdentity,
    run_facts: Mapping[str, Any],
    settings: Settings,
    *,
    run_id: str,
    kind: str = "main",
    parent: str | None = None,
    continues: str | None = None,
    attempt: int = 1,
    first_step: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> Stream:
    """Opens a stream into a run, and sees to it that a daemon is starting. Never waits for the daemon.

    Args:
        run_facts: The other maps of the first META record ("run", "config", …; docs/segment.md#meta).
        kind: "main", "fork", "spawn" or "attach"; "console" for what the process prints, which goes along with another
            stream: that one has started the daemon and greeted.
        continues: The stream that this one goes on from (a resume).
        extra: More facts about the stream (ranks, job).

    Raises:
        OSError: The run's directory cannot be made.
    """
    if kind != CONSOLE:  # whose run is there; if the store was moved away meanwhile it must not come to be again
        DISK.make_directory(run_path(store.path, run_id))
    facts = {
        "kind": kind,
        "parent": parent,
        "continues": continues,
        "attempt": attempt,
        "first_step": first_step,
        "rank": None,
        "local_rank": None,
        "world_size": None,
        "job_id": None,
        "system_metrics_seconds": settings.system_metrics_seconds if settings.system_metrics else 0,
        **process_facts(),
        **(extra or {}),
    }
    values.register_known_scalars()
    stream = Stream(store, settings, run_id, kind, facts, first_step)
    stream.first_meta(run_facts)
    if kind != CONSOLE:
        on_device_value(lambda text: stream._notice("device", text))
        start_daemon(stream)
    _live.add(stream)
    if kind == "spawn":
        finish_at_exit(stream)
    return stream


def _nothing() -> None:
    pass


def _capacity(kind: str, settings: Settings) -> int:
    if kind == CONSOLE:
        return settings.console_ring_bytes
    return settings.ring_bytes if kind in ("main", "attach") else settings.secondary_ring_bytes


def settle(store: StoreIdentity, settings: Settings, timeout: float) -> None:
    """Before a resume: takes in what dead processes left in their rings, by the daemon or here. Never raises."""
    with contextlib.suppress(Exception):
        request(store.path, "settle", timeout=timeout)
        return
    if store.writable:
        drain_orphans(DISK, store, settings.shared_memory_dir)


def process_facts() -> dict[str, Any]:
    """What identifies this process in a stream's first record."""
    from . import __version__

    return {
        "host": platform.host_name(),
        "boot_id": platform.boot_id(),
        "pid": os.getpid(),
        "started_ns": clock.wall_ns(),
        "monotonic_ns": int(clock.monotonic() * 1e9),
        "version": __version__,
    }


def start_daemon(stream: Stream) -> None:
    """Starts a daemon unless one serves or may not be started; trouble becomes a note."""
    settings = stream.settings
    if not settings.autostart:
        return
    try:
        _spawn.mark_stopped(stream.store, False)
        if not _spawn.is_serving(stream.store):
            starter = _spawn.start(
                stream.store,
                persistent=False,
                idle_seconds=settings.idle_seconds,
                shared_memory_dir=settings.shared_memory_dir,
                variables=settings.for_daemon,
            )
            stream._sender.adopt_starter(starter)
    except Exception as error:
        stream.notes.append(
            f"no daemon could be started ({error}); records go to the spool, nothing is lost; see stepd doctor"
        )


def finish_at_exit(stream: Stream) -> None:
    """Stores a secondary stream when its process ends normally, also one of multiprocessing, which skips atexit."""
    pid = os.getpid()

    def end() -> None:
        if os.getpid() == pid:
            stream.finish("finished", 0, stream.settings.exit_seconds_max)

    atexit.register(end)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, end, exitpriority=100)


def _print_notice(text: str) -> None:
    """One line into the trainer's stderr, from the sender's thread; a broken stderr is not our trouble to report."""
    with contextlib.suppress(Exception):
        sys.stderr.write(f"stepd: {text}\n")
        sys.stderr.flush()


_held_for_fork: list[Stream] = []


def _before_fork() -> None:
    """Takes every journal's lock, so that the child's copy of its state is whole."""
    _held_for_fork[:] = list(_live)
    for stream in _held_for_fork:
        stream.journal.hold()


def _after_fork_in_parent() -> None:
    for stream in _held_for_fork:
        stream.journal.let_go()
    _held_for_fork.clear()


def _after_fork_in_child() -> None:
    for stream in _held_for_fork:
        stream.after_fork_in_child()
    _held_for_fork.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
