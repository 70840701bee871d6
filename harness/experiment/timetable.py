"""A run on devices that are not here: what each cell takes of time, memory, disk and judges, and when all are done."""

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.compute.devices import Speed
from harness.compute.rates import Rate
from harness.experiment.bills import Group
from harness.experiment.forecast import Forecaster
from harness.experiment.outlook import (
    BYTES_A_RECORD,
    BYTES_A_TOKEN,
    INSTRUCTIONS,
    TRAINED_COPIES,
    Asked,
    Decode,
    asked,
    most_money,
)
from harness.experiment.pilot import cell_seconds
from harness.experiment.room import Room
from harness.experiment.tuning import parts_of
from harness.run_folder.layout import RunFolder

if TYPE_CHECKING:
    from harness.experiment.run import Prepared

_KEPT = 34
"""Bytes that a layer keeps for its backward pass, for each token and each number of the model's width, in 16 bits and
with fused attention: Korthikanti et al., arXiv 2205.05198, equation 1 without the attention scores."""


@dataclass(frozen=True)
class Costs:
    """What a cell is expected to take on one device.

    Seconds and FLOPs of a fit or tuning are None where its method predicts nothing; ``memory`` and ``disk`` are bytes,
    the first without those of SAEs and logits; ``money`` is at most what judges with prices take, None where none has.
    """

    fit_flops: float | None
    fit_seconds: float | None
    tuning_flops: float | None
    tuning_seconds: float | None
    answering_flops: float
    answering_seconds: float
    memory: float
    disk: float
    verdicts: int
    money: float | None

    @property
    def seconds(self) -> float:
        """Of all that is predicted."""
        return sum(part or 0.0 for part in (self.tuning_seconds, self.fit_seconds, self.answering_seconds))

    @property
    def flops(self) -> float:
        """Of all that is predicted."""
        return sum(part or 0.0 for part in (self.tuning_flops, self.fit_flops, self.answering_flops))


@dataclass(frozen=True)
class Lane:
    """The cells that one device runs, in order, and when it is done."""

    cells: tuple[str, ...]
    seconds: float


def placed(seconds: Mapping[str, float], devices: int) -> list[Lane]:
    """Every cell on the device that is free first, longest cells first (Graham 1969: at most 4/3 of the best
    possible)."""
    free = [(0.0, number) for number in range(devices)]
    cells: list[list[str]] = [[] for _ in range(devices)]
    for name in sorted(seconds, key=lambda name: (-seconds[name], name)):
        busy, number = heapq.heappop(free)
        cells[number].append(name)
        heapq.heappush(free, (busy + seconds[name], number))
    return [Lane(tuple(cells[number]), busy) for busy, number in sorted(free, key=lambda one: one[1])]


def compared(folder: RunFolder, groups: Sequence[Group], costs: Sequence[Costs]) -> dict[str, tuple[float, float]]:
    """Cell -> seconds (forecast, taken) of tuning and fit, of the cells that are over."""
    found = {}
    for group, one in zip(groups, costs, strict=True):
        left = {cell.name for cell in group.left}
        if not group.uses_triples or one.fit_seconds is None or one.tuning_seconds is None:
            continue
        for cell in group.cells:
            taken = None if cell.name in left else cell_seconds(folder.cell(cell.name))
            if taken:
                found[cell.name] = one.fit_seconds + one.tuning_seconds, taken
    return found


