"""Images, tables, tensors and the like, as a reader gets them: what they say of themselves at once, their bytes when asked.

Nothing that was logged is run, rendered or opened here: HTML and SVG are bytes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator
from typing import Any

from ..errors import Error, NotFoundError, UsageError
from ..files import Buffer
from ..limits import MAP_BYTES_MAX, NESTING_MAX
from ..record import BlobRef, MediaValue, StoredBlob, decode_map
from . import filenames
from .blobs import Blobs
from .contents import array_of, as_json, believing_nothing, described, file_of, is_file, npy, raw_of

# What a record's "_type" is called here; others are called what they call themselves.
KINDS = {
    "image-file": "image", "video-file": "video", "audio-file": "audio", "html-file": "html", "table-file": "table",
    "object3D-file": "object3d", "molecule-file": "molecule", "plotly-file": "plotly", "bokeh-file": "bokeh",
    "graph-file": "graph", "custom-chart": "chart",
}  # fmt: skip
_BLOB = "blob"
_VALUE = "value"
# Limit: of a value that somebody asks for by name; what is larger than `MAP_BYTES_MAX` stays an item in rows and series.
_VALUE_BYTES_MAX = 1 << 30
_TEXT_CHARACTERS_MAX = 60
_Bytes = bytes  # a method has that name


class MediaList(list["MediaItem"]):
    """What `run.media` gives: items in order of steps.

    Attributes:
        others: Ids of the streams outside of this list that hold the key too.
    """

    others: tuple[str, ...] = ()


class MediaItem:
    """One logged value that is more than plain data.

    Reading its bytes opens files and closes them again; they are read anew each time. Not thread-safe beside other uses
    of its run. A value that is still raw is encoded by whoever asks for its file, which can take as long as encoding does.

    Attributes:
        key: What it was logged under.
        step: Of its row.
        time: When it was logged, Unix seconds.
        index: Its place among the values of a logged list; 0 of one that stood alone.
    """

    __slots__ = ("_blobs", "_map", "index", "key", "step", "time")

    def __init__(self, blobs: Blobs, value: MediaValue, key: str, step: int, time: float, index: int = 0) -> None:
        self._blobs = blobs
        self._map = value
        self.key = key
        self.step = step
        self.time = time
        self.index = index

    def __repr__(self) -> str:
        said = [self.kind, repr(_cut(self.key)), f"step {self.step}"]
        if self.index:
            said.append(f"[{self.index}]")
        sizes = [self._map.get("width"), self._map.get("height")]
        if all(type(size) is int for size in sizes):
            said.append("×".join(map(str, sizes)))
        if self.kind == "table":
            said.append(f"{_integer(self._map, 'nrows')} rows")
        if self.format is not None:
            said.append(self.format)
        if self.caption is not None:
            said.append(repr(_cut(self.caption)))
        return f"<{' '.join(said)}>"

    # -- what it says of itself ------------------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """One of "image", "video", "audio", "table", "histogram", "tensor", "html", …: a name that is safe to print."""
        name = self._map["_type"]
        return KINDS.get(name) or "".join(c if c.isalnum() or c in "-_" else "?" for c in name[:_TEXT_CHARACTERS_MAX])

    @property
    def caption(self) -> str | None:
        caption = self._map.get("caption")
        return caption if isinstance(caption, str) else None

    @property
    def value(self) -> dict[str, Any]:
        """The whole map: boxes, classes, masks and whatever else was logged with it; media and blobs in it are items."""
        return {name: self._inside(value, f".{name}") for name, value in self._map.items()}

    def _inside(self, value: Any, name: str = "") -> Any:
        """A part of it, with items under this item's key and the names of the maps around them."""
        return _map_media(value, self._item, name)

    def _item(self, found: Any, name: str) -> MediaItem:
        return MediaItem(self._blobs, _as_media(found), self.key + name, self.step, self.time, self.index)

    def as_plain(self) -> dict[str, Any]:
        """The map as plain values, for JSON: media inside likewise, without the blobs."""
        return {name: _plain(part) for name, part in self.value.items() if not _is_blob(part)}

    @property
    def format(self) -> str | None:
        """Of its file: "png", "mp4", "table.json"; None where nothing says."""
        said = self._map.get("format")
        known = filenames.FORMATS.get(self.kind, ())
        if isinstance(said, str):
            return said if said in known else None
        return known[0] if known and self.kind not in ("image", "mask", "video", "audio") else None

    @property
    def file_name(self) -> str:
        """A name for its file, safe in any directory: `val_examples_12_0.png`."""
        end = filenames.ending(self.kind, self.format)
        return filenames.file_name(self.key, self.step, self.index, end)

    @property
    def size(self) -> int:
        """Bytes of its blobs as they were logged; of what stands in the row itself 0."""
        return sum(blob.size if isinstance(blob, BlobRef) else len(blob.data) for blob in self._own_blobs())

    @property
    def is_stored(self) -> bool:
        """Whether its bytes are there, as far as can be told without reading them."""
        blobs = self._own_blobs()
        if self._map.get("data", 0) is None:
            return False
        return all(isinstance(blob, StoredBlob) or self._blobs.find(blob) for blob in blobs)

    @property
    def dtype(self) -> str | None:
        """Of the array that was logged, as numpy or ml_dtypes name it; None where it was none. May read the blob's head."""
        told = self._array()
        return _dtype_name(told[0]) if told is not None else None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the array that was logged; None where it was none. May read the blob's head."""
        told = self._array()
        return told[1] if told is not None else None

    def _array(self) -> tuple[str, tuple[int, ...]] | None:
        if "dtype" in self._map:
            return described({"array": [self._map["dtype"], self._map.get("shape"), None]})
        return described(self._meta())

    @property
    def digest(self) -> str | None:
        """SHA-256 of the bytes as they were logged, in hex; None without any. Reads them, unless they were encoded."""
        blob = self._main()
        if blob is None:
            return None
        told = self._meta().get("digest")
        if isinstance(told, bytes) and len(told) == 32:
            return told.hex()
        import hashlib

        return hashlib.sha256(raw_of(self._read(blob)).data).hexdigest()

    # -- its bytes -------------------------------------------------------------------------------------------------------

    def bytes(self) -> _Bytes:
        """Its file.

        A tensor is a .npy file, a table, a histogram and a chart are JSON.

        Raises:
            NotFoundError: Its bytes are not stored; the message says why.
            DamageError: They are stored and cannot be read.
            EncoderMissing: It is still raw, and the package that makes its files is not installed.
        """
        made = _MADE.get(self.kind)
        return bytes(file_of(self._stored()) if made is None else made(self))

    def to_numpy(self) -> Any:
        """Its values: uint8[H, W] or [H, W, C] of an image, uint8[T, H, W, C] of a video, [N] or [N, C] of audio, else
        the array as it was logged (docs/media.md#reading says which are exact). The caller's own, or read-only.

        Raises:
            UsageError: It is none of these.
            NotFoundError, DamageError, EncoderMissing: As `bytes`.
        """
        if self.kind in ("table", "chart"):
            raise self._no("array", ".rows, .to_pandas()")
        if self.kind == "histogram":
            import numpy

            return numpy.array(self.values)
        return array_of(self._stored())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        import numpy

        found = numpy.asarray(self.to_numpy(), dtype)
        return found.copy() if copy else found

    def to_pil(self) -> Any:
        """A PIL.Image, loaded.

        Raises:
            UsageError: It is no image.
            NotFoundError, DamageError, EncoderMissing: As `bytes`.
        """
        if self.kind not in ("image", "mask"):
            raise self._no("picture", ".bytes(), .to_numpy()")
        from ..encoders.image import open_picture

        return open_picture(file_of(self._stored()))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> str:
        """Writes its file; it appears when it is complete.

        Args:
            path: A file, or a directory, in which it gets `file_name`.
            overwrite: Replace a file of that name; False: raise FileExistsError.

        Returns:
            The path of the file.

        Raises:
            OSError: It cannot be written.
            NotFoundError, DamageError, EncoderMissing: As `bytes`.
        """
        target = os.fspath(path)
        if os.path.isdir(target):
            target = os.path.join(target, self.file_name)
        # In the place itself where nothing may be replaced: O_EXCL also refuses a link that leads elsewhere.
        draft = f"{target}.{os.urandom(4).hex()}.tmp" if overwrite else target
        with open(draft, "xb") as file:
            try:
                with contextlib.closing(self._portions()) as portions:
                    file.writelines(portions)
                if overwrite:
                    os.replace(draft, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(draft)
                raise
        return target

    def _portions(self) -> Generator[Buffer]:
        """Its file; what is stored as one comes in portions, so that a film needs no memory."""
        blob = self._main()
        if self.kind != "table" and isinstance(blob, BlobRef):
            meta, portions = self._blobs.stream(blob)
            with contextlib.closing(portions):
                if is_file(meta):
                    yield from portions
                    return
        yield self.bytes()

    # -- tables, histograms, tensors -------------------------------------------------------------------------------------

    @property
    def columns(self) -> list[Any]:
        """The names of a table's columns.

        Raises:
            UsageError: It is no table.
        """
        self._only("table", "columns")
        columns = self._map.get("columns")
        return list(columns) if isinstance(columns, list) else []

    @property
    def rows(self) -> list[list[Any]]:
        """A table's rows, of all its parts; media cells are items. `data` is the same under W&B's name.

        Raises:
            UsageError: It is no table.
            NotFoundError, DamageError: As `bytes`.
        """
        self._only("table", "rows")
        from ..values.table import table_rows

        with believing_nothing("a table"):
            rows = table_rows(self._map, lambda blob: raw_of(self._read(blob)).data)
            return [[self._inside(cell) for cell in row] for row in rows]

    @property
    def data(self) -> Any:
        """`rows` of a table; of what was stored apart because it was large alone (kind "value") the value that it is.

        Raises:
            UsageError: It is neither.
            NotFoundError, DamageError: As `bytes`.
        """
        if self.kind != _VALUE:
            return self.rows
        with believing_nothing("a value"):
            return self._inside(_only_value(self._stored(), _VALUE_BYTES_MAX))

    def to_pandas(self) -> Any:
        """A table as a pandas.DataFrame.

        Raises:
            UsageError: It is no table.
            Error: pandas is not installed.
            NotFoundError, DamageError: As `bytes`.
        """
        self._only("table", "DataFrame")
        from .frames import pandas_module

        pandas = pandas_module("a table")
        return pandas.DataFrame(self.rows, columns=self.columns)

    @property
    def values(self) -> list[float]:
        """A histogram's counts.

        Raises:
            UsageError: It is no histogram.
            NotFoundError, DamageError: As `bytes`.
        """
        counts: list[float] = _histogram(self)["values"]
        return counts

    @property
    def bins(self) -> list[float]:
        """The edges between a histogram's bins, one more than `values`."""
        edges: list[float] = _histogram(self)["bins"]
        return edges

    @property
    def statistics(self) -> dict[str, Any]:
        """Of a tensor: min, max, mean, std, a histogram (docs/media.md#tensors).

        Raises:
            UsageError: It is no tensor.
            NotFoundError, DamageError: As `bytes`.
        """
        self._only("tensor", "statistics")
        for told in (self._map.get("statistics"), self._meta().get("statistics")):
            if isinstance(told, dict):
                return dict(told)
        from ..values.tensor import tensor_statistics

        return tensor_statistics(self.to_numpy(), self._map.get("dtype"))

    # -- inside ----------------------------------------------------------------------------------------------------------

    def _own_blobs(self) -> list[BlobRef | StoredBlob]:
        """The blobs of its map, not those of media inside."""
        found: list[BlobRef | StoredBlob] = []
        _map_media(dict(self._map), lambda inner, _: found.append(inner) if not isinstance(inner, MediaValue) else None)
        return found

    def _main(self) -> BlobRef | StoredBlob | None:
        data = self._map.get("data")
        if isinstance(data, (BlobRef, StoredBlob)):
            return data
        return None if "data" in self._map else next(iter(self._own_blobs()), None)

    def _meta(self) -> dict[str, Any]:
        blob = self._main()
        if blob is None:
            return {}
        with self._explained(blob):
            return blob.meta if isinstance(blob, StoredBlob) else self._blobs.meta(blob)

    def _stored(self) -> StoredBlob:
        """Its main bytes."""
        blob = self._main()
        if blob is not None:
            return self._read(blob)
        if self._map.get("over_budget"):
            raise NotFoundError(f"only statistics of {self} are kept: its key was over its budget", hint=".statistics")
        if "data" in self._map:
            raise NotFoundError(f"the bytes of {self} were dropped when it was logged: there was no room for them")
        raise self._no("bytes of its own", ".value")

    def _read(self, blob: BlobRef | StoredBlob) -> StoredBlob:
        if isinstance(blob, StoredBlob):
            return blob
        with self._explained(blob):
            return self._blobs.read(blob)

    @contextlib.contextmanager
    def _explained(self, blob: BlobRef | StoredBlob) -> Iterator[None]:
        """Errors say whose bytes cannot be had."""
        try:
            yield
        except Error as error:
            error.message = f"the bytes of {self} cannot be read: {error.message}"
            error.args = (error.message, *error.args[1:])
            raise

    def _only(self, kind: str, what: str) -> None:
        if self.kind != kind:
            raise self._no(what, ".value")

    def _no(self, what: str, hint: str) -> UsageError:
        return UsageError(f"{self} has no {what}", hint=hint)


# What media, blobs or either may be in. A tuple: values come here one by one, and few are any of these.
_HOLDERS = (MediaValue, BlobRef, StoredBlob, list, dict)


def _map_media(value: Any, change: Callable[[Any, str], Any], name: str = "", depth: int = 0) -> Any:
    """A value with what `change` makes of the media and blobs in it; it gets each with the names of the maps around it."""
    kind = type(value)
    if kind not in _HOLDERS or depth > NESTING_MAX:  # what lies deeper did not come from `log`
        return value
    if kind is list:
        return [_map_media(part, change, name, depth + 1) if type(part) in _HOLDERS else part for part in value]
    if kind is dict:
        return {key: _map_media(part, change, f"{name}.{key}", depth + 1) for key, part in value.items()}
    return change(value, name)


def with_items(value: Any, blobs: Blobs, key: str, step: int, time: float) -> Any:
    """A value of a row with items in the place of media, which are counted in the order in which they stand.

    What was too large for its row and is stored apart for that alone comes as what it is.
    """
    count = 0

    def change(found: Any, name: str) -> MediaItem:
        nonlocal count
        count += 1
        return MediaItem(blobs, _as_media(found), key + name, step, time, count - 1)

    if type(value) is MediaValue and value["_type"] == _VALUE:
        with contextlib.suppress(Error, ValueError):
            value = _only_value(_only_blob(value, blobs), MAP_BYTES_MAX)
    return _map_media(value, change)


def _as_media(found: MediaValue | BlobRef | StoredBlob) -> MediaValue:
    return found if isinstance(found, MediaValue) else MediaValue({"_type": _BLOB, "data": found})


def _only_value(stored: StoredBlob, bytes_max: int) -> Any:
    """The value in the map of one key that was stored apart."""
    (value,) = decode_map(raw_of(stored).data, bytes_max=bytes_max).values()
    return value


def _only_blob(value: MediaValue, blobs: Blobs) -> StoredBlob:
    blob = value.get("data")
    if isinstance(blob, StoredBlob):
        return blob
    if not isinstance(blob, BlobRef):
        raise ValueError("a value without bytes")
    return blobs.read(blob)


def items_in(value: Any) -> list[MediaItem]:
    """The items in a value of a row, in order."""
    if isinstance(value, MediaItem):
        return [value]
    found: list[MediaItem] = []
    levels = [value]
    while levels:
        part = levels.pop()
        if isinstance(part, MediaItem):
            found.append(part)
        elif type(part) is list:
            levels.extend(part)
        elif type(part) is dict:
            levels.extend(part.values())
    return sorted(found, key=lambda item: item.index)


def _is_blob(part: Any) -> bool:
    return isinstance(part, MediaItem) and part.kind == _BLOB


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, MediaItem):
        return value.as_plain()
    if depth > NESTING_MAX:
        return value
    if type(value) is list:
        return [_plain(part, depth + 1) for part in value if not _is_blob(part)]
    return {key: _plain(part, depth + 1) for key, part in value.items()} if type(value) is dict else value


