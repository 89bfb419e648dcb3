"""`stepd doctor`: running checks in a child that may hang or die, the page it prints, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from daemon.cli import cli
from daemon.doctor import measuring, probing, running
from daemon.doctor.checks import CHECKS
from daemon.doctor.finding import BAD, LEVELS, OK, WARN, Finding, ok
from daemon.doctor.machine import PREFIX, Machine
from daemon.doctor.running import Check, examine, within
from sdk import platform
from sdk.location import StoreIdentity
from tests.terminal import LARGE, ROOT, SMALL, Terminal, same_screen, screen_of


def hang(machine: Machine) -> Iterator[Finding]:
    signal.pause()
    yield ok("never")


def fail(machine: Machine) -> Iterator[Finding]:
    yield ok("half")
    raise OSError(5, "a check's own bug")


def die(machine: Machine) -> Iterator[Finding]:
    os._exit(3)


def crash(machine: Machine) -> Iterator[Finding]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield ok("never")


def chatter(machine: Machine) -> Iterator[Finding]:
    os.write(1, b"a library that prints")
    os.write(2, b"and warns")
    for _ in range(20):
        yield ok("x" * 100_000)


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, list[Finding]]]:
    """What a list of functions finds, each with a limit of 50 ms if it is `hang`, else of half a minute."""

    def run(*functions: Callable[[Machine], Iterator[Finding]]) -> dict[str, list[Finding]]:
        known = {function.__name__: function for function in functions}
        monkeypatch.setattr(running, "_function", lambda check: known[check.name])
        checks = [Check("Group", name, "", "", 0.05 if name == "hang" else 30.0) for name in known]
        return {check.name: found for check, found in examine(checks, Machine())}

    return run


def test_a_check_that_hangs_dies_or_raises_is_a_finding(
    examined: Callable[..., dict[str, list[Finding]]], capfd: pytest.CaptureFixture[str]
) -> None:
    """The others are made all the same, and what they print does not get between."""
    found = examined(hang, chatter, fail, die, crash, lambda_ok)
    assert found["hang"] == [Finding(BAD, "no answer within 0.05 s: whatever this looks at hangs")]
    assert found["chatter"] == [Finding(OK, "x" * running._TEXT_CHARACTERS_MAX + "…")] * 20
    assert [finding.level for finding in found["fail"]] == [WARN]
    assert "a check's own bug" in found["fail"][0].text
    assert "exit code 3" in found["die"][0].text
    assert "SIGKILL" in found["crash"][0].text
    assert found["lambda_ok"] == [ok("at the end")]
    assert capfd.readouterr() == ("", "")


def lambda_ok(machine: Machine) -> Iterator[Finding]:
    yield ok("at the end")


def test_no_child_is_left(examined: Callable[..., dict[str, list[Finding]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was waited for, also where the reader of the findings goes away in the middle."""
    made = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: made.append(fork()) or made[-1])
    examined(hang, lambda_ok)
    for _ in examine([Check("G", "lambda_ok", "", "")] * 3, Machine()):
        break
    assert len(made) >= 3
    for pid in made:
        assert not platform.process_lives(pid)


def doctor(store: str, *words: str, **options: str) -> tuple[int, str]:
    result = CliRunner(**options).invoke(cli, ["doctor", "--dir", store, *words])  # type: ignore[arg-type]
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_as_json_it_is_one_document(store: StoreIdentity) -> None:
    """Every check but those that measure has a finding, and the counts are those of the findings."""
    code, text = doctor(store.path, "--quick", "--json")
    told = json.loads(text)
    names = {(finding["group"], finding["check"]) for finding in told["findings"]}
    assert names == {(check.group, check.name) for check in CHECKS if not check.measures}
    levels = [finding["level"] for finding in told["findings"]]
    assert set(levels) <= set(LEVELS)
    assert (told["mend"], code) == (levels.count("warn") + levels.count("bad"), int("bad" in levels))
    assert sorted(os.listdir(store.path)) == ["runs", "store.json"]


