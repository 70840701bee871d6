"""vLLM as the engine: greedy answers are transformers' own in float32, whoever else is answered beside."""

import json
import os
import signal

import pytest
import torch
from peft import LoraConfig, get_peft_model

from harness.data.triples import conversation
from harness.engine.engine import Network
from harness.engine.served import Served
from harness.experiment.answering import Answering
from harness.model.aligned import AlignedModel
from harness.run_folder.answers import AnswerStore
from tests.vllm.conftest import ASSETS, answered

pytestmark = pytest.mark.vllm

ASKED = [conversation(" ".join(f"w{(7 * i + j) % 40}" for j in range(1 + i % 6))) for i in range(20)]


@pytest.fixture
def ask(engine):
    return lambda *what, **how: answered(engine, *what, **how)[0]


def test_greedy_answers_of_a_random_llama(wide, ask):
    assert ask(wide, ASKED, max_new_tokens=24) == wide.generate(ASKED, max_new_tokens=24)


def test_what_does_not_fit_is_not_asked(wide, ask):
    long = conversation(" ".join(["w1"] * 300))
    first, second = ask(wide, [long, ASKED[0]], max_new_tokens=4)
    assert "exceed the context" in str(first.error) and second.error is None


def test_a_sampled_answer_depends_on_its_own_request_alone(wide, ask):
    how = {"max_new_tokens": 12, "temperature": [0.0, 1.0, 1.5, 1.0], "seed": 3}
    together = ask(wide, ASKED[:4], **how)
    backwards = ask(wide, ASKED[3::-1], **how | {"temperature": how["temperature"][::-1]})[::-1]
    assert together == backwards
    assert together[0] == wide.generate(ASKED[:1], max_new_tokens=12)[0]
    assert together[1] != ask(wide, ASKED[:4], **how | {"seed": 4})[1]


def test_a_sampled_answer_is_the_same_when_its_prompt_comes_in_parts(wide, ask, start):
    how = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    long = [conversation(" ".join(f"w{(7 * i + j) % 40}" for j in range(20 + i))) for i in range(6)]
    assert answered(start(max_tokens=8), wide, long, **how)[0] == ask(wide, long, **how)


def test_an_adapter_and_weights_of_their_own(wide, ask, tmp_path):
    torch.manual_seed(1)
    adapted = get_peft_model(
        AlignedModel.from_base(wide.base.ref).model,
        LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False),
    )
    with_adapter = wide.derive(method="dpo", model=adapted.eval(), delta="adapter")
    whole = AlignedModel.from_base(wide.base.ref).model
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    with_weights = wide.derive(method="sft", model=whole, delta="weights")
    plain = wide.generate(ASKED, max_new_tokens=12)
    for name, aligned in (("adapter", with_adapter), ("weights", with_weights)):
        aligned.save(tmp_path / name)
        expected = aligned.generate(ASKED, max_new_tokens=12)
        assert expected != plain
        assert ask(aligned, ASKED, tmp_path / name, max_new_tokens=12) == expected, name
        assert ask(aligned.unaligned(), ASKED, max_new_tokens=12) == plain


def test_greedy_answers_of_the_sandbox_model(sandbox, ask):
    rows = json.loads((ASSETS / "alpaca_eval" / "reference_outputs.json").read_text())[:24]
    asked = [conversation(row["instruction"]) for row in rows]
    assert ask(sandbox, asked, max_new_tokens=48) == sandbox.generate(asked, max_new_tokens=48)


def test_a_killed_process_is_an_error_and_what_it_had_answered_is_kept(wide, engine, tmp_path):
    served = Served(wide, engine, Network(wide.base))
    store = AnswerStore(tmp_path / "a.jsonl")
    batches = served.generate_batches(ASKED, max_new_tokens=60)
    first = next(batches)
    os.kill(engine.process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="vLLM's process died"):
        list(batches)
    answers = Answering(served, store).generate(ASKED, max_new_tokens=60)
    assert [answers[row] for row in first.rows] == list(first.completions)
    assert answers == wide.generate(ASKED, max_new_tokens=60)
