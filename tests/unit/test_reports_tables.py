"""reports.tables, costs and findings against the records, read again by other means."""

import json
import math

import pandas as pd
import pytest

from reports import costs, tables
from reports.findings import drops, findings, side
from reports.runfolder import read_run
from tests.unit.synthetic_run import BUDGETS, SEEDS, VARIANTS, write_run

BILL = ["train_params", "executed_flops", "formula_flops", "paper_flops", "fit_seconds", "peak_bytes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "run"
    return write_run(folder, failed_cell="dpo__n100__s1", unfinished="static_sae__n300__s2")


@pytest.fixture(scope="module")
def run(folder):
    return read_run(folder)


@pytest.fixture(scope="module")
def comparison(run):
    return tables.comparison(run)


def _raw(folder, pattern, metric):
    """Values (None = failed) of a metric straight from the files of the cells that match."""
    paths = sorted(folder.glob(f"cells/{pattern}/records/*.jsonl"))
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [record["value"] for record in records if record["metric"] == metric]


def _row(frame, **equal):
    (row,) = tables.rows_where(frame, **equal)
    return row


def test_comparison_has_exactly_the_columns_of_the_contract(run, comparison):
    expected = ["variant", "method", "budget", "n_seeds"]
    for m in run.metrics:
        expected += [m, f"{m}_low", f"{m}_high", f"{m}_n", f"{m}_failed"]
    assert list(comparison.columns) == expected + BILL
    assert len(comparison) == len(VARIANTS) * len(BUDGETS)


@pytest.mark.parametrize("metric", ["mt_bench", "alpaca_eval", "sandbox_facts", "over_refusal"])
@pytest.mark.parametrize(("variant", "pattern"), [("dspa", "dspa__n300__s*"), ("base", "base__n0__s*")])
def test_means_and_counts_are_those_of_the_records(folder, comparison, metric, variant, pattern):
    values = _raw(folder, pattern, metric)
    row = _row(comparison, variant=variant, budget=300)
    assert row[metric] == pytest.approx(sum(values) / len(values))
    assert row[f"{metric}_n"] == len(values)
    assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]


def test_failed_records_are_counted_and_in_no_mean(folder, comparison):
    values = _raw(folder, "dpo__n300__s*", "mt_bench")
    scored = [value for value in values if value is not None]
    row = _row(comparison, variant="dpo", budget=300)
    assert row["mt_bench"] == pytest.approx(sum(scored) / len(scored))
    assert (row["mt_bench_n"], row["mt_bench_failed"]) == (len(scored), SEEDS)


def test_failed_and_unfinished_cells_are_left_out_of_the_seeds(comparison):
    assert _row(comparison, variant="dpo", budget=100)["n_seeds"] == SEEDS - 1
    assert _row(comparison, variant="static_sae", budget=300)["n_seeds"] == SEEDS - 1
    assert _row(comparison, variant="dspa", budget=300)["n_seeds"] == SEEDS


def test_a_variant_without_triples_has_its_one_result_at_every_budget(comparison):
    at_100, at_300 = (_row(comparison, variant="base", budget=budget) for budget in BUDGETS)
    assert {k: v for k, v in at_100.items() if k not in ("budget", "paper_flops")} == {
        k: v for k, v in at_300.items() if k not in ("budget", "paper_flops")
    }


def test_a_metric_that_a_variant_lacks_is_empty_and_never_zero(tmp_path):
    folder = write_run(tmp_path / "run")
    for path in folder.glob("cells/prompt__*/records/alpaca_eval.jsonl"):
        path.unlink()
    row = _row(tables.comparison(read_run(folder)), variant="prompt", budget=300)
    assert all(math.isnan(row[f"alpaca_eval{part}"]) for part in ("", "_low", "_high"))
    assert (row["alpaca_eval_n"], row["alpaca_eval_failed"]) == (0, 0)
    assert row["mt_bench_n"] > 0


