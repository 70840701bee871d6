"""On real weights and data an artifact without intervention gives the numbers of lm-eval's own `hf`."""

import json
import sys

import pytest

from harness.data.refs import ModelRef
from harness.model.aligned import AlignedModel
from tasks.multiple_choice import MultipleChoice

ARC = """task: arc_easy_local
dataset_path: json
dataset_kwargs: {data_files: {test: arc.jsonl, train: shots.jsonl}}
test_split: test
fewshot_split: train
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{query}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""

WINOGRANDE = """task: winogrande_local
dataset_path: json
dataset_kwargs: {data_files: {test: winogrande.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: gold
doc_to_choice: "{{context_options}}"
doc_to_target: "{{continuation}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def stories(data_folder):
    return AlignedModel.from_base(ModelRef(path=str(data_folder / "models" / "stories260K")))


@pytest.fixture(scope="module")
def task_folder(data_folder, tmp_path_factory):
    """Two local tasks whose files are beside their YAML, on the first items of the real data."""
    folder = tmp_path_factory.mktemp("tasks")

    def lines(name, start, stop):
        return (data_folder / "mc" / name).read_text(encoding="utf-8").splitlines(keepends=True)[start:stop]

    (folder / "arc.jsonl").write_text("".join(lines("arc_easy.jsonl", 0, 40)), encoding="utf-8")
    (folder / "shots.jsonl").write_text("".join(lines("arc_easy.jsonl", 40, 50)), encoding="utf-8")
    (folder / "winogrande.jsonl").write_text("".join(lines("winogrande.jsonl", 0, 40)), encoding="utf-8")
    (folder / "arc.yaml").write_text(ARC, encoding="utf-8")
    (folder / "winogrande.yaml").write_text(WINOGRANDE, encoding="utf-8")
    return folder


def hf_results(stories, task_folder, monkeypatch, tasks):
    """lm-eval's own evaluation of its own model class on the same folder."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(task_folder)  # where lm-eval looks for relative data files
    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": stories.base.ref.path, "dtype": "float32"},
        tasks=tasks,
        device="cpu",
        batch_size=16,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(task_folder), include_defaults=False),
    )
    assert results is not None
    return results


@pytest.fixture(scope="module", autouse=True)
def _own_datasets_cache(tmp_path_factory):
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


def test_unsteered_loglikelihoods_and_metrics_are_those_of_hf(stories, task_folder, monkeypatch):
    tasks = ("arc_easy_local", "winogrande_local")
    benchmark = MultipleChoice(tasks=tasks, task_folder=task_folder)
    benchmark.check()
    ours = list(benchmark.run(stories, judge=None, seed=0))
    theirs = hf_results(stories, task_folder, monkeypatch, list(tasks))
    for task in tasks:
        records = [r for r in ours if r.metric == task]
        samples = theirs["samples"][task]
        assert len(records) == len(samples) == 40
        for record, sample in zip(records, samples, strict=True):
            expected = [score for score, _ in sample["filtered_resps"]]
            scores = record.raw["loglikelihoods"]
            assert scores == pytest.approx(expected, abs=1e-4)
            assert scores.index(max(scores)) == expected.index(max(expected))
            assert record.value == 100 * sample["acc"]
            assert record.raw["prompt"] == (
                sample["arguments"][0][0] if task == "arc_easy_local" else [a for a, _ in sample["arguments"]]
            )
        mean = sum(r.value for r in records) / len(records)
        assert mean == pytest.approx(100 * theirs["results"][task]["acc,none"])


def test_few_shot_examples_and_normalised_accuracy_are_those_of_lm_eval(stories, task_folder, monkeypatch):
    benchmark = MultipleChoice(tasks=("arc_easy_local",), task_folder=task_folder, metric="acc_norm", limit=20)
    records = list(benchmark.run(stories, judge=None, seed=0))
    assert records == list(benchmark.run(stories, judge=None, seed=0))
    samples = hf_results(stories, task_folder, monkeypatch, ["arc_easy_local"])["samples"]["arc_easy_local"]
    assert [r.value for r in records] == [100 * s["acc_norm"] for s in samples[:20]]
    assert records[0].raw["prompt"].count("Answer:") == 3


def test_a_name_that_neither_the_folder_nor_lm_eval_knows_is_reported(task_folder):
    with pytest.raises(ValueError, match="'wordz' is not known to lm-eval and not among the readable YAMLs"):
        MultipleChoice(tasks=("arc_easy_local", "wordz"), task_folder=task_folder).check()


def test_lm_evals_command_line_runs_an_artifact_with_a_request_cache(
    stories, task_folder, tmp_path, monkeypatch, capsys
):
    from harness.evaluators.lm_eval import main

    monkeypatch.chdir(task_folder)
    stories.save(tmp_path / "artifact")
    before = list(sys.argv)
    main(
        [
            *("run", "--model", "aligned", "--model_args", f"artifact={tmp_path / 'artifact'}"),
            *("--tasks", "arc_easy_local", "--include_path", str(task_folder), "--limit", "4"),
            *("--output_path", str(tmp_path / "out"), "--use_cache", str(tmp_path / "cache")),
        ]
    )
    assert sys.argv == before
    assert "arc_easy_local" in capsys.readouterr().out
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["n-samples"]["arc_easy_local"]["effective"] == 4
    assert results["config"]["aligned_fingerprint"] == stories.fingerprint
    assert (tmp_path / "cache_rank0.db").is_file()
