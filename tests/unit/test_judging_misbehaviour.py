"""Servers that misbehave: what the judge makes of it, what it keeps and what it counts as spent."""

import gzip
import json
import multiprocessing
import re
import time

import pytest

from harness.judging.chat_endpoint import MOST_BYTES
from harness.judging.endpoint import OpenAIJudge
from harness.judging.prompted import rating_prompt
from tests.judge_server import Server, completion, serving
from tests.unit.test_judging_endpoint import COST, PRICES, account, rating
from tests.unit.test_judging_endpoint_client import ask


def judge(server, folder, **settings):
    return OpenAIJudge(**({"base_url": server.url, "model": "m", "attempts": 2} | PRICES | settings)).at(folder)


def always(*answer):
    return type("Always", (Server,), {"plan": lambda self, words: answer})


def content(value):
    return completion("") | {"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": value}}]}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"choices": []}, "not a chat completion"),
        ({"choices": None}, "not a chat completion"),
        ({"choices": [None]}, "not a chat completion"),
        ({"choices": [{"message": None, "finish_reason": "stop"}]}, "not a chat completion"),
        ({"choices": "text"}, "not a chat completion"),
        ([1, 2], "not a chat completion"),
        (b"null", "not a chat completion"),
        (b"17", "not a chat completion"),
        (content(None), "empty"),
        (content([{"type": "text", "text": "[[5]]"}]), r"no text \(list\)"),
        (content({"text": "[[5]]"}), "no text"),
        (content(5), r"no text \(int\)"),
        (content("\ud800 [[5]]"), "surrogates"),
        ({"choices": [{"message": {"content": " "}, "finish_reason": "\ud800"}]}, "empty"),
        (json.dumps(content("[[5]] X")).encode().replace(b"X", b"\xff\xfe"), "not valid JSON"),
        (b'{"choices": ' + b"[" * 100_000, "not valid JSON"),
        (b'{"choices": [', "not valid JSON"),
        (b"", "not"),
    ],
    ids=range(18),
)
def test_a_reply_of_any_shape_is_an_error_on_its_own_and_is_not_asked_again_at_once(tmp_path, body, error):
    with serving(kind=always(200, body)) as server:
        (verdict,) = judge(server, tmp_path).rate([rating("a")])
        assert sum(server.seen.values()) == 1
    assert verdict.value is None
    assert re.search(error, verdict.error)
    found = account(tmp_path)
    assert found.useless + found.lost == 1 and found.cost + found.possible > 0, "the server may charge for it"
    assert not (tmp_path / "replies.jsonl").exists()


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        "many",
        {},
        {"prompt_tokens": 7},
        {"prompt_tokens": 7, "completion_tokens": None},
        {"prompt_tokens": -7, "completion_tokens": 3},
        {"prompt_tokens": "7", "completion_tokens": "3"},
        {"prompt_tokens": True, "completion_tokens": True},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": 10**40, "completion_tokens": 1},
    ],
    ids=str,
)
def test_a_bill_that_is_missing_or_makes_no_sense_counts_as_the_most_that_the_call_may_cost(tmp_path, usage):
    with serving(kind=always(200, completion("[[5]]", usage=usage))) as server:
        made = judge(server, tmp_path)
        assert made.rate([rating("a")])[0].value == 5
    found = account(tmp_path)
    assert (found.cost, found.possible) == (0, pytest.approx(made.highest_cost(rating_prompt(rating("a")))))


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_of_a_huge_body_no_more_than_a_part_is_read_and_nothing_is_kept(tmp_path, status, packed):
    whole = json.dumps(completion("[[5]]" + " " * (50 << 20))).encode()
    headers = {"content-encoding": "gzip"} if packed else {}
    with serving(kind=always(status, gzip.compress(whole, 1) if packed else whole, headers)) as server:
        (verdict,) = judge(server, tmp_path).rate([rating("a")])
        assert sum(server.seen.values()) == 1, "asking again would bring it again"
    assert verdict.value is None and "longer than 4 MiB" in verdict.error
    assert account(tmp_path).possible > 0
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2000


def test_a_reply_that_is_packed_is_read_like_another():
    body = gzip.compress(json.dumps(completion("[[5]]")).encode())
    with serving(kind=always(200, body, {"content-encoding": "gzip"})) as server:
        assert ask(server, "a")[0].text == "[[5]]"
    assert MOST_BYTES > 1 << 20


def test_what_a_server_complains_of_is_kept_to_a_length():
    with serving(a=[(400, {"error": {"message": "no " * 100_000}})]) as server:
        (reply,) = ask(server, "a")
    assert "BadRequestError" in reply.error and len(reply.error) < 1100


def test_a_redirect_is_not_followed_and_names_where_it_leads_without_what_may_be_a_key(tmp_path):
    class Loop(Server):
        def plan(self, words):
            return 307, {}, {"location": self.url.replace("//", "//me:k-secret@") + "/chat/completions?key=k-secret"}

    with serving(kind=Loop) as server:
        verdicts = judge(server, tmp_path).rate([rating("a"), rating("b")])
        assert sorted(server.seen.values()) == [1, 1]
        assert all(f"redirects to '{server.url}/chat/completions'; give that as" in v.error for v in verdicts)
    found = account(tmp_path)
    assert (found.calls, found.refused, found.cost + found.possible) == (2, 2, 0)
    assert not any("k-secret" in path.read_text() for path in tmp_path.iterdir())


