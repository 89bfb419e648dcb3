"""sdk.Image: every kind of source arrives bit for bit, is copied once and for all, and bad ones raise what W&B raises."""

from __future__ import annotations

import gc
import io
import pathlib
import types
from collections.abc import Iterator
from typing import Any

import numpy
import PIL
import PIL.Image
import pytest

import sdk
from sdk.values import Blob, pixels
from sdk.values.blobs import as_array, stage_in

COLOR = numpy.random.default_rng(4).integers(0, 256, (12, 10, 3), dtype=numpy.uint8)


def blob_of(image: sdk.Image) -> Blob:
    found = image.describe()["data"]
    assert isinstance(found, Blob)
    return found


def array_of(image: sdk.Image) -> Any:
    """What is stored, as the user saw it."""
    blob = blob_of(image)
    return as_array(blob.view(), blob.meta["array"])


# -- numpy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["?", "u1", "i1", "<u2", "<i2", "<i4", "<i8", "<u8", "<f2", "<f4", "<f8", ">f4", ">i2"]
)  # fmt: skip
@pytest.mark.parametrize(
    ("shape", "layout", "mode"),
    [
        ((12, 10), "HW", "L"),
        ((12, 10, 1), "HW", "L"),
        ((1, 12, 10), "HW", "L"),
        ((12, 10, 3), "HWC", "RGB"),
        ((12, 10, 4), "HWC", "RGBA"),
        ((3, 12, 10), "CHW", "RGB"),
        ((4, 12, 10), "CHW", "RGBA"),
        ((1, 1, 12, 10), "HW", "L"),
        ((1, 12, 10, 3), "HWC", "RGB"),
        ((1, 1, 3, 12, 10), "CHW", "RGB"),
    ],
)
def test_arrays_are_kept_as_they_are(dtype: str, shape: tuple[int, ...], layout: str, mode: str) -> None:
    """Every type of number and every order of axes; what the encoder must know of them stands in the meta."""
    given = (numpy.random.default_rng(1).random(shape) * 100).astype(dtype)
    image = sdk.Image(given)
    meta = blob_of(image).meta
    assert {name: meta[name] for name in ("media", "to", "layout", "mode", "normalize")} == {
        "media": "image-file", "to": "png", "layout": layout, "mode": mode, "normalize": True,
    }  # fmt: skip
    assert meta["array"][0] == given.dtype.newbyteorder("<").str
    assert array_of(image).tobytes() == given.astype(given.dtype.newbyteorder("<")).tobytes()
    assert (image.format, image.width, image.height, image.caption) == ("png", 10, 12, None)


def test_where_both_axes_could_be_the_channels_numpy_means_the_last() -> None:
    """And the mode decides where it says how many there are."""
    both = numpy.zeros((3, 8, 4), "u1")
    assert blob_of(sdk.Image(both)).meta["layout"] == "HWC"
    assert blob_of(sdk.Image(both, mode="RGB")).meta["layout"] == "CHW"
    assert blob_of(sdk.Image(numpy.zeros((6, 8, 2)), mode="LA")).meta["mode"] == "LA"
    deep = blob_of(sdk.Image(numpy.zeros((6, 8), "u2"), mode="I;16", normalize=False))
    assert (deep.meta["mode"], deep.meta["normalize"]) == ("I;16", False)


def test_a_view_is_copied_in_the_order_of_its_memory() -> None:
    """So that the rows of a CHW array seen as HWC cost one plain copy; it reads back as it was seen."""
    planes = numpy.ascontiguousarray(COLOR.transpose(2, 0, 1))
    seen = planes.transpose(1, 2, 0)
    image = sdk.Image(seen)
    assert bytes(blob_of(image).view()) == planes.tobytes()
    assert numpy.array_equal(array_of(image), COLOR)
    for view in (
        COLOR[::-1, ::2],
        COLOR[:, :, ::-1],
        numpy.asfortranarray(COLOR),
        numpy.broadcast_to(COLOR[0], (5, 10, 3)),
    ):
        assert numpy.array_equal(array_of(sdk.Image(view)), view)


def test_the_source_may_change_afterwards() -> None:
    """The one copy is taken when the image is made."""
    source, mask = COLOR.copy(), numpy.ones((12, 10), "u1")
    image = sdk.Image(source, masks={"m": {"mask_data": mask}})
    source[:], mask[:] = 0, 0
    assert numpy.array_equal(array_of(image), COLOR)
    stored = image.describe()["masks"]["m"].describe()["data"]
    assert bytes(stored.view()) == b"\x01" * 120