class Planner:
    """Costs of the cells of a suite on devices of one kind."""

    def __init__(self, prepared: "Prepared", forecaster: Forecaster, speed: Speed) -> None:
        self.speed = speed
        self._prepared, self._rates = prepared, forecaster.rates
        self._suite, self._base = prepared.suite, forecaster.base
        self._room = Room.of(prepared.suite.file.base)
        config: Any = self._rates.model.config.get_text_config()
        self._layers, self._width = int(config.num_hidden_layers), int(config.hidden_size)
        element = next(self._rates.model.parameters()).element_size()
        heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        head = int(getattr(config, "head_dim", None) or self._width // config.num_attention_heads)
        self._cached = 2 * self._layers * heads * head * element  # keys and values of a token, sliding windows ignored
        self._element = element
        self.weights = sum(p.numel() * p.element_size() for p in self._rates.model.parameters())

    @cached_property
    def asked(self) -> dict[str, Asked | None]:
        """What each benchmark asks in a cell; None where it does not say."""
        return {name: asked(one, self._room, self._rates) for name, one in self._suite.benchmarks.items()}

    @property
    def uncounted(self) -> list[str]:
        """Benchmarks that do not say what they ask."""
        return [name for name, one in self.asked.items() if one is None]

    def costs(self, group: Group) -> Costs:
        """Of each cell of a group."""
        fit = self._fit_seconds(group)
        tuning_flops, tuning, rated = self._tuning(group, fit)
        known = {name: one for name, one in self.asked.items() if one is not None}
        money = [
            most_money(judge, verdicts, tokens)
            for key, judge in self._suite.judges.items()
            for verdicts, tokens in self._judged(key, known, rated)
        ]
        verdicts = sum(v for key in self._suite.judges for v, _ in self._judged(key, known, rated))
        spent = [one for one in money if one is not None]
        return Costs(
            fit_flops=group.flops if group.uses_triples else 0.0,
            fit_seconds=fit,
            tuning_flops=tuning_flops,
            tuning_seconds=tuning,
            answering_flops=float(sum(one.flops for one in known.values())),
            answering_seconds=sum(self._answering(one) for one in known.values()),
            memory=self._memory(group, list(known.values())),
            disk=(self.weights if group.method.keeps_weights else 0)
            + sum(one.answers * BYTES_A_RECORD + one.tokens * BYTES_A_TOKEN for one in known.values()),
            verdicts=verdicts,
            money=sum(spent) if spent else None,
        )

    def _fit_seconds(self, group: Group) -> float | None:
        if not group.uses_triples:
            return 0.0
        if group.stages is None:
            return None
        trained = group.method.trained_stages
        return sum(
            flops / (self.speed.training if stage in trained else self.speed.forward)
            for stage, flops in group.stages.items()
        )

    def _tuning(self, group: Group, fit: float | None) -> tuple[float | None, float | None, tuple[int, int]]:
        """(FLOPs, seconds, (verdicts, tokens that they are on)) of the trials: their fits, at the fit's own rate, and
        scoring them and the base on the validation part."""
        bill, how = group.tuning, self._suite.file.tune
        if bill is None or group.triples is None:
            return 0.0, 0.0, (0, 0)
        part = parts_of(self._suite, group.cells[0], group.triples)[1]
        ids = [self._base.triple_ids(triple) for triple in part]
        body, head = self._rates.body(), self._rates.head
        once = sum(_scored(body, head, *map(len, one)) for one in ids)
        scored, seconds = (bill.trials + 1) * once, (bill.trials + 1) * once / self.speed.forward
        rated = (0, 0)
        if how.score == "judge" and how.max_new_tokens is not None:
            prompts = {triple.prompt[-1]["content"]: len(one[0]) for triple, one in zip(part, ids, strict=True)}
            new, count, length = how.max_new_tokens, len(prompts), sum(prompts.values())
            size = min(64, count)  # AlignedModel.generate's
            write = Decode(count / size, size, new, length / count)
            read = sum(body.of(1, tokens) for tokens in prompts.values())
            seconds += (bill.trials + 1) * (read / self.speed.forward + self._writing(write))
            scored += (bill.trials + 1) * (read + sum(body.of(1, new, past=n) + new * head for n in prompts.values()))
            rated = (bill.trials + 1) * count, (bill.trials + 1) * (length + count * (new + INSTRUCTIONS))
        if bill.flops is None or not group.flops or fit is None:
            return None, None, rated
        return bill.flops + scored, bill.flops * fit / group.flops + seconds, rated

    def _judged(self, key: str, known: Mapping[str, Asked], rated: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """(verdicts, tokens read for them) of a judge, of each thing that it looks at in a cell."""
        yield from (
            (one.verdicts, one.judged_tokens)
            for name, one in known.items()
            if key == "judge" or name in self._suite.judged_twice
        )
        if key == "judge":
            yield rated

    def _answering(self, one: Asked) -> float:
        return one.read_flops / self.speed.forward + sum(map(self._writing, one.decodes))

    def _writing(self, decode: Decode) -> float:
        """Seconds of decoding, at the length that the answers have on average while they are written."""
        past, body = decode.context + decode.tokens / 2, self._rates.body()
        flops = decode.rows * (body.per_token + body.per_pair * past + self._rates.head)
        read = self.weights + decode.rows * past * self._cached
        return decode.times * decode.tokens * self.speed.step_seconds(layers=self._layers, flops=flops, read=read)

    def _memory(self, group: Group, known: Iterable[Asked]) -> float:
        """The larger of what the fit and what the longest batch of answers hold."""
        decodes = [one for asks in known for one in asks.decodes]
        cache = max((one.rows * (one.context + one.tokens) * self._cached for one in decodes), default=0.0)
        fit, texts = 0.0, group.method.texts_at_once
        if group.method.keeps_weights:
            fit += TRAINED_COPIES * self.weights
        if texts and group.triples is not None:
            longest = max(sum(map(len, self._longer(triple))) for triple in group.triples.triples)
            texts = min(texts, 2 * len(group.triples.triples))
            fit += texts * longest * self._width * self._layers * _KEPT * self._element / 2
        return self.weights + max(fit, cache)

    def _longer(self, triple: Any) -> tuple[list[int], list[int]]:
        prompt, chosen, rejected = self._base.triple_ids(triple)
        return prompt, max(chosen, rejected, key=len)


def _scored(body: Rate, head: int, prompt: int, chosen: int, rejected: int) -> int:
    behind = sum(body.of(1, length, past=prompt) + length * head for length in (chosen, rejected))
    return body.of(1, prompt) + behind


def _is_own(folder: RunFolder, cell: str) -> bool:
    """Whether the run made the cell itself."""
    state = folder.cell(cell).state
    return state is not None and state.origin is None


@dataclass(frozen=True)
class Timetable:
    """The cells of a run that are to do, on ``devices`` devices; ``costs`` are those of a cell of each group.

    ``copied`` are cells that come from other runs. ``checked`` are those that are over: seconds (forecast, taken) of
    tuning and fit; ``whole`` are those of all work of a run that is over, on all its workers.
    """

    speed: Speed
    devices: int
    groups: Sequence[Group]
    costs: Sequence[Costs]
    uncounted: Sequence[str]
    copied: Collection[str] = ()
    checked: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    whole: tuple[float, float] | None = None

    @cached_property
    def cells(self) -> dict[str, Costs]:
        """Cell -> costs, of those to do."""
        costly = zip(self.groups, self.costs, strict=True)
        return {cell.name: costs for group, costs in costly for cell in group.left if cell.name not in self.copied}

    @cached_property
    def lanes(self) -> list[Lane]:
        """What each device does."""
        return placed({name: costs.seconds for name, costs in self.cells.items()}, self.devices)

    @cached_property
    def critical(self) -> Lane:
        """The device that is done last, whose cells are the critical path."""
        return max(self.lanes, key=lambda lane: lane.seconds)

    @property
    def seconds(self) -> float:
        """Of all cells one after another."""
        return sum(costs.seconds for costs in self.cells.values())

    @property
    def unpredicted(self) -> list[str]:
        """Cells whose fit or tuning is not in the figures."""
        return [name for name, one in self.cells.items() if None in (one.fit_seconds, one.tuning_seconds)]

    @property
    def too_large(self) -> list[str]:
        """Cells that need more memory than one device has."""
        return [name for name, costs in self.cells.items() if costs.memory > self.speed.memory]

    @classmethod
    def of(
        cls, prepared: "Prepared", groups: Sequence[Group], forecaster: Forecaster, speed: Speed, devices: int
    ) -> "Timetable":
        """The run of a prepared suite whose cells are in ``groups``."""
        planner = Planner(prepared, forecaster, speed)
        costs = [planner.costs(group) for group in groups]
        whole, folder = None, prepared.folder
        if not any(group.left for group in groups):
            workers = prepared.suite.file.execution.workers
            own = [sum(_is_own(folder, cell.name) for cell in group.cells) for group in groups]
            forecast = sum(count * one.seconds for count, one in zip(own, costs, strict=True))
            whole = forecast, folder.environment.seconds * workers
        checked = compared(folder, groups, costs)
        return cls(speed, devices, groups, costs, planner.uncounted, prepared.copied, checked, whole)
