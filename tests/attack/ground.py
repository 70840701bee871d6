"""What is attacked: a small suite that is in order, its model, SAEs and data, and artifacts of every kind."""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from tests.attack.program import Outcome, call_apart
from tests.attack.table import Row

RUN = ("run", "suite.yaml", "--out", "out")
FIT = ("fit", "sft", "--base", "model", "--triples", "triples.jsonl", "--out", "out")
ARTIFACTS = {"adapter": ("sft", "tuning=lora"), "weights": ("sft", "tuning=full"), "steered": ("dspa",)}
SAES = ("--param", "input_sae.path=sae_early", "--param", "output_sae.path=sae_late")
SUITE: dict[str, Any] = {
    "name": "attacked",
    "seed": 0,
    "base": {"path": "model"},
    "saes": {"early": {"path": "sae_early"}, "late": {"path": "sae_late"}},
    "triples": {"path": "triples.jsonl"},
    "budgets": [4, 8],
    "seeds": 2,
    "judge": {
        "kind": "openai",
        "base_url": "http://localhost:9/v1",
        "model": "judge",
        "price_in": 1.0,
        "price_out": 2.0,
        "max_cost": 3.0,
    },
    "benchmarks": [
        {"name": "mt_bench", "questions": "questions.jsonl", "references": "references.jsonl", "max_new_tokens": 16},
        {"name": "safety", "harmful": "prompts.jsonl", "harmless": "prompts.jsonl", "max_new_tokens": 16},
        {"name": "preference", "triples": "heldout.jsonl"},
    ],
    "tune": {"trials": 3, "search": "grid"},
    "variants": [
        {"name": "base", "method": "base"},
        {"name": "dspa", "method": "dspa", "params": {"input_sae": "early", "output_sae": "late", "k_prompt": 8}},
        {"name": "caa", "method": "caa", "params": {"layer": 1}, "sweep": {"scale": [0.5, 1.0]}},
        {"name": "dpo", "method": "dpo", "params": {"tuning": "lora"}, "tune": {"learning_rate": [0.001, 0.01]}},
    ],
    "report": {"baseline": "base"},
    "execution": {"workers": 1, "threads": 1, "device": "cpu"},
}
ONLY = "DSPA_BENCH_ATTACK_ONLY"
"""The environment variable with a pattern of the cases to be tried; all without it."""
Change = Callable[[Path], Sequence[str] | None]
"""Damages the ground in a folder; returns the arguments to call the program with, None for `RUN`."""


@dataclass(frozen=True)
class Case:
    """An input, what kind it is of, and whether it is to be ``accepted``; ``said``: what the refusal must contain."""

    what: str
    name: str
    change: Change
    said: str = ""
    accepted: bool = False


def rows(count: int, first: int = 0) -> list[dict[str, str]]:
    """So many triples."""
    return [
        {"prompt": f"w{i} w{i + 1}", "chosen": f"w{i} w3", "rejected": f"w{i + 2}"} for i in range(first, first + count)
    ]


def write_lines(file: Path, found: Iterable[Any]) -> None:
    """JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")


def write_suite(folder: Path, suite: dict[str, Any]) -> None:
    """suite.yaml in ``folder``."""
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False, allow_unicode=True), "utf-8")


def make_ground(folder: Path) -> Path:
    """Everything in a new ``folder``; every artifact is fitted by the program itself."""
    from harness.quiet import without_progress_bars
    from tests.conftest import make_model, make_sae, make_tokenizer

    without_progress_bars()
    folder.mkdir(parents=True)
    make_model("llama").save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    make_sae(folder / "sae_early", 1, seed=1)
    make_sae(folder / "sae_late", 2, seed=2)
    write_lines(folder / "triples.jsonl", rows(12))
    write_lines(folder / "heldout.jsonl", rows(4, first=20))
    write_lines(folder / "prompts.jsonl", ({"prompt": f"w{i} w30"} for i in range(4)))
    questions = [{"question_id": i, "category": "writing", "turns": [f"w{i} w31", "w32"]} for i in (1, 2, 3)]
    write_lines(folder / "questions.jsonl", questions)
    answers = [{"question_id": 1, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["w1", "w2"]}]}]
    write_lines(folder / "references.jsonl", ({"answer_id": "a", "tstamp": 0.0, **row} for row in answers))
    write_suite(folder, SUITE)
    for name, (method, *params) in ARTIFACTS.items():
        given = [argument for param in params for argument in ("--param", param)] or [*SAES]
        fit = ["fit", method, "--base", "model", "--triples", "triples.jsonl", "--out", name, "--budget", "4", *given]
        _make(fit, folder)
    return folder


def _make(arguments: Sequence[str], folder: Path) -> None:
    import contextlib
    import io
    import sys
    from unittest.mock import patch

    from harness.cli.app import app

    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), patch.object(sys, "argv", ["dspa-bench"]):
        app(list(arguments), standalone_mode=False)


@contextmanager
def ground() -> Iterator[Path]:
    """`make_ground` in a folder that goes when the block ends."""
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        yield make_ground(Path(folder) / "ground")


def rows_of(part: str) -> list[Row]:
    """What became of a module of this package: of its cases, or of what it runs, with numbers behind a colon."""
    name, _, numbers = part.partition(":")
    module = import_module(f"tests.attack.{name}")
    if hasattr(module, "cases"):
        with ground() as whole:
            rows = attack(module.cases(), whole)
    else:
        rows = module.run(*map(int, filter(None, numbers.split(","))))
    print(f"{part}: over", file=sys.stderr, flush=True)
    return rows


def attack(cases: Iterable[Case], whole: Path, tell: Callable[[str], None] = print) -> list[Row]:
    """Each case on a copy of the ground ``whole``; tells what went wrong, returns a row for each kind of case."""
    found: dict[str, list[int]] = {}
    for case in cases:
        if not re.search(os.environ.get(ONLY, ""), f"{case.what}: {case.name}"):
            continue
        here = whole.parent / "case"
        shutil.copytree(whole, here)
        arguments = case.change(here) or RUN
        outcome = call_apart(arguments, here)
        shutil.rmtree(here, ignore_errors=True)
        counts = found.setdefault(case.what, [0, 0, 0])
        counts[_verdict(case, outcome)] += 1
        if _verdict(case, outcome) == 2:
            tell(f"WRONG {case.what}: {case.name}: exit code {outcome.code}, written {outcome.written}: {outcome.said}")
    return [Row(what, sum(counts), *counts) for what, counts in found.items()]


def _verdict(case: Case, outcome: Outcome) -> int:
    """0: refused well, 1: accepted rightly, 2: wrong."""
    if case.accepted:
        return 1 if outcome.accepted else 2
    return 0 if outcome.refused_well and case.said in outcome.said else 2
