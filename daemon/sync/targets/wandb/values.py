"""What the values of a row become at W&B: JSON where it can be said so, else objects of its package around the stored files.

No file is encoded again. What W&B has no way to hold is counted and left out; nothing here ends a pass.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from sdk.errors import Error, NotFoundError
from sdk.limits import NESTING_MAX
from sdk.reader.media import MediaItem

# Limit: as W&B's own: an array of more numbers becomes a histogram.
ARRAY_VALUES_MAX = 32
_INTEGER_MAX = (1 << 63) - 1
LEFT_OUT: Any = object()
_NODE = ("id", "name", "class_name", "size", "parameters", "output_shape", "is_output", "num_parameters")

Lost = Callable[..., None]


class Values:
    """Makes W&B's values of those of one pass.

    Args:
        wandb: The package.
        directory: Where files may be put until W&B has taken them.
        lost: `Passage.lost`.
    """

    def __init__(self, wandb: Any, directory: str, lost: Lost) -> None:
        self._wandb, self._directory, self._lost = wandb, directory, lost
        self._count = 0

    def row(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values by names that W&B takes; without those that it cannot hold."""
        found = {}
        for key, value in values.items():
            if key[:1] == "_" and key in ("_step", "_timestamp", "_runtime"):
                self._lost("keys that W&B sets itself", key)
                continue
            name = self.text(key, key)
            if not name:
                self._lost("values without a name", key)
                continue
            made = self.value(key, value)
            if made is not LEFT_OUT:
                found[name] = made
        return found

    def text(self, text: str, key: str) -> str:
        """A text as UTF-8 can hold it."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            self._lost("lone surrogates, which became ?", key)
            return text.encode("utf-8", "replace").decode("utf-8")
        return text

    def value(self, key: str, value: Any) -> Any:
        """One value; `LEFT_OUT` where there is no way."""
        kind = type(value)
        if kind is float or kind is bool or value is None:
            return value
        if kind is int:
            if not -_INTEGER_MAX - 1 <= value <= _INTEGER_MAX:
                self._lost("integers beyond 64 bits, which became floats", key)
            return value
        if kind is str:
            return self.text(value, key)
        try:
            return self._large(key, value)
        except NotFoundError:
            self._lost("media whose bytes are not stored", key)
        except (Error, ValueError, TypeError, OSError, AttributeError, KeyError, ImportError, RecursionError) as error:
            self._lost(f"values that W&B's package refused ({type(error).__name__})", key)
        return LEFT_OUT

    def _large(self, key: str, value: Any) -> Any:
        if isinstance(value, MediaItem):
            return self._media(key, value)
        if hasattr(value, "dtype"):
            return self._array(key, value)
        if isinstance(value, list) and value and all(isinstance(one, MediaItem) for one in value):
            made = [self._media(key, one) for one in value]
            # Of a list W&B keeps captions only where the first one has one.
            if any(one.caption is not None for one in value):
                for one in made:
                    one._caption = one._caption or "" if hasattr(one, "_caption") else None
            return made
        return self.plain(key, value)

    def plain(self, key: str, value: Any, depth: int = 0) -> Any:
        """A value that JSON can hold, of lists and maps too."""
        if isinstance(value, (list, tuple)) and depth < NESTING_MAX:
            return [self.plain(key, one, depth + 1) for one in value]
        if isinstance(value, dict) and depth < NESTING_MAX:
            return {self.text(str(name), key): self.plain(key, one, depth + 1) for name, one in value.items()}
        if isinstance(value, str):
            return self.text(value, key)
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, MediaItem):
            raise TypeError(f"{value} among other values")
        if isinstance(value, bytes):
            raise TypeError("bytes")
        if hasattr(value, "tolist"):
            return self.plain(key, value.tolist(), depth + 1)
        return self.text(str(value), key)

    def _array(self, key: str, array: Any) -> Any:
        """A small array is a list of its values, a larger one its histogram, as W&B's package makes them."""
        import numpy

        if array.size <= ARRAY_VALUES_MAX and array.dtype.kind in "biuf":
            return array.tolist()
        if array.dtype.kind not in "biuf":
            raise TypeError(f"an array of {array.dtype}")
        self._lost("tensors, of which W&B keeps a histogram", key)
        finite = numpy.asarray(array, numpy.float64)
        counts, edges = numpy.histogram(finite[numpy.isfinite(finite)], bins=64)
        return {"_type": "histogram", "values": counts.tolist(), "bins": edges.tolist()}

    # -- media -----------------------------------------------------------------------------------------------------------

    def _media(self, key: str, item: MediaItem) -> Any:
        make = _MAKERS.get(item.kind)
        if make is None:
            if item.kind == "value":
                return self.plain(key, item.data)
            if item.kind in ("tensor", "embedding"):
                return self._array(key, item.to_numpy())
            self._lost(f"values of the kind {item.kind!r}", key)
            return LEFT_OUT
        return make(self, key, item)

    def _file(self, item: MediaItem) -> str:
        """Its file, for W&B to take over."""
        self._count += 1
        end = item.file_name.rpartition("/")[2]
        # Why a name of its own: what W&B calls the file is made of key, step and digest, not of this.
        extension = end[end.index(".") :] if "." in end else ".bin"
        return item.save(os.path.join(self._directory, f"{self._count}{extension}"))

    def _caption(self, key: str, item: MediaItem) -> str | None:
        return None if item.caption is None else self.text(item.caption, key)

    def _image(self, key: str, item: MediaItem) -> Any:
        said = item.value
        boxes = {name: _boxes(one) for name, one in _maps(said.get("boxes")).items()}
        masks = {
            name: {"path": self._file(mask), **_labels(mask.value.get("class_labels"))}
            for name, mask in _maps(said.get("masks")).items()
            if isinstance(mask, MediaItem)
        }
        known = {} if boxes or masks else {"classes": said.get("classes")}
        return self._wandb.Image(
            self._file(item), caption=self._caption(key, item), grouping=said.get("grouping"), boxes=boxes or None,
            masks=masks or None, **known,
        )  # fmt: skip

    def _audio(self, key: str, item: MediaItem) -> Any:
        return self._wandb.Audio(self._file(item), caption=self._caption(key, item))

    def _video(self, key: str, item: MediaItem) -> Any:
        return self._wandb.Video(self._file(item), caption=self._caption(key, item), format=item.format)

    def _html(self, key: str, item: MediaItem) -> Any:
        return self._wandb.Html(self._file(item), inject=False)

    def _object3d(self, key: str, item: MediaItem) -> Any:
        return self._wandb.Object3D(self._file(item), caption=self._caption(key, item))

    def _molecule(self, key: str, item: MediaItem) -> Any:
        return self._wandb.Molecule(self._file(item), caption=self._caption(key, item))

    def _plotly(self, key: str, item: MediaItem) -> Any:
        return _around(self._wandb.Plotly, self._file(item), ".plotly.json")

    def _bokeh(self, key: str, item: MediaItem) -> Any:
        return _around(self._wandb.data_types.Bokeh, self._file(item), ".bokeh.json")

    def _graph(self, key: str, item: MediaItem) -> Any:
        told = json.loads(item.bytes())
        graph = self._wandb.data_types.Graph(told.get("format", "keras"))
        for node in told["nodes"]:
            graph.add_node(**{name: node[name] for name in _NODE if name in node})
        for first, second in told.get("edges", ()):
            graph.add_edge(graph[first], graph[second])
        return graph

    def _histogram(self, key: str, item: MediaItem) -> Any:
        if any(item.value.get(name) for name in ("nan", "inf", "negative_inf")):
            self._lost("counts of NaN and infinities in histograms", key)
        return {"_type": "histogram", "values": item.values, "bins": item.bins}

    def _table(self, key: str, item: MediaItem) -> Any:
        columns = [name if isinstance(name, int) else self.text(str(name), key) for name in item.columns]
        rows = [[self._cell(key, cell) for cell in row] for row in item.rows]
        table = self._wandb.Table(columns=columns, allow_mixed_types=True)
        # Why not `data=`: the constructor looks for the type of every cell again and again.
        for row in rows:
            table.add_data(*row)
        return table

    def _cell(self, key: str, cell: Any) -> Any:
        made = self.value(key, cell)
        if isinstance(made, dict) and made.get("_type") == "histogram":
            return self._wandb.Histogram(np_histogram=(made["values"], made["bins"]))
        return None if made is LEFT_OUT else made

    def _chart(self, key: str, item: MediaItem) -> Any:
        said = item.value
        table = said.get("table")
        if not isinstance(table, MediaItem):
            raise TypeError("a chart without a table")
        return self._wandb.plot_table(
            vega_spec_name=said.get("spec"), data_table=self._table(key, table), fields=said.get("fields") or {},
            string_fields=said.get("string_fields") or {}, split_table=bool(said.get("split_table")),
        )  # fmt: skip


