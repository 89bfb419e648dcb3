"""`.wandb` files: every byte of them may be anything."""

from __future__ import annotations

import math
import random

import pytest

from daemon.formats import protobuf, wandb_file, wandb_names
from daemon.formats.wandb_file import (
    BLOCK_BYTES,
    MAGIC,
    Config,
    Exit,
    History,
    Log,
    Metric,
    Output,
    Stats,
    Summary,
    Unknown,
)
from tests import wandb_log as made


class Bytes:
    """Bytes as a file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]


def steps_of(log: Log) -> list[int | None]:
    return [record.step for record in log.records() if isinstance(record, History)]


def rows(count: int, filler: int = 0) -> list[bytes]:
    return [made.history(step, {"loss": step / 2, "text": "x" * filler}) for step in range(count)]


def test_records_come_back_as_they_were() -> None:
    """Rows, config, summary, output, samples, the end: each with its names, values and times."""
    log = Log(Bytes(made.log_of([
        made.run("a41f", config={"lr": 0.1, "n": {"a": [1, None]}}),
        made.history(3, {"loss": math.inf, ("d", "e.f"): "ü", "none": None, "big": 2**70, "nan": math.nan}),
        made.summary({"best": 3, ("loss", "min"): 0.5}, ["gone"]), made.config({"late": True}), made.output("a\n"),
        made.output("b", is_error=True), made.stats(5 * 10**9, {"cpu": 12.5}), made.exited(-9 & 0xFFFFFFFFFFFFFFFF),
    ])))  # fmt: skip
    run, row, summary, config, out, err, stats, end = log.records()
    assert isinstance(run, wandb_file.Run)
    assert (run.id, run.project, run.name, run.started_ns) == ("a41f", "digits", "calm", 1_700_000_000 * 10**9)
    assert run.config == (((("lr",), 0.1), (("n",), {"a": [1, None]})), ())
    assert isinstance(row, History)
    assert row.step == 3
    *values, (_, nan) = row.values
    assert values == [(("loss",), math.inf), (("d", "e.f"), "ü"), (("none",), None), (("big",), 2**70)]
    assert math.isnan(nan)
    assert summary == Summary((((("best",), 3), (("loss", "min"), 0.5)), (("gone",),)))
    assert config == Config((((("late",), True),), ()))
    assert (out, err) == (Output("stdout", 1_700_000_001 * 10**9, "a\n"), Output("stderr", 1_700_000_001 * 10**9, "b"))
    assert stats == Stats(5 * 10**9, ((("cpu",), 12.5),))
    assert end == Exit(-9, 7)
    assert not log.damage
    assert not log.is_torn


def test_values_may_stand_in_fields_of_their_own() -> None:
    """Newer packages write plain values without JSON: null, bool, zigzag integers, doubles, texts, JSON text."""
    typed = {
        "none": protobuf.integer(3, 0), "bool": protobuf.integer(4, 1), "int": protobuf.integer(5, 2 * 2**62 - 1),
        "float": protobuf.double(6, 0.1), "text": protobuf.text(7, "ü"), "json": protobuf.text(8, "[1]"),
    }  # fmt: skip
    content = b"".join(protobuf.block(1, protobuf.text(1, key) + value) for key, value in typed.items())
    (row,) = Log(Bytes(made.log_of([protobuf.block(2, content)]))).records()
    assert isinstance(row, History)
    assert row.step is None
    assert [value for _, value in row.values] == [None, True, -(2**62), 0.1, "ü", [1]]


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 300])
def test_names_and_values_of_any_length(size: int) -> None:
    """Short items are read in another way than long ones, and cut ones in neither."""
    for key, value in (("k" * size, "x"), ("k", "x" * size), ("k" * size, "ü" * size), (("a", "k" * size), 1)):
        row = made.history(0, {key: value})
        (record,) = Log(Bytes(made.log_of([row]))).records()
        assert isinstance(record, History)
        assert record.values == (((key,) if isinstance(key, str) else key, value),)
    for cut in range(1, 12):
        item = made.item("key", 1.5)[:cut]
        log = Log(Bytes(made.log_of([protobuf.block(2, protobuf.block(1, item)), made.exited()])))
        assert any(isinstance(record, Exit) for record in log.records())


def test_definitions_and_what_is_not_known() -> None:
    """`define_metric` comes as it was said; a kind of record that nobody reads is named, telemetry is not."""
    options = protobuf.block(6, protobuf.integer(1, 1) + protobuf.integer(2, 1))
    metric = protobuf.text(2, "val/*") + protobuf.text(4, "epoch") + options + protobuf.block(7, protobuf.integer(1, 1))
    found = Log(Bytes(made.log_of([
        protobuf.block(12, metric), protobuf.block(8, b""), protobuf.block(11, b""), protobuf.block(77, b""),
    ]))).records()  # fmt: skip
    expected = Metric("val/*", True, "epoch", True, True, frozenset({"min"}), "")
    assert list(found) == [expected, Unknown("artifact"), Unknown("field 77")]


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 40, BLOCK_BYTES, 3 * BLOCK_BYTES])
def test_records_cross_blocks(size: int) -> None:
    """Records of any size come back, wherever a block ends."""
    log = Log(Bytes(made.log_of(rows(9, size))))
    assert steps_of(log) == list(range(9))
    assert not log.damage


def test_a_file_that_is_still_written_gives_what_is_whole() -> None:
    """Cut anywhere, the records before the cut come; the rest is torn, not damaged."""
    records = rows(4, 5)
    whole = made.log_of(records)
    ends = [len(made.log_of(records[:count])) for count in range(5)]
    for size in range(len(whole) + 1):
        log = Log(Bytes(whole[:size]))
        assert len(steps_of(log)) == max([count for count in range(5) if ends[count] <= size], default=0)
        assert not log.damage, size
        assert log.is_torn == (size not in ends), size


def test_a_damaged_block_is_left_out_and_counted() -> None:
    """Reading goes on at the next block; what was left out is said with its place."""
    whole = bytearray(made.log_of(rows(60, 2000)))
    whole[BLOCK_BYTES + 100] ^= 1
    log = Log(Bytes(bytes(whole)))
    found = steps_of(log)
    missing = sorted({*range(60)} - {step for step in found if step is not None})
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert 15 <= len(missing) <= 18, "a block's, and those that reach into it"
    (damage,) = log.damage
    assert damage.offset <= BLOCK_BYTES + 100 < damage.offset + damage.size


def test_room_that_was_never_filled_is_no_damage() -> None:
    """A file that was made larger before it was written ends where its records end."""
    data = made.log_of(rows(2)) + b"\0" * (2 * BLOCK_BYTES)
    log = Log(Bytes(data))
    assert steps_of(log) == [0, 1]
    assert not log.damage
    assert not log.is_torn


def test_any_bytes_are_read_without_harm() -> None:
    """Whatever the bytes are, records come or damage does; only another magic is refused."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    whole = made.log_of([made.run(), *rows(20, 300), made.exited()])
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(MAGIC), len(data))] = chance.randrange(256)
        log = Log(Bytes(bytes(data)))
        assert len(list(log.records())) <= 22, seed
    for _ in range(50):
        list(Log(Bytes(made.log_of([chance.randbytes(40)]))).records())
    with pytest.raises(ValueError, match="expected b':W&B"):
        list(Log(Bytes(b"not a run of W&B")).records())


