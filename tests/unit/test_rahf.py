"""RAHF: whole fits, and what is refused."""

import copy

import pytest
import torch

from baselines import RAHFSCIT, RAHFDual
from baselines.rahf.stage1 import contrastive_rows
from baselines.rahf.stage2 import fit_rows
from harness.compute import Meter, count_flops
from harness.compute.bill import paper_flops
from harness.data.triples import Triple, conversation
from harness.method import BaseShape
from harness.model.aligned import AlignedModel

GOOD, BAD = "w1 w2 w3 w4 w5", "w30"  # of different length
SHAPE = BaseShape(name="tiny", n_layers=4, d_model=32)
WORDS = {"good_instruction": GOOD, "bad_instruction": BAD}
QUICK = {
    "epochs": 1,
    "batch_size": 6,
    "fit_batch_size": 4,
    "learning_rate": 1e-3,
    "fit_learning_rate": 1e-2,
    "steps": 2,
    "layers": (1, 3),
}


def fit(base, triples, method=RAHFSCIT, *, meter: Meter | None = None, seed: int = 0, **options) -> AlignedModel:
    words = WORDS if method is RAHFSCIT else {}
    meter = meter or Meter(base.model, sample_profile=False)
    return method(**(QUICK | words | options)).fit(base, triples, meter=meter, seed=seed)


@pytest.fixture(scope="module")
def few(triples):
    return triples[:6]


@pytest.fixture(scope="module")
def usual(tiny_base, few):
    """(artifact, bill) of a fit with the quick settings, for comparison with others."""
    base = tiny_base()
    meter = Meter(base.model, sample_profile=False)
    return fit(base, few, meter=meter), meter.bill(method="rahf_scit", n_triples=len(few))


def brute_logprob(model, prompt: list[int], answer: list[int]) -> float:
    """P(p) of one unpadded text, a token at a time."""
    logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    values = [float(logprobs[len(prompt) + t - 1, token]) for t, token in enumerate(answer)]
    return sum(values) / len(values)


def brute_activity(model, prompt: list[int], answer: list[int], layers) -> torch.Tensor:
    """h^l at the answer's tokens of one unpadded text, from transformers' own hidden states: [layer pos d_model]."""
    states = model(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states
    return torch.stack([states[layer][0, len(prompt) :] for layer in layers])


# --- whole fits


def tuned(base) -> AlignedModel:
    """What a stage 1 that changes nothing hands on."""
    return base.derive(model=copy.deepcopy(base.model), delta="weights")


def test_the_same_seed_gives_the_same_artifact_another_seed_another_and_the_base_stays(tiny_base, few, usual):
    base, (first, _) = tiny_base(), usual
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    assert first.fingerprint == fit(base, few).fingerprint != fit(base, few, seed=1).fingerprint
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())


def test_two_models_too_give_the_same_artifact_for_the_same_seed(tiny_base, few):
    base = tiny_base()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    assert fit(base, few, RAHFDual).fingerprint == fit(base, few, RAHFDual).fingerprint
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())


def test_the_artifact_needs_no_instruction_and_comes_back_from_disk(usual, tmp_path):
    artifact, _ = usual
    assert artifact.system_prompt is None and artifact.delta == "weights"
    artifact.save(tmp_path / "artifact")
    loaded, prompts = AlignedModel.load(tmp_path / "artifact"), [conversation("w1 w2")]
    assert loaded.fingerprint == artifact.fingerprint
    assert loaded.generate(prompts, max_new_tokens=5) == artifact.generate(prompts, max_new_tokens=5)


def test_the_lora_sits_on_q_and_v_of_the_blocks_before_the_last_target_layer(tiny_base, triples):
    base = tiny_base()
    method = RAHFSCIT(**(QUICK | WORDS | {"layers": (1, 2)}))
    fitted = method.fit_activities(
        base, triples, tuned(base), meter=Meter(base.model), seed=0, instructions=(GOOD, BAD)
    )
    before = base.model.state_dict()
    changed = {name for name, tensor in fitted.model.state_dict().items() if not torch.equal(tensor, before[name])}
    expected = {f"model.layers.{b}.self_attn.{m}.weight" for b in (0, 1) for m in ("q_proj", "v_proj")}
    assert changed == expected


