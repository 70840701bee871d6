"""``dspa-bench publish``: an artifact or a report on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import command_group

commands = command_group()


@commands.command(epilog="Example: `dspa-bench publish runs/mine/cells/dpo__n300__s0/artifact --to me/dpo-300`")
def publish(
    folder: Annotated[Path, typer.Argument(help="Artifact folder, or the folder of a report.")],
    to: Annotated[str, typer.Option(metavar="USER/NAME", help="Repository on the hub; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make it a private repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the card that would be written.")] = False,
) -> None:
    """Upload an artifact (as a model) or a report (as a dataset) with a card that says what it is and what it cost.

    Log in first with `hf auth login`, or set HF_TOKEN. Of paths on this machine only the last part is uploaded.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from harness.publish import card
    from harness.publish import publish as upload

    try:
        validate_repo_id(to)
    except HFValidationError as problem:
        raise ValueError(f"--to {to!r}: {problem}") from None
    if to.count("/") != 1:
        raise ValueError(f"--to {to!r}: write USER/NAME")
    if dry_run:
        print(card(folder, to))
        return
    print(upload(folder, to, api=HfApi(), private=private))
