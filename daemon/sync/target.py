"""What a target is: something that takes one run at a time, everything that is new of it, exactly once."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from sdk.errors import Error

if TYPE_CHECKING:
    from daemon.sync.passage import Passage
    from daemon.sync.place import Place

# Where a target that is a directory here keeps how far each run was carried: whoever removes the one removes the other.
CURSORS = ".stepd-sync"


class Retriable(Error):
    """The target cannot take anything now: the network, too many requests, a database that is locked.

    Attributes:
        after: How many seconds to wait at least, where the target has said so.
    """

    retriable = True

    def __init__(self, message: str, after: float | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.after = after


class Stopped(Exception):
    """The process is told to end; what was committed stays, the rest is carried the next time."""


class Target(ABC):
    """One target, as one worker process sees it.

    `carry` may be killed at any moment; the next one begins with what was committed last.

    Attributes:
        scheme: What its URLs begin with.
        options: The names of the options that they may have.
        choices: Of options that have few values: these, the default first.
        rest_seconds: How long `stepd sync --live` leaves a run alone between two passes, at least: where each makes a file.
        is_for_each_store: What is kept of a run is of one store, so that several may carry one run there at once.
        is_checked: `check` has returned.
    """

    scheme: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    rest_seconds: float = 0.0
    is_for_each_store: ClassVar[bool] = False
    is_checked = False

    def __init__(self, place: Place) -> None:
        self.place = place

    def cursors(self) -> str | None:
        """The directory below which it is kept how far each run was carried; None: in the store."""
        return os.path.join(self.place.path, CURSORS) if self.place.is_directory else None

    def check(self) -> None:  # noqa: B027 - most have nothing to say
        """Asked once, before the first run.

        Raises:
            UsageError: A package is not installed, the target cannot be written to.
            Retriable: It cannot be reached now.
        """

    @abstractmethod
    def carry(self, passage: Passage) -> None:
        """Brings one run up to date.

        Raises:
            Retriable: Not now.
            Stopped: As `passage.check` did.
            Exception: This run cannot be carried; the others go on.
        """

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Asked once, after the last run."""
