"""Our arithmetic against SAELens' own, for every architecture, input normalisation and bias convention."""

import itertools
from dataclasses import replace

import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dspa.saes import encoder
from dspa.saes.sae import ResidualSAE, load_sae
from harness.data.refs import SAERef
from tests.conftest import D_MODEL, D_SAE, make_sae

ARCHITECTURES = {
    "standard": {},
    "jumprelu": {},
    "gated": {},
    "topk": {"k": 6, "rescale_acts_by_decoder_norm": False},
    "topk, decoder norms": {"k": 6, "rescale_acts_by_decoder_norm": True},
}
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
EVERY = list(itertools.product(ARCHITECTURES, NORMALISATIONS, (True, False)))


@pytest.fixture(scope="module")
def saes(tmp_path_factory):
    """(architecture, normalisation, whether b_dec is subtracted from the input) -> SAE."""
    root = tmp_path_factory.mktemp("saes")
    made = {}
    for number, (name, normalisation, centred) in enumerate(EVERY):
        options = {"normalize_activations": normalisation, "apply_b_dec_to_input": centred} | ARCHITECTURES[name]
        folder = make_sae(root / str(number), 1, seed=number, architecture=name.split(",")[0], **options)
        made[name, normalisation, centred] = load_sae(SAERef(path=str(folder)))
    return made


@pytest.fixture(params=EVERY, ids=lambda case: "-".join(map(str, case)))
def sae(saes, request) -> ResidualSAE:
    return saes[request.param]


@pytest.fixture
def residual():
    return torch.randn(3, 5, D_MODEL, generator=torch.Generator().manual_seed(0)) * 3


def small_blocks(monkeypatch, n_tokens: int) -> None:
    monkeypatch.setattr(encoder, "BLOCK_BYTES", 4 * D_SAE * n_tokens)


