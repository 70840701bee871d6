"""The keys of a suite file."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from harness.refs import ModelRef, SAERef


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*(_[A-Za-z0-9.-]+)*", value):
        raise ValueError(f"{value!r} cannot be a name: letters, digits, '.', '-' and single '_' (it names a folder)")
    return value


Name = Annotated[str, AfterValidator(_name)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TriplesSection(_Section):
    path: Path = Field(description="JSONL of prompt, chosen, rejected")


class BenchmarkSection(BaseModel):
    """``name`` is the registered benchmark; every other key is a setting of it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str


class JudgeSection(BaseModel):
    """``kind`` is the registered judge; every other key is a setting of it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str


class SecondJudgeSection(JudgeSection):
    """A judge that looks at the same answers again; ``benchmarks`` are those whose answers it judges."""

    benchmarks: tuple[str, ...] | None = Field(default=None, description="by default all that need a judge")


class VariantSection(_Section):
    """One row of the comparison: a method with hyper-parameters, and optionally values to sweep over."""

    name: Name
    method: str
    label: str | None = None
    params: dict[str, Any] = {}
    sweep: dict[str, list[str | bool | int | float]] = {}


class ReportSection(_Section):
    baseline: str | None = Field(default=None, description="what others are compared with; by default the first")


class ExecutionSection(_Section):
    """How the work is done; never what comes out of it, so it may change between two sittings of one run."""

    workers: int = Field(default=1, ge=1, description="processes, each running one cell at a time")
    threads: int = Field(default=1, ge=1, description="torch threads in each process")
    device: str = Field(default="cpu", description="torch device, e.g. cpu or cuda")


class SuiteFile(_Section):
    """A whole suite file; the classes above are its sections."""

    name: Name
    seed: int = 0
    plugins: tuple[str, ...] = Field(default=(), description="modules with more methods, benchmarks or judges")
    base: ModelRef
    saes: dict[str, SAERef] = {}
    triples: TriplesSection
    budgets: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), description="numbers of triples")
    flops_budgets: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="bills in FLOPs: a method goes on over all triples until it has executed as many"
    )
    seeds: int = Field(default=1, ge=1)
    judge: JudgeSection | None = None
    second_judge: SecondJudgeSection | None = Field(
        default=None, description="judges the same answers again, to see how far two judges agree"
    )
    benchmarks: tuple[BenchmarkSection, ...] = Field(min_length=1)
    variants: tuple[VariantSection, ...] = Field(min_length=1)
    report: ReportSection = ReportSection()
    execution: ExecutionSection = ExecutionSection()

    @model_validator(mode="after")
    def _has_budgets(self) -> "SuiteFile":
        if not self.budgets and not self.flops_budgets:
            raise ValueError("missing key 'budgets' (numbers of triples); give it, or 'flops_budgets' (bills), or both")
        return self
