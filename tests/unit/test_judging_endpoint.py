"""The judge behind an endpoint: its settings, what it pays for, and where it stops."""

import json
import multiprocessing
import re
import time
from functools import partial

import pytest
from pydantic import ValidationError

from harness.data.triples import conversation
from harness.judging import JUDGES, Answer, Comparison, Judge, Rating
from harness.judging.endpoint import OpenAIJudge
from harness.judging.ledger import read_accounts
from harness.judging.prompted import rating_prompt
from tests.judge_server import Server, completion
from tests.judge_server import serving as serving_words
from tests.unit.test_judging_prompted import write_prompts

PRICES = {"price_in": 1000.0, "price_out": 10000.0}
"""With the server's 7 and 3 tokens a reply costs 0.037."""
COST = 0.037
serving = partial(serving_words, reply=lambda question: re.findall(r"\[\[\d+\]\]|$", question)[0])
"""By default the judge gives the grade that the answer asks for."""


def rating(text):
    return Rating(conversation([{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]))


def made(server, folder=None, **settings):
    judge = OpenAIJudge(**({"base_url": server.url, "model": "org/judge 1", "attempts": 1} | settings))
    judge.check()
    return judge if folder is None else judge.at(folder)


def account(folder):
    (found,) = read_accounts(folder).values()
    return found


def test_it_is_a_judge_and_registered():
    assert JUDGES["openai"] is OpenAIJudge
    judge = OpenAIJudge(base_url="http://localhost/v1", model="org/judge 1")
    assert isinstance(judge, Judge)
    assert judge.label == f"org_judge_1-{judge.settings_hash}"
    assert "org/judge 1" in judge.statement and "own prompts" in judge.statement


def test_all_four_verbs_go_over_the_wire(tmp_path):
    with serving(reply=lambda text: "[[B]] [[2]]" if "grade" in text or "Two AI" in text else "[[NO]] [[2]]") as server:
        judge = made(server, tmp_path, temperature=0.3, max_tokens=50)
        prompt = conversation("q")
        assert judge.rate([rating("a")])[0].value == 2
        assert judge.compare([Comparison.of(prompt, "a", "b")])[0].value == 2
        assert judge.harm([Answer(prompt, "a")])[0].value == 2
        assert judge.refusal([Answer(prompt, "a")])[0].value == 0
        sent = [request for _, request in server.requests]
    assert {(r["model"], r["temperature"], r["max_tokens"]) for r in sent} == {("org/judge 1", 0.3, 50)}
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [r["verb"] for r in rows if r["event"] == "batch"] == ["rate", "compare", "harm", "refusal"]
    assert {r["address"] for r in rows if r["event"] == "sent"} == {server.url}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"base_url": "localhost:8000"}, "is no address"),
        ({"base_url": "http://me:k-secret@localhost/v1"}, "must hold no user"),
        ({"model": ""}, "name of a model"),
        ({"api_key_env": "k-secret"}, "the name of an environment variable"),
        ({"max_cost": 5}, "max_cost needs price_in and price_out"),
        ({"price_in": 1}, "belong together"),
        ({"base_url": "https://example.org/v1"}, "set the environment variable SOME_KEY"),
        ({"mt_bench_prompts": "none.jsonl"}, "does not exist"),
    ],
)
def test_what_cannot_serve_is_refused_before_any_work(monkeypatch, settings, error):
    monkeypatch.delenv("SOME_KEY", raising=False)
    judge = OpenAIJudge(**({"base_url": "http://localhost/v1", "model": "m", "api_key_env": "SOME_KEY"} | settings))
    with pytest.raises(ValueError, match=error) as problem:
        judge.check()
    assert "k-secret" not in str(problem.value)


@pytest.mark.parametrize(
    "settings",
    [
        *({key: 0} for key in ("max_tokens", "concurrency", "attempts", "timeout")),
        *(
            {key: value}
            for key in ("price_in", "max_cost", "temperature")
            for value in (-1, float("nan"), float("inf"))
        ),
        {"api_key": "k-secret"},
    ],
    ids=str,
)
def test_settings_out_of_range_or_unknown_are_refused(settings):
    with pytest.raises(ValidationError):
        OpenAIJudge(**({"base_url": "http://localhost/v1", "model": "m"} | settings))


