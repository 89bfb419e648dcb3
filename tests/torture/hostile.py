"""Hostile bytes: what a daemon does with messages that nobody should send.

One real daemon and one healthy trainer live through all cases. After every `_ROUND` of them the daemon must answer
`status`, hold no more than `_MEMORY_MAX` and few descriptors, and have gone on storing what the trainer logs; at the end
the trainer's rows are all there, once, without a gap, and every run that the garbage made can be read or is refused
with an error of ours.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import zmq

import sdk
from sdk.errors import CommError, Error, RemoteProtocolError
from sdk.limits import BATCH_BYTES_MAX, MESSAGE_BODY_BYTES_MAX, MESSAGE_BYTES_MAX, STEP_MAX
from sdk.location import StoreIdentity
from sdk.platform import shared_directory, store_digest
from sdk.record import HEADER as RECORD_HEADER
from sdk.record import KIND_GAP, KIND_META, KIND_ROW, Record, encode_map, pack
from sdk.transport import endpoint_path, request
from sdk.wire.codec import HEADER, MAGIC, decode, encode
from sdk.wire.messages import Ack, Batch, Control, Finish, Finished, Flush, Flushed, Hello, Message, Reject, Welcome
from tests.end_to_end.world import Trainer, start_daemon, until
from tests.serving import packed, row, rows, temporary_store
from tests.torture.harness import Result, chance, torture

_ROUND = 250
# What the daemon holds at rest (numpy, psutil: about 60 MB) and what one peer may have queued, with room.
_MEMORY_MAX = 300 * 10**6
_DESCRIPTORS_MAX = 150
_U64 = 2**64 - 1
_BAD_STREAMS = 16
_HEALTHY = "healthy"

Frames = Sequence[bytes]


def resealed(first: bytes, payload: bytes = b"", **changes: int) -> list[bytes]:
    """A message with some header fields changed and checksums that are right again."""
    _, version, kind, reserved, body_size, payload_size, payload_crc, _ = HEADER.unpack_from(first)
    body = first[HEADER.size :]
    given = {"version": version, "kind": kind, "body_size": body_size, "payload_size": payload_size, **changes}
    head = HEADER.pack(
        MAGIC, given["version"], given["kind"], reserved, given["body_size"], given["payload_size"],
        changes.get("payload_crc", zlib.crc32(payload) if payload else payload_crc), 0,
    )  # fmt: skip
    crc = zlib.crc32(body, zlib.crc32(head[:-4]))
    return [head[:-4] + crc.to_bytes(4, "little") + body, *([payload] if payload else [])]


def with_body(kind: int, body: bytes, payload: bytes = b"") -> list[bytes]:
    """A message of a type number with any body, sealed."""
    head = HEADER.pack(MAGIC, 1, kind, 0, len(body), len(payload), zlib.crc32(payload), 0)
    crc = zlib.crc32(body, zlib.crc32(head[:-4]))
    return [head[:-4] + crc.to_bytes(4, "little") + body, *([payload] if payload else [])]


def nested(depth: int, kind: int = 0x91) -> bytes:
    """msgpack: a list in a list (0x91) or a map in a map (0x81), `depth` times."""
    return (bytes([kind, 0x80] if kind == 0x81 else [kind])) * depth + b"\xc0"


class Garbage:
    """Makes the messages of one case. `ring_paths`: what a Hello may claim as its ring."""

    def __init__(self, store: StoreIdentity, ring_paths: Sequence[str]) -> None:
        self._store = store
        self._rings = ring_paths
        self.kinds: list[Callable[[random.Random], list[Frames]]] = [
            self.random_frames, self.flipped_bits, self.wrong_header, self.wrong_frames, self.lying_counts,
            self.jumping_sequences, self.impossible_steps, self.replayed, self.without_hello, self.wrong_hello,
            self.wrong_control, self.wrong_ring, self.truncated, self.oversized, self.packed_bombs, self.lying_records,
            self.not_for_a_daemon, self.far_requests,
        ]  # fmt: skip

    def stream(self, chance: random.Random) -> int:
        return 0xBAD000 + chance.randrange(_BAD_STREAMS)

    def hello(self, of: int, **changes: Any) -> Frames:
        run = f"junk-{of % 8}"
        message = Hello(1, 1, of, run, self._store.id, 0, "", os.getpid(), "0", {"batch_bytes_max": 1 << 20})
        return encode_all(message._replace(**changes))

    def good(self, chance: random.Random) -> Message:
        """Any message that could be right."""
        stream = self.stream(chance)
        return chance.choice([
            Hello(1, 1, stream, "junk", self._store.id, 0, "", os.getpid(), "0", {}),
            Batch(stream, 1, 3, 0, 2, rows(1, 3)), Flush(stream, 3), Finish(stream, 3), Control(1, "status", {}),
        ])  # fmt: skip

    def random_frames(self, chance: random.Random) -> list[Frames]:
        prefix = chance.choice([b"", MAGIC, MAGIC + bytes([1, chance.randrange(16)])])
        return [[prefix + chance.randbytes(chance.choice([0, 1, 23, 24, 25, 200, 65_536]))]]

    def flipped_bits(self, chance: random.Random) -> list[Frames]:
        frames = [bytearray(bytes(f)) for f in encode_all(self.good(chance))]
        for _ in range(chance.randint(1, 8)):
            frame = chance.choice(frames)
            frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
        return [[bytes(f) for f in frames]]

    def wrong_header(self, chance: random.Random) -> list[Frames]:
        first, *rest = encode_all(self.good(chance))
        field = chance.choice(["version", "kind", "body_size", "payload_size", "payload_crc"])
        value = chance.choice([0, 5, 77, 255])
        return [resealed(first, b"".join(rest), **{field: value}), [b"spdW" + first[4:], *rest]]

    def wrong_frames(self, chance: random.Random) -> list[Frames]:
        first, *rest = encode_all(self.good(chance))
        count = chance.choice([2, 3, 100, 5000])
        return [[first, *rest, *[b""] * count], [b""], [b"", first], [first] * 2, [b"", b""]]

    def batch(self, stream: int, first: int, last: int, records: bytes, flags: int = 0, step_max: int = 9) -> Frames:
        """A sealed Batch with whatever numbers; the codec's own checks are left out."""
        return with_body(3, msgpack.packb([stream, first, last, flags, step_max]), records)

    def lying_counts(self, chance: random.Random) -> list[Frames]:
        stream, count = self.stream(chance), chance.choice([0, 2, 4, 1000, 2**32, _U64])
        return [self.hello(stream), self.batch(stream, 1, min(count, _U64), rows(1, 3), chance.randrange(4))]

    def jumping_sequences(self, chance: random.Random) -> list[Frames]:
        stream = self.stream(chance)
        first = chance.choice([0, 2, 500, 2**32, 2**63, _U64])
        last = chance.choice([0, first, min(first + 2, _U64), _U64])
        return [self.hello(stream), self.batch(stream, first, last, rows(1, 3), chance.randrange(4))]

    def impossible_steps(self, chance: random.Random) -> list[Frames]:
        stream, step = self.stream(chance), chance.choice([STEP_MAX, STEP_MAX + 1, _U64])
        records = packed([row(n, step=step) for n in range(1, 4)])
        return [self.hello(stream), self.batch(stream, 1, 3, records, chance.randrange(4), chance.choice([0, step]))]

    def replayed(self, chance: random.Random) -> list[Frames]:
        stream = self.stream(chance)
        old = self.batch(stream, 1, 3, rows(1, 3))
        return [self.hello(stream), old, self.batch(stream, 4, 6, rows(4, 6)), old, self.hello(stream), old, old]

    def without_hello(self, chance: random.Random) -> list[Frames]:
        return [self.batch(chance.getrandbits(64), 1, 3, rows(1, 3)), encode_all(Flush(chance.getrandbits(64), 3))]

    def wrong_hello(self, chance: random.Random) -> list[Frames]:
        field, value = chance.choice([
            ("version_min", 9), ("version_max", 0), ("store", b"x" * 16), ("store", b""), ("run", ""), ("run", "x" * 70_000),
            ("run", "../../evil"), ("run", "\0"), ("run", "\x1b[2J\n"), ("run", "\ud800"), ("stream", 0), ("stored", _U64),
            ("pid", 1), ("pid", _U64), ("sdk", "y" * 70_000), ("limits", {"batch_bytes_max": 1}),
            ("limits", {"batch_bytes_max": _U64}), ("limits", {str(n): 1 for n in range(2000)}), ("run", "other"),
        ])  # fmt: skip
        stream = self.stream(chance)
        return [self.hello(stream, **{field: value}), self.batch(stream, 1, 3, rows(1, 3))]

    def wrong_control(self, chance: random.Random) -> list[Frames]:
        verb = chance.choice(["", "no such", "status", "flush", "settle", "\x1b[31m", "reply", "error", "__init__"])
        value = chance.choice([None, _U64, "x" * 9000, [[[]]], {"a": {"b": b"\0"}}, -1, float("nan")])
        return [encode_all(Control(chance.getrandbits(32), verb, {"key": value, "text": value}))]

    def wrong_ring(self, chance: random.Random) -> list[Frames]:
        return [self.hello(self.stream(chance), ring=chance.choice(self._rings), pid=chance.choice([1, os.getpid()]))]

    def truncated(self, chance: random.Random) -> list[Frames]:
        frames = encode_all(self.good(chance))
        at = chance.randrange(len(frames))
        return [[*frames[:at], frames[at][: chance.randrange(len(frames[at]))]]]

    def oversized(self, chance: random.Random) -> list[Frames]:
        stream = self.stream(chance)
        if chance.random() < 0.05:  # libzmq itself drops the peer
            return [[bytes(MESSAGE_BYTES_MAX + 1)]]
        body = msgpack.packb([stream, "x" * chance.choice([MESSAGE_BODY_BYTES_MAX - 30, MESSAGE_BODY_BYTES_MAX])])
        size = BATCH_BYTES_MAX + chance.choice([0, 1]) if chance.random() < 0.05 else 70_000
        return [with_body(6, body), self.batch(stream, 1, 3, bytes(size))]

    def packed_bombs(self, chance: random.Random) -> list[Frames]:
        body = chance.choice([
            nested(10_000), nested(1000), nested(400, 0x81), b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x82\xa1a\x01\xa1a\x02", b"\xc7\xff\x01" + bytes(255),
            b"\xc9\xff\xff\xff\xff\x01", b"\x93\x01\xa1x" + nested(500, 0x81), b"\x93\x01\xa6status" + b"\x81\xa1a" + nested(900),
            msgpack.packb([1, "status", {str(n * 2**61): n for n in range(20_000)}]), b"",
        ])  # fmt: skip
        return [with_body(chance.choice([1, 3, 6, 7, 9]), body, chance.choice([b"", rows(1, 1)]))]

    def lying_records(self, chance: random.Random) -> list[Frames]:
        stream = self.stream(chance)
        payload = chance.choice([
            b"\xc1", b"", b"\x81", nested(1000), b"\x81\xa1a" + nested(1000), b"\x81\xa1a" + nested(900, 0x81), b"\x81\x01\x02",
            b"\x81\xa1a\xc7\x07\x01\x93\xa1f\x91\x01\xc4\x00", b"\x81\xa0\x01", b"\x81\xa1\xff\x01",
            encode_map({"_step": "x", "\0\x1b]0;x\a": 1}),
        ])  # fmt: skip
        kind = chance.choice([KIND_ROW, KIND_META, KIND_GAP, 4, 0, 255])
        good = pack(Record(1, 1, 1, kind, 2**63 - 1, payload))
        size = chance.choice([len(good), 0, 1, 31, 33, 2**32 - 1])
        bad = RECORD_HEADER.pack(size, kind, 255, 65535, chance.choice([1, 0, _U64]), 3, -(2**63)) + payload
        flags = chance.randrange(4)
        return [
            self.hello(stream),
            self.batch(stream, 1, 1, good, flags),
            self.batch(stream, 2, 3, rows(2, 2) + bad, flags),
            self.batch(stream, 2, 3, rows(2, 3), flags),
        ]

    def not_for_a_daemon(self, chance: random.Random) -> list[Frames]:
        stream = self.stream(chance)
        message = chance.choice([
            Welcome(1, stream, 1, 1, 1, 1, "x", {}), Ack(stream, _U64, _U64), Flushed(stream, 1, 1), Finished(stream, 1, 1),
            Reject(stream, "x", "y", True),
        ])  # fmt: skip
        return [encode_all(message)]

    def far_requests(self, chance: random.Random) -> list[Frames]:
        stream = self.stream(chance)
        kind = chance.choice([Flush, Finish])
        return [self.hello(stream), encode_all(kind(stream, chance.choice([0, 1, 2**63, _U64])))]


