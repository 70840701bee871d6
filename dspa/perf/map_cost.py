"""What a map of 1,000 triples weighs on disk and how long a prompt's query takes, at the width of real SAEs."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor

from dspa.condiff import ConditionalDifferenceMap, Gate
from dspa.perf.report import Figure, Section
from dspa.perf.synthetic_sae import ACTIVE_SHARE
from dspa.steering import ablate_set, top_prompt_latents

_PROMPT_TOKENS, _ANSWER_TOKENS = 115, 45
_SPREAD, _BURST = 1.5, 0.3
_QUERIES = 50
_MEGABYTES, _MILLISECONDS = 10.0, 1.0  # the goals


def measure_map(*, n_triples: int, d_sae: int, seed: int, queries: int = _QUERIES) -> Section:
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
    per_thousand = 1000 / n_triples
    gates: tuple[Gate, ...] = ("paper", "strict")
    for gate in gates:
        full = ConditionalDifferenceMap.estimate(prompt, difference, gate=gate)
        begin = time.perf_counter()
        truncated = full.truncate(16)
        seconds = time.perf_counter() - begin
        with TemporaryDirectory() as folder:
            full.save(Path(folder) / "map.safetensors")
            size = (Path(folder) / "map.safetensors").stat().st_size / 1e6
        section.figures += [
            Figure(f"{gate} gate: file per 1,000 triples", size * per_thousand, "MB", _MEGABYTES),
            Figure(
                f"{gate} gate: query, truncated map", _query(truncated.scores, prompt, queries), "ms", _MILLISECONDS
            ),
            Figure(
                f"{gate} gate: query, exact factored map", _query(full.scores, prompt, queries), "ms", _MILLISECONDS
            ),
            Figure(f"{gate} gate: truncating", seconds, "s"),
        ]
    return section


def draw_densities(
    n_triples: int, d_sae: int, seed: int
) -> tuple[Float[Tensor, "n_triples d_sae"], Float[Tensor, "n_triples d_sae"]]:
    """(prompt densities, response differences) as sparse as real ones.

    A latent's frequency is log-normal with mean `ACTIVE_SHARE`; in a triple it is multiplied by a gamma variate of
    mean 1 and shape 0.3, so that a latent is absent from most texts and frequent in a few. Both answers share it.
    """
    torch.manual_seed(seed)
    spread = torch.randn(d_sae) * _SPREAD
    share = ACTIVE_SHARE * (spread - _SPREAD**2 / 2).exp()
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
        ablate_set(scores(top_prompt_latents(density, 32)), 16)
        taken.append(time.perf_counter() - begin)
    return 1000 * median(taken[3:])  # the first ones build what the map keeps between queries