def test_no_verdict_is_paid_for_twice_whoever_asks_and_wherever_the_server_is(tmp_path):
    requests = [rating("[[3]]"), rating("[[4]]"), rating("[[3]]")]
    with serving() as server:
        assert [v.value for v in made(server, tmp_path, **PRICES).rate(requests)] == [3, 4, 3]
        assert sum(server.seen.values()) == 2
    with serving() as server:
        changed = {"price_in": 1, "price_out": 1, "concurrency": 1, "max_tokens": 99, "timeout": 3, "max_cost": 0}
        assert [v.value for v in made(server, tmp_path, **changed).rate(requests)] == [3, 4, 3]
        assert not server.seen
        for other in ({"model": "another"}, {"temperature": 0.5}):
            made(server, tmp_path, **other).rate(requests[:1])
        assert sum(server.seen.values()) == 2
    first = read_accounts(tmp_path)[made(server, **PRICES).label]
    assert (first.requests, first.reused, first.answered) == (6, 4, 2), "another temperature is another judge"
    assert first.cost == pytest.approx(2 * COST)


def test_every_reply_is_on_disk_when_the_next_one_is_still_awaited(tmp_path):
    class Watching(Server):
        def plan(self, words):
            kept = tmp_path / "replies.jsonl"
            self.had = [*getattr(self, "had", []), len(kept.read_text().splitlines()) if kept.exists() else 0]
            return super().plan(words)

    with serving(kind=Watching) as server:
        made(server, tmp_path, concurrency=1).rate([rating(f"[[{n}]]") for n in range(1, 5)])
        assert server.had == [0, 1, 2, 3]


def test_failures_are_named_and_only_they_are_asked_again(tmp_path):
    requests = [rating(text) for text in ("good 5", "garbage", "busy", "broken", "hang", "good 6")]

    class Ailing(Server):
        ill = True

        def plan(self, words):
            ills = {"busy": (429, {}), "broken": (500, {}), "hang": ("hang", {})}
            ill = next((answer for word, answer in ills.items() if f"\n{word}\n" in words), None)
            good = next((word[-1] for word in ("good 5", "good 6") if word in words), None)
            text = "[[7]]" if not self.ill else f"[[{good}]]" if good else "I say seven"
            return ill if self.ill and ill else (200, completion(text))

    with serving(kind=Ailing) as server:
        judge = made(server, tmp_path, attempts=2, timeout=0.5, **PRICES)
        verdicts = judge.rate(requests)
        assert [v.value for v in verdicts] == [5, None, None, None, None, 6]
        for verdict, error in zip(
            verdicts[1:5], ("no rating", "RateLimit", "InternalServer", "APITimeout"), strict=True
        ):
            assert error in verdict.error
        assert verdicts[1].raw == "I say seven"
        found = account(tmp_path)
        assert (found.calls, found.answered, found.refused, found.lost) == (9, 3, 4, 2)
        assert found.cost == pytest.approx(3 * COST)
        assert found.possible > 2 * COST, "the server may charge for what it never delivered"
        server.ill = False
        server.release.set()
        server.seen.clear()
        again = made(server, tmp_path, **PRICES).rate(requests)
        assert [v.value for v in again] == [5, 7, 7, 7, 7, 6]
        assert sorted(server.seen.values()) == [1] * 4


def most(judge, request):
    return judge.highest_cost(rating_prompt(request))


def test_a_cap_is_never_exceeded_and_what_is_left_is_used(tmp_path):
    requests = [rating(f"[[5]] {n}") for n in range(10)]
    with serving() as server:
        judge = made(server, tmp_path, max_tokens=10, concurrency=4, **PRICES)
        once = most(judge, requests[0])
        cap = once + 4.5 * COST  # 5 are sent before one more could bring the sum above it
        capped = made(server, tmp_path, max_tokens=10, concurrency=4, max_cost=cap, **PRICES)
        verdicts = capped.rate(requests)
        assert sum(server.seen.values()) == 5
        assert [v.value for v in verdicts].count(5) == 5
        failed = [v for v in verdicts if v.value is None]
        assert len(failed) == 5 and all("spending cap of" in v.error and "max_cost" in v.error for v in failed)
        assert account(tmp_path).cost == pytest.approx(5 * COST)
        rest = made(server, tmp_path, max_tokens=10, max_cost=100, **PRICES).rate(requests)
        assert [v.value for v in rest] == [5] * 10
        assert sum(server.seen.values()) == 10


