"""Lives that go wrong: who serves when many start, what becomes of a socket that somebody removed, signals, children.

Daemons and trainers are real processes, forked so that a case takes a fraction of a second. Whatever happens to them,
every call of log() that returned is stored once, in its order, and nobody waits for ever.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import sdk
from sdk import platform
from sdk.transport import endpoint_path, lock_path, request
from tests.end_to_end.world import Trainer, until, until_drained
from tests.forked import (
    Loop,
    WallClock,
    answers,
    end_all,
    fork_daemon,
    private_runtime,
    quiet,
    ready_to_die,
    rings,
    rows_of,
    serving,
    stored_exactly,
)
from tests.serving import temporary_store
from tests.torture.harness import Result, chance, torture

# -- racing to start -------------------------------------------------------------------------------------------------


@torture(full=500, default=30)
def daemon_race(cases: Iterable[int]) -> Iterator[Result]:
    """Two to sixteen daemons start at once: exactly one serves, the others leave with 0, clients reach it."""
    for case in cases:
        with quiet(STEPD_AUTOSTART="0"), temporary_store() as store:
            if case % 3 == 1:
                _leave_stale_files(store.path)
            told, tell = os.pipe()
            racers = [fork_daemon(store.path, lambda told=told: os.read(told, 1)) for _ in range(2 + case % 15)]
            trainer = Loop(store.path)
            try:
                os.write(tell, b"g" * len(racers))
                losers = [racer for racer in racers if _ends_unless_it_serves(store.path, racer)]
                assert len(losers) == len(racers) - 1
                trainer.past(20)
                assert trainer.stop() == 0
                status = answers(store.path)
                (winner,) = [racer for racer in racers if racer not in losers]
                assert status and status["pid"] == winner.pid == platform.lock_owner(lock_path(store.path))
                os.kill(winner.pid, signal.SIGTERM)
                assert winner.wait() == 0
                found = stored_exactly(store.path, "run", trainer.returned, more=0)
            finally:
                os.close(told)
                os.close(tell)
                end_all(*racers, trainer)
        yield Result(case, found)


def _leave_stale_files(store: str) -> None:
    """A socket of a killed daemon, and a lock file whose text names a process that has nothing to do with us."""
    Path(lock_path(store)).write_text('{"pid": 1, "version": "0", "store": "/"}')
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(endpoint_path(store))


def _ends_unless_it_serves(store: str, racer: Trainer) -> bool:
    """Waits until a racer has left (True; with 0) or holds the store's lock and answers (False)."""
    ended: list[int] = []

    def decided() -> bool:
        pid, code = os.waitpid(racer.pid, os.WNOHANG)
        if pid:
            ended.append(os.waitstatus_to_exitcode(code))
        return bool(pid) or (platform.lock_owner(lock_path(store)) == racer.pid and answers(store) is not None)

    until(decided)
    assert ended in ([], [0])
    return bool(ended)


# -- where they meet ---------------------------------------------------------------------------------------------------


def _replace_by_file(path: str) -> None:
    # In one step: the daemon may bind again as soon as its socket is gone.
    Path(path + ".file").write_text("not a socket")
    os.replace(path + ".file", path)


def _replace_by_link(path: str) -> None:
    os.rename(path, path + ".moved")
    os.symlink(path + ".moved", path)


def _replace_by_dangling_link(path: str) -> None:
    os.symlink(path + ".nowhere", path + ".link")
    os.replace(path + ".link", path)


def _replace_by_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path + ".other")
    os.replace(path + ".other", path)


def _replace_by_directory(path: str) -> None:
    def replaced() -> bool:
        # A directory cannot take a file's place in one step, and the daemon may bind again in between.
        os.unlink(path)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        return os.path.isdir(path)

    until(replaced)


def _remove_directory(path: str) -> None:
    shutil.rmtree(os.path.dirname(path))


def _remove_lock(path: str) -> None:
    os.unlink(path.replace(".sock", ".lock"))


def _remove_both(path: str) -> None:
    os.unlink(path)
    _remove_lock(path)


def _replace_lock(path: str) -> None:
    _remove_lock(path)
    Path(path.replace(".sock", ".lock")).write_text("{}")


def _open_directory(path: str) -> None:
    os.chmod(os.path.dirname(path), 0o777)


def _close_directory(path: str) -> None:
    os.chmod(os.path.dirname(path), 0o000)


