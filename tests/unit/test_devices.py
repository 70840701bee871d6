"""Devices on paper: the package's table, the user's file, and what is refused."""

import re
from pathlib import Path

import pytest

from harness.compute.devices import Device, DeviceFile, Speed, known_devices

ROOT = Path(__file__).parents[2]
MINE = """
devices:
  slow:
    {what: a slow one, peak_tflops: {float32: 0.5}, source: here, training: 0.5, forward: 0.25, layer_seconds: 0.01}
"""


def test_every_device_of_the_package_has_a_source_and_every_assumption_has_one():
    known = known_devices()
    assert {"a100-40gb", "a100-80gb", "h100", "h100-pcie", "h200", "l4", "l40s", "rtx-4090"} == set(known.devices)
    for device in known.devices.values():
        assert "NVIDIA" in device.source
        assert None not in (device.memory_gb, device.bandwidth_gb_s)
        assert device.peak_tflops["bfloat16"] > device.peak_tflops["float32"]
    assert known.assumed is not None
    assert set(known.sources) == set(known.assumed.model_dump())


def test_the_table_in_the_documentation_is_the_packages():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for name, device in known_devices().devices.items():
        (row,) = re.findall(rf"^\| `{re.escape(name)}` \|.*$", page, re.MULTILINE)
        figures = [
            device.peak_tflops["bfloat16"],
            device.peak_tflops["float32"],
            device.memory_gb,
            device.bandwidth_gb_s,
        ]
        assert [float(one.replace(",", "")) for one in row.split("|")[2:6]] == figures


def test_rates_are_shares_of_the_peak_of_the_bases_dtype():
    speed = Speed.of("h100", "bfloat16")
    assert speed.training == pytest.approx(989.5e12 * 0.4)
    assert speed.bandwidth == pytest.approx(3.35e12 * 0.6)
    assert speed.memory == 80e9
    assert Speed.of("h100", "float32").forward == pytest.approx(67e12 * 0.4)


def test_a_step_of_decoding_takes_as_long_as_the_slowest_of_products_memory_and_launches():
    speed = Speed.of("h100", "bfloat16")
    assert speed.step_seconds(layers=2, flops=speed.forward, read=1) == pytest.approx(1)
    assert speed.step_seconds(layers=2, flops=1, read=3 * speed.bandwidth) == pytest.approx(3)
    assert speed.step_seconds(layers=2, flops=1, read=1) == pytest.approx(2 * 0.00122)


def test_a_file_adds_devices_with_shares_of_their_own(tmp_path):
    file = tmp_path / "devices.yaml"
    file.write_text(MINE)
    speed = Speed.of("slow", "float32", file)
    assert (speed.peak, speed.training, speed.forward) == (0.5e12, 0.25e12, 0.125e12)
    assert speed.memory == float("inf")
    assert speed.step_seconds(layers=3, flops=1, read=1e30) == pytest.approx(0.03)  # it does not wait for memory
    assert Speed.of("l4", "bfloat16", file).peak == 121e12  # the package's are still there


@pytest.mark.parametrize(
    ("name", "dtype", "said"),
    [
        ("h10", "bfloat16", "no device is called 'h10'; known: a100-40gb, .*did you mean 'h100'.*--devices FILE adds"),
        ("slow", "bfloat16", "device 'slow' has no peak_tflops for bfloat16, the base's dtype; it has: float32"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(tmp_path, name, dtype, said):
    file = tmp_path / "devices.yaml"
    file.write_text(MINE)
    with pytest.raises(ValueError, match=said):
        Speed.of(name, dtype, None if name == "h10" else file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("devices: {x: {what: a, source: b}}", "devices.x.peak_tflops: Field required"),
        ("devices: {x: {what: a, source: b, peak_tflops: {float32: 0}}}", "greater than 0"),
        ("devices: {x: {what: a, source: b, peak_tflops: {int8: 1}}}", "devices.x.peak_tflops.int8"),
        ("machines: {}", "machines: Extra inputs are not permitted"),
        ("devices: [", "is no YAML"),
        ("- a", "is no file of devices"),
    ],
)
def test_a_file_that_is_wrong_is_refused_naming_the_key(tmp_path, text, said):
    file = tmp_path / "devices.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        DeviceFile.read(file)
    with pytest.raises(ValueError, match="does not exist"):
        DeviceFile.read(tmp_path / "nowhere.yaml")


def test_the_devices_command_lists_them(call):
    code, out, _ = call("devices")
    assert code == 0
    assert "h100       NVIDIA H100 SXM, 80 GB: bfloat16 989.5, float16 989.5, float32 67 TFLOP/s, 3,350 GB/s" in out
    assert "layer_seconds 0.00122: " in out


def test_a_device_needs_a_peak():
    with pytest.raises(ValueError, match="peak_tflops"):
        Device(what="x", source="y", peak_tflops={})
