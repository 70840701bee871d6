"""The bill of one fit, which is what `compute.json` holds, and FLOPs by formula.

2P per forward token, 6P per training token, and the figures the paper states.
"""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_validator

from harness.files import Document

MemorySource = Literal["VmHWM", "process", "sampled"]
"""VmHWM: the peak since the fit or stage began. process: since the process began. sampled: in bills of version 0.1."""


class StageBill(Document):
    """What one stage of a fit (features, map, reference, train, ...) cost, summed over its entries."""

    name: str
    executed_flops: int = Field(description="FLOPs of its steps: matrix products, attention, convolutions")
    formula_flops: int = Field(description="2P per forward token, 6P per training token, real token counts")
    seconds: float
    peak_bytes: int = Field(description="peak resident memory of the process during the stage")
    tokens: int
    steps: int
    sampled_steps: int = Field(description="kinds of steps of which one went through the torch profiler")


class OperatorRow(Document):
    """One operator in all steps of one kind (forward, encode, train, ...) of one stage.

    ``flops`` and ``steps`` are exact: FLOPs are the counter's, by operator, and those of a stage's rows sum to its
    `executed_flops`. The rest is scaled up from one step that the torch profiler saw: ``calls`` by the number of steps;
    ``profiler_flops``, the profiler's own figure, and ``seconds``, the operator's own time (on the device where it ran
    there, else on the host), by FLOPs. The profiler has no formula for some operators (fused attention, in-place
    products): their ``profiler_flops`` are 0. It has one for elementwise additions and multiplications, which are no
    executed FLOPs.
    """

    stage: str
    step: str
    steps: int
    operator: str
    flops: int
    calls: int
    profiler_flops: int
    seconds: float


class Declared(Document):
    """The cost of what was made elsewhere, as the suite declares it: ``flops``, or None where it is unknown."""

    flops: float | None


class Bill(Document):
    """The three FLOP figures side by side (never merged), and time, memory, data and parameters.

    ``executed_flops`` is measured; a causal mask is not deducted from attention, and elementwise work is
    not in it. ``paper_flops`` is None for methods for which the paper gives no figure. ``predicted`` is what the fit
    was expected to execute, by stage, before it began. ``flops_limit`` is the bill that was its budget, ``epochs`` how
    often it went over its ``n_triples`` triples, where the method says so. ``peak_bytes`` is
    the peak resident memory of the whole process, weights and libraries included; ``start_bytes`` is what
    was resident before the fit. ``seconds`` is wall-clock time of the run without ``metering_seconds``, the
    time the meter itself needed around the profiled steps, and for writing curve and checkpoints. (Steps that are
    counted or profiled also run slower themselves; that is in ``seconds``.) Of a fit that was killed and went on,
    FLOPs, tokens and steps are those of an uninterrupted one and seconds the sum of its sittings, without what the
    killed ones did behind their last checkpoint.

    What was made elsewhere has its cost ``declared``: the figures of this bill are then those of loading it.
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
    declared: Declared | None = None

    def __repr__(self) -> str:
        work = f"{self.executed_flops:.3g} FLOPs in {self.seconds:.1f} s"
        return f"<Bill of {self.method}: {work}, {self.n_triples} triples, {self.tokens} tokens>"

    __str__ = __repr__

    @field_validator("operators", mode="before")
    @classmethod
    def _of_whole_stages(cls, rows: Any) -> Any:
        """Bills of before have rows of one sampled step, not of its stage; they are left out."""
        if not isinstance(rows, list):
            return rows
        return [row for row in rows if not isinstance(row, dict) or "step" in row]


# What the paper assumes (section on compute): an 8B model; prompt, chosen and rejected of 1000 tokens each.
PAPER_PARAMS = 8 * 10**9
PAPER_TOKENS = 1000

PAPER_NOTE = (
    "They differ because the convention gives every text its assumed length and cuts RAHF's rows to 768 tokens, "
    "counts whole forward passes, and knows one number of steps; here DSPA passes a prompt once for both answers, "
    "stops behind its deepest SAE and leaves the LM head out, RAHF's rows carry an instruction and keep their length, "
    "and its epochs and steps are the suite's."
)
"""Why the ratio of two methods' `paper_flops` is not that of what was measured."""


def forward_flops(n_params: int, tokens: int) -> int:
    """2 P per token that passes forward through ``n_params`` parameters."""
    return 2 * n_params * tokens


def train_flops(n_params: int, tokens: int) -> int:
    """6 P per token that passes forward and backward (counted as twice the forward)."""
    return 6 * n_params * tokens


def _dspa(n_triples: int) -> float:
    # 2 P N (3p + c + r): the prompt alone, prompt + chosen, prompt + rejected.
    return float(forward_flops(PAPER_PARAMS, n_triples * (3 + 1 + 1) * PAPER_TOKENS))


def _rahf_scit(n_triples: int) -> float:
    # Stage 1, 48 P N 768: rows of 768 tokens, 6P each, 2 epochs x 2 answers x 2 instructions (our reading
    # of 48). Stage 2, 12 P (64 * 512) (0.02 N): batches of 64 rows of 512 tokens, 0.02 N steps.
    first = 48 * PAPER_PARAMS * n_triples * 768
    second = 12 * PAPER_PARAMS * (64 * 512) * (n_triples * 0.02)
    return first + second


PAPER_FIGURES: dict[str, Callable[[int], float]] = {"dspa": _dspa, "rahf_scit": _rahf_scit}


def paper_flops(method: str, n_triples: int) -> float:
    """Alignment FLOPs the paper states for ``method`` on ``n_triples`` triples.

    With its assumed model and lengths, P = 8e9 and prompt = chosen = rejected = 1000 tokens: DSPA
    2PN(3p+c+r) = 8e13 N; RAHF-SCIT 48 P N 768 + 12 P (64*512)(0.02 N) = 3.58e14 N; their ratio is 4.4728
    for any N. Raises ValueError for a method without a figure in the paper and for a negative number of
    triples.
    """
    if method not in PAPER_FIGURES:
        raise ValueError(
            f"the paper gives no FLOPs for method {method!r}; it does for: {', '.join(sorted(PAPER_FIGURES))}"
        )
    if n_triples < 0:
        raise ValueError(f"n_triples must be 0 or more, got {n_triples}")
    return PAPER_FIGURES[method](n_triples)