def test_stage_1_widens_the_margin_between_the_instructions_on_its_triples(tiny_base, triples):
    base = tiny_base()
    after = RAHFSCIT(**(QUICK | WORDS | {"epochs": 6, "learning_rate": 5e-3})).fit(
        base, triples, meter=Meter(base.model), seed=0
    )

    def margin(model) -> float:
        rows = contrastive_rows(base, triples[:8], (GOOD, BAD))
        with torch.no_grad():
            return sum(
                brute_logprob(model, row["plus"], row["answer"]) - brute_logprob(model, row["minus"], row["answer"])
                for row in rows
            ) / len(rows)

    assert margin(after.model) > margin(base.model) + 0.3


def test_stage_2_brings_activities_nearer_to_their_targets(tiny_base, triples):
    base, layers = tiny_base(), (1, 3)
    method = RAHFSCIT(**(QUICK | WORDS | {"steps": 30, "lora_rank": 16, "alpha": 2}))
    fitted = method.fit_activities(
        base, triples, tuned(base), meter=Meter(base.model), seed=0, instructions=(GOOD, BAD)
    )
    before, after = 0.0, 0.0
    with torch.no_grad():
        for row in fit_rows(base, triples[:8], (GOOD, BAD)):
            answer, (good, bad) = row["answers"][0], row["contrast"]
            own = brute_activity(base.model, row["prompt"], answer, layers)
            plus, minus = (brute_activity(base.model, prompt, answer, layers) for prompt in (good, bad))
            now = brute_activity(fitted.model, row["prompt"], answer, layers)
            before += float((2 * (plus - minus)).norm(dim=-1).mean())
            after += float((now - own - 2 * (plus - minus)).norm(dim=-1).mean())
    assert after < 0.95 * before


