"""Benchmark `lm_eval`: GSM8K's own definition on local data, answers checked by code, rolling texts, chat formats."""

import json
import statistics
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.utils import make_table

from tasks.lm_eval import LMEval

STOCK = Path(lm_eval.tasks.__file__).parent
LOCAL = """custom_dataset: !function local.items
dataset_path: null
dataset_name: null
"""
LOADER = """import json
from pathlib import Path

from datasets import Dataset, DatasetDict


def items(**_):
    rows = [json.loads(line) for line in (Path(__file__).parent / "items.jsonl").read_text().splitlines()]
    return DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows)})


def follows(doc, results):
    return {"prompt_level_strict_acc": "w" in results[0], "inst_level_strict_acc": ["w" in results[0]]}


def of_all(items):
    return sum(items, []).count(True) / len(sum(items, []))
"""
FOLLOWING = """task: following
output_type: generate_until
test_split: test
doc_to_text: question
doc_to_target: 0
generation_kwargs: {until: [], do_sample: false, max_gen_toks: 1280}
process_results: !function local.follows
metric_list:
  - {metric: prompt_level_strict_acc, aggregation: mean, higher_is_better: true}
  - {metric: inst_level_strict_acc, aggregation: !function local.of_all, higher_is_better: true}
"""
ROLLING = """task: rolling
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
ROWS = [{"question": f"w{i} w{i + 1} w{i + 2}", "answer": f"w3 w4 #### {i}"} for i in range(5)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "local.py").write_text(LOADER, encoding="utf-8")
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    stock = f"include: {STOCK / 'gsm8k' / 'gsm8k.yaml'}\n"
    (tmp_path / "gsm8k.yaml").write_text(f"{stock}task: gsm8k_small\n{LOCAL}", encoding="utf-8")
    (tmp_path / "following.yaml").write_text(FOLLOWING + LOCAL, encoding="utf-8")
    (tmp_path / "rolling.yaml").write_text(ROLLING + LOCAL, encoding="utf-8")
    return tmp_path


def made(folder, *tasks, **settings):
    benchmark = LMEval(tasks=tasks, task_folder=folder, **settings)
    benchmark.check()
    return benchmark


def run(benchmark, model, out=None):
    return list(benchmark.run(model, judge=None, seed=0, folder=out))


def test_gsm8ks_own_definition_runs_and_its_figures_are_lm_evals(folder, tiny_base, tmp_path):
    out = tmp_path / "out"
    benchmark = made(folder, "gsm8k_small", num_fewshot=2, gen_kwargs={"max_gen_toks": 8})
    (metric,) = benchmark.metrics
    assert (metric.title, metric.unit, metric.made_of) == ("gsm8k_small (strict-match)", "accuracy, %", "measurements")
    records = run(benchmark, tiny_base("llama"), out)
    assert [r.item for r in records] == ["0", "1", "2", "3", "4"]
    assert records[0].raw["prompt"].count("Question:") == 3
    assert len(records[0].raw["answer"].split()) <= 8 and records[0].raw["filter"] == "strict-match"
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    found = results["results"]["gsm8k_small"]
    assert found["exact_match,strict-match"] == pytest.approx(statistics.fmean(r.value for r in records) / 100)
    assert {"exact_match_stderr,strict-match", "exact_match,flexible-extract"} <= set(found)
    assert "flexible-extract" in make_table(results)


def test_a_metric_may_name_its_filter(folder):
    wanted = made(folder, "gsm8k_small", metric="exact_match,flexible-extract")
    assert wanted.metrics[0].title == "gsm8k_small (flexible-extract)"
    with pytest.raises(ValueError, match="exact_match, with one of its filters: strict-match, flexible-extract"):
        made(folder, "gsm8k_small", metric="exact_match,loose")


@pytest.mark.parametrize("multiturn", [None, False])
def test_it_asks_in_the_models_chat_format_and_examples_are_its_turns(folder, tiny_base, multiturn):
    chat = {"apply_chat_template": True, "fewshot_as_multiturn": multiturn}
    benchmark = made(folder, "gsm8k_small", num_fewshot=2, gen_kwargs={"max_gen_toks": 4}, limit=1, **chat)
    (record,) = run(benchmark, tiny_base("llama"))
    assert record.raw["prompt"].startswith("<bos>usr ")
    assert record.raw["prompt"].count("usr ") == (3 if multiturn is None else 1)


def test_answers_checked_by_code_give_a_share_and_what_is_no_mean_over_items_is_refused(folder, tiny_base, tmp_path):
    benchmark = made(folder, "following", gen_kwargs={"max_gen_toks": 4}, batch_size=2)
    assert benchmark.metrics[0].unit == "accuracy, %"
    records = run(benchmark, tiny_base("llama"), tmp_path / "out")
    assert [r.value for r in records] == [100.0 * ("w" in r.raw["answer"]) for r in records]
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert "inst_level_strict_acc,none" in results["results"]["following"]
    complaint = r"prompt_level_strict_acc \(inst_level_strict_acc of a whole corpus: results\.json has it\)"
    with pytest.raises(ValueError, match=complaint):
        made(folder, "following", metric="inst_level_strict_acc")


def test_rolling_texts_are_measured_in_bits_per_byte(folder, tiny_base):
    benchmark = made(folder, "rolling")
    (metric,) = benchmark.metrics
    assert (metric.unit, metric.higher_is_better, metric.made_of) == (
        "bits per byte, mean over documents",
        False,
        "loglikelihoods",
    )
    records = run(benchmark, tiny_base("llama"))
    for record, row in zip(records, ROWS, strict=True):
        assert record.value == pytest.approx(-record.raw["loglikelihood"] / len(row["question"]) / 0.6931471805599453)


def test_settings_that_make_no_sense_are_refused(folder):
    with pytest.raises(ValueError, match="there are turns only with `apply_chat_template: true`"):
        made(folder, "following", fewshot_as_multiturn=True)
    with pytest.raises(ValueError, match="missing 'tasks'"):
        LMEval()
