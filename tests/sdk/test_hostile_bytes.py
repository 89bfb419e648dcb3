"""Every decoder that meets bytes from elsewhere: a result or an error of ours, never another one, and bounded memory."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.pipeline.coalesce import Waiting, coalesce
from sdk import compression
from sdk.errors import DamageError, Error, ProtocolError
from sdk.files import DISK
from sdk.journal.drain import drain
from sdk.journal.ring import Ring
from sdk.limits import FLAT_NAMES_BYTES_MAX, LZ4_RATIO_MAX, MAP_BYTES_MAX
from sdk.location import read_store
from sdk.reader import open_store
from sdk.reader.follow import Follower
from sdk.record import EXT_TENSOR, FLAG_COMMIT, KIND_ROW, Record, decode_map, encode_map, pack, walk
from sdk.rows import flatten
from sdk.segment import format as segment
from sdk.segment.reader import SegmentReader
from sdk.shapes import groups
from sdk.wire.codec import decode, encode
from sdk.wire.messages import Batch, Control, Hello
from tests.builders import RunBuilder, make_run, make_store
from tests.serving import packed, row, rows

MANY = settings(max_examples=200)
blobs = st.binary(max_size=400)
# Bytes that get further than noise does: valid ones with some of them replaced, cut, or repeated.
edits = st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=9)), max_size=6)


def edited(data: bytes, changes: list[tuple[int, bytes]], cut: int) -> bytes:
    changed = bytearray(data)
    for at, new in changes:
        at %= len(changed) or 1
        changed[at : at + len(new)] = new
    return bytes(changed[: cut % (2 * len(changed) + 1)])


def harmless(call: Callable[[], Any], *errors: type[Exception]) -> None:
    with contextlib.suppress(*errors):
        call()


# -- any bytes ---------------------------------------------------------------------------------------------------------


@MANY
@given(blobs, st.integers(0, 4))
def test_decode_map_of_anything(data: bytes, kind: int) -> None:
    """Bytes are a map or DamageError, also where they begin as a map with one value of an interesting kind."""
    heads = [b"", b"\x81\xa1a", b"\x81\xa1a\xc7" + bytes([len(data) % 256, EXT_TENSOR]), b"\x82\xa1a\x91", b"\xdf"]
    harmless(lambda: flatten(decode_map(heads[kind] + data)), DamageError)
    harmless(lambda: flatten(decode_map(heads[kind] + data, tensors=False)), DamageError)


DTYPES = st.text(max_size=8) | st.sampled_from(
    ["<f8", "bfloat16", "|S0", "<U9", "<M8[ns]", "|O", "f8,f8", "V999999", ">g"]
)


@MANY
@given(DTYPES | st.integers() | st.none(), st.lists(st.integers(-3, 2**40), max_size=4) | st.text(), blobs)
def test_tensors_with_any_header(dtype: object, shape: object, raw: bytes) -> None:
    """A made-up dtype or shape is DamageError, and allocates nothing that is not there."""
    with contextlib.suppress(OverflowError):
        data = msgpack.packb([dtype, shape, raw])
        payload = msgpack.packb({"a": msgpack.ExtType(EXT_TENSOR, data)})
        harmless(lambda: decode_map(payload), DamageError)


@MANY
@given(edits, st.integers(0, 1 << 20))
def test_records_of_anything(changes: list[tuple[int, bytes]], cut: int) -> None:
    """`walk`, `groups` and the daemon's coalescing take edited records or raise DamageError."""
    data = edited(rows(1, 40), changes, cut)
    harmless(lambda: list(walk(data)), DamageError)
    harmless(lambda: [part if isinstance(part, Record) else part.steps() for part in groups(data)], DamageError)
    for flags in range(4):
        if data:
            harmless(lambda f=flags: coalesce([Waiting(1, 40, f, 40, data)]), DamageError)


