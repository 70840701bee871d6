"""The two steps of the work, each metered or recorded: fit a method, evaluate a model by a benchmark."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import set_seed

from harness.benchmark import Benchmark
from harness.compute import Meter
from harness.experiment.replay import Completions, Replayed, completion_keys
from harness.experiment.store import CellFolder
from harness.generation import Batch
from harness.judges import Judge
from harness.method import AlignmentMethod
from harness.model import AlignedModel, Completion
from harness.preferences import Budget
from harness.scoring import ScoredBatch


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
    """Run ``benchmark``; records, answers and diagnostics go to ``folder``, the number of records to ``notify``."""
    notify(0)
    said = Completions.read(folder.completions(name))
    model = _Watched.of(aligned, said, lambda figures: folder.save_diagnostics(name, figures))
    set_seed(seed)
    records = benchmark.run(model, judge=judge, seed=seed, folder=folder.path / (benchmark.files or name))
    for count, _ in enumerate(folder.write_records(name, records), 1):
        notify(count)


def judge_again(
    aligned: AlignedModel,
    name: str,
    benchmark: Benchmark,
    *,
    judge: Judge,
    seed: int,
    folder: CellFolder,
    notify: Callable[[int], object],
) -> None:
    """Have ``judge`` look at the answers of a benchmark that was run; its records go to ``folder.second``.

    Raises ValueError when they turn out to be about other answers than the first judge's (they had to be generated
    again, elsewhere).
    """
    notify(0)
    model = Replayed.of(aligned, Completions.read(folder.completions(name)))
    set_seed(seed)
    records = benchmark.run(model, judge=judge, seed=seed, folder=folder.second.path / (benchmark.files or name))
    for count, _ in enumerate(folder.second.write_records(name, records), 1):
        notify(count)
    if not folder.judged_alike(name):
        raise ValueError(
            "the second judge was shown other answers than the first; remove records, completions, second and "
            f"{benchmark.files or name} from {folder.path} and rerun"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Watched(AlignedModel):
    """Keeps what it ``said``, and hands its diagnostics to ``keep`` whenever it was used.

    Both are kept as soon as they exist, because a benchmark that is interrupted later may find its answers
    again and never ask the model a second time. The diagnostics are those of one benchmark.
    """

    said: Completions
    keep: Callable[[dict[str, float]], object]
    tallies: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, aligned: AlignedModel, said: Completions, keep: Callable[[dict[str, float]], object]) -> "_Watched":
        return cls(**{f.name: getattr(aligned, f.name) for f in fields(AlignedModel)}, said=said, keep=keep)

    def generate(self, *args: Any, **kwargs: Any) -> list[Completion]:
        completions = super().generate(*args, **kwargs)
        self.said.keep(completion_keys(*args, **kwargs), completions)
        self.keep(self._figures())
        return completions

    def loglikelihood_tokens(self, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        scores = super().loglikelihood_tokens(*args, **kwargs)
        self.keep(self._figures())
        return scores

    def generate_batches(self, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        for batch in super().generate_batches(*args, **kwargs):
            self.tallies.extend([] if batch.tally is None else [batch.tally])
            yield batch

    def score_batches(self, *args: Any, **kwargs: Any) -> Iterator[ScoredBatch]:
        for batch in super().score_batches(*args, **kwargs):
            self.tallies.extend([] if batch.tally is None else [batch.tally])
            yield batch

    def _figures(self) -> dict[str, float]:
        return {} if self.intervention is None else self.intervention.figures(self.tallies)
