from __future__ import annotations

import contextlib
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy
import pytest

import sdk
from sdk.errors import DamageError, Error, NotFoundError, UsageError
from sdk.limits import MEDIA_NESTING_MAX
from sdk.reader import MediaItem, Run, open_store
from sdk.record import BlobRef, StoredBlob, encode_blob_ref, encode_inline_blob, encode_map, encode_media
from sdk.values.tensor import Tensor
from tests.builders import RunBuilder, make_run, make_store
from tests.media_rig import MediaBuilder, packed

PNG = {"media": "image-file", "format": "png"}
RANDOM = random.Random(4)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


@pytest.fixture
def made(store: str) -> MediaBuilder:
    run = RunBuilder(store)
    return MediaBuilder(run, run.stream())


def opened(store: str) -> Run:
    return open_store(store).run("a41f")


def picture(width: int = 4, height: int = 3) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(numpy.arange(width * height * 3, dtype="u1").reshape(height, width, 3)).save(out, "PNG")
    return out.getvalue()


def image(data: Any, **more: Any) -> Any:
    return packed("image-file", format="png", width=4, height=3, data=data, **more)


def test_what_an_image_says(store: str, made: MediaBuilder) -> None:
    """Step, time, kind, caption, format and size need no blob; the file comes back as it was given."""
    made.log_packed({"loss": 1.0})
    data = picture()
    made.log_packed({"val/x": image(made.blob(data, PNG), caption="a cat")})
    made.seal()
    (item,) = opened(store).media("val/x")
    assert (item.key, item.step, item.index, item.kind) == ("val/x", 1, 0, "image")
    assert item.time == made.stream.records[-1].time_ns / 1e9
    assert (item.caption, item.format, item.size, item.is_stored) == ("a cat", "png", len(data), True)
    assert (item.dtype, item.shape, item.file_name) == (None, None, "val_x_1_0.png")
    assert repr(item) == "<image 'val/x' step 1 4×3 png 'a cat'>"
    assert item.bytes() == data
    assert item.to_pil().size == (4, 3)
    import hashlib

    assert item.digest == hashlib.sha256(data).hexdigest()


def test_a_list_gives_an_item_for_each(store: str, made: MediaBuilder) -> None:
    """In order, with its index; plain values between them are not items."""
    parts = [image(made.blob(bytes([n]), PNG)) for n in range(3)]
    made.log_packed({"x": [parts[0], 7, [parts[1]], {"a": parts[2]}]})
    made.log_packed({"x": [image(made.blob(b"\x03", PNG))]})
    made.seal()
    run = opened(store)
    items = run.media("x")
    assert [(i.step, i.index, i.bytes()[0]) for i in items] == [(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 3)]
    assert [i.bytes()[0] for i in run.media("x", step=1)] == [3]
    row = next(run.rows())
    assert row["x"][1] == 7 and row["x"][3]["a"].bytes() == b"\x02"


def test_patterns_of_keys(store: str, made: MediaBuilder) -> None:
    """`val/*` is all keys it matches, by step; a key that looks like a pattern is itself."""
    made.log_packed({"val/a": image(made.blob(b"a", PNG)), "val/b": image(made.blob(b"b", PNG)), "val/loss": 1.0})
    made.log_packed({"val/a": image(made.blob(b"c", PNG)), "odd[1]": image(made.blob(b"d", PNG))})
    made.seal()
    run = opened(store)
    assert [i.bytes() for i in run.media("val/*")] == [b"a", b"b", b"c"]
    assert [i.bytes() for i in run.media("odd[1]")] == [b"d"]
    assert run.media_keys() == {"val/a": "image", "val/b": "image", "odd[1]": "image"}
    with pytest.raises(NotFoundError, match="nothing/\\*"):
        run.media("nothing/*")


def test_keys_without_media(store: str) -> None:
    """A key of plain values says where they are, an unknown one which are near."""
    make_run(store, "a41f", [{"loss": 1.0, "text": "x"}])
    run = opened(store)
    for key in ("loss", "text"):
        with pytest.raises(NotFoundError, match=f"run.series\\('{key}'\\)"):
            run.media(key)
    with pytest.raises(NotFoundError, match="Nearest: 'loss'"):
        run.media("losss")


