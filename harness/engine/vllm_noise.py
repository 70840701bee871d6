"""Seeds of requests in vLLM on a CPU: the noise of a token depends on its request's seed and its place alone.

vLLM draws a token after every part of a prompt, and takes back all draws but the last part's by the offset of the
request's generator. Generators of a CPU have none, so that a seeded request whose prompt comes in parts ends in an
error. Here they are seeded anew for every place, so there is nothing to take back, nor for what is prefilled again.
"""

import hashlib
from typing import Any

import torch


class PlacedNoise(torch.Generator):
    """The generator of a request with ``seed``, for one place after the other."""

    _seed: int

    def __new__(cls, seed: int) -> "PlacedNoise":
        made = super().__new__(cls)  # torch would take the seed for a device
        made._seed = seed
        return made

    def move_to(self, place: int) -> None:
        """The next draws are those of the token at ``place`` of its request."""
        digest = hashlib.sha256(f"{self._seed}:{place}".encode()).digest()
        self.manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def get_offset(self) -> int:
        """vLLM asks before it takes a draw back."""
        return 0

    def set_offset(self, offset: int) -> None:
        """There is nothing to take back."""


def install() -> None:
    """Have every V1 model runner of this process that runs on a CPU draw so."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as Runner  # type: ignore

    if hasattr(Runner, _MARK):
        return
    sample = Runner._sample

    def placed_sample(self: Any, *args: Any, **more: Any) -> Any:
        if self.device.type == "cpu":
            _place(self)
        return sample(self, *args, **more)

    setattr(Runner, _MARK, True)
    Runner._sample = placed_sample


def _place(runner: Any) -> None:
    batch, start = runner.input_batch, runner.query_start_loc.np
    for index, generator in batch.generators.items():
        noise = generator if isinstance(generator, PlacedNoise) else PlacedNoise(generator.initial_seed())
        noise.move_to(int(batch.num_computed_tokens_cpu[index]) + int(start[index + 1] - start[index]))
        batch.generators[index] = noise


_MARK = "_dspa_bench_noise"
