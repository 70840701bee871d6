import json

import pytest
import torch

from dspa import DSPA
from dspa.sae import check_sae, load_sae
from harness.method import BaseShape
from harness.refs import SAERef
from tests.conftest import D_MODEL, D_SAE, N_LAYERS, make_sae

BASE = BaseShape("tiny", n_layers=N_LAYERS, d_model=D_MODEL)


def edit(folder, **changes):
    file = folder / "cfg.json"
    config = json.loads(file.read_text())
    config["metadata"] |= changes.pop("metadata", {})
    file.write_text(json.dumps(config | changes))
    return SAERef(path=str(folder))


def test_an_sae_that_fits_gives_its_layer_and_width(tiny_folders):
    assert check_sae(SAERef(path=str(tiny_folders["input"])), BASE) == (1, D_SAE)


@pytest.mark.parametrize(
    ("hook", "layer"), [("blocks.3.hook_resid_post", 3), ("blocks.3.hook_resid_pre", 2), ("model.layers.2", 2)]
)
def test_the_layer_is_read_from_the_hook_point(tmp_path, hook, layer):
    ref = edit(make_sae(tmp_path / "sae", 1, seed=0), metadata={"hook_name": hook})
    assert check_sae(ref, BASE)[0] == layer
    assert load_sae(ref).layer == layer


def test_what_does_not_fit_is_refused_before_weights_are_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"'/nowhere' has no cfg\.json"):
        check_sae(SAERef(path="/nowhere"), BASE)
    folder = make_sae(tmp_path / "sae", 1, seed=0)
    with pytest.raises(ValueError, match=r"'blocks\.1\.hook_mlp_out' is not the residual stream"):
        check_sae(edit(folder, metadata={"hook_name": "blocks.1.hook_mlp_out"}), BASE)
    with pytest.raises(ValueError, match=r"layer 9 is outside base tiny, whose layers are 0\.\.3"):
        check_sae(edit(folder, metadata={"hook_name": "blocks.9.hook_resid_post"}), BASE)
    with pytest.raises(ValueError, match=r"made for d_model 64, but base tiny has d_model 32"):
        check_sae(edit(folder, d_in=64), BASE)


def test_a_pair_must_share_its_width_and_the_output_layer_must_not_come_first(tmp_path, sae_refs):
    early, late = sae_refs
    with pytest.raises(ValueError, match="choose l_out >= l_in"):
        DSPA(input_sae=late, output_sae=early).check(BASE)
    wide = edit(make_sae(tmp_path / "wide", 3, seed=0), d_sae=99)
    with pytest.raises(ValueError, match=r"has 48 latents, .* has 99"):
        DSPA(input_sae=early, output_sae=wide).check(BASE)
    DSPA(input_sae=early, output_sae=early).check(BASE)


def test_an_sae_is_named_by_folder_or_by_release_and_id():
    for bad in ({}, {"release": "r"}, {"path": "p", "release": "r", "id": "i"}):
        with pytest.raises(ValueError, match="either `path`"):
            SAERef(**bad)
    named = SAERef.model_validate("early", context={"saes": {"early": SAERef(path="p")}})
    assert named.path == "p"
    with pytest.raises(ValueError, match=r"unknown SAE 'late'; the suite's `saes:` table has: early"):
        SAERef.model_validate("late", context={"saes": {"early": SAERef(path="p")}})


def test_a_release_name_reaches_saelens(monkeypatch):
    asked = {}

    class Found(Exception):
        pass

    def from_pretrained(release, sae_id, device, dtype):
        asked.update(release=release, sae_id=sae_id, dtype=dtype)
        raise Found

    monkeypatch.setattr("dspa.sae.SAE.from_pretrained", from_pretrained)
    with pytest.raises(Found):
        check_sae(SAERef(release="gemma-scope-2b-pt-res-canonical", id="layer_7/width_16k/canonical"), BASE)
    assert asked == {
        "release": "gemma-scope-2b-pt-res-canonical",
        "sae_id": "layer_7/width_16k/canonical",
        "dtype": "float32",
    }


def test_decoding_a_change_equals_the_difference_of_saelens_decodes_also_with_normalised_inputs(tmp_path):
    for normalisation in ("none", "layer_norm", "constant_norm_rescale"):
        folder = make_sae(tmp_path / normalisation, 1, seed=0)
        sae = load_sae(edit(folder, normalize_activations=normalisation))
        x = torch.randn(6, D_MODEL, generator=torch.Generator().manual_seed(0)) * 3
        before = sae.encode(x)
        after = before.clone()
        after[:, :5] = (after[:, :5] - 0.4).clamp(min=0)
        reconstructions = []
        for latents in (after, before):
            sae.encode(x)  # SAELens keeps the scale of the tokens encoded last, for one decode
            reconstructions.append(sae.sae.decode(latents))
        expected = reconstructions[0] - reconstructions[1]
        sae.encode(x)
        rows = sae.decoder_rows(torch.arange(5).expand(6, -1))
        torch.testing.assert_close(sae.decode_change((after - before)[:, :5], rows), expected, atol=1e-5, rtol=1e-4)
