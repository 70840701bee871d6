"""Fits over several processes: losses, bill and result of one process; and what happens when one of them dies."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from shutil import copytree

import pytest
import torch

from baselines import CAA, DPO, FPO, KTO, ORPO, RAHFSCIT, SAILS, SFT, RAHFDual, RepE, SimPO, StaticSAE
from dspa.method import DSPA
from harness.compute.sitting import Sitting
from harness.data.refs import SAERef
from harness.data.triples import Budget
from harness.experiment.processes import check_per_fit, environment, fit_over
from harness.experiment.sections import PerFitSection
from harness.run_folder.training import Curve
from tests.unit.rank_group import Case, fit_all, outcome

TWO = PerFitSection(processes=2)
SHARDED = PerFitSection(processes=2, sharded=True)
NO_SAES = (SAERef(path="/"),) * 4  # for names alone
COMMON = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 4}
LORA = {"tuning": "lora", "lora_rank": 2}
RAHF = {**COMMON, "tuning": "lora", "lora_dropout": 0.0, "layers": [2], "fit_batch_size": 3, "steps": 3}
TRIPLES = 11
"""No multiple of a batch: of the last one the two processes have one and two rows."""


@pytest.fixture(scope="module")
def refs(sae_refs, filtered_refs):
    """(early, late) SAEs, and such that do not count tokens of large norm."""
    return *sae_refs, *filtered_refs(1.1)


def cases(refs):
    """Name -> every method that fits anything."""
    early, late, *filtered = refs
    sparse = {"input_sae": early, "output_sae": late, "k_prompt": 4, "k_diff": 4, "batch_size": 4}
    trained = {
        "sft": SFT(**COMMON),
        "dpo": DPO(**COMMON, **LORA),
        "dpo full": DPO(**COMMON, accumulation=2),
        "kto": KTO(**COMMON, **LORA),
        "orpo": ORPO(**COMMON, **LORA),
        "simpo": SimPO(**COMMON, **LORA),
        "fpo": FPO(**COMMON, **LORA, sae=late, k=4),
        "sails": SAILS(**COMMON, lora_rank=4, saes=[late], k=8),
        "rahf_scit": RAHFSCIT(**RAHF, good_instruction="w1 w2", bad_instruction="w3"),
        "rahf_dual": RAHFDual(**RAHF),
    }
    full = {
        "sft": SFT(**COMMON),
        "dpo": DPO(**COMMON, accumulation=2),
        "dpo, checkpointing": DPO(**COMMON, gradient_checkpointing=True),
        "kto": KTO(**COMMON),
        "orpo": ORPO(**COMMON),
        "simpo": SimPO(**COMMON, optimiser="sgd"),
        "fpo": FPO(**COMMON, sae=late, k=4),
        "rahf_scit": RAHFSCIT(**RAHF | {"tuning": "full"}, good_instruction="w1 w2", bad_instruction="w3"),
        "dpo with an adapter": DPO(**COMMON, **LORA),
    }
    counted = {
        "dspa": DSPA(**sparse),
        "dspa, norm filter": DSPA(**sparse | {"input_sae": filtered[0], "output_sae": filtered[1]}),
        "ridge": DSPA(**sparse, scores="ridge"),
        "causal": DSPA(**sparse, select="causal"),
        "static_sae": StaticSAE(sae=late, batch_size=4),
        "caa": CAA(layer=2, batch_size=4),
        "repe": RepE(layer=2, directions=4, batch_size=4),
    }
    found = {name: Case(method, TRIPLES) for name, method in trained.items()}
    # The last batch has one row, which both processes pass and one bills.
    found |= {f"{name}, one row": Case(trained[name], 9) for name in ("sft", "dpo", "kto", "orpo", "fpo", "rahf_scit")}
    found |= {f"{name}, sharded": Case(method, TRIPLES, sharded=True) for name, method in full.items()}
    found["fpo under a limit"] = Case(trained["fpo"], TRIPLES, flops_limit=4 * 10**8)
    return found | {name: Case(method, 24) for name, method in counted.items()}


COUNTED = ("dspa", "dspa, norm filter", "ridge", "causal", "static_sae", "caa", "repe")
FULLY_TUNED = [name for name, case in cases(NO_SAES).items() if case.sharded and case.method.keeps_weights]


@pytest.fixture(scope="module")
def of_two(tiny_folders, triples, refs, tmp_path_factory):
    """Name -> outcome of the case by two processes."""
    folder = tmp_path_factory.mktemp("two")
    given = cases(refs)
    torch.multiprocessing.spawn(fit_all, (given, str(tiny_folders["llama"]), triples, folder), nprocs=2)
    return {name: torch.load(folder / name / "outcome.pt", weights_only=True) for name in given}


def fitted_in(folder, per_fit, method, base, triples, *, minutes=0.0, **bounds):
    """(aligned, losses) of a fit whose curve and checkpoints are in ``folder``."""
    folder.mkdir(exist_ok=True)
    sitting = Sitting(Curve(folder / "training.jsonl"), folder / "fitting", minutes=minutes)
    how = {"sitting": sitting, "sample_profile": False, **bounds}
    aligned = fit_over(per_fit, method, base, Budget(tuple(triples), 0), 3, **how)
    return aligned, [step.loss for step in sitting.curve.steps]


def exact(bill):
    """What of a bill does not depend on the machine."""
    stages = [{key: stage[key] for key in ("name", "executed_flops", "tokens", "steps")} for stage in bill["stages"]]
    names = ("executed_flops", "formula_flops", "tokens", "optimiser_steps", "epochs", "train_params", "total_params")
    return [{name: bill[name] for name in names}, stages]


def test_two_processes_train_what_one_trains(tiny_base, triples, tmp_path):
    method, base = DPO(**COMMON, **LORA), tiny_base("llama")
    one, losses = fitted_in(tmp_path / "one", PerFitSection(), method, base, triples[:TRIPLES])
    two, halves = fitted_in(tmp_path / "two", TWO, method, base, triples[:TRIPLES])
    assert halves == pytest.approx(losses, rel=1e-5, abs=1e-5) and len(losses) > 1
    assert exact(two.bill) == exact(one.bill)
    assert (two.method, two.delta, two.params) == (one.method, one.delta, one.params)
    others = two.delta_tensors()
    for key, tensor in one.delta_tensors().items():
        torch.testing.assert_close(others[key], tensor, rtol=0, atol=1e-4)
    assert not multiprocessing.active_children()


@pytest.mark.scale
@pytest.mark.parametrize("name", [name for name in cases(NO_SAES) if name != "dpo"])
def test_every_method_is_fitted_by_two_as_by_one(tiny_base, triples, refs, tmp_path, of_two, name):
    bill, params, curve, tensors, _ = outcome(cases(refs)[name], tiny_base("llama"), triples, tmp_path)
    two_bill, two_params, halves, others, _ = of_two[name]
    losses, two_losses = ([loss for loss, _ in one] for one in (curve, halves))
    norms, two_norms = ([norm for _, norm in one] for one in (curve, halves))
    assert exact(two_bill) == exact(bill)
    assert two_params == params
    assert two_losses == pytest.approx(losses, rel=1e-5, abs=1e-5)
    assert two_norms == pytest.approx(norms, rel=1e-4)
    assert bool(losses) == (name not in COUNTED)
    assert others.keys() == tensors.keys()
    for key, tensor in tensors.items():
        torch.testing.assert_close(others[key], tensor, rtol=0, atol=0 if name in COUNTED else 1e-4)


@pytest.mark.scale
@pytest.mark.parametrize(
    ("how", "method", "family"),
    [
        (TWO, DPO(**COMMON, **LORA, lora_dropout=0.2), "llama"),
        (TWO, DPO(**COMMON, accumulation=2), "llama"),
        (SHARDED, DPO(**COMMON, accumulation=2), "gemma2"),  # whose embeddings are the LM head's weights
    ],
    ids=["adapter", "full", "sharded"],
)
def test_a_process_that_dies_ends_the_fit_and_the_next_sitting_goes_on(
    tiny_base, triples, tmp_path, how, method, family
):
    base = tiny_base(family)
    whole, losses = fitted_in(tmp_path / "whole", how, method, base, triples[:TRIPLES], minutes=1e-9)

    def kill_one():
        while not list((tmp_path / "killed").glob("fitting/training-1/checkpoint-*.json")):
            time.sleep(0.01)
        victim = next(child for child in multiprocessing.active_children() if child.name == "rank 1")
        os.kill(victim.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(RuntimeError, match=r"process 2 of the 2 of this fit died \(signal SIGKILL; not enough memory"):
        fitted_in(tmp_path / "killed", how, method, base, triples[:TRIPLES], minutes=1e-9)
    killer.join()
    assert not multiprocessing.active_children()
    copytree(tmp_path / "killed", tmp_path / "alone")
    resumed, again = fitted_in(tmp_path / "killed", how, method, base, triples[:TRIPLES], minutes=1e-9)
    assert again == losses
    assert resumed.fingerprint == whole.fingerprint
    assert exact(resumed.bill) == exact(whole.bill)
    if how.sharded:  # its checkpoints are those of one process
        alone, by_one = fitted_in(tmp_path / "alone", PerFitSection(), method, base, triples[:TRIPLES], minutes=1e-9)
        assert by_one == pytest.approx(losses, rel=1e-5, abs=1e-5) and by_one[0] == losses[0]
        assert exact(alone.bill) == exact(whole.bill)
        others = whole.delta_tensors()
        for key, tensor in alone.delta_tensors().items():
            torch.testing.assert_close(others[key], tensor, rtol=0, atol=1e-4)


@pytest.mark.scale
def test_a_sharded_fit_holds_half_the_trained_weights_in_each_of_two_processes(of_two, tiny_base):
    full = tiny_base("llama").model.num_parameters()
    for name, (*_, held) in of_two.items():
        expected = [pytest.approx(full / 2, rel=0.05)] if name in FULLY_TUNED else []
        assert held == expected, name


@pytest.mark.scale
def test_what_a_process_refuses_is_what_the_fit_refuses(tiny_base, triples, tmp_path):
    with pytest.raises(ValueError, match="the training loss is nan at optimiser step"):
        fitted_in(tmp_path, TWO, SFT(**COMMON | {"learning_rate": 1e30}), tiny_base("llama"), triples)
    assert not multiprocessing.active_children()


def test_what_cannot_be_divided_is_refused_before_work(tiny_base, triples, tmp_path):
    for method, message in (
        (SFT(batch_size=1), "batch_size 1 is the triples of a forward over all processes"),
        (DPO(loss_type="aot"), "loss_type 'aot' is one of a whole batch"),
        (RAHFSCIT(fit_batch_size=1), "fit_batch_size 1 cannot be divided among 2 processes"),
        (SFT(optimiser="adafactor"), "the state of optimiser 'adafactor' cannot be dealt out"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted_in(tmp_path, SHARDED, method, tiny_base("llama"), triples)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distributed_type: FSDP\n", "give per_fit.sharded: true instead"),
        ("distributed_type: MULTI_GPU\nnum_processes: 8\n", "num_processes is 8, but the suite says processes: 2"),
        ("distributed_type: MULTI_GPU\nnum_machines: 2\n", "num_machines is 2"),
        ("distributed_type: MULTI_CPU\nmixed_precision: bf16\n", "set bf16 of the method instead"),
        ("no_such_setting: 1\n", "accelerate cannot read its settings"),
    ],
)
def test_settings_of_accelerate_that_make_another_fit_are_refused(tmp_path, text, message):
    file = tmp_path / "accelerate.yaml"
    file.write_text("compute_environment: LOCAL_MACHINE\nuse_cpu: true\n" + text)
    with pytest.raises(ValueError, match=message):
        check_per_fit(PerFitSection(processes=2, accelerate_config=file), "cpu")


def test_settings_of_accelerate_reach_the_processes(tmp_path):
    file = tmp_path / "accelerate.yaml"
    file.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\ngpu_ids: '3,5'\n")
    assert environment(PerFitSection(processes=2, accelerate_config=file))["CUDA_VISIBLE_DEVICES"] == "3,5"


@pytest.mark.parametrize(
    ("given", "device", "message"),
    [
        ({"processes": 2}, "cuda:1", "need a device each, and device 'cuda:1' is one"),
        ({"processes": 64}, "cuda", "64 processes need a device each, and this machine has"),
        ({"processes": 2}, "mps", "several processes work on cpu and cuda"),
        ({"processes": 2, "accelerate_config": Path("/nowhere.yaml")}, "cpu", "there is no file '/nowhere.yaml'"),
        ({"accelerate_config": Path("/nowhere.yaml")}, "cpu", "accelerate_config without processes"),
        ({"sharded": True}, "cpu", "sharded without processes"),
    ],
)
def test_devices_that_are_not_there_are_refused(given, device, message):
    with pytest.raises(ValueError, match=message):
        check_per_fit(PerFitSection(**given), device)
