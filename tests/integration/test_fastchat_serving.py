"""FastChat's controller, worker and OpenAI server, each a process of its own, serve the sandbox's artifacts."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.data.refs import ModelRef, SAERef
from harness.data.triples import conversation, load_triples
from harness.model.aligned import AlignedModel
from tests.waiting import wait_until

ASSETS = Path(__file__).parents[2] / "tasks" / "sandbox" / "assets"
QUESTIONS = ["How do I brew good coffee?", "tell me about the owl .", "good morning. what does the heron eat?"]
NEW = 40


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """name -> folder: the bare base, and DSPA on 60 triples."""
    from dspa.method import DSPA
    from harness.data.triples import draw_budget
    from harness.experiment.fitting import fit

    root = tmp_path_factory.mktemp("artifacts")
    base = AlignedModel.from_base(ModelRef(path=str(ASSETS / "model")))
    base.save(root / "plain")
    saes = [SAERef(path=str(ASSETS / name)) for name in ("sae_early", "sae_late")]
    method = DSPA(input_sae=saes[0], output_sae=saes[1], gate="strict", alpha=0.5)
    fit(method, base, draw_budget(load_triples(ASSETS / "triples.jsonl"), 60, 0), 0).save(root / "dspa")
    return {"plain": root / "plain", "dspa": root / "dspa"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def server(artifacts, tmp_path_factory):
    """Address of the OpenAI server, with a worker for each artifact behind it and one that serves both again."""
    folder = tmp_path_factory.mktemp("servers")
    ports = {name: free_port() for name in ("controller", "api", *artifacts, "both")}
    address = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    commands = {"controller": ["controller"], "api": ["openai_api_server"]}
    for name, path in artifacts.items():
        commands[name] = ["model_worker", "--worker-address", address[name], "--model-path", str(path)]
        commands[name] += ["--device", "cpu"]
    commands["both"] = ["multi_model_worker", "--worker-address", address["both"], "--device", "cpu"]
    for name, path in artifacts.items():
        commands["both"] += ["--model-path", str(path), "--model-names", f"{name}-again"]
    for name, command in commands.items():
        command += ["--host", "127.0.0.1", "--port", str(ports[name])]
        if name != "controller":
            command += ["--controller-address", address["controller"]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    running: list[subprocess.Popen] = []

    def start(name):
        entry = "import sys; from harness.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", entry, "fastchat", f"fastchat.serve.{commands[name][0]}", *commands[name][1:]]
        with (folder / f"{name}.out").open("wb") as out:
            running.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out))

    def wait(name, path, ready):
        def answered():
            try:
                return ready(ask(address[name] + path, {} if path != "/v1/models" else None))
            except OSError:
                return False

        def logs():
            return "\n".join(file.read_text()[-2000:] for file in folder.glob("*.out"))

        wait_until(answered, *running, log=logs)

    try:
        start("controller")
        start("api")
        wait("controller", "/list_models", lambda answer: answer == {"models": []})  # workers register when they start
        for name in (*artifacts, "both"):
            start(name)
        served = {*artifacts, *(f"{name}-again" for name in artifacts)}
        wait("api", "/v1/models", lambda answer: {m["id"] for m in answer["data"]} == served)
        yield address["api"]
    finally:
        for process in running:
            process.kill()  # FastChat's controller does not end at a mere request: its watching thread never does
            process.wait()
    assert sorted(file.suffix for file in folder.iterdir()) == [".out"] * len(commands)  # no log files but ours


def ask(address, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.loads(response.read())


def chat(server, model, content, **settings):
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": NEW} | settings
    return ask(f"{server}/v1/chat/completions", body)


@pytest.mark.parametrize("name", ["plain", "dspa"])
def test_answers_over_http_are_those_of_generate(server, artifacts, name):
    expected = AlignedModel.load(artifacts[name]).generate([conversation(q) for q in QUESTIONS], max_new_tokens=NEW)
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:  # at once
        answers = list(pool.map(lambda question: chat(server, name, question), QUESTIONS))
    for answer, completion in zip(answers, expected, strict=True):
        assert answer["choices"][0]["message"]["content"] == completion.text
        assert answer["choices"][0]["finish_reason"] == ("stop" if completion.finished else "length")
        assert answer["usage"]["prompt_tokens"] == completion.prompt_tokens
        assert answer["usage"]["completion_tokens"] == len(completion.token_ids)


def test_the_two_artifacts_answer_differently(server):
    assert any(chat(server, "plain", q)["choices"] != chat(server, "dspa", q)["choices"] for q in QUESTIONS)


def test_one_worker_for_several_artifacts_answers_as_one_for_each(server, artifacts):
    for name in artifacts:
        for question in QUESTIONS:
            assert chat(server, f"{name}-again", question)["choices"] == chat(server, name, question)["choices"]


def test_a_second_turn_and_no_limit_on_its_length(server, artifacts):
    talk = [
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": "you need the kettle."},
        {"role": "user", "content": QUESTIONS[1]},
    ]
    aligned = AlignedModel.load(artifacts["dspa"])
    room = aligned.base.max_length - len(aligned.prompt_ids(tuple(talk)))
    expected = aligned.generate([tuple(talk)], max_new_tokens=room)[0]
    answer = chat(server, "dspa", talk, max_tokens=None)
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert answer["usage"]["prompt_tokens"] == expected.prompt_tokens


def test_streaming_gives_the_same_text_in_pieces(server):
    body = {"model": "dspa", "messages": [{"role": "user", "content": QUESTIONS[0]}], "temperature": 0, "stream": True}
    request = urllib.request.Request(
        f"{server}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        events = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
    assert len([piece for piece in pieces if piece]) > 3
    assert "".join(pieces) == chat(server, "dspa", QUESTIONS[0], max_tokens=None)["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "has a picture"),
        ([], "the conversation is empty"),
        ("tell me about the owl . " * 120, "maximum context length is 512 tokens"),
    ],
)
def test_what_cannot_be_answered_is_a_client_error_with_the_reason(server, content, complaint):
    with pytest.raises(urllib.error.HTTPError) as raised:
        chat(server, "dspa", content)
    assert raised.value.code == 400
    assert complaint in json.loads(raised.value.read())["message"]
