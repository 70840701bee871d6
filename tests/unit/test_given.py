"""checkpoint and adapter: what was aligned elsewhere competes with its declared cost, and must fit the base."""

import json
import shutil
from math import isnan

import pytest
from safetensors.torch import load_file, save_file

from baselines import DPO, SFT, Adapter, Base, Checkpoint
from baselines.given import shapes_in
from harness.compute import Meter
from harness.data.refs import ModelRef
from harness.experiment.check import check_base
from harness.experiment.fitting import fit
from harness.model.aligned import AlignedModel
from reports.costs import flops_text, mean_cost
from tests.conftest import make_model, make_tokenizer
from tests.unit.trained import PROMPTS


@pytest.fixture(scope="session")
def made(tiny_base, triples, tmp_path_factory):
    """(full, LoRA): artifacts of trainings on the tiny base, whose folders are what others would publish."""
    root, base = tmp_path_factory.mktemp("made"), tiny_base("llama")
    for name, method in (("full", SFT(tuning="full", learning_rate=1e-2)), ("lora", DPO(tuning="lora"))):
        meter = Meter(base.model, sample_profile=False)
        method.fit(base, triples[:4], meter=meter, seed=0).save(root / name)
    return root / "full", root / "lora"


@pytest.fixture
def shape(tiny_folders):
    return check_base(ModelRef(path=str(tiny_folders["llama"])))


def test_they_answer_as_they_do_where_they_were_made_and_cost_what_is_declared(tiny_base, shape, made, tmp_path):
    base, (full, lora) = tiny_base("llama"), made
    for method, origin in (
        (Checkpoint(weights={"path": str(full / "weights")}, flops=3e15), full),
        (Adapter(adapter={"path": str(lora / "adapter")}, flops="unknown"), lora),
    ):
        method.check(shape)
        aligned = fit(method, base, None, 0)
        there = AlignedModel.load(origin).generate(PROMPTS, max_new_tokens=6)
        assert aligned.generate(PROMPTS, max_new_tokens=6) == there
        assert aligned.fingerprint == AlignedModel.load(origin).fingerprint
        assert (aligned.bill["executed_flops"], aligned.bill["declared"]) == (
            0,
            {"flops": None if method.flops == "unknown" else 3e15},
        )
        aligned.save(tmp_path / method.name)
        assert AlignedModel.load(tmp_path / method.name).fingerprint == aligned.fingerprint
        assert str(full.parent) not in (tmp_path / method.name / "aligned.json").read_text()
    assert not any("lora" in name for name, _ in base.model.named_modules())


def test_an_adapters_modules_are_written_in_one_order_by_every_process(tiny_base, triples, tmp_path):
    # PEFT keeps them in a set, whose order is another one wherever hashes of texts are
    modules = ("v_proj", "down_proj", "q_proj", "up_proj", "o_proj", "k_proj", "gate_proj")
    base = tiny_base("llama")
    method = SFT(tuning="lora", lora_targets=modules)
    method.fit(base, triples[:4], meter=Meter(base.model, sample_profile=False), seed=0).save(tmp_path / "made")
    config = json.loads((tmp_path / "made" / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(modules)


def cost_of(method, base):
    from types import SimpleNamespace

    from harness.compute.bill import Bill

    bill = Bill.model_validate(fit(method, base, None, 0).bill)
    return mean_cost([SimpleNamespace(bill=bill, best=None)])  # type: ignore[list-item]


def test_a_cost_that_is_unknown_is_never_shown_as_0(tiny_base, made):
    base, weights = tiny_base("llama"), {"path": str(made[0] / "weights")}
    unknown = cost_of(Checkpoint(weights=weights, flops="unknown"), base)
    assert isnan(unknown.executed_flops) and isnan(unknown.fit_seconds) and isnan(unknown.train_params)
    assert flops_text(unknown) == "unknown"
    assert flops_text(cost_of(Checkpoint(weights=weights, flops="2e15"), base)) == "2.00e+15 (declared)"
    assert flops_text(cost_of(Base(), base)) == "0"


@pytest.mark.parametrize("options", [{}, {"flops": 0}, {"flops": "nothing"}, {"flops": -1}])
def test_the_cost_has_to_be_declared(options):
    with pytest.raises(ValueError, match="flops"):
        Adapter(adapter={"id": "somebody/lora"}, **options)


def test_a_checkpoint_of_another_shape_or_vocabulary_is_refused_before_work(shape, made, tiny_folders, tmp_path):
    def check(folder):
        Checkpoint(weights={"path": str(folder)}, flops="unknown").check(shape)

    with pytest.raises(ValueError, match=r"model_type is qwen3, but base .* has llama"):
        check(tiny_folders["qwen3"])
    with pytest.raises(ValueError, match="there is no folder"):
        check(tmp_path / "nowhere")
    folder = shutil.copytree(made[0] / "weights", tmp_path / "weights")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"up_proj.weight is missing; model.norm.weight is \(31,\), not \(32,\)"):
        check(folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is damaged"):
        check(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="give weights as safetensors"):
        check(folder)
    make_model("llama").save_pretrained(folder)
    tokenizer = json.loads(make_tokenizer().backend_tokenizer.to_str())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="numbers 2 tokens otherwise than the base's, first 'w2'"):
        check(folder)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{", "[" * 100_000])
def test_a_damaged_index_of_the_weights_is_named(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        shapes_in(tmp_path)


def test_an_adapter_for_other_modules_is_refused_and_one_for_another_base_is_noted(shape, made, tmp_path):
    folder = shutil.copytree(made[1] / "adapter", tmp_path / "adapter")
    method = Adapter(adapter={"path": str(folder)}, flops="unknown")
    assert not method.notes(shape)
    config = json.loads((folder / "adapter_config.json").read_text())

    def write(**changes):
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))

    write(base_model_name_or_path="somebody/another-7b")
    method.check(shape)
    (note,) = method.notes(shape)
    assert "trained on 'somebody/another-7b'" in note
    write(target_modules=["qkv"])
    with pytest.raises(ValueError, match=r"does not fit base .*qkv"):
        method.check(shape)
    write(r=4)
    with pytest.raises(ValueError, match=r"lora_A.weight is \(8, 32\), not \(4, 32\)"):
        method.check(shape)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"no adapter_config\.json"):
        method.check(shape)
