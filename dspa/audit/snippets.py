"""Where a latent fires most: windows of text around its strongest activations, active tokens in [[brackets]]."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os.path import commonprefix
from typing import Any

import torch

from dspa.audit.scan import KINDS, Batch, corpus_of, residual_batches
from dspa.saes.sae import ResidualSAE
from harness.data.triples import Triple
from harness.model.aligned import AlignedModel

WINDOW = 16  # tokens shown to either side of the strongest one
_SPACE = " \n\t"


@dataclass(frozen=True)
class Snippet:
    """``text``: the window with active tokens in [[ ]]; ``token``: the strongest one; ``kind``: what text it is of."""

    text: str
    token: str
    activation: float
    kind: str

    @property
    def line(self) -> str:
        """The text without its line breaks."""
        return " ".join(self.text.split())


@dataclass(frozen=True)
class _Found:
    """A window of text number ``row``, its strongest token at ``peak``."""

    activation: float
    row: int
    kind: int
    peak: int
    active: tuple[bool, ...]


class SnippetCollector:
    """Keeps, for each of ``latents``, the ``count`` strongest places, at most one in a text."""

    def __init__(self, sae: ResidualSAE, latents: Sequence[int], count: int, limit: float | None) -> None:
        self.sae, self.latents, self.count, self.limit = sae, latents, count, limit
        self._rows = sae.encoder.gather(torch.tensor([latents])) if latents else {}
        self._found: list[dict[tuple[int, ...], _Found]] = [{} for _ in latents]  # by the ids in the window

    def add(self, batch: Batch) -> None:
        """Look through one batch."""
        if not self.latents:
            return
        counted = batch.counted(self.sae, self.limit)
        rows = {name: value.expand(len(batch.ids), *value.shape[1:]) for name, value in self._rows.items()}
        values = self.sae.encoder.encode_selected(batch.residual[self.sae.layer], rows)[0]
        # Only counted tokens can be the strongest; the others are shown active where they are.
        strongest, peaks = (found.cpu() for found in values.masked_fill(~counted[..., None], 0.0).max(1))
        active, kind, ids = (values > 0).cpu(), batch.kind.cpu(), batch.ids.cpu()
        for position, found in enumerate(self._found):
            floor = min(f.activation for f in found.values()) if len(found) == self.count else 0.0
            for row in (strongest[:, position] > floor).nonzero()[:, 0].tolist():
                peak, activation = int(peaks[row, position]), float(strongest[row, position])
                shown = slice(max(0, peak - WINDOW), min(batch.lengths[row], peak + WINDOW + 1))
                window = tuple(ids[row, shown].tolist())
                if window in found and activation <= found[window].activation:
                    continue  # windows with the same tokens count once: their strongest
                fires = tuple(active[row, shown, position].tolist())
                found[window] = _Found(activation, batch.rows[row], int(kind[row, peak]), peak - shown.start, fires)
                if len(found) > self.count:
                    del found[min(found, key=lambda key: (found[key].activation, -found[key].row))]

    def snippets(self, tokenizer) -> dict[int, list[Snippet]]:
        """Latent -> its snippets, strongest first; fewer where it fires in fewer texts, none where it never does."""
        result = {}
        for latent, found in zip(self.latents, self._found, strict=True):
            best = sorted(found.items(), key=lambda item: (-item[1].activation, item[1].row))
            result[latent] = []
            for ids, f in best:
                text, peak = bracketed(tokenizer, list(ids), f.active), ids[f.peak]
                # A blank token (a line break, a space) goes by the vocabulary's own name for it.
                token = tokenizer.decode([peak]).strip(_SPACE) or str(tokenizer.convert_ids_to_tokens(peak))
                result[latent].append(Snippet(text, token, f.activation, KINDS[f.kind]))
        return result


def snippets_of_triples(
    model: AlignedModel,
    sae: ResidualSAE,
    limit: float | None,
    triples: Sequence[Triple],
    latents: Sequence[int],
    count: int,
) -> dict[int, list[dict[str, Any]]]:
    """Latent -> the fields of its `count` strongest snippets in ``triples``; ``limit``: the norm that the SAE's filter
    allows. ValueError for a triple that does not fit the model's context."""
    collector = SnippetCollector(sae, sorted(set(latents)), count, limit)
    for batch in residual_batches(model, corpus_of(triples, model).texts, {sae.layer}):
        collector.add(batch)
    found = collector.snippets(model.tokenizer)
    return {latent: [asdict(snippet) for snippet in snippets] for latent, snippets in found.items()}


def bracketed(tokenizer, ids: list[int], active: Sequence[bool]) -> str:
    """The text of ``ids`` with runs of active tokens in [[ ]]; white space around a run stays outside."""
    ends = [i + 1 for i in range(len(ids)) if i + 1 == len(ids) or active[i + 1] != active[i]]
    shown, done = "", ""
    for end in ends:
        whole = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        # Longer prefixes may end differently (a character of several byte tokens): what is new begins after the same.
        piece = whole[len(commonprefix([done, whole])) :]  # noqa: RUF071 - of characters
        done = whole
        inner = piece.strip(_SPACE)
        if active[end - 1] and inner:
            piece = piece.replace(inner, f"[[{inner}]]", 1)
        shown += piece
    return shown


def top_tokens(snippets: Sequence[Snippet]) -> list[str]:
    """The three tokens a latent fires on most strongly, most frequent first: a name to recognise it by."""
    return [token for token, _ in Counter(s.token for s in snippets if s.token).most_common(3)]
