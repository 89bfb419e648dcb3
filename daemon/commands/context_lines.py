"""What `stepd show` prints of where a run came from (docs/context.md): a few lines out of many facts, all of them hostile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from daemon.commands.service import clean, size
from sdk._greeting import count
from sdk.reader import Run
from sdk.reader.kept import KEPT

_COMMAND_CHARACTERS_MAX = 160
_COMMIT_CHARACTERS = 12


def print_context(run: Run) -> None:
    """The section "context"; nothing where nothing is known."""
    lines = list(_lines(run.context))
    files = run.files()
    if files:
        missing = sum(file.state != KEPT for file in files)
        note = f", {missing} not as they were saved" if missing else ""
        lines.append(("files", f"{len(files):,}, {size(sum(file.size for file in files))}{note}; stepd files {run.id}"))
    if lines:
        click.echo("\ncontext")
    for title, text in lines:
        click.echo(f"  {title:<9} {clean(text)}")


def _lines(context: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    imported = _map(context, "import")
    if imported.get("source"):
        files, total = imported.get("files"), imported.get("bytes")
        known = f" ({count(files, 'file')}, {size(total)})" if type(files) is int and type(total) is int else ""
        yield "from", f"{imported['source']}{known}"
    command = context.get("command")
    if isinstance(command, list) and command:
        text = " ".join(map(_quoted, command))
        yield "command", text if len(text) <= _COMMAND_CHARACTERS_MAX else f"{text[:_COMMAND_CHARACTERS_MAX]}…"
    program, launcher = _map(context, "program"), _map(context, "launcher")
    if program:
        under = launcher.get("name") or program.get("under")
        name = program.get("name") or program.get("path")
        yield from _line("program", name, program.get("kind"), under and f"under {under}")
    if context.get("cwd"):
        yield "in", str(context["cwd"])
    git = _map(context, "git")
    if git:
        yield "git", _git_text(git)
    python = _map(context, "python")
    if python:
        packages = _map(context, "packages").get("count")
        known = _noted(python.get("version"), python.get("implementation"), packages and f"{packages} packages")
        told = ", ".join(str(part) for part in (known, python.get("executable")) if part)
        if told:
            yield "python", told
    if context.get("host"):
        yield "host", ", ".join(_machine(context))


def _line(title: str, name: Any, *notes: Any) -> Iterator[tuple[str, str]]:
    text = _noted(name, *notes)
    if text:
        yield title, text


def _noted(name: Any, *notes: Any) -> str:
    """A name with notes in brackets, of what is known: what another tool wrote lacks parts."""
    told = ", ".join(str(note) for note in notes if note)
    return (f"{name} ({told})" if told else str(name)) if name else told


def _git_text(git: Mapping[str, Any]) -> str:
    if not git.get("commit"):
        return str(git.get("why") or "no commit yet")
    notes = [str(git["branch"])] if git.get("branch") else ["detached"] if git.get("detached") else []
    if git.get("dirty"):
        notes.append("with changes: diff.patch" if "diff.patch" in (git.get("files") or ()) else "with changes")
    if git.get("untracked_count"):
        notes.append(f"{git['untracked_count']} untracked")
    if git.get("remote"):
        notes.append(str(git["remote"]))
    if git.get("why"):
        notes.append(str(git["why"]))
    return f"{str(git['commit'])[:_COMMIT_CHARACTERS]} ({', '.join(notes)})" if notes else str(git["commit"])


def _machine(context: Mapping[str, Any]) -> Iterator[str]:
    yield str(context["host"])
    if context.get("user"):
        yield f"user {context['user']}"
    if context.get("cpu"):
        threads = context.get("cpu_threads")
        yield f"{context['cpu']}{f' ({threads} threads)' if threads else ''}"
    memory = context.get("memory_bytes")
    if isinstance(memory, (int, float)):
        yield size(memory)


def _quoted(argument: Any) -> str:
    import shlex

    return shlex.quote(str(argument))


def _map(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = values.get(name)
    return value if isinstance(value, dict) else {}
