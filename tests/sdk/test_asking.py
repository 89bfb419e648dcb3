"""sdk.journal.asking and sdk._stacks: a question to a trainer through its ring, and what it answers; both ends in this process."""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdk import _stacks, clock, platform
from sdk.errors import DamageError, StoreError
from sdk.journal.appender import open_journal
from sdk.journal.asking import _PAUSE_SECONDS, ANSWER_BYTES_MAX, Question, Questions
from sdk.journal.drain import _DRAFT_AGE_NS, remove_drafts
from sdk.journal.format import ANSWER_SUFFIX, CAPACITY_MIN, WORD_ANSWERED, WORD_ASKED
from sdk.journal.handle import Journal
from sdk.journal.ring import Ring
from sdk.platform.tasks import Task
from sdk.query.why.stacks import _Asked, ask_stacks
from sdk.reader.facts import StreamFacts
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
    """The later one waits until the earlier one's is answered, and hears that the process lives; answers have a pause between them."""
    questions = Questions(journal, answers=True)
    questions.listen()
    with Question(path_of(journal), STREAM) as first, Question(path_of(journal), STREAM) as second:
        assert (second.look(), second.others) == (None, 0)
        questions.answer(questions.waiting(0.0), b"for the first")
        assert (first.look(), second.look(), second.others) == (b"for the first", None, 1)
        assert questions.waiting(_PAUSE_SECONDS / 2) == 0
        questions.answer(questions.waiting(_PAUSE_SECONDS), b"for the second")
        assert second.look() == b"for the second"


def test_answers_that_cost_much_have_a_longer_pause(journal: Journal) -> None:
    """So that who asks without end takes little of the training; not so long that a question goes without an answer."""
    questions = Questions(journal, answers=True)
    questions.listen()
    now = 0.0
    for cost, pause in ((0.0, _PAUSE_SECONDS), (0.01, _PAUSE_SECONDS + 0.5), (10.0, _PAUSE_SECONDS + 1.0)):
        with Question(path_of(journal), STREAM):
            now += 100
            questions.answer(questions.waiting(now), b"stacks", cost)
        with Question(path_of(journal), STREAM):
            assert questions.waiting(now + pause - 0.01) == 0
            questions.answer(questions.waiting(now + pause + 0.01), b"stacks")


def test_many_who_ask_at_once_all_get_an_answer(journal: Journal) -> None:
    """Each wake of the sender serves one of them, whoever looks last; a killed one in between holds nobody up for long."""
    questions = Questions(journal, answers=True)
    questions.listen()
    with contextlib.ExitStack() as stack:
        asking = [stack.enter_context(Question(path_of(journal), STREAM)) for _ in range(20)]
        asking.pop(7).close()
        wakes = 0
        while asking:
            wakes += 1
            assert wakes < 30
            if number := questions.waiting(wakes * _PAUSE_SECONDS):
                questions.answer(number, b"stacks")
            asking = [question for question in asking if question.look() is None]


def test_an_answer_goes_into_no_other_kind_of_file(journal: Journal, tmp_path: Path) -> None:
    """Where a link or a FIFO lies in the file's place the sender neither follows it nor waits for who reads it."""
    questions = Questions(journal, answers=True)
    questions.listen()
    (victim := tmp_path / "victim").write_bytes(b"kept")
    for number, make in enumerate((lambda path: os.symlink(victim, path), os.mkfifo)):
        with Question(path_of(journal), STREAM) as question:
            (name,) = left_over(journal)
            path = os.path.join(os.path.dirname(path_of(journal)), name)
            os.unlink(path)
            make(path)
            questions.answer(questions.waiting(number + 1.0), b"stacks")
            assert question.look() == b""
    assert victim.read_bytes() == b"kept"
    assert left_over(journal) == []


def test_an_answer_replaces_a_longer_one(journal: Journal) -> None:
    """A question that was asked again, because its first answer was not seen in time, is answered as a whole."""
    questions = Questions(journal, answers=True)
    questions.listen()
    with Question(path_of(journal), STREAM) as question:
        number = questions.waiting(0.0)
        questions.answer(number, b"a longer answer")
        questions.answer(number, b"short")
        assert question.look() == b"short"


def stored_run(*rings: Ring) -> Any:
    """What `ask_stacks` looks at of a run whose ranks have these rings."""
    streams = [StreamFacts(STREAM + rank) for rank in range(len(rings))]
    here = {"pid": 1, "host": platform.host_name(), "boot_id": platform.boot_id()}
    for rank, (facts, ring) in enumerate(zip(streams, rings)):
        facts.about = {"ring": ring.path, "rank": rank, **here}
    known = SimpleNamespace(streams={facts.id: facts for facts in streams})
    return SimpleNamespace(_facts=known, _alive=lambda _: True, refresh=lambda: None, created=0.0)


