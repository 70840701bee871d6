"""FLOPs by formula: 2P per forward token, 6P per training token, and the figures the paper states."""

from collections.abc import Callable

# What the paper assumes (section on compute): an 8B model; prompt, chosen and rejected of 1000 tokens each.
PAPER_PARAMS = 8 * 10**9
PAPER_TOKENS = 1000

PAPER_NOTE = (
    "They differ because the convention gives every text its assumed length and cuts RAHF's rows to 768 tokens, "
    "counts whole forward passes, and knows one number of steps; here DSPA passes a prompt once for both answers, "
    "stops behind its deepest SAE and leaves the LM head out, RAHF's rows carry an instruction and keep their length, "
    "and its epochs and steps are the suite's."
)
"""Why the ratio of two methods' `paper_flops` is not that of what was measured."""


def forward_flops(n_params: int, tokens: int) -> int:
    """2 P per token that passes forward through ``n_params`` parameters."""
    return 2 * n_params * tokens


def train_flops(n_params: int, tokens: int) -> int:
    """6 P per token that passes forward and backward (counted as twice the forward)."""
    return 6 * n_params * tokens


def _dspa(n_triples: int) -> float:
    # 2 P N (3p + c + r): the prompt alone, prompt + chosen, prompt + rejected.
    return float(forward_flops(PAPER_PARAMS, n_triples * (3 + 1 + 1) * PAPER_TOKENS))


def _rahf_scit(n_triples: int) -> float:
    # Stage 1, 48 P N 768: rows of 768 tokens, 6P each, 2 epochs x 2 answers x 2 instructions (our reading
    # of 48). Stage 2, 12 P (64 * 512) (0.02 N): batches of 64 rows of 512 tokens, 0.02 N steps.
    first = 48 * PAPER_PARAMS * n_triples * 768
    second = 12 * PAPER_PARAMS * (64 * 512) * (n_triples * 0.02)
    return first + second


_PAPER: dict[str, Callable[[int], float]] = {"dspa": _dspa, "rahf_scit": _rahf_scit}


def has_paper_figure(method: str) -> bool:
    """Whether `paper_flops` knows ``method``."""
    return method in _PAPER


def paper_flops(method: str, n_triples: int) -> float:
    """Alignment FLOPs the paper states for ``method`` on ``n_triples`` triples.

    With its assumed model and lengths, P = 8e9 and prompt = chosen = rejected = 1000 tokens: DSPA
    2PN(3p+c+r) = 8e13 N; RAHF-SCIT 48 P N 768 + 12 P (64*512)(0.02 N) = 3.58e14 N; their ratio is 4.4728
    for any N. Raises ValueError for a method without a figure in the paper and for a negative number of
    triples.
    """
    if method not in _PAPER:
        raise ValueError(f"the paper gives no FLOPs for method {method!r}; it does for: {', '.join(sorted(_PAPER))}")
    if n_triples < 0:
        raise ValueError(f"n_triples must be 0 or more, got {n_triples}")
    return _PAPER[method](n_triples)
