"""FPO: the loss by hand, its means against brute force and the benchmark's own scoring, the training against TRL's."""

import math

import pytest
import torch
from sae_lens import SAE

from baselines.fpo import (
    FPO,
    answer_means,
    collator,
    feature_distance,
    fpo_loss,
    mean_latents,
    measure_reference,
    top_features,
)
from baselines.metered import fused_head
from baselines.rows import preference_rows
from baselines.training import TrainedMethod
from dspa.saes.sae import load_sae
from harness.compute import Meter, count_flops
from harness.compute.rates import Rates
from harness.data.refs import SAERef
from harness.method import METHODS, BaseShape
from harness.model.aligned import AlignedModel
from harness.model.decoder import find_decoder
from tests.conftest import D_MODEL, D_SAE, N_LAYERS, make_sae
from tests.reference.losses import sigmoid_norm_loss
from tests.unit.trained import learning_rates

SHAPE = BaseShape("tiny", n_layers=N_LAYERS, d_model=D_MODEL)
FAST = {"learning_rate": 1e-2, "batch_size": 8, "beta": 5.0, "k": 10}


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def base(request, tiny_base):
    return tiny_base(request.param)


@pytest.fixture(scope="module")
def sae(sae_refs):
    return load_sae(sae_refs[1])


@pytest.fixture(scope="module")
def fpo(sae_refs):
    return lambda **options: FPO(sae=sae_refs[1], **(FAST | options))


def fit(method, base, triples, *, limit=None):
    meter = Meter(base.model, sample_profile=False, flops_limit=limit)
    aligned = method.fit(base, triples, meter=meter, seed=1)
    return aligned, meter


def batch_of(base, triples):
    return collator(base)([{**row, "triple": i} for i, row in enumerate(preference_rows(base, triples))])


def means(base, sae, batch):
    from trl.trainer.utils import add_fused_lm_head

    with fused_head(base.model):
        add_fused_lm_head(base.model)
        return answer_means(base.model, find_decoder(base.model), sae, batch)


def answers_of(base, triples):
    """(prompt ids, answer ids with the end of turn) in TRL's order: all chosen, then all rejected."""
    ids = [base.triple_ids(triple) for triple in triples]
    return [(prompt, [*answers[kind], base.chat.end_id]) for kind in (0, 1) for prompt, *answers in ids]


def test_loss_by_hand():
    chosen, rejected = torch.tensor([0.5, -1.0]), torch.tensor([0.2, 1.0])
    distances = torch.tensor([0.1, 0.0]), torch.tensor([0.7, 2.0])
    loss = fpo_loss(chosen, rejected, *distances, alpha=0.5, beta=2.0)
    arguments = (2.0 * (0.3 - 0.5 * 0.6), 2.0 * (-2.0 - 0.5 * 2.0))
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-x)) for x in arguments], abs=1e-6)


def test_the_chosen_answers_distance_shifts_the_loss_but_has_no_gradient():
    values = [torch.tensor([v], requires_grad=True) for v in (0.3, 0.1, 0.4, 0.9)]
    fpo_loss(*values, alpha=0.5, beta=2.0).sum().backward()
    slope = 2.0 / (1 + math.exp(2.0 * (0.2 - 0.5 * 0.5)))  # beta sigmoid(-x)
    assert values[2].grad is None
    assert [float(v.grad) for v in (values[0], values[1], values[3])] == pytest.approx(
        [-slope, slope, 0.5 * slope], rel=1e-5
    )


def test_without_alpha_it_is_length_normalised_dpo():
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, *distances = torch.randn(4, 6, generator=generator)
    lengths = torch.randint(1, 9, (2, 6), generator=generator)
    ours = fpo_loss(chosen / lengths[0], rejected / lengths[1], *distances, alpha=0.0, beta=0.7)
    assert torch.equal(ours, sigmoid_norm_loss(chosen, rejected, *lengths, beta=0.7))


def test_distance_by_hand_over_the_features_that_the_policy_uses_most():
    policy = torch.tensor([[0.0, 3.0, 1.0, 0.0]])
    reference = torch.tensor([[9.0, 1.0, 1.5, 0.0]])
    assert top_features(policy, 2).tolist() == [[1, 2]]
    assert feature_distance(policy, reference, top_features(policy, 2)).item() == pytest.approx((4 + 0.25) / 2)
    assert feature_distance(policy, reference, top_features(reference, 2)).item() == pytest.approx((81 + 0.25) / 2)


