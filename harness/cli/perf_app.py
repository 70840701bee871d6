"""The `perf` commands, their options and their help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.options import Device

perf = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="How fast DSPA is, as ratios with intervals from one interleaved run on a random model.",
)

Shape = Annotated[str, typer.Option(help="Model to make up: quarter-gemma-2-2b, gemma-2-2b, qwen3-8b or tiny.")]
Ratios = Annotated[
    list[float] | None,
    typer.Option("--ratio", help="Size of one SAE over the model's; may be repeated.", show_default="0.03 and 0.13"),
]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Dtype of the model; SAEs are in float32.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch.", show_default="torch's choice")]
Seed = Annotated[int, typer.Option(help="Seed of weights, texts and the order in rounds.")]
Out = Annotated[Path | None, typer.Option(help="File to keep the report in, .md or .json.", show_default="none")]
_RATIOS, _BATCHES = [0.03, 0.13], [1, 16]


@perf.command(epilog="Example: `dspa-bench perf steering --threads 2 --out steering.md`")
def steering(
    shape: Shape = "quarter-gemma-2-2b",
    ratio: Ratios = None,
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
    from harness.cli.perf import steering_command

    ratios, batches = tuple(ratio or _RATIOS), tuple(batch or _BATCHES)
    settings = {"shape": shape, "ratios": ratios, "batches": batches, "rounds": rounds, "steps": steps}
    steering_command(threads, out, **settings, dtype=dtype, device=device, seed=seed)


@perf.command(epilog="Example: `dspa-bench perf fit --threads 2 --out fit.md`")
def fit(
    shape: Shape = "quarter-gemma-2-2b",
    ratio: Ratios = None,
    triples: Annotated[int, typer.Option(min=1, help="Triples fitted on in every round.")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Triples a forward.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Median length of prompts (default: as in HH-RLHF).")] = 84,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Median length of answers (default: as in HH-RLHF).")] = 31,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the interleaved comparison.")] = 4,
    map_triples: Annotated[
        int, typer.Option(min=1, help="Triples of the map whose size and query are measured.")
    ] = 1000,
    map_width: Annotated[int, typer.Option(min=64, help="Latents of that map.")] = 16_384,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Fit DSPA against two full forwards a pair, and against the forwards and products no fit can do without.

    Also the size on disk of a map, and milliseconds for a prompt's query of it. The first line of each table is the
    control: a candidate against itself. Goals are shown; the exit code does not depend on them.
    """
    from harness.cli.perf import fit_command

    settings = {"shape": shape, "ratios": tuple(ratio or _RATIOS), "triples": triples, "batch_size": batch_size}
    settings |= {"prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens, "rounds": rounds}
    settings |= {"map_triples": map_triples, "map_width": map_width, "dtype": dtype, "device": device, "seed": seed}
    fit_command(threads, out, **settings)


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
    from harness.cli.perf_meter import meter_command

    meter_command(threads, rounds=rounds, steps=steps, seed=seed)


@perf.command("lm-eval", epilog="Example: `dspa-bench perf lm-eval --threads 1 --task hellaswag_local:1`")
def lm_eval(
    model: Annotated[
        str | None,
        typer.Option(help="Model folder or Hugging Face id[@revision].", show_default="stories260K in the data folder"),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:SHOTS", help="Task and examples; may be repeated.", show_default="five local tasks"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Items of each task; a group's are shared among its tasks.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a forward, on both sides.")] = 16,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the interleaved comparison.")] = 5,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Score multiple choice with lm-eval's class `aligned` and with its `hf`: ratios, and how far values are apart.

    The first line of each table is the control: `hf` against itself. Goals are shown beside the ratios; the exit
    code does not depend on them.
    """
    from harness.cli.perf_lm_eval import lm_eval_command

    settings = {"limit": limit, "batch_size": batch_size, "rounds": rounds, "device": device, "seed": seed}
    lm_eval_command(model, tuple(task or ()), threads, out, **settings)
