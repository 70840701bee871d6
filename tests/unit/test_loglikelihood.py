"""Log-likelihoods equal one forward an item, however contexts share prefixes, batches and cache columns."""

import copy
import random
from dataclasses import replace

import pytest
import torch

from harness.model import loglikelihood as scoring
from harness.model.prefix_cache import can_share

draw = random.Random(0)


def tokens(n):
    return [draw.randrange(8, 48) for _ in range(n)]


def made_requests():
    """Two long prefixes with several contexts each, single-token choices, contexts without relatives, one token."""
    few_shot, instruction = tokens(40), tokens(25)
    requests = []
    for extra in (0, 3, 30, 11):
        context = few_shot + tokens(extra)
        requests += [(context, tokens(n)) for n in (1, 6, 17)]
    for extra in (1, 9):
        context = instruction + tokens(extra)
        requests += [(context, [token]) for token in (9, 10, 11)] + [(context, [12, 13]), (context, [12, 14])]
    for n in (1, 3, 60):
        context = tokens(n)
        requests += [(context, tokens(5)), (context, tokens(1))]
    draw.shuffle(requests)
    return requests


REQUESTS = made_requests()


@torch.no_grad()
def one_at_a_time(model):
    scores = []
    for context, continuation in REQUESTS:
        logprobs = model(input_ids=torch.tensor([context + continuation])).logits[0].log_softmax(-1)
        logprobs = logprobs[len(context) - 1 : -1]
        targets = torch.tensor(continuation)
        total = logprobs.gather(1, targets[:, None]).sum()
        scores.append((float(total), bool((logprobs.argmax(-1) == targets).all())))
    return scores


def assert_same(ours, theirs):
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3"])  # Gemma's windows are shorter than prefixes
def test_shared_prefixes_change_no_value(tiny_base, family, batch_size):
    aligned = tiny_base(family)
    assert can_share(aligned.runtime)
    assert_same(aligned.loglikelihood_tokens(REQUESTS, batch_size=batch_size), one_at_a_time(aligned.model))


def test_without_sharing_the_values_are_the_same(tiny_base, monkeypatch):
    aligned = tiny_base("gemma2")
    shared = aligned.loglikelihood_tokens(REQUESTS)
    monkeypatch.setattr(scoring, "can_share", lambda _: False)
    assert_same(aligned.loglikelihood_tokens(REQUESTS), shared)


def test_an_adapters_model_shares_too(tiny_base):
    from peft import LoraConfig, get_peft_model

    base = tiny_base("llama")
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(base.model), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    aligned = replace(base, model=model.eval(), delta="adapter")
    assert can_share(aligned.runtime)
    scores = aligned.loglikelihood_tokens(REQUESTS)
    assert_same(scores, one_at_a_time(model))
    assert abs(scores[0][0] - base.loglikelihood_tokens(REQUESTS)[0][0]) > 1e-3


def test_a_shared_prefix_is_fed_once_and_contexts_are_not_projected(tiny_base, monkeypatch):
    aligned = tiny_base("llama")
    fed, projected = [], []
    stack, forward = aligned.model.model.forward, aligned.model.lm_head.forward

    def counted(*args, **kwargs):
        fed.append(kwargs["input_ids"].numel())
        return stack(*args, **kwargs)

    def head(hidden):
        projected.append(hidden.shape[:-1].numel())
        return forward(hidden)

    monkeypatch.setattr(aligned.model.model, "forward", counted)
    monkeypatch.setattr(aligned.model.lm_head, "forward", head)
    prefix = tokens(100)
    requests = [(prefix + tokens(5), tokens(4)) for _ in range(10)]
    aligned.loglikelihood_tokens(requests)
    assert sum(fed) == 100 + 10 * 5 + 10 * 4
    assert sum(projected) == 10 * 4


def test_progress_counts_every_request_once(tiny_base):
    seen = []
    tiny_base("llama").loglikelihood_tokens(REQUESTS, batch_size=3, progress=seen.append)
    assert sum(seen) == len(REQUESTS)