def test_inactive_features_fill_up_the_set_in_their_order():
    assert top_features(torch.tensor([[0.0, 0.0, 2.0, 0.0]]), 3).tolist() == [[2, 0, 1]]


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk"])
def test_gradients_flow_through_the_activations_as_through_saelens(tmp_path, architecture):
    """The in-place arithmetic of dspa.saes.encoder under autograd, against the same mean over SAELens' own encode."""
    folder = make_sae(tmp_path / architecture, 1, seed=5, architecture=architecture)
    ours, theirs = load_sae(SAERef(path=str(folder))), SAE.load_from_disk(folder)
    residual = torch.randn(3, 7, D_MODEL, generator=torch.Generator().manual_seed(2))
    answer = torch.tensor([[False] * a + [True] * (b - a) + [False] * (7 - b) for a, b in ((1, 4), (2, 7), (0, 1))])
    weight = torch.randn(3, D_SAE, generator=torch.Generator().manual_seed(3))
    grads, values = [], []
    for encode in (lambda x: mean_latents(ours, x, answer), lambda x: by_hand(theirs.encode(x), answer)):
        x = residual.clone().requires_grad_(True)
        mean = encode(x)
        (mean**2 * weight).sum().backward()
        values.append(mean.detach())
        grads.append(x.grad)
    assert torch.equal(values[0], mean_latents(ours, residual, answer))
    assert torch.allclose(values[0], ours_by_hand := by_hand(ours.encode(residual), answer), atol=1e-6)
    assert torch.allclose(ours_by_hand, values[1], atol=1e-5)
    assert grads[0].abs().sum() > 0
    assert torch.allclose(grads[0], grads[1], atol=1e-5)
    assert not grads[0][~answer].any()


def by_hand(latents, answer):
    return torch.stack(
        [
            sum(latents[row, pos] for pos in range(answer.shape[1]) if answer[row, pos]) / int(answer[row].sum())
            for row in range(len(answer))
        ]
    )


def test_mean_log_likelihoods_are_those_of_the_benchmarks_divided_by_the_answers_length(base, sae, triples):
    logp, _ = means(base, sae, batch_of(base, triples[:5]))
    requests = answers_of(base, triples[:5])
    scores = base.loglikelihood_tokens(requests)
    expected = [score / len(answer) for (_, answer), (score, _) in zip(requests, scores, strict=True)]
    assert logp.tolist() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_mean_latents_are_those_of_a_pass_over_each_answer_alone(base, sae, triples):
    _, latents = means(base, sae, batch_of(base, triples[:4]))
    for mean, (prompt, answer) in zip(latents, answers_of(base, triples[:4]), strict=True):
        residual = []
        handle = (
            find_decoder(base.model)
            .layers[sae.layer]
            .register_forward_hook(
                lambda _m, _a, out, residual=residual: residual.append(out[0] if isinstance(out, tuple) else out)
            )
        )
        base.model(input_ids=torch.tensor([prompt + answer]))
        handle.remove()
        tokens = [sae.sae.encode(residual[0][0, pos]) for pos in range(len(prompt), len(prompt + answer))]
        assert torch.allclose(mean, sum(tokens) / len(answer), atol=1e-5)


@pytest.mark.parametrize("keep", [None, 6])
def test_the_reference_is_the_bases_means_in_any_batch(base, sae, triples, keep):
    rows, meter = preference_rows(base, triples[:7]), Meter(base.model)
    with meter.stage("reference"):
        reference = measure_reference(base, rows, sae, keep=keep, batch_size=3, bf16=False, meter=meter)
    assert len(reference) == 7
    logp, latents = reference.of(torch.tensor([4, 0, 6]))
    with torch.no_grad():
        own_logp, own_latents = means(base, sae, batch_of(base, [triples[4], triples[0], triples[6]]))
    if keep is not None:
        strongest = top_features(own_latents, keep)
        own_latents = torch.zeros_like(own_latents).scatter(1, strongest, own_latents.gather(1, strongest))
        assert int(reference.latents.counts.max()) <= keep
    assert torch.allclose(logp, own_logp, atol=1e-5)
    assert torch.allclose(latents, own_latents, atol=1e-5)
    (stage,) = meter.bill(method="fpo", n_triples=7).stages
    assert stage.tokens == sum(len(p) + len(a) for p, a in answers_of(base, triples[:7]))


