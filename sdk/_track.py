"""`track`: a progress line around an iterable, with rate, time left and values that were logged.

    for batch in sdk.track(loader, "train", metrics=["train/loss"]):
        ...

Values are looked up in a thread of its own, which rests twenty times as long as a look took: the first one reads what a resumed run
has stored, and the loop must not wait for a disk.

An iteration costs one look at the clock. What is shown is made at most ten times a second: one line that is rewritten in a terminal, one
display that is updated in a notebook, a line a minute anywhere else. Bars inside bars stand below one another. Rewrites pass the
console capture by (`_console`); the last line is a line like any other and is stored. Where nobody looks (ranks other than 0,
`Settings.silent`, `STEPD_SILENT`) `iter` of it is the iterator of the iterable itself.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from . import _greeting
from ._hooks import in_notebook

_Item = TypeVar("_Item")

TERMINAL_SECONDS = 0.1
NOTEBOOK_SECONDS = 0.5
BATCH_SECONDS = 60.0
# A shorter loop that is no terminal's gets no line of its own: epochs of a second would fill the log.
_WORTH_A_LINE_SECONDS = 1.0
# How much of the rate is the newest interval's.
_NEWEST_SHARE = 0.3
# How long a look at values rests, in times that it took.
_REST = 20.0
# How long a line waits for values at most, else a twentieth of the time between lines (5 ms in a terminal), the last one of the loop's.
_WAIT_SECONDS_MAX = 0.5
_COLUMNS = 80
_BAR_COLUMNS = 20
_EIGHTHS = " ▏▎▍▌▋▊▉"

_bars: list[_Bar] = []
_last_batch_line = -math.inf


def track(
    iterable: Iterable[_Item],
    description: str | None = None,
    total: int | None = None,
    metrics: str | Iterable[str] = (),
) -> Track[_Item]:
    """The iterable with a progress line on stderr; each iteration over it has its own.

    Transparent: its length, its items and its exceptions are the iterable's; `break` and an error end the line too. Works without a
    run. An iteration costs 0.1 µs more.

    Args:
        description: What stands before the bar.
        total: How many items there are; default: `len` of the iterable, else unknown, and then no time left is shown.
        metrics: Keys whose last values are shown, as this process logged them. Where looking them up takes longer than some ms, the loop
            goes on meanwhile, and the line shows older ones.

    Raises:
        TypeError: `iterable` cannot be iterated, `total` is no int. ValueError: `total` is negative.
    """
    if not hasattr(type(iterable), "__iter__") and not hasattr(type(iterable), "__getitem__"):
        raise TypeError(f"track() iterable is {type(iterable).__name__}, expected something to iterate over")
    if total is not None and (isinstance(total, bool) or not isinstance(total, int)):
        raise TypeError(f"track() total is {total!r}, expected an int")
    if total is not None and total < 0:
        raise ValueError(f"track() total is {total}, expected 0 or more")
    return Track(iterable, description or "", total, (metrics,) if isinstance(metrics, str) else tuple(metrics))


class Track(Generic[_Item]):
    """What `track` returns: iterated over as often as the iterable can be."""

    def __init__(
        self, iterable: Iterable[_Item], description: str, total: int | None, metrics: tuple[str, ...]
    ) -> None:
        self.iterable = iterable
        self._description, self._total, self._metrics = description, total, metrics

    def __len__(self) -> int:
        return len(self.iterable)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[_Item]:
        if _greeting.is_quiet():
            return iter(self.iterable)
        total = self._total
        if total is None:
            with contextlib.suppress(Exception):  # a length that cannot be had is not known
                total = len(self)
        return _iterate(iter(self.iterable), _Bar(self._description, total, self._metrics))


def _iterate(source: Iterator[_Item], bar: _Bar) -> Iterator[_Item]:
    now, pull = time.monotonic, source.__next__
    count, due = 0, bar.begin()
    try:
        while True:
            # Why no name for the item: it would keep a batch alive that the loop's body has deleted.
            yield pull()
            count += 1
            if now() >= due:
                due = bar.show(count)
    except StopIteration:
        pass
    finally:
        bar.end(count)


class _Place(Protocol):
    """Where a bar is shown."""

    seconds: float

    def show(self, bar: _Bar) -> None: ...

    def end(self, bar: _Bar) -> None: ...


class _Bar:
    """One iteration's progress. Nothing it does raises: a closed stderr is not the loop's trouble."""

    def __init__(self, description: str, total: int | None, metrics: tuple[str, ...]) -> None:
        self.description, self.total, self.metrics = description, total, metrics
        self.count = 0
        self.begun = self.seen = time.monotonic()
        self.rate = 0.0
        self.place: _Place = _Notebook() if in_notebook() else _Terminal() if _is_terminal() else _Batch()
        self._pid = os.getpid()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    @property
    def depth(self) -> int:
        return _bars.index(self) if self in _bars else 0

    def begin(self) -> float:
        """Shows it; returns when to look again."""
        _bars.append(self)
        self.begun = self.seen = time.monotonic()
        return self.show(0)

    def show(self, count: int) -> float:
        """Shows how far it is; returns when to look again."""
        now = time.monotonic()
        since = now - self.seen
        if since > 0 and count > self.count:
            newest = (count - self.count) / since
            self.rate = newest if not self.rate else self.rate + _NEWEST_SHARE * (newest - self.rate)
        self.count, self.seen = count, now
        with contextlib.suppress(Exception):
            self.place.show(self)
        return time.monotonic() + self.place.seconds

    def end(self, count: int) -> None:
        """Shows the end."""
        if os.getpid() != self._pid:
            return
        self.count = count
        self.rate = count / self.seconds if self.seconds > 0 else 0.0
        with contextlib.suppress(Exception):
            self.place.end(self)
        if self in _bars:
            _bars.remove(self)

    def text(self, columns: int = 0, is_over: bool = False) -> str:
        """The line; with `columns` at most so wide, with a bar where the total is known."""
        head = f"{self.description}: " if self.description else ""
        if self.total:
            share = min(self.count / self.total, 1.0)
            head += f"{share:4.0%}"
            rest = f" {self.count:,}/{self.total:,}"
        else:
            rest = f"{self.count:,}"
        parts = [f"{_rate_text(self.rate)}", _clock_text(self.seconds)]
        if self.total and self.rate and not is_over:
            parts.append(f"{_clock_text((self.total - self.count) / self.rate)} left")
        spent = max(self.seconds if is_over else 0.0, self.place.seconds)
        rest += " · " + " · ".join([*parts, *_values.texts(self.metrics, spent, is_over)])
        room = columns - len(head) - len(rest) - 3
        bar = f" {_bar(share, min(room, _BAR_COLUMNS))}" if self.total and room >= 5 else ""
        line = _greeting.clean(head + bar + rest)
        return line if not columns or len(line) < columns else line[: max(columns - 2, 1)] + "…"


def _bar(share: float, columns: int) -> str:
    eighths = int(share * columns * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[part] if full < columns else "")).ljust(columns)[:columns].join("▕▏")


def _rate_text(rate: float) -> str:
    if not rate:
        return "- it/s"
    return f"{rate:.3g} it/s" if rate >= 1 else f"{1 / rate:.3g} s/it"


def _clock_text(seconds: float) -> str:
    if not 0 <= seconds < 1e9:
        return "?"
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class _Values:
    """The last values of all bars' metrics, as the last look found them. A look is a thread's, one at a time."""

    def __init__(self) -> None:
        self._run: Any = None
        self._found: dict[str, str] = {}
        self._due = -math.inf
        self._thread: threading.Thread | None = None

    def texts(self, metrics: Iterable[str], spent: float, is_over: bool) -> list[str]:
        """Key and last value, of those that have one. Waits a twentieth of `spent` seconds for them; the end allows no rest."""
        run: Any = sys.modules[__package__ or "sdk"].__dict__.get("run")
        if run is None or not metrics:
            return []
        if run is not self._run:
            self._run, self._found, self._due = run, {}, -math.inf
        is_looking = self._thread is not None and self._thread.is_alive()
        is_due = is_over or time.monotonic() >= self._due
        with contextlib.suppress(RuntimeError):  # no more threads: at the interpreter's end
            if is_due and not is_looking:
                keys = {*metrics, *(key for bar in _bars for key in bar.metrics)}
                self._thread = threading.Thread(target=self._look, args=(run, keys), name="stepd-track", daemon=True)
                self._thread.start()
            if self._thread is not None and (is_over or (is_due and not is_looking)):
                self._thread.join(min(spent / _REST, _WAIT_SECONDS_MAX))
        found = self._found
        return [found[key] for key in metrics if key in found]

    def _look(self, run: Any, keys: Iterable[str]) -> None:
        begun = time.monotonic()
        found = {}
        for key in keys:
            with contextlib.suppress(Exception):
                value = run.latest(key)
                if value is not None:
                    found[key] = f"{key} {value:.4g}" if isinstance(value, (int, float)) else f"{key} {str(value)[:20]}"
        if run is self._run:
            self._found = found
        now = time.monotonic()
        self._due = now + _REST * (now - begun)


_values = _Values()


def _is_terminal() -> bool:
    return _greeting.is_terminal() and os.environ.get("TERM") != "dumb"


def _write_past_capture(text: str) -> None:
    """Writes to stderr by the method of its class: what was put over the object's own (`_console`) does not see it."""
    stream: Any = sys.stderr
    write: Callable[[Any, str], Any] | None = getattr(type(stream), "write", None)
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = text.translate(_greeting.ASCII)
    if write is not None:
        write(stream, text)
    else:
        stream.write(text)
    stream.flush()


