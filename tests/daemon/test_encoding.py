"""daemon.encode: which values are the same, so that their bytes are stored once, and what cannot be encoded."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.encode import work
from daemon.encode.work import Encoding
from daemon.store.rewrite import Same, identity
from sdk.encoders import EncoderMissing
from sdk.record import BlobRef, StoredBlob

ZEROS = bytes(80_000)
TENSOR: dict[str, Any] = {"media": "tensor", "to": "tensor", "array": ["<f4", [100, 200], None], "key": "a", "step": 1}
PICTURE = {
    "media": "image-file", "to": "png", "array": ["|u1", [200, 400], None], "layout": "HW", "mode": "L", "normalize": True,
    "key": "a", "step": 1,
}  # fmt: skip


def encoded(meta: dict[str, Any], encoding: Encoding, number: int, data: bytes = ZEROS) -> StoredBlob | Same:
    result = encoding(BlobRef(1, number, len(data)), StoredBlob(data, meta))
    assert result is not None
    return result


def test_equal_values_are_stored_once() -> None:
    """Wherever they were logged."""
    encoding = Encoding({})
    encoded(TENSOR, encoding, 1)
    assert encoded({**TENSOR, "key": "b", "step": 7}, encoding, 2) == Same(
        1, 1, {"media": "tensor", "key": "b", "step": 7}
    )


@pytest.mark.parametrize(
    "other",
    [
        {**TENSOR, "array": ["<f4", [400, 50], None]}, {**TENSOR, "array": ["<i4", [100, 200], None]},
        {**TENSOR, "array": ["<f4", [100, 200], [1, 0]]}, PICTURE, {**PICTURE, "to": "jpg"}, {"media": "value"},
    ],
)  # fmt: skip
def test_equal_bytes_are_not_the_same_value(other: dict[str, Any]) -> None:
    """Zeros of another shape, type or order, or that become another kind of file: each is read as it was logged."""
    encoding = Encoding({})
    encoded(TENSOR, encoding, 1)
    assert isinstance(encoded(other, encoding, 2), StoredBlob)


@pytest.mark.parametrize("meta", [TENSOR, PICTURE])
def test_what_is_encoded_is_found_again(meta: dict[str, Any]) -> None:
    """A later pass knows it by what the stored blob says of itself, whatever encoding added."""
    first = encoded(meta, Encoding({}), 1)
    assert isinstance(first, StoredBlob)
    assert "encoding" in first.meta
    later = Encoding({identity(first.meta): (1, 1)})
    assert isinstance(encoded({**meta, "step": 9}, later, 2), Same)


@pytest.mark.parametrize("error", [EncoderMissing("pillow", "pillow", "a png"), ValueError("a bad day")])
def test_what_cannot_be_encoded_stays_raw(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """It says so, loses nothing, and is encoded like any other when it can be."""
    with monkeypatch.context() as patch:
        patch.setattr(work, "encode", lambda raw, meta: (_ for _ in ()).throw(error))
        encoding = Encoding({})
        raw = encoded(PICTURE, encoding, 1)
    assert isinstance(raw, StoredBlob)
    assert bytes(raw.data) == ZEROS
    assert raw.meta["encode_error"]
    assert "encoding" not in raw.meta
    assert encoding.failed + encoding.missing["pillow"] == 1
    later = encoded(raw.meta, Encoding({}), 1)
    assert isinstance(later, StoredBlob)
    assert later.meta["encoding"] == "png"
    assert not {"encode_error", "encode_missing"} & later.meta.keys()
