"""Many fits by one group of two processes, which takes less than a group for each."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.tensor import DTensor

from baselines.sharded import Sharded
from harness.compute.ranks import ALONE, Ranks
from harness.compute.sitting import Sitting
from harness.data.refs import ModelRef
from harness.data.triples import Budget, Triple
from harness.experiment.fitting import fit
from harness.method import MethodConfig
from harness.model.aligned import AlignedModel
from harness.run_folder.training import Curve


@dataclass(frozen=True)
class Case:
    """What is fitted, on how many of the triples, with which limit; ``sharded``, where there are several processes."""

    method: MethodConfig
    n: int
    flops_limit: int | None = None
    sharded: bool = False


def outcome(case: Case, base: AlignedModel, triples: list[Triple], folder: Path, ranks: Ranks = ALONE) -> Any:
    """(bill, params, [(loss, gradient norm)], tensors, parameters held in each sharded training) of a fit."""
    folder.mkdir(exist_ok=True)
    sitting = Sitting(Curve(folder / "training.jsonl"), folder / "fitting", minutes=0, writes=ranks.rank == 0)
    how = {"flops_limit": case.flops_limit, "sample_profile": False, "sitting": sitting, "ranks": ranks}
    with _noting_held() as held:
        aligned = fit(case.method, base, Budget(tuple(triples[: case.n]), 0), 3, **how)
    kept = aligned.delta_tensors() if aligned.intervention is None else aligned.intervention.tensors()
    tensors = {name: tensor.detach().clone() for name, tensor in kept.items()}
    curve = [(step.loss, step.grad_norm) for step in sitting.curve.steps]
    return aligned.bill, dict(aligned.params), curve, tensors, held


@contextmanager
def _noting_held() -> Iterator[list[int]]:
    """How many parameters of the trained model this process has, for each training that is sharded."""
    held: list[int] = []
    prepare = Sharded._prepare_for_training

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = prepare(self, *args, **kwargs)
        parts = [p.to_local() for p in self.model.parameters() if isinstance(p, DTensor)]
        held.extend([sum(part.numel() for part in parts)] if parts else [])
        return found

    with patch.object(Sharded, "_prepare_for_training", noting):
        yield held


def fit_all(rank: int, cases: dict[str, Case], model: str, triples: list[Triple], folder: Path) -> None:
    """One of the two processes; rank 0 leaves the outcomes, or what was raised, in ``folder``."""
    from torch import distributed as dist
    from tqdm import tqdm

    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in own.items()} | {"GLOO_SOCKET_IFNAME": "lo"})
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    base = AlignedModel.from_base(ModelRef(path=model))
    for name, case in cases.items():
        found = outcome(case, base, triples, folder / name, Ranks(rank, 2, case.sharded))
        if rank == 0:
            torch.save(found, folder / name / "outcome.pt")
            print(name, flush=True)
    dist.destroy_process_group()
