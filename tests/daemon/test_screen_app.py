"""The live screen in a terminal: textual's own pilot, and a real one with a training that goes on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from daemon.screen.app import Watch
from daemon.screen.model import Board, Scene
from daemon.screen.text import Ink
from daemon.screen.view import View
from sdk.reader import Store
from tests.builders import make_run, make_store
from tests.serving import temporary_store
from tests.terminal import LARGE, SMALL, Terminal

Steps = Callable[[Watch, "Pilot[None]"], Coroutine[Any, Any, None]]


def piloted(store: str, size: tuple[int, int], steps: Steps) -> Watch:
    """The screen of a store, worked by `steps` until they end or it does."""

    async def work() -> Watch:
        view = View(Scene(store), size, Ink())
        view.every = True  # those that are made here ended long ago
        app = Watch(Board(Store(store), ask=lambda path: None), view)
        async with app.run_test(size=size) as pilot:
            await steps(app, pilot)
        return app

    return asyncio.run(work())


async def until(app: Watch, pilot: Pilot[None], text: str) -> str:
    """Waits until a text is on the screen; the screen."""
    for _ in range(2_000):
        shown = "\n".join(app.screen_lines())
        if text in shown:
            return shown
        await pilot.pause(0.005)
    raise AssertionError(f"{text!r} did not come:\n{shown}")


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = make_store(tmp_path)
    for number in range(30):
        values = [{"train/loss": 1 / (step + 1), "val/acc": step / 100} for step in range(40)]
        make_run(path, f"b{number:02}", values, name=f"run-{number}", config={"lr": 10.0 ** -(number % 3)})
    return path


def test_keys_lead_through_the_screen(store: str) -> None:
    """List, filter, a run's page, its tabs and back, all with keys; what is read comes by itself."""

    async def steps(app: Watch, pilot: Pilot[None]) -> None:
        await until(app, pilot, "run-5")
        await pilot.press("slash", *"config.lr", "equals_sign", "1", "enter")
        await until(app, pilot, "filter: config.lr=1")
        await until(app, pilot, "run-27")
        await pilot.press("j", "enter")
        shown = await until(app, pilot, "train/loss  0.025")
        assert "⠤" in shown or "⣀" in shown
        await pilot.press("3")
        await until(app, pilot, "39 ")
        await pilot.press("5")
        await until(app, pilot, "config")
        await pilot.press("question_mark")
        await until(app, pilot, "the x axis")
        await pilot.press("x", "escape", "escape")
        await until(app, pilot, "run-0")
        await pilot.press("q")

    assert piloted(store, SMALL, steps).return_code == 0


def test_the_screen_follows_the_size_of_its_terminal(store: str) -> None:
    """What was cut off is there when the window grows, and a click opens a run."""

    async def steps(app: Watch, pilot: Pilot[None]) -> None:
        await until(app, pilot, "run-5")
        await pilot.resize_terminal(*LARGE)
        await until(app, pilot, "run-29")
        await until(app, pilot, "█")  # those that are over show their series too
        await pilot.click(offset=(10, 5))
        await pilot.click(offset=(10, 5))
        await until(app, pilot, "train/loss  0.025")

    piloted(store, SMALL, steps)


def test_back_in_the_foreground_every_line_is_drawn(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ctrl+z and `fg` the terminal shows an empty screen: not only lines that change are written to it."""
    asked: list[tuple[Any, ...]] = []

    async def steps(app: Watch, pilot: Pilot[None]) -> None:
        await until(app, pilot, "run-5")
        monkeypatch.setattr(app._shown, "refresh", lambda *regions: asked.append(regions))
        app.app_resume_signal.publish(app)
        while () not in asked:
            await pilot.pause(0.005)

    piloted(store, SMALL, steps)
    assert () in asked


def test_a_failure_of_the_reading_thread_ends_the_program(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in what reads is raised when the terminal is as it was, instead of a screen that stands still."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Board, "look", fail)

    async def steps(app: Watch, pilot: Pilot[None]) -> None:
        while app.is_running and app.trouble is None:
            await pilot.pause(0.005)

    assert isinstance(piloted(store, SMALL, steps).trouble, ZeroDivisionError)


_TRAINING = """
import sdk, sys
run = sdk.init(project="digits", dir=sys.argv[1], name="calm-otter", config={"max_steps": 1000})
for step in range(100):
    run.log({"train/loss": 2.0 / (step + 1)})
print("a hundred steps", flush=True)
sys.stdin.readline()
run.log({"train/loss": 0.015625})
run.finish()
"""


def test_a_training_in_a_real_terminal() -> None:
    """A run that goes on is seen in 80 x 24: its step, its series, what it prints; its end too; q leaves."""
    import subprocess

    with temporary_store() as store:
        words = [sys.executable, "-c", _TRAINING, store.path]
        training = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert training.stdout is not None and training.stdin is not None
            training.stdout.readline()
            with Terminal(
                ["watch", "--dir", store.path], SMALL, env={"TZ": "UTC", "TERM": "xterm-16color"}
            ) as terminal:
                terminal.until(lambda text: "99/1,000" in text and "0.02" in text)
                terminal.until(lambda text: "1 running of 1" in text and "0 refused · 0 dropped" in text)
                terminal.press("\r")
                terminal.until("train/loss  0.02")
                terminal.press("2")
                terminal.until("a hundred steps")
                terminal.press("1")
                training.stdin.write("\n")
                training.stdin.flush()
                terminal.until(lambda text: "finished" in text and "0.01562" in text)
                assert all(len(line) <= 80 for line in terminal.text().splitlines())
                terminal.press("q")
                assert terminal.ended() == 0
        finally:
            training.kill()
            training.wait()
            for pipe in (training.stdin, training.stdout):
                if pipe is not None:
                    pipe.close()


def test_a_terminal_that_goes_away_takes_the_screen_with_it(store: str) -> None:
    """Also where no signal tells of it, as in a session without a controlling terminal."""
    with Terminal(["watch", "--dir", store], SMALL) as terminal:
        terminal.until("stepd watch")
        terminal.hang_up()
        assert terminal.process.wait(60) == 1
