"""A suite on the prompts of the forms: MT-Bench's and AlpacaEval's formats and held-out triples, by the judge."""

import json
from pathlib import Path

import yaml

from harness.experiment.run import prepare, run_suite
from harness.files import write_json, write_jsonl
from reports.run import read_run
from tasks.formats.build import alpaca_references, mt_bench_questions
from tasks.formats.prompts import all_prompts, of_part
from tests.toys import NoProgress

PROMPTS = all_prompts()


def write_suite(folder: Path, base: Path) -> Path:
    """Four questions, four instructions and four held-out triples; the tiny base answers random words."""
    first = of_part(PROMPTS, "triples")[:12]
    rows = [{"prompt": p.text, "chosen": "w1 w2 w3.", "rejected": "w4 w5.", "source": p.id} for p in first]
    write_jsonl(folder / "triples.jsonl", rows[:8])
    write_jsonl(folder / "heldout.jsonl", rows[8:])
    write_jsonl(folder / "question.jsonl", mt_bench_questions(PROMPTS)[::12])
    own = {p.text: "w1 w2." for p in PROMPTS}
    write_json(folder / "references.json", alpaca_references(PROMPTS, own)[::20])
    suite = {
        "name": "forms",
        "base": {"path": str(base)},
        "triples": {"path": "triples.jsonl"},
        "budgets": [8],
        "seeds": 1,
        "judge": {"kind": "verifiable", "base": {"path": str(base)}, "max_nats": 50},
        "benchmarks": [
            {"name": "preference", "triples": "heldout.jsonl"},
            {"name": "mt_bench", "questions": "question.jsonl", "max_new_tokens": 8, "temperatures": 0.7},
            {"name": "alpaca_eval", "references": "references.json", "max_new_tokens": 8},
        ],
        "variants": [{"name": "base", "method": "base"}, {"name": "caa", "method": "caa", "params": {"layer": 1}}],
        "report": {"baseline": "base"},
        "execution": {"workers": 1, "threads": 1},
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    return folder / "suite.yaml"


def test_the_forms_are_judged_through_the_benchmarks_that_are_there(tmp_path, tiny_folders):
    assert run_suite(prepare(write_suite(tmp_path, tiny_folders["llama"]), tmp_path / "run", ()), NoProgress()) == {}
    found = read_run(tmp_path / "run")
    ratings = [one for cell in found.cells for one in cell.records["mt_bench"]]
    assert ratings and all(one.error is None and one.value is not None and 1 <= one.value <= 10 for one in ratings)
    raw = json.dumps([one.raw for one in ratings])
    assert "preferred form steps" in raw and "nats a token of 50" in raw
    assert "These numbers come from a program" in (tmp_path / "run" / "environment.json").read_text(encoding="utf-8")
