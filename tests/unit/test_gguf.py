"""Models from GGUF files: what is unpacked is what the file holds, once, and what is none is refused."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize

from harness.data.refs import ModelRef, model_ref
from harness.data.triples import conversation
from harness.experiment.check import check_base
from harness.files import content_hash
from harness.model import gguf
from harness.model.aligned import AlignedModel

HEADS, KV_HEADS = 4, 2
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁b", "▁cat", "▁dog", "▁and"]
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}<s>assistant: "


def llama_tensors() -> dict[str, np.ndarray]:
    """Weights of a two-layer Llama under GGUF's names; widths are those of a block of 32 numbers."""
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(0, 0.3, (rows, columns)).astype(np.float32)

    tensors = {"token_embd.weight": matrix(len(TOKENS), 64), "output_norm.weight": np.ones(64, np.float32)}
    for block in range(2):
        kv = 64 // HEADS * KV_HEADS
        sizes = {"attn_q": (64, 64), "attn_k": (kv, 64), "attn_v": (kv, 64), "attn_output": (64, 64)}
        sizes |= {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}
        tensors |= {f"blk.{block}.{name}.weight": matrix(*size) for name, size in sizes.items()}
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{block}.{name}.weight"] = rng.normal(1, 0.1, 64).astype(np.float32)
    return tensors


def write(path, *, quantised: bool = True, architecture: str = "llama"):
    """A GGUF file; matrices in Q8_0 where ``quantised``."""
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * 3 + [-1.0] * 256 + [-float(n) for n in range(2, len(TOKENS) - 257)])
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    writer.add_token_types(kinds + [TokenType.NORMAL] * (len(TOKENS) - len(kinds)))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in llama_tensors().items():
        if quantised and tensor.ndim == 2:
            codes = quantize(tensor, GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, codes, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv(gguf.CACHE_VARIABLE, str(tmp_path / "cache"))
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
    folder = gguf.unpacked(path)
    moved = path.rename(tmp_path / "moved.gguf")

    def refuse(*_):
        raise AssertionError("unpacked twice")

    monkeypatch.setattr(gguf, "_unpack", refuse)
    assert gguf.unpacked(moved) == folder
    assert {file.name for file in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_file_that_cannot_be_read_is_refused_and_leaves_nothing_behind(cache, tmp_path):
    no_gguf = tmp_path / "text.gguf"
    no_gguf.write_text("weights")
    with pytest.raises(ValueError, match=r"text.gguf' is no GGUF file \(it does not begin with 'GGUF'\)"):
        check_base(ModelRef(path=str(no_gguf)))
    with pytest.raises(ValueError, match=r"unknown.gguf': GGUF model with architecture mamba9 is not supported"):
        check_base(ModelRef(path=str(write(tmp_path / "unknown.gguf", architecture="mamba9"))))
    whole = write(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read GGUF model .*cut.gguf"):
        check_base(ModelRef(path=str(tmp_path / "cut.gguf")))
    with pytest.raises(ValueError, match=r"base model file '/nowhere/x.gguf' does not exist"):
        check_base(model_ref("/nowhere/x.gguf", "auto"))
    assert not [path for path in cache.rglob("*") if path.is_dir() and path.name != "gguf"]


def test_without_the_package_it_says_what_to_install(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "is_gguf_available", lambda: False)
    with pytest.raises(ValueError, match="is a GGUF file; to read it install the package: pip install gguf"):
        check_base(ModelRef(path=str(write(tmp_path / "tiny.gguf"))))


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(gguf.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"\$DSPA_BENCH_CACHE .* cannot be made"):
        gguf.unpacked(write(tmp_path / "tiny.gguf"))
