"""The meter against FlopCounterMode over the whole run, hand counts, and its own promises."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

import harness.compute.meter
from harness.compute import Meter, count_flops, signature_of
from harness.compute.bill import Bill

LENGTHS = [(2, 7), (1, 12), (2, 7), (2, 7), (3, 5), (1, 12)]
SHAPE: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
}


def attending(implementation: str, model: Any) -> Any:
    model.set_attn_implementation(implementation)
    return model


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return attending("sdpa", LlamaForCausalLM(LlamaConfig(**SHAPE)))


def gemma2() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(**SHAPE, query_pre_attn_scalar=4, sliding_window=4)
    return attending("eager", Gemma2ForCausalLM(config))


def lora() -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def checkpointed() -> LlamaForCausalLM:
    model = llama()
    model.activation_checkpointing_enable()
    return model.train()


def batches() -> list[dict[str, torch.Tensor]]:
    """Batches of several shapes; the first row of each starts with padding."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for shape in LENGTHS:
        mask = torch.ones(shape, dtype=torch.long)
        mask[0, 0] = 0
        made.append({"input_ids": torch.randint(0, 31, shape, generator=generator), "attention_mask": mask})
    return made


def forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        model(**batch)


def inference(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    with torch.inference_mode():
        model(**batch)


def train(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    model(**batch, labels=batch["input_ids"]).loss.backward()


def metered(model: torch.nn.Module, step: Callable[..., None], kind: Any, **options: Any) -> Bill:
    meter = Meter(model, **options)
    with meter.stage("only"):
        for batch in batches():
            with meter.step(signature_of(batch), tokens=batch["input_ids"].numel(), kind=kind):
                step(model, batch)
    return meter.bill(method="any", n_triples=1)


def counted_throughout(model: torch.nn.Module, step: Callable[..., None]) -> int:
    with count_flops() as counter:
        for batch in batches():
            step(model, batch)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("make", "step", "kind"),
    [
        pytest.param(llama, forward, "forward", id="forward, sdpa"),
        pytest.param(llama, inference, "forward", id="forward in inference mode, sdpa"),
        pytest.param(gemma2, forward, "forward", id="forward, Gemma-2 eager"),
        pytest.param(llama, train, "train", id="full training, sdpa"),
        pytest.param(gemma2, train, "train", id="full training, Gemma-2 eager"),
        pytest.param(lora, train, "train", id="LoRA"),
        pytest.param(checkpointed, train, "train", id="gradient checkpointing"),
    ],
)
def test_metered_total_equals_counting_the_whole_run(make: Any, step: Any, kind: Any) -> None:
    bill = metered(make(), step, kind)
    assert bill.executed_flops == counted_throughout(make(), step) > 0
    assert bill.stages[0].sampled_steps == 1


def test_sdpa_and_eager_attention_cost_the_same_forward() -> None:
    """Eager attention is plain matrix products, which torch's own counter sees without our formulas."""
    fused, eager = llama(), attending("eager", llama())
    with FlopCounterMode(display=False) as counter:
        for batch in batches():
            forward(eager, batch)
    assert metered(fused, forward, "forward").executed_flops == counter.get_total_flops()


def test_sdpa_backward_costs_one_product_more_than_eager() -> None:
    """Fused attention recomputes the scores: 2 * heads * q * k * head_dim a layer."""
    fused, eager = llama(), attending("eager", llama())
    recomputed = sum(2 * 2 * b * 4 * s * s * 4 for b, s in LENGTHS)
    assert counted_throughout(fused, train) == counted_throughout(eager, train) + recomputed


def test_forward_equals_the_count_by_hand() -> None:
    model = llama()
    per_token = 0
    for _ in range(2):
        per_token += 2 * (16 * 16 + 2 * 16 * 8 + 16 * 16)  # q; k and v; o
        per_token += 2 * 3 * 16 * 24  # gate, up, down
    per_token += 2 * 16 * 31  # head
    attention = 2 * 2 * 2 * 4 * 4  # layers, multiply-add, scores and mix, heads, head_dim; times q * k
    by_hand = sum(b * s * per_token + b * s * s * attention for b, s in LENGTHS)
    assert metered(model, forward, "forward").executed_flops == by_hand


def test_linear_layer_trains_at_three_times_its_forward_and_frozen_weights_save_one() -> None:
    x = torch.randn(5, 7, requires_grad=True)
    layer = torch.nn.Linear(7, 3)
    meter = Meter(layer)
    with meter.stage("free"), meter.step("x", tokens=5, kind="train"):
        layer(x).sum().backward()
    layer.requires_grad_(False)
    with meter.stage("frozen"), meter.step("x", tokens=5, kind="train"):
        layer(x).sum().backward()
    free, frozen = meter.bill(method="any", n_triples=1).stages
    product = 2 * 5 * 7 * 3
    assert (free.executed_flops, frozen.executed_flops) == (3 * product, 2 * product)


def test_in_place_products_are_counted() -> None:
    """As in the backward of TRL's fused LM head; torch's own counter sees nothing there."""
    total, batched = torch.zeros(3, 5), torch.zeros(2, 3, 5)
    with count_flops() as ours, FlopCounterMode(display=False) as torchs:
        total.addmm_(torch.ones(3, 4), torch.ones(4, 5))
        batched.baddbmm_(torch.ones(2, 3, 4), torch.ones(2, 4, 5))
    assert ours.get_total_flops() == 2 * 3 * 4 * 5 * (1 + 2)
    assert torchs.get_total_flops() == 0


@pytest.fixture
def countings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every step that is counted."""
    seen: list[int] = []

    @contextmanager
    def counting() -> Iterator[FlopCounterMode]:
        with count_flops() as counter:
            yield counter
        seen.append(counter.get_total_flops())

    monkeypatch.setattr(harness.compute.meter, "count_flops", counting)
    return seen


def test_each_shape_is_counted_once_a_stage(countings: list[int]) -> None:
    model, meter = llama(), Meter()
    for stage in ("first", "second", "first"):
        with meter.stage(stage):
            for batch in batches():
                with meter.step(signature_of(batch), tokens=1, kind="forward"):
                    forward(model, batch)
    assert len(countings) == 2 * len(set(LENGTHS))


def test_forward_and_training_on_the_same_shape_are_different_steps(countings: list[int]) -> None:
    model, meter = llama(), Meter()
    batch = batches()[0]
    with meter.stage("only"):
        with meter.step(signature_of(batch), tokens=1, kind="forward"):
            forward(model, batch)
        with meter.step(signature_of(batch), tokens=1, kind="train"):
            train(model, batch)
    assert countings[1] > 2 * countings[0] > 0


def test_signature_is_names_and_shapes_and_the_given_state() -> None:
    batch = {"input_ids": torch.zeros(2, 3), "note": "text"}
    assert signature_of(batch) == signature_of({**batch, "note": "other"})
    assert signature_of(batch) == signature_of({"input_ids": torch.ones(2, 3, dtype=torch.long)})
    assert signature_of(batch) != signature_of({"input_ids": torch.zeros(3, 2)})
    assert signature_of(batch) != signature_of({"labels": torch.zeros(2, 3)})
    assert signature_of(batch, "adapter on") != signature_of(batch, "adapter off")


def test_stages_get_what_ran_in_them() -> None:
    model = llama()
    meter = Meter(model)
    with meter.running():
        for stage, runs in (("features", 1), ("train", 2), ("features", 3)):
            with meter.stage(stage):
                for _ in range(runs):
                    with meter.step("s", tokens=10, kind="train" if stage == "train" else "forward"):
                        (train if stage == "train" else forward)(model, batches()[0])
    bill = meter.bill(method="dspa", n_triples=2)
    features, training = bill.stages
    n_params = model.num_parameters()
    assert (features.name, features.steps, features.tokens) == ("features", 4, 40)
    assert (training.name, training.steps, training.tokens) == ("train", 2, 20)
    assert features.formula_flops == 2 * n_params * 40
    assert training.formula_flops == 6 * n_params * 20
    assert bill.formula_flops == features.formula_flops + training.formula_flops
    assert bill.executed_flops == features.executed_flops + training.executed_flops
    assert (bill.tokens, bill.total_params, bill.paper_flops) == (60, n_params, 1.6e14)
    assert bill.seconds >= features.seconds + training.seconds > 0
    assert bill.peak_bytes >= max(features.peak_bytes, training.peak_bytes) > 0


def test_reference_tokens_of_a_training_step_are_forward_only() -> None:
    model = torch.nn.Linear(4, 4, bias=False)
    meter = Meter(model)
    with meter.stage("train"), meter.step("s", tokens=10, kind="train", reference_tokens=7):
        pass
    bill = meter.bill(method="any", n_triples=1)
    assert (bill.formula_flops, bill.tokens) == (16 * (6 * 10 + 2 * 7), 17)


def test_profiling_can_be_switched_off_without_changing_the_totals() -> None:
    on, off = metered(llama(), forward, "forward"), metered(llama(), forward, "forward", sample_profile=False)
    assert off.operators == []
    assert off.metering_seconds == 0
    assert off.executed_flops == on.executed_flops


def test_bill_survives_json() -> None:
    bill = metered(llama(), train, "train")
    assert Bill.model_validate_json(bill.model_dump_json()) == bill
    assert bill.paper_flops is None


def failing_step(meter: Meter, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    with meter.step("s", tokens=5, kind="forward"):
        forward(model, batch)
        raise ZeroDivisionError


@pytest.mark.parametrize("repetition", [0, 1, 2], ids=["counted", "profiled", "from the table"])
def test_a_step_that_raises_is_not_billed_and_the_meter_goes_on(repetition: int) -> None:
    model, batch, meter = llama(), batches()[0], Meter(llama())
    with meter.stage("only"):
        for number in range(4):
            if number == repetition:
                with pytest.raises(ZeroDivisionError):
                    failing_step(meter, model, batch)
            with meter.step("s", tokens=5, kind="forward"):
                forward(model, batch)
    stage = meter.bill(method="any", n_triples=1).stages[0]
    with count_flops() as counter:
        forward(model, batch)
    assert (stage.steps, stage.tokens, stage.sampled_steps) == (4, 20, 1)
    assert stage.executed_flops == 4 * counter.get_total_flops()


def test_a_stage_that_raises_is_left_and_the_meter_goes_on() -> None:
    model, batch = llama(), batches()[0]
    meter = Meter(model)
    with pytest.raises(ZeroDivisionError), meter.running(), meter.stage("first"):
        failing_step(meter, model, batch)
    with meter.stage("second"):
        pass
    assert [(s.name, s.steps) for s in meter.bill(method="any", n_triples=1).stages] == [("first", 0), ("second", 0)]


def test_nested_stages_are_refused() -> None:
    meter = Meter()
    with meter.stage("outer"), pytest.raises(ValueError, match=r"'inner' inside stage 'outer'"):
        meter.stage("inner").__enter__()


def test_nested_steps_are_refused() -> None:
    meter = Meter()
    inner = meter.step("t", tokens=1, kind="forward")
    with meter.stage("only"), meter.step("s", tokens=1, kind="forward"), pytest.raises(ValueError, match="twice"):
        inner.__enter__()


def test_running_twice_at_once_is_refused() -> None:
    meter = Meter()
    with meter.running(), pytest.raises(ValueError, match="already running"):
        meter.running().__enter__()


def test_a_step_outside_a_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="outside a stage"):
        Meter().step("s", tokens=1, kind="forward").__enter__()


def test_negative_tokens_are_refused() -> None:
    meter = Meter()
    with meter.stage("only"), pytest.raises(ValueError, match="0 or more"):
        meter.step("s", tokens=-1, kind="forward").__enter__()


def test_no_bill_before_during_or_without_what_it_needs() -> None:
    meter = Meter(llama())
    with pytest.raises(ValueError, match="nothing was metered"):
        meter.bill(method="any", n_triples=1)
    with meter.running(), pytest.raises(ValueError, match="not final"):
        meter.bill(method="any", n_triples=1)
    nameless = Meter()
    with nameless.stage("only"):
        pass
    with pytest.raises(ValueError, match=r"Meter\(model\)"):
        nameless.bill(method="any", n_triples=1)


def test_a_limit_is_reached_with_the_step_that_fills_it() -> None:
    layer, x = torch.nn.Linear(7, 3), torch.randn(5, 7)
    product = 2 * 5 * 7 * 3
    meter = Meter(layer, flops_limit=2 * product)
    states = []
    with meter.stage("a"):
        for _ in range(3):
            states.append(meter.exhausted)
            with meter.step("x", tokens=5, kind="forward"), torch.no_grad():
                layer(x)
    assert states == [False, False, True]
    assert meter.executed_flops == 3 * product
    bill = meter.bill(method="any", n_triples=1, predicted={"a": 1})
    assert (bill.flops_limit, bill.epochs, bill.predicted) == (2 * product, None, {"a": 1})
    assert not Meter(layer).exhausted
    with pytest.raises(ValueError, match="at least 1"):
        Meter(layer, flops_limit=0)


def test_what_the_meter_keeps_does_not_grow_with_the_steps() -> None:
    """Python objects and bytes after 50 and after 550 steps, the counted and the profiled step being over."""
    import gc
    import tracemalloc

    model, batch, meter = torch.nn.Linear(4, 4), torch.ones(2, 4), Meter()

    def steps(n: int) -> tuple[int, int]:
        for _ in range(n):
            with meter.step("s", tokens=8, kind="train"):
                model(batch).sum().backward()
        gc.collect()
        return len(gc.get_objects()), tracemalloc.get_traced_memory()[0]

    with meter.stage("train"):
        steps(20)
        tracemalloc.start()
        try:
            objects, size = steps(50)
            later_objects, later_size = steps(500)
        finally:
            tracemalloc.stop()
    assert later_objects - objects < 50
    assert later_size - size < 20_000
