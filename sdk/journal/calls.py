"""One call of `log()` while it is on its way into the ring: what it was made into, and how its way ends early."""

from __future__ import annotations

from types import CodeType
from typing import NamedTuple

from ..values.device import Awaited
from .large import Call
from .steps import StepError


class Foreign(Exception):
    """The fast path met something it does not know; the call goes on outside the lock."""


class Full(Exception):
    """The ring is full and the caller asked to wait."""


class Prepared(NamedTuple):
    """A call made plain: its payloads, one or (too wide for one record) several, flags of all, and its blobs.

    Attributes:
        awaited: What is still on its way from a device; there are no payloads before it has come.
    """

    payloads: list[bytes]
    flags: int
    large: Call | None
    awaited: Awaited | None = None


def is_from_elsewhere(error: Exception, ours: CodeType) -> bool:
    """Whether a frame that is not ours raised it: a signal handler's error, which may come after the record is in."""
    if isinstance(error, (Foreign, Full, StepError)):
        return False
    trace = error.__traceback__
    inner = trace.tb_next if trace is not None else None
    # The packer's own frames, which msgpack shows since it is built with Cython 3.
    while inner is not None and str(inner.tb_frame.f_globals.get("__name__")).partition(".")[0] == "msgpack":
        inner = inner.tb_next
    return inner is not None and inner.tb_frame.f_code is not ours


def nothing() -> None:
    """What is called where nobody is to be told."""
