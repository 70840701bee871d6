"""The tables and lines of the audit's page, as Markdown."""

from collections.abc import Sequence

from dspa.audit.audit import Audit
from dspa.audit.explain import CATEGORIES, PAPER_COUNTS
from dspa.audit.export import neuronpedia_url
from dspa.audit.prompts import Example
from dspa.audit.ranking import SETS
from dspa.audit.snippets import Snippet, top_tokens
from dspa.audit.texts import KINDS
from dspa.diagnostics import edited_share, edited_share_by_age
from harness import markdown as md

GATES_SHOWN = 10
LOW_VARIANCE = 0.5  # explained variance below which the page warns
_SETTINGS = (
    "gate",
    "percentile",
    "min_support",
    "truncate",
    "k_prompt",
    "k_diff",
    "mode",
    "scale",
    "alpha",
    "positions",
)
_FIGURES = {
    "jaccard": "mean Jaccard similarity of two prompts' edited sets; 1: every prompt gets the same set",
    "cosine_to_global": "mean cosine of a prompt's scores with the global mean difference; 1: nothing is conditional",
    "set_size": "features selected per prompt",
    "sure_share": "share of selected features whose score has a 95 % bootstrap interval that excludes 0",
}


def feature_link(audit: Audit, latent: int) -> str:
    """The feature's number, linked to Neuronpedia where the SAE is there."""
    url = neuronpedia_url(audit, latent)
    return str(latent) if url is None else f"[{latent}]({url})"


def artifact_table(audit: Audit) -> str:
    model, params = audit.model, audit.model.params
    budget = model.budget or {}
    settings = ", ".join(f"{key} {params[key]}" for key in _SETTINGS if key in params)
    rows = [
        ["method", f"{model.method}, fingerprint {md.code(model.fingerprint[:12])}"],
        ["base", f"{md.code(model.base.ref.path or model.base.ref.id)}, {md.code(model.base.identity[:12])}"],
        [
            "fitted on",
            f"{audit.steering.condition_map.n_triples} triples, seed {budget.get('seed', 'unknown')}, hash "
            + md.code(str(budget.get("hash", "unknown"))[:12]),
        ],
        ["chat format", md.escape(model.base.ref.chat)],
        ["settings", md.escape(settings)],
    ]
    return md.table(["artifact", ""], rows, text_columns=2)


def sae_table(audit: Audit) -> str:
    params = audit.model.params
    rows = [
        [
            role,
            md.code(_reference(params.get(f"{role}_sae", {}))),
            str(one.sae.layer),
            f"{one.sae.d_sae:,}",
            f"{int((one.density > 0).sum()):,}",
            md.number(one.l0),
            md.number(100 * one.explained_variance),
        ]
        for role, one in audit.saes.items()
    ]
    headers = ["SAE", "from", "layer", "features", "of which fire", "L0", "explained variance (%)"]
    return md.table(headers, rows, text_columns=2)


def _reference(saved: dict) -> str:
    return saved.get("path") or f"{saved.get('release')}/{saved.get('id')}"


