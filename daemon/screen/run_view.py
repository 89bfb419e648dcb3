"""The page of one run: which tab is open, what is folded, where it is scrolled to; what keys do there, and its lines. Pure."""

from __future__ import annotations

import time
from typing import NamedTuple

import click

from daemon.screen.page import SYSTEM, TABS, Chart, Content, Detail
from daemon.screen.table import pace_words
from daemon.screen.text import Ink, clean, cut, fit, joined, number, padded, width_of
from sdk.query.living import Glance

HEAD_LINES, FOOT_LINES = 3, 1
# A chart is at least this wide where several stand beside each other.
_CHART_COLUMNS_MIN = 64
_CHART_LINES = (7, 13)
_AXES = ("auto", "step", "relative", "time")
_SMOOTH = (0.0, 0.6, 0.9, 0.98)
_KEYS = {
    "charts": "esc back · tab next · enter zoom/fold · x axis · l log · m smooth · ? keys",
    "": "esc back · tab next · j k scroll · g top · G end · ? keys",
}


class Row(NamedTuple):
    """What stands beside each other among the charts: a section's title (no keys), or some charts."""

    section: str
    keys: tuple[str, ...]
    height: int


class RunView:
    """State of the page. Belongs to the thread that draws.

    Attributes:
        run: The id.
        content: What was read last.
        tab: One of `TABS`.
        row, column: Where the cursor is among the rows of charts.
    """

    def __init__(self, run: str, glance: Glance | None = None) -> None:
        self.run = run
        self.glance = glance
        self.content: Content | None = None
        self.tab = TABS[0]
        self.folded = {SYSTEM}
        self.row, self.column, self.top = 1, 0, 0
        self.is_zoomed = False
        self.x, self.is_log, self.smooth = _AXES[0], False, _SMOOTH[0]
        # How many lines above its end a text stands: 0 follows what comes.
        self.above_end = dict.fromkeys(TABS, 0)
        self._size = (80, 24)

    # ---- what is wanted

    def detail(self, size: tuple[int, int]) -> Detail:
        """What is to be read for a screen of this size."""
        self._size = size
        chart = self._chart(size)
        keys = tuple(key for row in self._on_screen() for key in row.keys) if self.tab == "charts" else ()
        return Detail(self.run, self.tab, size[0], keys, chart)

    def _chart(self, size: tuple[int, int]) -> Chart:
        width, height = size
        beside = 1 if self.is_zoomed else max(width // _CHART_COLUMNS_MIN, 1)
        body = height - HEAD_LINES - FOOT_LINES
        low, high = _CHART_LINES
        lines = body if self.is_zoomed else min(max((body - 1) // 2, low), high)
        return Chart((width - 2 * (beside - 1)) // beside, lines, self.x, self.is_log, self.smooth)

    def _rows(self) -> list[Row]:
        """All rows of the charts, from the first one on."""
        chart = self._chart(self._size)
        beside = max((self._size[0] + 2) // (chart.width + 2), 1)
        rows: list[Row] = []
        for section, keys in self.content.sections if self.content is not None else ():
            rows.append(Row(section, (), 1))
            starts = range(0, len(keys), beside) if section not in self.folded else ()
            rows += [Row(section, keys[start : start + beside], chart.height) for start in starts]
        return rows

    def _on_screen(self) -> list[Row]:
        rows = self._rows()
        if not rows:
            return []
        self.row = min(max(self.row, 0), len(rows) - 1)
        self.column = min(max(self.column, 0), max(len(rows[self.row].keys) - 1, 0))
        if self.is_zoomed and rows[self.row].keys:
            row = rows[self.row]
            return [row._replace(keys=row.keys[self.column : self.column + 1])]
        body = self._size[1] - HEAD_LINES - FOOT_LINES
        # The title of the first section is seen with its first chart.
        self.top = min(self.top, self.row if self.row != 1 else 0)
        while self.top < self.row and sum(row.height for row in rows[self.top : self.row + 1]) > body:
            self.top += 1
        shown, left = [], body
        for row in rows[self.top :]:
            if left <= 0:
                break
            shown.append(row)
            left -= row.height
        return shown

    # ---- keys

    def press(self, key: str) -> bool:
        """Takes a key; False where it leaves the page."""
        if key in ("escape", "q", "backspace"):
            if not self.is_zoomed:
                return False
            self.is_zoomed = False
        elif key in ("tab", "shift+tab"):
            step = 1 if key == "tab" else -1
            self._open(TABS[(TABS.index(self.tab) + step) % len(TABS)])
        elif key.isdecimal() and 1 <= int(key) <= len(TABS):
            self._open(TABS[int(key) - 1])
        elif self.tab == "charts":
            self._press_in_charts(key)
        else:
            self._scroll(key)
        return True

    def _open(self, tab: str) -> None:
        self.tab = tab
        self.is_zoomed = False
        if self.content is not None and tab != "charts":
            self.content = self.content._replace(lines=(), title="", is_reading=True)

    def _press_in_charts(self, key: str) -> None:
        rows = self._rows()
        row = rows[self.row] if self.row < len(rows) else None
        if key in ("j", "down"):
            self.row = min(self.row + 1, max(len(rows) - 1, 0))
        elif key in ("k", "up"):
            self.row = max(self.row - 1, 0)
        elif key in ("right", "left"):
            self.column += 1 if key == "right" else -1
        elif key in ("g", "home"):
            self.row = self.top = 0
        elif key in ("G", "end"):
            self.row = max(len(rows) - 1, 0)
        elif key in ("pagedown", "space", "pageup"):
            self.row = min(max(self.row + (-2 if key == "pageup" else 2), 0), max(len(rows) - 1, 0))
        elif key == "enter" and row is not None:
            if row.keys:
                self.is_zoomed = not self.is_zoomed
            else:
                self.folded ^= {row.section}
        elif key == "f" and row is not None:
            self.folded ^= {row.section}
            self.row = next(n for n, one in enumerate(self._rows()) if one.section == row.section)
        elif key == "x":
            self.x = _AXES[(_AXES.index(self.x) + 1) % len(_AXES)]
        elif key == "l":
            self.is_log = not self.is_log
        elif key == "m":
            self.smooth = _SMOOTH[(_SMOOTH.index(self.smooth) + 1) % len(_SMOOTH)]

    def _scroll(self, key: str) -> None:
        lines = len(self.content.lines) if self.content is not None else 0
        body = self._body_lines()
        steps = {
            "j": -1,
            "down": -1,
            "k": 1,
            "up": 1,
            "pagedown": -body,
            "space": -body,
            "pageup": body,
            "g": lines,
            "home": lines,
        }
        above = 0 if key in ("G", "end") else self.above_end[self.tab] + steps.get(key, 0)
        self.above_end[self.tab] = min(max(above, 0), max(lines - body, 0))

    def _body_lines(self) -> int:
        titled = self.content is not None and bool(self.content.title)
        return max(self._size[1] - HEAD_LINES - FOOT_LINES - titled, 1)

    def take(self, content: Content) -> None:
        """Takes what was read, unless it is of another tab than the one that is open."""
        if content.detail.run != self.run or content.detail.tab != self.tab:
            return
        if self.tab in ("facts", "media") and (self.content is None or not self.content.lines):
            self.above_end[self.tab] = len(content.lines)  # those begin at their beginning
        elif self.above_end[self.tab] and self.content is not None:
            self.above_end[self.tab] += len(content.lines) - len(
                self.content.lines
            )  # what is looked at stays in its place
        self.content = content
        self.glance = content.glance or self.glance
        if self.tab != "charts":
            self._scroll("")

    # ---- lines

    def draw(self, size: tuple[int, int], ink: Ink, now: float) -> list[str]:
        """The page, exactly so many lines."""
        width, height = self._size = size
        lines = [self._head(width, ink, now), self._second(width, ink), self._tabs(width, ink)]
        lines += self._charts(width, ink) if self.tab == "charts" else self._text(width, ink)
        lines = lines[: height - FOOT_LINES]
        lines += [""] * (height - FOOT_LINES - len(lines))
        keys = _KEYS.get(self.tab, _KEYS[""])
        lines.append(ink.style(fit(joined(keys.split(" · "), width - 1), width), dim=True))
        return [ink.plain(line) for line in lines]

    def _head(self, width: int, ink: Ink, now: float) -> str:
        right = time.strftime("%H:%M:%S", time.localtime(now)) if now else ""
        glance = self.glance
        if glance is None:
            return fit(f"  {self.run}", width - width_of(right)) + right
        name = f"{clean(glance.name)} ({clean(glance.id)})  {clean(glance.project)}  {glance.state}"
        return f"{ink.dot(glance.state)} {ink.style(fit(name, width - 3 - width_of(right)), bold=True)} {right}"

    def _second(self, width: int, ink: Ink) -> str:
        if self.content is not None and self.content.trouble:
            return ink.style(fit(f"! {self.content.trouble}", width), fg="red")
        if self.glance is None:
            return fit("  reading …", width)
        lost = f"{self.glance.refused:,} dropped" if self.glance.refused else ""
        return fit("  " + joined(filter(None, [*pace_words(self.glance), lost]), width - 2), width)

    def _tabs(self, width: int, ink: Ink) -> str:
        names = [f"{n} {name}" for n, name in enumerate(TABS, 1)]
        line = "  ".join(ink.style(text, reverse=name == self.tab) for text, name in zip(names, TABS))
        plain = "  ".join(names)
        if self.tab != "charts":
            return f"  {line}"
        said = (
            [f"x {self.x}"]
            + (["log"] if self.is_log else [])
            + ([f"smooth {number(self.smooth)}"] if self.smooth else [])
        )
        return f"  {line}{ink.style(fit(' · '.join(said), width - 2 - len(plain), right=True), dim=True)}"

    def _charts(self, width: int, ink: Ink) -> list[str]:
        content = self.content
        if content is None:
            return ["", "  reading …"]
        if not content.sections:
            return ["", "  nothing was logged yet"]
        chart = self._chart(self._size)
        rows = self._rows()
        lines: list[str] = []
        cursor = rows[self.row] if self.row < len(rows) else None
        for row in self._on_screen():
            if not row.keys:
                sign = "▸" if row.section in self.folded else "▾"
                many = len(next(keys for section, keys in content.sections if section == row.section))
                title = f"{sign} {clean(row.section) or 'charts'} ({many})"
                lines.append(ink.style(fit(title, width), bold=True, reverse=row == cursor))
                continue
            columns = [_panel(content, key, chart, ink) for key in row.keys]
            if cursor is not None and row == cursor and not self.is_zoomed:
                columns[self.column][0] = ink.style(
                    fit(click.unstyle(columns[self.column][0]), chart.width), reverse=True
                )
            lines += ["  ".join(cells).rstrip() for cells in zip(*columns)]
        return lines

    def _text(self, width: int, ink: Ink) -> list[str]:
        content = self.content
        if content is None or (content.is_reading and not content.lines):
            return ["reading …"]
        body = self._body_lines()
        end = len(content.lines) - self.above_end[self.tab]
        shown = [cut(line, width) for line in content.lines[max(end - body, 0) : max(end, body)]]
        return [ink.style(fit(content.title, width), dim=True), *shown] if content.title else shown


def _panel(content: Content, key: str, chart: Chart, ink: Ink) -> list[str]:
    """A chart in exactly its columns and lines."""
    held = content.charts.get(key) if content.drawn_as == chart else None
    lines = list(held) if held is not None else [clean(key), "reading …"]
    lines = [padded(cut(line, chart.width), chart.width) for line in lines[: chart.height]]
    return lines + [" " * chart.width] * (chart.height - len(lines))
