"""`sdk.data_types`: the values of `log` under the name of W&B's module, and those that only it has."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_OWN = {
    "Bokeh": "interactive",
    "BoundingBoxes2D": "annotations",
    "Edge": "graph",
    "ImageMask": "annotations",
    "Media": "media",
    "Node": "graph",
}
# Those that stand in the package as well.
_COMMON = frozenset(
    "Audio Classes EvalTable Embedding Graph Histogram Html Image JoinedTable Molecule Object3D Plotly Table Video "
    "box3d".split()
)

__all__ = sorted([*_OWN, *_COMMON])  # noqa: PLE0605 - the names of the tables


def __getattr__(name: str) -> Any:
    package = __name__.rpartition(".")[0]
    if name in _OWN:
        return getattr(import_module(f"{package}.values.{_OWN[name]}"), name)
    if name in _COMMON:
        return getattr(import_module(package), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