def conditionality_table(audit: Audit) -> str:
    found = audit.conditionality
    assert found is not None
    rows = [[md.escape(k), f"{found.figures[k]:.3g}", text] for k, text in _FIGURES.items() if k in found.figures]
    if found.supports:
        ordered = sorted(found.supports)
        total = audit.steering.condition_map.n_triples
        middle = ordered[len(ordered) // 2]
        spread = f"{ordered[0]} / {middle} / {ordered[-1]}"
        rows.append(["support N\\_i", spread, f"smallest / median / largest of the selected gates, of {total} triples"])
        always = sum(value == total for value in ordered) / len(ordered)
        rows.append(
            ["always open", f"{100 * always:.1f} %", "share of the selected gates that are open for every triple"]
        )
    return md.table(["figure", "value", "meaning"], [[a, b, c] for a, b, c in rows], text_columns=3)


def edited_share_line(audit: Audit) -> str:
    """Share of the answers' tokens that were changed, by their place in the answer."""
    assert audit.edited is not None
    tallies = audit.edited.tallies
    places = "; ".join(
        f"{first if first == last else f'{first}-{last}'}: {100 * share:.0f} %"
        for first, last, share in edited_share_by_age(tallies)
    )
    share = 100 * edited_share(tallies)
    return f"{share:.1f} % of these tokens were changed; by place in the answer: {places}."


def coverage_table(audit: Audit) -> str:
    edited = audit.edited
    assert edited is not None
    sets = {name: audit.ranking.members(name) for name in SETS}
    sets["ablate and augment"] = tuple(dict.fromkeys((*audit.ranking.ablate, *audit.ranking.augment)))
    sets["all"] = tuple(range(audit.output.sae.d_sae))
    rows = [
        [
            name,
            f"{len(latents):,}",
            f"{int((edited.edits[list(latents)] > 0).sum()):,}",
            f"{int(edited.edits[list(latents)].sum()):,}",
            f"{100 * edited.share(latents):.1f}",
        ]
        for name, latents in sets.items()
    ]
    return md.table(["set", "features", "edited at least once", "edits", "share of edits (%)"], rows)


def most_edited_table(audit: Audit) -> str:
    edited = audit.edited
    assert edited is not None
    rows = [
        [
            feature_link(audit, latent),
            _tokens(audit.snippets[latent]),
            _place(audit, latent),
            f"{int(edited.edits[latent]):,}",
            f"{100 * edited.share([latent]):.1f}",
            _percent(float(audit.output.density[latent])),
            *_label(audit, latent),
        ]
        for latent in audit.most_edited()
    ]
    headers = ["feature", "tokens", "rank", "edits", "share (%)", "density (%)", *_label_header(audit)]
    return md.table(headers, rows, text_columns=3)


def category_table(audit: Audit) -> str:
    counts = audit.categories
    assert counts is not None
    rows = []
    for row in (*CATEGORIES, "not classified"):
        paper = [str(PAPER_COUNTS[row][name]) if row in PAPER_COUNTS else md.EMPTY for name in SETS]
        rows.append([row, *(str(counts[row][name]) for name in SETS), *paper])
    return md.table(["category", *SETS, *(f"paper: {name}" for name in SETS)], rows)


def ranking_table(audit: Audit, name: str) -> str:
    kinds = [i for i, count in enumerate(audit.output.tokens.tolist()) if count]
    edited, explanations = audit.edited, audit.explanations
    by_kind = audit.output.density_by_kind
    headers = ["rank", "feature", "tokens", *(["category", "explanation"] if explanations is not None else [])]
    text_columns = len(headers)
    headers += ["column sum", "density (%)", *(f"in {KINDS[i]}" for i in kinds if len(kinds) > 1)]
    headers += ["selected (%)"] if audit.conditionality is not None else []
    headers += ["edits"] if edited is not None else []
    rows = []
    for rank, latent in enumerate(audit.ranking.members(name), 1):
        cells = [str(rank), feature_link(audit, latent), _tokens(audit.snippets[latent])]
        if explanations is not None:
            found = explanations[latent]
            cells += [found.category or md.EMPTY, md.escape(found.explanation or md.EMPTY)]
        cells += [f"{float(audit.column_sums[latent]):+.3g}", _percent(float(audit.output.density[latent]))]
        cells += [_percent(float(by_kind[i, latent])) for i in kinds if len(kinds) > 1]
        cells += [_percent(audit.selected_share(latent))] if audit.conditionality is not None else []
        cells += [f"{int(edited.edits[latent]):,}"] if edited is not None else []
        rows.append([*cells, *_label(audit, latent)])
    return md.table([*headers, *_label_header(audit)], rows, text_columns=text_columns)


def gate_line(audit: Audit, example: Example) -> str:
    """The prompt's input features with their support."""
    shown = "; ".join(
        f"{gate.latent} ({_tokens(audit.gate_snippets.get(gate.latent, ()))}, N {gate.support}, "
        f"{_percent(gate.density)} %)"
        for gate in example.gates[:GATES_SHOWN]
    )
    rest = len(example.gates) - GATES_SHOWN
    more = f"; and {rest} more (features.json has them)" if rest > 0 else ""
    return f"Input features (tokens, N\\_i, share of the prompt's tokens): {shown}{more}."


def selection_table(audit: Audit, example: Example) -> str:
    rows = [
        [
            feature_link(audit, one.latent),
            "ablate" if one.ablated else "augment",
            _tokens(audit.snippets[one.latent]),
            f"{one.score:+.3g}",
            md.EMPTY if one.interval is None else f"[{one.interval[0]:+.3g}, {one.interval[1]:+.3g}]",
            _place(audit, one.latent),
            *_label(audit, one.latent),
        ]
        for one in example.selected
    ]
    headers = ["feature", "edit", "tokens", "score", "95 % interval", "rank", *_label_header(audit)]
    return md.table(headers, rows, text_columns=3)


def snippet_list(snippets: Sequence[Snippet]) -> str:
    return "\n".join(f"* {s.activation:.2f}, {KINDS[s.kind]}: {md.code(' '.join(s.text.split()))}" for s in snippets)


def _place(audit: Audit, latent: int) -> str:
    """Set and rank of a feature among the extreme column sums."""
    for name in ("ablate", "augment"):
        if latent in audit.ranking.members(name):
            return f"{name} {audit.ranking.members(name).index(latent) + 1}"
    return md.EMPTY


def _tokens(snippets: Sequence[Snippet]) -> str:
    return ", ".join(md.code(token) for token in top_tokens(snippets)) or md.EMPTY


def _percent(share: float) -> str:
    return f"{100 * share:.2g}" if 0 < share < 0.01 else f"{100 * share:.1f}"


def _label_header(audit: Audit) -> list[str]:
    return ["label"] if audit.labels is not None else []


def _label(audit: Audit, latent: int) -> list[str]:
    return [] if audit.labels is None else [audit.labels.label_of(latent) or md.EMPTY]
