"""daemon.stats: counters and rates."""

from __future__ import annotations

from daemon.stats import Stats


def test_totals_and_a_steady_rate() -> None:
    """A thousand records a second are a thousand records a second."""
    stats = Stats(0.0)
    for tick in range(1, 301):
        stats.note_written(tick / 10, 100, 1000)
    records, size = stats.rates(30.0)
    assert (stats.records, stats.bytes) == (30_000, 300_000)
    assert 950 <= records <= 1050
    assert 9500 <= size <= 10_500


def test_the_rate_is_zero_after_a_silence() -> None:
    """What was written long ago says nothing about now; the totals stay."""
    stats = Stats(0.0)
    assert stats.rates(0.0) == (0.0, 0.0)
    stats.note_written(1.0, 500, 5000)
    assert stats.rates(1.0) == (500.0, 5000.0)
    assert stats.rates(5.0) == (125.0, 1250.0)
    assert stats.rates(100.0) == (0.0, 0.0)
    assert stats.records == 500


def test_a_rate_after_a_silence_begins_anew() -> None:
    """The pause before a burst is not part of its rate."""
    stats = Stats(0.0)
    stats.note_written(1.0, 10, 10)
    stats.note_written(1000.0, 300, 3000)
    assert stats.rates(1001.0) == (300.0, 3000.0)


def test_the_window_is_bounded() -> None:
    """A hundred thousand writes leave a few entries."""
    stats = Stats(0.0)
    for tick in range(100_000):
        stats.note_written(tick / 1000, 1, 1)
    assert len(stats._window) < 30
