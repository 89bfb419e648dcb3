"""Graphs of nodes and edges, models mostly: `sdk.Graph`. Stored as the JSON file that W&B makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from .blobs import snapshot
from .media import Media, known


class Node:
    """A node of a graph. Its attributes are what is stored of it.

    Args:
        id: What edges know it by; one of its own for each node.
        name: A label.
        node: Another one, whose facts this one takes over, but for the id.
        facts: Further attributes: those below, or what else is to be stored.
    """

    class_name: str | None = None
    size: Any = None
    parameters: Any = None
    output_shape: Any = None
    is_output: bool | None = None
    num_parameters: int | None = None
    child_parameters: Any = None
    is_constant: bool | None = None
    functions: Any = ()

    def __init__(self, id: Any = None, name: str | None = None, *, node: Node | None = None, **facts: Any) -> None:
        inherited = {key: value for key, value in vars(node).items() if key != "id"} if node is not None else {}
        self.__dict__.update(inherited)
        self.id = id
        self.name = name if name is not None else inherited.get("name")
        self.__dict__.update(known(**facts))

    def __repr__(self) -> str:
        return repr(vars(self))

    @classmethod
    def from_keras(cls, layer: Any) -> Node:
        """What a layer of Keras says of itself."""
        shape = getattr(layer, "output_shape", None)
        if shape is None:  # Keras 3
            shape = getattr(getattr(layer, "output", None), "shape", ["multiple"])
        return cls(
            id=layer.name,
            name=layer.name,
            class_name=type(layer).__name__,
            output_shape=shape,
            num_parameters=layer.count_params(),
        )


class Edge:
    """From one node to another."""

    def __init__(self, from_node: Node, to_node: Node) -> None:
        self.from_node = from_node
        self.to_node = to_node
        self.name: str | None = None


class Graph(Media):
    """Nodes and edges, which may be added until it is logged (docs/media.md#graphs).

    Args:
        format: What the nodes are, for those who draw them; W&B's is "keras".

    Attributes:
        nodes: In the order in which they were added.
        nodes_by_id: The same by their ids.
        edges: Likewise.
        root: A node, where there is one that all begin with.
    """

    _type: ClassVar[str] = "graph-file"

    def __init__(self, format: str = "keras") -> None:
        self.format = format
        self.nodes: list[Node] = []
        self.nodes_by_id: dict[Any, Node] = {}
        self.edges: list[Edge] = []
        self.root: Node | None = None

    def __getitem__(self, id: Any) -> Node:
        return self.nodes_by_id[id]

    def add_node(self, node: Node | None = None, **node_kwargs: Any) -> Node:
        """Adds a node: one that was made, or what one is made of.

        Raises:
            ValueError: Both.
        """
        if node is not None and node_kwargs:
            raise ValueError(f"add_node() is given {node!r} and {sorted(node_kwargs)}, expected one of both")
        added = Node(**node_kwargs) if node is None else node
        self.nodes.append(added)
        self.nodes_by_id[added.id] = added
        return added

    def add_edge(self, from_node: Node, to_node: Node) -> Edge:
        """Adds an edge between two nodes."""
        edge = Edge(from_node, to_node)
        self.edges.append(edge)
        return edge

    @classmethod
    def from_keras(cls, model: Any) -> Graph:
        """The layers of a model of Keras, and which gives its output to which."""
        graph = cls()
        for layer in model.layers:
            graph.add_node(Node.from_keras(layer))
        for layer in model.layers:
            for source in _inputs_of(layer):
                # A layer may have been called for another model as well.
                if source.name in graph.nodes_by_id:
                    graph.add_edge(graph.nodes_by_id[source.name], graph.nodes_by_id[layer.name])
        return graph

    def describe(self) -> dict[str, Any]:
        import json

        content = {
            "format": self.format,
            "nodes": [vars(node) for node in self.nodes],
            "edges": [[edge.from_node.id, edge.to_node.id] for edge in self.edges],
        }
        text = json.dumps(content, default=_listed)
        return {
            "format": "graph.json",
            "nodes": len(self.nodes),
            "edges": len(self.edges),
            "data": snapshot(text.encode(), {"media": self._type, "format": "graph.json"}),
        }


def _listed(value: Any) -> Any:
    """What JSON does not know, as a list where it is one, else as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    try:
        return list(value)
    except TypeError:
        return str(value)


def _inputs_of(layer: Any) -> Iterator[Any]:
    """The layers whose output a layer of Keras takes."""
    for node in getattr(layer, "_inbound_nodes", ()):
        sources = getattr(node, "inbound_layers", None)
        if sources is None:  # Keras 3
            sources = [parent.operation for parent in node.parent_nodes]
        yield from sources if isinstance(sources, (list, tuple)) else [sources]
