"""sdk.location: one rule for where the store is, and whose it is."""

from __future__ import annotations

import errno
import json
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sdk import location
from sdk.errors import StoreError
from sdk.files import DISK, Disk, DiskFile
from sdk.files.recording import RecordingFiles
from sdk.location import DIRECTORY, check_store, find_store, make_store, read_store
from sdk.segment.naming import RUNS, STORE_FILE
from tests.crash import build, nothing, safe_from

ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home and a working directory that hold no store."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work" / "deep")


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dir=`, STEPD_DIR, WANDB_DIR, the nearest store upwards, home: each hides what comes after it; nothing is created."""
    assert find_store() == (str(tmp_path / "home" / DIRECTORY), None)
    for parent in (tmp_path, tmp_path / "work"):
        make_store(str(parent / DIRECTORY))
        assert find_store() == (str(parent / DIRECTORY), None)
    monkeypatch.setenv("WANDB_DIR", "w")
    assert find_store().path == str(tmp_path / "work" / "deep" / "w")
    monkeypatch.setenv("STEPD_DIR", "~/x")
    assert find_store().path == str(tmp_path / "home" / "x")
    assert find_store(tmp_path / "given").path == str(tmp_path / "given")
    assert find_store("given/../other").path == str(tmp_path / "work" / "deep" / "other")
    assert find_store("").path == str(tmp_path / "home" / "x")
    monkeypatch.setenv("STEPD_DIR", "")
    assert find_store().path == str(tmp_path / "work" / "deep" / "w")
    assert not any((tmp_path / "home").iterdir())


def test_only_a_directory_that_holds_a_store_counts(tmp_path: Path) -> None:
    """A `.stepd` without store.json (somebody's notes) is passed by."""
    (tmp_path / "work" / DIRECTORY).mkdir()
    assert find_store().path == str(tmp_path / "home" / DIRECTORY)
    (tmp_path / "work" / DIRECTORY / STORE_FILE).mkdir()
    assert find_store().path == str(tmp_path / "home" / DIRECTORY)


@pytest.mark.parametrize("trouble", ["no entry", "root", "read-only", "missing"])
def test_without_a_usable_home_the_store_is_temporary_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """HOME unset and no entry of the user, /, a home that cannot be written or is not there: a note with the cure."""
    if trouble == "no entry":
        monkeypatch.delenv("HOME")

        def unknown(uid: int) -> Any:
            raise KeyError(uid)

        monkeypatch.setattr(pwd, "getpwuid", unknown)
    elif trouble == "root":
        monkeypatch.setenv("HOME", "/")
    elif trouble == "missing":
        monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = find_store()
    assert found.path == os.path.join(tempfile.gettempdir(), f"stepd-{os.getuid()}-store")
    assert found.note is not None
    assert "STEPD_DIR" in found.note


def test_home_unset_falls_back_to_the_users_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cron has no HOME; the password data base knows it."""
    entry = pwd.struct_passwd(("u", "x", os.getuid(), 0, "", str(tmp_path / "home"), ""))
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)
    assert find_store() == (str(tmp_path / "home" / DIRECTORY), None)


def test_a_working_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose directory is gone still finds its home."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert find_store().path == str(tmp_path / "home" / DIRECTORY)


def test_a_new_store_is_private_and_keeps_its_id(tmp_path: Path) -> None:
    """0700 and 0600, 16 random bytes, the same for whoever opens it later; no draft is left."""
    path = str(tmp_path / "a" / "store")
    made = make_store(path)
    assert (made.path, made.writable, len(made.id)) == (path, True, 16)
    assert make_store(path) == made == read_store(path)
    assert make_store(str(tmp_path / "other")).id != made.id
    assert sorted(os.listdir(path)) == [RUNS, STORE_FILE]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(os.path.join(path, STORE_FILE)).st_mode) == 0o600
    assert json.loads(Path(path, STORE_FILE).read_text()) == {"format": 1, "id": made.id.hex()}


def test_processes_that_create_a_store_at_once_agree(tmp_path: Path) -> None:
    """Six of them: one id, the one on disk."""
    code = (
        "import sys\nfrom sdk.location import make_store\nsys.stdin.read(1)\n"
        "print(make_store(sys.argv[1]).id.hex(), flush=True)\n"
    )
    path = str(tmp_path / "store")
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", code, path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT},
        )
        for _ in range(6)
    ]  # fmt: skip
    for process in crowd:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    said = {process.communicate(timeout=20)[0].strip() for process in crowd}
    assert said == {read_store(path).id.hex()}
    assert sorted(os.listdir(path)) == [RUNS, STORE_FILE]


@pytest.mark.parametrize("error", [OSError(errno.EPERM, "no links here"), FileExistsError()])
def test_one_store_file_whatever_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """Without hard links the file is renamed into place; when somebody was faster theirs is kept."""
    path = str(tmp_path / "store")
    theirs = make_store(str(tmp_path / "theirs"))

    def link(source: str, target: str) -> None:
        if isinstance(error, FileExistsError):
            os.rename(os.path.join(theirs.path, STORE_FILE), target)
        raise error

    monkeypatch.setattr(os, "link", link)
    made = make_store(path)
    assert (made.id == theirs.id) == isinstance(error, FileExistsError)
    assert sorted(os.listdir(path)) == [RUNS, STORE_FILE]


def test_someone_elses_store_is_opened_for_reading_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is fine, writing is refused with both uids and a cure; STEPD_TRUST_STORE=1 is the way in."""
    path = str(tmp_path / "store")
    made = make_store(path)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert read_store(path) == made._replace(writable=False)
    with pytest.raises(StoreError, match=f"belongs to uid {uid} .* you are uid {uid + 1}") as caught:
        make_store(path)
    assert caught.value.hint is not None
    assert "STEPD_TRUST_STORE=1" in caught.value.hint
    monkeypatch.setenv("STEPD_TRUST_STORE", "1")
    assert make_store(path) == made
    monkeypatch.setenv("STEPD_TRUST_STORE", "0")
    with pytest.raises(StoreError):
        make_store(path)


@pytest.mark.parametrize(("mode", "writable"), [(0o700, True), (0o755, True), (0o770, False), (0o702, False)])
def test_a_store_that_others_can_write_is_not_trusted(tmp_path: Path, mode: int, writable: bool) -> None:
    """Whoever can write there could put files in our way."""
    path = str(tmp_path / "store")
    make_store(path)
    os.chmod(path, mode)
    assert read_store(path).writable == writable


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"{}", b'{"format": 1}', b'{"format": 1, "id": "00"}', b'{"format": 1, "id": 5}',
     b'{"format": "x", "id": "' + b"0" * 32 + b'"}', b'{"format": 2, "id": "' + b"0" * 32 + b'"}', b"\xff\xfe", b"[" * 60_000,
     b'{"format": null, "id": "' + b"0" * 32 + b'"}', b" " * (location._STORE_FILE_BYTES_MAX + 1),
     b'{"format": 1e999, "id": "' + b"0" * 32 + b'"}'],
)  # fmt: skip
def test_a_store_file_that_cannot_be_read(tmp_path: Path, text: bytes) -> None:
    """Damage, other types, a newer format, too large, too deep: StoreError that names the file, and no change."""
    path = str(tmp_path / "store")
    make_store(path)
    Path(path, STORE_FILE).write_bytes(text)
    for attempt in (read_store, make_store):
        with pytest.raises(StoreError, match="store"):
            attempt(path)
    assert Path(path, STORE_FILE).read_bytes() == text


def test_no_store(tmp_path: Path) -> None:
    """Reading where there is none says how to name one; creating where that is impossible, too."""
    with pytest.raises(StoreError, match="there is no store") as caught:
        read_store(str(tmp_path / "none"))
    assert caught.value.hint
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(StoreError, match="cannot create a store") as caught:
            make_store(str(path))
        assert caught.value.hint
    with pytest.raises(StoreError, match="cannot create a store"):
        make_store("with\0zero")


def test_a_full_disk_is_a_store_error(tmp_path: Path) -> None:
    """The disk is reached through `Files` alone, and its trouble is told with a cure."""

    class Full(Disk):
        def create(self, path: str) -> DiskFile:
            raise OSError(28, "no space")

    with pytest.raises(StoreError, match="no space"):
        make_store(str(tmp_path / "store"), Full())
    assert DISK.entries(str(tmp_path / "store")) != []


def test_a_store_that_was_made_survives_power_loss(tmp_path: Path) -> None:
    """Whoever finds store.json finds it after a power loss too: all names above it were forced before it appeared."""
    files = RecordingFiles(str(tmp_path))
    made = make_store(str(tmp_path / "a" / "store"), files)
    safe = safe_from(files.operations, files.known)
    name = os.path.join("a", "store", STORE_FILE)
    for done in range(len(files.operations) + 1):
        operations = files.operations[:done]
        now = build(operations, [False] * done, nothing)
        later = build(operations, [one > done for one in safe[:done]], nothing)
        if name in now:
            assert os.path.join("a", "store", RUNS) in later
    assert json.loads(later[name] or b"")["id"] == made.id.hex()


def test_a_store_that_is_away_is_told_from_another_in_its_place(tmp_path: Path) -> None:
    """Nothing of it is made again: what waits is written when it is back."""
    store = make_store(str(tmp_path / "store"))
    check_store(store)
    os.rename(store.path, tmp_path / "moved")
    for away in (lambda: None, lambda: os.mkdir(store.path)):
        away()
        with pytest.raises(FileNotFoundError, match="the store is away"):
            check_store(store)
    make_store(store.path)
    with pytest.raises(OSError, match="another store") as caught:
        check_store(store)
    assert caught.value.errno == errno.ESTALE
