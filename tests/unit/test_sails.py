"""sails: its subspace against brute force in numpy, a start that changes nothing, and controls that differ in it."""

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from sae_lens import SAE
from transformers import AutoModelForCausalLM, Gemma2Config

from baselines import SAILS, SFT
from baselines.sails import activation_differences, nearest, orthonormal_basis, principal_directions
from dspa.saes.sae import load_sae
from harness.compute import Meter, count_flops
from harness.compute.rates import Rates
from harness.data.refs import SAERef
from harness.data.triples import Triple, conversation
from harness.method import BaseShape
from harness.model.aligned import AlignedModel
from harness.model.decoder import find_decoder
from tests.conftest import D_MODEL, D_SAE, N_LAYERS, make_sae
from tests.unit.trained import answer_loglikelihoods, fit_checked

SHAPE = BaseShape("tiny", n_layers=N_LAYERS, d_model=D_MODEL)
INITS = ("sae", "plain", "random")


@pytest.fixture(scope="module")
def sails(sae_refs):
    """SAEs of layers 1 and 2."""
    options = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 4, "k": 12, "lora_rank": 6, "features_batch_size": 3}
    return lambda **changes: SAILS(**({"saes": sae_refs} | options | changes))


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def base(request, tiny_base):
    return tiny_base(request.param)


def fit(method, base, triples, *, limit=None, seed=0):
    meter = Meter(base.model, sample_profile=False, flops_limit=limit)
    return method.fit(base, triples, meter=meter, seed=seed), meter


def features_of(base, triples, saes, **options):
    meter = Meter(base.model, **options)
    with meter.stage("features"):
        return *activation_differences(base, triples, saes, meter=meter, batch_size=3), meter


def started(method, base, triples, monkeypatch, seed=0):
    """The adapter as it is handed to the training, which is left out."""
    seen = []

    def train(self, base, *_, policy, **__):
        seen.append(policy)
        return base

    monkeypatch.setattr(SAILS, "train", train)
    fit(method, base, triples, seed=seed)
    return seen[0]


def lora_weights(model):
    """{(layer, module): (A, B)}."""
    found = {}
    for layer, block in enumerate(find_decoder(model).layers):
        for name, module in block.named_modules():
            if isinstance(module, LoraLayer):
                key = layer, name.rpartition(".")[2]
                found[key] = (module.lora_A["default"].weight.detach(), module.lora_B["default"].weight.detach())
    return found


def logits(model, base, triples):
    ids = [prompt + chosen for prompt, chosen, _ in map(base.triple_ids, triples)]
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits for row in ids]


# --- the subspace ---


@torch.no_grad()
def test_scores_are_differences_of_mean_activations_over_answer_tokens_passed_one_by_one(base, sae_refs, triples):
    some = triples[:7]
    scores, n, _ = features_of(base, some, [load_sae(ref) for ref in sae_refs])
    assert n == 7 and sorted(scores) == [1, 2]
    for ref in sae_refs:
        sae, layer = SAE.load_from_disk(ref.path), load_sae(ref).layer
        latents = ([], [])
        for triple in some:
            prompt, *answers = base.triple_ids(triple)
            for kind, answer in enumerate(answers):
                states = base.model(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states
                latents[kind].extend(sae.encode(states[layer + 1][0, len(prompt) :]).numpy())
        expected = np.abs(np.mean(latents[0], axis=0) - np.mean(latents[1], axis=0))
        assert scores[layer].numpy() == pytest.approx(expected, abs=1e-5)
        assert expected.max() > 0.05


def test_principal_directions_are_those_of_the_covariance_of_the_top_features_decoder_rows():
    draw = np.random.default_rng(0)
    decoder = draw.normal(size=(30, 8)) * np.array([5, 3, 2, 1, 1, 0.5, 0.2, 0.1])
    scores = draw.random(30)
    found = principal_directions(torch.tensor(decoder), torch.tensor(scores), k=10, variance=0.8).numpy()
    rows = decoder[np.argsort(-scores)[:10]]
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    values, vectors = values[::-1], vectors[:, ::-1]
    n = len(found)
    assert 1 < n < 8
    assert values[: n - 1].sum() / values.sum() < 0.8 <= values[:n].sum() / values.sum()
    for direction, expected in zip(found, vectors.T, strict=False):
        assert abs(direction @ expected) == pytest.approx(1, abs=1e-9)


def test_more_variance_takes_more_directions_up_to_all():
    decoder, scores = torch.eye(8), torch.arange(1.0, 9)
    # Four orthogonal rows: their centred ones span three dimensions with equal variance.
    counts = [len(principal_directions(decoder, scores, k=4, variance=v)) for v in (0.3, 0.6, 0.9)]
    assert counts == [1, 2, 3]


def test_features_without_a_difference_are_not_taken_and_two_are_needed():
    decoder, scores = torch.eye(4), torch.tensor([0.0, 2.0, 0.0, 1.0])
    (direction,) = principal_directions(decoder, scores, k=4, variance=0.99)
    assert direction.abs().tolist() == pytest.approx([0, 0.5**0.5, 0, 0.5**0.5])
    with pytest.raises(ValueError, match="1 SAE features differ between chosen and rejected answers, too few"):
        principal_directions(decoder, torch.tensor([0.0, 2.0, 0.0, 0.0]), k=4, variance=0.99)


@pytest.mark.parametrize("n", [0, 3, 6, 9])
def test_a_basis_is_orthonormal_and_spans_the_leading_directions(n):
    draw = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(12, 9, generator=draw, dtype=torch.float64)).Q.T[:n]
    basis = orthonormal_basis(directions, 6, draw).double()
    assert basis.shape == (12, 6)
    assert torch.allclose(basis.T @ basis, torch.eye(6, dtype=torch.float64), atol=1e-6)
    kept = directions[:6].T
    assert torch.allclose(basis @ (basis.T @ kept), kept, atol=1e-6)
    leading = basis[:, : min(n, 6)]
    assert torch.allclose(kept @ (kept.T @ leading), leading, atol=1e-6)  # spans equal: each is within the other


