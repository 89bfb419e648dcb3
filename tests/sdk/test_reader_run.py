from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from sdk import platform
from sdk.reader import Gap, Run, Store
from sdk.reader.state import QUIET_SECONDS_MAX, alive_here
from sdk.segment import format as segment
from tests.builders import START_NS, RunBuilder, StreamBuilder, Writer, make_run, make_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def opened(store: str, **options: Any) -> Run:
    return Store(store, **options).run("a41f")


def dead(stream: object) -> bool:
    return False


def test_facts(store: str) -> None:
    """Everything a run says about itself comes from META records; later ones win per key."""
    run = RunBuilder(store, group="g", job_type="train", notes="n", tags=["a", "b"])
    main = run.stream(rank=0)
    main.meta({"config": {"lr": 0.1, "model": {"depth": 3}}})
    main.log({"loss": 1.0})
    main.meta({"config": {"lr": 0.2}, "run": {"name": "renamed", "tags": ["c"]}})
    main.meta({"metric": {"loss": {"summary": "min"}}, "misuse": {"bad": "a lock"}})
    main.finish()
    run.seal()
    found = opened(store)
    assert (found.id, found.name, found.project, found.group) == ("a41f", "renamed", "digits", "g")
    assert (found.job_type, found.notes, found.tags) == ("train", "n", ["c"])
    assert found.config == {"lr": 0.2, "model": {"depth": 3}}
    assert (found.metrics, found.misuse) == ({"loss": {"summary": "min"}}, {"bad": "a lock"})
    assert (found.created, found.state, found.records) == (START_NS / 1e9, "finished", 6)
    assert found.size_bytes == os.path.getsize(run.daemon.paths[0])
    (stream,) = found.streams
    assert (stream.id, stream.kind, stream.rank, stream.host, stream.pid) == (main.hex, "main", 0, "host-a", 4000)
    assert (stream.started, stream.state, stream.records, stream.first, stream.last) == (
        START_NS / 1e9, "finished", 6, 1, 6,
    )  # fmt: skip
    assert (stream.attempt, stream.parent, stream.continues) == (1, None, None)


def test_facts_of_two_streams_by_time(store: str) -> None:
    """Between streams the later change wins: an edit from elsewhere, then the trainer's own."""
    run = RunBuilder(store)
    main = run.stream()
    edit = run.stream("attach", started_ns=START_NS + 5 * 10**9)
    edit.meta({"run": {"name": "edited", "notes": "by hand"}})
    main.time_ns = START_NS + 9 * 10**9
    main.meta({"run": {"name": "own"}})
    run.close()
    assert (opened(store).name, opened(store).notes) == ("own", "by hand")


def test_facts_that_are_nonsense(store: str) -> None:
    """Facts of the wrong type are ignored."""
    run = RunBuilder(store, tags="ab", notes=5)
    main = run.stream(pid="x", attempt=None, started_ns="late", kind=3)
    main.meta(
        {"config": [1], "summary": 5, "summary_removed": "x", "hide": {"from_step": "y"}, "end": 3, "metric": None}
    )
    main.log({"loss": 1.0})
    run.close()
    found = opened(store)
    assert (found.tags, found.notes, found.config, found.summary) == ([], "", {}, {"loss": 1.0})
    assert (found.streams[0].pid, found.streams[0].kind) == (None, "main")


def test_summary(store: str) -> None:
    """What the user set, over the value at the largest step; nulls, removed keys and underscores do not show."""
    run = RunBuilder(store)
    main = run.stream()
    for step in range(30):
        main.log({"loss": float(step), "acc": 1.0, "gone": 1, "_own": 1})
    main.log({"loss": -5.0, "late": "x"}, step=3)
    main.log({"acc": None})
    main.meta({"summary": {"acc": 0.9, "best": {"step": 3}, "tmp": 1}})
    main.meta({"summary_removed": ["tmp", "gone"]})
    run.close()
    assert opened(store).summary == {"loss": 29.0, "late": "x", "acc": 0.9, "best": {"step": 3}}


