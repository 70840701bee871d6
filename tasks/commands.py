"""``dspa-bench sandbox`` and ``mt-bench``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.options import Overrides, command_group

commands = command_group()
sandbox = command_group("The small planted world that the default suite runs in.")
commands.add_typer(sandbox, name="sandbox")
mt_bench = command_group("MT-Bench on FastChat's files.")
commands.add_typer(mt_bench, name="mt-bench")


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
    from tasks.sandbox.truth import show as show_sandbox

    print(show_sandbox(), end="")


@mt_bench.command(
    epilog="Example: `dspa-bench mt-bench judge data/mt_bench/model_answer --suite my.yaml --mode pairwise-all "
    "--out judged`"
)
def judge(
    answers: Annotated[Path, typer.Argument(help="Folder of FastChat's answers: one .jsonl for each model.")],
    suite: Annotated[Path, typer.Option(help="Suite whose judge, and whose mt_bench's questions, are used.")],
    out: Annotated[Path, typer.Option(help="Folder for judgments in FastChat's places; one that is there goes on.")],
    mode: Annotated[
        Literal["single", "pairwise-baseline", "pairwise-all"],
        typer.Option(help="Rate each answer, or compare each model with a baseline, or with every other one."),
    ] = "single",
    baseline: Annotated[str | None, typer.Option(help="For pairwise-baseline: the model to compare with.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model; may be repeated.", show_default="all")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Judge answers that are already there, whoever gave them, and print the scores as `score mt-bench` does.

    Pairs are compared in both orders; a win counts when both agree. The same command again asks only for what is
    missing. Without an mt_bench in the suite, questions and references are the data folder's.

    Exit code 1: some verdicts failed (the first reason is named). 2: bad input, nothing was asked.
    """
    from harness.experiment.suite import load_suite
    from tasks.mt_bench.judge_files import judge_command

    asked = load_suite(suite, set_ or [])
    raise typer.Exit(judge_command(answers, asked, out, mode=mode, baseline=baseline, models=model or []))
