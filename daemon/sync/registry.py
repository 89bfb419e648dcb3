"""Which targets there are: ours by name, and those that other packages add as entry points of the group `stepd.targets`.

An entry point's name is the scheme, its object a `Target`. One of ours cannot be replaced. Nothing is imported before a target is
asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from daemon.sync.place import Place
from daemon.sync.target import Target
from sdk.errors import UsageError
from sdk.reader.names import nearest

GROUP = "stepd.targets"

# Scheme -> where its class is.
TARGETS = {
    "jsonl": "daemon.sync.targets.jsonl:JsonlTarget",
    "tensorboard": "daemon.sync.targets.tensorboard:TensorBoardTarget",
    "parquet": "daemon.sync.targets.parquet:ParquetTarget",
    "mlflow": "daemon.sync.targets.mlflow:MlflowTarget",
    "wandb": "daemon.sync.targets.wandb:WandbTarget",
    "stepd": "daemon.sync.targets.store:StoreTarget",
}


def schemes() -> list[str]:
    """The schemes that can be written to, ours first."""
    return list(dict.fromkeys([*TARGETS, *sorted(_added())]))


def make(place: Place) -> Target:
    """The target of a place. Cheap: a target imports what it needs when it is checked.

    Raises:
        UsageError: There is no such scheme, it has no such option, an option has none of its values, or an added one cannot be
            loaded.
    """
    kind = _class_of(place.scheme)
    unknown = [name for name in place.options if name not in kind.options]
    if unknown:
        known = f"it has {', '.join(sorted(kind.options))}" if kind.options else "it has none"
        raise UsageError(
            f"{place.text!r}: {place.scheme} has no option {unknown[0]!r}; {known}.{_meant(unknown[0], kind.options)}"
        )
    for name, values in kind.choices.items():
        if (chosen := place.options.get(name, values[0])) not in values:
            raise UsageError(
                f"{place.text!r}: {name} is {chosen!r}, expected {' or '.join(values)}.{_meant(chosen, values)}"
            )
    return kind(place)


def _class_of(scheme: str) -> type[Target]:
    found: object
    if scheme in TARGETS:
        module, _, name = TARGETS[scheme].partition(":")
        found = getattr(importlib.import_module(module), name)
    else:
        found = _loaded(scheme)
    if not (isinstance(found, type) and issubclass(found, Target)):
        raise UsageError(
            f"the entry point {scheme!r} of {GROUP} is {found!r}, expected a class of daemon.sync.target.Target"
        )
    return found


def _loaded(scheme: str) -> object:
    added = _added()
    if scheme not in added:
        known = schemes()
        raise UsageError(f"no target is called {scheme!r}.{_meant(scheme, known)} There are {', '.join(known)}")
    try:
        return added[scheme].load()  # type: ignore[attr-defined]
    except Exception as error:
        raise UsageError(
            f"the target {scheme!r} cannot be loaded from {added[scheme]}: {type(error).__name__}: {error}"
        ) from error


def _added() -> dict[str, object]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def _meant(word: str, known: Iterable[str]) -> str:
    near = nearest(word, known)
    return f" Did you mean {near[0]!r}?" if near else ""
