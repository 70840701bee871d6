"""Multiple choice by lm-eval: one record an item, its own metric, files beside the YAML, complaints before work."""

import json
import math
import statistics
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from lm_eval.utils import make_table

from harness.benchmark import Metric
from tasks.lm_eval import _record
from tasks.multiple_choice import MultipleChoice
from tasks.multiple_choice.local import local_data

YAML = """task: NAME
custom_dataset: !function local.items
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""

LOADER = """import json
from pathlib import Path

from datasets import Dataset, DatasetDict


def items(**_):
    lines = (Path(__file__).parent / "items.jsonl").read_text().splitlines()
    return DatasetDict({"test": Dataset.from_list([json.loads(line) for line in lines])})
"""

ITEMS = [{"query": f"w{i} w{i + 1}", "choices": ["w1 w2", "w3", "w4 w5 w6"], "gold": i % 3} for i in range(6)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "one.yaml").write_text(YAML.replace("NAME", "words_one"), encoding="utf-8")
    (tmp_path / "two.yaml").write_text(YAML.replace("NAME", "words_two"), encoding="utf-8")
    (tmp_path / "both.yaml").write_text(
        "group: words\ntask: [words_one, words_two]\nmetadata: {version: 1}\n", encoding="utf-8"
    )
    (tmp_path / "local.py").write_text(LOADER, encoding="utf-8")
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in ITEMS), encoding="utf-8")
    return tmp_path


def run(benchmark, model, folder=None):
    return list(benchmark.run(model, judge=None, seed=0, folder=folder))


def choose(aligned, item, normalised):
    scores = aligned.loglikelihood([(item["query"], f" {choice}") for choice in item["choices"]])
    values = [s / (len(c) if normalised else 1) for (s, _), c in zip(scores, item["choices"], strict=True)]
    return values.index(max(values))


def test_an_item_is_right_when_its_gold_choice_is_likeliest(folder, tiny_base):
    aligned = tiny_base("llama")
    benchmark = MultipleChoice(tasks=("words_one",), task_folder=folder, metric="acc")
    records = run(benchmark, aligned)
    assert [r.value for r in records] == [100.0 * (choose(aligned, i, False) == i["gold"]) for i in ITEMS]
    assert [(r.item, r.cluster, r.metric) for r in records[:2]] == [("0", "0", "words_one"), ("1", "1", "words_one")]
    expected = [score for score, _ in aligned.loglikelihood([("w0 w1", f" {c}") for c in ITEMS[0]["choices"]])]
    raw = records[0].raw
    assert raw["loglikelihoods"] == pytest.approx(expected, abs=1e-4)
    assert (raw["prompt"], raw["choices"], raw["gold"]) == ("w0 w1", [" w1 w2", " w3", " w4 w5 w6"], 0)


def test_the_metric_is_the_tasks_first_accuracy_unless_given(folder, tiny_base):
    aligned = tiny_base("llama")
    records = run(MultipleChoice(tasks=("words_one",), task_folder=folder), aligned)
    assert {r.raw["scored_by"] for r in records} == {"acc_norm"}
    assert [r.value for r in records] == [100.0 * (choose(aligned, i, True) == i["gold"]) for i in ITEMS]
    by_task = MultipleChoice(tasks=("words_one", "words_two"), task_folder=folder, metric={"words_two": "acc"})
    scored = {r.metric: r.raw["scored_by"] for r in run(by_task, aligned)}
    assert scored == {"words_one": "acc_norm", "words_two": "acc"}


def test_a_group_is_one_metric_with_the_items_of_all_its_tasks(folder, tiny_base):
    benchmark = MultipleChoice(tasks=("words",), task_folder=folder)
    benchmark.check()
    records = run(benchmark, tiny_base("llama"))
    assert benchmark.metrics == (Metric(name="words", title="words", unit="accuracy, %", made_of="choices"),)
    assert {r.metric for r in records} == {"words"}
    assert len({r.item for r in records}) == 12


def test_a_metric_that_is_no_accuracy_has_its_own_unit_and_the_direction_that_the_task_gives_it(folder):
    text = YAML.replace("NAME", "words_log").replace("acc_norm", "likelihood").replace("better: true", "better: false")
    (folder / "three.yaml").write_text(text, encoding="utf-8")
    (folder / "mixed.yaml").write_text("group: mixed\ntask: [words_one, words_log]\nmetadata: {version: 1}\n")
    benchmark = MultipleChoice(tasks=("words_log",), task_folder=folder, metric="likelihood")
    benchmark.check()
    (metric,) = benchmark.metrics
    assert (metric.unit, metric.higher_is_better, metric.made_of) == ("100 x likelihood", False, "choices")
    with pytest.raises(ValueError, match="the subtasks of lm-eval group 'mixed' measure different things"):
        MultipleChoice(tasks=("mixed",), task_folder=folder, metric="acc").check()


def test_limit_takes_the_first_items(folder, tiny_base):
    benchmark = MultipleChoice(tasks=("words_one",), task_folder=folder, limit=2)
    assert [r.item for r in run(benchmark, tiny_base("llama"))] == ["0", "1"]
    assert benchmark.prompts() == ["w0 w1", "w1 w2"]
    by_task = benchmark.model_copy(update={"limit": {"words_one": 2}})
    assert by_task.prompts() == ["w0 w1", "w1 w2"]


def test_results_json_is_lm_evals_and_names_the_model(folder, tiny_base, tmp_path):
    out = tmp_path / "out"
    aligned = tiny_base("llama")
    records = run(MultipleChoice(tasks=("words_one",), task_folder=folder), aligned, out)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    mean = sum(r.value for r in records) / len(records)
    assert results["results"]["words_one"]["acc_norm,none"] == pytest.approx(mean / 100)
    spread = statistics.stdev(r.value for r in records) / len(records) ** 0.5
    assert results["results"]["words_one"]["acc_norm_stderr,none"] == pytest.approx(spread / 100)
    assert results["config"]["aligned_fingerprint"] == aligned.fingerprint
    assert "|acc_norm|" in make_table(results).replace(" ", "")


def test_an_item_whose_loglikelihood_is_not_finite_is_an_error(folder, tiny_base, monkeypatch):
    from harness.model.aligned import AlignedModel

    def broken(self, requests, **_):
        return [(math.nan if index == 4 else -1.0, False) for index in range(len(requests))]

    monkeypatch.setattr(AlignedModel, "loglikelihood_tokens", broken)
    records = run(MultipleChoice(tasks=("words_one",), task_folder=folder), tiny_base("llama"))
    failed = [r for r in records if r.error is not None]
    assert [(r.item, r.value) for r in failed] == [("1", None)]
    assert "not all finite" in failed[0].error
    json.dumps(asdict(failed[0]), allow_nan=False)


def test_an_item_whose_metric_is_not_a_number_is_an_error():
    leaf = SimpleNamespace(task_name="mc2", OUTPUT_TYPE="multiple_choice")
    sample = {"arguments": [("c", " a"), ("c", " b")], "filtered_resps": [(-800.0, False), (-900.0, False)]}
    record = _record("mc2", leaf, "acc", {**sample, "acc": math.nan, "doc_id": 0, "target": 0}, {})
    assert (record.value, record.error) == (None, "acc cannot be computed from the log-likelihoods [-800.0, -900.0]")


@pytest.mark.parametrize("answer", ["", "AB", "E", "a"])
def test_an_mmlu_answer_that_is_not_a_letter_is_refused(tmp_path, monkeypatch, answer):
    monkeypatch.setenv("DSPA_BENCH_DATA", str(tmp_path))
    for split in ("test", "dev"):
        (tmp_path / "mc/mmlu" / split).mkdir(parents=True)
        (tmp_path / f"mc/mmlu/{split}/anatomy_{split}.csv").write_text(f"q,1,2,3,4,{answer}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"anatomy_test\.csv: record 1 is not question,A,B,C,D,answer"):
        local_data.mmlu("anatomy")


def test_running_it_prints_nothing(folder, tiny_base, capfd):
    run(MultipleChoice(tasks=("words_one",), task_folder=folder), tiny_base("llama"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"tasks": ("words_one",), "metric": "f1"}, "has no metric 'f1'; set `metric:` to one of: acc_norm, acc"),
        ({"tasks": ("words_one",), "metric": {"words_two": "acc"}}, "not in `tasks:`: words_two"),
    ],
)
def test_bad_settings_are_reported(folder, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        MultipleChoice(task_folder=folder, **settings).check()


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        MultipleChoice(tasks=("words_one",), task_folder=tmp_path / "no").check()


def test_missing_data_is_reported_as_the_tasks_problem(folder):
    (folder / "items.jsonl").unlink()
    with pytest.raises(ValueError, match=r"task 'words_one' cannot be loaded: FileNotFoundError"):
        MultipleChoice(tasks=("words_one",), task_folder=folder).check()


def test_a_task_of_another_kind_is_refused(folder):
    text = YAML.replace("NAME", "words_gen").replace("multiple_choice", "generate_until")
    (folder / "gen.yaml").write_text(text.split("metric_list")[0], encoding="utf-8")
    refusal = "of type 'generate_until'; benchmark 'multiple_choice' takes .*; benchmark `lm_eval` takes others"
    with pytest.raises(ValueError, match=refusal):
        MultipleChoice(tasks=("words_gen",), task_folder=folder).check()


def test_the_papers_settings_are_a_preset():
    paper = MultipleChoice(preset="paper")
    assert paper.tasks == ("mmlu", "arc_easy", "truthfulqa_mc2", "hellaswag", "winogrande")
    assert paper.num_fewshot == {"mmlu": 5, "arc_easy": 25, "hellaswag": 10, "winogrande": 5}
    assert paper.metric == {"arc_easy": "acc_norm", "hellaswag": "acc_norm"}
    assert MultipleChoice(preset="paper_local").tasks == tuple(f"{name}_local" for name in paper.tasks)


def test_the_local_tasks_have_the_papers_settings():
    import yaml

    from harness.evaluators import TASK_FOLDERS

    (folder,) = (path for path in TASK_FOLDERS if path.parent.name == "multiple_choice")
    configs = [yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader) for path in sorted(folder.glob("*.yaml"))]
    settings = {
        c.get("group", c["task"]): (c["num_fewshot"], c["metric_list"][0]["metric"])
        for c in configs
        if "num_fewshot" in c
    }
    assert settings == {
        "mmlu_local": ("5", "acc"),
        "arc_easy_local": ("25", "acc_norm"),
        "truthfulqa_mc2_local": ("0", "acc"),
        "hellaswag_local": ("10", "acc_norm"),
        "winogrande_local": ("5", "acc"),
    }


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "missing 'tasks'"),
        ({"preset": "paper", "num_fewshot": 3}, "preset 'paper' sets num_fewshot; leave them out"),
        ({"preset": "papers"}, "paper_local"),
    ],
)
def test_a_preset_excludes_what_it_sets(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        MultipleChoice(**settings)


def test_examples_by_task(folder, tiny_base):
    text = (
        (folder / "one.yaml")
        .read_text(encoding="utf-8")
        .replace("test_split: test", "test_split: test\nfewshot_split: test")
    )
    (folder / "one.yaml").write_text(text, encoding="utf-8")
    benchmark = MultipleChoice(tasks=("words_one", "words_two"), task_folder=folder, num_fewshot={"words_one": 2})
    benchmark.check()
    prompts = {r.metric: r.raw["prompt"] for r in run(benchmark, tiny_base("llama")) if r.item == "0"}
    assert prompts["words_one"].count("\n\n") == 2
    assert prompts["words_two"] == "w0 w1"
    with pytest.raises(ValueError, match="`num_fewshot:` names tasks that are not in `tasks:`: words_two"):
        MultipleChoice(tasks=("words_one",), task_folder=folder, num_fewshot={"words_two": 1}).check()


def test_tokens_cut_to_fit_are_counted_in_the_record(folder, tiny_base):
    item = {"query": " ".join(["w1"] * 300), "choices": ["w1 w2", "w3", "w4 w5 w6"], "gold": 0}
    (folder / "items.jsonl").write_text(json.dumps(item) + "\n" + json.dumps(ITEMS[0]) + "\n", encoding="utf-8")
    records = run(MultipleChoice(tasks=("words_one",), task_folder=folder), tiny_base("llama"))
    assert [r.raw["cut_tokens"] for r in records] == [300 + 3 - 257, 0]


def test_its_requests_are_a_sample_that_stands_for_all_items(folder):
    benchmark = MultipleChoice(tasks=("words_one", "words"), task_folder=folder, limit={"words_one": 4})
    found = benchmark.requests()
    assert found is not None
    assert sum(one.count for one in found) == 4 + 2 * len(ITEMS)
    assert found[0].context == ITEMS[0]["query"]
    assert found[0].continuations == tuple(f" {choice}" for choice in ITEMS[0]["choices"])
