"""Logits and losses that are no numbers end the work and say where they began; they are never scored."""

import copy

import pytest
import torch

from baselines.dpo import DPO
from harness.data.triples import Budget, conversation
from harness.experiment.fitting import fit
from harness.model.finite import ChosenFinite
from tests.toys import ToyNoise

PROMPTS = [conversation("w1 w2 w3"), conversation("w4 w5")]


def broken(base, change):
    """A copy of the base whose weights in memory went through ``change``."""
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        change(model.model)
    return base.derive(model=model, delta="weights")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_names_the_layer_where_its_logits_stopped_being_numbers(tiny_base, temperature, value):
    model = broken(tiny_base("llama"), lambda decoder: decoder.layers[2].mlp.down_proj.weight.fill_(value))
    with pytest.raises(ValueError, match=r"at step 1 of the answer .*after layer 2 is the first"):
        model.generate(PROMPTS, max_new_tokens=4, temperature=temperature)


def test_an_answer_names_the_step(tiny_base):
    base = tiny_base("llama")
    (whole,) = base.generate(PROMPTS[:1], max_new_tokens=6)
    prompt = set(base.prompt_ids(PROMPTS[0]))
    step = next(i for i, token in enumerate(whole.token_ids) if token not in prompt)
    new = whole.token_ids[step]
    model = broken(base, lambda decoder: decoder.embed_tokens.weight[new].fill_(float("nan")))
    with pytest.raises(ValueError, match=rf"at step {step + 2} of .*after layer 0 .*\(its input, the embeddings"):
        model.generate(PROMPTS[:1], max_new_tokens=6)
    model.generate(PROMPTS[:1], max_new_tokens=step + 1)  # that token is said and not read


def test_what_comes_after_the_layers_is_told_apart(tiny_base):
    model = broken(tiny_base("llama"), lambda decoder: decoder.norm.weight.fill_(float("nan")))
    with pytest.raises(ValueError, match="finite after all 4 layers, the final norm or LM head is not"):
        model.generate(PROMPTS, max_new_tokens=2)


def test_a_log_likelihood_names_the_layer(tiny_base):
    model = broken(tiny_base("llama"), lambda decoder: decoder.layers[1].mlp.down_proj.weight.fill_(float("nan")))
    with pytest.raises(ValueError, match=r"of 2 tokens after 2 is NaN; .*after layer 1 is the first"):
        model.loglikelihood([("w1 w2", " w3 w4")])


def test_tokens_that_are_ruled_out_are_no_fault():
    seen, scores = ChosenFinite(), torch.tensor([[-float("inf"), 1.0]])
    ids = torch.tensor([[0, 0]])
    assert seen(ids, scores) is scores
    assert seen.steps(torch.tensor([[0, 0, 1]])).tolist() == [[True]]
    assert seen.steps(torch.tensor([[0, 0, 0]])).tolist() == [[True], [False]]


def test_a_training_that_diverges_ends_with_the_step(tiny_base, triples):
    method = DPO(learning_rate=1e30, epochs=2, batch_size=8, optimiser="sgd", max_grad_norm=1e30)
    with pytest.raises(ValueError, match=r"the training loss is nan at optimiser step [2-6]; lower learning_rate"):
        fit(method, tiny_base("llama"), Budget(tuple(triples), 0), 0)


def test_a_fit_that_ends_without_numbers_is_refused(tiny_base, triples):
    with pytest.raises(ValueError, match=r"the fit of toy_noise ended with NaN or infinite numbers in "):
        fit(ToyNoise.model_construct(scale=float("nan")), tiny_base("llama"), Budget(tuple(triples[:2]), 0), 0)
