"""`stepd compact`: what it prints, what it removes, and what it leaves alone."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from daemon.cli import cli
from daemon.commands import compact
from daemon.encode import work
from daemon.store import replacing
from daemon.store.replacing import hold
from sdk import clock
from sdk.errors import NotFoundError
from sdk.files import DISK
from sdk.reader import Run, open_store
from sdk.reader.verify import verify_run
from sdk.reader.waiting import Waiting
from sdk.segment.naming import MEDIA, run_path
from tests.builders import RunBuilder, make_store
from tests.media_rig import MediaBuilder, packed

DAY = 86_400 * 10**9


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def media_run(store: str, run_id: str = "a41f") -> MediaBuilder:
    run = RunBuilder(store, run_id)
    return MediaBuilder(run, run.stream(started_ns=clock.wall_ns() - 40 * DAY))


def log(media: MediaBuilder, text: str, key: str = "x", **more: Any) -> None:
    """One row with a page that is its text, a hundred times over."""
    blob = media.blob(text.encode() * 100, {"media": "html-file", "format": "html", "key": key, "step": 0})
    media.log_packed({key: packed("html-file", format="html", data=blob), **more})


def finish(media: MediaBuilder) -> Run:
    media.stream.finish()
    media.seal()
    return opened(media)


def opened(media: MediaBuilder) -> Run:
    return open_store(os.path.dirname(os.path.dirname(media.run.directory))).run(media.run.id)


def stepd(store: str, *words: str) -> Result:
    result = CliRunner().invoke(cli, ["--dir", store, "compact", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def outcome(store: str, *words: str) -> dict[str, Any]:
    """What the command says of the one run of the store, as JSON."""
    (one,) = json.loads(stepd(store, "--json", *words).output)["runs"]
    found: dict[str, Any] = one
    return found


def files_of(store: str, run_id: str = "a41f") -> list[str]:
    return [name for name in os.listdir(run_path(store, run_id)) if name.startswith(MEDIA)]


def texts(run: Run, key: str = "x") -> list[str]:
    """What can be read of a key's pages; for those that cannot, why."""
    found = []
    for item in run.media(key):
        try:
            found.append(item.bytes().decode()[:1])
        except NotFoundError as error:
            found.append(error.message.partition("removed: ")[2])
    return found


def test_many_files_become_one(store: str) -> None:
    """A run of twelve media segments is one file then; the second time there is nothing to do."""
    media = media_run(store)
    for text in "abcabcabcabc":
        log(media, text)
        media.seal()
    run = finish(media)
    assert len(files_of(store)) == 12
    result = stepd(store)
    rows, values = result.output.splitlines()
    assert result.exit_code == 0
    assert re.fullmatch(r"run a41f: \d+ records in 1 file, [\d.]+ k?B became [\d.]+ k?B", rows)
    assert values.startswith("run a41f: 12 large values in 1 file, ")
    assert len(files_of(store)) == 1
    assert texts(opened(media)) == texts(run) == list("abcabcabcabc")
    assert verify_run(DISK, run.directory).findings == []
    assert stepd(store).output == "nothing to do\n"