def test_without_alpha_the_training_is_trls_on_sigmoid_norm(tiny_base, triples, fpo):
    base = tiny_base("gemma2")
    options = {"learning_rate": 1.0, "optimiser": "sgd", "batch_size": 8, "beta": 5.0}
    theirs, _ = fit(METHODS["dpo"](loss_type="sigmoid_norm", **options), base, triples)
    ours, _ = fit(fpo(alpha=0.0, **options), base, triples)
    start = base.model.state_dict()
    for name, tensor in theirs.model.state_dict().items():
        assert torch.allclose(ours.model.state_dict()[name], tensor, atol=1e-5), name
    moved = max(float((tensor - start[name]).abs().max()) for name, tensor in theirs.model.state_dict().items())
    assert moved > 1e-2


def test_without_alpha_a_batchs_loss_is_trls(tiny_base, triples, fpo, monkeypatch):
    """Every loss of the training beside what TRL's own compute_loss says of the same model and batch."""
    from trl import DPOTrainer

    losses = []
    train = TrainedMethod.train

    def compare(self, base, trainer_class, *args, **kwargs):
        class Both(trainer_class):
            def compute_loss(self, model, inputs, **options):
                ours = super().compute_loss(model, inputs, **options)
                with torch.no_grad():
                    theirs = DPOTrainer.compute_loss(self, model, {k: v for k, v in inputs.items() if k != "triple"})
                losses.append((float(ours.detach()), float(theirs)))
                return ours

        return train(self, base, Both, *args, **kwargs)

    monkeypatch.setattr(TrainedMethod, "train", compare)
    fit(fpo(alpha=0.0, tuning="lora", epochs=2), tiny_base("llama"), triples)
    assert len(losses) == 6
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1][0] < 0.67
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "tuning", "index_set"), [("llama", "lora", "policy"), ("gemma2", "full", "reference")]
)
def test_a_fit_prefers_the_chosen_comes_back_from_disk_and_repeats(
    tiny_base, triples, fpo, tmp_path, family, tuning, index_set
):
    base = tiny_base(family)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    method = fpo(tuning=tuning, index_set=index_set, epochs=2)
    aligned, meter = fit(method, base, triples)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    assert "forward" not in vars(base.model) and "forward" not in vars(aligned.model)
    assert margin(aligned, triples) > margin(base, triples) + 0.1
    again, _ = fit(method, base, triples)
    aligned.save(tmp_path / "artifact")
    loaded = AlignedModel.load(tmp_path / "artifact")
    assert base.fingerprint != aligned.fingerprint == again.fingerprint == loaded.fingerprint
    assert loaded.method == "fpo" and loaded.params["index_set"] == index_set
    bill = meter.bill(method="fpo", n_triples=len(triples))
    assert [stage.name for stage in bill.stages] == ["reference", "train"]
    assert (bill.optimiser_steps, bill.epochs) == (6, 2.0)


def margin(model, triples):
    requests = answers_of(model, triples)
    per_token = [
        score / len(a) for (_, a), (score, _) in zip(requests, model.loglikelihood_tokens(requests), strict=True)
    ]
    return (sum(per_token[: len(triples)]) - sum(per_token[len(triples) :])) / len(triples)


def test_a_large_alpha_holds_the_rejected_answers_features_in_place(tiny_base, sae, triples, fpo):
    base, batch = tiny_base("gemma2"), batch_of(tiny_base("gemma2"), triples)
    distances = []
    for alpha in (0.0, 20.0):
        aligned, _ = fit(fpo(alpha=alpha, epochs=4), base, triples)
        with torch.no_grad():
            (_, reference), (_, policy) = means(base, sae, batch), means(aligned, sae, batch)
        distances.append(feature_distance(policy, reference, top_features(policy, 10)).chunk(2)[1].mean())
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize(
    ("family", "options"), [("llama", {"tuning": "lora"}), ("gemma2", {}), ("llama", {"gradient_checkpointing": True})]
)
def test_the_bill_equals_a_count_over_the_whole_fit(tiny_base, triples, fpo, family, options):
    base = tiny_base(family)
    _, meter = fit(fpo(**options), base, triples[:17])
    with count_flops() as counter:
        fit(fpo(**options), base, triples[:17])
    bill = meter.bill(method="fpo", n_triples=17)
    assert bill.executed_flops == pytest.approx(counter.get_total_flops(), rel=1e-3)
    tokens = sum(len(p) + len(a) for p, a in answers_of(base, triples[:17]))
    parameters = sum(p.numel() for p in base.model.parameters())
    assert bill.formula_flops == (2 + 6) * parameters * tokens


