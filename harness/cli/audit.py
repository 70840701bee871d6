"""The body of `audit`: puts together the artifact, the texts, a judge and (in the sandbox) the ground truth."""

import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from dspa.audit import AuditSettings, audit, read_corpus, to_csv, to_json, to_markdown
from harness.artifact import read_description
from harness.cli.artifacts import calm
from harness.files import check_can_make
from harness.judges.chat import ChatEndpoint
from harness.model import AlignedModel
from harness.truth import GroundTruth
from reports import html_page


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
    calm()
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
        truth=_ground_truth(model),
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
    _write(out, files)
    console.print(f"audit: {out / 'audit.md'}")
    if found.unjudged:
        print(f"{found.unjudged} features were not judged; the page says why", file=sys.stderr)
    return 1 if found.unjudged else 0


def _endpoint(url: str | None, model: str | None, key: str) -> ChatEndpoint | None:
    if (url is None) != (model is None):
        raise ValueError("--judge-url and --judge-model belong together; give both, or neither for snippets only")
    return None if url is None or model is None else ChatEndpoint(url, model, api_key_env=key)


def _ground_truth(model: AlignedModel) -> GroundTruth | None:
    """The sandbox knows what its texts are; other bases have no such truth."""
    from tasks.sandbox.truth import SandboxTruth, is_sandbox_base

    return SandboxTruth() if is_sandbox_base(model.base.identity) else None


def _write(out: Path, files: dict[str, str]) -> None:
    """All files or no folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        built = Path(scratch, "audit")
        built.mkdir()
        for name, text in files.items():
            (built / name).write_text(text, encoding="utf-8")
        shutil.move(built, out)
