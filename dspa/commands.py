"""``dspa-bench audit``, ``finetune-sae`` and ``perf``: look into DSPA artifacts, adapt SAEs, measure speed."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.options import MAX_SEED, Device, command_group
from harness.plugins import need

commands = command_group()
perf = command_group("How fast DSPA is, as ratios with intervals from one interleaved run.")
commands.add_typer(perf, name="perf")

Shape = Annotated[
    str | None,
    typer.Option(
        help="Model to make up: quarter-gemma-2-2b, gemma-2-2b, qwen3-8b or tiny.", show_default="quarter-gemma-2-2b"
    ),
]
Ratios = Annotated[
    list[float] | None,
    typer.Option(
        "--ratio", help="Size of one made-up SAE over the model's; may be repeated.", show_default="0.03 and 0.13"
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        help="Instead of a made-up model a real one: folder, GGUF file or Hugging Face id[@revision].",
        show_default="none",
    ),
]
InputSAE = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="With --base: SAELens folder at l_in.", show_default="none")
]
OutputSAE = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="With --base: SAELens folder at l_out.", show_default="none")
]
Texts = Annotated[
    str | None,
    typer.Option(metavar="TRIPLES.jsonl", help="With --base: triples for prompts and answers.", show_default="none"),
]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Dtype of the model; SAEs are in float32.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch.", show_default="torch's choice")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of weights, texts and the order in rounds.")]
Out = Annotated[Path | None, typer.Option(help="File to keep the report in, .md or .json.", show_default="none")]
_BATCHES = [1, 16]


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


@perf.command(epilog="Example: `dspa-bench perf steering --threads 2 --out steering.md`")
def steering(
    shape: Shape = None,
    ratio: Ratios = None,
    base: Base = None,
    input_sae: InputSAE = None,
    output_sae: OutputSAE = None,
    texts: Texts = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Rows decoded together; may be repeated.", show_default="1 and 16")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the interleaved comparison.")] = 30,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of each candidate in a round.")] = 4,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Decode with DSPA, without, with full encode and decode at every token, and through SAELens' error term.

    The first line of each table is the control: the unsteered model against itself. Differences of that size mean
    nothing. Goals are shown beside the ratios; the exit code does not depend on them.
    """
    from dspa.perf.steering import SHORT, SteeringOptions, measure_steering
    from dspa.perf.subject import subject_of
    from harness.speed.report import measure_and_keep

    subject = subject_of(
        SHORT,
        made_up={"shape": shape, "ratio": tuple(ratio) if ratio else None},
        given={"base": base, "input_sae": input_sae, "output_sae": output_sae, "texts": texts},
    )
    options = SteeringOptions(
        subject, rounds, dtype=dtype, device=device, seed=seed, batches=tuple(batch or _BATCHES), steps=steps
    )
    measure_and_keep("DSPA while decoding", options, measure_steering, threads, out)


