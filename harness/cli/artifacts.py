"""``dspa-bench fit`` and ``eval``: the steps of a run, one artifact at a time."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from harness.cli.options import MAX_SEED, AsJSON, Device, MovedSAEs, Overrides, command_group, moved_saes, print_json
from harness.quiet import without_progress_bars

if TYPE_CHECKING:
    from harness.benchmark import BenchmarkConfig, Record
    from harness.experiment.source import Key
    from harness.experiment.suite import Suite
    from harness.method import MethodConfig

commands = command_group()

Param = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="K=V", help="A hyper-parameter, as in a suite's params; a.b=c reaches inside."),
]


@commands.command(
    epilog="Example: `dspa-bench fit dpo --base models/mine --triples pairs.jsonl --budget 300 "
    "--param epochs=2 --out dpo-300`"
)
def fit(
    method: Annotated[str, typer.Argument(help="Method name; `dspa-bench methods` lists them.")],
    base: Annotated[str, typer.Option(help="Base model: a folder, a GGUF file, or a Hugging Face id[@revision].")],
    out: Annotated[Path, typer.Option(help="Artifact folder to write; must not exist.")],
    triples: Annotated[
        Path | None,
        typer.Option(
            help="Preference data: JSONL, JSON, Parquet, CSV, FOLDER#SPLIT or hub:OWNER/NAME#SPLIT; for all methods "
            "but those that use none (base, prompt).",
            show_default="none",
        ),
    ] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Number of triples.", show_default="all")] = None,
    flops: Annotated[
        float | None, typer.Option(min=1, help="Go on until the bill is so many FLOPs, whatever the epochs.")
    ] = None,
    too_long: Annotated[
        Literal["refuse", "skip"], typer.Option(help="What to do about triples that do not fit the base's context.")
    ] = "refuse",
    param: Param = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the draw of triples and of the fit.")] = 0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="What the base's weights are loaded in.")
    ] = "float32",
    chat: Annotated[str, typer.Option(help="Chat format: auto, tokenizer or hh.")] = "auto",
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Chrome trace to write, of one step of every kind; must not exist.",
            show_default="none",
        ),
    ] = None,
    device: Device = "cpu",
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0, help="How often a training is kept, to go on from there when killed; 0: never.")
    ] = 10.0,
) -> None:
    """Align one model by one method and keep the artifact, with its compute bill inside.

    A training writes its curve, a line a step, to training.jsonl of the artifact. While it lasts, curve and checkpoints
    are in OUT.fitting: the same command goes on from there after a kill.

    SAEs are given as `--param input_sae.path=FOLDER`, or as input_sae.release and input_sae.id.
    """
    from harness.compute.sitting import Sitting
    from harness.compute.trace import trace_file
    from harness.data.refs import model_ref
    from harness.data.triples import TripleFile, draw_budget
    from harness.experiment.check import check_base
    from harness.experiment.fitting import fit as metered_fit
    from harness.experiment.forecast import Forecaster
    from harness.experiment.room import Room, fitting_triples
    from harness.files import check_can_make
    from harness.model.aligned import AlignedModel
    from harness.plugins import load_plugins
    from harness.run_folder.training import Curve

    without_progress_bars()
    for option, number in (("--flops", flops), ("--checkpoint-minutes", checkpoint_minutes)):
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{option} {number} is no number that can be reached; give a finite one")
    if out.exists():
        raise ValueError(f"--out {str(out)!r} exists already; artifacts are never overwritten")
    check_can_make(out)
    load_plugins()
    chosen = _method(method, param or [])
    if chosen.uses_triples and triples is None:
        raise ValueError(f"{method} is fitted on preference data; give it with --triples FILE")
    useless = {"--triples": triples, "--budget": budget, "--flops": flops, "--trace": trace}
    if not chosen.uses_triples and (given := [option for option, value in useless.items() if value is not None]):
        raise ValueError(f"{method} is not fitted on anything; leave out {', '.join(given)}")
    if trace is not None:
        _check_trace(trace, out)
    ref = model_ref(base, chat).model_copy(update={"dtype": dtype})
    shape = check_base(ref)
    chosen.check(shape)
    drawn, notes = None, [*chosen.notes(shape)]
    if triples is not None:
        read = TripleFile.read(triples)
        room = Room.of(ref).given(chosen.fit_instructions)
        fitting, _, left_out = fitting_triples(read, room, too_long, "--too-long skip")
        notes = [*read.notes, left_out, *notes]
        drawn = draw_budget(fitting, len(fitting) if budget is None else budget, seed)
    for note in notes:
        if note is not None:
            print(f"note: {note}", file=sys.stderr)
    limit = None if flops is None else int(flops)
    start = AlignedModel.from_base(ref, device=device).derive(encoded={})
    forecast = Forecaster(ref, device=device).of(chosen, drawn, limit, base=start)
    beside = out.with_name(f"{out.name}.fitting")
    curve = Curve(beside / "training.jsonl")
    with nullcontext() if trace is None else trace_file(trace) as sampled, _telling() as tell:
        bounds = {"flops_limit": limit, "predicted": forecast.stages}
        sitting = Sitting(curve, beside, minutes=checkpoint_minutes, tell=tell)
        aligned = metered_fit(chosen, start, forecast.budget, seed, **bounds, trace=sampled, sitting=sitting)
    aligned.save(out)
    if curve.path.is_file():
        shutil.move(curve.path, out / curve.path.name)
    sitting.over()
    bill = aligned.bill or {}
    on = f"on {bill['n_triples']} triples" if chosen.uses_triples else "without triples"
    print(f"{out}: {method} {on} in {bill['seconds']:.1f} s")
    foreseen = "" if forecast.flops is None or limit is not None else f", {forecast.flops:.3g} predicted"
    if bill["declared"] is None:
        print(f"{bill['executed_flops']:.3g} FLOPs executed{foreseen}, {bill['formula_flops']:.3g} by the formula")
    else:
        flops_there = bill["declared"]["flops"]
        print("FLOPs unknown" if flops_there is None else f"{flops_there:.3g} FLOPs, as declared")
    figures = aligned.intervention.figures([]) if aligned.intervention else {}
    for figure, value in figures.items():
        print(f"{figure} {value:.3g}: {chosen.diagnostics[figure]}")
    if "stopped_at" in aligned.params:
        print(f"stopped at the bill of {flops:.3g}: {_stop_text(aligned.params['stopped_at'])}")
    if sampled is not None:
        steps = f"one step of every kind ({len(sampled)} in all)"
        print(f"{trace}: Chrome trace of {steps}; open it in https://ui.perfetto.dev or chrome://tracing")


@commands.command(
    epilog="Example: `dspa-bench eval dpo-300 --suite tasks/suites/sandbox.yaml --benchmark mt_bench "
    "--out eval/dpo-300`"
)
def eval(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, as written by fit or run.")],
    suite: Annotated[Path, typer.Option(help="Suite whose benchmarks, judge and base model are used.")],
    out: Annotated[Path, typer.Option(help="Folder for the records; new, or of the same evaluation, which goes on.")],
    benchmark: Annotated[
        list[str] | None, typer.Option(help="Only this benchmark of the suite; may be repeated.", show_default="all")
    ] = None,
    set_: Overrides = None,
    sae: MovedSAEs = None,
    as_json: AsJSON = False,
) -> None:
    """Evaluate one artifact by a suite's benchmarks and judge; print the means, keep the records.

    Sampled answers are drawn with eval's own seed, so metrics that rest on them differ from those of a run.
    Contamination is not checked: the triples that an artifact was fitted on are not kept in it.

    One that was interrupted goes on when the same command is given again: what was answered and judged is used, and
    failed records are tried again.

    Exit code 1 when some records failed.
    """
    from harness.experiment.cell import evaluate
    from harness.experiment.plan import derive_seed
    from harness.experiment.room import Room, fitting_benchmark
    from harness.experiment.suite import load_suite
    from harness.files import check_can_make
    from harness.model.aligned import AlignedModel
    from harness.model.artifact import read_description
    from harness.run_folder.cell import CellFolder
    from harness.run_folder.layout import RunFolder
    from harness.run_folder.sweep import is_ours, sweep_cell
    from harness.run_folder.verify import mend_cell

    without_progress_bars()
    loaded = load_suite(suite, set_ or [])
    begun = (out / "identity.json").is_file() or (out.is_dir() and all(is_ours(one.name) for one in out.iterdir()))
    if out.exists() and not begun:
        raise ValueError(f"--out {str(out)!r} exists already and is no evaluation; give a new folder")
    check_can_make(out)
    for name in benchmark or ():
        if name not in loaded.benchmarks:
            raise ValueError(f"--benchmark {name!r} is not in the suite, which has: {', '.join(loaded.benchmarks)}")
    chosen = {name: b for name, b in loaded.benchmarks.items() if not benchmark or name in benchmark}
    for name, asked in chosen.items():
        if asked.needs_judge and loaded.judge is None:
            raise ValueError(f"benchmark {name!r} needs a judge; add `judge:` to the suite")
        asked.check()
    if loaded.judge is not None:
        loaded.judge.check()
    instruction = read_description(artifact)["system_prompt"]
    room = Room.of(loaded.file.base).given(() if instruction is None else (instruction,))
    for name, asked in chosen.items():
        chosen[name], _, left_out = fitting_benchmark(name, asked, room)
        if left_out is not None:
            print(f"note: {left_out}", file=sys.stderr)
    how = {"base": loaded.file.base, "device": loaded.file.execution.device}
    aligned = AlignedModel.load(artifact, **how, saes=moved_saes(sae))
    console, folder = Console(soft_wrap=True, highlight=False), CellFolder(out)
    with RunFolder(out).lock():
        _begin_or_go_on(out, loaded, chosen, aligned.fingerprint)
        sweep_cell(out)
        mend_cell(folder, {name: asked.folder(name) for name, asked in chosen.items()})
        judge = loaded.judge and loaded.judge.at(out / "judging")
        if judge is not None:
            judge.prepare()
        for name, asked in chosen.items():
            there = folder.settled(name)
            if not as_json:
                console.print(f"{name}: there already" if there else f"{name} ...")
            if not there:
                seed = derive_seed(loaded.file.seed, "eval", name)
                asked = asked.at(out / "judging")
                evaluate(aligned, name, asked, judge=judge, seed=seed, folder=folder, notify=lambda _: None)
    records = [record for name in chosen for record in folder.records(name) or []]
    statement = loaded.judge.statement if loaded.judge else None
    if as_json:
        means = [dict(zip(("metric", "mean", "n", "failed"), row, strict=True)) for row in _means(records)]
        print_json({"metrics": means, "judge": statement, "records": str(out / "records")})
    else:
        table = Table("metric", "mean", "n", "failed")
        for metric, mean, n, failed in _means(records):
            table.add_row(metric, "-" if mean is None else f"{mean:.2f}", str(n), str(failed))
        console.print(table)
        console.print(f"judge: {statement or 'none'}\nrecords: {out / 'records'}")
    raise typer.Exit(1 if any(record.error is not None for record in records) else 0)


def _begin_or_go_on(out: Path, suite: "Suite", benchmarks: "Mapping[str, BenchmarkConfig]", fingerprint: str) -> None:
    """Write down what is evaluated and by what; ValueError where ``out`` has another evaluation."""
    from harness.experiment.plan import differences, identify
    from harness.files import read_sealed, write_sealed

    units = identify(replace(suite, variants=(), benchmarks=dict(benchmarks)), (), ())
    units.pop("second_judge", None)
    del units["suite"]["triples"], units["suite"]["name"]
    here = {"artifact": {"fingerprint": fingerprint}, **units}
    try:
        there = read_sealed(out / "identity.json") or {}
    except ValueError as problem:
        raise ValueError(f"{problem}; put it back from a copy, or give another --out") from None
    if found := differences({name: unit for name, unit in there.items() if name in here}, here):
        shown = "".join(f"\n  {line}" for line in found[:10])
        raise ValueError(f"--out {str(out)!r} is of another evaluation; these differ:{shown}\ngive a new folder")
    write_sealed(out / "identity.json", there | here)


@contextmanager
def _telling() -> Iterator[Callable[[str, int], None]]:
    """Says on stderr how far a fit is: a line that changes on a terminal, elsewhere one every half minute."""
    from harness.compute.sitting import GOING_ON

    console, latest = Console(stderr=True, highlight=False), time.monotonic()

    def line(text: str, step: int) -> None:
        nonlocal latest
        if time.monotonic() - latest >= 30 or text.startswith(GOING_ON):
            latest = time.monotonic()
            console.print(f"fit: {text}", markup=False, soft_wrap=True)

    if not console.is_terminal:
        yield line
        return
    with console.status("fit") as status:
        yield lambda text, step: status.update(f"fit: {text}") if not text.startswith(GOING_ON) else line(text, step)


def _check_trace(trace: Path, out: Path) -> None:
    """Raise ValueError for a ``trace`` that could not be written."""
    from harness.files import check_can_make

    if trace.exists():
        raise ValueError(f"--trace {str(trace)!r} exists already; traces are never overwritten")
    if out.absolute() in (trace.absolute(), *trace.absolute().parents):
        raise ValueError(f"--trace {str(trace)!r} is inside the artifact --out {str(out)!r}; choose another place")
    check_can_make(trace, "--trace")


def _method(name: str, params: Sequence[str]) -> "MethodConfig":
    from pydantic import ValidationError

    from harness.experiment.source import describe, set_value, split_override
    from harness.method import METHODS

    def complaint(key: "Key", text: str) -> ValueError:
        place = f"--param {'.'.join(map(str, key))}" if key else f"method {name} needs more --param"
        return ValueError(f"{place}: {text}")

    cls = METHODS[name]
    values: dict[str, Any] = {}
    for param in params:
        key, value = split_override(param)
        set_value(values, key, value, f"--param {param}")
    try:
        return cls.model_validate(values)
    except ValidationError as problem:
        raise describe(problem, cls, complaint) from None


def _stop_text(stop: dict[str, Any]) -> str:
    """Where training stopped, of each stage where there are several."""
    if "step" in stop:
        return f"step {stop['step']}, epoch {stop['epoch']:.2f}"
    return "; ".join(f"{stage} at {_stop_text(at)}" for stage, at in stop.items() if at)


def _means(records: "Sequence[Record]") -> Iterator[tuple[str, float | None, int, int]]:
    """(metric, mean, measured and failed records) of every metric; a mean of None where nothing was measured."""
    for metric in dict.fromkeys(record.metric for record in records):
        values = [record.value for record in records if record.metric == metric]
        measured = [value for value in values if value is not None]
        yield metric, fmean(measured) if measured else None, len(measured), len(values) - len(measured)
