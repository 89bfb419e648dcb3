"""What differs between runs: settings, code, packages, hardware, environment, results, and where their series part.

`compare` reads facts and the small files that were kept of the code; it is quick whatever the runs' length. What needs values is asked for
apart: `Comparison.results` looks at the ends of series and at what columns tell, `Comparison.divergences` walks them (`divergence`). The
first run is the reference: of more than two, each other one is held against it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from ..errors import Error, UsageError
from ..limits import MIB
from ..reader.kept import KeptFile
from ..reader.names import list_names, nearest
from .lookup import Goal, Values, flat

if TYPE_CHECKING:
    from ..reader.run import Run
    from .divergence import Divergence

SECTIONS = ("config", "code", "packages", "hardware", "environment", "summary")
PATCH, REQUIREMENTS, CONDA = "diff.patch", "requirements.txt", "conda.txt"
# Limits: of a kept file as much is read; of a patch so many lines are held against each other (difflib takes seconds for more).
_FILE_BYTES_MAX = 32 * MIB
_DIFF_LINES_MAX = 5_000
_DIGEST_LETTERS = 8


class Nothing:
    """What stands for a value that is not there: `ABSENT`, the run has none; `UNKNOWN`, nobody wrote down whether it has."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __bool__(self) -> bool:
        return False


ABSENT: Final = Nothing("ABSENT")
UNKNOWN: Final = Nothing("UNKNOWN")


class Fact(NamedTuple):
    """One thing that is known of each run, in the runs' order; `ABSENT` or `UNKNOWN` where there is no value."""

    name: str
    values: list[Any]

    @property
    def known(self) -> list[Any]:
        """The values that are not `UNKNOWN`."""
        return [value for value in self.values if value is not UNKNOWN]

    @property
    def same(self) -> bool:
        """Whether it is equal in all runs of which it is known."""
        known = self.known
        return all(equal(known[0], value) for value in known[1:])

    @property
    def is_mixed(self) -> bool:
        """Whether it is equal, but of several kinds: 1 and 1.0."""
        return self.same and len(set(map(type, self.known))) > 1


class Result(NamedTuple):
    """How a series of numbers ended in each run. `best` goes by `goal`, which says which end is good.

    Attributes:
        last, best: By run; None: it has none.
        best_run: The place of the best of the best, where there is one alone, and it is known which end is good.
        best_last: The same of the last ones.
    """

    key: str
    goal: Goal
    last: list[float | None]
    best: list[float | None]
    best_run: int | None
    best_last: int | None


class Comparison(NamedTuple):
    """Some runs held against the first of them.

    Attributes:
        sections: By name, one of `SECTIONS`, what is known of each run; nothing of a section that no run says anything of. "summary"
            is what was set there; how the series ended say `results`.
    """

    runs: list[Run]
    sections: dict[str, list[Fact]]

    def differing(self, section: str) -> list[Fact]:
        """The facts of a section that are not equal in all runs of which they are known."""
        return [fact for fact in self.sections.get(section, ()) if not fact.same]

    def measures(self) -> list[Fact]:
        """State, duration in seconds, last step and steps per second of each run; of a resumed one, of its last attempt."""
        found = [_measures(run) for run in self.runs]
        return [Fact(name, [measures[name] for measures in found]) for name in found[0]]

    def results(self, patterns: Sequence[str] = ()) -> list[Result]:
        """The ends of all series of numbers that some run has; those of `patterns` where there are any."""
        found = [Values(run) for run in self.runs]
        names = dict.fromkeys(key for values in found for key in values.series_names())
        keys = chosen(names, patterns)
        for values in found:
            values.wanted = keys
        return [result for key in keys if (result := _result(key, found)) is not None]

    def shared_keys(self, patterns: Sequence[str] = ()) -> list[str]:
        """The series that all runs have, media left out; those of `patterns` where there are any.

        Raises:
            UsageError: A pattern matches none.
        """
        held = self._held(patterns)
        shared = sorted(held[0].intersection(*held[1:]))
        for pattern in patterns:
            if not chosen(shared, [pattern]):
                near = nearest(pattern, shared) or shared[:5]
                told = f"They share {list_names(near)}" if near else "They share none"
                raise UsageError(f"no series that all runs have matches {pattern!r}. {told}", hint="stepd show RUN")
        return chosen(shared, patterns)

    def lone_keys(self, patterns: Sequence[str] = ()) -> dict[str, list[int]]:
        """The series that only some of the runs have, and the places of these; as `shared_keys` else."""
        held = self._held(patterns)
        some = chosen(sorted(held[0].union(*held[1:]) - held[0].intersection(*held[1:])), patterns)
        return {key: [place for place, keys in enumerate(held) if key in keys] for key in some}

    def _held(self, patterns: Sequence[str]) -> list[set[str]]:
        media = {key for run in self.runs for key in run.media_keys()}
        return [set(run.keys() if patterns else run.shown_keys()) - media for run in self.runs]

    def divergences(
        self, keys: Iterable[str], *, tolerance: float | None = None, before: int | None = None,
        moved: Callable[[int], None] = lambda count: None,
    ) -> Iterator[list[Divergence | None]]:  # fmt: skip
        """For each key, how it differs between the first run and each other one, one after the other as it is found out.

        Args:
            tolerance, before, moved: As in `first_difference`.
        """
        from .divergence import differences

        reference, *others = self.runs
        return differences(reference, others, keys, tolerance=tolerance, before=before, moved=moved)

    def code_diffs(self, lines_max: int) -> Iterator[tuple[str, int, list[str]]]:
        """(name of the file, place of the other run, unified diff of the first run's to that one's) of what was kept of the code and
        differs: the patches, and scripts that both kept. At most `lines_max` lines each.
        """  # fmt: skip
        kept = [_code_files(run) for run in self.runs]
        is_asked = ["git" in run.context for run in self.runs]
        for place, files in enumerate(kept[1:], 1):
            for name in dict.fromkeys([*kept[0], *files]):
                # Where nobody asked git, there may be a patch or none.
                if (name in kept[0] and name in files) or (name == PATCH and is_asked[0] and is_asked[place]):
                    lines = _diff(kept[0].get(name), files.get(name), self.runs[0].id, self.runs[place].id, lines_max)
                    if lines:
                        yield name, place, lines


