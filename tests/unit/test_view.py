"""reports.view: what `dspa-bench view` serves, to whom, and what it says of a run that is at work."""

import http.client
import json
import re
import shutil
import threading
from pathlib import Path

import pytest

from reports.page.archive import Packer
from reports.page.libraries import own
from reports.run import read_run
from reports.view.server import Viewer, differences, is_loopback
from reports.view.traces import Tracer
from reports.view.watched import Watched
from tests.unit.synthetic_run import write_run

UNFINISHED = "dspa__n300__s2"


class Client:
    """Asks a server that runs meanwhile."""

    def __init__(self, *folders: Path, host: str = "127.0.0.1") -> None:
        self.server = Viewer(folders, Tracer(), host=host, port=0)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def ask(self, path: str, *, verb: str = "GET", hosts: tuple[str, ...] = ("127.0.0.1",)) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.putrequest(verb, path, skip_host=True)
        for host in hosts:
            connection.putheader("Host", host if ":" in host else f"{host}:{self.port}")
        connection.endheaders()
        return connection.getresponse()

    def json(self, path: str):
        reply = self.ask(path)
        assert reply.status == 200 and reply.getheader("Content-Type") == "application/json"
        return json.loads(reply.read())

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("view") / "run", unfinished=UNFINISHED)


@pytest.fixture(scope="module")
def client(folder):
    made = Client(folder)
    yield made
    made.close()


def test_the_page_holds_no_answers_and_may_ask_nobody_but_its_server(client):
    reply = client.ask("/")
    page = reply.read().decode()
    assert reply.status == 200 and reply.getheader("X-Content-Type-Options") == "nosniff"
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "connect-src &#39;self&#39;" in policy[1] and "default-src &#39;none&#39;" in policy[1]
    assert 'id="live"' in page and 'text/plain" id="questions"' not in page and 'text/plain" data-cell=' not in page
    assert page == client.ask("/run/1/").read().decode(), "the page of a single run is the first"


def test_answers_are_those_of_the_page_or_it_is_told_that_it_is_old(client, folder):
    state = client.json("/run/1/state")
    packer = Packer(read_run(folder, at_work=True))
    asked = f"version={state['version']}"
    assert client.json(f"/run/1/questions?{asked}") == json.loads(json.dumps(packer.questions()))
    found = client.json(f"/run/1/answers?cell=dpo__n100__s1&{asked}")
    assert found == json.loads(json.dumps(packer.cell("dpo__n100__s1")))
    for what in ("questions", "answers?cell=dpo__n100__s1"):
        assert client.json(f"/run/1/{what}") == {"stale": True}


@pytest.mark.parametrize(
    "path",
    [
        "/run/2/", "/run/1", "/run/1/nothing", "/run/1/state/", "/run/../../etc/passwd", "/plan.json",
        "/run/1/%2e%2e/plan.json", "/run/1/answers?cell=../../plan.json&version={version}",
        "/run/1/latent?cell=x&latent=1",
        "/run/1/trace?cell=dpo__n100__s1&metric=none&item=81:1", "/run/1/latent?cell=dpo__n100__s1&latent=-1",
    ],
)  # fmt: skip
def test_what_is_not_served_is_not_there(client, path):
    version = client.json("/run/1/state")["version"]
    assert client.ask(path.format(version=version)).status == 404


def test_only_get_and_only_by_a_name_of_its_own(client):
    for verb in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert client.ask("/run/1/state", verb=verb).status == 501
    for host in ("localhost", "LOCALHOST", "[::1]"):
        assert client.ask("/run/1/state", hosts=(f"{host}:{client.port}",)).status == 200
    for hosts in ((), ("evil.example",), ("127.0.0.1", "evil.example"), ("127.0.0.1:1",), ("127.0.0.1.evil.example",)):
        reply = client.ask("/run/1/state", hosts=hosts)
        assert reply.status == 403 and b"dpo" not in reply.read()


def test_a_run_at_work_shows_what_its_cells_have_finished(folder):
    (partly,) = [cell for cell in read_run(folder, at_work=True).cells if cell.planned.name == UNFINISHED]
    plain, at_work = read_run(folder), read_run(folder, at_work=True)
    assert UNFINISHED not in [cell.planned.name for cell in plain.cells]
    assert UNFINISHED in at_work.unfinished and not at_work.complete and partly.done
    assert len(at_work.records()) == len(plain.records()) + sum(map(len, partly.records.values()))
    assert at_work.unmatched == plain.unmatched == []


