"""Names that must be unique or safe: run ids, stream ids, human names, and the directory of a run.

Randomness comes from the operating system, never from `random` or numpy: a logger must not consume the user's seed.
"""

from __future__ import annotations

import hashlib
import os

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_PLAIN = frozenset(_ALPHABET + "_-")
_FORBIDDEN_IN_ID = ":;,#?/'"
_DIRECTORY_CHARACTERS_MAX = 64
_ADJECTIVES = (
    "amber azure bold brave bright brisk calm clear clever cool coral crisp daring deep eager early easy fair fast fine "
    "firm fleet fresh gentle glad golden grand green happy honest humble jolly keen kind lively lucky mellow merry mild "
    "misty neat noble olive pale plain proud quick quiet rapid ready rosy royal sharp shy silent silver smooth snowy "
    "solid steady still sunny swift tidy vivid warm wise witty young"
).split()
_NOUNS = (
    "acorn alder ant aspen badger bay beam bear beaver birch bison brook cedar cliff cloud comet condor crane creek "
    "crow delta dove dune eagle elm ember falcon fern finch fjord flint forest fox gale glade grove gull hare harbor "
    "hawk heron hill ibis iris ivy jay lake lark leaf lynx maple marsh meadow mesa moon moss oak orca osprey otter owl "
    "peak pine plover pond quail raven reef ridge river robin sage seal shore spruce star stone storm swan tern thrush "
    "tide trout vale wave willow wolf wren"
).split()


def random_u64() -> int:
    """A non-zero 64-bit number nobody else has: zero is kept for "none" in every format."""
    return int.from_bytes(os.urandom(8), "little") or 1


def hex_u64(value: int) -> str:
    """The one way a stream or writer id is written as text: 16 lower-case hex digits."""
    return f"{value:016x}"


def new_run_id() -> str:
    """Eight base-36 characters, as W&B's: 41 bits, so 10 000 runs collide with probability 2e-5."""
    number = int.from_bytes(os.urandom(8), "little")
    text = ""
    for _ in range(8):
        number, digit = divmod(number, 36)
        text += _ALPHABET[digit]
    return text


def new_run_name(number: int) -> str:
    """Two words and a number, for people: `calm-otter-12`."""
    first, second = os.urandom(2)
    return f"{_ADJECTIVES[first % len(_ADJECTIVES)]}-{_NOUNS[second % len(_NOUNS)]}-{number}"


def check_run_id(run_id: object) -> str:
    """Returns `run_id` if W&B would take it.

    Raises:
        TypeError: It is not a str.
        ValueError: It is empty, too long, has surrounding white space or one of ``: ; , # ? / '``, or cannot be UTF-8.
    """
    if not isinstance(run_id, str):
        raise TypeError(f"run id is {type(run_id).__name__}, expected str: {run_id!r}")
    if not run_id or run_id != run_id.strip():
        raise ValueError(f"run id is empty or has white space around it: {run_id!r}")
    if len(run_id) > 128:
        raise ValueError(f"run id has {len(run_id)} characters, at most 128: {run_id[:40]!r}…")
    bad = [c for c in run_id if c in _FORBIDDEN_IN_ID or not c.isprintable()]
    if bad:
        raise ValueError(f"run id may not contain {bad[0]!r}: {run_id!r}")
    return run_id


def run_directory(run_id: str) -> str:
    """The directory name of a run: a pure function of its id, safe on every file system.

    Lower-case letters, digits, ``_`` and ``-`` stay as they are when a letter or digit comes first; every other byte is
    percent-encoded in lower case (so that `A` and `a` differ on a disk that folds case), and what would be longer than
    64 characters is cut and ends in a digest of the whole. It never starts with ``.`` or ``-`` and never leaves its parent.
    """
    encoded = "".join(
        c
        if c in _PLAIN and (index or c in _ALPHABET)
        else "".join(f"%{b:02x}" for b in c.encode("utf-8", "surrogatepass"))
        for index, c in enumerate(run_id)
    )
    # The empty id, which only hostile bytes have, would be the directory of all runs.
    if 0 < len(encoded) <= _DIRECTORY_CHARACTERS_MAX and encoded not in _RESERVED:
        return encoded
    digest = hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{encoded[: _DIRECTORY_CHARACTERS_MAX - 17].rstrip('%')}~{digest}"


# Names that Windows keeps for devices, whatever the case or the extension.
_RESERVED = frozenset({"con", "prn", "aux", "nul"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10)})