def test_facts_grow(store: str) -> None:
    """`refresh` and `state` see what was stored meanwhile."""
    run = RunBuilder(store)
    main = run.stream()
    run.flush()
    found = opened(store, alive=lambda stream: True)
    main.meta({"config": {"lr": 1}})
    run.flush()
    assert found.config == {}
    found.refresh()
    assert (found.config, found.state) == ({"lr": 1}, "running")
    main.finish("failed", 1)
    run.flush()
    assert found.state == "failed"


def streams_of(store: str, *kinds_and_ends: tuple[str, str | None]) -> None:
    run = RunBuilder(store)
    for kind, end in kinds_and_ends:
        stream = run.stream(kind)
        if end:
            stream.finish(end)
    run.seal()


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ([("main", "finished")], "finished"),
        ([("main", "failed")], "failed"),
        ([("main", "interrupted")], "interrupted"),
        ([("main", None)], "crashed"),
        ([("main", "finished"), ("fork", None), ("spawn", None)], "finished"),
        ([("main", "finished"), ("main", None)], "crashed"),
        ([("main", "finished"), ("main", "failed"), ("main", None)], "failed"),
        ([("main", "finished"), ("attach", None)], "finished"),
        ([("main", "finished"), ("attach", "failed")], "failed"),
        ([("main", "nonsense")], "finished"),
        ([("fork", None)], "crashed"),
    ],
)  # fmt: skip
def test_state_of_the_dead(store: str, streams: list[tuple[str, str | None]], expected: str) -> None:
    """The worst end of main and attach streams; children are neutral."""
    streams_of(store, *streams)
    found = opened(store, alive=dead)
    assert found.state == expected
    assert {stream.state for stream in found.streams if stream.kind in ("fork", "spawn")} <= {"ended"}


def test_a_run_that_has_just_begun(store: str) -> None:
    """Its segment is there before its first record, or what it printed before that: it runs, as far as anybody can know."""
    run = RunBuilder(store)
    assert run.daemon.segment is not None
    found = opened(store, alive=dead)
    assert found.state == "running"
    late = (found.updated + QUIET_SECONDS_MAX + 1) * 1e9
    assert opened(store, alive=dead, now_ns=lambda: int(late)).state == "crashed"
    run.stream("console").log({"line": "hello"})
    run.flush()
    assert opened(store, alive=lambda stream: True).state == "running"
    assert opened(store, alive=dead).state == "crashed"


def test_a_preempted_run(store: str) -> None:
    """Who said that the scheduler would stop it, and then failed, was interrupted or died, was preempted; who finished has."""
    ends = {"failed": "preempted", "interrupted": "preempted", None: "preempted", "finished": "finished"}
    for number, (end, expected) in enumerate(ends.items()):
        run = RunBuilder(store, f"run{number}")
        main = run.stream()
        main.meta({"stream": {"preempting": True}})
        if end is not None:
            main.finish(end)
        run.flush()
        assert Store(store, alive=dead).run(run.id).state == expected
    attempt = run.stream(continues=main.hex, attempt=2)
    attempt.finish("failed")
    run.flush()
    assert Store(store, alive=dead).run(run.id).state == "failed"


def test_how_it_ended(store: str) -> None:
    """The exit code and the exception are those of the lane that gives the run its state; nonsense in them is no error."""
    run = RunBuilder(store, "a41f")
    first, second = run.stream(rank=0), run.stream(rank=1)
    run.flush()
    found = opened(store, alive=dead)
    assert (found.exit_code, found.error) == (None, None)
    first.finish()
    second.meta({"error": {"type": "ValueError", "message": "no", "traceback": 3}})
    second.finish("failed", 3)
    run.flush()
    found = opened(store, alive=dead)
    assert (found.state, found.exit_code, found.error) == ("failed", 3, ("ValueError", "no", ""))


def test_how_long_it_took(store: str) -> None:
    """Until it said that it ends, whenever its files were touched afterwards; of a killed run until it last wrote."""
    run = RunBuilder(store, "a41f")
    main = run.stream()
    main.time_ns += 30 * 10**9
    run.flush()
    killed = opened(store, alive=dead)
    assert killed.ended is None
    assert killed.duration == pytest.approx(killed.updated - killed.started)
    main.finish()
    run.flush()
    for path in Path(killed.directory).iterdir():
        os.utime(path, (4e9, 4e9))
    assert opened(store, alive=dead).duration == pytest.approx(30, abs=1)