_ENDPOINT_FAULTS: list[Callable[[str], None]] = [
    os.unlink, _replace_by_file, _replace_by_link, _replace_by_dangling_link, _replace_by_socket, _replace_by_directory,
    _remove_directory, _remove_lock, _remove_both, _replace_lock, _open_directory, _close_directory,
]  # fmt: skip


@torture(full=20 * len(_ENDPOINT_FAULTS), default=len(_ENDPOINT_FAULTS))
def endpoint_broken(cases: Iterable[int]) -> Iterator[Result]:
    """Socket, lock or their directory removed or replaced under a live run: a daemon is found again, nothing is lost."""
    for case in cases:
        fault = _ENDPOINT_FAULTS[case % len(_ENDPOINT_FAULTS)]
        with quiet(STEPD_AUTOSTART="0"), private_runtime() as runtime, temporary_store() as store:
            daemons = [fork_daemon(store.path)]
            until(lambda: answers(store.path) is not None)
            trainer = Loop(store.path)
            try:
                trainer.past(chance("endpoint", case).randrange(5, 100))
                fault(endpoint_path(store.path))
                trainer.past(50)
                # What a user does who finds the directory's mode wrong, or a directory where the socket should be.
                os.chmod(runtime, 0o700) if os.path.exists(runtime) else None
                with contextlib.suppress(OSError):
                    os.rmdir(endpoint_path(store.path))
                _keep_alive(store.path, daemons)
                # A new trainer finds it as well.
                assert Loop(store.path, "second").stop() == 0
                assert trainer.stop() == 0
                until_drained(Path(store.path))
                found = stored_exactly(store.path, "run", trainer.returned, more=0)
            finally:
                end_all(*daemons, trainer)
        yield Result(case, found)


def _keep_alive(store: str, daemons: list[Trainer]) -> None:
    """Waits until a daemon answers; starts another where none serves, as a sender does."""

    def kept() -> bool:
        if answers(store):
            return True
        if not serving(store) and os.waitpid(daemons[-1].pid, os.WNOHANG)[0]:
            daemons.append(fork_daemon(store))
        return False

    until(kept)


# -- signals -----------------------------------------------------------------------------------------------------------

_Kind = tuple[str, int]
_HARMLESS = {signal.SIGSTOP, signal.SIGCONT}
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# What is sent, in order: to the "daemon" or the "trainer"; "finish": the trainer is told to, as by its own handler.
_SIGNALS: list[list[_Kind]] = [
    *([("daemon", number)] for number in _ENDS),
    *([("trainer", number)] for number in (*_ENDS, signal.SIGSEGV, signal.SIGABRT)),
    [("daemon", signal.SIGSTOP), ("daemon", signal.SIGCONT)],
    [("trainer", signal.SIGSTOP), ("trainer", signal.SIGCONT)],
    [("trainer", signal.SIGSTOP), ("trainer", signal.SIGKILL)],
    [("daemon", signal.SIGSTOP), ("trainer", signal.SIGTERM), ("daemon", signal.SIGCONT)],
    # A scheduler, or `docker stop`: everybody is asked at once, and some are killed a moment later.
    [("daemon", signal.SIGTERM), ("trainer", signal.SIGTERM)],
    [("trainer", signal.SIGTERM), ("daemon", signal.SIGTERM)],
    [("daemon", signal.SIGTERM), ("trainer", 0)],
    [("trainer", 0), ("daemon", signal.SIGTERM)],
    [("daemon", signal.SIGTERM), ("trainer", signal.SIGTERM), ("trainer", signal.SIGKILL), ("daemon", signal.SIGKILL)],
    [("trainer", signal.SIGSTOP), ("daemon", signal.SIGTERM), ("trainer", signal.SIGCONT)],
]


@torture(full=40 * len(_SIGNALS), default=len(_SIGNALS))
def signals(cases: Iterable[int]) -> Iterator[Result]:
    """Any signal to daemon, trainer or both, in every order: what returned is stored, and the daemon leaves last."""
    for case in cases:
        source, plan = chance("signals", case), _SIGNALS[case % len(_SIGNALS)]
        with quiet(STEPD_AUTOSTART="0"), temporary_store() as store:
            daemons = [fork_daemon(store.path)]
            until(lambda: answers(store.path) is not None)
            trainer = Loop(store.path)
            try:
                trainer.past(source.randrange(1, 50))
                for whom, number in plan:
                    _send(trainer if whom == "trainer" else daemons[0], trainer, number)
                    time.sleep(source.choice((0, 0, 0.001, 0.02, 0.1)))
                found = _see_them_out(store.path, plan, trainer, daemons)
            finally:
                end_all(*daemons, trainer)
        yield Result(case, found)


