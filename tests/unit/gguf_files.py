"""A tiny Llama as a GGUF file, written weight by weight."""

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize

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