class _Terminal:
    """One line that is rewritten; that of an inner bar stands below its outer one's and vanishes with it."""

    seconds = TERMINAL_SECONDS

    def show(self, bar: _Bar) -> None:
        self._rewrite(bar, bar.text(_columns()))

    def end(self, bar: _Bar) -> None:
        self._rewrite(bar, "")
        if bar.depth == 0:
            _greeting.say(bar.text(_columns(), is_over=True))

    def _rewrite(self, bar: _Bar, text: str) -> None:
        down = bar.depth
        _write_past_capture("\n" * down + f"\r{text}\x1b[K" + (f"\x1b[{down}A\r" if down else "\r" if not text else ""))


def _columns() -> int:
    with contextlib.suppress(Exception):
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    return _COLUMNS


class _Batch:
    """A line a minute, of all bars together."""

    seconds = BATCH_SECONDS

    def show(self, bar: _Bar) -> None:
        if bar.count:
            self._say(bar, is_over=False)

    def end(self, bar: _Bar) -> None:
        if bar.seconds >= BATCH_SECONDS or (bar.depth == 0 and bar.seconds >= _WORTH_A_LINE_SECONDS):
            self._say(bar, is_over=True)

    def _say(self, bar: _Bar, is_over: bool) -> None:
        global _last_batch_line
        now = time.monotonic()
        if now - _last_batch_line >= BATCH_SECONDS or bar.seconds >= BATCH_SECONDS:
            _last_batch_line = now
            _greeting.note(bar.text(is_over=is_over))


class _Notebook:
    """One display that is updated; that of an inner bar is emptied at its end."""

    seconds = NOTEBOOK_SECONDS

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, bar: _Bar) -> None:
        self._put(bar, bar.text())

    def end(self, bar: _Bar) -> None:
        self._put(bar, bar.text(is_over=True) if bar.depth == 0 else "")

    def _put(self, bar: _Bar, text: str) -> None:
        from IPython.display import display

        bundle = {"text/plain": text, "text/html": _widget(bar, text)}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _widget(bar: _Bar, text: str) -> str:
    import html

    share = min(bar.count / bar.total, 1.0) if bar.total else 0.0
    line = (
        '<div style="display:inline-block;width:160px;height:10px;border:1px solid #8a8a8a">'
        f'<div style="width:{share:.1%};height:10px;background:#3b78c4"></div></div> '
    )
    return f"<div>{line if bar.total and text else ''}<code>{html.escape(text)}</code></div>"
