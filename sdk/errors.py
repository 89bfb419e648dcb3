"""The errors a user can meet, by whose fault they are and what to do next.

An error of use (a wrong key, a call before `init`) raises at once in the calling thread. Operating trouble (no daemon,
a full disk) never raises out of `log()`; the classes for it are raised by the reader, the command line and the wire.
"""

from __future__ import annotations

import sys


def install_hint(packages: str) -> str:
    """How to get what is missing, into the environment of this interpreter.

    Why not the extra of ours that brings it: stepd is on no registry, so pip finds `stepd[arrow]` only where stepd was installed from
    a clone, and elsewhere might find a stranger of that name.

    Args:
        packages: As pip takes them.
    """
    return f"pip install {packages}   (interpreter: {sys.executable})"


class Error(Exception):
    """Base of every error that this package raises on purpose.

    Attributes:
        message: What happened, in one or two sentences.
        hint: A cure that can be pasted, or None.
        retriable: Whether the same call may succeed later without any change by the caller.
    """

    retriable = False

    def __init__(self, message: str = "", hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n  Try: {hint}")
        self.message = message
        self.hint = hint


class UsageError(Error):
    """The caller did something that can never work: a call after `finish`, contradicting arguments."""


class UnsupportedError(UsageError):
    """A name that exists for compatibility and that stepd does not serve; the hint says what to use instead."""


class ArtifactStatusError(UsageError, AttributeError):
    """An artifact is not in the state that a call needs. An AttributeError as well: that is what W&B's scripts expect."""


class ArtifactNotLoggedError(ArtifactStatusError):
    """There is no version of the artifact yet."""


class ArtifactFinalizedError(ArtifactStatusError):
    """An artifact was logged, and can hold no other files any more."""


class ConfigError(Error):
    """A config value was changed without permission (`allow_val_change`)."""


class CommError(Error):
    """The other side cannot be reached now."""

    retriable = True


class WaitTimeoutError(Error, TimeoutError):
    """What was waited for did not come about in time; it may still."""

    retriable = True


class AuthenticationError(CommError):
    """Kept for `except` clauses written for W&B: stepd has no accounts and never raises it."""

    retriable = False


class StoreError(Error):
    """The store cannot be used: missing, unwritable, someone else's, or from a newer version."""


class NotFoundError(StoreError, KeyError):
    """No run, key or stream of that name; the hint names the nearest ones.

    Attributes:
        instead: What was probably meant, as words of a command line; "" where that is not known.
        command: The cure in a shell, where the hint is one for Python; "" where it is the same.
    """

    def __init__(self, message: str = "", hint: str | None = None, instead: str = "", command: str = "") -> None:
        super().__init__(message, hint)
        self.instead = instead
        self.command = command

    def __str__(self) -> str:
        return Exception.__str__(self)


class DamageError(Error):
    """Bytes on disk or in a ring are not what was written there."""


class ProtocolError(Error):
    """A message between the trainer and the daemon breaks `docs/wire.md`. Never raised itself, only its two children."""


class LocalProtocolError(ProtocolError):
    """We tried to send what the protocol does not allow: our own bug."""


class RemoteProtocolError(ProtocolError):
    """The other side sent what the protocol does not allow; the session is closed and nothing of it is believed."""
