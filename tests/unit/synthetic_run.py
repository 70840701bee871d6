"""Makes a run folder as `dspa-bench run` leaves it, with planted effects, for the tests of reports/."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from harness.benchmark import Record

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
BUDGETS = (100, 300)
SEEDS = 3
VARIANTS = {
    # method, label, uses_triples, MT-Bench, win rate, accuracy, train_params, FLOPs and paper's per triple
    "base": ("base", "Base", False, 3.2, 40, 93, 0, 0.0, None),
    "prompt": ("prompt", "Prompt", False, 3.3, 41, 93, 0, 0.0, None),
    "static_sae": ("static_sae", "Static SAE", True, 3.4, 43, 92, 0, 2.1e8, None),
    "dspa_paper": ("dspa", "DSPA (paper gate)", True, 4.6, 55, 92, 0, 3.2e8, 8e13),
    "dspa": ("dspa", "DSPA (strict gate)", True, 5.2, 62, 92, 0, 3.3e8, 8e13),
    "dpo": ("dpo", "DPO (LoRA)", True, 4.6, 57, 85, 49_152, 4.6e9, None),
}
NASTY = "<script>alert(1)</script> a | b\n*starred* `tick` _x_ [link](http://x)"


def write_run(folder: Path, *, failed_cell: str | None = None, unfinished: str | None = None) -> Path:
    """A run of six variants; ``failed_cell`` failed before its bill, ``unfinished`` has no cell.json."""
    folder.mkdir(parents=True)
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite(), sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2))
    for name, facts in VARIANTS.items():
        for budget in BUDGETS if facts[2] else (0,):
            for seed in range(SEEDS):
                cell = f"{name}__n{budget}__s{seed}"
                error = "ValueError: loss is not finite at step 12" if cell == failed_cell else None
                write_cell(folder, cell, name, budget, seed, error=error, over=cell != unfinished)
    for alpha in (0.2, 0.5, 1.0):
        sweep = {"alpha": alpha}
        write_cell(folder, f"dspa@alpha={alpha}__n300__s0", "dspa", 300, 0, sweep=sweep, effect=alpha)
    return folder


def suite() -> dict:
    return {
        "name": "sandbox",
        "seed": 0,
        "budgets": list(BUDGETS),
        "seeds": SEEDS,
        "judge": {"kind": "sandbox_oracle"},
        "benchmarks": [{"name": n} for n in ("mt_bench", "alpaca_eval", "multiple_choice", "safety")],
        "variants": [{"name": n, "method": v[0], "label": v[1]} for n, v in VARIANTS.items()],
        "report": {"baseline": "base"},
    }


def environment() -> dict:
    return {
        "created": "2026-11-21T02:00:00+00:00",
        "command": "dspa-bench run tasks/suites/sandbox.yaml",
        "suite_hash": "9f2c77aa01",
        "git": {"commit": "0123456789abcdef", "dirty": True},
        "python": "3.11.9",
        "platform": "Linux-6.1-x86_64",
        "cpu": "A processor (2 cores)",
        "cores": 2,
        "memory_bytes": 4 * 2**30,
        "gpu": None,
        "threads": 1,
        "packages": {"dspa-bench": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "judge": {
            "label": "sandbox_oracle-v1",
            "statement": "The sandbox's oracle scored every answer: it parses the planted register and "
            "facts. Its numbers say nothing about real language.",
        },
        "base": {"path": "../sandbox/model", "id": None, "revision": None, "hash": "aaaa1111"},
        "saes": {"early": {"path": "../sandbox/sae_early", "release": None, "id": None, "hash": "bbbb2222"}},
        "triples": {"path": "../sandbox/triples.jsonl", "n": 300, "hash": "cccc3333"},
        "seconds": 213.4,
    }


def write_cell(
    folder: Path,
    name: str,
    variant: str,
    budget: int,
    seed: int,
    *,
    sweep: dict | None = None,
    effect: float = 1.0,
    error: str | None = None,
    over: bool = True,
) -> None:
    method, label, uses_triples, *_ = VARIANTS[variant]
    cell = folder / "cells" / name
    (cell / "records").mkdir(parents=True)
    if error is None:
        (cell / "compute.json").write_text(json.dumps(bill(variant, budget, seed)))
        for benchmark, records in measure(variant, budget, seed, effect).items():
            lines = "".join(json.dumps(record.to_json()) + "\n" for record in records)
            (cell / "records" / f"{benchmark}.jsonl").write_text(lines)
    state = {
        "cell": name,
        "variant": variant,
        "label": label,
        "method": method,
        "budget": budget,
        "seed": seed,
        "uses_triples": uses_triples,
        "sweep": sweep,
        "params": {},
        "triples_hash": "cccc3333" if uses_triples else None,
        "fingerprint": None if error else f"f-{name}",
        "status": "failed" if error else "done",
        "error": error,
        "diagnostics": {"jaccard": 0.4 + 0.01 * seed, "steered_share": 1.0} if method == "dspa" else {},
    }
    if over:
        (cell / "cell.json").write_text(json.dumps(state))


def measure(variant: str, budget: int, seed: int, effect: float) -> dict[str, list[Record]]:
    rng = np.random.default_rng([seed, budget, list(VARIANTS).index(variant)])
    hard = np.random.default_rng(0)  # how hard each item is: the same for everybody
    _, _, _, rating, win, accuracy, *_ = VARIANTS[variant]
    share = effect * (0.8 if budget == 100 else 1.0)
    rating, win = 3.2 + share * (rating - 3.2), 40 + share * (win - 40)

    def mt_bench() -> Iterator[Record]:
        for question in range(24):
            for turn in (1, 2):
                value = float(np.clip(rating + hard.normal(0, 0.8) + rng.normal(0, 0.5), 1, 10))
                prompt = f"Where does the animal number {question} live?" if turn == 1 else "And what does it eat?"
                raw: dict = {"category": CATEGORIES[question % 8], "turn": turn}
                raw |= {"prompt": prompt, "answer": NASTY if question == 0 else _answer(variant, question)}
                fails = variant == "dpo" and question == 5 and turn == 2
                yield Record(
                    item=f"{81 + question}:{turn}",
                    cluster=str(81 + question),
                    metric="mt_bench",
                    value=None if fails else round(value, 2),
                    error="the judge's answer has no rating: 'I cannot | rate'" if fails else None,
                    raw=raw,
                )

    def alpaca_eval() -> Iterator[Record]:
        for i in range(30):
            value = float(np.clip(win / 100 + hard.normal(0, 0.2) + rng.normal(0, 0.1), 0, 1)) * 100
            raw = {
                "instruction": f"Give me advice number {i}.",
                "answer": _answer(variant, i),
                "reference": "Do it.",
            }
            yield Record(f"a{i}", f"a{i}", "alpaca_eval", value, raw=raw)

    def shares(metric: str, n: int, percent: float) -> Iterator[Record]:
        for i in range(n):
            yield Record(f"{metric}-{i}", f"{metric}-{i}", metric, 100.0 * (hard.random() < percent / 100))

    multiple_choice = [*shares("sandbox_facts", 80, accuracy), *shares("sandbox_scenes", 60, accuracy - 12)]
    safety = [*shares("safety_rate", 20, 60), *shares("over_refusal", 20, 10)]
    return {
        "mt_bench": list(mt_bench()),
        "alpaca_eval": list(alpaca_eval()),
        "multiple_choice": multiple_choice,
        "safety": safety,
    }


def bill(variant: str, budget: int, seed: int) -> dict:
    method, _, _, *_, train_params, flops, paper = VARIANTS[variant]
    executed = int(flops * budget * (1 + 0.01 * seed))
    stages = [("features", 0.8), ("map", 0.2)] if method == "dspa" else [("train", 1.0)]
    costs = bool(executed)
    return {
        "method": method,
        "n_triples": budget,
        "executed_flops": executed,
        "formula_flops": math.floor(executed * 1.4),
        "paper_flops": paper and paper * budget,
        "seconds": 2.0 + budget * flops / 1e10,
        "metering_seconds": 0.2,
        "start_bytes": 700 * 2**20,
        "peak_bytes": (900 + seed) * 2**20,
        "peak_source": "VmHWM",
        "cuda_peak_bytes": None,
        "tokens": 120 * budget,
        "optimiser_steps": budget // 4 if method == "dpo" else 0,
        "train_params": train_params,
        "total_params": 802_000,
        "stages": [
            {
                "name": name,
                "executed_flops": int(executed * part),
                "formula_flops": int(executed * part * 1.4),
            }
            | {
                "seconds": 3 * part,
                "peak_bytes": 900 * 2**20,
                "tokens": 120 * budget,
                "steps": 30,
                "sampled_steps": 3,
            }
            for name, part in stages * costs
        ],
        "operators": [
            {
                "stage": stages[0][0],
                "operator": name,
                "calls": 40 + rank,
                "flops": executed // 10**rank,
                "seconds": 0.1,
            }
            for rank, name in enumerate(
                ("aten::addmm", "aten::mm", "aten::bmm", "aten::mul", "aten::add", "aten::sub"), 1
            )
            if costs
        ],
    }


def _answer(variant: str, i: int) -> str:
    return f"{VARIANTS[variant][1]} says: well, the fox number {i} lives in the den. " + "It eats berries. " * 3
