"""Curves and checkpoints of trainings: they change neither weights nor bill, and a killed fit goes on from them."""

import random

import pytest

from baselines import DPO, FPO, KTO, ORPO, RAHFSCIT, SAILS, SFT, RAHFDual, SimPO
from baselines.metered import Metered
from harness.compute.sitting import Sitting
from harness.data.triples import Budget
from harness.experiment.fitting import fit
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
    operators = {(o["stage"], o["step"], o["steps"], o["operator"], o["flops"], o["calls"]) for o in bill["operators"]}
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
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, step)
        fit(method, base, budget, 3, **how, sitting=sitting_in(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        done_again = interrupt_at(patch, None)
        resumed = fit(method, base, budget, 3, **how, sitting=sitting_in(tmp_path / "killed"))
    assert len(done_again) < len(done)
    assert resumed.fingerprint == plain.fingerprint, step
    assert exact(resumed) == exact(plain), step
    curves = [(tmp_path / folder / "training.jsonl").read_bytes() for folder in ("whole", "killed")]
    assert curves[0] == curves[1]
