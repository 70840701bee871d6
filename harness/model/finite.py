"""Logits that are no numbers: noticed while decoding and scoring, and traced to the layer where they begin."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from harness.model.decoder import captured, find_decoder
from harness.model.steering import Runtime
from harness.pulse import beat


class ChosenFinite(LogitsProcessor):
    """Keeps, for each step, whether the logit of the token that was chosen is a number; changes nothing.

    Greedy choice and sampling take a NaN or +inf wherever there is one, so the chosen logit stands for all; one number
    a row and step is looked at, and on a GPU nothing waits for it. First among the processors: later ones add noise.
    """

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._finite: list[Tensor] = []

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        self._see(input_ids)
        self._last = scores
        beat()
        return scores

    def steps(self, output: Int[Tensor, "batch pos"]) -> Bool[Tensor, "step batch"]:
        """For each step of the finished ``output``, whether each row's choice was a number."""
        self._see(output)
        return torch.stack(self._finite)

    def _see(self, ids: Int[Tensor, "batch pos"]) -> None:
        if self._last is not None:
            self._finite.append(self._last.gather(1, ids[:, -1:])[:, 0].isfinite())


@torch.no_grad()
def not_finite(runtime: Runtime, prompt: Sequence[int], continuation: Sequence[int], found: str) -> ValueError:
    """What to raise where logits are no numbers, with what was ``found`` and the first layer whose residual stream is
    none: ``prompt`` and ``continuation`` (which may be empty) are passed once more, steered as before."""
    decoder = find_decoder(runtime.model)
    ids = torch.tensor([[*prompt, *continuation]], device=runtime.device)
    with runtime.steering() as session, captured(decoder, range(decoder.n_layers)) as residual:
        if session is not None:
            session.prompt_lengths([len(prompt)])
        runtime.model(input_ids=ids, use_cache=False)
        wrong = [layer for layer in range(decoder.n_layers) if not residual[layer].isfinite().all()]
    where = f"the residual stream is finite after all {decoder.n_layers} layers, the final norm or LM head is not"
    if wrong:
        where = f"the residual stream after layer {wrong[0]} is the first to hold a NaN or an infinite number"
    if wrong == list(range(decoder.n_layers)):
        embedded = runtime.model.get_input_embeddings()(ids)
        where += "" if embedded.isfinite().all() else " (its input, the embeddings, is not finite either)"
    return ValueError(
        f"{found}; {where}. The model is broken, steered too far or, in a 16-bit dtype, overflows: nothing it says is "
        "scored"
    )