def test_in_an_ascii_terminal_there_is_nothing_else(store: StoreIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs have letters to stand for them, and a wrong variable makes the exit code 1."""
    monkeypatch.setenv("STEPD_MODE", "onlin\x1b[31m")
    code, text = doctor(store.path, "--quick", charset="ascii")
    assert (code, text.isascii(), "\x1b" in text) == (1, True, False)
    assert "  x variables    setting 'mode' (variable STEPD_MODE)" in text


def test_what_is_measured_here_leaves_nothing(store: StoreIdentity) -> None:
    """One real run in a terminal: every group, 80 columns at most, and no file, ring, socket or daemon of the trial."""
    before = traces(store)
    with Terminal(["doctor", "--dir", store.path], SMALL) as terminal:
        code = terminal.ended()
        text = terminal.scrolled()
    assert all(f"\n{group}\n" in f"\n{text}" for group in dict.fromkeys(check.group for check in CHECKS))
    assert "p50 " in text
    assert "all 20,500 in the end" in " ".join(text.split())
    assert text.rstrip().splitlines()[-1].split()[-2:] == ["to", "mend"] or "to know" in text.rstrip().splitlines()[-1]
    assert (code == 1) == ("✗" in text)
    assert traces(store) == before


def traces(store: StoreIdentity) -> list[str]:
    """What lies in the store, and drafts of the doctor's in shared memory and beside the sockets."""
    found = sorted(os.listdir(store.path))
    for directory in ("/dev/shm", platform.runtime_directory()):
        found += [name for name in os.listdir(directory) if name.startswith(PREFIX)]
    return found


def test_a_trial_that_is_killed_is_removed(store: StoreIdentity) -> None:
    """Its child ends in the middle, with a draft and a daemon that is nobody's child: it is ended, and all files are gone."""
    machine = Machine(store.path)
    path = measuring.trial_path(machine)

    def begin() -> list[Finding]:
        draft = probing.draft(machine, store.path)
        draft.__enter__()
        measuring.make_store(path)
        measuring._spawn.ensure(path, timeout=15.0, shared_memory_dir="/dev/shm", persistent=False)
        digest.write_text(f"{platform.store_digest(path)} {platform.lock_owner(measuring.lock_path(path))}")
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    digest = Path(store.path) / "digest"
    assert within(30.0, begin) is None
    name, pid = digest.read_text().split()
    assert within(10.0, lambda: measuring.clean(machine)) == []
    assert not [name for name in os.listdir(store.path) if name.startswith(PREFIX)]
    assert not platform.process_lives(int(pid))
    for directory in (platform.runtime_directory(), platform.shared_directory("/dev/shm")):
        assert not [file for file in os.listdir(directory) if file.startswith(name)]


# A page of findings that are made up: what is found on the machine of a test differs from day to day.
_PAGE = """
from daemon.commands.doctor import _Page
from daemon.doctor.finding import bad, note, ok, warn
from daemon.doctor.running import Check
page = _Page()
def show(group, name, *found):
    page.show(Check(group, name, "", ""), found)
show("Names", "python", ok("CPython 3.11.7, environment /home/ada/envs/vision"))
show("Names", "commands", ok("`stepd` is /home/ada/envs/vision/bin/stepd"), warn(
    "`daemon` is /usr/bin/daemon: not ours. Debian's runs what follows as a program: `daemon rm FILE` deletes it",
    "stepd …   # instead of daemon …"))
show("Store", "file system", warn("overlay at / is the container's own layer: the store goes with it",
    "docker run -v runs:/runs -e STEPD_DIR=/runs …", "volumes: [runs:/runs]   # compose; environment: { STEPD_DIR: /runs }"))
show("Store", "space", bad("12.1 MB of 10.0 GB free; records are refused below 67.1 MB", "stepd du", "stepd rm RUN"))
show("Memory", "shared", warn("/dev/shm has 64 MiB, 64 MiB free: a ring of 2 MiB instead of 16 MiB, and large values cost one more "
    "copy", "docker run --shm-size=1g …   # or --ipc=host", "shm_size: 1gb   # compose, beside image:"))
show("Machine", "clock", note("nobody keeps the clock in time: `--x time` of runs of several machines may be apart",
    "timedatectl set-ntp true"))
page.end(["ok", "ok", "warn", "warn", "bad", "warn", "note"])
"""


@pytest.mark.parametrize(("size", "name"), [(SMALL, "doctor-80"), (LARGE, "doctor-200")])
def test_the_page(size: tuple[int, int], name: str) -> None:
    """A line a finding, its mending below it, and a last line that counts; in 80 columns as in 200."""
    same_screen(name, screen_of([], size, program=[sys.executable, "-c", _PAGE], cwd=ROOT))
