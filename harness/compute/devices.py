"""Devices on paper: how fast they are and how much they hold, from data sheets, the user's file or a finished run."""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.files import read_text
from harness.plugins import alike

Dtype = Literal["float32", "bfloat16", "float16"]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Assumed(_Entry):
    """What is reached of a data sheet's figures: shares of the peak in passes with (``training``) and without
    (``forward``) a backward, the share of the memory bandwidth in ``decoding``, and ``layer_seconds``, what one layer
    takes for a step of decoding at least."""

    training: Share
    forward: Share
    decoding: Share
    layer_seconds: Annotated[float, Field(ge=0)]


class Device(_Entry):
    """One device. ``peak_tflops`` are 10^12 FLOP/s of dense products by dtype, sizes 10^9 bytes; ``source`` says whose
    figures these are. Without ``memory_gb`` nothing is too large for it, without ``bandwidth_gb_s`` (of one that was
    measured) decoding does not wait for memory. Shares that are None are as `Assumed`. ``price_an_hour`` is the
    user's, in the judge's currency."""

    what: str
    memory_gb: Positive | None = None
    bandwidth_gb_s: Positive | None = None
    peak_tflops: dict[Dtype, Positive] = Field(min_length=1)
    source: str
    price_an_hour: Annotated[float, Field(ge=0)] | None = None
    training: Share | None = None
    forward: Share | None = None
    decoding: Share | None = None
    layer_seconds: Annotated[float, Field(ge=0)] | None = None


class DeviceFile(_Entry):
    """A file of devices; ``sources`` says where each assumption is from."""

    assumed: Assumed | None = None
    sources: dict[str, str] = {}
    devices: dict[str, Device] = {}

    @classmethod
    def read(cls, path: Path) -> Self:
        """ValueError naming the file and every key that is wrong or missing."""
        try:
            return cls.model_validate(yaml.safe_load(read_text(path, "device")) or {})
        except yaml.YAMLError as problem:
            raise ValueError(f"{path} is no YAML: {' '.join(str(problem).split())}") from None
        except ValidationError as problem:
            found = [f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in problem.errors()]
            raise ValueError(f"{path} is no file of devices: {'; '.join(found)}; docs/scale.md shows one") from None


@cache
def known_devices() -> DeviceFile:
    """Those of the package."""
    return DeviceFile.read(Path(__file__).with_name("devices.yaml"))


def find_device(name: str, file: Path | None = None) -> tuple[Device, Assumed]:
    """The device called ``name`` in ``file`` or, where that has none, in the package, and what is assumed of it.

    ValueError for a name that is in neither, with those that are.
    """
    own, ours = DeviceFile() if file is None else DeviceFile.read(file), known_devices()
    devices: Mapping[str, Device] = ours.devices | own.devices
    if name not in devices:
        more = "" if file else "; --devices FILE adds others"
        raise ValueError(f"no device is called {name!r}; known: {', '.join(devices)}{alike(name, devices)}{more}")
    device, assumed = devices[name], own.assumed or ours.assumed
    assert assumed is not None
    shares = device.model_dump(include=set(Assumed.model_fields), exclude_none=True)
    return device, assumed.model_copy(update=shares)


class Speed(_Entry):
    """A device with all that is assumed of it, for one dtype. Rates are FLOP/s and bytes/s, ``memory`` is bytes."""

    name: str
    device: Device
    assumed: Assumed
    peak: float

    @classmethod
    def of(cls, name: str, dtype: str, file: Path | None = None) -> Self:
        """Of `find_device`; ValueError, too, for a dtype that the device has no peak of."""
        device, assumed = find_device(name, file)
        peaks: dict[str, float] = {str(kind): peak for kind, peak in device.peak_tflops.items()}
        if dtype not in peaks:
            raise ValueError(
                f"device {name!r} has no peak_tflops for {dtype}, the base's dtype; it has: {', '.join(peaks)}"
            )
        return cls(name=name, device=device, assumed=assumed, peak=peaks[dtype] * 1e12)

    @property
    def training(self) -> float:
        """FLOP/s of passes with a backward."""
        return self.peak * self.assumed.training

    @property
    def forward(self) -> float:
        """FLOP/s of passes without one."""
        return self.peak * self.assumed.forward

    @property
    def bandwidth(self) -> float:
        """Bytes a second that decoding reads."""
        whole = self.device.bandwidth_gb_s
        return math.inf if whole is None else whole * 1e9 * self.assumed.decoding

    @property
    def memory(self) -> float:
        """Bytes."""
        return math.inf if self.device.memory_gb is None else self.device.memory_gb * 1e9

    def step_seconds(self, *, layers: int, flops: float, read: float) -> float:
        """One step of decoding through ``layers`` that takes ``flops`` and reads ``read`` bytes (weights, KV cache).

        The longest of three: the products, the memory (Pope et al., arXiv 2211.05102, section 2; a roofline), and the
        host's launching of kernels, of which each layer has its share.
        """
        return max(flops / self.forward, read / self.bandwidth, layers * self.assumed.layer_seconds)
