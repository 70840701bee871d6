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

PlantedWorld = Annotated[Literal["first", "second"], typer.Option(help="Which assignment of preferences.")]


@sandbox.command(epilog="Example: `dspa-bench sandbox build --out build/sandbox`")
def build(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    seed: Annotated[
        int | None, typer.Option(help="Seed of everything in the world.", show_default="the world's own")
    ] = None,
    world: PlantedWorld = "first",
) -> None:
    """Make a world of the sandbox from its seed: data, questions, tokenizer, base model, SAEs (minutes on two cores).

    The first is the one that is committed. The second has another seed, and every family of requests prefers another
    register: what was chosen in the first can be tried there once.
    """
    from tasks.sandbox.build import build as build_sandbox
    from tasks.sandbox.world import WORLDS

    build_sandbox(out, seed, world=WORLDS[world])


@sandbox.command(epilog="Example: `dspa-bench sandbox show`")
def show(world: PlantedWorld = "first") -> None:
    """Print sample conversations, and what each family of requests prefers."""
    from tasks.sandbox.truth import show as show_sandbox
    from tasks.sandbox.world import WORLDS

    print(show_sandbox(world=WORLDS[world]), end="")


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
