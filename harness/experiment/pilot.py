"""What a run that is over says of speed: what its cells took, and its machine as a device for forecasts."""

from pathlib import Path

from harness.compute.devices import Device
from harness.experiment.forecast import Forecaster
from harness.experiment.outlook import asked
from harness.experiment.room import Room
from harness.experiment.suite import load_suite
from harness.method import METHODS
from harness.model.decoder import find_decoder
from harness.run_folder.cell import CellFolder
from harness.run_folder.layout import RunFolder


def cell_seconds(cell: CellFolder) -> float | None:
    """What tuning and fit of a finished cell took, the meter's own time included; None where that is not known."""
    bill, best = cell.bill, cell.tuning.best
    if bill is None or bill.declared is not None:
        return None
    return bill.seconds + bill.metering_seconds + (best.seconds if best is not None else 0.0)


def measured_device(path: Path) -> tuple[Device, list[str]]:
    """(the machine of the finished run in ``path``, sentences on how that was found).

    The peak is the faster of what its fits reached with and without a backward, in executed FLOPs a second. A layer's
    least time in decoding is what is left of the workers' time without fits, tunings and, at that speed, reading, as if
    every answer were as long as it may be. All of that holds for the run's own model, workers and judges.
    Cells that were copied from other runs do not count. ValueError for a run without bills, and for one not over.
    """
    folder = RunFolder(path)
    environment, plan = folder.environment, folder.plan
    suite = load_suite(path / "suite.yaml")
    work = {True: [0.0, 0.0], False: [0.0, 0.0]}
    fitted, cells = 0.0, 0
    for cell in plan.cells:
        state = folder.cell(cell.name).state
        if state is None or state.status != "done":
            raise ValueError(f"{str(path)!r}: cell {cell.name} is not over; finish the run, or take another")
        if state.origin is not None:  # the run's clock did not see it
            continue
        cells += 1
        bill = folder.cell(cell.name).bill
        fitted += cell_seconds(folder.cell(cell.name)) or 0.0
        for stage in bill.stages if bill is not None and bill.declared is None else ():
            trained = stage.name in METHODS[cell.method].trained_stages
            work[trained][0] += stage.executed_flops
            work[trained][1] += stage.seconds
    reached = {trained: flops / seconds for trained, (flops, seconds) in work.items() if flops and seconds}
    if not reached:
        raise ValueError(f"{str(path)!r} has no bill of a fit, so nothing can be said of its speed; take another run")
    peak = max(reached.values())
    forward, training = reached.get(False, peak), reached.get(True, peak)
    forecaster, room = Forecaster(suite.file.base), Room.of(suite.file.base)
    for benchmark in suite.benchmarks.values():
        benchmark.check()
    found = [asked(benchmark, room, forecaster.rates) for benchmark in suite.benchmarks.values()]
    reading = sum(one.read_flops for one in found if one is not None)
    steps = sum(each.times * each.tokens for one in found if one is not None for each in one.decodes)
    left = environment.seconds * suite.file.execution.workers - fitted - cells * reading / forward
    layers = len(find_decoder(forecaster.rates.model).layers)
    device = Device(
        what=f"{environment.gpu or environment.cpu}, as in the run {plan.name}",
        memory_gb=None if environment.gpu else round(environment.memory_bytes / suite.file.execution.workers / 1e9, 3),
        peak_tflops={suite.file.base.dtype: round(peak / 1e12, 6)},
        source=f"the bills of {cells} cells of {plan.name} ({environment.created[:10]})",
        training=round(training / peak, 4),
        forward=round(forward / peak, 4),
        layer_seconds=round(left / (cells * steps * layers), 7) if steps and left > 0 else None,
    )
    about = [
        f"{name}: {flops:.3g} FLOPs in {seconds:,.0f} s"
        for name, (flops, seconds) in (("training", work[True]), ("forward", work[False]))
    ]
    about.append(f"answers and all else: {left:,.0f} s for {cells * steps:,.0f} steps of decoding")
    if left <= 0:
        about.append("the run's clock says less than its fits took, so nothing is known of answers")
    return device, about
