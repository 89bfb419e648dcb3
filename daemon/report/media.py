"""The media of a report: the newest of each key, made smaller where they would not fit, each as something that cannot run.

A file is what its first bytes say, not what the store calls it. An image is an `img`, a logged page stands in a sandboxed frame
without scripts, a table is a table of the page. What no page shows (tensors, point clouds, molecules, figures that need a script) is
named, with the command that takes it out of the store.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sdk._greeting import bytes_text, count
from sdk.errors import Error
from sdk.reader import MediaItem, Run
from sdk.reader.pictures import number

from . import facts
from .budget import Budget, weight
from .markup import Markup, data_url, frame_source, join, tag

_PIXELS = (1024, 640, 320, 160)
_CELL_PIXELS = 96
# Limit: 200 MB when it is decoded.
_PIXELS_MAX = 64 << 20
# An image of at most so many pixels to a side is shown larger: a digit of 28 by 28 is a dot on a screen.
_SMALL_PIXELS = 64
# Limit: a key may hold hundreds of thousands; this many rows of a table are shown.
TABLE_ROWS_MAX = 100
_CELLS_MAX = 30
_PICTURE_BYTES_MIN = 12_000
# Limit: what is larger is not read for a report; a film of this size would not fit anyway.
_READ_BYTES_MAX = 256 << 20
# Limit: a table is read whole for its first rows; as Python's objects it takes about ten times as much.
_TABLE_BYTES_MAX = 32 << 20
_BASE64 = 4 / 3
# What stands around a value: its key, cut, and tags.
_HEADING_BYTES = 400
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"), (0, b"\xff\xd8\xff", "image/jpeg"), (0, b"GIF8", "image/gif"), (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"), (4, b"ftyp", "video/mp4"), (0, b"\x1a\x45\xdf\xa3", "video/webm"), (8, b"WAVE", "audio/wav"),
    (0, b"fLaC", "audio/flac"), (0, b"OggS", "audio/ogg"), (0, b"ID3", "audio/mpeg"), (0, b"\xff\xfb", "audio/mpeg"),
)  # fmt: skip


class Shown(NamedTuple):
    """The media of a report, by kind of section.

    Attributes:
        media: Per key: its name and the figures of all runs.
        tables: Per key and run: a title and the table.
        values: How many are shown.
    """

    media: list[tuple[str, list[Markup]]]
    tables: list[tuple[str, Markup]]
    values: int


def read_media(runs: Sequence[Run], patterns: Sequence[str], newest: int, budget: Budget) -> Shown:
    """The newest values of each key with media, as far as they fit; keys take turns, so that none is left out for another's sake."""
    waiting = [] if newest < 1 else _newest(runs, patterns, newest)
    left_out: dict[str, int] = {}
    found: dict[tuple[int, int, int], Markup] = {}
    # The first value of every key and run, then the second of each, …
    order = sorted(range(len(waiting)), key=lambda at: waiting[at].rank)
    for done, at in enumerate(order):
        entry = waiting[at]
        share = int(budget.left / max(len(order) - done, 1))
        made = _figure(entry, max(share, _PICTURE_BYTES_MIN), budget, left_out)
        if made is not None:
            found[at, entry.run, entry.rank] = made
    media: dict[str, list[Markup]] = {}
    tables: list[tuple[str, Markup]] = []
    for at, entry in enumerate(waiting):
        one = found.get((at, entry.run, entry.rank))
        if one is None:
            continue
        if entry.item.kind in ("table", "chart"):
            whose = f" · {facts.label(runs[entry.run])}" if len(runs) > 1 else ""
            tables.append((f"{entry.key}{whose} · step {entry.item.step:,}", one))
        else:
            media.setdefault(entry.key, []).append(one)
    for why, times in left_out.items():
        budget.leave_out(f"{count(times, 'value')} of media: {why}.")
    return Shown(list(media.items()), tables, len(found))


class _Entry(NamedTuple):
    run: int
    key: str
    rank: int
    item: MediaItem
    whose: str


