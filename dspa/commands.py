"""``dspa-bench audit``, ``finetune-sae`` and ``perf``: look into DSPA artifacts, adapt SAEs, measure speed."""

from pathlib import Path
from typing import Annotated

import typer

from dspa.perf.commands import perf
from harness.cli.options import MAX_SEED, Device, command_group

commands = command_group()
commands.add_typer(perf, name="perf")


@commands.command(epilog="Example: `dspa-bench audit dspa-300 --texts pairs.jsonl`")
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
    causal: Annotated[
        Path | None,
        typer.Option(
            metavar="TRIPLES.jsonl",
            help="Held-out triples: edit selected features one by one and measure what it does to them.",
            show_default="none",
        ),
    ] = None,
    causal_triples: Annotated[int, typer.Option(min=2, help="Triples drawn for that, at most.")] = 100,
    causal_latents: Annotated[int, typer.Option(min=1, help="Features edited for a prompt, at most.")] = 16,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of the random features and of what is drawn.")
    ] = 0,
    device: Device = "cpu",
) -> None:
    """Look into a DSPA artifact: which features its map pushes on, where they fire, which are really edited.

    Writes audit.md, audit.html, features.json and features.csv. Without a judge there are passages, but no
    explanations and categories. With --causal the page also says whether the map is right about its features, and
    whether any features carry the preference. Exit code 1: the judge gave no answer on some features, or none that
    can be read (the page says which). 2: bad input, nothing was written.
    """
    from dspa.audit.audit import AuditSettings
    from dspa.audit.causal import CausalSettings
    from dspa.audit.command import audit_command

    settings = AuditSettings(top, snippets, examples, generate, max_new_tokens, seed)
    code = audit_command(
        artifact, texts, out, settings, judge_url=judge_url, judge_model=judge_model, judge_key=judge_key,
        device=device,
        causal=None if causal is None else (causal, CausalSettings(causal_triples, causal_latents, seed)),
    )  # fmt: skip
    raise typer.Exit(code)


@commands.command(
    "finetune-sae",
    epilog="Example: `dspa-bench finetune-sae --sae saes/layer_24 --base models/sft --triples pairs.jsonl "
    "--out saes/layer_24-tuned`",
)
def finetune_sae(
    base: Annotated[str, typer.Option(help="Base model: a local folder, or a Hugging Face id[@revision].")],
    triples: Annotated[Path, typer.Option(help="Preference triples: JSONL of prompt, chosen, rejected.")],
    out: Annotated[Path, typer.Option(help="SAE folder to write; must not exist.")],
    sae: Annotated[Path | None, typer.Option(help="SAE folder, as written by SAELens.")] = None,
    release: Annotated[str | None, typer.Option(help="Instead of --sae: SAELens release name; needs --id.")] = None,
    id: Annotated[str | None, typer.Option(help="SAE id inside the release.")] = None,
    norm_filter: Annotated[
        float | None,
        typer.Option(
            help="Leave out tokens longer than this multiple of the median norm.", show_default="what the SAE records"
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Training tokens.", show_default="every token of the training texts once")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    batch_size: Annotated[int, typer.Option(help="Tokens a step.")] = 1024,
    held_out: Annotated[float, typer.Option(help="Share of the prompts kept for measuring.")] = 0.1,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of the held-out draw and of the order of tokens.")
    ] = 0,
    chat: Annotated[str, typer.Option(help="Chat format: auto, tokenizer or hh.")] = "auto",
    device: Device = "cpu",
) -> None:
    """Continue an SAE's training on a model's activations over preference text, by SAELens' own trainer.

    Latents keep their indices and L0 is held. Prints L0, explained variance and loss recovered before and after,
    and keeps them in report.json inside the folder, which every command takes as an SAE.
    """
    from dspa.saes.finetune import FinetuneSettings, finetune_sae_command

    settings = FinetuneSettings(tokens, lr, batch_size, seed, held_out)
    finetune_sae_command(
        sae, base, triples, out, settings, release=release, sae_id=id, norm_filter=norm_filter, chat=chat, device=device
    )


@commands.command(
    "train-sae",
    epilog="Example: `dspa-bench train-sae --base models/sft --dtype bfloat16 --text pairs.jsonl --text stories.txt "
    "--layer 8 --layer 22 --out saes/sft`",
)
def train_sae(
    base: Annotated[
        str, typer.Option(help="Base model: a local folder, a GGUF file, or a Hugging Face id[@revision].")
    ],
    text: Annotated[
        list[Path],
        typer.Option(help="JSONL of triples, of {messages} or of {text}, or .txt; may be repeated.", metavar="FILE"),
    ],
    layer: Annotated[list[int], typer.Option(help="Layer whose output an SAE describes; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder to write, with a folder layer_N for each layer; must not exist.")],
    kind: Annotated[
        str, typer.Option(help="batchtopk (saved as jumprelu), topk, jumprelu, standard or gated.")
    ] = "batchtopk",
    latents: Annotated[int | None, typer.Option(help="Latents of an SAE.", show_default="4 x the width")] = None,
    k: Annotated[float, typer.Option(help="Active latents: of every token (topk), of the mean token (others).")] = 32,
    tokens: Annotated[
        int | None, typer.Option(help="Training tokens.", show_default="every token of the training texts once")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Tokens a step.")] = 1024,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 6e-4,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of weights, held-out draw and order of tokens.")
    ] = 0,
    norm_filter: Annotated[
        float, typer.Option(help="Leave out tokens longer than this multiple of the median norm; 0: none.")
    ] = 10,
    held_out: Annotated[float, typer.Option(help="Share of prompts and documents kept back.")] = 0.05,
    measure_tokens: Annotated[int, typer.Option(help="Held-out tokens measured on, at most.")] = 20_000,
    context: Annotated[int, typer.Option(help="Longest piece of a document, in tokens.")] = 512,
    dtype: Annotated[str, typer.Option(help="Dtype of the model: float32 or bfloat16.")] = "float32",
    save_dtype: Annotated[str, typer.Option(help="Dtype of the saved weights: float32 or float16.")] = "float32",
    chat: Annotated[str, typer.Option(help="Chat format: auto, tokenizer or hh.")] = "auto",
    device: Device = "cpu",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do and take.")] = False,
) -> None:
    """Train SAEs on a model's activations over text, by SAELens' own trainer: all layers from one pass.

    Says first what it will do and about how long that takes. Killed at any moment, the same command goes on and ends
    with the same weights; what is unfinished lies in OUT.partial. Prints L0, explained variance, dead latents and loss
    recovered on held-out text, and keeps them in report.json inside each folder, which every command takes as an SAE.
    """
    from dspa.saes.plan import TrainSettings
    from dspa.saes.train_sae import train_sae_command

    settings = TrainSettings(
        tuple(layer), kind, latents, k, tokens, batch_size, lr, seed, norm_filter, held_out, measure_tokens, context,
        save_dtype,
    )  # fmt: skip
    train_sae_command(base, text, out, settings, dtype=dtype, chat=chat, device=device, dry_run=dry_run)
