"""The `sandbox` commands, their options and their help."""

from pathlib import Path
from typing import Annotated

import typer

sandbox = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="The small planted world that the default suite runs in.",
)


@sandbox.command(epilog="Example: `dspa-bench sandbox build --out build/sandbox`")
def build(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Seed of everything in the world.")] = 0,
) -> None:
    """Make the sandbox from its seed: data, questions, tokenizer, base model, SAEs (minutes on two cores)."""
    from tasks.sandbox.build import build as build_sandbox

    build_sandbox(out, seed)


@sandbox.command(epilog="Example: `dspa-bench sandbox show`")
def show() -> None:
    """Print sample conversations, and what each family of requests prefers."""
    from tasks.sandbox.show import show as show_sandbox

    print(show_sandbox(), end="")
