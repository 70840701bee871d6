"""What steering did to an answer, token by token: which latents were edited, from which activation, by how much."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.model.decoder import captured, find_decoder
from harness.model.intervention import EditsLatents, Intervention, LatentEdits, Mask, Residual, RowState
from harness.model.steering import Runtime

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Trace:
    """An answer of m tokens, and what was added to the residual stream where each of them was predicted.

    ``tokens`` are their texts, which joined are the answer's (a character of several tokens stands at its last one).
    ``size`` is the length of what was added over that of the residual stream it was added to, the largest of the layers
    written to. ``latents`` are the k of the SAE that the prompt selected for editing, ``before`` their activations
    and ``change`` what was added to these; k is 0 for an intervention that does not edit latents.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    size: Float[Tensor, " m"]
    latents: tuple[int, ...]
    before: Float[Tensor, "m k"]
    change: Float[Tensor, "m k"]

    def edits(self, token: int) -> list[tuple[int, float, float]]:
        """(latent, activation, change of it) for every latent that was edited at a token, the largest change first."""
        found = self.change[token].abs().argsort(descending=True, stable=True)
        found = found[self.change[token][found] != 0].tolist()
        return [(self.latents[k], float(self.before[token, k]), float(self.change[token, k])) for k in found]

    def frame(self) -> "pd.DataFrame":
        """A row for every edit: position of the token in the answer, its text, latent, activation, change."""
        import pandas as pd

        rows = [(i, text, *edit) for i, text in enumerate(self.tokens) for edit in self.edits(i)]
        return pd.DataFrame(rows, columns=pd.Index(["position", "token", "latent", "before", "change"]))

    def __repr__(self) -> str:
        edited = int((self.size > 0).sum())
        return f"<Trace of {len(self.tokens)} tokens, {edited} edited, {len(self.latents)} latents selected>"


class Recorder:
    """Notes what an intervention adds in a steering session of one row, which is given ``intervention`` instead of it.

    So it can be used while a model decodes as well as over an answer that is there.
    """

    def __init__(self, intervention: Intervention) -> None:
        self._latents: list[LatentEdits] = []
        self._sizes: dict[int, list[Tensor]] = {}
        add, edits = intervention.delta, intervention.edits if isinstance(intervention, EditsLatents) else None

        def delta(layer: int, residual: Residual, state: RowState, steered: Mask, *, tally: Any = None) -> Any:
            if edits is not None:
                self._latents.append(edits(layer, residual, state, steered))
            added = add(layer, residual, state, steered, tally=tally)
            whole = torch.linalg.vector_norm(residual.float(), dim=-1).clamp(min=1e-9)
            length = torch.zeros_like(whole) if added is None else torch.linalg.vector_norm(added.float(), dim=-1)
            self._sizes.setdefault(layer, []).append(length / whole)
            return added

        self.intervention = copy.copy(intervention)
        """Does the same as the one given; belongs to this recorder."""
        self.intervention.delta = delta  # type: ignore[method-assign]

    def trace(self, tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> Trace:
        """Of an answer: what was noted at the last ``len(token_ids)`` positions that were passed."""
        m = len(token_ids)
        sizes = [torch.cat(parts, dim=1)[0, -m:].float().cpu() for parts in self._sizes.values()]
        before, change, latents = torch.zeros(m, 0), torch.zeros(m, 0), torch.zeros(0, dtype=torch.long)
        if self._latents:
            latents = self._latents[-1].latents[0].cpu()
            before = torch.cat([one.before[0] for one in self._latents])[-m:].float().cpu()
            change = torch.cat([one.change[0] for one in self._latents])[-m:].float().cpu()
        kept = latents >= 0
        return Trace(
            tuple(token_ids),
            pieces(partial(tokenizer.decode, clean_up_tokenization_spaces=False), token_ids),
            torch.stack(sizes).amax(0),
            tuple(latents[kept].tolist()),
            before[:, kept],
            change[:, kept],
        )


@torch.no_grad()
def trace_answer(runtime: Runtime, prompt: Sequence[int], answer: Sequence[int]) -> Trace:
    """Trace ``answer`` (token ids) to ``prompt``: one forward over both, steered as while the answer was decoded.

    What is edited follows from the tokens alone, so this is what happened when they were generated, up to rounding:
    where an activation is at its cut, decoding in another batch may have come out on the other side. Raises ValueError
    for a model that is not steered, an empty prompt or answer, and for more tokens than the context has.
    """
    if runtime.intervention is None:
        raise ValueError("nothing steers this model, so there are no edits to trace")
    if not prompt or not answer:
        raise ValueError(f"a trace needs a prompt and an answer; they have {len(prompt)} and {len(answer)} tokens")
    ids = [*prompt, *answer[:-1]]  # nothing was predicted from the last token
    if len(ids) > runtime.max_length:
        raise ValueError(f"{len(ids) + 1} tokens exceed the context of {runtime.max_length}; shorten the answer")
    recorder = Recorder(runtime.intervention)
    decoder, layers = find_decoder(runtime.model), recorder.intervention.write_layers
    with replace(runtime, intervention=recorder.intervention).steering() as session:
        assert session is not None
        session.prompt_lengths([len(prompt)])
        with captured(decoder, layers, stop=True):
            decoder.stack(input_ids=torch.tensor([ids], device=runtime.device), use_cache=False)
    return recorder.trace(runtime.chat.tokenizer, answer)


def marked(parts: Sequence[str], marks: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    """Where those of ``parts`` with a mark are in the stripped text of all: [start, end) in characters, neighbours as
    one, without space in front."""
    text, found, end = "".join(parts), list[tuple[int, int]](), 0
    before, length = len(text) - len(text.lstrip()), len(text.strip())
    for part, mark in zip(parts, marks, strict=True):
        start, end = end, end + len(part)
        last = min(length, end - before)
        if mark and found and found[-1][1] == start - before < last:
            found[-1] = found[-1][0], last
        elif mark and (first := max(0, end - len(part.lstrip()) - before)) < last:
            found.append((first, last))
    return tuple(found)


def pieces(decode: Callable[[list[int]], Any], token_ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds; a token that ends within a character adds nothing, the one that ends it all."""
    ids, found, before, read = list(token_ids), [], 0, 0
    for end in range(1, len(ids) + 1):  # decoded from a little before, where the last piece began: linear in all
        known, longer = str(decode(ids[before:read])), str(decode(ids[before:end]))
        within = longer.endswith("\ufffd") and end < len(ids)
        found.append("" if within else longer[len(known) :])
        if not within and len(longer) > len(known):
            before, read = read, end
    return tuple(found)
