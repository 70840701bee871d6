"""What commands share: options, and how a group of commands is made."""

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperOption

Device = Annotated[str, typer.Option(help="Torch device, e.g. cpu or cuda.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key of the suite; may be repeated.")
]
MAX_SEED = 2**31 - 1
"""Of `--seed`, from 0: numpy refuses negative ones, and some libraries keep 32 bits."""
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON instead, for programs.")]


def command_group(text: str | None = None) -> typer.Typer:
    """Commands under one name with ``text`` as their help, or without ``text`` commands that join the program's own."""
    return typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help=text)


MovedBase = Annotated[
    str | None, typer.Option(help="Where the base is, if it moved: a folder, or a Hugging Face id[@revision].")
]
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


def print_json(value: Any) -> None:
    """``value`` as JSON on stdout; a number that is none (NaN, infinite) becomes null."""
    from harness.files import without_nan

    print(json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False))


def without_flag_types() -> None:
    """Let the help show flags as flags: Typer writes <bool> behind them as if they took a value."""
    shown: Callable[[TyperOption, Any], str | None] = TyperOption.display_type_rich

    def display_type_rich(self: TyperOption, ctx: Any) -> str | None:
        return None if self.is_flag else shown(self, ctx)

    TyperOption.display_type_rich = display_type_rich
