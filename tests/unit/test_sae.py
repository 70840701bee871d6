import json

import pytest
import torch
from sae_lens import SAE

from dspa.method import DSPA
from dspa.saes.sae import check_sae, load_sae
from harness.data.refs import SAERef
from harness.method import BaseShape
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
    wide = SAERef(path=str(make_sae(tmp_path / "wide", 3, seed=0, d_sae=99)))
    with pytest.raises(ValueError, match=r"has 48 latents, .* has 99"):
        DSPA(input_sae=early, output_sae=wide).check(BASE)
    DSPA(input_sae=early, output_sae=early).check(BASE)


def test_sets_cannot_be_larger_than_the_saes(sae_refs):
    early, late = sae_refs
    for name in ("truncate", "k_prompt", "k_diff"):
        with pytest.raises(ValueError, match=f"{name}: 49 is more than the 48 latents"):
            DSPA(input_sae=early, output_sae=late, **{name: 49}).check(BASE)


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

    def from_pretrained(release, sae_id, dtype, converter):
        asked.update(release=release, sae_id=sae_id, dtype=dtype, converter=converter)
        raise Found

    monkeypatch.setattr("dspa.saes.sae.SAE.from_pretrained", from_pretrained)
    with pytest.raises(Found):
        check_sae(SAERef(release="gemma-scope-2b-pt-res-canonical", id="layer_7/width_16k/canonical"), BASE)
    assert asked == {
        "release": "gemma-scope-2b-pt-res-canonical",
        "sae_id": "layer_7/width_16k/canonical",
        "dtype": "float32",
        "converter": None,
    }


def test_a_release_that_cannot_be_read_is_a_plain_error():
    with pytest.raises(ValueError, match=r"cannot read SAE someone/nothing/layer_1: "):
        check_sae(SAERef(release="someone/nothing", id="layer_1"), BASE)
    with pytest.raises(ValueError, match="not found in release gemma-scope-2b-pt-res-canonical"):
        check_sae(SAERef(release="gemma-scope-2b-pt-res-canonical", id="layer_99"), BASE)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architecture": "jumprelu_transcoder"}, "architecture 'jumprelu_transcoder' is not supported; supported are"),
        ({"architecture": "temporal"}, "'temporal' is not supported; supported are standard, jumprelu, gated, topk"),
        ({"architecture": "abstopk"}, "'abstopk' is not supported"),
        ({"architecture": "batchtopk"}, "save_inference_model, which makes them jumprelu"),
        ({"architecture": "my_own"}, "'my_own' is not supported"),
        ({"normalize_activations": "expected_average_only_in"}, "fold_activation_norm_scaling_factor .* save the SAE"),
        ({"normalize_activations": "covariance_whitening"}, "supported are none, layer_norm, constant_norm_rescale"),
        ({"reshape_activations": "hook_z"}, "it reshapes its input"),
    ],
)
def test_arithmetic_that_has_no_exact_form_is_refused_with_the_known_ones(tmp_path, changes, complaint):
    ref = edit(make_sae(tmp_path / "sae", 1, seed=0), **changes)
    for use in (lambda: check_sae(ref, BASE), lambda: load_sae(ref)):
        with pytest.raises(ValueError, match=f"SAE {ref}: .*{complaint}"):
            use()


def test_a_fixed_input_scale_works_once_it_is_folded_into_the_weights(tmp_path):
    folder = make_sae(tmp_path / "sae", 1, seed=0, normalize_activations="expected_average_only_in")
    sae = SAE.load_from_disk(folder)
    residual = torch.randn(4, D_MODEL)
    expected = sae.encode(residual * 0.5)
    sae.fold_activation_norm_scaling_factor(0.5)
    sae.save_model(folder)
    torch.testing.assert_close(load_sae(SAERef(path=str(folder))).encode(residual), expected)


def test_damaged_files_are_named(tmp_path):
    folder = make_sae(tmp_path / "short", 1, seed=0)
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"short: sae_weights\.safetensors is damaged .* get it again"):
        load_sae(SAERef(path=str(folder)))
    other = edit(make_sae(tmp_path / "other", 1, seed=0), d_sae=99)
    with pytest.raises(ValueError, match=r"does not belong to its configuration \(RuntimeError"):
        load_sae(other)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match=r"short/cfg\.json is not a SAELens configuration"):
        check_sae(SAERef(path=str(folder)), BASE)
    (folder / "cfg.json").write_text('{"architecture": "standard", "d_in": 32}')
    with pytest.raises(ValueError, match=r"not a SAELens configuration \(KeyError: 'd_sae'\)"):
        check_sae(SAERef(path=str(folder)), BASE)


def test_the_norm_filter_is_set_by_hand_for_folders_and_enters_the_identity(tmp_path):
    folder = str(make_sae(tmp_path / "sae", 1, seed=0))
    plain, filtered = load_sae(SAERef(path=folder)), load_sae(SAERef(path=folder, norm_filter=10))
    assert plain.norm_multiple is None
    assert filtered.norm_multiple == 10.0
    assert plain.identity != filtered.identity
    with pytest.raises(ValueError, match="greater than 1"):
        SAERef(path=folder, norm_filter=0.5)


def test_the_norm_filter_keeps_tokens_up_to_the_limit(tiny_folders):
    sae = load_sae(SAERef(path=str(tiny_folders["input"])))
    tokens = torch.zeros(1, 3, D_MODEL)
    tokens[0, :, 0] = torch.tensor([1.0, 2.0, 2.5])
    assert sae.fits_norm(tokens, 2.0).tolist() == [[True, True, False]]
    assert sae.fits_norm(tokens.bfloat16(), None).all()