def test_the_predicted_bill_is_exact_for_the_reference_and_near_for_the_training(tiny_base, triples, fpo):
    base = tiny_base("gemma2")
    method = fpo(tuning="lora")
    _, meter = fit(method, base, triples[:17])
    predicted = method.predict(base, triples[:17], Rates(base.model.config))
    reference, train = meter.bill(method="fpo", n_triples=17).stages
    assert predicted["reference"] == reference.executed_flops
    assert predicted["train"] == pytest.approx(train.executed_flops, rel=0.05)


def test_gradient_checkpointing_changes_nothing_but_the_bill(tiny_base, triples, fpo):
    plain, once = fit(fpo(tuning="lora", alpha=5.0), tiny_base(), triples)
    checkpointed, twice = fit(fpo(tuning="lora", alpha=5.0, gradient_checkpointing=True), tiny_base(), triples)
    for name, tensor in plain.delta_tensors().items():
        assert torch.allclose(checkpointed.delta_tensors()[name], tensor, atol=1e-4), name
    assert twice.executed_flops > once.executed_flops


def test_in_bf16_the_reference_has_the_policys_precision_and_the_sae_has_fp32(tiny_base, triples, fpo):
    aligned, _ = fit(fpo(bf16=True, tuning="lora", epochs=3), tiny_base("llama"), triples)
    assert margin(aligned, triples) > margin(tiny_base("llama"), triples) + 0.05


def test_under_a_flop_limit_a_quarter_goes_to_the_reference_and_training_uses_what_it_reached(tiny_base, triples, fpo):
    base = tiny_base("gemma2")
    _, whole = fit(fpo(batch_size=4), base, triples)
    limit = whole.executed_flops // 2
    aligned, meter = fit(fpo(batch_size=4), base, triples, limit=limit)
    reference, train = meter.bill(method="fpo", n_triples=24).stages
    assert limit / 4 <= reference.executed_flops < limit / 2.5
    assert limit <= meter.executed_flops < 1.2 * limit
    used = aligned.params["triples_used"]
    assert used % 4 == 0 and 8 <= used <= 16
    assert meter.epochs == pytest.approx(aligned.params["stopped_at"]["epoch"] * used / 24)
    ids = [base.triple_ids(triple) for triple in triples[:used]]
    assert reference.tokens == sum(2 * len(p) + len(c) + len(r) + 2 for p, c, r in ids)
    assert train.tokens > 0


def test_warm_up_is_a_share_of_the_training_and_no_longer_than_the_papers_steps(tiny_base, triples, fpo):
    for options, shares in (({}, [1 / 3, 2 / 3, 1]), ({"warmup_steps": 2}, [1 / 2, 1, 4 / 5])):
        method = fpo(epochs=2, tuning="lora", warmup_ratio=0.5, **options)
        with learning_rates() as rates:
            fit(method, tiny_base("llama"), triples)
        assert len(rates) == 6
        assert rates[:3] == pytest.approx([share * method.learning_rate for share in shares])


def test_defaults_are_the_papers(sae_refs):
    method = FPO(sae=sae_refs[1])
    assert (method.alpha, method.beta, method.k, method.learning_rate) == (0.5, 0.1, 50, 5e-7)
    assert (method.warmup_steps, method.index_set, method.weight_decay) == (150, "policy", 0.0)


def test_an_sae_that_does_not_fit_or_has_too_few_features_is_refused_before_work(fpo, sae_refs, tmp_path):
    fpo().check(SHAPE)
    with pytest.raises(ValueError, match="made for d_model 32, but base wide has d_model 64"):
        fpo().check(BaseShape("wide", n_layers=N_LAYERS, d_model=64))
    with pytest.raises(ValueError, match=r"layer 2 is outside base shallow"):
        fpo().check(BaseShape("shallow", n_layers=2, d_model=D_MODEL))
    with pytest.raises(ValueError, match=r"k is 49, but SAE .* has 48 features; give at most 48"):
        fpo(k=49).check(SHAPE)
    with pytest.raises(ValueError, match="report_to 'trackio'"):
        fpo(report_to="trackio").check(SHAPE)
    for wrong in ({"k": 0}, {"alpha": -0.1}, {"beta": 0.0}, {"index_set": "both"}, {"layers": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            fpo(**wrong)
