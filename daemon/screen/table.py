"""The first page: a line or two for each run, the health of the daemon above them. Pure: a scene in, lines out."""

from __future__ import annotations

import time
from typing import NamedTuple

from daemon.screen.model import Scene
from daemon.screen.text import Ink, clean, count, fit, gigabytes, joined, number, rate, share, span, spark, width_of
from sdk._greeting import short_path
from sdk.query.living import Glance, Load, Spark
from sdk.reader.state import CRASHED, FAILED, RUNNING

# From here on all of a run stands in one line.
WIDE_COLUMNS = 130
HEAD_LINES = 3
_KEYS = ("enter open", "/ filter", "s sort", "a all", "? keys", "q quit")


class Place(NamedTuple):
    """Where the list stands.

    Attributes:
        selected: Index of the chosen run. top: Index of the first one on the screen.
        title: What is filtered, sorted, shown.
    """

    selected: int = 0
    top: int = 0
    title: str = ""
    asking: str | None = None


def lines_of(glance: Glance, width: int) -> int:
    """How many lines a run takes."""
    return 1 if width >= WIDE_COLUMNS or glance.state != RUNNING else 2


def fitting(scene: Scene, place: Place, width: int, height: int) -> Place:
    """The place, moved so that what is selected is there and on the screen."""
    count_ = len(scene.glances)
    selected = min(max(place.selected, 0), max(count_ - 1, 0))
    top = min(place.top, selected)
    room = max(height - HEAD_LINES - 1, 1)
    while top < selected and sum(lines_of(one, width) for one in scene.glances[top : selected + 1]) > room:
        top += 1
    below = sum(lines_of(one, width) for one in scene.glances[top : top + room])
    while (
        top and (below := below + lines_of(scene.glances[top - 1], width)) <= room
    ):  # no room is left empty below the last
        top -= 1
    return place._replace(selected=selected, top=top)


def visible(scene: Scene, place: Place, width: int, height: int) -> list[int]:
    """The indexes of the runs of which at least the first line is on the screen."""
    room, found = height - HEAD_LINES - 1, []
    for index in range(place.top, len(scene.glances)):
        if room <= 0:
            break
        found.append(index)
        room -= lines_of(scene.glances[index], width)
    return found


def draw(scene: Scene, place: Place, width: int, height: int, ink: Ink) -> list[str]:
    """The page, exactly so many lines, none wider than the screen."""
    lines = [_head(scene, width, ink), _health(scene, width, ink), _titles(scene, place, width, ink)]
    for index in visible(scene, place, width, height):
        lines += _run(scene, scene.glances[index], index == place.selected, width, ink)
    if not scene.glances:
        lines += _nothing(scene, place)
    lines = lines[: height - 1]
    lines += [""] * (height - 1 - len(lines))
    lines.append(ink.style(fit(joined(_KEYS, width - 1), width), dim=True))
    return [ink.plain(line) for line in lines]


def _head(scene: Scene, width: int, ink: Ink) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(scene.time)) if scene.time else ""
    told = "reading …" if scene.is_reading else f"{scene.running} running of {scene.total:,}"
    right = f"{told}   {when}" if when else told
    left = f"stepd watch   {clean(short_path(scene.store))}"
    return ink.style(fit(left, width - width_of(right) - 2), bold=True) + "  " + right


def _health(scene: Scene, width: int, ink: Ink) -> str:
    health = scene.health
    if scene.trouble:
        return ink.style(fit(f"! {scene.trouble}", width), fg="red")
    if scene.left_out:
        return ink.style(fit(f"! {clean(scene.left_out)}", width), fg="red")
    if health is None:
        return fit("", width)
    free = f"{gigabytes(health.free_bytes)}B free" if health.free_bytes is not None else ""
    if not health.serving:
        return ink.style(
            fit(joined(filter(None, ["no daemon serves this store: the next init() starts one", free]), width), width),
            dim=True,
        )
    lost = health.refused + health.dropped
    words = [
        f"{health.refused:,} refused",
        f"{health.dropped:,} dropped",
        f"lag {health.lag_seconds * 1000:.0f} ms" if health.lag_seconds < 10 else f"lag {span(health.lag_seconds)}",
        f"{count(health.records_per_second)} records/s",
        free,
    ]
    line = joined(filter(None, words), width)
    if health.trouble:
        line = f"{line} · ! {health.trouble}"
    return ink.style(fit(line, width), fg="red" if lost or health.trouble else "green")


def _titles(scene: Scene, place: Place, width: int, ink: Ink) -> str:
    if place.asking is not None:
        return fit(place.asking, width)
    if width < WIDE_COLUMNS:
        return (
            ink.style(fit(f"  {_cells(_TITLES, width)}", width), dim=True)
            if not place.title
            else fit(place.title, width)
        )
    titles = f"  {_cells(_TITLES, width)} {_load_titles()} SERIES"
    return ink.style(fit(f"{titles}   {place.title}", width), dim=True)


# "quiet 1h05m", "~12d4h left", "12d14h ago"
_TIME_WIDTH = 11
_TITLES = ("NAME", "ID", "PROJECT", "STEP", "RATE", "TIME")