@MANY
@given(st.lists(blobs, max_size=3), edits, st.integers(0, 1 << 20), st.integers(0, 2))
def test_messages_of_anything(frames: list[bytes], changes: list[tuple[int, bytes]], cut: int, which: int) -> None:
    """`codec.decode` gives a message or RemoteProtocolError."""
    message = [
        Hello(1, 1, 7, "a41f", b"x" * 16, 0, "", 1, "0", {}), Batch(7, 1, 3, 0, 2, rows(1, 3)), Control(1, "status", {"a": [1]}),
    ][which]  # fmt: skip
    first, *rest = (bytes(frame) for frame in encode(message))
    harmless(lambda: decode(frames), ProtocolError)
    harmless(lambda: decode([edited(first, changes, cut), *rest]), ProtocolError)
    harmless(lambda: decode([first, *(edited(frame, changes, cut) for frame in rest)]), ProtocolError)


@pytest.fixture(scope="module")
def segment_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sealed segment of a run with facts, rows, pieces and a gap."""
    run = RunBuilder(make_store(tmp_path_factory.mktemp("hostile")))
    main = run.stream()
    main.meta({"config": {"lr": 0.1}})
    for n in range(60):
        main.log({"loss": n / 7, "text": "x" * (n % 5)}, commit=n % 9 != 0)
    main.gap(episode=1, count=3, step_min=1, step_max=2, reason="ring full")
    return Path(run.seal()).read_bytes()


@MANY
@given(changes=edits, cut=st.integers(0, 1 << 20), sealed=st.booleans())
def test_segments_of_anything(
    tmp_path_factory: pytest.TempPathFactory,
    segment_bytes: bytes,
    changes: list[tuple[int, bytes]],
    cut: int,
    sealed: bool,
) -> None:
    """`SegmentReader` reads an edited segment, lists its damage, or raises an error of ours; so does a run of it."""
    data = edited(segment_bytes, changes, cut if not sealed else len(segment_bytes))
    directory = tmp_path_factory.mktemp("edited")
    path = directory / "s"
    path.write_bytes(data)

    def read() -> None:
        reader = SegmentReader(DISK, str(path))
        for block in reader.blocks:
            harmless(lambda b=block: reader.payload(b), Error)
        reader.close()

    harmless(read, Error)
    store = make_store(directory)
    run = make_run(store, "a41f", [{"x": 1.0}])
    Path(run.directory, "history-00000000000000aa-000000.seg").write_bytes(data)
    look_at_all(store)


@MANY
@given(edits, st.integers(0, 1 << 20))
def test_rings_of_anything(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]], cut: int
) -> None:
    """`drain` of an edited ring gives whole records, says what it could not take, or raises DamageError."""
    directory = tmp_path_factory.mktemp("ring")
    ring = Ring.private(7, {"run": "a41f", "store": b"x" * 16}, 1 << 13)
    records = packed([row(n) for n in range(1, 60)])
    ring.data[: len(records)] = records
    ring.words[0] = len(records)
    whole = bytes(ring._mapping)
    # Most edits in the pages that say something.
    path = directory / "ring"
    path.write_bytes(edited(whole, [(at % 700 if at % 2 else at, new) for at, new in changes], cut or len(whole)))
    harmless(lambda: drain(str(path)), DamageError)


def look_at_all(store: str) -> None:
    """Everything that a reader can ask of the runs of a store."""
    for run in open_store(store).runs():
        run.summary, run.keys(), run.gaps, run.damage, run.state, run.streams, run.config, run.records, run.tail(3)
        for key in sorted(run.keys()):
            run.series(key, stream="all")
        list(run.rows())


# -- bombs: small files, small results -----------------------------------------------------------------------------------


def grown_bytes(call: Callable[[], None]) -> int:
    """How much the largest memory of a child process grew while it ran `call`, which must not raise."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            call()
            os.write(write, struct.pack("<q", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
        finally:
            os._exit(0)
    os.close(write)
    answer = os.read(read, 8)
    os.close(read)
    os.waitpid(pid, 0)
    assert answer, "the child raised"
    return int(struct.unpack("<q", answer)[0]) * 1024


def bomb(name: str) -> bytes:
    """One record that is small when compressed."""
    payload = {
        "empty maps": b"\x81\xa1a\xdd" + struct.pack(">I", 120 << 20) + b"\x80" * (120 << 20),
        "nesting": b"\x81\xa1a" + b"\x91" * (40 << 20),
        "array of 2^32-1": b"\x81\xa1a\xdd\xff\xff\xff\xff" + bytes(1 << 20),
        "map of 2^32-1": b"\xdf\xff\xff\xff\xff" + b"\xa1a\x01" * (1 << 20),
        "same key": b"\xdf" + struct.pack(">I", 3 << 20) + b"\xa1a\x01" * (3 << 20),
        "huge tensor": encode_map({"a": msgpack.ExtType(EXT_TENSOR, msgpack.packb(["<f8", [2**40, 2**20], b""]))}),
        "empty tensor": encode_map({"a": msgpack.ExtType(EXT_TENSOR, msgpack.packb(["<f8", [0, 2**60], b""]))}),
        "flat names": long_names(),
    }[name]
    return pack(Record(1, 0, FLAG_COMMIT, KIND_ROW, 0, payload))


def long_names() -> bytes:
    """2 MB that would be 5 GB of flat names: some levels of 4 kB names over a hundred thousand values."""
    value: Any = {str(n): n for n in range(100_000)}
    for _ in range(12):
        value = {"p" * 4000: value}
    return encode_map(value)


BOMBS = [
    "empty maps",
    "nesting",
    "array of 2^32-1",
    "map of 2^32-1",
    "same key",
    "huge tensor",
    "empty tensor",
    "flat names",
]


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_in_a_store(tmp_path: Path, name: str) -> None:
    """A run whose one block would fill the memory is read in bounded memory; the block is damage or harmless."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    main = run.stream()
    main.log({"x": 1.0})
    run.flush()
    run.daemon.segment.append(segment.KIND_ROWS, bomb(name), stream=main.id, first=3, last=3, records=1)
    path = run.seal()
    assert os.stat(path).st_size < 8 << 20
    # Decompressing 120 MiB takes that, and a copy or two on the way.
    assert grown_bytes(lambda: look_at_all(store)) < 600 << 20
    assert open_store(store).run("a41f").series("x").value.tolist() == [1.0]


@pytest.mark.parametrize("name", BOMBS[1:])
def test_bombs_in_a_daemon(name: str) -> None:
    """Coalescing a batch with a bomb takes bounded memory: it is refused, or stored as it came."""
    data = bomb(name)
    if len(data) > 4 << 20:
        data = data[: 4 << 20]
    for flags in (0, 1):
        batch = [Waiting(1, 1, flags, 0, data), Waiting(2, 2, flags, 0, packed([row(2, step=0)]))]
        assert grown_bytes(lambda b=batch: harmless(lambda: coalesce(b), DamageError)) < 300 << 20


def test_what_was_accepted_is_not_dropped_because_its_names_are_long(tmp_path: Path) -> None:
    """A row whose flat names would take gigabytes is stored as it came; its reader says that it cannot be shown."""
    record = pack(Record(1, 0, FLAG_COMMIT, KIND_ROW, 0, long_names()))
    other = packed([row(2, step=0, values={"x": 1.0})])
    for flags in (0, 1):
        payload = coalesce([Waiting(1, 1, flags, 0, record), Waiting(2, 2, flags, 0, other)])
        assert bytes(payload.raw) == record + other
        assert payload.keys is None


def test_flat_names_have_a_limit() -> None:
    """Up to the limit names are repeated, beyond it the row is refused."""
    width = 1000
    fitting = {"p" * (width - 1): dict.fromkeys(map(str, range(FLAT_NAMES_BYTES_MAX // width)), 0)}
    assert len(flatten(fitting)) == FLAT_NAMES_BYTES_MAX // width
    fitting["p" * (width - 1)]["one more"] = 0
    with pytest.raises(ValueError, match="flat names"):
        flatten(fitting)


def test_a_map_has_a_largest_size() -> None:
    """A map of the largest size is read, one of a byte more is DamageError before anything is decoded."""
    head = b"\x81\xa1a\xc6"
    fitting = MAP_BYTES_MAX - len(head) - 4
    assert len(decode_map(head + struct.pack(">I", fitting) + bytes(fitting))["a"]) == fitting
    with pytest.raises(DamageError, match="at most"):
        decode_map(head + struct.pack(">I", fitting + 1) + bytes(fitting + 1))


@pytest.mark.parametrize("claimed", [1 << 20, 256 << 20, 2**31 - 1, 2**32 - 1, 2**63])
def test_lz4_that_claims_more_than_it_can_be(claimed: int) -> None:
    """A claim beyond what lz4 can make of so many bytes is refused before it is allocated."""
    stored = bytes(64)
    assert claimed > len(stored) * LZ4_RATIO_MAX + 64
    assert grown_bytes(lambda: harmless(lambda: compression.decompress(1, stored, claimed), DamageError)) < 8 << 20


def test_keys_without_end_in_one_segment(tmp_path: Path) -> None:
    """New keys in every record, and keys of a megabyte, leave no per-key index and no growing memory in the writer."""
    run = RunBuilder(make_store(tmp_path))
    main = run.stream()
    run.flush()
    writer = run.daemon.segment

    def write() -> None:
        for n in range(1500):
            key = f"{n:06}" + "k" * 200_000
            record = [main.log({key: 1.0})]
            raw = b"".join(map(pack, record))
            writer.append(segment.KIND_ROWS, raw, stream=main.id, first=n + 2, last=n + 2, records=1, keys={key: 1})
            main.records.clear()

    assert grown_bytes(write) < 100 << 20


def test_a_hundred_thousand_keys(tmp_path: Path) -> None:
    """10^5 keys in one dict and 10^5 over time are all read back."""
    store = make_store(tmp_path)
    wide = [{f"k{n}": n for n in range(100_000)}]
    make_run(store, "wide", wide)
    make_run(store, "long", [{f"k{n}": n for n in range(start, start + 1000)} for start in range(0, 100_000, 1000)])
    for name in ("wide", "long"):
        run = open_store(store).run(name)
        assert len(run.keys()) == 100_000
        assert run.series("k99999").value.tolist() == [99_999]
        assert not run.damage


# -- segments from an attacker -------------------------------------------------------------------------------------------


def hostile_run(store: str, blocks: int, **header: Callable[[int], int]) -> RunBuilder:
    """A run of `blocks` blocks of one row each, whose headers claim what `header` says of the n-th."""
    run = RunBuilder(store)
    main = run.stream()
    run.flush()
    for n in range(blocks):
        claimed = {name: claim(n) for name, claim in header.items()}
        numbers = {
            "stream": main.id,
            "first": n + 2,
            "last": n + 2,
            "records": 1,
            "step_max": n,
            "step_min": n,
            **claimed,
        }
        run.daemon.segment.append(segment.KIND_ROWS, packed([row(n + 2, step=n)]), **numbers)
    run.close()
    return run


@pytest.mark.parametrize(
    "header",
    [
        {"first": lambda n: 2 * n + 2, "last": lambda n: 2 * n + 2},
        {"first": lambda n: n + 2, "last": lambda n: 2**63},
        {"first": lambda n: 2, "last": lambda n: 2**63 - n},
        {"first": lambda n: n + 2, "last": lambda n: n + 2000},
        {"step_min": lambda n: 0, "step_max": lambda n: 2**63 - 1},
        {"stream": lambda n: n + 1},
        {"last": lambda n: 2**64 - 1, "records": lambda n: 2**32 - 1},
        {"first": lambda n: 2**64 - 1, "last": lambda n: 0},
    ],
    ids=["holes", "open ends", "nested", "overlapping", "all steps", "streams", "huge counts", "backwards"],
)
def test_headers_that_lie_cost_no_more_than_others(tmp_path: Path, header: dict[str, Callable[[int], int]]) -> None:
    """Reading, following and looking for gaps among lying headers takes steps in proportion to the blocks, not their square.

    Counted in calls of Python functions, which do not depend on the machine.
    """
    calls = []
    for blocks in (300, 1200):
        (tmp_path / str(blocks)).mkdir()
        store = make_store(tmp_path / str(blocks))
        hostile_run(store, blocks, **header)
        calls.append(count_calls(lambda s=store: look_and_follow(s)))
    assert calls[1] < 4 * 1.7 * calls[0], calls


def look_and_follow(store: str) -> None:
    look_at_all(store)
    run = open_store(store).run("a41f")
    follower = Follower()
    for _ in range(3):
        run.look_for_new(follower)


def count_calls(call: Callable[[], None]) -> int:
    import sys

    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += 1

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def test_segments_that_are_no_files(tmp_path: Path) -> None:
    """A pipe, a device, a directory or a link that is called like a segment is not opened, and the run is read."""
    store = make_store(tmp_path)
    run = make_run(store, "a41f", [{"x": 1.0}])
    name = "history-{:016x}-000000.seg"
    os.mkfifo(os.path.join(run.directory, name.format(1)))
    os.symlink("/dev/zero", os.path.join(run.directory, name.format(2)))
    os.symlink(run.daemon.paths[0], os.path.join(run.directory, name.format(3)))
    os.mkdir(os.path.join(run.directory, name.format(4)))
    os.symlink("/nowhere", os.path.join(run.directory, name.format(5)))
    look_at_all(store)
    found = open_store(store).run("a41f")
    assert found.series("x").value.tolist() == [1.0]
    assert found.records == 3


@pytest.mark.parametrize("kind", ["pipe", "gigabyte", "link", "directory", "nested", "list", "number"])
def test_store_files_that_are_none(tmp_path: Path, kind: str) -> None:
    """A `store.json` that is no small file of the right form is a StoreError; nobody waits for it or reads a gigabyte."""
    store = make_store(tmp_path)
    path = Path(store, "store.json")
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes({"nested": b"[" * 60_000, "list": b"[]", "number": b"1" * 60_000, "gigabyte": b""}[kind])
    if kind == "gigabyte":
        os.truncate(path, 1 << 30)
    assert grown_bytes(lambda: harmless(lambda: read_store(store), Error)) < 16 << 20
    with pytest.raises(Error):
        read_store(store)


def test_a_directory_of_many_entries(tmp_path: Path) -> None:
    """Ten thousand foreign files in a run's directory and among the runs do not keep it from being read."""
    store = make_store(tmp_path)
    run = make_run(store, "a41f", [{"x": 1.0}])
    for n in range(10_000):
        Path(run.directory, f"junk-{n}").touch()
        Path(store, "runs", f"junk-{n}").touch()
    assert open_store(store).run("a41f").series("x").value.tolist() == [1.0]
    assert [found.id for found in open_store(store).runs()] == ["a41f"]


def test_facts_of_another_run_do_not_rename_this_one(tmp_path: Path) -> None:
    """A segment that claims to be of another run changes neither that run nor how this one is found."""
    store = make_store(tmp_path)
    make_run(store, "honest", [{"x": 1.0}])
    liar = RunBuilder(store, "liar")
    liar.facts["id"] = "honest"
    liar.stream().log({"x": 2.0})
    liar.daemon.meta({"run": "honest"})
    liar.close()
    opened = open_store(store)
    assert opened.run("honest").series("x").value.tolist() == [1.0]
    assert opened.run("liar").series("x").value.tolist() == [2.0]
    assert sorted(run.id for run in opened.runs()) == ["honest", "liar"]


def test_floods_of_equal_hashes() -> None:
    """Integer keys that all hash alike are as many objects as others: strings cannot be chosen so, Python seeds them."""
    flood = msgpack.packb({"a": {n * (2**61 - 1): 0 for n in range(4)}})
    assert len(flatten(decode_map(flood))) == 4
