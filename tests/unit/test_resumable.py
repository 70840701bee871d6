"""Curves and checkpoints of trainings: they change neither weights nor bill, and a killed fit goes on from them."""

import os
import random
import signal
import subprocess
import sys

import pytest

from baselines import DPO, FPO, KTO, ORPO, RAHFSCIT, SAILS, SFT, RAHFDual, SimPO
from baselines.metered import Metered
from harness.compute.sitting import Sitting
from harness.data.triples import Budget
from harness.experiment.fitting import fit
from harness.model.aligned import AlignedModel
from harness.run_folder.training import Curve

OFTEN = 1e-9  # minutes: a checkpoint behind every step
COMMON = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 4}
LORA = {"tuning": "lora", "lora_dropout": 0.2}
RAHF = {**COMMON, "lora_dropout": 0.2, "layers": [2], "fit_batch_size": 3, "steps": 6}


def methods(sae="/"):
    """Name -> every trained method, with dropout wherever there can be any."""
    return {
        "dpo": DPO(**COMMON, **LORA),
        "dpo full": DPO(**COMMON, tuning="full", accumulation=2, lr_schedule="cosine"),
        "sft": SFT(**COMMON, **LORA),
        "kto": KTO(**COMMON, **LORA),
        "orpo": ORPO(**COMMON, **LORA),
        "simpo": SimPO(**COMMON, tuning="full", optimiser="rmsprop"),
        "fpo": FPO(**COMMON, **LORA, sae={"path": str(sae)}, k=4),
        "sails": SAILS(**COMMON, lora_dropout=0.2, lora_rank=4, saes=[{"path": str(sae)}], k=8),
        "rahf_scit": RAHFSCIT(**RAHF, good_instruction="w1 w2", bad_instruction="w3"),
        "rahf_dual": RAHFDual(**RAHF, tuning="lora"),
    }


NAMES = list(methods())
EXACT = ("executed_flops", "formula_flops", "tokens", "optimiser_steps", "epochs", "train_params", "predicted")


def exact(aligned):
    """What of a bill does not depend on the machine."""
    bill = aligned.bill
    stages = [{k: s[k] for k in ("name", "executed_flops", "tokens", "steps", "sampled_steps")} for s in bill["stages"]]
    # Accelerate cuts what is logged of an epoch's last batch, but not where the epoch was begun in another process:
    # calls that cost no FLOPs may differ.
    costly = [o for o in bill["operators"] if o["flops"]]
    operators = {(o["stage"], o["step"], o["steps"], o["operator"], o["flops"], o["calls"]) for o in costly}
    return [{key: bill[key] for key in EXACT}, stages, operators]


def sitting_in(folder, minutes=OFTEN, **more):
    return Sitting(Curve(folder / "training.jsonl"), folder / "fitting", minutes=minutes, **more)