def test_the_nearest_of_two_is_the_earlier():
    assert [nearest((5, 10, 15), layer) for layer in (0, 7, 8, 12, 13, 25)] == [5, 5, 10, 10, 15, 15]
    assert nearest((4, 2), 3) == 2


# --- the start ---


def test_readers_start_with_the_basis_of_the_nearest_sae_in_a_and_writers_in_b(
    sails, tiny_base, sae_refs, triples, monkeypatch
):
    base = tiny_base("gemma2")
    method = sails(lora_targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"])
    weights = lora_weights(started(method, base, triples, monkeypatch))
    assert len(weights) == 6 * N_LAYERS
    saes = [load_sae(ref) for ref in sae_refs]
    scores, _, _ = features_of(base, triples, saes)
    spans = {
        sae.layer: principal_directions(sae.encoder.decoder, scores[sae.layer], k=12, variance=0.8).float()
        for sae in saes
    }
    for (layer, module), (a, b) in weights.items():
        basis, zero = (b, a) if module in ("o_proj", "down_proj") else (a.T, b)
        assert basis.shape == (D_MODEL, 6) and not zero.any()
        assert torch.allclose(basis.T @ basis, torch.eye(6), atol=1e-5)
        span = spans[1 if layer <= 1 else 2][:6]
        assert len(span) > 2
        assert torch.allclose(span @ basis @ basis.T, span, atol=1e-4), (layer, module)


@pytest.mark.parametrize("init", INITS)
def test_the_start_is_the_base_bit_for_bit(sails, base, triples, monkeypatch, init):
    model = started(sails(init=init), base, triples, monkeypatch)
    for ours, theirs in zip(logits(model, base, triples[:3]), logits(base.model, base, triples[:3]), strict=True):
        assert torch.equal(ours, theirs)


def test_few_directions_are_filled_up_by_the_seed_alone(sails, tiny_base, triples, monkeypatch):
    base = tiny_base("llama")
    aligned, _ = fit(sails(variance=0.3), base, triples[:6])
    n = aligned.params["sae_directions"]["1"]
    assert 1 <= n < 6
    first, other = (lora_weights(started(sails(variance=0.3), base, triples[:6], monkeypatch, seed=s)) for s in (0, 1))
    (a, _), (b, _) = first[0, "q_proj"], other[0, "q_proj"]
    assert torch.equal(a[:n], b[:n])
    assert not torch.allclose(a[n:], b[n:], atol=0.1)


def test_the_random_control_has_a_basis_of_its_own_for_each_sae(sails, tiny_base, triples, monkeypatch):
    weights = lora_weights(started(sails(init="random"), tiny_base("llama"), triples, monkeypatch))
    bases = {layer: weights[layer, "q_proj"][0] for layer in range(N_LAYERS)}
    assert torch.equal(bases[0], bases[1]) and torch.equal(bases[2], bases[3])
    assert not torch.allclose(bases[1], bases[2], atol=0.1)
    assert torch.allclose(bases[1] @ bases[1].T, torch.eye(6), atol=1e-5)


# --- the training ---


def test_a_control_is_trained_as_any_method_is(sails, tiny_base, triples, tmp_path):
    method = sails(init="random", epochs=1)
    aligned, bill = fit_checked(method, tiny_base("gemma2"), triples[:8], tmp_path / "artifact")
    assert [stage.name for stage in bill.stages] == ["train"]
    assert aligned.params["init"] == "random"


def test_the_plain_control_is_sft_with_a_lora(sails, tiny_base, triples):
    base, method = tiny_base("llama"), sails(init="plain", optimiser="sgd", learning_rate=1.0, batch_size=8)
    ours, _ = fit(method, base, triples[:8])
    theirs, _ = fit(SFT(**method.model_dump(include=set(SFT.model_fields))), base, triples[:8])
    for name, tensor in theirs.delta_tensors().items():
        assert torch.allclose(ours.delta_tensors()[name], tensor, atol=1e-6), name  # rows of a batch in another order
        assert tensor.any()


def test_controls_differ_in_the_start_alone(sails, tiny_base, triples):
    """Same modules, same sizes, same batches in the same order."""
    base, seen = tiny_base("llama"), {}
    for init in INITS:
        aligned, meter = fit(sails(init=init, learning_rate=1e-30, epochs=1, batch_size=8), base, triples[:8])
        bill = meter.bill(method="sails", n_triples=8)
        (train,) = [stage for stage in bill.stages if stage.name == "train"]
        shapes = {name: tensor.shape for name, tensor in aligned.delta_tensors().items()}
        config = aligned.model.peft_config["default"].to_dict()
        seen[init] = (shapes, config, train.executed_flops, train.tokens, bill.train_params, bill.optimiser_steps)
    assert seen["sae"] == seen["plain"] == seen["random"]


def test_a_fit_makes_the_chosen_likelier_leaves_the_base_comes_back_and_repeats(sails, tiny_base, triples, tmp_path):
    base, some = tiny_base("gemma2"), triples[:8]
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    aligned, meter = fit(sails(), base, some)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    assert not {"forward", "_original_forward"} & (set(vars(base.model)) | set(vars(aligned.model)))
    assert sum(answer_loglikelihoods(aligned, some)[0]) > sum(answer_loglikelihoods(base, some)[0]) + len(some)

    again, _ = fit(sails(), base, some)
    other, _ = fit(sails(), base, some, seed=1)
    aligned.save(tmp_path / "artifact")
    loaded = AlignedModel.load(tmp_path / "artifact")
    assert base.fingerprint != aligned.fingerprint == again.fingerprint == loaded.fingerprint != other.fingerprint
    assert loaded.params["features_triples"] == 8 and set(loaded.params["sae_directions"]) == {"1", "2"}

    bill = meter.bill(method="sails", n_triples=8)
    assert [stage.name for stage in bill.stages] == ["features", "train"]
    assert (bill.optimiser_steps, bill.epochs) == (4, 2)


def test_every_matrix_is_trained(sails, tiny_base, triples, monkeypatch):
    base = tiny_base("gemma2")
    aligned, _ = fit(sails(), base, triples[:8])
    after = lora_weights(aligned.model)
    start = lora_weights(started(sails(), base, triples[:8], monkeypatch))
    for key, matrices in start.items():
        for matrix, trained in zip(matrices, after[key], strict=True):
            assert not torch.equal(matrix, trained), key


@pytest.mark.parametrize(("family", "options"), [("gemma2", {}), ("llama", {"gradient_checkpointing": True})])
def test_the_bill_equals_a_count_over_the_whole_fit(sails, tiny_base, triples, family, options):
    base, method = tiny_base(family), sails(epochs=1, **options)
    _, meter = fit(method, base, triples[:6])
    with count_flops() as counter:
        fit(method, base, triples[:6])
    assert meter.executed_flops == counter.get_total_flops() > 0


def test_features_are_predicted_exactly_training_nearly_and_controls_without_features(sails, tiny_base, triples):
    base, some = tiny_base("llama"), triples[:10]
    rates = Rates(base.model.config)
    predicted = {init: sails(init=init, epochs=1).predict(base, some, rates) for init in INITS}
    _, meter = fit(sails(epochs=1), base, some)
    executed = {stage.name: stage.executed_flops for stage in meter.bill(method="sails", n_triples=10).stages}
    assert predicted["sae"]["features"] == executed["features"]
    assert predicted["sae"]["train"] == pytest.approx(executed["train"], rel=0.1)  # the trainer draws other batches
    assert predicted["random"] == predicted["plain"] == {"train": predicted["sae"]["train"]}


def test_under_a_flop_limit_a_quarter_goes_to_the_features(sails, tiny_base, triples):
    base = tiny_base("gemma2")
    _, whole = fit(sails(epochs=1), base, triples)
    limit = whole.executed_flops // 2
    aligned, meter = fit(sails(epochs=1), base, triples, limit=limit)
    features, train = meter.bill(method="sails", n_triples=24).stages
    assert limit / 4 <= features.executed_flops < limit / 2
    assert limit <= meter.executed_flops < 1.2 * limit
    assert aligned.params["stopped_at"]["step"] == train.steps
    measured = aligned.params["features_triples"]
    assert measured % 3 == 0 and 0 < measured < 24
    ids = [base.triple_ids(triple) for triple in triples[:measured]]
    assert features.tokens == sum(len(part) for parts in ids for part in parts)


def test_on_gemma_2_2b_the_default_trains_0_244_percent_and_on_9b_0_193():
    sizes = {
        "2b": {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8},
        "9b": {"hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16},
    }
    kv = {"2b": 4, "9b": 8}
    method = SAILS(saes=(SAERef(path="none"),))
    from peft import LoraConfig, get_peft_model

    for name, expected in (("2b", 0.2444), ("9b", 0.1936)):
        config = Gemma2Config(**sizes[name], num_key_value_heads=kv[name], head_dim=256, vocab_size=256000)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
            total = sum(p.numel() for p in model.parameters())
            lora = LoraConfig(r=method.lora_rank, target_modules=method.lora_targets, task_type="CAUSAL_LM")
            tuned = get_peft_model(model, lora)
        share = sum(p.numel() for p in tuned.parameters() if p.requires_grad) / total
        assert 100 * share == pytest.approx(expected, abs=5e-5)


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": D_MODEL + 1}, "has only 32 orthogonal directions"),
        ({"k": D_SAE + 1}, "k is 49, but SAE .* has 48 features"),
        ({"lora_targets": "all-linear"}, "must be a list of modules next to the residual stream: q_proj"),
        ({"lora_targets": ["q_proj", "lm_head"]}, "must be a list of modules next to the residual stream: q_proj"),
        ({"lora_targets": []}, "must be a list of modules"),
    ],
)
def test_impossible_options_are_refused_before_any_work(sails, changes, message):
    with pytest.raises(ValueError, match=message):
        sails(**changes).check(SHAPE)
    sails().check(SHAPE)