def test_alerts(store: str) -> None:
    """In order of time; what is no alert is left out."""
    run = RunBuilder(store, "a41f")
    main = run.stream()
    main.meta({"alert": {"2000000000": {"title": "b", "text": "t", "level": "WARN"}, "x": {}, "3": 4}})
    main.meta({"alert": {"1000000000": {"title": "a", "text": None, "level": "INFO"}}})
    run.flush()
    assert opened(store, alive=dead).alerts == [(1.0, "INFO", "a", ""), (2.0, "WARN", "b", "t")]


def test_a_resume_forgives_the_crash_before_it(store: str) -> None:
    """Only the last stream of a lane counts."""
    run = RunBuilder(store)
    first = run.stream()
    run.stream(continues=first.hex, attempt=2).finish()
    run.close()
    assert opened(store, alive=dead).state == "finished"


def test_running_while_any_stream_lives(store: str) -> None:
    """A living child keeps the run running."""
    run = RunBuilder(store)
    run.stream().finish()
    child = run.stream("fork")
    run.close()
    assert opened(store, alive=lambda stream: stream.id == child.id).state == "running"


@pytest.mark.parametrize(("age", "expected"), [(-1.0, "running"), (1.0, "crashed")])
def test_elsewhere_the_age_of_the_data_decides(store: str, age: float, expected: str) -> None:
    """A stream of another host without an end is running until its files were quiet for a while."""
    run = make_run(store, "a41f", [{"loss": 1.0}], state=None)
    changed = os.stat(run.daemon.paths[0]).st_mtime
    now_ns = int((changed + QUIET_SECONDS_MAX + age) * 1e9)
    assert opened(store, now_ns=lambda: now_ns).state == expected


def test_an_observer_keeps_a_run_alive_elsewhere(store: str) -> None:
    """A run that logs nothing for hours is running as long as what its host measures is written beside it."""
    run = make_run(store, "a41f", [{"loss": 1.0}], state=None)
    changed = os.stat(run.daemon.paths[0]).st_mtime
    os.utime(run.daemon.paths[0], (changed - 3 * QUIET_SECONDS_MAX,) * 2)
    assert opened(store, now_ns=lambda: int(changed * 1e9)).state == "crashed"
    system = run.stream("system")
    system.log({"system/cpu": 1.0})
    observer = Writer(run, "observer")
    observer.rows(system)
    observer.close()
    assert opened(store, now_ns=lambda: int(changed * 1e9)).state == "running"
    assert opened(store, alive=dead).state == "crashed"


def here(run: RunBuilder, ring: str) -> StreamBuilder:
    return run.stream(host=platform.host_name(), boot_id=platform.boot_id(), ring=ring, stream_id=0x77)


def ring_path(base: Path, stream: int = 0x77) -> str:
    """The path of a stream's ring as `Ring.create` makes it."""
    directory = base / platform.own_name()
    directory.mkdir(exist_ok=True)
    return str(directory / f"{1:016x}-{stream:016x}.ring")


def test_here_the_lock_decides(store: str, tmp_path: Path) -> None:
    """On this host and boot a locked ring is a living trainer, whatever the age; an unlocked or missing one a dead one."""
    ring = ring_path(tmp_path)
    run = RunBuilder(store)
    here(run, ring)
    run.close()
    far = {"now_ns": lambda: START_NS * 2}
    lock = platform.hold_lock(ring)
    assert lock is not None
    assert opened(store, **far).state == "running"
    lock.release()
    assert opened(store, **far).state == "crashed"
    os.unlink(ring)
    assert opened(store).state == "crashed"


