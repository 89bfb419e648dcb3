from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import rewriter
from daemon.commands.runs import facts
from daemon.store.listing import remember, remember_all
from sdk.files import DISK, File
from sdk.files.failing import FAULTS, FailingFiles
from sdk.files.over import FilesOver
from sdk.query.overview import lookup_of
from sdk.reader import Run, Store
from sdk.reader.digest import DIGEST_BYTES_MAX
from sdk.reader.facts import StreamFacts
from sdk.reader.listing import CACHE_BYTES_MAX, CACHE_FILE, NOT_YET, SETTLED_SECONDS, Cards, encode_cards, read_cards
from sdk.record import encode_map
from sdk.segment.naming import RUNS, run_path
from tests.builders import START_NS, RunBuilder, compact, make_run, make_store

LONG_AGO = START_NS / 1e9


def settle(store: str) -> None:
    """All directories of runs look as if they had not changed for long."""
    for name in os.listdir(os.path.join(store, RUNS)):
        os.utime(os.path.join(store, RUNS, name), (LONG_AGO, LONG_AGO))


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with two runs that are over."""
    made = make_store(tmp_path)
    make_run(made, "a41f", [{"loss": 0.5}] * 3, project="digits", tags=["x"], group="g", config={"lr": 1e-3})
    make_run(made, "b52e", [{"loss": 0.5}] * 7, project="other", state="failed")
    settle(made)
    return made


def listed(store: str) -> dict[str, Run]:
    return {run.id: run for run in Store(store).runs()}


def told(store: str) -> set[str]:
    """The runs that a list does not open."""
    return {run.id for run in Store(store).runs() if run.card is not None}


def test_what_a_list_says_is_what_the_runs_say(store: str) -> None:
    """Every fact that a list shows is the same with the cache and without."""
    before = {run.id: facts(run) for run in listed(store).values()}
    assert remember(store, Store(store).runs())
    assert told(store) == {"a41f", "b52e"}
    assert {run.id: facts(run) for run in listed(store).values()} == before
    assert [run.id for run in Store(store).runs("other")] == ["b52e"]


def test_a_listed_run_is_opened_for_the_rest(store: str) -> None:
    """What a list does not know is read from the run: streams, gaps, keys, values; and then all is as if it had been opened."""
    remember_all(store)
    for ask in (
        lambda run: (run.streams, run.gaps, run.damage, run.metrics, run.misuse),
        lambda run: (run.keys(), run.summary, run.last_step),
        lambda run: list(run.rows()),
        lambda run: [run.series("loss").value.tolist(), run.records],
    ):
        run, opened = listed(store)["a41f"], Run(run_path(store, "a41f"))
        assert run.card is not None
        assert ask(run) == ask(opened)  # type: ignore[no-untyped-call]
        assert run.card is None
        assert facts(run) == facts(opened)


class NoSegments(FilesOver):
    """A disk whose segments nobody opens."""

    def open(self, path: str, *, write: bool = False) -> File:
        assert not path.endswith(".seg")
        return super().open(path, write=write)


def test_only_what_is_listed_is_read(store: str) -> None:
    """A list over runs that are over opens no segment; changing what it gave changes nothing in the run."""
    remember_all(store)
    run = {run.id: run for run in Store(store, files=NoSegments(DISK)).runs()}["a41f"]
    facts(run)
    run.config["lr"] = 7
    run.tags.append("y")
    assert (run.config, run.tags) == ({"lr": 1e-3}, ["x"])


def added_stream(store: str) -> None:
    run = RunBuilder(store, "a41f")
    run.stream("attach").log({"more": 1.0}, step=50)
    run.seal()


def cut(store: str) -> None:
    directory = run_path(store, "a41f")
    (name,) = os.listdir(directory)
    os.truncate(os.path.join(directory, name), 200)
    os.utime(directory, (LONG_AGO, LONG_AGO))


def replaced_file(store: str) -> None:
    """Another file of the same size under another name, and the old time."""
    directory = run_path(store, "a41f")
    (name,) = os.listdir(directory)
    os.rename(os.path.join(directory, name), os.path.join(directory, name[:-5] + "9.seg"))
    os.utime(directory, (LONG_AGO, LONG_AGO))


def touched(store: str) -> None:
    """Something came and went, or was replaced by something of the same size."""
    os.utime(run_path(store, "a41f"), (LONG_AGO + 1.0, LONG_AGO + 1.0))


@pytest.mark.parametrize("change", [added_stream, cut, replaced_file, touched])
def test_a_change_makes_an_entry_void(store: str, change: Callable[[str], None]) -> None:
    """A stream that came later, a file that shrank, another file: the run is opened again, whatever the cache says."""
    remember_all(store)
    change(store)
    assert told(store) == {"b52e"}
    assert facts(listed(store)["a41f"]) == facts(Run(run_path(store, "a41f")))


def test_what_changed_just_now_is_not_kept(store: str) -> None:
    """A directory that may change again within the same tick of its clock is not kept, and is as soon as it is older."""
    directory = run_path(store, "a41f")
    now = LONG_AGO + 1000.0
    os.utime(directory, (now - SETTLED_SECONDS, now - SETTLED_SECONDS))
    remember(store, Store(store, now_ns=lambda: int(now * 1e9)).runs())
    assert told(store) == {"b52e"}
    remember(store, Store(store, now_ns=lambda: int((now + 1) * 1e9)).runs())
    assert told(store) == {"a41f", "b52e"}


def test_what_is_not_over_is_not_kept(tmp_path: Path) -> None:
    """An unsealed segment, a stream that lives, one that nobody here can know, a damaged file: such a run is never kept."""
    store = make_store(tmp_path)
    unsealed = RunBuilder(store, "unsealed")
    unsealed.stream().finish()
    unsealed.close()
    make_run(store, "living", [{"loss": 1.0}], state=None)
    make_run(store, "away", [{"loss": 1.0}], state=None)
    make_run(store, "dead", [{"loss": 1.0}], state=None)
    make_run(store, "damaged", [{"loss": 1.0}])
    (name,) = Path(run_path(store, "damaged")).iterdir()
    name.write_bytes(name.read_bytes()[:-9])
    settle(store)
    lives: dict[str, bool | None] = {"living": True, "away": None, "dead": False}

    def alive(stream: StreamFacts) -> bool | None:
        return lives[ids[stream.id]]

    ids = {s.id: run.id for run in Store(store).runs() for s in run._facts.streams.values()}
    remember(store, Store(store, alive=alive).runs())
    assert told(store) == {"dead"}
    assert listed(store)["dead"].state == "crashed"


def test_a_removed_run_leaves_the_cache(store: str) -> None:
    """The next writing drops what is not there any more; until then the list does not show it."""
    remember_all(store)
    DISK.remove_tree(run_path(store, "b52e"))
    make_run(store, "c63d", [{"loss": 1.0}])
    settle(store)
    assert set(listed(store)) == {"a41f", "c63d"}
    assert remember_all(store)
    assert set(read_cards(DISK, store)) == {"a41f", "c63d"}


def test_nothing_new_writes_nothing(store: str) -> None:
    """The file is written only when a run is over that it does not hold; opening a store for reading never writes it."""
    listed(store)
    assert not os.path.exists(os.path.join(store, CACHE_FILE))
    assert remember_all(store)
    assert not remember_all(store)


def test_a_store_that_cannot_be_written_is_listed_all_the_same(store: str) -> None:
    """Someone else's store and a disk whose every operation fails once: no cache or the whole, no draft, no error."""
    os.chmod(store, 0o777)
    assert not remember_all(store)
    os.chmod(store, 0o700)
    runs = Store(store).runs()
    for fault in FAULTS:
        for number in range(1, 30):
            files = FailingFiles(DISK)
            files.fail(fault, number)
            remember(store, runs, files)
            assert set(read_cards(DISK, store)) in (set(), {"a41f", "b52e"})
            if os.path.exists(os.path.join(store, CACHE_FILE)):
                os.remove(os.path.join(store, CACHE_FILE))
            if not files.fired:
                break
    assert sorted(os.listdir(store)) == ["runs", "store.json"]


