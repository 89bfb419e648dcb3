"""What a run shows of itself in a notebook: a card, and a chart that goes on while the run does; a part of `sdk.Run`.

Both read what is stored, through the reader, as anybody else does: nothing is kept for them while the training logs. A card is read
when it is asked for. A live chart is a daemon thread's work, which sleeps twenty times as long as its reading takes, so that it reads for
at most 5 % of the time. It ends with the run, with `Live.stop`, or when the cell that is running is interrupted.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from . import _greeting, clock
from ._about import RunAbout
from ._disabled import RunStream
from ._hooks import in_notebook
from ._metric import Metric

FLUSH_SECONDS_MAX = 0.5
# Limit: of a million rows an update takes about 0.2 s, in which log() waits for the GIL at most 25 ms; rested twenty times as long,
# reading is 5 % of the time.
_REST_FACTOR = 20.0
_CURVES_MAX = 4
# Limit: more lines cannot be told apart, and each is 10 KiB of the notebook.
_LINES_MAX = 12


class RunDisplay(RunAbout):
    """`display`, `to_html`, `plot` and `live`."""

    _begun: float
    _finished: bool
    _state: str
    _metrics: dict[str, Metric]
    _pid: int
    _read: Callable[[str, str], Any]
    _stream: RunStream | None

    @property
    def step(self) -> int:
        raise NotImplementedError

    def _at_end(self, callback: Callable[[str, int], None]) -> None:
        raise NotImplementedError

    def display(self, height: int = 420, hidden: bool = False) -> bool:
        """Shows the card in a notebook; elsewhere False. `height` does nothing, `hidden` folds it."""
        if not in_notebook():
            return False
        from IPython.display import HTML, display

        display(HTML(self.to_html(height, hidden)))
        return True

    def to_html(self, height: int = 420, hidden: bool = False) -> str:
        """The card of the run as it is now, HTML without a script. Waits up to 0.5 s for what was logged a moment ago."""
        from .reader import cards, pictures

        stored = self._stored()
        curves: list[pictures.Curve] = []
        health, files = "nothing stored yet", []
        if stored is not None:
            with contextlib.suppress(Exception):
                curves = cards.headline_curves(stored, {name: metric.facts() for name, metric in self._metrics.items()})
                health, files = cards.health(stored), cards.files_of(self.sync_dir)
        facts = pictures.Facts(
            state="disabled" if self.disabled else self._state,
            name=self.name,
            id=self.id,
            project=self.project,
            step=self.step,
            seconds=clock.monotonic() - self._begun if not self._finished else self._stored_seconds(stored),
            config=self.config.as_dict(),
            health="disabled: nothing is recorded" if self.disabled else health,
            directory=_greeting.short_path(self.sync_dir),
            files=files,
        )
        return pictures.card(facts, curves, hidden)

    def _stored_seconds(self, stored: Any) -> float | None:
        return max(stored.updated - stored.started, 0.0) if stored is not None and hasattr(stored, "updated") else None

    def _stored(self) -> Any:
        """The reader's run with what was logged until now, or None."""
        if not self._store.path or self.disabled:
            return None
        try:
            if self._stream is not None and not self._finished:
                self._stream.flush(FLUSH_SECONDS_MAX)
            return self._read(self._store.path, self.id)
        except Exception:
            return None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self.to_html()}

    def plot(
        self, *keys: str, x: str = "auto", smooth: float | None = None, log: bool = False, points: int = 2000,
        title: str | None = None, size: tuple[float, float] | None = None,
    ) -> Any:  # fmt: skip
        """A matplotlib figure of what was logged until now, as of a stored run; waits up to 0.5 s for the last of it.

        Reads what is stored, in the thread that calls it. None of a disabled run, and where nothing is stored yet: it says so.

        Args:
            keys, x, smooth, log, points, title, size: As `sdk.reader.Run.plot` takes them.

        Raises:
            Error: matplotlib is not installed.
            NotFoundError: No such key, or it holds no numbers yet.
        """
        stored = self._stored()
        if stored is None:
            _greeting.note(
                f"run.plot() has nothing to draw: {'the run is disabled' if self.disabled else 'nothing is stored yet'}"
            )
            return None
        return stored.plot(*keys, x=x, smooth=smooth, log=log, points=points, title=title, size=size)

    def live(self, *keys: str, seconds: float = 2.0) -> Live:
        """A chart in the notebook's cell that is drawn again every few seconds until the run ends. Returns at once.

        Call it in the cell that trains, before the loop, or in one of its own. Outside a notebook it prints the series once, as
        `finish` does.

        Args:
            keys: Names of series, or patterns of them ("train/*"), of which the first twelve are shown; none: the four worth showing first.
            seconds: How often; what is stored is seen about a second after it was logged.

        Raises:
            TypeError: A key that is no text. ValueError: `seconds` is not positive.
        """
        for key in keys:
            if not isinstance(key, str):
                raise TypeError(f"live() key is {type(key).__name__}, expected str: {key!r}")
        if not seconds > 0:
            raise ValueError(f"live() seconds is {seconds!r}, expected more than 0")
        live = Live(self, keys, seconds)
        if in_notebook() and not self._finished:
            self._at_end(lambda state, exit_code: live.end_with_run())
        live.begin()
        return live


