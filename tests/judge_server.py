"""A chat server on this machine that judges and engines can ask: it answers, refuses, stammers, hangs or is gone."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers with ``reply`` of the last message; ``script`` maps messages to earlier (status, body) answers, which may
    have a mapping of headers as a third part. ``models`` are the names that it says it has.

    A status "hang" waits until `release` is set, "drop" closes the connection, "trickle" never ends the body. ``seen``
    counts requests by message, ``answered`` those that got 200.
    """

    daemon_threads = True
    request_queue_size = 128  # the default of 5 resets connections when this machine is busy
    block_on_close = False
    models: tuple[str, ...] | dict = ("m",)

    def __init__(self, script, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = {words: list(answers) for words, answers in script.items()}
        self.reply = reply
        self.seen: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.requests: list[tuple[dict, dict]] = []
        self.open = self.most_open = 0
        self.lock, self.release = threading.Lock(), threading.Event()

    def plan(self, words):
        """What a message gets that the script has nothing (more) for."""
        return 200, completion(self.reply(words))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        names = [{"id": name, "object": "model", "created": 1, "owned_by": "me"} for name in self.server.models]
        payload = json.dumps({"object": "list", "data": names}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

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
            status, body, *more = planned.pop(0) if planned else server.plan(words)
        if status == "hang":
            server.release.wait()
            status = 500
        if status == "drop":
            self.close_connection = True
            return
        if status == "trickle":
            self._trickle()
            return
        if words.startswith("together"):
            server.release.wait(0.05)
        with server.lock:
            server.open -= 1
            server.answered[words] += status == 200
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("content-type", "text/html" if payload.startswith(b"<") else "application/json")
            self.send_header("content-length", str(len(payload)))
            for name, value in (more or [{"retry-after-ms": "1"}])[0].items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)
        except OSError:  # the client of a hanging request, or of a body that is too long, is gone
            pass

    def _trickle(self):
        """A body of which a byte comes now and then."""
        self.send_response(200)
        self.send_header("content-length", "100000")
        self.end_headers()
        try:
            while not self.server.release.wait(0.02):
                self.wfile.write(b" ")
        except OSError:
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
def serving(reply: Callable[[str], str] = str.upper, kind: type[Server] = Server, **script):
    """A server until the end of the block, which also ends what hangs."""
    server = kind(script, reply)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
