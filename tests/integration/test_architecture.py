"""The four ways through the code that docs/architecture.md lists are the ways that are gone, and they are short."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance

from dspa.method import DSPA
from harness.compute.bill import Bill
from harness.data import ModelRef, SAERef, load_triples
from harness.data.triples import draw_budget
from harness.evaluators.lm_eval import AlignedLM
from harness.experiment.cell import evaluate
from harness.experiment.fitting import fit
from harness.experiment.suite import load_suite
from harness.method import METHODS
from harness.model import AlignedModel
from harness.run_folder import CellFolder
from reports.render import write_report
from tests.unit.synthetic_run import write_run

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tasks" / "sandbox" / "assets"


def listed(way: str) -> list[str]:
    """The files that the page lists under ``way``, in its order."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^### {way}\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


@contextmanager
def passing() -> Iterator[set[str]]:
    """The files of this project in which a function was called."""
    found: set[str] = set()

    def note(frame, event, _argument) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            found.add(frame.f_code.co_filename.removeprefix(f"{ROOT}/"))

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


@pytest.fixture(scope="module")
def base():
    return AlignedModel.from_base(ModelRef(path=str(ASSETS / "model")))


@pytest.fixture(scope="module")
def dspa():
    early, late = (SAERef(path=str(ASSETS / name)) for name in ("sae_early", "sae_late"))
    return DSPA(input_sae=early, output_sae=late, gate="strict", min_support=1)


def passed(files: set[str], way: str, most: int) -> None:
    """Every listed file was passed, and there are at most ``most``."""
    names = listed(way)
    assert 0 < len(names) <= most
    assert not [name for name in names if name not in files]


def test_a_triple_becomes_an_artifact_in_fifteen_files(base, dspa, tmp_path):
    with passing() as files:
        triples = load_triples(ASSETS / "triples.jsonl")
        fit(dspa, base, draw_budget(triples, 8, seed=0), 0).save(tmp_path / "artifact")
    passed(files, "A triple becomes an artifact", 15)


def test_a_prompt_becomes_a_table_cell_in_twenty_files(base, dspa, tmp_path):
    triples = load_triples(ASSETS / "triples.jsonl")
    aligned = fit(dspa, base, draw_budget(triples, 8, seed=0), 0)
    suite = load_suite(ROOT / "tasks" / "suites" / "sandbox.yaml", ["benchmarks.mt_bench.max_new_tokens=2"])
    run = write_run(tmp_path / "run")
    with passing() as files:
        evaluate(
            aligned,
            "mt_bench",
            suite.benchmarks["mt_bench"],
            judge=suite.judge,
            seed=0,
            folder=CellFolder(tmp_path / "cell"),
            notify=lambda _: None,
        )
        write_report(run)
    passed(files, "A prompt becomes a table cell", 20)


def test_a_dpo_cell_is_fitted_in_twelve_files(base, tmp_path):
    method = METHODS["dpo"](epochs=1)
    triples = load_triples(ASSETS / "triples.jsonl")
    with passing() as files:
        aligned = fit(method, base, draw_budget(triples, 4, seed=0), 0)
        aligned.save(tmp_path / "artifact")
    assert Bill.model_validate(aligned.bill).optimiser_steps == 1
    passed(files, "A DPO cell", 12)


def test_an_lm_eval_request_is_scored_in_ten_files(base):
    scorer = AlignedLM(base)
    context = "the fox lives in the"
    requests = [Instance("loglikelihood", {}, (context, end), i) for i, end in enumerate((" den", " sea"))]
    with passing() as files:
        ((likely, _), (unlikely, _)) = scorer.loglikelihood(requests)
    assert likely > unlikely
    passed(files, "An lm-eval request", 10)
