"""Many nodes, one bucket: what it takes to ship a job's run from each node's disk to object storage, and to ask one question of all.

Each node is a store of its own with the streams of its ranks, all of one run; `stepd sync --all --to parquet:s3://…` is run for each,
some at the same time, against a real server that speaks S3 on this machine and counts requests (moto; in memory, so its times say
little of a network). Then one query over all ranks is asked through DuckDB, Polars and pyarrow, each in a process of its own.

    python benches/fleet.py --nodes 64 --ranks 8 --steps 2000
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator

import common
import made_runs
from common import Results, Table

BUCKET = "fleet"
RUN = "job-4711"
KEY = "train/metric_00"
# What a client needs beside the endpoint; without these it would look for a cloud around this machine.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip
SERVER = """\
import json, sys, threading
from collections import Counter
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
app, counts, lock = DomainDispatcherApplication(create_backend_app), Counter(), threading.Lock()
def counted(environ, respond):
    if environ["PATH_INFO"] == "/-counts":
        respond("200 OK", [])
        return [json.dumps(counts).encode()]
    method = environ["REQUEST_METHOD"]
    what = "LIST" if method == "GET" and "list-type" in environ.get("QUERY_STRING", "") else method
    with lock:
        counts[what] += 1
    return app(environ, respond)
class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    def log(self, *_): pass
server = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=Quiet)
print(server.server_port, flush=True)
server.serve_forever()
"""


# ---- the bucket


class Bucket:
    """A running server with one empty bucket."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    @property
    def url(self) -> str:
        """As `--to` takes it."""
        return f"parquet:s3://{BUCKET}/runs?endpoint={self.endpoint}"

    def counts(self) -> Results:
        """Requests so far, by kind."""
        with urllib.request.urlopen(f"{self.endpoint}/-counts") as answer:
            found: Results = json.loads(answer.read())
        return found


@contextlib.contextmanager
def bucket() -> Iterator[Bucket]:
    """The server, in a process of its own."""
    line = [sys.executable, "-W", "ignore", "-c", SERVER]
    server = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
        yield Bucket(endpoint)
    finally:
        server.kill()
        server.wait()


def spent(before: Results, after: Results, times: float = 1.0) -> Results:
    """Requests between two counts, for each of `times`."""
    return {name: round((after[name] - before.get(name, 0)) / times, 2) for name in sorted(after)}


# ---- the nodes


def case_node(arguments: Results) -> Results:
    """Makes the store of one node: what its daemon has written of its ranks."""
    from daemon.store.run_writer import RunWriter
    from sdk import ids, location
    from sdk.files import DISK

    noisy = made_runs.Noisy(arguments["steps"], arguments["metrics"], "float32")
    host = f"node{arguments['node']:05}"
    writer = RunWriter(
        DISK, location.make_store(arguments["store"]), RUN, ids.random_u64(), {"kind": "daemon", "host": host}
    )
    layout = made_runs.Layout(common.metric_names(noisy.metrics))
    for local in range(arguments["ranks"]):
        rank = arguments["node"] * arguments["ranks"] + local
        blocks = made_runs.Blocks(writer, ids.random_u64())
        facts = {**blocks.facts(), "rank": rank, "local_rank": local, "host": host}
        blocks.note({"stream": facts, "run": {"id": RUN, "project": "bench", "name": "fleet"}})
        for first, times, values in noisy.chunks():
            blocks.rows(layout.records(blocks.next, first, times, values + rank), first)
        end = made_runs.START_NS + noisy.steps * made_runs.PERIOD_NS
        blocks.note({"end": {"state": "finished", "exit_code": 0, "time_ns": end}})
    writer.roll()
    blocks.close_retired()
    return {"bytes": made_runs.directory_bytes(writer.directory)}


