"""The chat client against a server on this machine that answers, refuses, stammers and hangs."""

import asyncio

import pytest

from harness.data.triples import conversation
from harness.judging.chat_endpoint import ChatEndpoint, NotAsked, RequestHooks
from harness.judging.prompted import Reply
from tests.judge_server import completion, serving


def ask(server, *texts, **settings):
    endpoint = ChatEndpoint(server.url, "judge-1", **({"attempts": 3} | settings))
    return endpoint.ask_all([conversation(text) for text in texts])


def test_replies_come_in_the_order_of_the_questions_with_the_tokens_they_took():
    with serving() as server:
        replies = ask(server, *(f"w{i}" for i in range(12)))
    assert [r.text for r in replies] == [f"W{i}" for i in range(12)]
    assert {(r.error, r.prompt_tokens, r.completion_tokens) for r in replies} == {(None, 7, 3)}


def test_the_request_carries_model_temperature_and_the_key_of_the_named_variable(monkeypatch):
    monkeypatch.setenv("MY_KEY", "k-123")
    with serving() as server:
        ask(server, "a", api_key_env="MY_KEY", temperature=0.5, max_tokens=11)
        ((headers, request),) = server.requests
    assert headers["authorization"] == "Bearer k-123"
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("judge-1", 0.5, 11)
    assert request["messages"] == [{"role": "user", "content": "a"}]


def test_a_server_without_keys_is_asked_without_one(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        assert ask(server, "a")[0].text == "A"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_or_broken_server_is_asked_again(status):
    with serving(a=[(status, {"error": {"message": "later"}})] * 2) as server:
        assert ask(server, "a", "b")[0].text == "A"
        assert server.seen == {"a": 3, "b": 1}


def test_after_the_last_attempt_the_reply_is_an_error_and_the_others_are_not_harmed():
    with serving(a=[(500, {"error": {"message": "broken"}})] * 9) as server:
        bad, good = ask(server, "a", "b")
        assert server.seen["a"] == 3
    assert bad.text is None and "InternalServerError" in bad.error and "broken" in bad.error
    assert good.text == "B"


def test_a_refused_request_is_not_repeated_and_its_error_does_not_show_the_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k-secret")
    with serving(a=[(401, {"error": {"message": "wrong key k-secret"}})]) as server:
        (reply,) = ask(server, "a")
        assert server.seen["a"] == 1
    assert "AuthenticationError" in reply.error and "k-secret" not in reply.error


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{no json", "not valid JSON"),
        (b"<html>hello</html>", "not a chat completion"),
        ({"choices": []}, "not a chat completion"),
        ({"choices": None}, "not a chat completion"),
        ({"choices": {}}, "not a chat completion"),
        ({"detail": "nothing here"}, "not a chat completion"),
        (completion(None), "empty"),
        (completion("  "), "empty"),
        (completion("half an ans", reason="length"), "cut off at 2048 tokens"),
    ],
)
def test_garbage_is_an_error_and_never_a_text(body, error):
    with serving(a=[(200, body)]) as server:
        (reply,) = ask(server, "a")
    assert reply.text is None and error in reply.error


def test_a_server_that_hangs_is_given_up_after_the_timeout():
    with serving(a=[("hang", {})] * 2) as server:
        (reply,) = ask(server, "a", attempts=2, timeout=0.2)
        assert server.seen["a"] == 2
    assert reply.text is None and "APITimeoutError" in reply.error


def test_nobody_at_the_address_is_an_error():
    with serving() as server:
        url = server.url
    (reply,) = ChatEndpoint(url, "m", attempts=1).ask_all([conversation("a")])
    assert reply.text is None and "APIConnectionError" in reply.error


