"""The local server: GET only, to whoever asks by one of its own names; what a URL names is looked up, never opened."""

import ipaddress
import json
import socket
import socketserver
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from reports.page.build import filled
from reports.page.libraries import datatables, own
from reports.run import Cell
from reports.view.traces import Tracer
from reports.view.watched import Snapshot, Watched

_HTML, _JSON = "text/html; charset=utf-8", "application/json"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


class NotThere(Exception):
    """The URL names nothing that is served."""


class Viewer(ThreadingHTTPServer):
    """Serves the pages of ``folders``, which must be run folders, at ``host`` and ``port`` (0: any that is free)."""

    daemon_threads = True

    def __init__(self, folders: Sequence[Path], tracer: Tracer, *, host: str, port: int) -> None:
        names = _different([folder.resolve().name for folder in folders])
        places = [{"name": name, "href": f"/run/{number}/"} for number, name in enumerate(names, 1)]
        self.names, self.tracer, self.host = names, tracer, host
        self.runs = {
            str(number): Watched(folder, {"runs": places, "run": number}) for number, folder in enumerate(folders, 1)
        }
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as problem:
            raise ValueError(f"cannot listen at {host}:{port}: {problem}; give another --port or --host") from None

    def server_bind(self) -> None:
        """As every TCP server; an HTTP server of the standard library asks a name server what it is called, too."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{_in_url(host)}:{self.server_port}/"

    def answer(self, path: str, asked: Mapping[str, str]) -> tuple[str, str]:
        """(content type, content) of a path and its query; NotThere for any that is not served."""
        if path == "/":
            return _HTML, self._first_page()
        match path.split("/")[1:]:
            case ["run", number, ""] if number in self.runs:
                return _HTML, self.runs[number].snapshot().page
            case ["run", number, what] if number in self.runs and what in _DATA:
                try:
                    found = _DATA[what](self, self.runs[number], asked)
                except ValueError as problem:
                    found = {"error": str(problem)}
                return _JSON, json.dumps(found, allow_nan=False)
        raise NotThere

    def _first_page(self) -> str:
        """All runs in one table; of a single run its page."""
        if len(self.runs) == 1:
            return next(iter(self.runs.values())).snapshot().page
        snapshots = {number: watched.snapshot() for number, watched in self.runs.items()}
        boards = [(number, name, snapshots[number]) for number, name in zip(self.runs, self.names, strict=True)]
        columns = list(dict.fromkeys(column for _, _, one in boards for column in one.board.columns))
        rows = [
            (number, name, row, dict(zip(one.board.columns, row.entries, strict=True)))
            for number, name, one in boards
            for row in one.board.rows
            if any(entry.order for entry in row.entries)
        ]
        context = {"boards": boards, "columns": columns, "rows": rows, "brought": [datatables()]}
        context["data"] = {number: snapshot.version for number, snapshot in snapshots.items()}
        context["differ"] = differences({name: snapshot for _, name, snapshot in boards})
        return filled("runs.html.j2", own("common.js", "runs.js"), context, served=True)

    def _of_version(self, watched: Watched, asked: Mapping[str, str]) -> Snapshot | None:
        """The snapshot that the asking page was made of; None where there is a newer one."""
        snapshot = watched.snapshot(as_it_is=True)
        return snapshot if snapshot.version == asked.get("version") else None

    def state(self, watched: Watched, asked: Mapping[str, str]) -> dict[str, Any]:
        return watched.state()

    def questions(self, watched: Watched, asked: Mapping[str, str]) -> dict[str, Any]:
        snapshot = self._of_version(watched, asked)
        return {"stale": True} if snapshot is None else snapshot.packer.questions()

    def answers(self, watched: Watched, asked: Mapping[str, str]) -> dict[str, Any]:
        snapshot = self._of_version(watched, asked)
        if snapshot is None:
            return {"stale": True}
        return snapshot.packer.cell(_cell(snapshot, asked).planned.name)

    def trace(self, watched: Watched, asked: Mapping[str, str]) -> dict[str, Any]:
        snapshot = watched.snapshot(as_it_is=True)
        metric = snapshot.run.metrics.get(asked.get("metric", ""))
        if metric is None:
            raise NotThere
        benchmark = next(b.name for b in snapshot.run.plan.benchmarks if metric in b.metrics)
        return self.tracer.trace(snapshot.run, _cell(snapshot, asked), metric, benchmark, asked.get("item", ""))

    def latent(self, watched: Watched, asked: Mapping[str, str]) -> dict[str, Any]:
        snapshot, latent = watched.snapshot(as_it_is=True), asked.get("latent", "")
        if not (latent.isascii() and latent.isdecimal() and len(latent) < 10):
            raise NotThere
        return self.tracer.snippets(snapshot.run, _cell(snapshot, asked), int(latent))


_DATA: dict[str, Callable[[Viewer, Watched, Mapping[str, str]], dict[str, Any]]] = {
    "state": Viewer.state,
    "questions": Viewer.questions,
    "answers": Viewer.answers,
    "trace": Viewer.trace,
    "latent": Viewer.latent,
}


def _cell(snapshot: Snapshot, asked: Mapping[str, str]) -> Cell:
    cell = snapshot.packer.cells.get(asked.get("cell", ""))
    if cell is None:
        raise NotThere
    return cell


class _Handler(BaseHTTPRequestHandler):
    server: Viewer  # type: ignore[assignment]
    server_version, sys_version = "dspa-bench", ""

    def do_GET(self) -> None:
        if not self._asked_by_name():
            # Another site's name may be made to point here (DNS rebinding); its pages would read everything.
            self.send_error(HTTPStatus.FORBIDDEN, "this server does not answer to that name")
            return
        parts = urlsplit(self.path)
        try:
            asked = {key: values[-1] for key, values in parse_qs(parts.query, max_num_fields=20).items()}
            kind, content = self.server.answer(parts.path, asked)
        except NotThere:
            self.send_error(HTTPStatus.NOT_FOUND)
        except ValueError as problem:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", f"error: {problem}\n")
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "see the terminal")
        else:
            self._send(HTTPStatus.OK, kind, content)

    def _send(self, status: HTTPStatus, kind: str, content: str) -> None:
        body = content.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def _asked_by_name(self) -> bool:
        """Whether the Host header names this server: by --host, as loopback, or by the address connected to."""
        given = self.headers.get_all("Host") or []
        address, port = self.connection.getsockname()[:2]
        names = {*_LOCAL, _in_url(address), _in_url(self.server.host)}
        return len(given) == 1 and given[0].lower() in {f"{name.lower()}:{port}" for name in names}

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def differences(snapshots: Mapping[str, Snapshot]) -> list[tuple[str, list[str]]]:
    """(what, its value in each run) of what runs do not have alike, so that their numbers say different things."""
    found: dict[str, list[str]] = {"judge": [], "base": [], "triples": []}
    asked: list[dict[str, set[tuple[str, str]]]] = []
    for snapshot in snapshots.values():
        environment = snapshot.run.environment
        found["judge"].append(environment.judge.label if environment.judge else "none")
        found["base"].append(f"{environment.base.path or environment.base.id} ({environment.base.hash[:8]})")
        found["triples"].append(f"{environment.triples.path} ({environment.triples.hash[:8]})")
        asked.append({})
        for record in chain.from_iterable(chain.from_iterable(c.records.values() for c in snapshot.run.cells)):
            prompt = record.raw.get("prompt", record.raw.get("instruction"))
            asked[-1].setdefault(record.metric, set()).add((record.item, str(prompt)))
    for metric in dict.fromkeys(chain.from_iterable(asked)):
        if len({frozenset(items[metric]) for items in asked if metric in items}) > 1:
            found[f"questions of {metric}"] = [f"{len(items.get(metric, ()))} of its own" for items in asked]
    return [(what, values) for what, values in found.items() if len(set(values)) > 1 or what.startswith("questions")]


def _different(names: list[str]) -> list[str]:
    """The names, those that occur twice with a number."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    count: dict[str, int] = {}
    found = []
    for name in names:
        count[name] = count.get(name, 0) + 1
        found.append(f"{name} ({count[name]})" if seen[name] > 1 else name)
    return found
