"""What tables of runs ask of a run's values: of each series of numbers its last, first, smallest and largest, and the summary.

Of a run that is over a list's `Card` keeps them packed (docs/reading.md#lists-of-many-runs); of another one, and where that is too much,
only what is asked for is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DamageError
from ..headline import choose_keys
from ..record import decode_map, encode_map
from ..segment.format import KIND_ROWS
from .summaries import Numbers

if TYPE_CHECKING:
    from .run import Run

# Limit: of 10 series about 700 bytes; 100,000 runs of that size are what a cache may hold. What is left out is read from the run.
DIGEST_BYTES_MAX = 8192
# Limit: of a run with more rows the digest waits for compaction: these take 0.2 s for every four series, and 100 MB of memory.
ROW_BYTES_MAX = 32 << 20
_SERIES_MAX = 64
_SUMMARY_MAX = 64
_DEFINITIONS_MAX = 64
_KEY_CHARACTERS_MAX = 200
_TEXT_CHARACTERS_MAX = 200
_SIZE = 5
_NUMBERS = (int, float)


class Range(NamedTuple):
    """What is known of a series of numbers.

    Attributes:
        last, first: As they were logged, NaN too; `low`, `high` leave NaN out, and are None where there is nothing else.
        is_summary: Whether the run's summary says the last value under this key.
    """

    last: float
    first: float
    low: float | None
    high: float | None
    is_summary: bool = True


class Digest(NamedTuple):
    """What is kept of a run's values.

    Attributes:
        series: By key.
        summary: What is not the last value of such a series.
        metrics: What `define_metric` said; None: more than is kept.
        is_whole: Whether a key that is in neither is not there at all.
        has_all_series: Whether a key that is not in `series` holds no numbers.
    """

    series: dict[str, Range]
    summary: dict[str, Any]
    metrics: dict[str, Any] | None
    is_whole: bool
    has_all_series: bool

    def summary_value(self, key: str) -> Any:
        """What the summary says under a key, None: nothing."""
        if key in self.summary:
            return self.summary[key]
        found = self.series.get(key)
        return found.last if found is not None and found.is_summary else None


def digest_of(run: Run) -> Digest:
    """What is to be kept of a run; reads the extremes of its series, and its summary."""
    every = run.keys()
    keys = [key for key in every if len(key) <= _KEY_CHARACTERS_MAX]
    # All of them: one that names no goal of a key still stands before what a prefix says of it.
    metrics = run.metrics
    chosen = choose_keys(keys, metrics, _SERIES_MAX)
    found = {key: _range(numbers) for key, numbers in run.numbers(chosen).items()}
    series = {key: one for key, one in found.items() if one is not None}
    has_all_series = len(chosen) == len(every) and len(series) == len(found)
    summary = run.summary
    others: dict[str, Any] = {}
    left_out = set(every) - series.keys()
    for key, value in summary.items():
        if key in series and _is_same(series[key].last, value):
            continue
        if len(key) <= _KEY_CHARACTERS_MAX and _is_short(value) and len(others) < _SUMMARY_MAX:
            others[key] = value
            left_out.discard(key)
        else:
            left_out.add(key)
    said = {key for key in series if key in summary and _is_same(series[key].last, summary[key])}
    series = {key: one._replace(is_summary=key in said) for key, one in series.items()}
    return Digest(
        series,
        others,
        metrics if len(metrics) <= _DEFINITIONS_MAX else None,
        has_all_series and not left_out,
        has_all_series,
    )


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _is_short(value: Any) -> bool:
    """Whether a value of a summary is worth keeping: a number, a short text, or a few of those by name."""
    if isinstance(value, dict):
        return (
            type(value) is dict
            and len(value) <= 8
            and all(isinstance(k, str) and not isinstance(v, dict) and _is_short(v) for k, v in value.items())
        )
    if isinstance(value, str):
        return len(value) <= _TEXT_CHARACTERS_MAX
    return value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 1 << 63)


def _range(numbers: Numbers) -> Range | None:
    told = (numbers.last, numbers.first, numbers.low, numbers.high)
    return Range(*told) if all(one is None or _is_short(one) for one in told) else None


def pack_digest(digest: Digest) -> bytes | None:
    """The bytes of a digest; None: too many, or not of what can be packed."""
    try:
        packed = encode_map({
            "series": {key: list(one) for key, one in digest.series.items()},
            "summary": digest.summary, "metrics": digest.metrics, "whole": digest.is_whole, "all": digest.has_all_series,
        })  # fmt: skip
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    return packed if len(packed) <= DIGEST_BYTES_MAX else None


def unpack_digest(packed: bytes) -> Digest | None:
    """What `pack_digest` packed; None where it is not exactly that: it comes from a file."""
    try:
        told = decode_map(packed, bytes_max=DIGEST_BYTES_MAX)
    except DamageError:
        return None
    series, summary, metrics = told.get("series"), told.get("summary"), told.get("metrics")
    if not isinstance(series, dict) or not isinstance(summary, dict) or not isinstance(metrics, (dict, type(None))):
        return None
    for key, one in series.items():
        if not isinstance(key, str) or type(one) is not list or len(one) != _SIZE or not all(map(_is_number, one[:2])):
            return None
        if not all(value is None or _is_number(value) for value in one[2:4]):
            return None
    if not all(isinstance(key, str) and _is_short(value) for key, value in summary.items()):
        return None
    ranges = {key: Range(one[0], one[1], one[2], one[3], one[4] is True) for key, one in series.items()}
    return Digest(ranges, summary, metrics, told.get("whole") is True, told.get("all") is True)


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBERS)


# Of one run, whether its list told or not.


def digest_if_told(run: Run) -> Digest | None:
    """What the card of a listed run keeps; None: it has none, or the run was opened since."""
    card = run.card
    return None if card is None or not card.packed_digest else unpack_digest(card.packed_digest)


def row_bytes(run: Run) -> int:
    """How many bytes of a run are rows of the training, all of which must be read for the extremes of a series."""
    run._open()
    streams = {stream.id for lane in run._lanes for stream in lane.streams}
    blocks = (block for source in run._scan.all_sources() for block in source.blocks)
    return sum(block.end - block.offset for block in blocks if block.kind == KIND_ROWS and block.stream in streams)


def ranges_of(run: Run, keys: Sequence[str]) -> dict[str, Range | None]:
    """What a stored run says of some series now; None: it holds no numbers under this key."""
    found = run.numbers(keys)
    told = {key: Range(one.last, one.first, one.low, one.high) for key, one in found.items()}
    return {key: told.get(key) for key in keys}
