"""What the perf commands can be asked for."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from dspa.perf.synthetic import SHAPES

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class PerfOptions:
    """Common to both commands; ``ratios`` are sizes of one SAE (encoder and decoder) relative to the model."""

    shape: str = "quarter-gemma-2-2b"
    ratios: tuple[float, ...] = (0.03, 0.13)
    rounds: int = 30
    warmup: int = 1
    dtype: Dtype = "float32"
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"unknown model shape {self.shape!r}; known: {', '.join(SHAPES)}")
        if self.dtype not in get_args(Dtype):
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {', '.join(get_args(Dtype))}")
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"SAE/model size ratios must be positive, got {self.ratios}")
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"device {self.device!r} is not there: torch sees no CUDA device; use cpu")
