"""The command line: one file a command, which reads options, calls the library and shows the result."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from unbackdoor._errors import UnbackdoorError
from unbackdoor._version import __version__
from unbackdoor.cli import attack, bench, demo, evaluate, purify, zoo
from unbackdoor.cli._show import errors

BAD_INPUT = 2
INTERRUPTED = 130

app = typer.Typer(
    name="unbackdoor",
    help="Remove the backdoor from an image classifier with one clean image a class.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("purify")(purify.command)
app.command("evaluate")(evaluate.command)
app.command("demo")(demo.command)
app.command("attack")(attack.command)
app.add_typer(zoo.app, name="zoo")
app.add_typer(bench.app, name="bench")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"unbackdoor {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 bad input, 130 interrupted."""
    try:
        app()
    except UnbackdoorError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(BAD_INPUT)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print("interrupted")
        raise
