"""The tables of the audit's page, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dspa.audit.audit import SETS, Audit
from dspa.audit.explain import PAPER_COUNTS
from dspa.audit.prompts import Conditionality, Coverage, Example
from dspa.audit.scan import KINDS
from dspa.audit.snippets import top_tokens
from dspa.audit.truth import SIDES, Labels
from dspa.diagnostics import LEGEND
from harness import markdown as md

GATES_SHOWN = 10
LOW_VARIANCE = 0.5  # explained variance below which the page warns
_SELECTING = {
    "rows": ("scores", "gate", "percentile", "min_support", "truncate", "k_prompt", "k_diff"),
    "ridge": ("scores", "rank", "k_diff"),
    "mean": ("scores", "k_diff"),
}
_EDITING = ("mode", "scale", "alpha", "positions")
_FIGURES = {
    "jaccard": "mean Jaccard similarity of two prompts' edited sets; 1: every prompt gets the same set",
    "cosine_to_global": "mean cosine of a prompt's scores with the global mean difference; 1: nothing is conditional",
    "set_size": "features selected per prompt",
    "sure_share": "share of selected features whose score has a 95 % bootstrap interval that excludes 0",
    **{name: LEGEND[name] for name in ("unexplained_share", "ridge_lambda", "rank_error")},
}
_TITLES = {
    "ablated": "selected to ablate",
    "augmented": "selected to augment",
    "edits": "edits",
    "live": "all that fire",
}


def artifact_table(audit: Audit) -> str:
    model, params, budget = audit.model, audit.model.params, audit.model.budget or {}
    settings = _SELECTING[audit.steering.settings.scores] + _EDITING
    fitted = f"{audit.steering.condition_map.n_triples} triples, seed {budget.get('seed', 'unknown')}"
    rows = [
        ["method", f"{model.method}, fingerprint {md.code(model.fingerprint[:12])}"],
        ["base", f"{md.code(model.base.ref.path or model.base.ref.id)}, {md.code(model.base.identity[:12])}"],
        ["fitted on", f"{fitted}, hash {md.code(str(budget.get('hash', 'unknown'))[:12])}"],
        ["chat format", md.escape(model.base.ref.chat)],
        ["settings", md.escape(", ".join(f"{key} {params[key]}" for key in settings if key in params))],
    ]
    return md.table(["artifact", ""], rows, text_columns=2)


def sae_table(audit: Audit) -> str:
    rows = []
    for role, one in audit.saes.items():
        saved = audit.model.params.get(f"{role}_sae", {})
        source = md.code(saved.get("path") or f"{saved.get('release')}/{saved.get('id')}")
        counts = [str(one.sae.layer), f"{one.sae.d_sae:,}", f"{int((one.density > 0).sum()):,}"]
        rows.append([role, source, *counts, md.number(one.l0), md.number(100 * one.explained_variance)])
    headers = ["SAE", "from", "layer", "features", "of which fire", "L0", "explained variance (%)"]
    return md.table(headers, rows, text_columns=2)


def conditionality_table(audit: Audit, found: Conditionality) -> str:
    rows = [[md.escape(k), f"{found.figures[k]:.3g}", text] for k, text in _FIGURES.items() if k in found.figures]
    if found.supports:
        ordered, total = sorted(found.supports), audit.steering.condition_map.n_triples
        spread = f"{ordered[0]} / {ordered[len(ordered) // 2]} / {ordered[-1]}"
        rows.append(["support N\\_i", spread, f"smallest / median / largest of the selected gates, of {total} triples"])
        always = f"{100 * ordered.count(total) / len(ordered):.1f} %"
        rows.append(["always open", always, "share of the selected gates that are open for every triple"])
    return md.table(["figure", "value", "meaning"], rows, text_columns=3)


def coverage_table(audit: Audit, edited: Coverage) -> str:
    ranking = audit.ranking
    sets = {
        **ranking,
        "ablate and augment": list(dict.fromkeys([*ranking["ablate"], *ranking["augment"]])),
        "all": range(audit.output.sae.d_sae),
    }
    rows = []
    for name, latents in sets.items():
        edits = edited.edits[list(latents)]
        counts = [f"{count:,}" for count in (len(latents), int((edits > 0).sum()), int(edits.sum()))]
        rows.append([name, *counts, f"{100 * edited.share(latents):.1f}"])
    return md.table(["set", "features", "edited at least once", "edits", "share of edits (%)"], rows)


def category_table(audit: Audit) -> str:
    rows = []
    for row, counts in (audit.categories or {}).items():
        paper = PAPER_COUNTS.get(row, dict.fromkeys(SETS, md.EMPTY))
        rows.append([row, *(str(found[name]) for found in (counts, paper) for name in SETS)])
    return md.table(["category", *SETS, *(f"paper: {name}" for name in SETS)], rows)


def feature_link(audit: Audit, latent: int) -> str:
    """The feature's number, linked to Neuronpedia where the SAE is there."""
    url = audit.records[latent]["url"]
    return str(latent) if url is None else f"[{latent}]({url})"


