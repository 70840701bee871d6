"""`dspa-bench perf steering`: decoding with DSPA against no steering and against the usual ways to edit latents."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from dspa.diagnostics import edited_share
from dspa.method import DSPA
from dspa.perf.naive import LayerHook, error_term_hook, full_encode_hook
from dspa.perf.subject import Given, MadeUp, PerfOptions
from dspa.perf.synthetic import SAEPair
from dspa.steering import DSPASteering
from harness.compute import Meter
from harness.model.aligned import AlignedModel
from harness.model.batching import pad_rows, positions_of
from harness.model.decoder import find_decoder
from harness.model.residuals import early_residuals
from harness.model.turns import narrowed
from harness.speed.report import Figure, Section

UNSTEERED, OWN, MAX = "unsteered", "DSPA, scale own", "DSPA, scale max"
ALWAYS = "DSPA, scale max, every token edited"
FULL, ERROR_TERM = "full encode + decode", "SAELens error term"
_GOALS = {OWN: 0.98, MAX: 0.96}
_GOAL_RATIO = 0.03  # the size of Gemma-2-2B's 16k SAEs, for which the goals are set
SHORT = MadeUp(prompt_tokens=36, answer_tokens=20)
"""What is measured on unless something is given."""
_FIT = 40  # triples
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


class Decoding:
    """Prompts passed once; each round then decodes ``steps`` given tokens one by one and takes them back.

    The tokens are given instead of chosen, so that every candidate sees the same ones. Each Decoding hooks a twin of
    the model that shares its weights, so that several can be open at a time.
    """

    def __init__(
        self,
        aligned: AlignedModel,
        prompts: Sequence[Sequence[int]],
        tokens: Int[Tensor, "batch all_steps"],
        *,
        steps: int,
        hook: tuple[int, LayerHook] | None = None,
    ) -> None:
        # The same modules again around the same weights: hooks on one are none on the other.
        weights = (*aligned.model.parameters(), *aligned.model.buffers())
        self._model = copy.deepcopy(aligned.model, {id(tensor): tensor for tensor in weights})
        self._steps = steps
        self._blocks = cycle(tokens.to(aligned.device).split(steps, dim=1))
        if hook is not None:
            layer, function = hook
            find_decoder(self._model).layers[layer].register_forward_hook(function)
        self._session = aligned.derive(model=self._model).steering()
        self._steering = self._session.__enter__()
        ids, mask = pad_rows(prompts, aligned.chat.pad_id, side="left", device=aligned.device)
        self._mask = torch.cat([mask, mask.new_ones(len(mask), steps)], dim=1)
        self._positions = positions_of(self._mask)
        self._length = ids.shape[1]
        self._cache = DynamicCache(config=self._model.config)
        self._forward(ids, 0, self._length)

    def tally(self) -> dict[str, Any]:
        """What was counted so far; empty where nothing is steered."""
        return (None if self._steering is None else self._steering.counts()) or {}

    def close(self) -> None:
        """Take the hooks away."""
        self._session.__exit__(None, None, None)

    @contextmanager
    def opened(self) -> Iterator[Callable[[], list[Float[Tensor, "batch vocabulary"]]]]:
        """A candidate of `harness.speed.compare.compare`; its work gives the logits of the decoded steps."""
        block = next(self._blocks)

        def work() -> list[Tensor]:
            start = self._length
            return [self._forward(block[:, i : i + 1], start + i, start + i + 1) for i in range(self._steps)]

        yield work
        self.rewind()

    def rewind(self) -> None:
        """Take the decoded steps back."""
        self._cache.crop(-self._steps)

    @torch.no_grad()
    def _forward(self, ids: Tensor, first: int, last: int) -> Float[Tensor, "batch vocabulary"]:
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask[:, :last],
            position_ids=self._positions[:, first:last],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def launches_and_waits(work: Callable[[], object], steps: int) -> tuple[float, float]:
    """(kernel launches, host synchronisations) per step of ``work``, which runs twice; needs CUDA."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    launches = sum(event.count for event in seen.key_averages() if event.key in _LAUNCHES)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    waits = sum("synchroniz" in str(warning.message) for warning in told)
    return launches / steps, waits / steps


@dataclass(frozen=True)
class SteeringOptions(PerfOptions):
    """``steps``: decode steps of a candidate in one round; ``batches``: rows decoded together."""

    subject: MadeUp | Given = SHORT
    batches: tuple[int, ...] = (1, 16)
    steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.batches or min(self.batches) < 1 or self.steps < 1:
            raise ValueError(f"batches and steps must be at least 1, got {self.batches} and {self.steps}")


@torch.no_grad()
def measure_steering(options: SteeringOptions, *, tell: Callable[[str], object] = print) -> list[Section]:
    """One section per pair of SAEs and batch; ``tell`` is called with what is being done."""
    work = options.opened(_FIT + sum(options.batches))
    triples = work.triples(_FIT)
    tell(work.model)
    sections = []
    with TemporaryDirectory() as folder:
        for saes in work.saes(Path(folder)):
            tell(f"SAEs: {saes.about}; {saes.size_ratio:.3f} of the model; fit on {len(triples)} triples")
            method = DSPA(input_sae=saes.input, output_sae=saes.output, batch_size=8)
            fitted = method.fit(work.base, triples, meter=Meter(work.base.model), seed=0)
            for batch in options.batches:
                rows = work.triples(batch)
                prompts = [work.base.prompt_ids(triple.prompt) for triple in rows]
                n_tokens = options.steps * (options.warmup + options.rounds)
                tokens = torch.tensor([work.continuation(triple, n_tokens) for triple in rows])
                bench = _Bench(fitted, saes, prompts, tokens, options)
                sections.append(bench.section({"model": work.model}))
                tell(sections[-1].markdown() + "\n")
    return sections


