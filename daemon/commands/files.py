"""`stepd files`: the files of a run: what was saved, what its code was, what lies in `run.dir`."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Sequence
from typing import Any

import click

from daemon.commands.common import json_option, open_store_of, print_json, when_text, write_table
from daemon.commands.service import clean, clean_lines, directory_option, size
from sdk import runfiles
from sdk.errors import Error, NotFoundError
from sdk.reader import Run, Store
from sdk.reader.kept import KEPT, KeptFile, find_file


@click.command("files")
@click.argument("words", nargs=-1, metavar="[RUN] [NAME]...")
@click.option("-o", "--output", metavar="DIR", help="Copy them into this directory.")
@click.option("--overwrite", is_flag=True, help="With -o: replace files that are there.")
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context,
    words: tuple[str, ...],
    output: str | None,
    overwrite: bool,
    as_json: bool,
    directory: str | None,
) -> None:
    """List the files of a run; with a NAME write that one to standard output, with -o copy all or those of the NAMEs.

    A NAME may be a pattern ("code/*.py"). A file that is "waiting" is copied by the daemon's keeper when it gets to it; one
    that is "missing" was gone before; one that is "changed" is there as it was later than `save` was called.
    """
    found, names = _run_and_names(open_store_of(ctx, directory), words)
    everything = found.files()
    chosen = _chosen(everything, names, found.id) if names else everything
    if output is not None:
        _copy(ctx, chosen, output, overwrite)
    elif as_json:
        print_json([_facts(file) for file in chosen])
    elif names and len(chosen) == 1 and not _is_pattern(names[0]):
        _print(chosen[0])
    else:
        rows = [
            (file.name, size(file.size), when_text(file.modified), "" if file.state == KEPT else file.state)
            for file in chosen
        ]
        write_table(("NAME", "SIZE", "CHANGED", ""), rows, right=(1,))
        if not chosen:
            click.echo(f"run {clean(found.id)} has no files", err=True)


def _run_and_names(store: Store, words: Sequence[str]) -> tuple[Run, list[str]]:
    """The run that the first word names and the names after it; the latest run where the first word is a file of it."""
    if not words:
        return store.run("latest"), []
    try:
        return store.run(words[0]), list(words[1:])
    except NotFoundError:
        latest = store.run("latest")
        if any(fnmatch.fnmatchcase(file.name, words[0]) for file in latest.files()):
            return latest, list(words)
        raise


def _is_pattern(name: str) -> bool:
    return any(mark in name for mark in "*?[")


def _chosen(files: list[KeptFile], names: Sequence[str], run_id: str) -> list[KeptFile]:
    """The files that names and patterns mean, each once.

    Raises:
        NotFoundError: One of them means none.
    """
    chosen: dict[str, KeptFile] = {}
    for name in names:
        matching = [file for file in files if file.name == name or fnmatch.fnmatchcase(file.name, name)]
        try:
            matching = matching or [find_file(files, name, run_id)]
        except ValueError as error:
            raise NotFoundError(str(error)) from None
        chosen.update((file.name, file) for file in matching)
    return list(chosen.values())


def _print(file: KeptFile) -> None:
    """The file's bytes. A terminal gets no control characters: what a run kept may come from anywhere."""
    terminal = sys.stdout.isatty()
    with file.open() as source:
        while data := source.read(runfiles.BUFFER_BYTES):
            if not terminal:
                sys.stdout.buffer.write(data)
                continue
            if b"\0" in data:
                raise click.ClickException(
                    clean(f"{file.name} is no text") + f"\n  Try: stepd files … {file.name!r} -o DIR"
                )
            click.echo(clean_lines(data.decode("utf-8", "replace")), nl=False)
    if not terminal:
        sys.stdout.buffer.flush()


def _copy(ctx: click.Context, files: list[KeptFile], output: str, overwrite: bool) -> None:
    """Copies what is there; what is not, or is in the way, is said, and the exit code is 1."""
    copied = 0
    for file in files:
        try:
            file.copy_to(output, overwrite=overwrite)
            copied += 1
        except FileExistsError:
            click.echo(clean(f"stepd: {file.name} is in {output} already; --overwrite replaces it"), err=True)
        except (Error, OSError, ValueError) as error:
            click.echo(clean(f"stepd: {file.name}: {getattr(error, 'message', error)}"), err=True)
    click.echo(clean(f"copied {copied} of {len(files)} files to {output}"))
    if copied < len(files):
        ctx.exit(1)


def _facts(file: KeptFile) -> dict[str, Any]:
    return {
        "name": file.name, "size": file.size, "modified": file.modified, "state": file.state, "path": file.path,
        "source": file.source,
    }  # fmt: skip
