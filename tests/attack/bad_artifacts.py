"""Artifacts that were damaged: keys of aligned.json, adapters, weights and interventions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.attack.bad_models import (
    DOCUMENTS,
    FILES,
    WEIGHTS,
    with_content,
    with_key,
    with_tensors,
    without,
    without_key,
)
from tests.attack.ground import Case, Change

KEYS = ("schema_version", "method", "base", "budget", "params", "fingerprint", "delta", "intervention", "system_prompt")
KEYS += ("bill",)
WRONG: tuple[tuple[str, Any], ...] = (
    ("schema_version", 99),
    ("schema_version", "2"),
    ("method", None),
    ("method", 5),
    ("base", None),
    ("base", []),
    ("base", {}),
    ("base", {"path": "../model"}),
    ("base", {"path": "../model", "hash": 5}),
    ("base", {"path": "../nowhere", "hash": "0"}),
    ("base", {"path": "../model", "hash": "0", "colour": "blue"}),
    ("base", {"path": "../model", "hash": "0", "dtype": "int8"}),
    ("base", {"path": ["../model"], "id": None, "hash": "0"}),
    ("base", {"path": "../model", "id": None, "hash": None}),
    ("params", None),
    ("params", []),
    ("params", {"sae": {"path": [], "id": None}}),
    ("fingerprint", None),
    ("fingerprint", "0" * 64),
    ("delta", None),
    ("delta", "nope"),
    ("delta", 5),
    ("delta", ["adapter"]),
    ("intervention", "x"),
    ("intervention", {}),
    ("intervention", {"kind": "nope", "params": {}}),
    ("intervention", {"kind": ["dspa"], "params": {}}),
    ("intervention", {"kind": "dspa"}),
    ("intervention", {"kind": "dspa", "params": {}}),
    ("intervention", {"kind": "dspa", "params": None}),
    ("intervention", {"kind": "direction", "params": {}}),
    ("system_prompt", 5),
    ("system_prompt", ["x"]),
    ("system_prompt", "\ud800"),
    ("budget", 5),
    ("bill", "x"),
)
ADAPTER: tuple[tuple[str, Any], ...] = (
    ("peft_type", "NOPE"),
    ("peft_type", 5),
    ("r", 16),
    ("r", "x"),
    ("r", 0),
    ("target_modules", None),
    ("target_modules", ["nothing"]),
    ("target_modules", 5),
    ("lora_alpha", "x"),
)
GENERATE = ("--prompt", "w1 w2", "--max-new-tokens", "2")


def _asking(artifact: str, change: Change) -> Change:
    def changed(here: Path) -> tuple[str, ...]:
        change(here)
        return ("generate", artifact, *GENERATE)

    return changed


def _params(name: str, value: Any) -> Change:
    """A setting of the intervention."""

    def change(here: Path) -> None:
        file = here / "steered" / "aligned.json"
        described = json.loads(file.read_text("utf-8"))
        described["intervention"]["params"][name] = value
        file.write_text(json.dumps(described), "utf-8")

    return change


def _same(here: Path) -> None:
    """Nothing."""


def cases() -> Iterator[Case]:
    """All of them."""
    for artifact in ("adapter", "weights", "steered"):
        file = f"{artifact}/aligned.json"
        yield Case("artifacts in order", artifact, _asking(artifact, _same), accepted=True)
        yield Case("aligned.json", f"{artifact}: gone", _asking(artifact, without(file)), said=artifact)
        for key in KEYS:
            change = _asking(artifact, without_key(file, key))
            yield Case("aligned.json", f"{artifact}: no {key}", change, said=artifact)
    for key, value in WRONG:
        artifact = "steered" if key == "intervention" else "adapter"
        change = _asking(artifact, with_key(f"{artifact}/aligned.json", key, value))
        yield Case("aligned.json", f"{key}: {str(value)[:60]!r}", change, said=artifact)
    for name, content in DOCUMENTS.items():
        change = _asking("adapter", with_content("adapter/aligned.json", content))
        yield Case("aligned.json", name, change, said="aligned.json")
        change = _asking("adapter", with_content("adapter/adapter/adapter_config.json", content))
        yield Case("adapter_config.json", name, change, said="adapter")
    for key, value in ADAPTER:
        change = _asking("adapter", with_key("adapter/adapter/adapter_config.json", key, value))
        yield Case("adapter_config.json", f"{key}: {value!r}", change, said="adapter")
    kept = {
        "adapter": (
            "adapter/adapter/adapter_model.safetensors",
            "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight",
        ),
        "weights": ("weights/weights/model.safetensors", "model.layers.1.mlp.down_proj.weight"),
        "steered": ("steered/intervention.safetensors", ""),
    }
    for artifact, (file, tensor) in kept.items():
        yield Case("tensors of artifacts", f"{artifact}: gone", _asking(artifact, without(file)), said=artifact)
        for name, cut in FILES.items():
            change = _asking(artifact, with_content(file, cut))
            yield Case("tensors of artifacts", f"{artifact}: {name}", change, said=artifact)
        for name, damage in WEIGHTS.items():
            if artifact == "steered" and name not in ("nothing", "all renamed"):
                continue
            change = _asking(artifact, with_tensors(file, damage, tensor))
            yield Case("tensors of artifacts", f"{artifact}: {name}", change, said=artifact)
    for name, value in (
        ("alpha", "x"),
        ("alpha", None),
        ("input_sae", None),
        ("input_sae", {"path": "x"}),
        ("gate", 5),
    ):
        change = _asking("steered", _params(name, value))
        yield Case("settings of interventions", f"{name}: {value!r}", change, said="steered")
    for arguments, name in (
        (("--prompt", ""), "an empty prompt"),
        (("--prompt", "\ud800"), "half a character"),
        (("--prompt", "w1 " * 400), "a prompt that does not fit"),
        (("--prompt", "w1", "--max-new-tokens", "1000000000"), "more tokens than the context"),
        (("--prompt", "w1", "--temperature", "inf"), "an endless temperature"),
        (("--prompt", "w1", "--temperature", "nan"), "a temperature that is none"),
        (("--prompt", "w1", "--seed", "-1"), "a negative seed"),
        (("--prompt", "w1", "--device", "meta"), "a device without numbers"),
        (("--prompt", "w1", "--sae", "x=y"), "an SAE that it does not have"),
        (("--prompt", "w1", "--base", "nowhere/at/all"), "a base that is not there"),
        (("--prompt", "w1", "--against", "nowhere"), "an artifact that is not there"),
        (("--prompts", "nowhere.jsonl"), "prompts that are not there"),
        (("--prompts", "model/model.safetensors"), "prompts that are no text"),
        (("--prompts", "triples.jsonl", "--system", "\ud800"), "half a character as instruction"),
    ):
        yield Case("generate", name, lambda _, arguments=arguments: ("generate", "adapter", *arguments))
