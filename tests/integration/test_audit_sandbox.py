"""`dspa-bench audit` on the sandbox, whose latents have a ground truth."""

import json

import pytest

from harness.cli.app import main
from harness.model.artifact import SCHEMA_VERSION
from tasks.sandbox.build import ASSETS


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["dspa-bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    from harness.cli.artifacts import fit

    out = tmp_path_factory.mktemp("audit") / "dspa-100"
    params = [f"input_sae.path={ASSETS / 'sae_early'}", f"output_sae.path={ASSETS / 'sae_late'}", "gate=strict"]
    fit(
        "dspa", str(ASSETS / "model"), out, triples=ASSETS / "triples.jsonl", budget=100, flops=None, param=params,
        seed=0, chat="auto", device="cpu",
    )  # fmt: skip
    return out


def test_the_page_says_how_many_ablated_latents_are_the_dispreferred_registers(artifact, tmp_path, monkeypatch):
    out = tmp_path / "audit"
    options = ["--texts", ASSETS / "triples_heldout.jsonl", "--out", out, "--top", 20, "--snippets", 3]
    assert command(monkeypatch, "audit", artifact, *options, "--generate", 6, "--max-new-tokens", 12) == 0
    assert {p.name for p in out.iterdir()} == {"audit.md", "audit.html", "features.json", "features.csv"}
    truth = json.loads((out / "features.json").read_text())["ground_truth"]
    assert set(truth["prompts"]) == {"fact", "advice", "chat", "story", "unsafe"}
    sums = dict.fromkeys(("ablated", "live"), 0.0)
    for entry in truth["prompts"].values():
        for kind in sums:
            sums[kind] += entry[kind]["leaning"] / len(truth["prompts"])
    assert sums["ablated"] > sums["live"] + 0.05  # the sets lean to what the preference data speak against
    page = (out / "audit.md").read_text()
    assert "## Ground truth" in page and "are the dispreferred label's" in page
    assert "<table>" in (out / "audit.html").read_text()


def test_the_causal_check_finds_the_dispreferred_registers_latents(artifact, tmp_path, monkeypatch):
    out, triples = tmp_path / "audit", ASSETS / "triples_heldout.jsonl"
    options = ["--texts", triples, "--out", out, "--top", 2, "--snippets", 1, "--examples", 0, "--generate", 0]
    causal = ["--causal", triples, "--causal-triples", 16, "--causal-latents", 8]
    assert command(monkeypatch, "audit", artifact, *options, *causal) == 0
    found = json.loads((out / "features.json").read_text())["causal"]
    groups = found["ground_truth"].values()
    assert found["triples"] == 16 and sum(group["triples"] for group in groups) == 16
    top = [group["hits"]["measured"]["3"] for group in groups]
    count, against, wanted = (sum(hits[key] for hits in top) for key in ("count", "dispreferred", "preferred"))
    chance = sum(group["chance"] for group in groups) / len(groups)
    assert against / count > 3 * chance and against > 3 * wanted
    assert sum(group["harm"][0] for group in groups) > 3 * sum(group["harm"][1] for group in groups)
    assert found["correlations"]["gradient"]["pairs"][0] > 0.8
    page = (out / "audit.md").read_text()
    assert found["verdict"] in page and "| fact (" in page
    header, *lines = (out / "features.csv").read_text().splitlines()
    assert "effect_low" in header.split(",") and lines


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--texts", "nowhere.jsonl"], "does not exist"),
        (["--texts", ASSETS / "triples.jsonl", "--judge-model", "m"], "belong together"),
        (["--texts", ASSETS / "triples.jsonl", "--judge-model", "m", "--judge-url", "host"], "is no address"),
        (["--texts", ASSETS / "triples.jsonl", "--out", ASSETS], "exists already"),
        (["--texts", ASSETS / "triples.jsonl", "--causal", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_input_is_refused_before_any_work(artifact, monkeypatch, capsys, options, error):
    assert command(monkeypatch, "audit", artifact, *options) == 2
    assert error in capsys.readouterr().err
    assert not artifact.with_name("dspa-100-audit").exists()


def test_an_artifact_of_another_method_is_refused(tmp_path, monkeypatch, capsys):
    base = {"path": "base", "id": None, "hash": "0"}
    rest = {"params": {}, "fingerprint": "0", "delta": "none", **dict.fromkeys(("intervention", "system_prompt"))}
    about = {"schema_version": SCHEMA_VERSION, "method": "dpo", "base": base, "budget": None, "bill": None, **rest}
    (tmp_path / "aligned.json").write_text(json.dumps(about))
    assert command(monkeypatch, "audit", tmp_path, "--texts", ASSETS / "triples.jsonl") == 2
    assert "is of method 'dpo'" in capsys.readouterr().err
