"""What commands share: options, and how a group of commands is made."""

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="Torch device, e.g. cpu or cuda.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key of the suite; may be repeated.")
]


def command_group(text: str | None = None) -> typer.Typer:
    """Commands under one name with ``text`` as their help, or without ``text`` commands that join the program's own."""
    return typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help=text)
