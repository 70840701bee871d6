"""``dspa-bench init``, ``sandbox``, ``formats`` and ``mt-bench``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.options import MAX_SEED, Overrides, command_group

commands = command_group()
sandbox = command_group("The small planted world that the default suite runs in.")
commands.add_typer(sandbox, name="sandbox")
formats = command_group("A preference for forms of answers, planted in a real model's own answers.")
commands.add_typer(formats, name="formats")
mt_bench = command_group("MT-Bench on FastChat's files.")
commands.add_typer(mt_bench, name="mt-bench")

PlantedWorld = Annotated[Literal["first", "second"], typer.Option(help="Which assignment of preferences.")]


@commands.command(epilog="Example: `dspa-bench init mine --base models/mine --triples pairs.parquet`")
def init(
    where: Annotated[Path, typer.Argument(help="Suite file to write, or a folder for it.")] = Path("suite.yaml"),
    base: Annotated[
        str | None, typer.Option(help="Base model: folder, GGUF file or Hugging Face id[@revision].")
    ] = None,
    triples: Annotated[
        str | None,
        typer.Option(help="Preference data: JSONL, JSON, Parquet, CSV, FOLDER#SPLIT or hub:OWNER/NAME#SPLIT."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the suite.", show_default="the file's or folder's")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method to compare; may be repeated.", show_default="base, caa, sft, dpo; dspa with SAEs"),
    ] = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Number of triples; may be repeated.", show_default="100 and 300, or all there are"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of triples and starts of every fit.")] = 2,
    input_sae: Annotated[Path | None, typer.Option(help="SAELens folder of an early layer, for DSPA.")] = None,
    output_sae: Annotated[Path | None, typer.Option(help="SAELens folder of a late layer, for DSPA.")] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")] = "float32",
) -> None:
    """Write a first suite for a model and preference triples of your own; it runs as it is written.

    What is not given is asked for. A fifth of the prompts is held out: methods are measured on them and fitted on the
    others. The suite is checked as a run would check it, and nothing is left behind when that fails.
    """
    from harness.data.refs import model_ref
    from tasks.starting import USUAL, Wishes, look, method_names, start, suite_path, usual_name

    path, asking = suite_path(where), base is None or triples is None
    if base is None:
        base = str(typer.prompt("Base model (folder, GGUF file or Hugging Face id)"))
    if triples is None:
        triples = str(typer.prompt("Preference triples (file, FOLDER#SPLIT or hub:OWNER/NAME#SPLIT)"))
    if (input_sae is None) != (output_sae is None):
        raise ValueError("give both --input-sae and --output-sae, or neither")
    if asking and not method:
        usual = " ".join((*USUAL, *(["dspa"] if input_sae is not None else [])))
        method = [str(typer.prompt("Methods (`dspa-bench methods` lists them)", default=usual))]
    if asking and name is None:
        name = str(typer.prompt("Name", default=usual_name(path)))
    saes = {"early": input_sae, "late": output_sae} if input_sae and output_sae else {}
    wishes = Wishes(
        path,
        name or usual_name(path),
        model_ref(base, "auto").model_copy(update={"dtype": dtype}),
        Path(triples),
        method_names(method or ()),
        tuple(budget or ()),
        seeds,
        saes,
    )
    looked = look(wishes)
    for line in looked.lines:
        print(line)
    for file in start(wishes, looked):
        print(f"written: {file}")
    print(f"next: dspa-bench run {path} --dry-run")


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


@formats.command(
    "build", epilog="Example: `dspa-bench formats build --base SmolLM2-135M-Instruct.Q4_1.gguf --out formats`"
)
def build_formats(
    base: Annotated[str, typer.Option(help="Model that answers: folder, GGUF file or Hugging Face id[@revision].")],
    out: Annotated[Path, typer.Option(help="Folder to write; other files in it are left alone.")],
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Of the weights.")] = "bfloat16",
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Which topic goes into which set, and in what words.")
    ] = 0,
) -> None:
    """Sample a model's answers in right and wrong forms and write prompts, triples, questions and references.

    Some ten minutes on a core that has nothing else to do; the same command again goes on after an interruption.
    Another kind of CPU, or another version of torch, gives other last bits and so other answers here and there.
    """
    from harness.data.refs import model_ref
    from tasks.formats.build import build as build_assets

    build_assets(model_ref(base, "auto").model_copy(update={"dtype": dtype}), out, seed=seed)


@formats.command("show", epilog="Example: `dspa-bench formats show`")
def show_formats(
    number: Annotated[int, typer.Option(min=1, help="Triples of each family.")] = 2,
    folder: Annotated[
        Path | None, typer.Option(help="Folder that a build wrote.", show_default="the committed one")
    ] = None,
) -> None:
    """Print triples of each family, and what the checker says of both answers."""
    from tasks.formats.build import show as show_triples
    from tasks.formats.prompts import ASSETS

    print(show_triples(folder or ASSETS, number), end="")


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
