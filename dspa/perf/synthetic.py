"""What is measured on: random models of real proportions, words to feed them, and SAEs that fire as sparsely on them as
Gemma Scope's do on theirs. Speed does not depend on what the weights mean."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from harness.data.refs import ModelRef, SAERef
from harness.data.triples import Triple, conversation
from harness.model.aligned import AlignedModel
from harness.model.base import BaseModel
from harness.model.batching import pad_rows
from harness.model.chat import ChatFormat
from harness.model.decoder import find_decoder
from harness.model.residuals import early_residuals

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "Human:", "Assistant:")
_TOPICS, _TOPIC_WORDS = 12, 150
_LONGEST_PROMPT, _LONGEST_ANSWER = 384, 192
ACTIVE_SHARE = 70 / 16_384
"""Mean share of latents active on a token: Gemma Scope's canonical 16k SAEs of Gemma-2-2B have L0 of about 70."""
_SPREAD = 1.5  # of the logarithm of latents' frequencies: a few fire on every tenth token, most on one of a thousand


@dataclass(frozen=True)
class Shape:
    """A model to make up: its configuration, and the layers that the method reads and writes (l_in, l_out)."""

    family: str
    config: dict[str, Any]
    layers: tuple[int, int]


def _gemma2(width: int, heads_width: int, vocabulary: int, n_layers: int = 26) -> dict[str, Any]:
    sizes = {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 4 * width}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": heads_width}
    attention = {"query_pre_attn_scalar": heads_width, "sliding_window": 4096}
    return {**sizes, "num_hidden_layers": n_layers, **heads, **attention}


SHAPES = {
    # A quarter of Gemma-2-2B's width and vocabulary, all of its layers: they and the LM head cost in proportion.
    "quarter-gemma-2-2b": Shape("gemma2", _gemma2(576, 64, 64_000), (7, 24)),
    "gemma-2-2b": Shape("gemma2", _gemma2(2304, 256, 256_000), (7, 24)),
    "qwen3-8b": Shape(
        "qwen3",
        {
            "vocab_size": 151_936,
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": False,
        },
        (9, 18),
    ),
    "tiny": Shape("gemma2", _gemma2(32, 8, 256, n_layers=4), (1, 2)),  # for trying the commands: too small to time
}


def make_base(shape: Shape, *, dtype: str, device: str, seed: int) -> AlignedModel:
    """A model with random weights and a tokenizer of words w0, w1, ..."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        shape.family, max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape.config
    )
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), trust_remote_code=False
        )
    model.generation_config = GenerationConfig()
    words = [*_SPECIAL, *(f"w{i}" for i in range(shape.config["vocab_size"] - len(_SPECIAL)))]
    whole_words = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    whole_words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole_words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    ref = ModelRef(id="synthetic", dtype=dtype)  # type: ignore[arg-type]
    base = BaseModel(ref, model.eval(), tokenizer, ChatFormat.of(tokenizer))
    return AlignedModel(base, model)


@dataclass(frozen=True)
class Lengths:
    """Medians of log-normal lengths in tokens. The defaults follow the harmless test split of HH-RLHF, where a prompt
    (the whole history) has 65 words in the median and 87 in the mean, an answer 24 and 35, at 1.3 tokens a word."""

    prompt: int = 84
    answer: int = 31


class Writer:
    """Random texts: words by Zipf's law, a fifth of them from the text's topic, answers in one of two registers."""

    def __init__(self, base: AlignedModel, *, seed: int) -> None:
        self._draw = random.Random(seed)
        self._n_words = base.tokenizer.vocab_size - len(_SPECIAL)  # type: ignore[operator]
        self._topics = [
            self._draw.sample(range(self._n_words), min(_TOPIC_WORDS, self._n_words // 4)) for _ in range(_TOPICS)
        ]
        self._cumulative = torch.arange(1, self._n_words + 1).double().reciprocal().cumsum(0).tolist()

    def triples(self, n: int, lengths: Lengths) -> list[Triple]:
        """Triples whose chosen answers lean to even words and whose rejected ones lean to odd words."""
        triples = []
        for _ in range(n):
            topic = self._draw.choice(self._topics)
            sizes = [self._length(lengths.prompt, _LONGEST_PROMPT)]
            sizes += [self._length(lengths.answer, _LONGEST_ANSWER) for _ in range(2)]
            prompt, chosen, rejected = map(self._text, sizes, [topic] * 3, (None, 0, 1))
            triples.append(Triple(conversation(prompt), chosen, rejected))
        return triples

    def continuation(self, n: int) -> str:
        """``n`` words of no topic in the rejected answers' register."""
        return self._text(n, self._draw.choice(self._topics), 1)

    def _length(self, median: int, longest: int) -> int:
        return min(max(round(median * self._draw.lognormvariate(0, 0.8)), 4), longest)

    def _text(self, n: int, topic: list[int], register: int | None) -> str:
        words = self._draw.choices(range(self._n_words), cum_weights=self._cumulative, k=n)
        words = [self._draw.choice(topic) if self._draw.random() < 0.2 else word for word in words]
        if register is not None:  # half of the words are moved to the register's neighbour
            words = [w ^ 1 if w % 2 != register and self._draw.random() < 0.5 else w for w in words]
        return " ".join(f"w{min(word, self._n_words - 1)}" for word in words)


