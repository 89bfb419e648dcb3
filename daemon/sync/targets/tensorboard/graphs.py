"""Graphs of models, as TensorBoard draws them."""

from __future__ import annotations

import json
from typing import Any

from daemon.formats.plugins import Node, graph

_SHOWN = ("output_shape", "parameters", "num_parameters", "size", "child_parameters", "is_output", "is_constant")


def graph_of(data: bytes) -> bytes:
    """The GraphDef of a graph.json file. Names with dots become boxes in boxes.

    Raises:
        ValueError: It is no such file.
    """
    content = json.loads(data)
    try:
        nodes: list[dict[str, Any]] = [node for node in content["nodes"] if isinstance(node, dict)]
        edges: list[list[Any]] = [edge for edge in content["edges"] if len(edge) == 2]
    except (TypeError, KeyError) as error:
        raise ValueError(f"a graph of type {type(content).__name__}, expected a map of nodes and edges") from error
    names = _names(nodes)
    inputs: dict[str, list[str]] = {}
    for source, target in edges:
        if repr(source) in names and repr(target) in names:
            inputs.setdefault(repr(target), []).append(names[repr(source)])
    return graph([
        Node(
            names[repr(node.get("id"))],
            str(node.get("class_name") or "node"),
            inputs.get(repr(node.get("id")), []),
            {key: _said(node[key]) for key in _SHOWN if node.get(key) is not None},
        )
        for node in nodes
    ])  # fmt: skip


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _names(nodes: list[dict[str, Any]]) -> dict[str, str]:
    """A name of its own for each node, by its id. The name of a box around others cannot be a node's."""
    wanted = {
        repr(node.get("id")): str(node.get("name") or node.get("id")).replace(".", "/").strip("/") for node in nodes
    }
    boxes = {name[:at] for name in wanted.values() for at in range(len(name)) if name[at] == "/"}
    taken: set[str] = set()
    for key, name in wanted.items():
        name = name or "node"
        unique, number = f"{name}/({name.rpartition('/')[2]})" if name in boxes else name, 1
        while unique in taken:
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique)
        wanted[key] = unique
    return wanted
