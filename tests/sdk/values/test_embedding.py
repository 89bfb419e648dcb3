"""sdk.Embedding: a matrix bit for bit, its labels and pictures."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy
import pytest

import sdk
from sdk.values.blobs import as_array

MATRIX = numpy.random.default_rng(2).random((6, 4)).astype("f4")


def array_of(blob: Any) -> Any:
    return as_array(blob.view(), blob.meta["array"])


def labels_of(embedding: sdk.Embedding) -> Any:
    packed = embedding.describe()["labels"].describe()["data"]
    assert packed.meta == {"media": "value"}
    return msgpack.unpackb(bytes(packed.view()))["labels"]


def test_a_matrix() -> None:
    """As an array of any type of number or as lists; the source may change afterwards."""
    for dtype in ("f2", "f4", "f8", "i8", "u1"):
        given = (MATRIX * 99).astype(dtype)
        embedding = sdk.Embedding(given, caption="c")
        before = given.copy()
        given[:] = 0
        described = embedding.describe()
        assert numpy.array_equal(array_of(described["data"]), before)
        assert described["data"].meta["to"] == "tensor"
        assert (described["points"], described["dimensions"], described["caption"]) == (6, 4, "c")
        assert not {"labels", "images"} & described.keys()
    assert array_of(sdk.Embedding([[1.0, 2.0]]).describe()["data"]).tolist() == [[1.0, 2.0]]


def test_labels() -> None:
    """One for each point, or several columns of them, of any plain type."""
    assert labels_of(sdk.Embedding(MATRIX, labels=list("abcdef"))) == {"label": list("abcdef")}
    assert labels_of(sdk.Embedding(MATRIX, labels=numpy.arange(6))) == {"label": [0, 1, 2, 3, 4, 5]}
    columns = {"word": list("abcdef"), "count": [numpy.int64(3)] * 6}
    assert labels_of(sdk.Embedding(MATRIX, labels=columns)) == {"word": list("abcdef"), "count": [3] * 6}


@pytest.mark.parametrize(
    ("shape", "layout"), [((6, 3, 8, 8), "NCHW"), ((6, 8, 8, 3), "NHWC"), ((6, 8, 8), "NHW"), ((6, 1, 8, 8), "NCHW")]
)
def test_images(shape: tuple[int, ...], layout: str) -> None:
    """A picture of each point, in any order of axes."""
    images = numpy.random.default_rng(5).random(shape)
    blob = sdk.Embedding(MATRIX, images=images).describe()["images"]
    assert numpy.array_equal(array_of(blob), images)
    assert (blob.meta["media"], blob.meta["layout"]) == ("embedding", layout)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"matrix": MATRIX[0]}, ValueError, r"shape \(4,\)"),
        ({"matrix": MATRIX[:0]}, ValueError, "shape"),
        ({"matrix": "abc"}, TypeError, "str"),
        ({"matrix": [["a"]]}, TypeError, "U1"),
        ({"matrix": [[1, 2], [1]]}, ValueError, "differ in length"),
        ({"labels": ["a"]}, ValueError, "1 labels 'label' for 6 points"),
        ({"labels": "abcdef"}, TypeError, "str"),
        ({"labels": {"x": 5}}, TypeError, "'x' is int"),
        ({"labels": [object()] * 6}, TypeError, "object"),
        ({"images": numpy.zeros((5, 3, 8, 8))}, ValueError, "5 images for 6 points"),
        ({"images": numpy.zeros((6, 8, 8, 8))}, ValueError, "shape"),
    ],
)
def test_bad_embeddings(options: Any, error: type[Exception], text: str) -> None:
    """Each says what was found and expected."""
    with pytest.raises(error, match=text):
        sdk.Embedding(**{"matrix": MATRIX, **options})


def test_logged(world: Any) -> None:
    """The labels are a value within the value."""
    sdk.init()
    sdk.log({"e": sdk.Embedding(MATRIX, list("abcdef"))})
    found = world.rows[0]["e"]
    assert found["_type"] == "embedding"
    assert found["labels"]["_type"] == "value"
    assert found["data"].data == MATRIX.tobytes()
