"""What a training script's user reads on stderr: the greeting of `init`, the receipt of `finish`, and single notes.

Nothing here raises and nothing here writes to stdout: a closed or broken stderr must not end a training, and a program's
output is not ours. Only the process that speaks for its job (rank 0) prints. Texts are built by pure functions, so that
tests and notebooks can have them without a terminal.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import headline
from .files import DISK

_INDENT = "       "
_BARS = "▁▂▃▄▅▆▇█"
# What replaces characters that the terminal's encoding does not have.
ASCII = str.maketrans(
    {
        **dict(zip(_BARS, "_.,-=+*#")),
        **dict.fromkeys("▎▍▌▋▊▉", "-"),
        **dict.fromkeys("▏▕", "|"),
        "→": "->",
        "·": "|",
        "…": "...",
        "–": "-",
    }
)
# What `finish` did not get stored.
_WAITING = "still in shared memory, as the disk refused: the next daemon stores that, or stepd repair --rings"
_LOST = "lost: the disk refused, and there is no shared memory to wait in"
SPARK_POINTS = 16
SERIES_MAX = 5

_said: set[str] = set()
_quiet: bool | None = None


def set_quiet(quiet: bool | None) -> None:
    """Whether notes are kept back; None asks the environment, as before the first `init`."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether this process prints nothing: silenced, or not the one that speaks for its job."""
    if _quiet is not None:
        return _quiet
    from ._launcher import find_launch

    silent = os.environ.get("STEPD_SILENT") or os.environ.get("WANDB_SILENT") or ""
    return silent.strip().lower() in ("1", "true", "yes", "on") or not find_launch().speaks


def say(text: str) -> None:
    """Writes lines to stderr; trouble with stderr is nobody's trouble."""
    with contextlib.suppress(Exception):
        stream = sys.stderr
        line = f"{text}\n"
        try:
            line.encode(getattr(stream, "encoding", None) or "utf-8")
        except UnicodeEncodeError:
            line = line.translate(ASCII)
        stream.write(line)
        stream.flush()


def note(text: str) -> None:
    """One line about something the user should know, unless this process is quiet."""
    if not is_quiet():
        say(f"stepd: {text}")


def note_once(topic: str, text: str) -> None:
    """`note`, once per process and topic."""
    if topic not in _said:
        _said.add(topic)
        note(text)


def is_terminal() -> bool:
    """Whether stderr is looked at by a person right now."""
    try:
        return bool(sys.stderr.isatty())
    except Exception:
        return False


