"""The commands that look into DSPA artifacts and SAEs: their options; the bodies are in audit.py, finetune_sae.py."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Device


def audit(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder of method dspa.")],
    texts: Annotated[
        Path, typer.Option(help="What to measure on: triples (JSONL), JSONL of {text}, or .txt with one text a line.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; must not exist.", show_default="<artifact>-audit")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Features at either end of the ranking, and random ones.")] = 50,
    snippets: Annotated[int, typer.Option(min=1, help="Passages shown for each feature.")] = 8,
    examples: Annotated[int, typer.Option(min=0, help="Prompts whose selection is shown in full.")] = 4,
    generate: Annotated[int, typer.Option(min=0, help="Prompts answered to see what is edited; 0: none.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest of these answers, in tokens.")] = 64,
    judge_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible endpoint that explains features, e.g. http://localhost:8000/v1."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Model at that endpoint.")] = None,
    judge_key: Annotated[
        str, typer.Option(metavar="VARIABLE", help="Environment variable that holds the endpoint's key.")
    ] = "OPENAI_API_KEY",
    seed: Annotated[int, typer.Option(help="Seed of the random features and of the prompts drawn.")] = 0,
    device: Device = "cpu",
) -> None:
    """Look into a DSPA artifact: which features its map pushes on, where they fire, which are really edited.

    Writes audit.md, audit.html, features.json and features.csv. Without a judge there are passages, but no
    explanations and categories. Exit code 1: the judge gave no answer on some features, or none that can be read
    (the page says which). 2: bad input, nothing was written.
    """
    from dspa.audit import AuditSettings
    from harness.cli.audit import audit_command

    settings = AuditSettings(top, snippets, examples, generate, max_new_tokens, seed)
    code = audit_command(
        artifact,
        texts,
        out,
        settings,
        judge_url=judge_url,
        judge_model=judge_model,
        judge_key=judge_key,
        device=device,
    )
    raise typer.Exit(code)


def finetune_sae(
    base: Annotated[str, typer.Option(help="Base model: a local folder, or a Hugging Face id[@revision].")],
    triples: Annotated[Path, typer.Option(help="Preference triples: JSONL of prompt, chosen, rejected.")],
    out: Annotated[Path, typer.Option(help="SAE folder to write; must not exist.")],
    sae: Annotated[Path | None, typer.Option(help="SAE folder, as written by SAELens.")] = None,
    release: Annotated[str | None, typer.Option(help="Instead of --sae: SAELens release name; needs --id.")] = None,
    id: Annotated[str | None, typer.Option(help="SAE id inside the release.")] = None,
    norm_filter: Annotated[
        float | None, typer.Option(help="Leave out tokens longer than this multiple of the median norm.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Training tokens.", show_default="every token of the training texts once")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    batch_size: Annotated[int, typer.Option(help="Tokens a step.")] = 1024,
    held_out: Annotated[float, typer.Option(help="Share of the prompts kept for measuring.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the held-out draw and of the order of tokens.")] = 0,
    chat: Annotated[str, typer.Option(help="Chat format: auto, tokenizer or hh.")] = "auto",
    device: Device = "cpu",
) -> None:
    """Continue an SAE's training on a model's activations over preference text, by SAELens' own trainer.

    Latents keep their indices and L0 is held. Prints L0, explained variance and loss recovered before and after,
    and keeps them in report.json inside the folder, which every command takes as an SAE.
    """
    from dspa.saes.finetune import FinetuneSettings
    from harness.cli.finetune_sae import finetune_sae_command

    settings = FinetuneSettings(tokens, lr, batch_size, seed, held_out)
    finetune_sae_command(
        sae, base, triples, out, settings, release=release, sae_id=id, norm_filter=norm_filter, chat=chat, device=device
    )
