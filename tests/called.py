"""The command line called in the process, as most tests of commands do; in a real terminal: tests/terminal.py."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner, Result

from daemon.cli import cli


def stepd(store: str, *words: str, **more: Any) -> Result:
    """`stepd --dir STORE …`; an exception that it did not mean is the test's. Other arguments: of `CliRunner.invoke`."""
    result = CliRunner().invoke(cli, ["--dir", store, *words], **more)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def said(store: str, *words: str, **more: Any) -> str:
    """What it printed, when all is well."""
    result = stepd(store, *words, **more)
    assert result.exit_code == 0, result.output
    return result.output
