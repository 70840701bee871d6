"""What methods report of themselves, as a table with its legend."""

from typing import TYPE_CHECKING

from harness import markdown as md
from reports.runfolder import Run
from reports.tables import largest_budget, rows_where

if TYPE_CHECKING:
    import pandas as pd

DIAGNOSTIC_LEGEND = {
    "jaccard": "mean Jaccard similarity of the latent sets of two prompts; 1: every prompt gets the same set",
    "cosine_to_global": "mean cosine of a prompt's scores with the global mean difference; 1: nothing is conditional",
    "set_size": "latents selected per prompt",
    "median_support": "triples whose gate is open for a selected input latent, median over prompts and latents",
    "sure_share": "share of the selected output latents whose untruncated score has a bootstrap interval without 0; "
    "they were selected as extremes, so this is not a test",
    "edited_share": "share of the steered tokens that were changed",
    "edited_latents": "output latents that were edited at least once",
    "relative_step": "length of the added vector over the mean length of the residual stream that it is added to",
    "edits_in_top": "share of the edits on the 50 largest and 50 smallest columns of the map, the audited latents",
}


def diagnostic_table(run: Run, diagnostics: "pd.DataFrame") -> str:
    """Each variant's figures per benchmark at its largest budget; names are ``benchmark.figure``."""
    rows = largest_budget(rows_where(diagnostics))
    means: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        place, _, figure = row["diagnostic"].rpartition(".")
        means.setdefault((row["variant"], place), {})[figure] = row["mean"]
    figures = list(dict.fromkeys(name for values in means.values() for name in values))
    lines = [
        [
            md.escape(run.variants[variant]),
            md.escape(place),
            *(f"{values[name]:.3g}" if name in values else md.EMPTY for name in figures),
        ]
        for (variant, place), values in means.items()
    ]
    legend = "".join(f"* `{name}`: {DIAGNOSTIC_LEGEND[name]}\n" for name in figures if name in DIAGNOSTIC_LEGEND)
    return md.table(["variant", "benchmark", *map(md.escape, figures)], lines, text_columns=2) + f"\n\n{legend}"