class _Bench:
    """All candidates on the same prompts and tokens."""

    def __init__(
        self,
        fitted: AlignedModel,
        saes: SAEPair,
        prompts: Sequence[Sequence[int]],
        tokens: Int[Tensor, "batch steps"],
        options: SteeringOptions,
    ) -> None:
        self._saes, self._options, self._batch = saes, options, len(prompts)
        steering = fitted.intervention
        assert isinstance(steering, DSPASteering)
        latents = selected_latents(fitted, prompts)
        self._set_size = float((latents >= 0).sum(1).float().mean())

        def steered(**changes: Any) -> AlignedModel:
            settings = steering.settings.model_copy(update=changes)
            return fitted.derive(intervention=DSPASteering(steering.condition_map, settings, options.device))

        def hooked(make: Callable[..., LayerHook]) -> tuple[int, LayerHook]:
            sae = SAE.load_from_disk(str(saes.output.path), device=options.device, dtype="float32").requires_grad_(
                False
            )
            return steering.write_layers[0], make(sae, latents, alpha=steering.settings.alpha)

        plain = fitted.derive(intervention=None)
        opened = partial(Decoding, prompts=prompts, tokens=tokens, steps=options.steps)
        self.decodings = {
            UNSTEERED: opened(plain),
            OWN: opened(steered(scale="own")),
            MAX: opened(steered(scale="max")),
            **({} if saes.always is None else {ALWAYS: opened(steered(scale="max", output_sae=saes.always))}),
            FULL: opened(plain, hook=hooked(full_encode_hook)),
            ERROR_TERM: opened(plain, hook=hooked(error_term_hook)),
        }

    def section(self, facts: dict[str, str]) -> Section:
        """Check that the candidates compute the same, then time them; ``facts`` come first."""
        options = self._options
        ours = [name for name in (OWN, MAX, ALWAYS) if name in self.decodings]
        effect, difference = self.agreement()
        candidates = {name: decoding.opened for name, decoding in self.decodings.items()}
        comparison = options.compare(candidates, UNSTEERED)
        section = Section(f"SAE/model {self._saes.size_ratio:.3f}, batch {self._batch}")
        section.facts = facts | {
            "SAEs": f"{self._saes.about}; {self._set_size:.1f} latents a row selected by a map fitted here",
            "tokens edited (and fully encoded by scale max)": ", ".join(
                f"{name}: {edited_share([self.decodings[name].tally()]):.0%}" for name in ours
            ),
            "same computation": f"logits of {MAX}, {FULL} and {ERROR_TERM} differ by at most {difference:.1e}; the "
            f"edit moves them by {effect:.1e}",
            "rounds": f"{options.rounds} of {options.steps} decode steps each, interleaved in random order",
        }
        section.add(comparison, comparison.control, UNSTEERED)
        near = abs(self._saes.size_ratio - _GOAL_RATIO) < 0.005
        for name in (*ours, FULL, ERROR_TERM):
            section.add(comparison, name, UNSTEERED, _GOALS.get(name) if near else None)
        for name in ours:
            for other in (FULL, ERROR_TERM):
                section.add(comparison, name, other, 1.0)
        for name in (UNSTEERED, OWN, MAX):
            rate = self._batch * options.steps / comparison.median_seconds(name)
            section.figures.append(Figure(name, rate, "tokens/s"))
        self._add_launches(section)
        for decoding in self.decodings.values():
            decoding.close()
        return section

    def agreement(self) -> tuple[float, float]:
        """(largest change of a logit by the edit, largest difference of a logit between the ways to make it)."""
        logits = {}
        for name in (MAX, UNSTEERED, FULL, ERROR_TERM):
            with self.decodings[name].opened() as work:
                logits[name] = torch.stack(work()).float()
        effect, *differences = (float((logits[MAX] - logits[n]).abs().max()) for n in (UNSTEERED, FULL, ERROR_TERM))
        return effect, max(differences)

    def _add_launches(self, section: Section) -> None:
        if torch.device(self._options.device).type != "cuda":
            section.facts["kernel launches and host synchronisations"] = "not run: no CUDA device was asked for"
            return
        for name, decoding in self.decodings.items():
            with decoding.opened() as work:
                launches, waits = launches_and_waits(work, self._options.steps)
                decoding.rewind()
            section.figures.append(Figure(f"{name}: kernel launches", launches, "a step"))
            section.figures.append(Figure(f"{name}: host synchronisations", waits, "a step"))


def selected_latents(fitted: AlignedModel, prompts: Sequence[Sequence[int]]) -> Int[Tensor, "batch k"]:
    """The sets that steering selects for the prompts, for those who do not select (-1: none)."""
    steering = fitted.intervention
    assert isinstance(steering, DSPASteering)
    ids, mask = pad_rows(prompts, fitted.chat.pad_id, side="left", device=fitted.device)
    (layer,) = steering.read_layers
    residual = early_residuals(find_decoder(fitted.model), {layer}, ids, mask)[layer]
    counted = mask.bool() & ~torch.isin(ids, torch.tensor(fitted.chat.special_ids, device=fitted.device))
    if steering.condition_on == "last_turn":
        counted &= narrowed(mask.bool(), ids, fitted.chat.last_turn)
    return steering.select(residual, counted).latents
