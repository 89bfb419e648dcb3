"""What the names of an expression are of one stored run: facts, config, summary, the ends of its series.

Nothing is read that is not asked for. Of runs that are over the facts, the config and the small numbers come from the store's list
(`sdk.reader.listing`); what that does not hold, and everything of runs that go on, from the run as it is now.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ..headline import good_end
from ..reader.digest import digest_if_told, ranges_of
from ..reader.metrics import Definitions
from .expression import CONFIG, FACTS, OPERATIONS, SUMMARY, TIMES

if TYPE_CHECKING:
    from ..reader.digest import Digest, Range
    from ..reader.run import Run

Goal = Literal["min", "max"]
_ATTRIBUTES = {"step": "step_max", "size": "size_bytes"}
# Limit: msgpack nests a thousand maps, more than Python wants to descend.
_LEVELS_MAX = 20
_HIGH_WORDS = frozenset(
    "map mrr iou dice recall precision psnr ssim ndcg hits win wins return returns rouge meteor mcc kappa".split()
)
# Every integer below it is a float, too.
_EXACT_MAX = 2.0**53
_LOW_WORDS = frozenset("mae mse rmse mape nll wer cer fid bpb bpc".split())


class Values:
    """What a run's names are (`expression.Lookup`). Reads what is asked for, once.

    Attributes:
        run: Of which run.
        wanted: Series that will be asked for too; they are read with the first one.
        is_quick: Say None of series for which all rows of the run would have to be read.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.wanted: Iterable[str] = ()
        self.is_quick = False
        self._known: dict[str, Any] = {}
        self._config: dict[str, Any] | None = None
        self._summary: dict[str, Any] | None = None
        self._ranges: dict[str, Range | None] = {}
        self._definitions: Definitions | None = None
        self._digest: Digest | None = None
        self._has_digest = False

    def __call__(self, name: str) -> Any:
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> Any:
        if name in FACTS:
            return self._fact(name)
        operation, colon, key = name.partition(":")
        if colon and operation in OPERATIONS:
            return self._of_series(operation, key)
        if name.startswith(CONFIG):
            return inside(self.config, name[len(CONFIG) :])
        if name.startswith(SUMMARY):
            return self.summary(name[len(SUMMARY) :])
        found = inside(self.config, name)
        return self.summary(name) if found is None else found

    def _fact(self, name: str) -> Any:
        run = self.run
        found = getattr(run, _ATTRIBUTES.get(name, name))
        if name in TIMES:
            return found if found > 0 else None
        return None if found == "" else found

    @property
    def config(self) -> dict[str, Any]:
        """The run's config."""
        if self._config is None:
            self._config = self.run.config
        return self._config

    @property
    def digest(self) -> Digest | None:
        """What the store's list keeps of its values; None: ask the run."""
        if not self._has_digest:
            self._digest, self._has_digest = digest_if_told(self.run), True
        return self._digest

    def summary(self, key: str) -> Any:
        """What the summary says under a key, or inside of what it says under the beginning of it: `val/acc.max`."""
        if self.digest is not None:
            found = self.digest.summary_value(key)
            if found is None and "." in key:
                found = inside(self.digest.summary, key)
            if found is not None or self.digest.is_whole:
                return found
        if self._summary is None:
            self._summary = self.run.summary
        return inside(self._summary, key)

    def range(self, key: str) -> Range | None:
        """What is known of the numbers under a key."""
        if self.digest is not None and (
            key in self.digest.series or (self.digest.has_all_series and not _is_apart(key))
        ):
            return self.digest.series.get(key)
        if self.is_quick:
            return self._ranges.get(key)
        if key not in self._ranges:
            unknown = [key, *(other for other in self.wanted if other not in self._ranges and other != key)]
            self._ranges.update(ranges_of(self.run, unknown))
        return self._ranges[key]

    @property
    def knows_series(self) -> bool:
        """Whether its series were read already: it was sorted by one."""
        return bool(self._ranges)

    def _of_series(self, operation: str, key: str) -> Any:
        found = self.range(key)
        if found is None:
            return None
        if operation == "best":
            operation = self.goal(key)
        return {"last": found.last, "first": found.first, "min": found.low, "max": found.high}[operation]

    @property
    def definitions(self) -> Definitions:
        """What `define_metric` said in the run."""
        if self._definitions is None:
            self._definitions = Definitions(self.metrics)
        return self._definitions

    @property
    def metrics(self) -> dict[str, Any]:
        """The same as facts, by name."""
        told = None if self.digest is None else self.digest.metrics
        return self.run.metrics if told is None else told

    def goal(self, key: str) -> Goal:
        """As `goal_of`."""
        return self.told_goal(key) or "min"

    def told_goal(self, key: str) -> Goal | None:
        """The same where somebody or the name says it; None of an epoch or a learning rate, of which neither end is better."""
        return _told_goal(self.definitions, key)

    def series_names(self) -> list[str]:
        """The series that may have a column."""
        if self.digest is None:
            return self.run.shown_keys(quick=True)
        return [key for key in self.digest.series if self._is_shown(key)]

    def _is_shown(self, key: str) -> bool:
        """As `Run.shown_keys`, for a series that the digest keeps: hidden ones, and second names, have no column by themselves."""
        made = self.definitions.made(key)
        is_twin = made is not None and not made.by_epoch and self.range(made.base) is not None
        return not is_twin and not self.definitions.of(key).hidden


