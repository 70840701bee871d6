"""Densities as they stream: what is counted, what is billed, and how little is held at once."""

import dataclasses

import pytest
import torch

from dspa.density import Densities, density_of, measure_densities, predict_densities
from dspa.saes.sae import ResidualSAE, load_sae
from harness.compute import Meter, count_flops
from harness.compute.rates import Rates
from harness.data.triples import Triple
from harness.model.decoder import find_decoder
from tests.conftest import D_MODEL
from tests.unit.tensor_sizes import LargestTensor


def measure(base, triples, input_sae, output_sae, *, batch_size: int = 5, meter: Meter | None = None) -> Densities:
    meter = meter or Meter(sample_profile=False)
    with meter.stage("features"):
        return measure_densities(
            base, triples, input_sae=input_sae, output_sae=output_sae, meter=meter, batch_size=batch_size
        )


@pytest.fixture
def saes(sae_refs):
    return load_sae(sae_refs[0]), load_sae(sae_refs[1])


def wide_sae(layer: int, d_sae: int) -> ResidualSAE:
    """As wide as they come; about one latent in a thousand fires."""
    from sae_lens import SAE

    draw = torch.Generator().manual_seed(layer)
    metadata = {"hook_name": f"blocks.{layer}.hook_resid_post"}
    sae = SAE.from_dict(
        {"architecture": "standard", "d_in": D_MODEL, "d_sae": d_sae, "dtype": "float32", "device": "cpu"}
        | {"apply_b_dec_to_input": False, "metadata": metadata}
    )
    sae.W_enc.data = torch.randn(D_MODEL, d_sae, generator=draw)
    sae.b_enc.data = torch.full((d_sae,), -40.0)
    return ResidualSAE(sae.eval().requires_grad_(False), layer)


def test_densities_do_not_depend_on_the_batch_size(tiny_base, triples, saes):
    alone, together = (measure(tiny_base("gemma2"), triples, *saes, batch_size=size) for size in (1, 24))
    torch.testing.assert_close(alone.prompt.dense(), together.prompt.dense(), atol=1e-6, rtol=0)
    torch.testing.assert_close(alone.difference.dense(), together.difference.dense(), atol=1e-6, rtol=0)


def test_swapping_chosen_and_rejected_negates_the_differences(tiny_base, triples, saes):
    swapped = [Triple(t.prompt, t.rejected, t.chosen) for t in triples]
    one, other = (measure(tiny_base("llama"), ts, *saes) for ts in (triples, swapped))
    torch.testing.assert_close(one.difference.dense(), -other.difference.dense(), atol=1e-6, rtol=0)
    assert torch.equal(one.prompt.dense(), other.prompt.dense())


def test_without_an_input_sae_only_the_differences_are_measured(tiny_base, triples, saes):
    both, difference = measure(tiny_base("qwen3"), triples, *saes), measure(tiny_base("qwen3"), triples, None, saes[1])
    assert difference.prompt.width == 0
    torch.testing.assert_close(difference.difference.mean(), both.difference.dense().mean(0))
    torch.testing.assert_close(difference.difference.dense(), both.difference.dense())


def test_both_saes_may_sit_at_the_same_layer(tiny_base, triples, saes):
    densities = measure(tiny_base("llama"), triples, saes[1], saes[1])
    expected = measure(tiny_base("llama"), triples, *saes)
    torch.testing.assert_close(densities.difference.dense(), expected.difference.dense())
    assert len(densities.prompt.column) > 0


def test_the_bill_is_what_torch_counts_over_the_whole_run(tiny_base, triples, saes):
    base, meter = tiny_base("gemma2"), Meter(tiny_base("gemma2").model, sample_profile=False)
    measure(base, triples * 3, *saes, batch_size=4, meter=meter)
    billed = meter.bill(method="dspa", n_triples=len(triples))
    with count_flops() as counter:
        measure(base, triples * 3, *saes, batch_size=4)
    assert billed.executed_flops == counter.get_total_flops()
    tokens = sum(len(ids) for triple in triples for ids in base.triple_ids(triple))
    assert billed.tokens == 3 * tokens


def test_layers_after_the_output_layer_and_the_head_never_run(tiny_base, triples, saes):
    base = tiny_base("llama")
    calls: list[str] = []
    modules = {"layer": find_decoder(base.model).layers[3], "head": base.model.get_output_embeddings()}
    hooks = [m.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, m in modules.items()]
    measure(base, triples, *saes)
    for hook in hooks:
        hook.remove()
    assert calls == []


