"""`dspa-bench perf steering`: decoding with DSPA against no steering and against the usual ways to edit latents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Int
from sae_lens import SAE
from torch import Tensor

from dspa.diagnostics import edited_share
from dspa.method import DSPA
from dspa.perf.decoding import Decoding
from dspa.perf.launches import launches_and_waits
from dspa.perf.naive_decoding import LayerHook, error_term_hook, full_encode_hook
from dspa.perf.options import PerfOptions
from dspa.perf.report import Figure, Section
from dspa.perf.synthetic import SHAPES, Lengths, Writer, make_base
from dspa.perf.synthetic_sae import SyntheticSAEs, make_saes
from dspa.steering import DSPASteering
from harness.compute import Meter
from harness.intervention import find_decoder
from harness.model import AlignedModel
from harness.padding import pad_rows
from harness.perf import Comparison, compare
from harness.residuals import early_residuals

UNSTEERED, OWN, MAX = "unsteered", "DSPA, scale own", "DSPA, scale max"
ALWAYS = "DSPA, scale max, every token edited"
FULL, ERROR_TERM = "full encode + decode", "SAELens error term"
_GOALS = {OWN: 0.98, MAX: 0.96}
_GOAL_RATIO = 0.03  # the size of Gemma-2-2B's 16k SAEs, for which the goals are set
_LENGTHS = Lengths(prompt=36, answer=20)
_CALIBRATION, _FIT = 24, 40


@dataclass(frozen=True)
class SteeringOptions(PerfOptions):
    """``steps``: decode steps of a candidate in one round; ``batches``: rows decoded together."""

    batches: tuple[int, ...] = (1, 16)
    steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.batches or min(self.batches) < 1 or self.steps < 1:
            raise ValueError(f"batches and steps must be at least 1, got {self.batches} and {self.steps}")


@torch.no_grad()
def measure_steering(options: SteeringOptions, *, tell: Callable[[str], object] = print) -> list[Section]:
    """One section per SAE size and batch; ``tell`` is called with what is being done."""
    shape = SHAPES[options.shape]
    base = make_base(shape, dtype=options.dtype, device=options.device, seed=options.seed)
    writer = Writer(base, seed=options.seed)
    calibration, triples = writer.triples(_CALIBRATION, _LENGTHS), writer.triples(_FIT, _LENGTHS)
    n_model = sum(p.numel() for p in base.model.parameters())
    tell(f"{options.shape}: {n_model / 1e6:.0f}M parameters, random, {options.dtype}, layers {shape.layers}")
    sections = []
    for ratio in options.ratios:
        with TemporaryDirectory() as folder:
            saes = make_saes(base, shape.layers, calibration, Path(folder), ratio=ratio, seed=options.seed)
            tell(f"SAEs of {saes.d_sae} latents, {saes.size_ratio:.3f} of the model; fit on {len(triples)} triples")
            method = DSPA(input_sae=saes.input, output_sae=saes.output, batch_size=8)
            fitted = method.fit(base, triples, meter=Meter(base.model), seed=0)
            for batch in options.batches:
                prompts = [base.prompt_ids(t.prompt) for t in writer.triples(batch, _LENGTHS)]
                words = [writer.continuation(options.steps * (options.warmup + options.rounds)) for _ in prompts]
                tokens = torch.tensor([base.chat.response_ids(text) for text in words])
                bench = _Bench(fitted, saes, prompts, tokens, options)
                section = bench.section(n_model, tell)
                sections.append(section)
                tell(section.markdown() + "\n")
    return sections


class _Bench:
    """All candidates on the same prompts and tokens."""

    def __init__(
        self,
        fitted: AlignedModel,
        saes: SyntheticSAEs,
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
            sae = SAE.load_from_disk(str(saes.output.path), device=options.device).requires_grad_(False)
            return steering.write_layers[0], make(sae, latents, alpha=steering.settings.alpha)

        plain = fitted.derive(intervention=None)
        models = {
            OWN: steered(scale="own"),
            MAX: steered(scale="max"),
            ALWAYS: steered(scale="max", output_sae=saes.always),
        }
        opened = partial(Decoding, prompts=prompts, tokens=tokens, steps=options.steps)
        self.decodings = {UNSTEERED: opened(plain)}
        self.decodings |= {name: opened(model) for name, model in models.items()}
        self.decodings[FULL] = opened(plain, hook=hooked(full_encode_hook))
        self.decodings[ERROR_TERM] = opened(plain, hook=hooked(error_term_hook))

    def section(self, n_model: int, tell: Callable[[str], object]) -> Section:
        """Check that the candidates compute the same, then time them."""
        options = self._options
        effect, difference = self.agreement()
        comparison = compare(
            {name: decoding.opened for name, decoding in self.decodings.items()},
            reference=UNSTEERED,
            rounds=options.rounds,
            warmup=options.warmup,
            seed=options.seed,
        )
        section = Section(f"SAE/model {self._saes.size_ratio:.3f}, batch {self._batch}")
        section.facts = {
            "SAEs": f"{self._saes.d_sae} latents, JumpReLU, calibrated to the sparsity of Gemma Scope (L0 "
            f"{70 / 16384 * self._saes.d_sae:.0f}); {self._set_size:.1f} latents a row selected by a map fitted here",
            "tokens edited (and fully encoded by scale max)": ", ".join(
                f"{name}: {edited_share([self.decodings[name].tally()]):.0%}" for name in (OWN, MAX, ALWAYS)
            ),
            "same computation": f"logits of {MAX}, {FULL} and {ERROR_TERM} differ by at most {difference:.1e}; the "
            f"edit moves them by {effect:.1e}",
            "rounds": f"{options.rounds} of {options.steps} decode steps each, interleaved in random order",
        }
        self._add_lines(section, comparison)
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
        for name in (UNSTEERED, MAX, FULL, ERROR_TERM):
            with self.decodings[name].opened() as work:
                logits[name] = torch.stack(work()).float()

        def distance(one: str, other: str) -> float:
            return float((logits[one] - logits[other]).abs().max())

        return distance(MAX, UNSTEERED), max(distance(MAX, FULL), distance(MAX, ERROR_TERM))

    def _add_lines(self, section: Section, comparison: Comparison) -> None:
        section.add(comparison, comparison.control, UNSTEERED)
        near = abs(self._saes.size_ratio - _GOAL_RATIO) < 0.005
        for name in (OWN, MAX, ALWAYS):
            section.add(comparison, name, UNSTEERED, _GOALS.get(name) if near else None)
        for name in (FULL, ERROR_TERM):
            section.add(comparison, name, UNSTEERED)
        for name in (OWN, MAX, ALWAYS):
            for other in (FULL, ERROR_TERM):
                section.add(comparison, name, other, 1.0)

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
    return steering.select(residual, counted).latents