def test_a_ring_that_is_no_file_is_not_opened(store: str, tmp_path: Path) -> None:
    """A record that names a pipe, a device or a relative path makes nobody hang."""
    pipe = ring_path(tmp_path)
    os.mkfifo(pipe)
    link = ring_path(tmp_path / platform.own_name())
    os.symlink("/etc/passwd", link)
    for ring in (pipe, link, "/dev/zero", "relative", "", "nul\0", "/" * 5000):
        run = RunBuilder(store, "a41f")
        stream = here(run, ring)
        run.close()
        facts = opened(store)._facts.streams[stream.id]
        assert alive_here(facts) is False


@pytest.mark.parametrize("named", ["users.db", "another stream's ring"])
def test_no_other_file_is_opened_because_a_record_names_it(store: str, tmp_path: Path, named: str) -> None:
    """Looking at a run whose record names a file that this process holds a lock on leaves the lock alone."""
    path = str(tmp_path / named) if named == "users.db" else ring_path(tmp_path, 0x78)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    run = RunBuilder(store)
    here(run, path)
    run.close()
    assert opened(store).state == "crashed"
    child = os.fork()
    if child == 0:
        os._exit(platform.is_locked(path))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    os.close(descriptor)


def test_refused_records_are_gaps(store: str) -> None:
    """An episode told twice, by record and by block, counts once with its larger count."""
    run = RunBuilder(store)
    main = run.stream()
    episode = {"episode": 1, "step_min": 8, "step_max": 12, "start_ns": START_NS, "end_ns": START_NS + 10**9}
    main.gap(**episode, count=3, reason="disk full")
    run.flush()
    run.daemon.gap(main, {**episode, "count": 5, "reason": "disk full"})
    run.daemon.gap(main, {**episode, "count": 4, "reason": "disk full"})
    run.daemon.gap(main, {"episode": [2], "count": "many"})
    run.close()
    gaps = opened(store).gaps
    assert gaps == [
        Gap(main.hex, 5, 8, 12, START_NS / 1e9, START_NS / 1e9 + 1, "disk full"),
        Gap(main.hex, 0, 0, 0, None, None, "refused"),
    ]


def test_missing_sequences_are_gaps(store: str) -> None:
    """A hole in the sequences of a stream is loss, whoever wrote what is around it."""
    run = RunBuilder(store)
    main = run.stream()
    for step in range(20):
        main.log({"loss": float(step)})
    run.daemon.rows(main, main.records[:5])
    Writer(run, "spool").rows(main, main.records[8:15])
    run.daemon.rows(main, main.records[12:])
    run.daemon.close()
    found = opened(store)
    assert found.gaps == [Gap(main.hex, 3, 3, 7, None, None, "missing", 6, 8)]
    assert found.records == len(main.records) - 3


def test_damage_is_skipped_and_listed(store: str) -> None:
    """A block whose bytes changed is left out, listed and a gap; the rest is read."""
    run = RunBuilder(store)
    main = run.stream()
    blocks = []
    for start in range(3):
        for step in range(20):
            main.log({"loss": start * 20.0 + step, "note": "x" * step})
        blocks.append(run.daemon.rows(main, main.take()))
    main.finish()
    path = run.seal()
    damage_at = blocks[1].offset + 200
    with open(path, "r+b") as file:
        file.seek(damage_at)
        byte = file.read(1)
        file.seek(damage_at)
        file.write(bytes([byte[0] ^ 1]))
    found = opened(store)
    assert found.series("loss").step.tolist() == [*range(20), *range(40, 60)]
    assert [row["_step"] for row in found.rows()] == [*range(20), *range(40, 60)]
    (damage,) = found.damage
    assert (damage.path, damage.start, damage.end) == (path, blocks[1].offset, blocks[1].end)
    assert found.gaps == [Gap(main.hex, 20, 20, 39, None, None, "damage", 22, 41)]
    assert found.state == "finished"


def test_a_second_copy_heals_damage(store: str) -> None:
    """What a damaged block held is taken from blocks inside its range."""
    run = RunBuilder(store)
    main = run.stream()
    for step in range(40):
        main.log({"loss": float(step)})
    block = run.daemon.rows(main)
    run.daemon.close()
    spool = Writer(run, "spool")
    spool.rows(main, main.records[:21])
    spool.rows(main, main.records[21:])
    spool.seal()
    with open(run.daemon.paths[0], "r+b") as file:
        file.seek(block.offset + 100)
        file.write(b"\xff\xff\xff")
    found = opened(store)
    assert len(found.series("loss")) == 40
    assert (len(found.damage), found.gaps) == (1, [])


