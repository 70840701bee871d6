"""The paper's five tasks from the data folder: lm-eval's `hf` and ours agree; the command line knows them by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.data import data_file
from harness.data.refs import ModelRef
from harness.files import read_text
from harness.model.aligned import AlignedModel
from tests.reference import ReferenceDSPA

SHOTS = {"mmlu_local": 0, "arc_easy_local": 2, "truthfulqa_mc2_local": 0, "hellaswag_local": 1, "winogrande_local": 5}
"""As many of the paper's as leave most requests uncut in a context of 512; some are cut."""


@pytest.fixture(scope="module")
def stories(data_folder):
    return AlignedModel.from_base(ModelRef(path=str(data_folder / "models" / "stories260K")))


@pytest.fixture(autouse=True)
def _data(data_folder, monkeypatch, tmp_path):
    import datasets

    monkeypatch.setenv("DSPA_BENCH_DATA", str(data_folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def evaluated(lm, task, shots, limit):
    from lm_eval import simple_evaluate

    from harness.evaluators.lm_eval import task_manager

    results = simple_evaluate(
        model=lm,
        tasks=[task],
        num_fewshot=shots,
        limit=limit,
        bootstrap_iters=0,
        task_manager=task_manager(include_defaults=False),
    )
    assert results is not None
    return results


@pytest.mark.parametrize(("task", "limit"), [(task, 1 if task == "mmlu_local" else 12) for task in SHOTS])
def test_values_and_metrics_of_the_five_tasks_are_those_of_hf(stories, task, limit):
    from lm_eval.models.huggingface import HFLM

    from harness.evaluators.lm_eval import AlignedLM

    ours = evaluated(AlignedLM(stories), task, SHOTS[task], limit)
    hf = HFLM(pretrained=stories.model, tokenizer=stories.tokenizer, batch_size=16)
    theirs = evaluated(hf, task, SHOTS[task], limit)
    n_scores = 0
    for name, samples in theirs["samples"].items():
        for mine, sample in zip(ours["samples"][name], samples, strict=True):
            assert mine["arguments"] == sample["arguments"]
            for (score, greedy), (expected, expected_greedy) in zip(
                mine["filtered_resps"], sample["filtered_resps"], strict=True
            ):
                assert score == pytest.approx(expected, abs=1e-4)
                assert greedy == expected_greedy
                n_scores += 1
    assert n_scores >= 24
    metrics = {name: {k: v for k, v in r.items() if "," in k} for name, r in theirs["results"].items()}
    if task == "truthfulqa_mc2_local":  # a mean of probabilities, not of zeros and ones
        assert ours["results"][task]["acc,none"] == pytest.approx(metrics[task]["acc,none"], abs=1e-5)
    else:
        assert {name: {k: v for k, v in r.items() if "," in k} for name, r in ours["results"].items()} == metrics


def test_the_prompts_are_those_of_the_published_tasks(stories):
    """Spot checks of the layout; few-shot examples and items come from the data."""
    from harness.evaluators.lm_eval import AlignedLM

    lm = AlignedLM(stories)
    mmlu = evaluated(lm, "mmlu_local", 1, 1)["samples"]["mmlu_local::high_school_us_history"][0]["arguments"]
    assert mmlu[0][0].startswith(
        "The following are multiple choice questions (with answers) about high school us history.\n\n"
    )
    assert [choice for _, choice in mmlu] == [" A", " B", " C", " D"]
    for name in ("arc_easy_local", "arc_challenge_local"):
        (arc,) = evaluated(lm, name, 0, 1)["samples"][name]
        assert arc["arguments"][0][0] == f"Question: {arc['doc']['question']}\nAnswer:"
        first = read_text(data_file(f"mc/{name.removesuffix('_local')}.jsonl", "test"), "ARC").splitlines()[0]
        assert json.loads(first)["query"] == f"Question: {arc['doc']['question']}"
    (truth,) = evaluated(lm, "truthfulqa_mc2_local", None, 1)["samples"]["truthfulqa_mc2_local"]
    assert truth["arguments"][0][0].endswith(f"\n\nQ: {truth['doc']['question']}\nA:")
    assert truth["arguments"][0][0].count("Q: ") == 7
    (swag,) = evaluated(lm, "hellaswag_local", 0, 1)["samples"]["hellaswag_local"]
    assert swag["arguments"][0][0].startswith(f"{swag['doc']['activity_label']}: ")
    (gap,) = evaluated(lm, "winogrande_local", 0, 1)["samples"]["winogrande_local"]
    assert [context for context, _ in gap["arguments"]] == gap["doc"]["context_options"]


@pytest.mark.parametrize("task", ["arc_easy_local", "hellaswag_local", "winogrande_local"])
def test_an_item_is_never_among_its_own_examples(stories, task):
    from harness.evaluators.lm_eval import task_manager

    (leaf,) = task_manager(include_defaults=False).load([task])["tasks"].values()
    leaf.set_fewshot_seed(1234)
    docs = list(leaf.eval_docs)[:40]
    assert all(doc not in leaf.sampler.sample(n=len(docs), eval_doc=doc) for doc in docs)
    assert leaf.fewshot_cfg.split == leaf.config.test_split


def test_steered_values_equal_one_item_at_a_time(stories, data_folder):
    """DSPA with the real SAEs on two tasks against plain forwards without cache, batch or padding."""
    from dspa.method import DSPA
    from harness.compute import Meter
    from harness.data.triples import load_triples
    from harness.evaluators.lm_eval import AlignedLM, task_manager

    saes = data_folder / "models" / "stories260K_sae"
    triples = load_triples(data_folder / "preferences" / "rasbt.jsonl")[:40]
    method = DSPA.model_validate(
        {"input_sae": {"path": str(saes / "layer_1")}, "output_sae": {"path": str(saes / "layer_3")}, "alpha": 1.0}
    )
    aligned = method.fit(stories, triples, meter=Meter(stories.model), seed=0)
    reference = ReferenceDSPA(aligned)
    lm, plain = AlignedLM(aligned), AlignedLM(stories)
    manager = task_manager(include_defaults=False)
    moved = 0.0
    for task, shots in (("hellaswag_local", 0), ("winogrande_local", 1)):
        (leaf,) = manager.load([task])["tasks"].values()
        leaf.set_config(key="num_fewshot", value=shots)
        leaf.set_fewshot_seed(1234)
        leaf.build_all_requests(limit=3, rank=0, world_size=1)
        scores = lm.loglikelihood(leaf.instances, disable_tqdm=True)
        unsteered = plain.loglikelihood(leaf.instances, disable_tqdm=True)
        for request, (score, greedy), (other, _) in zip(leaf.instances, scores, unsteered, strict=True):
            context, continuation = lm._encode_pair(*request.args)
            logprobs = reference.logits(context, continuation).log_softmax(-1)[len(context) - 1 : -1]
            targets = torch.tensor(continuation)
            assert score == pytest.approx(float(logprobs.gather(1, targets[:, None]).sum()), abs=1e-3)
            assert greedy == bool((logprobs.argmax(-1) == targets).all())
            moved = max(moved, abs(score - other))
    assert moved > 0.1


def lm_eval(*arguments, data, **environment):
    command = [str(Path(sys.executable).parent / "dspa-bench"), "lm-eval", *arguments]
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "DSPA_BENCH_DATA": str(data), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=settings, check=False)


def test_the_command_line_finds_local_tasks_by_name(stories, data_folder, tmp_path):
    stories.save(tmp_path / "artifact")
    done = lm_eval(
        *("run", "--model", "aligned", "--model_args", f"artifact={tmp_path / 'artifact'}", "--tasks"),
        *("hellaswag_local", "--limit", "2", "--num_fewshot", "1", "--output_path", str(tmp_path / "out")),
        *("--log_samples", "--device", "cpu", "--batch_size", "auto", "--apply_chat_template"),
        data=data_folder,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["n-samples"]["hellaswag_local"]["effective"] == 2
    (path,) = (tmp_path / "out").rglob("samples_*.jsonl")
    sample = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    prompt = sample["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.count("\n\nHuman: ") == prompt.count("\n\nAssistant:") == 2


def test_missing_data_ends_with_what_to_do(stories, tmp_path):
    stories.save(tmp_path / "artifact")
    done = lm_eval(
        *("run", "--model", "aligned", "--model_args", f"artifact={tmp_path / 'artifact'}"),
        *("--tasks", "hellaswag_local", "--limit", "2"),
        data=tmp_path,
    )
    assert done.returncode == 2
    assert "hellaswag_val_1000.jsonl is missing; get it with `dspa-bench data fetch multiple_choice`" in done.stderr
