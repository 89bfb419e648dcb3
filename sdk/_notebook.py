"""The cells of a notebook, saved as code in the run's files: ``code/<notebook>.py``, in the order in which they were executed.

Outside IPython this is one look into `builtins`. Inside, what was executed before `init` is written at once, and each cell when it is
done, between cells, so that a kernel that is killed leaves what it ran. The cell that calls `finish` is written as far as it is known
then, which is whole. Cells are separated as editors and jupytext do it (``# %% In [3]``); lines of magic are kept as comments.
`Settings.save_code` and `disable_code` switch it off. What looks like a secret is masked, as in command lines.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from typing import TYPE_CHECKING, Any

from ._hooks import in_notebook
from ._secrets import VALUE_CHARACTERS_MAX, mask_code
from .files import DISK, File

if TYPE_CHECKING:
    from ._run import Run

# Limit: text of cells; images and outputs are not among it. A day of work has some 100 KiB.
CODE_BYTES_MAX = 1 << 20
_MAGIC = re.compile(r"^(\s*)(%|!|\?|.*\?\s*$)")
_NAME_VARIABLES = ("JPY_SESSION_NAME",)
_NAME_GLOBALS = ("__vsc_ipynb_file__", "__session__")


def begin(run: Run) -> None:
    """Saves cells from now on until the run ends, if this is a notebook."""
    if not in_notebook() or not run.settings.save_code or run.settings.disable_code:
        return
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None or getattr(shell, "history_manager", None) is None:
        return
    cells = Cells(shell, os.path.join(run.dir, "code", f"{notebook_name(shell)}.py"))
    cells.write()
    shell.events.register("post_run_cell", cells.after_cell)
    run._at_end(lambda state, exit_code: cells.end())


def notebook_name(shell: Any) -> str:
    """The notebook's file name without its end, where the front end tells it; else "notebook"."""
    told = [os.environ.get(name) for name in _NAME_VARIABLES]
    told += [shell.user_ns.get(name) for name in _NAME_GLOBALS]
    for path in told:
        if isinstance(path, str) and path:
            name = os.path.basename(path).removesuffix(".ipynb")
            clean = "".join(c if c.isalnum() or c in "._- " else "_" for c in name)[:100].strip(". ")
            if clean:
                return clean
    return "notebook"


class Cells:
    """The file of cells, written as they are done."""

    def __init__(self, shell: Any, path: str) -> None:
        self._shell, self._path = shell, path
        self._written = 1  # the list of inputs begins with an empty one, so that indices are the numbers people see
        self._size = 0

    def after_cell(self, result: Any = None) -> None:
        """Called by IPython after each cell. Trouble with the disk is not the notebook's."""
        with contextlib.suppress(Exception):
            self.write()

    def write(self) -> None:
        """Adds what was executed since the last call."""
        inputs = self._shell.history_manager.input_hist_raw
        while self._written < len(inputs) and self._size < CODE_BYTES_MAX:
            text = cell_text(self._written, inputs[self._written])
            self._written += 1
            if self._size + len(text) > CODE_BYTES_MAX:
                text = f"# %% more cells are not kept: {CODE_BYTES_MAX:,} bytes are full\n"
                self._size = CODE_BYTES_MAX
            self._append(text)

    def _append(self, text: str) -> None:
        packed = text.encode("utf-8", "backslashreplace")
        file = DISK.open(self._path, write=True) if self._size else self._created()
        try:
            file.append([packed])
        finally:
            file.close()
        self._size += len(packed)

    def _created(self) -> File:
        """A file of its own: a run that is resumed has one of each attempt."""
        stem = self._path.removesuffix(".py")
        DISK.make_directory(os.path.dirname(stem))
        for number in itertools.count(2):
            with contextlib.suppress(FileExistsError):
                return DISK.create(self._path)
            self._path = f"{stem}-{number}.py"
        raise AssertionError("the numbers never end")

    def end(self) -> None:
        """Adds the last cell and is called no more."""
        self.after_cell()
        with contextlib.suppress(ValueError):
            self._shell.events.unregister("post_run_cell", self.after_cell)


def cell_text(number: int, source: str) -> str:
    """A cell as code: its number, and its lines, of which those that only IPython understands are comments.

    Of a line of more than 4,096 characters the rest is left out, as it may hold a secret that nobody looked for.
    """
    lines = source[:CODE_BYTES_MAX].rstrip().split("\n")
    whole = lines[0].startswith("%%")
    is_magic = False
    for index, line in enumerate(lines):
        # A command goes on behind a backslash.
        is_magic = whole or (is_magic and lines[index - 1].endswith("\\")) or bool(_MAGIC.match(line))
        lines[index] = f"# {line}" if is_magic else line
    # Why the cell and not each line: a private key or a text of three quotes has several.
    return f"# %% In [{number}]\n" + mask_code("\n".join(line[:VALUE_CHARACTERS_MAX] for line in lines)) + "\n\n"