def ship(options: argparse.Namespace, root: str, where: Bucket) -> Results:
    """All nodes, `--wave` at a time; then once more, with nothing new."""
    before = where.counts()

    def node(number: int) -> Results:
        store = os.path.join(root, f"node{number}")
        env = common.environment(store, **CREDENTIALS)
        about = {
            "node": number,
            "store": store,
            "ranks": options.ranks,
            "steps": options.steps,
            "metrics": options.metrics,
        }
        made = common.run_case("node", about, env)
        return {**made, **sync(store, where)}

    begun = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(options.wave) as pool:
        nodes = list(pool.map(node, range(options.nodes)))
        seconds = time.perf_counter() - begun
        after = where.counts()
        again = list(pool.map(lambda number: sync(os.path.join(root, f"node{number}"), where), range(options.nodes)))
    held = objects(where)
    return {
        "nodes": options.nodes, "ranks": options.nodes * options.ranks, "steps": options.steps, "metrics": options.metrics,
        "wave": options.wave, "points": options.nodes * options.ranks * options.steps * options.metrics,
        "store_bytes": sum(each["bytes"] for each in nodes), "objects": len(held), "object_bytes": sum(held),
        "node_seconds": common.median([each["seconds"] for each in nodes]),
        "node_cpu_seconds": common.median([each["cpu_seconds"] for each in nodes]),
        "again_seconds": common.median([each["seconds"] for each in again]),
        "all_seconds": round(seconds, 1), "requests_per_node": spent(before, after, options.nodes),
        "requests_again": spent(after, where.counts(), options.nodes),
    }  # fmt: skip


def sync(store: str, where: Bucket) -> Results:
    """One `stepd sync`, as the last line of a job runs it."""
    line = [sys.executable, "-m", "stepd", "sync", "--all", "--to", where.url, "--workers", "1"]
    begun = time.perf_counter()
    process = subprocess.Popen(
        line, env=common.environment(store, **CREDENTIALS), cwd=common.ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"stepd sync failed with {process.returncode}: {told[-4000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": round(time.perf_counter() - begun, 2), "cpu_seconds": round(cpu, 2)}


def objects(where: Bucket) -> list[int]:
    """The sizes of all objects."""
    os.environ.update(CREDENTIALS)
    from pyarrow import fs

    system = fs.S3FileSystem(endpoint_override=where.endpoint, region="us-east-1")
    found = system.get_file_info(fs.FileSelector(f"{BUCKET}/runs", recursive=True))
    return [info.size for info in found if info.type == fs.FileType.File]


# ---- the question: of every rank the last value and the smallest, of one metric


def case_query(arguments: Results) -> Results:
    """Asks it with one engine, the imports apart."""
    import pyarrow.dataset
    from pyarrow import fs

    ways = {"pyarrow": _ask_pyarrow, "DuckDB": _ask_duckdb, "Polars": _ask_polars}
    if arguments["engine"] == "DuckDB":
        import duckdb  # noqa: F401
    elif arguments["engine"] == "Polars":
        import polars  # noqa: F401
    begun = time.perf_counter()
    system = fs.S3FileSystem(endpoint_override=arguments["endpoint"], region="us-east-1")
    files = pyarrow.dataset.dataset(f"{BUCKET}/runs/rows", filesystem=system, partitioning="hive")
    listed = time.perf_counter()
    answer = ways[arguments["engine"]](files)
    ended = time.perf_counter()
    return {
        "engine": arguments["engine"], "list_seconds": round(listed - begun, 3), "query_seconds": round(ended - listed, 3),
        "ranks": len(answer), "smallest": round(float(min(row[1] for row in answer)), 3),
    }  # fmt: skip


def _ask_pyarrow(files: object) -> list[tuple[int, float]]:
    table = files.to_table(columns=["_rank", KEY])  # type: ignore[attr-defined]
    found = table.group_by("_rank").aggregate([(KEY, "min")])
    return list(zip(found["_rank"].to_pylist(), found[f"{KEY}_min"].to_pylist()))


