"""An artifact or a report on the Hugging Face hub, with a card that says what it is and what it cost."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import markdown as md
from harness.files import load_json, write_json
from harness.references import with_paths

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LIBRARIES = {"adapter": "peft", "weights": "transformers"}


def kind_of(folder: Path) -> str:
    """ "model" for an artifact folder, "dataset" for a report's; ValueError for any other."""
    if (folder / "aligned.json").is_file():
        return "model"
    if (folder / "report.md").is_file():
        return "dataset"
    raise ValueError(f"{str(folder)!r} is neither an artifact (aligned.json) nor a report (report.md)")


def card(folder: Path, to: str) -> str:
    """README.md of the repository ``to``, metadata included."""
    from huggingface_hub import DatasetCardData, ModelCardData

    if kind_of(folder) == "dataset":
        data = DatasetCardData(tags=["dspa-bench", "comparison-report"])
        return f"---\n{data.to_yaml()}\n---\n\n{(folder / 'report.md').read_text(encoding='utf-8')}"
    described = load_json(folder / "aligned.json", "artifact")
    base, delta = described["base"], described["delta"]
    data = ModelCardData(
        base_model=base["id"],
        library_name=_LIBRARIES.get(delta, "dspa-bench"),
        tags=["dspa-bench", "preference-alignment", described["method"]],
    )
    place = f"[{base['id']}](https://huggingface.co/{base['id']})" if base["id"] else "a model in a local folder"
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {to.rpartition('/')[2]}\n",
        f"{place}, aligned by the method `{described['method']}` of dspa-bench.\n",
        _facts(described),
        "\n## Use\n",
        _use(to, base, described.get("saes") or {}),
        "\n## Settings\n",
        md.table(["setting", "value"], [[md.code(k), md.escape(v)] for k, v in _flat(described["params"]).items()]),
    ]
    return "\n".join(parts) + "\n"


def publish(folder: Path, to: str, *, api: "HfApi", private: bool = False) -> str:
    """Upload ``folder`` with its `card` to the repository ``to`` (user/name), made if it is not there; returns its URL.

    Of what lies elsewhere on this machine only the last part of its path is uploaded, beside its hash. Raises
    ValueError for a folder that is neither artifact nor report, and when the hub refuses.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    kind, text = kind_of(folder), card(folder, to)
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch, "repository")
        shutil.copytree(folder, staged, copy_function=_link)
        _without_places(staged)
        (staged / "README.md").write_text(text, encoding="utf-8")
        try:
            url = str(api.create_repo(to, repo_type=kind, private=private, exist_ok=True))
            message = f"{kind_words(kind)} of dspa-bench"
            api.upload_folder(repo_id=to, repo_type=kind, folder_path=staged, commit_message=message)
        except OfflineModeIsEnabled:
            raise ValueError("the hub client is offline (HF_HUB_OFFLINE); unset it to publish") from None
        except (HfHubHTTPError, OSError) as problem:
            raise ValueError(f"{to!r} could not be published: {problem}") from None
    return url


def kind_words(kind: str) -> str:
    return "Artifact" if kind == "model" else "Report"


def _link(source: str, target: str) -> None:
    """A big file need not be copied to be uploaded; small JSON is, because it may be rewritten."""
    if source.endswith(".json"):
        shutil.copyfile(source, target)
    else:
        Path(target).symlink_to(Path(source).resolve())


def _without_places(folder: Path) -> None:
    """Cut the paths of what lies elsewhere to their names: others have it in another place."""
    described, adapter = folder / "aligned.json", folder / "adapter" / "adapter_config.json"
    if described.is_file():
        whole = load_json(described, "artifact")
        write_json(described, with_paths(whole, lambda path: Path(path).name))
        if adapter.is_file() and whole["base"]["id"] is None:
            config = load_json(adapter, "adapter")
            write_json(adapter, config | {"base_model_name_or_path": Path(whole["base"]["path"]).name})


def _facts(described: Mapping[str, Any]) -> str:
    base, bill, budget = described["base"], described["bill"] or {}, described["budget"] or {}
    declared = bill.get("declared")
    if declared is not None:
        flops = "unknown" if declared["flops"] is None else f"{declared['flops']:.3g}, as declared by its makers"
    else:
        flops = f"{bill['executed_flops']:.3g} executed, in {bill['seconds']:.1f} s" if bill else "not metered"
    rows = {
        "base": f"{base['id'] or Path(base['path']).name}, {md.code(base['hash'])}",
        "triples": f"{budget['n']}, hash {md.code(budget['hash'])}" if budget else "none",
        "FLOPs of the alignment": flops,
        "fingerprint": md.code(described["fingerprint"]),
    }
    return md.table(["", ""], [[key, value] for key, value in rows.items()], text_columns=2)


def _use(to: str, base: Mapping[str, Any], saes: Mapping[str, str]) -> str:
    given = [] if base["id"] else ['base="FOLDER OF THE BASE"']
    given += [f"saes={{{', '.join(f'{name!r}: {chr(34)}FOLDER{chr(34)}' for name in saes)}}}"] if saes else []
    arguments = ", ".join([f'snapshot_download("{to}")', *given])
    lines = [
        "```python",
        "from huggingface_hub import snapshot_download",
        "from harness.model import AlignedModel",
        "",
        f"model = AlignedModel.load({arguments})",
        'print(model.generate([({"role": "user", "content": "Hello!"},)], max_new_tokens=64)[0].text)',
        "```",
        "",
        "Base and SAEs must be those that the hashes name: loading checks that.",
    ]
    return "\n".join(lines)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Settings by dotted name, paths cut to their last part."""
    if not isinstance(value, Mapping):
        return {name: value}
    value = with_paths(value, lambda path: Path(path).name)
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{name}.{key}" if name else key).items()}
