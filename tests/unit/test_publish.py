"""Publishing to a hub that runs here: what is uploaded, and what the card says."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi

from baselines import DPO
from dspa.method import DSPA
from harness.compute import Meter
from harness.publish import card, publish
from tests.unit.synthetic_run import write_run


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for; ``server.files`` is what was committed."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.path == "/api/repos/create":
            kind, name = json.loads(body).get("type", "model"), json.loads(body)
            place = f"{name.get('organization') or 'me'}/{name['name']}"
            prefix = "datasets/" if kind == "dataset" else ""
            return self._send({"url": f"http://{self.headers['Host']}/{prefix}{place}", "name": place})
        if self.path.endswith("/preupload/main"):
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            return self._send({"files": [one | {"shouldIgnore": False, "oid": None} for one in files]})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            place = f"http://{self.headers['Host']}/me/x/commit/main"
            return self._send({"commitUrl": place, "commitOid": "0" * 40, "success": True, "pullRequestUrl": None})
        return self._send({"errors": [], "warnings": []})  # validate-yaml

    def _send(self, value) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        """Nothing on stderr."""


@pytest.fixture
def hub(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {}  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def api_of(hub) -> HfApi:
    return HfApi(endpoint=f"http://127.0.0.1:{hub.server_address[1]}", token="hf_test")


def test_an_artifact_is_uploaded_with_a_card_and_no_path_of_this_machine(hub, tiny_base, triples, sae_refs, tmp_path):
    base = tiny_base("gemma2")
    saes = dict(zip(("input_sae", "output_sae"), sae_refs, strict=True))
    for name, method in (("adapter", DPO(tuning="lora")), ("steering", DSPA(**saes))):
        aligned = method.fit(base, triples[:4], meter=Meter(base.model, sample_profile=False), seed=0)
        aligned.save(tmp_path / name)
        hub.files.clear()
        url = publish(tmp_path / name, f"me/{name}", api=api_of(hub))
        assert url.endswith(f"/me/{name}")
        expected = {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*") if path.is_file()}
        assert set(hub.files) == expected | {"README.md"}
        for path, content in hub.files.items():
            assert b".." not in content or path.endswith((".safetensors", ".md")), path
            assert str(tmp_path).encode() not in content
        said = hub.files["README.md"].decode()
        assert f"aligned by the method `{method.name}`" in said
        assert 'base="FOLDER OF THE BASE"' in said
        assert ('"input_sae": "FOLDER"' in said.replace("'", '"')) == (name == "steering")


def test_a_report_is_a_dataset(hub, tmp_path):
    from reports.render import write_report

    report = write_report(write_run(tmp_path / "run")).parent
    assert publish(report, "me/report", api=api_of(hub)).endswith("/datasets/me/report")
    assert {"README.md", "report.md", "report.html", "tables/comparison.csv"} <= set(hub.files)
    assert hub.files["README.md"].startswith(b"---\ntags:\n- dspa-bench")


def test_what_cannot_be_published_is_refused(tmp_path, call):
    with pytest.raises(ValueError, match="neither an artifact"):
        card(tmp_path, "me/x")
    assert call("publish", tmp_path, "--to", "me")[::2] == (2, "error: --to 'me': write USER/NAME\n")
    assert "me/x/y" in call("publish", tmp_path, "--to", "me/x/y")[2]
    (tmp_path / "report.md").write_text("# A report\n")
    code, out, _ = call("publish", tmp_path, "--to", "me/x", "--dry-run")
    assert (code, out.startswith("---\ntags:"), "# A report" in out) == (0, True, True)
    code, _, err = call("publish", tmp_path, "--to", "me/x")
    assert (code, "offline" in err) == (2, True)