def _ask_duckdb(files: object) -> list[tuple[int, float]]:
    import duckdb

    database = duckdb.connect()
    database.register("rows", files)
    return database.execute(f'SELECT _rank, min("{KEY}") FROM rows GROUP BY _rank').fetchall()


def _ask_polars(files: object) -> list[tuple[int, float]]:
    import polars

    asked = polars.scan_pyarrow_dataset(files).select("_rank", KEY).group_by("_rank").agg(polars.col(KEY).min())
    return asked.collect().rows()


def ask(where: Bucket, engines: list[str]) -> list[Results]:
    """Each engine in a process of its own."""
    found = []
    for engine in engines:
        before = where.counts()
        env = common.environment("/nonexistent", **CREDENTIALS)
        answer = common.run_case("query", {"engine": engine, "endpoint": where.endpoint}, env)
        found.append({**answer, "requests": spent(before, where.counts())})
    return found


# ---- what is printed


def tables(shipped: Results, asked: list[Results]) -> list[Table]:
    """Shipping, and the question."""
    mega = 1e6
    per_node, again = shipped["requests_per_node"], shipped["requests_again"]
    rows = [
        ["ranks, each a stream of one run", shipped["ranks"]],
        ["points (values)", shipped["points"]],
        ["stores, MB", round(shipped["store_bytes"] / mega, 1)],
        ["objects", shipped["objects"]],
        ["objects, MB", round(shipped["object_bytes"] / mega, 1)],
        ["a node's `stepd sync`, s (median)", shipped["node_seconds"]],
        ["its CPU, s", shipped["node_cpu_seconds"]],
        ["a node's requests", told(per_node)],
        ["all nodes, s", shipped["all_seconds"]],
        ["a second sync with nothing new, s (median)", shipped["again_seconds"]],
        ["its requests", told(again)],
    ]
    title = f"{shipped['nodes']} nodes into one bucket, {shipped['wave']} at a time, making the stores included in `all nodes`"
    queries = [
        [one["engine"], one["ranks"], one["list_seconds"], one["query_seconds"], told(one["requests"])] for one in asked
    ]
    return [
        Table(title, ["what", "found"], rows),
        Table(
            "the smallest value of one metric, by rank, over all", ["engine", "ranks", "list s", "query s", "requests"],
            queries,
        ),
    ]  # fmt: skip


def told(requests: Results) -> str:
    """Requests in words; those that were not made are left out."""
    return ", ".join(f"{count:g} {name}" for name, count in requests.items() if count) or "none"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--ranks", type=int, default=8, help="on each node")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--metrics", type=int, default=10)
    parser.add_argument("--wave", type=int, default=len(os.sched_getaffinity(0)), help="nodes at the same time")
    parser.add_argument(
        "--engines", nargs="*", choices=["pyarrow", "DuckDB", "Polars"], default=["pyarrow", "DuckDB", "Polars"]
    )
    common.add_output_options(parser)
    options = parser.parse_args()
    if options.quick:
        options.nodes, options.ranks, options.steps = (
            min(options.nodes, 6),
            min(options.ranks, 2),
            min(options.steps, 500),
        )
    return options


def main() -> None:
    """Measures, prints, and writes."""
    if common.serve_case({"node": case_node, "query": case_query}):
        return
    options = parse()
    facts = common.machine()
    common.print_machine(facts)
    with tempfile.TemporaryDirectory(prefix="stepd-bench-") as root, bucket() as where:
        shipped = ship(options, root, where)
        common.progress(shipped)
        asked = ask(where, options.engines)
    made = tables(shipped, asked)
    for table in made:
        print(table.text(), flush=True)
    if options.json:
        common.write_json(options.json, {"machine": facts, "shipped": shipped, "asked": asked})
    if options.markdown:
        common.write_markdown(options.markdown, facts, made)


if __name__ == "__main__":
    main()