def interrupt_at(monkeypatch, step):
    """From now on the ``step``-th training step raises (None: none does); returns a list with an entry for each."""
    taken, done = Metered.training_step, []

    def interrupted(self, *args, **kwargs):
        done.append(1)
        if len(done) == step:
            raise KeyboardInterrupt
        return taken(self, *args, **kwargs)

    monkeypatch.setattr(Metered, "training_step", interrupted)
    return done


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_fit_ends_as_if_it_had_not_been(tiny_base, triples, sae_refs, tmp_path, monkeypatch, name):
    method, base, budget = methods(sae_refs[1].path)[name], tiny_base("llama"), Budget(tuple(triples[:10]), 0)
    how = {"sample_profile": name in ("dpo", "fpo")}
    plain = fit(method, base, budget, 3, **how)
    with monkeypatch.context() as patch:
        done = interrupt_at(patch, None)
        whole = fit(method, base, budget, 3, **how, sitting=sitting_in(tmp_path / "whole"))
    assert whole.fingerprint == plain.fingerprint
    assert exact(whole) == exact(plain)
    step = random.Random(name).randrange(method.accumulation + 2, len(done) + 1)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            fit(method, base, budget, 3, **how, sitting=sitting_in(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        done_again = interrupt_at(patch, None)
        resumed = fit(method, base, budget, 3, **how, sitting=sitting_in(tmp_path / "killed"))
    assert len(done_again) < len(done)
    assert resumed.fingerprint == plain.fingerprint, step
    assert exact(resumed) == exact(plain), step
    curves = [(tmp_path / folder / "training.jsonl").read_bytes() for folder in ("whole", "killed")]
    assert curves[0] == curves[1]


def test_a_damaged_checkpoint_is_not_gone_on_from(tiny_base, triples, tmp_path, monkeypatch):
    method, base, budget = methods()["dpo"], tiny_base("llama"), Budget(tuple(triples[:10]), 0)
    plain = fit(method, base, budget, 3, sample_profile=False)
    for damaged in ("adapter_model.safetensors", "optimizer.pt", "bill.pt"):
        folder = tmp_path / damaged
        with monkeypatch.context() as patch:
            interrupt_at(patch, 4)
            with pytest.raises(KeyboardInterrupt):
                fit(method, base, budget, 3, sample_profile=False, sitting=sitting_in(folder))
        (path,) = folder.glob(f"fitting/training-1/checkpoint-*/{damaged}")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with monkeypatch.context() as patch:
            done = interrupt_at(patch, None)
            again = fit(method, base, budget, 3, sample_profile=False, sitting=sitting_in(folder))
        assert len(done) == 6, "from the start"
        assert (again.fingerprint, exact(again)) == (plain.fingerprint, exact(plain))


def test_under_a_flop_limit_it_stops_where_it_would_have(tiny_base, triples, tmp_path, monkeypatch):
    method, base, budget = methods()["dpo"], tiny_base("llama"), Budget(tuple(triples[:10]), 0)
    limit = 3 * fit(method, base, budget, 3, sample_profile=False).bill["executed_flops"]
    how = {"flops_limit": limit, "sample_profile": False}
    plain = fit(method, base, budget, 3, **how)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11)
        with pytest.raises(KeyboardInterrupt):
            fit(method, base, budget, 3, **how, sitting=sitting_in(tmp_path))
    resumed = fit(method, base, budget, 3, **how, sitting=sitting_in(tmp_path))
    assert (resumed.fingerprint, resumed.params) == (plain.fingerprint, plain.params)
    assert exact(resumed) == exact(plain)
    assert {step.steps for step in Curve(tmp_path / "training.jsonl").steps} == {None}


def test_a_curve_has_what_trl_logs_and_checkpoints_come_when_they_are_due(tiny_base, triples, tmp_path):
    told: list[str] = []
    sitting = sitting_in(tmp_path, minutes=10, tell=lambda text, step: told.append(text))
    fit(methods()["dpo"], tiny_base("llama"), Budget(tuple(triples[:10]), 0), 3, sitting=sitting)
    steps = Curve(tmp_path / "training.jsonl").steps
    assert [(one.training, one.stage, one.step, one.steps) for one in steps] == [
        (1, "train", number, 6) for number in range(1, 7)
    ]
    assert all(one.loss and one.grad_norm and one.learning_rate for one in steps)
    assert all(one.accuracy is not None and one.margin is not None for one in steps)
    assert "rewards/chosen" in steps[0].figures
    assert not list((tmp_path / "fitting").glob("training-1/checkpoint-*"))
    assert told[-1].startswith("train, step 6 of 6, loss ")
    sitting.over()
    assert [path.name for path in tmp_path.iterdir()] == ["training.jsonl"]


def test_checkpoints_of_another_fit_are_not_gone_on_with(tiny_base, triples, tmp_path, monkeypatch):
    base, budget = tiny_base("llama"), Budget(tuple(triples[:10]), 0)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            fit(methods()["sft"], base, budget, 3, sitting=sitting_in(tmp_path))
    with pytest.raises(ValueError, match=r"unfinished fit that differs in seed; .* or remove the folder"):
        fit(methods()["sft"], base, budget, 4, sitting=sitting_in(tmp_path))


def test_kill_9_in_a_fit_loses_what_was_behind_the_last_checkpoint(tiny_folders, triples_file, tmp_path):
    """The program itself, killed by the signal that nothing can catch, and the same command again."""
    command = ["fit", "dpo", "--base", str(tiny_folders["llama"]), "--triples", str(triples_file)]
    command += [f"--param={text}" for text in ("tuning=lora", "lora_dropout=0.2", "epochs=4", "batch_size=4")]
    killer = (
        "import os, signal, sys\n"
        "from baselines.metered import Metered\n"
        "from harness.cli.app import main\n"
        "step, count = Metered.training_step, []\n"
        "def dying(self, *args, **kwargs):\n"
        "    count.append(1)\n"
        "    if len(count) == int(os.environ['DIE_AT']):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    print('STEP', file=sys.stderr)\n"
        "    return step(self, *args, **kwargs)\n"
        "Metered.training_step = dying\n"
        "sys.argv[0] = 'dspa-bench'\n"
        "main()\n"
    )

    def run(out, die_at):
        arguments = [*command, "--out", str(tmp_path / out), "--checkpoint-minutes", "1e-9"]
        environment = os.environ | {"DIE_AT": str(die_at)}
        done = subprocess.run([sys.executable, "-c", killer, *arguments], env=environment, capture_output=True)
        return done.returncode, done.stderr.count(b"STEP")

    assert run("whole", 0) == (0, 24)
    at = random.Random("kill").randrange(5, 24)
    assert run("killed", at) == (-signal.SIGKILL, at - 1)
    assert run("killed", 0) == (0, 24 - (at - 1))
    one, other = (AlignedModel.load(tmp_path / out) for out in ("whole", "killed"))
    assert one.fingerprint == other.fingerprint
    assert exact(one) == exact(other)
    assert not (tmp_path / "killed.fitting").exists()
    curves = [(tmp_path / out / "training.jsonl").read_bytes() for out in ("whole", "killed")]
    assert curves[0] == curves[1]
