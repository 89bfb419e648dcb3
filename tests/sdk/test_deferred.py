"""Records whose values are still on a device when they are logged (docs/journal.md#deferred-records)."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdk import clock
from sdk.errors import UsageError
from sdk.journal import waiting
from sdk.journal.appender import open_journal
from sdk.journal.drain import drain
from sdk.journal.ring import Ring
from sdk.limits import INLINE_TENSOR_BYTES_MAX, KIB, MIB, REFUSED_DEVICE, REFUSED_REASONS
from sdk.record import FLAG_COMMIT, FLAG_LATE, FLAG_MARKED, KIND_BLOB, KIND_GAP, KIND_ROW
from sdk.values import device as device_module

from ..model import StreamModel, merged
from . import fake_device, test_appender
from .test_appender import Interrupt, journal
from .test_large import Stream as LargeStream


class Fake:
    """The fake torch, and values on its device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.torch, self.stream = fake_device.install(monkeypatch)

    def on_device(self, data: Any) -> Any:
        """A tensor there."""
        return self.torch.Tensor(data, "cuda")


alarm = test_appender.alarm


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


def test_the_order_of_calls_is_the_order_of_the_ring(fake: Fake) -> None:
    """What is logged behind a value on a device waits behind it, with the steps and times of the calls' order."""
    log_journal, reader = journal()
    log_journal.log({"a": 1})
    log_journal.log({"loss": fake.on_device(0.5)})
    log_journal.log({"b": 2})
    log_journal.log({"c": 3}, step=7)
    assert [step for step, _, _ in reader.rows()] == [0]
    assert log_journal.open_step() == 7
    fake.stream.advance()
    assert log_journal.look_waiting()
    assert reader.rows() == [
        (1, FLAG_COMMIT, {"loss": 0.5}), (2, FLAG_COMMIT, {"b": 2}), (7, 0, {"c": 3}),
    ]  # fmt: skip
    log_journal.log({"d": 4})
    assert reader.rows() == [(7, FLAG_COMMIT, {"d": 4})]


def test_the_next_call_places_what_has_come(fake: Fake) -> None:
    """Without anybody's help: each call looks, and when nothing waits calls go the fast way again."""
    log_journal, reader = journal()
    log_journal.log({"loss": fake.on_device(1.0)})
    log_journal.log({"loss": fake.on_device(2.0)})
    fake.stream.fire()
    log_journal.log({"loss": 3.0})
    assert [row[2] for row in reader.rows()] == [{"loss": 1.0}]
    fake.stream.fire()
    log_journal.log({"loss": 4.0})
    assert [row[2] for row in reader.rows()] == [{"loss": 2.0}, {"loss": 3.0}, {"loss": 4.0}]
    assert not log_journal.waiting


def test_what_the_loop_does_with_a_value_later_is_not_seen(fake: Fake) -> None:
    """The rest of the call is converted at once: a list or array that is changed afterwards was stored as it was."""
    log_journal, reader = journal()
    beside = [1, 2]
    log_journal.log({"loss": fake.on_device([1.0, 2.0]), "beside": beside, "deep": {"x": [fake.on_device(5)]}})
    beside.append(3)
    fake.stream.advance()
    log_journal.look_waiting()
    ((_, _, row),) = reader.rows()
    assert row["loss"].tolist() == [1.0, 2.0]
    assert (row["beside"], row["deep"]) == ([1, 2], {"x": [5]})


def test_steps_are_taken_at_the_call(fake: Fake) -> None:
    """commit=False, an explicit step and a late one mean what they mean without a device."""
    log_journal, reader = journal()
    log_journal.log({"a": fake.on_device(1)}, commit=False)
    log_journal.log({"b": 2})
    log_journal.log({"c": fake.on_device(3)}, step=5, commit=True)
    log_journal.log({"d": 4}, step=2)
    assert log_journal.open_step() == 6
    fake.stream.advance()
    log_journal.look_waiting()
    assert reader.rows() == [
        (0, 0, {"a": 1}), (0, FLAG_COMMIT, {"b": 2}), (5, FLAG_COMMIT, {"c": 3}), (2, FLAG_LATE, {"d": 4}),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="below the open step"):
        journal(first_step=3, late_steps="error")[0].log({"a": fake.on_device(1)}, step=1)


