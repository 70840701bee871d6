"""The audit as a page of Markdown: what was measured, in the order a reader asks for it."""

from collections.abc import Iterator

from dspa.audit import tables
from dspa.audit.audit import Audit
from dspa.audit.causal_page import causal_section
from dspa.audit.scan import KINDS
from dspa.audit.snippets import WINDOW
from dspa.audit.truth import MIN_TOKENS, SELECTIVE
from dspa.diagnostics import edited_share, edited_share_by_age
from harness import markdown as md

_TITLES = {
    "ablate": "Ablate set: the smallest column sums",
    "augment": "Augment set: the largest column sums",
    "random": "Random live features",
}

_MEAN = "the mean difference of chosen and rejected answers (the score of a prompt about which nothing is known)"
_RANKED_BY = {"rows": "sum_i A_ij of the whole map", "ridge": _MEAN, "mean": _MEAN}
_SCORED_BY = {
    "rows": "The input features of a prompt that fire on most of its tokens open rows of the map (N_i: triples whose "
    "gate is open); the output features with the most extreme scores s_j(x) are edited. Intervals: 95 %, triples drawn "
    "again 1,000 times, of the whole map; the scores are of the truncated one that steers, so a score may lie "
    "outside its interval. The features were picked as the most extreme ones, for which the intervals make no "
    "allowance.",
    "ridge": "Scores s_j(x) are a ridge regression on all input features that fire on the prompt; the output features "
    "with the most extreme ones are edited. There are no gates and no intervals.",
    "mean": "Scores are the mean difference for every prompt; the features with the most extreme ones are edited.",
}


def to_markdown(audit: Audit, name: str, texts: str, judge: str | None, causal: str | None = None) -> str:
    """The whole page; ``name`` of the artifact, ``texts`` the file measured on, ``judge`` who explained (or None),
    ``causal`` the file of the causal check's triples (or None)."""
    parts = [f"# Audit of {md.escape(name)}", *_header(audit, texts, judge), *_conditionality(audit)]
    parts += [*_truth(audit), *_coverage(audit), *_causal(audit, causal), *_categories(audit, judge), *_rankings(audit)]
    parts += [*_examples(audit), *_snippets(audit)]
    return "\n\n".join(parts) + "\n"


def _header(audit: Audit, texts: str, judge: str | None) -> Iterator[str]:
    yield (
        "Which output features the artifact's conditional-difference map pushes on, what they fire on, and which of "
        "them are really edited, after the audit of [arXiv 2603.21461](https://arxiv.org/abs/2603.21461). Features are "
        "latents of the output SAE unless said otherwise; all figures are of the unsteered base but for coverage."
    )
    yield tables.artifact_table(audit)
    yield tables.sae_table(audit)
    counts = ", ".join(
        f"{count:,} {kind}" for kind, count in zip(KINDS, audit.output.tokens.tolist(), strict=True) if count
    )
    yield (
        f"Texts: {md.code(texts)}, {len(audit.corpus.texts):,} texts with {len(audit.corpus.prompts):,} different "
        f"prompts; tokens counted: {counts}. BOS, EOS and padding are not counted, and a prompt that several answers "
        "share counts once. L0: mean number of features that fire on a token. Explained variance: of the base's "
        "residual stream on these tokens."
    )
    if skipped := audit.output.skipped:
        yield f"{skipped:,} tokens are left out by the output SAE's norm filter."
    if low := [role for role, one in audit.saes.items() if one.explained_variance < tables.LOW_VARIANCE]:
        yield (
            f"> **The {md.words(low)} SAE does not describe this base here:** it explains less than "
            f"{tables.LOW_VARIANCE:.0%} of the residual stream's variance. Its features may mean little on these "
            "texts; look first whether it was trained on this model, at this layer."
        )
    if judge is None:
        yield "No judge was given: there are snippets, but no explanations and no categories."


def _conditionality(audit: Audit) -> Iterator[str]:
    yield "## How conditional the sets are"
    if audit.conditionality is None:
        yield "The texts are plain texts without prompts, so nothing was conditioned on."
        return
    yield (
        f"The artifact's own steering, conditioned on the {len(audit.corpus.prompts):,} prompts (pairwise figures on "
        "the first 512, intervals on the first 32)."
    )
    yield tables.conditionality_table(audit, audit.conditionality)


def _truth(audit: Audit) -> Iterator[str]:
    if audit.labels is None or audit.truth is None or audit.by_label is None:
        return
    yield "## Ground truth"
    yield audit.truth.statement
    yield (
        "What a feature stands for is measured, not assumed: answers to the same requests with the same content in "
        f"each label are read, unsteered. A feature belongs to a label when at least {SELECTIVE:.0%} of its firing is "
        "in that label's answers (against the mean of the others in the same groups, so 50 % is chance) and it fires "
        f"on at least {MIN_TOKENS} of their tokens; else to none. Without any threshold, the leaning: the share of a "
        "feature's firing within a group that is in answers of the dispreferred labels, against the preferred one "
        "(50 %: it does not tell them apart); silent features never fire in that group's answers."
    )
    yield tables.label_table(audit.labels, audit.by_label["labels"])
    yield tables.sides_line(audit.by_label["prompts"])
    yield tables.side_table(audit.by_label["prompts"])


