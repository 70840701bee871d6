"""The two steps of the work, each metered or recorded: fit a method, evaluate a model by a benchmark."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from transformers import set_seed

from harness.benchmark import Benchmark
from harness.compute import Meter
from harness.experiment.store import CellFolder
from harness.judges import Judge
from harness.method import AlignmentMethod
from harness.model import AlignedModel, Completion
from harness.preferences import Budget


def fit(
    method: AlignmentMethod,
    name: str,
    base: AlignedModel,
    budget: Budget | None,
    seed: int,
    *,
    flops_limit: int | None = None,
    predicted: dict[str, int] | None = None,
) -> AlignedModel:
    """Align ``base`` by ``method`` on ``budget`` (None for a method without triples), under a meter with the limit.

    The result carries the bill (with what was ``predicted`` beside it) and the identity of its triples.
    """
    # For code that draws from the global generators: what was done before in this process leaves no trace.
    set_seed(seed)
    triples = () if budget is None else budget.triples
    meter = Meter(base.model, flops_limit=flops_limit)
    with meter.running():
        aligned = method.fit(base, triples, meter=meter, seed=seed)
    if method.single_pass:
        meter.epochs = 1.0
    bill = meter.bill(method=name, n_triples=len(triples), predicted=predicted).model_dump(mode="json")
    provenance = None if budget is None else {"n": budget.size, "seed": budget.seed, "hash": budget.hash}
    return aligned.derive(budget=provenance, bill=bill)


def evaluate(
    aligned: AlignedModel,
    name: str,
    benchmark: Benchmark,
    *,
    judge: Judge | None,
    seed: int,
    folder: CellFolder,
    notify: Callable[[int], object],
) -> None:
    """Run ``benchmark``; records and diagnostics go to ``folder``, the number of records to ``notify``."""
    notify(0)
    model = _Watched.of(aligned, lambda figures: folder.save_diagnostics(name, figures))
    set_seed(seed)
    records = benchmark.run(model, judge=judge, seed=seed, folder=folder.path / (benchmark.files or name))
    for count, _ in enumerate(folder.write_records(name, records), 1):
        notify(count)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Watched(AlignedModel):
    """Hands its diagnostics to ``keep`` whenever it was used.

    They are kept as soon as they exist, because a benchmark that is interrupted later may find its answers
    again and never ask the model a second time. They are those of one benchmark: the intervention starts with
    nothing counted.
    """

    keep: Callable[[dict[str, float]], object]

    @classmethod
    def of(cls, aligned: AlignedModel, keep: Callable[[dict[str, float]], object]) -> "_Watched":
        values = {f.name: getattr(aligned, f.name) for f in fields(AlignedModel)}
        intervention = aligned.intervention
        if intervention is not None:
            state = intervention.tensors(), intervention.params(), str(aligned.device)
            values["intervention"] = type(intervention).restore(*state)
        return cls(**values, keep=keep)

    def generate(self, *args: Any, **kwargs: Any) -> list[Completion]:
        completions = super().generate(*args, **kwargs)
        self.keep(self.diagnostics())
        return completions

    def loglikelihood_tokens(self, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        scores = super().loglikelihood_tokens(*args, **kwargs)
        self.keep(self.diagnostics())
        return scores
