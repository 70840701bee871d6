"""The package's own annotators, run by the package against a server on loopback."""

import http.server
import importlib.util
import json
import logging
import os
import re
import socket
import threading
from pathlib import Path

import pytest
import yaml

from harness.evaluators.alpaca_eval.annotator import PackageAnnotator, without_keys
from harness.evaluators.alpaca_eval.evaluate import ANSWERS, evaluate

N = 12
OUTPUTS = [
    {"instruction": f"Say {i}", "output": f"GOOD {i}" if i % 3 else f"BAD {i}", "generator": "m"} for i in range(N)
]
REFERENCES = [
    {**row, "output": f"{'BAD' if i % 3 else 'GOOD'} ref {i}", "generator": "r"} for i, row in enumerate(OUTPUTS)
]
EXPECTED = [2.0 if i % 3 else 1.0 for i in range(N)]


@pytest.fixture
def judge():
    """A chat server that prefers GOOD to BAD; ``say`` decides what it answers, ``asked`` is what it was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_): ...

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = "\n".join(m["content"] for m in request["messages"])
            here = self.server
            with here.lock:
                here.asked.append(prompt)
                here.models.add(request["model"])
                here.keys.add(self.headers["Authorization"])
            status, choice = here.say(prompt, prompt.index("GOOD") < prompt.index("BAD"))
            body = {"error": {"message": choice}}
            if status == 200:
                body = {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 1,
                    "model": request["model"],
                    "choices": [{"index": 0, "finish_reason": "stop", **choice}],
                    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
                }
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.models, server.keys, server.lock = [], set(), set(), threading.Lock()
        server.say = lambda prompt, first: (200, ranking(first))
        server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_API_KEYS", "OPENAI_CLIENT_CONFIG_PATH", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def message(text):
    return {"message": {"role": "assistant", "content": text}}


def ranking(first):
    return message(
        str([{"model": "model_1", "rank": 1 if first else 2}, {"model": "model_2", "rank": 2 if first else 1}])
    )


def tokens(first):
    """As a model that is nearly sure: the first is better for "m", the second for "M"."""
    seen = [{"token": t, "logprob": -0.01 if (t == "m") == first else -5.0, "bytes": []} for t in ("m", "M")]
    best = min(seen, key=lambda t: -t["logprob"])
    return {**message(best["token"]), "logprobs": {"content": [{**best, "top_logprobs": seen}], "refusal": None}}


def annotator(judge, name="alpaca_eval_llama3_70b_fn", **options):
    return PackageAnnotator.load(name, url=judge.url, **options)


def test_the_papers_annotator_runs_by_the_package(judge, tmp_path):
    found = evaluate(OUTPUTS, REFERENCES, annotator(judge), folder=tmp_path)
    assert [a.preference for a in found.annotations] == EXPECTED
    assert found.leaderboard["win_rate"] == pytest.approx(100 * 8 / 12)
    assert len(judge.asked) == N
    assert judge.models == {"meta-llama/Llama-3-70b-chat-hf"}
    assert judge.keys == {"Bearer none"}
    # The package shows each pair in one of the two orders, and both occur.
    first = [prompt.index("GOOD") < prompt.index("BAD") for prompt in judge.asked]
    assert 0 < sum(first) < N
    rows = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    assert {row["annotator"] for row in rows} == {"alpaca_eval_llama3_70b_fn"}
    assert rows[0]["preference_price_per_example"] == pytest.approx(10 * 9e-7)
    assert json.loads(found.annotations[0].raw[0].replace("'", '"'))[0]["model"] == "model_1"


def test_an_annotator_that_weighs_by_probabilities_runs_too(judge, tmp_path):
    judge.say = lambda prompt, first: (200, tokens(first))
    found = evaluate(OUTPUTS, REFERENCES, annotator(judge, "weighted_alpaca_eval_gpt4_turbo"), folder=tmp_path)
    sure = 1 / (1 + 2.718281828459045 ** (-5 + 0.01))
    expected = [1 + sure if value == 2 else 2 - sure for value in EXPECTED]
    assert [a.preference for a in found.annotations] == pytest.approx(expected, abs=1e-12)
    assert found.annotations[0].raw[0] in ("m", "M")


def test_another_model_and_server_can_stand_in(judge):
    evaluate(OUTPUTS, REFERENCES, annotator(judge, model="my-llama"), folder=None)
    assert judge.models == {"my-llama"}


def test_nothing_is_paid_for_twice(judge, tmp_path):
    evaluate(OUTPUTS, REFERENCES, annotator(judge), folder=tmp_path)
    again = evaluate(OUTPUTS, REFERENCES, annotator(judge), folder=tmp_path)
    assert [a.preference for a in again.annotations] == EXPECTED
    assert len(judge.asked) == N
    evaluate(OUTPUTS, REFERENCES, annotator(judge, "alpaca_eval_llama3_70b_fn", model="other"), folder=tmp_path)
    assert len(judge.asked) == 2 * N


@pytest.mark.parametrize(
    ("failing", "reason", "raw"),
    [
        ((401, "no such key"), "AuthenticationError: .*no such key", ()),
        ((200, message("I cannot say.")), "the annotator's answer cannot be read", ("I cannot say.",)),
        ((200, message("")), "the annotator's answer cannot be read", (" ",)),
    ],
)
def test_what_fails_is_named_and_only_that_is_asked_again(judge, tmp_path, failing, reason, raw):
    judge.say = lambda prompt, first: failing if "Say 3" in prompt else (200, ranking(first))
    found = evaluate(OUTPUTS, REFERENCES, annotator(judge), folder=tmp_path)
    failed = found.annotations[3]
    assert failed.preference is None
    assert re.search(reason, failed.error)
    assert failed.raw == raw
    assert [a.preference for a in found.annotations[:3]] == EXPECTED[:3]
    assert found.leaderboard["n_total"] == N - 1
    before = len(judge.asked)
    judge.say = lambda prompt, first: (200, ranking(first))
    again = evaluate(OUTPUTS, REFERENCES, annotator(judge), folder=tmp_path)
    assert [a.preference for a in again.annotations] == EXPECTED
    assert len(judge.asked) == before + 1


def test_all_answers_failing_gives_only_errors(judge, tmp_path):
    judge.say = lambda prompt, first: (400, "nothing today")
    found = evaluate(OUTPUTS, REFERENCES, annotator(judge), folder=tmp_path)
    assert {a.preference for a in found.annotations} == {None}
    assert all("nothing today" in a.error for a in found.annotations)
    assert found.leaderboard["n_total"] == 0


def test_an_answer_that_is_torn_off_the_journal_is_asked_again(judge, tmp_path):
    evaluate(OUTPUTS, REFERENCES, annotator(judge), folder=tmp_path)
    journal = tmp_path / ANSWERS
    journal.write_bytes(journal.read_bytes()[:-20])
    evaluate(OUTPUTS, REFERENCES, annotator(judge), folder=tmp_path)
    assert len(judge.asked) == N + 1


def test_nothing_is_written_outside_the_folder_and_nothing_printed(judge, tmp_path, monkeypatch, capfd):
    spec = importlib.util.find_spec("alpaca_eval")
    package = Path(spec.submodule_search_locations[0])
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    evaluate(OUTPUTS, REFERENCES, annotator(judge), folder=None)

    def state():
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in package.rglob("*") if p.is_file()}

    before, level = state(), logging.getLogger().level
    evaluate(OUTPUTS, REFERENCES, annotator(judge), folder=tmp_path / "out")
    assert state() == before
    assert logging.getLogger().level == level
    assert os.listdir(tmp_path / "cwd") == []
    assert sorted(os.listdir(tmp_path / "out")) == ["annotations.json", ANSWERS, "leaderboard.csv"]
    assert capfd.readouterr() == ("", "")


def own(tmp_path, **settings):
    folder = tmp_path / "mine"
    folder.mkdir(exist_ok=True)
    (folder / "prompt.txt").write_text(
        "<|im_start|>user\n{instruction}\nfirst: {output_1}\nsecond: {output_2}\n<|im_end|>", encoding="utf-8"
    )
    config = {
        "prompt_template": "mine/prompt.txt",
        "fn_completions": "openai_completions",
        "completions_kwargs": {"model_name": "gpt-4-like", "max_tokens": 5, "temperature": 0},
        "fn_completion_parser": "regex_parser",
        "completion_parser_kwargs": {"outputs_to_match": {1: "first", 2: "second", 0: "tie"}},
        **settings,
    }
    (folder / "configs.yaml").write_text(yaml.safe_dump({"mine": config}), encoding="utf-8")
    return folder


def test_a_configuration_of_ones_own_and_a_file_of_clients(judge, tmp_path):
    clients = tmp_path / "clients.yaml"
    clients.write_text(yaml.safe_dump({"default": [{"base_url": judge.url, "api_key": "sk-mine"}]}), encoding="utf-8")
    options = {"model_name": "gpt-4-like", "max_tokens": 5, "client_config_path": str(clients)}
    mine = PackageAnnotator.load(own(tmp_path, completions_kwargs=options))
    mine.check()
    judge.say = lambda prompt, first: (200, message("tie" if "Say 4" in prompt else "first" if first else "second"))
    found = evaluate(OUTPUTS, REFERENCES, mine, folder=tmp_path / "out")
    assert [a.preference for a in found.annotations] == [1.5 if i == 4 else value for i, value in enumerate(EXPECTED)]
    assert judge.keys == {"Bearer sk-mine"}
    assert "sk-mine" not in (tmp_path / "out" / ANSWERS).read_text(encoding="utf-8")
    judge.say = lambda prompt, first: (401, "sk-mine-1 is no key")
    clients.write_text(clients.read_text().replace("sk-mine", "sk-mine-1"))
    found = evaluate(OUTPUTS, REFERENCES, mine, folder=None)
    assert judge.keys == {"Bearer sk-mine", "Bearer sk-mine-1"}
    assert all("*** is no key" in a.error and "sk-mine" not in a.error for a in found.annotations)


def test_a_key_is_needed_and_a_server_that_listens(judge, monkeypatch):
    alone = PackageAnnotator.load("alpaca_eval_gpt4")
    with pytest.raises(ValueError, match="annotator 'alpaca_eval_gpt4' asks by openai_completions: set OPENAI_API_KEY"):
        alone.check()
    with pytest.raises(ValueError, match="set ANTHROPIC_API_KEY"):
        PackageAnnotator.load("claude_2").check()
    annotator(judge).check()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = PackageAnnotator.load("alpaca_eval_gpt4", url=f"http://127.0.0.1:{free.getsockname()[1]}/v1")
        with pytest.raises(ValueError, match=r"asks http://127\.0\.0\.1:\d+/v1, which cannot be reached"):
            nobody.check()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", judge.url)
    alone.check()
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    PackageAnnotator.load("alpaca_eval_llama3_70b_fn").check()  # only the proxy could tell
    assert without_keys("Wrong key sk-secret.") == "Wrong key ***."


def test_a_module_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setenv("COHERE_API_KEY", "x")
    with pytest.raises(ValueError, match="needs the module cohere"):
        PackageAnnotator.load("cohere").check()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"fn_completions": "cache_completions"}, "'cache_completions' is not supported; allowed: openai_completions"),
        ({"prompt_template": "mine/no.txt"}, r"prompt_template .*mine/no\.txt' does not exist"),
        ({"prompt_template": 3}, "'prompt_template' must be"),
        ({"prompt_template": "a" * 5000}, "prompt_template .* does not exist"),
        ({"fn_completions": [1]}, r"\[1\] is not supported"),
        ({"completions_kwargs": [1]}, "'completions_kwargs' must be a mapping"),
        ({"completions_kwargs": {"model_name": 3}}, "'model_name' must be a text, got 3"),
        ({"completions_kwargs": {"client_kwargs": 3}}, "'client_kwargs' must be a mapping, got 3"),
        ({"completions_kwargs": {"client_kwargs": {"base_url": 5}}}, "'base_url' must be a text, got 5"),
        ({"completions_kwargs": {"client_config_path": [3]}}, "'client_config_path' must be a text"),
    ],
)
def test_a_malformed_configuration_is_refused(tmp_path, settings, complaint):
    with pytest.raises(ValueError, match=f"configs.yaml: annotator 'mine': .*{complaint}"):
        PackageAnnotator.load(own(tmp_path, **settings))


def test_unknown_and_unreadable_configurations_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"has no annotator 'gpt5'; it has: .*alpaca_eval_llama3_70b_fn, .*annotator_config"
    ):
        PackageAnnotator.load("gpt5")
    with pytest.raises(ValueError, match="does not exist"):
        PackageAnnotator.load(tmp_path / "no.yaml")
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.yaml:1: not valid YAML"):
        PackageAnnotator.load(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text("a: &a {b: *a}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.yaml:1: not valid YAML: more than 100 levels"):
        PackageAnnotator.load(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a mapping"):
        PackageAnnotator.load(tmp_path / "bad.yaml")
    with pytest.raises(ValueError, match="go with openai_completions, not with anthropic_completions"):
        PackageAnnotator.load("claude_2", url="http://localhost:1/v1")


def test_two_addresses_for_one_client_are_refused(judge, tmp_path, monkeypatch):
    clients = tmp_path / "clients.yaml"
    held = judge.url.replace("://", "://me:sk-of-mine@")
    clients.write_text(yaml.safe_dump({"default": [{"base_url": held}]}), encoding="utf-8")
    monkeypatch.setenv("OPENAI_CLIENT_CONFIG_PATH", str(clients))
    with pytest.raises(ValueError, match="leave it out of the file") as refused:
        PackageAnnotator.load("alpaca_eval_llama3_70b_fn").check()
    assert "sk-of-mine" not in str(refused.value)
    clients.write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a mapping from models"):
        PackageAnnotator.load("alpaca_eval_gpt4").check()


def test_every_configuration_of_the_package_that_can_be_run_is_read():
    spec = importlib.util.find_spec("alpaca_eval")
    folder = Path(spec.submodule_search_locations[0]) / "evaluators_configs"
    names = sorted(path.parent.name for path in folder.glob("*/configs.yaml"))
    assert len(names) > 40
    for name in names:
        assert PackageAnnotator.load(name).name == name
