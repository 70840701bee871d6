"""A server on loopback with one file, odd when asked to be."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CONTENT = bytes(range(256)) * 1200  # 300 kB: several chunks


class Served:
    """What the server does: `content`; `plan` holds one oddity per request, in order (a status, or where to cut)."""

    def __init__(self, port):
        self.url, self.content, self.plan, self.requests = f"http://127.0.0.1:{port}/file.bin", CONTENT, [], 0


@contextmanager
def served() -> Iterator[Served]:
    """One that answers until the block is left."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_): ...

        def do_GET(self):
            served, oddity = self.server.served, (self.server.served.plan or [None]).pop(0)
            served.requests += 1
            if isinstance(oddity, int):
                self.send_error(oddity)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(served.content)))
            self.end_headers()
            self.wfile.write(served.content[: oddity[1]] if isinstance(oddity, tuple) else served.content)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.served = Served(httpd.server_address[1])
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        yield httpd.served
        httpd.shutdown()
        thread.join()