@pytest.mark.parametrize("location", ["", "http://[", "\\x", "javascript:x"])
def test_a_redirect_to_nowhere_is_an_error_too(location):
    with serving(kind=always(301, {}, {"location": location})) as server:
        assert re.search("redirects to|not a chat", ask(server, "a")[0].error)


def test_a_key_that_is_revoked_midway_leaves_what_came_and_the_rest_is_asked_when_it_is_back(tmp_path):
    class Revoked(Server):
        def plan(self, words):
            over = sum(self.answered.values()) >= 3
            return (401, {"error": {"message": "revoked"}}) if over else (200, completion("[[5]]"))

    requests = [rating(f"w{n}") for n in range(8)]
    with serving(kind=Revoked) as server:
        verdicts = judge(server, tmp_path, concurrency=1).rate(requests)
        assert [v.value for v in verdicts] == [5] * 3 + [None] * 5
        assert all("AuthenticationError" in v.error for v in verdicts[3:])
        assert set(server.seen.values()) == {1}, "no attempt is wasted on it"
    with serving(kind=always(200, completion("[[6]]"))) as server:
        assert [v.value for v in judge(server, tmp_path).rate(requests)] == [5] * 3 + [6] * 5
        assert sum(server.seen.values()) == 5
    assert account(tmp_path).cost == pytest.approx(8 * COST)


@pytest.mark.parametrize("header", [{"retry-after": "3600"}, {"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}])
def test_a_server_that_wants_an_hour_is_not_waited_for(header):
    begun = time.monotonic()
    with serving(a=[(429, {"error": {"message": "come back"}}, header)] * 9) as server:
        replies = ask(server, "a", "b")
        assert server.seen["a"] == 1
    assert "RateLimitError" in replies[0].error and replies[1].text == "B"
    assert time.monotonic() - begun < 600


class Modern(Server):
    """A model that wants max_completion_tokens, and no temperature."""

    def plan(self, words):
        _, request = self.requests[-1]
        if "max_tokens" in request:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return 400, {"error": {"message": message}}
        if "temperature" in request:
            return 400, {"error": {"message": "Unsupported value: 'temperature'"}}
        return 200, completion("[[5]]")


def test_a_model_that_wants_max_completion_tokens_gets_them(tmp_path):
    with serving(kind=Modern) as server:
        made = judge(server, tmp_path, temperature=None, concurrency=1, max_tokens=17)
        for batch in ("ab", "cd"):
            assert [v.value for v in made.rate([rating(text) for text in batch])] == [5, 5]
        sent = [request for _, request in server.requests]
    assert ["max_tokens" in request for request in sent] == [True] + [False] * 4, "it is told once"
    assert [request["max_completion_tokens"] for request in sent[1:]] == [17] * 4
    assert not any("temperature" in request for request in sent)
    found = account(tmp_path)
    assert (found.calls, found.refused, found.answered) == (5, 1, 4)
    assert found.cost == pytest.approx(4 * COST) and "its own temperature" in made.statement


def test_a_model_that_takes_no_temperature_says_so(tmp_path):
    with serving(kind=Modern) as server:
        (verdict,) = judge(server, tmp_path).rate([rating("a")])
    assert "Unsupported value: 'temperature'" in verdict.error


def test_two_grades_at_once_are_none(tmp_path):
    with serving(reply=lambda text: "First I thought [[3]], but no. Grade: [[9]]") as server:
        (verdict,) = judge(server, tmp_path).rate([rating("a")])
    assert verdict.value is None and "names 2 ratings (3, 9)" in verdict.error


def rate_all(url, folder, texts, together, cap):
    settings = {"base_url": url, "model": "m", "concurrency": 3, "max_tokens": 10, "max_cost": cap, "attempts": 1}
    made = OpenAIJudge(**settings, **PRICES).at(folder)
    together.wait()
    made.rate([rating(text) for text in texts])


@pytest.mark.parametrize("honest", [True, False], ids=["honest", "bills more than it may"])
def test_over_processes_a_cap_is_exceeded_by_what_is_open_at_most_and_only_by_a_server_that_overcharges(
    tmp_path, honest
):
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    reference = OpenAIJudge(base_url="http://h/v1", model="m", max_tokens=10, **PRICES)
    once = reference.highest_cost(rating_prompt(rating("0 11")))
    cap = 3.5 * once if honest else 30 * once
    bill = {} if honest else {"usage": {"prompt_tokens": 2_000_000, "completion_tokens": 0}}

    class Slow(Server):
        def plan(self, words):
            time.sleep(0.05)
            return 200, completion("[[5]]", **bill)

    with serving(kind=Slow) as server:
        parts = [[f"{n} {k}" for k in range(10, 20)] for n in range(3)]
        workers = [context.Process(target=rate_all, args=(server.url, tmp_path, part, together, cap)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        sent = sum(server.seen.values())
    found = account(tmp_path)
    assert found.calls == sent and found.possible == 0
    if honest:
        assert found.cost == pytest.approx(sent * COST) and found.cost <= cap
    else:
        assert 0 < sent <= 3 * 3, "one for each connection: the first bill stops all"
