"""sdk.platform: locks that tell who lives, private directories, shared memory, and a process that is nobody's child.

Real processes throughout: what is tested here is what the kernel does.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdk import platform
from sdk.errors import StoreError
from sdk.platform import linux

ROOT = str(Path(__file__).resolve().parents[2])
# Limit: how long a test waits for a process of its own before it is called hung.
PATIENCE = 20.0


class Child:
    """A Python process that runs `code` and talks to the test in lines."""

    def __init__(self, code: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT},
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready, "the child says nothing"
        return self.process.stdout.readline().decode().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


HOLDER = """
import sys
from sdk import platform
lock = platform.hold_lock(sys.argv[1])
print("held" if lock else "refused", flush=True)
sys.stdin.read(1)
lock.release()
print("released", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def children() -> Iterator[list[Child]]:
    made: list[Child] = []
    yield made
    for child in made:
        child.kill()


# -- locks -----------------------------------------------------------------------------------------------------------------


def test_a_lock_lives_as_long_as_its_process(tmp_path: Path, children: list[Child]) -> None:
    """Seen from another process: held, its owner's pid, not to be had; free the moment the owner is killed."""
    path = str(tmp_path / "lock")
    assert not platform.is_locked(path)
    children.append(holder := Child(HOLDER, path))
    assert holder.line() == "held"
    assert platform.lock_owner(path) == holder.process.pid
    assert platform.hold_lock(path) is None
    assert platform.open_shared(path) is None
    holder.kill()
    assert platform.lock_owner(path) is None
    lock = platform.hold_lock(path)
    assert lock is not None
    lock.release()


@pytest.mark.parametrize("made_again", [True, False])
def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(
    tmp_path: Path, children: list[Child], monkeypatch: pytest.MonkeyPatch, made_again: bool
) -> None:
    """Between open and lock somebody removes the file: what is locked is the file that others find, or nothing."""
    path = str(tmp_path / "lock")
    real = linux.lock_descriptor

    def late(descriptor: int) -> tuple[int, int] | None:
        monkeypatch.setattr(linux, "lock_descriptor", real)
        os.unlink(path)
        if made_again:
            children.append(other := Child(HOLDER, path))
            assert other.line() == "held"
        return real(descriptor)

    monkeypatch.setattr(linux, "lock_descriptor", late)
    lock = platform.hold_lock(path)
    if made_again:
        assert lock is None
        assert platform.lock_owner(path) == children[0].process.pid
    else:
        assert lock is not None
        children.append(other := Child(HOLDER, path))
        assert other.line() == "refused"
        lock.release()


def test_release_frees_the_lock_while_the_process_lives(tmp_path: Path, children: list[Child]) -> None:
    """`release` is not bound to the end of the process; the file stays."""
    path = str(tmp_path / "lock")
    children.append(holder := Child(HOLDER, path))
    assert holder.line() == "held"
    assert holder.process.stdin is not None
    holder.process.stdin.write(b"x")
    holder.process.stdin.flush()
    assert holder.line() == "released"
    assert not platform.is_locked(path)
    assert os.path.exists(path)


def test_one_process_never_holds_a_lock_twice_and_never_loses_it_by_asking(
    tmp_path: Path, children: list[Child]
) -> None:
    """A record lock falls with any close of the file in its process, so asking must not open it."""
    path = str(tmp_path / "lock")
    lock = platform.hold_lock(path)
    assert lock is not None
    assert platform.hold_lock(path) is None
    assert platform.open_shared(path) is None
    assert platform.lock_owner(path) == os.getpid()
    assert platform.is_locked(path)
    children.append(other := Child(HOLDER, path))
    assert other.line() == "refused"
    lock.write(b"long text")
    lock.write(b"me")
    assert Path(path).stat().st_size == 2
    lock.release()
    lock.release()
    again = platform.hold_lock(path)
    assert again is not None
    again.release()


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    """The child sees its parent's lock as anybody does, its exit does not free it, and it outlives the parent without it."""
    path = str(tmp_path / "lock")
    lock = platform.hold_lock(path)
    assert lock is not None
    said, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            answers = [platform.lock_owner(path) == os.getppid(), platform.hold_lock(path) is None]
            lock.release()
            os.write(say, bytes(answers))
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(said, 9) == b"\1\1"
    os.close(said)
    os.close(say)
    asked = subprocess.run(
        [sys.executable, "-c", "import sys; from sdk import platform; print(platform.is_locked(sys.argv[1]))", path],
        capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=True, env={**os.environ, "PYTHONPATH": ROOT},
    )  # fmt: skip
    assert asked.stdout.strip() == "True"
    lock.release()


def test_an_orphan_does_not_keep_its_dead_parent_alive(tmp_path: Path, children: list[Child]) -> None:
    """A DataLoader worker that outlives its killed trainer does not hold the trainer's lock: `flock` would."""
    path = str(tmp_path / "lock")
    code = (
        "import os, sys\nfrom sdk import platform\nlock = platform.hold_lock(sys.argv[1])\n"
        "pid = os.fork()\nif pid == 0:\n    sys.stdin.read()\n    os._exit(0)\nprint(pid, flush=True)\nsys.stdin.read()\n"
    )
    children.append(parent := Child(code, path))
    orphan = int(parent.line())
    assert platform.is_locked(path)
    os.kill(parent.process.pid, signal.SIGKILL)
    parent.process.wait(PATIENCE)
    os.kill(orphan, 0)
    assert not platform.is_locked(path)


def test_no_file_is_no_lock(tmp_path: Path) -> None:
    """`create=False` makes nothing; a link is not followed."""
    path = str(tmp_path / "none")
    assert platform.hold_lock(path, create=False) is None
    assert platform.open_shared(path) is None
    assert platform.lock_owner(path) is None
    assert not os.path.exists(path)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError):
        platform.hold_lock(str(tmp_path / "link"))
    assert not (tmp_path / "target").exists()


