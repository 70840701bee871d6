"""Forecasts on devices that are not here: what a cell takes, in which order cells run, no weights needed."""

import json
import shutil

import pytest

from harness.compute.devices import Speed
from harness.data.refs import ModelRef
from harness.experiment.bills import group_bills
from harness.experiment.forecast import Forecaster
from harness.experiment.outlook import Asked, Decode, asked
from harness.experiment.room import Room
from harness.experiment.run import prepare
from harness.experiment.timetable import Planner, Timetable, placed
from tests.conftest import D_MODEL, N_LAYERS
from tests.toys import write_suite

MINE = {
    "devices": {
        "slow": {
            "what": "a slow one", "source": "made up", "peak_tflops": {"float32": 0.001}, "layer_seconds": 0.5,
            "training": 0.5, "forward": 1.0, "memory_gb": 1, "price_an_hour": 3600.0,
        }
    }
}  # fmt: skip
CAA = {"name": "caa", "method": "caa", "params": {"layer": 2}, "tune": {"scale": [0.5, 1.0, 2.0]}}
SFT = {"name": "sft", "method": "sft", "params": {"tuning": "full", "batch_size": 4}}


@pytest.fixture
def written(tmp_path, tiny_folders, triples_file):
    """(suite, device file): a method with and one without a backward, one of them tuned, MT-Bench and a paid judge."""
    (tmp_path / "mt.jsonl").write_text('{"question_id": 81, "category": "writing", "turns": ["w1", "w2"]}\n')
    saes = {key: {"path": str(tiny_folders[folder])} for key, folder in (("early", "input"), ("late", "output"))}
    dspa = {"name": "dspa", "method": "dspa", "params": {"input_sae": "early", "output_sae": "late"}}
    dspa["params"] |= {"k_diff": 4, "k_prompt": 4}
    suite = write_suite(
        tmp_path / "suite",
        tiny_folders["llama"],
        judge={"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "judge"}
        | {"price_in": 1.0, "price_out": 2.0},
        triples={"path": str(triples_file)},
        saes=saes,
        variants=[{"name": "base", "method": "base"}, CAA, SFT, dspa],
        report={"baseline": "base"},
        benchmarks=[{"name": "mt_bench", "questions": str(tmp_path / "mt.jsonl"), "max_new_tokens": 6}],
        budgets=[8, 16],
        seeds=2,
        tune={"trials": 3, "search": "grid"},
    )
    (tmp_path / "devices.yaml").write_text(json.dumps(MINE))
    return suite, tmp_path / "devices.yaml"


@pytest.fixture
def planned(written, tmp_path):
    prepared = prepare(written[0], tmp_path / "run", on_paper=True)
    forecaster = Forecaster(prepared.suite.file.base)
    groups = group_bills(prepared, forecaster)
    return prepared, forecaster, groups, Speed.of("slow", "float32", written[1])


def test_longest_cells_are_placed_first_each_on_the_device_that_is_free_first():
    lanes = placed({"a": 3.0, "b": 5.0, "c": 2.0, "d": 2.0}, 2)
    assert [lane.cells for lane in lanes] == [("b", "d"), ("a", "c")]
    assert [lane.seconds for lane in lanes] == [7.0, 5.0]
    assert [lane.cells for lane in placed({"a": 1.0}, 3)] == [("a",), (), ()]


def test_fits_take_their_flops_at_the_rate_of_their_kind(planned):
    prepared, forecaster, groups, speed = planned
    planner = Planner(prepared, forecaster, speed)
    for group in groups:
        costs = planner.costs(group)
        rate = {"base": 1.0, "sft": 0.5e9, "caa": 1e9, "dspa": 1e9}[group.point]
        assert costs.fit_seconds == pytest.approx((group.flops or 0.0) / rate)
        assert (costs.tuning_seconds == 0) == (group.point != "caa")
    (caa,) = [group for group in groups if (group.point, group.budget) == ("caa", 16)]
    costs = planner.costs(caa)
    assert costs.tuning_flops is not None and caa.tuning is not None and caa.tuning.flops is not None
    assert costs.tuning_seconds == pytest.approx(costs.tuning_flops / 1e9), "trials are fitted and scored at one rate"
    assert costs.tuning_flops > caa.tuning.flops


def test_answers_take_the_reading_of_prompts_and_the_steps_of_every_batch(planned):
    prepared, forecaster, groups, speed = planned
    planner = Planner(prepared, forecaster, speed)
    (found,) = planner.asked.values()
    assert found is not None
    assert [(one.times, one.rows, one.tokens) for one in found.decodes] == [(1, 1, 6), (1, 1, 6)]
    first, second = found.decodes
    assert second.context == first.context + 6
    expected = found.read_flops / 1e9 + 2 * 6 * N_LAYERS * 0.5  # far longer than the products of so small a model
    assert planner.costs(groups[0]).answering_seconds == pytest.approx(expected)


def test_batches_of_answers_are_counted(tiny_folders):
    from harness.benchmark import BenchmarkConfig, Request

    class Plain(BenchmarkConfig):
        batch_size: int = 4

        def requests(self):
            return [Request("w1 w2 w3", generated=5, count=10.0), Request("w1 w2", ("w3", "w4 w5"), count=2.0)]

    ref = ModelRef(path=str(tiny_folders["llama"]))
    rates = Forecaster(ref).rates
    found = asked(Plain(), Room.of(ref), rates)
    assert isinstance(found, Asked)
    assert found.decodes == (Decode(2.5, 4, 5, 3.0),)
    assert (found.answers, found.tokens, found.verdicts) == (10, 50, 0)
    body, head = rates.body(), rates.head
    behind = body.of(1, 1, past=2) + head + body.of(1, 2, past=2) + 2 * head
    assert found.read_flops == 10 * (body.of(1, 3) + head) + 2 * (body.of(1, 2) + behind)


def test_full_fits_hold_copies_of_the_weights_and_activations_of_the_longest_texts(planned):
    prepared, forecaster, groups, speed = planned
    planner = Planner(prepared, forecaster, speed)
    memory = {group.point: planner.costs(group).memory for group in groups if group.budget in (0, 16)}
    cached = 2 * N_LAYERS * 2 * 8 * 4  # keys and values, heads of 8 numbers of 4 bytes
    longest = planner.asked["mt_bench"].decodes[-1]  # type: ignore[union-attr]
    assert memory["base"] == planner.weights + (longest.context + 6) * cached
    assert memory["caa"] == memory["base"]
    (sft,) = [group for group in groups if (group.point, group.budget) == ("sft", 16)]
    ids = [forecaster.base.triple_ids(triple) for triple in sft.triples.triples]
    tokens = max(len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in ids)
    assert memory["sft"] == 5 * planner.weights + 2 * 4 * tokens * D_MODEL * N_LAYERS * 34 * 2


def test_without_weights_a_plan_is_made_and_a_run_is_refused(written, tiny_folders, tmp_path, call):
    bare = tmp_path / "bare"
    for name in ("llama", "input", "output"):
        shutil.copytree(tiny_folders[name], bare / name, ignore=shutil.ignore_patterns("*.safetensors"))
    folders = ["--set", f"base.path={bare / 'llama'}", "--set", f"saes.early.path={bare / 'input'}"]
    folders += ["--set", f"saes.late.path={bare / 'output'}", "--set", "execution.device=cuda:77"]
    command = ["run", written[0], *folders, "--out", tmp_path / "run", "--dry-run"]
    code, out, err = call(*command, "--on", 3, "--device", "slow", "--devices", written[1])
    assert (code, err) == (0, "")
    assert "note: planned on paper: the weights of base and SAEs were not looked at" in out
    assert "forecast of a cell on one a slow one" in out
    assert "all 14 cells to do: " in out
    assert "on 3 of them, longest cells first: " in out and "critical path: " in out
    assert "judges: 28 verdicts, at most" in out
    assert "price of the devices while they work: " in out
    assert "not in the hours: judges, loading models" in out
    assert not (tmp_path / "run").exists()
    code, _, err = call(*command)
    assert code == 2
    assert "has no weights in safetensors" in err


def test_json_carries_plan_and_forecast(written, tmp_path, call):
    command = ["run", written[0], "--out", tmp_path / "run", "--dry-run", "--json"]
    code, out, _ = call(*command)
    plain = json.loads(out)
    assert (code, plain["cells"], plain["to_do"]) == (0, 14, 14)
    assert "forecast" not in plain
    code, out, _ = call(*command, "--on", 2, "--device", "slow", "--devices", written[1])
    found = json.loads(out)
    forecast = found.pop("forecast")
    assert {key: found[key] for key in plain if key != "notes"} == {k: v for k, v in plain.items() if k != "notes"}
    assert len(forecast["cells"]) == 14
    assert sum(cell["seconds"] for cell in forecast["cells"].values()) == pytest.approx(forecast["device_seconds"])
    assert forecast["device_seconds"] / 2 <= forecast["seconds"] <= forecast["device_seconds"]
    assert sorted(name for lane in forecast["lanes"] for name in lane["cells"]) == sorted(forecast["cells"])
    assert forecast["verdicts"] == 28
    assert forecast["money"] == pytest.approx(sum(cell["money"] for cell in forecast["cells"].values()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "h100"], "--device is about a plan, without a run; give --dry-run, too"),
        (["--json"], "--json is about a plan"),
        (["--dry-run", "--on", "2"], "need --device NAME"),
        (["--dry-run", "--device", "h1000"], "no device is called 'h1000'; known: a100-40gb"),
    ],
)
def test_options_that_make_no_sense_are_refused(written, call, options, said):
    code, out, err = call("run", written[0], *options)
    assert (code, out) == (2, "")
    assert said in err


def test_no_lane_ends_later_than_the_critical_one(planned):
    prepared, forecaster, groups, speed = planned
    timetable = Timetable.of(prepared, groups, forecaster, speed, 3)
    assert timetable.critical.seconds == max(lane.seconds for lane in timetable.lanes) >= timetable.seconds / 3
    assert (len(timetable.cells), timetable.checked, timetable.whole) == (14, {}, None)
