"""The bill of one fit: what `compute.json` holds."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MemorySource = Literal["VmHWM", "process", "sampled"]
"""VmHWM: the peak since the fit or stage began. process: since the process began. sampled: in bills of version 0.1."""


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageBill(_Row):
    """What one stage of a fit (features, map, reference, train, ...) cost, summed over its entries."""

    name: str
    executed_flops: int = Field(description="FLOPs of its steps: matrix products, attention, convolutions")
    formula_flops: int = Field(description="2P per forward token, 6P per training token, real token counts")
    seconds: float
    peak_bytes: int = Field(description="peak resident memory of the process during the stage")
    tokens: int
    steps: int
    sampled_steps: int = Field(description="steps that went through the torch profiler for `Bill.operators`")


class OperatorRow(_Row):
    """One operator in the profiled steps of one stage (not extrapolated to the stage).

    ``flops`` is the profiler's figure, which unlike `executed_flops` includes elementwise additions and
    multiplications; ``seconds`` is the operator's own time, on the device where it ran there, else on the
    host.
    """

    stage: str
    operator: str
    calls: int
    flops: int
    seconds: float


class Bill(_Row):
    """The three FLOP figures side by side (never merged), and time, memory, data and parameters.

    ``executed_flops`` is measured; a causal mask is not deducted from attention, and elementwise work is
    not in it. ``paper_flops`` is None for methods for which the paper gives no figure. ``predicted`` is what the fit
    was expected to execute, by stage, before it began. ``flops_limit`` is the bill that was its budget, ``epochs`` how
    often it went over its ``n_triples`` triples, where the method says so. ``peak_bytes`` is
    the peak resident memory of the whole process, weights and libraries included; ``start_bytes`` is what
    was resident before the fit. ``seconds`` is wall-clock time of the run without ``metering_seconds``, the
    time the meter itself needed around the profiled steps. (Steps that are counted or profiled also run
    slower themselves; that is in ``seconds``.)
    """

    method: str
    n_triples: int
    executed_flops: int
    formula_flops: int
    paper_flops: float | None
    predicted: dict[str, int] | None = None
    flops_limit: int | None = None
    epochs: float | None = None
    seconds: float
    metering_seconds: float
    start_bytes: int
    peak_bytes: int
    peak_source: MemorySource
    cuda_peak_bytes: int | None = Field(description="peak that torch allocated, all devices; None without CUDA")
    tokens: int
    optimiser_steps: int
    train_params: int
    total_params: int
    stages: list[StageBill]
    operators: list[OperatorRow]
