"""A real browser without a window: Chromium, driven by its own DevTools protocol over a pipe.

Why neither selenium nor playwright: both bring a second program, which must fit the browser's version and is downloaded at some time. The
protocol over `--remote-debugging-pipe` (JSON texts that end in NUL, on descriptors 3 and 4) needs the standard library alone, opens no
port, and the browser ends when the pipe does.

`scripts/_browser.sh` installs Chromium where it may; `find_browser` says which is there.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_DEADLINE_SECONDS = 40.0
_FLAGS = (
    "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--no-default-browser-check", "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--mute-audio", "--hide-scrollbars", "--force-device-scale-factor=1", "--window-size=1200,900",
)  # fmt: skip


def find_browser() -> str | None:
    """The path of the first browser that is there; None: none is."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Browser:
    """A running browser. One is enough for all tests of a session; `close` ends it with all it started.

    Nothing of a page leaves the machine: its proxy is this object, which writes down what is asked for and answers nothing.

    Attributes:
        asked: Addresses that were asked for, other than files and data; what a page's policy refuses is none. Some are the browser's own.
    """

    def __init__(self, path: str) -> None:
        self.asked: list[str] = []
        self._proxy = socket.create_server(("127.0.0.1", 0))
        proxy = f"--proxy-server=http://127.0.0.1:{self._proxy.getsockname()[1]}"
        self._profile = tempfile.mkdtemp(prefix="stepd-browser-")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Beyond 3 and 4, which the browser's ends are to become: a descriptor that is already there would stay "close on exec".
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]
        words = [
            path,
            *_FLAGS,
            proxy,
            "--proxy-bypass-list=<-loopback>",
            f"--user-data-dir={self._profile}",
            "about:blank",
        ]
        actions: list[Any] = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, end, number) for end, number in zip(ends, (3, 4))]
        environment = {**os.environ, "HOME": self._profile, "TZ": "UTC", "LANG": "C.UTF-8"}
        self._pid = os.posix_spawn(path, words, environment, file_actions=actions, setpgroup=0)
        for end in (*ends, theirs_in, theirs_out):
            os.close(end)
        self._waiting = b""
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)
        self._proxy.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    def page(
        self, path: Path, *, scripts: bool = True, dark: bool = False, size: tuple[int, int] = (1200, 900)
    ) -> Page:
        """A file, opened in a tab of its own; `loaded` has been waited for."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log"):
            page.send(f"{domain}.enable")
        page.send("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        page.send(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
        )
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        page.send("Emulation.setDeviceMetricsOverride", metrics)
        page.send("Page.navigate", {"url": path.as_uri()})
        page.wait_for("Page.loadEventFired")
        return page

    def send(self, method: str, parameters: dict[str, Any] | None = None, session: str | None = None) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters or {}}
        if session is not None:
            message["sessionId"] = session
        view = memoryview(json.dumps(message).encode() + b"\0")
        while view:
            view = view[os.write(self._out, view) :]
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while number not in self._answers:
            self.read(deadline, method)
        answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def read(self, deadline: float, what: str) -> None:
        """Waits for the next messages and sorts them: answers, and events of pages."""
        ready: list[Any] = []
        while self._in not in ready:
            left = deadline - time.monotonic()
            ready = select.select([self._in, self._proxy], [], [], left)[0] if left > 0 else []
            if not ready:
                raise TimeoutError(f"the browser did not answer {what}")
            if self._proxy in ready:
                self._refuse()
        found = os.read(self._in, 1 << 20)
        assert found, "the browser has ended"
        *messages, self._waiting = (self._waiting + found).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
                page.take(message["method"], message["params"])

    def _refuse(self) -> None:
        """Writes down what is asked of the proxy, and hangs up."""
        connection, _ = self._proxy.accept()
        with connection:
            connection.settimeout(5)
            with contextlib.suppress(OSError):
                line = connection.recv(4096).decode("latin-1").split("\r\n")[0]
                self.asked += line.split(" ")[1:2]

    def forget(self, session: str) -> None:
        del self._pages[session]


class Page:
    """A tab.

    Attributes:
        events: Names of all that happened and was not waited for yet.
        said: What the page wrote to its console, errors and what its policy refused included.
        dialogs: Texts of `alert` and the like.
    """

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target
        self.events: collections.Counter[str] = collections.Counter()
        self.said: list[str] = []
        self.dialogs: list[str] = []

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.send("Target.closeTarget", {"targetId": self._target})
        self._browser.forget(self._session)

    def send(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._browser.send(method, parameters, self._session)

    def take(self, event: str, words: dict[str, Any]) -> None:
        self.events[event] += 1
        if event == "Runtime.consoleAPICalled":
            self.said.append(" ".join(str(one.get("value")) for one in words["args"]))
        elif event == "Log.entryAdded":
            self.said.append(words["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.said.append(json.dumps(words["exceptionDetails"]))
        elif event == "Page.javascriptDialogOpening":
            self.dialogs.append(words["message"])

    def wait_for(self, event: str) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not self.events[event]:
            self._browser.read(deadline, event)
        self.events[event] -= 1

    def value(self, script: str) -> Any:
        """What an expression of the page is, as plain values; waits where it is a promise."""
        words = {"expression": script, "returnByValue": True, "awaitPromise": True}
        found = self.send("Runtime.evaluate", words)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """As `value`, when that has become true; asked after each frame that the page paints."""
        return self.value(
            "new Promise((found, lost) => { let left = 600; const look = () => { const value = ("
            + script
            + "); if (value) found(value); "
            "else if (!left--) lost(new Error('never')); else requestAnimationFrame(look); }; look(); })"
        )

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Where an element is in the window: left, top, width, height; it is brought into sight."""
        text = json.dumps(selector)
        script = (
            f"(() => {{ const e = document.querySelector({text}); e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        left, top, width, height = self.value(script)
        return left, top, width, height

    def mouse(self, kind: str, x: float, y: float, clicks: int = 0) -> None:
        """`kind`: "Moved", "Pressed", "Released"."""
        words = {"type": f"mouse{kind}", "x": x, "y": y, "button": "left" if clicks else "none", "clickCount": clicks}
        self.send("Input.dispatchMouseEvent", {**words, "buttons": 1 if kind != "Released" and clicks else 0})

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse("Moved", *start)
        self.mouse("Pressed", *start, 1)
        self.mouse("Moved", (start[0] + end[0]) / 2, (start[1] + end[1]) / 2, 1)
        self.mouse("Moved", *end, 1)
        self.mouse("Released", *end, 1)

    def press(self, key: str) -> None:
        """A key, by its name in `KeyboardEvent.key`."""
        words = {"key": key, "text": key} if len(key) == 1 else {"key": key}
        self.send("Input.dispatchKeyEvent", {"type": "keyDown", **words})
        self.send("Input.dispatchKeyEvent", {"type": "keyUp", "key": key})

    def picture(self) -> bytes:
        """What is to be seen, as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", {"format": "png"})["data"])

    def pdf(self) -> bytes:
        return base64.b64decode(self.send("Page.printToPDF", {"printBackground": True})["data"])
