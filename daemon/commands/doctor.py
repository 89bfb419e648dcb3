"""`stepd doctor`: looks at this machine, and prints the lines that would mend what it found."""

from __future__ import annotations

import contextlib
import os
import shutil
import textwrap
from collections.abc import Sequence

import click

from daemon.commands.common import can_unicode, json_option, print_json
from daemon.commands.service import clean, directory_option
from daemon.doctor.checks import CHECKS
from daemon.doctor.finding import BAD, NOTE, OK, WARN, Finding
from daemon.doctor.machine import Machine
from daemon.doctor.running import Check, examine, within
from sdk import __version__
from sdk._greeting import ASCII

_SIGNS = {OK: ("✓", "+", "green"), NOTE: ("·", "-", "cyan"), WARN: ("!", "!", "yellow"), BAD: ("✗", "x", "red")}
_PLAIN = {**ASCII, ord("×"): "x", ord("µ"): "u"}
_NAME = 12
_MEND = " " * 6
_WIDTH_MAX = 110
_CLEAN_SECONDS = 10.0


@click.command("doctor")
@click.option("--quick", is_flag=True, help="Do not measure what log() costs here.")
@json_option
@directory_option
@click.pass_context
def command(ctx: click.Context, quick: bool, as_json: bool, directory: str | None) -> None:
    """Whether logging works well on this machine, and the lines that mend what does not.

    Nothing is changed. A draft file and a store of its own, in which a daemon serves for a second, are gone afterwards. Exit code 1:
    something does not work.
    """
    machine = Machine(directory or ctx.obj)
    checks = [check for check in CHECKS if not (quick and check.measures)]
    found: list[tuple[Check, Finding]] = []
    page = None if as_json else _Page()
    try:
        for check, findings in examine(checks, machine):
            found += [(check, finding) for finding in findings]
            if page is not None:
                page.show(check, findings)
    finally:
        _remove(machine)
    levels = [finding.level for _, finding in found]
    if page is None:
        print_json(_document(found))
    else:
        page.end(levels)
    ctx.exit(1 if BAD in levels else 0)


def _document(found: Sequence[tuple[Check, Finding]]) -> dict[str, object]:
    levels = [finding.level for _, finding in found]
    return {
        "version": __version__,
        "mend": levels.count(WARN) + levels.count(BAD),
        "know": levels.count(NOTE),
        "findings": [{"group": check.group, "check": check.name, **finding._asdict()} for check, finding in found],
    }


def _remove(machine: Machine) -> None:
    """What checks that were killed have left. In a child: the file system may be one that does not answer."""
    from daemon.doctor import measuring

    with contextlib.suppress(Exception):
        within(_CLEAN_SECONDS, lambda: measuring.clean(machine))


class _Page:
    """The lines for people, printed as they come."""

    def __init__(self) -> None:
        self._group = ""
        self._unicode = can_unicode()
        self._color = None if not os.environ.get("NO_COLOR") else False
        self._width = min(shutil.get_terminal_size().columns, _WIDTH_MAX)

    def show(self, check: Check, findings: Sequence[Finding]) -> None:
        if check.group != self._group:
            self._say(("\n" if self._group else "") + click.style(check.group, bold=True))
            self._group = check.group
        for number, finding in enumerate(findings):
            self._show(check.name if number == 0 else "", finding)

    def _show(self, name: str, finding: Finding) -> None:
        sign, plain, color = _SIGNS[finding.level]
        sign = click.style(sign if self._unicode else plain, fg=color)
        indent = " " * (_NAME + 5)
        lines = textwrap.wrap(
            clean(finding.text), max(self._width - len(indent), 20), break_long_words=False, break_on_hyphens=False
        )
        self._say(f"  {sign} {name:<{_NAME}} {lines[0] if lines else ''}")
        for line in lines[1:]:
            self._say(f"{indent}{line}")
        for line in finding.mend:
            # Less far to the right: a line to paste should be one line.
            self._say(f"{_MEND}{click.style(clean(line), fg='cyan')}")

    def end(self, levels: Sequence[str]) -> None:
        mend, know = levels.count(WARN) + levels.count(BAD), levels.count(NOTE)
        told = [f"{mend} thing{'' if mend == 1 else 's'} to mend" if mend else "nothing to mend"]
        told += [f"{know} to know"] if know else []
        self._say(f"\n{', '.join(told)}")

    def _say(self, text: str) -> None:
        if not self._unicode:
            text = text.translate(_PLAIN).encode("ascii", "replace").decode()
        click.echo(text, color=self._color)
