"""What a daemon takes: Hello's versions and limits, and how many bytes a stream may have in flight."""

from __future__ import annotations

from sdk.limits import BATCH_BYTES_MAX, CREDIT_BYTES, RUN_ID_CHARACTERS_MAX, WIRE_VERSION, WIRE_VERSION_MIN
from sdk.wire.messages import Hello, Reject

# Limit: credit of all streams together. Sixteen streams may have the full credit in flight; more share.
_CREDIT_ALL_BYTES = 16 * CREDIT_BYTES


# Limit: some 10 kB of state each, and `status` reads each one's ring.
STREAMS_MAX = 4096


def refusal(hello: Hello, store_id: bytes, streams: int = 0, known_run: str | None = None) -> Reject | None:
    """Why a stream cannot be served, or None.

    Args:
        streams: How many are served now.
        known_run: The run of this stream, where it is one of them.
    """
    if hello.version_min > WIRE_VERSION or hello.version_max < WIRE_VERSION_MIN:
        text = (
            f"the trainer speaks wire versions {hello.version_min} to {hello.version_max}, this daemon {WIRE_VERSION_MIN} "
            f"to {WIRE_VERSION}; records go to the spool. Try: stepd restart, from the newer installation"
        )
        return Reject(hello.stream, "version", text, False)
    if hello.store != store_id:
        return Reject(hello.stream, "store", "the trainer means another store than this daemon serves", False)
    if not hello.run or not hello.stream or len(hello.run) > RUN_ID_CHARACTERS_MAX:
        text = f"a stream needs an id and a run of at most {RUN_ID_CHARACTERS_MAX} characters"
        return Reject(hello.stream, "hello", text, False)
    if known_run is not None and known_run != hello.run:
        text = f"the stream belongs to run {known_run[:40]!r}, not to {hello.run[:40]!r}"
        return Reject(hello.stream, "hello", text, False)
    if known_run is None and streams >= STREAMS_MAX:
        return Reject(hello.stream, "busy", f"{streams} streams are served, at most {STREAMS_MAX}", True)
    return None


def credit(streams: int) -> int:
    """Bytes that each of `streams` may have in flight; never less than two full batches, or a batch would not fit."""
    return max(min(CREDIT_BYTES, _CREDIT_ALL_BYTES // max(streams, 1)), 2 * BATCH_BYTES_MAX)


def common_limits(hello: Hello) -> dict[str, int]:
    """The limits of the session: the smaller of both sides' values."""
    return {"batch_bytes_max": min(BATCH_BYTES_MAX, hello.limits.get("batch_bytes_max", BATCH_BYTES_MAX))}
