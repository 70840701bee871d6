"""``dspa-bench devices``: the devices that a forecast knows, and the machine of a finished run as one more."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import AsJSON, command_group, print_json

commands = command_group()


@commands.command(epilog="Example: `dspa-bench devices --measured runs/pilot --name ours > devices.yaml`")
def devices(
    measured: Annotated[
        Path | None,
        typer.Option(
            help="A finished run: print a device file with its machine, as fast as its bills say.", metavar="RUN"
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="What that device is called.")] = "measured",
    as_json: AsJSON = False,
) -> None:
    """List the devices that `run --dry-run --on N --device NAME` knows, with figures, assumptions and their sources."""
    if measured is not None:
        _measured(measured, name, as_json)
        return
    from harness.compute.devices import known_devices

    known = known_devices()
    if as_json:
        print_json(known.model_dump(mode="json", exclude_none=True))
        return
    for key, device in known.devices.items():
        peaks = ", ".join(f"{dtype} {peak:g}" for dtype, peak in device.peak_tflops.items())
        print(f"{key:10} {device.what}: {peaks} TFLOP/s, {device.bandwidth_gb_s:,g} GB/s ({device.source})")
    print()
    assert known.assumed is not None
    for key, value in known.assumed.model_dump().items():
        print(f"{key} {value:g}: {known.sources[key]}")


def _measured(run: Path, name: str, as_json: bool) -> None:
    import yaml

    from harness.experiment.pilot import measured_device

    device, about = measured_device(run)
    found = {"devices": {name: device.model_dump(exclude_none=True)}}
    if as_json:
        print_json(found | {"about": about})
        return
    for line in about:
        print(f"# {line}")
    print(yaml.safe_dump(found, sort_keys=False, allow_unicode=True), end="")
