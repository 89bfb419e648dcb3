"""What is open on the live screen and what keys do: the list of runs, a run's page, the help. Pure: keys and scenes in, lines out."""

from __future__ import annotations

from daemon.screen import table
from daemon.screen.model import SORTS, Scene, Wanted
from daemon.screen.page import Content, Detail
from daemon.screen.run_view import RunView
from daemon.screen.table import Place
from daemon.screen.text import Ink, clean, cut, fit

HELP = """
  In the list
    j k or arrows    next run, run before       pagedown pageup g G   further
    enter            open the run               a    all runs, not only recent ones
    s S              sort by something else, the other way round
    /                filter: words that name, id, project, state or tags hold,
                     or an expression: config.lr < 1e-3 and state = running
    escape           takes the filter away

  On a run's page
    tab or 1 to 5    charts, console, rows, media, facts
    j k or arrows    next chart, or scroll      pagedown pageup g G   further
    enter            a chart on the whole screen, or fold a section
    f                fold the section           x    the x axis
    l                a logarithmic y axis       m    smooth, more, most, not
    escape           back

    ?                this page                  q or ctrl+c   quit
"""
_SORTS = tuple(SORTS)


class View:
    """State of the screen. Belongs to the thread that draws."""

    def __init__(self, scene: Scene, size: tuple[int, int], ink: Ink, run: str | None = None) -> None:
        """Args: `run` is the id of the one whose page is open at first."""
        self.scene = scene
        self.size = size
        self.ink = ink
        self.place = Place()
        self.page: RunView | None = RunView(run) if run is not None else None
        self.is_help = False
        self.text = ""
        self.sort = _SORTS[0]
        self.is_reversed = False
        self.every = False
        # Whether the next scene is shown from its beginning: it has been sorted anew.
        self._is_new_order = False
        # Whether enter was pressed before what the filter leaves was there.
        self._is_opening = False
        # What is being typed; None: nothing.
        self.typed: str | None = None

    # ---- what is wanted

    def wanted(self) -> Wanted:
        """Which runs are to be looked at."""
        visible: tuple[str, ...] = ()
        if self.page is None and self.size[0] >= table.WIDE_COLUMNS:  # elsewhere those that are over have no series
            visible = tuple(self.scene.glances[n].id for n in table.visible(self.scene, self.place, *self.size))
        return Wanted(self.every, self.text, self.sort, self.is_reversed, visible)

    def detail(self) -> Detail | None:
        """What is to be read of the run whose page is open."""
        return self.page.detail(self.size) if self.page is not None else None

    def take(self, scene: Scene) -> None:
        """Takes what was seen; the selection stays on its run, unless the list has been sorted anew."""
        is_first = (
            self.scene.is_reading and not self.place.selected
        )  # runs come in any order, and nobody has chosen one
        chosen = None if self._is_new_order or is_first else self._selected()
        self.scene, self._is_new_order = scene, False
        for index, glance in enumerate(scene.glances) if chosen is not None else ():
            if glance.id == chosen:
                self.place = self.place._replace(selected=index)
        self._fit()
        if self._is_opening and scene.text == self.text:
            self._is_opening = False
            self.open(self._selected())

    def take_content(self, content: Content) -> None:
        """Takes what was read of a run."""
        if self.page is not None:
            self.page.take(content)

    def _selected(self) -> str | None:
        glances = self.scene.glances
        return glances[self.place.selected].id if self.place.selected < len(glances) else None

    def _fit(self) -> None:
        self.place = table.fitting(self.scene, self.place, *self.size)

    def resize(self, size: tuple[int, int]) -> None:
        self.size = size
        self._fit()

    # ---- keys

    def press(self, key: str, character: str | None = None) -> bool:
        """Takes a key by textual's name of it, and the character that it types; False: the screen is to be left."""
        name = character if character is not None and character.isprintable() and character != " " else key
        if key in ("ctrl+c", "ctrl+q"):
            return False
        if self.typed is not None:
            self._type(key, character)
        elif name == "?":
            self.is_help = not self.is_help
        elif self.is_help:
            self.is_help = False
            return name != "q"
        elif self.page is not None:
            if not self.page.press(name):
                self.page = None
                return name != "q"
        elif name == "q":
            return False
        else:
            self._press_in_list(name)
        self._fit()
        return True

    def _press_in_list(self, name: str) -> None:
        self._is_opening = False
        far = max(self.size[1] // 2, 1)
        steps = {"j": 1, "down": 1, "k": -1, "up": -1, "pagedown": far, "space": far, "pageup": -far}
        steps.update({"g": -len(self.scene.glances), "home": -len(self.scene.glances)})
        steps.update({"G": len(self.scene.glances), "end": len(self.scene.glances)})
        if name in steps:
            self.place = self.place._replace(selected=self.place.selected + steps[name])
        elif name == "enter":
            self._is_opening = self.scene.text != self.text
            self.open(None if self._is_opening else self._selected())
        elif name == "/":
            self.typed = self.text
        elif name == "escape":
            self.text = ""
        elif name == "a":
            self.every = not self.every
        elif name == "s":
            self.sort = _SORTS[(_SORTS.index(self.sort) + 1) % len(_SORTS)]
            self.place, self._is_new_order = Place(), True
        elif name == "S":
            self.is_reversed = not self.is_reversed
            self.place, self._is_new_order = Place(), True

    def _type(self, key: str, character: str | None) -> None:
        assert self.typed is not None
        if key == "enter":
            self.text, self.typed = self.typed.strip(), None
        elif key == "escape":
            self.typed = None
        elif key == "backspace":
            self.typed = self.typed[:-1]
        elif key == "ctrl+u":
            self.typed = ""
        elif character is not None and character.isprintable() and len(self.typed) < 500:
            self.typed += character

    def paste(self, text: str) -> None:
        """Takes pasted text where something is being typed."""
        for character in text[:500]:
            if self.typed is not None:
                self._type("", character)

    def click(self, line: int) -> None:
        """Selects the run on a line of the screen; opens the one that was selected already."""
        if self.page is not None or self.is_help:
            return
        at = table.HEAD_LINES
        for index in table.visible(self.scene, self.place, *self.size):
            at += table.lines_of(self.scene.glances[index], self.size[0])
            if line < at:
                if line >= table.HEAD_LINES and index == self.place.selected:
                    self.open(self._selected())
                elif line >= table.HEAD_LINES:
                    self.place = self.place._replace(selected=index)
                return

    def open(self, run: str | None) -> None:
        """Opens the page of a run."""
        if run is not None:
            self.page = RunView(run, next((one for one in self.scene.glances if one.id == run), None))

    # ---- lines

    def draw(self) -> list[str]:
        """The screen: exactly as many lines as it has, none wider."""
        return [cut(line, self.size[0]) for line in self._lines()]

    def _lines(self) -> list[str]:
        width, height = self.size
        if self.is_help:
            lines = [fit(line, width) for line in HELP.split("\n")][: height - 1]
            return [self.ink.plain(line) for line in lines] + [""] * (height - len(lines))
        if self.page is not None:
            return self.page.draw(self.size, self.ink, self.scene.time)
        asking = None if self.typed is None else f"/{clean(self.typed)}_"
        place = self.place._replace(title=self._title(), asking=asking)
        return table.draw(self.scene, place, width, height, self.ink)

    def _title(self) -> str:
        words = [f"filter: {self.text}"] if self.text else []
        words += ["all runs"] if self.every else []
        if self.sort != _SORTS[0] or self.is_reversed:
            words.append(f"by {self.sort}{', reversed' if self.is_reversed else ''}")
        return "  " + " · ".join(words) if words else ""
