"""A real server that speaks S3, for tests: moto, in a process of its own, on a port that the system chose.

One for all tests of a process; it ends with it. Each test has a bucket of its own.
"""

from __future__ import annotations

import atexit
import itertools
import subprocess
import sys
import urllib.request

_PROGRAM = """\
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
_running: list[subprocess.Popen[str]] = []
_port = 0
_numbers = itertools.count()

# What a client needs beside the endpoint; without these it would look for a cloud around this machine.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


def endpoint() -> str:
    """The server's URL; it is started when somebody asks first."""
    global _port
    if not _running:
        command = [sys.executable, "-W", "ignore", "-c", _PROGRAM]
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        _running.append(server)
        atexit.register(_stop)
        assert server.stdout is not None
        lines = iter(server.stdout.readline, "")
        _port = int(next(line for line in lines if line.strip().isdigit()))
    return f"http://127.0.0.1:{_port}"


def _stop() -> None:
    for server in _running:
        server.kill()
        server.wait()


def make_bucket() -> str:
    """A new, empty bucket; its name."""
    name = f"bucket-{next(_numbers)}"
    request = urllib.request.Request(f"{endpoint()}/{name}", method="PUT")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    return name