def test_a_rewriting_holds_few_files_open(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of many small files is rewritten in portions, which are joined afterwards."""
    monkeypatch.setattr(work, "_SOURCES_MAX", 2)
    media = media_run(store)
    for text in "abcdefghijklmnop":
        log(media, text)
        media.seal()
    finish(media)
    assert outcome(store)["files"] <= 4
    assert texts(opened(media)) == list("abcdefghijklmnop")


def test_older_values_are_removed(store: str) -> None:
    """Their rows stay and say why and when; younger ones stay; verify finds nothing wrong; a second time does nothing."""
    media = media_run(store)
    log(media, "a", other=1.5)
    log(media, "b", key="y")
    media.stream.time_ns += 20 * DAY
    log(media, "c")
    run = finish(media)
    result = stepd(store, "--keep-media", "30d", "--key", "x*")
    assert result.exit_code == 0
    _, said = result.output.splitlines()
    assert re.fullmatch(r"run a41f: 3 large values in 1 file, 1 value of \d+ B removed, .* became .*", said)
    first, second = texts(opened(media))
    assert second == "c"
    assert re.fullmatch(r"by retention \(--keep-media 30d --key 'x\*'\) on \d{4}-\d\d-\d\d", first)
    assert texts(opened(media), "y") == ["b"]
    assert [row.get("other") for row in opened(media).rows()] == [1.5, None, None]
    assert [item.is_stored for item in opened(media).media("x")] == [False, True]
    assert verify_run(DISK, run.directory).findings == []
    assert stepd(store, "--keep-media", "30d", "--key", "x*").output == "nothing to do\n"


def test_a_dry_run_changes_nothing(store: str) -> None:
    """It says what would be removed."""
    media = media_run(store)
    log(media, "a")
    finish(media)
    before = {name: Path(run_path(store, "a41f"), name).read_bytes() for name in files_of(store)}
    result = stepd(store, "--keep-media", "1h", "--dry-run")
    assert "1 value of " in result.output
    assert "would be removed" in result.output
    assert {name: Path(run_path(store, "a41f"), name).read_bytes() for name in files_of(store)} == before
    assert stepd(store, "--dry-run").output == "nothing to do\n"


def test_what_a_younger_value_shares_is_kept(store: str) -> None:
    """Equal bytes are stored once, for the older of two: they stay until the younger one may go."""
    media = media_run(store)
    log(media, "a")
    media.stream.time_ns += 20 * DAY
    log(media, "a")
    finish(media)
    assert outcome(store)["files"] == 1
    assert (found := outcome(store, "--keep-media", "30d"))["kept_shared"] == 1
    assert found["removed"] == 0
    assert texts(opened(media)) == ["a", "a"]
    assert outcome(store, "--keep-media", "1d")["removed"] == 2


def test_a_double_of_what_is_removed_keeps_its_bytes(store: str) -> None:
    """An old value that is encoded, and a raw younger one that equals it, in another file: the younger one is whole."""
    media = media_run(store)
    log(media, "a")
    media.seal()
    assert outcome(store)["files"] == 1
    media.stream.time_ns += 20 * DAY
    log(media, "a")
    finish(media)
    assert outcome(store, "--keep-media", "30d")["removed"] == 1
    assert texts(opened(media))[1] == "a"


def test_bytes_that_no_row_names_are_removed(store: str) -> None:
    """Where they are more than half of a run that has ended."""
    media = media_run(store)
    log(media, "a")
    for text in "xyz":
        media.store(text.encode() * 100, {"media": "html-file"})
    finish(media)
    found = outcome(store)
    assert (found["values"], found["removed"]) == (4, 3)
    assert texts(opened(media)) == ["a"]


def test_bytes_of_a_killed_process_stay_until_asked(store: str) -> None:
    """The rows that name them may lie in a ring of another machine."""
    media = media_run(store)
    log(media, "a")
    media.store(b"x" * 1000, {"media": "html-file"})
    media.seal()
    for entry in os.scandir(media.run.directory):
        os.utime(entry.path, (0, 0))  # nobody has written for long
    assert opened(media).state == "crashed"
    assert outcome(store)["removed"] == 0
    assert outcome(store, "--unnamed")["removed"] == 1


def test_bytes_whose_rows_wait_in_shared_memory_stay(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next daemon stores those rows."""
    media = media_run(store)
    media.store(b"x" * 1000, {"media": "html-file"})
    finish(media)
    waiting = Waiting("a41f", media.stream.hex, 1, 0, None, "ring")
    monkeypatch.setattr(compact, "waiting_rings", lambda *_: [waiting])
    assert outcome(store, "--unnamed")["removed"] == 0
    monkeypatch.setattr(compact, "waiting_rings", lambda *_: [waiting._replace(run="another")])
    assert outcome(store, "--unnamed")["removed"] == 1


def test_bytes_whose_rows_are_missing_stay(store: str) -> None:
    """A segment of rows that is gone may be found again; what it names nobody knows."""
    media = media_run(store)
    log(media, "a")
    media.run.seal()
    log(media, "b")
    finish(media)
    assert outcome(store)["files"] == 1
    os.unlink(min(entry.path for entry in os.scandir(media.run.directory) if entry.name.startswith("history")))
    assert stepd(store, "--unnamed").output == "nothing to do\n"


def test_damaged_rows_keep_everything(store: str) -> None:
    """Nobody knows what they name: the run is left as it is, told, and exit code 1."""
    media = media_run(store)
    log(media, "a")
    finish(media)
    (path,) = (entry.path for entry in os.scandir(run_path(store, "a41f")) if entry.name.startswith("history"))
    (before,) = files_of(store)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data.replace(b"html-file", b"HTML-file", 1))
    result = stepd(store, "--keep-media", "1d")
    assert result.exit_code == 1
    assert result.output.startswith("run a41f: cannot read block ")
    assert files_of(store) == [before]


def test_one_at_a_time(store: str) -> None:
    """Beside an encoding worker, or another compact, nothing is begun."""
    media_run(store).seal()
    lock = hold(store)
    assert lock is not None
    try:
        result = stepd(store)
    finally:
        lock.release()
    assert (result.exit_code, "another process rewrites" in result.output) == (1, True)


def test_a_live_run_keeps_replaced_files_for_a_while(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads them can finish."""
    monkeypatch.setattr(Run, "state", "running")
    media = media_run(store)
    log(media, "a")
    media.seal()
    log(media, "b")
    media.seal()
    log(media, "c")
    media.flush()  # its file stays open
    assert outcome(store)["files"] == 1
    assert len(files_of(store)) == 4
    later = clock.wall_ns() + int((replacing.KEPT_SECONDS + 1) * 1e9)
    monkeypatch.setattr(clock, "wall_ns", lambda: later)
    stepd(store)
    assert len(files_of(store)) == 2
    assert texts(opened(media)) == ["a", "b", "c"]
    media.close()


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1y", "1e3d", "", "∞d", "٣d"])
def test_bad_ages(store: str, age: str) -> None:
    """Misuse: exit code 2, naming what was expected."""
    result = stepd(store, "--keep-media", age)
    assert (result.exit_code, "as in 30d" in result.output) == (2, True)


@pytest.mark.parametrize(("age", "seconds"), [("90s", 90), ("1.5h", 5400), ("30d", 2_592_000), (" 2 W ", 1_209_600)])
def test_ages(age: str, seconds: float) -> None:
    """A number and a unit."""
    assert compact.seconds_of(age) == seconds


def test_a_key_needs_an_age(store: str) -> None:
    """A glob alone would remove nothing."""
    assert stepd(store, "--key", "x").exit_code == 2


def test_a_store_that_is_not_ours(store: str) -> None:
    """Nothing in it is changed."""
    os.chmod(store, 0o777)
    result = stepd(store)
    assert (result.exit_code, "STEPD_TRUST_STORE=1" in result.output) == (1, True)
