"""Operators of a fit: exact FLOPs by the counter, calls and seconds from sampled steps; and these steps' trace."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from harness.compute import Meter
from harness.compute.bill import Bill
from harness.compute.flops import count_flops
from harness.compute.profile import _MODE as MODE
from harness.compute.profile import Profiler, Sample, by_operator, step_name
from harness.compute.trace import trace_file
from tests.unit.test_compute import batches, forward, llama, train

ELEMENTWISE = {"aten::add", "aten::add_", "aten::mul", "aten::mul_"}
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"
KINDS = [("features", "forward"), ("features", "encode"), ("map", "map"), ("train", "train"), ("train", "tuning")]


def encode(rows: int) -> None:
    torch.addmm(torch.zeros(24), torch.ones(rows, 16), torch.ones(16, 24)).gt_(0)


def fit(meter: Meter) -> Bill:
    """Steps of five kinds: some of shapes that come again, one whose every shape is new, two that come once."""
    model = llama()
    with meter.stage("features"):
        for number, batch in enumerate(batches()):
            with meter.step(("forward", tuple(batch["input_ids"].shape)), tokens=1, kind="forward"):
                forward(model, batch)
            with meter.step(("encode", number), tokens=0, kind="forward"):
                encode(3 + number)
    with meter.stage("map"), meter.step(("map", 6), tokens=0, kind="forward"):
        torch.ones(5, 6).mm(torch.ones(6, 7))
    with meter.stage("train"):
        for batch in batches():
            with meter.step(((("input_ids", tuple(batch["input_ids"].shape)),),), tokens=1, kind="train"):
                train(model, batch)
        with meter.step(("tuning", 1), tokens=1, kind="forward"):
            forward(model, batches()[0])
    return meter.bill(method="any", n_triples=1)


def failing_step(meter: Meter) -> None:
    """A fit whose second step raises."""
    for error in (None, ZeroDivisionError()):
        with meter.stage("features"), meter.step(("forward", 1), tokens=1, kind="forward"):
            forward(llama(), batches()[0])
            if error is not None:
                raise error


@pytest.fixture(scope="module")
def bill() -> Bill:
    return fit(Meter(llama()))


@pytest.fixture
def profiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the steps that are profiled."""
    seen: list[str] = []
    sampling = Profiler.sampling

    def noted(self: Profiler, sample: Sample, name: str) -> Any:
        seen.append(f"{name} {sample.rank}")
        return sampling(self, sample, name)

    monkeypatch.setattr(Profiler, "sampling", noted)
    return seen


def test_one_step_of_every_kind_is_sampled_also_where_there_is_only_one(bill: Bill) -> None:
    assert list(dict.fromkeys((row.stage, row.step) for row in bill.operators)) == KINDS
    assert [stage.sampled_steps for stage in bill.stages] == [2, 1, 2]
    assert {(row.step, row.steps) for row in bill.operators} == {
        ("forward", 6), ("encode", 6), ("map", 1), ("train", 6), ("tuning", 1)
    }  # fmt: skip


def test_the_operators_flops_sum_to_each_stages_exact_total(bill: Bill) -> None:
    for stage in bill.stages:
        assert sum(row.flops for row in bill.operators if row.stage == stage.name) == stage.executed_flops > 0
    encoded = [row.flops for row in bill.operators if row.step == "encode"]
    assert encoded[0] == sum(2 * (3 + number) * 16 * 24 for number in range(6)) == sum(encoded)


def test_attention_has_its_flops_though_the_profiler_counts_none(bill: Bill) -> None:
    model = {row.operator: row for row in bill.operators if (row.stage, row.step) == ("features", "forward")}
    shares = {name: row.flops for name, row in model.items() if row.flops}
    assert set(shares) == {"aten::mm", ATTENTION}
    assert (model[ATTENTION].profiler_flops, model[ATTENTION].calls) == (0, 2 * 6)
    assert model[ATTENTION].seconds > 0


def test_what_the_profiler_counts_itself_is_scaled_to_the_whole_stage(bill: Bill) -> None:
    """The step that comes alone is its own sample: products are the same, elementwise work is the profiler's alone."""
    (product,) = [row for row in bill.operators if row.step == "map" and row.flops]
    assert product.flops == product.profiler_flops == 2 * 5 * 6 * 7
    for row in bill.operators:
        if row.operator in ELEMENTWISE:
            assert row.flops == 0
    (mm,) = [row for row in bill.operators if row.step == "train" and row.operator == "aten::mm"]
    assert mm.profiler_flops == pytest.approx(mm.flops, rel=0.1)


def test_a_kind_is_profiled_three_times_at_most_and_the_best_step_is_kept(profiled: list[str]) -> None:
    fit(Meter(llama()))
    assert profiled == [
        "features: forward 1", "features: encode 1", "features: forward 2", "features: encode 2",
        "features: forward 3", "map: map 1", "train: train 1", "train: train 2", "train: train 3", "train: tuning 1",
    ]  # fmt: skip