def most_edited_table(audit: Audit, edited: Coverage) -> str:
    latents = edited.most_edited()
    own = [{"rank": _place(audit, i), "share (%)": f"{100 * edited.share([i]):.1f}"} for i in latents]
    columns = ["feature", "tokens", "rank", "edits", "share (%)", "density (%)", "label"]
    return _feature_table(audit, columns, latents, own, text_columns=3)


def ranking_table(audit: Audit, members: Sequence[int]) -> str:
    columns = ["rank", "feature", "tokens", "category", "explanation", "column sum", "density (%)"]
    columns += [*(f"in {kind}" for kind in KINDS), "selected (%)", "edits", "label"]
    own = [{"rank": str(rank)} for rank, _ in enumerate(members, 1)]
    return _feature_table(audit, columns, members, own, text_columns=3 if audit.explanations is None else 5)


def selection_table(audit: Audit, example: Example) -> str:
    own = [
        {
            "edit": "ablate" if one.ablated else "augment",
            "score": f"{one.score:+.3g}",
            "95 % interval": md.EMPTY if one.interval is None else f"[{one.interval[0]:+.3g}, {one.interval[1]:+.3g}]",
            "rank": _place(audit, one.latent),
        }
        for one in example.selected
    ]
    columns = ["feature", "edit", "tokens", "score", "95 % interval", "rank", "label"]
    return _feature_table(audit, columns, [one.latent for one in example.selected], own, text_columns=3)


def _feature_table(
    audit: Audit, columns: Sequence[str], latents: Sequence[int], own: Iterable[dict[str, str]], *, text_columns: int
) -> str:
    """Features with what is known of each (see `_cells`) and the table's ``own`` cells, under those of ``columns`` that
    were measured."""
    rows = [_cells(audit, latent) | more for latent, more in zip(latents, own, strict=True)]
    measured = [column for column in columns if column in rows[0]]
    return md.table(measured, [[row[column] for column in measured] for row in rows], text_columns=text_columns)


def _cells(audit: Audit, latent: int) -> dict[str, str]:
    """Header -> what stands under it for a feature."""
    record = audit.records[latent]
    cells = {
        "feature": feature_link(audit, latent),
        "tokens": _tokens(record["top_tokens"]),
        "column sum": f"{record['column_sum']:+.3g}",
        "density (%)": _percent(record["density"]),
    }
    by_kind = record["density_by_kind"]
    if len(by_kind) > 1:
        cells |= {f"in {kind}": _percent(share) for kind, share in by_kind.items()}
    if judged := record["explanation"]:
        cells["category"] = judged["category"] or md.EMPTY
        cells["explanation"] = md.escape(judged["explanation"] or md.EMPTY)
    if record["selected_share"] is not None:
        cells["selected (%)"] = _percent(record["selected_share"])
    if record["edits"] is not None:
        cells["edits"] = f"{record['edits']:,}"
    if audit.labels is not None:
        cells["label"] = record["label"] or md.EMPTY
    return cells


