"""reports.runfolder: what is read, and what is said about a folder that is not a run."""

import json
import shutil

import pytest
import yaml

from reports.runfolder import read_run
from tests.unit.synthetic_run import BUDGETS, SEEDS, VARIANTS, write_run


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", failed_cell="dpo__n100__s1", unfinished="static_sae__n300__s2")


def _first_records(folder):
    return folder / "cells" / "base__n0__s0" / "records" / "mt_bench.jsonl"


def test_cells_come_in_the_order_of_the_suite_then_budget_then_seed(folder):
    run = read_run(folder)
    assert list(run.variants) == list(VARIANTS)
    assert [c.name for c in run.cells_of("dspa", 300)] == [f"dspa__n300__s{seed}" for seed in range(SEEDS)]
    assert run.budgets == sorted(BUDGETS)


def test_a_variant_without_triples_belongs_to_every_budget_and_is_grouped_once(folder):
    run = read_run(folder)
    assert run.cells_of("base", 100) == run.cells_of("base", 300)
    assert [(budget, len(cells)) for budget, cells in run.groups("base")] == [(0, SEEDS)]


def test_swept_cells_are_apart_from_the_comparison(folder):
    run = read_run(folder)
    assert [cells[0].sweep for cells in run.sweeps] == [{"alpha": 0.2}, {"alpha": 0.5}, {"alpha": 1.0}]
    assert all(cell.sweep is None for cell in run.cells_of("dspa", 300))


def test_a_failed_cell_keeps_its_reason_and_a_cell_that_is_not_over_is_named(folder):
    run = read_run(folder)
    (failed,) = [cell for cell in run.cells if not cell.done]
    assert (failed.name, failed.error) == ("dpo__n100__s1", "ValueError: loss is not finite at step 12")
    assert run.unfinished == ("static_sae__n300__s2",)


def test_cells_that_were_never_begun_are_named_too(folder):
    for name in ("dspa__n300__s1", *(f"prompt__n0__s{seed}" for seed in range(SEEDS))):
        (folder / "cells" / name).rename(folder / name)
    assert set(read_run(folder).unfinished) == {"static_sae__n300__s2", "dspa__n300__s1", "prompt__*"}


def test_a_swept_cell_that_is_missing_is_named(folder):
    suite = yaml.safe_load((folder / "suite.yaml").read_text())
    next(v for v in suite["variants"] if v["name"] == "dspa")["sweep"] = {"alpha": [0.2, 0.5, 1.0, 2.0]}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
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


@pytest.mark.parametrize("name", ["suite.yaml", "environment.json", "cells/base__n0__s0/cell.json"])
def test_a_file_that_is_not_text_is_named(folder, name):
    (folder / name).write_bytes(b"\xff")
    with pytest.raises(ValueError, match=f"{name}: not UTF-8"):
        read_run(folder)


def test_metrics_know_their_benchmark(folder):
    metrics = read_run(folder).metrics
    assert metrics["mt_bench"] == "mt_bench"
    assert metrics["sandbox_facts"] == "multiple_choice"
    assert list(metrics)[:2] == ["mt_bench", "alpaca_eval"]


def test_the_first_variant_is_the_baseline_unless_the_suite_names_one(folder):
    suite = (folder / "suite.yaml").read_text()
    (folder / "suite.yaml").write_text(suite.replace("report:\n  baseline: base", "report:\n  baseline: prompt"))
    assert read_run(folder).baseline == "prompt"
    (folder / "suite.yaml").write_text(suite.replace("report:\n  baseline: base\n", ""))
    assert read_run(folder).baseline == "base"


@pytest.mark.parametrize("missing", ["suite.yaml", "environment.json"])
def test_a_folder_that_is_not_a_run_is_refused_with_what_it_lacks(folder, missing):
    (folder / missing).unlink()
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
    suite = (folder / "suite.yaml").read_text()
    (folder / "suite.yaml").write_text(suite.replace("name: dpo", "name: simpo"))
    with pytest.raises(ValueError, match=r"variant 'dpo' is not in suite\.yaml"):
        read_run(folder)


def test_environment_keys_that_the_report_needs_are_named_when_missing(folder):
    data = json.loads((folder / "environment.json").read_text())
    del data["judge"], data["triples"]
    (folder / "environment.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"environment\.json: missing judge, triples"):
        read_run(folder)
