"""Reads a run folder (suite.yaml, environment.json, cells/) into plain data. A report needs nothing else."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.benchmark import Record
from harness.files import read_text
from harness.names import BudgetName, budget_order, cell_name, flops_budget

MULTIPLE_CHOICE = "multiple_choice"
LOG_LIKELIHOODS = (MULTIPLE_CHOICE, "preference")
"""Benchmarks whose values are made of log-likelihoods of given texts, with no judge."""
_ENVIRONMENT = ("created", "command", "suite_hash", "git", "python", "platform", "cpu", "cores", "memory_bytes")
_ENVIRONMENT += ("gpu", "threads", "packages", "judge", "base", "saes", "triples")


@dataclass(frozen=True)
class Cell:
    """One variant at one budget under one seed: how it went, what it cost, what was measured.

    ``bill`` is compute.json (None for a cell that failed before it had one), ``records`` maps each benchmark
    to its records, ``second`` those whose answers the second judge judged too to its records of them. A variant that
    uses no triples has budget 0; a bill for a budget has a name.
    """

    name: str
    variant: str
    label: str
    method: str
    budget: BudgetName
    seed: int
    uses_triples: bool
    sweep: dict[str, Any] | None
    triples_hash: str | None
    fingerprint: str | None
    commit: str | None
    error: str | None
    diagnostics: dict[str, float]
    bill: dict[str, Any] | None
    records: dict[str, tuple[Record, ...]]
    second: dict[str, tuple[Record, ...]]

    @property
    def done(self) -> bool:
        return self.error is None


@dataclass(frozen=True)
class Run:
    """A run folder: ``cells`` are over (done or failed), ``unfinished`` names those that are not."""

    folder: Path
    suite: dict[str, Any]
    environment: dict[str, Any]
    cells: tuple[Cell, ...]
    unfinished: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.suite["name"]

    @property
    def budgets(self) -> list[BudgetName]:
        """Bills first, then numbers of triples, each by size: the last one is what the report is about."""
        return sorted(_budgets(self.suite), key=budget_order)

    @property
    def triple_budgets(self) -> list[int]:
        return sorted(self.suite.get("budgets") or ())

    @property
    def seeds(self) -> int:
        return self.suite.get("seeds", 1)

    @property
    def variants(self) -> dict[str, str]:
        """Name -> label, in the order of the suite."""
        return {v["name"]: v.get("label") or v["name"] for v in self.suite["variants"]}

    @property
    def baseline(self) -> str:
        """The variant others are compared with: the suite's ``report.baseline``, or its first variant."""
        return (self.suite.get("report") or {}).get("baseline") or next(iter(self.variants))

    @property
    def unmeasured(self) -> list[tuple[str, str]]:
        """(cell, benchmark) wherever a cell that is done has no records of a benchmark of the suite."""
        names, done = [b["name"] for b in self.suite["benchmarks"]], [c for c in self.cells if c.done]
        again = [(c.name, f"{name}, second judge") for c in done for name in self.judged_twice if name not in c.second]
        return [(c.name, name) for c in done for name in names if name not in c.records] + again

    @property
    def second_judge(self) -> dict[str, Any] | None:
        """``label``, ``statement`` and ``benchmarks`` of the judge that looked at the same answers again."""
        return self.environment.get("second_judge")

    @property
    def judged_twice(self) -> list[str]:
        """The benchmarks whose answers both judges judged."""
        return self.second_judge["benchmarks"] if self.second_judge else []

    @property
    def complete(self) -> bool:
        """Whether all that was planned is there: no cell or record failed, none is missing."""
        both = (found for cell in self.cells for found in (*cell.records.values(), *cell.second.values()))
        records = (record for found in both for record in found)
        return (
            not self.unfinished
            and not self.unmeasured
            and all(cell.done for cell in self.cells)
            and all(record.error is None for record in records)
        )

    @property
    def commits(self) -> list[str]:
        """The commits whose code ran the cells, each once; "unknown" for cells that do not say."""
        return list(dict.fromkeys(cell.commit or "unknown" for cell in self.cells))

    @cached_property
    def metrics(self) -> dict[str, str]:
        """Metric -> benchmark it comes from, for every metric that has a record, in the suite's order."""
        order = [b["name"] for b in self.suite["benchmarks"]]
        found = {}
        for benchmark in order:
            for cell in self.cells:
                for record in cell.records.get(benchmark, ()):
                    found.setdefault(record.metric, benchmark)
        return found

    def cells_of(self, variant: str, budget: BudgetName) -> list[Cell]:
        """The cells of one row of the comparison, by seed; those without triples belong to every budget."""
        return [
            cell
            for cell in self.cells
            if cell.variant == variant and not cell.sweep and (cell.budget == budget or not cell.uses_triples)
        ]

    def groups(self, variant: str) -> list[tuple[BudgetName, list[Cell]]]:
        """The variant's done cells by their own budget, which is 0 without triples; no sweeps."""
        done = [cell for cell in self.cells if cell.variant == variant and not cell.sweep and cell.done]
        return [(b, [c for c in done if c.budget == b]) for b in sorted({c.budget for c in done}, key=budget_order)]

    @property
    def sweeps(self) -> list[list[Cell]]:
        """The cells of every swept point, in order of appearance."""
        points: dict[tuple, list[Cell]] = {}
        for cell in self.cells:
            if cell.sweep:
                points.setdefault((cell.variant, cell.budget, *sorted(cell.sweep.items())), []).append(cell)
        return list(points.values())


