"""Random models of real proportions, with words to feed them: speed does not depend on what the weights mean."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from harness.base_model import BaseModel
from harness.chat import ChatFormat
from harness.model import AlignedModel
from harness.preferences import Triple, conversation
from harness.refs import ModelRef

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "Human:", "Assistant:")
_TOPICS, _TOPIC_WORDS = 12, 150
_LONGEST_PROMPT, _LONGEST_ANSWER = 384, 192


@dataclass(frozen=True)
class Shape:
    """A model to make up: its configuration, and the layers that the method reads and writes (l_in, l_out)."""

    family: str
    config: dict[str, Any]
    layers: tuple[int, int]


def _gemma2(width: int, heads_width: int, vocabulary: int, n_layers: int = 26) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": heads_width,
        "query_pre_attn_scalar": heads_width,
        "sliding_window": 4096,
    }


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
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.generation_config = GenerationConfig()
    tokenizer = _tokenizer(shape.config["vocab_size"])
    ref = ModelRef(id="synthetic", dtype=dtype)  # type: ignore[arg-type]
    base = BaseModel(ref, model.eval(), tokenizer, ChatFormat.of(tokenizer))
    return AlignedModel(base, model)


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    words = [*_SPECIAL, *(f"w{i}" for i in range(size - len(_SPECIAL)))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


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
            prompt, chosen, rejected = (
                self._text(size, topic, register) for size, register in zip(sizes, (None, 0, 1), strict=True)
            )
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
