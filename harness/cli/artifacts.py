"""The bodies of `fit`, `eval` and `generate`: the steps of a run, one artifact at a time."""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from textwrap import shorten
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from harness.benchmark import Record
from harness.experiment.cell import evaluate, fit
from harness.experiment.check import check_base
from harness.experiment.forecast import Forecaster
from harness.experiment.plan import derive_seed
from harness.experiment.source import Key, describe, set_value, split_override
from harness.experiment.suite import load_suite
from harness.files import check_can_make
from harness.method import METHODS, AlignmentMethod
from harness.model import AlignedModel
from harness.plugins import load_plugins
from harness.preferences import conversation, draw_budget, load_triples
from harness.refs import ModelRef
from harness.run_folder.cell import CellFolder

CHATS = get_args(ModelRef.model_fields["chat"].annotation)


def fit_command(
    name: str,
    base: str,
    triples_path: Path,
    out: Path,
    *,
    budget: int | None,
    flops: float | None,
    params: Sequence[str],
    seed: int,
    chat: str,
    device: str,
) -> None:
    """Fit one method and save its artifact; every argument is checked before the base is loaded.

    With ``flops`` the method goes on over the triples until its bill is reached, as in a suite's ``flops_budgets``.
    """
    calm()
    if out.exists():
        raise ValueError(f"--out {str(out)!r} exists already; artifacts are never overwritten")
    check_can_make(out)
    load_plugins()
    method = _method(name, params)
    triples = load_triples(triples_path)
    drawn = draw_budget(triples, len(triples) if budget is None else budget, seed) if method.uses_triples else None
    ref = model_ref(base, chat)
    method.check(check_base(ref))
    limit = None if flops is None else int(flops)
    start = AlignedModel.from_base(ref, device=device).derive(encoded={})
    forecast = Forecaster(ref, device=device).of(method, drawn, limit, base=start)
    aligned = fit(method, name, start, forecast.budget, seed, flops_limit=limit, predicted=forecast.stages)
    aligned.save(out)
    bill = aligned.bill or {}
    print(f"{out}: {name} on {bill['n_triples']} triples in {bill['seconds']:.1f} s")
    foreseen = "" if forecast.flops is None or limit is not None else f", {forecast.flops:.3g} predicted"
    print(f"{bill['executed_flops']:.3g} FLOPs executed{foreseen}, {bill['formula_flops']:.3g} by the formula")
    if "stopped_at" in aligned.params:
        print(f"stopped at the bill of {flops:.3g}: {_stop_text(aligned.params['stopped_at'])}")


def _stop_text(stop: dict[str, Any]) -> str:
    """Where training stopped, of each stage where there are several."""
    if "step" in stop:
        return f"step {stop['step']}, epoch {stop['epoch']:.2f}"
    return "; ".join(f"{stage} at {_stop_text(at)}" for stage, at in stop.items() if at)


def eval_command(
    artifact: Path, suite_path: Path, out: Path, *, benchmarks: Sequence[str], overrides: Sequence[str]
) -> int:
    """Evaluate one artifact; returns the exit code."""
    calm()
    suite = load_suite(suite_path, overrides)
    if out.exists():
        raise ValueError(f"--out {str(out)!r} exists already; give a new folder")
    check_can_make(out)
    for name in benchmarks:
        if name not in suite.benchmarks:
            raise ValueError(f"--benchmark {name!r} is not in the suite, which has: {', '.join(suite.benchmarks)}")
    chosen = {name: b for name, b in suite.benchmarks.items() if not benchmarks or name in benchmarks}
    for name, benchmark in chosen.items():
        if benchmark.needs_judge and suite.judge is None:
            raise ValueError(f"benchmark {name!r} needs a judge; add `judge:` to the suite")
        benchmark.check()
    if suite.judge is not None:
        suite.judge.check()
    aligned = AlignedModel.load(artifact, base=suite.file.base, device=suite.file.execution.device)
    console, folder = Console(soft_wrap=True, highlight=False), CellFolder(out)
    judge = suite.judge and suite.judge.at(out / "judging")
    if judge is not None:
        judge.prepare()
    for name, benchmark in chosen.items():
        console.print(f"{name} ...")
        evaluate(
            aligned,
            name,
            benchmark,
            judge=judge,
            seed=derive_seed(suite.file.seed, "eval", name),
            folder=folder,
            notify=lambda _: None,
        )
    records = [record for name in chosen for record in folder.records(name) or []]
    _print_means(records, console)
    console.print(f"judge: {suite.judge.statement if suite.judge else 'none'}\nrecords: {out / 'records'}")
    return 1 if any(record.error is not None for record in records) else 0


def generate_command(
    artifact: Path, prompts: Sequence[str], *, max_new_tokens: int, temperature: float, seed: int, device: str
) -> None:
    """Print an answer to each prompt; ValueError for a prompt that does not fit the context."""
    calm()
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("--prompt is empty; give what the user says")
    aligned = AlignedModel.load(artifact, device=device)
    completions = aligned.generate(
        [conversation(prompt) for prompt in prompts],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    for prompt, completion in zip(prompts, completions, strict=True):
        if completion.error is not None:
            raise ValueError(f"no answer to {shorten(prompt, 60)!r}: {completion.error}")
    print("\n\n".join(completion.text for completion in completions))


def calm() -> None:
    """No progress bars of transformers where nobody watches."""
    if not sys.stderr.isatty():
        disable_progress_bar()


def _method(name: str, params: Sequence[str]) -> AlignmentMethod:
    cls = cast(type[BaseModel], METHODS[name])
    values: dict[str, Any] = {}
    for param in params:
        key, value = split_override(param)
        set_value(values, key, value, f"--param {param}")
    try:
        return cast(AlignmentMethod, cls.model_validate(values))
    except ValidationError as problem:
        raise describe(problem, cls, lambda key, text: ValueError(f"{_place(name, key)}: {text}")) from None


def _place(method: str, key: Key) -> str:
    return f"--param {'.'.join(map(str, key))}" if key else f"method {method} needs more --param"


def model_ref(base: str, chat: str) -> ModelRef:
    if chat not in CHATS:
        raise ValueError(f"--chat {chat!r} is not known; allowed: {', '.join(CHATS)}")
    if Path(base).is_dir():
        return ModelRef.model_validate({"path": base, "chat": chat})
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise ValueError(f"base model folder {base!r} does not exist")
    name, _, revision = base.partition("@")
    return ModelRef.model_validate({"id": name, "revision": revision or None, "chat": chat})


def _print_means(records: Sequence[Record], console: Console) -> None:
    table = Table("metric", "mean", "n", "failed")
    for metric in dict.fromkeys(record.metric for record in records):
        values = [record.value for record in records if record.metric == metric]
        measured = [value for value in values if value is not None]
        mean = f"{fmean(measured):.2f}" if measured else "-"
        table.add_row(metric, mean, str(len(measured)), str(len(values) - len(measured)))
    console.print(table)
