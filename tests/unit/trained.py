"""What holds for every method that trains: shared by the tests of each."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from harness.compute import Meter, count_flops
from harness.compute.bill import Bill
from harness.data.triples import Triple, conversation
from harness.model.aligned import AlignedModel

PROMPTS = [conversation("w1 w2 w3"), conversation("w30")]


def answer_loglikelihoods(model: AlignedModel, triples: list[Triple]) -> tuple[list[float], list[float]]:
    """log p of the chosen and of the rejected answers, end of turn included, from the benchmark's own scorer."""
    end = [model.chat.end_id]
    texts = [(t.prompt, answer) for t in triples for answer in (t.chosen, t.rejected)]
    pairs = [(model.prompt_ids(prompt), model.chat.response_ids(answer) + end) for prompt, answer in texts]
    scores = [score for score, _ in model.loglikelihood_tokens(pairs)]
    return scores[::2], scores[1::2]


def margin_gain(before: AlignedModel, after: AlignedModel, triples: list[Triple]) -> float:
    """By how much log p(chosen) - log p(rejected) rose, mean over the triples."""
    (good, bad), (better, worse) = answer_loglikelihoods(before, triples), answer_loglikelihoods(after, triples)
    return (sum(better) - sum(worse) - sum(good) + sum(bad)) / len(triples)


@contextmanager
def learning_rates() -> Iterator[list[float]]:
    """Filled with the learning rate of every optimiser step inside, whoever trains; all groups of one have the same."""
    rates: list[float] = []

    def note(optimizer: Any, *_: Any) -> None:
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        rates.append(rate)

    hook = register_optimizer_step_pre_hook(note)
    try:
        yield rates
    finally:
        hook.remove()


def fit_checked(method: Any, base: AlignedModel, triples: list[Triple], folder: Path) -> tuple[AlignedModel, Bill]:
    """Fit under a counter of all FLOPs; the base is unchanged, the result is repeatable and comes back."""
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    said = base.generate(PROMPTS, max_new_tokens=6)
    meter = Meter(base.model, sample_profile=False)
    aligned = method.fit(base, triples, meter=meter, seed=0)
    bill = meter.bill(method=method.name, n_triples=len(triples))

    counted = Meter(base.model, sample_profile=False)
    with count_flops() as counter:
        method.fit(base, triples, meter=counted, seed=0)
    assert counter.get_total_flops() == counted.executed_flops == bill.executed_flops > 0

    for name, tensor in base.model.state_dict().items():
        assert torch.equal(before[name], tensor), name
    assert all(p.requires_grad and p.grad is None for p in base.model.parameters())
    assert not {"forward", "_original_forward"} & set(vars(base.model))
    assert base.generate(PROMPTS, max_new_tokens=6) == said

    again = method.fit(base, triples, meter=Meter(base.model, sample_profile=False), seed=0)
    assert again.fingerprint == aligned.fingerprint

    assert (aligned.method, aligned.params) == (method.name, method.model_dump(mode="json"))
    aligned.save(folder)
    loaded = AlignedModel.load(folder)
    assert loaded.fingerprint == aligned.fingerprint
    assert loaded.generate(PROMPTS, max_new_tokens=6) == aligned.generate(PROMPTS, max_new_tokens=6)
    return aligned, bill
