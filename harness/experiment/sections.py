"""The sections of a suite file: every key, what it may be, and what it means."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from harness.data.refs import InputPath, ModelRef, SAERef, TriplesPath
from harness.data.triples import Preferences
from harness.experiment.space import TuneSection


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*(_[A-Za-z0-9.-]+)*", value):
        raise ValueError(f"{value!r} cannot be a name: letters, digits, '.', '-' and single '_' (it names a folder)")
    if len(value) > LONGEST:
        raise ValueError(f"a name of {len(value)} characters is too long, it names folders; give at most {LONGEST}")
    return value


MAX_SEED = 2**31 - 1
"""What every library takes as a seed: numpy refuses negative ones, some keep 32 bits."""
MOST_POINTS = 10_000
"""Of a sweep, and trials of a tuning: more are a mistake in a list."""
LONGEST = 100
"""Characters in a name, so that a cell's name, which has more to say, can still name a folder."""
Name = Annotated[str, AfterValidator(_name)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TriplesSection(_Section):
    path: TriplesPath = Field(description="prompt, chosen, rejected, in any form of docs/data.md")
    too_long: Literal["refuse", "skip"] = Field(
        "refuse", description="triples that do not fit the context: refuse the suite, or leave them out and say so"
    )


class BenchmarkSection(_Section):
    """``name`` is the registered benchmark, ``as`` what it is called here; every other key is a setting of it."""

    model_config = ConfigDict(extra="allow")
    name: str
    as_: Name | None = Field(None, alias="as", description="its name here, so that one benchmark can be there twice")


class JudgeSection(_Section):
    """``kind`` is the registered judge; every other key is a setting of it."""

    model_config = ConfigDict(extra="allow")
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
    tune: dict[str, Any] = Field(default={}, description="hyper-parameter -> list of values, or {low, high, log}")
    trials: int | None = Field(default=None, ge=2, le=MOST_POINTS, description="of its tuning; by default the suite's")
    preferences: Preferences = Field(default="given", description="a control: what counts as chosen")


class ReportSection(_Section):
    baseline: str | None = Field(default=None, description="what others are compared with; by default the first")


class EngineSection(_Section):
    """``kind`` is the registered engine, every other key a setting of it; a text alone is the kind."""

    model_config = ConfigDict(extra="allow")
    kind: str

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class PerFitSection(_Section):
    """How many processes share a fit, and how (docs/devices.md)."""

    processes: int = Field(default=1, ge=1, le=1024, description="that share a fit, each on a device of its own")
    sharded: bool = Field(default=False, description="with full fine-tuning each keeps a part of the trained weights")
    accelerate_config: InputPath | None = Field(default=None, description="file of `accelerate config`")


class PerCellSection(_Section):
    """What one cell takes of a node of a cluster, in Ray's units: a share of a device lets several cells have it."""

    cpus: float | None = Field(default=None, gt=0, le=1024, description="by default execution.threads")
    gpus: float = Field(default=0.0, ge=0, le=1024, description="more than 1: a whole number")

    @model_validator(mode="after")
    def _whole(self) -> "PerCellSection":
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus)):
            if value is not None and value > 1 and value != int(value):
                raise ValueError(f"{name} is {value:g}; Ray gives shares of one only: a whole number, or less than 1")
        return self


class ExecutionSection(_Section):
    """How the work is done; never what comes out of it (but for ``engine``), so it may change between two sittings of
    one run."""

    workers: int = Field(default=1, ge=1, le=1024, description="local: processes, each running one cell at a time")
    threads: int = Field(default=1, ge=1, le=1024, description="torch threads in each process")
    device: str = Field(default="cpu", description="torch device, e.g. cpu or cuda")
    checkpoint_minutes: float = Field(
        default=10.0, ge=0, description="how often a training is kept, to go on from there when killed; 0: never"
    )
    hung_minutes: float = Field(
        default=60.0,
        ge=0,
        description="a worker without a training step, a token, a verdict or a score for so long is ended, and its "
        "cell begun once more; 0: never",
    )
    engine: EngineSection | None = Field(
        default=None, description="what generates the answers: vllm, or {kind: openai, ...}; by default transformers"
    )
    per_fit: PerFitSection = PerFitSection()
    executor: Literal["local", "ray"] = Field(
        default="local", description="processes on this machine, or tasks on a Ray cluster (docs/ray.md)"
    )
    address: str = Field(
        default="auto", description="ray: HOST:PORT of the cluster's head; auto: the cluster that this machine is in"
    )
    per_cell: PerCellSection = Field(
        default=PerCellSection(), description="ray: what a cell takes of its node; as many run at once as there is room"
    )
    retries: int = Field(
        default=2, ge=0, le=100, description="ray: how often a cell is begun again whose worker or node died"
    )
    shared_folder: bool = Field(
        default=True,
        description="ray: all nodes see the run folder and what the suite names under the same paths; "
        "false: files travel to the nodes and back",
    )

    @model_validator(mode="after")
    def _has_its_device(self) -> "ExecutionSection":
        if self.executor == "ray" and self.device.startswith("cuda") and not self.per_cell.gpus:
            raise ValueError(f"device is {self.device} and a cell gets no GPU of its node; add per_cell: {{gpus: 1}}")
        return self


class SuiteFile(_Section):
    """A whole suite file; the classes above are its sections."""

    name: Name
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    plugins: tuple[str, ...] = Field(default=(), description="modules with more methods, benchmarks or judges")
    base: ModelRef
    saes: dict[str, SAERef] = {}
    triples: TriplesSection
    budgets: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), description="numbers of triples")
    flops_budgets: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="bills in FLOPs: a method goes on over all triples until it has executed as many"
    )
    seeds: int = Field(default=1, ge=1, le=1000)
    judge: JudgeSection | None = None
    second_judge: SecondJudgeSection | None = Field(
        default=None, description="judges the same answers again, to see how far two judges agree"
    )
    benchmarks: tuple[BenchmarkSection, ...] = Field(min_length=1)
    tune: TuneSection = TuneSection()
    variants: tuple[VariantSection, ...] = Field(min_length=1)
    report: ReportSection = ReportSection()
    execution: ExecutionSection = ExecutionSection()

    @model_validator(mode="after")
    def _has_budgets(self) -> "SuiteFile":
        if not self.budgets and not self.flops_budgets:
            raise ValueError("missing key 'budgets' (numbers of triples); give it, or 'flops_budgets' (bills), or both")
        return self
