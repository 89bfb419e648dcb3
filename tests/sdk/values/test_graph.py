"""sdk.Graph: nodes and edges as W&B's file has them, and what Keras' models say of themselves."""

from __future__ import annotations

import json
import types
from typing import Any

import numpy
import pytest

import sdk
from sdk.data_types import Edge, Node


def content_of(graph: sdk.Graph) -> Any:
    blob = graph.describe()["data"]
    assert blob.meta == {"media": "graph-file", "format": "graph.json"}
    return json.loads(bytes(blob.view()))


def test_nodes_and_edges() -> None:
    """Those that were made and those that are made of facts; arrays, shapes and objects become lists and texts."""
    graph = sdk.Graph()
    first = graph.add_node(id="a", class_name="Dense", size=(3, 4), shape=numpy.array([1, 2]), kind=float)
    second = graph.add_node(Node("b", "second", node=first))
    edge = graph.add_edge(first, second)
    assert isinstance(edge, Edge)
    assert (edge.from_node, edge.to_node, graph["b"], graph.nodes, graph.edges) == (
        first,
        second,
        second,
        [first, second],
        [edge],
    )
    facts = {"class_name": "Dense", "size": [3, 4], "shape": [1, 2], "kind": "<class 'float'>"}
    assert content_of(graph) == {
        "format": "keras",
        "nodes": [{"id": "a", "name": None, **facts}, {"id": "b", "name": "second", **facts}],
        "edges": [["a", "b"]],
    }
    described = graph.describe()
    assert (described["format"], described["nodes"], described["edges"]) == ("graph.json", 2, 1)
    with pytest.raises(ValueError, match="one of both"):
        graph.add_node(first, id="c")
    assert (first.num_parameters, first.functions, "Dense" in repr(first)) == (None, (), True)


def test_it_is_stored_as_it_is_when_it_is_logged(world: Any) -> None:
    """What is added afterwards is in the next one."""
    sdk.init()
    graph = sdk.Graph(format="own")
    graph.add_node(id=1)
    sdk.log({"g": graph})
    graph.add_node(id=2)
    sdk.log({"g": graph})
    assert [row["g"]["nodes"] for row in world.rows] == [1, 2]


def layer(name: str, **facts: Any) -> Any:
    return types.SimpleNamespace(name=name, count_params=lambda: 7, **facts)


@pytest.mark.parametrize("version", [2, 3])
def test_keras(version: int) -> None:
    """Its layers become nodes, what goes into a layer becomes edges; layers of other models are left out."""
    stranger = layer("stranger", output_shape=(1,), _inbound_nodes=[])
    if version == 2:
        left, right = (layer(name, output_shape=(None, 4), _inbound_nodes=[]) for name in ("left", "right"))
        nodes = [types.SimpleNamespace(inbound_layers=[left, right]), types.SimpleNamespace(inbound_layers=stranger)]
        both = layer("both", output_shape=(None, 8), _inbound_nodes=nodes)
    else:
        output = types.SimpleNamespace(shape=(None, 4))
        left, right = (layer(name, output=output, _inbound_nodes=[]) for name in ("left", "right"))
        parents = [types.SimpleNamespace(operation=one) for one in (left, right, stranger)]
        both = layer("both", _inbound_nodes=[types.SimpleNamespace(parent_nodes=parents)])
    graph = sdk.Graph.from_keras(types.SimpleNamespace(layers=[left, right, both]))
    found = content_of(graph)
    assert found["edges"] == [["left", "both"], ["right", "both"]]
    assert [node["id"] for node in found["nodes"]] == ["left", "right", "both"]
    assert found["nodes"][0] == {
        "id": "left", "name": "left", "class_name": "SimpleNamespace", "output_shape": [None, 4], "num_parameters": 7,
    }  # fmt: skip
    assert found["nodes"][2]["output_shape"] == ([None, 8] if version == 2 else ["multiple"])
