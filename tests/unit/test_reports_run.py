"""reports.run: what is read, and what is said about a folder that is not a run."""

import json
import shutil
import subprocess
import sys

import pytest

from harness.run_folder import Plan
from reports.run import read_run
from tests.unit.synthetic_run import BUDGETS, PLAN, SEEDS, VARIANTS, cell_of, write_run


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", failed_cell="dpo__n100__s1", unfinished="static_sae__n300__s2")


def _first_records(folder):
    return folder / "cells" / "base__n0__s0" / "records" / "mt_bench.jsonl"


def test_cells_come_in_the_order_of_the_suite_then_budget_then_seed(folder):
    run = read_run(folder)
    assert list(run.plan.labels) == VARIANTS
    assert [c.planned.name for c in run.cells_of("dspa", 300)] == [f"dspa__n300__s{seed}" for seed in range(SEEDS)]
    assert run.plan.budgets == tuple(sorted(BUDGETS))


def test_a_variant_without_triples_belongs_to_every_budget_and_is_grouped_once(folder):
    run = read_run(folder)
    assert run.cells_of("base", 100) == run.cells_of("base", 300)
    assert [(budget, len(cells)) for name, budget, cells in run.fitted() if name == "base"] == [(0, SEEDS)]


def test_swept_cells_are_apart_from_the_comparison(folder):
    run = read_run(folder)
    assert [cells[0].planned.sweep for cells in run.sweeps] == [{"alpha": 0.2}, {"alpha": 0.5}, {"alpha": 1.0}]
    assert all(cell.planned.sweep is None for cell in run.cells_of("dspa", 300))


def test_a_failed_cell_keeps_its_reason_and_a_cell_that_is_not_over_is_named(folder):
    run = read_run(folder)
    (failed,) = [cell for cell in run.cells if not cell.done]
    assert (failed.planned.name, failed.state.error) == ("dpo__n100__s1", "ValueError: loss is not finite at step 12")
    assert run.unfinished == ("static_sae__n300__s2",)


def test_cells_that_were_never_begun_are_named_too(folder):
    for name in ("dspa__n300__s1", *(f"prompt__n0__s{seed}" for seed in range(SEEDS))):
        (folder / "cells" / name).rename(folder / name)
    missing = {f"prompt__n0__s{seed}" for seed in range(SEEDS)}
    assert set(read_run(folder).unfinished) == {"static_sae__n300__s2", "dspa__n300__s1", *missing}


def test_a_swept_cell_that_is_missing_is_named(folder):
    plan = Plan.read(folder / "plan.json")
    new = cell_of(PLAN.variants[4], 300, 0, {"alpha": 2.0})
    plan.model_copy(update={"cells": (*plan.cells, new)}).write(folder / "plan.json")
    shutil.rmtree(folder / "cells" / "dspa@alpha=0.5__n300__s0")
    expected = {"static_sae__n300__s2", "dspa@alpha=0.5__n300__s0", "dspa@alpha=2.0__n300__s0"}
    assert set(read_run(folder).unfinished) == expected


def test_a_run_is_complete_when_no_cell_or_record_failed_and_none_is_missing(tmp_path):
    folder = write_run(tmp_path / "run")
    assert not read_run(folder).complete, "the synthetic dpo has failed records"
    for path in folder.glob("cells/*/records/*.jsonl"):
        lines = path.read_text().splitlines()
        path.write_text("".join(line + "\n" for line in lines if json.loads(line)["error"] is None))
    assert read_run(folder).complete
    records = folder / "cells" / "base__n0__s0" / "records" / "safety.jsonl"
    records.rename(tmp_path / "kept")
    assert read_run(folder).unmeasured == [("base__n0__s0", "safety")]
    assert not read_run(folder).complete
    (tmp_path / "kept").rename(records)
    (folder / "cells" / "base__n0__s0" / "cell.json").unlink()
    assert not read_run(folder).complete
    assert not read_run(write_run(tmp_path / "failed", failed_cell="base__n0__s0")).complete


@pytest.mark.parametrize("name", ["plan.json", "environment.json", "cells/base__n0__s0/cell.json"])
def test_a_file_that_is_not_text_is_named(folder, name):
    (folder / name).write_bytes(b"\xff")
    with pytest.raises(ValueError, match=f"{name}: not UTF-8"):
        read_run(folder)


def test_metrics_are_those_that_have_a_record_in_the_order_of_the_suite(folder):
    for path in folder.glob("cells/*/records/alpaca_eval.jsonl"):
        path.unlink()
    metrics = read_run(folder).metrics
    assert list(metrics) == ["mt_bench", "sandbox_facts", "sandbox_scenes", "safety_rate", "over_refusal"]
    assert metrics["mt_bench"].unit == "rating 1-10"
    assert not metrics["over_refusal"].higher_is_better


def test_a_record_of_a_metric_that_its_benchmark_does_not_declare_is_refused(folder):
    path = _first_records(folder)
    path.write_text(path.read_text().replace('"metric": "mt_bench"', '"metric": "over_refusal"', 1))
    with pytest.raises(ValueError, match=r"'mt_bench' has a record of metric 'over_refusal', which plan\.json does"):
        read_run(folder)


@pytest.mark.parametrize("missing", ["suite.yaml", "environment.json", "cells"])
def test_a_folder_that_is_not_a_run_is_refused_with_what_it_lacks(folder, missing):
    (folder / missing).rename(folder.parent / missing)
    with pytest.raises(ValueError, match=f"is not a run folder: it has no {missing}; give the --out folder"):
        read_run(folder)


def test_a_broken_line_is_refused_with_its_place(folder):
    path = _first_records(folder)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], '{"item": "half', *lines[3:]]))
    with pytest.raises(ValueError, match=r"mt_bench\.jsonl:3: not a record"):
        read_run(folder)


def test_a_value_beside_an_error_is_not_a_record(folder):
    path = _first_records(folder)
    record = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(record | {"error": "no"}) + "\n")
    with pytest.raises(ValueError, match=r"mt_bench\.jsonl:1: not a record: .*value must be None"):
        read_run(folder)


def test_an_item_recorded_twice_is_refused(folder):
    path = _first_records(folder)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[4]]) + "\n")
    with pytest.raises(ValueError, match=r"mt_bench\.jsonl:49: item '83:1' of mt_bench is already on line 5"):
        read_run(folder)


def test_a_done_cell_without_its_bill_is_refused(folder):
    (folder / "cells" / "base__n0__s0" / "compute.json").unlink()
    with pytest.raises(ValueError, match=r"compute\.json is missing"):
        read_run(folder)


def test_a_cell_of_another_suite_is_refused(folder):
    plan = Plan.read(folder / "plan.json")
    cells = tuple(cell for cell in plan.cells if cell.variant != "dpo")
    plan.model_copy(update={"cells": cells}).write(folder / "plan.json")
    with pytest.raises(ValueError, match=r"dpo__n100__s0: plan\.json has no such cell; it belongs to another run"):
        read_run(folder)


def test_environment_keys_that_the_report_needs_are_named_when_missing(folder):
    data = json.loads((folder / "environment.json").read_text())
    del data["judge"], data["triples"]
    (folder / "environment.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"environment\.json: missing judge, triples"):
        read_run(folder)


def test_reading_a_run_needs_neither_torch_nor_pandas(folder):
    heavy = "('torch', 'transformers', 'pandas', 'matplotlib')"
    read = f"from reports.run import read_run; read_run({str(folder)!r})"
    code = f"import sys; {read}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