def _newest(runs: Sequence[Run], patterns: Sequence[str], newest: int) -> list[_Entry]:
    entries: dict[str, list[_Entry]] = {}
    for place, run in enumerate(runs):
        kinds = run.media_keys()
        chosen = set(run.keys_like(patterns)) if patterns else set(kinds)
        for key, kind in kinds.items():
            if key not in chosen or run.metric(key).hidden:
                continue
            items = run.media(key)
            # Of a list the first ones, of the newest step first.
            wanted = sorted(items, key=lambda item: (-item.step, item.index))
            wanted = wanted[: 1 if kind in ("table", "histogram", "chart") else newest]
            whose = facts.label(run) if len(runs) > 1 else ""
            entries.setdefault(key, []).extend(
                _Entry(place, key, rank, item, whose) for rank, item in enumerate(wanted)
            )
    return [entry for key in sorted(entries) for entry in entries[key]]


def _figure(entry: _Entry, share: int, budget: Budget, left_out: dict[str, int]) -> Markup | None:
    """An item as it is shown; None, and why it is not."""
    item = entry.item
    why = "bytes that are not stored, or cannot be read"
    try:
        shown = _SHOWN.get(item.kind, _named)(item, min(share, budget.left))
        shown = None if shown is None else _captioned(entry, shown)
        if shown is not None and budget.fits(weight(shown) + _HEADING_BYTES):
            return shown
        why = f"too large for a file of {bytes_text(budget.size_max)} (--max-size)"
    except (Error, OSError, ValueError, MemoryError):
        pass
    left_out[why] = left_out.get(why, 0) + 1
    return None


def _captioned(entry: _Entry, shown: Markup) -> Markup:
    item = entry.item
    if item.kind in ("table", "chart"):
        return shown
    place = [facts.swatch(entry.run), " ", entry.whose, " · "] if entry.whose else []
    words = [place, f"step {item.step:,}", f" [{item.index}]" if item.index else None]
    caption = tag("span", item.caption[:500], class_="caption") if item.caption else None
    return tag("figure", shown, tag("figcaption", words, caption), class_=f"media {_safe(item.kind)}")


def _safe(name: str) -> str:
    return name if name.isalnum() else "other"


def sniff(data: bytes) -> str | None:
    """What a file is, by its first bytes; None: nothing that a report shows."""
    for offset, signature, kind in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return kind
    return None


def _file(item: MediaItem) -> bytes:
    if item.size > _READ_BYTES_MAX:
        raise ValueError(f"{item.size:,} bytes are not read for a report")
    return item.bytes()


def _image(item: MediaItem, room: int) -> Markup | None:
    data = _file(item)
    _check_pixels(data)
    kind = sniff(data)
    if kind is None or not kind.startswith("image/") or len(data) * _BASE64 > room:
        smaller = smaller_image(data, int(room / _BASE64), _PIXELS)
        if smaller is None:
            return None
        kind, data = "image/jpeg", smaller
    look = "small" if _is_small(item) else None
    return tag("img", src=data_url(kind, data), alt=item.caption or item.key, loading="lazy", class_=look)


def _is_small(item: MediaItem) -> bool:
    """Whether an image has so few pixels that a page should show each of them larger."""
    sides = [item.value.get(name) for name in ("width", "height")]
    return all(type(side) is int and 0 < side <= _SMALL_PIXELS for side in sides)