def test_a_token_whose_norm_exceeds_the_limit_counts_neither_as_active_nor_at_all(saes):
    residual = torch.randn(3, 7, D_MODEL, generator=torch.Generator().manual_seed(0)) * 2
    residual[1, 2:] *= 30
    residual[2] *= 30
    counted = torch.ones(3, 7, dtype=torch.bool)
    counted[0, 0] = False
    density = density_of(saes[0], residual, counted, 60.0)
    active = saes[0].encode(residual) > 0
    torch.testing.assert_close(density[0], active[0, 1:].float().mean(0))
    torch.testing.assert_close(density[1], active[1, :2].float().mean(0))
    assert not density[2].any()


def test_norm_limits_are_a_multiple_of_the_median_norm_over_the_first_triples(tiny_base, triples, saes, monkeypatch):
    base = tiny_base("llama")
    monkeypatch.setattr("dspa.density.CALIBRATION", 10)
    filtered = [
        dataclasses.replace(sae, norm_multiple=multiple) for sae, multiple in zip(saes, (1.1, 0.9), strict=True)
    ]
    ours = measure(base, triples, *filtered, batch_size=3)
    norms: dict[int, list[float]] = {1: [], 2: []}
    seen = {}
    layers = find_decoder(base.model).layers
    hooks = [
        layers[layer].register_forward_hook(lambda _m, _a, out, layer=layer: seen.update({layer: out}))
        for layer in norms
    ]
    for triple in triples[:10]:
        prompt, *answers = base.triple_ids(triple)
        for place, answer in enumerate(answers):
            ids = torch.tensor([prompt + answer])
            base.model(input_ids=ids)
            wanted = [p for p in range(place * len(prompt), ids.shape[1]) if ids[0, p] not in base.chat.special_ids]
            for layer, found in norms.items():
                found += seen[layer][0, wanted].norm(dim=-1).tolist()
    for hook in hooks:
        hook.remove()
    medians = [float(torch.tensor(norms[layer]).median()) for layer in (1, 2)]
    assert ours.norm_limits == pytest.approx((1.1 * medians[0], 0.9 * medians[1]), rel=1e-5)
    free = measure(base, triples, *saes)
    assert free.norm_limits == (None, None)
    assert not torch.equal(ours.difference.dense(), free.difference.dense())
    assert measure(base, triples, None, filtered[1]).norm_limits[0] is None


def test_triples_are_passed_once_also_where_saes_have_a_norm_filter(
    tiny_base, triples, saes, filtered_refs, monkeypatch
):
    monkeypatch.setattr("dspa.density.CALIBRATION", 7)
    base, refs = tiny_base("gemma2"), filtered_refs(100.0)  # no token is as long
    meters = [Meter(base.model, sample_profile=False) for _ in range(2)]
    ours = measure(base, triples, *map(load_sae, refs), meter=meters[0])
    free = measure(base, triples, *saes, meter=meters[1])
    assert None not in ours.norm_limits
    # Other batches, so other last bits: a latent at its threshold may fall on the other side.
    assert torch.allclose(ours.prompt.dense(), free.prompt.dense(), atol=0.1)
    assert (ours.difference.dense() != free.difference.dense()).float().mean() < 0.01
    bills = [meter.bill(method="dspa", n_triples=len(triples)) for meter in meters]
    assert bills[0].tokens == bills[1].tokens
    rates = Rates(base.model.config, dtype=base.model.dtype)
    predicted = predict_densities(base, triples, input_sae=refs[0], output_sae=refs[1], rates=rates, batch_size=5)
    assert bills[0].executed_flops == predicted


def test_triples_that_do_not_fit_are_refused_before_any_forward(tiny_base, triples, saes):
    base, meter = tiny_base("gemma2"), Meter(tiny_base("gemma2").model)
    long = Triple(triples[0].prompt, " ".join(["w2"] * 300), "w3")
    with pytest.raises(ValueError, match="more than the context of 256"):
        measure(base, [*triples, long], *saes, meter=meter)
    assert meter.bill(method="dspa", n_triples=0).tokens == 0


def test_no_large_tensor_is_made_for_131072_latents_and_none_grows_with_the_number_of_triples(tiny_base, triples):
    base, d_sae = tiny_base("llama"), 1 << 17
    input_sae, output_sae = wide_sae(1, d_sae), wide_sae(2, d_sae)
    largest = []
    for n in (8, 64):
        with LargestTensor() as seen:
            densities = measure(base, triples[:1] * n, input_sae, output_sae, batch_size=4)
        assert 0 < len(densities.difference.column) < n * d_sae / 10
        largest.append(seen.largest)
    assert largest[0] == largest[1] <= 1 << 24  # 64 MB
