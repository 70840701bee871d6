"""Is the ``aligned`` class as fast as it should be? The same requests through it and through lm-eval's ``hf``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.defaults import DEFAULT_OTHER_SEED

from harness.adapters.lm_eval import AlignedLM, task_manager
from harness.adapters.quiet import quiet
from harness.model import AlignedModel
from harness.perf import Comparison, always, compare

OURS, HF = "aligned", "hf"


@dataclass(frozen=True)
class TaskSpeed:
    """Seconds of one task's log-likelihoods, and how far the two sides' values are apart."""

    task: str
    shots: int
    items: int
    requests: int
    cut: int
    largest_difference: float
    greedy_differs: int
    comparison: Comparison


def measure_task(
    aligned: AlignedModel,
    task: str,
    shots: int,
    *,
    limit: int,
    batch_size: int,
    rounds: int,
    seed: int,
) -> TaskSpeed:
    """Tokenise and score the first ``limit`` items of ``task`` (of a group: about as many, alike from each task).

    Both sides get the same requests, weights, tokenizer, batch size and threads; building requests and computing
    metrics from the values is lm-eval's and not timed. ``hf`` is the reference, so its second run is the control.
    """
    from lm_eval.models.huggingface import HFLM

    requests = _requests(task, shots, limit)
    with quiet():
        sides: dict[str, Any] = {
            OURS: AlignedLM(aligned, batch_size=batch_size),
            HF: HFLM(pretrained=aligned.model, tokenizer=aligned.tokenizer, batch_size=batch_size),  # type: ignore[arg-type]
        }

    def scored(side: str) -> list[tuple[float, bool]]:
        with quiet():
            return sides[side].loglikelihood(requests, disable_tqdm=True)

    ours, theirs = scored(OURS), scored(HF)
    comparison = compare(
        {side: always(lambda side=side: scored(side)) for side in (OURS, HF)},
        reference=HF,
        rounds=rounds,
        warmup=0,  # both have just run
        seed=seed,
    )
    return TaskSpeed(
        task,
        shots,
        len({(request.task_name, request.doc_id) for request in requests}),
        len(requests),
        len(sides[OURS].cut_tokens),
        max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True)),
        sum(a != b for (_, a), (_, b) in zip(ours, theirs, strict=True)),
        comparison,
    )


def together(speeds: Sequence[TaskSpeed]) -> Comparison:
    """All tasks as one: in every round the seconds of all of them."""
    first = speeds[0].comparison
    seconds = {
        name: tuple(map(sum, zip(*(speed.comparison.seconds[name] for speed in speeds), strict=True)))
        for name in first.seconds
    }
    return Comparison(seconds, first.reference, first.control)


def _requests(task: str, shots: int, limit: int) -> list[Any]:
    """lm-eval's log-likelihood requests."""
    with quiet():
        manager = task_manager(include_defaults=False)
        if task not in manager.all_tasks:
            manager = task_manager()
        if task not in manager.all_tasks:
            raise ValueError(f"task {task!r} is not known (see `dspa-bench lm-eval ls tasks`)")
        leaves = manager.load([task])["tasks"].values()
        requests = []
        for leaf in leaves:
            if leaf.OUTPUT_TYPE != "multiple_choice":
                raise ValueError(f"task {leaf.task_name!r} is of type {leaf.OUTPUT_TYPE!r}, not 'multiple_choice'")
            leaf.set_config(key="num_fewshot", value=shots)
            leaf.set_fewshot_seed(DEFAULT_OTHER_SEED)
            leaf.build_all_requests(limit=max(1, round(limit / len(leaves))), rank=0, world_size=1)
            requests += leaf.instances
    return requests
