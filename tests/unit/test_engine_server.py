"""A server as the engine: its answers are the model's, what it reads otherwise or does not know is refused."""

import pytest

from baselines.prompt import Prompt
from harness.compute import Meter
from harness.data.triples import conversation
from harness.engine.engine import ENGINES, Network
from harness.engine.served import Served
from harness.engine.server import OpenAIServer
from harness.experiment.answering import Answering
from harness.run_folder.answers import AnswerStore
from tests.judge_server import serving
from tests.model_server import serving_models

ASKED = [conversation(text) for text in ("w1 w2", "w3", "w4 w5 w6")]
TALK = conversation([*ASKED[0], {"role": "assistant", "content": "w8"}, {"role": "user", "content": "w9"}])


@pytest.fixture
def base(tiny_base):
    return tiny_base("llama")


def served(server, aligned, **settings):
    config = OpenAIServer(base_url=server.url, model="tiny", **({"attempts": 1} | settings))
    return Served(aligned, config.start(aligned.base.ref, device="cpu", threads=1), Network(aligned.base))


def test_greedy_answers_are_those_of_the_model_itself(base):
    with serving_models({"tiny": base}) as server:
        found = {
            row: one
            for batch in served(server, base).generate_batches([*ASKED, TALK], max_new_tokens=9)
            for row, one in zip(batch.rows, batch.completions, strict=True)
        }
    expected = base.generate([*ASKED, TALK], max_new_tokens=9)
    assert [found[row].text for row in range(4)] == [one.text for one in expected]
    assert [found[row].finished for row in range(4)] == [one.finished for one in expected]
    assert [found[row].prompt_tokens for row in range(4)] == [one.prompt_tokens for one in expected]


def test_each_request_says_its_own_temperature_and_seed_and_what_the_suite_adds(base):
    with serving_models({"tiny": base}) as server:
        model = served(server, base, extra={"top_k": -1})
        for _ in model.generate_batches(ASKED, max_new_tokens=3, temperature=[0.0, 0.7, 1.0], seed=3):
            pass
        sent = {request["messages"][-1]["content"]: request for _, request in server.requests}
    assert [sent[one[-1]["content"]]["temperature"] for one in ASKED] == [0.0, 0.7, 1.0]
    assert len({request["seed"] for request in sent.values()}) == 3
    assert all(0 <= request["seed"] < 2**31 for request in sent.values())
    shared = {(r["model"], r["max_tokens"], r["top_k"], r["top_p"]) for r in sent.values()}
    assert shared == {("tiny", 3, -1, 1.0)}


def test_an_instruction_is_sent_as_the_models_template_writes_it(base):
    told = Prompt(instruction="w7 w7").fit(base, [], meter=Meter(base.model), seed=0)
    with serving_models({"tiny": base}) as server:
        (batch,) = served(server, told).generate_batches(ASKED[:1], max_new_tokens=4)
        (request,) = [request for _, request in server.requests]
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert batch.completions[0].text == told.generate(ASKED[:1], max_new_tokens=4)[0].text


def test_what_does_not_fit_is_not_asked(base):
    long = conversation(" ".join(["w1"] * 300))
    with serving_models({"tiny": base}) as server:
        first, second = served(server, base).generate_batches([long, ASKED[0]], max_new_tokens=4)
        assert len(server.requests) == 1
    assert first.rows == (0,) and "exceed the context" in str(first.completions[0].error)
    assert second.rows == (1,)


def test_an_answer_to_another_prompt_is_refused(base):
    with serving_models({"tiny": base}) as server:
        server.counts = lambda n: n + 1
        with pytest.raises(ValueError, match=r"counted 7 prompt tokens where .* has 6: its chat template or tokenizer"):
            list(served(server, base).generate_batches(ASKED[:1], max_new_tokens=4))


def test_a_server_that_counts_nothing_or_says_nothing_is_taken_at_its_word(base):
    with serving(reply=lambda words: "") as server:
        server.models = ("tiny",)
        server.plan = lambda words: (200, {"choices": [{"finish_reason": "stop", "message": {"content": None}}]})
        (batch,) = served(server, base).generate_batches(ASKED[:1], max_new_tokens=4)
    (one,) = batch.completions
    assert (one.text, one.token_ids, one.finished) == ("", (base.chat.end_id,), True)


def test_a_model_that_is_not_served_is_named_with_what_to_serve(base, tmp_path):
    with serving_models({"other": base}) as server:
        engine = served(server, base).engine
        with pytest.raises(
            ValueError, match=r"has no model 'tiny' \(it has: other\); give one as the engine's `model`"
        ):
            next(engine.answers(Network(base.base), [], 4))
        trained = Network(base.base, "dpo__n300__s0", tmp_path / "adapter")
        with pytest.raises(ValueError, match=r"serve .*adapter as 'dpo__n300__s0' and run again"):
            next(engine.answers(trained, [], 4))
    with pytest.raises(ValueError, match="does not list its models: APIConnectionError"):
        next(engine.answers(trained, [], 4))


def test_answers_that_came_are_kept_and_the_others_asked_for_again(base, tmp_path):
    with serving_models({"tiny": base}, w3=[(500, {})]) as server:
        model = Answering(served(server, base), AnswerStore(tmp_path / "a.jsonl"))
        with pytest.raises(RuntimeError, match="1 of 3 answers did not come, first: InternalServerError"):
            model.generate(ASKED, max_new_tokens=4)
        before = server.seen.copy()
        answers = Answering(served(server, base), AnswerStore(tmp_path / "a.jsonl")).generate(ASKED, max_new_tokens=4)
        assert server.seen - before == {"w3": 1}
    assert [one.text for one in answers] == [one.text for one in base.generate(ASKED, max_new_tokens=4)]


def test_who_leaves_off_early_leaves_nothing_open(base):
    script = {"w4 w5 w6": [("hang", {})]}
    with serving_models({"tiny": base}, **script) as server:
        batches = served(server, base).generate_batches(ASKED, max_new_tokens=4)
        assert {next(batches).rows, next(batches).rows} == {(0,), (1,)}
        batches.close()


def test_the_base_model_is_asked_through_the_engine_too(base):
    model = Served(base.derive(method="m"), ENGINES["openai"](base_url="http://localhost/v1", model="tiny"), None)  # type: ignore[arg-type]
    assert model.method == "m"
    assert (model.unaligned().method, model.unaligned().network) == ("base", Network(base.base))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"extra": {"seed": 1, "n": 2}}, "extra: n, seed is for the benchmark to say"),
        ({"base_url": "https://api.example.org/v1"}, "needs a key: set the environment variable OPENAI_API_KEY"),
        ({"base_url": "https://me:secret@example.org/v1"}, "must hold no user, password"),
    ],
)
def test_settings_that_cannot_serve_are_refused_before_any_work(base, monkeypatch, settings, complaint):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = OpenAIServer(**({"base_url": "http://localhost/v1", "model": "tiny"} | settings))
    with pytest.raises(ValueError, match=complaint):
        config.check(base.base.ref)


def test_a_base_without_a_chat_template_is_refused(base):
    ref = base.base.ref.model_copy(update={"chat": "hh"})
    with pytest.raises(ValueError, match="needs a base model with a chat template"):
        OpenAIServer(base_url="http://localhost/v1", model="tiny").check(ref)
