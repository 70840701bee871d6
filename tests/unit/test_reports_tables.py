"""reports.tables, costs and comparison against the records, read again by other means."""

import json
import math
from itertools import combinations
from types import SimpleNamespace

import pytest

from harness.judging.ledger import Ledger
from reports import comparison as compared
from reports import costs, tables
from reports.cost_sections import judging_table
from reports.findings import drops, effects, findings, side_of
from reports.run import read_run
from tests.unit.synthetic_run import BUDGETS, SEEDS, VARIANTS, write_run

BILL = ["train_params", "executed_flops", "formula_flops", "paper_flops", "fit_seconds", "peak_bytes"]
BILL += ["tuning_flops", "tuning_seconds", "flops_source"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "run"
    return write_run(folder, failed_cell="dpo__n100__s1", unfinished="static_sae__n300__s2")


@pytest.fixture(scope="module")
def run(folder):
    return read_run(folder)


@pytest.fixture(scope="module")
def comparison(run):
    return compared.comparison(run)


def _raw(folder, pattern, metric):
    """Values (None = failed) of a metric straight from the files of the cells that match."""
    paths = sorted(folder.glob(f"cells/{pattern}/records/*.jsonl"))
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [record["value"] for record in records if record["metric"] == metric]


def _row(table, **equal):
    (row,) = table.where(**equal)
    return row


def test_comparison_has_exactly_the_columns_of_the_contract(run, comparison):
    expected = ["variant", "method", "budget", "n_seeds"]
    for m in run.metrics:
        expected += [m, f"{m}_low", f"{m}_high", f"{m}_n", f"{m}_failed"]
    assert comparison.columns == expected + BILL
    assert {len(comparison.cells(row)) for row in comparison} == {len(comparison.columns)}
    assert len(comparison) == len(VARIANTS) * len(BUDGETS)


@pytest.mark.parametrize("metric", ["mt_bench", "alpaca_eval", "sandbox_facts", "over_refusal"])
@pytest.mark.parametrize(("variant", "pattern"), [("dspa", "dspa__n300__s*"), ("base", "base__n0__s*")])
def test_means_and_counts_are_those_of_the_records(folder, comparison, metric, variant, pattern):
    values = _raw(folder, pattern, metric)
    score = _row(comparison, variant=variant, budget=300).scores[metric]
    assert score.mean == pytest.approx(sum(values) / len(values))
    assert score.n == len(values)
    assert score.low <= score.mean <= score.high


def test_failed_records_are_counted_and_in_no_mean(folder, comparison):
    values = _raw(folder, "dpo__n300__s*", "mt_bench")
    scored = [value for value in values if value is not None]
    score = _row(comparison, variant="dpo", budget=300).scores["mt_bench"]
    assert score.mean == pytest.approx(sum(scored) / len(scored))
    assert (score.n, score.failed) == (len(scored), SEEDS)


def test_failed_and_unfinished_cells_are_left_out_of_the_seeds(comparison):
    assert _row(comparison, variant="dpo", budget=100).n_seeds == SEEDS - 1
    assert _row(comparison, variant="static_sae", budget=300).n_seeds == SEEDS - 1
    assert _row(comparison, variant="dspa", budget=300).n_seeds == SEEDS


def test_a_variant_without_triples_has_its_one_result_at_every_budget(comparison):
    at_100, at_300 = (_row(comparison, variant="base", budget=budget) for budget in BUDGETS)
    assert at_100._replace(budget=300) == at_300


def test_a_metric_that_a_variant_lacks_is_empty_and_never_zero(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    for path in folder.glob("cells/prompt__*/records/alpaca_eval.jsonl"):
        path.unlink()
    scores = _row(compared.comparison(read_run(folder)), variant="prompt", budget=300).scores
    missing = scores["alpaca_eval"]
    assert all(math.isnan(value) for value in (missing.mean, missing.low, missing.high))
    assert (missing.n, missing.failed) == (0, 0)
    assert scores["mt_bench"].n > 0


def test_a_variant_whose_every_cell_failed_has_an_empty_row(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    for path in folder.glob("cells/dpo__n100__*/cell.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "failed", "error": "no"}))
    row = _row(compared.comparison(read_run(folder)), variant="dpo", budget=100)
    assert (row.n_seeds, row.scores["mt_bench"].n) == (0, 0)
    assert math.isnan(row.scores["mt_bench"].mean)
    assert math.isnan(row.cost.executed_flops)


def test_the_bill_is_the_mean_over_seeds_and_memory_the_largest(folder, comparison):
    bills = [json.loads(path.read_text()) for path in folder.glob("cells/dspa__n300__s*/compute.json")]
    cost = _row(comparison, variant="dspa", budget=300).cost
    assert cost.executed_flops == pytest.approx(sum(b["executed_flops"] for b in bills) / 3)
    assert cost.paper_flops == 8e13 * 300
    assert cost.peak_bytes == max(b["peak_bytes"] for b in bills)
    assert math.isnan(_row(comparison, variant="dpo", budget=300).cost.paper_flops)


def test_compute_gives_the_trained_share_and_one_row_for_a_variant_without_triples(run):
    compute = costs.compute(run)
    assert [row.budget for row in compute.where(variant="base")] == [0]
    assert _row(compute, variant="dpo", budget=300).train_share == pytest.approx(100 * 49_152 / 802_000)


def test_stages_add_up_to_the_bill_and_operators_fall_in_flops(run, comparison):
    stages = costs.stages(run).where(variant="dspa", budget=300)
    executed = sum(stage.executed_flops for stage in stages)
    assert executed == pytest.approx(_row(comparison, variant="dspa", budget=300).cost.executed_flops)
    assert [stage.missed_share for stage in stages] == pytest.approx([10, 10])
    operators = costs.operators(run)
    mine = [row for row in operators.where(variant="dpo") if row.row.stage == "map"]
    flops = [row.row.flops for row in mine]
    assert flops == sorted(flops, reverse=True)
    assert len(flops) == 6
    assert sum(row.share for row in mine) == pytest.approx(100)
    assert {len(operators.cells(row)) for row in operators} == {len(operators.columns)}


def test_sweeps_have_the_comparisons_columns_and_the_swept_keys(run, comparison):
    sweeps = compared.sweeps(run)
    assert sweeps.columns == [*comparison.columns, "alpha"]
    assert [row.sweep["alpha"] for row in sweeps] == [0.2, 0.5, 1.0]
    assert [row.n_seeds for row in sweeps] == [1, 1, 1]
    means = [row.scores["mt_bench"].mean for row in sweeps]
    assert means == sorted(means)


def test_a_run_without_sweeps_has_an_empty_table_with_the_same_columns(tmp_path, comparison):
    folder = write_run(tmp_path / "run")
    for cell in folder.glob("cells/dspa@*"):
        cell.rename(folder / cell.name)
    sweeps = compared.sweeps(read_run(folder))
    assert sweeps.columns == comparison.columns
    assert not sweeps


def test_differences_are_item_by_item_and_holm_is_over_one_metric_at_one_budget(folder, run):
    table = tables.differences(run)
    row = _row(table, variant="dspa", budget=300, metric="mt_bench")
    treated, base = _raw(folder, "dspa__n300__s*", "mt_bench"), _raw(folder, "base__n0__s*", "mt_bench")
    assert row.difference == pytest.approx(sum(a - b for a, b in zip(treated, base, strict=True)) / 144)
    assert row.low > 0
    family = [row for row in table.where(budget=300, metric="alpaca_eval") if row.tested]
    smallest = min(family, key=lambda r: r.p)
    assert smallest.p_holm == pytest.approx(min(1.0, smallest.p * len(family)))
    assert all(r.p_holm >= r.p for r in family)
    assert not table.where(variant="base")


def test_every_variant_is_compared_with_every_other_corrected_within_metric_and_budget(run):
    found, against_base = tables.pairs(run), tables.differences(run)
    assert {(row.variant, row.against) for row in found} == {(b, a) for a, b in combinations(VARIANTS, 2)}
    row = _row(found, variant="dpo", against="dspa", budget=300, metric="mt_bench")
    through_base = [_row(against_base, variant=v, budget=300, metric="mt_bench") for v in ("dpo", "dspa")]
    assert row.difference == pytest.approx(through_base[0].difference - through_base[1].difference, abs=0.02)
    assert (row.n, row.unpaired) == (141, 3)
    family = found.where(budget=300, metric="mt_bench")
    tested = [row.p for row in family if row.tested]
    assert len(tested) == len(family) == 15
    assert min(row.p_holm for row in family) == pytest.approx(15 * min(tested))
    for same in (row for row in found if row.against == "base"):
        expected = _row(against_base, variant=same.variant, budget=same.budget, metric=same.metric)
        rest = (same.p_holm, same.detectable)
        assert same == pytest.approx(expected._replace(p_holm=rest[0], detectable=rest[1]), nan_ok=True)


def test_breakdowns_split_the_mean_by_category_and_turn(run, comparison):
    turns = tables.breakdown(run, "turn").where(variant="dspa", budget=300)
    assert [row.value for row in turns] == [1, 2]
    whole = _row(comparison, variant="dspa", budget=300).scores["mt_bench"].mean
    assert sum(row.score.mean for row in turns) / 2 == pytest.approx(whole)
    categories = tables.breakdown(run, "category").where(variant="dpo", budget=300)
    assert len(categories) == 8
    assert {row.value: row.score.failed for row in categories}["extraction"] == 3


def test_diagnostics_are_averaged_over_seeds(run):
    row = _row(tables.diagnostics(run), variant="dspa", budget=300, diagnostic="jaccard")
    assert row.mean == pytest.approx(0.41)
    assert row.n_seeds == SEEDS


def test_failures_are_listed_with_cell_item_and_reason(run):
    rows = list(tables.failures(run))
    assert len(rows) == 5  # one per done dpo cell; the failed cell has no records
    assert {row.item for row in rows} == {"86:2"}
    assert all("no rating" in row.reason for row in rows)


def _with(comparison, variant, metric, budget=300, **values):
    """The rows, with another score of one variant."""
    return [
        row._replace(scores=row.scores | {metric: row.scores[metric]._replace(**values)})
        if (row.variant, row.budget) == (variant, budget)
        else row
        for row in comparison
    ]


def _moved(run, metric, difference, *, p=0.001, p_holm=0.01, low=0.1, high=0.9):
    row = tables.differences(run).where(variant="dspa", budget=300, metric=metric)[0]
    return row._replace(difference=difference, p=p, p_holm=p_holm, low=low, high=high)


@pytest.mark.parametrize(
    ("difference", "p", "p_holm", "expected"),
    [
        (5.0, 0.001, 0.049, "better"),
        (-5.0, 0.001, 0.049, "worse"),
        (5.0, 0.001, 0.05, "undecided"),
        (5.0, math.nan, math.nan, "untested"),
    ],
)
def test_better_and_worse_are_said_by_the_corrected_paired_test_alone(run, difference, p, p_holm, expected):
    assert side_of(run, _moved(run, "alpaca_eval", difference, p=p, p_holm=p_holm)) == expected
    turned = {"better": "worse", "worse": "better"}.get(expected, expected)
    assert side_of(run, _moved(run, "over_refusal", difference, p=p, p_holm=p_holm)) == turned  # less is better


def test_where_no_item_differs_nothing_is_tested_and_nothing_corrected_for(run):
    table = tables.differences(run)
    same = _row(table, variant="prompt", budget=300, metric="sandbox_facts")
    assert (same.difference, same.varies, same.tested, same.p_holm) == (0.0, False, False, 1.0)
    assert math.isnan(same.detectable)
    assert side_of(run, same) == "undecided"
    assert side_of(run, None) == "untested"
    of_metric = table.where(budget=300, metric="sandbox_facts")
    tested = [row for row in of_metric if row.tested]
    assert 0 < len(tested) < len(of_metric)
    smallest = min(tested, key=lambda row: row.p)
    assert smallest.p_holm == pytest.approx(smallest.p * len(tested))


def test_findings_name_who_is_better_and_who_is_not_separated(run, comparison):
    finding = findings(run, comparison, tables.differences(run), 300)[0]
    assert finding.metric.name == "mt_bench"
    assert set(finding.sides["better"]) == {"dspa", "dspa_paper", "dpo", "static_sae"}
    assert set(finding.sides["undecided"]) == {"prompt"}
    assert finding.best[0] == "dspa"


def test_effects_say_what_moved_what_was_lost_and_what_it_cost(run, comparison):
    found = {effect.variant: effect for effect in effects(run, comparison, tables.differences(run), 300)}
    assert list(found) == [name for name in VARIANTS if name != "base"]
    verdicts = {name: effect.verdict for name, effect in found.items()}
    assert verdicts["dspa"] == "better"
    assert verdicts["prompt"] == "nothing"
    assert verdicts["dpo"] == "mixed"
    assert [row.metric for row in found["dspa"].better] == ["mt_bench", "alpaca_eval"]
    assert [row.metric for row in found["dpo"].lost] == ["sandbox_facts"]
    assert {row.metric for row in found["prompt"].unseen} == {
        "mt_bench", "alpaca_eval", "safety_rate", "over_refusal",
    }  # fmt: skip
    assert found["dpo"].cost == _row(comparison, variant="dpo", budget=300).cost


def test_only_multiple_choice_drops_of_more_than_two_points_are_flagged(run, comparison):
    rows = list(comparison)
    for variant, value in zip(VARIANTS, (90.0, 88.0, 87.9, 95.0, math.nan, 91.0), strict=True):
        rows = _with(rows, variant, "sandbox_facts", mean=value)
        rows = _with(rows, variant, "sandbox_facts", 100, mean=90.0)
        for budget in BUDGETS:
            rows = _with(rows, variant, "sandbox_scenes", budget, mean=50.0)
    (drop,) = drops(run, rows)
    assert (drop.variant, drop.budget, drop.metric) == ("static_sae", 300, "sandbox_facts")
    assert drop.baseline - drop.value == pytest.approx(2.1)


def test_a_run_without_a_ledger_has_no_account_of_judging(run):
    assert not costs.judging(run)


def test_judges_with_and_without_prices_and_calls_without_a_bill_are_told_apart(tmp_path):
    ledger = Ledger(tmp_path / "judging")
    ledger.batch("a|b", "rate", requests=1200, reused=200)
    for outcome, cost in (("answered", 0.25), ("refused", 0.0), ("lost", None)):
        call = ledger.send("a|b", "http://h/v1", most=0.5, cap=None)
        ledger.end(call, outcome, cost=cost, prompt_tokens=1000, completion_tokens=2, model="m-2026")
    free = ledger.send("local", "http://h/v1", most=None, cap=None)
    ledger.end(free, "answered", cost=None, prompt_tokens=5, completion_tokens=6)
    table = costs.judging(SimpleNamespace(folder=tmp_path))
    assert [row.account.cost is None for row in table] == [False, True]
    assert judging_table(table).splitlines()[2:] == [
        r"| a\|b | m-2026 | 1,200 | 200 | 3 | 1 | 2 | 3,000 | 6 | 0.2500 to 0.7500 |",
        "| local | – | 0 | 0 | 1 | 1 | 0 | 5 | 6 | no prices given |",
    ]
