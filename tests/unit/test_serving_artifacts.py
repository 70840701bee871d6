"""What `dspa-bench serve` makes of artifacts before vLLM starts; tests/vllm/test_vllm_serving.py asks the server."""

import json
from itertools import pairwise

import pytest
from peft import LoraConfig, get_peft_model

from baselines.caa import CAA
from harness.cli.serve import by_name
from harness.compute import Meter
from harness.data.refs import ModelRef
from harness.engine.vllm_plugin import SERVED, register
from harness.engine.vllm_serving import Service
from harness.model.aligned import AlignedModel


def saved(aligned, folder):
    aligned.save(folder)
    return folder


def steered(base, triples, folder):
    return saved(CAA(layer=1).fit(base, triples, meter=Meter(base.model, sample_profile=False), seed=0), folder)


@pytest.fixture
def gemma(tiny_folders):
    return AlignedModel.from_base(ModelRef.model_validate({"path": str(tiny_folders["gemma2"])}))


def test_one_copy_of_the_weights_with_names_for_what_is_made_of_them(gemma, triples, tiny_folders, tmp_path):
    caa = steered(gemma, triples, tmp_path / "caa")
    tuned = get_peft_model(
        AlignedModel.from_base(gemma.base.ref).model, LoraConfig(r=20, task_type="CAUSAL_LM", target_modules=["q_proj"])
    )
    dpo = saved(gemma.derive(model=tuned, delta="adapter", method="dpo"), tmp_path / "dpo__n24__s0" / "artifact")
    service = Service.of(by_name([f"vector={caa}", str(dpo)]))
    command = service.command(["--port", "8001"])
    assert command[-2:] == ["--port", "8001"]
    said = dict(pairwise(command))
    assert said["--model"] == str(tiny_folders["gemma2"])
    assert (said["--served-model-name"], said["--dtype"]) == ("base", "float32")
    assert (said["--lora-modules"], said["--max-lora-rank"]) == (f"dpo__n24__s0={dpo / 'adapter'}", "32")
    assert {"--enforce-eager", "--no-enable-prefix-caching", "--no-async-scheduling"} < set(command)
    assert json.loads(service.environment()[SERVED]) == {
        "steered": {"vector": str(caa)},
        "layers": [1],
        "plain": ["vector"],
        "stop": list(gemma.chat.stop_ids),
    }
    alone = Service.of({"dpo": dpo})
    assert "--no-enable-prefix-caching" not in alone.command([])


def test_what_a_server_cannot_do_is_refused_with_what_to_do(gemma, tiny_base, triples, tmp_path):
    caa = steered(gemma, triples, tmp_path / "caa")
    with pytest.raises(ValueError, match=r"can be steered in Gemma2ForCausalLM and LlamaForCausalLM, and .*Qwen3"):
        Service.of({"q": steered(tiny_base("qwen3"), triples, tmp_path / "qwen")})
    with pytest.raises(ValueError, match=r"different bases .* serve them apart"):
        Service.of({"a": caa, "b": steered(tiny_base("llama"), triples, tmp_path / "llama")})
    with pytest.raises(ValueError, match=r"send to 'base' as the system message: Be brief\."):
        Service.of({"p": saved(gemma.derive(method="prompt", system_prompt="Be brief."), tmp_path / "prompt")})
    whole = saved(gemma.derive(method="sft", delta="weights"), tmp_path / "whole")
    with pytest.raises(ValueError, match="whole/weights is a model folder, for a server of its own"):
        Service.of({"w": whole})
    with pytest.raises(ValueError, match="made on another base"):
        Service.of({"a": caa}, base=str(tiny_base("llama").base.ref.path))
    with pytest.raises(ValueError, match="at least one artifact"):
        Service.of({})


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["base=x"], "is the untouched model"),
        (["a=x", "a=y"], "is x, too; give another: NAME=y"),
        (["=x"], "NAME=FOLD"),
    ],
)
def test_names_are_told_apart(words, complaint):
    with pytest.raises(ValueError, match=complaint):
        by_name(words)


def test_a_vllm_that_is_not_ours_is_left_alone(monkeypatch):
    monkeypatch.delenv(SERVED, raising=False)
    register()  # imports nothing of vLLM, which is not installed here
