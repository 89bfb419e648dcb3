"""sdk.wire.session: Outbox against Inbox over a pipe that loses, repeats, reorders and breaks."""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdk.limits import BATCH_BYTES_MAX, CREDIT_BYTES
from sdk.wire.session import Inbox, Mark, Outbox, Span, span_between

BATCH_BYTES = 100
CREDIT = 250


class Batch(NamedTuple):
    session: int
    first: int
    last: int


class World:
    """A trainer, a daemon, and the pipes of the current session; `turn` is one thing that happens."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.mark: Mark = (0, 1, 0)
        self.ends = {0: 1}  # position -> next sequence: the only places where a batch may begin or end
        self.boundaries: deque[Mark] = deque()
        self.session = 0
        self.live = False
        self.to_daemon: list[Batch] = []
        self.to_trainer: list[tuple[int, int]] = []
        self.inbox = Inbox(0)
        self.waiting: list[tuple[int, int]] = []
        self.written: Counter[int] = Counter()
        self.spooled: set[int] = set()
        self.restarts = 0

    # -- the trainer -------------------------------------------------------------------------------------------------

    def log(self, size: int) -> None:
        head, sequence, step = self.mark
        if not self.boundaries or head - self.boundaries[-1][0] >= BATCH_BYTES // 4:
            self.boundaries.append(self.mark)
        self.mark = (head + size, sequence + 1, step + 1)
        self.ends[self.mark[0]] = self.mark[1]

    def connect(self) -> None:
        """A new session: the daemon takes the Hello, the trainer the Welcome."""
        self.disconnect()
        self.session += 1
        self.inbox.greet(self.outbox.stored_sequence)
        self.outbox.open(CREDIT)
        self.live = True

    def disconnect(self) -> None:
        self.to_daemon.clear()
        self.to_trainer.clear()
        self.live = False
        self.outbox.open(0)

    def send(self) -> bool:
        if not self.live:
            return False
        span = self.outbox.next(self.boundaries, self.mark, BATCH_BYTES)
        if span is None:
            return False
        assert self.ends[span.start] == span.first
        assert self.ends[span.end] == span.last + 1
        assert 0 < span.end - span.start <= BATCH_BYTES
        assert self.outbox.in_flight_bytes <= CREDIT
        self.to_daemon.append(Batch(self.session, span.first, span.last))
        return True

    def take_acks(self) -> None:
        while self.to_trainer:
            self.outbox.acknowledge(*self.to_trainer.pop(0))

    def spool(self) -> None:
        self.disconnect()
        while span := span_between(self.outbox.stored, self.boundaries, self.mark, BATCH_BYTES):
            assert self.ends[span.start] == span.first
            assert self.ends[span.end] == span.last + 1
            self.spooled.update(range(span.first, span.last + 1))
            self.outbox.store_locally(span)

    # -- the daemon --------------------------------------------------------------------------------------------------

    def deliver(self) -> None:
        if not self.to_daemon:
            return
        batch = self.to_daemon.pop(0)
        skip = self.inbox.admit(batch.first, batch.last)
        if skip is None:
            self.connect()  # Reject(hole): the trainer says Hello again
            return
        assert 0 <= skip <= batch.last - batch.first + 1
        if skip <= batch.last - batch.first:
            self.waiting.append((batch.first + skip, batch.last))

    def write(self) -> None:
        for first, last in self.waiting:
            self.written.update(range(first, last + 1))
            self.inbox.written = max(self.inbox.written, last)
        self.waiting.clear()

    def acknowledge(self) -> None:
        if self.live:
            self.to_trainer.append((self.inbox.written, self.inbox.synced))

    def restart(self) -> None:
        """The daemon is killed: what waited is gone, what was written stays; the trainer notices later."""
        self.restarts += 1
        self.waiting.clear()
        self.inbox = Inbox(self.outbox.stored_sequence)
        self.disconnect()

    # -- all of it ---------------------------------------------------------------------------------------------------

    def turn(self, number: int) -> None:
        what, size = number % 16, number // 16 + 1
        if what < 4:
            self.log(size * 5)
        elif what < 7:
            self.send()
        elif what < 9:
            self.deliver()
        elif what == 9:
            self.write()
        elif what == 10:
            self.acknowledge()
        elif what == 11:
            self.take_acks()
        elif what == 12:  # lose, repeat or reorder
            if self.to_daemon:
                at = size % len(self.to_daemon)
                if size % 3 == 0:
                    del self.to_daemon[at]
                elif size % 3 == 1:
                    self.to_daemon.insert(at, self.to_daemon[at])
                else:
                    self.to_daemon.insert(0, self.to_daemon.pop(at))
        elif what == 13:
            self.disconnect() if size % 2 else self.connect()
        elif what == 14:
            self.restart() if size % 2 else self.connect()
        else:
            self.spool() if size > 8 else self.to_trainer.clear()
        self.check()

    def check(self) -> None:
        stored = self.outbox.stored_sequence
        assert all(n in self.spooled or n in self.written for n in range(1, stored + 1)), (
            "released before it was stored"
        )
        assert self.outbox.stored[0] <= self.outbox.sent[0] <= self.mark[0]
        assert self.outbox.in_flight_bytes <= (CREDIT if self.live else 0)
        assert self.ends[self.outbox.stored[0]] == stored + 1

    def settle(self) -> None:
        """No more bad luck."""
        self.connect()
        while self.outbox.stored[0] < self.mark[0]:
            before = self.outbox.stored
            while self.send():
                pass
            while self.to_daemon:
                self.deliver()
            self.write()
            self.acknowledge()
            self.take_acks()
            assert self.outbox.stored[0] > before[0], "stuck"


def play(schedule: bytes) -> None:
    """One schedule of bad luck, then none: everything is stored, and nothing twice that need not be."""
    world = World()
    for number in schedule:
        world.turn(number)
    world.settle()
    world.check()
    last = world.mark[1] - 1
    assert world.outbox.stored_sequence == last
    assert set(world.written) | world.spooled == set(range(1, last + 1))
    if not world.restarts:
        assert set(world.written.values()) <= {1}


@settings(max_examples=2500)
@given(st.binary(max_size=80))
@example(bytes([0, 4, 7, 0, 4, 7, 9, 14, 10, 11]))
@example(bytes([0, 4, 0, 4, 0, 4, 44, 7, 7, 9, 10, 11]))
def test_everything_is_stored_once_whatever_the_pipe_does(schedule: bytes) -> None:
    """In the end every record is stored, none is released before it is, and only a killed daemon or a spool doubles."""
    play(schedule)


def test_long_lives_of_bad_luck() -> None:
    """The same for longer schedules than hypothesis likes."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(3000):
        schedule = rng.randbytes(rng.randrange(50, 200))
        try:
            play(schedule)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, schedule {schedule!r}: {error}") from error


