"""Base models, artifacts and SAEs whose files are not all there, or hold no numbers, never become a model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from dspa.saes.sae import check_sae
from harness.data.refs import ModelRef, SAERef
from harness.experiment.check import check_base
from harness.judging.reward_model import check_classifier
from harness.method import BaseShape
from harness.model.aligned import AlignedModel
from harness.model.pretrained import read_config, read_model
from tests.conftest import D_MODEL, N_LAYERS

DOWN = "model.layers.1.mlp.down_proj.weight"


def changed(folder: Path, to: Path, change, file: str = "model.safetensors") -> Path:
    """A copy whose weights went through ``change``."""
    shutil.copytree(folder, to)
    tensors = load_file(to / file)
    change(tensors)
    save_file(tensors, to / file, metadata={"format": "pt"})
    return to


def rename(tensors):
    tensors["model.layers.1.mlp.down.weight"] = tensors.pop(DOWN)


def prefix(tensors):
    for name in list(tensors):
        tensors[f"x.{name}"] = tensors.pop(name)


def poison(value):
    def change(tensors):
        tensors[DOWN][3, 5] = value

    return change


DAMAGE = {
    "missing": (lambda t: t.pop(DOWN), f"lack what the configuration asks for: {DOWN}"),
    "renamed": (rename, f"lack .*{DOWN}.*there instead: model.layers.1.mlp.down.weight"),
    "all renamed": (prefix, "lack what the configuration asks for"),
    "misshapen": (lambda t: t.update({DOWN: t[DOWN][:, :-1].contiguous()}), "cannot read the weights"),
    "one layer too many": (lambda t: t.update({DOWN.replace("1", "9"): t[DOWN].clone()}), "layers that .* not have"),
    "NaN": (poison(float("nan")), f"NaN or infinite numbers in {DOWN}"),
    "inf": (poison(float("-inf")), f"NaN or infinite numbers in {DOWN}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_weights_that_do_not_fit_are_refused_before_work_and_when_loaded(tiny_folders, tmp_path, damage):
    change, complaint = DAMAGE[damage]
    ref = ModelRef(path=str(changed(tiny_folders["llama"], tmp_path / "m", change)))
    for refused in (check_base, AlignedModel.from_base):
        with pytest.raises(ValueError, match=complaint) as caught:
            refused(ref)
        assert str(tmp_path / "m") in str(caught.value)


@pytest.mark.parametrize("bytes_left", [0, 5, 200, -1])
def test_cut_weights_are_refused_by_name(tiny_folders, tmp_path, bytes_left):
    folder = Path(shutil.copytree(tiny_folders["llama"], tmp_path / "m"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:bytes_left])
    with pytest.raises(ValueError, match=r"cannot read the weights of .*m'"):
        check_base(ModelRef(path=str(folder)))


def test_tied_weights_need_be_there_only_once(tmp_path, tiny_folders):
    folder = tiny_folders["gemma2"]
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    check_base(ModelRef(path=str(folder)))


@pytest.mark.parametrize("value", [1e30, 6e4])
def test_numbers_whose_sum_overflows_are_numbers(tiny_folders, tmp_path, value):
    folder = changed(tiny_folders["llama"], tmp_path / "m", lambda t: t[DOWN].fill_(value))
    check_base(ModelRef(path=str(folder), dtype="bfloat16"))
    AlignedModel.from_base(ModelRef(path=str(folder), dtype="bfloat16"))


@pytest.mark.parametrize("left", ["nothing", "an empty vocabulary"])
def test_a_model_without_a_word_to_say_is_refused(tiny_folders, tmp_path, left):
    folder = Path(shutil.copytree(tiny_folders["llama"], tmp_path / "m"))
    for file in folder.glob("*token*"):
        file.unlink()
    if left == "an empty vocabulary":
        (folder / "tokenizer.json").write_text("{}")
    for refused in (check_base, AlignedModel.from_base):
        with pytest.raises(ValueError, match=r"the tokenizer of .*m'"):
            refused(ModelRef(path=str(folder)))


def test_a_classifier_may_lack_a_head_only_where_it_is_to_be_trained(tiny_folders, tmp_path):
    ref = ModelRef(path=str(tiny_folders["llama"]))
    check_classifier(ref, new_head=True)
    with pytest.raises(ValueError, match=r"lack what the configuration asks for: score\.weight"):
        check_classifier(ref, new_head=False)
    folder = changed(tiny_folders["llama"], tmp_path / "m", DAMAGE["missing"][0])
    with pytest.raises(ValueError, match="lack what the configuration asks for"):
        read_model(AutoModelForSequenceClassification, str(folder), new_head=True, num_labels=1)


@pytest.mark.parametrize("delta", ["weights", "adapter"])
def test_damaged_weights_of_an_artifact_are_refused_by_name(tiny_base, tmp_path, delta):
    base = tiny_base("llama")
    if delta == "adapter":
        from peft import LoraConfig, get_peft_model

        from baselines.training import sharing_copy

        lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(sharing_copy(base.model), lora)
    else:
        model = base.model
    base.derive(model=model, delta=delta).save(tmp_path / "good")
    name = "adapter_model.safetensors" if delta == "adapter" else "model.safetensors"
    first = sorted(load_file(tmp_path / "good" / delta / name))[0]
    for number, change in enumerate((lambda t: t[first].view(-1)[:1].fill_(float("nan")), lambda t: t.pop(first))):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", folder)
        shutil.rmtree(folder / delta)
        changed(tmp_path / "good" / delta, folder / delta, change, name)
        with pytest.raises(ValueError, match=r"NaN or infinite|lack|adapter .* is damaged") as caught:
            AlignedModel.load(folder, base=base.base)
        assert str(folder) in str(caught.value)
    (folder / delta / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"cannot read the weights of .*{delta}"):
        AlignedModel.load(folder, base=base.base)


SAE_DAMAGE = {
    "missing": (lambda t: t.pop("b_enc"), "damaged or does not belong"),
    "surplus": (lambda t: t.update(other=torch.zeros(2)), "damaged or does not belong"),
    "misshapen": (lambda t: t.update(W_dec=t["W_dec"][:-1].contiguous()), "damaged or does not belong"),
    "integers": (lambda t: t.update(W_enc=t["W_enc"].to(torch.int8)), "no floating-point numbers: {'W_enc': 'I8'}"),
    "NaN": (lambda t: t["W_enc"][0, :1].fill_(float("nan")), "NaN or infinite numbers in W_enc"),
    "inf": (lambda t: t["b_dec"][:1].fill_(float("inf")), "NaN or infinite numbers in b_dec"),
}


@pytest.mark.parametrize("damage", SAE_DAMAGE)
def test_an_sae_with_damaged_weights_is_refused_before_work(tiny_folders, tmp_path, damage):
    change, complaint = SAE_DAMAGE[damage]
    shape = BaseShape("tiny", n_layers=N_LAYERS, d_model=D_MODEL)
    folder = changed(tiny_folders["input"], tmp_path / "sae", change, "sae_weights.safetensors")
    with pytest.raises(ValueError, match=complaint):
        check_sae(SAERef(path=str(folder)), shape)


def test_attention_with_a_soft_cap_is_not_sdpa_which_has_none(tiny_folders):
    model = read_model(AutoModelForCausalLM, str(tiny_folders["gemma2"]))
    assert model.config.attn_logit_softcapping
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_quantised_weights_that_nobody_can_take_back_are_refused_with_what_to_give_instead(
    tiny_folders, tmp_path, method
):
    folder = Path(shutil.copytree(tiny_folders["llama"], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": method, "bits": 4}})
    )
    for refuse in (
        lambda: check_base(ModelRef(path=str(folder))),
        lambda: AlignedModel.from_base(ModelRef(path=str(folder))),
    ):
        with pytest.raises(
            ValueError, match=rf"model' are quantised \({method}\), and cannot .* model\.dequantize\(\)"
        ):
            refuse()
    with pytest.raises(ValueError, match=rf"model' are quantised \({method}\), and the FLOPs of such layers cannot be"):
        read_config(str(folder))