def test_there_is_one_copy() -> None:
    """Room is asked for once, of just the size of the pixels."""
    asked: list[int] = []
    stage_in(lambda size: asked.append(size))  # type: ignore[func-returns-value]
    try:
        sdk.Image(numpy.zeros((128, 128, 3), "f4"))
        sdk.Image(PIL.Image.new("RGB", (128, 128)))
    finally:
        stage_in(None)
    assert asked == [128 * 128 * 12, 128 * 128 * 3]


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (numpy.zeros((5, 5, 2)), ValueError, "1 or 3 or 4 channels"),
        (numpy.zeros((5, 5, 5)), ValueError, r"shape \(5, 5, 5\)"),
        (numpy.zeros((2, 5, 5, 3)), ValueError, "shape"),
        (numpy.zeros(5), ValueError, "shape"),
        (numpy.zeros((0, 5)), ValueError, "empty"),
        (numpy.zeros((0, 0, 3)), ValueError, "empty"),
        (numpy.array([[object()]]), TypeError, "dtype object"),
        (numpy.array([["a"]]), TypeError, "dtype <U1"),
        (numpy.zeros((2, 2), complex), TypeError, "dtype complex128"),
        (numpy.zeros((2, 2), "M8[s]"), TypeError, "datetime64"),
        (numpy.zeros((2, 2), [("a", "f4")]), TypeError, "dtype"),
        (b"no image", OSError, "begin b'no image', expected an image file: png, jpg"),
        (b"", OSError, "0 bytes"),
        (io.StringIO("text"), TypeError, "str, expected bytes"),
        ("/nowhere/a.png", FileNotFoundError, "nowhere"),
        ("s3://bucket/a.png", ValueError, "not on this machine"),
        ("https://example.org/a.png", ValueError, "not on this machine"),
        ([[1, 2], [3, 4]], TypeError, "builtins.list, expected an array"),
        (None, TypeError, "NoneType"),
        (PIL.Image.new("L", (0, 4)), ValueError, "0 × 4"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_image_raises_at_once(data: Any, error: type[Exception], text: str) -> None:
    """The type of the error is W&B's; it says what was found and what was expected."""
    with pytest.raises(error, match=text):
        sdk.Image(data)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"file_type": "svg"}, "file_type is 'svg', expected one of png, jpg, jpeg, bmp, webp"),
        ({"mode": "XYZ"}, "mode is 'XYZ', expected one of L, I;16"),
        ({"mode": "RGBA"}, "4 channels"),
        ({"mode": "L"}, "1 channels"),
        ({"boxes": []}, "boxes is list, expected a dict"),
        ({"masks": [1]}, "masks is list, expected a dict"),
    ],
    ids=repr,
)  # fmt: skip
def test_options_that_cannot_be(options: dict[str, Any], text: str) -> None:
    """ValueError, as in W&B."""
    with pytest.raises(ValueError, match=text):
        sdk.Image(COLOR, **options)
    with pytest.raises(ValueError, match="uint16"):
        sdk.Image(COLOR[:, :, 0], mode="I;16")


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("nan", [numpy.nan, -numpy.nan])
def test_nan_is_no_pixel(dtype: str, nan: float) -> None:
    """Wherever it stands and whatever its sign; infinities are numbers, which are cut later."""
    for place in (0, 57, 119):
        given = numpy.zeros(120, dtype)
        given[:4] = [numpy.inf, -numpy.inf, -1, 300]
        sdk.Image(given.reshape(12, 10))
        given[place] = nan
        with pytest.raises(ValueError, match="NaN"):
            sdk.Image(given.reshape(12, 10))


@pytest.mark.parametrize("to", ["jpg", "webp"])
def test_sides_that_a_format_cannot_hold(to: str) -> None:
    """Known before the pixels are copied, not when they are encoded."""
    longest = pixels.SIDE_MAX[to]
    assert sdk.Image(numpy.zeros((1, longest), "u1"), file_type=to).width == longest
    with pytest.raises(ValueError, match="png any"):
        sdk.Image(numpy.zeros((longest + 1, 1), "u1"), file_type=to)


def test_file_types() -> None:
    """jpeg is jpg; jpg says that it has no transparency."""
    assert sdk.Image(COLOR, file_type="jpeg").format == "jpg"
    assert blob_of(sdk.Image(COLOR, file_type="BMP")).meta["to"] == "bmp"
    with pytest.warns(UserWarning, match="transparency"):
        sdk.Image(numpy.zeros((4, 4, 4), "u1"), file_type="jpg")


