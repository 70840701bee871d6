"""What a run says that it will take of disk and memory, and when it is refused for it."""

from dataclasses import replace

import pytest

from harness.experiment import outlook
from harness.experiment.outlook import LEAST_RECORD, PROCESS_BYTES, needs
from harness.experiment.run import prepare
from tests.toys import write_suite

DPO = {"name": "dpo", "method": "dpo", "params": {"tuning": "full"}}
LORA = {"name": "lora", "method": "dpo", "params": {"tuning": "lora"}}


@pytest.fixture
def prepared(tmp_path, tiny_folders):
    (tmp_path / "mt.jsonl").write_text('{"question_id": 81, "category": "writing", "turns": ["w1", "w2"]}\n')
    bench = {"name": "mt_bench", "questions": str(tmp_path / "mt.jsonl"), "max_new_tokens": 6}
    suite = write_suite(
        tmp_path / "suite",
        tiny_folders["llama"],
        judge={"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "judge"},
        variants=[DPO, LORA],
        report={"baseline": "dpo"},
        benchmarks=[bench],
        seeds=1,
        execution={"workers": 2},
    )
    return prepare(suite, tmp_path / "run")


def test_full_fits_are_sure_to_keep_all_weights_and_adapters_are_not(prepared, tiny_folders):
    need = needs(prepared.suite, prepared.plan.cells, prepared.folder.path)
    weights = (tiny_folders["llama"] / "model.safetensors").stat().st_size
    assert 0.9 * weights < (need.least_disk - LEAST_RECORD * 4) / 2 < weights, "of two budgets"
    assert need.most_disk > 3.5 * weights
    assert need.memory > 2 * (PROCESS_BYTES + 4 * weights)
    adapters = [cell for cell in prepared.plan.cells if cell.variant == "lora"]
    assert needs(prepared.suite, adapters, prepared.folder.path).least_disk == LEAST_RECORD * 2


def test_a_run_is_refused_where_the_disk_certainly_is_too_small(prepared, tmp_path, call, monkeypatch):
    need = needs(prepared.suite, prepared.plan.cells, prepared.folder.path)
    replace(need, disk_free=need.least_disk).check()
    monkeypatch.setattr(outlook.shutil, "disk_usage", lambda _: type("Usage", (), {"free": need.least_disk - 1}))
    suite = tmp_path / "suite" / "suite.yaml"
    code, _, err = call("run", suite, "--out", tmp_path / "run")
    assert (code, "MB of disk in" in err, (tmp_path / "run").exists()) == (2, True, False)
    assert "free some, give --out on another disk, or run less" in err
    text = replace(need, memory=2 * 10**9, memory_free=10**9).text
    assert "2.0 GB of memory for 2 workers on cpu (1.0 GB free: too little; take fewer execution.workers)" in text
