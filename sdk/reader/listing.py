"""What lists show of each run, and the cache that keeps it of runs that are over: ``<store>/runs.cache`` (docs/reading.md).

Without it a list opens the segments of every run. An entry is made by whoever opened a run, and written by the command line or a
worker (`daemon.store.listing`), never by the reader itself. It counts while nothing in the run's directory has come, gone or
changed its size. Losing the file loses nothing. It is as hostile as everything else in a store: what is not exactly as it should be
is ignored, and a run is then opened.

    file    = magic (8 bytes), version (u32), CRC-32 of the rest (u32), msgpack map: name of the run's directory -> entry
    entry   = [mtime of the directory (float), signature of what is in it (bytes), *Card]
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import DamageError
from ..files import Files, read_whole
from ..ids import run_directory
from ..limits import MIB
from ..record import decode_map, encode_map
from . import state

CACHE_FILE = "runs.cache"
_HEAD = struct.Struct("<8sII")
_MAGIC = b"stepruns"
_VERSION = 3
# Limit: 64 MiB are about 60,000 runs of ten metrics; a larger one is not read, and none is written.
CACHE_BYTES_MAX = 64 * MIB
# Limit: a longer config is read from the run, when somebody asks for it.
_CONFIG_BYTES_MAX = 4096
# The digest of a card that nobody has had the time to make.
NOT_YET = b""
_TEXT_CHARACTERS_MAX = 4096
_TAGS_MAX = 100
# Racy: a directory that changed this little before it was looked at may change again without another mtime. File systems count in
# steps of up to 2 s.
SETTLED_SECONDS = 2.0
_STATES = frozenset({state.FINISHED, state.FAILED, state.CRASHED, state.INTERRUPTED, state.PREEMPTED})


class Card(NamedTuple):
    """What is known of a run that is over without opening it; the attributes of `Run` have the same names.

    Attributes:
        host, exit_code: Of the last stream of the training that said so.
        ended: When it said that it ends; None: it was killed.
        packed_config: msgpack of `config`; None: not kept.
        packed_digest: What tables show of its values (`digest`); None: not kept.
    """

    id: str
    name: str
    project: str
    group: str
    job_type: str
    notes: str
    state: str
    tags: list[str]
    created: float
    started: float
    updated: float
    size_bytes: int
    records: int
    step_max: int
    host: str
    exit_code: int | None
    ended: float | None
    packed_config: bytes | None
    packed_digest: bytes | None


class Look(NamedTuple):
    """What a run's directory was like just before the run was opened.

    Attributes:
        changed: Its mtime.
        signature: Of the names and sizes of what is in it.
        is_settled: Whether it had that mtime for long enough.
    """

    changed: float
    signature: bytes
    is_settled: bool


# Name of the run's directory -> what it was like, and what was found.
Cards = dict[str, tuple[float, bytes, Card]]


def look_at(entries: Iterable[tuple[str, int, float]], changed: float, now: float) -> Look:
    """How a directory with these `entries` is, which has changed at `changed` (both Unix seconds)."""
    digest = hashlib.blake2b(digest_size=16)
    for name, size, _ in entries:
        digest.update(b"%s\0%d\0" % (os.fsencode(name), size))
    return Look(changed, digest.digest(), now - changed > SETTLED_SECONDS)


def read_cards(files: Files, store: str) -> Cards:
    """What the cache of a store holds; nothing where there is none, or a bad one."""
    try:
        data = read_whole(files, os.path.join(store, CACHE_FILE), CACHE_BYTES_MAX)
        magic, version, crc = _HEAD.unpack_from(data)
        if (magic, version, crc) != (_MAGIC, _VERSION, zlib.crc32(memoryview(data)[_HEAD.size :])):
            return {}
        told = decode_map(memoryview(data)[_HEAD.size :], bytes_max=CACHE_BYTES_MAX)
    except (OSError, struct.error, DamageError, ValueError):
        return {}
    found: Cards = {}
    for name, entry in told.items():
        card = _card(name, entry)
        if card is not None:
            found[name] = (entry[0], entry[1], card)
    return found


def _card(name: Any, entry: Any) -> Card | None:
    """The card of an entry that can be true."""
    if (
        type(entry) is not list
        or len(entry) != 2 + len(Card._fields)
        or tuple(map(type, entry[: len(_TYPES)])) != _TYPES
    ):
        return None
    card = Card(*entry[2:])
    if card.state not in _STATES or not set(map(type, card.tags)) <= {str} or not is_short(card):
        return None
    if min(card.size_bytes, card.records, card.step_max) < 0 or type(card.exit_code) not in (int, _NONE):
        return None
    if card.ended is not None and not (type(card.ended) is float and 0 < card.ended < math.inf):
        return None
    if not {type(card.packed_config), type(card.packed_digest)} <= {bytes, _NONE}:
        return None
    if not all(0 <= when < math.inf for when in (card.created, card.started, card.updated)):
        return None
    # A run is only ever listed under its own id: what a foreign cache says of another one is not believed.
    return card if name in (run_directory(card.id), card.id) else None


_NONE = type(None)
_TYPES = (float, bytes, *[str] * 7, list, *[float] * 3, *[int] * 3, str)


def encode_cards(cards: Cards) -> bytes:
    """The cache's bytes.

    Raises:
        ValueError: They would be more than are read.
    """
    body = encode_map({name: [changed, signature, *card] for name, (changed, signature, card) in cards.items()})
    if len(body) + _HEAD.size > CACHE_BYTES_MAX:
        raise ValueError(f"a cache of {len(body)} bytes, expected at most {CACHE_BYTES_MAX}")
    return _HEAD.pack(_MAGIC, _VERSION, zlib.crc32(body)) + body


def pack_config(config: Mapping[str, Any]) -> bytes | None:
    """A config as a card keeps it; None: too long, or not of what can be packed again."""
    try:
        packed = encode_map(dict(config))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    return packed if len(packed) <= _CONFIG_BYTES_MAX else None


def is_short(card: Card) -> bool:
    """Whether a card is worth keeping: a store may hold a name of a megabyte."""
    texts = (card.id, card.name, card.project, card.group, card.job_type, card.notes, card.host, *card.tags)
    return len(card.tags) <= _TAGS_MAX and max(map(len, texts)) <= _TEXT_CHARACTERS_MAX
