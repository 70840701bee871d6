"""A suite that vLLM answers: base, whole weights and a steered variant, the same records as without an engine."""

import pytest

from harness.experiment.run import prepare, run_suite
from harness.run_folder import RunFolder
from tests.toys import NoProgress, write_suite
from tests.vllm.conftest import SMALL

pytestmark = pytest.mark.vllm


def test_a_run_by_vllm_has_the_answers_of_a_run_without(wide_folder, tmp_path):
    variants = [
        {"name": "base", "method": "toy_base"},
        {"name": "noise", "method": "toy_noise", "params": {"scale": 0.05}},
        {"name": "caa", "method": "caa", "params": {"layer": 1, "scale": 2.0}},
    ]
    benchmarks = [{"name": "toy_bench", "questions": "questions.jsonl", "temperature": 0.0}]
    execution = {"engine": {"kind": "vllm", **SMALL}}
    more = {"variants": variants, "benchmarks": benchmarks, "execution": execution}
    path = write_suite(tmp_path, wide_folder, budgets=[8], seeds=1, **more)
    plain, by_vllm = tmp_path / "plain", tmp_path / "vllm"
    assert run_suite(prepare(path, plain, ["execution.engine=null"]), NoProgress()) == {}
    assert run_suite(prepare(path, by_vllm), NoProgress()) == {}
    environment = RunFolder(by_vllm).environment
    assert str(environment.engine).startswith("vllm 0.32.")
    for cell in ("base__n0__s0", "noise__n8__s0", "caa__n8__s0"):
        ours, others = (RunFolder(one).cell(cell) for one in (by_vllm, plain))
        assert ours.records("toy_bench") == others.records("toy_bench")
        assert ours.diagnostics("toy_bench") == pytest.approx(others.diagnostics("toy_bench"))
    assert prepare(path, by_vllm).failures == {}
