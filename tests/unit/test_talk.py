"""`generate` and `chat`: prompts from files, answers beside another model's, conversations that go on."""

import io
import json
import sys

import pytest

from harness.cli.talk import read_prompts
from harness.data.triples import conversation


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, tiny_base):
    """The base with a prompt in front, which changes what it says."""
    folder = tmp_path_factory.mktemp("artifacts") / "told"
    tiny_base("llama").derive(method="prompt", system_prompt="w7 w8 w9").save(folder)
    return folder


def test_prompts_of_a_file_are_answered_beside_the_base_as_json(call, artifact, tiny_base, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w1 w2"}\n{"prompt": [{"role": "user", "content": "w3"}]}\n')
    given = ["--prompts", tmp_path / "prompts.jsonl", "--against", "base", "--max-new-tokens", 4]
    code, out, err = call("generate", artifact, *given, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [row["prompt"][-1]["content"] for row in rows] == ["w1 w2", "w3"]
    plain = tiny_base("llama").generate(["w1 w2", "w3"], max_new_tokens=4)
    assert [row["answers"]["base"]["text"] for row in rows] == [one.text for one in plain]
    assert set(rows[0]["answers"]) == {str(artifact), "base"}
    code, out, _ = call("generate", artifact, *given, "--prompt", "w5")
    assert out.index("> w5") < out.index("> w1 w2") < out.index("> w3")
    assert out.count("[base]") == 3


def test_a_system_turn_stands_in_front(call, artifact, tiny_base):
    code, out, _ = call("generate", artifact, "--prompt", "w1", "--system", "w4", "--max-new-tokens", 4, "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.txt", " \n", "the prompts file is empty"),
        ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', r"p.jsonl:2: missing key 'prompt'"),
        ("p.jsonl", '{"prompt": []}\n', r"p.jsonl:1: 'prompt' must be a string"),
    ],
)
def test_a_bad_prompts_file_is_refused_at_its_line(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=expected):
        read_prompts(tmp_path / name)


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\n two \n")
    assert read_prompts(tmp_path / "p.txt") == [conversation("one"), conversation("two")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "there is nothing to answer: give --prompt TEXT or --prompts FILE"),
        (["--prompt", "w1", "--against", "nowhere"], "nowhere is not an artifact folder"),
        (["--prompt", "w1", "--against", "SELF"], "is the artifact itself"),
    ],
)
def test_bad_input_is_one_message(call, artifact, given, expected):
    code, _, err = call("generate", artifact, *[str(artifact) if one == "SELF" else one for one in given])
    assert code == 2
    assert expected in err


def test_a_chat_goes_on_until_it_is_reset_and_compares_on_demand(call, artifact, tiny_base, monkeypatch):
    lines = ["w1 w2", "w3", "/reset", "w1 w2", "/against base", "w1 w2", "/nonsense", "/against nowhere", "/quit", "w9"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    code, out, err = call("chat", artifact, "--max-new-tokens", 3)
    assert code == 0
    said = out.splitlines()
    assert len(said) == 5
    assert said[0] == said[2]
    assert said[4].startswith("[base] ")
    first = tiny_base("llama").generate(["w1 w2"], max_new_tokens=3)[0].text
    assert said[4] == f"[base] {first}"
    model = tiny_base("llama").derive(system_prompt="w7 w8 w9")
    turns = ({"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": said[0]})
    later = model.generate([(*turns, {"role": "user", "content": "w3"})], max_new_tokens=3)
    assert said[1] == later[0].text
    assert "'/nonsense' is no command" in err
    assert "error: nowhere is not an artifact folder" in err