def test_every_flipped_byte_and_every_cut_is_ignored(store: str) -> None:
    """A damaged cache is none: each run is opened."""
    remember_all(store)
    path = Path(store, CACHE_FILE)
    good = path.read_bytes()
    seed = random.randrange(1 << 32)
    print("seed", seed)
    places = [*range(20), *random.Random(seed).sample(range(len(good)), 40)]
    for data in [*(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in places), good[:-1], good[:12], b""]:
        path.write_bytes(data)
        assert read_cards(DISK, store) == {}
    path.write_bytes(good + b"\0")
    assert read_cards(DISK, store) == {}
    os.truncate(path, CACHE_BYTES_MAX + 1)
    assert set(listed(store)) == {"a41f", "b52e"}


@pytest.mark.parametrize(
    "lie",
    [
        {"id": "b52e"}, {"id": "../../etc"}, {"state": "running"}, {"state": "fine"}, {"tags": [1]}, {"tags": "x"}, {"records": -1},
        {"records": True}, {"step_max": 1.5}, {"started": math.nan}, {"updated": -math.inf}, {"name": None}, {"packed_config": "x"},
        {"id": "x" * 1_000_000}, {"notes": "x" * 1_000_000}, {"tags": [""] * 1000}, {"created": -1.0}, {"host": None}, {"exit_code": "0"},
        {"host": "x" * 1_000_000}, {"packed_digest": 3}, {"ended": -1.0},
        {"ended": 5}, {"ended": math.nan},
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_true_is_ignored(store: str, lie: dict[str, Any]) -> None:
    """Whoever makes a cache with a good checksum can still not give a run another's id, or break a list."""
    remember_all(store)
    changed, signature, card = read_cards(DISK, store)["a41f"]
    made: Cards = {"a41f": (changed, signature, card._replace(**lie))}
    Path(store, CACHE_FILE).write_bytes(encode_cards(made))
    assert told(store) == set()
    assert set(listed(store)) == {"a41f", "b52e"}


def test_a_config_that_is_long_or_a_lie_is_read_from_the_run(tmp_path: Path) -> None:
    """The config of a listed run is right, however long; one that cannot be decoded is asked of the run."""
    store = make_store(tmp_path)
    config = {"text": "x" * 5000}
    make_run(store, "a41f", [{"loss": 1.0}], config=config)
    settle(store)
    remember_all(store)
    assert told(store) == {"a41f"}
    assert listed(store)["a41f"].config == config
    changed, signature, card = read_cards(DISK, store)["a41f"]
    broken = {"a41f": (changed, signature, card._replace(packed_config=b"\xc1"))}
    Path(store, CACHE_FILE).write_bytes(encode_cards(broken))
    assert listed(store)["a41f"].config == config


@pytest.mark.parametrize(
    "lie",
    [
        b"\xc1", b"", b"\x80", encode_map({"series": []}), encode_map({"series": {}, "summary": [], "metrics": {}, "whole": True}),
        encode_map({"series": {"loss": [1.0, 1.0]}, "summary": {}, "metrics": {}}),
        encode_map({"series": {"loss": ["x", 1, 1, 1, True]}, "summary": {}, "metrics": {}}),
        encode_map({"series": {"loss": [1, 1, 1, [], True]}, "summary": {}, "metrics": {}}),
        encode_map({"series": {b"loss": [1, 1, 1, 1, True]}, "summary": {}, "metrics": {}}),
        encode_map({"series": {}, "summary": {"loss": [[1] * 99]}, "metrics": {}}),
        encode_map({"series": {}, "summary": {3: 1}, "metrics": {}}), encode_map({"series": {}, "summary": {}, "metrics": 1}),
        encode_map({"series": {}, "summary": {}, "metrics": {}, "whole": False}),
        encode_map({"series": {"x" * DIGEST_BYTES_MAX: [1, 1, 1, 1, True]}, "summary": {}, "metrics": {}, "whole": True}),
    ],
)  # fmt: skip
def test_a_digest_that_cannot_be_true_is_not_believed(store: str, lie: bytes) -> None:
    """What tables show of a run's values is asked of the run where the cache holds no digest of it, half a one or nonsense."""
    remember_all(store)
    changed, signature, card = read_cards(DISK, store)["a41f"]
    Path(store, CACHE_FILE).write_bytes(encode_cards({"a41f": (changed, signature, card._replace(packed_digest=lie))}))
    found = listed(store)["a41f"]
    assert found.card is not None
    assert [lookup_of(found)(name) for name in ("best:loss", "summary.loss", "last:none")] == [0.5, 0.5, None]


def test_definitions_in_a_digest_may_be_anything(store: str) -> None:
    """What a cache says that `define_metric` said is read as carefully as what a run says."""
    remember_all(store)
    changed, signature, card = read_cards(DISK, store)["a41f"]
    said = {
        "loss": 1,
        "": {},
        "*": {"goal": []},
        "lo*": {"summary": "max", "goal": "up"},
        "loss*": {"summary": [[], "max"]},
    }
    lie = encode_map(
        {"series": {"loss": [1, 2, 0, math.inf, True]}, "summary": {}, "metrics": said, "whole": True, "all": True}
    )
    Path(store, CACHE_FILE).write_bytes(encode_cards({"a41f": (changed, signature, card._replace(packed_digest=lie))}))
    found = lookup_of(listed(store)["a41f"])
    assert [found("best:loss"), found("summary.loss"), found("first:loss"), found("last:none")] == [
        math.inf,
        1,
        2,
        None,
    ]


def test_values_may_be_looked_at_later(store: str) -> None:
    """Who has no time keeps the facts alone; the next one that has adds the values, and a third has nothing to do."""
    assert remember(store, Store(store).runs(), seconds=0)
    assert {run.card.packed_digest for run in Store(store).runs() if run.card is not None} == {NOT_YET}
    assert lookup_of(listed(store)["a41f"])("best:loss") == 0.5
    assert remember(store, Store(store).runs())
    assert all(run.card is not None and run.card.packed_digest for run in Store(store).runs())
    assert not remember(store, Store(store).runs())


def test_values_of_many_rows_wait_for_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that is mostly rows only the facts are kept, once; when it is columns, what tables show of its values too."""
    monkeypatch.setattr("sdk.reader.digest.ROW_BYTES_MAX", 100)
    store = make_store(tmp_path)
    made = make_run(store, "a41f", [{"loss": 0.5}] * 100)
    settle(store)
    assert remember_all(store)
    assert not remember_all(store)
    assert [run.card is not None and run.card.packed_digest for run in Store(store).runs()] == [NOT_YET]
    monkeypatch.setattr("sdk.reader.digest.ROW_BYTES_MAX", 1000)
    compact(made)
    settle(store)
    assert remember_all(store)
    assert lookup_of(Store(store, files=NoSegments(DISK)).runs()[0])("best:loss") == 0.5


def test_a_run_of_many_keys_is_asked_for_those_that_are_left_out(tmp_path: Path) -> None:
    """The cache keeps some of a thousand series, the others and a long text in the summary are read from the run: nothing is missing."""
    store = make_store(tmp_path)
    rows = [{f"layer/{n}": float(n) for n in range(1000)}, {"text": "x" * 1000, "loss": 0.5}]
    make_run(store, "a41f", rows)
    settle(store)
    remember_all(store)
    (found,) = Store(store).runs()
    assert found.card is not None
    assert found.card.packed_digest is not None
    assert len(found.card.packed_digest) <= DIGEST_BYTES_MAX
    assert lookup_of(found)("best:loss") == 0.5
    assert found.card is not None
    assert [lookup_of(found)(f"max:layer/{n}") for n in (0, 500, 999)] == [0.0, 500.0, 999.0]
    assert lookup_of(found)("summary.text") == "x" * 1000
    assert lookup_of(found)("last:none") is None


def test_what_a_run_lacks_is_known_beside_its_texts(tmp_path: Path) -> None:
    """A long text in the summary does not make the run be opened for a series that it has not got."""
    store = make_store(tmp_path)
    make_run(store, "a41f", [{"text": "x" * 1000, "loss": 0.5}])
    settle(store)
    remember_all(store)
    (found,) = Store(store, files=NoSegments(DISK)).runs()
    assert [lookup_of(found)(name) for name in ("best:loss", "summary.loss", "best:none", "best:text")] == [
        0.5,
        0.5,
        None,
        None,
    ]
    assert lookup_of(Store(store).runs()[0])("summary.text") == "x" * 1000


def test_names_of_a_megabyte_are_not_kept(tmp_path: Path) -> None:
    """What is too long for a list is opened each time; the cache stays small."""
    store = make_store(tmp_path)
    make_run(store, "a41f", [{"loss": 1.0}], name="x" * 1_000_000)
    make_run(store, "b52e", [{"loss": 1.0}])
    settle(store)
    remember_all(store)
    assert told(store) == {"b52e"}


def test_the_command_writes_it_and_says_the_same(store: str) -> None:
    """`stepd runs` prints the same before and after it has made the cache, and then needs neither numpy nor rich for it."""
    code = (
        "import sys; sys.argv = ['stepd', 'runs', '--dir', sys.argv[1]]; import daemon.cli\n"
        "try: daemon.cli.main()\n"
        "finally: print(sorted({'numpy', 'rich', 'pandas', 'PIL'} & set(sys.modules)), file=sys.stderr)"
    )
    outputs = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, store], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        imported = done.stderr.strip()
        outputs.append(done.stdout)
    assert imported == "[]"
    assert outputs[0] == outputs[1]
    assert told(store) == {"a41f", "b52e"}


def test_the_worker_keeps_what_is_over(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pass the worker has written the cache, whatever it had to do."""
    monkeypatch.setattr(rewriter, "behave_as_worker", lambda: lambda: True)
    monkeypatch.setattr(rewriter.compacting, "work", lambda *_, **__: rewriter.Report())
    monkeypatch.setattr(rewriter.encoding, "work", lambda *_, **__: rewriter.Done(0, 0, {}, 0, []))
    assert rewriter.main(store) == 0
    assert told(store) == {"a41f", "b52e"}