# -- torch, jax, TensorFlow, by fakes of their names -----------------------------------------------------------------


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the name torch with just what is touched, around numpy arrays."""
    module: Any = types.ModuleType("torch")

    class Tensor:
        def __init__(self, data: Any, dtype: str = "", device: str = "cpu") -> None:
            self.data = numpy.asarray(data)
            self.dtype = f"torch.{dtype or self.data.dtype.name}"
            self.device = types.SimpleNamespace(type=device)

        def detach(self) -> Any:
            return self

        def cpu(self) -> Any:
            return Tensor(self.data, self.dtype.removeprefix("torch."))

        def view(self, dtype: str) -> Any:
            return Tensor(self.data.view(dtype), dtype)

        def numpy(self) -> Any:
            assert self.device.type == "cpu" and "float8" not in self.dtype and "bfloat16" not in self.dtype
            return self.data

    Tensor.__module__ = "torch"
    module.Tensor, module.int16, module.uint8 = Tensor, "int16", "uint8"
    monkeypatch.setitem(__import__("sys").modules, "torch", module)
    return module


@pytest.mark.parametrize(
    ("shape", "layout", "size"),
    [((3, 12, 10), "CHW", (10, 12)), ((1, 12, 10), "HW", (10, 12)), ((12, 10), "HW", (10, 12)), ((12, 10, 3), "HWC", (10, 12)),
     ((1, 3, 12, 10), "CHW", (10, 12)), ((3, 8, 4), "CHW", (4, 8)), ((20, 3, 12, 10), "NCHW", (8 * 12 + 2, 3 * 14 + 2)),
     ((2, 1, 12, 10), "NCHW", (2 * 12 + 2, 14 + 2))],
)  # fmt: skip
def test_torch_has_its_channels_first(torch: Any, shape: tuple[int, ...], layout: str, size: tuple[int, int]) -> None:
    """A batch becomes one picture of the size that torchvision's make_grid gives."""
    given = numpy.random.default_rng(1).random(shape, "f4")
    image = sdk.Image(torch.Tensor(given))
    assert blob_of(image).meta["layout"] == layout
    assert (image.width, image.height) == size
    assert array_of(image).tobytes() == given.tobytes()


def test_bfloat16(torch: Any) -> None:
    """Kept as its bits, under its name; its NaNs are found, other types of that kind are refused."""
    bits = numpy.full((4, 4), 0x3F80, "<u2")
    bits[0] = [0x7F80, 0xFF80, 0, 0x8000]
    blob = blob_of(sdk.Image(torch.Tensor(bits, "bfloat16")))
    assert blob.meta["array"] == ["bfloat16", [4, 4], None]
    assert bytes(blob.view()) == bits.tobytes()
    for nan in (0x7F81, 0x7FC0, 0xFFC0, 0xFFFF):
        bits[2, 2] = nan
        with pytest.raises(ValueError, match="NaN"):
            sdk.Image(torch.Tensor(bits, "bfloat16"))
    with pytest.raises(TypeError, match="float8_e5m2, expected bool, integers or floats"):
        sdk.Image(torch.Tensor(numpy.zeros((4, 4), "u1"), "float8_e5m2"))


def test_a_tensor_on_a_device_is_fetched_and_told(torch: Any) -> None:
    """The loop waits for the device, so somebody is told."""
    from sdk.values import convert

    told: list[str] = []
    convert.on_device_value(told.append)
    try:
        assert numpy.array_equal(array_of(sdk.Image(torch.Tensor(COLOR, device="cuda"))), COLOR)
    finally:
        convert._on_device.clear()
    assert len(told) == 1 and "Image()" in told[0]


def test_other_packages_arrays() -> None:
    """jax by its module, TensorFlow by `numpy()`, the rest by `__array__`."""

    class Jax:
        dtype, device = COLOR.dtype, types.SimpleNamespace(platform="cpu")

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return COLOR

    class Eager:
        def numpy(self) -> Any:
            return COLOR

    other = type("Other", (), {"__array__": Jax.__array__})
    Jax.__module__, Eager.__module__ = "jaxlib._jax", "tensorflow.python"
    for value in (Jax(), Eager(), other()):
        assert numpy.array_equal(array_of(sdk.Image(value)), COLOR)


