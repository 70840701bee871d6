"""A worker in which nothing goes on is ended and its cell begun once more; one that takes long is left alone."""

import time

import pytest

from harness.experiment.executors import local
from harness.experiment.run import prepare, run_suite
from harness.pulse import beat, heard_by
from harness.run_folder import RunFolder
from tests.toys import NoProgress, cell_states, write_suite

MINUTES = 0.15
"""More than any step of the toys takes on a busy machine."""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(local, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.5)


def test_a_worker_that_hangs_is_ended_named_and_its_cell_begun_once_more(tmp_path, tiny_folders, quick):
    until = {"stopped": str(tmp_path / "stopped"), "asleep": "never"}
    fits = [{"name": n, "method": "toy_noise", "params": {"stop_until": u}} for n, u in until.items()]
    suite = write_suite(tmp_path / "suite", tiny_folders["llama"], variants=fits, seeds=1, budgets=[4], report=None)
    progress = NoProgress()
    prepared = prepare(suite, tmp_path / "run", ["execution.workers=2", f"execution.hung_minutes={MINUTES}"])
    failures = run_suite(prepared, progress)
    how = "no progress for 0.15 minutes in fit"
    stopped, asleep = "stopped__n4__s0", "asleep__n4__s0"
    log = RunFolder(tmp_path / "run").cell(asleep).log
    assert failures == {asleep: [f"worker process hung twice ({how}) and was ended; see {log}"]}
    assert "toys.py" in log.read_text(), "where it was"
    state = cell_states(tmp_path / "run")[stopped]
    assert (state.status, state.hung) == ("done", how)
    again = f"{how}; its worker was ended, and it is begun once more"
    assert {(stopped, again, 0), (asleep, again, 0)} <= set(progress.told)
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_signs_of_life_come_with_every_step(tmp_path, tiny_folders):
    heard = []
    suite = write_suite(tmp_path / "suite", tiny_folders["llama"], seeds=1, budgets=[4], report=None)
    dpo = "variants=[{name: dpo, method: dpo, params: {tuning: lora, batch_size: 2, lora_dropout: 0.1}}]"
    with heard_by(lambda: heard.append(time.monotonic())):
        assert run_suite(prepare(suite, tmp_path / "run", [dpo]), NoProgress()) == {}
    assert len(heard) >= 2 + 8, "training steps, and tokens"
    beat()
    assert len(heard) < 1000
