"""Quantised models: what is unpacked is what the file or folder holds, once, and what is none is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

from baselines import SFT
from harness.data.refs import ModelRef, model_ref
from harness.data.triples import Budget, conversation
from harness.experiment.check import check_base
from harness.experiment.fitting import fit
from harness.files import content_hash, folder_hash
from harness.model import dequantised
from harness.model.aligned import AlignedModel
from harness.model.dequantised import source_of
from tests.unit.gguf_files import HEADS, llama_tensors, write
from tests.waiting import wait_until


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv(dequantised.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("quantised", [False, True])
def test_the_weights_are_those_of_the_file(cache, tmp_path, quantised):
    base = AlignedModel.from_base(ModelRef(path=str(write(tmp_path / "tiny.gguf", quantised=quantised))))
    state, written = base.model.state_dict(), llama_tensors()

    def stored(name: str) -> np.ndarray:
        tensor = written[name]
        if not quantised or tensor.ndim == 1:
            return tensor
        return dequantize(quantize(tensor, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)

    same = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.1.input_layernorm.weight": "blk.1.attn_norm.weight",
    }
    for ours, theirs in same.items():
        assert torch.equal(state[ours], torch.from_numpy(stored(theirs))), ours
    # GGUF keeps the two halves of each head's rotary dimensions in turns.
    turned = stored("blk.0.attn_q.weight").reshape(HEADS, 64 // HEADS // 2, 2, 64).swapaxes(1, 2).reshape(64, 64)
    assert torch.equal(state["model.layers.0.self_attn.q_proj.weight"], torch.from_numpy(turned.copy()))
    assert not hasattr(base.model.config, "quantization_config")
    assert (base.base.max_length, base.chat.kind) == (128, "tokenizer")


def test_it_is_one_model_for_all_code_paths_and_identified_by_its_content(cache, tmp_path):
    path = write(tmp_path / "tiny.gguf")
    ref = ModelRef(path=str(path))
    shape = check_base(ref)
    assert (shape.n_layers, shape.d_model, shape.model_type) == (2, 64, "llama")
    base = AlignedModel.from_base(ref)
    assert base.base.identity == content_hash(path)
    first = base.generate([conversation("cat and dog")], max_new_tokens=5)[0].text
    base.derive(system_prompt="a").save(tmp_path / "artifact")
    again = AlignedModel.load(tmp_path / "artifact")
    assert again.unaligned().generate([conversation("cat and dog")], max_new_tokens=5)[0].text == first


def test_it_is_unpacked_once_wherever_it_lies(cache, tmp_path, monkeypatch):
    path = write(tmp_path / "tiny.gguf")
    folder = dequantised.unpacked(path)
    moved = path.rename(tmp_path / "moved.gguf")

    def refuse(*_):
        raise AssertionError("unpacked twice")

    monkeypatch.setattr(dequantised, "_write", refuse)
    assert dequantised.unpacked(moved) == folder
    assert {file.name for file in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}


UNPACKING = """
import sys, time
from pathlib import Path
from harness.model import dequantised

unpack, (file, asked, began, go) = dequantised._write, sys.argv[1:]

def held(*arguments):
    Path(began).touch()
    while not Path(go).exists():
        time.sleep(0.01)
    unpack(*arguments)

dequantised._write = held
Path(asked).touch()
print(dequantised.unpacked(file))
"""
"""Asks for a file's folder, and unpacks no sooner than ``go`` is there."""


def test_of_two_processes_at_once_one_unpacks_and_the_other_waits_for_the_whole_folder(cache, tmp_path):
    path, go = write(tmp_path / "tiny.gguf"), tmp_path / "go"
    asked, began = ([tmp_path / f"{what}{number}" for number in range(2)] for what in ("asked", "began"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UNPACKING, path, *marks, go],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for marks in zip(asked, began, strict=True)
    ]
    wait_until(lambda: all(m.exists() for m in asked) and any(m.exists() for m in began), *processes)
    assert not [found for found in (cache / "gguf").iterdir() if found.is_dir() and found.suffix == ""], "not yet whole"
    go.touch()
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sum(mark.exists() for mark in began) == 1, "the other found it unpacked"
    folder = cache / "gguf" / content_hash(path)
    assert [out.strip() for out, _ in said] == [str(folder)] * 2
    assert [found for found in folder.parent.iterdir() if found.is_dir()] == [folder]
    assert AlignedModel.from_base(ModelRef(path=str(folder))).base.max_length == 128


