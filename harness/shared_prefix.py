"""Which token sequences begin alike, so that what they share is encoded once: few-shot examples, a fixed prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field

Tokens = tuple[int, ...]

SHORTEST = 16
"""Tokens below which copying a prefix's cache costs about what encoding the prefix again does."""


@dataclass(frozen=True)
class Family:
    """Sequences whose first ``shared`` tokens are the same; ``shared`` is 0 for those that are encoded whole."""

    shared: int
    members: tuple[Tokens, ...]

    @property
    def prefix(self) -> Tokens:
        return self.members[0][: self.shared]


def families(sequences: Sequence[Tokens], *, shortest: int = SHORTEST) -> list[Family]:
    """Split different sequences into families so that most tokens are saved, one level deep.

    A family of n saves (n - 1) times its shared tokens. It is a whole node of the sequences' prefix tree (all that
    begin alike), and of all choices of nodes, none below another, the one is taken that saves most. Sequences in no
    family of at least ``shortest`` shared tokens come together as the last one, with ``shared`` 0.
    """
    ordered = sorted(sequences)
    found: list[Family] = []
    alone: list[Tokens] = []
    position = 0
    for start, stop, shared in _best_runs(ordered, shortest):
        alone += ordered[position:start]
        found.append(Family(shared, tuple(ordered[start:stop])))
        position = stop
    alone += ordered[position:]
    if alone:
        found.append(Family(0, tuple(alone)))
    return found


Run = tuple[int, int, int]
"""(first sequence, one behind the last, shared tokens)."""


@dataclass
class _Node:
    """An inner node of the prefix tree while its sequences are still being read."""

    depth: int
    start: int
    saved: int = 0
    runs: list[Run] = field(default_factory=list)


def _best_runs(ordered: Sequence[Tokens], shortest: int) -> list[Run]:
    """The runs of sorted sequences that save most, by one pass over the tree that their common prefixes span."""
    root = _Node(-1, 0)
    open_nodes = [root]
    for index, sequence in enumerate(ordered):
        common = _common(sequence, ordered[index + 1]) if index + 1 < len(ordered) else -1
        done = _Node(len(sequence), index)
        while open_nodes[-1].depth > common:
            node = open_nodes.pop()
            node.saved += done.saved
            node.runs += done.runs
            own = (index - node.start) * node.depth if node.depth >= shortest else 0
            if own > node.saved:
                node.saved, node.runs = own, [(node.start, index + 1, node.depth)]
            done = node
        if open_nodes[-1].depth < common:
            open_nodes.append(_Node(common, done.start))
        open_nodes[-1].saved += done.saved
        open_nodes[-1].runs += done.runs
    return root.runs


def _common(one: Tokens, other: Tokens) -> int:
    """Length of the common prefix."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