def compare(runs: Iterable[Run]) -> Comparison:
    """What is known of some runs, side by side.

    Raises:
        UsageError: They are fewer than two, or one of them comes twice.
    """
    found = list(runs)
    ids = [run.id for run in found]
    if len(ids) < 2 or len(set(ids)) < len(ids):
        raise UsageError(
            f"expected two or more runs, each once, got {list_names(ids) or 'none'}",
            hint="stepd compare latest~1 latest",
        )
    contexts = [run.context for run in found]
    kept = [{file.name: file for file in run.files()} for run in found]
    told: dict[str, list[dict[str, Any]]] = {
        "config": [flat(run.config) for run in found],
        "code": [_code(context, files) for context, files in zip(contexts, kept)],
        "packages": [dict(sorted(_packages(files).items())) for files in kept],
        "hardware": [_hardware(context) for context in contexts],
        "environment": [_environment(context) for context in contexts],
        "summary": [flat(run.explicit_summary) for run in found],
    }
    seen = [{name: key in context for key, names in _SEEN_BY.items() for name in names} for context in contexts]
    sections = {}
    for name, known in told.items():
        if any(known):
            # An empty config is one; of a run of which nobody wrote down the packages, they may be any.
            is_known = [bool(one) or name in ("config", "summary") for one in known]
            sections[name] = _side_by_side(known, seen, is_known)
    return Comparison(found, sections)


def chosen(keys: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The keys that are one of some names or match one of them as a pattern; all without patterns."""
    return [key for key in keys if not patterns or any(key == one or fnmatch.fnmatchcase(key, one) for one in patterns)]


# Facts side by side.


# Facts that the observer adds after the start, by the key of the context that says that it has looked.
_SEEN_BY = {
    "git": ("commit", "branch", "remote", "dirty", "untracked", PATCH),
    "code": ("script",),
    "os": ("os",),
}


def _side_by_side(
    found: Sequence[Mapping[str, Any]], seen: Sequence[Mapping[str, bool]], is_known: Sequence[bool]
) -> list[Fact]:
    names = dict.fromkeys(name for one in found for name in one)
    return [
        Fact(
            name,
            [
                one.get(name, ABSENT if known and looked.get(name, True) else UNKNOWN)
                for one, looked, known in zip(found, seen, is_known)
            ],
        )
        for name in names
    ]


def equal(one: Any, other: Any) -> bool:
    """Whether two values are equal: 1 and 1.0 are, NaN and NaN too; True and 1 are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other or (one != one and other != other))


def _code(context: Mapping[str, Any], files: Mapping[str, KeptFile]) -> dict[str, Any]:
    git, program, command = _map(context, "git"), _map(context, "program"), context.get("command")
    found = {
        "commit": git.get("commit"),
        "branch": git.get("branch") or ("detached" if git.get("detached") else None),
        "remote": git.get("remote"),
        "dirty": git.get("dirty"),
        "untracked": git.get("untracked_count"),
        "program": program.get("path") or program.get("module") or program.get("name"),
        "command": shlex.join(map(str, command[1:])) if isinstance(command, list) and command[1:] else None,
        "directory": context.get("cwd"),
        PATCH: _told(files.get(PATCH), is_patch=True),
    }
    script = _map(context, "code").get("file")
    if isinstance(script, str) and script in files:
        found["script"] = _told(files[script])
    return _known(found)


def _told(file: KeptFile | None, *, is_patch: bool = False) -> str | None:
    """A kept file in a few words, which are equal where its bytes are."""
    data = _bytes_of(file)
    if data is None:
        return None
    lines = data.split(b"\n")
    digest = hashlib.sha256(data).hexdigest()[:_DIGEST_LETTERS]
    if not is_patch:
        return f"{len(lines) - (not lines[-1])} lines, {digest}"
    plus, minus = (
        sum(line.startswith(sign) and not line.startswith(sign * 3) for line in lines) for sign in (b"+", b"-")
    )
    return f"+{plus} -{minus} lines, {digest}"


