"""Is the steering conditional on the prompt, on how much evidence, and what does it edit? Figures for every report."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dspa.select import mean_pairwise_jaccard
from dspa.shipped import ShippedMap

_KEPT_PROMPTS = 512  # bounds memory; the first prompts of a run are as good as any
_BOOTSTRAPPED_PROMPTS = 32  # an interval costs a thousand resamples of the map
_AUDITED = 50  # latents at either end of the map's column sums: the paper's audited sets
_BUCKETS = 14  # the last one holds all that comes after 2**13 tokens


class SelectionLog:
    """Collects what was selected for each prompt and edited at each token.

    * ``jaccard``: mean pairwise Jaccard similarity of the selected sets; 1 means every prompt gets the same set.
    * ``cosine_to_global``: mean cosine of s(x) with the global mean difference; 1 means no dependence on the prompt.
    * ``set_size``: mean number of selected latents.
    * ``median_support``: median N_i (triples with an open gate) of the selected input latents.
    * ``sure_share``: share of selected output latents whose score's bootstrap interval excludes 0.
    * ``edited_share``: share of steered tokens that were changed; ``edited_latents``: latents edited at least once;
      ``edits_in_top``: share of edits that fell on the map's 2 x 50 most extreme columns.
    """

    def __init__(self, condition_map: ShippedMap, device: str) -> None:
        self._map = condition_map
        self._order: list[frozenset[int]] = []
        self._cosines: list[float] = []
        self._supports: list[int] = []
        self._sure: list[bool] = []
        self._to_bootstrap: list[tuple[Tensor, Tensor]] = []
        self._bootstrapped = 0
        self._by_age = torch.zeros(2, _BUCKETS, dtype=torch.long, device=device)
        ages = torch.arange(2**_BUCKETS, device=device)
        self._bucket_of = ages.clamp(min=1).float().log2().floor().long()
        self.edit_counts: Int[Tensor, " d_sae"] = torch.zeros(condition_map.d_sae, dtype=torch.long, device=device)
        """Edits of each output latent."""

    def selected(
        self, inputs: Int[Tensor, "batch k_in"], latents: Int[Tensor, "batch k"], scores: Float[Tensor, "batch d_sae"]
    ) -> None:
        """Note the sets of one batch of prompts; -1 in ``inputs`` and ``latents`` stands for none."""
        room = _KEPT_PROMPTS - len(self._order)
        if room <= 0:
            return
        inputs, latents, scores = inputs[:room], latents[:room], scores[:room]
        self._order += [frozenset(i for i in row if i >= 0) for row in latents.tolist()]
        self._cosines += torch.cosine_similarity(scores, self._map.mean_difference[None], dim=1).tolist()
        self._supports += self._map.support[inputs[inputs >= 0]].tolist()
        room = _BOOTSTRAPPED_PROMPTS - self._bootstrapped
        if room > 0:
            self._to_bootstrap.append((inputs[:room], latents[:room]))
            self._bootstrapped += len(inputs[:room])

    def _bootstrap(self) -> None:
        """Only when figures are asked for: no prompt is to wait for it, or for the factors to be unpacked."""
        for inputs, latents in self._to_bootstrap:
            interval = self._map.interval(inputs, latents)
            if interval is not None:
                low, high = interval
                self._sure += ((low > 0) | (high < 0))[latents >= 0].tolist()
        self._to_bootstrap.clear()

    def edited(
        self,
        changed: Bool[Tensor, "batch pos k"],
        latents: Int[Tensor, "batch k"],
        steered: Bool[Tensor, "batch pos"],
        seen: Int[Tensor, " batch"],
    ) -> None:
        """Note the edits of one forward; ``seen`` counts each row's steered tokens so far and is moved on.

        Never waits for the device.
        """
        counts = changed.sum(1)
        self.edit_counts.index_add_(0, latents.flatten(), counts.flatten())
        age = seen[:, None] + steered.cumsum(1)  # 1 = the first steered token, which is the last of the prompt
        bucket = self._bucket_of[age.clamp_(max=len(self._bucket_of) - 1)]
        figures = torch.stack([steered, changed.any(-1)]).long()
        self._by_age.scatter_add_(1, bucket.flatten().expand(2, -1), figures.flatten(1))
        seen += steered.sum(1)

    def edited_share_by_age(self) -> list[tuple[int, int, float]]:
        """(first token, last token, share edited) for tokens 1, 2-3, 4-7, ... of the answers; token 1 is decided at
        the last prompt token."""
        tokens, changed = self._by_age.tolist()
        return [(2**b, 2 ** (b + 1) - 1, c / n) for b, (n, c) in enumerate(zip(tokens, changed, strict=True)) if n]

    def summary(self) -> dict[str, float]:
        """The figures; empty before anything was steered."""
        self._bootstrap()
        figures: dict[str, float] = {}
        if len(self._order) >= 2:
            figures["jaccard"] = mean_pairwise_jaccard(self._order)
        if self._order:
            figures["cosine_to_global"] = sum(self._cosines) / len(self._cosines)
            figures["set_size"] = sum(map(len, self._order)) / len(self._order)
        if self._supports:
            figures["median_support"] = float(torch.tensor(self._supports).float().median())
        if self._sure:
            figures["sure_share"] = sum(self._sure) / len(self._sure)
        tokens, changed = self._by_age.sum(1).tolist()
        if tokens:
            figures["edited_share"] = changed / tokens
            figures["edited_latents"] = float((self.edit_counts > 0).sum())
        edits = int(self.edit_counts.sum())
        if edits:
            audited = torch.cat(self._map.candidates(_AUDITED)).unique()
            figures["edits_in_top"] = float(self.edit_counts[audited].sum()) / edits
        return figures
