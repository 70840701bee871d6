"""What a run is: plan.json says what it consists of, environment.json where, when and with what it was made.

The plan is written when the run begins and again only when its suite grew. The workers take their cells from it, and a
report needs no other description of the run.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field

from harness.benchmark import Metric
from harness.data.refs import ModelRef, SAERef
from harness.files import Document
from harness.run_folder.marks import Mark

BudgetName = int | str
"""A number of triples (0: the method uses none), or a bill in FLOPs as `flops_budget` calls it."""
_FLOPS = "flops"


def flops_budget(flops: int) -> str:
    """``1e+11flops`` for 100 000 000 000: exact, and as short as scientific notation allows."""
    return f"{Decimal(flops).normalize():e}{_FLOPS}"


def flops_of(budget: BudgetName) -> int | None:
    """The bill that ``budget`` stands for; None for a number of triples."""
    return int(Decimal(budget.removesuffix(_FLOPS))) if isinstance(budget, str) else None


def budget_order(budget: BudgetName) -> tuple[int, int]:
    """Sorts bills before numbers of triples: the last is the largest number of triples where there is one."""
    flops = flops_of(budget)
    return (0, flops) if flops is not None else (1, int(budget))


def budget_text(budget: BudgetName) -> str:
    """``300 triples`` or ``1e+11 FLOPs``."""
    return f"{budget} triples" if isinstance(budget, int) else f"{budget.removesuffix(_FLOPS)} FLOPs"


def point_name(variant: str, sweep: Mapping[str, Any] | None = None) -> str:
    """``dspa``, or ``dspa@alpha=0.2,top=5`` for a point of a sweep.

    It names folders, so odd characters of swept values turn into '-'.
    """
    values = ",".join(f"{k}={re.sub(r'[^A-Za-z0-9.+-]', '-', str(v))}" for k, v in (sweep or {}).items())
    return f"{variant}@{values}" if values else variant


def cell_name(variant: str, budget: BudgetName, seed: int, sweep: Mapping[str, Any] | None = None) -> str:
    """``dspa__n300__s0``, ``dspa__1e+11flops__s0``, and ``dspa@alpha=0.2,top=5__n300__s0`` for a point of a sweep."""
    data = f"n{budget}" if isinstance(budget, int) else budget
    return f"{point_name(variant, sweep)}__{data}__s{seed}"


class PlannedTuning(Document):
    """How a variant is tuned in each of its cells but those of a sweep, and what its ``trials`` may try.

    ``space`` is hyper-parameter -> list of values, or ``low``, ``high`` and ``log``, ``validation`` the share of a
    budget's prompts that trials are scored on, ``floor`` the nats per token by which log p(chosen) may fall there below
    the base model's (None: any).
    """

    search: str
    score: str
    validation: float
    floor: float | None
    trials: int
    space: dict[str, Any]


class PlannedVariant(Document):
    """One row of the comparison.

    ``settings`` are the hyper-parameters that the suite sets; all others are defaults. ``preferences`` other than
    "given" make it a control: chosen and rejected were swapped in all of its triples, or in a random half (shuffled).
    ``tuning`` is None for a variant that is not tuned.
    """

    name: str
    label: str
    method: str
    uses_triples: bool
    settings: dict[str, Any] = Field(default={})
    preferences: Literal["given", "swapped", "shuffled"] = "given"
    tuning: PlannedTuning | None = None


class PlannedBenchmark(Document):
    """A benchmark, the metrics its records may carry, and the folder of a cell that the evaluator's own files go to."""

    name: str
    metrics: tuple[Metric, ...]
    judged_twice: bool = False
    files: str


class PlannedCell(Document):
    """One unit of work and of distribution: one variant at one budget with one seed.

    ``budget`` is the number of triples (0 for a method that uses none) or the name of a bill (see `flops_limit`),
    ``seed`` the repeat (0, 1, ...), ``sweep`` the swept hyper-parameters of a sweep cell, ``params`` all resolved
    hyper-parameters of ``method`` (of a tuned variant its own, where its tuning starts). Paths in them are relative to
    the run folder; SAEs of the suite's table keep their names.
    """

    name: str
    variant: str
    label: str
    method: str
    budget: BudgetName
    seed: int
    uses_triples: bool
    sweep: dict[str, Any] | None = None
    params: dict[str, Any]

    @cached_property
    def point(self) -> str:
        """The variant, with the swept values of a sweep cell (see `point_name`)."""
        return point_name(self.variant, self.sweep)

    @property
    def flops_limit(self) -> int | None:
        """The bill at which the fit stops; None where the budget is a number of triples."""
        return flops_of(self.budget)


