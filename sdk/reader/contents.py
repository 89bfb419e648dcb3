"""What stored bytes are: a file's, an array's, rows'. Pure but for the encoders, which make files of what is still raw.

The bytes and everything they say of themselves are somebody else's: what does not make sense is a `DamageError`, whatever
error the library that met it raised.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..dtypes import widened
from ..errors import DamageError, Error
from ..files import Buffer
from ..record import StoredBlob

# The formats that encoders write: stored bytes of such an "encoding" are a file.
ENCODED_FILES = frozenset({"png", "jpg", "bmp", "webp", "gif", "mp4", "webm", "wav", "flac", "ogg"})
_FINAL = ENCODED_FILES | {"histogram"}


@contextlib.contextmanager
def believing_nothing(what: str) -> Iterator[None]:
    """Whatever a decoder raises of made-up bytes becomes a `DamageError`; our own errors stay what they are."""
    try:
        yield
    except (Error, MemoryError):
        raise
    except Exception as error:
        raise DamageError(f"cannot decode {what}: {error}") from error


def is_file(meta: Mapping[str, Any]) -> bool:
    """Whether stored bytes are those of the file that a user expects, so that they can be copied as they are."""
    encoding = meta.get("encoding")
    return _is_in(encoding, ENCODED_FILES) or (encoding is None and "array" not in meta and meta.get("to") is None)


def _is_in(name: object, names: frozenset[str]) -> bool:
    return isinstance(name, str) and name in names  # what is said may be anything


def raw_of(stored: StoredBlob) -> StoredBlob:
    """The bytes before they were packed; those that became something else (a file, a histogram) stay that."""
    data, meta = stored
    if meta.get("encoding") is None or _is_in(meta["encoding"], _FINAL):
        return stored
    from ..encoders import decode

    with believing_nothing("a blob"):
        return StoredBlob(decode(data, meta), {name: value for name, value in meta.items() if name != "encoding"})


def file_of(stored: StoredBlob) -> Buffer:
    """The file: as it was given, or encoded now where that has not happened yet; arrays without a format as .npy.

    Raises:
        EncoderMissing: The package that makes such files is not installed.
        DamageError: The bytes are not what they say.
    """
    stored = raw_of(stored)
    data, meta = stored
    if is_file(meta):
        return data
    if _is_in(meta.get("to"), ENCODED_FILES):
        return _encoded(stored).data
    if "array" in meta:
        return npy(array_of(stored))
    return data


def _encoded(stored: StoredBlob) -> StoredBlob:
    from ..encoders import encode

    with believing_nothing("a blob"):
        encoded = encode(*stored)
    if encoded is None:
        raise DamageError(f"nothing can make a {stored.meta.get('to')!r} file of a blob that says it is one")
    return StoredBlob(encoded.data, encoded.meta)


def array_of(stored: StoredBlob) -> Any:
    """The values: as they were logged, or, of what is a file, those in it.

    Types that numpy has no name for come as those of ml_dtypes where it is installed, else widened, exactly.

    Raises:
        EncoderMissing, DamageError: As `file_of`.
    """
    stored = raw_of(stored)
    if stored.meta.get("encoding") is None and _is_in(stored.meta.get("to"), ENCODED_FILES):
        if _is_plain_picture(stored.meta):
            return _picture(stored)
        stored = _encoded(stored)  # so that the answer does not change when it is encoded
    data, meta = stored
    if _is_in(meta.get("encoding"), ENCODED_FILES) or "array" not in meta:
        from ..encoders import to_array

        with believing_nothing("a file"):
            return to_array(data, meta)
    from ..values.blobs import as_array

    with believing_nothing("an array"):
        array = as_array(data, meta["array"])
        name = meta["array"][0]
        return widened(array, name) if array.dtype.kind == "u" else array


def _is_plain_picture(meta: Mapping[str, Any]) -> bool:
    """Whether its file would hold the array as it is, so that it need not be made to look into it."""
    told = described(meta)
    modes, layouts = ("L", "LA", "RGB", "RGBA"), ("HW", "HWC", "CHW")
    plain = meta.get("mode") in modes and meta.get("layout") in layouts
    return plain and meta.get("to") == "png" and told is not None and told[0] == "|u1"


def _picture(stored: StoredBlob) -> Any:
    from ..encoders.image import in_rows
    from ..values.blobs import as_array

    with believing_nothing("a picture"):
        return in_rows(as_array(stored.data, stored.meta["array"]), stored.meta["layout"])


def described(meta: Mapping[str, Any]) -> tuple[str, tuple[int, ...]] | None:
    """The (dtype, shape) that an array was logged with; None of what never was one, or does not make sense."""
    array = meta.get("array")
    if type(array) is not list or len(array) != 3 or type(array[0]) is not str or type(array[1]) is not list:
        return None
    return array[0], tuple(size for size in array[1] if type(size) is int)


def npy(array: Any) -> bytes:
    """An array as a .npy file; types of ml_dtypes, which such a file cannot name, as float32."""
    import numpy

    if array.dtype.isbuiltin != 1 and array.dtype.kind not in "USmM":
        array = array.astype(numpy.float32)
    out = io.BytesIO()
    numpy.save(out, array, allow_pickle=False)
    return out.getvalue()


def as_json(value: Any) -> bytes:
    """JSON text of plain values; arrays as lists, other things as their text."""
    return json.dumps(value, default=_plain).encode()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