# -- PIL and files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_pil_images_of_every_mode(mode: str) -> None:
    """Their pixels as PIL gives them to numpy, whatever the mode; nothing is converted."""
    given = PIL.Image.fromarray(COLOR)
    given = given.convert("L").convert(mode) if mode in ("I", "F", "I;16", "LA") else given.convert(mode)
    image = sdk.Image(given)
    meta = blob_of(image).meta
    expected = numpy.asarray(given)
    assert numpy.array_equal(array_of(image), expected * 255 if mode == "1" else expected)
    assert (meta["mode"], meta["normalize"], image.width, image.height) == (mode, mode == "F", 10, 12)
    assert ("palette" in meta) == (mode == "P")


@pytest.mark.parametrize(
    ("mode", "kept"), [("La", "LA"), ("RGBa", "RGBA"), ("RGBX", "RGB"), ("PA", "RGBA"), ("I;16B", "I")]
)
def test_rare_pil_modes_become_common_ones(mode: str, kept: str) -> None:
    """What no format holds is converted by PIL first."""
    assert blob_of(sdk.Image(PIL.Image.new(mode, (5, 3)))).meta["mode"] == kept


def test_pil_palettes_and_nan() -> None:
    """A palette and its transparent color go along; NaN is refused here too."""
    paletted = PIL.Image.fromarray(COLOR).convert("P")
    paletted.info["transparency"] = 3
    meta = blob_of(sdk.Image(paletted)).meta
    assert meta["palette"][0] == "RGB" and len(meta["palette"][1]) > 3 and meta["transparency"] == 3
    with pytest.raises(ValueError, match="NaN"):
        sdk.Image(PIL.Image.fromarray(numpy.full((3, 3), numpy.nan, "f4")))


@pytest.fixture
def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(COLOR).save(buffer, "PNG")
    return buffer.getvalue()


def test_files_are_stored_as_they_are(tmp_path: pathlib.Path, png: bytes) -> None:
    """By str, Path, bytes, BytesIO wherever it stands, and open file; the content says the format, not the name."""
    path = tmp_path / "a.jpeg"
    path.write_bytes(png)
    link = tmp_path / "link"
    link.symlink_to(path)
    with path.open("rb") as binary, path.open(encoding="latin-1") as text:
        binary.seek(5)
        end = io.BytesIO(png)
        end.seek(0, io.SEEK_END)
        for data in (str(path), path, str(link), png, bytearray(png), memoryview(png), end, binary, text):
            image = sdk.Image(data, file_type="jpg")
            assert bytes(blob_of(image).view()) == png
            assert blob_of(image).meta == {"media": "image-file", "format": "png"}
            assert (image.format, image.width, image.height) == ("png", 10, 12)
        assert (binary.tell(), end.tell()) == (5, len(png))


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO"])
def test_formats_of_files(kind: str) -> None:
    """Told by the content."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 16)).save(buffer, kind)
    assert sdk.Image(buffer).format == {"JPEG": "jpg"}.get(kind, kind.lower())


def test_directories_and_foreign_formats_are_errors(tmp_path: pathlib.Path) -> None:
    """OSError, as from PIL itself: what PIL could run a program for is not looked at."""
    with pytest.raises(IsADirectoryError):
        sdk.Image(tmp_path)
    eps = tmp_path / "a.png"
    PIL.Image.fromarray(COLOR).save(eps, "EPS")
    with pytest.raises(PIL.UnidentifiedImageError, match="%!PS-Ado"):
        sdk.Image(eps)


def test_an_image_of_an_image() -> None:
    """The same bytes, not copied again, and its names; boxes and masks are not taken over."""
    first = sdk.Image(
        COLOR, caption="a", grouping=3, masks={"m": {"mask_data": COLOR[:, :, 0], "class_labels": {1: "cat"}}}
    )
    second = sdk.Image(first)
    assert blob_of(second) is blob_of(first)
    assert second.describe() == {
        "caption": "a", "grouping": 3, "classes": [{"id": 1, "name": "cat"}], "format": "png", "width": 10, "height": 12,
        "data": blob_of(first),
    }  # fmt: skip
    assert sdk.Image(first, caption="b").caption == "b"
    assert first.caption == "a"


# -- matplotlib ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pyplot() -> Iterator[Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")
    gc.collect()


def test_a_figure_is_drawn_as_it_would_be_saved(pyplot: Any) -> None:
    """The pixels of savefig, from the figure, its axes, a line of it or pyplot; the figure keeps canvas, dpi and size."""
    figure, axes = pyplot.subplots(dpi=50)
    (line,) = axes.plot([1, 3, 2])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba")
    before = (figure.canvas, figure.dpi, tuple(figure.get_size_inches()), pyplot.get_fignums())
    for value in (figure, axes, line, pyplot):
        image = sdk.Image(value)
        assert bytes(blob_of(image).view()) == buffer.getvalue()
        assert array_of(image).shape == (image.height, image.width, 4) == (240, 320, 4)
        assert blob_of(image).meta["normalize"] is False
    assert before == (figure.canvas, figure.dpi, tuple(figure.get_size_inches()), pyplot.get_fignums())


def test_figures_of_other_canvases_and_subfigures(pyplot: Any) -> None:
    """A canvas that draws no pixels stays what it is; a part of a figure means the whole."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure((2, 1), dpi=50)
    canvas = FigureCanvasSVG(figure)
    inner = figure.subfigures(1, 2)[0].subfigures(1, 2)[0]
    axes = inner.subplots()
    for value in (figure, inner, axes):
        image = sdk.Image(value)
        assert (image.width, image.height) == (100, 50)
    assert figure.canvas is canvas
    with pytest.raises(TypeError, match="matplotlib"):
        sdk.Image(pyplot.get_cmap("viridis"))