# -- directories -----------------------------------------------------------------------------------------------------------


def test_a_private_directory_is_made_with_its_mode(tmp_path: Path) -> None:
    """0700 whatever the umask lets through; a second call takes what is there."""
    old = os.umask(0)
    try:
        path = platform.shared_directory(str(tmp_path))
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert platform.shared_directory(str(tmp_path)) == path


@pytest.mark.parametrize("spoil", ["mode", "group", "symlink", "file", "owner"])
def test_a_directory_that_others_could_use_is_refused(
    tmp_path: Path, spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong mode, a link, a plain file, someone else's: StoreError with what was found and a cure."""
    path = tmp_path / f"stepd-{os.getuid()}"
    if spoil == "symlink":
        (tmp_path / "real").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "real")
    elif spoil == "file":
        path.touch(mode=0o700)
    else:
        path.mkdir(mode=0o700)
        path.chmod({"mode": 0o777, "group": 0o710}.get(spoil, 0o700))
    if spoil == "owner":
        uid = os.getuid()
        path.rename(tmp_path / f"stepd-{uid + 1}")
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(StoreError, match="not a private directory") as caught:
        platform.shared_directory(str(tmp_path))
    assert caught.value.hint


def test_the_runtime_directory_does_not_depend_on_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ssh, cron and a batch job must find the same socket, so TMPDIR and XDG_RUNTIME_DIR count for nothing."""
    path = platform.runtime_directory()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert platform.runtime_directory() == path
    assert len(f"{path}/{'x' * 16}.sock") < 100


def test_a_store_is_named_by_what_it_is_not_by_how_it_is_written(tmp_path: Path) -> None:
    """Two paths of one directory have one digest; another directory has another."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    one = platform.store_digest(str(tmp_path / "a"))
    assert platform.store_digest(str(tmp_path / "link")) == one
    assert platform.store_digest(str(tmp_path / "b")) != one
    assert len(one) == 16


# -- shared memory ---------------------------------------------------------------------------------------------------------