def gate_line(audit: Audit, example: Example) -> str:
    """The prompt's input features with their support."""
    shown = "; ".join(
        f"{gate.latent} ({_tokens(top_tokens(audit.gate_snippets[gate.latent]))}, N {gate.support}, "
        f"{_percent(gate.density)} %)"
        for gate in example.gates[:GATES_SHOWN]
    )
    rest = len(example.gates) - GATES_SHOWN
    more = f"; and {rest} more (features.json has them)" if rest > 0 else ""
    return f"Input features (tokens, N\\_i, share of the prompt's tokens): {shown}{more}."


def _place(audit: Audit, latent: int) -> str:
    """Set and rank of a feature among the extreme column sums."""
    for name in ("ablate", "augment"):
        if latent in audit.ranking[name]:
            return f"{name} {audit.ranking[name].index(latent) + 1}"
    return md.EMPTY


def _tokens(tokens: Iterable[str]) -> str:
    return ", ".join(map(md.code, tokens)) or md.EMPTY


def _percent(share: float) -> str:
    return f"{100 * share:.2g}" if 0 < share < 0.01 else f"{100 * share:.1f}"


def label_table(labels: Labels, counts: Mapping[str, Mapping[str, int]]) -> str:
    """Label -> number of features, among all and in each audited set."""
    rows = [[name, *(str(found.get(name, 0)) for found in counts.values())] for name in (*labels.names, "none")]
    return md.table(["label", "all that fire", *SETS], rows)


def sides_line(groups: Mapping[str, Any]) -> str:
    """In one sentence per kind of set: how many of the per-prompt latents are the dispreferred labels'."""
    if not groups:
        return "No prompt of the texts belongs to a known group."
    lines = []
    prompts = sum(entry["prompts"] for entry in groups.values())
    for kind in ("ablated", "augmented"):
        total = {side: sum(entry[kind][side] for entry in groups.values()) for side in SIDES}
        size = sum(total.values())
        if size:
            # Weighted as the prompts are, so that both shares speak of the same mixture of groups.
            base = sum(e["prompts"] * _share(e["live"], "dispreferred") for e in groups.values()) / prompts
            lines.append(
                f"Of the {size:,} features {_TITLES[kind]} for {prompts:,} prompts, {total['dispreferred']:,} "
                f"({100 * total['dispreferred'] / size:.1f} %) are the dispreferred label's of the prompt's own group, "
                f"{total['preferred']:,} ({100 * total['preferred'] / size:.1f} %) the preferred one's; of a feature "
                f"drawn from all that fire, {100 * base:.1f} % would be the dispreferred label's."
            )
    return " ".join(lines)


def side_table(groups: Mapping[str, Any]) -> str:
    """Group x kind of set: shares by side."""
    rows = []
    for group, entry in groups.items():
        about = md.escape(f"{group} ({entry['preferred']} over {', '.join(entry['dispreferred'])})")
        for kind, title in _TITLES.items():
            counts = entry[kind]
            if total := _total(counts):
                shares = [f"{100 * _share(counts, side):.1f}" for side in SIDES]
                silent = f"{100 * _share(counts, 'silent'):.1f}"
                rows.append([about, title, f"{total:,}", *shares, md.number(100 * counts["leaning"]), silent])
    headers = ["group (preferred over dispreferred)", "features", "count", *(f"{side} (%)" for side in SIDES)]
    return md.table([*headers, "leaning (%)", "silent (%)"], rows, text_columns=2)


def _total(counts: Mapping[str, int | float]) -> int:
    return int(sum(counts[side] for side in SIDES))


def _share(counts: Mapping[str, int | float], key: str) -> float:
    return counts[key] / _total(counts)