def test_all_latents_are_those_of_saelens(sae, residual):
    expected = sae.sae.encode(residual)
    torch.testing.assert_close(sae.encode(residual), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(sae.encode(residual) > 0, expected > 0)
    assert 0.02 < (expected > 0).float().mean() < 0.9, "some latents are active, some are not"
    torch.testing.assert_close(sae.encode(residual[1, 2]), expected[1, 2], atol=1e-5, rtol=1e-5)


def test_half_precision_residuals_are_encoded_in_fp32(sae, residual):
    half = residual.bfloat16()
    assert sae.encode(half).dtype == torch.float32
    torch.testing.assert_close(sae.encode(half), sae.sae.encode(half), atol=1e-5, rtol=1e-5)


def test_a_few_gathered_latents_are_those_of_the_full_encode(sae, residual):
    latents = torch.stack([torch.randperm(D_SAE)[:20] for _ in residual])
    selected, _ = sae.encoder.encode_selected(residual, sae.encoder.gather(latents))
    expected = sae.encode(residual).gather(-1, latents[:, None].expand(-1, 5, -1))
    torch.testing.assert_close(selected, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(selected > 0, expected > 0)


def test_gathered_rows_can_be_reordered_and_cut_like_a_batch(sae, residual):
    rows = sae.encoder.gather(torch.randint(0, D_SAE, (3, 7)))
    assert all(len(tensor) == 3 and tensor.is_contiguous() for tensor in rows.values())
    order = torch.tensor([2, 0])
    whole, _ = sae.encoder.encode_selected(residual, rows)
    part, _ = sae.encoder.encode_selected(residual[order], {name: tensor[order] for name, tensor in rows.items()})
    torch.testing.assert_close(part, whole[order], atol=1e-5, rtol=1e-5)


def test_decoding_a_change_is_the_difference_of_saelens_decodes(sae, residual):
    latents = torch.stack([torch.randperm(D_SAE)[:7] for _ in residual])
    rows = sae.encoder.gather(latents)
    before = sae.sae.encode(residual)
    where = latents[:, None].expand(-1, 5, -1)
    after = before.scatter(-1, where, before.gather(-1, where) * 0.3 + 0.5)
    reconstructions = []
    for values in (after, before):
        sae.sae.encode(residual)  # SAELens keeps the scale of the tokens encoded last, for one decode
        reconstructions.append(sae.sae.decode(values))
    selected, scale = sae.encoder.encode_selected(residual, rows)
    change = after.gather(-1, where) - selected
    expected = reconstructions[0] - reconstructions[1]
    torch.testing.assert_close(sae.encoder.decode_change(change, rows, scale), expected, atol=2e-5, rtol=1e-4)


def test_nothing_is_remembered_between_calls(saes):
    sae = saes["jumprelu", "layer_norm", True]
    rows = sae.encoder.gather(torch.arange(5).expand(2, -1))
    one, other = torch.randn(2, 1, D_MODEL), torch.randn(2, 1, D_MODEL) * 50
    first, scale = sae.encoder.encode_selected(one, rows)
    expected = sae.encoder.decode_change(first, rows, scale)
    sae.encoder.encode_selected(other, rows)
    sae.encode(other)
    assert torch.equal(sae.encoder.decode_change(first, rows, scale), expected)


@pytest.mark.parametrize("per_block", [1, 4, 5, 1000])
def test_activity_is_counted_per_row_whatever_the_blocks(saes, monkeypatch, per_block):
    small_blocks(monkeypatch, per_block)
    row = torch.tensor([0] * 4 + [1] * 9 + [3] * 2)  # row 2 has no tokens
    tokens = torch.randn(15, D_MODEL) * 3
    for sae in saes.values():
        counts = sae.encoder.counts(tokens, row, 4)
        assert counts.dtype == torch.float32
        active = sae.sae.encode(tokens) > 0
        assert torch.equal(counts, torch.stack([active[row == r].sum(0).float() for r in range(4)]))


@pytest.mark.parametrize("per_block", [1, 4, 1000])
def test_the_strongest_latent_is_the_largest_of_all(saes, monkeypatch, per_block):
    small_blocks(monkeypatch, per_block)
    tokens = torch.randn(9, D_MODEL) * 3
    for sae in saes.values():
        torch.testing.assert_close(sae.encoder.strongest(tokens), sae.sae.encode(tokens).amax(-1), atol=1e-5, rtol=1e-5)


def test_a_token_without_any_active_latent_has_strongest_zero(tmp_path):
    for architecture in ("standard", "jumprelu", "gated", "topk"):
        sae = load_sae(SAERef(path=str(make_sae(tmp_path / architecture, 1, 0, architecture))))
        silent = replace(sae.encoder, bias=torch.full((D_SAE,), -1e4))
        assert torch.equal(silent.strongest(torch.randn(3, D_MODEL)), torch.zeros(3))
        assert not silent.encode(torch.randn(3, D_MODEL)).any()


def test_no_tokens_give_empty_results(sae):
    nothing = torch.empty(0, D_MODEL)
    assert sae.encode(nothing).shape == (0, D_SAE)
    assert sae.encoder.strongest(nothing).shape == (0,)
    assert not sae.encoder.counts(nothing, torch.empty(0, dtype=torch.long), 2).any()


@pytest.mark.parametrize(
    ("kind", "config", "options"),
    [
        (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {}),
        (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"rescale_acts_by_decoder_norm": False}),
        (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig, {"matryoshka_widths": [16, D_SAE]}),
    ],
)
def test_batchtopk_saes_come_back_as_jumprelu_with_their_stored_threshold(tmp_path, residual, kind, config, options):
    torch.manual_seed(0)
    trained = kind(config(d_in=D_MODEL, d_sae=D_SAE, k=5, **options))
    with torch.no_grad():
        trained.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
        trained.b_dec.normal_(0, 0.1)
        trained.topk_threshold.fill_(0.05)
    trained.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    with torch.no_grad():
        pre = (residual - trained.b_dec) @ trained.W_enc + trained.b_enc
        if trained.cfg.rescale_acts_by_decoder_norm:
            pre = pre * trained.W_dec.norm(dim=-1)
        expected = pre * (pre > 0.05)
    trained.save_inference_model(tmp_path)
    sae = load_sae(SAERef(path=str(tmp_path)))
    assert sae.sae.cfg.architecture() == "jumprelu"
    torch.testing.assert_close(sae.encode(residual), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.encode(residual), sae.sae.encode(residual), atol=1e-5, rtol=1e-5)


def test_a_negative_threshold_does_not_make_negative_latents(tmp_path, residual):
    folder = make_sae(tmp_path, 1, seed=0)
    sae = load_sae(SAERef(path=str(folder)))
    sae.sae.threshold.fill_(-0.5)
    found = ResidualSAE(sae.sae, 1)
    torch.testing.assert_close(found.encode(residual), sae.sae.encode(residual), atol=1e-5, rtol=1e-5)
    counts = found.encoder.counts(residual.flatten(0, 1), torch.zeros(15, dtype=torch.long), 1)
    assert torch.equal(counts[0], (sae.sae.encode(residual) > 0).sum((0, 1)).float())


class Largest(TorchDispatchMode):
    """Records the most elements of any tensor that an operator returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk"])
def test_a_wide_sae_needs_no_buffer_larger_than_a_block(tmp_path, architecture):
    d_sae, n_tokens = 131_072, 300
    folder = make_sae(tmp_path, 1, seed=0, architecture=architecture, d_in=64, d_sae=d_sae)
    sae = load_sae(SAERef(path=str(folder)))
    tokens, row = torch.randn(n_tokens, 64), torch.arange(n_tokens) // 150
    rows = sae.encoder.gather(torch.randint(0, d_sae, (2, 16)))
    _ = sae.encoder
    with Largest() as seen:
        counts = sae.encoder.counts(tokens, row, 2)
        sae.encoder.strongest(tokens)
        sae.encoder.encode_selected(tokens.view(2, 150, 64), rows)
    assert seen.numel * 4 <= max(64 * 2**20, 4 * sae.encoder.weight.numel())
    assert seen.numel < n_tokens * d_sae
    assert torch.equal(counts[1], (sae.encode(tokens[150:]) > 0).sum(0).float())