@perf.command(epilog="Example: `dspa-bench perf fit --threads 2 --out fit.md`")
def fit(
    shape: Shape = None,
    ratio: Ratios = None,
    base: Base = None,
    input_sae: InputSAE = None,
    output_sae: OutputSAE = None,
    texts: Texts = None,
    triples: Annotated[int, typer.Option(min=1, help="Triples fitted on in every round.")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Triples a forward.")] = 8,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Median length of made-up prompts.", show_default="84, as in HH-RLHF")
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Median length of made-up answers.", show_default="31, as in HH-RLHF")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the interleaved comparison.")] = 4,
    map_triples: Annotated[
        int | None,
        typer.Option(min=1, help="Triples of a made-up map whose size and query are measured.", show_default="1000"),
    ] = None,
    map_width: Annotated[int | None, typer.Option(min=64, help="Latents of that map.", show_default="16384")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Fit DSPA against two full forwards a pair, and against the forwards and products no fit can do without.

    Of a made-up model also the size on disk of a map, and milliseconds for a prompt's query of it. The first line of
    each table is the control: a candidate against itself. Goals are shown; the exit code does not depend on them.
    """
    from dspa.perf.fit import FitOptions, measure_fit
    from dspa.perf.subject import MADE_UP, subject_of
    from harness.speed.report import measure_and_keep

    of_map = {name: value for name, value in (("map_triples", map_triples), ("map_width", map_width)) if value}
    made_up = {"shape": shape, "ratio": tuple(ratio) if ratio else None}
    subject = subject_of(
        MADE_UP,
        made_up=made_up | {"prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens},
        given={"base": base, "input_sae": input_sae, "output_sae": output_sae, "texts": texts},
        beside=of_map,
    )
    options = FitOptions(
        subject, rounds, dtype=dtype, device=device, seed=seed, triples=triples, batch_size=batch_size, **of_map
    )
    measure_and_keep("Fitting DSPA", options, measure_fit, threads, out)


@perf.command(
    epilog="Example: `dspa-bench perf engine --base model --input-sae early --output-sae late --texts triples.jsonl`"
)
def engine(
    base: Annotated[str, typer.Option(help="Model: folder, GGUF file or Hugging Face id[@revision].")],
    input_sae: Annotated[str, typer.Option(metavar="FOLDER", help="SAELens folder at l_in.")],
    output_sae: Annotated[str, typer.Option(metavar="FOLDER", help="SAELens folder at l_out.")],
    texts: Annotated[str, typer.Option(metavar="TRIPLES.jsonl", help="Triples to fit on and prompts to ask.")],
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Prompts asked together; may be repeated.", show_default="1, 8 and 64"),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Length of each answer.")] = 64,
    compiled: Annotated[bool, typer.Option("--compiled", help="Let vLLM compile the model first.")] = False,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the interleaved comparison.")] = 5,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch, and of vLLM.")] = 1,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Answer prompts with transformers and with vLLM: unsteered, with one set of latents for all, with DSPA.

    Needs vLLM (docs/engine.md).
    """
    from dspa.perf.engine import EngineOptions, measure_engine
    from dspa.perf.subject import Given
    from harness.speed.report import measure_and_keep

    options = EngineOptions(
        Given(base, input_sae, output_sae, texts),
        rounds,
        dtype=dtype,
        device=device,
        seed=seed,
        batches=tuple(batch or (1, 8, 64)),
        tokens=tokens,
        threads=threads,
        compiled=compiled,
    )
    measure_and_keep("Answers by transformers and by vLLM", options, measure_engine, threads, out)


@perf.command(epilog="Example: `dspa-bench perf ridge --threads 1 --triples 61000 --width 131072`")
def ridge(
    triples: Annotated[int, typer.Option(min=1, help="Triples fitted on.")] = 1000,
    width: Annotated[int, typer.Option(min=64, help="Latents of each SAE.")] = 16_384,
    active: Annotated[int, typer.Option(min=1, help="Latents active in a prompt, at most.")] = 600,
    rank: Annotated[int, typer.Option(min=1, help="Factors kept of the map.")] = 128,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the interleaved comparison.")] = 5,
    threads: Threads = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Fit the map of ridge scores and ask it for prompts, against dense solves and products where they fit.

    Densities are drawn. Seconds, memory and FLOPs of the fit, the map's size, and milliseconds for a prompt. The first
    line of a comparison is the control: a candidate against itself.
    """
    from dspa.perf.ridge import RidgeOptions, measure_ridge
    from harness.speed.report import measure_and_keep

    options = RidgeOptions(triples, width, active, rank, rounds, seed=seed)
    measure_and_keep("Ridge scores", options, measure_ridge, threads, out)


@perf.command(epilog="Example: `dspa-bench perf meter --threads 1`")
def meter(
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the interleaved comparison.")] = 20,
    steps: Annotated[int, typer.Option(min=2, help="Training steps of each candidate in a round.")] = 8,
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Train a small random model with the compute meter and without: what metering a step costs.

    The control is the unmetered run against itself. The goal, at most 2 % of wall time, is shown; the exit code does
    not depend on it.
    """
    from harness.speed.meter import meter_command

    meter_command(threads, rounds=rounds, steps=steps, seed=seed)


@perf.command("lm-eval", epilog="Example: `dspa-bench perf lm-eval --threads 1 --task hellaswag_local:1`")
def lm_eval(
    model: Annotated[
        str | None,
        typer.Option(
            help="Model folder, GGUF file or Hugging Face id[@revision].", show_default="stories260K in the data folder"
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:SHOTS", help="Task and examples; may be repeated.", show_default="five local tasks"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Items of each task; a group's are shared among its tasks.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a forward, on both sides.")] = 16,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the interleaved comparison.")] = 5,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Dtype in which both load the weights.")
    ] = "float32",
    exact: Annotated[
        int, typer.Option(min=0, help="Requests of a task, those furthest apart, scored again in float64.")
    ] = 0,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Score multiple choice with lm-eval's class `aligned` and with its `hf`: ratios, how far log-likelihoods are
    apart, and every metric of both with its 95 % interval.

    The first line of each table is the control: `hf` against itself. Goals are shown beside the ratios; the exit
    code does not depend on them.
    """
    from harness.data import data_folder

    need("lm_eval", "`dspa-bench perf lm-eval`")
    from harness.speed.lm_eval import TASKS, LMEvalOptions, measure_lm_eval
    from harness.speed.report import measure_and_keep

    folder = model or str(data_folder() / "models" / "stories260K")
    options = LMEvalOptions(folder, tuple(task or TASKS), limit, batch_size, rounds, device, seed, dtype, exact)
    measure_and_keep("Scoring multiple choice against lm-eval's hf", options, measure_lm_eval, threads, out)