def test_the_state_says_what_cells_at_work_have_done_and_changes_with_the_records(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", unfinished=UNFINISHED)
    home = folder / "cells" / UNFINISHED
    (home / "answers").mkdir()
    (home / "answers" / "mt_bench.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"batch": 2, "tally": null}\n{"te')
    done = (home / "records" / "mt_bench.jsonl").rename(tmp_path / "kept")
    (home / "records" / "mt_bench.jsonl.partial").write_text("{}\n")
    monkeypatch.setattr("reports.view.watched.SHARE", 1.0)  # no rest between two pages
    watched = Watched(folder, {"runs": [], "run": 1})
    state = watched.state()
    assert (state["over"], state["planned"], state["failed"], state["problem"]) == (32, 33, 0, None)
    (work,) = state["working"]
    assert work["cell"] == UNFINISHED and work["done"].endswith("mt_bench: 2 answers, 1 records")
    assert watched.state()["version"] == state["version"]
    first = watched.snapshot()
    done.rename(home / "records" / "mt_bench.jsonl")
    assert watched.snapshot(as_it_is=True) is first
    renewed = watched.state()
    assert renewed["version"] != state["version"] and watched.snapshot(as_it_is=True).page != first.page
    plan = (folder / "plan.json").read_bytes()
    (folder / "plan.json").write_text("{")
    broken = watched.state()
    assert "plan.json" in broken["problem"] and broken["version"] == renewed["version"], "what was read stays"
    (folder / "plan.json").write_bytes(plan)
    assert watched.state()["problem"] is None


def test_pages_are_made_in_a_tenth_of_the_time(tmp_path):
    folder = write_run(tmp_path / "run", unfinished=UNFINISHED)
    watched = Watched(folder, {"runs": [], "run": 1})
    first = watched.snapshot()
    shutil.rmtree(folder / "cells" / UNFINISHED)
    assert watched.snapshot() is first, "it rests nine times as long as the page took"


def test_several_runs_share_a_table_that_says_in_what_they_differ(folder, tmp_path):
    other = write_run(tmp_path / "run")
    environment = json.loads((other / "environment.json").read_text())
    environment["judge"]["label"] = "another-judge"
    (other / "environment.json").write_text(json.dumps(environment))
    client = Client(folder, other)
    try:
        page = client.ask("/").read().decode()
    finally:
        client.close()
    assert "run (1)" in page and "run (2)" in page and "another-judge" in page
    assert 'href="/run/2/#answers?metric=mt_bench&amp;a=dspa' in page
    runs = {name: snapshot.snapshot() for name, snapshot in zip("ab", client.server.runs.values(), strict=True)}
    assert [what for what, _ in differences(runs)] == ["judge"]


def test_an_address_is_loopback_where_only_this_machine_reaches_it():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org")))


def test_the_command_prints_its_address_and_warns_where_others_can_reach_it(call, folder, monkeypatch):
    monkeypatch.setattr(Viewer, "serve_forever", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    code, out, err = call("view", folder, "--port", 0)
    assert code == 0 and re.match(r"http://127\.0\.0\.1:\d+/ ", out) and "warning" not in err
    code, out, err = call("view", folder, "--port", 0, "--host", "0.0.0.0")
    assert code == 0 and "everybody who can reach this machine" in err
    code, _, err = call("view", folder / "cells", "--port", 0)
    assert code == 2 and "is not a run folder" in err
    code, _, err = call("view", folder, "--sae", "early")
    assert code == 2 and "write NAME=FOLDER" in err


def test_an_address_of_ipv6_is_written_in_brackets(folder):
    with Viewer([folder], Tracer(), host="::1", port=0) as server:
        assert server.url == f"http://[::1]:{server.server_port}/"


def test_a_port_that_is_taken_is_refused(client, folder):
    with pytest.raises(ValueError, match="give another --port or --host"):
        Viewer([folder], Tracer(), host="127.0.0.1", port=client.port)


@pytest.mark.parametrize(
    "scripts", [("common.js", "page.js", "compare.js", "viewer.js", "live.js", "trace.js"), ("common.js", "runs.js")]
)
def test_no_two_scripts_of_a_page_define_the_same_name(scripts):
    names = re.findall(r"^(?:async )?(?:function|const|let) (\w+)", own(*scripts).text, flags=re.MULTILINE)
    assert sorted(names) == sorted(set(names))