def test_one_silent_process_hides_no_other(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 keeps its GIL: rank 1 is asked and heard all the same."""
    identity = {"run": "a41f", "store": b"s" * 16}
    ring, _ = Ring.create("/dev/shm", os.urandom(8).hex(), STREAM + 1, CAPACITY_MIN, identity)
    Questions(journal, answers=True).listen()
    questions = Questions(open_journal(ring), answers=True)
    questions.listen()

    def wake(_: float) -> None:
        if number := questions.waiting(clock.monotonic()):
            questions.answer(number, _stacks.packed_stacks())

    monkeypatch.setattr(clock, "pause", wake)
    with contextlib.closing(ring):
        found = ask_stacks(stored_run(journal.ring, ring), 0.1, debugger=False)
    assert [(process.rank, process.outcome, bool(process.threads)) for process in found] == [
        (0, "silent", False),
        (1, "answered", True),
    ]


def test_a_process_that_answers_others_is_not_silent(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose turn never comes learns nothing of the threads, and does not take it for a process without its GIL."""
    questions = Questions(journal, answers=True)
    questions.listen()
    words = journal.ring.words

    def wake(_: float) -> None:
        words[WORD_ASKED] = words[WORD_ANSWERED] = words[WORD_ANSWERED] + 1  # somebody else's, asked and answered

    monkeypatch.setattr(clock, "pause", wake)
    (found,) = ask_stacks(stored_run(journal.ring), 0.01, debugger=False)
    assert (found.outcome, found.threads) == ("answered", ())


def test_a_sender_that_waits_for_a_disk_tells_nothing_of_the_gil(journal: Journal) -> None:
    """The main thread computes, and who should answer is in the kernel: that one is told of, not the other."""
    Questions(journal, answers=True).listen()
    asked = _Asked(stored_run(journal.ring)._facts.streams[STREAM], None)
    asked._began -= 10
    asked._before = {1: 0.0}
    main = Task(1, "python", "R", "", "", 9.0)
    sender = Task(threading.get_native_id(), "stepd-sender", "D", "nfs_wait", "fsync", 0.0)
    assert asked._busy([main, sender]) == 0
    assert asked._busy([main, sender._replace(state="S")]) == 1
    asked.close()


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


def test_a_recursion_without_end_costs_little() -> None:
    """Only so many frames are looked at: of what is deeper the innermost calls are told, and that many are missing."""
    found: list[dict[str, Any]] = []

    def down(depth: int) -> None:
        if depth:
            down(depth - 1)
        else:
            found.extend(_stacks.take_stacks(5))

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(_stacks._WALKED_MAX + 2000)
    size = threading.stack_size(256 << 20)
    try:
        thread = threading.Thread(target=down, args=(_stacks._WALKED_MAX,), name="deep")
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(before)
        threading.stack_size(size)
    (deep,) = (each for each in found if each["name"] == "deep")
    assert len(deep["frames"]) == 5
    assert deep["left_out"] == [5, _stacks._WALKED_MAX - 5]


class _Hostile(threading.Thread):
    """Its name and number are code of the user's, which must not run in the sender's thread."""

    name = property(lambda self: sys.exit("told"), lambda self, name: None)  # type: ignore[assignment]
    native_id = property(lambda self: sys.exit("told"))  # type: ignore[assignment]


class _Text(str):
    def __str__(self) -> str:
        raise SystemExit

    __getitem__ = encode = __str__  # type: ignore[assignment]


def test_no_code_of_the_users_runs_in_the_sender() -> None:
    """Threads may be of classes whose attributes raise, and names texts that raise."""
    go = threading.Event()
    threads = [_Hostile(target=go.wait), threading.Thread(target=go.wait)]
    threads[1]._name = _Text("loader")  # type: ignore[attr-defined]
    for thread in threads:
        thread.start()
    told = _stacks.take_stacks()
    go.set()
    for thread in threads:
        thread.join()
    assert "loader" in [each["name"] for each in told]
    assert len(told) >= 3


def test_stacks_wait_for_no_lock() -> None:
    """Who hangs may hang while it holds the lock of the threads' list."""
    told: list[dict[str, Any]] = []
    with threading._active_limbo_lock:  # type: ignore[attr-defined]
        _thread.start_new_thread(lambda: told.extend(_stacks.take_stacks()), ())
        deadline = clock.monotonic() + 10
        while not told and clock.monotonic() < deadline:
            clock.pause(0.001)
    assert told[0]["name"] == "MainThread"


def test_stacks_that_cannot_be_taken_are_an_empty_answer(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender goes on, and who asks need not wait."""
    monkeypatch.setattr(_stacks, "packed_stacks", lambda: 1 // 0)
    stacks = _stacks.Stacks(journal, answers=True)
    stacks.listen()
    with Question(path_of(journal), STREAM) as question:
        stacks.look(1.0)
        assert question.look() == b""


def test_many_deep_threads_fit_into_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer frames of each, if need be."""
    monkeypatch.setattr(_stacks, "ANSWER_BYTES_MAX", 3000)
    assert len(_stacks.packed_stacks()) <= 3000
