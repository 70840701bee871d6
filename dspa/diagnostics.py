"""Is the steering conditional on the prompt, and how much does it edit? Figures that every report shows."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspa.select import mean_pairwise_jaccard

_KEPT_PROMPTS = 512  # bounds memory; the first prompts of a run are as good as any


class SelectionLog:
    """Collects what was selected for each prompt and edited at each token.

    * ``jaccard``: mean pairwise Jaccard similarity of the selected sets; 1 means every prompt gets the same set.
    * ``cosine_to_global``: mean cosine of s(x) with the global mean difference; 1 means no dependence on the prompt.
    * ``set_size``: mean number of selected latents; ``edited_share``: share of steered tokens that were changed.
    """

    def __init__(self, mean_difference: Float[Tensor, " d_sae"]) -> None:
        self._mean = mean_difference
        self._order: list[frozenset[int]] = []
        self._cosines: list[float] = []
        self._tokens = 0
        self._changed: Tensor | None = None

    def selected(self, latents: Int[Tensor, "batch k"], scores: Float[Tensor, "batch d_sae"]) -> None:
        """Note one batch of prompts (-1 in ``latents`` stands for none)."""
        room = _KEPT_PROMPTS - len(self._order)
        if room <= 0:
            return
        self._order += [frozenset(i for i in row if i >= 0) for row in latents[:room].tolist()]
        self._cosines += torch.cosine_similarity(scores[:room], self._mean[None], dim=1).tolist()

    def edited(self, change: Float[Tensor, "row k"]) -> None:
        """Note the edits of one forward."""
        changed = (change != 0).any(1).sum()
        self._tokens += len(change)
        self._changed = changed if self._changed is None else self._changed + changed

    def summary(self) -> dict[str, float]:
        """The figures; empty before anything was steered."""
        figures: dict[str, float] = {}
        if len(self._order) >= 2:
            figures["jaccard"] = mean_pairwise_jaccard(self._order)
        if self._order:
            figures["cosine_to_global"] = sum(self._cosines) / len(self._cosines)
            figures["set_size"] = sum(map(len, self._order)) / len(self._order)
        if self._changed is not None:
            figures["edited_share"] = float(self._changed) / self._tokens
        return figures
