"""Makes a run folder with planted effects, as `dspa-bench run` leaves it, for the tests of reports/."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import yaml
from numpy.random import default_rng

from harness.benchmark import Record
from harness.compute.bill import Bill
from harness.files import write_json, write_jsonl
from harness.run_folder import CellState, Environment, Plan, PlannedCell, PlannedVariant, RunFolder
from harness.run_folder.plan import cell_name

FACTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PLAN = Plan.model_validate(FACTS["plan"] | {"cells": []})
BUDGETS, SEEDS, VARIANTS = PLAN.budgets, PLAN.seeds, list(PLAN.labels)
_KEPT = tempfile.TemporaryDirectory()
_SHARED = {"label", "method", "uses_triples"}
"""What the plan says of a variant and of each of its cells."""
NASTY = "<script>alert(1)</script> a | b\n*starred* `tick` _x_ [link](http://x)"


def write_run(folder: Path, *, failed_cell: str | None = None, unfinished: str | None = None) -> Path:
    """A run of six variants; ``failed_cell`` failed before its bill, ``unfinished`` has no cell.json.

    Made once a session, since its files are synced, and copied to ``folder``.
    """
    return Path(shutil.copytree(_made(failed_cell, unfinished), folder))


@cache
def _made(failed_cell: str | None, unfinished: str | None) -> Path:
    folder = Path(tempfile.mkdtemp(dir=_KEPT.name))
    cells = [
        cell_of(v, b, s) for v in PLAN.variants for b in (BUDGETS if v.uses_triples else (0,)) for s in range(SEEDS)
    ]
    cells += [cell_of(PLAN.variants[4], 300, 0, {"alpha": alpha}) for alpha in (0.2, 0.5, 1.0)]
    # As older versions did, without checksums: tests change these files.
    write_json(folder / "plan.json", PLAN.model_copy(update={"cells": tuple(cells)}).model_dump(mode="json"))
    environment = Environment.model_validate(FACTS["environment"])
    write_json(folder / "environment.json", environment.model_dump(mode="json"))
    (folder / "suite.yaml").touch()
    for cell in cells:
        home, error = RunFolder(folder).cell(cell.name), None
        if cell.name == failed_cell:
            error = "ValueError: loss is not finite at step 12"
        else:
            home.save_bill(bill(cell))
            for b in PLAN.benchmarks:
                rows = [asdict(record) for metric in b.metrics for record in measure(cell, metric.name)]
                write_jsonl(home.path / "records" / f"{b.name}.jsonl", rows)  # in one go: syncing each takes long
        figures = {"jaccard": 0.4 + 0.01 * cell.seed, "steered_share": 1.0} if cell.method == "dspa" else {}
        if cell.name != unfinished:
            state = CellState(status="failed" if error else "done", error=error, diagnostics=figures)
            write_json(home.path / "cell.json", state.model_dump(mode="json", exclude={"files"}))
    return folder


def cell_of(variant: PlannedVariant, budget: int | str, seed: int, sweep: dict | None = None) -> PlannedCell:
    name, what = (cell_name(variant.name, budget, seed, sweep), variant.model_dump(include=_SHARED))
    return PlannedCell(name=name, variant=variant.name, budget=budget, seed=seed, sweep=sweep, params={}, **what)


def measure(cell: PlannedCell, metric: str) -> Iterator[Record]:
    shared, own = default_rng(0), default_rng([cell.seed, int(cell.budget), VARIANTS.index(cell.variant)])
    base, mean = (FACTS["means"][variant].get(metric, 50) for variant in ("base", cell.variant))
    mean = base + (cell.sweep or {}).get("alpha", 1.0) * (0.8 if cell.budget == 100 else 1.0) * (mean - base)
    spread, top = {"mt_bench": (0.8, 10.0), "alpaca_eval": (20, 100.0)}.get(metric, (None, 100))
    for i in range(FACTS["items"][metric]):
        value: float | None = 100.0 * (shared.random() < mean / 100)  # right or wrong
        if spread is not None:
            value = min(max(mean + shared.normal(0, spread) + own.normal(0, spread / 2), 1.0), top)
        item, cluster, error = f"{metric}-{i}", f"{metric}-{i}", None
        said = f"{cell.label} says: it is a fox."
        raw = {"prompt": f"Tell me about animal {i}.", "reference": "Do it.", "answer": said}
        if metric == "mt_bench":
            raw |= {"category": FACTS["categories"][i // 2 % 8], "turn": 1 + i % 2, "answer": NASTY if i < 2 else said}
            item, cluster = f"{81 + i // 2}:{1 + i % 2}", str(81 + i // 2)
            if (cell.variant, item) == ("dpo", "86:2"):
                value, error = None, "the judge's answer has no rating: 'I cannot | rate'"
        yield Record(item, cluster, metric, value, error, raw)


def bill(cell: PlannedCell) -> Bill:
    n, paper = int(cell.budget), FACTS["paper_flops"].get(cell.variant)
    executed = int(float(FACTS["flops"].get(cell.variant, 0)) * n * (1 + 0.01 * cell.seed))
    cost = {"executed_flops": executed, "formula_flops": int(1.4 * executed), "tokens": 120 * n}
    half = FACTS["stage"] | {key: value // 2 for key, value in cost.items()}
    stages = [half | {"name": name} for name in ("features", "map") if executed]
    operators = [made for stage in stages for made in operators_of(stage)]
    cost |= {"n_triples": n, "paper_flops": paper and paper * n, "peak_bytes": (900 + cell.seed) * 2**20}
    rest = {"method": cell.method, "train_params": 49_152 * (cell.method == "dpo"), "stages": stages}
    return Bill.model_validate(FACTS["bill"] | cost | rest | {"operators": operators})


def operators_of(stage: dict) -> Iterator[dict]:
    """Six operators, each with a tenth of the one before; the profiler does not know the second."""
    left, shares = stage["executed_flops"], [stage["executed_flops"] // 10**i for i in range(1, 6)]
    for i, flops in enumerate([left - sum(shares), *shares]):
        own = {"stage": stage["name"], "operator": f"aten::op{i}", "flops": flops, "profiler_flops": flops * (i != 1)}
        yield FACTS["operator"] | own
