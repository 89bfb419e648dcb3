"""What the checks look at: files of the kernel, variables, mounts, and the place of the store.

A test makes one whose /proc is a directory of its own. Nothing is looked at before a check asks, because the file system may be one
that does not answer; what was found is kept, so ten checks read /proc/self/mountinfo once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from sdk.location import Location, find_store
from sdk.settings import Settings

# Limit: the longest file of the kernel that is read here is mountinfo of a host with thousands of containers.
_READ_BYTES_MAX = 4 << 20
# What every file and directory begins with that the doctor makes; all of them are gone when it ends.
PREFIX = ".stepd-doctor-"
_OCTAL = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo."""

    point: str
    kind: str
    source: str
    options: frozenset[str]


class Machine:
    """This machine, or one that a test has made up.

    Args:
        directory: The store that was asked for; None: the default one.
        root: What stands before /proc, /sys, /etc and the like.
    """

    def __init__(
        self,
        directory: str | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        root: str = "",
        uid: int | None = None,
    ) -> None:
        self.directory = directory
        self.environ = environ
        self.uid = os.getuid() if uid is None else uid
        self._root = root
        # What the store is called that is measured in, and what the names of drafts begin with.
        self.trial = f"{PREFIX}{os.urandom(6).hex()}"

    # -- files of the kernel -------------------------------------------------------------------------------------------

    def read(self, path: str) -> str:
        """A small file as text; "" where there is none or it may not be read."""
        with contextlib.suppress(OSError, ValueError), open(self._root + path, "rb") as file:
            return file.read(_READ_BYTES_MAX).decode("utf-8", "replace")
        return ""

    def exists(self, path: str) -> bool:
        return os.path.lexists(self._root + path)

    def names(self, path: str) -> list[str]:
        """What a directory holds, sorted; [] where it may not be read."""
        try:
            return sorted(os.listdir(self._root + path))
        except OSError:
            return []

    def number(self, path: str) -> int | None:
        """A file that holds one number; None where there is none, or "max"."""
        text = self.read(path).strip()
        return int(text) if text.isdecimal() else None

    # -- mounts --------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def mounts(self) -> list[Mount]:
        """All of them, in the kernel's order: a later one hides an earlier one of the same place."""
        return [found for line in self.read("/proc/self/mountinfo").splitlines() if (found := _parse(line))]

    def mount_of(self, path: str) -> Mount | None:
        """What `path` lies on; None where the kernel does not tell."""
        found = None
        for mount in self.mounts:
            inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
            if inside and (found is None or len(mount.point) >= len(found.point)):
                found = mount
        return found

    # -- the store -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def location(self) -> Location:
        """Where the store is, or would be made."""
        return find_store(self.directory)

    @property
    def store(self) -> str:
        return self.location.path

    @functools.cached_property
    def place(self) -> str:
        """The store's directory, links followed; where there is none yet the nearest one above it that exists."""
        path = os.path.realpath(self.store)
        while not os.path.isdir(path) and os.path.dirname(path) != path:
            path = os.path.dirname(path)
        return path

    def draft_path(self, directory: str) -> str:
        """A new name for a file of the doctor's own in `directory`."""
        return os.path.join(directory, f"{self.trial}-{os.urandom(4).hex()}")

    @property
    def shared(self) -> str:
        """Where rings are."""
        return self.environ.get("STEPD_SHARED_MEMORY_DIR") or Settings.shared_memory_dir

    # -- where we run --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def container(self) -> str:
        """Its kind: "docker", "podman", "kubernetes", "apptainer", another one's name, or "" outside of one."""
        environ = self.environ
        if environ.get("KUBERNETES_SERVICE_HOST") or self.exists("/var/run/secrets/kubernetes.io"):
            return "kubernetes"
        if environ.get("APPTAINER_CONTAINER") or environ.get("SINGULARITY_CONTAINER"):
            return "apptainer"
        if self.exists("/.dockerenv"):
            return "docker"
        if self.exists("/run/.containerenv"):
            return "podman"
        groups = self.read("/proc/1/cgroup")
        for word, kind in (("kubepods", "kubernetes"), ("libpod", "podman"), ("docker", "docker"), ("/lxc", "lxc")):
            if word in groups:
                return kind
        return environ.get("container", "")

    @property
    def in_slurm(self) -> bool:
        return bool(self.environ.get("SLURM_JOB_ID"))


def _parse(line: str) -> Mount | None:
    """`36 35 98:0 / /mnt rw,noatime master:1 - ext4 /dev/root rw`, as proc_pid_mountinfo(5) has it."""
    before, found, after = line.partition(" - ")
    first, last = before.split(" "), after.split(" ")
    if not found or len(first) < 6 or len(last) < 2:
        return None
    options = frozenset([*first[5].split(","), *(last[2].split(",") if len(last) > 2 else ())])
    return Mount(_plain(first[4]), last[0], _plain(last[1]), options)


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