def _check_pixels(data: bytes) -> None:
    """Raises ValueError for an image that a few bytes say is huge: decoded it would take the memory of a training, or of a browser."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(io.BytesIO(data)).size
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    except Exception:  # no image, which others say
        return
    if width * height > _PIXELS_MAX:
        raise ValueError(f"{width}×{height} pixels are not decoded for a report")


def smaller_image(data: bytes, size: int, pixels: Sequence[int]) -> bytes | None:
    """The image as a JPEG of at most `size` bytes, as large as that allows; None where not even the smallest fits.

    Raises:
        EncoderMissing, DamageError: As `MediaItem.to_pil`.
        ValueError: It has more pixels than are decoded for a report.
    """
    _check_pixels(data)
    from sdk.encoders.image import open_picture

    picture = open_picture(data)
    if picture.mode in ("RGBA", "LA", "P", "PA"):
        from PIL import Image

        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    picture = picture.convert("RGB")
    for side in pixels:
        picture.thumbnail((side, side))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=82, optimize=True)
        if out.tell() <= size:
            return out.getvalue()
    return None


def _video(item: MediaItem, room: int) -> Markup | None:
    data = _file(item)
    kind = sniff(data) or ""
    if len(data) * _BASE64 > room:
        return None
    if kind == "image/gif":
        return tag("img", src=data_url(kind, data), alt=item.caption or item.key)
    if not kind.startswith("video/"):
        return _named(item, room)
    return tag("video", src=data_url(kind, data), controls=True, preload="metadata")


def _audio(item: MediaItem, room: int) -> Markup | None:
    data = _file(item)
    kind = sniff(data) or ""
    if len(data) * _BASE64 > room:
        return None
    if kind == "video/mp4":  # the same container, of sound alone
        kind = "audio/mp4"
    if not kind.startswith("audio/"):
        return _named(item, room)
    return tag("audio", src=data_url(kind, data), controls=True, preload="metadata")


def _page(item: MediaItem, room: int) -> Markup | None:
    page = _file(item).decode("utf-8", "replace")
    if len(page) * 1.2 > room:
        return None
    return tag("iframe", sandbox="", srcdoc=frame_source(page), title=item.caption or item.key, loading="lazy")


def _histogram(item: MediaItem, room: int) -> Markup | None:
    """Bars; what lies between the outermost edges."""
    values = [float(v) for v in item.values][:1024]
    top = max(values, default=0.0)
    width = 320 / max(len(values), 1)
    bars = [
        tag("rect", x=f"{i * width:.1f}", y=f"{100 - 100 * v / top:.1f}", width=f"{width:.1f}", height=f"{100 * v / top:.1f}", class_="f0")
        for i, v in enumerate(values)
        if top > 0 and 0 < v <= top
    ]  # fmt: skip
    edges = item.bins
    ends = [
        tag("text", number(float(edges[i])), x=x, y=118, class_=f"tick {c}")
        for i, x, c in ((0, 0, "start"), (-1, 320, "end"))
    ]
    return tag(
        "svg",
        bars,
        ends,
        viewBox="0 0 320 124",
        class_="still histogram",
        role="img",
        aria_label=f"{item.key}: {len(values)} bins",
    )


def _table(item: MediaItem, room: int) -> Markup | None:
    if item.size > _TABLE_BYTES_MAX:
        return _named(item, room)
    return _rows(item, item.columns, item.rows, room)


def _chart(item: MediaItem, room: int) -> Markup | None:
    """The table of a chart, which is all that was logged of it but a name."""
    table = item.value.get("table")
    if not isinstance(table, MediaItem) or table.kind != "table" or table.size > _TABLE_BYTES_MAX:
        return _named(item, room)
    return _rows(table, table.columns, table.rows, room)


def _rows(item: MediaItem, columns: Sequence[Any], rows: Sequence[Sequence[Any]], room: int) -> Markup | None:
    used = list(columns)[:_CELLS_MAX]
    shown: list[list[Any]] = []
    left = room - 2000
    for row in rows[:TABLE_ROWS_MAX]:
        cells = [_table_cell(row[i] if i < len(row) else "", left) for i in range(len(used))]
        left -= sum(weight(str(cell)) + 40 for cell in cells)
        if left < 0:
            break
        shown.append(cells)
    if not shown and rows:
        return None
    parts = [facts.table([str(column) for column in used], shown)]
    if len(shown) < len(rows) or len(used) < len(columns):
        more = f"{len(shown):,} of {len(rows):,} rows, {len(used):,} of {len(columns):,} columns"
        parts.append(tag("p", more, class_="quiet"))
    return join(parts)


def _table_cell(value: Any, room: int) -> Any:
    if isinstance(value, MediaItem) and value.kind == "image" and room > _PICTURE_BYTES_MIN:
        try:
            small = smaller_image(_file(value), _PICTURE_BYTES_MIN, (_CELL_PIXELS,))
        except (Error, OSError, ValueError):
            small = None
        if small is not None:
            look = "cell small" if _is_small(value) else "cell"
            return tag("img", src=data_url("image/jpeg", small), alt=value.caption or "image", class_=look)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return facts.value_text(value)


def _named(item: MediaItem, room: int) -> Markup:
    """What a page does not show."""
    words = [item.kind, item.format, "×".join(map(str, item.shape)) if item.shape else None]
    size = bytes_text(item.size) if item.size else None
    return tag(
        "div",
        " · ".join(str(word) for word in [*words, size] if word),
        tag("br"),
        tag("code", "stepd show RUN KEY -o DIR"),
        class_="named",
    )


_SHOWN: dict[str, Callable[[MediaItem, int], Markup | None]] = {
    "image": _image, "mask": _image, "video": _video, "audio": _audio, "html": _page, "histogram": _histogram, "table": _table,
    "chart": _chart,
}  # fmt: skip
