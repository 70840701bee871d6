"""Base models that are larger than one device: the same numbers, wherever the layers are."""

import pytest
import torch

from baselines import CAA
from dspa.method import DSPA
from harness.data.refs import ModelRef
from harness.data.triples import Budget
from harness.experiment.check import check_suite
from harness.experiment.fitting import fit
from harness.experiment.suite import load_suite
from harness.model.aligned import AlignedModel
from harness.model.decoder import find_decoder, input_device
from tests.unit.two_devices import FAR, Far, TwoDevices, spread

ASKED = ["w1 w2 w3", "w4 w5", "w7 w7 w8 w9"]
PAIRS = [("w1 w2", " w3 w4"), ("w1 w2", " w5"), ("w1 w2 w3", " w9 w8 w7"), ("w6", " w2 w2")]


def method_of(kind, sae_refs):
    early, late = sae_refs
    common = {"input_sae": early, "output_sae": late, "k_prompt": 4, "k_diff": 8, "batch_size": 8, "alpha": 4.0}
    if kind == "caa":
        return CAA(layer=2, scale=8.0, batch_size=8)
    return DSPA(**common, select="causal") if kind == "causal" else DSPA(**common, positions=kind)


def outcomes(aligned):
    """Everything a benchmark asks of a model: greedy and sampled answers, log-likelihoods, a trace of the edits."""
    greedy = aligned.generate(ASKED, max_new_tokens=6)
    sampled = aligned.generate(ASKED, max_new_tokens=6, temperature=1.0, seed=4)
    traced = [] if aligned.intervention is None else aligned.trace("w1 w2", "w3 w4 w5")
    return [one.token_ids for one in (*greedy, *sampled)], aligned.loglikelihood(PAIRS), str(traced)


@pytest.fixture
def bases(tiny_folders):
    """(the base on one device, another copy of it)"""
    return [AlignedModel.from_base(ModelRef(path=str(tiny_folders["llama"]))) for _ in range(2)]


def fitted(kind, base, sae_refs, triples):
    """The unsteered base, or what was fitted on it."""
    return base if kind == "base" else fit(method_of(kind, sae_refs), base, Budget(tuple(triples), 0), 0)


@pytest.mark.parametrize("kind", ["base", "generation", "all", "causal", "caa"])
@pytest.mark.parametrize("first_far", [1, 2])
def test_fit_steering_and_scoring_are_those_of_one_device(bases, sae_refs, triples, kind, first_far):
    """Where the layers that are read (1) and written (2) are on another device than the ids, or only one of them is."""
    near, far = bases
    expected = fitted(kind, near, sae_refs, triples)
    answers = outcomes(expected)
    with spread(far.model, find_decoder(far.model).layers, first_far):
        aligned = fitted(kind, far, sae_refs, triples)
        assert outcomes(aligned) == answers
    if kind != "causal":  # whose gradients are summed in another order where tensors are moved
        assert aligned.fingerprint == expected.fingerprint
    if kind != "base":
        assert answers != outcomes(near), "or nothing was steered"


def test_the_second_device_refuses_what_a_real_one_refuses():
    near, far = torch.ones(2), torch.ones(2).as_subclass(Far)
    with TwoDevices():
        assert far.device == FAR and (far + far).device == FAR and near.to(far.device).device == FAR
        assert (far + 1).to("cpu").tolist() == [2, 2] and not isinstance(far.to(near.device), Far)
        for mixed in (lambda: near + far, lambda: torch.cat([near, far]), lambda: far[near.bool()]):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()


@pytest.mark.parametrize("kind", ["base", "generation", "caa"])
def test_layers_on_the_disk_give_the_same(tiny_folders, bases, sae_refs, triples, tmp_path, kind):
    ref = ModelRef(path=str(tiny_folders["llama"]), device_map="auto", max_memory={"cpu": "60KB"})
    offloaded = AlignedModel.from_base(ref)
    places = offloaded.model.hf_device_map
    assert {"disk"} < set(map(str, places.values())) and offloaded.device == torch.device("cpu")
    assert any(parameter.is_meta for parameter in find_decoder(offloaded.model).layers.parameters())
    expected = fitted(kind, bases[0], sae_refs, triples)
    aligned = fitted(kind, offloaded, sae_refs, triples)
    assert aligned.fingerprint == expected.fingerprint
    assert outcomes(aligned) == outcomes(expected)
    aligned.save(tmp_path / "artifact")
    elsewhere = AlignedModel.load(tmp_path / "artifact")
    assert not hasattr(elsewhere.model, "hf_device_map"), "how it was held is no part of what it is"
    again = AlignedModel.load(tmp_path / "artifact", base=ref)
    assert outcomes(again) == outcomes(elsewhere) == outcomes(expected)


def test_ids_go_where_the_embeddings_are_computed(bases):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = bases[0].model
    assert input_device(model) == torch.device("cpu")
    embeddings = model.get_input_embeddings()
    add_hook_to_module(embeddings, AlignDevicesHook(execution_device="meta"))
    assert input_device(model) == torch.device("meta")
    embeddings._hf_hook.execution_device = 1
    assert input_device(model) == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["base.max_memory.cpu=1GB"], "`max_memory` is for a device_map"),
        (["base.device_map=auto", "base.max_memory.cpu=lots"], "max_memory of cpu: 'lots' is no size"),
        (["base.device_map=everywhere"], "base.device_map"),
        (["base.device_map=auto", "execution.workers=2"], "2 workers would each spread a copy"),
        (
            ["base.device_map=auto", "execution.workers=1", "execution.per_fit.processes=2"],
            "set per_fit.processes to 1",
        ),
        (["base.device_map=auto", "execution.workers=1"], "dpo.*: what has an adapter or weights of its own"),
    ],
)
def test_bad_combinations_are_refused_before_work(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_suite(load_suite("sandbox", overrides))
