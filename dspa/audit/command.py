"""The body of `audit`: puts together the artifact, the texts, a judge and (in the sandbox) the ground truth, and writes
what was found as a page and as data."""

import csv
import io
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from dspa.audit.audit import Audit, AuditSettings, audit
from dspa.audit.causal import CausalSettings
from dspa.audit.causal_page import causal_data
from dspa.audit.page import to_markdown
from dspa.audit.scan import KINDS, read_corpus
from harness.data.triples import load_triples
from harness.files import atomic_folder, check_can_make, without_nan
from harness.judging.chat_endpoint import ChatEndpoint
from harness.markdown import html_page
from harness.model.aligned import AlignedModel
from harness.model.artifact import read_description
from harness.quiet import without_progress_bars
from harness.truth import ground_truth

_EFFECT = ("effect", "effect_low", "effect_high", "gradient")
"""Columns of features.csv from the causal check: nats per token of the margin."""


def audit_command(
    artifact: Path,
    texts: Path,
    out: Path | None,
    settings: AuditSettings,
    *,
    judge_url: str | None,
    judge_model: str | None,
    judge_key: str,
    device: str,
    causal: tuple[Path, CausalSettings] | None = None,
) -> int:
    """Write the audit of a DSPA artifact; everything that can be wrong is checked before the model is loaded.

    ``causal``: file of held-out triples for the causal check. Returns the exit code.
    """
    without_progress_bars()
    if (judge_url is None) != (judge_model is None):
        raise ValueError("--judge-url and --judge-model belong together; give both, or neither for snippets only")
    endpoint = None
    if judge_url is not None and judge_model is not None:
        endpoint = ChatEndpoint(judge_url, judge_model, api_key_env=judge_key)
        endpoint.check_key()
    description = read_description(artifact)
    if (description.get("intervention") or {}).get("kind") != "dspa":
        raise ValueError(
            f"{artifact} is of method {description['method']!r}; only DSPA artifacts have a map to audit (methods dspa "
            "and dspa_ridge)"
        )
    name = artifact.resolve().name
    if out is None:
        named = artifact if artifact.name not in ("", "..") else artifact.resolve()
        out = named.with_name(f"{name}-audit")
    if out.exists():
        raise ValueError(f"--out {str(out)!r} exists already; give a new folder")
    check_can_make(out)
    if not texts.is_file():
        raise ValueError(f"texts file {str(texts)!r} does not exist")
    held_out = None if causal is None else (load_triples(causal[0]), causal[1])
    if causal is not None and held_out is not None and len(held_out[0]) < 2:
        raise ValueError(f"{causal[0]}: the causal check needs at least 2 triples")
    model = AlignedModel.load(artifact, device=device)
    for triple in held_out[0] if held_out is not None else ():
        model.triple_ids(triple)  # ValueError for one that does not fit the context
    console = Console(soft_wrap=True, highlight=False)
    found = audit(
        model,
        read_corpus(texts, model),
        settings,
        ask=None if endpoint is None else endpoint.ask_all,
        truth=ground_truth(model.base.identity, model.base.ref.path),
        causal=held_out,
        progress=lambda stage: console.print(f"{stage} ..."),
    )
    judge = None if endpoint is None else f"{endpoint.model} at {endpoint.base_url}"
    text = to_markdown(found, name, str(texts), judge, None if causal is None else str(causal[0]))
    files = {
        "audit.md": text,
        "audit.html": html_page(f"Audit of {name}", text),
        "features.json": to_json(found),
        "features.csv": to_csv(found),
    }
    with atomic_folder(out) as folder:
        for file, content in files.items():
            (folder / file).write_text(content, encoding="utf-8")
    console.print(f"audit: {out / 'audit.md'}")
    if found.unjudged:
        print(f"{found.unjudged} features were not judged; the page says why", file=sys.stderr)
    return 1 if found.unjudged else 0


def to_json(audit: Audit) -> str:
    """features.json: which artifact, on what it was measured, and everything that was found."""
    model, conditional, edited = audit.model, audit.conditionality, audit.edited
    content = {
        "method": model.method,
        "fingerprint": model.fingerprint,
        "base": model.base.ref.path or model.base.ref.id,
        "base_identity": model.base.identity,
        "budget": model.budget,
        "params": dict(model.params),
        "settings": asdict(audit.settings),
        "texts": len(audit.corpus.texts),
        "prompts": len(audit.corpus.prompts),
        "tokens": {kind: n for kind, n in zip(KINDS, audit.output.tokens.tolist(), strict=True) if n},
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
        "conditionality": conditional and conditional.figures,
        "examples": [asdict(example) for example in conditional.examples] if conditional else [],
        "coverage": edited
        and {
            "prompts": edited.prompts,
            "tokens": edited.tokens,
            "edits": edited.total,
            "skipped": edited.skipped,
            "edits_by_latent": {str(i): n for i, n in enumerate(edited.edits.tolist()) if n},
        },
        "categories": audit.categories,
        "judge_tokens": audit.judge_tokens,
        "ground_truth": audit.by_label,
        "causal": None if audit.causal is None else causal_data(audit.causal, audit.recovered),
        "features": list(audit.records.values()),
    }
    return json.dumps(without_nan(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(audit: Audit) -> str:
    """features.csv: one row for each place in a set."""
    out = io.StringIO()
    columns = ["set", "rank", "feature", "column_sum", "density", *(f"density_{kind}" for kind in KINDS)]
    columns += ["selected_share", "edits", "label", *_EFFECT, "top_tokens"]
    columns += ["reliable", "explanation", "category", "error", "url"]
    writer = csv.DictWriter(out, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for name, members in audit.ranking.items():
        for rank, latent in enumerate(members, 1):
            record = audit.records[latent]
            densities = {f"density_{kind}": value for kind, value in record["density_by_kind"].items()}
            own = {"set": name, "rank": rank, "top_tokens": " ".join(record["top_tokens"])}
            judged, effect = record["explanation"] or {}, record["causal"] or {}
            measured = without_nan({column: effect.get(column) for column in _EFFECT})
            writer.writerow(record | {"explanation": None} | densities | measured | judged | own)
    return out.getvalue()