def test_a_process_that_died_while_unpacking_keeps_nobody_waiting(cache, tmp_path):
    path, began = write(tmp_path / "tiny.gguf"), tmp_path / "began"
    process = subprocess.Popen([sys.executable, "-c", UNPACKING, path, tmp_path / "asked", began, tmp_path / "never"])
    wait_until(began.exists, process)
    process.kill()
    process.wait()
    assert (dequantised.unpacked(path) / "model.safetensors").is_file()


def test_a_file_that_cannot_be_read_is_refused_and_leaves_nothing_behind(cache, tmp_path):
    no_gguf = tmp_path / "text.gguf"
    no_gguf.write_text("weights")
    with pytest.raises(ValueError, match=r"text.gguf' is no GGUF file \(it does not begin with 'GGUF'\)"):
        check_base(ModelRef(path=str(no_gguf)))
    with pytest.raises(ValueError, match=r"unknown.gguf': .*: GGUF model with architecture mamba9 is not supported"):
        check_base(ModelRef(path=str(write(tmp_path / "unknown.gguf", architecture="mamba9"))))
    whole = write(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read GGUF model .*cut.gguf"):
        check_base(ModelRef(path=str(tmp_path / "cut.gguf")))
    with pytest.raises(ValueError, match=r"base model file '/nowhere/x.gguf' does not exist"):
        check_base(model_ref("/nowhere/x.gguf", "auto"))
    assert not [path for path in cache.rglob("*") if path.is_dir() and path.name != "gguf"]


def test_without_the_package_it_says_what_to_install(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(dequantised, "is_gguf_available", lambda: False)
    with pytest.raises(ValueError, match="is a GGUF file; to read it install the package: pip install gguf"):
        check_base(ModelRef(path=str(write(tmp_path / "tiny.gguf"))))


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(dequantised.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"\$DSPA_BENCH_CACHE .* cannot be made"):
        dequantised.unpacked(write(tmp_path / "tiny.gguf"))


def fp8(folder, block=16):
    """Quantise the projections of the model in ``folder`` by blocks; name -> what scales and codes give."""
    tensors, given = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        blocks = tensors[name].reshape(rows // block, block, columns // block, block)
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        codes = (blocks / scale).to(torch.float8_e4m3fn)
        given[name] = (codes.float() * scale).reshape(rows, columns)
        tensors[name], tensors[f"{name}_scale_inv"] = codes.reshape(rows, columns), scale[:, 0, :, 0].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    told = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": told}))
    return given


def test_a_folder_in_fp8_is_what_its_scales_and_codes_give(cache, tmp_path, tiny_folders):
    folder = shutil.copytree(tiny_folders["llama"], tmp_path / "model")
    given, ref = fp8(folder), ModelRef(path=str(folder))
    assert check_base(ref).n_layers == 4
    base = AlignedModel.from_base(ref)
    there, before = base.model.state_dict(), load_file(tiny_folders["llama"] / "model.safetensors")
    assert len(given) == 4 * 7 and not base.model.config.to_dict().get("quantization_config")
    for name, tensor in there.items():
        assert torch.equal(tensor, given.get(name, before.get(name, tensor))), name
    assert not all(torch.equal(there[name], before[name]) for name in given)
    assert base.base.identity == folder_hash(folder) and Path(source_of(ref)).parent == cache / "plain"


def test_a_method_trains_on_it_and_its_bill_is_that_of_plain_matrices(
    cache, tmp_path, tiny_folders, tiny_base, triples
):
    folder = shutil.copytree(tiny_folders["llama"], tmp_path / "model")
    fp8(folder)
    bases, budget = (
        (AlignedModel.from_base(ModelRef(path=str(folder))), tiny_base("llama")),
        Budget(tuple(triples[:4]), 0),
    )
    bills = [fit(SFT(tuning="lora"), base, budget, 0).bill for base in bases]
    assert bills[0]["executed_flops"] == bills[1]["executed_flops"] > 0


def test_broken_scales_are_refused(cache, tmp_path, tiny_folders):
    folder = shutil.copytree(tiny_folders["llama"], tmp_path / "model")
    fp8(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_scale_inv"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"NaN or infinite numbers in model\.layers\.1\.mlp\.up_proj\.weight"):
        check_base(ModelRef(path=str(folder)))
    assert not list(cache.rglob("config.json"))