def test_errors_of_use_raise_at_the_call(fake: Fake) -> None:
    """A bad value beside one on a device raises at once and leaves nothing behind; misuse="warn" leaves it out."""
    log_journal, reader = journal()
    with pytest.raises(TypeError, match="cannot be stored"):
        log_journal.log({"loss": fake.on_device(1.0), "bad": object()})
    assert not log_journal.waiting
    with pytest.raises(ValueError, match="expected 0 to"):
        log_journal.log({"loss": fake.on_device(1.0)}, step=-1)
    assert not log_journal.waiting
    lenient, reader = journal(misuse="warn")
    lenient.log({"loss": fake.on_device(1.0), "bad": object()})
    fake.stream.advance()
    lenient.look_waiting()
    assert reader.rows() == [(0, FLAG_COMMIT | FLAG_MARKED, {"loss": 1.0})]
    assert list(lenient.left_out()) == ["bad"]


def test_a_device_that_fails_costs_its_values_only(fake: Fake) -> None:
    """What the event says of a failed device is noted; the row keeps what was not there, and log() raises nothing."""
    told: list[str] = []
    log_journal, reader = journal(on_notice=lambda topic, text: told.append(text))
    log_journal.log({"loss": fake.on_device(1.0), "epoch": 3})
    log_journal.log({"after": 1})
    fake.stream.broken = True
    log_journal.log({"after": 2})
    assert reader.rows() == [
        (0, FLAG_COMMIT | FLAG_MARKED, {"epoch": 3}), (1, FLAG_COMMIT, {"after": 1}), (2, FLAG_COMMIT, {"after": 2}),
    ]  # fmt: skip
    assert list(log_journal.left_out()) == ["loss"]
    assert len(told) == 1 and "illegal memory access" in told[0]


def test_while_a_graph_is_captured(fake: Fake) -> None:
    """A copy would become part of the graph: an error of use, which says what to do."""
    fake.torch.is_capturing = True
    log_journal, _ = journal()
    with pytest.raises(ValueError, match="outside of the capture"):
        log_journal.log({"loss": fake.on_device(1.0)})


