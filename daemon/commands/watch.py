"""`stepd watch`: a live screen of all running trainings."""

from __future__ import annotations

import os
import shutil
import sys

import click

from daemon.commands.common import can_unicode, open_store_of, print_json
from daemon.commands.service import clean, directory_option, store_path
from daemon.screen.model import AwaitedStore, Board, Scene, filter_of
from daemon.screen.text import Ink
from daemon.screen.view import View
from sdk._greeting import short_path
from sdk.errors import Error, install_hint
from sdk.reader import Store

_FRAME_COLUMNS_MAX = 200


@click.command("watch")
@click.argument("word", required=False, metavar="[RUN]")
@click.option("--all", "every", is_flag=True, help="All runs, not only those that go on or ended within the last hour.")
@click.option(
    "--where", "text", default="", metavar="EXPR", help="Only these: 'config.lr < 1e-3 and state = running', or words."
)
@click.option(
    "--once", is_flag=True, help="Print one frame as text and end; also what comes where nobody looks at a terminal."
)
@click.option("--json", "as_json", is_flag=True, help="The list once, as one JSON document.")
@click.option("--sparks", is_flag=True, help="With --json: the values of its small charts too.")
@directory_option
@click.pass_context
def command(
    ctx: click.Context, word: str | None, every: bool, text: str, once: bool, as_json: bool, sparks: bool,
    directory: str | None,
) -> None:  # fmt: skip
    """A live screen of all running trainings, with a page for each: charts, console, rows, media, facts.

    Everything is done with keys, ? shows them. Needs no daemon and no server: over ssh it is `ssh -t HOST stepd watch`.
    """
    # Why not one that must be there: on a fresh machine the screen is opened before the first training.
    store = AwaitedStore(store_path(ctx, directory)) if word is None else open_store_of(ctx, directory)
    run = None if word is None else store.run(word).id
    terminal = os.environ.get("TERM", "dumb")
    is_looked_at = sys.stdout.isatty() and sys.stdin.isatty() and terminal != "dumb"
    # The console of the Linux kernel has neither braille nor bars in its fonts.
    ink = Ink(can_unicode() and terminal != "linux", not os.environ.get("NO_COLOR") and sys.stdout.isatty())
    size = _size()
    view = View(Scene(store.path), size, ink, run)
    filter_of(text)  # what is wrong with it is said before there is a screen
    view.every, view.text = every, text
    if as_json:
        _print_json(store, view, run, sparks)
        return
    if once or not is_looked_at:
        _print_once(store, view)
        return
    open_screen(store, view)


def open_screen(store: Store, view: View) -> None:
    """Runs until somebody leaves it.

    Raises:
        Error: textual is not installed.
    """
    try:
        from daemon.screen.app import Watch
    except ImportError as error:
        raise Error(
            f"cannot open the live screen: textual is not installed here ({error}). One frame as text: stepd watch --once",
            hint=install_hint("textual"),
        ) from error
    app = Watch(Board(store), view)
    app.run()
    if app.trouble is not None:
        raise app.trouble


def _size() -> tuple[int, int]:
    size = shutil.get_terminal_size((_FRAME_COLUMNS_MAX, 50))
    return max(size.columns, 20), max(size.lines, 8)


def _print_once(store: Store, view: View) -> None:
    """One frame of the list, as long as it needs to be; or of a page, as long as the terminal is."""
    board = Board(store)
    try:
        if view.page is not None:
            _read_page(store, view)
        else:
            view.take(board.look(view.wanted()))
            if not (view.scene.total or view.scene.trouble or view.scene.left_out):
                click.echo(f"no run in {clean(short_path(store.path))} yet")
                return
            view.resize((view.size[0], max(len(view.scene.glances) * 2 + 8, 24)))
            while board.fill(view.wanted()):
                view.take(board.scene(view.wanted()))
        for line in _trimmed(view.draw()[:-1]):
            click.echo(line)
    finally:
        board.close()


def _print_json(store: Store, view: View, run: str | None, sparks: bool) -> None:
    """The runs that the list shows, or the one that was named, as far as the screen knows them, and the daemon's health.

    Of series only the last values, unless `sparks` are asked for: they are most of the document, and nobody reads them in a script.
    Of runs that are over none are read for a list.
    """
    board = Board(store)
    try:
        wanted = view.wanted()._replace(every=view.every or run is not None)
        scene = board.look(wanted)
        if sparks or run is not None:
            ids = (run,) if run is not None else tuple(one.id for one in scene.glances)
            while board.fill(wanted := wanted._replace(visible=ids)):
                scene = board.scene(wanted)
    finally:
        board.close()
    glances = [one for one in scene.glances if run is None or one.id == run]
    told = []
    for one in glances:
        facts = {**one._asdict(), "load": one.load._asdict(), "last": {spark.key: spark.last for spark in one.sparks}}
        del facts["sparks"]
        if sparks:
            facts["sparks"] = [spark._asdict() for spark in one.sparks]
        told.append(facts)
    print_json({"store": scene.store, "health": scene.health._asdict() if scene.health else None, "runs": told})


def _read_page(store: Store, view: View) -> None:
    from daemon.screen.page import Page

    page = None
    try:
        for _ in range(2):  # the first time tells which charts there are
            detail = view.detail()
            assert detail is not None
            page = page or Page(store, detail.run, view.ink)
            content = page.read(detail)
            if content is not None:
                view.take_content(content)
    finally:
        if page is not None:
            page.close()


def _trimmed(lines: list[str]) -> list[str]:
    lines = [line.rstrip() if sys.stdout.isatty() else click.unstyle(line).rstrip() for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return lines
