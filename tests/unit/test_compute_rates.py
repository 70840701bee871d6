"""Rates found without weights or data are those of the real passes."""

from typing import Any

import pytest
import torch

from harness.compute import count_flops
from harness.compute.rates import Rate, Rates
from tests.unit.test_compute import gemma2, llama

ROWS, LENGTH, PAST = 3, 11, 5


def ids(length: int = LENGTH) -> dict[str, torch.Tensor]:
    tokens = torch.zeros(ROWS, length, dtype=torch.long)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def counted(model: Any, *, train: bool) -> int:
    with count_flops() as counter, torch.set_grad_enabled(train):
        logits = model(**ids()).logits
        if train:
            logits.sum().backward()
    return counter.get_total_flops()


def lora(model: Any) -> tuple[Any, Any]:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(model, config), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize("make", [llama, gemma2], ids=["llama, fused attention", "Gemma-2, eager"])
def test_body_and_head_make_a_forward_and_a_full_training_step(make: Any) -> None:
    rates, heads = Rates(make().config), ROWS * LENGTH
    assert rates.body().of(ROWS, LENGTH) + heads * rates.head == counted(make(), train=False)
    assert rates.training().of(ROWS, LENGTH) + 3 * heads * rates.head == counted(make().train(), train=True)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_is_priced_with_what_it_freezes(checkpointing: bool) -> None:
    model, config = lora(llama())
    if checkpointing:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
    rates = Rates(llama().config)
    rate = rates.training(config, checkpointing=checkpointing)
    assert rate.of(ROWS, LENGTH) + 2 * ROWS * LENGTH * rates.head == counted(model.train(), train=True)
    assert rate.per_token < rates.training(checkpointing=checkpointing).per_token


def test_a_pass_may_end_early_and_go_on_from_a_cache() -> None:
    rates, model = Rates(llama().config), llama()
    with torch.no_grad():
        cache = model(**ids(PAST), use_cache=True).past_key_values
        with count_flops() as counter:
            mask = torch.ones(ROWS, PAST + LENGTH, dtype=torch.long)
            model.model(input_ids=ids()["input_ids"], attention_mask=mask, past_key_values=cache)
    assert rates.body().of(ROWS, LENGTH, past=PAST) == counter.get_total_flops()
    one, all_ = rates.body(1), rates.body()
    assert (2 * one.per_token, 2 * one.per_pair) == (all_.per_token, all_.per_pair)


def test_a_model_of_billions_needs_no_memory() -> None:
    config = llama().config
    config.update({"hidden_size": 8192, "intermediate_size": 28_672, "head_dim": 128, "num_attention_heads": 64})
    rates = Rates(config)
    assert all(p.device.type == "meta" for p in rates.model.parameters())
    assert rates.body().per_token == 2 * sum(
        p.numel()
        for name, p in rates.model.named_parameters()
        if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    )


def test_what_is_not_linear_in_tokens_and_pairs_has_no_rate() -> None:
    rates = Rates(llama().config)

    def cubic(_: Any, tokens: torch.Tensor) -> None:
        n = tokens.shape[1]
        torch.ones(n, n) @ torch.ones(n, n)

    def by_value(_: Any, tokens: torch.Tensor) -> None:
        if tokens.sum() > 0:
            raise AssertionError

    with pytest.raises(ValueError, match="not so many per token"):
        rates.measure(cubic)
    with pytest.raises(ValueError, match="depend on values"):
        rates.measure(by_value)


def test_a_rate_counts_tokens_and_pairs() -> None:
    assert Rate(10, 1).of(2, 3) == 2 * 3 * (10 + 3)
    assert Rate(10, 1).of(2, 3, past=4) == 2 * 3 * (10 + 4 + 3)
