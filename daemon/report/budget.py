"""What a report may weigh, and what was left out for it: decided before anything is written, and said in the file."""

from __future__ import annotations

# Of what is left beside the page itself: charts are what a report is for, pictures are what fills a mail.
CHARTS_SHARE = 0.6
# Limit: the points' JSON (step, time, value: some 24 bytes) and their share of the picture that is there without a script.
POINT_BYTES = 26
SERIES_BYTES = 2600
POINTS_MIN = 100
SIZE_MIN = 200_000


def weight(text: str) -> int:
    """The bytes that a text takes in the file."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


class Budget:
    """Counts down from the size that a report may have.

    Attributes:
        left_out: Sentences, each of what is not in the file and why.
    """

    def __init__(self, size_max: int) -> None:
        self.size_max = size_max
        self.used = 0
        self.left_out: list[str] = []

    @property
    def left(self) -> int:
        return max(0, self.size_max - self.used)

    def take(self, size: int) -> None:
        self.used += size

    def fits(self, size: int) -> bool:
        """Takes so many bytes where they are left."""
        if size > self.left:
            return False
        self.used += size
        return True

    def leave_out(self, text: str) -> None:
        self.left_out.append(text)


def points_for(series: int, points: int, size: int) -> int:
    """How many points each of some series may have, so that all of them take about `size` bytes; not fewer than `POINTS_MIN`, unless
    fewer were wished.
    """
    room = size / max(series, 1) - SERIES_BYTES
    return min(points, max(POINTS_MIN, int(room / POINT_BYTES)))