def test_an_ack_for_what_was_never_sent_releases_nothing() -> None:
    """A daemon that acknowledges too much cannot make the trainer forget."""
    outbox = Outbox()
    assert not outbox.acknowledge(10**9, 10**9)
    outbox.open(CREDIT)
    assert outbox.next(deque(), (50, 6, 5), BATCH_BYTES) == Span(0, 50, 1, 5, 0, 5)
    assert outbox.acknowledge(10**9, 10**9)
    assert (outbox.stored, outbox.synced) == ((50, 6, 5), 5)


def test_an_ack_in_the_middle_of_a_batch_is_no_progress() -> None:
    """What is released ends where a batch ended."""
    outbox = Outbox()
    outbox.open(CREDIT)
    outbox.next(deque([(40, 5, 4)]), (90, 10, 9), 50)
    outbox.next(deque([(40, 5, 4)]), (90, 10, 9), 50)
    assert not outbox.acknowledge(3, 0)
    assert outbox.acknowledge(6, 0)
    assert outbox.stored == (40, 5, 4)
    assert outbox.in_flight_bytes == 50


def test_synced_never_passes_stored() -> None:
    """An early or absurd `synced` waits for `written`, and never falls."""
    outbox = Outbox()
    outbox.open(CREDIT)
    outbox.next(deque(), (10, 2, 1), BATCH_BYTES)
    outbox.acknowledge(0, 1)
    assert outbox.synced == 0
    outbox.acknowledge(1, 1)
    assert outbox.synced == 1
    outbox.acknowledge(1, 0)
    assert outbox.synced == 1


