"""Token sequences encoded on others' key-value caches: what a row shares with its parent is not encoded again."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from harness.model.batching import pad_rows, positions_of
from harness.model.decoder import find_decoder
from harness.model.steering import Runtime

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """Sequences whose first ``shared`` tokens are the same; ``shared`` is 0 for those that are encoded whole."""

    shared: int
    members: tuple[Tokens, ...]

    @property
    def prefix(self) -> Tokens:
        return self.members[0][: self.shared]


def families(sequences: Sequence[Tokens], *, shortest: int = 16) -> list[Family]:
    """Split different sequences into families so that most tokens are saved, one level deep.

    A family of n saves (n - 1) times its shared tokens. It is a whole node of the sequences' prefix tree (all that
    begin alike), and of all choices of nodes, none below another, the one is taken that saves most. Sequences in no
    family of at least ``shortest`` shared tokens come together as the last one, with ``shared`` 0 (below 16 tokens,
    copying a prefix's cache costs about what encoding the prefix again does).
    """
    ordered = sorted(sequences)
    found, alone, position = [], [], 0
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
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


@dataclass(frozen=True)
class CachedRows:
    """Encoded sequences: token t of row r is in column ``first[r] + t`` of the cache."""

    layers: list[DynamicLayer]
    first: Int[Tensor, " row"]
    lengths: Int[Tensor, " row"]


def can_share(runtime: Runtime) -> bool:
    """Whether a cached token serves every sequence that begins alike.

    Not where anything is steered: a condition is computed from the whole context, and with ``positions: all`` the
    prefix itself is edited by it. Not where a layer keeps anything else than the keys and values of tokens.
    """
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return runtime.intervention is None and all(type(layer) in plain for layer in _cache_layers(runtime))


def encode(runtime: Runtime, sequences: Sequence[Tokens]) -> CachedRows:
    """Whole sequences, in one forward.

    Padded on the right and without a mask: no token sees what is behind it, and attention is faster so.
    """
    ids, _ = pad_rows(sequences, runtime.chat.pad_id, side="right", device=runtime.device)
    layers = _empty_layers(runtime)
    layers[-1] = _LastLayer()
    with suppress(_Filled):
        find_decoder(runtime.model).stack(input_ids=ids, past_key_values=Cache(layers=[*layers]), use_cache=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=runtime.device)
    return CachedRows(layers, torch.zeros_like(lengths), lengths)


def extend(
    runtime: Runtime, parents: CachedRows, owner: Sequence[int], sequences: Sequence[Tokens], *, fed: int
) -> CachedRows:
    """Sequences of which row r begins with parent ``owner[r]``, in one forward of ``fed`` tokens a row.

    The rows are those of a left-padded batch of whole sequences, cut behind one column: in front of it they are taken
    from the parents, the last ``fed`` tokens are encoded. So ``fed`` is what the row with most behind its parent
    needs, and at least 1; the others have some tokens of their parent encoded again, where there would be padding.
    """
    layers, inputs = _extension(runtime, parents, owner, sequences, fed)
    layers[-1].__class__ = _LastLayer  # only now: the parents' columns went through its update, too
    with suppress(_Filled):
        find_decoder(runtime.model).stack(**inputs)
    lengths = inputs["attention_mask"].sum(-1)
    return CachedRows(layers, inputs["attention_mask"].shape[1] - lengths, lengths)


def extended_logits(
    runtime: Runtime, parents: CachedRows, owner: Sequence[int], sequences: Sequence[Tokens], *, fed: int
) -> Float[Tensor, "row fed vocab"]:
    """The same forward for its logits."""
    return runtime.model(**_extension(runtime, parents, owner, sequences, fed)[1]).logits


def _extension(
    runtime: Runtime, parents: CachedRows, owner: Sequence[int], sequences: Sequence[Tokens], fed: int
) -> tuple[list[DynamicLayer], dict[str, Any]]:
    """Cache layers and inputs of the forward that `extend` describes."""
    ids, mask = pad_rows(sequences, runtime.chat.pad_id, side="left", device=runtime.device)
    rows = torch.tensor(owner, device=runtime.device)
    lengths, width = mask.sum(-1), ids.shape[1]
    assert bool((lengths - fed <= parents.lengths[rows]).all())
    kept = max(0, width - fed)
    layers = _empty_layers(runtime)
    if kept:
        # Columns of padding have no counterpart: whatever is taken for them is masked.
        before = parents.first[rows] - (width - lengths)
        columns = (before[:, None] + torch.arange(kept, device=runtime.device)).clamp(min=0)
        for layer, parent in zip(layers, parents.layers, strict=True):
            layer.update(_taken(parent.keys, rows, columns), _taken(parent.values, rows, columns))
    return layers, {
        "input_ids": ids[:, kept:],
        "attention_mask": mask,
        "position_ids": positions_of(mask)[:, kept:],
        "past_key_values": Cache(layers=[*layers]),
        "use_cache": True,
    }


class _Filled(Exception):
    """Ends a forward when the last layer's keys and values are there: what follows serves logits alone."""


class _LastLayer(DynamicLayer):
    def update(self, *args: Any, **kwargs: Any) -> Any:
        super().update(*args, **kwargs)
        raise _Filled


def _cache_layers(runtime: Runtime) -> list[Any]:
    """As the model's configuration asks for them, empty."""
    return DynamicCache(config=runtime.model.config).layers


def _empty_layers(runtime: Runtime) -> list[DynamicLayer]:
    """One for each of the model's layers that has its own; none is told of its sliding window, so that it forgets no
    token which a shorter descendant of a row needs (the model's masks keep to the windows)."""
    return [DynamicLayer() for _ in _cache_layers(runtime)]


def _taken(
    states: Float[Tensor, "parent head pos d_head"] | None, rows: Int[Tensor, " row"], columns: Int[Tensor, "row kept"]
) -> Float[Tensor, "row head kept d_head"]:
    assert states is not None
    rows, columns = rows.to(states.device), columns.to(states.device)  # its layer's, in a model that is spread
    return states.transpose(1, 2)[rows[:, None], columns].transpose(1, 2)
