"""Images, tables, tensors and the like through trainer, daemon, worker and reader."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy

import sdk
from tests.end_to_end.world import until


def test_what_is_logged_comes_back(store: Path) -> None:
    """Bit for bit, small and large, in lists, tables and masks, although the arrays were overwritten at once."""
    rng = numpy.random.default_rng(3)
    pixels = rng.integers(0, 256, (200, 300, 3), "u1")
    mask = rng.integers(0, 9, (200, 300), "u1")
    tensor = rng.normal(size=(3, 500, 500)).astype("f4")
    small = rng.normal(size=7)
    kept = [array.copy() for array in (pixels, mask, tensor, small)]
    table = sdk.Table(columns=["id", "picture"], data=[[1, sdk.Image(pixels)], [2, None]])
    run = sdk.init(id="r", settings={"silent": True})
    run.log({
        "x": [sdk.Image(pixels, caption="one", masks={"m": {"mask_data": mask}}), sdk.Image(pixels[:5, :5])],
        "t": table,
        "w": tensor,
        "s": small,
        "h": sdk.Histogram(tensor),
        "page": sdk.Html("<p>hello"),
        "text": "long " * 600_000,
        "loss": 0.5,
    })  # fmt: skip
    for array in (pixels, mask, tensor, small):
        array[:] = 0
    run.finish()
    pixels, mask, tensor, small = kept

    found = sdk.open_store(store).run("r")
    one, two = found.media("x")
    assert (one.caption, one.dtype, one.shape) == ("one", "uint8", (200, 300, 3))
    for array in (one.to_numpy(), numpy.asarray(one.to_pil()), as_png(one.bytes())):
        assert numpy.array_equal(array, pixels)
    assert numpy.array_equal(two.to_numpy(), pixels[:5, :5])
    assert numpy.array_equal(one.value["masks"]["m"].to_numpy(), mask)
    assert found.media("w")[0].to_numpy().tobytes() == tensor.tobytes()
    assert numpy.array_equal(found.media("s")[0].to_numpy(), small)
    rows = found.media("t")[0].rows
    assert rows[1] == [2, None] and numpy.array_equal(rows[0][1].to_numpy(), pixels)
    assert found.media("h")[0].values == numpy.histogram(tensor, 64)[0].tolist()
    assert b"hello" in found.media("page")[0].bytes()
    (row,) = found.rows()
    assert (row["text"], row["loss"]) == ("long " * 600_000, 0.5)
    assert not found.gaps and not found.damage


def as_png(data: bytes) -> Any:
    from PIL import Image

    return numpy.asarray(Image.open(io.BytesIO(data), formats=["PNG"]))


def test_a_live_run(store: Path) -> None:
    """What was written a second ago is readable while the run goes on."""
    run = sdk.init(id="r", settings={"silent": True})
    try:
        pixels = numpy.arange(30_000, dtype="u1").reshape(100, 100, 3)
        run.log({"x": sdk.Image(pixels)})
        until(lambda: bool(sdk.open_store(store).runs()))
        found = sdk.open_store(store).run("r")
        for _ in found.follow(timeout=30, keys=["x"]):
            break
        assert numpy.array_equal(found.media("x")[0].to_numpy(), pixels)
    finally:
        run.finish()
