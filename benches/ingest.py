"""How much the daemon takes: `python benches/ingest.py [--json FILE] [--quick]`.

Records per second until everything is `written`, with 1, 4 and 16 client processes, for records that commit their row and
for rows that come in pieces; CPU and highest memory of the daemon. Two kinds of clients: `wire` sends batches that were
packed before, over the real protocol, as fast as its credit allows, so that the daemon is what limits; `log` is a trainer
that calls `sdk.log` as fast as it can. benches/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import common
from common import Results

CLIENT_COUNTS = (1, 4, 16)
METRICS = 5
# Pieces: each metric of a row in a call of its own, the last one commits. Committed: all five in one call.
PIECES = {"committed": 1, "pieces": METRICS}
TABLE_ROWS = 1024
SILENCE_SECONDS = 60.0


def rows_in_parts(kind: str) -> list[list[dict[str, float]]]:
    """TABLE_ROWS rows of noise, each as the dicts of the calls that log it."""
    import numpy

    table = numpy.random.default_rng(1).normal(size=(TABLE_ROWS, METRICS)).tolist()
    names = common.metric_names(METRICS)
    size = METRICS // PIECES[kind]
    return [[dict(zip(names[i : i + size], row[i : i + size])) for i in range(0, METRICS, size)] for row in table]


# ---- a client that speaks the wire


class Prepared(NamedTuple):
    """Records that are ready to be sent."""

    first: int
    last: int
    flags: int
    step_max: int
    records: bytes


def prepare(kind: str, count: int, stream: int, run: str, batch_bytes: int) -> list[Prepared]:
    """`count` records of one stream, in batches, behind the facts that every stream begins with."""
    from sdk import clock, ids, record
    from sdk.wire.messages import BATCH_HAS_META, BATCH_HAS_PIECES

    facts = {
        "stream": {"id": ids.hex_u64(stream), "kind": "main", "attempt": 1, "first_step": 0, "pid": os.getpid()},
        "run": {"id": run, "project": "bench", "name": run},
    }
    begin = record.pack(record.Record(1, 0, 0, record.KIND_META, clock.wall_ns(), record.encode_map(facts)))
    batches = [Prepared(1, 1, BATCH_HAS_META, 0, begin)]
    flags = BATCH_HAS_PIECES if PIECES[kind] > 1 else 0
    buffer, first, step = bytearray(), 2, 0
    for sequence, step, packed in packed_records(kind, count):
        buffer += packed
        if len(buffer) >= batch_bytes:
            batches.append(Prepared(first, sequence, flags, step, bytes(buffer)))
            buffer, first = bytearray(), sequence + 1
    if buffer:
        batches.append(Prepared(first, count + 1, flags, step, bytes(buffer)))
    return batches


def packed_records(kind: str, count: int) -> Iterator[tuple[int, int, bytes]]:
    """(sequence, step, bytes) of each record, as `log` makes them."""
    from sdk import clock, record

    payloads = [[record.encode_map(part) for part in parts] for parts in rows_in_parts(kind)]
    pieces, now = PIECES[kind], clock.wall_ns()
    for index in range(count):
        step, piece = divmod(index, pieces)
        payload = payloads[step % TABLE_ROWS][piece]
        size = record.HEADER_SIZE + len(payload)
        commit = record.FLAG_COMMIT if piece == pieces - 1 else 0
        head = record.HEADER.pack(size, record.KIND_ROW, commit, 0, index + 2, step, now + index * 1000)
        yield index + 2, step, head + payload


def case_wire(arguments: Results) -> Results:
    """One session: Hello, batches within the credit, Flush. The clock stops when everything is acknowledged as written."""
    from sdk import ids, location

    stream, run = ids.random_u64(), arguments["run"]
    batches = prepare(arguments["kind"], arguments["records"], stream, run, arguments["batch_bytes"])
    store = location.read_store(arguments["store"])
    session = Session(store, stream, run)
    common.tell_and_wait("ready")
    start, cpu = time.monotonic(), time.process_time()
    session.send_all(batches)
    end = time.monotonic()
    result = {"start": start, "end": end, "client_cpu_seconds": time.process_time() - cpu}
    session.close(batches[-1].last)
    return {**result, "bytes": sum(len(batch.records) for batch in batches)}


class Session:
    """The trainer's half of the protocol with everything taken out that is not needed to be fast."""

    def __init__(self, store: Any, stream: int, run: str) -> None:
        """Says Hello and waits for Welcome."""
        from sdk import limits, transport
        from sdk.wire.messages import Hello, Welcome

        self.stream = stream
        self.written = 0
        self.connection = transport.Connection(transport.endpoint_path(store.path))
        versions = limits.WIRE_VERSION_MIN, limits.WIRE_VERSION
        wanted = {"batch_bytes_max": limits.BATCH_BYTES_MAX}
        self.send(Hello(*versions, stream, run, store.id, 0, "", os.getpid(), "bench", wanted))
        welcome = self.receive()
        if not isinstance(welcome, Welcome):
            raise SystemExit(f"the daemon answered Hello with {welcome!r}")
        self.credit = welcome.credit

    def send(self, message: Any) -> None:
        """Sends; a full queue of ZeroMQ is waited for."""
        while not self.connection.send(message):
            self.connection.wait(0.001)

    def receive(self) -> Any:
        """The next message, waited for; what it acknowledges is noted.

        Raises:
            SystemExit: None came for a long time, or the daemon refuses.
        """
        from sdk.wire.messages import Ack, Finished, Flushed, Reject

        deadline = time.monotonic() + SILENCE_SECONDS
        while (message := self.connection.receive()) is None:
            self.connection.wait(0.1)
            if time.monotonic() > deadline:
                raise SystemExit(f"the daemon said nothing for {SILENCE_SECONDS:g} s; written {self.written}")
        if isinstance(message, Reject):
            raise SystemExit(f"the daemon refuses: {message.code}: {message.text}")
        if isinstance(message, (Ack, Flushed, Finished)):
            self.written = max(self.written, message.written)
        return message

    def send_all(self, batches: list[Prepared]) -> None:
        """Sends the batches within the credit, and returns when all of them are written."""
        from sdk.wire.messages import Batch, Flush

        in_flight: list[tuple[int, int]] = []  # (last sequence, bytes), oldest first
        used = 0
        for batch in batches:
            size = len(batch.records)
            while used and used + size > self.credit:
                self.receive()
                while in_flight and in_flight[0][0] <= self.written:
                    used -= in_flight.pop(0)[1]
            self.send(Batch(self.stream, *batch))
            in_flight.append((batch.last, size))
            used += size
        self.send(Flush(self.stream, batches[-1].last))
        while self.written < batches[-1].last:
            self.receive()

    def close(self, last: int) -> None:
        """Finishes the stream, outside the measured time."""
        from sdk.wire.messages import Finish, Finished

        self.send(Finish(self.stream, last))
        while not isinstance(self.receive(), Finished):
            pass
        self.connection.close()


