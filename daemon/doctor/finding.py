"""What a check says: how bad it is, one sentence, and the lines that would mend it."""

from __future__ import annotations

from typing import NamedTuple

# In order: as it should be; good to know; something is worse than it need be; something does not work.
OK, NOTE, WARN, BAD = LEVELS = ("ok", "note", "warn", "bad")


class Finding(NamedTuple):
    """One line of the doctor's.

    Attributes:
        level: Of `LEVELS`. "warn" and "bad" are things to mend; "bad" makes the exit code 1.
        text: A sentence or half of one, without a full stop.
        mend: Lines to paste into a shell, a script or a file; a line that begins with # says what the next ones are for.
    """

    level: str
    text: str
    mend: tuple[str, ...] = ()


def ok(text: str) -> Finding:
    return Finding(OK, text)


def note(text: str, *mend: str) -> Finding:
    return Finding(NOTE, text, mend)


def warn(text: str, *mend: str) -> Finding:
    return Finding(WARN, text, mend)


def bad(text: str, *mend: str) -> Finding:
    return Finding(BAD, text, mend)
