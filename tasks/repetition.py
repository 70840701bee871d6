"""How much of a text says again what it has said."""

import re
from collections.abc import Sequence

_REPEATED_WORDS = 4


def different_runs(words: Sequence[str], length: int) -> float:
    """The share of all runs of ``length`` words that are different ones, 0..1; 1 for fewer words."""
    runs = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def repetition(text: str) -> float:
    """The share of a text's sequences of four words that occur in it before; 0 for texts of fewer words.

    rep-4 of Welleck et al., "Neural text generation with unlikelihood training" (2020), on words up to case.
    """
    return 1 - different_runs(re.findall(r"\w+", text.lower()), _REPEATED_WORDS)
