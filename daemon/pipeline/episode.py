"""An episode of trouble: what comes twice a second for hours is told when it begins, once a minute, and when it is over."""

from __future__ import annotations

_AGAIN_SECONDS = 60.0
# Limit: different texts told at once in one episode, so that a thousand runs on a full disk are not a thousand lines.
_TEXTS_MAX = 8


class Episode:
    """Decides what is said of trouble that repeats itself."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._count = self._untold = 0
        self._began = self._told = 0.0

    def trouble(self, text: str, now: float) -> str | None:
        """It happened; what to say now, or None: nothing."""
        if not self._count:
            self._began = now
        self._count += 1
        self._untold += 1
        is_new = text not in self._texts and len(self._texts) < _TEXTS_MAX
        if not is_new and now - self._told < _AGAIN_SECONDS:
            return None
        told = text if self._untold == 1 else f"{text} ({self._untold:,} times since the last line)"
        self._texts.add(text)
        self._told, self._untold = now, 0
        return told

    def over(self, now: float) -> str | None:
        """It went well; what to say now, or None: there was no trouble."""
        if not self._count:
            return None
        told = f"written again, after {self._count:,} refusal{'' if self._count == 1 else 's'} in {now - self._began:.0f} s"
        self._texts.clear()
        self._count = self._untold = 0
        return told