def test_samples_have_both_names() -> None:
    """Ours become W&B's and come back with their unit; what only one of them knows keeps its name."""
    ours = {
        "system/cpu": 150.0, "system/memory_rss": 3.0 * 2**20, "system/gpu.1.temperature": 60, "system/machine/load1": 0.5,
    }  # fmt: skip
    theirs = wandb_names.to_wandb({**ours, "other": 1, "system/x": "text"})
    assert theirs == {"proc.cpu": 150.0, "proc.memory.rssMB": 3.0, "gpu.1.temp": 60, "machine.load1": 0.5}
    back = wandb_names.from_wandb(theirs)
    assert {key: back[key] for key in list(ours)[:3]} == {key: ours[key] for key in list(ours)[:3]}
    assert back["system/machine/load1"] == 0.5


def test_samples_of_the_machine_are_not_the_trainings() -> None:
    """What our names cover gets them, and the rest of W&B's is below machine/; carried back it has its old name."""
    theirs = {
        "disk./.usagePercent": 30.0, "disk./.usageGB": 2.0, "disk.vda.in": 5.0, "network.recv": 7.0, "cpu.0.cpu_percent": 9.0,
        "disk./data.usageGB": 1.0, "proc.memory.rssMB": 1.0, "proc.odd": 1.0, "gpu.0.odd": 1.0, "huge": 1 << 80,
    }  # fmt: skip
    ours = wandb_names.from_wandb(theirs)
    assert ours == {
        "system/machine/disk_percent": 30.0, "system/machine/disk_used": 2.0 * 2**30, "system/machine/disk.vda.in": 5.0,
        "system/machine/network.recv": 7.0, "system/machine/cpu.0.cpu_percent": 9.0, "system/machine/disk.data.usageGB": 1.0,
        "system/memory_rss": float(1 << 20), "system/proc.odd": 1.0, "system/gpu.0.odd": 1.0,
    }  # fmt: skip
    back = wandb_names.to_wandb(ours)
    assert {name: back[name] for name in list(theirs)[:5]} == {name: theirs[name] for name in list(theirs)[:5]}


def test_memory_is_bounded_whatever_a_record_repeats() -> None:
    """Millions of fields in one message, integers without end, lists in lists: damage. Of many such the first are kept."""
    deep = protobuf.block(2, protobuf.block(1, protobuf.text(1, "a") + protobuf.text(16, "[" * 100_000)))
    digits = protobuf.block(2, protobuf.block(1, protobuf.text(1, "a") + protobuf.text(16, "9" * 1000)))
    many = protobuf.block(17, b"\x08\x01" * (wandb_file._FIELDS_MAX + 1))
    log = Log(Bytes(made.log_of([deep, digits, many, made.exited()])))
    assert len(list(log.records())) == 1
    assert log.damage_count == len(log.damage) == 3
    log = Log(Bytes(made.log_of([b"\x12\x01\x0b"] * 1200)))
    assert not list(log.records())
    assert (log.damage_count, len(log.damage)) == (1200, wandb_file._DAMAGE_MAX)


def test_artifacts_of_the_package_itself_are_silent() -> None:
    """A table that was logged has one, which nobody logged by name; another one is told."""
    for kind, expected in (("run_table", None), ("model", wandb_file.Unknown("artifact"))):
        assert wandb_file.decode(protobuf.block(8, protobuf.text(4, kind) + protobuf.text(5, "x"))) == expected