class Live:
    """A chart that goes on while its run does. `stop` ends it; as the last line of a cell it shows nothing more."""

    def __init__(self, run: RunDisplay, keys: Sequence[str], seconds: float) -> None:
        self._run, self._keys, self._seconds = run, keys, seconds
        self._wake = threading.Event()
        self._is_ending = False
        self._over = threading.Event()
        self._shown = ""
        self._handle: Any = None
        self._thread: threading.Thread | None = None
        self._shell: Any = None

    def __repr__(self) -> str:
        return f"<sdk live chart of run {self._run.id!r}, {'over' if self._over.is_set() else 'going on'}>"

    def _ipython_display_(self) -> None:
        """Nothing: the chart has its own place."""

    def begin(self) -> None:
        """Draws for the first time, and where it can be drawn again starts to do so."""
        if not in_notebook():
            self._over.set()
            self._print()
            return
        from IPython import get_ipython
        from IPython.display import HTML, display

        self._html = HTML
        self._shown = self._chart()[0]
        self._handle = display(HTML(self._shown), display_id=True)
        if self._handle is None or self._run._finished:
            self._over.set()
            return
        self._shell = get_ipython()
        if self._shell is not None:
            self._shell.events.register("post_run_cell", self._after_cell)
        self._thread = threading.Thread(target=self._draw, name="stepd-live", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Draws no more; what is there stays."""
        self._over.set()
        self._wake.set()

    def end_with_run(self) -> None:
        """Draws once more when the run has ended, with all of it."""
        self._is_ending = True
        self._wake.set()

    def _after_cell(self, result: Any) -> None:
        if isinstance(result.error_in_exec, KeyboardInterrupt):
            self.stop()
        if self._over.is_set():
            with contextlib.suppress(ValueError):
                self._shell.events.unregister("post_run_cell", self._after_cell)

    def _draw(self) -> None:
        took, pid = 0.0, os.getpid()
        while not self._over.is_set() and os.getpid() == pid:
            self._wake.wait(max(self._seconds, took * _REST_FACTOR))
            while self._is_ending and not self._run._finished and not self._over.is_set():
                clock.pause(0.02)
            if self._over.is_set():
                return
            # Race: 1. the run ends, 2. we read what was stored before that, 3. the last rows come. Asked before reading.
            is_last = self._run._finished
            try:
                text, took = self._chart()
                if text != self._shown:
                    self._handle.update(self._html(text))
                    self._shown = text
            except Exception:
                took = 0.0  # a reader or front end in trouble now may be well in two seconds
            if is_last:
                self._over.set()

    def _chart(self) -> tuple[str, float]:
        """The picture, and how long it took."""
        from .reader.pictures import chart

        begun = clock.monotonic()
        curves = self._curves()
        ending = "" if not self._run._finished else "  ended"
        return chart(curves, f"{self._run.name}{ending}"), clock.monotonic() - begun

    def _curves(self) -> list[Any]:
        from .reader import cards, pictures

        try:
            run = self._run._read(self._run._store.path, self._run.id)
            if not self._keys:
                return list(cards.headline_curves(run, run.metrics)[:_CURVES_MAX])
            return list(cards.chart_curves(run, run.keys_like(self._keys)[:_LINES_MAX], pictures.CHART_POINTS))
        except Exception:  # nothing is stored yet, or the disk is away: there is a chart again when it is back
            return []

    def _print(self) -> None:
        _greeting.note(
            "run.live() draws in a notebook; here once what is stored, and for more: stepd tail -f, stepd plot"
        )
        self._run._stored()
        for curve in self._curves():
            _greeting.note(_greeting.spark_text(curve.key, curve.steps, curve.values))
