"""daemon.pipeline.episode: a log that can be read while the disk is full."""

from __future__ import annotations

from daemon.pipeline.episode import Episode


def test_the_same_trouble_is_told_once_a_minute_with_a_count() -> None:
    """Twice a second for five minutes is five lines, and one at the end."""
    episode = Episode()
    told = [text for n in range(600) if (text := episode.trouble("full", 1000 + n / 2)) is not None]
    assert told == ["full", *["full (120 times since the last line)"] * 4]
    assert episode.over(1300.0) == "written again, after 600 refusals in 300 s"
    assert episode.over(1301.0) is None
    assert episode.trouble("full", 1302.0) == "full"
    assert episode.over(1302.0) == "written again, after 1 refusal in 0 s"


def test_other_trouble_is_told_at_once_up_to_a_limit() -> None:
    """Another text is news; of a thousand runs on one full disk some are named."""
    episode = Episode()
    told = [text for n in range(1000) if (text := episode.trouble(f"run {n}", 5.0)) is not None]
    assert told == [f"run {n}" for n in range(8)]
    assert episode.trouble("run 5", 65.0) == "run 5 (993 times since the last line)"
