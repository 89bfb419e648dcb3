"""What benches/media.py logs, and how each tool under test logs it.

A value is an array (or a list of rows) and for each tool the call that logs it: the constructor and `log`, since both hold
the training loop. What a tool has no word for, or stores wrongly, has no call and shows as a dash.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

SIDE = 512
SAMPLE_RATE = 16_000
TABLE_ROWS = 10_000
FPS = 4

Log = Callable[[str, Any, int], object]
"""Logs a value under a key at a step."""


class Value(NamedTuple):
    """One kind of value.

    Attributes:
        title: For the table.
        make: The value, from a numpy random generator.
        budget_ms: What it may hold the loop for, from the design; None: twice the copy of its bytes.
        writer: The `SummaryWriter` method that stores the same thing, "" if there is none, and its arguments.
    """

    title: str
    make: Callable[[Any], Any]
    budget_ms: float | None
    writer: tuple[str, dict[str, Any]]


def _pixels(rng: Any) -> Any:
    return rng.integers(0, 256, (SIDE, SIDE, 3), "u1")


def _transposed(rng: Any) -> Any:
    """What torch has, looked at as matplotlib wants it."""
    return rng.integers(0, 256, (3, SIDE, SIDE), "u1").transpose(1, 2, 0)


def _numbers(rng: Any) -> Any:
    return rng.standard_normal(1_000_000, "f4")


def _frames(rng: Any) -> Any:
    return rng.integers(0, 256, (32, 3, 128, 128), "u1")


def _samples(rng: Any) -> Any:
    return rng.uniform(-1, 1, SAMPLE_RATE).astype("f4")


def _rows(rng: Any) -> Any:
    """An index, a text, two numbers a row."""
    numbers = rng.normal(size=(TABLE_ROWS, 2)).tolist()
    return [[index, f"sample {index}", *pair] for index, pair in enumerate(numbers)]


_IMAGE: tuple[str, dict[str, Any]] = ("add_image", {"dataformats": "HWC"})
_NONE: tuple[str, dict[str, Any]] = ("", {})
VALUES = {
    "image-uint8": Value("image 512²×3 uint8", _pixels, 0.1, _IMAGE),
    # Wider elements: the same budget for each byte.
    "image-float32": Value("image 512²×3 float32", lambda rng: rng.random((SIDE, SIDE, 3), "f4"), 0.4, _IMAGE),
    # No SummaryWriter: it multiplies everything but uint8 by 255.
    "image-int64": Value("image 512²×3 int64", lambda rng: rng.integers(0, 256, (SIDE, SIDE, 3)), 0.8, _NONE),
    "image-view": Value("image, HWC view of CHW uint8", _transposed, 0.1, _IMAGE),
    "histogram": Value("histogram of 1 M float32", _numbers, 0.5, ("add_histogram", {})),
    "video": Value("video 32×3×128² uint8", _frames, 0.2, ("add_video", {"fps": FPS})),
    "table": Value("table 10 000×4", _rows, 4.0, _NONE),
    "audio": Value("audio 1 s of 16 kHz float32", _samples, 0.1, ("add_audio", {"sample_rate": SAMPLE_RATE})),
    "tensor": Value("tensor 64 MiB float32", lambda rng: rng.standard_normal(16 << 20, "f4"), None, _NONE),
}
TOOLS = ("stepd", "wandb", "SummaryWriter")
# A tool's own settings. The tensor's key would be over its budget after the fourth: what is measured is the copy.
ENVIRONMENT = {
    "stepd": {"STEPD_AUTOSTART": "0", "STEPD_SILENT": "1", "STEPD_TENSOR_BYTES_PER_MINUTE_MAX": str(1 << 40)},
    "wandb": {"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
    "SummaryWriter": {},
}


def bytes_of(value: Any) -> int:
    """What a copy of it copies; 0 of a table, which is no single piece of memory."""
    return int(getattr(value, "nbytes", 0))


# ---- the tools


class Missing(Exception):
    """A tool that is not installed, or has no call for this kind of value; the text says which."""


def open_tool(tool: str, name: str, directory: str) -> tuple[Log, Callable[[], object]]:
    """The call under test for one kind of value, and what ends the tool's use."""
    return {"stepd": _open_stepd, "wandb": _open_wandb, "SummaryWriter": _open_writer}[tool](name, directory)


def _wrapped(module: Any, name: str) -> Callable[[Any], Any]:
    """What makes of a value that which `log` takes; the same words in our SDK and in W&B's."""
    kind = name.partition("-")[0]
    makers: dict[str, Callable[[Any], Any]] = {
        "image": module.Image,
        "histogram": module.Histogram,
        "video": lambda frames: module.Video(frames, fps=FPS, format="gif"),
        "table": lambda rows: module.Table(columns=["index", "text", "x", "y"], data=rows),
        "audio": lambda samples: module.Audio(samples, sample_rate=SAMPLE_RATE),
    }
    return makers.get(kind, lambda value: value)


def _open_stepd(name: str, directory: str) -> tuple[Log, Callable[[], object]]:
    import sdk

    sdk.init(project="bench", id="media")
    make, log = _wrapped(sdk, name), sdk.log
    return lambda key, value, step: log({key: make(value)}, step=step, commit=True), sdk.finish


def _open_wandb(name: str, directory: str) -> tuple[Log, Callable[[], object]]:
    if name == "tensor":
        raise Missing("W&B keeps a histogram of an array, not the array")
    wandb = import_wandb(directory)
    run = wandb.init(project="bench", dir=directory)
    make = _wrapped(wandb, name)
    return lambda key, value, step: run.log({key: make(value)}, step=step, commit=True), run.finish


def import_wandb(directory: str) -> Any:
    """The module, told to keep everything in `directory`: it looks for its caches and settings when it is imported."""
    os.environ.update({f"WANDB_{kind}DIR": directory for kind in ("", "CACHE_", "CONFIG_", "DATA_")})
    try:
        import wandb
    except ImportError as error:
        raise Missing(f"not installed: {error}") from None
    return wandb


def _open_writer(name: str, directory: str) -> tuple[Log, Callable[[], object]]:
    method, options = VALUES[name].writer
    if not method:
        raise Missing("SummaryWriter has no call that stores this")
    add = getattr(summary_writer(directory), method)
    if name == "video":
        return lambda key, value, step: add(key, value[None], step, **options), add.__self__.close
    return lambda key, value, step: add(key, value, step, **options), add.__self__.close


def summary_writer(directory: str) -> Any:
    """One that writes into `directory`."""
    return import_summary_writer()(os.path.join(directory, "events"))


def import_summary_writer() -> Any:
    """torch's class, else tensorboardX's, which is the same code without torch."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise Missing(f"not installed: {error}") from None
    return SummaryWriter
