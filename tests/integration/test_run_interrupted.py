"""Whole runs of a toy suite that are interrupted, terminated or killed: what stays, what ends, how they go on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness.run_folder import RunFolder
from tests.integration.test_run import command, environment, run
from tests.toys import cell_states, outcome, write_suite
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def suite_path(tmp_path_factory, tiny_folders) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"), tiny_folders["llama"])


def test_diagnostics_survive_an_interruption_between_the_answers_and_the_records(tmp_path, tiny_folders):
    params = {"input_sae": "early", "output_sae": "late", "percentile": 50.0, "min_support": 1}
    suite_path = write_suite(
        tmp_path / "suite",
        tiny_folders["gemma2"],
        saes={"early": {"path": str(tiny_folders["input"])}, "late": {"path": str(tiny_folders["output"])}},
        benchmarks=[{"name": "toy_bench", "questions": "questions.jsonl", "batch_size": 2}],
        variants=[{"name": "dspa", "method": "dspa", "params": params}],
        budgets=[8],
        seeds=1,
        report=None,
    )
    assert run(suite_path, tmp_path / "run")[0] == {}
    whole = outcome(tmp_path / "run")
    state = cell_states(tmp_path / "run")["dspa__n8__s0"]
    (planned,) = RunFolder(tmp_path / "run").plan.cells
    assert planned.params["input_sae"] == "early"
    assert any(key.startswith("toy_bench.") for key in state.diagnostics)
    cell = tmp_path / "run" / "cells" / "dspa__n8__s0"
    for name in ("cell.json", "records/toy_bench.jsonl", "diagnostics/toy_bench.json"):
        (cell / name).unlink()
    answers = cell / "answers" / "toy_bench.jsonl"
    answers.write_bytes(answers.read_bytes()[:-200])  # as a kill in the middle of the last batch leaves it
    run(suite_path, tmp_path / "run")
    assert outcome(tmp_path / "run") == whole


def test_a_run_that_is_interrupted_in_a_training_goes_on_from_its_checkpoint(suite_path, tmp_path, monkeypatch):
    from baselines.metered import Metered

    dpo = "{name: dpo, method: dpo, params: {tuning: lora, batch_size: 2, lora_dropout: 0.1}}"
    overrides = [
        f"variants=[{{name: base, method: base}}, {dpo}]",
        "budgets=[8]",
        "seeds=1",
        "execution.checkpoint_minutes=0.000001",
    ]
    assert run(suite_path, tmp_path / "whole", *overrides)[0] == {}
    step, done = Metered.training_step, []

    def interrupted(self, *args, **kwargs):
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Metered, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(suite_path, tmp_path / "killed", *overrides)
    cell = RunFolder(tmp_path / "killed").cell("dpo__n8__s0")
    assert list(cell.fitting.glob("training-1/checkpoint-2"))
    assert run(suite_path, tmp_path / "killed", *overrides)[0] == {}
    assert len(done) == 5  # the third was begun twice
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert len(cell.curve.steps) == 4
    assert not cell.fitting.exists()


def test_workers_do_not_outlive_a_killed_run(suite_path, tmp_path):
    out = tmp_path / "killed"
    arguments = command(
        "run", suite_path, "--out", out, "--set", "execution.workers=2", "--set", "benchmarks.0.pause=1000"
    )
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL)
    wait_until(lambda: len(list(out.glob("cells/*/records/*.partial"))) == 2, process)
    workers = _children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    _wait_for_the_end_of(workers)


@pytest.mark.parametrize(
    ("number", "to_all", "code", "said"),
    [
        (signal.SIGINT, False, 130, "interrupted"),
        (signal.SIGTERM, False, 143, "terminated"),
        (signal.SIGTERM, True, 143, "terminated"),
    ],
)
def test_an_interrupt_ends_the_run_cleanly_and_says_how_to_go_on(suite_path, tmp_path, number, to_all, code, said):
    out = tmp_path / "interrupted"
    arguments = command(
        "run", suite_path, "--out", out, "--set", "execution.workers=2", "--set", "benchmarks.0.pause=1000"
    )
    process = subprocess.Popen(
        arguments,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell starts background jobs with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    wait_until(lambda: len(list(out.glob("cells/*/records/*.partial"))) == 2, process)
    workers = _children(process.pid)
    os.killpg(process.pid, number) if to_all else process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert errors == f"{said}; give the same command again to go on\n"
    _wait_for_the_end_of(workers)
    assert not [*out.rglob("*.partial"), *out.rglob(".[!l]*")], "nothing unfinished stays, but for the lock file"


def _wait_for_the_end_of(pids: list[int]) -> None:
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
