"""Fits over several processes of this machine, as accelerate's launcher would start them; rank 0's result counts."""

import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from tqdm import tqdm

from harness.compute.ranks import Ranks
from harness.compute.sitting import Sitting
from harness.data.refs import ModelRef
from harness.data.triples import Budget
from harness.experiment.fitting import fit
from harness.experiment.sections import PerFitSection
from harness.heap import give_back_memory
from harness.method import MethodConfig
from harness.model.aligned import AlignedModel
from harness.pulse import beat, heard_by
from harness.run_folder.training import Curve

_PATIENCE = timedelta(days=30)
"""How long a process waits for the others: whether they live, their parent watches."""
_GRACE_SECONDS = 2.0
"""How long after one process's complaint another may be found dead, which is then the reason for it."""
_BEAT_SECONDS = 0.5


def fit_over(
    per_fit: PerFitSection,
    method: MethodConfig,
    base: AlignedModel,
    budget: Budget | None,
    seed: int,
    *,
    flops_limit: int | None = None,
    predicted: dict[str, int] | None = None,
    sample_profile: bool = True,
    sitting: Sitting | None = None,
) -> AlignedModel:
    """`fit`, shared by as many new processes as ``per_fit`` says; one, or a method without triples, is fitted here.

    Each has the base model on a device of its own (on the CPU as many threads as this process). Losses, bill and result
    are those of one process, but for rounding (docs/devices.md). Raises ValueError as `fit`, and RuntimeError where a
    process died or failed otherwise; none is left behind.
    """
    bounds = {"flops_limit": flops_limit, "predicted": predicted, "sample_profile": sample_profile}
    processes = per_fit.processes
    if processes == 1 or budget is None:
        return fit(method, base, budget, seed, **bounds, sitting=sitting)
    method.check_processes(processes, sharded=per_fit.sharded)
    with tempfile.TemporaryDirectory(prefix="dspa-bench-fit-") as scratch, _moved_away(base):
        # Beside the checkpoints there is room for all weights.
        result = Path(scratch if sitting is None else sitting.folder) / "artifact"
        rmtree(result, ignore_errors=True)
        job = _Job(
            arguments=(method, budget, seed),
            bounds=bounds,
            ref=base.base.pinned,
            device=base.device.type,
            size=processes,
            sharded=per_fit.sharded,
            threads=torch.get_num_threads(),
            scratch=Path(scratch),
            result=result,
            sitting=None if sitting is None else (sitting.curve.path, sitting.folder, sitting.minutes),
            environment=environment(per_fit),
        )
        _Group(job, sitting).run()
        fitted = AlignedModel.load(result, base=base.base)
        rmtree(result)
    return fitted


def check_per_fit(per_fit: PerFitSection, device: str) -> None:
    """Raise ValueError for devices that are not there, and for settings of accelerate that no fit here heeds."""
    processes = per_fit.processes
    environment(per_fit)
    if processes == 1:
        if per_fit.sharded:
            raise ValueError("sharded without processes: weights are dealt out to several; give them, or leave it out")
        return
    kind, _, number = device.partition(":")
    if number:
        raise ValueError(
            f"{processes} processes need a device each, and device {device!r} is one; write {kind!r} for the first "
            f"{processes}, or choose them by gpu_ids of the accelerate_config"
        )
    if kind == "cuda" and torch.cuda.device_count() < processes:
        raise ValueError(
            f"{processes} processes need a device each, and this machine has {torch.cuda.device_count()}; give at most "
            "as many processes"
        )
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"several processes work on cpu and cuda, not on {device!r}; set processes to 1")


