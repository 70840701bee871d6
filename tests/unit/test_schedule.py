"""Learning rates: the shares by hand and against transformers' schedules, and those of every step of whole fits."""

import pytest
import torch
from transformers import get_scheduler

from baselines import DPO, FPO, KTO, ORPO, RAHFSCIT, SAILS, SFT, RAHFDual, SimPO
from baselines.schedule import rate_share
from harness.compute import Meter
from tests.unit.trained import learning_rates

SCHEDULES = ("linear", "cosine", "constant")


def shares(steps: int, warmup: int, schedule: str) -> list[float]:
    return [rate_share(done, steps, step=1, warmup=warmup, schedule=schedule) for done in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1 / 2, 1, 3 / 4, 1 / 2, 1 / 4]),
        ("cosine", [1 / 2, 1, (1 + 0.5**0.5) / 2, 1 / 2, (1 - 0.5**0.5) / 2]),
        ("constant", [1 / 2, 1, 1, 1, 1]),
    ],
)
def test_the_shares_of_five_steps_by_hand(schedule, expected):
    assert shares(5, 2, schedule) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (7, 0), (7, 1), (14, 2), (40, 40)])
def test_they_are_transformers_schedule_for_one_step_more_from_its_second_step_on(schedule, steps, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=max(warmup, 1), num_training_steps=steps + 1)
    rates = []
    for _ in range(steps):
        optimizer.step()
        theirs.step()
        rates += theirs.get_last_lr()
    assert shares(steps, warmup, schedule) == pytest.approx(rates)
    assert min(rates) > 0 and max(rates) == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_of_uneven_cost_have_shares_above_0_and_one_that_is_longer_than_the_warm_up_is_whole(schedule):
    done, costs = 0, (30, 10, 50, 5, 20)
    for number, step in enumerate(costs):
        done += step
        share = rate_share(done, 100, step=step, warmup=10, schedule=schedule)
        assert 0 < share <= 1
        assert (share == 1) >= (number == 0)


def methods(output):
    quick = {"epochs": 2, "batch_size": 3, "tuning": "lora"}
    rahf = {"fit_batch_size": 3, "steps": 4, "layers": (1, 2)}
    words = {"good_instruction": "w1 w2", "bad_instruction": "w30"}
    return {
        "dpo": lambda **more: DPO(**quick, **more),
        "fpo": lambda **more: FPO(**quick, sae=output, k=5, **more),
        "kto": lambda **more: KTO(**quick, **more),
        "orpo": lambda **more: ORPO(**quick, **more),
        "rahf_dual": lambda **more: RAHFDual(**quick, **rahf, **more),
        "rahf_scit": lambda **more: RAHFSCIT(**quick, **rahf, **words, **more),
        "sails": lambda **more: SAILS(**quick | {"tuning": "lora"}, saes=(output,), lora_rank=2, **more),
        "sft": lambda **more: SFT(**quick, **more),
        "simpo": lambda **more: SimPO(**quick, **more),
    }


CASES = [*((name, "linear") for name in sorted(methods(None))), ("dpo", "cosine"), ("dpo", "constant")]


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_every_step_of_every_method_has_a_learning_rate(tiny_base, triples, sae_refs, name, schedule):
    base = tiny_base("llama")
    method = methods(sae_refs[1])[name](lr_schedule=schedule, warmup_ratio=0.3)
    meter = Meter(base.model, sample_profile=False)
    with learning_rates() as rates:
        method.fit(base, triples[:6], meter=meter, seed=0)
    assert len(rates) == meter.optimiser_steps
    first = rates[: 8 if name == "rahf_scit" else 4]  # rows are answers there
    warmup = 3 if name == "rahf_scit" else 2
    assert first == pytest.approx([method.learning_rate * s for s in shares(len(first), warmup, schedule)])
    if name == "rahf_dual":
        assert rates[4:8] == first
    if name.startswith("rahf"):
        assert rates[-4:] == [method.fit_learning_rate] * 4


@pytest.mark.parametrize(
    ("accumulation", "schedule"), [(1, "linear"), (1, "constant"), (2, "cosine")], ids=lambda value: str(value)
)
def test_under_a_flop_limit_too(tiny_base, triples, accumulation, schedule):
    base = tiny_base("llama")
    method = DPO(batch_size=3, accumulation=accumulation, lr_schedule=schedule, warmup_ratio=0.5, tuning="lora")
    meter = Meter(base.model, sample_profile=False, flops_limit=5 * 10**8)
    with learning_rates() as rates:
        method.fit(base, triples[:6], meter=meter, seed=0)
    assert len(rates) == meter.optimiser_steps > 3
    top = rates.index(max(rates))
    assert 0 < top < len(rates) - 1 and min(rates) > 0
    assert rates[:top] == sorted(rates[:top])
    assert rates[top] > 0.6 * method.learning_rate
    if schedule == "constant":
        assert set(rates[top:]) == {method.learning_rate}
    else:
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert rates[-1] < 0.5 * method.learning_rate


def test_both_stages_of_rahf_share_a_flop_limit_and_no_step_has_a_rate_of_0(tiny_base, triples, sae_refs):
    base, method = tiny_base("llama"), methods(None)["rahf_dual"]()
    meter = Meter(base.model, sample_profile=False, flops_limit=3 * 10**8)
    with learning_rates() as rates:
        method.fit(base, triples[:6], meter=meter, seed=0)
    assert len(rates) == meter.optimiser_steps > 6
    assert min(rates) > 0


def test_a_flop_limit_of_one_step_takes_it_at_the_whole_rate(tiny_base, triples):
    base, method = tiny_base("llama"), DPO(batch_size=3)
    with learning_rates() as rates:
        method.fit(base, triples[:6], meter=Meter(base.model, sample_profile=False, flops_limit=1), seed=0)
    assert rates == [method.learning_rate]


def test_one_step_changes_the_model(tiny_base, triples):
    base, method = tiny_base("llama"), SFT(tuning="lora", batch_size=24, learning_rate=1e-2)
    meter = Meter(base.model, sample_profile=False)
    fitted = method.fit(base, triples, meter=meter, seed=0)
    assert meter.optimiser_steps == 1
    changed = [tensor.abs().max() for name, tensor in fitted.delta_tensors().items() if "lora_B" in name]
    assert min(changed) > 0
