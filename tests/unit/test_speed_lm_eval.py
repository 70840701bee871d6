"""`perf lm-eval` on a GGUF file: `hf` and `aligned` each load it, and give the same values and metrics."""

import json

import pytest

from harness.files import content_hash
from harness.model import dequantised
from harness.speed.lm_eval import HF, OURS, TOLERANCE, LMEvalOptions, measure_lm_eval
from harness.speed.report import measure_and_keep
from tests.unit.gguf_files import write

YAML = """task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ITEMS = [{"query": f"cat and {'dog ' * i}", "choices": ["cat a", "b", "and dog"], "gold": i % 3} for i in range(1, 7)]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A GGUF file; lm-eval finds tasks ``words`` and ``more`` of six items each."""
    import datasets

    monkeypatch.setenv(dequantised.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS), encoding="utf-8")
    for name in ("words", "more"):
        text = YAML.replace("NAME", name).replace("FILE", str(folder / "items.jsonl"))
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr("harness.evaluators.lm_eval.TASK_FOLDERS", [folder])
    return str(write(tmp_path / "tiny.gguf"))


def options(model, **changes):
    settings = {"tasks": ("words:0", "more:2"), "limit": 4, "batch_size": 3, "rounds": 2, "device": "cpu", "seed": 0}
    return LMEvalOptions(model, **settings | changes)


def test_both_load_the_file_and_agree_in_values_and_metrics(model):
    told = []
    words, more, whole = measure_lm_eval(options(model), tell=told.append)
    assert words.facts["model"] == f"{model}, identity {content_hash(model)[:12]}, float32"
    assert words.facts["items"].startswith("4, 12 requests, 0 of them cut")
    for section in (words, more):
        for metric in ("acc", "acc_norm"):
            ours, theirs = section.facts[metric].removesuffix("; 0 of 4 items differ").split(", hf ")
            assert ours == f"{OURS} {theirs}"
            assert " % [" in theirs
    assert (whole.facts["items"], whole.facts["metrics that differ"]) == ("8", "0")
    for section in (words, more, whole):
        assert 0 < section.figures[0].value <= TOLERANCE
        assert {line.what for line in section.lines} == {f"{HF} (again)", OURS}
    assert any("All tasks together" in text for text in told)


def test_a_metric_that_is_not_the_same_is_counted(model, monkeypatch):
    from harness.evaluators.lm_eval import AlignedLM

    right = AlignedLM.loglikelihood

    def reversed_choices(self, requests, **options):
        scores = right(self, requests, **options)
        return [(-score, greedy) for score, greedy in scores]

    monkeypatch.setattr(AlignedLM, "loglikelihood", reversed_choices)
    (section,) = measure_lm_eval(options(model, tasks=("words:0",)), tell=lambda _text: None)
    assert section.figures[0].verdict.startswith("not met")
    assert not section.facts["acc"].endswith("; 0 of 4 items differ")


def test_the_furthest_apart_are_scored_in_float64(model):
    (section,) = measure_lm_eval(options(model, tasks=("words:0",), exact=3), tell=lambda _text: None)
    errors = section.facts["largest error on the 3 furthest apart, against float64"]
    (ours, our_error), (theirs, their_error) = (part.split() for part in errors.split(", "))
    assert (ours, theirs) == (OURS, HF)
    apart = section.figures[0].value
    assert 0 < float(our_error) <= TOLERANCE
    assert float(our_error) + float(their_error) >= 0.9 * apart


def test_the_dtype_is_that_of_both(model):
    (section,) = measure_lm_eval(options(model, tasks=("words:0",), dtype="bfloat16"), tell=lambda _text: None)
    assert section.facts["model"].endswith("bfloat16")
    assert section.figures[0].value < 1


@pytest.mark.parametrize(("passes", "sections", "lines"), [(2, 0, 0), (3, 1, 0), (7, 1, 2), (8, 1, 2)])
def test_being_stopped_loses_no_whole_round_and_ends_as_an_interrupt(
    model, monkeypatch, tmp_path, capsys, passes, sections, lines
):
    from lm_eval.models.huggingface import HFLM

    from harness.evaluators.lm_eval import AlignedLM

    left = iter(range(passes))
    for kind in (AlignedLM, HFLM):

        def counted(self, requests, right=kind.loglikelihood, **options):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return right(self, requests, **options)

        monkeypatch.setattr(kind, "loglikelihood", counted)
    path = tmp_path / "kept.json"
    with pytest.raises(KeyboardInterrupt):
        measure_and_keep("Title", options(model, rounds=4, exact=3), measure_lm_eval, None, path)
    out, err = capsys.readouterr()
    assert f"words: pass {passes + 1} of 12 over 12 requests" in err
    assert ("s left" in err) == (passes > 0)
    assert path.exists() == bool(sections)
    if sections:
        (section,) = json.loads(path.read_text())["sections"]
        assert section["facts"]["stopped"] == f"after {passes // 3} of 4 rounds"
        assert (len(section["lines"]), "## words" in out) == (lines, True)