class Plan(Document):
    """A whole run. ``cells`` come in the order they are run in: those that take longest first.

    ``baseline`` is the variant that others are compared with, ``budgets`` all budgets by `budget_order` (the last one
    is what a report is about), ``seeds`` the number of repeats, whose seeds are derived from ``seed``, ``diagnostics``
    name -> legend of the figures that methods report of themselves.
    """

    sealed: ClassVar[bool] = True
    schema_version: Literal[1] = 1
    name: str
    baseline: str
    budgets: tuple[BudgetName, ...]
    seeds: int
    seed: int = 0
    variants: tuple[PlannedVariant, ...]
    benchmarks: tuple[PlannedBenchmark, ...]
    diagnostics: dict[str, str] = Field(default={})
    cells: tuple[PlannedCell, ...]

    @property
    def triple_budgets(self) -> list[int]:
        """The budgets that are numbers of triples, by size."""
        return [budget for budget in self.budgets if isinstance(budget, int)]

    @property
    def labels(self) -> dict[str, str]:
        """Name -> label of every variant, in the order of the suite."""
        return {variant.name: variant.label for variant in self.variants}

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Name -> metric, in the order of the suite's benchmarks."""
        return {metric.name: metric for benchmark in self.benchmarks for metric in benchmark.metrics}

    @property
    def benchmark_names(self) -> tuple[str, ...]:
        """Those of all benchmarks."""
        return tuple(benchmark.name for benchmark in self.benchmarks)

    @property
    def judged_twice(self) -> tuple[str, ...]:
        """The benchmarks whose answers a second judge judges too."""
        return tuple(benchmark.name for benchmark in self.benchmarks if benchmark.judged_twice)

    @cached_property
    def in_table_order(self) -> tuple[PlannedCell, ...]:
        """The cells by variant (as in the suite), budget, seed and swept values."""
        variants = list(self.labels)

        def place(cell: PlannedCell) -> tuple[Any, ...]:
            # Of swept values numbers go by size, everything else by its text.
            swept = [
                (k, float(v) if isinstance(v, int | float) else 0.0, str(v)) for k, v in (cell.sweep or {}).items()
            ]
            return variants.index(cell.variant), budget_order(cell.budget), cell.seed, swept

        return tuple(sorted(self.cells, key=place))


class GitState(Document):
    commit: str
    dirty: bool


class JudgeEntry(Document):
    label: str
    statement: str


class SecondJudgeEntry(JudgeEntry):
    benchmarks: tuple[str, ...]


class BaseEntry(ModelRef):
    hash: str


class SAEEntry(SAERef):
    hash: str | None


class TriplesEntry(Document):
    path: str
    n: int
    hash: str


class MachineEntry(Document):
    """A machine that cells were run on."""

    python: str
    platform: str
    cpu: str
    cores: int
    memory_bytes: int
    gpu: str | None


class Environment(Document):
    """What environment.json holds. Paths in it are relative to the run folder, and every ``hash`` is one of contents.

    ``created`` is when the run began (ISO 8601), ``suite_hash`` the hash of identity.json, ``git`` the commit that the
    code ran from and whether there were uncommitted changes, ``threads`` those of one worker, ``packages`` name ->
    installed version, ``notes`` plain sentences that a report must say about the numbers, ``seconds`` the wall-clock
    time of all sittings so far, added up also where several processes worked at once, and ``machines`` name -> what it
    is, of each that a process worked on. What stands outside of ``machines`` is the latest sitting's first one. An SAE
    under a public name has no hash. ``files`` are the marks, at the end of the last sitting, of what lies outside the
    cells and has no checksum of its own; None in a run of an older version. ``compared`` names the runs that
    `dspa-bench compare` made this one of, ``engine`` what generated the answers (None: transformers).
    """

    sealed: ClassVar[bool] = True
    created: str
    command: str
    suite_hash: str
    git: GitState | None
    python: str
    platform: str
    cpu: str
    cores: int
    memory_bytes: int
    gpu: str | None
    machines: dict[str, MachineEntry] = Field(default={})
    threads: int
    packages: dict[str, str]
    judge: JudgeEntry | None
    second_judge: SecondJudgeEntry | None = None
    engine: str | None = None
    notes: tuple[str, ...] = ()
    base: BaseEntry
    saes: dict[str, SAEEntry]
    triples: TriplesEntry
    seconds: float = 0.0
    files: dict[str, Mark] | None = None
    compared: tuple[str, ...] = ()