def test_no_more_requests_are_open_at_once_than_allowed():
    with serving() as server:
        ask(server, *(f"together {i}" for i in range(9)), concurrency=3)
        assert 1 <= server.most_open <= 3


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"base_url": "localhost:8000"}, "is no address"),
        ({"model": ""}, "name of a model"),
        ({"attempts": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, error):
    with pytest.raises(ValueError, match=error):
        ChatEndpoint(**({"base_url": "http://localhost/v1", "model": "m"} | settings))


@pytest.mark.parametrize(
    "url", ["http://user:k-secret@localhost/v1", "http://localhost/v1?key=k-secret", "https://", "http://[::1/v1"]
)
def test_an_address_that_holds_a_key_or_no_host_is_refused_without_repeating_the_key(url):
    with pytest.raises(ValueError, match=r"must hold no user|is no address") as problem:
        ChatEndpoint(url, "m")
    assert "k-secret" not in str(problem.value)


def test_a_key_is_needed_only_away_from_this_machine(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for local in ("http://localhost:1/v1", "http://127.0.0.1/v1", "http://[::1]:8000/v1"):
        ChatEndpoint(local, "m").check_key()
    with pytest.raises(ValueError, match="set the environment variable OPENAI_API_KEY"):
        ChatEndpoint("https://example.org/v1", "m").check_key()
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    with pytest.raises(ValueError, match="needs a key"):
        ChatEndpoint("https://example.org/v1", "m").check_key()
    monkeypatch.setenv("OPENAI_API_KEY", "k-\u00e9")
    with pytest.raises(ValueError, match="characters that no key has") as problem:
        ChatEndpoint("http://localhost/v1", "m").check_key()
    assert "k-" not in str(problem.value)


def test_a_key_that_the_server_repeats_is_taken_out_of_texts_too(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k-secret\n")
    with serving(reply=lambda text: f"you sent k-secret and {text}") as server:
        assert ask(server, "a")[0].text == "you sent *** and a"
        assert server.requests[0][0]["authorization"] == "Bearer k-secret"


def test_a_cut_off_answer_keeps_what_there_was_as_raw_text():
    with serving(a=[(200, completion("half an ans", reason="length"))]) as server:
        (reply,) = ask(server, "a")
    assert (reply.text, reply.raw, reply.completion_tokens, reply.model) == (None, "half an ans", 3, "m")


def test_an_answer_that_trickles_for_ever_is_given_up_after_the_timeout():
    with serving(a=[("trickle", {})]) as server:
        (reply,) = ask(server, "a", attempts=1, timeout=0.3)  # without a limit this would not end
    assert reply.text is None and "APITimeoutError" in reply.error


def test_a_server_that_is_gone_does_not_get_every_attempt_for_every_conversation():
    down = {f"w{i}": [(503, {})] * 9 for i in range(8)}
    with serving(**down) as server:
        replies = ask(server, *down, "good", *(f"late {i}" for i in range(2)), concurrency=2, attempts=3)
        counts = [server.seen[words] for words in down]
    assert [r.text for r in replies[-3:]] == ["GOOD", "LATE 0", "LATE 1"]
    assert all(r.error for r in replies[:-3])
    assert set(counts) == {1, 3}
    assert counts.count(3) in (2, 3), "two in vain, and perhaps one that was open by then: then one attempt each"


class Listener(RequestHooks):
    def __init__(self, *, spare=(), forbid=()):
        self.spare, self.forbid, self.told = spare, forbid, []

    async def ready(self, index):
        return Reply("spared") if index in self.spare else None

    async def sending(self, index):
        await asyncio.sleep(0)
        if index in self.forbid:
            raise NotAsked("no money")
        self.told.append(("sending", index))

    def refused(self, index, why):
        self.told.append(("refused", index, why))

    def lost(self, index, why):
        self.told.append(("lost", index, why))

    def came(self, index, reply):
        self.told.append(("came", index, reply.text))


def watched(server, watch, *texts, **settings):
    endpoint = ChatEndpoint(server.url, "m", **({"attempts": 2, "concurrency": 1} | settings))
    return endpoint.ask_all([conversation(text) for text in texts], watch)


def test_the_watch_is_told_of_every_attempt_and_what_became_of_it():
    watch = Listener()
    with serving(a=[(429, {})], b=[("hang", {})]) as server:
        watched(server, watch, "a", "b", timeout=0.3)
    assert watch.told == [
        *[("sending", 0), ("refused", 0, "status 429"), ("sending", 0), ("came", 0, "A")],
        *[("sending", 1), ("lost", 1, "timeout"), ("sending", 1), ("came", 1, "B")],
    ]


def test_a_server_that_was_not_reached_has_not_worked():
    with serving() as server:
        pass
    watch = Listener()
    watched(server, watch, "a", attempts=1)
    assert watch.told == [("sending", 0), ("refused", 0, "ConnectError"), ("came", 0, None)]


def test_the_watch_can_spare_and_forbid_requests():
    watch = Listener(spare={0}, forbid={1})
    with serving() as server:
        spared, forbidden, asked = watched(server, watch, "a", "b", "c")
        assert server.seen == {"c": 1}
    assert (spared.text, forbidden.text, forbidden.error, asked.text) == ("spared", None, "no money", "C")


def test_what_a_watch_cannot_go_on_with_ends_everything_as_it_is():
    class Full(RequestHooks):
        def came(self, index, reply):
            raise OSError("the disk is full")

    with serving() as server, pytest.raises(OSError, match="the disk is full"):
        watched(server, Full(), "a", "b")