def read_run(folder: Path) -> Run:
    """Read the run in ``folder``.

    Raises ValueError naming the file (and line) for a folder that is not a run, a file that cannot be read, a
    cell whose variant the suite does not have, or an item recorded twice.
    """
    import yaml

    folder = Path(folder)
    for needed in ("suite.yaml", "environment.json", "cells"):
        if not (folder / needed).exists():
            raise ValueError(
                f"{str(folder)!r} is not a run folder: it has no {needed}; give the --out folder of `dspa-bench run`"
            )
    try:
        suite = yaml.safe_load(read_text(folder / "suite.yaml", "suite"))
    except yaml.YAMLError as problem:
        raise ValueError(f"{folder / 'suite.yaml'}: not valid YAML: {problem}") from None
    bills_only = isinstance(suite, dict) and suite.get("flops_budgets")
    needed = ("name", "benchmarks", "variants") if bills_only else ("name", "budgets", "benchmarks", "variants")
    _need(suite, needed, folder / "suite.yaml")
    environment = _json(folder / "environment.json")
    _need(environment, _ENVIRONMENT, folder / "environment.json")
    order = [v["name"] for v in suite["variants"]]
    cells, unfinished = [], []
    for cell_folder in sorted(path for path in (folder / "cells").iterdir() if path.is_dir()):
        if (cell_folder / "cell.json").is_file():
            cells.append(_cell(cell_folder, order))
        else:
            unfinished.append(cell_folder.name)
    cells.sort(key=lambda c: (order.index(c.variant), budget_order(c.budget), c.seed, _by_value(c.sweep)))
    begun = {cell.name for cell in cells}.union(unfinished)
    unfinished += [name for name in _expected(suite, cells) if name not in begun]
    return Run(folder, suite, environment, tuple(cells), tuple(unfinished))


def _expected(suite: dict[str, Any], cells: list[Cell]) -> Iterator[str]:
    """The cells every variant must have; a variant that has none yet is named as a whole."""
    uses_triples = {cell.variant: cell.uses_triples for cell in cells}
    for variant in suite["variants"]:
        name, swept = variant["name"], variant.get("sweep") or {}
        if name not in uses_triples:
            yield f"{name}__*"
            continue
        budgets = _budgets(suite) if uses_triples[name] else [0]
        for budget in budgets:
            yield from (cell_name(name, budget, seed) for seed in range(suite.get("seeds", 1)))
        for values in itertools.product(*swept.values()) if swept else ():
            yield cell_name(name, max(budgets, key=budget_order), 0, dict(zip(swept, values, strict=True)))


def _budgets(suite: dict[str, Any]) -> list[BudgetName]:
    return [*(suite.get("budgets") or ()), *(flops_budget(int(flops)) for flops in suite.get("flops_budgets") or ())]


def _cell(folder: Path, variants: list[str]) -> Cell:
    data = _json(folder / "cell.json")
    keys = ("cell", "variant", "label", "method", "budget", "seed", "uses_triples", "status")
    _need(data, keys, folder / "cell.json")
    if data["variant"] not in variants:
        raise ValueError(
            f"{folder / 'cell.json'}: variant {data['variant']!r} is not in suite.yaml, which has "
            f"{', '.join(variants)}; the cell belongs to another suite"
        )
    failed = data["status"] != "done"
    return Cell(
        name=data["cell"],
        variant=data["variant"],
        label=data["label"],
        method=data["method"],
        budget=data["budget"],
        seed=data["seed"],
        uses_triples=data["uses_triples"],
        sweep=data.get("sweep"),
        triples_hash=data.get("triples_hash"),
        fingerprint=data.get("fingerprint"),
        commit=data.get("commit"),
        error=(data.get("error") or "no reason was recorded") if failed else None,
        diagnostics=data.get("diagnostics") or {},
        bill=_bill(folder / "compute.json", required=not failed),
        records=_all_records(folder),
        second=_all_records(folder / "second"),
    )


def _all_records(folder: Path) -> dict[str, tuple[Record, ...]]:
    return {path.stem: tuple(_records(path)) for path in sorted((folder / "records").glob("*.jsonl"))}


def _bill(path: Path, *, required: bool) -> dict[str, Any] | None:
    if not path.is_file() and not required:
        return None
    bill = _json(path)
    keys = ("executed_flops", "formula_flops", "paper_flops", "seconds", "peak_bytes", "cuda_peak_bytes")
    _need(bill, (*keys, "tokens", "optimiser_steps", "train_params", "total_params", "stages", "operators"), path)
    return bill


def _records(path: Path) -> Iterator[Record]:
    seen: dict[tuple[str, str], int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError) as problem:
            raise ValueError(f"{where}: not a record: {problem}; rerun the suite to repair it") from None
        first = seen.setdefault((record.metric, record.item), number)
        if first != number:
            raise ValueError(f"{where}: item {record.item!r} of {record.metric} is already on line {first}")
        yield record


def _json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise ValueError(f"{path} is missing; rerun the suite to repair the run folder")
        return json.loads(read_text(path, "run"))
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path}:{problem.lineno}: not valid JSON: {problem.msg}") from None


def _need(data: Any, keys: tuple[str, ...], path: Path) -> None:
    missing = [key for key in keys if key not in data] if isinstance(data, dict) else list(keys)
    if missing:
        raise ValueError(f"{path}: missing {', '.join(missing)}; did another version write it?")


def _by_value(sweep: dict[str, Any] | None) -> list[tuple[str, float, str]]:
    """A sort key for swept points: numbers by size, everything else by its text."""
    return [
        (key, float(value) if isinstance(value, int | float) else 0.0, str(value))
        for key, value in (sweep or {}).items()
    ]
