from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdk.errors import NotFoundError, StoreError
from sdk.files import DISK, Disk
from sdk.files.failing import FailingFiles
from sdk.reader import Store, open_store
from sdk.segment.naming import RUNS
from tests.builders import START_NS, RunBuilder, make_run, make_store

DAY_NS = 86_400 * 10**9


@pytest.fixture
def store_path(tmp_path: Path) -> str:
    return make_store(tmp_path)


def three_runs(store_path: str) -> Store:
    make_run(store_path, "a41f", project="digits", name="calm-otter-1", started_ns=START_NS)
    make_run(store_path, "a4c0", project="digits", name="brave-fox-2", started_ns=START_NS + DAY_NS)
    make_run(store_path, "zz99", project="other", name="brave-fox-2", started_ns=START_NS + 2 * DAY_NS)
    return Store(store_path, now_ns=lambda: START_NS + 2 * DAY_NS + 7200 * 10**9)


def test_no_store_is_said_and_none_is_made(tmp_path: Path) -> None:
    """Reading never creates a store."""
    with pytest.raises(StoreError, match="there is no store"):
        open_store(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_default_is_what_init_would_use(store_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path STEPD_DIR counts."""
    monkeypatch.setenv("STEPD_DIR", store_path)
    assert open_store().path == store_path


def test_runs_are_newest_first(store_path: str) -> None:
    """The run that was started last comes first; a project narrows."""
    store = three_runs(store_path)
    assert [run.id for run in store.runs()] == ["zz99", "a4c0", "a41f"]
    assert [run.id for run in store.runs(project="digits")] == ["a4c0", "a41f"]
    assert store.runs(project="none") == []


def test_a_resume_makes_a_run_the_latest(store_path: str) -> None:
    """`latest` goes by the last start of a main stream; an edit from elsewhere does not count."""
    three_runs(store_path)
    run = RunBuilder(store_path, "old1")
    first = run.stream(started_ns=START_NS - DAY_NS)
    run.stream(started_ns=START_NS + 3 * DAY_NS, continues=first.hex, attempt=2)
    run.close()
    run = RunBuilder(store_path, "old2")
    run.stream(started_ns=START_NS - DAY_NS)
    run.stream("attach", started_ns=START_NS + 9 * DAY_NS)
    run.close()
    found = Store(store_path).run("latest")
    assert (found.id, found.created) == ("old1", (START_NS - DAY_NS) / 1e9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a41f", "a41f"), ("a41", "a41f"), ("calm-otter-1", "a41f"), ("latest", "zz99"), ("latest~2", "a41f"),
        ("digits/latest", "a4c0"), ("digits/brave-fox-2", "a4c0"), ("digits/", "a4c0"), ("other/zz", "zz99"),
        ("digits/a41f", "a41f"),
    ],
)  # fmt: skip
def test_what_a_run_is_called(store_path: str, text: str, expected: str) -> None:
    """Ids, prefixes, names, latest and project/… lead to a run."""
    assert three_runs(store_path).run(text).id == expected


def test_runs_that_may_not_be_read(store_path: str) -> None:
    """A list leaves out a run whose directory may not be read, and says so, until it may be."""

    class Closed(Disk):
        def entries(self, path: str) -> list[tuple[str, int, float]]:
            if path.endswith(closed):
                raise PermissionError(13, "Permission denied", path)
            return super().entries(path)

    everything = three_runs(store_path).runs()
    closed = os.path.basename(everything[0].directory)
    store = Store(store_path, files=Closed())
    seen: dict[str, float] = {}
    for _ in range(2):
        assert len(store.runs()) == len(everything) - 1
        assert store.left_out == f"1 run cannot be read: Permission denied: {closed!r}"
        assert closed not in {os.path.basename(run.directory) for run in store.changed(seen)}
        assert store.unreadable == {closed: "Permission denied"}
    closed = "/nothing"
    assert len(list(store.changed(seen))) >= 1
    assert (store.unreadable, store.left_out) == ({}, "")


def test_names_with_slashes(store_path: str) -> None:
    """The exact name wins over a project; then a project, however many slashes it or the name has; else what is near."""
    for run_id, project, name in (
        ("r1", "digits", "plain"), ("r2", "logs", "digits/plain-1"), ("r3", "logs", "mnist/eval"), ("r4", "a/b", "c"), ("r5", "a", "b/d"),
    ):  # fmt: skip
        make_run(store_path, run_id, [{"loss": 1.0}], project=project, name=name)
    store = open_store(store_path)
    for text, expected in (
        ("digits/plain-1", "r2"), ("digits/plain", "r1"), ("logs/mnist/eval", "r3"), ("mnist/eval", "r3"), ("a/b/c", "r4"),
        ("a/b/d", "r5"), ("a/b/", "r4"), ("a/latest", "r5"), ("logs/digits/plain-1", "r2"),
    ):  # fmt: skip
        assert store.run(text).id == expected, text
    for text in ("mnist/evil", "logs/mnist/evil", "digits/mnist/eval"):
        with pytest.raises(NotFoundError, match=r"no run matches .* r3 mnist/eval"):
            store.run(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a4", ["'a4' matches 2 runs", "a41f calm-otter-1 (2 d ago)", "a4c0 brave-fox-2 (yesterday)", "stepd show a4"]),
        ("brave-fox-2", ["matches 2 runs", "zz99", "a4c0"]),
        ("a42f", ["no run matches 'a42f'", "a41f calm-otter-1", "Try: stepd show a41f"]),
        ("digits/zz99", ["no run matches 'digits/zz99'", "a41f"]),
        ("latest~3", ["there are only 3 runs"]),
        ("", ["no run matches ''", "zz99 brave-fox-2 (2 h ago)"]),
    ],
)
def test_unknown_and_ambiguous(store_path: str, text: str, parts: list[str]) -> None:
    """The error names candidates, their age, and a command."""
    with pytest.raises(NotFoundError) as caught:
        three_runs(store_path).run(text)
    for part in parts:
        assert part in str(caught.value)


def test_empty_store_says_what_to_do(store_path: str) -> None:
    """An empty store is no run at all, with the cure."""
    with pytest.raises(NotFoundError, match=r"there is no run in .* yet\n  Try: sdk.init"):
        open_store(store_path).run("latest")


def test_ids_of_any_text(store_path: str) -> None:
    """An id that is no file name is found by its id, though its directory is called otherwise."""
    for run_id in ("Größe 1", "A.b", "latest"):
        make_run(store_path, run_id, [{"loss": 1.0}])
        assert open_store(store_path).run(run_id).id == run_id


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\0" * 100, b"\x89STP1\r\n\x1a" + b"\xff" * 4096, os.urandom(10_000)],
    ids=["empty", "one-byte", "zeros", "magic", "random"],
)
def test_garbage_is_damage(store_path: str, content: bytes) -> None:
    """A file that is no segment hides neither its run nor the others."""
    make_run(store_path, "good", [{"loss": 1.0}])
    directory = Path(store_path, RUNS, "bad")
    directory.mkdir()
    (directory / f"history-{1:016x}-000000.seg").write_bytes(content)
    (directory / "notes.txt").write_bytes(content)
    (Path(store_path, RUNS) / "file").write_bytes(content)
    runs = {run.id: run for run in open_store(store_path).runs()}
    assert set(runs) == {"good", "bad"}
    assert len(runs["bad"].damage) == (1 if len(content) >= 64 else 0)
    assert (runs["bad"].state, runs["bad"].keys(), list(runs["bad"].rows())) == ("crashed", [], [])
    assert runs["bad"].summary == {}


def test_links_pipes_and_directories_named_like_segments(store_path: str) -> None:
    """Nothing in a run's directory makes a reader follow, block or raise."""
    run = make_run(store_path, "good", [{"loss": 1.0}])
    secret = Path(store_path, "secret")
    secret.write_bytes(Path(run.daemon.paths[0]).read_bytes())
    Path(run.directory, f"history-{1:016x}-000000.seg").symlink_to(secret)
    os.mkfifo(os.path.join(run.directory, f"history-{2:016x}-000000.seg"))
    os.mkdir(os.path.join(run.directory, f"history-{3:016x}-000000.seg"))
    found = open_store(store_path).run("good")
    assert found.keys() == ["loss"]
    assert [os.path.basename(d.path)[8:24] for d in found.damage] == [f"{n:016x}" for n in (1, 3)]


def test_a_run_cannot_claim_the_id_of_another(store_path: str) -> None:
    """A copied directory is a run of its own name."""
    run = make_run(store_path, "a41f", [{"loss": 1.0}])
    copy = Path(store_path, RUNS, "copy")
    copy.mkdir()
    source = Path(run.daemon.paths[0])
    (copy / source.name).write_bytes(source.read_bytes())
    assert sorted(found.id for found in open_store(store_path).runs()) == ["a41f", "copy"]


def test_descriptors_are_given_back(store_path: str) -> None:
    """Listing keeps no file open, and many segments never hold many descriptors at once."""
    run = RunBuilder(store_path)
    main = run.stream()
    for _ in range(100):
        main.log({"loss": 1.0})
        run.seal()
    before = len(os.listdir("/proc/self/fd"))
    found = open_store(store_path).run("a41f")
    rows = found.rows()
    next(rows)
    assert len(os.listdir("/proc/self/fd")) - before < 70
    assert len(list(rows)) == 99
    assert len(os.listdir("/proc/self/fd")) == before


def test_listing_needs_no_numpy(store_path: str) -> None:
    """`stepd runs` does not pay for importing numpy."""
    import subprocess
    import sys

    make_run(store_path, "a41f", [{"loss": 1.0}])
    code = (
        "import sys, sdk.reader; run = sdk.reader.open_store(sys.argv[1]).runs()[0]; "
        "run.state, run.streams, run.records, run.config; sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, store_path], check=False).returncode == 0


def test_unreadable_directory(store_path: str) -> None:
    """An error of the disk in one directory becomes damage there."""
    make_run(store_path, "good", [{"loss": 1.0}])

    class Failing(type(DISK)):  # type: ignore[misc]
        def open(self, path: str, *, write: bool = False) -> object:
            if path.endswith(".seg"):
                raise OSError(5, "Input/output error", path)
            return super().open(path, write=write)

    (run,) = Store(store_path, files=Failing()).runs()
    assert "Input/output error" in run.damage[0].reason


def test_a_disk_that_does_not_list_the_runs_is_a_store_error(store_path: str) -> None:
    """And not what the operating system calls it; the next try may do."""
    files = FailingFiles()
    three_runs(store_path)
    store = Store(store_path, files=files)
    files.refuse("entries")
    with pytest.raises(StoreError, match="cannot list the runs"):
        store.runs()
    files.allow()
    assert len(store.runs()) == 3
