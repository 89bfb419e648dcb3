"""Names of files for what was logged. Keys and formats come from whoever wrote the run, so neither decides what a file is.

An ending comes from a table by kind: an image is never saved as a program or a page. A name made of a key stays in its
directory on every file system.
"""

from __future__ import annotations

# Kind to the formats that its files may have; the first is that of a value whose file is made when it is read.
FORMATS: dict[str, tuple[str, ...]] = {
    "image": ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tiff", "ico", "ppm", "avif", "jp2"),
    "mask": ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tiff"),
    "video": ("mp4", "webm", "gif", "ogg", "ogv"),
    "audio": ("wav", "flac", "ogg", "mp3", "m4a", "aac", "opus", "aiff"),
    "tensor": ("npy",),
    "histogram": ("json",),
    "table": ("table.json",),
    "chart": ("chart.json",),
    "graph": ("graph.json",),
    "plotly": ("plotly.json",),
    "bokeh": ("bokeh.json",),
    "html": ("html",),
    "object3d": ("pts.json", "obj", "gltf", "glb", "babylon", "stl"),
    "molecule": ("pdb", "pqr", "mmcif", "mcif", "cif", "sdf", "sd", "gro", "mol2", "mmtf"),
    "embedding": ("npy",),
}
_OTHER = ".bin"

# Limit: file systems take 255 bytes; a step, an index and an ending are added.
_CHARACTERS_MAX = 80
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
# Names that Windows keeps for devices, whatever the case or the ending.
_RESERVED = frozenset({"con", "prn", "aux", "nul"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10)})


def ending(kind: str, format: str | None) -> str:
    """What the name of a file ends in: one of `FORMATS`, else ".bin"."""
    return f".{format}" if format in FORMATS.get(kind, ()) else _OTHER


def file_name(key: str, step: int, index: int, end: str) -> str:
    """`val_examples_12_0.png` for the first image under "val/examples" at step 12."""
    return f"{safe_name(key)}_{int(step)}_{int(index)}{end}"


def safe_name(text: str) -> str:
    """Letters, digits, ``_``, ``-`` and ``.`` of a text, the rest as ``_``: never empty, hidden, an option or a device."""
    name = "".join(c if c in _PLAIN else "_" for c in text[:_CHARACTERS_MAX]).lstrip(".-")
    if not name or name.partition(".")[0].lower() in _RESERVED:
        name = f"_{name}"
    return name


class Names:
    """Gives each file of one directory a name of its own, also where the disk folds case: keys may differ in what a name
    cannot hold.
    """  # fmt: skip

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, name: str) -> str:
        """`name`, or one with a number where that is taken."""
        stem, dot, end = name.partition(".")
        number = 1
        while name.lower() in self._taken:
            number += 1
            name = f"{stem}~{number}{dot}{end}"
        self._taken.add(name.lower())
        return name