def test_accumulated_forwards_make_the_same_step_as_one(tiny_base, few):
    base, name = tiny_base(), "model.layers.3.mlp.up_proj.weight"  # where stage 2 puts no LoRA
    options = {"optimiser": "sgd", "learning_rate": 0.1, "steps": 1}
    whole = fit(base, few, batch_size=6, **options).model.state_dict()[name]
    parts = fit(base, few, batch_size=3, accumulation=2, **options).model.state_dict()[name]
    assert (whole - base.model.state_dict()[name]).abs().max() > 1e-4
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_checkpointing_changes_the_bill_and_not_the_result(tiny_base, few, usual):
    base, (plain, bill) = tiny_base(), usual
    meter = Meter(base.model, sample_profile=False)
    saved = fit(base, few, meter=meter, gradient_checkpointing=True)
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(saved.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    dearer = meter.bill(method="rahf_scit", n_triples=6).stages
    assert all(more.executed_flops > less.executed_flops for less, more in zip(bill.stages, dearer, strict=True))


@pytest.mark.parametrize("options", [{"tuning": "lora"}, {"bf16": True}, {"mode": "released"}, {"distance": "squared"}])
def test_every_option_has_an_effect_and_trains(tiny_base, few, usual, options):
    fitted = fit(tiny_base(), few, **options)
    assert fitted.fingerprint != usual[0].fingerprint
    assert all(tensor.isfinite().all() for tensor in fitted.model.state_dict().values())


@pytest.mark.parametrize(
    ("method", "options"),
    [(RAHFSCIT, {}), (RAHFSCIT, {"gradient_checkpointing": True}), (RAHFDual, {}), (RAHFDual, {"tuning": "lora"})],
)
def test_the_bill_equals_counting_the_whole_fit(tiny_base, few, method, options):
    base, meter = tiny_base(), Meter(tiny_base().model)
    with count_flops() as counter:
        fit(base, few, method, meter=meter, **options)
    bill = meter.bill(method=method.name, n_triples=6)
    assert [stage.name for stage in bill.stages] == ["stage 1", "stage 2"]
    assert bill.executed_flops == counter.get_total_flops()  # the merges too
    assert (bill.paper_flops == paper_flops("rahf_scit", 6)) == (method is RAHFSCIT)


def test_the_formula_counts_both_instructions_in_stage_1_and_three_passes_besides_in_stage_2(tiny_base, triples):
    """6P a token of both texts; then 6P + 2P a token of the plain text and 2P of both instructed ones."""
    base, meter, n = tiny_base(), Meter(tiny_base().model), 6
    twins = [Triple(t.prompt, t.chosen, " ".join(reversed(t.chosen.split()))) for t in triples[:n]]
    fit(base, twins, meter=meter, fit_batch_size=n, steps=1)
    p, stages = meter.total_params, meter.bill(method="rahf_scit", n_triples=n).stages
    rows = fit_rows(base, twins, (GOOD, BAD))
    instructed = sum(len(prompt) + len(row["answers"][0]) for row in rows for prompt in row["contrast"])
    plain = sum(len(row["prompt"]) + len(row["answers"][0]) for row in rows)
    assert stages[0].formula_flops == 6 * p * 2 * instructed
    assert stages[1].formula_flops == 8 * p * plain + 2 * p * instructed


def test_a_flop_limit_is_split_between_the_stages_and_says_where_each_stopped(tiny_base, few):
    base, limit = tiny_base(), 10**9  # some thirty steps
    meter = Meter(base.model, flops_limit=limit, sample_profile=False)
    fitted = fit(base, few, RAHFDual, meter=meter)
    first, second = meter.bill(method="rahf_dual", n_triples=6).stages
    assert meter.flops_limit == limit
    assert first.executed_flops == pytest.approx(0.824 * limit, rel=0.1)
    assert first.executed_flops + second.executed_flops == pytest.approx(limit, rel=0.05)
    assert meter.exhausted
    assert all(fitted.params["stopped_at"][stage]["step"] > 0 for stage in ("stage 1", "stage 2"))


# --- options


def test_the_defaults_are_the_papers():
    scit, dual = RAHFSCIT(), RAHFDual()
    assert (scit.tuning, scit.learning_rate, scit.warmup_ratio, scit.epochs, scit.batch_size) == (
        "full",
        2e-5,
        0.1,
        2,
        64,
    )
    assert (scit.alpha, scit.distance, scit.fit_learning_rate, scit.fit_batch_size) == (5.0, "plain", 3e-4, 64)
    assert (scit.lora_rank, scit.lora_alpha, scit.lora_dropout) == (8, 16, 0.05)
    assert scit.lora_targets == ["q_proj", "v_proj"]
    assert (scit.mode, scit.smoothing) == ("paper", 0.2)
    assert (dual.learning_rate, dual.lr_schedule, dual.epochs, dual.batch_size) == (2e-5, "cosine", 3, 128)
    assert dual.fit_learning_rate == scit.fit_learning_rate


@pytest.mark.parametrize(
    ("method", "n_layers", "layers"),
    [
        (RAHFSCIT, 32, (10, 12, 14, 16, 18)),
        (RAHFDual, 32, (10, 12, 14, 16, 18, 20)),
        (RAHFSCIT, 4, (1, 2)),
        (RAHFSCIT, 2, (1,)),
    ],
)
def test_without_layers_they_lie_at_the_released_depths(method, n_layers, layers):
    assert method().target_layers(n_layers) == layers


@pytest.mark.parametrize(
    ("n", "options", "steps"),
    [
        (22500, {}, 450),
        (300, {}, 6),
        (300, {"fit_batch_size": 16}, 24),
        (300, {"fit_batch_size": 16, "accumulation": 2}, 12),
        (2, {}, 1),
        (300, {"steps": 9}, 9),
    ],
)
def test_without_steps_there_are_as_many_rows_as_in_two_hundredths_of_a_step_of_64_a_triple(n, options, steps):
    assert RAHFSCIT(**options).optimiser_steps(n) == steps


def test_the_artifact_says_which_layers_and_steps_were_taken(tiny_base, few):
    params = fit(tiny_base(), few, steps=None, layers=None).params
    assert (params["layers"], params["steps"]) == ([1, 2], 2)  # 6 * 0.02 * 64 = 7.7 rows, 4 a step


@pytest.mark.parametrize("layers", [(0, 1), (4,), (2, 2), ()])
def test_layers_that_do_not_fit_the_model_are_refused_before_work(layers):
    with pytest.raises(ValueError, match="allowed are different ones from 1 to 3"):
        RAHFSCIT(layers=layers).check(SHAPE)


def test_a_pattern_of_lora_targets_is_refused_because_layers_could_not_be_chosen():
    with pytest.raises(ValueError, match="must be a list"):
        RAHFDual(lora_targets="all-linear").check(SHAPE)


def test_a_triple_that_fits_only_without_its_instruction_is_refused_before_training(tiny_base, triples):
    base = tiny_base()
    long = Triple(conversation(" ".join(["w1"] * 235)), "w1 w2 w3", "w4")
    meter = Meter(base.model)
    base.triple_ids(long)
    with pytest.raises(ValueError, match="leave it out"):
        fit(base, [*triples, long], meter=meter, good_instruction=" ".join(["w1"] * 20))
    assert meter.executed_flops == 0
