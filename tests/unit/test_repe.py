"""RepE: the mean difference within the principal directions, against decompositions by other means."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from baselines import CAA, RepE
from baselines.repe import projected_mean
from harness.compute import Meter, count_flops
from harness.method import BaseShape
from harness.model.aligned import AlignedModel
from tests.unit.test_caa import PROMPTS, ReferenceSteering, assert_decodes_and_scores_as, brute_difference


def fit(base: AlignedModel, triples, meter: Meter | None = None, **params) -> AlignedModel:
    options = {"layer": 2, "scale": 3.0, "directions": 4, "batch_size": 5}
    return RepE(**(options | params)).fit(base, triples, meter=meter or Meter(base.model), seed=0)


def eigen_projection(differences: np.ndarray, directions: int) -> np.ndarray:
    """The definition by an eigendecomposition of the sum of outer products."""
    moment = sum(np.outer(row, row) for row in differences)
    values, vectors = np.linalg.eigh(moment)
    top = vectors[:, np.argsort(values)[::-1][:directions]]
    return top @ (top.T @ differences.mean(0))


def test_the_papers_settings_are_the_defaults():
    assert (RepE(layer=0).directions, RepE(layer=0).scale) == (16, 0.5)


def test_by_hand():
    differences = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # second moments 10 and 1
    torch.testing.assert_close(projected_mean(differences, 1), torch.tensor([4 / 3, 0.0]))
    torch.testing.assert_close(projected_mean(differences, 2), torch.tensor([4 / 3, 1 / 3]))


@pytest.mark.parametrize(("n", "width"), [(40, 12), (20, 64)])
def test_the_projection_equals_eigenvectors_and_scikit_learns_pca_of_differences_in_both_orders(n, width):
    from sklearn.decomposition import PCA

    draw = np.random.default_rng(0)
    differences = draw.normal(size=(n, width)) * np.linspace(3, 0.2, width) + draw.normal(size=width)
    ours = projected_mean(torch.from_numpy(differences), 6).numpy()
    np.testing.assert_allclose(ours, eigen_projection(differences, 6), atol=1e-6)
    axes = PCA(6).fit(np.concatenate([differences, -differences])).components_
    np.testing.assert_allclose(ours, axes.T @ (axes @ differences.mean(0)), atol=1e-6)
    assert np.linalg.norm(ours - differences.mean(0)) > 0.01


def test_all_directions_keep_the_mean_difference_and_fewer_never_lengthen_it():
    differences = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)).double() + 0.5
    lengths = [float(projected_mean(differences, k).norm()) for k in range(1, 9)]
    assert lengths == sorted(lengths)
    torch.testing.assert_close(projected_mean(differences, 8), differences.mean(0).float())


def test_directions_without_any_variation_do_not_matter():
    differences = torch.tensor([[1.0, 2.0, 0.0]]).repeat(5, 1)
    torch.testing.assert_close(projected_mean(differences, 3), differences[0])


@pytest.mark.parametrize("family", ["gemma2", "qwen3"])
def test_the_vector_and_the_steered_decoding_equal_brute_force(tiny_base, triples, family):
    base = tiny_base(family)
    aligned = fit(base, triples[:12])
    differences = torch.stack([brute_difference(base, t, 2) for t in triples[:12]]).double().numpy()
    vector = torch.from_numpy(eigen_projection(differences, 4)).float()
    torch.testing.assert_close(aligned.intervention.tensors()["vector"], vector, atol=1e-4, rtol=1e-4)
    assert_decodes_and_scores_as(ReferenceSteering(aligned, vector), aligned, base)


def test_with_as_many_directions_as_triples_it_is_caa(tiny_base, triples):
    base = tiny_base("llama")
    caa = CAA(layer=2).fit(base, triples, meter=Meter(base.model), seed=0)
    ours = fit(base, triples, directions=len(triples))
    torch.testing.assert_close(
        ours.intervention.tensors()["vector"], caa.intervention.tensors()["vector"], atol=1e-5, rtol=1e-5
    )


def test_scale_zero_is_bit_identical(tiny_base, triples):
    base = tiny_base("gemma2")
    aligned = fit(base, triples, scale=0.0)
    ids = torch.tensor([base.prompt_ids(PROMPTS[0])])
    with torch.no_grad():
        plain = base.model(input_ids=ids).logits
        with aligned.steering():
            assert torch.equal(aligned.model(input_ids=ids).logits, plain)


def test_a_fit_repeats_to_the_bit_and_its_artifact_comes_back(tiny_base, triples, tmp_path):
    aligned = fit(tiny_base("gemma2"), triples)
    assert fit(tiny_base("gemma2"), triples).fingerprint == aligned.fingerprint
    aligned.save(tmp_path / "repe")
    loaded = AlignedModel.load(tmp_path / "repe")
    assert (loaded.fingerprint, loaded.method, loaded.params) == (aligned.fingerprint, "repe", aligned.params)
    assert loaded.generate(PROMPTS, max_new_tokens=8) == aligned.generate(PROMPTS, max_new_tokens=8)


def test_the_bill_is_what_torch_counts_over_the_whole_run(tiny_base, triples):
    base = tiny_base("gemma2")
    meter = Meter(base.model, sample_profile=False)
    repeated = triples[:6] * 3
    fit(base, repeated, meter, batch_size=3)
    bill = meter.bill(method="repe", n_triples=len(repeated))
    with count_flops() as counter:
        fit(base, repeated, _Unmetered(), batch_size=3)
    assert bill.executed_flops == counter.get_total_flops() > 0
    assert [stage.name for stage in bill.stages] == ["features", "directions"]
    assert bill.stages[1].executed_flops == 2 * 2 * 4 * 32


class _Unmetered(Meter):
    """Counts nothing itself, so that one counter can run around all of it."""

    def step(self, *_args, **_options):
        return nullcontext()


def test_fewer_triples_than_directions_are_refused_before_any_forward(tiny_base, triples):
    base = tiny_base("llama")
    meter = Meter(base.model)
    with pytest.raises(ValueError, match=r"3 triples span fewer than 4 directions.*set `directions` to 3"):
        fit(base, triples[:3], meter)
    with pytest.raises(ValueError, match="nothing was metered"):
        meter.bill(method="repe", n_triples=3)


def test_what_does_not_fit_the_base_is_refused():
    shape = BaseShape("tiny", n_layers=4, d_model=8)
    RepE(layer=3, directions=8).check(shape)
    with pytest.raises(ValueError, match="layer 4 is not in tiny"):
        RepE(layer=4, directions=8).check(shape)
    with pytest.raises(ValueError, match="16 directions are more than the 8 dimensions of tiny"):
        RepE(layer=0).check(shape)