def kind_of(value: Any) -> str | None:
    """The kind of the first item in a value of a row, also of an array that stands there itself; None of plain values."""
    items = items_in(value)
    if items:
        return items[0].kind
    return "tensor" if hasattr(value, "dtype") and hasattr(value, "tobytes") else None


def tensor_item(array: Any, blobs: Blobs, key: str, step: int, time: float) -> MediaItem:
    """An item for an array that stands in its row."""
    meta = {"media": "tensor", "array": [array.dtype.str, list(array.shape), None], "to": "tensor"}
    value = MediaValue({"_type": "tensor", "data": StoredBlob(array.tobytes(), meta)})
    return MediaItem(blobs, value, key, step, time)


def _histogram(item: MediaItem) -> dict[str, Any]:
    """Counts, edges and how many values are in no bin."""
    from ..values.histogram import read_histogram

    item._only("histogram", "bins")
    if item._map.get("data", 0) is None:
        item._stored()  # says why it is not there
    with believing_nothing("a histogram"):
        found = read_histogram(item._map, lambda ref: raw_of(item._read(ref)))
        return {**found, "values": list(found["values"]), "bins": list(found["bins"])}


def _table_file(item: MediaItem) -> bytes:
    return as_json({"columns": item.columns, "data": item.rows})


def _histogram_file(item: MediaItem) -> bytes:
    return as_json({"_type": "histogram", **_histogram(item)})


