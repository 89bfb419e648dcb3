"""Lanes: which streams continue one another, in what order they count, and what a resume hid.

A stream that says `continues` belongs to the lane of the stream it names; every other one is a lane by itself. Claims
are hostile input: a cycle or a stream that is not there changes the grouping, never raises.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple

from ..limits import STEP_MAX
from .facts import StreamFacts

# The kinds of streams that hold rows of the training. Others ("system", "console") accompany it, and are read apart.
TRAINING = frozenset({"main", "fork", "spawn", "attach"})


class Lane(NamedTuple):
    """Streams that continue one another, oldest first: the later one wins.

    Attributes:
        streams: Their facts.
        step_limits: For each stream, the step from which on its rows are hidden.
    """

    streams: list[StreamFacts]
    step_limits: list[int]

    @property
    def rank(self) -> int:
        """The lowest rank of its streams; none counts as 0."""
        return min((s.number("rank") or 0 for s in self.streams), default=0)

    @property
    def main(self) -> bool:
        return any(s.kind == "main" for s in self.streams)

    @property
    def last(self) -> StreamFacts:
        return self.streams[-1]


def lanes_of(streams: Mapping[int, StreamFacts], kinds: Container[str] = TRAINING) -> list[Lane]:
    """The lanes of streams of these kinds, the main one first: lowest rank, then kind main before others, then oldest."""
    streams = {number: facts for number, facts in streams.items() if facts.kind in kinds}
    leader = {stream: stream for stream in streams}

    def find(stream: int) -> int:
        while leader[stream] != stream:
            leader[stream] = stream = leader[leader[stream]]
        return stream

    for stream, facts in streams.items():
        before = facts.link("continues")
        if before in leader:
            leader[find(stream)] = find(before)
    members: dict[int, list[StreamFacts]] = {}
    for stream, facts in streams.items():
        members.setdefault(find(stream), []).append(facts)
    lanes = [_lane(found) for found in members.values()]
    return sorted(lanes, key=lambda lane: (lane.rank, not lane.main, lane.streams[0].started, lane.streams[0].id))


def _lane(found: list[StreamFacts]) -> Lane:
    # Why the attempt first: the clocks of two hosts differ by more than a quick restart takes.
    found.sort(key=lambda stream: (stream.attempt, stream.started, stream.id))
    limits: list[int] = []
    limit = STEP_MAX + 1
    for stream in reversed(found):
        limits.append(limit)
        if stream.hide_from is not None:
            limit = min(limit, stream.hide_from)
    return Lane(found, limits[::-1])
