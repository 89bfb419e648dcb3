"""As much of W&B's server as its package needs to carry runs: GraphQL about runs, the stream of a run's lines, uploads.

    with WandbServer() as server:
        ...                                  # WANDB_BASE_URL=server.url
        server.run("entity", "project", "a41f").history     # rows as W&B would show them

It keeps what it is sent at the offsets that it is sent for, as W&B does: a client that begins again at 0 overwrites.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

KEY = "0" * 40
_OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")


@contextlib.contextmanager
def own_directories(directory: Path) -> Iterator[None]:
    """W&B's package keeps copies, caches and settings below a test's directory instead of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATA", "CACHE", "CONFIG"):
            patch.setenv(f"WANDB_{name}_DIR", str(directory / f"of-wandb-{name.lower()}"))
        yield


class ServedRun:
    """What the server has of a run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.id = f"id of {name}"
        self.said: dict[str, Any] = {}
        self.lines: dict[str, list[str]] = {}
        self.files: dict[str, bytes] = {}
        self.exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.lines.get("wandb-summary.json", ["{}"])
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    @property
    def config(self) -> dict[str, Any]:
        told = json.loads(self.said.get("config") or "{}")
        return {name: one["value"] for name, one in told.items() if name != "_wandb"}

    def take(self, name: str, offset: int, content: list[str]) -> None:
        """Lines at an offset; of the summary the last one counts."""
        lines = self.lines.setdefault(name, [])
        if name == "wandb-summary.json":
            lines[:] = content
            return
        assert offset <= len(lines), f"a hole in {name} before line {offset}"
        lines[offset : offset + len(content)] = content


class WandbServer:
    """A server on a port of its own, until `close`.

    Attributes:
        url: For WANDB_BASE_URL.
        requests: (method, path, authorization) of each request.
        refuses: An HTTP status that lines get instead of being taken; 0: none. `refuses_files`: likewise of uploads.
    """

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str, str], ServedRun] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.refuses = self.refuses_files = 0
        server = self

        class Handler(_Handler):
            owner = server

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def run(self, entity: str, project: str, name: str) -> ServedRun:
        return self._runs[entity, project, name]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> WandbServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what the package asks

    def graphql(self, operation: str, said: dict[str, Any]) -> dict[str, Any]:
        answers = {
            "Viewer": self._viewer, "GetDefaultEntity": self._viewer, "RunResumeStatus": self._run_resume_status,
            "UpsertBucket": self._upsert_bucket, "CreateRunFiles": self._create_run_files, "Run": self._run,
        }  # fmt: skip
        answer = answers.get(operation)
        return answer(said) if answer is not None else {}

    def _viewer(self, said: dict[str, Any]) -> dict[str, Any]:
        teams: dict[str, Any] = {"edges": []}
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": teams}}

    def _run_resume_status(self, said: dict[str, Any]) -> dict[str, Any]:
        entity, project = said["entity"] or "me", said["project"]
        found = self._runs.get((entity, project, said["name"]))
        model = {"id": "p", "name": project, "entity": {"id": "e", "name": entity}, "bucket": None}
        if found is not None:
            counts = {name: len(found.lines.get(file, [])) for name, file in _COUNTED.items()}
            model["bucket"] = {
                "id": found.id, "name": found.name, "displayName": found.said.get("displayName"), **counts,
                "summaryMetrics": json.dumps(found.summary),
                "historyTail": json.dumps(found.lines.get("wandb-history.jsonl", [])[-1:]),
                "eventsTail": json.dumps(found.lines.get("wandb-events.jsonl", [])[-1:]),
                "config": found.said.get("config") or "{}", "tags": found.said.get("tags") or [],
                "notes": found.said.get("notes"), "wandbConfig": json.dumps({"t": 1}),
            }  # fmt: skip
        return {"model": model}

    def _run(self, said: dict[str, Any]) -> dict[str, Any]:
        found = self._runs.get((said["entity"] or "me", said["project"], said["name"]))
        if found is None:
            return {"project": None}
        told = {
            "id": found.id, "name": found.name, "displayName": found.said.get("displayName"), "state": "running", "projectId": "1",
            "historyLineCount": len(found.lines.get("wandb-history.jsonl", [])), "config": found.said.get("config") or "{}",
            "summaryMetrics": json.dumps(found.summary), "systemMetrics": "{}", "tags": [],
            "user": {"id": "u", "username": "me", "name": "me"},
        }  # fmt: skip
        return {"project": {"run": told}}

    def _upsert_bucket(self, said: dict[str, Any]) -> dict[str, Any]:
        if "project" not in said:  # what `wandb.Api` changes of a run that it has
            (changed,) = (run for run in self._runs.values() if run.id == said["id"])
            changed.take("wandb-summary.json", 0, [said["summaryMetrics"]])
            return {"upsertBucket": {"bucket": {"id": said["id"]}}}
        entity, project, name = said.get("entity") or "me", said["project"], said["name"]
        is_new = (entity, project, name) not in self._runs
        found = self._runs.setdefault((entity, project, name), ServedRun(name))
        found.said.update({key: value for key, value in said.items() if value is not None})
        where = {"id": "p", "name": project, "entity": {"id": "e", "name": entity}}
        bucket = {
            "id": found.id, "name": name, "displayName": found.said.get("displayName"), "description": "", "sweepName": None,
            "config": found.said.get("config"), "project": where,
            "historyLineCount": len(found.lines.get("wandb-history.jsonl", [])),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def _create_run_files(self, said: dict[str, Any]) -> dict[str, Any]:
        base = f"{self.url}/upload/{said['entity']}/{said['project']}/{said['run']}"
        files = [{"name": name, "uploadUrl": f"{base}/{name}"} for name in said["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}

    def stream(self, path: list[str], said: dict[str, Any]) -> None:
        found = self._runs[path[0], path[1], path[2]]
        for name, part in (said.get("files") or {}).items():
            found.take(name, part["offset"], part["content"])
        if said.get("complete"):
            found.exit_code = said["exitcode"]

    def upload(self, path: list[str], data: bytes) -> None:
        self._runs[path[0], path[1], path[2]].files["/".join(path[3:])] = data


_COUNTED = {
    "historyLineCount": "wandb-history.jsonl", "eventsLineCount": "wandb-events.jsonl", "logLineCount": "output.log",
}  # fmt: skip


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no error here: some are killed."""


class _Handler(BaseHTTPRequestHandler):
    owner: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self._answer()

    do_GET = do_PUT = do_POST  # noqa: N815 - names of the base class's

    def _answer(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        authorization = base64.b64decode((self.headers.get("Authorization") or "").removeprefix("Basic ")).decode()
        self.owner.requests.append((self.command, self.path, authorization))
        status, answer = 200, {}
        parts = [unquote(part) for part in self.path.strip("/").split("/")]
        if self.path == "/graphql":
            asked = json.loads(data)
            operation = _OPERATION.search(asked["query"])
            answer = {"data": self.owner.graphql(operation[1] if operation else "", asked.get("variables") or {})}
        elif parts[0] == "files" and parts[-1] == "file_stream":
            status = self.owner.refuses or 200
            if status == 200:
                self.owner.stream(parts[1:], json.loads(data))
        elif parts[0] == "upload" and self.owner.refuses_files:
            status = self.owner.refuses_files
        elif parts[0] == "upload":
            self.owner.upload(parts[1:], data)
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """The suite's output is its own."""
