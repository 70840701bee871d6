"""The `mt-bench` commands, their options and their help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.options import Overrides

mt_bench = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="MT-Bench on FastChat's files.")


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
    from harness.cli.mt_bench import judge_command

    code = judge_command(answers, suite, out, mode=mode, baseline=baseline, models=model or [], overrides=set_ or [])
    raise typer.Exit(code)