_MAKERS: dict[str, Callable[[Values, str, MediaItem], Any]] = {
    "image": Values._image, "audio": Values._audio, "video": Values._video, "html": Values._html, "table": Values._table,
    "object3d": Values._object3d, "molecule": Values._molecule, "plotly": Values._plotly, "bokeh": Values._bokeh,
    "graph": Values._graph, "histogram": Values._histogram, "chart": Values._chart,
}  # fmt: skip


def _around(kind: Any, path: str, extension: str) -> Any:
    """An object of a class whose constructor makes a file, around one that is there."""
    found = kind.__new__(kind)
    kind.__mro__[1].__init__(found)
    found._set_file(path, is_tmp=True, extension=extension)
    return found


def _maps(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _labels(labels: Any) -> dict[str, Any]:
    """Class labels by number, as W&B wants them."""
    found = {int(name): str(label) for name, label in _maps(labels).items() if str(name).lstrip("-").isdecimal()}
    return {"class_labels": found} if found else {}


def _boxes(said: Any) -> dict[str, Any]:
    return {"box_data": _maps(said).get("box_data", []), **_labels(_maps(said).get("class_labels"))}


def dumped(value: Any) -> str:
    """JSON as W&B's files hold it: NaN and infinities by Python's names."""
    return json.dumps(value, separators=(",", ":"))
