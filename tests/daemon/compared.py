"""Three stored runs that differ in everything `stepd compare` looks at; made without a trainer, so that nothing depends on the day."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.builders import START_NS, RunBuilder, compact

_GIT = {
    "commit": "033819ec991c75de501b4c03aeaea1aebf2b7777",
    "branch": "main",
    "dirty": False,
    "remote": "git@host:digits.git",
}
_PATCH = """diff --git a/train.py b/train.py
--- a/train.py
+++ b/train.py
@@ -1,2 +1,2 @@
-width = 64
+width = 128
 depth = 3
"""
_REQUIREMENTS = "numpy==2.1.0\ntorch==2.9.0\ntqdm==4.66.1\n"


def make_compared(store: str) -> None:
    """`base`, `wide` and `again` of project digits; `again` is as `base`, and ends before it."""
    base = {"lr": 0.1, "model": {"width": 64, "depth": 3}, "epochs": 2, "seed": 1}
    gpus = [{"index": number, "name": "NVIDIA H200", "memory_bytes": 150 * 10**9} for number in range(2)]
    machine = {
        "os": "Linux 6.8",
        "cpu": "EPYC 9554",
        "cpu_count": 64,
        "memory_bytes": 10**12,
        "gpus": gpus,
        "gpu_driver": "570.1",
    }
    one = {
        "command": ["/env/bin/python", "train.py", "--lr", "0.1"], "program": {"kind": "script", "path": "/work/train.py"},
        "cwd": "/work", "host": "node-1", "user": "ada", "python": {"version": "3.11.7", "executable": "/env/bin/python"},
        "environment": {"CUDA_VISIBLE_DEVICES": "0,1"}, "git": _GIT, "code": {"file": "code/train.py"}, **machine,
    }  # fmt: skip
    other = {
        **one, "command": ["/env/bin/python", "train.py", "--lr", "0.2", "--width", "128", "--schedule", "cosine with restarts"],
        "git": {**_GIT, "dirty": True}, "gpus": gpus[:1], "environment": {"OMP_NUM_THREADS": "8"}, "host": "node-2",
    }  # fmt: skip
    _make(
        store,
        "a41f",
        "base",
        base,
        one,
        {"requirements.txt": _REQUIREMENTS, "code/train.py": "width = 64\ndepth = 3\n"},
        300,
        0.1,
    )
    wide = {**base, "lr": 0.2, "model": {"width": 128, "depth": 3}, "schedule": "cosine", "epochs": 2.0}
    files = {
        "requirements.txt": _REQUIREMENTS.replace("2.9.0", "2.9.1").replace("tqdm==4.66.1\n", "rich==13.0\n"),
        "diff.patch": _PATCH, "code/train.py": "width = 128\ndepth = 3\n",
    }  # fmt: skip
    _make(store, "b7c2", "wide", wide, other, files, 300, 0.2)
    _make(store, "c0de", "again", {**base, "seed": 1}, {"host": "node-3", "command": one["command"]}, {}, 200, 0.1)


def _make(
    store: str, run_id: str, name: str, config: dict[str, Any], context: dict[str, Any], files: dict[str, str], steps: int, lr: float
) -> None:  # fmt: skip
    builder = RunBuilder(store, run_id, project="digits", name=name)
    main = builder.stream(started_ns=START_NS + int(run_id, 16) * 10**9)
    main.meta({"config": config, "context": context})
    for step in range(steps):
        main.time_ns += 10**8
        row = {"train/loss": 2.0 / (1 + step * (0.1 if step < 120 else lr)), "lr": 0.1}
        if step % 50 == 49:
            row["val/acc"] = 1 - row["train/loss"] / 2
        main.log(row)
    main.meta({"summary": {"test/acc": 0.9 if lr == 0.1 else 0.92}})
    main.finish()
    builder.seal()
    compact(builder, window=64)
    for path, text in files.items():
        place = Path(builder.directory, "files", path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