def _bytes_of(file: KeptFile | None) -> bytes | None:
    if file is None or file.size > _FILE_BYTES_MAX:
        return None
    try:
        with file.open() as opened:
            return opened.read(_FILE_BYTES_MAX)
    except (Error, OSError):
        return None


def _packages(files: Mapping[str, KeptFile]) -> dict[str, Any]:
    """Name -> version, of what pip and conda had installed."""
    found: dict[str, Any] = {}
    for name, sign in ((CONDA, "="), (REQUIREMENTS, "==")):
        for line in (_bytes_of(files.get(name)) or b"").decode("utf-8", "replace").splitlines():
            text = line.strip()
            package, _, version = text.partition(" @ ") if " @ " in text else text.partition(sign)
            if package and not package.startswith(("#", "-")):
                found[package.strip()] = version.strip()
            elif package.startswith("-e"):
                found[text.rpartition("#egg=")[2] or text] = text
    return found


def _hardware(context: Mapping[str, Any]) -> dict[str, Any]:
    told = context.get("gpus")
    gpus = [gpu for gpu in told if isinstance(gpu, dict)] if isinstance(told, list) else []
    names = [str(gpu.get("name") or "?") for gpu in gpus]
    memory = [gpu["memory_bytes"] for gpu in gpus if isinstance(gpu.get("memory_bytes"), int)]
    return _known(
        {
            "gpu": ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or None,
            "gpu memory": sum(memory) or None,
            "gpu driver": context.get("gpu_driver"),
            "cpu": context.get("cpu"),
            "cpu cores": context.get("cpu_count"),
            "cpu threads": context.get("cpu_threads"),
            "memory": context.get("memory_bytes"),
            "architecture": context.get("architecture"),
        }
    )


def _environment(context: Mapping[str, Any]) -> dict[str, Any]:
    python, launcher, hydra = (_map(context, name) for name in ("python", "launcher", "hydra"))
    variables = dict(sorted((f"${name}", value) for name, value in _map(context, "environment").items()))
    return _known(
        {
            "python": python.get("version"),
            "implementation": python.get("implementation"),
            "interpreter": python.get("executable"),
            "os": context.get("os"),
            "host": context.get("host"),
            "user": context.get("user"),
            "launcher": launcher.get("name"),
            "processes": launcher.get("world_size"),
            "job": launcher.get("job_id"),
            "hydra": hydra.get("output"),
            **variables,
        }
    )


def _known(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}


def _map(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = values.get(name)
    return value if isinstance(value, dict) else {}


# Results.


def _measures(run: Run) -> dict[str, Any]:
    seconds, last = run.duration, run.last_step
    found: dict[str, Any] = {"state": run.state, "duration": seconds, "last step": last}
    done = 0 if last is None else last + 1 - run.first_step
    found["steps/s"] = done / seconds if seconds and done > 0 else None
    return {name: ABSENT if value is None else value for name, value in found.items()}


def _result(key: str, found: Sequence[Values]) -> Result | None:
    ranges = [values.range(key) for values in found]
    goal = next(values.goal(key) for values, told in zip(found, ranges) if told is not None) if any(ranges) else "min"
    last = [None if told is None else told.last for told in ranges]
    best = [None if told is None else told.high if goal == "max" else told.low for told in ranges]
    if all(value is None for value in (*last, *best)):
        return None
    if not any(values.told_goal(key) for values in found):
        return Result(key, goal, last, best, None, None)
    return Result(key, goal, last, best, _best_of(best, goal), _best_of(last, goal))


def _best_of(values: Sequence[float | None], goal: Literal["min", "max"]) -> int | None:
    there = [value for value in values if value is not None and value == value]
    if len(there) < 2:
        return None
    best = max(there) if goal == "max" else min(there)
    return values.index(best) if there.count(best) == 1 else None


# Code.


def _code_files(run: Run) -> dict[str, KeptFile]:
    script = _map(run.context, "code").get("file")
    return {file.name: file for file in run.files() if file.name in (PATCH, script)}


def _diff(one: KeptFile | None, other: KeptFile | None, name: str, other_name: str, lines_max: int) -> list[str]:
    import difflib

    mine, theirs = ((_bytes_of(file) or b"").decode("utf-8", "replace").splitlines() for file in (one, other))
    if mine == theirs:
        return []
    lines = list(difflib.unified_diff(mine[:_DIFF_LINES_MAX], theirs[:_DIFF_LINES_MAX], name, other_name, lineterm=""))
    if max(len(mine), len(theirs)) > _DIFF_LINES_MAX:
        lines.append(f"(of each the first {_DIFF_LINES_MAX:,} lines)")
    left = len(lines) - lines_max
    return lines if left <= 0 else [*lines[:lines_max], f"({left:,} more lines)"]
