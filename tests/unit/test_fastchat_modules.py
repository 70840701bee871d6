"""FastChat's modules that answer with an artifact, and those that are refused with what to use instead."""

import json
import sys

import pytest

from harness.cli.pass_through import fastchat_command
from harness.data.triples import Message, conversation
from harness.evaluators.fastchat.model import register
from harness.model.aligned import AlignedModel

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # peft
NEW = 6


@pytest.fixture
def artifact(tiny_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for module in ("llm_judge.gen_model_answer", "serve.huggingface_api"):
        monkeypatch.delitem(sys.modules, f"fastchat.{module}", raising=False)  # where another test imported it
    tiny_base("llama").save(tmp_path / "artifact")
    return tmp_path / "artifact"


def test_gen_model_answer_answers_as_generate_does_under_any_model_id(artifact, tmp_path):
    rows = [
        {"question_id": 1, "category": "math", "turns": ["w1 w2", "w3"]},
        {"question_id": 2, "category": "writing", "turns": ["w4"]},
    ]
    (tmp_path / "data" / "mt_bench").mkdir(parents=True)
    (tmp_path / "data" / "mt_bench" / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model-path", str(artifact), "--model-id", "mine", "--max-new-token", str(NEW)]
    fastchat_command("fastchat.llm_judge.gen_model_answer", arguments)
    lines = (tmp_path / "data" / "mt_bench" / "model_answer" / "mine.jsonl").read_text().splitlines()
    first, second = (json.loads(line)["choices"][0]["turns"] for line in lines)
    aligned = AlignedModel.load(artifact)
    (one,) = aligned.generate(["w1 w2"], max_new_tokens=NEW)
    talk = (*conversation("w1 w2"), Message(role="assistant", content=one.text), *conversation("w3"))
    (two,) = aligned.generate([talk], max_new_tokens=NEW)
    (sampled,) = aligned.generate(["w4"], max_new_tokens=NEW, temperature=0.7, seed=0)
    assert (first, second) == ([one.text, two.text], [sampled.text])


def test_a_prompt_without_room_for_the_answer_is_refused(artifact, tmp_path):
    (tmp_path / "data" / "mt_bench").mkdir(parents=True)
    row = {"question_id": 1, "category": "math", "turns": ["w1"]}
    (tmp_path / "data" / "mt_bench" / "question.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="1024 new ones exceed the context of 256; ask for fewer with --max-new-token"):
        fastchat_command("fastchat.llm_judge.gen_model_answer", ["--model-path", str(artifact), "--model-id", "mine"])


def test_huggingface_api_prints_the_answer_of_generate(artifact, capsys):
    settings = ["--device", "cpu", "--message", "w5 w6", "--max-new-tokens", str(NEW), "--temperature", "0"]
    fastchat_command("fastchat.serve.huggingface_api", ["--model-path", str(artifact), *settings])
    (expected,) = AlignedModel.load(artifact).generate(["w5 w6"], max_new_tokens=NEW)
    assert capsys.readouterr().out.rstrip("\n").endswith(f"assistant: {expected.text}")
    with pytest.raises(ValueError, match="there is no CUDA device on this machine; give --device cpu"):
        fastchat_command("fastchat.serve.huggingface_api", ["--model-path", str(artifact)])
    with pytest.raises(ValueError, match=r"--repetition_penalty 1\.2 is not known to artifacts"):
        fastchat_command(
            "fastchat.serve.huggingface_api", ["--model-path", str(artifact), *settings, "--repetition_penalty", "1.2"]
        )


def test_multi_model_worker_names_no_revision_and_that_is_fine(artifact):
    from fastchat.model.model_adapter import load_model

    register()
    model, _ = load_model(str(artifact), device="cpu", revision=None)  # type: ignore[arg-type]
    assert model.config.max_position_embeddings == 256


@pytest.mark.parametrize(
    ("module", "instead"),
    [
        ("llm_judge.gen_judgment", "it needs openai < 1; use `dspa-bench mt-bench judge ANSWERS`"),
        ("llm_judge.gen_api_answer", r"for an artifact use fastchat\.llm_judge\.gen_model_answer"),
        ("serve.vllm_worker", r"without steering; serve artifacts with `dspa-bench fastchat fastchat\.serve\.model_w"),
        ("llm_judge.qa_browser", "needs gradio, which is not installed: `pip install 'gradio<4'`"),
    ],
)
def test_a_module_that_cannot_work_is_refused_with_what_to_use(module, instead, monkeypatch):
    import harness.cli.pass_through as commands

    monkeypatch.setattr(commands, "installed", lambda name: name != "gradio")
    with pytest.raises(ValueError, match=instead):
        fastchat_command(f"fastchat.{module}", [])
