"""daemon.pipeline.flush: why and when what waits is written."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from daemon.pipeline.flush import FlushPolicy, Reason
from daemon.settings import DaemonSettings

SETTINGS = DaemonSettings()
COMMIT, AGE = SETTINGS.flush_commit_seconds, SETTINGS.flush_age_seconds


def policy(settings: DaemonSettings = SETTINGS) -> FlushPolicy:
    return FlushPolicy(settings, Counter())


def test_nothing_waits_for_nothing() -> None:
    """An empty stream is never due."""
    fresh = policy()
    assert fresh.due(1e9) is None
    assert fresh.deadline() is None


def test_bytes() -> None:
    """A tight loop is written when a block is full, whatever the time."""
    full = policy()
    full.note(10.0, SETTINGS.flush_bytes - 1, has_commits=True)
    assert full.due(10.0) is None
    full.note(10.0, 1, has_commits=True)
    assert full.due(10.0) is Reason.BYTES
    assert full.deadline() == 0.0


def test_committed_rows_wait_a_fifth_of_a_second() -> None:
    """Counted from the first batch with a committed row, not from the last."""
    rows = policy()
    rows.note(10.0, 100, has_commits=False)
    rows.note(10.5, 100, has_commits=True)
    rows.note(10.6, 100, has_commits=True)
    assert rows.deadline() == 10.5 + COMMIT
    assert rows.due(10.5 + COMMIT - 0.01) is None
    assert rows.due(10.5 + COMMIT) is Reason.COMMIT


def test_open_rows_wait_a_second_for_their_pieces() -> None:
    """And a commit that comes late cannot hold them any longer."""
    pieces = policy()
    pieces.note(10.0, 100, has_commits=False)
    assert pieces.due(10.0 + AGE - 0.01) is None
    assert pieces.due(10.0 + AGE) is Reason.AGE
    pieces.note(10.0 + AGE - 0.01, 100, has_commits=True)
    assert pieces.deadline() == 10.0 + AGE


def test_a_request_does_not_wait() -> None:
    """Also with nothing waiting: whoever asked wants an answer."""
    asked = policy()
    asked.ask(Reason.REQUEST)
    assert asked.due(0.0) is Reason.REQUEST
    assert asked.deadline() == 0.0
    asked.flushed(Reason.REQUEST)
    assert asked.due(1e9) is None


def test_a_failed_write_stays_due() -> None:
    """Only `flushed` begins anew; it counts the reason."""
    counts: Counter[Reason] = Counter()
    failing = FlushPolicy(SETTINGS, counts)
    failing.note(0.0, 1, has_commits=True)
    assert [failing.due(5.0), failing.due(6.0)] == [Reason.COMMIT, Reason.COMMIT]
    failing.flushed(Reason.COMMIT)
    assert failing.due(7.0) is None
    assert failing.deadline() is None
    assert counts == {Reason.COMMIT: 1}


@given(
    st.floats(0, 1e7),
    st.lists(
        st.tuples(st.floats(0, 2), st.integers(0, SETTINGS.flush_bytes // 4), st.booleans()), min_size=1, max_size=8
    ),
)
def test_deadline_agrees_with_due(start: float, batches: list[tuple[float, int, bool]]) -> None:
    """At the deadline something is due, and just before it nothing is: the server neither spins nor sleeps too long."""
    agreeing = policy()
    now = start
    for pause, size, has_commits in batches:
        now += pause
        agreeing.note(now, size, has_commits=has_commits)
    deadline = agreeing.deadline()
    assert deadline is not None
    if deadline == 0.0:
        assert agreeing.due(now) is Reason.BYTES
        return
    assert agreeing.due(deadline) is not None
    assert agreeing.due(deadline - 1e-3) is None


def test_a_million_steps_are_five_blocks_a_second() -> None:
    """A loop of 1000 small calls a second, in batches of 50 ms or one by one, never makes more than five blocks a second."""
    calls, size = 1000, 110
    simulated = policy()
    blocks: list[float] = []
    for step in range(1_000_000):
        now = step / calls
        reason = simulated.due(now)
        if reason is not None:
            blocks.append(now)
            simulated.flushed(reason)
        simulated.note(now, size, has_commits=True)
    assert 0.95 * 4.5 * 1000 < len(blocks) <= 5 * 1000 + 1
    assert min(after - before for before, after in zip(blocks, blocks[1:])) >= COMMIT - 1e-6
    assert set(simulated.counts) == {Reason.COMMIT}


def test_a_tight_loop_is_written_by_bytes() -> None:
    """At 70 MB/s the blocks are full ones, and each was waiting for less than 5 ms."""
    tight = policy()
    reasons: Counter[Reason | None] = Counter()
    for tick in range(10_000):
        now = tick * 0.005
        tight.note(now, 350_000, has_commits=True)
        reason = tight.due(now)
        reasons[reason] += 1
        if reason is not None:
            tight.flushed(reason)
    assert reasons == {Reason.BYTES: 10_000}
