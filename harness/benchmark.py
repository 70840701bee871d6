"""What a benchmark is: a class that turns a model into records, one per judged item."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from harness.registry import Registry

if TYPE_CHECKING:
    from harness.judging import Judge
    from harness.judging.judge import Verb
    from harness.model import AlignedModel


@dataclass(frozen=True)
class Record:
    """One measured item.

    ``item`` identifies the measurement inside its benchmark (unique), ``cluster`` the independent unit it belongs
    to (the two turns of an MT-Bench question share one), ``metric`` the column it feeds. ``value`` is in the
    metric's reporting unit (percent for shares and accuracies, 1-10 for ratings) and is None exactly when
    ``error`` says why there is no value. ``raw`` keeps what a reader needs to check it: prompt, answer, verdict.
    """

    item: str
    cluster: str
    metric: str
    value: float | None
    error: str | None = None
    raw: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.value is None) != (self.error is not None):
            raise ValueError(f"record {self.item!r}: value must be None exactly when error is set")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@runtime_checkable
class Benchmark(Protocol):
    """One evaluation. ``metrics`` names every metric its records may carry.

    ``files`` is the folder of a cell that the evaluator's own files go to (None: the benchmark's name);
    ``needs_judge`` is False for one that can run in a suite without a judge; ``asks`` names what is asked of it.
    """

    name: ClassVar[str]
    files: ClassVar[str | None]

    @property
    def needs_judge(self) -> bool: ...

    @property
    def metrics(self) -> tuple[str, ...]: ...

    @property
    def asks(self) -> "frozenset[Verb]": ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Plain sentences that every report must say about its numbers; asked for after `check`."""
        ...

    def check(self) -> None:
        """Raise ValueError, before any work, when the inputs (task files, question files) are missing or bad."""
        ...

    def prompts(self) -> list[str]:
        """The user prompts it evaluates on; training data that contains one of them is contaminated."""
        ...

    def run(
        self, model: "AlignedModel", *, judge: "Judge | None", seed: int, folder: Path | None = None
    ) -> Iterator[Record]:
        """Yield one record per item; ``folder`` (when given) receives the files in the evaluator's own formats."""
        ...


class BenchmarkConfig(BaseModel):
    """Base for benchmarks whose settings come from a suite file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    files: ClassVar[str | None] = None
    needs_judge: ClassVar[bool] = True

    @property
    def asks(self) -> "frozenset[Verb]":
        """Nothing by default, so that no judge is refused for what it cannot say."""
        return frozenset()

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing to be said by default."""
        return ()

    def prompts(self) -> list[str]:
        """None to compare with the training prompts by default."""
        return []


BENCHMARKS: Registry[Benchmark] = Registry("benchmark")
register_benchmark = BENCHMARKS.register