# ---- a client that trains nothing but logs


def case_log(arguments: Results) -> Results:
    """`sdk.log` flat out, then `finish()`, which returns when everything is written."""
    import sdk

    rows = rows_in_parts(arguments["kind"])
    sdk.init(project="bench", id=arguments["run"])
    log, pieces, mask = sdk.log, PIECES[arguments["kind"]], TABLE_ROWS - 1
    steps = arguments["records"] // pieces
    common.tell_and_wait("ready")
    start, cpu = time.monotonic(), time.process_time()
    if pieces == 1:
        for step in range(steps):
            log(rows[step & mask][0])
    else:
        for step in range(steps):
            *open_pieces, last = rows[step & mask]
            for piece in open_pieces:
                log(piece, commit=False)
            log(last)
    called = time.monotonic()
    sdk.finish()
    return {
        "start": start,
        "end": time.monotonic(),
        "calls_seconds": called - start,
        "client_cpu_seconds": time.process_time() - cpu,
    }


# ---- in the parent


Beside = Callable[[str, int], AbstractContextManager[Results]]
"""What goes on while records are sent: from the store's path and the daemon's pid a context with numbers of its own."""


def measure(
    options: argparse.Namespace,
    client: str,
    kind: str,
    clients: int,
    *,
    prepare: Callable[[str], object] = lambda store: None,
    beside: Beside = lambda store, pid: contextlib.nullcontext({}),
) -> Results:
    """One combination, with a daemon and a store of its own.

    Args:
        prepare: What is done to the store before its daemon starts.
    """
    each = options.records // clients // PIECES[kind] * PIECES[kind]
    with common.fresh_store() as store:
        prepare(store)
        pid = common.start_daemon(store)
        env = common.environment(store)
        arguments = {"kind": kind, "records": each, "store": store, "batch_bytes": options.batch_bytes}
        cases = [common.Case(client, {**arguments, "run": f"client-{i}"}, env) for i in range(clients)]
        for case in cases:
            case.wait_for("ready")
        with beside(store, pid) as company:
            idle = common.process_memory(pid).get("rss_mb")
            cpu = common.process_cpu_seconds(pid)
            for case in cases:
                case.say("go")
            results = [case.result() for case in cases]
            cpu = common.process_cpu_seconds(pid) - cpu
            memory = common.process_memory(pid)
        stored = sum(common.stored_rows(store, LAST_KEY, f"client-{i}") for i in range(clients))
    seconds = max(r["end"] for r in results) - min(r["start"] for r in results)
    records = each * clients
    return {
        "client": client,
        "records": kind,
        "clients": clients,
        "records_per_second": round(records / seconds),
        "records_per_daemon_cpu_second": round(records / cpu) if cpu else None,
        "seconds": round(seconds, 3),
        "daemon_cpu_seconds": round(cpu, 2),
        "clients_cpu_seconds": round(sum(r["client_cpu_seconds"] for r in results), 2),
        "daemon_rss_before_mb": idle,
        "daemon_rss_max_mb": memory.get("rss_max_mb"),
        "count": records,
        "rows_lost": records // PIECES[kind] - stored,
        **company,
    }


