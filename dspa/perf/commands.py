"""``dspa-bench perf``: what each measurement takes, and how it is called."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.options import MAX_SEED, Device, command_group
from harness.plugins import need

perf = command_group("How fast DSPA is, as ratios with intervals from one interleaved run.")

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