def _widths(width: int) -> tuple[int, ...]:
    """Of name, id, project, step, rate, time."""
    if width >= WIDE_COLUMNS:
        return (24, 10, 14, 14, 9, _TIME_WIDTH)
    spare = max(width - 80, 0)
    return (21 + spare // 2, 8, 10 + spare - spare // 2, 14, 9, _TIME_WIDTH)


def _cells(texts: tuple[str, ...], width: int) -> str:
    return " ".join(fit(text, size, right=n > 2) for n, (text, size) in enumerate(zip(texts, _widths(width))))


def _run(scene: Scene, glance: Glance, is_selected: bool, width: int, ink: Ink) -> list[str]:
    body = _cells((glance.name, glance.id, glance.project, _step(glance), *_pace(scene, glance)), width)
    is_over = glance.state != RUNNING
    series_width = width - 2 - width_of(body) - 1 - _LOAD_WIDTH - 1
    dot = ink.dot(glance.state)
    if width >= WIDE_COLUMNS:
        rest = f"{_load(glance.load)} {_sparks(glance.sparks, series_width)}"
        body = f"{body} {rest}"
        return [f"{dot} {ink.style(fit(body, width - 2), reverse=is_selected, dim=is_over and not is_selected)}"]
    first = f"{dot} {ink.style(fit(body, width - 2), reverse=is_selected, dim=is_over and not is_selected, bold=not is_over)}"
    if is_over:
        return [first]
    used = _used(glance.load)
    series = _sparks(glance.sparks, width - 5 - width_of(used))
    return [first, f"    {fit(series, width - 5 - width_of(used))} {ink.style(used, fg='cyan')}"]


def _step(glance: Glance) -> str:
    if glance.step is None:
        return "-"
    if glance.steps is None:
        return f"{glance.step:,}"
    both = f"{glance.step:,}/{glance.steps:,}"
    return both if len(both) <= 14 else f"{count(glance.step)}/{count(glance.steps)}"


def _pace(scene: Scene, glance: Glance) -> tuple[str, str]:
    if glance.state != RUNNING:
        return glance.state, _ago(scene.time - glance.updated)
    if glance.quiet_seconds:
        return "0/s", f"quiet {span(glance.quiet_seconds)}"
    return rate(glance.rate), _left(glance.eta_seconds)


def _left(seconds: float | None) -> str:
    """An estimate of what is left, marked as one; "" where it is not known."""
    told = f"~{span(seconds)} left" if span(seconds) else ""
    return told if len(told) <= _TIME_WIDTH else told.removesuffix(" left")


def pace_words(glance: Glance) -> list[str]:
    """Step, rate, time left and what it uses, in words."""
    words = [f"step {_step(glance)}"]
    if glance.quiet_seconds:
        words.append(f"quiet for {span(glance.quiet_seconds)}: stepd why {clean(glance.id)}")
    elif glance.rate:
        words.append(rate(glance.rate))
    if glance.eta_seconds is not None:
        words.append(f"~{span(glance.eta_seconds)} left")
    if glance.state in (CRASHED, FAILED):
        words.append(f"stepd why {clean(glance.id)}")
    return [*words, *filter(None, [_used(glance.load)])]


def _ago(seconds: float) -> str:
    return f"{span(max(seconds, 0))} ago" if span(max(seconds, 0)) else ""


_LOAD_WIDTH = 5 + 10 + 6 + 6
_KEY_COLUMNS_MAX, _KEY_COLUMNS_MIN, _LAST_COLUMNS = 24, 10, 7


def _load_titles() -> str:
    return (
        fit("GPU", 5, right=True)
        + fit("GPU MEM", 10, right=True)
        + fit("CPU", 6, right=True)
        + fit("RSS", 6, right=True)
    )


def _load(load: Load) -> str:
    return (
        fit(share(load.gpu), 5, right=True)
        + fit(_gpu_memory(load), 10, right=True)
        + fit(share(load.cpu), 6, right=True)
        + fit(gigabytes(load.memory_bytes), 6, right=True)
    )


def _used(load: Load) -> str:
    """What a run uses, in words."""
    words = []
    if load.gpu is not None:
        words.append(f"GPU {share(load.gpu)} {_gpu_memory(load)}".rstrip())
    if load.cpu is not None:
        words.append(f"CPU {share(load.cpu)}")
    if load.memory_bytes is not None:
        words.append(gigabytes(load.memory_bytes))
    return " · ".join(words)


def _gpu_memory(load: Load) -> str:
    if load.gpu_bytes is None:
        return ""
    whole = gigabytes(load.gpu_bytes_max)
    return f"{gigabytes(load.gpu_bytes)}/{whole}" if whole else gigabytes(load.gpu_bytes)


def _sparks(sparks: tuple[Spark, ...], width: int) -> str:
    """As many series as there is room for: name, bars, last value."""
    bar = 12 if width >= 72 else 8
    cells: list[str] = []
    left = width
    for one in sparks:
        key = clean(one.key)
        # Limit: a longer key is cut, at its beginning, which says less than its end.
        room = min(_KEY_COLUMNS_MAX, left - bar - _LAST_COLUMNS - 2)
        if room < min(width_of(key), _KEY_COLUMNS_MIN):
            break
        if width_of(key) > room:
            key = "…" + key[-(room - 1) :] if key.isascii() else fit(key, room)
        cells.append(f"{key} {fit(spark(one.steps, one.values, bar), bar)} {fit(number(one.last), _LAST_COLUMNS)}")
        left -= width_of(cells[-1]) + 1
    return " ".join(cells)


def _nothing(scene: Scene, place: Place) -> list[str]:
    if scene.is_reading:
        return ["  reading …"]
    if not scene.total:
        # The code stands at the left, as it is pasted.
        return [
            "  no run yet: waiting for the first one",
            "",
            "import sdk",
            "",
            'run = sdk.init(project="digits", config={"lr": 0.1})',
            "for step in range(1000):",
            '    run.log({"train/loss": 1 / (step + 1)})',
            "run.finish()",
        ]
    return [
        "  nothing matches"
        if place.title
        else "  no run goes on, and none ended within the last hour. Press a for all."
    ]