def test_shared_files_are_whole_private_and_locked(tmp_path: Path) -> None:
    """Every page is there before anybody writes; a taken name changes nothing; the size is counted."""
    path = str(tmp_path / "shared")
    descriptor, mapping = platform.create_shared(path, 3 * 4096)
    assert os.stat(path).st_size == 3 * 4096
    assert os.stat(path).st_blocks * 512 >= 3 * 4096
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert platform.is_locked(path)
    assert platform.shared_used(str(tmp_path)) == 3 * 4096
    with pytest.raises(FileExistsError):
        platform.create_shared(path, 4096)
    assert os.stat(path).st_size == 3 * 4096
    linux.forget_lock(descriptor)
    mapping.close()
    os.close(descriptor)
    assert not platform.is_locked(path)


def test_no_room_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full file system is an OSError, not a SIGBUS later, and the name is free again."""

    def full(*_: Any) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="no space"):
        platform.create_shared(str(tmp_path / "shared"), 4096)
    assert os.listdir(tmp_path) == []


def test_sizes_of_what_is_not_there(tmp_path: Path) -> None:
    """0 bytes of shared memory where there is none."""
    assert platform.shared_size(str(tmp_path / "none")) == 0
    assert platform.shared_size(str(tmp_path)) > 0


@pytest.mark.parametrize("size", [4096, linux._TOUCH_BYTES, linux._TOUCH_BYTES + 4096, 3 * linux._TOUCH_BYTES])
def test_touch_changes_no_byte(size: int) -> None:
    """A ring is touched when its header is written already, and may be while records are: all bytes stay."""
    mapping = mmap.mmap(-1, size)
    mapping[:4] = b"head"
    mapping[-4:] = b"tail"
    platform.touch(mapping)
    assert (mapping[:4], mapping[-4:], mapping[4:-4].count(0)) == (b"head", b"tail", size - 8)
    mapping.close()


@pytest.mark.parametrize("private", [True, False])
def test_touch_leaves_no_page_fault_to_the_loop(tmp_path: Path, private: bool) -> None:
    """After it, writing each page of a mapping takes hardly a page fault."""
    pages = 2048
    size = pages * mmap.PAGESIZE
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(tmp_path)
    path = f"{shm}/stepd-test-{os.getpid()}-{os.urandom(4).hex()}"
    descriptor = -1
    if private:
        mapping = mmap.mmap(-1, size)
    else:
        descriptor, mapping = platform.create_shared(path, size)
    try:
        platform.touch(mapping)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for start in range(0, size, mmap.PAGESIZE):
            mapping[start] = 1
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages // 8
    finally:
        mapping.close()
        if descriptor >= 0:
            linux.forget_lock(descriptor)
            os.close(descriptor)
            os.unlink(path)


# -- processes -------------------------------------------------------------------------------------------------------------

REPORTER = f"""
import sys
sys.path.insert(0, {ROOT!r})
from sdk import platform
platform.detach_from_starter()
import json, os
facts = {{
    "pid": os.getpid(), "ppid": os.getppid(), "sid": os.getsid(0), "cwd": os.getcwd(), "nice": os.nice(0),
    "descriptors": {{n: os.readlink("/proc/self/fd/" + n) for n in os.listdir("/proc/self/fd") if os.path.lexists("/proc/self/fd/" + n)}},
    "environment": dict(os.environ), "arguments": sys.argv[1:], "cpus": len(os.sched_getaffinity(0)),
    "comm": open("/proc/self/comm").read().strip(), "oom": open("/proc/self/oom_score_adj").read().strip(),
}}
with open(sys.argv[1] + ".tmp", "w") as file:
    json.dump(facts, file)
