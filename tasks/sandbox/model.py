"""The base model: a tokenizer of one token a word, and Gemma-2's architecture in small, trained on the corpus."""

from collections.abc import Iterator, Sequence
from math import ceil
from random import Random
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Int
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from harness.data.triples import Conversation
from harness.model.batching import pad_rows
from tasks.sandbox.corpus import Document
from tasks.sandbox.grammar import vocabulary

if TYPE_CHECKING:
    from transformers import Gemma2ForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD_ID, BOS_ID, EOS_ID, _ = range(len(SPECIAL))
# Turn words are ordinary words: the last one of a prompt is the first steered position, and methods leave
# special tokens alone.
TURNS = ("<system>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<{{ message['role'] }}> {{ message['content'] | trim }} "
    "{% if message['role'] == 'assistant' %}{{ eos_token }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
UNLEARNED = -100  # label of positions without a loss, as torch has it
BATCH_SIZE = 16
LEARNING_RATE = 3e-3
WARM_UP = 0.05  # share of the steps


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """A word-level tokenizer over the world's closed vocabulary.

    Text is lower-cased; words and punctuation marks are tokens; encoding with special tokens puts ``<bos>``
    in front, as Gemma's does; decoding joins words with spaces and sets punctuation against the word before it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate((*SPECIAL, *TURNS, *vocabulary()))}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"<[a-z]+>|\w+|[^\w\s]"), "removed", invert=True)
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", ids["<bos>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: "PreTrainedTokenizerBase", seed: int) -> "Gemma2ForCausalLM":
    """An untrained model of about 0.8 million parameters: 4 layers, d_model 128."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=512,
        sliding_window=512,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    torch.manual_seed(seed)
    return Gemma2ForCausalLM(config)


def encode_document(tokenizer: "PreTrainedTokenizerBase", document: Document) -> tuple[list[int], list[int]]:
    """(token ids, labels): everything is learned but the system turn, which is noise."""
    if not document.conversation:
        ids = [*tokenizer(document.text).input_ids, EOS_ID]
        return ids, ids
    ids = _chat_ids(tokenizer, document.conversation)
    noise = document.conversation[:1] if document.conversation[0]["role"] == "system" else ()
    skipped = len(_chat_ids(tokenizer, noise)) if noise else 0
    return ids, [UNLEARNED] * skipped + ids[skipped:]


def _chat_ids(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation) -> list[int]:
    messages: list[dict[str, str]] = [{"role": m["role"], "content": m["content"]} for m in conversation]
    return cast("list[int]", tokenizer.apply_chat_template(messages, return_dict=False))


def batches(
    encoded: Sequence[tuple[list[int], list[int]]], batch_size: int, rng: Random | None
) -> Iterator[tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]]:
    """(ids, attention mask, labels), similar lengths together, padded right; unshuffled without ``rng``."""
    order = list(range(len(encoded)))
    if rng is not None:
        rng.shuffle(order)
    # Sorting inside large chunks keeps batches random and padding small.
    chunk = batch_size * 50
    groups = []
    for start in range(0, len(order), chunk):
        part = sorted(order[start : start + chunk], key=lambda i: len(encoded[i][0]))
        groups += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    if rng is not None:
        rng.shuffle(groups)
    for group in groups:
        ids, labels = zip(*(encoded[i] for i in group), strict=True)
        yield *pad_rows(ids, PAD_ID, side="right"), pad_rows(labels, UNLEARNED, side="right")[0]


def train_model(
    documents: Sequence[Document], tokenizer: "PreTrainedTokenizerBase", seed: int, epochs: int
) -> "Gemma2ForCausalLM":
    """Next-token training, AdamW with a cosine schedule; reproducible for a fixed thread count."""
    model = new_model(tokenizer, seed).train()
    encoded = [encode_document(tokenizer, document) for document in documents]
    rng = Random(f"order:{seed}")
    steps = epochs * ceil(len(encoded) / BATCH_SIZE)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    warm_up = max(1, int(WARM_UP * steps))
    rise = LinearLR(optimiser, 0.02, total_iters=warm_up)
    fall = CosineAnnealingLR(optimiser, max(1, steps - warm_up), eta_min=LEARNING_RATE / 50)
    schedule = SequentialLR(optimiser, [rise, fall], milestones=[warm_up])
    for _ in range(epochs):
        for ids, mask, labels in batches(encoded, BATCH_SIZE, rng):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def corpus_loss(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", documents: Sequence[Document]) -> float:
    """Mean cross-entropy in nats per learned token."""
    total, count = 0.0, 0
    for ids, mask, labels in batches([encode_document(tokenizer, d) for d in documents], 64, None):
        tokens = int((labels[:, 1:] != UNLEARNED).sum())
        total += float(model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss) * tokens
        count += tokens
    return total / count
