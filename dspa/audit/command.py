"""The body of `audit`: puts together the artifact, the texts, a judge and (in the sandbox) the ground truth."""

import sys
from pathlib import Path

from rich.console import Console

from dspa.audit.audit import AuditSettings, audit
from dspa.audit.export import to_csv, to_json
from dspa.audit.page import to_markdown
from dspa.audit.texts import read_corpus
from harness.files import atomic_folder, check_can_make
from harness.judging.endpoint import ChatEndpoint
from harness.markdown import html_page
from harness.model.aligned import AlignedModel
from harness.model.artifact import read_description
from harness.quiet import without_progress_bars
from harness.truth import ground_truth


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
) -> int:
    """Write the audit of a DSPA artifact; everything that can be wrong is checked before the model is loaded.

    Returns the exit code.
    """
    without_progress_bars()
    endpoint = _endpoint(judge_url, judge_model, judge_key)
    method = read_description(artifact)["method"]
    if method != "dspa":
        raise ValueError(f"{artifact} is of method {method!r}; only DSPA artifacts have a map to audit")
    name = artifact.resolve().name
    if out is None:
        named = artifact if artifact.name not in ("", "..") else artifact.resolve()
        out = named.with_name(f"{name}-audit")
    if out.exists():
        raise ValueError(f"--out {str(out)!r} exists already; give a new folder")
    check_can_make(out)
    if not texts.is_file():
        raise ValueError(f"texts file {str(texts)!r} does not exist")
    model = AlignedModel.load(artifact, device=device)
    corpus = read_corpus(texts, model)
    console = Console(soft_wrap=True, highlight=False)
    found = audit(
        model,
        corpus,
        settings,
        endpoint=endpoint,
        truth=ground_truth(model.base.identity),
        progress=lambda stage: console.print(f"{stage} ..."),
    )
    judge = None if endpoint is None else f"{endpoint.model} at {endpoint.base_url}"
    text = to_markdown(found, name, str(texts), judge)
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


def _endpoint(url: str | None, model: str | None, key: str) -> ChatEndpoint | None:
    if (url is None) != (model is None):
        raise ValueError("--judge-url and --judge-model belong together; give both, or neither for snippets only")
    return None if url is None or model is None else ChatEndpoint(url, model, api_key_env=key)