@pytest.mark.parametrize("limit", ["WAITING_RECORDS_MAX", "WAITING_BYTES_MAX"])
def test_no_more_than_so_much_waits(fake: Fake, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond, calls are refused and counted, without waiting; the gap says why. One alone may be of any size."""
    monkeypatch.setattr(waiting, limit, 2 if limit == "WAITING_RECORDS_MAX" else 16)
    log_journal, reader = journal()
    log_journal.log({"a": fake.on_device(numpy.arange(2.0))})
    if limit == "WAITING_RECORDS_MAX":
        log_journal.log({"a": 1})
    log_journal.log({"a": 2})
    log_journal.log({"a": 3})
    refused = log_journal.refusals()
    assert (refused.refused, refused.reason) == (2, REFUSED_DEVICE)
    fake.stream.advance()
    log_journal.log({"a": 4})
    entries = reader.take()
    gaps = [e.values for e in entries if e.kind == KIND_GAP]
    assert [(g["count"], g["reason"]) for g in gaps] == [(2, REFUSED_REASONS[REFUSED_DEVICE])]
    assert entries[-1].values == {"a": 4} and entries[-1].step == (4 if limit == "WAITING_RECORDS_MAX" else 3)


def test_block_waits_for_the_device(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """on_full="block": a call for which no more may wait goes on when the device has."""
    monkeypatch.setattr(waiting, "WAITING_RECORDS_MAX", 1)
    log_journal, reader = journal(on_full="block")
    log_journal.log({"a": fake.on_device(1)})
    monkeypatch.setattr(clock, "pause", lambda seconds: fake.stream.advance())
    log_journal.log({"a": 2})
    assert [row[2]["a"] for row in reader.rows()] == [1, 2]
    assert log_journal.refusals().refused == 0


def test_what_has_not_come_at_the_end_is_refused(fake: Fake) -> None:
    """close_log and give_up: no record, no sequence, but a count; what came before is there."""
    log_journal, reader = journal()
    log_journal.log({"a": fake.on_device(1)})
    log_journal.log({"a": fake.on_device(2)})
    fake.stream.fire()
    log_journal.close_log("over")
    with pytest.raises(UsageError, match="over"):
        log_journal.log({"a": 3})
    assert not log_journal.look_waiting()
    log_journal.give_up_waiting()
    log_journal.report_gap()
    entries = reader.take()
    assert [e.values.get("a") for e in entries if e.kind != KIND_GAP] == [1]
    assert log_journal.refusals().refused == 1


def test_killed_with_records_that_wait(fake: Fake, tmp_path: Any) -> None:
    """They were not accepted: whoever drains the ring finds what was placed, whole, and no gap."""
    ring, _ = Ring.create(str(tmp_path), "digest", 5, 64 * KIB, {"run": "r", "store": "s"})
    log_journal = open_journal(ring)
    log_journal.log({"a": 1})
    log_journal.log({"a": fake.on_device(2)})
    log_journal.log({"a": 3})
    ring.abandon()
    assert ring.path is not None
    drained = drain(ring.path)
    assert drained is not None
    assert log_journal.mark()[1] == 2


def test_a_full_ring_and_a_device(fake: Fake) -> None:
    """What has come and finds no room is refused like everything else, in order, and counted."""
    log_journal, _ = journal(4 * KIB)
    count = 0
    log_journal.log({"a": fake.on_device(0)})
    while len(log_journal.waiting) < 200:
        count += 1
        log_journal.log({"a": count, "text": "x" * 40})
    fake.stream.advance()
    assert log_journal.look_waiting()
    placed = log_journal.mark()[1] - 1
    assert 0 < placed < count + 1
    assert placed + log_journal.refusals().refused == count + 1


def test_a_large_tensor_from_a_device(fake: Fake) -> None:
    """It is announced and stored apart when it has come, bit for bit."""
    data = numpy.arange(INLINE_TENSOR_BYTES_MAX, dtype="f4")
    with contextlib.closing(LargeStream(None)) as stream:
        stream.log({"weights": fake.on_device(data)})
        assert not stream.records()
        fake.stream.advance()
        stream.journal.look_waiting()
        assert stream.kinds() == [KIND_BLOB, KIND_ROW]
        assert bytes(stream.large.pending[0].blob.view()) == data.tobytes()


def test_blocking_fetches_a_large_tensor_at_once(fake: Fake) -> None:
    """on_full="block" loses nothing: nobody could wait for room when the tensor has come, so its call waits for it."""
    with contextlib.closing(LargeStream(None, on_full="block")) as stream:
        stream.log({"small": fake.on_device(1)})
        with pytest.raises(AssertionError, match="waited for the device"):
            stream.log({"weights": fake.on_device(numpy.zeros(INLINE_TENSOR_BYTES_MAX))})


def test_calls_from_inside_a_call(fake: Fake) -> None:
    """A value whose own code logs something on a device: both are there, in order."""
    log_journal, reader = journal()

    class Odd:
        def __index__(self) -> int:
            log_journal.log({"inner": fake.on_device(1)})
            return 0

    log_journal.log({"outer": 1}, step=Odd())
    fake.stream.advance()
    log_journal.look_waiting()
    assert {key for _, _, row in reader.rows() for key in row} == {"inner", "outer"}


def test_two_threads_that_look(fake: Fake) -> None:
    """Each record is placed once, whoever finds it ready."""
    log_journal, reader = journal(MIB)
    rows = 0
    for _ in range(20):
        for _ in range(20):
            log_journal.log({"n": fake.on_device(rows)})
            rows += 1
        fake.stream.advance()
        threads = [threading.Thread(target=log_journal.look_waiting) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while not log_journal.look_waiting():
            pass
    assert [row["n"] for _, _, row in reader.rows()] == list(range(rows))


class JaxArray:
    """What an array of jax looks like from outside while it is computed."""

    is_fully_addressable = True

    def __init__(self, data: Any, platform: str = "gpu") -> None:
        self.data = numpy.asarray(data)
        self.dtype, self.size, self.nbytes = self.data.dtype, self.data.size, self.data.nbytes
        self.device = types.SimpleNamespace(platform=platform)
        self.ready = self.copied = False

    def is_ready(self) -> bool:
        return self.ready

    def copy_to_host_async(self) -> None:
        self.copied = True

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        assert self.ready, "log() waited for the device"
        return self.data


JaxArray.__module__ = "jaxlib._jax"


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_arrays_of_jax_that_are_not_ready(platform: str) -> None:
    """Also on a CPU, where jax computes beside the loop."""
    log_journal, reader = journal()
    array = JaxArray(0.25, platform)
    log_journal.log({"loss": array})
    assert array.copied and not reader.rows()
    array.ready = True
    log_journal.log({"b": 1})
    assert [row[2] for row in reader.rows()] == [{"loss": 0.25}, {"b": 1}]


def test_a_query_is_allowed_while_another_thread_captures(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread says that it knows what it does, asks, and takes that back."""
    modes: list[int] = []
    monkeypatch.setattr(device_module, "_exchange", [lambda mode: modes.append(mode._obj.value)])
    log_journal, reader = journal()
    log_journal.log({"a": fake.on_device(1)})
    fake.stream.advance()
    log_journal.look_waiting()
    assert len(reader.rows()) == 1
    assert modes[:2] == [device_module._RELAXED] * 2


actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("log"), st.booleans(), st.sampled_from([None, 0, 1, 3, -2]), st.sampled_from([None, True, False])
        ),
        st.tuples(st.just("fire"), st.integers(1, 3), st.none(), st.none()),
        st.tuples(st.just("look"), st.none(), st.none(), st.none()),
    ),
    max_size=30,
)