def test_a_variant_whose_every_cell_failed_has_an_empty_row(tmp_path):
    folder = write_run(tmp_path / "run")
    for path in folder.glob("cells/dpo__n100__*/cell.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "failed", "error": "no"}))
    row = _row(tables.comparison(read_run(folder)), variant="dpo", budget=100)
    assert (row["n_seeds"], row["mt_bench_n"]) == (0, 0)
    assert math.isnan(row["mt_bench"])
    assert math.isnan(row["executed_flops"])


def test_the_bill_is_the_mean_over_seeds_and_memory_the_largest(folder, comparison):
    bills = [json.loads(path.read_text()) for path in folder.glob("cells/dspa__n300__s*/compute.json")]
    row = _row(comparison, variant="dspa", budget=300)
    assert row["executed_flops"] == pytest.approx(sum(b["executed_flops"] for b in bills) / 3)
    assert row["paper_flops"] == 8e13 * 300
    assert row["peak_bytes"] == max(b["peak_bytes"] for b in bills)
    assert math.isnan(_row(comparison, variant="dpo", budget=300)["paper_flops"])


def test_compute_gives_the_trained_share_and_one_row_for_a_variant_without_triples(run):
    compute = costs.compute(run)
    assert [row["budget"] for row in tables.rows_where(compute, variant="base")] == [0]
    assert _row(compute, variant="dpo", budget=300)["train_share"] == pytest.approx(100 * 49_152 / 802_000)


def test_stages_add_up_to_the_bill_and_operators_fall_in_flops(run, comparison):
    stages = tables.rows_where(costs.stages(run), variant="dspa", budget=300)
    executed = sum(stage["executed_flops"] for stage in stages)
    assert executed == pytest.approx(_row(comparison, variant="dspa", budget=300)["executed_flops"])
    flops = [row["flops"] for row in tables.rows_where(costs.operators(run), variant="dpo")]
    assert flops == sorted(flops, reverse=True)
    assert len(flops) == 6


def test_sweeps_have_the_comparisons_columns_and_the_swept_keys(run, comparison):
    sweeps = tables.sweeps(run)
    assert list(sweeps.columns) == [*comparison.columns, "alpha"]
    assert list(sweeps["alpha"]) == [0.2, 0.5, 1.0]
    assert list(sweeps["n_seeds"]) == [1, 1, 1]
    assert sweeps["mt_bench"].is_monotonic_increasing


def test_a_run_without_sweeps_has_an_empty_table_with_the_same_columns(tmp_path, comparison):
    folder = write_run(tmp_path / "run")
    for cell in folder.glob("cells/dspa@*"):
        cell.rename(folder / cell.name)
    sweeps = tables.sweeps(read_run(folder))
    assert list(sweeps.columns) == list(comparison.columns)
    assert sweeps.empty


def test_differences_are_item_by_item_and_holm_is_over_one_budget(folder, run):
    frame = tables.differences(run)
    row = _row(frame, variant="dspa", budget=300, metric="mt_bench")
    treated, base = _raw(folder, "dspa__n300__s*", "mt_bench"), _raw(folder, "base__n0__s*", "mt_bench")
    assert row["difference"] == pytest.approx(sum(a - b for a, b in zip(treated, base, strict=True)) / 144)
    assert row["low"] > 0
    family = tables.rows_where(frame, budget=300)
    smallest = min(family, key=lambda r: r["p"])
    assert smallest["p_holm"] == pytest.approx(min(1.0, smallest["p"] * len(family)))
    assert all(r["p_holm"] >= r["p"] for r in family)
    assert not tables.rows_where(frame, variant="base")


def test_breakdowns_split_the_mean_by_category_and_turn(run, comparison):
    turns = tables.rows_where(tables.breakdown(run, "turn"), variant="dspa", budget=300)
    assert [row["turn"] for row in turns] == [1, 2]
    whole = _row(comparison, variant="dspa", budget=300)["mt_bench"]
    assert sum(row["mean"] for row in turns) / 2 == pytest.approx(whole)
    categories = tables.rows_where(tables.breakdown(run, "category"), variant="dpo", budget=300)
    assert len(categories) == 8
    assert {row["category"]: row["failed"] for row in categories}["extraction"] == 3


def test_diagnostics_are_averaged_over_seeds(run):
    row = _row(tables.diagnostics(run), variant="dspa", budget=300, diagnostic="jaccard")
    assert row["mean"] == pytest.approx(0.41)
    assert row["n_seeds"] == SEEDS


def test_failures_are_listed_with_cell_item_and_reason(run):
    rows = tables.rows_where(tables.failures(run))
    assert len(rows) == 5  # one per done dpo cell; the failed cell has no records
    assert {row["item"] for row in rows} == {"86:2"}
    assert all("no rating" in row["reason"] for row in rows)


def _one(comparison, variant, **values):
    frame = comparison.copy()
    for column, value in values.items():
        frame.loc[(frame["variant"] == variant) & (frame["budget"] == 300), column] = value
    return frame


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(60.1, 70, "better"), (59.9, 70, "overlapping"), (10, 39.9, "worse"), (math.nan, math.nan, "missing")],
)
def test_a_side_is_taken_only_when_the_intervals_do_not_overlap(run, comparison, low, high, expected):
    frame = _one(comparison, "base", alpaca_eval_low=40.0, alpaca_eval_high=60.0)
    frame = _one(frame, "dspa", alpaca_eval_low=low, alpaca_eval_high=high)
    assert side(run, frame, "alpaca_eval", "dspa", 300) == expected


def test_less_over_refusal_is_better(run, comparison):
    frame = _one(comparison, "base", over_refusal_low=40.0, over_refusal_high=60.0)
    frame = _one(frame, "dspa", over_refusal_low=0.0, over_refusal_high=10.0)
    assert side(run, frame, "over_refusal", "dspa", 300) == "better"


def test_findings_name_who_is_better_and_who_is_not_separated(run, comparison):
    finding = findings(run, comparison, 300)[0]
    assert finding.metric.name == "mt_bench"
    assert set(finding.better) == {"dspa", "dspa_paper", "dpo"}
    assert set(finding.overlapping) == {"prompt", "static_sae"}


def test_only_multiple_choice_drops_of_more_than_two_points_are_flagged(run, comparison):
    frame = comparison[comparison["budget"] == 300]
    for variant, value in zip(VARIANTS, (90.0, 88.0, 87.9, 95.0, math.nan, 91.0), strict=True):
        frame = _one(frame, variant, sandbox_facts=value, sandbox_scenes=50.0, mt_bench=1.0)
    frame = pd.concat([frame, frame.assign(budget=100)])
    frame.loc[frame["budget"] == 100, "sandbox_facts"] = 90.0
    (drop,) = drops(run, frame)
    assert (drop.variant, drop.budget, drop.metric) == ("static_sae", 300, "sandbox_facts")
    assert drop.points == pytest.approx(2.1)
