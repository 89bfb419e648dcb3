"""A real kernel runs cells; what a front end would get, and what the run keeps of it, are looked at."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk import _notebook
from sdk._notebook import cell_text
from tests.end_to_end.world import start_daemon, until
from tests.sdk.test_cards import checked
from tests.serving import WAIT_SECONDS, temporary_store

ROOT = str(Path(sdk.__file__).parent.parent)
Message = dict[str, Any]


class Notebook:
    """A kernel without a front end; each message is what a front end would be sent."""

    def __init__(self, store: str, home: str) -> None:
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import KernelManager

        self.store = store
        self._kernel = KernelManager(connection_file=f"{home}/kernel.json", transport="ipc", ip=f"{home}/kernel")
        # Not what is installed for the user, whatever Python that is.
        self._kernel._kernel_spec = KernelSpec(
            argv=[
                sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.hist_file=:memory:",
            ],
            display_name="test",
            language="python",
        )  # fmt: skip
        environment = {
            "PATH": "/usr/bin:/bin", "HOME": home, "IPYTHONDIR": f"{home}/ipython", "PYTHONPATH": ROOT, "STEPD_DIR": store,
            "STEPD_AUTOSTART": "0", "JPY_SESSION_NAME": f"{home}/first steps.ipynb", "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }  # fmt: skip
        self._kernel.start_kernel(env=environment, cwd=home)
        self._client = self._kernel.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=WAIT_SECONDS)

    def run(self, code: str) -> list[Message]:
        """What a cell shows until it is done."""
        cell = self._client.execute(code)
        return self.until(
            lambda m: m["parent_header"].get("msg_id") == cell and m["content"].get("execution_state") == "idle"
        )

    def until(self, condition: Callable[[Message], bool]) -> list[Message]:
        """What is shown until a message of a kind comes, which is the last one."""
        found: list[Message] = []
        deadline = time.monotonic() + WAIT_SECONDS
        while not found or not condition(found[-1]):
            found.append(self._client.get_iopub_msg(timeout=deadline - time.monotonic()))
        return found

    def restart(self) -> None:
        """As the button does: the kernel is asked to go, and another one takes its place."""
        self._kernel.restart_kernel(now=False)
        self._client.wait_for_ready(timeout=WAIT_SECONDS)

    def close(self) -> None:
        self._client.stop_channels()
        self._kernel.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    """One kernel for all tests, which go on from one another."""
    pytest.importorskip("ipykernel")
    home = tempfile.mkdtemp(prefix="nb")
    try:
        with temporary_store() as store:
            start_daemon(Path(store.path))
            made = Notebook(store.path, home)
            try:
                yield made
            finally:
                made.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def pages(messages: list[Message], kind: str) -> list[str]:
    """The HTML of the messages of a kind."""
    return [str(m["content"]["data"].get("text/html", "")) for m in messages if m["msg_type"] == kind]


def test_a_run_as_the_last_line(notebook: Notebook) -> None:
    """Its card, with a curve of what was logged a moment ago, and no script whatever it is called."""
    notebook.run("import sdk\nrun = sdk.init(id='one', name='<script>x</script>', config={'lr': 0.1})")
    notebook.run("for i in range(50): sdk.log({'train/loss': 1 / (i + 1)})")
    (page,) = pages(notebook.run("run"), "execute_result")
    assert "<polyline" in page
    text = checked(page).text
    for part in ("<script>x</script> (one)", "running", "step 50", "train/loss", "min 0.02 @ 49", "lr0.1", "0 dropped"):
        assert part in text
    (page,) = pages(notebook.run("sdk.open_store()"), "execute_result")
    assert ": 1 run" in checked(page).text


def test_a_live_chart(notebook: Notebook) -> None:
    """One display, drawn again as values come, until the run ends."""
    shown = notebook.run("live = run.live('train/*', seconds=0.05)")
    (first,) = (m for m in shown if m["msg_type"] == "display_data")
    assert "train/loss" in checked(first["content"]["data"]["text/html"]).text
    notebook.run("for i in range(50): sdk.log({'train/acc': i / 50})")
    shown = notebook.until(lambda m: m["msg_type"] == "update_display_data" and "train/acc" in str(m["content"]))
    assert shown[-1]["content"]["transient"] == first["content"]["transient"]
    checked(shown[-1]["content"]["data"]["text/html"])


def test_the_init_cell_run_again(notebook: Notebook) -> None:
    """The run before is finished and its chart ends; the next one begins."""
    notebook.run("1 / 0")
    notebook.run("!true\n%matplotlib --list\napi_key = 'abcdefgh12345678'")
    shown = notebook.run("second = sdk.init(id='two'); second.log({'x': 1}); second.live(seconds=0.05)")
    if not any("ended" in page for page in pages(shown, "update_display_data")):
        notebook.until(lambda m: m["msg_type"] == "update_display_data" and "ended" in str(m["content"]))
    store = sdk.open_store(notebook.store)
    until(lambda: len(store.runs()) == 2)
    assert {run.id: run.state for run in store.runs()} == {"two": "running", "one": "finished"}
    assert pages(notebook.run("live"), "execute_result") == []


def test_cells_are_saved_as_code(notebook: Notebook) -> None:
    """In the order in which they ran, those that failed too, with magic as comments and what looks like a secret masked."""
    path = Path(sdk.open_store(notebook.store).run("one").directory, "files", "code", "first steps.py")
    code = path.read_text()
    compile(code, "code", "exec")
    assert code.startswith("# %% In [1]\nimport sdk\nrun = sdk.init(id='one'")
    assert "\n1 / 0\n" in code
    assert "\n# !true\n# %matplotlib --list\napi_key = '***'\n" in code
    assert code.rstrip().endswith("second.live(seconds=0.05)")


def test_a_progress_line_in_a_notebook(notebook: Notebook) -> None:
    """One display of bar and text."""
    shown = notebook.run("for _ in sdk.track(range(3), '<b>train'): pass")
    begin, end = (m for m in shown if "train:" in m["content"].get("data", {}).get("text/plain", ""))
    assert begin["content"]["transient"] == end["content"]["transient"]
    assert "<b>train: 100%" in checked(end["content"]["data"]["text/html"]).text


def test_a_kernel_that_is_restarted(notebook: Notebook) -> None:
    """Its run is interrupted: nobody said that it was done."""
    notebook.restart()
    assert sdk.open_store(notebook.store).run("two").state == "interrupted"


def test_a_cell_as_code() -> None:
    """What only IPython understands is a comment; a long line is cut, as nobody looked for secrets in it."""
    assert cell_text(3, "%%bash\nls\n") == "# %% In [3]\n# %%bash\n# ls\n\n"
    assert cell_text(1, "x = 1\n  %time f()\nf?\nx % 2") == "# %% In [1]\nx = 1\n#   %time f()\n# f?\nx % 2\n\n"
    assert len(cell_text(1, "x" * 1_000_000)) < 5000


def test_a_cell_is_masked_as_a_whole() -> None:
    """A key of several lines, a text of three quotes, and a command that goes on behind a backslash."""
    assert cell_text(1, 'token = """a\nb"""\nx = 1') == '# %% In [1]\ntoken = """***"""\nx = 1\n\n'
    command = "!train \\\n --hf_token abc \\\n --lr 1\nx = 1"
    assert cell_text(1, command) == "# %% In [1]\n# !train \\\n#  --hf_token *** \\\n#  --lr 1\nx = 1\n\n"
    key = "k = '''-----BEGIN PRIVATE KEY-----\nMIIEabc\n-----END PRIVATE KEY-----'''"
    assert cell_text(1, key) == "# %% In [1]\nk = '''***'''\n\n"
    assert cell_text(1, "%env HF_TOKEN abc d") == "# %% In [1]\n# %env HF_TOKEN ***\n\n"


class Shell:
    """What IPython's shell is to the file of cells."""

    def __init__(self, inputs: list[str]) -> None:
        self.history_manager = self
        self.input_hist_raw = ["", *inputs]
        self.user_ns: dict[str, Any] = {}


def test_the_file_of_cells_is_bounded(tmp_path: Path) -> None:
    """Once, it says that more is not kept; a second attempt has a file of its own; a disk in trouble is not the notebook's."""
    shell = Shell(["y" * 4000 + "\n" + "y = 1" * 100] * 400)
    path = tmp_path / "code" / "n.py"
    cells = _notebook.Cells(shell, str(path))
    cells.after_cell()
    cells.after_cell()
    assert path.stat().st_size < _notebook.CODE_BYTES_MAX + 200
    assert path.read_text().count("more cells are not kept") == 1
    _notebook.Cells(shell, str(path)).after_cell()
    assert sorted(os.listdir(path.parent)) == ["n-2.py", "n.py"]
    _notebook.Cells(shell, str(path / "below" / "n.py")).after_cell()


def test_the_name_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the server's variable or the editor's; never a path of somebody's choice."""
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    shell = Shell([])
    assert _notebook.notebook_name(shell) == "notebook"
    shell.user_ns["__vsc_ipynb_file__"] = "/home/me/../a b/étude.ipynb"
    assert _notebook.notebook_name(shell) == "étude"
    monkeypatch.setenv("JPY_SESSION_NAME", "a/..")
    assert _notebook.notebook_name(shell) == "étude"