@given(actions)
@settings(max_examples=150, deadline=None)
def test_rows_are_those_of_a_loop_without_a_device(script: list[tuple[str, Any, Any, Any]]) -> None:
    """Whatever comes when: the rows are the model's, which knows no device, and the open step is right after each call."""
    with pytest.MonkeyPatch.context() as patch:
        fake = Fake(patch)
        log_journal, reader = journal(MIB)
        model = StreamModel()
        for number, (what, first, offset, commit) in enumerate(script):
            if what == "log":
                step = None if offset is None else max(model.open_step + offset, 0)
                data = {f"k{number % 3}": number}
                log_journal.log({k: fake.on_device(v) for k, v in data.items()} if first else data, step, commit)
                model.log(data, step, commit)
                assert log_journal.open_step() == model.open_step
            elif what == "fire":
                for _ in range(min(first, sum(1 for w in log_journal.waiting if w.call.awaited is not None))):
                    if fake.stream.work:
                        fake.stream.fire()
            else:
                log_journal.look_waiting()
        fake.stream.advance()
        assert log_journal.look_waiting()
        found = [(step, row) for step, _, row in reader.rows()]
        assert merged(found) == model.rows
        assert [step for step, _ in found] == [step for step, _ in model.calls]


def test_it_can_be_switched_off(fake: Fake) -> None:
    """STEPD_DEFER=0: the call fetches the value, as it does one of a device without streams."""
    with pytest.raises(AssertionError, match="waited for the device"):
        journal(defers=False)[0].log({"a": fake.on_device(1)})
    log_journal, reader = journal()
    log_journal.log({"a": fake.torch.Tensor(2.5, "mps")})
    assert reader.rows() == [(0, FLAG_COMMIT, {"a": 2.5})]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.stress
def test_interrupts_while_records_wait(fake: Fake, alarm: Callable[[Any], None]) -> None:
    """An exception from a signal handler anywhere: each call is placed once, in order, or (at most those) not at all."""
    log_journal, reader = journal(MIB)

    def handler(number: int, frame: object) -> None:
        raise Interrupt

    alarm(handler)
    chance = random.Random(11)
    found: list[int] = []
    steps: list[int] = []
    unsure: set[int] = set()
    made = returned = interrupts = 0

    def log_until_interrupted(last: int) -> None:
        nonlocal made, returned
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.0004), 1.0)
        while made < last:
            made += 1
            log_journal.log({"m": made if made % 3 else fake.on_device(made)})
            returned = made
            if made % 5 == 0 and fake.stream.work:
                fake.stream.advance(1)
        while True:
            sum(range(100))

    while interrupts < 1500:
        try:
            log_until_interrupted(made + 60)
        except Interrupt:
            interrupts += 1
            if returned != made:
                unsure.add(made)
        signal.setitimer(signal.ITIMER_REAL, 0)
        fake.stream.advance()
        assert log_journal.look_waiting()
        rows = reader.rows()
        found += [row["m"] for _, _, row in rows]
        steps += [step for step, _, _ in rows]
    assert found == sorted(set(found)) and steps == sorted(set(steps))
    assert set(range(1, made + 1)) - set(found) <= unsure
    assert log_journal.refusals().refused == 0 and not log_journal.left_out()
    assert len(unsure) > 100


def test_a_call_places_some_of_many(fake: Fake) -> None:
    """A loop is not held by hundreds that come at once: a call places a part, the sender the rest, in order."""
    log_journal, reader = journal(MIB)
    for n in range(3 * waiting.PLACED_MAX):
        log_journal.log({"n": n or fake.on_device(0)})
    fake.stream.advance()
    log_journal.log({"n": 3 * waiting.PLACED_MAX})
    found = [row["n"] for _, _, row in reader.rows()]
    assert waiting.PLACED_MAX <= len(found) <= waiting.PLACED_MAX + 1
    assert log_journal.look_waiting()
    found += [row["n"] for _, _, row in reader.rows()]
    assert found == list(range(3 * waiting.PLACED_MAX + 1))
