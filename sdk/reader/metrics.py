"""What `define_metric` said, as readers need it: the definition of a key, and which keys are made of others (docs/metrics.md).

The facts come from files: whatever is wrong in them counts as not said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

OPERATIONS = ("min", "max", "mean", "last", "first", "best", "copy", "none")
REDUCTIONS = ("mean", "sum", "min", "max", "last")
GOALS = ("minimize", "maximize")
OVER_DEFAULT = "epoch"
STEP_SUFFIX = "_step"


class Definition(NamedTuple):
    """What holds for one key.

    Attributes:
        name: What it was said of: the key itself, a prefix and `*`, or "" where nothing was said.
        step_metric: The key that is its x axis; None: the step.
        step_sync: Whether a value whose row lacks the step metric stands at its last value; otherwise such values are left
            out where that axis is drawn.
        hidden: Whether it is left out where nobody asked for it by name.
        summary: Operations; () is the last value.
        goal: "minimize", "maximize" or None.
        reduce, over, weight: See `Epochs`; `reduce` None: nothing is made of it.
    """  # fmt: skip

    name: str = ""
    step_metric: str | None = None
    step_sync: bool = False
    hidden: bool = False
    summary: tuple[str, ...] = ()
    goal: str | None = None
    reduce: str | None = None
    over: str = OVER_DEFAULT
    weight: str | None = None


class Made(NamedTuple):
    """A key that nobody logged: the values of `base` under another name, or one of them for each epoch."""

    base: str
    by_epoch: bool
    definition: Definition

    @property
    def needs(self) -> frozenset[str]:
        """The keys of which it is made."""
        if not self.by_epoch:
            return frozenset([self.base])
        return frozenset([self.base, self.definition.over, self.definition.weight or self.base])


NOTHING_SAID = Definition()


class Definitions:
    """Everything that `define_metric` said in a run."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._said = {name: _definition(name, said) for name, said in facts.items() if _is_told(name, said)}
        self._prefixes = sorted((name for name in self._said if name[-1] == "*"), key=len, reverse=True)
        reducing = [definition for definition in self._said.values() if definition.reduce is not None]
        # What rows are counted by is not itself counted.
        self._apart = {key for one in reducing for key in (one.over, one.weight)}
        self._suffixes = {suffix_of(one) for one in reducing}

    def __bool__(self) -> bool:
        return bool(self._said)

    @property
    def makes(self) -> bool:
        """Whether there may be keys that are made of others."""
        return bool(self._suffixes)

    def of(self, key: str) -> Definition:
        """The definition of a key: what was said of it by name, else of the longest prefix. Keys that begin with an underscore
        have no prefix, and a key is not its own axis.

        What is made of a key is shown as the key is.
        """  # fmt: skip
        found = self._said.get(key)
        if found is None:
            made = self.made(key)
            found = self.of(made.base) if made is not None else self._by_prefix(key)
            if made is not None:
                found = found._replace(reduce=None, weight=None)
        return found._replace(step_metric=None, step_sync=False) if found.step_metric == key else found

    def _by_prefix(self, key: str) -> Definition:
        for name in self._prefixes if key[:1] != "_" else ():
            if key.startswith(name[:-1]):
                return self._said[name]
        return NOTHING_SAID

    def _reduced(self, key: str) -> Definition | None:
        """What says that epochs are made of a key."""
        found = self._said.get(key) or self._by_prefix(key)
        return None if found.reduce is None or key in self._apart else found

    def made(self, key: str) -> Made | None:
        """What a key is made of, if nobody logged it; None: of nothing."""
        for suffix in (STEP_SUFFIX, *self._suffixes) if self._suffixes else ():
            base = key.removesuffix(suffix)
            definition = self._reduced(base) if base and base != key else None
            if definition is not None and suffix in (STEP_SUFFIX, suffix_of(definition)):
                return Made(base, suffix != STEP_SUFFIX, definition)
        return None

    def logged(self, key: str) -> str:
        """The key that somebody logged of which another may be made, or the key itself."""
        made = self.made(key)
        return key if made is None else made.base

    def made_of(self, keys: Iterable[str]) -> dict[str, Made]:
        """What is made of logged keys, by name; what somebody logged under such a name stays what it is."""
        logged = set(keys)
        found: dict[str, Made] = {}
        for key in sorted(logged) if self._suffixes else ():
            definition = self._reduced(key)
            # Not again of what a program already logs as a pair.
            if definition is not None and self.made(key) is None:
                found[key + STEP_SUFFIX] = Made(key, False, definition)
                found[key + suffix_of(definition)] = Made(key, True, definition)
        return {name: made for name, made in found.items() if name not in logged}

    def needed(self, keys: Iterable[str]) -> frozenset[str]:
        """The keys to read for some: themselves, and what they may be made of."""
        wanted = frozenset(keys)
        return wanted.union(*(made.needs for key in wanted if (made := self.made(key)) is not None))


def suffix_of(definition: Definition) -> str:
    """What the name of one value for each epoch ends in: "_epoch"; of over="train/round" "_round"."""
    return "_" + definition.over.rpartition("/")[2]


def _definition(name: str, said: Mapping[str, Any]) -> Definition:
    operations = said.get("summary")
    return Definition(
        name,
        _text(said, "step_metric"),
        said.get("step_sync") is True,
        said.get("hidden") is True,
        tuple(one for one in operations if one in OPERATIONS) if isinstance(operations, list) else (),
        _one_of(said, "goal", GOALS),
        _one_of(said, "reduce", REDUCTIONS),
        _text(said, "over") or OVER_DEFAULT,
        _text(said, "weight"),
    )


def _is_told(name: object, said: object) -> bool:
    return isinstance(name, str) and name != "" and isinstance(said, dict)


def _text(said: Mapping[str, Any], name: str) -> str | None:
    value = said.get(name)
    return value if isinstance(value, str) and value else None


def _one_of(said: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str | None:
    value = said.get(name)
    return value if isinstance(value, str) and value in known else None
