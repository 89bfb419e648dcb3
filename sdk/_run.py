"""`Run`: what `init` returns and a training script holds.

Life: `_api` makes it around a stream; `finish`, leaving a `with` block or the interpreter's exit ends it. A pickled run
comes back as the same object in its own process, and in another one as a run that opens a stream of its own with its
first record. The hot path is not here: `run.log` is the stream's own function, put over the method of that name.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from . import _greeting, clock
from ._about import RunAbout
from ._artifacts import RunArtifacts
from ._compat import AlertLevel, RunCompat
from ._config import Config
from ._console import RunConsole, watched_files
from ._disabled import DisabledStream, RunStream
from ._display import RunDisplay
from ._files import RunFiles
from ._hooks import end_of, error_facts
from ._launcher import Launch, find_launch
from ._metric import Metric
from ._metrics import RunMetrics
from ._summary import Summary
from ._watch import RunWatch
from .errors import Error, UsageError
from .ids import hex_u64, random_u64
from .location import StoreIdentity
from .settings import Settings

ALERT_SECONDS = 60.0
# Limit: up to so many records the receipt looks at every value (some 10 ms); beyond, finish() would be felt.
EXACT_RECORDS_MAX = 20_000

_by_token: weakref.WeakValueDictionary[str, Run] = weakref.WeakValueDictionary()


class Run(RunDisplay, RunAbout, RunMetrics, RunFiles, RunArtifacts, RunConsole, RunWatch, RunCompat):
    """One training execution.

    Any thread may call anything. `log`, attributes and writes to `config` and `summary` never wait for a disk or the
    daemon, nor does reading a summary key; `finish` waits up to `Settings.finish_seconds_max`. After `finish` whatever
    changes the run raises `UsageError`. In a forked child the same object logs into a stream of the child's own.

    Attributes:
        config: See `Config`.
        summary: See `Summary`.
        settings: The frozen `Settings` of this run.
        group, job_type, entity: "" where there is none.
        resumed: Whether it goes on with rows of an earlier process.
        starting_step: The step of its first row without an explicit one.
        start_time: Unix seconds.
    """

    url: str | None = None
    project_url: str | None = None
    sweep_url: str | None = None
    sweep_id: str | None = None

    def __init__(
        self,
        stream: RunStream | None,
        about: Mapping[str, Any],
        *,
        store: StoreIdentity,
        settings: Settings,
        config: Mapping[str, Any] = {},
        allow_val_change: bool = False,
        kind: str = "main",
        launch: Launch | None = None,
        first_step: int = 0,
        resumed: bool = False,
        entity: str = "",
        token: str | None = None,
        opener: Callable[[], RunStream] | None = None,
        on_attach: Callable[[Run], None] = lambda run: None,
        on_finish: Callable[[Run], None] = lambda run: None,
        read: Callable[[str, str], Any] | None = None,
    ) -> None:
        """Args: `about` is the run's map in its first META record; `opener` opens the stream when `stream` is None; `read`
        gives the reader's run for (store path, id).
        """
        self._about = dict(about)
        self._stream = stream
        self._opener = opener
        self._store = store
        self._kind = kind
        self._launch = launch or find_launch()
        self._token = token or hex_u64(random_u64())
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._is_ending = self._finished = self._is_preempting = False
        self._state = "running"
        self._on_attach, self._on_finish = on_attach, on_finish
        self._read = read or _read_run
        self._allow = allow_val_change
        self._metrics: dict[str, Metric] = {}
        self._alerts: dict[str, float] = {}
        self._recent = None
        self._files: str | None = None
        # What was changed inside of nested values of the config is stored last.
        self._at_ends: list[Callable[[str, int], None]] = [lambda state, exit_code: self.config.persist()]
        self._end_seconds = settings.finish_seconds_max
        self._begun = clock.monotonic()
        self.settings = settings
        self.entity = entity
        self.resumed = resumed
        self.starting_step = first_step
        self.start_time = clock.wall_ns() / 1e9
        self.config = Config(config, emit=self._emit_config, allow_val_change=allow_val_change)
        self.summary = Summary(self._logged, self._emit)
        _by_token[self._token] = self
        if stream is not None:
            self.__dict__["log"] = stream.log

    # -- logging -----------------------------------------------------------------------------------------------------

    def log(
        self, data: Mapping[str, Any], step: int | None = None, commit: bool | None = None, sync: object = None
    ) -> None:
        """Records `data` for a step. Takes about a microsecond and waits for nothing.

        Args:
            data: Names to values; nested dicts become dotted names. It is not changed and not kept.
            step: The row it belongs to; without one, the open row, which it completes. An older step is merged into
                its row (`Settings.late_steps`).
            commit: Whether the row is complete; default: yes without `step`, no with one.
            sync: Does nothing.

        Raises:
            TypeError, ValueError: A key or value that cannot be stored, a step that is no non-negative int: nothing of
                the call is stored. With ``misuse="warn"`` the key is left out instead.
            UsageError: The run is finished.
        """
        self._require_running("log()")
        self._attached().log(data, step, commit, sync)

    @property
    def _log(self) -> Callable[..., None]:
        return self.log

    @property
    def step(self) -> int:
        """The step that the next `log` without one belongs to. No round trip."""
        return self._stream.step() if self._stream is not None else self.starting_step

    def alert(self, title: str, text: str = "", level: Any = None, wait_duration: Any = None) -> None:
        """Prints a line on stderr and marks the run; the same title at most once in `wait_duration` (default 1 min).

        Raises:
            ValueError: `level` is not INFO, WARN or ERROR.
            TypeError: `wait_duration` is neither seconds nor a timedelta.
        """
        self._require_running("alert()")
        named = getattr(level, "value", level) or "INFO"
        if named not in AlertLevel.__members__:
            raise ValueError(f"alert() level is {level!r}, expected 'INFO', 'WARN' or 'ERROR'")
        wait = ALERT_SECONDS if wait_duration is None else _seconds(wait_duration)
        now = clock.monotonic()
        if now - self._alerts.get(title, -float("inf")) < wait:
            return
        self._alerts[title] = now
        self._emit({"alert": {str(clock.wall_ns()): {"title": str(title), "text": str(text), "level": named}}})
        self._say(f"stepd: alert {named}: {_greeting.clean(str(title))}: {_greeting.clean(str(text))}")

    def mark_preempting(self) -> None:
        """Notes that the scheduler is about to stop this process: unless it finishes, its end is "preempted"."""
        self._require_running("mark_preempting()")
        self._emit({"stream": {"preempting": True}})
        self._is_preempting = True

    # -- ending ------------------------------------------------------------------------------------------------------

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        """Stores everything and ends the run; a second call does nothing.

        Returns when every accepted record is stored by the daemon or, where it does not answer within
        `Settings.finish_seconds_max`, in a segment of our own; and, with `init(sync_to=)`, when the daemon has carried them there,
        within the same time.

        Args:
            exit_code: Anything but 0 and None makes the state "failed".
            quiet: No receipt.
        """
        code = int(exit_code or 0)
        self.end("failed" if code else "finished", code, quiet=bool(quiet))

    join = finish

    def end(
        self,
        state: str,
        exit_code: int,
        error: BaseException | None = None,
        *,
        timeout: float | None = None,
        quiet: bool = False,
    ) -> None:
        """`finish` with a state: "finished", "failed" or "interrupted", and what ended it. Never raises for operating trouble."""
        with self._lock:
            if self._is_ending:
                return
            self._is_ending = True
            self._state = state
        try:
            self._tell_error(error)
            self._end_seconds = self.settings.finish_seconds_max if timeout is None else timeout
            self._end_parts(state, exit_code)
        finally:
            self._end_stream(state, exit_code, timeout, quiet)

    def _tell_error(self, error: BaseException | None) -> None:
        if error is not None and self._stream is not None:
            with contextlib.suppress(Exception):
                self._emit({"error": error_facts(error)})

    def _end_stream(self, state: str, exit_code: int, timeout: float | None, quiet: bool) -> None:
        self._finished = True
        begun = clock.monotonic()
        try:
            if self._stream is not None:
                limit = self.settings.finish_seconds_max if timeout is None else timeout
                counts = self._stream.finish(state, exit_code, limit)
                self._join_console()
                synced = self._deliver(None if timeout is not None else begun + limit)
                if counts is not None and not quiet:
                    self._print_receipt(state, counts, synced)
        except Exception as error:
            self._say(f"stepd: finish() of run {self.id!r} failed: {type(error).__name__}: {error}")
        finally:
            if not isinstance(self._stream, DisabledStream):
                self._opener = None
            self.__dict__.pop("log", None)
            self._on_finish(self)

    def _deliver(self, deadline: float | None) -> list[str]:
        """Waits for the targets that the run is carried to; lines for the receipt.

        Args:
            deadline: None: nobody asked to end the run, so nothing is waited for.
        """
        if not self.settings.sync_to or self._kind != "main" or self._pid != os.getpid() or not self._store.path:
            return []
        if isinstance(self._stream, DisabledStream):
            return []
        from ._carrying import deliver

        return deliver(self, clock.monotonic() if deadline is None else deadline)

    def _at_end(self, callback: Callable[[str, int], None]) -> None:
        """Has `callback(state, exit_code)` called once when the run begins to end, while it still takes records."""
        self._at_ends.append(callback)

    def _end_parts(self, state: str, exit_code: int) -> None:
        """Ends what accompanies the run, last begun first. In a forked child there is nothing: it is its parent's."""
        while self._at_ends and self._pid == os.getpid():
            try:
                self._at_ends.pop()(state, exit_code)
            except Exception as error:  # the end of the run must not depend on what accompanies it
                self._say(f"stepd: at the end of run {self.id!r}: {type(error).__name__}: {error}")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.end(*end_of(error))

    def _print_receipt(self, state: str, counts: Any, synced: list[str]) -> None:
        if self._is_silent() or self._kind != "main" or counts.ended_in == "later":
            return
        with contextlib.suppress(Exception):
            series = self._sparklines(exact=counts.accepted <= EXACT_RECORDS_MAX)
            # Behind a `log(step=…)` its own step is still the open one.
            behind = max([self.step, *(int(steps[-1]) + 1 for _, steps, _ in series)])
            steps = max(behind - self.starting_step, 1 if counts.accepted else 0)
            text = _greeting.receipt(
                name=self.name,
                run_id=self.id,
                store=self._store.path,
                # As the reader calls it (`reader.state`): who said so, and then did not finish.
                state="preempted" if self._is_preempting and state != "finished" else state,
                seconds=clock.monotonic() - self._begun,
                steps=steps,
                counts=counts,
                size=_greeting.directory_bytes(self.sync_dir),
                series=series,
                exact=counts.accepted <= EXACT_RECORDS_MAX,
                synced=synced,
            )
            _greeting.say(text)

    def _sparklines(self, exact: bool) -> list[tuple[str, Any, Any]]:
        """(key, steps, values) of the series worth showing: all values of a short run, an even sample of a long one."""
        try:
            reader = self._read(self._store.path, self.id)
            keys = _greeting.choose_keys(
                reader.shown_keys(quick=not exact), {name: metric.facts() for name, metric in self._metrics.items()}
            )
            if exact:
                whole = {key: reader.series(key) for key in keys}
                found = {key: (series.step, series.value) for key, series in whole.items()}
            else:
                found = reader.sample(keys, _greeting.SPARK_POINTS * 4)
            numbers = [key for key in keys if key in found and found[key][1].dtype.kind in "biuf"]
            return [(key, *found[key]) for key in numbers if len(found[key][1]) > 1]
        except Exception:  # a receipt without pictures is still a receipt
            return []

    # -- what the run is ---------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        state = self._state if self._finished else "disabled" if self.disabled else f"step {self.step}"
        return f"<sdk.Run {self.name!r} ({self.id}) of project {self.project!r}, {state}>"

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in _OPEN and not hasattr(type(self), name):
            raise AttributeError(
                f"Run has no attribute {name!r} to set. Try: run.config[{name!r}] = …, or run.summary[{name!r}] = …"
            )
        object.__setattr__(self, name, value)

    # -- copies and processes ----------------------------------------------------------------------------------------

    def __copy__(self) -> Run:
        return self

    def __deepcopy__(self, memo: Any) -> Run:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {
            "token": self._token,
            "about": dict(self._about),
            "store": tuple(self._store),
            "settings": self.settings,
            "config": self.config.as_dict(),
            "allow_val_change": self._allow,
            "parent": self._stream.id if self._stream is not None else None,
            "step": self.step,
            "finished": self._finished,
            "entity": self.entity,
            "watched": watched_files(),
        }
        return restore, (facts,)

    def _attached(self) -> RunStream:
        """The stream, opened now if this run came from another process."""
        with self._lock:
            if self._stream is None:
                try:
                    assert self._opener is not None
                    self._stream = self._opener()
                except (Error, OSError) as error:
                    self._say(f"stepd: this process cannot log into run {self.id!r}: {error}")
                    self._stream = DisabledStream()
                self.__dict__["log"] = self._stream.log
                self._on_attach(self)
            return self._stream

    def _require_running(self, what: str) -> None:
        if self._finished:
            raise UsageError(
                f"{what} was called after finish() of run {self.id!r}",
                hint="sdk.init() starts another run; sdk.attach(id)",
            )

    def _emit(self, facts: Mapping[str, Any]) -> None:
        if self._finished:
            self._require_running("a change")
        self._attached().append_meta(facts)

    def _emit_config(self, changed: dict[str, Any]) -> None:
        self._emit({"config": changed})

    def _read_stored(self) -> Any:
        return self._read(self._store.path, self.id)

    def _is_silent(self) -> bool:
        return self.settings.silent or not self._launch.speaks or self._pid != os.getpid()

    def _say(self, text: str) -> None:
        if not self.settings.silent:
            _greeting.say(text)


# Plain attributes that the constructor sets; every other public name must be one of the class.
_OPEN = frozenset({"config", "entity", "log", "resumed", "settings", "start_time", "starting_step", "summary"})


def restore(facts: dict[str, Any]) -> Run:
    """A pickled run: the same object where it lives, else one that opens a stream of kind "spawn" when it is used."""
    run = _by_token.get(facts["token"])
    if run is not None:
        return run
    from . import _api

    return _api.restore(facts)


def _read_run(store: str, run_id: str) -> Any:
    from .reader import open_store

    return open_store(store).run(run_id)


def _seconds(value: Any) -> float:
    total = getattr(value, "total_seconds", None)
    if callable(total):
        return float(total())
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"alert() wait_duration is {type(value).__name__}, expected seconds or a timedelta")