LAST_KEY = common.metric_names(METRICS)[-1]
COLUMNS = {
    "client": "client",
    "records": "records",
    "clients": "clients",
    "records_per_second": "records/s",
    "records_per_daemon_cpu_second": "records/daemon CPU s",
    "seconds": "seconds",
    "daemon_cpu_seconds": "daemon CPU s",
    "clients_cpu_seconds": "clients CPU s",
    "daemon_rss_before_mb": "daemon RSS before, MB",
    "daemon_rss_max_mb": "RSS max, MB",
    "count": "records sent",
    "rows_lost": "rows lost",
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2_000_000, help="records of all clients of a case together")
    parser.add_argument("--batch-bytes", type=int, default=512 * 1024, help="size of a batch of the wire clients")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENT_COUNTS))
    parser.add_argument("--client", nargs="+", choices=["wire", "log"], default=["wire", "log"])
    parser.add_argument("--kind", nargs="+", choices=list(PIECES), default=list(PIECES))
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: to see that it runs")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.records //= 10
    return options


def main() -> None:
    """Measures what was asked for, prints it, and writes it."""
    if common.serve_case({"wire": case_wire, "log": case_log}):
        return
    options = parse()
    facts = common.machine()
    common.print_machine(facts)
    results = []
    for client in options.client:
        for kind in options.kind:
            for clients in options.clients:
                results.append(measure(options, client, kind, clients))
                print(f"  … {list(results[-1].values())}", file=sys.stderr, flush=True)
    common.print_table(
        "records until written", list(COLUMNS.values()), [[row[name] for name in COLUMNS] for row in results]
    )
    if options.json:
        common.write_json(options.json, {"machine": facts, "ingest": results})


if __name__ == "__main__":
    main()
