"""sdk.journal.asking and sdk._stacks: a question to a trainer through its ring, and what it answers; both ends in this process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdk import _stacks, platform
from sdk.errors import DamageError, StoreError
from sdk.journal.appender import open_journal
from sdk.journal.asking import _PAUSE_SECONDS, ANSWER_BYTES_MAX, Question, Questions
from sdk.journal.drain import _DRAFT_AGE_NS, remove_drafts
from sdk.journal.format import ANSWER_SUFFIX, CAPACITY_MIN
from sdk.journal.handle import Journal
from sdk.journal.ring import Ring
from sdk.record import decode_map

STREAM = 0x77


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """A trainer's; its ring is taken for another process's."""
    monkeypatch.setattr(platform, "lock_owner", lambda path: 1)
    ring, note = Ring.create("/dev/shm", os.urandom(8).hex(), STREAM, CAPACITY_MIN, {"run": "a41f", "store": b"s" * 16})
    assert note is None
    yield open_journal(ring)
    ring.close()


def left_over(journal: Journal) -> list[str]:
    directory, name = os.path.split(journal.ring.path or "")
    return [one for one in os.listdir(directory) if one.startswith(name[:33]) and one.endswith(ANSWER_SUFFIX)]


def path_of(journal: Journal) -> str:
    assert journal.ring.path is not None
    return journal.ring.path


def test_a_question_is_answered(journal: Journal) -> None:
    """The trainer finds it at its next look, once; who asked gets the bytes, and leaves nothing behind."""
    questions = Questions(journal, answers=True)
    questions.listen()
    assert questions.waiting(0.0) == 0
    with Question(path_of(journal), STREAM) as question:
        assert question.thread == threading.get_native_id()
        assert question.look() is None
        number = questions.waiting(1.0)
        questions.answer(number, b"stacks")
        assert questions.waiting(100.0) == 0
        assert question.look() == b"stacks"
    assert left_over(journal) == []


def test_two_who_ask_get_an_answer_each(journal: Journal) -> None:
    """The later one overwrites the earlier one's word, who stores it again; answers have a pause between them."""
    questions = Questions(journal, answers=True)
    questions.listen()
    with Question(path_of(journal), STREAM) as first, Question(path_of(journal), STREAM) as second:
        questions.answer(questions.waiting(0.0), b"for the second")
        assert (first.look(), second.look()) == (None, b"for the second")
        assert questions.waiting(_PAUSE_SECONDS / 2) == 0
        questions.answer(questions.waiting(_PAUSE_SECONDS), b"for the first")
        assert first.look() == b"for the first"


def test_nobody_listens_before_the_sender_runs(journal: Journal) -> None:
    """A process that has logged nothing has no sender yet: that is told apart from no answer."""
    Questions(journal, answers=True)
    with Question(path_of(journal), STREAM) as question:
        assert (question.is_heard, question.is_refused, question.look()) == (False, False, None)


def test_a_process_may_answer_nobody(journal: Journal) -> None:
    """STEPD_STACKS=0: it says so at once, and does not look."""
    questions = Questions(journal, answers=False)
    questions.listen()
    with Question(path_of(journal), STREAM) as question:
        assert (question.is_heard, question.is_refused) == (False, True)
        assert questions.waiting(1.0) == 0


def test_who_asked_and_went_gets_nothing(journal: Journal) -> None:
    """An answer makes no file: what nobody waits for any more would stay in shared memory."""
    questions = Questions(journal, answers=True)
    questions.listen()
    Question(path_of(journal), STREAM).close()
    questions.answer(questions.waiting(0.0), b"stacks")
    assert left_over(journal) == []


def test_an_answer_without_room_is_empty(journal: Journal) -> None:
    """What was cut, or is damaged, is not believed."""
    questions = Questions(journal, answers=True)
    questions.listen()
    with Question(path_of(journal), STREAM) as question:
        questions.answer(questions.waiting(0.0), bytes(ANSWER_BYTES_MAX + 1))
        assert question.look() == b""


def test_what_a_killed_asker_left_is_removed(journal: Journal) -> None:
    """By the daemon, some time later, as drafts of rings are."""
    Questions(journal, answers=True).listen()
    question = Question(path_of(journal), STREAM)
    (name,) = left_over(journal)
    path = os.path.join(os.path.dirname(path_of(journal)), name)
    digest = os.path.basename(path).partition("-")[0]
    remove_drafts("/dev/shm", digest)
    assert left_over(journal) == [name]
    old = os.stat(path).st_mtime_ns - 2 * _DRAFT_AGE_NS
    os.utime(path, ns=(old, old))
    remove_drafts("/dev/shm", digest)
    assert left_over(journal) == []
    question.close()


def test_only_the_owner_may_ask(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's ring, another stream's, and this process's own are left alone."""
    with pytest.raises(DamageError, match="another stream's"):
        Question(path_of(journal), STREAM + 1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(StoreError, match="and you are 12345"):
        Question(path_of(journal), STREAM)
    monkeypatch.setattr(platform, "lock_owner", lambda path: os.getpid())
    with pytest.raises(StoreError, match="own"):
        Question(path_of(journal), STREAM)
    assert left_over(journal) == []


def test_the_stacks_of_all_threads_but_ours() -> None:
    """The main thread first, each innermost call first; our own threads, which wait for work, are left out."""
    go, ready = threading.Event(), threading.Barrier(3)

    def wait_here() -> None:
        ready.wait()
        go.wait()

    threads = [threading.Thread(target=wait_here, name=name) for name in ("loader\udc80", "stepd-sender")]
    for thread in threads:
        thread.start()
    ready.wait()
    told = decode_map(_stacks.packed_stacks())["threads"]
    go.set()
    for thread in threads:
        thread.join()
    assert told[0]["is_main"] is True
    assert told[0]["frames"][2][1].endswith("test_the_stacks_of_all_threads_but_ours")
    names = [each["name"] for each in told]
    assert "loader\\udc80" in names
    assert "stepd-sender" not in names
    (loader,) = (each for each in told if each["name"].startswith("loader"))
    assert any(frame[1].endswith("wait_here") and frame[0] == __file__ for frame in loader["frames"])


def test_a_deep_stack_keeps_both_ends() -> None:
    """Of a recursion the innermost and the outermost calls are told, and how many are missing between."""

    def down(depth: int) -> list[dict[str, object]]:
        return down(depth - 1) if depth else _stacks.take_stacks()

    main = down(min(400, sys.getrecursionlimit() // 3))[0]
    frames, (place, missing) = main["frames"], main["left_out"]  # type: ignore[misc]
    assert len(frames) == 100  # type: ignore[arg-type]
    assert place == 80
    assert missing > 200


def test_many_deep_threads_fit_into_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer frames of each, if need be."""
    monkeypatch.setattr(_stacks, "ANSWER_BYTES_MAX", 3000)
    assert len(_stacks.packed_stacks()) <= 3000
