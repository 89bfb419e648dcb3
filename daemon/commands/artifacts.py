"""`stepd artifacts`: data sets and models that runs logged, their versions, and their files."""

from __future__ import annotations

import os
from typing import Any

import click

from daemon.commands.common import json_option, open_store_of, print_json, progress, when_text, write_table
from daemon.commands.service import clean, directory_option, size
from daemon.keep.pruning import prune
from sdk._keeping import jobs
from sdk.artifacts.fetching import bytes_path, digest_of, fetch
from sdk.artifacts.format import Entry, Head, object_path
from sdk.artifacts.shelf import Shelf
from sdk.errors import StoreError, UnsupportedError
from sdk.files import DISK
from sdk.location import read_store


@click.command("artifacts")
@click.argument("name", required=False, metavar="[NAME[:ALIAS]]")
@click.option("-o", "--output", metavar="DIR", help="Copy the files of the version into DIR.")
@click.option("--prune", "pruning", is_flag=True, help="Remove bytes that no version has any more.")
@click.option(
    "--verify", "verifying", is_flag=True, help="Read every stored byte of NAME, or of all, and compare digests."
)
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context,
    name: str | None,
    output: str | None,
    pruning: bool,
    verifying: bool,
    as_json: bool,
    directory: str | None,
) -> None:
    """The artifacts of the store; of one NAME its versions; of one version (NAME:v3, NAME:best) its files."""
    shelf = Shelf(open_store_of(ctx, directory).path)
    if pruning:
        _prune(shelf.store)
    elif verifying:
        _verify(shelf, [shelf.find(name)] if name else [head for one in shelf.names() for head in shelf.versions(one)])
    elif output is not None:
        if name is None:
            raise click.UsageError("-o needs the NAME of an artifact", ctx)
        _copy(shelf, shelf.find(name), output)
    elif name is not None and ":" in name:
        _show(shelf, shelf.find(name), as_json)
    elif name is not None:
        shelf.find(name)
        _list(shelf.versions(name.rpartition("/")[2])[::-1], as_json)
    else:
        _list([found[-1] for one in shelf.names() if (found := shelf.versions(one))], as_json)
        if not as_json and (waiting := len(jobs(shelf.store))):
            click.echo(f"{waiting} more wait{'s' if waiting == 1 else ''} for the daemon's keeper: stepd status")


def _list(heads: list[Head], as_json: bool) -> None:
    if as_json:
        print_json([facts(head) for head in heads])
        return
    rows = [
        (
            head.name, head.version, head.type, ", ".join(head.aliases), f"{head.file_count:,}", size(head.size),
            head.run or "-", when_text(head.created_ns / 1e9), f"{head.troubles} with trouble" if head.troubles else "",
        )
        for head in heads
    ]  # fmt: skip
    write_table(("NAME", "VERSION", "TYPE", "ALIASES", "FILES", "SIZE", "RUN", "LOGGED", ""), rows, right=(4, 5))


def facts(head: Head) -> dict[str, Any]:
    """A version as a JSON document."""
    document = head._asdict()
    document["version"] = head.version
    document["created"] = document.pop("created_ns") / 1e9
    return document


def _show(shelf: Shelf, head: Head, as_json: bool) -> None:
    entries = shelf.entries(head)
    if as_json:
        print_json({**facts(head), "files": [entry._asdict() for entry in entries]})
        return
    aliases = f"   {', '.join(map(clean, head.aliases))}" if head.aliases else ""
    click.echo(click.style(f"{clean(head.name)}:{head.version}", bold=True) + f"   {clean(head.type)}{aliases}")
    click.echo(f"  logged    {when_text(head.created_ns / 1e9)}" + (f" by run {clean(head.run)}" if head.run else ""))
    click.echo(f"  content   {head.file_count:,} files, {size(head.size)}, digest {head.digest[:16]}")
    for title, text in {"tags": ", ".join(head.tags), "about": head.description or ""}.items():
        if text:
            click.echo(f"  {title:<9} {clean(text)}")
    for key, value in head.metadata.items():
        click.echo(f"  {clean(key)} = {clean(value)}")
    click.echo("")
    rows = [(entry.path, _size(entry), entry.digest[:16], entry.reference or "", entry.trouble) for entry in entries]
    write_table(("FILE", "SIZE", "DIGEST", "REFERENCE", ""), rows, right=(1,))


def _size(entry: Entry) -> str:
    return "-" if entry.size is None else size(entry.size)


def _copy(shelf: Shelf, head: Head, output: str) -> None:
    """All files that can be had; those that cannot are named, and make the exit code 1."""
    place = os.path.abspath(output)
    DISK.make_directory(place)
    missing = []
    with progress(head.size, "copying") as tell:
        for entry in shelf.entries(head):
            try:
                bytes_path(shelf.store, entry)
                fetch(shelf.store, entry, place)
            except (UnsupportedError, FileNotFoundError) as error:
                missing.append(f"{entry.path}: {error}")
            tell(entry.size or 0)
    click.echo(f"{head.file_count - len(missing):,} files of {clean(head.name)}:{head.version} are in {clean(place)}")
    if missing:
        raise StoreError(f"{len(missing)} files could not be had: {missing[0]}")


def _verify(shelf: Shelf, heads: list[Head]) -> None:
    """Looks at each object once; references are not the store's. Exit code 1 where one is not what it was."""
    seen: set[str] = set()
    wrong = 0
    with progress(sum(head.size for head in heads), "reading") as tell:
        for head in heads:
            for entry in shelf.entries(head):
                if entry.reference or not entry.digest or entry.digest in seen:
                    continue
                seen.add(entry.digest)
                if trouble := _trouble_of(object_path(shelf.store, entry.digest), entry.digest):
                    wrong += 1
                    click.echo(f"{clean(head.name)}:{head.version}  {clean(entry.path)}  {clean(trouble)}")
                tell(entry.size or 0)
    if wrong:
        raise StoreError(f"{wrong} of {len(seen):,} stored files are damaged or missing")
    click.echo(f"{len(seen):,} stored files of {len(heads):,} versions are as they were")


def _trouble_of(path: str, digest: str) -> str:
    try:
        found = digest_of(path)
    except OSError as error:
        return str(error)
    return "" if found == digest else f"has digest {found}, expected {digest}"


def _prune(store: str) -> None:
    if not read_store(store).writable:
        raise StoreError(f"the store {store!r} is not yours alone, so nothing in it is removed")
    count, freed = prune(DISK, store)
    click.echo(f"removed {count:,} files that no version has, {size(freed)}")
