"""`dspa-bench perf fit`: fitting DSPA against two full forwards a pair and against the least there is to compute."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor

from dspa.map.condiff import ConditionalDifferenceMap, Gate
from dspa.method import DSPA
from dspa.perf.naive import least_forwards, text_pairs, two_full_forwards
from dspa.perf.subject import MadeUp, PerfOptions
from dspa.perf.synthetic import ACTIVE_SHARE, firing_shares
from dspa.saes.sae import load_sae
from dspa.steering import top_latents
from harness.compute import Meter
from harness.model.aligned import AlignedModel
from harness.model.decoder import find_decoder
from harness.speed.compare import always
from harness.speed.report import Figure, Section

FIT = "DSPA.fit"
FEATURES, MAP = "DSPA.fit, stage features", "DSPA.fit, stage map"
NAIVE = "two full forwards a pair, all tokens encoded"
PLAIN = "two full forwards a pair, nothing encoded"
LEAST = "early-stopped forwards and encoder product"
_AT_LEAST, _AT_MOST = 2.0, 1.15  # times as fast as NAIVE; of the time of LEAST
_MEGABYTES, _MILLISECONDS = 10.0, 1.0  # of the map: its file, a query
_PROMPT_TOKENS, _ANSWER_TOKENS, _BURST = 115, 45, 0.3  # of the densities that the map is drawn from


@dataclass(frozen=True)
class FitOptions(PerfOptions):
    """``triples`` are fitted on in every round, ``batch_size`` of them a forward. Beside a made-up subject a map of
    ``map_triples`` triples and ``map_width`` latents is measured."""

    rounds: int = 4
    triples: int = 16
    batch_size: int = 8
    map_triples: int = 1000
    map_width: int = 16_384

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.triples, self.batch_size) < 1:
            raise ValueError("triples and batch size must be at least 1")


def measure_fit(options: FitOptions, *, tell: Callable[[str], object] = print) -> list[Section]:
    """One section per pair of SAEs, and one for the map; ``tell`` is called with what is being done."""
    work = options.opened(options.triples)
    base, triples = work.base, work.triples(options.triples)
    tell(work.model)
    pairs = text_pairs(base, triples, options.batch_size)
    sizes = [(len(one.prompt), len(one.chosen), len(one.rejected)) for batch in pairs for one in batch]
    tokens = [sum(counts) for counts in zip(*sizes, strict=True)]
    sections = []
    with TemporaryDirectory() as folder, torch.no_grad():
        for made in work.saes(Path(folder)):
            saes = load_sae(made.input, options.device), load_sae(made.output, options.device)
            method = DSPA(input_sae=made.input, output_sae=made.output, batch_size=options.batch_size)
            meters: list[Meter] = []

            def fit(method: DSPA = method, meters: list[Meter] = meters) -> None:
                meters.append(Meter(base.model))  # a new one each time, as in a real fit: counting FLOPs is part of it
                method.fit(base, triples, meter=meters[-1], seed=0)

            candidates = {
                LEAST: always(partial(least_forwards, base, pairs, saes)),
                FIT: always(fit),
                NAIVE: always(partial(two_full_forwards, base, pairs, saes)),
                PLAIN: always(partial(two_full_forwards, base, pairs, ())),
            }
            of = f"of {options.warmup + options.rounds}"
            comparison = options.compare(candidates, LEAST, progress=lambda done, of=of: tell(f"  round {done} {of}"))
            bills = [meter.bill(method="dspa", n_triples=len(triples)) for meter in meters[-options.rounds :]]
            comparison = comparison.including(FEATURES, [bill.stages[0].seconds for bill in bills])
            section = Section(f"SAE/model {made.size_ratio:.3f}")
            section.facts = {
                "model": work.model,
                "SAEs": f"{made.about}; of {find_decoder(base.model).n_layers} layers",
                "texts": f"{len(triples)} triples, {tokens[0]} tokens in prompts, {tokens[1]} + {tokens[2]} in "
                f"answers; batches of {options.batch_size} triples of similar length",
                "forwards": f"those of the naive fit compute {_forward_work(base, tokens, saes[1].layer):.2f} times "
                "as much as early-stopped ones",
                "map": "its stage grows with the square of the width and little with the triples, so for fits on "
                "hundreds of triples look at the features",
                "rounds": f"{options.rounds}, interleaved in random order",
            }
            section.add(comparison, comparison.control, LEAST)
            for what in (FIT, FEATURES):
                section.add(comparison, what, LEAST, 1 / _AT_MOST)
                section.add(comparison, what, NAIVE, _AT_LEAST)
                section.add(comparison, what, PLAIN)
            seconds = (LEAST, NAIVE, PLAIN, FIT, FEATURES)
            section.figures = [Figure(name, comparison.median_seconds(name), "s") for name in seconds]
            section.figures += [
                Figure(MAP, median(bill.stages[1].seconds for bill in bills), "s"),
                Figure(f"{FIT}: of it the profiler's own time", median(bill.metering_seconds for bill in bills), "s"),
                Figure(f"{FIT}: executed", bills[-1].executed_flops, "FLOPs"),
                Figure(f"{FIT}: peak memory of the process", max(bill.peak_bytes for bill in bills) / 1e6, "MB"),
            ]
            tell(section.markdown() + "\n")
            sections.append(section)
    if isinstance(options.subject, MadeUp):
        sections.append(measure_map(n_triples=options.map_triples, d_sae=options.map_width, seed=options.seed))
        tell(sections[-1].markdown() + "\n")
    return sections


def _forward_work(base: AlignedModel, tokens: Sequence[int], last: int) -> float:
    """Multiply-adds with weights: every pair through all layers and the LM head, over prompts and answers once as far
    as layer ``last``. ``tokens``: of prompts, chosen and rejected answers."""
    layers = [sum(p.numel() for p in layer.parameters()) for layer in find_decoder(base.model).layers]
    head = base.model.lm_head.weight.numel()  # type: ignore[union-attr, operator]
    prompts, answers = tokens[0], tokens[1] + tokens[2]
    return (2 * prompts + answers) * (sum(layers) + head) / ((prompts + answers) * sum(layers[: last + 1]))


def measure_map(*, n_triples: int, d_sae: int, seed: int, queries: int = 50) -> Section:
    """File size of the factored map and milliseconds per prompt from densities to the set to ablate.

    Densities are drawn, not measured: see `draw_densities`.
    """
    prompt, difference = draw_densities(n_triples, d_sae, seed)
    section = Section(f"Map of {n_triples} triples at {d_sae} latents")
    section.facts = {
        "densities": f"drawn: latents fire with log-normal frequency ({ACTIVE_SHARE * d_sae:.0f} a token) in bursts; "
        f"prompts of {_PROMPT_TOKENS} and answers of {_ANSWER_TOKENS} tokens; of the differences of a triple "
        f"{int((difference != 0).sum()) // n_triples} are not 0",
        "query": "densities of one prompt -> top prompt latents -> scores -> set to ablate; median over prompts",
    }
    gates: tuple[Gate, ...] = ("paper", "strict")
    for gate in gates:
        full = ConditionalDifferenceMap.estimate(prompt, difference, gate=gate)
        begin = time.perf_counter()
        truncated = full.truncate(16)
        seconds = time.perf_counter() - begin
        with TemporaryDirectory() as folder:
            file = Path(folder) / "map.safetensors"
            full.save(file)
            size = file.stat().st_size / 1e6 * (1000 / n_triples)
        section.figures.append(Figure(f"{gate} gate: file per 1,000 triples", size, "MB", _MEGABYTES))
        for name, scores in (("truncated map", truncated.scores), ("exact factored map", full.scores)):
            taken = _query(scores, prompt, queries)
            section.figures.append(Figure(f"{gate} gate: query, {name}", taken, "ms", _MILLISECONDS))
        section.figures.append(Figure(f"{gate} gate: truncating", seconds, "s"))
    return section


def draw_densities(
    n_triples: int, d_sae: int, seed: int
) -> tuple[Float[Tensor, "n_triples d_sae"], Float[Tensor, "n_triples d_sae"]]:
    """(prompt densities, response differences) as sparse as real ones.

    A latent's frequency is log-normal with mean `ACTIVE_SHARE`; in a triple it is multiplied by a gamma variate of
    mean 1 and shape 0.3, so that a latent is absent from most texts and frequent in a few. Both answers share it.
    """
    torch.manual_seed(seed)
    share = firing_shares(torch.randn(d_sae))
    burst = torch._standard_gamma(torch.full((n_triples, d_sae), _BURST)) / _BURST
    rate = (share * burst).clamp(max=0.9)

    def density(tokens: int) -> Tensor:
        return torch.binomial(torch.full_like(rate, float(tokens)), rate) / tokens

    return density(_PROMPT_TOKENS), density(_ANSWER_TOKENS) - density(_ANSWER_TOKENS)


def _query(scores: Callable[[Tensor], Tensor], prompt: Float[Tensor, "n d_sae"], queries: int) -> float:
    taken = []
    for row in range(queries + 3):
        density = prompt[row % len(prompt)][None]
        begin = time.perf_counter()
        top_latents(-scores(top_latents(density, 32)), 16)
        taken.append(time.perf_counter() - begin)
    return 1000 * median(taken[3:])  # the first ones build what the map keeps between queries
