"""The packages of a Python environment, from the metadata that installers left: nothing is imported or executed.

They are those of the trainer's `sys.path`, in its order, not those of the daemon.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from sdk._secrets import without_credentials

PACKAGES_MAX = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_VERSION = re.compile(r"[^\s;#]{1,100}")
# The files of installers that are read: each a regular one, of at most so many bytes.
_METADATA_BYTES_MAX = 1 << 20


def requirements(path: Iterable[str]) -> list[str]:
    """Lines of a requirements file, sorted: ``name==version``; what came from an address or a directory with that instead."""
    found: dict[str, str] = {}
    for name, version, origin in _installed(path):
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key not in found:  # the first on the path is the one that is imported
            found[key] = _line(name, version, origin)
        if len(found) == PACKAGES_MAX:
            break
    return [found[key] for key in sorted(found)]


def conda_packages(prefix: str) -> list[str]:
    """``name=version=build`` of a conda environment; empty where there is none."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(os.path.join(prefix, "conda-meta"))[:PACKAGES_MAX]:
            parts = entry.removesuffix(".json").rsplit("-", 2)
            if entry.endswith(".json") and len(parts) == 3:
                found.append("=".join(parts))
    return sorted(found)


def entry_point(path: Iterable[str], command: str) -> str | None:
    """What a console script calls, as ``package.module:function``."""
    for directory in path:
        for info in _infos(directory):
            for line in (_read(os.path.join(info, "entry_points.txt")) or "").splitlines():
                name, found, target = line.partition("=")
                if found and name.strip() == command:
                    return target.strip()[:200]
    return None


def _installed(path: Iterable[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, version and origin (`direct_url.json`) of what lies in these directories."""
    for directory in path:
        for info in _infos(directory):
            head = _read(os.path.join(info, "METADATA")) or _read(os.path.join(info, "PKG-INFO")) or ""
            name, version = _field(head, "Name"), _field(head, "Version")
            if _NAME.fullmatch(name) and _VERSION.fullmatch(version):
                yield name, version, _origin(info)


def _infos(directory: str) -> list[str]:
    """The metadata directories in a directory of `sys.path`."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [os.path.join(directory, name) for name in names if name.endswith((".dist-info", ".egg-info"))]


def _field(head: str, name: str) -> str:
    match = re.search(rf"^{name}:[ \t]*(\S+)[ \t]*$", head.partition("\n\n")[0], re.MULTILINE)
    return match[1] if match else ""


def _origin(info: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(_read(os.path.join(info, "direct_url.json")) or "{}")
        if isinstance(said, dict):
            return said
    return {}


def _line(name: str, version: str, origin: dict[str, Any]) -> str:
    url = origin.get("url")
    if not isinstance(url, str) or not url or not url.isprintable() or " " in url:
        return f"{name}=={version}"
    url = without_credentials(url)
    directory, source = origin.get("dir_info"), origin.get("vcs_info")
    if isinstance(directory, dict) and directory.get("editable"):
        return f"-e {url.removeprefix('file://')}  # {name}=={version}"
    if isinstance(source, dict) and _NAME.fullmatch(str(source.get("commit_id"))):
        return f"{name} @ {source.get('vcs')}+{url}@{source['commit_id']}"
    return f"{name} @ {url}  # {version}"


def _read(path: str) -> str | None:
    """A small text; None where there is none. Never waits: a FIFO is no metadata."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        with os.fdopen(descriptor, "rb") as file:
            return file.read(_METADATA_BYTES_MAX).decode("utf-8", "replace")
    except (OSError, ValueError):
        return None
