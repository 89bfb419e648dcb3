"""A call that is too wide for one record: as several pieces of the same row, and what no piece can hold as a blob."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..limits import KIB
from ..record import encode_map, encode_media
from ..values.blobs import Blob, snapshot


def split(
    flat: Mapping[str, Any],
    room: int,
    capacity: int,
    put: Callable[[Blob, str], object] | None,
    refuse: Callable[[str, str], None],
) -> list[bytes]:
    """The payloads for `flat`, each of at most `room` bytes.

    Args:
        capacity: Of the ring: a call may take half of it.
        put: Takes a value that is larger than `room` as a blob; None: there is nowhere to.
        refuse: Called with key and text for what cannot be stored; it raises, or the value is left out.
    """
    payloads: list[bytes] = []
    part: dict[str, Any] = {}
    size = 0
    for key, value in flat.items():
        packed = encode_map({key: value})
        if len(packed) > room and put is not None:
            value = encode_media({"_type": "value", "data": put(snapshot(packed, {"media": "value"}), key)})
            packed = encode_map({key: value})
        if len(packed) > room:
            refuse(key, f"log() value of {key!r} takes {len(packed)} bytes, at most {room} fit into one record "
                        f"of this ring ({capacity // KIB} KiB). Nothing of this call was stored.")  # fmt: skip
            continue
        if part and size + len(packed) > room:
            payloads.append(encode_map(part))
            part, size = {}, 0
        part[key] = value
        size += len(packed)
    payloads.append(encode_map(part))
    total = sum(map(len, payloads))
    if total > capacity // 2:
        refuse("data", f"log() was given {len(flat)} values of {total} bytes, at most {capacity // 2} fit into this ring "
                       f"({capacity // KIB} KiB). Nothing of this call was stored.")  # fmt: skip
        return []
    return payloads