def environment(per_fit: PerFitSection) -> dict[str, str]:
    """The variables by which accelerate's launcher hands the settings of a file to its processes.

    Raises ValueError for a file that it cannot read, and for settings under which a fit would be another one, or that
    belong to trainings which are not done here.
    """
    config, processes = per_fit.accelerate_config, per_fit.processes
    if config is None:
        return {}
    if processes == 1:
        raise ValueError("accelerate_config without processes: it is for several; give processes, or leave it out")
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    if not config.is_file():
        raise ValueError(f"there is no file {str(config)!r}; `accelerate config --config_file FILE` writes one")
    try:
        found: Any = load_config_from_file(str(config))
    except Exception as problem:  # YAML, JSON and accelerate each raise their own
        reason = " ".join(str(problem).split())[:300]
        raise ValueError(f"accelerate cannot read its settings {str(config)!r}: {reason}") from None
    kind = str(getattr(found.distributed_type, "value", found.distributed_type))
    others = ("processes", found.num_processes), ("num_machines", found.num_machines)
    for complaint in (
        kind not in ("NO", "MULTI_CPU", "MULTI_GPU")
        and f"distributed_type {kind} is not supported (NO, MULTI_CPU, MULTI_GPU are); to deal out the trained weights "
        "(FSDP), give per_fit.sharded: true instead",
        others[0][1] not in (-1, None, 1, processes)
        and f"num_processes is {others[0][1]}, but the suite says processes: {processes}; make them equal",
        (others[1][1] or 1) > 1 and f"num_machines is {others[1][1]}; the processes of a fit are on one machine",
        (found.mixed_precision or "no") not in ("no", "None")
        and f"mixed_precision {found.mixed_precision} would make another model; set bf16 of the method instead",
    ):
        if complaint:
            raise ValueError(f"accelerate_config {str(config)!r}: {complaint}")
    before = dict(os.environ)
    arguments = ["--config_file", str(config), "--num_processes", str(processes), "--main_process_port", "0", "-"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return {name: value for name, value in prepare_multi_gpu_env(args).items() if before.get(name) != value}


@dataclass(frozen=True)
class _Job:
    """What the processes need to know; ``sitting``: curve, folder and minutes of the caller's."""

    arguments: tuple[MethodConfig, Budget, int]
    bounds: Mapping[str, Any]
    ref: ModelRef
    device: str
    size: int
    sharded: bool
    threads: int
    scratch: Path
    result: Path
    sitting: tuple[Path, Path, float] | None
    environment: Mapping[str, str]

    def output(self, rank: int) -> Path:
        """What a process prints."""
        return self.scratch / f"rank-{rank}.txt"


@dataclass
class _Group:
    """The processes of one fit and what they say."""

    job: _Job
    sitting: Sitting | None
    running: dict[Connection, tuple[int, BaseProcess]] = field(default_factory=dict)

    def run(self) -> None:
        """From start to end; raises the first reason why there is no result."""
        try:
            for rank in range(self.job.size):
                here, there = get_context("spawn").Pipe(duplex=False)
                process = get_context("spawn").Process(target=_work, args=(rank, self.job, there), name=f"rank {rank}")
                process.start()
                there.close()
                self.running[here] = rank, process
            working = dict(self.running)
            while working:
                for pipe in wait(list(working)):
                    if self._over(pipe):
                        working.pop(pipe)  # type: ignore[arg-type]
            for _, process in self.running.values():
                process.join(_GRACE_SECONDS)
        finally:
            for _, process in self.running.values():
                process.kill()
            for _, process in self.running.values():
                process.join()
            self._show_output()

    def _over(self, pipe: Any) -> bool:
        """Hear one message; whether it was the process's last."""
        rank, process = self.running[pipe]
        try:
            kind, *news = pipe.recv()
        except (EOFError, OSError):
            process.join()
            raise RuntimeError(self._death(rank, process.exitcode)) from None
        if kind == "error":
            raise self._reason(*news)
        beat()
        if kind == "tell" and self.sitting is not None:
            self.sitting.tell(*news)
        return kind == "over"

    def _reason(self, problem: Exception) -> Exception:
        """A process that has lost another complains too, of a broken connection: the lost one is the reason."""
        until = time.monotonic() + (_GRACE_SECONDS if not isinstance(problem, ValueError) else 0)
        while time.monotonic() < until:
            for rank, process in self.running.values():
                if process.exitcode not in (None, 0):
                    return RuntimeError(self._death(rank, process.exitcode))
            time.sleep(0.05)
        return problem

    def _death(self, rank: int, code: int | None) -> str:
        cause = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        hint = "; not enough memory for so many processes?" if code == -signal.SIGKILL else ""
        return f"process {rank + 1} of the {self.job.size} of this fit died ({cause}{hint}); the others were ended"

    def _show_output(self) -> None:
        """On this process's stderr, which in a run is the cell's log."""
        for rank in range(self.job.size):
            with suppress(OSError):
                if text := self.job.output(rank).read_text(encoding="utf-8", errors="replace"):
                    print(f"process {rank + 1} of {self.job.size}:\n{text}", file=sys.stderr)


def _work(rank: int, job: _Job, pipe: Any) -> None:
    """The body of one process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends its processes
    threading.Thread(target=_die_with_parent, daemon=True).start()
    output = os.open(job.output(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    os.environ.update(job.environment)
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job.size, "LOCAL_WORLD_SIZE": job.size}
    os.environ.update({name: str(value) for name, value in own.items()})
    os.environ.setdefault("OMP_NUM_THREADS", str(job.threads))  # or accelerate sets it, and warns
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are here, whatever this machine's name resolves to
    torch.set_num_threads(job.threads)
    # tqdm's own lock is a named semaphore, which a killed process would leave to Python's resource tracker's warnings.
    tqdm.set_lock(threading.RLock())
    say = _Voice(pipe)
    try:
        _fit(rank, job, say)
    except Exception as problem:
        # Not yet gone: the others would complain of that. Their parent ends all of them.
        traceback.print_exc()
        say("error", _sendable(problem))
        threading.Event().wait()
    say("over")


def _fit(rank: int, job: _Job, say: "_Voice") -> None:
    from torch import distributed as dist

    device = job.device if job.device == "cpu" else f"{job.device}:{rank}"
    if job.device != "cpu":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "gloo" if job.device == "cpu" else "cpu:gloo,cuda:nccl",
        init_method=f"file://{job.scratch / 'rendezvous'}",
        rank=rank,
        world_size=job.size,
        timeout=_PATIENCE,
    )
    sitting = None
    if job.sitting is not None:
        curve, folder, minutes = job.sitting
        tell = lambda text, step: say("tell", text, step)  # noqa: E731
        sitting = Sitting(Curve(curve), folder, minutes=minutes, tell=tell, writes=rank == 0)
    ranks = Ranks(rank, job.size, job.sharded)
    base = AlignedModel.from_base(job.ref, device=device).derive(encoded={})
    with heard_by(say.alive):
        method, budget, seed = job.arguments
        aligned = fit(method, base, budget, seed, **job.bounds, sitting=sitting, ranks=ranks)
    if rank == 0:
        aligned.save(job.result)
    ranks.gather(None)
    dist.destroy_process_group()


class _Voice:
    """What a process tells its parent; steps of work may be done in any thread."""

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._lock, self._said = pipe, threading.Lock(), 0.0

    def __call__(self, *message: object) -> None:
        with self._lock:
            self._said = time.monotonic()
            self._pipe.send(message)

    def alive(self) -> None:
        """Say that work goes on, if nothing was said for a while."""
        if time.monotonic() - self._said >= _BEAT_SECONDS:
            self("alive")


def _sendable(problem: Exception) -> Exception:
    """``problem``, or what stands for it where it cannot be pickled and made again."""
    try:
        pickle.loads(pickle.dumps(problem))
    except Exception:  # classes of any library
        return RuntimeError(f"{type(problem).__name__}: {problem}")
    return problem


def _die_with_parent() -> None:
    """Nobody would watch what a killed parent leaves behind."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _moved_away(base: AlignedModel) -> Iterator[None]:
    """A GPU is for the processes: meanwhile this one's base model is in the host's memory."""
    device = base.device
    if device.type == "cpu":
        yield
        return
    model: Any = base.model
    model.to("cpu")
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        give_back_memory()
        model.to(device)
