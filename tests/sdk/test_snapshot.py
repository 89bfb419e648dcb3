from __future__ import annotations

import threading

from sdk.journal.appender import open_journal
from sdk.journal.ring import Ring
from sdk.journal.snapshot import snapshot
from sdk.record import walk


def test_everything_that_is_not_released_is_there() -> None:
    """From the released mark on; and from a mark on what came since."""
    journal = open_journal(Ring.private(7, {}))
    for step in range(5):
        journal.log({"a": step})
    whole = snapshot(journal)
    assert whole is not None
    assert [record.step for record in walk(whole.records)] == [0, 1, 2, 3, 4]
    assert (whole.start[1], whole.end) == (1, journal.mark())
    journal.release(whole.end)
    journal.log({"a": 5})
    new = snapshot(journal, whole.end)
    assert new is not None
    assert [record.step for record in walk(new.records)] == [5]
    assert snapshot(journal) == new


def test_released_records_are_there_until_they_are_overwritten() -> None:
    """Then it says so, and does not give what stands in their place."""
    journal = open_journal(Ring.private(7, {}))
    begin = journal.mark()
    journal.log({"a": 0})
    while journal.mark()[0] < journal.ring.capacity // 2:
        journal.log({"text": "x" * 1000})
    journal.release(journal.mark())
    found = snapshot(journal, begin)
    assert found is not None
    assert [record.step for record in walk(found.records)] == list(range(journal.mark()[2]))
    while journal.mark()[0] < journal.ring.capacity + 1:
        journal.log({"text": "x" * 1000})
    assert snapshot(journal, begin) is None
    assert snapshot(journal) is not None


def test_records_that_lie_across_the_end_of_the_ring() -> None:
    """Are as whole as the others."""
    journal = open_journal(Ring.private(7, {}))
    for round_ in range(20):
        begin = journal.mark()
        while journal.mark()[0] - begin[0] < journal.ring.capacity // 3:
            journal.log({"text": "x" * (997 + round_)})
        found = snapshot(journal, begin)
        assert found is not None
        assert [record.sequence for record in walk(found.records)] == list(range(begin[1], journal.mark()[1]))
        journal.release(journal.mark())


def test_while_another_thread_logs() -> None:
    """What is given is whole: consecutive, and each with its own value."""
    journal = open_journal(Ring.private(7, {}))
    stop = threading.Event()

    def log() -> None:
        while not stop.is_set():
            journal.log({"a": 1.5})
            if journal.mark()[1] % 50 == 0:
                journal.release(journal.mark())

    thread = threading.Thread(target=log)
    thread.start()
    try:
        since = None
        for _ in range(200):
            found = snapshot(journal, since)
            since = None if found is None else found.end
            if found is not None:
                sequences = [record.sequence for record in walk(found.records)]
                assert sequences == list(range(found.start[1], found.end[1]))
    finally:
        stop.set()
        thread.join()