def test_where_items_are_met(store: str, made: MediaBuilder) -> None:
    """Series, rows, tail and summary give items, and a series says where to look."""
    made.log_packed({"x": image(made.blob(b"a", PNG)), "loss": 1.0})
    made.seal()
    run = opened(store)
    series = run.series("x")
    assert "run.media('x')" in repr(series)
    found = [series.value[0], next(run.rows())["x"], run.tail(1)[0]["x"], run.summary["x"]]
    assert all(isinstance(item, MediaItem) and item.bytes() == b"a" and item.step == 0 for item in found)


def test_streams_and_ranks(store: str) -> None:
    """As for series: the main lane, a rank, all of them; who else holds the key is told."""
    run = RunBuilder(store)
    builders = [MediaBuilder(run, run.stream(rank=rank), writer=0xB0 + rank) for rank in range(2)]
    for rank, made in enumerate(builders):
        made.log_packed({"x": image(made.blob(bytes([rank]), PNG))})
    for made in builders:
        made.close()
    found = opened(store)
    assert [i.bytes()[0] for i in found.media("x")] == [0]
    assert found.media("x").others == (builders[1].stream.hex,)
    assert [i.bytes()[0] for i in found.media("x", rank=1)] == [1]
    assert [i.bytes()[0] for i in found.media("x", stream="all")] == [0, 1]


def test_the_whole_map(store: str, made: MediaBuilder) -> None:
    """Boxes and classes are plain, masks are items with a key of their own, blobs too."""
    mask = packed("mask", format="png", width=2, height=2, data=made.blob(b"mask", {"media": "mask", "format": "png"}))
    boxes = {"b": {"box_data": [{"class_id": 1}]}}
    made.log_packed({"x": image(made.blob(b"a", PNG), boxes=boxes, masks={"truth": mask})})
    made.seal()
    (item,) = opened(store).media("x")
    assert item.value["boxes"] == boxes
    inner = item.value["masks"]["truth"]
    assert (inner.kind, inner.key, inner.bytes()) == ("mask", "x.masks.truth", b"mask")
    assert item.value["data"].bytes() == b"a"
    plain = item.as_plain()
    assert plain["masks"]["truth"] == {"_type": "mask", "format": "png", "width": 2, "height": 2}
    assert json.loads(json.dumps(plain))["boxes"] == boxes


def test_while_it_is_being_written(store: str, made: MediaBuilder) -> None:
    """Media of a live run are readable from open segments, as they come."""
    run = opened_after(store, made, b"one")
    assert [i.bytes() for i in run.media("x")] == [b"one"]
    made.log_packed({"x": image(made.blob(b"two", PNG))})
    made.flush()
    assert [i.bytes() for i in run.media("x")] == [b"one", b"two"]
    made.close()


def opened_after(store: str, made: MediaBuilder, data: bytes) -> Run:
    made.log_packed({"x": image(made.blob(data, PNG))})
    made.flush()
    return opened(store)


# -- what is not there ---------------------------------------------------------------------------------------------------


def test_a_lost_blob(store: str, made: MediaBuilder) -> None:
    """The item is there; its reads say whose bytes are missing and why, as the run's gaps tell."""
    ref = encode_blob_ref(BlobRef(made.stream.id, 9, 100))
    made.log_packed({"x": image(ref)})
    made.run.daemon.gap(made.stream, {"episode": "blob 9", "count": 0, "key": "x", "reason": "it died"})
    made.seal()
    (item,) = opened(store).media("x")
    assert not item.is_stored
    for read in (item.bytes, item.to_numpy, item.to_pil, lambda: item.digest):
        with pytest.raises(NotFoundError, match="'x' step 0.*it died"):
            read()


def test_a_dropped_blob(store: str, made: MediaBuilder) -> None:
    """A value for which there was no room says so."""
    made.log_packed({"x": image(None)})
    made.seal()
    (item,) = opened(store).media("x")
    assert not item.is_stored
    with pytest.raises(NotFoundError, match="no room"):
        item.bytes()


