"""The residual stream of a base model over preference text, one token after another, in bounded memory."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.data.triples import Triple
from harness.model.aligned import AlignedModel
from harness.model.batching import pad_rows, positions_of
from harness.model.decoder import find_decoder
from harness.model.residuals import early_residuals


@dataclass(frozen=True)
class Text:
    """Token ids of a prompt with one of its answers; tokens before ``start`` are counted with another text."""

    ids: tuple[int, ...]
    start: int


def texts_of(base: AlignedModel, triples: Sequence[Triple]) -> list[Text]:
    """Prompt + chosen and prompt + rejected of every triple; a triple's prompt counts once.

    The prompt's residuals are the same before either answer, so counting them twice would only weigh them double.
    Raises ValueError for a triple that does not fit the context.
    """
    texts = []
    for triple in triples:
        prompt, chosen, rejected = base.triple_ids(triple)
        texts += [Text((*prompt, *chosen), 0), Text((*prompt, *rejected), len(prompt))]
    return texts


@dataclass(frozen=True)
class TextBatch:
    """Right-padded texts; ``counted`` are the tokens that an SAE is meant to see (no BOS, EOS, pad)."""

    ids: Int[Tensor, "row pos"]
    mask: Int[Tensor, "row pos"]
    counted: Bool[Tensor, "row pos"]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": positions_of(self.mask)}


def batch_texts(base: AlignedModel, texts: Sequence[Text], rows: int) -> Iterator[TextBatch]:
    """The texts in order, ``rows`` at a time."""
    special = torch.tensor(base.chat.special_ids, device=base.device)
    for begin in range(0, len(texts), rows):
        part = texts[begin : begin + rows]
        ids, mask = pad_rows([text.ids for text in part], base.chat.pad_id, side="right", device=base.device)
        start = torch.tensor([text.start for text in part], device=base.device)
        own = torch.arange(ids.shape[1], device=base.device) >= start[:, None]
        yield TextBatch(ids, mask, mask.bool() & own & ~torch.isin(ids, special))


def stream_tokens(
    base: AlignedModel, layer: int, texts: Sequence[Text], *, rows: int
) -> Iterator[Float[Tensor, "token d_model"]]:
    """Residual stream (fp32) after ``layer`` at the counted tokens of ``rows`` texts at a time, in order.

    The forward stops after ``layer``: what comes later, and the LM head, never run.
    """
    decoder = find_decoder(base.model)
    for batch in batch_texts(base, texts, rows):
        with torch.no_grad():
            residual = early_residuals(decoder, {layer}, batch.ids, batch.mask)[layer]
        yield residual[batch.counted].float()


def shuffled_forever(
    base: AlignedModel, layer: int, texts: Sequence[Text], *, rows: int, seed: int
) -> Iterator[Float[Tensor, "token d_model"]]:
    """`stream_tokens` over and over, the texts in a new order each time (fixed by ``seed``)."""
    draw = random.Random(seed)
    while True:
        yield from stream_tokens(base, layer, draw.sample(texts, len(texts)), rows=rows)
