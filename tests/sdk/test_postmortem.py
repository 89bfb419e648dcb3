"""sdk.query.why.postmortem and daemon.commands.why: what a store tells of a run's end, on any machine; and which run is meant."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from daemon.cli import cli
from daemon.commands.why import _traceback_lines
from sdk import platform
from sdk.query.why import postmortem as module
from sdk.query.why.hanging import Pace, pace_of, who_text
from sdk.query.why.postmortem import choose, postmortem
from sdk.query.why.stacks import Process
from sdk.reader.facts import StreamFacts
from sdk.reader.store import Store
from tests.builders import START_NS, RunBuilder, StreamBuilder, make_run, make_store

START = START_NS / 1e9


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def open_at(store: str, seconds: float = 3600.0, **lives: bool) -> Store:
    """The store `seconds` after the runs began; streams of kind `lives` that have not ended live."""
    return Store(
        store, alive=lambda stream: lives.get(stream.kind, False), now_ns=lambda: START_NS + int(seconds * 1e9)
    )


def crashed(store: str, run_id: str = "dead", count: int = 3, **about: Any) -> tuple[RunBuilder, StreamBuilder]:
    run = RunBuilder(store, run_id)
    main = run.stream(**about)
    for step in range(count):
        main.log({"loss": 1.0 / (step + 1)})
    return run, main


def watched(run: RunBuilder, *ends: Any, namespace: str = "pid:[4026531836]", **sample: float) -> None:
    """An observer's stream: a sample, and the ends that it saw. `namespace`: whose pids it sees; the kernel's own."""
    observer = run.stream("system", rank=None, pid_namespace=namespace)
    observer.log({f"system/{name}": value for name, value in sample.items()})
    observer.meta({"stream": {"ends": list(ends)}})
    run.seal()


def seen(stream: StreamBuilder, seconds: float = 10.0, **told: Any) -> dict[str, Any]:
    return {"stream": stream.hex, "pid": 4121, "time_ns": START_NS + int(seconds * 1e9), **told}


def age(run: RunBuilder) -> None:
    """Makes its files an hour old: what changed a moment ago may live elsewhere."""
    for name in os.listdir(run.directory):
        path = os.path.join(run.directory, name)
        before = os.stat(path).st_mtime - 3600
        os.utime(path, (before, before))


def why(store: str, *words: str) -> Result:
    return CliRunner().invoke(cli, ["--dir", store, "why", *words], catch_exceptions=False)


def test_what_the_observer_saw_of_the_end(store: str) -> None:
    """Signal, the time before it, memory, and the kernel's words make the verdict on any machine that has the store."""
    run, main = crashed(store)
    line = "Memory cgroup out of memory: Killed process 4121 (python) anon-rss:183156kB"
    told = seen(main, signal=9, oom_kills=1, kernel=[[START_NS + 9 * 10**9, line]])
    watched(run, told, **{"memory_rss": 3 << 30, "cgroup/memory_limit": 4 << 30, "cgroup/memory_used": 4 << 30})
    found = postmortem(open_at(store).run("dead"))
    assert (found.state, found.verdict.cause, found.verdict.confidence) == ("crashed", "oom-killer", "certain")
    assert "178.9 MiB of the 4.0 GiB" in found.verdict.text
    assert found.ended == START + 10
    assert [one.kind for one in found.evidence] == ["exit", "oom", "kernel", "memory", "seen"]
    assert "9.0 s before the end" in found.evidence[3].text
    assert found.step == 2
    assert [row["loss"] for row in found.rows] == [1.0, 0.5, 1 / 3]


def test_the_kernel_names_no_process_of_a_container(store: str) -> None:
    """Where pids are others than the kernel's a line with the same number may be about anybody: no certainty."""
    for name, namespace, confidence in (("host", "pid:[4026531836]", "certain"), ("box", "pid:[4026532201]", "likely")):
        run, main = crashed(store, name)
        line = "Out of memory: Killed process 4121 (python) anon-rss:183156kB"
        watched(run, seen(main, signal=9, kernel=[[START_NS + 9 * 10**9, line]]), namespace=namespace)
        found = postmortem(open_at(store).run(name)).verdict
        assert (found.cause, found.confidence) == ("oom-killer", confidence)


def test_a_sample_of_processes_that_are_gone_tells_nothing(store: str) -> None:
    """What they held is told by the last sample that found them alive."""
    run, main = crashed(store)
    observer = run.stream("system", rank=None)
    for held in (3 << 30, 0):
        observer.log({"system/memory_rss": held, "system/machine/memory_available": 1 << 30})
    observer.meta({"stream": {"ends": [seen(main, signal=9)]}})
    run.seal()
    (memory,) = (one.text for one in postmortem(open_at(store).run("dead")).evidence if one.kind == "memory")
    assert "its processes held 3.0 GiB" in memory