def test_damaged_bytes(store: str, made: MediaBuilder, tmp_path: Path) -> None:
    """They are an error, and a file that was begun is gone."""
    made.log_packed({"x": image(made.blob(b"y" * 9000, PNG))})
    path = made.seal()
    assert path
    content = bytearray(Path(path).read_bytes())
    content[content.find(b"y" * 9000) + 5] ^= 1
    Path(path).write_bytes(content)
    (item,) = opened(store).media("x")
    with pytest.raises(DamageError, match="image 'x' step 0"):
        item.bytes()
    target = tmp_path / "out"
    target.mkdir()
    for overwrite in (True, False):
        with pytest.raises(DamageError):
            item.save(target / "x.png", overwrite=overwrite)
    assert os.listdir(target) == []


# -- saving --------------------------------------------------------------------------------------------------------------


def test_save(store: str, made: MediaBuilder, tmp_path: Path) -> None:
    """To a path, or into a directory under a safe name; over what is there or not, as asked."""
    data = RANDOM.randbytes(9 << 20)
    made.log_packed({"../x": image(made.blob(data, PNG))})
    made.seal()
    (item,) = opened(store).media("../x")
    assert item.save(tmp_path / "a.png") == str(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == data
    assert item.save(tmp_path) == str(tmp_path / "_x_0_0.png")
    item.save(tmp_path / "a.png")
    with pytest.raises(FileExistsError):
        item.save(tmp_path / "a.png", overwrite=False)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        item.save(tmp_path / "link", overwrite=False)
    assert sorted(os.listdir(tmp_path)) == ["_x_0_0.png", "a.png", "link", "store"]


@pytest.mark.parametrize(
    ("kind", "said", "end"),
    [
        ("image-file", "png", ".png"), ("image-file", "svg", ".bin"), ("image-file", "exe", ".bin"),
        ("html-file", "html", ".html"), ("html-file", "../../x", ".bin"), ("video-file", "sh", ".bin"),
        ("made up", "png", ".bin"), ("object3D-file", "pts.json", ".pts.json"), ("audio-file", None, ".bin"),
        ("image-file", ["png"], ".bin"), ("audio-file", "flac", ".flac"), ("video-file", {"a": 1}, ".bin"),
    ],
)  # fmt: skip
def test_endings(store: str, made: MediaBuilder, kind: str, said: Any, end: str) -> None:
    """What a file is called follows from its kind, not from what the data says."""
    made.log_packed({"x": packed(kind, format=said, data=made.blob(b"a", {"format": said}))})
    made.seal()
    (item,) = opened(store).media("x")
    assert item.file_name == f"x_0_0{end}"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("val/x", "val_x"), ("../../etc/passwd", "_.._etc_passwd"), ("..", "_"), ("a\0b", "a_b"), ("CON", "_CON"),
        ("nul.txt", "_nul.txt"), ("-rf", "rf"), ("ä" * 300, "_" * 80), (".hidden", "hidden"), ("a\x1b[31m", "a__31m"),
    ],
)  # fmt: skip
def test_names_stay_in_their_directory(key: str, name: str) -> None:
    """Whatever a key is, a name made of it is one plain file name."""
    from sdk.reader.filenames import safe_name

    assert safe_name(key) == name
    assert "/" not in name and name not in ("", ".", "..")


def test_names_are_told_apart() -> None:
    """Two keys that give the same name get two, also where the disk folds case."""
    from sdk.reader.filenames import Names

    names = Names()
    assert [names.take(n) for n in ("a.png", "A.png", "a.png", "b.png")] == ["a.png", "A~2.png", "a~3.png", "b.png"]


# -- tensors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 9000], ids=["inside", "apart"])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", "|b1", "<i8", "|u1", "<c8", "<u8"])
def test_tensors_are_exact(store: str, made: MediaBuilder, dtype: str, count: int, tmp_path: Path) -> None:
    """Every bit, type and shape, wherever the array is stored; the file is a .npy."""
    array = numpy.frombuffer(RANDOM.randbytes(count * 2 * 16), "|u1").view(dtype if dtype != "|b1" else "|u1")
    array = (array & 1).astype(bool) if dtype == "|b1" else array
    array = array[: count * 2].reshape(count, 2).T
    made.log_packed({"x": packed("tensor", **described(made, array))})
    made.seal()
    (item,) = opened(store).media("x")
    found = item.to_numpy()
    assert (item.kind, item.dtype, item.shape) == ("tensor", array.dtype.name, array.shape)
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()
    assert numpy.asarray(item).tobytes() == array.tobytes()
    assert numpy.load(item.save(tmp_path / "x.npy")).tobytes() == array.tobytes()