os.rename(sys.argv[1] + ".tmp", sys.argv[1])
"""


def test_a_detached_process_is_nobodys_child(tmp_path: Path) -> None:
    """Own session, cwd /, null on 0-2 and nothing else inherited, all CPUs, nice, first for the OOM killer, clean environment."""
    inherited = os.open(str(tmp_path / "secret"), os.O_RDWR | os.O_CREAT)
    os.set_inheritable(inherited, True)
    target = str(tmp_path / "facts")
    environment = {
        "HOME": "/h", "PATH": os.environ.get("PATH", ""), "STEPD_DIR": "/s", "LD_PRELOAD": "", "CUDA_VISIBLE_DEVICES": "3",
        "OMP_NUM_THREADS": "1", "NCCL_DEBUG": "INFO", "PYTHONHASHSEED": "1", "PYTHONWARNINGS": "error", "MKL_NUM_THREADS": "1",
    }  # fmt: skip
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    try:
        starter = platform.spawn_detached(REPORTER, environment, [target, "two words"])
    finally:
        os.sched_setaffinity(0, affinity)
    assert os.waitpid(starter, 0) == (starter, 0)
    os.close(inherited)
    wait_until(lambda: os.path.exists(target))
    facts = json.loads(Path(target).read_text())
    assert facts["sid"] not in (os.getsid(0), facts["pid"])
    assert facts["sid"] == starter
    assert facts["ppid"] != os.getpid()
    assert facts["cwd"] == "/"
    assert {n: t for n, t in facts["descriptors"].items() if not t.startswith("/proc/")} == dict.fromkeys(
        "012", "/dev/null"
    )
    assert facts["arguments"] == [target, "two words"]
    assert facts["environment"].get("STEPD_DIR") == "/s"
    assert not [name for name in facts["environment"] if name.startswith(linux._DROPPED_PREFIXES)]
    assert (facts["comm"], facts["oom"]) == ("stepd", "500") or os.getuid() != 0
    assert facts["nice"] >= min(os.nice(0) + 5, 19)
    assert facts["cpus"] == os.cpu_count() or facts["cpus"] == len(affinity)


def wait_until(condition: Any) -> None:
    """Waits on a condition that another process makes true; the pause is only how often it is looked at."""
    import time

    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def test_names_of_host_and_boot() -> None:
    """Both are there on Linux and do not change between two looks."""
    assert platform.host_name() == os.uname().nodename
    assert platform.boot_id() == platform.boot_id()
    assert len(platform.boot_id()) == 36


def test_a_machine_has_an_id_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same at every look and after a boot; another one where another id is kept; none where none can be kept."""
    linux.machine_id.cache_clear()
    first = platform.machine_id()
    linux.machine_id.cache_clear()
    assert platform.machine_id() == first
    assert len(first) == 32
    found = []
    for place in ("one", "two", "one"):
        (tmp_path / place).mkdir(exist_ok=True)
        monkeypatch.setattr(linux, "_private_directory", lambda path, place=place: str(tmp_path / place))
        linux.machine_id.cache_clear()
        found.append(platform.machine_id())
    assert found[0] == found[2] != found[1] != first

    def refuse(path: str) -> str:
        raise OSError

    monkeypatch.setattr(linux, "_private_directory", refuse)
    linux.machine_id.cache_clear()
    assert platform.machine_id() == ""
    monkeypatch.undo()
    linux.machine_id.cache_clear()


def test_a_process_that_waits_to_be_reaped_has_ended() -> None:
    """Its pid is still there; whoever asks whether a trainer lives must not wait for its parent."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    wait_until(lambda: not platform.process_lives(pid))
    assert os.path.exists(f"/proc/{pid}")
    os.waitpid(pid, 0)
    assert not platform.process_lives(pid)
    assert platform.process_lives(os.getpid())
    assert platform.pid_namespace().startswith("pid:")


def test_the_descriptor_limit_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft limit becomes the hard one; a system that refuses is not our trouble."""
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, old[0]), old[1]))
        platform.raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (old[1], old[1])

        def refuse(*_: Any) -> None:
            raise ValueError

        monkeypatch.setattr(resource, "setrlimit", refuse)
        platform.raise_descriptor_limit()
    finally:
        monkeypatch.undo()
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
