"""The commands, their options and their help."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.data import data
from harness.cli.mt_bench_app import mt_bench
from harness.cli.options import Device, Overrides
from harness.cli.perf_app import perf
from harness.cli.sae_commands import audit, finetune_sae
from harness.cli.sandbox_app import sandbox
from harness.cli.score_app import score

app = typer.Typer(
    name="dspa-bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Compare preference-alignment methods on the same data, at a metered cost, "
    "through the field's own evaluators.",
    epilog="Start with: `dspa-bench run tasks/suites/sandbox.yaml` (no download, a few minutes on a laptop).",
)
app.add_typer(sandbox, name="sandbox")
app.add_typer(perf, name="perf")
app.add_typer(score, name="score")
app.add_typer(mt_bench, name="mt-bench")
app.add_typer(data, name="data")

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}
Param = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="K=V", help="A hyper-parameter, as in a suite's params; a.b=c reaches inside."),
]


@app.command(
    epilog="Example: `dspa-bench run my.yaml --out runs/mine --set budgets='[50]' --set variants.dspa.params.alpha=0.5`"
)
def run(
    suite: Annotated[Path, typer.Argument(help="Suite file (YAML).")],
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/<suite name>")] = None,
    executor: Annotated[
        Literal["local"], typer.Option(help="Who runs the cells: worker processes on this machine.")
    ] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, do nothing.")] = False,
    max_cost: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="What the suite's judges may cost in all sittings together (not AlpacaEval's own annotators).",
            show_default="the suite's",
        ),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Run a suite: fit every method at every budget and seed, evaluate, and write the report.

    An interrupted run goes on where it stopped when the same command is given again; a complete one is left
    as it is and only the report is made anew. Cells that failed are tried again.

    Exit code 0: everything is there. 1: some cells or records failed (they are named). 2: bad input, nothing
    was done.
    """
    from harness.cli.run import run_command

    assert executor == "local"
    raise typer.Exit(run_command(suite, out, set_ or [], max_cost=max_cost, dry_run=dry_run))


@app.command(epilog="Example: `dspa-bench report runs/sandbox`")
def report(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Make the report of a run folder again: report.md, report.html, tables and figures.

    Exit code 0: the run is complete. 1: a cell or a record failed, or something planned is unfinished (the
    report names them). 2: bad input.
    """
    from reports import read_run, write_report

    data = read_run(run)
    print(write_report(data))
    raise typer.Exit(0 if data.complete else 1)


@app.command(
    epilog="Example: `dspa-bench fit dpo --base models/mine --triples pairs.jsonl --budget 300 "
    "--param epochs=2 --out dpo-300`"
)
def fit(
    method: Annotated[str, typer.Argument(help="Method name; `dspa-bench doctor` lists them.")],
    base: Annotated[str, typer.Option(help="Base model: a local folder, or a Hugging Face id[@revision].")],
    triples: Annotated[Path, typer.Option(help="Preference triples: JSONL of prompt, chosen, rejected.")],
    out: Annotated[Path, typer.Option(help="Artifact folder to write; must not exist.")],
    budget: Annotated[int | None, typer.Option(min=1, help="Number of triples.", show_default="all")] = None,
    flops: Annotated[
        float | None, typer.Option(min=1, help="Go on until the bill is so many FLOPs, whatever the epochs.")
    ] = None,
    param: Param = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw of triples and of the fit.")] = 0,
    chat: Annotated[str, typer.Option(help="Chat format: auto, tokenizer or hh.")] = "auto",
    device: Device = "cpu",
) -> None:
    """Align one model by one method and keep the artifact, with its compute bill inside.

    SAEs are given as `--param input_sae.path=FOLDER`, or as input_sae.release and input_sae.id.
    """
    from harness.cli.artifacts import fit_command

    params = param or []
    fit_command(
        method, base, triples, out, budget=budget, flops=flops, params=params, seed=seed, chat=chat, device=device
    )


@app.command(
    epilog="Example: `dspa-bench eval dpo-300 --suite tasks/suites/sandbox.yaml --benchmark mt_bench "
    "--out eval/dpo-300`"
)
def eval(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, as written by fit or run.")],
    suite: Annotated[Path, typer.Option(help="Suite whose benchmarks, judge and base model are used.")],
    out: Annotated[Path, typer.Option(help="Folder for the records; must not exist.")],
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="Only this benchmark of the suite; may be repeated.", show_default="all"),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Evaluate one artifact by a suite's benchmarks and judge; print the means, keep the records.

    Sampled answers are drawn with eval's own seed, so metrics that rest on them differ from those of a run.
    Contamination is not checked: the triples that an artifact was fitted on are not kept in it.

    Exit code 1 when some records failed.
    """
    from harness.cli.artifacts import eval_command

    raise typer.Exit(eval_command(artifact, suite, out, benchmarks=benchmark or [], overrides=set_ or []))


@app.command(epilog='Example: `dspa-bench generate dpo-300 --prompt "How do I brew good coffee?"`')
def generate(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, as written by fit or run.")],
    prompt: Annotated[list[str], typer.Option(help="What the user says; repeat it for more conversations.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    device: Device = "cpu",
) -> None:
    """Let an aligned model answer: one answer per prompt, in order, separated by a blank line."""
    from harness.cli.artifacts import generate_command

    generate_command(artifact, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, device=device)


app.command(epilog="Example: `dspa-bench audit dspa-300 --texts pairs.jsonl`")(audit)
app.command(
    "finetune-sae",
    epilog="Example: `dspa-bench finetune-sae --sae saes/layer_24 --base models/sft --triples pairs.jsonl "
    "--out saes/layer_24-tuned`",
)(finetune_sae)


@app.command(
    "lm-eval",
    context_settings=PASS_THROUGH,
    epilog="Example: `dspa-bench lm-eval run --model aligned --model_args artifact=dspa-300 --tasks arc_easy`",
)
def lm_eval(context: typer.Context) -> None:
    """lm-eval with all its own arguments; artifacts are its model type `aligned`.

    For lm-eval's own help: `dspa-bench lm-eval -- --help`
    """
    from harness.adapters.lm_eval import main as lm_eval_main

    lm_eval_main(context.args)


@app.command(
    "fastchat",
    context_settings=PASS_THROUGH,
    epilog="Example: `dspa-bench fastchat fastchat.serve.model_worker --model-path dspa-300 --device cpu`",
)
def fastchat(
    context: typer.Context, module: Annotated[str, typer.Argument(help="FastChat's module, e.g. fastchat.serve.cli.")]
) -> None:
    """Any module of FastChat with all its own arguments; artifacts are models to it.

    `fastchat.serve.controller`, `fastchat.serve.model_worker` and `fastchat.serve.openai_api_server`, each in a process
    of its own, serve an artifact under OpenAI's API.

    For a module's own help: `dspa-bench fastchat MODULE -- --help`
    """
    from harness.cli.fastchat import fastchat_command

    fastchat_command(module, context.args)


@app.command(epilog="Example: `dspa-bench doctor`")
def doctor() -> None:
    """Check machine and installation: what is missing and how to mend it (exit code 1 if something is)."""
    from harness.cli.doctor import doctor_command

    raise typer.Exit(doctor_command())


def main() -> None:
    """Entry point: a ValueError is the user's to mend, so it is one message, no traceback, exit code 2."""
    try:
        app()
    except ValueError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