def described(made: MediaBuilder, array: Any, dtype: str | None = None) -> dict[str, Any]:
    tensor = Tensor(array, dtype)
    return {**tensor.describe(), "data": made.put(tensor.data, "x")}


def test_small_arrays_are_items_too(store: str, made: MediaBuilder) -> None:
    """An array that stands in its row is given by `media` as one that does not; series give it as an array."""
    array = numpy.arange(6, dtype="<f4").reshape(2, 3)
    made.log({"x": array})
    made.seal()
    run = opened(store)
    (item,) = run.media("x")
    assert (item.kind, item.dtype, item.shape, item.is_stored) == ("tensor", "float32", (2, 3), True)
    assert (item.to_numpy() == array).all() and item.statistics["max"] == 5
    assert run.media_keys() == {"x": "tensor"}


def test_bfloat16(store: str, made: MediaBuilder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without ml_dtypes it comes widened to float32, exactly."""
    import sys

    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    wide = numpy.array([1.0, -2.5, numpy.inf, 3.0e38, 0.0], "<f4").view("<u4") & 0xFFFF0000
    bits = (wide >> 16).astype("<u2")
    made.log_packed({"x": packed("tensor", **described(made, bits, "bfloat16"))})
    made.seal()
    (item,) = opened(store).media("x")
    assert (item.dtype, item.shape) == ("bfloat16", (5,))
    assert item.to_numpy().dtype == numpy.float32
    assert item.to_numpy().tobytes() == wide.view("<f4").tobytes()
    assert numpy.load(item.save(tmp_path / "x.npy")).tobytes() == wide.view("<f4").tobytes()


def test_a_tensor_over_its_budget(store: str, made: MediaBuilder) -> None:
    """Its statistics are there, its elements are not and say why."""
    made.log_packed({"x": packed("tensor", dtype="<f4", shape=[5], over_budget=True, statistics={"min": 1.0})})
    made.seal()
    (item,) = opened(store).media("x")
    assert (item.statistics, item.dtype, item.shape) == ({"min": 1.0}, "float32", (5,))
    with pytest.raises(NotFoundError, match="over its budget"):
        item.to_numpy()


# -- histograms and tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [50, 50_000], ids=["inside", "apart"])
def test_histograms(store: str, made: MediaBuilder, count: int) -> None:
    """Counts and edges are the same whether they were binned when logged or are when read."""
    values = numpy.random.default_rng(5).normal(size=count)
    made.log({"x": sdk.Histogram(values, num_bins=20)})
    made.seal()
    (item,) = opened(store).media("x")
    counts, edges = numpy.histogram(values, 20)
    assert (item.kind, item.values, item.bins) == ("histogram", counts.tolist(), edges.tolist())
    assert json.loads(item.bytes()) == {"_type": "histogram", "values": counts.tolist(), "bins": edges.tolist()}
    assert item.to_numpy().tolist() == counts.tolist()


def test_tables(store: str, made: MediaBuilder) -> None:
    """Columns and rows; media cells are items."""
    table = sdk.Table(columns=["id", "word"], data=[[1, "a"], [2, "b"]])
    made.log({"t": table})
    made.seal()
    (item,) = opened(store).media("t")
    assert (item.kind, item.columns, item.rows, item.data) == ("table", ["id", "word"], [[1, "a"], [2, "b"]], item.rows)
    assert json.loads(item.bytes()) == {"columns": ["id", "word"], "data": [[1, "a"], [2, "b"]]}
    assert "2 rows" in repr(item) and item.file_name == "t_0_0.table.json"


def test_pandas(store: str, made: MediaBuilder) -> None:
    """A table is a frame of its own; in a run's frame media are items."""
    pytest.importorskip("pandas")
    made.log({"t": sdk.Table(columns=["id", "word"], data=[[1, "a"], [2, "b"]])})
    made.seal()
    run = opened(store)
    frame = run.media("t")[0].to_pandas()
    assert frame["word"].tolist() == ["a", "b"] and frame["id"].tolist() == [1, 2]
    assert run.to_pandas()["t"].iloc[0].kind == "table"


def test_other_kinds_have_no_rows(store: str, made: MediaBuilder) -> None:
    """What a kind does not have is an error of use that says what the item is."""
    made.log_packed({"x": image(made.blob(b"a", PNG)), "e": packed("made up")})
    made.seal()
    run = opened(store)
    (item,) = run.media("x")
    for read in (lambda: item.rows, lambda: item.columns, lambda: item.bins, lambda: item.statistics, item.to_pandas):
        with pytest.raises(UsageError, match="<image 'x' step 0"):
            read()
    (empty,) = run.media("e")
    with pytest.raises(UsageError, match="no bytes of its own"):
        empty.bytes()


def test_a_value_too_large_for_its_row(store: str, made: MediaBuilder) -> None:
    """A text, or a list of images, that was stored apart for its size alone comes back as what it is."""
    text = "long " * 9000
    inner = [image(made.blob(bytes([n]), PNG)) for n in range(2)]
    for key, value in (("text", text), ("list", inner)):
        blob = made.blob(encode_map({key: value}), {"media": "value"})
        made.log_packed({key: packed("value", data=blob)})
    made.log_packed({"gone": packed("value", data=None)})
    made.seal()
    run = opened(store)
    assert run.series("text").value.tolist() == [text]
    assert run.summary["text"] == text
    assert [i.bytes() for i in run.media("list")] == [b"\x00", b"\x01"]
    assert run.summary["gone"].kind == "value" and not run.summary["gone"].is_stored


def test_charts(store: str, made: MediaBuilder) -> None:
    """A chart is what describes it, with its table as an item and in its file."""
    table = sdk.Table(columns=["x", "y"], data=[[1, 2.0]])
    made.log({"c": sdk.plot.line(table, "x", "y", title="t")})
    made.seal()
    (item,) = opened(store).media("c")
    assert (item.kind, item.value["table"].rows, item.value["fields"]) == ("chart", [[1, 2.0]], {"x": "x", "y": "y"})
    assert json.loads(item.bytes())["table"] == {"columns": ["x", "y"], "data": [[1, 2.0]]}
    assert item.file_name == "c_0_0.chart.json" and item.is_stored


def test_embeddings(store: str, made: MediaBuilder, tmp_path: Path) -> None:
    """The matrix is the item's array and file; labels and images are parts of it."""
    matrix = numpy.arange(12, dtype="<f4").reshape(4, 3)
    images = numpy.arange(4 * 5 * 5, dtype="u1").reshape(4, 5, 5)
    made.log({"e": sdk.Embedding(matrix, labels=list("abcd"), images=images)})
    made.seal()
    (item,) = opened(store).media("e")
    assert numpy.array_equal(item.to_numpy(), matrix)
    assert numpy.array_equal(numpy.load(item.save(tmp_path)), matrix)
    assert item.value["labels"].data == {"label": list("abcd")}
    assert numpy.array_equal(item.value["images"].to_numpy(), images)


@pytest.mark.parametrize("format", ["gif", "mp4"])
def test_videos(store: str, made: MediaBuilder, format: str) -> None:
    """Frames come back as they play, the file is encoded by whoever reads it first."""
    if format == "mp4":
        pytest.importorskip("av")
    frames = numpy.zeros((4, 3, 16, 32), "u1")
    frames[:] = numpy.array([0, 60, 120, 200], "u1")[:, None, None, None]
    made.log({"v": sdk.Video(frames, fps=4, format=format)})
    made.seal()
    (item,) = opened(store).media("v")
    found = item.to_numpy()
    assert (found.shape, found.dtype, item.format) == ((4, 16, 32, 3), numpy.uint8, format)
    assert numpy.abs(found.astype(int) - frames.transpose(0, 2, 3, 1)).max() <= 10
    assert len(item.bytes()) > 100 and item.file_name == f"v_0_0.{format}"


def test_media_in_tables(store: str, made: MediaBuilder) -> None:
    """Cells that are images are items; a table that grew is joined from its parts."""
    table = sdk.Table(columns=["n", "x"], log_mode="INCREMENTAL")
    for n in range(3):
        table.add_data(n, sdk.Image(numpy.full((3, 4), n, "u1")))
        made.log({"t": table})
    made.seal()
    last = opened(store).media("t")[-1]
    assert [row[0] for row in last.rows] == [0, 1, 2]
    assert [row[1].to_numpy()[0, 0] for row in last.rows] == [0, 1, 2]
    assert json.loads(last.bytes())["data"][0][1].startswith("<image")


def test_nesting_that_a_trainer_refuses(made: MediaBuilder) -> None:
    """What a reader would not take is an error of `log()`."""
    from sdk.values.media import Media

    class Around(Media):
        _type = "made up"

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def describe(self) -> dict[str, Any]:
            return {"inner": self.inner}

    value: Any = Tensor(numpy.arange(3))
    for _ in range(MEDIA_NESTING_MAX - 1):
        value = Around(value)
    made.log({"x": value})
    with pytest.raises(ValueError, match=f"'x' holds media inside of one another, more than {MEDIA_NESTING_MAX}"):
        made.log({"x": Around(value)})
    made.seal()
    (item,) = open_store(os.path.dirname(os.path.dirname(made.run.directory))).run("a41f").media("x")
    while "inner" in item.value:
        item = item.value["inner"]
    assert item.to_numpy().tolist() == [0, 1, 2]


def read(item: MediaItem, name: str) -> Any:
    """What a method or property of that name gives."""
    found = getattr(item, name)
    return found() if callable(found) else found


# -- hostile bytes -------------------------------------------------------------------------------------------------------


def test_media_inside_of_media_have_a_limit(store: str, made: MediaBuilder) -> None:
    """A record that nests them deeper than a trainer would is damage; each level takes the machine's stack."""

    def nested(levels: int) -> Any:
        value = encode_media({"_type": "made up", "data": encode_inline_blob(StoredBlob(b"x", {}))})
        for _ in range(levels - 1):
            value = encode_media({"_type": "made up", "x": value})
        return value

    for levels in (MEDIA_NESTING_MAX, MEDIA_NESTING_MAX + 1, 5000):
        made.log_packed({"x": nested(levels)})
    made.seal()
    run = opened(store)
    assert [item.step for item in run.media("x")] == [0]
    assert len(run.damage) == 1
    json.dumps(run.media("x")[0].as_plain())


@pytest.mark.parametrize(
    "meta",
    [
        {"array": ["<f4", [2, 2], None]}, {"array": ["<f4", [10**12], None], "to": "tensor"}, {"array": "x"},
        {"array": ["O", [1], None]}, {"array": [None, None, None]}, {"array": ["<f4", [1, 3], [0, 0]]},
        {"encoding": "shuffle", "array": ["<f4", [3], None]}, {"encoding": "made up"}, {"encoding": 7}, {"to": ["png"]},
        {"to": "png", "array": ["<f4", [3], None]}, {"encoding": "png", "raw_size": 12}, {"digest": "x", "to": 7},
    ],
)  # fmt: skip
def test_lies_about_bytes(store: str, made: MediaBuilder, meta: dict[str, Any]) -> None:
    """Whatever metadata claims, reading gives bytes or an error of ours."""
    made.log_packed({"x": packed("image-file", data=encode_inline_blob(StoredBlob(b"\x00" * 12, meta)))})
    made.log_packed({"x": packed("tensor", data=encode_inline_blob(StoredBlob(b"\x00" * 12, meta)))})
    made.seal()
    for item in opened(store).media("x"):
        for name in ("bytes", "to_numpy", "to_pil", "digest", "dtype", "shape"):
            with contextlib.suppress(Error):
                read(item, name)


def test_maps_that_are_no_maps_of_ours(store: str, made: MediaBuilder) -> None:
    """Missing and nonsensical fields make an item that says less, not an error where nobody asked for its bytes."""
    for kind in ("table-file", "histogram", "tensor", "custom-chart", "object3D-file", "embedding", "\x1b[31m" * 50):
        made.log_packed({"x": packed(kind, caption=7, format=3, columns=5, values="x", bins=None, width=[], shape="x")})
    made.seal()
    for item in opened(store).media("x"):
        assert "\x1b" not in repr(item) + item.file_name and len(repr(item)) < 300
        assert (item.caption, item.size) == (None, 0)
        json.dumps(item.as_plain())
        for name in ("to_numpy", "to_pil", "rows", "statistics", "bins"):
            with pytest.raises(Error):
                read(item, name)
        with contextlib.suppress(Error):
            item.bytes()


# -- what is raw and what is encoded -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["HWC", "CHW", "HW"])
@pytest.mark.parametrize("dtype", ["u1", "i8", "f4"])
def test_images_are_the_same_before_and_after(store: str, made: MediaBuilder, dtype: str, layout: str) -> None:
    """An image that is still raw gives the pixels and the picture that it gives when it was encoded."""
    from sdk.encoders import encode

    channels = numpy.random.default_rng(6).integers(0, 256, (40, 60, 3)).astype(dtype)
    array = {"HWC": channels, "CHW": channels.transpose(2, 0, 1), "HW": channels[:, :, 0]}[layout]
    picture = sdk.Image(array, mode=None if layout != "CHW" else "RGB")
    made.log({"x": picture})
    blob = picture.describe()["data"]
    encoded = encode(blob.view(), blob.meta)
    assert encoded is not None
    ref = made.store(bytes(encoded.data), {"digest": bytes(32), "raw_size": blob.size, **encoded.meta}, size=blob.size)
    made.log_packed({"x": image(encode_blob_ref(ref))})
    made.seal()
    raw, done = opened(store).media("x")
    expected = channels.astype("u1") if layout != "HW" else channels[:, :, 0].astype("u1")
    for item in (raw, done):
        assert numpy.array_equal(item.to_numpy(), expected) and item.to_numpy().dtype == numpy.uint8
        assert numpy.array_equal(numpy.asarray(item.to_pil()), expected)
        assert (item.dtype, item.shape) == (numpy.dtype(dtype).name, array.shape)
    assert raw.bytes() == done.bytes() == bytes(encoded.data)
    assert done.digest == bytes(32).hex()


@pytest.mark.parametrize("kind", ["table", "tensor", "histogram", "html", "audio", "points"])
def test_other_values_are_the_same_before_and_after(store: str, made: MediaBuilder, kind: str) -> None:
    """What a value gives does not change when a worker has encoded its blobs."""
    from sdk.encoders import encode

    rng = numpy.random.default_rng(7)
    if kind == "audio":
        pytest.importorskip("soundfile")
    value = {
        "table": lambda: sdk.Table(columns=["a", "b"], data=[[n, "word" * 9] for n in range(2000)]),
        "tensor": lambda: Tensor(numpy.arange(20_000, dtype="<i4")),
        "histogram": lambda: sdk.Histogram(rng.normal(size=9000)),
        "html": lambda: sdk.Html("<p>" + "text " * 9000),
        "audio": lambda: sdk.Audio(rng.integers(-99, 99, 9000).astype("<i2"), sample_rate=8000),
        "points": lambda: sdk.Object3D(numpy.arange(9000.0).reshape(3000, 3)),
    }[kind]()
    made.log({"x": value})
    before = made.segment.path
    made.seal()
    (item,) = opened(store).media("x")
    read = {"table": lambda i: i.rows, "tensor": lambda i: i.to_numpy().tolist(), "histogram": lambda i: i.values}
    told = [i.as_plain() for i in (item,)], read.get(kind, lambda i: i.bytes())(item), item.bytes(), item.is_stored

    def recode(data: bytes, meta: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        encoded = encode(data, meta)
        assert encoded is not None and "encoding" in encoded.meta
        return bytes(encoded.data), {**encoded.meta, "raw_size": len(data), "digest": bytes(32)}

    rewrite(made, before, recode)
    (item,) = opened(store).media("x")
    assert item.digest == bytes(32).hex() or kind == "table"
    assert (
        [i.as_plain() for i in (item,)], read.get(kind, lambda i: i.bytes())(item), item.bytes(), item.is_stored
    ) == told  # fmt: skip


def rewrite(made: MediaBuilder, path: str, recode: Any) -> None:
    """Replaces a sealed media segment by one with its blobs changed."""
    from sdk.files import DISK
    from sdk.segment.blobs import parse_chunk, ref_of
    from sdk.segment.format import KIND_BLOB
    from sdk.segment.reader import SegmentReader

    reader = SegmentReader(DISK, path)
    other = MediaBuilder(made.run, made.stream, writer=0xC0DE)
    for block in reader.blocks:
        if block.kind == KIND_BLOB:
            chunk = parse_chunk(block, reader.payload(block))
            assert chunk.meta is not None
            data, meta = recode(bytes(chunk.data), chunk.meta)
            other.store(data, meta, number=ref_of(block).number)
    reader.close()
    other.close()
    os.unlink(path)
