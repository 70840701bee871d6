"""Hashes of content: what a result is keyed by must not depend on where something lies."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def hash_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    """Add a tensor's name, dtype, shape and bytes to a hashlib digest."""
    digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) over named tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        hash_tensor(digest, name, tensors[name])
    return digest.hexdigest()