def test_a_drawing_is_a_copy(pyplot: Any) -> None:
    """What is drawn afterwards is another picture."""
    figure, axes = pyplot.subplots(dpi=30)
    first = sdk.Image(figure)
    before = bytes(blob_of(first).view())
    axes.plot([1, 2])
    assert bytes(blob_of(sdk.Image(figure)).view()) != before == bytes(blob_of(first).view())


# -- log -------------------------------------------------------------------------------------------------------------


def test_logged(world: Any, pyplot: Any) -> None:
    """Alone, in lists of any length, in nested dicts; PIL images, figures, axes and pyplot become images by themselves."""
    sdk.init()
    figure, axes = pyplot.subplots(dpi=30)
    images = [sdk.Image(COLOR[: index + 1], caption=str(index)) for index in range(12)]
    sdk.log({"a": images[0], "many": images * 10, "in": {"b": images[1]}, "pil": PIL.Image.fromarray(COLOR)})
    sdk.log({"figure": figure, "axes": axes, "pyplot": pyplot})
    first, second = world.rows
    assert [one["caption"] for one in first["many"]] == [str(index) for index in range(12)] * 10
    assert [first[key]["_type"] for key in ("a", "in.b", "pil")] == ["image-file"] * 3
    assert first["pil"]["data"].data == COLOR.tobytes()
    assert first["a"]["data"].meta["array"] == ["|u1", [1, 10, 3], None]
    assert second["figure"] == {
        "_type": "image-file",
        "format": "png",
        "width": 192,
        "height": 144,
        "data": second["figure"]["data"],
    }
    blobs = [
        world.rows.runs[0].streams[0].blobs[second[key]["data"].number].data for key in ("figure", "axes", "pyplot")
    ]
    assert blobs[0] == blobs[1] == blobs[2]


def test_what_is_of_those_packages_and_no_picture(world: Any, pyplot: Any) -> None:
    """It raises as any other object, and a picture in a config is not drawn but named."""
    sdk.init(config={"figure": pyplot.figure(), "pyplot": pyplot})
    with pytest.raises(TypeError, match="'k'.*Colormap"):
        sdk.log({"k": pyplot.get_cmap("viridis")})
    with pytest.raises(TypeError, match="'k'.*module"):
        sdk.log({"k": io})
    assert sdk.config["figure"].startswith("Figure(")
    assert "matplotlib.pyplot" in sdk.config["pyplot"]


def test_a_run_that_goes_on_leaves_out_what_could_not_be_made(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """misuse="warn": the error does not end the script; the key is left out and the reason told. Else it raises."""
    sdk.init(misuse="warn")
    broken = sdk.Image("/nowhere/a.png", masks={"m": {}})
    sdk.log({"bad": broken, "list": [sdk.Image(COLOR), broken], "loss": 1})
    assert world.rows == [{"loss": 1}]
    sdk.finish()
    assert "'bad': the Image could not be made: " in capsys.readouterr().err
    sdk.init()
    with pytest.raises(FileNotFoundError):
        sdk.Image("/nowhere/a.png")
