"""Attribution of the preference margin to output latents, against autograd over whole texts, one at a time."""

import pytest
import torch

from dspa.attribution import attribute_margins, latent_effects
from dspa.method import DSPA
from dspa.saes.sae import ResidualSAE, load_sae
from harness.compute import Meter, count_flops
from harness.data.refs import ModelRef, SAERef
from harness.data.triples import Budget, Triple, conversation
from harness.experiment.fitting import fit
from harness.experiment.forecast import Forecaster
from harness.model.decoder import find_decoder
from tests.conftest import make_sae


def attribute(base, triples, sae, *, positions="generation", batch_size=5, norm_limit=None):
    meter = Meter(sample_profile=False)
    with meter.stage("attribution"):
        rows = attribute_margins(
            base, triples, output_sae=sae, norm_limit=norm_limit, positions=positions, meter=meter,
            batch_size=batch_size,
        )  # fmt: skip
    return rows, meter


def brute_force(base, triple: Triple, sae: ResidualSAE, positions: str) -> torch.Tensor:
    """Each text whole and alone, SAELens' own encode and decode, autograd at the layer's output."""
    prompt, *answers = base.triple_ids(triple)
    total = torch.zeros(sae.d_sae)
    for sign, answer in zip((1, -1), answers, strict=True):
        ids = prompt + answer
        seen = {}

        def keep(_module, _args, output, seen=seen):
            seen["h"] = output.detach().requires_grad_()
            return seen["h"]

        hook = find_decoder(base.model).layers[sae.layer].register_forward_hook(keep)
        logits = base.model(input_ids=torch.tensor([ids])).logits[0]
        hook.remove()
        targets = torch.tensor([*answer, base.chat.end_id])
        values = logits[len(prompt) - 1 :].log_softmax(-1).gather(1, targets[:, None])
        (sign * values.sum() / len(targets)).backward(inputs=[seen["h"]])
        first = 0 if positions == "all" else len(prompt) - 1
        for place in range(first, len(ids)):
            if ids[place] not in base.chat.special_ids:
                x, slope = seen["h"][0, place].detach(), seen["h"].grad[0, place]
                latents = sae.sae.encode(x[None])
                without = decoded(sae, x, torch.zeros_like(latents))
                for j in latents[0].nonzero()[:, 0]:
                    one = torch.zeros_like(latents)
                    one[0, j] = latents[0, j]
                    total[j] += float((decoded(sae, x, one) - without) @ slope)
    return total


def decoded(sae: ResidualSAE, x: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    sae.sae.encode(x[None])  # leaves the normalisation behind that decode undoes, once
    return sae.sae.decode(latents)[0]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3"])
@pytest.mark.parametrize("positions", ["generation", "all"])
def test_rows_equal_autograd_over_each_text_alone(tiny_base, triples, sae_refs, family, positions):
    base, sae = tiny_base(family), load_sae(sae_refs[1])
    some = [*triples[:6], Triple(conversation("w1 <eos> w2"), "w3 <eos> w4 <pad> w4", "w5 <bos>")]
    rows, _ = attribute(base, some, sae, positions=positions, batch_size=3)
    for k, triple in enumerate(some):
        torch.testing.assert_close(rows[k], brute_force(base, triple, sae, positions), atol=2e-5, rtol=1e-3)
    assert rows.dense().abs().max() > 1e-3


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("topk", {"rescale_acts_by_decoder_norm": True}),
        ("gated", {}),
        ("standard", {"normalize_activations": "constant_norm_rescale"}),
        ("jumprelu", {"normalize_activations": "layer_norm"}),
    ],
)
def test_every_kind_of_sae_is_attributed_as_saelens_decodes_it(tiny_base, triples, tmp_path, architecture, options):
    base = tiny_base("llama")
    sae = load_sae(SAERef(path=str(make_sae(tmp_path / "sae", 2, 5, architecture, **options))))
    rows, _ = attribute(base, triples[:2], sae)
    for k, triple in enumerate(triples[:2]):
        torch.testing.assert_close(rows[k], brute_force(base, triple, sae, "generation"), atol=2e-5, rtol=1e-3)


def test_swapping_chosen_and_rejected_negates_the_rows(tiny_base, triples, sae_refs):
    sae = load_sae(sae_refs[1])
    swapped = [Triple(t.prompt, t.rejected, t.chosen) for t in triples]
    one, other = (attribute(tiny_base("llama"), ts, sae)[0].dense() for ts in (triples, swapped))
    torch.testing.assert_close(one, -other, atol=1e-5, rtol=0)


def test_rows_do_not_depend_on_the_batch_size_nor_leave_a_gradient(tiny_base, triples, sae_refs):
    base, sae = tiny_base("gemma2"), load_sae(sae_refs[1])
    alone, together = (attribute(base, triples, sae, batch_size=size)[0].dense() for size in (1, 24))
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-3)
    assert all(p.grad is None and p.requires_grad for p in base.model.parameters())


def test_tokens_beyond_the_norm_limit_do_not_count(tiny_base, triples, sae_refs):
    sae = load_sae(sae_refs[1])
    assert len(attribute(tiny_base("llama"), triples[:3], sae, norm_limit=1e-3)[0].column) == 0


def test_what_does_not_move_has_no_effect_even_where_the_gradient_is_not_finite(sae_refs):
    sae = load_sae(sae_refs[1])
    tokens = torch.randn(4, sae.d_model, generator=torch.Generator().manual_seed(0))
    gradient = torch.full_like(tokens, torch.inf)
    effects = latent_effects(sae.encoder, tokens, gradient, torch.zeros(4, dtype=torch.long), 1, torch.zeros_like)
    assert not effects.any()


def test_the_bill_is_what_torch_counts(tiny_base, triples, sae_refs):
    base, sae = tiny_base("gemma2"), load_sae(sae_refs[1])
    _, meter = attribute(base, triples * 2, sae, batch_size=4)
    with count_flops() as counter:
        attribute(base, triples * 2, sae, batch_size=4)
    assert meter.executed_flops == counter.get_total_flops() > 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
@pytest.mark.parametrize("positions", ["generation", "all"])
def test_the_bill_of_a_causal_fit_is_predicted_exactly(tiny_folders, tiny_base, triples, sae_refs, family, positions):
    options = {"gate": "strict", "percentile": 50, "min_support": 1, "batch_size": 5, "positions": positions}
    method = DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], select="causal", **options)
    budget = Budget(tuple(triples), 0)
    forecast = Forecaster(ModelRef(path=str(tiny_folders[family]))).of(method, budget)
    done = fit(method, tiny_base(family), budget, 0, predicted=forecast.stages)
    executed = {stage["name"]: stage["executed_flops"] for stage in done.bill["stages"]}
    assert executed["attribution"] == forecast.stages["attribution"] > 0
    assert list(executed) == ["features", "attribution", "map"]


def test_the_map_of_a_causal_fit_is_made_of_attributions(tiny_base, triples, sae_refs):
    base, sae = tiny_base("llama"), load_sae(sae_refs[1])
    method = DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], select="causal", gate="strict", min_support=2)
    fitted = method.fit(base, triples, meter=Meter(base.model), seed=0)
    torch.testing.assert_close(
        fitted.intervention.condition_map.mean_difference, attribute(base, triples, sae)[0].dense().mean(0)
    )
    plain = method.model_copy(update={"select": "scores"}).fit(base, triples, meter=Meter(base.model), seed=0)
    assert plain.fingerprint != fitted.fingerprint