def test_the_first_to_die_is_the_culprit(store: str) -> None:
    """Of several ranks the one that ended first gives the verdict; others were ended after it."""
    run, main = crashed(store, rank=0)
    other = run.stream(rank=3)
    watched(
        run, seen(main, 12.0, signal=int(signal.SIGTERM), rank=0), seen(other, 11.0, signal=int(signal.SIGSEGV), rank=3)
    )
    found = postmortem(open_at(store).run("dead"))
    assert found.verdict.cause == "native-crash"
    assert "rank 3 (process 4121) was ended by SIGSEGV, first of all" in found.evidence[0].text


def test_only_the_last_attempt_counts(store: str) -> None:
    """What ended an attempt that was resumed is history."""
    run, main = crashed(store)
    again = run.stream(continues=main.hex, attempt=2, first_step=3)
    again.log({"loss": 0.1})
    watched(run, seen(main, signal=9))
    found = postmortem(open_at(store).run("dead"))
    assert (found.verdict.cause, found.ends) == ("unknown", ())


def test_nobody_saw_the_end(store: str) -> None:
    """Then that is said, with when it was seen last."""
    run, _ = crashed(store)
    run.seal()
    found = postmortem(open_at(store).run("dead"))
    assert (found.verdict.cause, found.verdict.confidence) == ("unknown", "unknown")
    assert any("nobody saw" in one.text for one in found.evidence)


