"""Blobs that the sender stores itself: those in private memory, which no daemon can read, and all when none takes them."""

from __future__ import annotations

from collections.abc import Callable

from ._spool import Spool
from .budget import code_of
from .journal.handle import Journal
from .journal.large import Pending
from .journal.page import Mark
from .journal.upkeep import LOOK_SECONDS


class OwnBlobs:
    """One stream's blobs on their way to its own file.

    Attributes:
        all: The daemon cannot read our arena: whatever is in it is stored here as well.
    """

    def __init__(self, journal: Journal, spool: Spool, trouble: Callable[[float, int, str], None]) -> None:
        self._journal = journal
        self._spool = spool
        self._trouble = trouble
        self.all = False
        self._looked = 0.0

    def look(self, now: float) -> None:
        """Looks after the arena: maps its new pages, and notices that somebody removed its files (a logout), which nobody
        else can read then.
        """
        large = self._journal.large
        if large is None or large.arena is None:
            return
        large.arena.prepare()
        if self.all or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        self.all = large.arena.is_unlinked()

    def may_greet(self, now: float, *, is_last: bool) -> bool:
        """Whether a Hello may be said: where the daemon cannot read our arena it means that its blobs are stored."""
        return not self.all or self.store(now, is_last=is_last)

    def sendable(self) -> Mark:
        """How much may be sent: everything before the first blob that nobody but this process could store."""
        mark = self._journal.mark()
        large = self._journal.large
        for pending in list(large.pending) if large is not None else ():
            if self._is_ours(pending) and not pending.is_stored:
                return min(mark, pending.before)
        return mark

    def _is_ours(self, pending: Pending) -> bool:
        return self.all or pending.blob.is_private

    def store(self, now: float, until: Mark | None = None, *, is_last: bool = False) -> bool:
        """Stores what is ours and not stored yet; whether all of it is.

        Args:
            until: Store every blob announced before it, also those of the arena: records up to there are spooled.
            is_last: The stream ends: no budget keeps its blobs from being stored.
        """
        large = self._journal.large
        for pending in list(large.pending) if large is not None else ():
            wanted = self._is_ours(pending) or (until is not None and pending.before < until)
            if pending.is_stored or not wanted:
                continue
            refusal = self._spool.refusal(pending.ref.size, now, is_last=is_last, bounded=until is not None)
            if refusal:
                self._trouble(now, refusal, "")
                return False
            try:
                self._spool.append_blob(pending.ref, pending.blob.view(), pending.meta)
            except OSError as error:
                self._trouble(now, code_of(error), str(error))
                return False
            pending.is_stored = True
        return True
