"""A benchmark in a file of somebody's own: what it declares is what the run folder says, and no more is accepted."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.experiment.check import check_suite
from harness.experiment.run import prepare, run_suite
from harness.experiment.suite import load_suite
from harness.run_folder import RunFolder
from tests.toys import NoProgress, write_suite

PLUGIN = '''
"""Toxicity: percent of the answers that hold a bad word."""

from harness.benchmark import BenchmarkConfig, Metric, Record, register_benchmark
from harness.data.triples import conversation
from harness.data.refs import InputPath


@register_benchmark("outside_toxicity")
class Toxicity(BenchmarkConfig):
    needs_judge = False

    questions: InputPath
    bad_word: str = "w1"
    also: str | None = None

    @property
    def metrics(self):
        return (Metric(name="toxicity", title="Toxicity", unit="% of answers", higher_is_better=False),)

    def check(self):
        self.questions.read_text()

    def run(self, model, *, judge, seed, folder=None):
        prompts = self.questions.read_text().split()
        answers = model.generate([conversation(p) for p in prompts], max_new_tokens=4, temperature=1.0, seed=seed)
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            raw = {"prompt": prompt, "answer": answer.text}
            yield Record(str(number), str(number), "toxicity", 100.0 * (self.bad_word in answer.text.split()), raw=raw)
        if self.also:
            yield Record("0", "0", self.also, 1.0)


@register_benchmark("outside_twin")
class Twin(Toxicity):
    pass


@register_benchmark("outside_old")
class Old(Toxicity):
    metrics = property(lambda self: ("evenness",))


@register_benchmark("outside_path")
class PlainPath(Toxicity):
    questions: __import__("pathlib").Path
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "toxicity_plugin.py").write_text(PLUGIN)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture
def suite_with(plugin, tmp_path, tiny_folders):
    def make(*names: str, **settings) -> Path:
        entries = [{"name": name, "questions": "questions.txt", **settings} for name in names]
        changes = {"plugins": ["tests.toys", "toxicity_plugin"], "benchmarks": entries, "budgets": [4], "seeds": 1}
        path = write_suite(
            tmp_path / "suite", tiny_folders["llama"], variants=[{"name": "base", "method": "toy_base"}], **changes
        )
        (path.parent / "questions.txt").write_text("w3 w4 w5")
        return path

    return make


def test_its_metric_is_in_the_plan_as_it_declares_it(suite_with, tmp_path):
    prepared = prepare(suite_with("outside_toxicity"), tmp_path / "run")
    assert run_suite(prepared, NoProgress()) == {}
    (benchmark,) = json.loads((tmp_path / "run" / "plan.json").read_text())["benchmarks"]
    (metric,) = benchmark["metrics"]
    assert (metric["title"], metric["unit"], metric["higher_is_better"]) == ("Toxicity", "% of answers", False)
    run = RunFolder.open(tmp_path / "run")
    assert run.plan.metrics["toxicity"].better(1, 2)
    assert {r.metric for r in run.cell("base__n0__s0").records("outside_toxicity") or ()} == {"toxicity"}


def test_a_record_of_a_metric_that_it_did_not_declare_fails_the_benchmark(suite_with, tmp_path):
    prepared = prepare(suite_with("outside_toxicity", also="perplexity"), tmp_path / "run")
    ((failure,),) = run_suite(prepared, NoProgress()).values()
    assert failure == (
        "outside_toxicity: ValueError: benchmark 'outside_toxicity' made a record of metric 'perplexity', which it "
        "does not declare; it declares: toxicity"
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["outside_toxicity", "outside_twin"],
            r"declares the metric 'toxicity', which 'outside_toxicity' declares too",
        ),
        (["outside_old"], r"'outside_old' declares 'evenness'; declare a harness.benchmark.Metric"),
        (
            ["outside_path"],
            r"'outside_path' takes a plain Path as 'questions'; declare it as harness.data.refs.InputPath",
        ),
    ],
    ids=["twice", "only a name", "plain path"],
)
def test_what_a_report_could_not_tell_apart_or_find_is_refused_at_its_place(suite_with, names, expected):
    path = suite_with(*names)
    with pytest.raises(ValueError, match=rf"suite\.yaml:\d+: benchmarks\[{len(names) - 1}\](\.name)?: .*{expected}"):
        check_suite(load_suite(path))
