"""The command line: `stepd` and `daemon` are this one command. Each command's module is imported only when it is chosen."""

from __future__ import annotations

import importlib
import keyword
import sys
from typing import Any

import click

from sdk.errors import Error, NotFoundError

# Command -> (group of the help page, one line of help).
COMMANDS = {
    "runs": ("Look", "List the runs of the store."),
    "show": ("Look", "Facts, config, summary and keys of a run."),
    "files": ("Look", "The files of a run: list, print, copy out."),
    "tail": ("Look", "The last rows of a run, and with -f the next ones as they come."),
    "logs": ("Look", "What a run printed and logged, and with -f the next lines as they come."),
    "plot": ("Look", "Curves of runs in the terminal."),
    "why": ("Look", "How a run died, or why it hangs."),
    "compare": ("Look", "What differs between runs, and the first step at which they part."),
    "report": ("Look", "Runs as one HTML file that opens offline: charts, config, media, tables."),
    "sql": ("Look", "SQL over runs, values, logs, tables; what there is, without a query."),
    "watch": ("Look", "A live screen of all running trainings."),
    "artifacts": ("Look", "Data sets and models: names, versions, aliases; and their files."),
    "set": ("Look", "Set a run's name, tags, notes, group, values of its summary."),
    "export": ("Move", "All rows of a run as JSON lines or CSV."),
    "sync": ("Move", "Carry runs to TensorBoard, Parquet, MLflow, W&B, another store."),
    "import": ("Move", "Runs that TensorBoard or W&B have written, into the store."),
    "verify": ("Mend", "Read every block and say what is damaged or missing."),
    "repair": ("Mend", "Save what can be saved of damaged segments."),
    "compact": ("Mend", "Encode and join large values, and remove old ones."),
    "du": ("Mend", "How much of the disk each run takes."),
    "rm": ("Mend", "Move a run to the trash, where it stays for seven days."),
    "start": ("Daemon", "Start the daemon of the store, unless one serves it."),
    "stop": ("Daemon", "Stop it after everything received is written."),
    "restart": ("Daemon", "Stop it and start another."),
    "status": ("Daemon", "What it is doing."),
    "doctor": ("Daemon", "Whether logging works well on this machine, and what would mend it."),
}
_GROUPS = ("Look", "Move", "Mend", "Daemon")
# These only look: what was probably meant may be suggested to be given to them.
_LOOKING = frozenset({"show", "files", "tail", "logs", "plot", "why", "compare", "report", "watch"})


class Commands(click.Group):
    """Finds a command's module by its name and prints our own errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        # A module cannot be called as a keyword of Python is.
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = importlib.import_module(f"daemon.commands.{module}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 2)
            hint = f" Did you mean: {', '.join(f'stepd {n}' for n in near)}?" if near else ""
            raise click.UsageError(f"no command {args[0]!r}.{hint}", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in _GROUPS:
            rows = [(name, text) for name, (where, text) in COMMANDS.items() if where == group]
            with formatter.section(group):
                formatter.write_dl(rows)

    def make_context(self, *words: Any, **more: Any) -> click.Context:
        try:
            return super().make_context(*words, **more)
        except KeyboardInterrupt:
            sys.exit(130)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Error as error:
            from daemon.commands.service import clean_lines

            click.echo(clean_lines(f"stepd: {_in_its_words(error, ctx.invoked_subcommand)}"), err=True)
            ctx.exit(1)
        except KeyboardInterrupt:  # while a command's modules were imported, or in one that does not see to it itself
            ctx.exit(130)
        except BrokenPipeError:
            # The reader of our output went away (`stepd export | head`): that is no error of ours to report.
            sys.stderr.close()
            ctx.exit(0)
        except OSError as error:  # a full disk behind our output, a directory that is gone: no traceback would say more
            from daemon.commands.service import clean_lines

            click.echo(clean_lines(f"stepd: cannot go on with {ctx.invoked_subcommand}: {error}"), err=True)
            ctx.exit(1)


def _in_its_words(error: Error, verb: str | None) -> Error:
    """An error with a hint for a shell: the command that was called, with what was probably meant, or another one."""
    if isinstance(error, NotFoundError) and error.instead and verb in _LOOKING:
        return NotFoundError(error.message, f"stepd {verb} {error.instead}")
    if isinstance(error, NotFoundError) and error.command:
        return NotFoundError(error.message, error.command)
    return error


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from sdk import __version__
    from sdk.limits import WIRE_VERSION
    from sdk.segment.format import FORMAT_MAJOR, FORMAT_MINOR

    click.echo(f"stepd {__version__} (wire {WIRE_VERSION}, segment format {FORMAT_MAJOR}.{FORMAT_MINOR})")
    ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print versions."
)
@click.option(
    "--dir", "directory", metavar="PATH", help="The store; default: STEPD_DIR, the nearest .stepd/, ~/.stepd."
)
@click.pass_context
def cli(ctx: click.Context, directory: str | None) -> None:
    """stepd: log every step of a training run, lose nothing, look at it from here."""
    ctx.obj = directory


def main() -> None:
    """Entry of the commands `stepd` and `daemon`."""
    cli(prog_name="stepd")