@pytest.mark.parametrize("machine", ["m-1", "another"])
def test_a_host_that_was_booted_again(store: str, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the run's own machine, under another boot id, that is likely the reason; on another of the same name nothing follows."""
    monkeypatch.setattr(platform, "machine_id", lambda: "m-1")
    run, _ = crashed(store, machine=machine, host=platform.host_name(), boot_id="an older one")
    run.seal()
    assert postmortem(open_at(store).run("dead")).verdict.cause == ("reboot" if machine == "m-1" else "unknown")


def test_a_nan_that_began_before_the_end(store: str) -> None:
    """Since which step; found in more rows than are shown, and at least said where it is older than what is looked at."""
    run = RunBuilder(store, "dead")
    main = run.stream()
    for step in range(700):
        main.log({"loss": math.nan if step >= 650 else 1.0, "norm": math.inf, "fine": 1.0})
    run.seal()
    found = {one.key: one for one in postmortem(open_at(store).run("dead")).not_finite}
    assert sorted(found) == ["loss", "norm"]
    assert (found["loss"].step, found["loss"].is_exact) == (650, True)
    assert (found["norm"].step, found["norm"].is_exact) == (0, True)
    module_back, module._BACK_ROWS = module._BACK_ROWS, (10,)
    try:
        old = {one.key: one for one in postmortem(open_at(store).run("dead")).not_finite}
    finally:
        module._BACK_ROWS = module_back
    assert (old["loss"].step, old["loss"].is_exact) == (690, False)


def test_a_run_that_raised(store: str) -> None:
    """The exception is the verdict; the page has the end of its traceback, and the command the whole of it as JSON."""
    run, main = crashed(store)
    main.meta(
        {
            "error": {
                "type": "ValueError",
                "message": "bad \x1b[31mbatch",
                "traceback": "Traceback:\n  …\nValueError: bad \x1b[31mbatch\n",
            }
        }
    )
    main.finish("failed", 1)
    run.seal()
    printed = why(store, "dead").output
    assert "nobody caught ended it: ValueError: bad ?[31mbatch [certain]" in printed
    assert "traceback" in printed
    assert "\x1b" not in printed
    document = json.loads(why(store, "dead", "--json").output)
    assert (document["verdict"]["cause"], document["error"]["type"]) == ("exception", "ValueError")
    assert document["rows"][-1]["_step"] == 2


def test_a_traceback_through_libraries(store: str) -> None:
    """Of runs of library code the innermost call alone is shown, so that one's own lines are on the page; --all and a pipe have all."""
    run, main = crashed(store)
    files = [
        "/job/train.py",
        *(f"/venv/lib/python3.11/site-packages/lib/{n}.py" for n in range(3)),
        "/job/model.py",
        "/usr/lib/python3.11/re.py",
    ]
    frames = "".join(f'  File "{file}", line 1, in f\n    call()\n    ^^^^^^\n' for file in files)
    text = f"Traceback (most recent call last):\n{frames}ValueError: bad\n"
    main.meta({"error": {"type": "ValueError", "message": "bad", "traceback": text}})
    main.finish("failed", 1)
    run.seal()
    printed = "\n".join(_traceback_lines(text, False))
    assert "  (3 calls in libraries)" in printed and "site-packages" not in printed
    assert all(file in printed for file in ("train.py", "model.py", "re.py"))
    whole = why(store, "dead").output
    assert all(file in whole for file in files) and "in libraries" not in whole


def test_a_worker_that_the_oom_killer_took(store: str) -> None:
    """The trainer raised and said so; what the kernel said of its child then stands beside that."""
    run, main = crashed(store)
    text = "DataLoader worker (pid 4199) is killed by signal: Killed."
    main.meta({"error": {"type": "RuntimeError", "message": text, "traceback": ""}})
    main.finish("failed", 1)
    line = "Memory cgroup out of memory: Killed process 4199 (pt_data_worker) anon-rss:183156kB"
    watched(run, seen(main, exit_code=1, oom_kills=1, kernel=[[START_NS + 9 * 10**9, line]]))
    found = postmortem(open_at(store).run("dead"))
    assert found.verdict.cause == "worker"
    assert [one.kind for one in found.evidence] == ["oom", "kernel"]


def living(store: str, period: float = 1.0) -> None:
    run = RunBuilder(store, "alive")
    main = run.stream()
    for _ in range(20):
        main.time_ns += int(period * 1e9)
        main.log({"loss": 1.0})
    run.close()


def test_a_run_that_goes_on_is_left_alone(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within twenty of its median steps, or five seconds, nobody is asked, unless one says `now`."""
    monkeypatch.setattr(
        module, "ask_stacks", lambda run, seconds, debugger: [Process("77", "main", None, "h", 1, "asleep")]
    )
    living(store)
    assert postmortem(open_at(store, 30.0, main=True).run("alive")).verdict.cause == "running"
    assert postmortem(open_at(store, 30.0, main=True).run("alive")).processes == ()
    assert len(postmortem(open_at(store, 30.0, main=True).run("alive"), now=True).processes) == 1
    found = postmortem(open_at(store, 60.0, main=True).run("alive"))
    assert (found.verdict.cause, found.pace and found.pace.is_silent, len(found.processes)) == ("hanging", True, 1)


def test_a_run_elsewhere_cannot_be_asked(store: str) -> None:
    """What lives on another host is judged by its rows alone, and the command says where to go."""
    living(store)
    found = postmortem(open_at(store, 600.0, main=True).run("alive"))
    assert [process.outcome for process in found.processes] == ["elsewhere"]
    assert any("on host-a" in text for text in found.verdict.advice)


def test_when_a_run_is_silent() -> None:
    """Twenty median steps and at least five seconds; without a pace a minute."""
    assert not Pace(1.0, 5, 0.001, 4.9).is_silent
    assert Pace(1.0, 5, 0.001, 5.1).is_silent
    assert not Pace(1.0, 5, 2.0, 39.0).is_silent
    assert Pace(1.0, 5, 2.0, 41.0).is_silent
    assert not Pace(None, None, None, 59.0).is_silent
    assert Pace(None, None, None, 61.0).is_silent
    # A pause as long as twice the longest one is not new; but one of hours says little of the next.
    assert not Pace(1.0, 5, 0.001, 59.0, 30.0).is_silent
    assert Pace(1.0, 5, 0.001, 61.0, 30.0).is_silent
    assert Pace(1.0, 5, 0.001, 7201.0, 90_000.0).is_silent


def test_pauses_are_no_silence(store: str) -> None:
    """A run that validates every hundred steps is left alone while it does, as far as earlier pauses tell."""
    run = RunBuilder(store, "alive")
    main = run.stream()
    for step in range(250):
        main.time_ns += 10**7 if step % 100 else 60 * 10**9
        main.log({"loss": 1.0})
    run.close()
    last = main.time_ns / 1e9 - START
    for seconds, cause, confidence in (
        (0.1, "running", "certain"),
        (70.0, "running", "likely"),
        (130.0, "hanging", "likely"),
    ):
        verdict = postmortem(open_at(store, last + seconds, main=True).run("alive")).verdict
        assert (verdict.cause, verdict.confidence) == (cause, confidence), seconds


def test_a_resumed_run_is_judged_by_its_last_attempt(store: str) -> None:
    """The hours before it was resumed are no silence, and until it has logged some rows nothing is known of its pace."""
    builder = RunBuilder(store, "again")
    first = builder.stream()
    for _ in range(20):
        first.log({"loss": 1.0})
    first.finish("preempted")
    resumed = START_NS + 7200 * 10**9
    builder.stream(continues=first.hex, attempt=2, first_step=20, started_ns=resumed)
    builder.close()
    pace = pace_of(open_at(store).run("again"), resumed / 1e9 + 30)
    assert (pace.last, pace.step_seconds, pace.is_silent) == (None, None, False)
    assert pace.silent_seconds == pytest.approx(30, abs=1)
    verdict = postmortem(open_at(store, 7200.0 + 90, main=True).run("again")).verdict
    assert (verdict.cause, verdict.confidence) == ("hanging", "unknown")
    assert "or its first steps take that long: nothing was logged since it was started" in verdict.text


def chosen(store: Store) -> str | None:
    found = choose(store)
    return None if found is None else found.id


def test_which_run_is_meant(store: str) -> None:
    """Without RUN the one that lives and is silent, else the one that did not end well; none is an error that says so."""
    make_run(store, "well", [{"x": 1}], started_ns=START_NS + 5 * 10**9)
    assert chosen(open_at(store)) is None
    assert "no run of this store died or hangs" in why(store).output
    make_run(store, "bad", [{"x": 1}], state="failed", started_ns=START_NS + 10**9)
    living(store)
    assert chosen(open_at(store, 25.0, main=True)) == "bad"
    assert chosen(open_at(store, 100.0, main=True)) == "alive"


def test_the_one_that_ended_last_is_meant(store: str) -> None:
    """Not the one that was started last: a long training may fail after shorter ones. Interrupted runs, whose end is known, come last; of
    one that was killed the last row counts, not how old its files are.
    """
    for start, state in ((9, "interrupted"), (3, "failed")):
        make_run(store, state, [{"x": 1}], state=state, started_ns=START_NS + start * 10**9)
    assert chosen(open_at(store)) == "failed"
    long = RunBuilder(store, "long")
    main = long.stream()
    main.log({"x": 1})
    main.time_ns += 5 * 10**9
    main.finish("failed", 1)
    long.seal()
    assert chosen(open_at(store)) == "long"
    crashed(store, "dead")[0].seal()
    assert chosen(open_at(store)) == "long"
    killed, stream = crashed(store, "killed")
    stream.time_ns += 8 * 10**9
    stream.log({"loss": 1.0})
    killed.seal()
    assert chosen(open_at(store)) == "killed"


def test_a_pipe_gets_everything(store: str) -> None:
    """Not as many lines as a small terminal has: nobody can ask a file for more."""
    run, main = crashed(store, count=40)
    console = run.stream("console")
    for number in range(20):
        console.log({"text": f"line {number}", "source": "stdout"})
    main.finish("failed", 1)
    run.seal()
    printed = why(store).output
    assert printed == why(store, "--all").output and "more: stepd why" not in printed
    assert all(f"line {number}\n" in printed for number in range(20))


@pytest.mark.parametrize(
    "ends",
    [
        5, [5], [{}], [{"stream": 7}],
        [{"stream": "?", "signal": "x", "exit_code": 1.5, "kernel": 3, "time_ns": 2**63, "rank": [], "pid": None, "oom_kills": True}],
        [{"stream": "?", "signal": 10**15, "kernel": [[1, 2], [1], "x", [2**63, "Xid"]], "time_ns": -5, "rank": -(10**15), "pid": -1}],
        [{"stream": "?", "signal": 9, "kernel": [[1, "\x1b[2J Out of memory: Killed process " + "9" * 40 + " (x)"]] * 500}],
    ],
)  # fmt: skip
def test_a_hostile_store(store: str, ends: Any) -> None:
    """What is not as it should be is passed over; nothing raises, and no control character is printed."""
    run, main = crashed(store, ring="/dev/shm/../etc/passwd", machine=5, job_id=["\x1b"], preempting="no")
    if isinstance(ends, list):
        ends = [
            {**one, "stream": main.hex} if isinstance(one, dict) and one.get("stream") == "?" else one for one in ends
        ]
    observer = run.stream("system", rank=None)
    observer.log(
        {
            "system/memory_rss": "x",
            "system/gpu.0.xid": "y",
            "system/gpu.xid": 7,
            "system/machine/memory_percent": math.nan,
        }
    )
    observer.meta({"stream": {"ends": ends}})
    main.log({"loss\x1b]0;x": "\x1b[31m", "_timestamp": "x"})
    run.seal()
    age(run)
    result = why(store, "dead", "--all")
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert json.loads(why(store, "dead", "--json").output)["state"] == "crashed"


def test_ranks_in_words() -> None:
    """Runs of ranks are joined; many holes are counted; processes without a rank have their pid."""

    def some(*ranks: int | None) -> list[Process]:
        return [Process("77", "main", rank, "h", 40 + (rank or 0), "answered") for rank in ranks]

    assert who_text(some(37)) == "rank 37"
    assert who_text(some(0, 1, 2, 5)) == "ranks 0-2, 5"
    assert who_text(some(*range(0, 20, 2))) == "10 ranks"
    assert who_text(some(None)) == "process 40"
    assert who_text(some(None, 1)) == "2 processes"
    assert StreamFacts(7).kind == "main"
