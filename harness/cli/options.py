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


MovedSAEs = Annotated[
    list[str] | None,
    typer.Option("--sae", metavar="NAME=FOLDER", help="Where an SAE is, if it moved: input_sae=FOLDER, say."),
]


def moved_saes(options: list[str] | None) -> dict[str, str]:
    """What ``--sae`` options say; ValueError for one without a folder."""
    found = {}
    for option in options or ():
        name, _, folder = option.partition("=")
        if not name or not folder:
            raise ValueError(f"--sae {option!r}: write NAME=FOLDER, such as input_sae=saes/early")
        found[name] = folder
    return found