def test_a_step_that_raises_leaves_no_sample_and_no_trace(tmp_path: Path) -> None:
    with trace_file(tmp_path / "trace.json") as trace:
        meter = Meter(llama(), trace=trace)
        step = meter.step(("forward", 1), tokens=1, kind="forward")
        with meter.stage("features"), pytest.raises(ZeroDivisionError), step:
            raise ZeroDivisionError
        failed = meter.bill(method="any", n_triples=1)
        assert (failed.operators, failed.stages[0].sampled_steps, len(trace)) == ([], 0, 0)


@pytest.mark.parametrize(
    ("signature", "name"),
    [(("encode", 3), "encode"), ("word", "train"), ((), "train"), (((("ids", (2, 3)),), "adapter"), "train")],
)
def test_a_kind_is_the_word_that_its_signature_begins_with(signature: Any, name: str) -> None:
    assert step_name(signature, "train") == name


def test_bills_of_before_are_read_without_their_operators(bill: Bill) -> None:
    old = bill.model_dump(mode="json")
    row = {"stage": "train", "operator": "aten::mm", "calls": 1, "flops": 5, "seconds": 0.1}
    assert Bill.model_validate(old | {"operators": [row]}).operators == []
    assert Bill.model_validate(old) == bill


@pytest.fixture(scope="module")
def trace_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "new" / "trace.json"
    with trace_file(path) as trace:
        fit(Meter(llama(), trace=trace))
        assert not path.exists()
    return path


def test_the_trace_has_one_step_of_every_kind_under_its_name(trace_path: Path) -> None:
    assert [path.name for path in trace_path.parent.iterdir()] == ["trace.json"]
    events = json.loads(trace_path.read_text(encoding="utf-8"))["traceEvents"]
    named = {event["name"]: event for event in events if event.get("cat") == "user_annotation"}
    counting = " (while FLOPs are counted)"
    assert set(named) == {
        "features: forward", f"features: encode{counting}", f"map: map{counting}", "train: train",
        f"train: tuning{counting}",
    }  # fmt: skip
    inside, products = named["train: train"], [event for event in events if event["name"] == "aten::mm"]
    begin, end = inside["ts"], inside["ts"] + inside["dur"]
    assert sum(begin <= event["ts"] <= end for event in products) == 45  # 15 a pass, and twice that backward
    starts = [named[name]["ts"] for name in ("features: forward", "train: train", f"train: tuning{counting}")]
    assert starts == sorted(starts)


def test_arrows_of_two_steps_of_a_trace_do_not_share_numbers(tmp_path: Path) -> None:
    with trace_file(tmp_path / "trace.json") as trace:
        meter = Meter(llama(), trace=trace)
        for stage in ("first", "second"):
            with meter.stage(stage), meter.step("s", tokens=1, kind="train"):
                train(llama(), batches()[0])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    begins = [event["id"] for event in events if event["ph"] == "s"]
    assert len(begins) == len(set(begins)) > 2


def test_a_trace_is_never_overwritten_and_a_failed_fit_leaves_none(trace_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists already; traces are never overwritten"):
        trace_file(trace_path).__enter__()
    with pytest.raises(ZeroDivisionError), trace_file(tmp_path / "trace.json") as trace:
        failing_step(Meter(llama(), trace=trace))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("counted", [False, True])
def test_events_add_up_to_those_that_the_profiler_builds(counted: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 8))
    optimiser = torch.optim.AdamW(model.parameters())
    profiler = profile(activities=[ProfilerActivity.CPU], with_flops=True, record_shapes=True)
    with profiler, record_function("step"), count_flops() if counted else nullcontext():
        model(torch.randn(4, 8)).pow(2).sum().backward()
        optimiser.step()
    assert profiler.profiler is not None
    found = by_operator(profiler.profiler.kineto_results)
    expected: dict[str, list[float]] = {}

    def add(event: FunctionEvent, sign: int) -> None:
        total = expected.setdefault(event.name, [0, 0, 0.0])
        for index, figure in enumerate((1, event.flops or 0, event.self_cpu_time_total / 1e6)):
            total[index] += sign * figure

    for event in profiler.events():
        if event.is_user_annotation or event.name == MODE:
            continue
        add(event, 1)
        mode = event.cpu_parent
        if mode is not None and mode.name == MODE and mode.cpu_parent.name == event.name:
            add(mode.cpu_parent, -1)  # the event around the counter's is left out
    assert {name: [one.calls, one.flops] for name, one in found.items()} == {n: one[:2] for n, one in expected.items()}
    for name, (_, _, seconds) in expected.items():
        assert found[name].seconds == pytest.approx(seconds, rel=1e-6, abs=1e-8)
