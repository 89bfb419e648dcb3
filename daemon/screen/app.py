"""The terminal program around the screen: textual gives keys, size and colours; a thread reads, the other one draws.

The thread that reads hands over scenes and contents, which nobody changes after; the one that draws says what is wanted, and wakes it
when that is something else. Only lines that changed are written to the terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import threading
from functools import lru_cache

import click
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from daemon.screen.model import REST, Board, Scene
from daemon.screen.page import Content, Detail, Page
from daemon.screen.view import View
from sdk import clock
from sdk.errors import Error

_TERMINAL_LOOK_SECONDS = 2.0


class Lines(Widget, can_focus=False):
    """The whole screen as lines of text."""

    DEFAULT_CSS = "Lines { width: 100%; height: 100%; }"

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def show(self, lines: list[str]) -> None:
        """Draws those lines again that are not as before."""
        old, self.lines = self.lines, lines
        if len(old) != len(lines):
            self.refresh()
            return
        changed = [Region(0, y, self.size.width, 1) for y, (one, other) in enumerate(zip(old, lines)) if one != other]
        if changed:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        return _strip(self.lines[y] if y < len(self.lines) else "", self.size.width)


@lru_cache(512)
def _strip(line: str, width: int) -> Strip:
    from rich.console import Console

    console = Console(width=max(width, 1), force_terminal=True, legacy_windows=False, markup=False, highlight=False)
    text = Text.from_ansi(line, end="", no_wrap=True, overflow="crop")
    return Strip(list(text.render(console))).adjust_cell_length(width)


class Watch(App[None]):
    """`stepd watch`.

    Attributes:
        trouble: What ended the thread that reads, to be raised when the terminal is as it was.
    """

    TITLE = "stepd watch"
    ENABLE_COMMAND_PALETTE = False
    CSS = "Screen { background: ansi_default; color: ansi_default; overflow: hidden; }"
    BINDINGS = []  # noqa: RUF012 - as textual has it; all keys are the view's

    def __init__(self, board: Board, view: View) -> None:
        super().__init__(ansi_color=True)
        self.board = board
        self.view = view
        # What the thread that reads is to look at, made by the one that draws.
        self._asked = (view.wanted(), view.detail())
        self._wake = threading.Event()
        self._over = False
        self.trouble: BaseException | None = None
        self._shown = Lines()
        # The reading thread's: the page that is open, and what was read of it last.
        self._page: Page | None = None
        self._read_last: Detail | None = None

    def compose(self) -> ComposeResult:
        yield self._shown

    def on_mount(self) -> None:
        self.view.resize((self.size.width, self.size.height))
        self._draw()
        # After ctrl+z the terminal shows a screen that is empty.
        self.app_resume_signal.subscribe(self, lambda app: self._shown.refresh())
        with contextlib.suppress(
            NotImplementedError, RuntimeError, ValueError
        ):  # where it is not the main thread's loop
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit)
        if not self.is_headless and os.isatty(0):
            self.set_interval(_TERMINAL_LOOK_SECONDS, self._end_without_terminal)
        self._thread = threading.Thread(target=self._read, name="stepd-watch", daemon=True)
        self._thread.start()

    def on_unmount(self) -> None:
        self._over = True
        self._wake.set()

    def _end_without_terminal(self) -> None:
        """Where the terminal is gone and no SIGHUP told of it, as under `setsid`; its input would end again and again."""
        terminal = select.poll()
        terminal.register(0, 0)
        if any(state & select.POLLHUP for _, state in terminal.poll(0)):
            os._exit(1)  # there is nothing to restore, and whoever tries to would wait

    def screen_lines(self) -> list[str]:
        """What stands on the screen, without colours."""
        return [click.unstyle(line) for line in self._shown.lines]

    # ---- drawing

    def on_resize(self, event: events.Resize) -> None:
        self.view.resize((event.size.width, event.size.height))
        self._draw()

    def on_key(self, event: events.Key) -> None:
        event.stop()
        event.prevent_default()
        if event.key == "ctrl+z":
            self.action_suspend_process()
        elif not self.view.press(event.key, event.character):
            self.exit()
        else:
            self._draw()

    def on_paste(self, event: events.Paste) -> None:
        self.view.paste(event.text)
        self._draw()

    def on_click(self, event: events.Click) -> None:
        self.view.click(event.screen_y)
        self._draw()

    def on_mouse_scroll_down(self) -> None:
        self._scrolled("down")

    def on_mouse_scroll_up(self) -> None:
        self._scrolled("up")

    def _scrolled(self, key: str) -> None:
        self.view.press(key)
        self._draw()

    def _draw(self) -> None:
        self._shown.show(self.view.draw())
        asked = (self.view.wanted(), self.view.detail())
        if asked != self._asked:
            self._asked = asked
            self._wake.set()

    def _take(self, scene: Scene) -> None:
        self.view.take(scene)
        self._draw()

    def _take_content(self, content: Content) -> None:
        self.view.take_content(content)
        self._draw()

    # ---- reading, in a thread of its own

    def _read(self) -> None:
        """Looks at what is wanted until the program ends."""
        next_look = 0.0
        try:
            while not self._over:
                self._wake.clear()
                wanted, _ = self._asked
                if clock.monotonic() >= next_look:
                    spent = self._read_page(is_due=True)
                    self._hand(self._take, self.board.look(wanted, self._tell))
                    next_look = clock.monotonic() + max(self.board.rest_seconds(), REST * spent)
                else:
                    self._read_page()
                    self._hand(self._take, self.board.scene(wanted))
                while not self._wake.is_set() and self.board.fill(wanted):
                    self._hand(self._take, self.board.scene(wanted))
                self._wake.wait(max(next_look - clock.monotonic(), 0.0))
        except BaseException as error:
            self.trouble = error
            self.call_later(self.exit)
        finally:
            if self._page is not None:
                self._page.close()
            self.board.close()

    def _tell(self, scene: Scene) -> None:
        """Hands over what there is during a long look; what the eye is on does not wait for its end."""
        self._hand(self._take, scene)
        self._read_page()

    def _read_page(self, *, is_due: bool = False) -> float:
        """Reads the page that is open, if something else of it is wanted or it `is_due`; the seconds that reading it again took."""
        detail, last = self._asked[1], self._read_last
        if detail is None or (detail == last and not is_due):
            return 0.0
        self._read_last = detail
        began = clock.monotonic()
        if self._page is None or self._page.id != detail.run:
            if self._page is not None:
                self._page.close()
                self._page = None
            try:
                self._page = Page(self.board.runs.store, detail.run, self.view.ink)
            except Error as error:
                self._hand(self._take_content, Content(detail, trouble=error.message.split("\n")[0]))
                return 0.0
        content = self._page.read(detail, lambda content: self._hand(self._take_content, content))
        if content is not None:
            self._hand(self._take_content, content)
        return clock.monotonic() - began if detail == last else 0.0

    def _hand(self, take: object, what: Scene | Content) -> None:
        if not self._over and self.is_running:
            self.call_later(take, what)  # type: ignore[arg-type]