def lookup_of(run: Run) -> Values:
    """What says a run's values to an expression: lazily, and each once."""
    return Values(run)


def inside(values: Mapping[str, Any], name: str, levels: int = _LEVELS_MAX) -> Any:
    """The value under a name in nested maps: under the whole name, else under a beginning of it that ends at a dot; None."""
    if name in values:
        return values[name]
    at = name.find(".") if levels > 1 else -1
    while at >= 0:
        inner = values.get(name[:at])
        if isinstance(inner, Mapping):
            found = inside(inner, name[at + 1 :], levels - 1)
            if found is not None:
                return found
        at = name.find(".", at + 1)
    return None


def goal_of(run: Run, key: str) -> Goal:
    """Which end of a series is good: what `define_metric(goal=…)` or `summary="min"` said, else by its name; in doubt the low one."""
    return Values(run).goal(key)


def told_goal_of(run: Run, key: str) -> Goal | None:
    """The same; None in doubt, as of an epoch."""
    return Values(run).told_goal(key)


def _told_goal(definitions: Definitions, key: str) -> Goal | None:
    said = definitions.of(key) if definitions else None
    if said is not None and said.goal is not None:
        return "max" if said.goal == "maximize" else "min"
    asked = {"min", "max"} & set(said.summary) if said is not None else set()
    if len(asked) == 1:
        return "max" if "max" in asked else "min"
    by_name = good_end(key)
    if by_name:
        return "max" if by_name == "max" else "min"
    words = set(re.findall("[a-z]+", key.lower()))
    return "max" if words & _HIGH_WORDS else "min" if words & _LOW_WORDS else None


def _is_apart(key: str) -> bool:
    """Whether a digest tells nothing of a key: one that was observed beside the training, or begins with an underscore."""
    return key.startswith(("system/", "_"))


def flat(config: Mapping[str, Any], prefix: str = "", levels: int = _LEVELS_MAX) -> dict[str, Any]:
    """Nested maps as one, names joined with dots; what is nested deeper than `levels` is a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and levels > 1:
            found.update(flat(value, f"{name}.", levels - 1))
        else:
            found[name] = value
    return found


def text_of(value: Any) -> str:
    """Any value as a text that says what it is: equal ones have the same, 10 and 10.0 too."""
    if type(value) is float and value.is_integer() and abs(value) < _EXACT_MAX:
        return repr(int(value))
    try:
        return repr(value)
    except (
        RecursionError,
        ValueError,
    ):  # lists inside of a thousand lists; an integer of more digits than Python writes
        return f"<{type(value).__name__}>"


def quoted(prefix: str, key: str) -> str:
    """A key behind its prefix, in quotes where it would be read as something else."""
    if re.fullmatch(r"[\w@%][\w.@%]*(?:[/-][\w.@%]+)*", key):
        return prefix + key
    return prefix + '"' + key.replace('"', '""') + '"'