def encode_all(message: Message) -> list[bytes]:
    return [bytes(frame) for frame in encode(message)]


def raw_bytes(chance: random.Random) -> bytes:
    """What somebody who does not speak ZMTP, or only half of it, sends into the socket."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 1 + 31)
    ready = b"\x04\x26\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
    return chance.choice([
        b"", chance.randbytes(chance.randint(1, 5000)), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", greeting[: chance.randrange(64)],
        greeting, greeting + chance.randbytes(300), greeting + ready + b"\x02" + b"\xff" * 8, greeting + ready + b"\x03\xff",
        greeting + ready + b"\x02" + struct.pack(">Q", 2**63 - 1), greeting + b"\x06" + struct.pack(">Q", 2**62) + b"x",
        greeting + b"\x04\xff" + bytes(255), greeting + ready + b"\x00\x05hello", b"\x01\x00", bytes(64),
    ])  # fmt: skip


@contextlib.contextmanager
def _false_rings(store: StoreIdentity) -> Iterator[list[str]]:
    """Paths that no Hello should name: each is of the right form where that can be."""
    digest, directory = store_digest(store.path), shared_directory("/dev/shm")
    made = {
        kind: os.path.join(directory, f"{digest}-{n:016x}.ring") for n, kind in enumerate(("fifo", "link", "own"), 1)
    }
    os.mkfifo(made["fifo"])
    os.symlink("/etc/passwd", made["link"])
    Path(made["own"]).write_bytes(b"precious")
    elsewhere = os.path.join(store.path, f"{digest}-{9:016x}.ring")
    Path(elsewhere).write_bytes(bytes(64) + b"precious")
    os.mkdir(os.path.join(store.path, "stepd-folder"))
    try:
        yield [
            "/etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem", directory, "relative.ring", "/nowhere.ring", "\0", "/" * 5000,
            f"{directory}/../{digest}-1.ring", elsewhere, *made.values(),
        ]  # fmt: skip
        assert Path(elsewhere).read_bytes() == bytes(64) + b"precious", "a file outside of shared memory was touched"
        until(lambda: _is_kept(made["own"], store.path))
    finally:
        for path in made.values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _is_kept(ring: str, store: str) -> bool:
    """Whether the file is where it was, or aside: the daemon may be moving it right now."""
    for path in (Path(ring), *Path(store, "aside").glob(os.path.basename(ring) + ".*")):
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == b"precious":
                return True
    return False


def _healthy(store: str, goal: int) -> Callable[[Callable[[int], None]], None]:
    """A trainer that logs until the file `done` is there, at most `goal` steps, and finishes."""

    def body(count: Callable[[int], None]) -> None:
        run = sdk.init(dir=store, id=_HEALTHY, settings={"silent": True})
        done = os.path.join(store, "done")
        for n in range(goal):
            run.log({"x": n})
            count(n + 1)
            if n % 20 == 0 and os.path.exists(done):
                break
            sdk.clock.pause(0.0005)
        run.finish()

    return body


class Peer:
    """A hostile peer: a DEALER that is made anew when the daemon may have dropped it, and raw sockets."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._context = zmq.Context()
        self._socket = self._new()

    def _new(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.set(zmq.SNDHWM, 10_000)
        socket.set(zmq.SNDTIMEO, 10_000)
        socket.connect(f"ipc://{self._path}")
        return socket

    def send(self, frames: Frames) -> None:
        self._socket.send_multipart(list(frames))
        if sum(map(len, frames)) > MESSAGE_BYTES_MAX:
            self._socket.close(linger=1000)
            self._socket = self._new()
        while self._socket.poll(0):
            self._socket.recv_multipart()

    def send_raw(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError, BrokenPipeError, TimeoutError), socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(5)
            raw.connect(self._path)
            raw.sendall(data)

    def barrier(self) -> None:
        """Until the daemon has taken what was sent before."""
        number = int.from_bytes(os.urandom(7), "little")
        self._socket.send_multipart(encode_all(Control(number, "barrier", {})))
        while self._socket.poll(20_000):
            with contextlib.suppress(RemoteProtocolError):
                answer = decode(self._socket.recv_multipart())
                if isinstance(answer, Control) and answer.id == number:
                    return
        raise AssertionError("the daemon does not answer")

    def close(self) -> None:
        self._context.destroy(linger=0)


def _look_at(store: StoreIdentity, pid: int, trainer: Trainer, before: int) -> None:
    """The daemon is the same, answers, is small, and serves."""
    status = request(store.path, "status", timeout=20)
    assert status["pid"] == pid, "the daemon died"
    assert status["memory_bytes"] < _MEMORY_MAX, status["memory_bytes"]
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    assert descriptors < _DESCRIPTORS_MAX, f"{descriptors} descriptors are open"
    until(lambda: trainer.returned > before, 20)


@torture(full=100_000, default=5_000)
def garbage_messages(cases: Iterable[int]) -> Iterator[Result]:
    """Garbage, truncated, replayed, oversized and lying messages to a real daemon: a healthy run beside it is whole."""
    with temporary_store() as store, _false_rings(store) as rings:
        pid = start_daemon(Path(store.path))
        trainer = Trainer(_healthy(store.path, 10**7))
        peer = Peer(endpoint_path(store.path))
        garbage = Garbage(store, rings)
        try:
            until(lambda: trainer.returned > 0)
            before = 0
            for count, case in enumerate(cases):
                _one(garbage, peer, case)
                if count % _ROUND == 0:
                    peer.barrier()
                    _look_at(store, pid, trainer, before)
                    before = trainer.returned
                yield Result(case)
            peer.barrier()
            _look_at(store, pid, trainer, before)
        finally:
            peer.close()
            Path(store.path, "done").touch()
            code = trainer.wait()
        assert code == 0
        _compare(store, trainer.returned)


def _one(garbage: Garbage, peer: Peer, case: int) -> None:
    random_source = chance("garbage-messages", case)
    kind = case % (len(garbage.kinds) + 1)
    if kind == len(garbage.kinds):
        peer.send_raw(raw_bytes(random_source))
        return
    for frames in garbage.kinds[kind](random_source):
        with contextlib.suppress(RemoteProtocolError):  # no other error
            decode(frames)
        peer.send(frames)


def _compare(store: StoreIdentity, logged: int) -> None:
    opened = sdk.open_store(store.path)
    run = opened.run(_HEALTHY)
    assert run.series("x").step.tolist() == list(range(logged))
    assert run.series("x").value.tolist() == list(range(logged))
    assert not run.gaps, run.gaps
    assert not run.damage, run.damage
    for junk in opened.runs():
        with contextlib.suppress(Error):
            junk.summary, junk.keys(), junk.gaps, junk.state, list(junk.rows())
    with contextlib.suppress(CommError):
        request(store.path, "stop")
