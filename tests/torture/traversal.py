"""Names that try to leave the store, through every way in: nothing outside of it is made, read, changed or removed.

A case is a name and an entry point. The store lies beside canaries and a directory whose name begins as its own; after
every case the canaries are as they were and everything new in the store is a directory of one run, whose name is plain.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner

import sdk
from daemon.cli import cli
from sdk import _greeting
from sdk.errors import Error
from sdk.ids import run_directory
from sdk.journal.ring import Ring
from sdk.limits import RUN_ID_CHARACTERS_MAX
from sdk.location import StoreIdentity, make_store
from sdk.platform import shared_directory, store_digest
from sdk.segment.naming import RUNS, run_path
from sdk.transport import endpoint_path, lock_path, stopped_path
from sdk.wire.messages import Batch, Hello
from tests.builders import make_run
from tests.ingest_rig import Rig
from tests.serving import packed, row, rows
from tests.torture.harness import Result, torture

_PLAIN = re.compile(r"[a-z0-9%~][a-z0-9%_~-]{0,63}")
_SECRET = "what stands outside"
_OUTSIDE = ("canary", "store-evil/canary", "store-evil/runs/x/history-0000000000000001-000000.seg", "work/canary")


def _dotted() -> Iterator[str]:
    """Ways up, plain and encoded once or twice, with every separator."""
    ups = (
        "..",
        ".",
        "...",
        "%2e%2e",
        "%252e%252e",
        "..%00",
        ". .",
        "..;",
        "%c0%ae%c0%ae",
        "\uff0e\uff0e",
        "..\\..",
        "\u2025",
    )
    ends = ("", "/", "/canary", "\\canary", "%2fcanary", "%252fcanary", "%5ccanary", "/../canary", "/./../canary", "//canary",
            "\u2215canary", "\uff0fcanary", "/store-evil/canary", "/../../../../../../../../etc/passwd",
            "\0/canary", "\n/canary")  # fmt: skip
    for up, end in itertools.product(ups, ends):
        yield up + end


def _names() -> list[str]:
    found = [
        *_dotted(),
        "/", "//", "/etc/passwd", "/etc", "~", "~root", "~/canary", "$HOME", "${HOME}/x", "`id`", "$(id)", "-rf", "--help", "-o",
        "C:", "C:\\x", "c:/x", "\\\\server\\share", "\\\\?\\C:\\x", "file:///etc/passwd", "ipc://x", "x:stream", "x::$DATA",
        "con", "CON", "con.txt", "nul", "NUL", "prn", "aux", "com1", "COM9", "lpt1", "LPT9", "clock$", "conin$",
        "x.", "x..", "x ", " x", "x. ", "x\t", "\t", " ", ".", "..", ".hidden", "x/", "x//y", "x\\y", "x\0y", "x\ny", "x\ry",
        "\0", "\n", "\r\n", "\x1b[2J", "\x7f", "\x9b", "\u202egpj.exe", "\u2066x\u2069", "\u200bx", "x\u200b",
        "\ufeffx", "\u2028", "\u00a0x",
        "a" * 64, "a" * 65, "a" * 127, "a" * 128, "a" * 129, "a" * 255, "a" * 256, "a" * 4096, "\u00e9" * 64,
        "\u00e9" * 128, "\U0001f600" * 64,
        "../" * 40 + "x", "./" * 60, "%2e%2e%2f" * 14, ("a" * 63 + "~") * 2, "a" * 47 + "~0123456789abcdef",
        "e\u0301", "\u00e9", "A\u030a", "\u00c5", "\u212b", "\ufb01", "fi", "\u0131", "i", "\u017f", "s", "\u1e9e", "\u00df", "SS", "ss",
        "run", "Run", "RUN", "rUN", "%72un", "r%75n", "run~", "run%", "run_", "run-", "_run", "\u0440un", "ru\u0578", "\uff52un",
        "store-evil", "../store-evil", "../store-evil/runs/x", "../store/runs/x", "../../store", "store.json", "runs", "trash", "aside",
        "../trash", "../store.json", "../daemon.log", "history-0000000000000001-000000.seg", "link", "link/canary", "link/..", "latest",
        "latest~1", "latest~99999999999", "project/../x", "p/latest", "/latest", "x?y", "x#y", "x*y", "x|y", "<x>", '"x"', "'x'",
        "x,y", "x;y",
        "\ud800", "\udcff", "x\udc80", "{}", "{0}", "%s", "%n%n", "%(x)s", "None", "null", "0", "-1", "1e309", "[a-z]*", "", "\u0000\u0000",
        unicodedata.normalize("NFD", "\u01d5\u1ea4"), unicodedata.normalize("NFC", "\u01d5\u1ea4"), "\u0344", "\u0308\u0301",
    ]  # fmt: skip
    return list(dict.fromkeys(found))


NAMES = _names()


class World:
    """A store among canaries, and the ways into it."""

    def __init__(self, root: str) -> None:
        self.root = root
        for name in _OUTSIDE:
            path = Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_SECRET)
        self.store: StoreIdentity = make_store(os.path.join(root, "store"))
        self.runs = os.path.join(self.store.path, RUNS)
        make_run(self.store.path, "run", [{"x": 1.0}])
        self.rig = Rig(self.store)
        self._canaries = self._outside()
        self._stream = 0xE0000
        self.entries: list[Callable[[str], None]] = [
            self.init_id, self.init_everything, self.resume, self.attach, self.hello, self.meta, self.ring_of_the_dead, self.on_disk,
            self.open_run, self.api_run, self.show, self.export, self.tail, self.plot, self.output, self.rm,
        ]  # fmt: skip

    def _outside(self) -> dict[str, object]:
        """Everything below the root but the store, with content."""
        found: dict[str, object] = {}
        for directory, folders, files in os.walk(self.root):
            if directory == self.root:
                folders.remove("store")
            found[directory] = sorted(folders)
            for name in files:
                path = Path(directory, name)
                found[str(path)] = path.read_bytes() if path.is_file() else os.readlink(path)
        return found

    def check(self) -> None:
        assert self._outside() == self._canaries, "something outside of the store changed"
        inside = set(os.listdir(self.store.path)) - {"trash"}
        assert inside <= {"store.json", RUNS}, inside
        for name in os.listdir(self.runs):
            assert _PLAIN.fullmatch(name), name
            assert ".." not in name
        for entry in os.scandir(self.runs):
            assert entry.is_dir(follow_symlinks=False), entry.name
            if entry.name != "run":
                shutil.rmtree(entry.path)  # a command looks at every run, and there would be hundreds

    def close(self) -> None:
        self.rig.close()
        directory, digest = shared_directory("/dev/shm"), store_digest(self.store.path)
        for name in os.listdir(directory):
            if name.startswith(digest):
                os.unlink(os.path.join(directory, name))
        for path in (endpoint_path(self.store.path), lock_path(self.store.path), stopped_path(self.store.path)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    # -- the SDK -----------------------------------------------------------------------------------------------------

    def _run(self, **arguments: Any) -> None:
        settings = {"silent": True, "autostart": False, "ring_bytes": 1 << 18}
        with contextlib.suppress(Error, ValueError):
            run = sdk.init(dir=self.store.path, settings=settings, reinit="create_new", **arguments)
            run.log({"x": 1})
            run.finish()
            assert run._store.path == self.store.path

    def init_id(self, name: str) -> None:
        self._run(id=name, project="p")

    def init_everything(self, name: str) -> None:
        self._run(project=name)
        self._run(
            id="run", project="p", name=name, group=name, job_type=name, notes=name, tags=[name], config={name: name}
        )

    def resume(self, name: str) -> None:
        self._run(id=name, resume="must")

    def attach(self, name: str) -> None:
        with contextlib.suppress(Error, ValueError):
            run = sdk.attach(
                name, dir=self.store.path, settings={"silent": True, "autostart": False, "ring_bytes": 1 << 18}
            )
            run.finish()

    # -- the daemon --------------------------------------------------------------------------------------------------

    def _next_stream(self) -> int:
        self._stream += 1
        return self._stream

    def hello(self, name: str) -> None:
        client = self.rig.client(self._next_stream(), name)
        with contextlib.suppress(UnicodeEncodeError):
            client.send(Hello(1, 1, client.stream, name, self.store.id, 0, "", os.getpid(), "0", {}))
            client.send(Batch(client.stream, 1, 2, 0, 2, rows(1, 2)))
        client.barrier()
        self.rig.tick(10.0)
        self.rig.clients.remove(client)
        client.close()

    def ring_of_the_dead(self, name: str) -> None:
        """The ring of a killed trainer whose header names the run."""
        stream = self._next_stream()
        with contextlib.suppress(ValueError):
            ring, _ = Ring.create(
                "/dev/shm", store_digest(self.store.path), stream, 1 << 18, {"run": name, "store": self.store.id}
            )
            record = packed([row(1)])
            ring.data[: len(record)] = record
            ring.words[0] = len(record)
            ring.abandon()
            self.rig.look()
            assert ring.path is not None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(ring.path)

    # -- the store ---------------------------------------------------------------------------------------------------

    def meta(self, name: str) -> None:
        """Segments whose records claim to be of another run."""
        run = make_run(self.store.path, "claims", [{"x": 1.0}])
        run.facts["id"] = name
        run.stream(stream_id=self._next_stream())
        run.daemon.meta({"run": name, "writer": {"kind": "spool", "stream": name, "host": name}})
        run.close()
        found = sdk.open_store(self.store.path).run("claims")
        assert found.id == "claims"
        assert len(found.series("x")) == 1
        shutil.rmtree(run.directory)

    def on_disk(self, name: str) -> None:
        """A directory of that name among the runs, made by somebody else."""
        if not _is_child(self.runs, name):
            return
        path = os.path.join(self.runs, name)
        try:
            os.mkdir(path)
        except (OSError, ValueError):
            return
        source = Path(run_path(self.store.path, "run"))
        for segment in source.glob("*.seg"):
            shutil.copy(segment, path)
        for run in sdk.open_store(self.store.path).runs():
            assert os.path.dirname(run.directory) == self.runs
            run.keys(), run.state
        self._command("runs")
        shutil.rmtree(path)

    def open_run(self, name: str) -> None:
        with contextlib.suppress(Error):
            assert os.path.dirname(sdk.open_store(self.store.path).run(name).directory) == self.runs

    def api_run(self, name: str) -> None:
        with contextlib.suppress(Error, ValueError):
            sdk.Api(overrides={"dir": self.store.path}).run(name)

    # -- commands ----------------------------------------------------------------------------------------------------

    def _command(self, *words: str) -> None:
        result = CliRunner().invoke(cli, ["--dir", self.store.path, *words])
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
        assert _SECRET not in result.output

    def show(self, name: str) -> None:
        self._command("show", "--", name)

    def export(self, name: str) -> None:
        self._command("export", "--", name)

    def tail(self, name: str) -> None:
        self._command("tail", "--", name)

    def plot(self, name: str) -> None:
        self._command("plot", "--", name)

    def output(self, name: str) -> None:
        """`export -o`: the file that was named and no other; a directory or what cannot be a path is an error."""
        if not _is_child(os.getcwd(), name) or os.path.lexists(name):
            return
        self._command("export", "run", "-o", name)
        with contextlib.suppress(OSError, ValueError):
            os.unlink(name)

    def rm(self, name: str) -> None:
        self._command("rm", "--", name)
        make_run(self.store.path, "run", [{"x": 1.0}]) if not os.path.isdir(os.path.join(self.runs, "run")) else None


def _is_child(directory: str, name: str) -> bool:
    """Whether a name is one component: what a path may legally be is not what is tested here."""
    return bool(name) and name not in (".", "..", "-") and "/" not in name and "\0" not in name


@contextlib.contextmanager
def _world() -> Iterator[World]:
    before, temporary = os.getcwd(), tempfile.tempdir
    root = tempfile.mkdtemp(prefix="stepd-test-")
    world = World(root)
    try:
        os.chdir(os.path.join(root, "work"))
        tempfile.tempdir = os.path.join(root, "store")  # a store elsewhere would be seen
        _greeting.set_quiet(True)
        with contextlib.redirect_stderr(io.StringIO()):
            yield world
    finally:
        tempfile.tempdir = temporary
        os.chdir(before)
        world.close()
        shutil.rmtree(root, ignore_errors=True)


def _entry_count() -> int:
    return 16


@torture(full=lambda: len(NAMES) * _entry_count(), every=3, beside=True)
def traversal_names(cases: Iterable[int]) -> Iterator[Result]:
    """Names that try to leave the store, through every way in: everything outside is as it was."""
    with _world() as world:
        assert len(world.entries) == _entry_count()
        for case in cases:
            name, entry = NAMES[case // _entry_count()], world.entries[case % _entry_count()]
            entry(name)
            world.check()
            yield Result(case)


def distinct_ids() -> dict[str, list[str]]:
    """Directory to the names that lead there, as a file system that folds case and normalises sees it."""
    found: dict[str, list[str]] = {}
    for name in NAMES:
        if 0 < len(name) <= RUN_ID_CHARACTERS_MAX:
            directory = unicodedata.normalize("NFC", run_directory(name)).casefold().rstrip(". ")
            found.setdefault(directory, []).append(name)
    return found


__all__ = ["NAMES", "distinct_ids", "traversal_names"]