def test_a_record_larger_than_the_room_waits_or_goes_alone() -> None:
    """A batch never ends inside a record; `at_least_one` takes the shortest run that can be cut."""
    boundaries = deque([(500, 2, 1), (550, 3, 2)])
    now = (600, 4, 3)
    assert span_between((0, 1, 0), boundaries, now, 100) is None
    assert span_between((0, 1, 0), boundaries, now, 100, at_least_one=True) == Span(0, 500, 1, 1, 0, 1)
    assert span_between((500, 2, 1), boundaries, now, 100, at_least_one=True) == Span(500, 600, 2, 3, 1, 3)
    assert span_between((0, 1, 0), deque(), now, 100, at_least_one=True) == Span(0, 600, 1, 3, 0, 3)
    assert span_between(now, boundaries, now, 100, at_least_one=True) is None


def test_a_boundary_ahead_of_the_mark_is_not_used() -> None:
    """The appender may note a boundary after the sender took its mark."""
    assert span_between((0, 1, 0), deque([(300, 9, 8)]), (200, 6, 5), 100) is None
    assert span_between((0, 1, 0), deque([(300, 9, 8)]), (200, 6, 5), 100, at_least_one=True) == Span(
        0, 200, 1, 5, 0, 5
    )


def test_boundaries_before_what_is_stored_are_forgotten() -> None:
    """And only those: a new session sends the rest again from the same boundaries."""
    boundaries = deque([(n * 10, n + 1, n) for n in range(1, 10)])
    outbox = Outbox()
    outbox.open(CREDIT)
    outbox.next(boundaries, (100, 11, 10), 50)
    assert len(boundaries) == 9
    outbox.acknowledge(5, 0)
    outbox.next(boundaries, (100, 11, 10), 50)
    assert boundaries[0] == (60, 7, 6)


def test_no_credit_sends_nothing() -> None:
    """Before a Welcome and when the credit is used up."""
    outbox = Outbox(3)
    assert outbox.next(deque(), (10, 2, 4), BATCH_BYTES) is None
    outbox.open(10)
    assert outbox.next(deque(), (10, 2, 4), BATCH_BYTES) == Span(0, 10, 1, 1, 3, 4)
    assert outbox.next(deque(), (20, 3, 5), BATCH_BYTES) is None


@pytest.mark.parametrize(
    ("received", "first", "last", "skip", "after"),
    [(0, 1, 3, 0, 3), (3, 1, 3, 3, 3), (3, 2, 5, 2, 5), (3, 4, 4, 0, 4), (3, 5, 6, None, 3), (9, 1, 3, 3, 9)],
)
def test_inbox_counts_what_to_skip(received: int, first: int, last: int, skip: int | None, after: int) -> None:
    """All of a duplicate, the known part of an overlap, nothing of what is new, and None for a hole."""
    inbox = Inbox(received)
    assert inbox.admit(first, last) == skip
    assert inbox.received == after


def test_a_greeting_never_takes_back() -> None:
    """A Hello with less than what is here changes nothing; one with more means that the trainer has it itself."""
    inbox = Inbox(5)
    inbox.greet(3)
    assert (inbox.received, inbox.written) == (5, 5)
    inbox.greet(9)
    assert (inbox.received, inbox.written, inbox.synced) == (9, 9, 0)


def test_the_real_limits_let_batches_fly() -> None:
    """The credit holds at least two full batches: with one the pipe would stand still for every round trip."""
    assert CREDIT_BYTES >= 2 * BATCH_BYTES_MAX