def _send(to: Trainer, trainer: Loop, number: int) -> None:
    if number:
        os.kill(to.pid, number)
    else:
        trainer.tell()


def _see_them_out(store: str, plan: list[_Kind], trainer: Loop, daemons: list[Trainer]) -> int:
    """Waits until trainer and daemon have ended as they should, and compares; how many rows are there."""
    fatal = {number for whom, number in plan if whom == "trainer"} - {0, *_HARMLESS}
    if not fatal:
        trainer.tell()
    code = trainer.wait()
    # Python makes an exception of SIGINT, everything else is death.
    assert code in {1 if number == signal.SIGINT else -number for number in fatal or {0}}
    asked = {number for whom, number in plan if whom == "daemon"} - _HARMLESS
    if asked & {signal.SIGQUIT, signal.SIGKILL}:
        assert daemons[0].wait() in (0, *(-number for number in asked))
        daemons.append(fork_daemon(store))
        until(lambda: answers(store) is not None)
        until_drained(Path(store))
    elif not asked:
        until_drained(Path(store))
    if not asked or len(daemons) > 1:
        os.kill(daemons[-1].pid, signal.SIGTERM)
    # Asked to leave it does so by itself, after the last trainer, and leaves nothing to do for another.
    assert daemons[-1].wait() == 0
    assert rings(store) == []
    state = sdk.open_store(store).run("run").state
    assert state == ("crashed" if fatal else "finished"), state
    return stored_exactly(store, "run", trainer.returned)


# -- children ----------------------------------------------------------------------------------------------------------

_MOMENTS = ("before init", "after init", "while flushing")
_CHILD_CALLS = 20


def _log_some(base: int) -> None:
    for n in range(_CHILD_CALLS):
        sdk.log({"child": base + n})