def test_saes_that_do_not_fit_are_refused_before_any_work(sae_refs, tmp_path):
    wide = SAERef(path=str(make_sae(tmp_path / "wide", 1, seed=1, d_in=64)))
    for saes, message in (
        ((wide,), "made for d_model 64"),
        ((sae_refs[0], sae_refs[0]), "two SAEs are of layer 1; give one a layer"),
        ((sae_refs[0].model_copy(update={"norm_filter": 10.0}),), "trained without tokens of large norm"),
    ):
        with pytest.raises(ValueError, match=message):
            SAILS(saes=saes).check(SHAPE)
    for refused, message in (({"saes": ()}, "at least 1 item"), ({"tuning": "full"}, "'lora'"), ({"k": 1}, "k\n")):
        with pytest.raises(ValueError, match=message):
            SAILS(**({"saes": sae_refs} | refused))


def test_a_text_that_does_not_fit_the_context_is_refused_before_anything_is_passed(sails, tiny_base):
    base = tiny_base("llama")
    long = Triple(conversation("w1"), "w3", " ".join(["w2"] * 300))
    meter = Meter(base.model)
    with pytest.raises(ValueError, match=r"has 306 tokens, more than the context of 256"):
        sails().fit(base, [long], meter=meter, seed=0)
    assert meter.executed_flops == 0
