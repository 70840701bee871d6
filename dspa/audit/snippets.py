"""Where a latent fires most: windows of text around its strongest activations, active tokens in [[brackets]]."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from dspa.audit.scan import Batch
from dspa.audit.texts import Text
from dspa.saes.sae import ResidualSAE

WINDOW = 16  # tokens shown to either side of the strongest one
_SPACE = " \n\t"


@dataclass(frozen=True)
class Snippet:
    """``text``: the window with active tokens in [[ ]]; ``token``: the strongest one; ``kind``: what text it is of."""

    text: str
    token: str
    activation: float
    kind: int


@dataclass(frozen=True)
class _Found:
    activation: float
    row: int
    peak: int
    kind: int
    start: int
    active: tuple[bool, ...]


class SnippetCollector:
    """Keeps, for each of ``latents``, the ``count`` strongest places, at most one in a text."""

    def __init__(self, sae: ResidualSAE, latents: Sequence[int], count: int, limit: float | None = None) -> None:
        self.sae, self.latents, self.count, self.limit = sae, list(latents), count, limit
        self._index: Int[Tensor, "1 k"] = torch.tensor([self.latents], dtype=torch.long)
        self._rows = sae.encoder.gather(self._index) if self.latents else {}
        self._found: list[dict[tuple[int, ...], _Found]] = [{} for _ in self.latents]

    def add(self, batch: Batch) -> None:
        """Look through one batch."""
        if not self.latents:
            return
        counted = batch.counted(self.sae, self.limit)
        size = len(batch.ids)
        rows = {name: value.expand(size, *value.shape[1:]) for name, value in self._rows.items()}
        values = self.sae.encoder.encode_selected(batch.residual[self.sae.layer], rows)[0]
        # Only counted tokens can be the strongest; the others are shown active where they are.
        strongest, peaks = values.masked_fill(~counted[..., None], 0.0).max(1)
        active = (values > 0).cpu()
        strongest, peaks, kind, ids = strongest.cpu(), peaks.cpu(), batch.kind.cpu(), batch.ids.cpu()
        for position in range(len(self.latents)):
            floor = self._floor(position)
            for row in (strongest[:, position] > floor).nonzero()[:, 0].tolist():
                peak = int(peaks[row, position])
                start = max(0, peak - WINDOW)
                stop = min(batch.lengths[row], peak + WINDOW + 1)
                self._keep(
                    position,
                    tuple(ids[row, start:stop].tolist()),
                    _Found(
                        float(strongest[row, position]),
                        batch.rows[row],
                        peak,
                        int(kind[row, peak]),
                        start,
                        tuple(active[row, start:stop, position].tolist()),
                    ),
                )

    def _floor(self, position: int) -> float:
        found = self._found[position]
        return min(f.activation for f in found.values()) if len(found) == self.count else 0.0

    def _keep(self, position: int, window: tuple[int, ...], new: _Found) -> None:
        """Windows with the same tokens count once: their strongest."""
        found = self._found[position]
        if window in found:
            if new.activation > found[window].activation:
                found[window] = new
            return
        found[window] = new
        if len(found) > self.count:
            del found[min(found, key=lambda key: (found[key].activation, -found[key].row))]

    def snippets(self, texts: Sequence[Text], tokenizer) -> dict[int, list[Snippet]]:
        """Latent -> its snippets, strongest first; fewer where it fires in fewer texts, none where it never does."""
        result = {}
        for latent, found in zip(self.latents, self._found, strict=True):
            best = sorted(found.values(), key=lambda f: (-f.activation, f.row))
            result[latent] = [
                Snippet(
                    bracketed(tokenizer, list(texts[f.row].ids[f.start : f.start + len(f.active)]), f.active),
                    _name(tokenizer, texts[f.row].ids[f.peak]),
                    f.activation,
                    f.kind,
                )
                for f in best
            ]
        return result


def bracketed(tokenizer, ids: list[int], active: Sequence[bool]) -> str:
    """The text of ``ids`` with runs of active tokens in [[ ]]; white space around a run stays outside."""
    ends = [i + 1 for i in range(len(ids)) if i + 1 == len(ids) or active[i + 1] != active[i]]
    shown, done = "", ""
    for end in ends:
        whole = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        # Longer prefixes may end differently (a character of several byte tokens): what is new begins after the same.
        piece = whole[_shared(done, whole) :]
        done = whole
        if active[end - 1] and piece.strip(_SPACE):
            inner = piece.strip(_SPACE)
            before, after = piece.split(inner, 1)
            piece = f"{before}[[{inner}]]{after}"
        shown += piece
    return shown


def _name(tokenizer, token: int) -> str:
    """The token's text, or where that is blank (a line break, a space) the vocabulary's own name for it."""
    return tokenizer.decode([token]).strip(_SPACE) or str(tokenizer.convert_ids_to_tokens(token))


def _shared(one: str, other: str) -> int:
    """Length of what both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def top_tokens(snippets: Sequence[Snippet], count: int = 3) -> tuple[str, ...]:
    """The tokens that a latent fires on most strongly, most frequent first: a name to recognise it by."""
    return tuple(token for token, _ in Counter(s.token for s in snippets if s.token).most_common(count))
