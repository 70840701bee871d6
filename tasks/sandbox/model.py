"""The base model: Gemma-2's architecture in small, trained on the corpus from a seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Int
from torch import Tensor

from harness.data.triples import Conversation
from tasks.sandbox.corpus import Document
from tasks.sandbox.tokenizer import BOS_ID, EOS_ID, PAD_ID

if TYPE_CHECKING:
    from transformers import Gemma2ForCausalLM, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Training:
    """How long and how the base model is trained."""

    epochs: int = 2
    batch_size: int = 16
    learning_rate: float = 3e-3
    warm_up: float = 0.05


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


def encode_document(tokenizer: "PreTrainedTokenizerBase", document: Document) -> tuple[list[int], list[bool]]:
    """Token ids and, for each, whether it is learned: everything but the system turn, which is noise."""
    if not document.conversation:
        ids = [*tokenizer(document.text).input_ids, EOS_ID]
        return ids, [True] * len(ids)
    ids = _chat_ids(tokenizer, document.conversation)
    skipped = 0
    if document.conversation[0]["role"] == "system":
        skipped = len(_chat_ids(tokenizer, document.conversation[:1]))
    return ids, [index >= skipped for index in range(len(ids))]


def _chat_ids(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation) -> list[int]:
    messages: list[dict[str, str]] = [{"role": m["role"], "content": m["content"]} for m in conversation]
    return cast("list[int]", tokenizer.apply_chat_template(messages, return_dict=False))


def batches(
    encoded: Sequence[tuple[list[int], list[bool]]], batch_size: int, rng: Random | None
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
        width = max(len(encoded[i][0]) for i in group)
        ids = torch.full((len(group), width), PAD_ID)
        mask = torch.zeros((len(group), width), dtype=torch.long)
        labels = torch.full((len(group), width), -100)
        for row, index in enumerate(group):
            tokens, learned = encoded[index]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            labels[row, : len(tokens)] = torch.tensor(
                [t if keep else -100 for t, keep in zip(tokens, learned, strict=True)]
            )
        yield ids, mask, labels


def train_model(
    documents: Sequence[Document], tokenizer: "PreTrainedTokenizerBase", seed: int, training: Training
) -> "Gemma2ForCausalLM":
    """Next-token training, AdamW with a cosine schedule; reproducible for a fixed thread count."""
    model = new_model(tokenizer, seed)
    model.train()
    encoded = [encode_document(tokenizer, document) for document in documents]
    rng = Random(f"order:{seed}")
    steps = training.epochs * -(-len(encoded) // training.batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    warm_up = max(1, int(training.warm_up * steps))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimiser,
        [
            torch.optim.lr_scheduler.LinearLR(optimiser, 0.02, total_iters=warm_up),
            torch.optim.lr_scheduler.CosineAnnealingLR(
                optimiser, max(1, steps - warm_up), eta_min=training.learning_rate / 50
            ),
        ],
        milestones=[warm_up],
    )
    for _ in range(training.epochs):
        for ids, mask, labels in batches(encoded, training.batch_size, rng):
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
        tokens = int((labels[:, 1:] != -100).sum())
        total += float(model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss) * tokens
        count += tokens
    return total / count


def save_model(model: "Gemma2ForCausalLM", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write both in Hugging Face format, float32."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
