"""What every trained method shares: options that reach TRL, LoRA beside the base's own weights, the FLOP limit."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from baselines import DPO, SFT
from baselines.metered import Metered
from baselines.training import TrainedMethod, sharing_copy
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.refs import ModelRef
from harness.method import BaseShape
from harness.model.base import base_shape
from tests.unit.trained import PROMPTS

SHAPE = BaseShape("any", n_layers=4, d_model=32)


@pytest.mark.parametrize(
    ("option", "value", "trls"),
    [
        ("epochs", 3, "num_train_epochs"),
        ("learning_rate", 1e-3, "learning_rate"),
        ("lr_schedule", "linear", "lr_scheduler_type"),
        ("warmup_ratio", 0.2, "warmup_steps"),
        ("batch_size", 5, "per_device_train_batch_size"),
        ("accumulation", 3, "gradient_accumulation_steps"),
        ("optimiser", "rmsprop", "optim"),
        ("weight_decay", 0.01, "weight_decay"),
        ("max_grad_norm", 0.5, "max_grad_norm"),
        ("gradient_checkpointing", True, "gradient_checkpointing activation_checkpointing"),  # one by two names
        ("bf16", True, "bf16"),
    ],
)
def test_an_option_sets_its_argument_of_trls_and_no_other(option, value, trls, tmp_path):
    usual, given = (arguments(tmp_path, **options) for options in ({}, {option: value}))
    assert {name: given[name] for name in given if given[name] != usual[name]} == dict.fromkeys(trls.split(), value)


def arguments(folder, **options):
    from trl import SFTConfig

    return SFT(**options).arguments(SFTConfig, str(folder), 7, on_cpu=True, max_length=9).to_dict()


def test_trl_gets_the_seed_and_the_longest_row_and_reports_to_nobody(tmp_path):
    given = arguments(tmp_path)
    assert [given[name] for name in ("seed", "data_seed", "max_length", "report_to")] == [7, 7, 9, []]


@pytest.mark.parametrize(
    "options",
    [{"warmup_ratio": 1.0}, {"epochs": 0}, {"lora_dropout": 1.0}, {"optimiser": "adam"}, {"report_to": "print"}],
)
def test_options_out_of_bounds_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TrainedMethod(**options)


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"dpo: report_to 'trackio' needs the package 'trackio'"):
        DPO(report_to="trackio").check(SHAPE)
    DPO().check(SHAPE)


def test_a_tracker_gets_a_run_for_each_training_and_changes_nothing(tiny_base, triples, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    expected = fitted(tiny_base, triples).fingerprint
    for _ in range(2):
        assert fitted(tiny_base, triples, report_to="wandb").fingerprint == expected
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2


def test_lora_keeps_no_second_copy_of_the_base(tiny_base):
    base = tiny_base("llama")
    policy: Any = DPO(tuning="lora").policy(base, seed=0)
    frozen = {p.data_ptr() for p in policy.parameters() if not p.requires_grad}
    assert frozen == {p.data_ptr() for p in base.model.parameters()}
    assert all(p.requires_grad for p in base.model.parameters())
    full = DPO(tuning="full").policy(base, seed=0)
    assert not {p.data_ptr() for p in full.parameters()} & {p.data_ptr() for p in base.model.parameters()}


def test_a_sharing_copy_keeps_ties_and_its_modules_can_be_replaced(tiny_base):
    model = copy.deepcopy(tiny_base("llama").model)
    model.lm_head.weight = model.get_input_embeddings().weight
    twin: Any = sharing_copy(model)
    assert twin.lm_head.weight is twin.get_input_embeddings().weight
    assert twin.lm_head.weight is not model.lm_head.weight
    twin.lm_head = nn.Identity()
    assert isinstance(model.lm_head, nn.Linear)
    twin.config.pad_token_id = 5
    assert model.config.pad_token_id != 5


def test_only_the_adapters_own_dropout_acts(tiny_base, triples):
    policy: Any = SFT(tuning="lora", lora_dropout=0.3).policy(tiny_base("llama"), seed=0)
    dropouts = {module.p for name, module in policy.named_modules() if isinstance(module, nn.Dropout)}
    assert dropouts == {0.3}
    fingerprints = {fitted(tiny_base, triples, lora_dropout=p).fingerprint for p in (0.0, 0.3)}
    assert len(fingerprints) == 2


def fitted(tiny_base, triples, *, method: type = SFT, limit: int | None = None, **options):
    base = tiny_base("llama")
    meter = Meter(base.model, sample_profile=False, flops_limit=limit)
    defaults = {"tuning": "lora", "learning_rate": 1e-2, "batch_size": 4}
    aligned = method(**(defaults | options)).fit(base, triples[:8], meter=meter, seed=0)
    bill = meter.bill(method="dpo", n_triples=8).model_dump(mode="json")
    return aligned.derive(bill=bill)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_training_attends_as_it_is_told_at_the_predicted_cost_and_the_base_as_before(tiny_base, triples, tuning):
    options = {"tuning": tuning, "optimiser": "sgd", "learning_rate": 0.1}
    fused, plain = (fitted(tiny_base, triples, **options, attention=how) for how in ("sdpa", "eager"))
    for name, tensor in fused.delta_tensors().items():
        torch.testing.assert_close(plain.delta_tensors()[name], tensor, rtol=1e-3, atol=1e-4)
    assert plain.bill["executed_flops"] < fused.bill["executed_flops"], "the fused backward makes its scores again"
    assert {one.model.config._attn_implementation for one in (fused, plain, plain.base)} == {"sdpa"}
    base = tiny_base("llama")
    for found, how in ((fused, "sdpa"), (plain, "eager"), (fused, None)):
        method = SFT(tuning=tuning, batch_size=4, attention=how)
        predicted = method.predict(base, triples[:8], Rates(base.model.config))
        assert found.bill["executed_flops"] == pytest.approx(sum(predicted.values()), rel=0.02)
    assert "attention" not in SFT().model_dump(), "identities of runs without it stay"


def test_attention_without_the_models_soft_cap_is_refused(tiny_folders):
    shapes = [base_shape(ModelRef(path=str(tiny_folders[kind]))) for kind in ("gemma2", "llama")]
    with pytest.raises(ValueError, match=r"sft: attention 'sdpa' would leave out the soft cap .* use 'eager'"):
        SFT(attention="sdpa").check(shapes[0])
    SFT(attention="eager").check(shapes[0])
    SFT(attention="sdpa").check(shapes[1])


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_checkpointing_and_accumulation_change_the_cost_and_not_the_gradients(tiny_base, triples, tuning):
    options = {"tuning": tuning, "optimiser": "sgd", "learning_rate": 0.1}  # Adam makes of rounding errors whole steps
    plain = fitted(tiny_base, triples, **options)
    checkpointed = fitted(tiny_base, triples, **options, gradient_checkpointing=True)
    assert checkpointed.bill["executed_flops"] > 1.1 * plain.bill["executed_flops"]
    halves = fitted(tiny_base, triples, **options, batch_size=2, accumulation=2)
    assert halves.bill["optimiser_steps"] == plain.bill["optimiser_steps"]
    for other in (checkpointed, halves):
        for name, tensor in plain.delta_tensors().items():
            torch.testing.assert_close(other.delta_tensors()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_bf16_leaves_base_and_artifact_in_their_own_type(tiny_base, triples, tuning):
    aligned = fitted(tiny_base, triples, tuning=tuning, bf16=True)
    assert {p.dtype for p in aligned.model.parameters()} == {torch.float32}
    assert not {"forward", "_original_forward"} & (set(vars(aligned.model)) | set(vars(tiny_base("llama").model)))
    aligned.generate(PROMPTS, max_new_tokens=3)


def test_under_a_flop_limit_training_goes_on_until_it_is_reached(tiny_base, triples):
    one_epoch = fitted(tiny_base, triples)
    limit = int(2.6 * one_epoch.bill["executed_flops"])
    aligned = fitted(tiny_base, triples, limit=limit)
    executed, steps = aligned.bill["executed_flops"], aligned.bill["optimiser_steps"]
    assert limit <= executed < limit + 1.5 * one_epoch.bill["executed_flops"] / 2
    assert steps == 6  # of two an epoch
    assert aligned.params["stopped_at"] == {"step": 6, "epoch": 3.0}
    assert aligned.bill["epochs"] == 3.0
    assert "stopped_at" not in one_epoch.params


def test_a_flop_limit_below_an_epoch_ends_it_early(tiny_base, triples):
    aligned = fitted(tiny_base, triples, limit=1, epochs=50)
    assert aligned.params["stopped_at"] == {"step": 1, "epoch": 0.5}


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_an_interrupted_fit_leaves_nothing_and_starts_again(tiny_base, triples, monkeypatch, tuning):
    base = tiny_base("llama")
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    expected = fitted(tiny_base, triples, tuning=tuning).fingerprint
    step, steps = Metered.training_step, []

    def interrupted(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Metered, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fitted(tiny_base, triples, tuning=tuning)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    assert not {"forward", "_original_forward"} & set(vars(base.model))
    assert fitted(tiny_base, triples, tuning=tuning).fingerprint == expected


def test_nothing_is_printed(tiny_base, triples, capfd):
    fitted(tiny_base, triples)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_dropout_that_attention_applies_itself_is_off_too(tiny_base, tuning):
    model: Any = copy.deepcopy(tiny_base("llama").model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    base = tiny_base("llama").derive(model=model)
    policy: Any = SFT(tuning=tuning).policy(base, seed=0).train()
    ids = torch.arange(8, 20)[None]
    assert torch.equal(policy(input_ids=ids).logits, policy(input_ids=ids).logits)
    assert model.model.layers[0].self_attn.attention_dropout == 0.5
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