def _tensor_file(item: MediaItem) -> bytes:
    return npy(item.to_numpy())


def _points_file(item: MediaItem) -> bytes:
    stored = raw_of(item._stored())
    if "array" not in stored.meta:
        return bytes(stored.data)  # a file that the user gave
    from ..values.object3d import pts_json

    with believing_nothing("a point cloud"):
        return pts_json(item._map, array_of(stored))


def _chart_file(item: MediaItem) -> bytes:
    value = item.value
    table = value.get("table")
    if isinstance(table, MediaItem) and table.kind == "table":
        value["table"] = {"columns": table.columns, "data": table.rows}
    return as_json(value)


# Kinds whose file is made of what they hold, whatever way it is stored.
_MADE: dict[str, Callable[[MediaItem], bytes]] = {
    "table": _table_file, "histogram": _histogram_file, "tensor": _tensor_file, "chart": _chart_file,
    "object3d": _points_file,
}  # fmt: skip


def _integer(values: dict[str, Any], name: str) -> int:
    value = values.get(name)
    return value if type(value) is int else 0


def _dtype_name(name: str) -> str:
    """numpy's long name: "float32" for "<f4"."""
    from ..dtypes import FOREIGN_DTYPES, dtype_of

    with contextlib.suppress(ValueError, TypeError):
        if name in FOREIGN_DTYPES:
            return name
        return str(dtype_of(name).name)
    return name[:_TEXT_CHARACTERS_MAX]


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_CHARACTERS_MAX else f"{text[:_TEXT_CHARACTERS_MAX]}…"
