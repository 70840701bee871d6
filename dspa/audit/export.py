"""The audit as data: features.json with everything, features.csv with one row for each place in a set."""

import csv
import io
import json
import math
from dataclasses import asdict
from typing import Any

from dspa.audit.audit import Audit
from dspa.audit.ranking import SETS
from dspa.audit.snippets import top_tokens
from dspa.audit.standing import standings
from dspa.audit.texts import KINDS

NEURONPEDIA = "https://www.neuronpedia.org"


def neuronpedia_url(audit: Audit, latent: int) -> str | None:
    """The latent's page there; None when the output SAE's metadata name no Neuronpedia id."""
    known = getattr(audit.output.sae.sae.cfg.metadata, "neuronpedia_id", None)
    return f"{NEURONPEDIA}/{known}/{latent}" if known else None


def feature_record(audit: Audit, latent: int) -> dict[str, Any]:
    """Everything about one output latent (JSON)."""
    snippets = audit.snippets.get(latent, ())
    by_kind = audit.output.density_by_kind[:, latent].tolist()
    explained = None if audit.explanations is None else audit.explanations.get(latent)
    return {
        "feature": latent,
        "sets": [name for name in SETS if latent in audit.ranking.members(name)],
        "column_sum": float(audit.column_sums[latent]),
        "density": float(audit.output.density[latent]),
        "density_by_kind": {kind: value for kind, value in zip(KINDS, by_kind, strict=True) if not math.isnan(value)},
        "selected_share": None if audit.conditionality is None else audit.selected_share(latent),
        "edits": None if audit.edited is None else int(audit.edited.edits[latent]),
        "label": None if audit.labels is None else audit.labels.label_of(latent),
        "top_tokens": list(top_tokens(snippets)),
        "explanation": None if explained is None else asdict(explained),
        "url": neuronpedia_url(audit, latent),
        "snippets": [
            {"text": s.text, "token": s.token, "activation": s.activation, "kind": KINDS[s.kind]} for s in snippets
        ],
    }


def header(audit: Audit) -> dict[str, Any]:
    """Which artifact, and on what it was measured (JSON)."""
    model, tokens = audit.model, audit.output.tokens.tolist()
    return {
        "method": model.method,
        "fingerprint": model.fingerprint,
        "base": model.base.ref.path or model.base.ref.id,
        "base_identity": model.base.identity,
        "budget": model.budget,
        "params": dict(model.params),
        "settings": asdict(audit.settings),
        "texts": len(audit.corpus.texts),
        "prompts": len(audit.corpus.prompts),
        "tokens": {kind: count for kind, count in zip(KINDS, tokens, strict=True) if count},
        "saes": {
            role: {
                "layer": one.sae.layer,
                "d_sae": one.sae.d_sae,
                "l0": one.l0,
                "explained_variance": one.explained_variance,
                "live": int((one.density > 0).sum()),
                "skipped_tokens": one.skipped,
            }
            for role, one in audit.saes.items()
        },
    }


def to_json(audit: Audit) -> str:
    """features.json."""
    latents = sorted(audit.snippets)
    conditional, edited = audit.conditionality, audit.edited
    content = header(audit) | {
        "conditionality": None if conditional is None else conditional.figures,
        "examples": [] if conditional is None else [asdict(example) for example in conditional.examples],
        "coverage": None
        if edited is None
        else {
            "prompts": edited.prompts,
            "tokens": edited.tokens,
            "edits": edited.total,
            "skipped": list(edited.skipped),
            "edits_by_latent": {str(i): int(edited.edits[i]) for i in edited.edits.nonzero()[:, 0].tolist()},
        },
        "categories": audit.categories,
        "judge_tokens": audit.judge_tokens,
        "ground_truth": None if audit.labels is None else standings(audit),
        "features": [feature_record(audit, latent) for latent in latents],
    }
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(audit: Audit) -> str:
    """features.csv."""
    out = io.StringIO()
    columns = [
        "set",
        "rank",
        "feature",
        "column_sum",
        "density",
        *(f"density_{kind}" for kind in KINDS),
        "selected_share",
        "edits",
    ]
    columns += ["label", "top_tokens", "reliable", "explanation", "category", "error", "url"]
    writer = csv.DictWriter(out, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for name in SETS:
        for rank, latent in enumerate(audit.ranking.members(name), 1):
            record = feature_record(audit, latent)
            densities = {f"density_{kind}": value for kind, value in record["density_by_kind"].items()}
            tokens = " ".join(record["top_tokens"])
            judged = record["explanation"] or {}
            writer.writerow(
                {k: v for k, v in record.items() if k != "explanation"}
                | densities
                | judged
                | {"set": name, "rank": rank, "top_tokens": tokens}
            )
    return out.getvalue()


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is missing is null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
