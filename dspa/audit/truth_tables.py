"""The page's section on ground truth, as Markdown."""

from collections.abc import Mapping

from dspa.audit.audit import Audit
from dspa.audit.ranking import SETS
from dspa.audit.standing import standings
from dspa.audit.truth import MIN_TOKENS, SELECTIVE, STANDINGS
from harness import markdown as md

_KINDS = {
    "ablated": "selected to ablate",
    "augmented": "selected to augment",
    "edits": "edits",
    "live": "all that fire",
}


def rule(audit: Audit) -> str:
    """How a feature got its label."""
    return (
        "What a feature stands for is measured, not assumed: answers to the same requests with the same content in "
        f"each label are read, unsteered. A feature belongs to a label when at least {SELECTIVE:.0%} of its firing is "
        "in that label's answers (against the mean of the others in the same groups, so 50 % is chance) and it fires "
        f"on at least {MIN_TOKENS} of their tokens; else to none. Without any threshold, the leaning: the share of a "
        "feature's firing within a group that is in answers of the dispreferred labels, against the preferred one "
        "(50 %: it does not tell them apart); silent features never fire in that group's answers."
    )


def label_table(audit: Audit) -> str:
    """Label -> number of features, among all and in each audited set."""
    assert audit.labels is not None
    counts = standings(audit)["labels"]
    columns = ("live", *SETS)
    rows = [[name, *(str(counts[c].get(name, 0)) for c in columns)] for name in (*audit.labels.names, "none")]
    return md.table(["label", "all that fire", *SETS], rows)


def summary(audit: Audit) -> str:
    """In one sentence per kind of set: how many of the per-prompt latents are the dispreferred labels'."""
    found = standings(audit)["prompts"]
    if not found:
        return "No prompt of the texts belongs to a known group."
    lines = []
    for kind in ("ablated", "augmented"):
        total = {standing: int(sum(entry[kind][standing] for entry in found.values())) for standing in STANDINGS}
        size, prompts = sum(total.values()), sum(entry["prompts"] for entry in found.values())
        if not size:
            continue
        # Weighted as the prompts are, so that both shares speak of the same mixture of groups.
        base = sum(e["prompts"] * _share(e["live"], "dispreferred") for e in found.values()) / prompts
        lines.append(
            f"Of the {size:,} features {_KINDS[kind]} for {prompts:,} prompts, {total['dispreferred']:,} "
            f"({100 * total['dispreferred'] / size:.1f} %) are the dispreferred label's of the prompt's own group, "
            f"{total['preferred']:,} ({100 * total['preferred'] / size:.1f} %) the preferred one's; of a feature drawn "
            f"from all that fire, {100 * base:.1f} % would be the dispreferred label's."
        )
    return " ".join(lines)


def group_table(audit: Audit) -> str:
    """Group x kind of set: shares by standing."""
    rows = []
    for group, entry in standings(audit)["prompts"].items():
        for kind, title in _KINDS.items():
            counts = entry[kind]
            if not _total(counts):
                continue
            about = f"{group} ({entry['preferred']} over {', '.join(entry['dispreferred'])})"
            shares = [f"{100 * _share(counts, standing):.1f}" for standing in STANDINGS]
            lean, silent = md.number(100 * counts["leaning"]), f"{100 * _share(counts, 'silent'):.1f}"
            rows.append([md.escape(about), title, f"{_total(counts):,}", *shares, lean, silent])
    headers = ["group (preferred over dispreferred)", "features", "count", *(f"{s} (%)" for s in STANDINGS)]
    headers += ["leaning (%)", "silent (%)"]
    return md.table(headers, rows, text_columns=2)


def _total(counts: Mapping[str, int | float]) -> int:
    return int(sum(counts[standing] for standing in STANDINGS))


def _share(counts: Mapping[str, int | float], key: str) -> float:
    return counts[key] / _total(counts)