@dataclass(frozen=True)
class SAEPair:
    """SAEs at a model's (l_in, l_out); ``about`` says which, in a report. ``always`` is the output SAE with every
    latent firing on nearly every token, the worst case for lazy encoding: only made-up ones have it."""

    input: SAERef
    output: SAERef
    always: SAERef | None
    d_sae: int
    size_ratio: float
    """Parameters of one SAE's encoder and decoder over those of the model."""
    about: str


def make_saes(
    base: AlignedModel, layers: tuple[int, int], triples: Sequence[Triple], folder: Path, *, ratio: float, seed: int
) -> SAEPair:
    """SAEs with ``ratio`` times the model's parameters, calibrated on the tokens of ``triples``, in ``folder``."""
    d_model = int(base.model.config.hidden_size)
    n_model = sum(p.numel() for p in base.model.parameters())
    d_sae = max(round(ratio * n_model / (2 * d_model)), 64)
    residuals = _residuals(base, layers, triples)
    generator = torch.Generator(device=base.device).manual_seed(seed)
    config = {"architecture": "jumprelu", "d_in": d_model, "d_sae": d_sae, "dtype": "float32"}
    config |= {"device": str(base.device), "apply_b_dec_to_input": False}
    refs = {}
    for name, layer in (("input", layers[0]), ("output", layers[1]), ("always", layers[1])):
        sae = SAE.from_dict(config | {"metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"}})
        directions = torch.randn(d_sae, d_model, generator=generator, device=base.device)
        sae.W_dec.data = directions / directions.norm(dim=1, keepdim=True)
        sae.W_enc.data = sae.W_dec.data.t().contiguous()
        pre = residuals[layer] @ sae.W_enc.data
        if name == "always":
            sae.b_enc.data = 0.1 - pre.amin(0)
        else:
            sae.b_enc.data = -pre.mean(0)
            sae.threshold.data = _thresholds(pre + sae.b_enc.data, generator)
        sae.save_model(folder / name)
        refs[name] = SAERef.model_validate({"path": str(folder / name)})
    kind = f"JumpReLU, calibrated to the sparsity of Gemma Scope (L0 {ACTIVE_SHARE * d_sae:.0f})"
    about = f"{d_sae} latents at layers {layers[0]} and {layers[1]}, {kind}"
    return SAEPair(**refs, d_sae=d_sae, size_ratio=2 * d_sae * d_model / n_model, about=about)


def firing_shares(normal: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """Standard normal variates -> log-normal shares of tokens on which latents fire, with mean `ACTIVE_SHARE`."""
    return ACTIVE_SHARE * (normal * _SPREAD - _SPREAD**2 / 2).exp()


def _thresholds(pre: Float[Tensor, "token d_sae"], generator: torch.Generator) -> Float[Tensor, " d_sae"]:
    """Those at which the latents fire with log-normal frequencies on these tokens."""
    share = firing_shares(torch.randn(pre.shape[1], generator=generator, device=pre.device)).clamp(max=0.5)
    active = (share * len(pre)).round().long()
    ordered = pre.sort(dim=0, descending=True).values
    return ordered.gather(0, active[None])[0].clamp(min=0)


@torch.no_grad()
def _residuals(
    base: AlignedModel, layers: tuple[int, int], triples: Sequence[Triple]
) -> dict[int, Float[Tensor, "token d_model"]]:
    """Residual stream of prompts with their chosen answers, without special tokens."""
    decoder = find_decoder(base.model)
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for triple in triples:
        prompt, chosen, _ = base.triple_ids(triple)
        ids, mask = pad_rows([prompt + chosen], base.chat.pad_id, side="right", device=base.device)
        residual = early_residuals(decoder, set(layers), ids, mask)
        counted = ~torch.isin(ids, torch.tensor(base.chat.special_ids, device=base.device))
        for layer in layers:
            kept[layer].append(residual[layer][counted].float())
    return {layer: torch.cat(parts) for layer, parts in kept.items()}