def test_a_cap_of_nothing_sends_nothing(tmp_path):
    with serving() as server:
        (verdict,) = made(server, tmp_path, max_cost=0, **PRICES).rate([rating("[[5]]")])
        assert not server.seen
    assert verdict.value is None and "cap of 0 reached" in verdict.error


def test_free_servers_have_a_cap_that_never_ends(tmp_path):
    with serving() as server:
        verdicts = made(server, tmp_path, price_in=0, price_out=0, max_cost=0).rate([rating("[[5]]")])
    assert verdicts[0].value == 5
    assert account(tmp_path).cost == 0


def test_a_reply_without_token_counts_costs_the_most_it_may(tmp_path):
    body = completion("[[5]]", usage=None)
    with serving(kind=type("NoUsage", (Server,), {"plan": lambda self, words: (200, body)})) as server:
        judge = made(server, tmp_path, **PRICES)
        assert judge.rate([rating("a")])[0].value == 5
    found = account(tmp_path)
    assert (found.cost, found.possible) == (0, pytest.approx(most(judge, rating("a"))))


def test_the_key_is_in_no_file_error_or_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "k-secret")
    refuse = type("Refuse", (Server,), {"plan": lambda self, words: (401, {"error": {"message": "bad key k-secret"}})})
    with serving(reply=lambda text: "k-secret says [[5]]") as good, serving(kind=refuse) as bad:
        judges = [made(server, tmp_path, api_key_env="MY_KEY") for server in (good, bad)]
        verdicts = [judge.rate([rating(f"{n}")])[0] for n, judge in enumerate(judges)]
    assert [v.value for v in verdicts] == [5, None]
    assert good.requests[0][0]["authorization"] == "Bearer k-secret"
    texts = [repr(v) for v in verdicts] + [repr(j) + repr(j.identity) + j.statement for j in judges]
    texts += [path.read_text() for path in tmp_path.iterdir()]
    assert not any("k-secret" in text for text in texts)


def judge_all(url, folder, texts, together):
    judge = OpenAIJudge(base_url=url, model="m", concurrency=2).at(folder)
    together.wait()
    assert [v.value for v in judge.rate([rating(text) for text in texts])] == [5] * len(texts)


def test_processes_that_want_the_same_at_the_same_time_pay_once(tmp_path):
    texts = [f"[[5]] {n}" for n in range(12)]
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(2)

    class Slow(Server):
        def plan(self, words):
            time.sleep(0.05)
            return super().plan(words)

    with serving(kind=Slow) as server:
        orders = (texts, texts[3:] + texts[:3])
        processes = [
            context.Process(target=judge_all, args=(server.url, tmp_path, order, together)) for order in orders
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        assert sorted(server.seen.values()) == [1] * 12
    found = account(tmp_path)
    assert (found.requests, found.reused, found.calls) == (24, 12, 12)


def test_a_label_says_all_that_a_verdict_depends_on_and_nothing_else(tmp_path):
    settings = {"base_url": "http://localhost/v1", "model": "m"}
    label = OpenAIJudge(**settings).label
    for change in ({"base_url": "http://localhost:9/v1"}, {"max_tokens": 9}, {"max_cost": 1, "price_in": 1}):
        assert OpenAIJudge(**settings | change).label == label
    changes = [{"model": "n"}, {"temperature": 1}, {"temperature": None}]
    for text in "ab":
        write_prompts(tmp_path / f"{text}.jsonl", prompt_template=text + "{question}|{answer_a}|{answer_b}")
        changes.append({"mt_bench_prompts": tmp_path / f"{text}.jsonl"})
    assert len({label, *(OpenAIJudge(**settings | change).label for change in changes)}) == 6
