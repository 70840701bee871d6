"""The meter of one fit: stages, steps, peak memory, and the bill at the end."""

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from harness.compute.bill import (
    PAPER_FIGURES,
    Bill,
    Declared,
    MemorySource,
    StageBill,
    forward_flops,
    paper_flops,
    train_flops,
)
from harness.compute.flops import count_flops, flops_by_operator
from harness.compute.forms import Counts, Form
from harness.compute.memory import Peak, read_peak, reset_peak, resident_bytes
from harness.compute.profile import Profiler, Sample, Tally, step_name
from harness.compute.ranks import ALONE, Ranks
from harness.compute.sitting import Sitting
from harness.compute.trace import Trace
from harness.pulse import beat

T = TypeVar("T")
Kind = Literal["forward", "train"]


@dataclass
class _Stage:
    name: str
    executed_flops: int = 0
    forward_tokens: int = 0
    train_tokens: int = 0
    steps: int = 0
    tallies: dict[str, Tally] = field(default_factory=dict)
    seconds: float = 0.0
    peak: Peak = field(default_factory=lambda: Peak(0))


_EXACT = ("name", "executed_flops", "forward_tokens", "train_tokens", "steps")
"""Of a stage: what does not depend on the machine."""
_SET_BY_CALLER = ("train_params", "optimiser_steps", "epochs")


