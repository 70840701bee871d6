"""Bills predicted before a fit are the bills after it, and a bill for a budget buys what it is predicted to."""

from collections import Counter

import pytest

from baselines.caa import CAA
from baselines.dpo import DPO
from baselines.kto import KTO
from baselines.orpo import ORPO
from baselines.rahf.methods import RAHFSCIT, RAHFDual
from baselines.sft import SFT
from baselines.simpo import SimPO
from baselines.static_sae import StaticSAE
from dspa.method import DSPA
from harness.data.refs import ModelRef
from harness.data.triples import Budget, Triple, conversation
from harness.experiment.fitting import fit
from harness.experiment.forecast import Forecaster
from harness.experiment.run import prepare, run_suite
from harness.model.aligned import AlignedModel
from harness.run_folder import RunFolder
from tests.toys import NoProgress, ToyNoise, outcome, write_suite

INSTRUCTIONS = {"good_instruction": "w1 w2 w3", "bad_instruction": "w4 w5"}


@pytest.fixture(scope="module")
def budget() -> Budget:
    """Triples of different lengths."""

    def words(start: int, n: int) -> str:
        return " ".join(f"w{(start + i) % 40}" for i in range(n))

    lengths = [(3, 2, 5), (9, 4, 1), (5, 5, 2), (12, 7, 3), (4, 1, 6), (7, 2, 2), (2, 8, 3), (6, 3, 4)]
    triples = [
        Triple(conversation(words(k, p)), words(2 * k, c), words(3 * k + 1, r)) for k, (p, c, r) in enumerate(lengths)
    ]
    return Budget(tuple(triples), 0)


@pytest.fixture(scope="module")
def even_budget(budget) -> Budget:
    """Triples whose answers are equally long, so that no coin decides a length."""
    answers = [(" ".join(f"w{i + k}" for i in range(4)), " ".join(f"w{i + k + 9}" for i in range(4))) for k in range(8)]
    triples = [Triple(t.prompt, *pair) for t, pair in zip(budget.triples, answers, strict=True)]
    return Budget(tuple(triples), 0)


@pytest.fixture(scope="module")
def forecaster(tiny_folders) -> Forecaster:
    return Forecaster(ModelRef(path=str(tiny_folders["llama"])))


def executed(bill) -> dict[str, int]:
    return {stage["name"]: stage["executed_flops"] for stage in bill["stages"]}


def test_features_are_predicted_exactly_and_the_map_from_above(forecaster, budget, tiny_base, sae_refs):
    method = DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], batch_size=3, truncate=2)
    forecast = forecaster.of(method, budget)
    bill = fit(method, tiny_base("llama"), budget, 0, predicted=forecast.stages).bill
    assert bill is not None and forecast.stages is not None
    assert bill["predicted"] == forecast.stages
    assert forecast.stages["features"] == executed(bill)["features"] > 0
    assert forecast.stages["map"] >= executed(bill)["map"]


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_training_with_a_reference_is_predicted_to_the_padding_of_its_batches(forecaster, budget, tiny_base, tuning):
    """In one batch the trainer has no choice, so the prediction is exact."""
    method = DPO(tuning=tuning, batch_size=8, epochs=2)
    forecast = forecaster.of(method, budget)
    bill = fit(method, tiny_base("llama"), budget, 0, predicted=forecast.stages).bill
    assert bill is not None
    assert forecast.flops == bill["executed_flops"]
    assert bill["epochs"] == 2


METHODS = {
    "full sft": SFT(batch_size=8, epochs=2),
    "simpo": SimPO(tuning="lora", batch_size=8, epochs=2),
    "full orpo": ORPO(batch_size=8),
    "caa": CAA(layer=1, batch_size=3),
    "rahf_scit": RAHFSCIT(**INSTRUCTIONS, batch_size=16, fit_batch_size=8, steps=3, layers=(1, 2)),
    "rahf_scit with LoRA": RAHFSCIT(
        **INSTRUCTIONS, tuning="lora", batch_size=16, fit_batch_size=8, steps=2, layers=(1,)
    ),
    "rahf_dual": RAHFDual(batch_size=8, fit_batch_size=8, steps=2, layers=(1,)),
}


@pytest.mark.parametrize("name", METHODS)
def test_in_one_batch_the_bill_is_predicted_exactly(forecaster, even_budget, tiny_base, name):
    method = METHODS[name]
    forecast = forecaster.of(method, even_budget)
    bill = fit(method, tiny_base("llama"), even_budget, 0, predicted=forecast.stages).bill
    assert bill is not None
    assert forecast.stages == executed(bill)


def test_kto_is_predicted_but_for_the_adapter_in_its_unrelated_pass(forecaster, even_budget, tiny_base):
    lora, full = KTO(tuning="lora", batch_size=8), KTO(batch_size=8)
    for method, slack in ((full, 0.0), (lora, 0.1)):
        bill = fit(method, tiny_base("llama"), even_budget, 0).bill
        assert bill is not None
        assert forecaster.of(method, even_budget).flops == pytest.approx(bill["executed_flops"], rel=slack)


