"""The suites that come with the project load and pass every check that a run makes before its work."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.experiment.check import check_suite
from harness.experiment.suite import load_suite
from tasks.sandbox.build import ASSETS
from tests.conftest import D_MODEL, WORDS, make_sae, make_tokenizer

SUITES = Path(__file__).parents[2] / "tasks" / "suites"
FIRST, SECOND = "../sandbox/assets", "../../build/sandbox_second"
REAL = [path.stem for path in SUITES.glob("*.yaml") if ".gguf" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", sorted({path.stem for path in SUITES.glob("*.yaml")} - set(REAL)))
def test_it_loads_and_passes_the_checks(name, tmp_path):
    text = (SUITES / f"{name}.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["name"] == name
    # The second world need not be built: in files it is like the first.
    copy = tmp_path / f"{name}.yaml"
    copy.write_text(text.replace(SECOND, str(ASSETS)).replace(FIRST, str(ASSETS)), encoding="utf-8")
    check_suite(load_suite(copy))


def test_the_second_world_gets_the_very_comparison_of_the_first():
    first, second = (
        yaml.safe_load((SUITES / f"sandbox_{name}.yaml").read_text(encoding="utf-8").replace(folder, "sandbox"))
        for name, folder in (("budgets", FIRST), ("second", SECOND))
    )
    assert second["judge"] == {**first["judge"], "world": "second"}
    own = ("name", "judge")
    assert {k: v for k, v in second.items() if k not in own} == {k: v for k, v in first.items() if k not in own}


@pytest.fixture
def deep_model(tmp_path):
    """A random model with as many layers as the real one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": D_MODEL, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = {"vocab_size": 8 + len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(**sizes, **tokens, num_hidden_layers=30, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "deep")
    make_tokenizer().save_pretrained(tmp_path / "deep")
    return tmp_path / "deep"


def with_stand_ins(value: Any, model: Path, folder: Path) -> Any:
    """The suite with random weights for the model and its SAEs, made-up triples, and words that its tokenizer has."""
    if isinstance(value, dict):
        return {key: "w1 w2" if key == "instruction" else with_stand_ins(v, model, folder) for key, v in value.items()}
    if isinstance(value, list):
        return [with_stand_ins(v, model, folder) for v in value]
    if not isinstance(value, str):
        return value
    name = Path(value).name
    if name.endswith(".gguf"):
        return str(model)
    if name.startswith("sae_"):
        return str(make_sae(folder / name, int(name.removeprefix("sae_")), seed=1))
    if value.startswith("../../build/") and name.endswith(".jsonl"):
        rows = [{"prompt": f"{name} {i}", "chosen": "w1", "rejected": "w2"} for i in range(300)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(folder / name)
    return str(SUITES / value) if value.startswith("../") else value


@pytest.mark.parametrize("name", sorted(REAL))
def test_one_of_a_real_model_passes_the_checks_with_stand_ins_for_what_is_fetched(
    name, tmp_path, deep_model, monkeypatch
):
    monkeypatch.setattr("tasks.answers.vader_version", lambda: "3")
    suite = yaml.safe_load((SUITES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert suite["name"] == name
    copy = tmp_path / f"{name}.yaml"
    made = with_stand_ins(suite, deep_model, tmp_path)
    own: dict[str, dict[str, Any]] = {"fpo": {"k": 4}, "rahf_scit": {"good_instruction": "w1", "bad_instruction": "w2"}}
    for variant in made["variants"]:  # what the stand-ins are too small for
        variant.setdefault("params", {}).update(own.get(variant["method"], {}))
    # The data folder's tasks are loaded by tests/integration/test_lm_eval_local_tasks.py.
    made["benchmarks"] = [one for one in made["benchmarks"] if one.get("preset") != "paper_local"]
    copy.write_text(yaml.safe_dump(made), encoding="utf-8")
    check_suite(load_suite(copy))