class Meter:
    """Meters one fit.

    ::

        meter = Meter(base.model)
        with meter.running():                            # seconds and peak memory of the whole fit
            with meter.stage("features"):                # everything inside is billed to the stage
                for batch in batches:
                    with meter.step(signature_of(batch), tokens=n, kind="forward"):
                        model(**batch)
        bill = meter.bill(method="dspa", n_triples=300)

    FLOPs of a step are counted once per new (stage, kind, signature) and added from a table afterwards, so
    the total is exact while nearly every step runs unmetered. The more batches share their padded length,
    the fewer steps are counted; where the caller says what the FLOPs are linear in (``form``), a handful is (`Counts`).
    In each stage one step of every kind (see `step_name`) goes through the torch
    profiler for the operator breakdown (with ``sample_profile``): the first that is not being counted, or the second
    at all where no signature comes twice, or the only one (counting is then in its seconds, not in its FLOPs). With a
    ``trace`` the events of these steps go there.

    ``model`` is the base model before any adapter: its parameters are the P of the formula figure and
    ``total_params``. ``optimiser_steps``, ``train_params`` and ``epochs`` (passes over the triples, where the
    method may end before or after the planned ones) are for the caller to set, and so is the cost that is ``declared``
    for what was made elsewhere. Peak memory is that of the process, so meter one fit a process at a time.

    ``flops_limit`` is the bill at which the fit is to stop. The meter only says when it is reached
    (`exhausted`); to stop there, between two optimiser steps, is up to the method.

    A method that trains notes its curve and keeps checkpoints by ``sitting``, if there is one; `state` and `restore`
    are for it. What it does `aside` is on no bill.

    Where several processes (``ranks``) share the fit, each has a meter. What all do alike each bills for itself; what
    is `divided` among them is on the bill of each whole. So all bills say the same, and what one process would have
    executed; seconds and memory are a process's own.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        sample_profile: bool = True,
        flops_limit: int | None = None,
        trace: Trace | None = None,
        sitting: Sitting | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        if flops_limit is not None and flops_limit < 1:
            raise ValueError(f"flops_limit must be at least 1, got {flops_limit}")
        self.total_params = sum(p.numel() for p in model.parameters()) if model is not None else None
        self.flops_limit = flops_limit
        self.train_params = 0
        self.optimiser_steps = 0
        self.epochs: float | None = None
        self.declared: Declared | None = None
        self.sitting = sitting
        self.ranks = ranks
        self._divided: list[tuple[Any, ...]] | None = None
        self._sample_profile = sample_profile
        self._flops: dict[Hashable, dict[str, int]] = {}
        self._counts: dict[Hashable, Counts] = {}
        self._profiler = Profiler(trace)
        self._peak_source: MemorySource = "VmHWM"
        self._stages: dict[str, _Stage] = {}
        self._stage: _Stage | None = None
        self._running = False
        self._in_step = False
        self._seconds = self._aside = 0.0
        self._began = self._stage_began = 0.0
        self._start_bytes: int | None = None
        self._peak = Peak(0)

    @property
    def executed_flops(self) -> int:
        """FLOPs of all steps that are over."""
        return sum(stage.executed_flops for stage in self._stages.values())

    @property
    def exhausted(self) -> bool:
        """Whether the bill has reached ``flops_limit``; never without one."""
        return self.flops_limit is not None and self.executed_flops >= self.flops_limit

    @contextmanager
    def running(self) -> Iterator[None]:
        """Bound the fit: seconds and peak memory cover all that happens inside, also between the stages.

        A stage entered outside is a run of its own, so a fit without this is billed for its stages alone.
        """
        if self._running:
            raise ValueError("the meter is already running; one `with meter.running():` bounds a whole fit")
        if self._start_bytes is None:
            self._start_bytes = resident_bytes()
        self._running = True
        self._peak_source = reset_peak()
        self._began = self._clock()
        try:
            yield
        finally:
            self._seconds += self._clock() - self._began
            self._peak |= read_peak()
            self._running = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Bill all that happens inside to the stage ``name``; stages may be entered again but do not nest."""
        if self._stage is not None:
            raise ValueError(f"stage {name!r} inside stage {self._stage.name!r}: stages do not nest")
        with nullcontext() if self._running else self.running():
            stage = self._stage = self._stages.setdefault(name, _Stage(name))
            self._peak |= read_peak()
            reset_peak()
            self._stage_began = self._clock()
            try:
                yield
            finally:
                stage.seconds += self._clock() - self._stage_began
                stage.peak |= read_peak()
                self._peak |= stage.peak
                self._stage = None

    @contextmanager
    def step(
        self, signature: Hashable, *, tokens: int, kind: Kind, reference_tokens: int = 0, form: Form | None = None
    ) -> Iterator[None]:
        """Bill one forward or one training step (forward and backward) to the current stage.

        ``signature`` must determine the step's FLOPs within the stage (see `signature_of`), and so must ``form``, in
        numbers that they are linear in, if it is given. ``tokens`` are
        the real (unpadded) tokens it processes; ``reference_tokens`` those that a training step passes
        forward only besides, as through DPO's reference model. They enter the formula figure alone. A step
        that raises is not billed. Steps do not nest.
        """
        stage = self._stage
        if stage is None:
            raise ValueError("a step outside a stage cannot be billed; wrap it in `with meter.stage(name):`")
        if self._in_step:
            raise ValueError("a step inside a step would be billed twice: steps do not nest")
        if kind not in get_args(Kind):
            raise ValueError(f"unknown kind of step {kind!r}; allowed: {', '.join(get_args(Kind))}")
        if tokens < 0 or reference_tokens < 0:
            raise ValueError(f"token counts must be 0 or more, got {tokens} and {reference_tokens}")
        key = (stage.name, kind, signature)
        known, name = self._flops.get(key), step_name(signature, kind)
        counts = None if form is None else self._counts.setdefault((stage.name, kind, name), Counts())
        if known is None and counts is not None and form is not None:
            known = counts.of(form)
        tally = stage.tallies.setdefault(name, Tally())
        sample = tally.wanted(counted=known is None) if self._sample_profile else None
        self._in_step = True
        try:
            with nullcontext() if sample is None else self._profiler.sampling(sample, f"{stage.name}: {name}"):
                if known is None:
                    with count_flops() as counter:
                        yield
                    known = self._flops[key] = flops_by_operator(counter)
                    if counts is not None and form is not None:
                        counts.learn(form, known)
                else:
                    yield
        finally:
            self._in_step = False
        beat()
        self._bill(stage.name, name, kind, known, tokens, reference_tokens, sample=sample)
        if self._divided is not None:
            self._divided.append((stage.name, name, kind, known, tokens, reference_tokens))

    def _bill(
        self,
        stage_name: str,
        name: str,
        kind: Kind,
        flops: Mapping[str, int],
        tokens: int,
        reference_tokens: int,
        *,
        sample: Sample | None = None,
        steps: int = 1,
    ) -> None:
        stage = self._stages[stage_name]
        stage.tallies.setdefault(name, Tally()).add(flops, sample, steps=steps)
        stage.executed_flops += sum(flops.values())
        stage.steps += steps
        trained = tokens if kind == "train" else 0
        stage.train_tokens += trained
        stage.forward_tokens += tokens - trained + reference_tokens

    @contextmanager
    def divided(self, *, steps: bool = False) -> Iterator[None]:
        """What each process does inside is on the bill of all when the block ends.

        Each takes its rows of the same steps or, with ``steps``, takes steps of its own.
        """
        if self.ranks.size == 1:
            yield
            return
        self._divided = mine = []
        try:
            yield
        finally:
            self._divided = None
        for rank, theirs in enumerate(self.ranks.gather(mine)):
            for one in theirs if rank != self.ranks.rank else ():
                self._bill(*one, steps=int(steps))

    def shared(self, batches: Iterable[T]) -> Iterator[T]:
        """This process's part of ``batches``, every `Ranks.size`-th; what is done with them is `divided`.

        `Ranks.collect` then brings together what each has made of its own.
        """
        with self.divided(steps=True):
            yield from islice(batches, self.ranks.rank, None, self.ranks.size)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done inside takes none of the fit's seconds: they are in ``metering_seconds``."""
        begin = self._clock()
        try:
            yield
        finally:
            self._aside += self._clock() - begin

    def state(self) -> dict[str, Any]:
        """All that was billed until now, for `restore`: in plain Python types, as torch.load reads without pickle."""
        now = self._clock()
        stages = [
            {
                **{name: getattr(stage, name) for name in _EXACT},
                "seconds": stage.seconds + (now - self._stage_began if stage is self._stage else 0.0),
                "tallies": {name: tally.state() for name, tally in stage.tallies.items()},
            }
            for stage in self._stages.values()
        ]
        return {
            **{name: getattr(self, name) for name in _SET_BY_CALLER},
            "seconds": self._seconds + (now - self._began if self._running else 0.0),
            "aside": self._profiler.overhead + self._aside,
            "stages": stages,
            "flops": [[*key, known] for key, known in self._flops.items()],  # type: ignore[misc]
            "counts": [[*key, counts.state()] for key, counts in self._counts.items()],  # type: ignore[misc]
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the `state` of an earlier sitting of the same fit, in the midst of the same stage.

        FLOPs, tokens and steps are then those of an uninterrupted fit: what this sitting had to do again is not billed
        twice. Seconds are those of both sittings, what was done again included; peaks of memory are this sitting's.
        """
        for name in _SET_BY_CALLER:
            setattr(self, name, state[name])
        self._seconds += state["seconds"]
        self._aside += state["aside"]
        self._began -= state["aside"]
        self._stage_began -= state["aside"]  # the clock goes back by as much
        for saved in state["stages"]:
            stage = self._stages.setdefault(saved["name"], _Stage(saved["name"]))
            for name in _EXACT:
                setattr(stage, name, saved[name])
            stage.seconds += saved["seconds"]
            stage.tallies = {name: Tally.of(tally) for name, tally in saved["tallies"].items()}
        self._flops = {(stage, kind, signature): known for stage, kind, signature, known in state["flops"]}
        self._counts = {tuple(key): Counts.of_state(counts) for *key, counts in state["counts"]}

    def bill(self, *, method: str, n_triples: int, predicted: dict[str, int] | None = None) -> Bill:
        """The bill of all that ran, beside what was ``predicted`` by stage.

        Raises ValueError before or while the meter runs, or without a model.
        """
        if self._running:
            raise ValueError("the bill is not final while the meter runs; leave running() and stage() first")
        if self._start_bytes is None:
            raise ValueError("nothing was metered; put the fit into `with meter.running():`")
        if self.total_params is None:
            raise ValueError("the formula figure needs the number of parameters: make it with `Meter(model)`")
        n_params = self.total_params
        stages = [
            StageBill(
                name=stage.name,
                executed_flops=stage.executed_flops,
                formula_flops=forward_flops(n_params, stage.forward_tokens) + train_flops(n_params, stage.train_tokens),
                seconds=stage.seconds,
                peak_bytes=stage.peak.host,
                tokens=stage.forward_tokens + stage.train_tokens,
                steps=stage.steps,
                sampled_steps=sum(tally.sample is not None for tally in stage.tallies.values()),
            )
            for stage in self._stages.values()
        ]
        return Bill(
            method=method,
            n_triples=n_triples,
            executed_flops=self.executed_flops,
            formula_flops=sum(s.formula_flops for s in stages),
            paper_flops=paper_flops(method, n_triples) if method in PAPER_FIGURES else None,
            predicted=predicted,
            flops_limit=self.flops_limit,
            epochs=self.epochs,
            seconds=self._seconds,
            metering_seconds=self._profiler.overhead + self._aside,
            start_bytes=self._start_bytes,
            peak_bytes=self._peak.host,
            peak_source=self._peak_source,
            cuda_peak_bytes=self._peak.cuda,
            tokens=sum(s.tokens for s in stages),
            optimiser_steps=self.optimiser_steps,
            train_params=self.train_params,
            total_params=n_params,
            stages=stages,
            declared=self.declared,
            operators=[
                row
                for stage in self._stages.values()
                for name, tally in stage.tallies.items()
                for row in tally.rows(stage.name, name)
            ],
        )

    def _clock(self) -> float:
        """Seconds, standing still while the profiler starts and stops; waits for queued CUDA work."""
        if torch.cuda.is_initialized():
            for device in range(torch.cuda.device_count()):
                torch.cuda.synchronize(device)
        return time.perf_counter() - self._profiler.overhead - self._aside