def clean(text: str) -> str:
    """`text` without characters that would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def short_path(path: str) -> str:
    """`path` with the home directory as ~."""
    home = os.path.expanduser("~")
    if home not in ("", "/", "~") and (path == home or path.startswith(home + os.sep)):
        return "~" + path[len(home) :]
    return path


def command(words: str, run_id: str, store: str) -> str:
    """A command that can be pasted, naming the store where it would not be found by itself."""
    from .location import find_store

    try:
        elsewhere = find_store().path != store
    except OSError:
        elsewhere = True
    where = f" --dir {shlex.quote(store)}" if elsewhere else ""
    return f"stepd {words.format(run=shlex.quote(run_id))}{where}"


def greeting(
    *,
    name: str,
    run_id: str,
    project: str,
    store: str,
    directory: str,
    notes: Iterable[str],
    terminal: bool,
    targets: Sequence[str] = (),
) -> str:
    """What `init` prints: two lines, or one where nobody looks at a terminal, and one for each piece of trouble."""
    carried = f"carried to {clean(', '.join(targets))}" if targets else ""
    watch = command("plot {run} --live", run_id, store)
    name, place = clean(name), clean(short_path(directory))
    if terminal:
        lines = [
            f"stepd  {name} ({run_id})  project {clean(project)}  →  {place}",
            f"{_INDENT}watch: {watch}    {carried or 'nothing leaves this machine'}",
        ]
        lead = "     ! "
    else:
        lines = [
            f"stepd: run {name} ({run_id}), project {clean(project)}, in {place}; watch: {watch}{carried and '; '}{carried}"
        ]
        lead = "stepd: ! "
    return "\n".join([*lines, *(lead + clean(text) for text in notes)])


def receipt(
    *,
    name: str,
    run_id: str,
    store: str,
    state: str,
    seconds: float,
    steps: int,
    counts: Any,
    size: int,
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]] = (),
    exact: bool = True,
    synced: Iterable[str] = (),
) -> str:
    """What `finish` prints.

    Args:
        counts: A `Receipt` of the stream.
        size: Bytes in the run's directory.
        series: (key, steps, values) of the series to show, in order.
        exact: Whether these are all values, so that the best one may be named.
        synced: A line for each target that the run is carried to.
    """
    lines = [f"stepd  {clean(name)} ({run_id})  {state} after {duration(seconds)}, {count(steps, 'step')}"]
    shown = [spark_text(*item, exact=exact) for item in series]
    lines += [_INDENT + "      ".join(shown[i : i + 2]) for i in range(0, len(shown), 2)]
    lines += [_INDENT + text for text in [*stored_text(counts, size), *synced]]
    share = 100 * counts.cost_seconds / seconds if seconds > 0 else 0.0
    lines.append(f"{_INDENT}logging cost the loop {duration(counts.cost_seconds)} ({share:.2g} %)")
    asked = (
        "why {run}" if state == "failed" else "show {run}",
        "plot {run}",
        *([] if synced else ["sync {run} --to tensorboard:runs"]),
    )
    commands = [command(words, run_id, store) for words in asked]
    lines.append(_INDENT + "  ·  ".join(commands))
    return "\n".join(lines)


def stored_text(counts: Any, size: int) -> list[str]:
    """What became of the records, one line each: what is stored, what is lost, what waits, what was left out."""
    total = counts.accepted + counts.refused
    text = f"stored {counts.stored:,} of {total:,} records, {counts.refused:,} dropped, {_where(counts)}   {bytes_text(size)}"
    lines = [text]
    if counts.refused:
        reasons = counts.refused_reasons or {"journal, spool and disk were full": counts.refused}
        why = ", ".join(reasons) if len(reasons) == 1 else ", ".join(f"{why} ({n:,})" for why, n in reasons.items())
        lines.append(f"! {count(counts.refused, 'record')} dropped: {why}; {_where_gap(counts)}")
    if counts.stored < counts.accepted:
        waiting = counts.accepted - counts.stored
        lines.append(f"! {count(waiting, 'record')} {_WAITING if counts.ended_in == 'ring' else _LOST}")
    if counts.facts_lost:
        lines.append(
            f"! {count(counts.facts_lost, 'change')} of config, summary or other facts lost: there was no room"
        )
    if counts.late_dropped:
        lines.append(f"! {count(counts.late_dropped, 'call')} below the open step dropped, as late_steps='drop' asks")
    for key, reason in list(counts.left_out.items())[:3]:
        lines.append(f"! left out {key!r}: {clean(str(reason))[:120]}")
    if len(counts.left_out) > 3:
        lines.append(f"! left out {len(counts.left_out) - 3} more keys")
    if counts.wait_seconds >= 1:
        lines.append(f"finish() waited {duration(counts.wait_seconds)}")
    return lines


def _where(counts: Any) -> str:
    if counts.ended_in in ("ring", "nowhere"):
        return "in part only"
    if counts.ended_in == "spool":
        return "in the run's spool (no daemon served yet), readable now"
    return "on disk (fsync)" if counts.synced else "on disk, fsync follows"


def _where_gap(counts: Any) -> str:
    """Where what tells of the refused calls is."""
    if counts.ended_in == "nowhere":
        return "nothing but this line tells of it"
    return "the gap is stored with what waits" if counts.ended_in == "ring" else "the gap is in the data (stepd show)"


def choose_keys(keys: Iterable[str], defined: Mapping[str, Any]) -> list[str]:
    """At most five keys worth a sparkline."""
    return headline.choose_keys(keys, defined, SERIES_MAX)


def spark_text(key: str, steps: Sequence[float], values: Sequence[float], exact: bool = True) -> str:
    """``train/loss  2.31 ▇▅▃▂▁ 0.041   min 0.038 @ 981,220`` for a series, thinned to a handful of bars."""
    points = [(int(s), float(v)) for s, v in zip(steps, values) if math.isfinite(float(v))]
    if not points:
        return f"{clean(key)}  no finite value"
    shown = min(len(points), SPARK_POINTS)
    # The first and the last one among them: their numbers stand beside the bars.
    kept = [points[i * (len(points) - 1) // max(shown - 1, 1)][1] for i in range(shown)]
    text = f"{clean(key)}  {number(points[0][1])} {bars(kept)} {number(points[-1][1])}"
    direction = headline.good_end(key)
    if direction and exact:
        best = (min if direction == "min" else max)(points, key=lambda point: point[1])
        text += f"   {direction} {number(best[1])} @ {best[0]:,}"
    return text


def bars(values: Sequence[float]) -> str:
    """One bar of eight heights for each value."""
    low, high = min(values), max(values)
    # Why halves: the difference of two huge floats may be infinite.
    span = high / 2 - low / 2
    if not span > 0:
        return _BARS[3] * len(values)
    return "".join(_BARS[min(int((v / 2 - low / 2) / span * 8), 7)] for v in values)


def number(value: float) -> str:
    """A value in few characters."""
    if value.is_integer() and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.3g}"


def count(number_: int, noun: str) -> str:
    """``1 step``, ``1,000 steps``."""
    return f"{number_:,} {noun}{'' if number_ == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time in the two units that matter."""
    if seconds < 0.1:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} m"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def bytes_text(size: int) -> str:
    """A size in decimal units, as disks are sold and `ls -h --si` shows them."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{size} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def directory_bytes(path: str) -> int:
    """Bytes of the files in a run's directory; 0 where it cannot be read."""
    return sum(DISK.sizes(path))
