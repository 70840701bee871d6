"""The chat client against a server on this machine that answers, refuses, stammers and hangs."""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness.judges.chat import ChatEndpoint
from harness.preferences import conversation


class Server(ThreadingHTTPServer):
    """Answers with the user's words in capitals; ``script`` maps these words to earlier (status, body) answers."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = {words: list(answers) for words, answers in script.items()}
        self.seen: Counter[str] = Counter()
        self.requests: list[tuple[dict, dict]] = []
        self.open = self.most_open = 0
        self.lock, self.release = threading.Lock(), threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        words = request["messages"][-1]["content"]
        with server.lock:
            server.seen[words] += 1
            server.requests.append(({k.lower(): v for k, v in self.headers.items()}, request))
            server.open += 1
            server.most_open = max(server.open, server.most_open)
            planned = server.script.get(words, [])
            status, body = planned.pop(0) if planned else (200, completion(words.upper()))
        if status == "hang":
            server.release.wait()
            status = 500
        if words.startswith("together"):
            server.release.wait(0.05)
        with server.lock:
            server.open -= 1
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("content-type", "text/html" if payload.startswith(b"<") else "application/json")
            self.send_header("content-length", str(len(payload)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(payload)
        except OSError:  # the client of a hanging request is gone
            pass

    def log_message(self, *_):
        pass


def completion(text, reason="stop", **changes):
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage} | (
        changes
    )


@contextmanager
def serving(**script):
    server = Server(script)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


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
        ({"detail": "nothing here"}, "not a chat completion"),
        (completion(None), "empty"),
        (completion("  "), "empty"),
        (completion("half an ans", reason="length"), "cut off at 1024 tokens"),
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