def _forked(body: Callable[[], None]) -> int:
    """Runs `body` in a forked child that ends without exit handlers; its exit status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def _fork(base: int) -> None:
    assert _forked(lambda: _log_some(base)) == 0


def _fork_in_thread(base: int) -> None:
    thread = threading.Thread(target=_fork, args=(base,))
    thread.start()
    thread.join()


def _fork_finished(base: int) -> None:
    def body() -> None:
        _log_some(base)
        sdk.finish()

    assert _forked(body) == 0


def _grandchild(base: int) -> None:
    assert _forked(lambda: _fork(base)) == 0


def _killed_worker(base: int) -> None:
    def body() -> None:
        _log_some(base)
        os.kill(os.getpid(), signal.SIGKILL)

    assert _forked(body) == signal.SIGKILL


def _daemonised(base: int) -> None:
    """The classic double fork; whoever did it closes all descriptors, ours included."""

    def second() -> None:
        os.setsid()
        os.closerange(3, 4096)
        _log_some(base)

    assert _forked(lambda: _fork_body(second)) == 0


def _fork_body(body: Callable[[], None]) -> None:
    assert _forked(body) == 0


def _exec_other(base: int) -> None:
    """A child logs and becomes another program, which finds none of our descriptors."""

    def body() -> None:
        _log_some(base)
        os.execv(
            "/bin/sh", ["sh", "-c", "for f in /proc/self/fd/*; do readlink $f; done | grep -c stepd && exit 9; exit 0"]
        )

    assert _forked(body) == 0


def _pool(base: int) -> None:
    """Four workers as of a DataLoader; half of them are killed."""
    workers = []
    for index in range(4):
        child = os.fork()
        if child == 0:
            try:
                for n in range(index * _CHILD_CALLS // 4, (index + 1) * _CHILD_CALLS // 4):
                    sdk.log({"child": base + n})
                if index % 2:
                    os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(0)
        workers.append(child)
    for child in workers:
        os.waitpid(child, 0)


_CHILDREN: list[Callable[[int], None]] = [
    _fork, _fork_in_thread, _fork_finished, _grandchild, _killed_worker, _daemonised, _exec_other, _pool,
]  # fmt: skip


@torture(full=40 * len(_CHILDREN) * len(_MOMENTS), default=len(_CHILDREN) * len(_MOMENTS))
def children(cases: Iterable[int]) -> Iterator[Result]:
    """Children of every kind, made before init, after it and while a flush waits: parent and child lose nothing."""
    with quiet(STEPD_AUTOSTART="0"), temporary_store() as store:
        daemon = fork_daemon(store.path)
        try:
            for case in cases:
                run = f"run{case}"
                trainer = Trainer(lambda _, case=case, run=run: _with_children(store.path, run, case))
                assert trainer.wait() == 0
                until_drained(Path(store.path))
                yield Result(case, _check_children(store.path, run, case))
        finally:
            end_all(daemon)


def _with_children(store: str, run: str, case: int) -> None:
    ready_to_die()
    make, moment = _CHILDREN[case % len(_CHILDREN)], _MOMENTS[case // len(_CHILDREN) % len(_MOMENTS)]
    if moment == "before init":
        _fork_body(lambda: None)
    opened = sdk.init(id=run, project="lives", dir=store)
    for n in range(50):
        sdk.log({"x": n})
    flusher = threading.Thread(target=opened._stream.flush, args=(30.0,)) if moment == "while flushing" else None
    if flusher is not None:
        flusher.start()
    make(1000)
    if flusher is not None:
        flusher.join()
    for n in range(50, 100):
        sdk.log({"x": n})
    sdk.finish()


def _check_children(store: str, run: str, case: int) -> int:
    opened = sdk.open_store(store).run(run)
    assert opened.gaps == []
    assert opened.series("x").value.tolist() == list(range(100))
    assert opened.state == "finished"
    values = opened.series("child", stream="all").value.tolist()
    assert sorted(values) == list(range(1000, 1000 + _CHILD_CALLS))
    return 100 + _CHILD_CALLS


# -- clocks ------------------------------------------------------------------------------------------------------------

_DAY = 86_400
_EPOCH = "1970"
_LATE = "2106"
_JUMPS: list[list[float | str]] = [
    [1], [-1], [_DAY], [-_DAY], [_EPOCH], [_LATE], [3600], [-3600], [_DAY, -_DAY], [_LATE, _EPOCH], [_EPOCH, 0],
    [-1, 1, -1, 1, -1],
]  # fmt: skip


@torture(full=2 * len(_JUMPS), default=len(_JUMPS))
def clock_jumps(cases: Iterable[int]) -> Iterator[Result]:
    """The wall clock jumps while a run is logged and flushed: order, steps and state stay, no timeout fires."""
    for case in cases:
        jumps, flushing = _JUMPS[case % len(_JUMPS)], (case + case // len(_JUMPS)) % 2 > 0
        wall = WallClock()
        with quiet(STEPD_AUTOSTART="0"), temporary_store() as store:
            daemon = fork_daemon(store.path, wall.install, idle_seconds=3600.0)
            until(lambda: answers(store.path) is not None)
            trainer = Loop(store.path, prepare=wall.install)
            try:
                before = []
                for jump in jumps:
                    trainer.past(20)
                    before.append((trainer.returned, wall.jump(jump)))
                    trainer.past(5)
                    if flushing:
                        assert request(store.path, "flush") == {}
                    with wall.here():
                        _until_rows(store.path, before[-1][0])
                        assert sdk.open_store(store.path).run("run").state == "running"
                trainer.past(20)
                assert trainer.stop() == 0
                status = answers(store.path)
                assert status is not None and status["pid"] == daemon.pid and status["duplicates"] == 0
                found = stored_exactly(store.path, "run", trainer.returned, more=0)
                _times_as_told(store.path, before)
            finally:
                end_all(daemon, trainer)
        yield Result(case, found)


def _until_rows(store: str, count: int) -> None:
    until(lambda: rows_of(store) > count)


def _times_as_told(store: str, jumps: list[tuple[int, float]]) -> None:
    """The rows' times jump where the clock did, and nowhere else."""
    times = sdk.open_store(store).run("run").series("x").time
    for (returned, offset), (_, earlier) in zip(jumps, [(0, 0.0), *jumps]):
        moved = times[returned + 2] - times[returned - 2] - (offset - earlier)
        assert abs(moved) < 10, f"the clock moved by {offset - earlier} s, the rows by {moved} s more"