def test_headers_that_lie(store: str) -> None:
    """A block whose steps are not those of its header, whose payload is no record or no map, is damage."""
    run = RunBuilder(store)
    main = run.stream()
    main.log({"loss": 1.0})
    for _ in range(20):
        main.log({"loss": 2.0})
    run.daemon.rows(main, main.take(), step_max=3)
    for payload in (
        b"short",
        b"\xff" * 400,
        b"\x20\0\0\0\2\0\0\0" + b"\0" * 24,
        b"\x22\0\0\0\1" + b"\0" * 27 + b"\xd9\xff",
    ):
        run.daemon.segment.append(1, payload, stream=main.id, first=100, last=200, records=1, flags=1)
    run.daemon.meta({"damage": {"episode": 1}})
    run.close()
    found = opened(store)
    assert [row["_step"] for row in found.rows()] == [*range(len(list(found.rows())))]
    assert found.series("loss").step.max() <= 3
    assert len(found.damage) >= 4
    assert any("its header says 0-3" in damage.reason for damage in found.damage)
    assert any("noted by its writer" in damage.reason for damage in found.damage)


def test_a_tensor_that_lies(store: str) -> None:
    """A made-up dtype or shape takes its record away, not the run."""
    import msgpack

    from sdk.record import EXT_TENSOR

    run = RunBuilder(store)
    main = run.stream()
    for dtype, shape in (("f8,(", [1]), ("O", [1]), ("<f8", [2**62, 4]), ("<f8", [-1, 0]), (None, None)):
        main.log({"v": msgpack.ExtType(EXT_TENSOR, msgpack.packb([dtype, shape, b"12345678"]))})
        main.meta({"config": {"v": msgpack.ExtType(EXT_TENSOR, msgpack.packb([dtype, shape, b"12345678"]))}})
    main.log({"v": 1.0})
    run.close()
    found = opened(store)
    assert [row["v"] for row in found.rows()][-1] == 1.0
    assert found.summary == {"v": 1.0}
    assert found.keys() == ["v"]
    assert len(found.series("v")) >= 1
    assert found.damage


def test_a_block_of_a_newer_version_is_listed(store: str) -> None:
    """A kind of rows that this version cannot read is damage, not silence."""
    run = RunBuilder(store)
    main = run.stream()
    run.flush()
    newer = segment.COLUMNS_HEAD.pack(segment.COLUMNS_VERSION + 1, 0, 0, 0, 0, 0)
    run.daemon.segment.append(segment.KIND_COLUMNS, newer, stream=main.id, first=2, last=3, records=2, compress=False)
    run.close()
    found = opened(store)
    assert found.keys() == []
    assert "newer version" in found.damage[0].reason


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_never_raise(store: str, seed: int) -> None:
    """Whatever byte changes, everything that can be asked is answered."""
    import random

    generator = random.Random(seed)
    run = RunBuilder(store)
    main = run.stream()
    for step in range(60):
        main.log({"loss": float(step), **({"note": "x"} if step % 7 == 0 else {})})
        if step % 20 == 19:
            run.flush()
    main.finish()
    path = run.seal() if seed % 2 else (run.close(), run.daemon.paths[0])[1]
    content = bytearray(Path(path).read_bytes())
    for _ in range(generator.choice([1, 5, 50])):
        content[generator.randrange(len(content))] = generator.randrange(256)
    Path(path).write_bytes(content[: generator.choice([len(content), generator.randrange(len(content))])])
    (found,) = Store(store).runs()
    rows = list(found.rows())
    assert found.state in ("running", "finished", "failed", "crashed", "interrupted")
    assert (found.summary is not None, found.config, len(found.keys()) <= 60) == (True, {}, True)
    assert len(rows) == len(found.steps())
    for gap in found.gaps:
        assert gap.count > 0
