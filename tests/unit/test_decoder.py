"""Seeing activations: `captured` gives what transformers calls hidden states, and ends a forward where asked to."""

import copy

import pytest
import torch

from harness.model.decoder import captured, find_decoder

IDS = torch.tensor([[1, 9, 10, 11], [1, 12, 13, 14]])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3"])
@pytest.mark.parametrize("stop", [False, True])
def test_it_is_the_residual_stream_after_the_layers(tiny_base, family, stop):
    model = tiny_base(family).model
    decoder = find_decoder(model)
    with torch.no_grad():
        hidden = model(input_ids=IDS, output_hidden_states=True).hidden_states
        with captured(decoder, {0, 2}, stop=stop) as residual:
            model(input_ids=IDS)
    assert sorted(residual) == [0, 2]
    for layer, seen in residual.items():
        assert torch.equal(seen, hidden[layer + 1])


@pytest.mark.parametrize("last", [1, 3])
def test_a_stopped_forward_runs_nothing_that_comes_later_and_ends_the_block(tiny_base, last):
    model, ran = copy.deepcopy(tiny_base("llama").model), []
    decoder = find_decoder(model)
    for index, block in enumerate(decoder.layers):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    for module in (model.model.norm, model.lm_head):
        module.register_forward_hook(lambda *_: ran.append("later"))
    with captured(decoder, [0, last], stop=True) as residual:
        model(input_ids=IDS)
        ran.append("below the forward")
    assert ran == list(range(last + 1))
    assert sorted(residual) == [0, last]
    assert model(input_ids=IDS).logits.shape[:2] == IDS.shape, "the hooks are gone"


def test_hooks_go_when_a_forward_fails_and_its_error_is_not_swallowed(tiny_base):
    model = tiny_base("llama").model
    decoder = find_decoder(model)

    def hooks():  # transformers has some of its own
        return [len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in decoder.layers]

    before = hooks()
    with pytest.raises(IndexError), captured(decoder, {1}, stop=True):
        model(input_ids=torch.tensor([[10**6]]))
    assert hooks() == before


def test_gradients_through_a_stopped_forward_are_the_same_under_checkpointing(tiny_base):
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(tiny_base("llama").model).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        decoder = find_decoder(model)
        with captured(decoder, {1}, stop=True) as residual:
            decoder.stack(input_ids=IDS, use_cache=False)
        residual[1].square().sum().backward()
        gradients.append([p.grad.clone() for p in decoder.layers[1].parameters()])
        assert all(p.grad is None for p in decoder.layers[2].parameters())
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