def _coverage(audit: Audit) -> Iterator[str]:
    yield "## Coverage: what was edited"
    edited = audit.edited
    if edited is None:
        yield "Nothing was generated (no prompts, or --generate 0), so there are no edits to count."
        return
    yield (
        f"{edited.prompts} prompts were answered greedily with {edited.tokens:,} tokens, which took {edited.total:,} "
        f"edits of {int((edited.edits > 0).sum()):,} different features."
    )
    if edited.skipped:
        yield f"{len(edited.skipped)} prompts got no answer: {md.escape('; '.join(sorted(set(edited.skipped))))}."
    if edited.total == 0:
        return
    places = "; ".join(
        f"{first if first == last else f'{first}-{last}'}: {100 * share:.0f} %"
        for first, last, share in edited_share_by_age(edited.tallies)
    )
    yield f"{100 * edited_share(edited.tallies):.1f} % of these tokens were changed; by place in the answer: {places}."
    yield tables.coverage_table(audit, edited)
    yield f"The {len(edited.most_edited())} most edited features:"
    yield tables.most_edited_table(audit, edited)


def _causal(audit: Audit, triples: str | None) -> Iterator[str]:
    if audit.causal is not None:
        latents = range(audit.output.sae.d_sae)
        labels = None if audit.labels is None else {latent: audit.labels.label_of(latent) for latent in latents}
        yield from causal_section(audit.causal, str(triples), labels, audit.recovered)


def _categories(audit: Audit, judge: str | None) -> Iterator[str]:
    if audit.explanations is None:
        return
    yield "## Categories"
    yield (
        f"Judged by {md.escape(judge)} ({audit.judge_tokens:,} tokens) from the snippets below; Safety counts as "
        "Content and Intent as Discourse. Beside it, for orientation, the counts that the paper gives for its own "
        "models and its own judge (of 50 each)."
    )
    yield tables.category_table(audit)
    reliable = [e for e in audit.explanations.values() if e.explanation is not None]
    yield f"{sum(bool(e.reliable) for e in reliable)} of {len(reliable)} explanations are called reliable by the judge."
    if failed := {i: e.error for i, e in audit.explanations.items() if e.error is not None}:
        yield f"{len(failed)} features have no explanation or no category; nothing was put in its place:"
        yield "\n".join(f"* {i}: {md.escape(error)}" for i, error in sorted(failed.items()))


def _rankings(audit: Audit) -> Iterator[str]:
    yield "## Features by column sum"
    yield (
        f"Output features ranked by {_RANKED_BY[audit.steering.settings.scores]}: the {audit.settings.top} smallest "
        f"(below 0), the {audit.settings.top} largest (above 0), and as many drawn from all features that fire on the "
        f"texts (seed {audit.settings.seed}; some may be in a set too). Density: share of tokens on which it fires. "
        "Tokens: where it fires most strongly. Selected: share of prompts for which it is; what is done to it is "
        f"decided prompt by prompt, by mode {audit.steering.settings.mode}, whichever set it stands in."
    )
    for name, members in audit.ranking.items():
        yield f"### {_TITLES[name]}"
        yield tables.ranking_table(audit, members) if members else "None."


def _examples(audit: Audit) -> Iterator[str]:
    if audit.conditionality is None or not audit.conditionality.examples:
        return
    yield "## Some prompts in full"
    yield _SCORED_BY[audit.steering.settings.scores]
    for example in audit.conditionality.examples:
        yield f"### {md.escape(example.prompt[-1]['content'][:120])}"
        if audit.steering.settings.scores == "rows":
            yield tables.gate_line(audit, example)
        yield tables.selection_table(audit, example) if example.selected else "No feature was selected."


def _snippets(audit: Audit) -> Iterator[str]:
    yield "## Where the features fire"
    yield (
        f"For each feature the passages with its strongest activations, up to {WINDOW} tokens to either side; active "
        "tokens in [[double brackets]], before them the activation and the kind of text."
    )
    for name, members in audit.ranking.items():
        yield f"### {_TITLES[name].split(':')[0]}"
        for latent in members:
            yield f"#### {tables.feature_link(audit, latent)}"
            explained = None if audit.explanations is None else audit.explanations[latent]
            if explained is not None and explained.explanation is not None:
                doubt = "" if explained.reliable else " (not reliable)"
                category = explained.category or "no category"
                yield f"{md.escape(explained.explanation)} *{category}{doubt}*"
            passages = [f"* {s.activation:.2f}, {s.kind}: {md.code(s.line)}" for s in audit.snippets[latent]]
            yield "\n".join(passages) or "It fires nowhere in the texts."