def test_a_single_pass_gets_the_largest_beginning_that_its_bill_pays_for(forecaster, budget, tiny_base, sae_refs):
    method = StaticSAE(sae=sae_refs[1], batch_size=3)
    costs = [forecaster.of(method, Budget(budget.triples[:n], 0)).flops or 0 for n in range(1, 9)]
    assert costs == sorted(costs)
    limit = (costs[4] + costs[5]) // 2
    forecast = forecaster.of(method, budget, limit)
    assert forecast.budget == Budget(budget.triples[:5], 0)
    bill = fit(method, tiny_base("llama"), forecast.budget, 0, flops_limit=limit).bill
    assert bill is not None
    assert (bill["executed_flops"], bill["n_triples"], bill["flops_limit"]) == (costs[4], 5, limit)
    assert forecaster.of(method, budget, 10 * costs[-1]).budget == budget


def test_a_bill_that_does_not_pay_for_one_triple_is_refused(forecaster, budget, sae_refs):
    with pytest.raises(ValueError, match=r"does not pay for one triple of static_sae.*flops_budgets"):
        forecaster.of(StaticSAE(sae=sae_refs[1]), budget, 5)


def test_training_under_a_bill_ends_with_the_step_that_reaches_it(forecaster, budget, tiny_base):
    method = DPO(batch_size=2)
    step = (forecaster.of(method, budget).flops or 0) // 4
    limit = 7 * step
    forecast = forecaster.of(method, budget, limit)
    assert forecast.budget == budget
    bill = fit(method, tiny_base("llama"), forecast.budget, 0, flops_limit=limit).bill
    assert bill is not None
    assert limit <= bill["executed_flops"] < limit + 2 * step
    assert bill["epochs"] == bill["optimiser_steps"] / 4 > 1


def test_a_method_without_prediction_has_none_and_gets_everything(forecaster, budget):
    forecast = forecaster.of(ToyNoise(), budget, 10**9)
    assert (forecast.stages, forecast.flops, forecast.budget) == (None, None, budget)


@pytest.mark.parametrize("name", ["caa", "full sft", "rahf_scit"])
def test_a_triple_is_tokenised_once_for_forecast_and_fit(forecaster, even_budget, tiny_base, monkeypatch, name):
    method, base = METHODS[name], tiny_base("llama")
    whole = fit(method, base, even_budget, 0, predicted=forecaster.of(method, even_budget).stages)
    tokenised = Counter()
    count = AlignedModel.prompt_ids

    def counted(model, conversation):
        tokenised[model.system_prompt, str(conversation)] += 1
        return count(model, conversation)

    monkeypatch.setattr(AlignedModel, "prompt_ids", counted)
    encoding = base.derive(encoded={})
    forecast = forecaster.of(method, even_budget, 10**15, base=encoding)
    aligned = fit(method, encoding, forecast.budget, 0, predicted=forecast.stages)
    assert {prompt for _, prompt in tokenised} == {str(triple.prompt) for triple in even_budget.triples}
    assert set(tokenised.values()) == {1}
    assert (aligned.fingerprint, aligned.encoded) == (whole.fingerprint, None)


def test_an_instruction_and_a_caller_who_changes_the_ids_leave_the_encoded_triples_alone(budget, tiny_base):
    base = tiny_base("llama").derive(encoded={})
    triple = budget.triples[0]
    plain, instructed = base.triple_ids(triple), base.derive(system_prompt="w1 w2").triple_ids(triple)
    assert plain[0] != instructed[0]
    base.triple_ids(triple)[0].clear()
    assert base.triple_ids(triple) == plain == tiny_base("llama").triple_ids(triple)


def test_a_finished_run_can_be_extended_by_bills(tmp_path, tiny_folders):
    path, out = write_suite(tmp_path, tiny_folders["llama"]), tmp_path / "run"
    small = ["budgets=[4]", "seeds=1", "variants.noise.sweep={}"]
    run_suite(prepare(path, out, small), NoProgress())
    before = outcome(out)
    extended = prepare(path, out, [*small, "flops_budgets=[1e9]"])
    assert list(extended.failures) == ["noise__1e+9flops__s0"]
    assert not run_suite(extended, NoProgress())
    after = outcome(out)
    assert {name: content for name, content in after.items() if name in before} == before
    run = RunFolder(out)
    cell = next(cell for cell in run.plan.cells if cell.name == "noise__1e+9flops__s0")
    state = run.cell(cell.name).state
    assert state is not None
    assert (cell.budget, state.status) == ("1e+9flops", "done")
    with pytest.raises(ValueError, match="there, not in this suite"):
        prepare(path, out, small)
