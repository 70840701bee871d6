"""A steering session: hooks that apply an intervention at the right positions of every forward pass.

The position rule is one for generation, forward-by-forward decoding and log-likelihoods: the prompt is what the
condition is computed from; steered are the positions that predict a generated token, from the last prompt token on.

* A forward on an empty cache is a prefill: its unpadded rows are the prompts, unless lengths were given.
* A prefill that extends the one just before it (decoding without a cache) raises unless lengths were given.
* A one-token forward on a cache is a decode step. A row that was fed a stop token is over and no longer steered.
* Rows follow their cache: beam search and other reorderings take the conditions along.
* Several tokens on a cache must be announced (`announce_continuation`); unannounced (chunked prefill, assisted
  decoding), on another cache than the last one (classifier-free guidance), and wherever rows no longer match (a changed
  batch), the session raises instead of leaving tokens unsteered.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from harness.model.chat import ChatFormat
from harness.model.decoder import find_decoder, input_device, residual_of, with_residual
from harness.model.intervention import Condition, Intervention, Mask, RowState
from harness.model.turns import LastTurn, narrowed


class Steering:
    """Context manager around forwards of ``model`` (a causal LM, PEFT or not); one session is for one thread.

    ``special_ids`` (BOS, EOS, pad) are left out of the condition and never edited, ``stop_ids`` end a row. What is
    conditioned on the last user turn needs ``last_turn``, which finds it in a prompt's ids (`ChatFormat.last_turn`).
    A model has one session at a time (ValueError); a copy made of it meanwhile is not steered.
    """

    _steered: ClassVar[WeakSet[nn.Module]] = WeakSet()

    def __init__(
        self,
        model: nn.Module,
        intervention: Intervention,
        *,
        special_ids: Sequence[int],
        stop_ids: Sequence[int],
        last_turn: LastTurn | None = None,
    ) -> None:
        self._decoder = find_decoder(model)
        self._intervention = intervention
        self.tally = intervention.tally()
        """What the session counts; None where the intervention counts nothing."""
        reads, writes = intervention.read_layers, intervention.write_layers
        allowed = range(self._decoder.n_layers)
        if not set(reads) | set(writes) <= set(allowed):
            raise ValueError(f"layers {reads} -> {writes} are not all in the model, which has layers 0..{allowed[-1]}")
        if reads and max(reads) > min(writes):
            raise ValueError(f"read layers {reads} must not come after the first write layer {min(writes)}")
        condition_on: Condition = getattr(intervention, "condition_on", "conversation")
        if condition_on == "last_turn" and last_turn is None:
            raise ValueError("the intervention is conditioned on the last user turn; give last_turn, which finds it")
        self._last_turn = last_turn if condition_on == "last_turn" else None
        # The session and the intervention live where the ids do; layers may be elsewhere, if the model is spread.
        device = input_device(model)
        vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        self._special = _members(special_ids, vocabulary, device)
        self._stop = _members(stop_ids, vocabulary, device)
        self._handles: list[Any] = []
        self._cache: Any = None
        self._given: Int[Tensor, " batch"] | None = None
        self._announced = False
        self._state: RowState | None = None
        self._residual: dict[int, Tensor] = {}
        self._prompt: Mask | None = None
        self._edit: Mask | None = None
        self._first = 0
        self._prefill = False
        self._finished: Bool[Tensor, " batch"] | None = None
        self._prefilled: Int[Tensor, "batch pos"] | None = None
        self._counts: Int[Tensor, " batch"] | None = None
        self._edits: dict[int, list[Tensor]] | None = None

    def __enter__(self) -> "Steering":
        if self._decoder.stack in self._steered:
            raise ValueError(
                "the model is being steered already, and a session within a session would edit each token twice; "
                "AlignedModel's generate and loglikelihood open a session of their own"
            )
        self._steered.add(self._decoder.stack)
        add = self._handles.append
        add(self._decoder.stack.register_forward_pre_hook(self._begin, with_kwargs=True))
        for layer in sorted({*self._intervention.read_layers, *self._intervention.write_layers}):
            add(self._decoder.layers[layer].register_forward_hook(self._layer_hook(layer)))
        add(self._decoder.stack.register_forward_hook(self._end))
        return self

    def __exit__(self, *exc: object) -> None:
        self.pause()
        self._follow(None)
        self._given, self._prefilled = None, None

    def pause(self) -> None:
        """Leave the model to others but keep the rows: entered again, the session goes on decoding with its cache."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._steered.discard(self._decoder.stack)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Steering":
        """The hooks of a copied model lead back here, where its modules are known for strangers."""
        return self

    @property
    def steered_tokens(self) -> Int[Tensor, " batch"]:
        """Steered positions of each row since the last prefill."""
        if self._counts is None:
            raise ValueError("no forward pass has run in this session")
        return self._counts

    def note_edits(self) -> None:
        """From now on keep, for `edited_steps`, at which forwards which rows were edited: one comparison a layer."""
        self._edits = {}

    @property
    def edited_steps(self) -> Bool[Tensor, "batch step"]:
        """At which forwards anything but zero was added to a row's last position, in any layer. It counts from
        `note_edits` on, for rows that keep their places."""
        if not self._edits:
            raise ValueError("no forward pass has run since note_edits")
        return torch.stack([torch.stack(steps, dim=1).cpu() for steps in self._edits.values()]).any(0)

    def counts(self) -> dict[str, Any] | None:
        """What ``tally`` reads now; None where the intervention counts nothing."""
        return None if self.tally is None else self.tally.read()

    def prompt_lengths(self, lengths: Sequence[int]) -> None:
        """For the next prefill: how many unpadded tokens of each row are its prompt (the rest is its continuation)."""
        if min(lengths, default=1) < 1:
            raise ValueError(f"prompt lengths must be at least 1, got {list(lengths)}")
        self._given = torch.tensor(tuple(lengths), dtype=torch.long, device=self._special.device)

    def announce_continuation(self) -> None:
        """Announce a forward of several tokens on the cache, all of which continue their rows (right-padded)."""
        if self._state is None:
            raise ValueError("announce_continuation comes after a prefill")
        self._announced = True

    def _take_rows(self, index: Int[Tensor, " row"]) -> None:
        """Row r of the cache is now what row ``index[r]`` was."""
        assert self._state is not None and self._finished is not None and self._counts is not None
        index = index.to(self._finished.device)
        self._state = {name: value[index] for name, value in self._state.items()}
        self._finished, self._counts = self._finished[index], self._counts[index]

    def _take_back(self, removed: int, left: int) -> None:
        """The cache lost its ``removed`` newest tokens and holds ``left``."""
        assert self._prompt is not None and self._finished is not None and self._counts is not None
        if left < self._prompt.shape[1] or bool(self._finished.any()):
            raise ValueError(
                "a cache that is cut into its prompt (as assisted decoding does) or after a row has ended cannot be "
                "steered further; decode token by token"
            )
        self._counts = self._counts - removed

    def _begin(self, stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if stack is not self._decoder.stack:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ValueError("steering needs input_ids; a forward from inputs_embeds cannot be steered")
        if kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError("steering does not support packed batches (continuous batching); use padded batches")
        ids = ids.to(self._special.device)
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        mask = kwargs.get("attention_mask")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            raise ValueError(
                "steering needs a [batch, pos] attention mask (prepared 4-D masks hide which tokens are padding)"
            )
        valid = torch.ones_like(ids) if mask is None else mask[:, -ids.shape[1] :].to(ids.device)
        valid = valid.bool()
        if past and cache is not self._cache:
            raise ValueError(
                "a forward on a cache that this session did not prefill last cannot be steered (classifier-free "
                "guidance and copied caches have several); give each cache a session of its own and prefill it there"
            )
        steered = self._begin_prefill(ids, valid) if past == 0 else self._begin_continuation(ids, valid)
        assert self._counts is not None
        self._counts = self._counts + steered.sum(-1)
        self._edit = steered & ~self._special[ids]

    def _begin_prefill(self, ids: Tensor, valid: Mask) -> Mask:
        old = self._prefilled
        extends = old is not None and old.shape[1] < ids.shape[1] and torch.equal(ids[:, : old.shape[1]], old)
        if self._given is None and extends:
            raise ValueError(
                "this forward extends the last prefill without a cache, so its answer would count as prompt; "
                "decode with a cache (use_cache=True), or say where prompts end with prompt_lengths()"
            )
        self._follow(None)  # should this forward fail, the rows are no longer those of the last cache
        self._prefilled = ids
        given, self._given, tokens = self._given, None, valid.sum(-1)
        lengths = tokens if given is None else given
        if len(lengths) != len(ids):
            raise ValueError(f"{len(lengths)} prompt lengths were given for a batch of {len(ids)} rows")
        if given is not None and bool((given > tokens).any()):
            raise ValueError(f"prompt lengths {given.tolist()} exceed the rows, which have {tokens.tolist()} tokens")
        order = valid.cumsum(-1) - 1
        prompt = valid & (order < lengths[:, None])
        steered = valid if self._intervention.positions == "all" else valid & (order >= lengths[:, None] - 1)
        # Left-padded prompts are steered in their last column alone: what is in front need not be encoded.
        self._first = int(steered.any(0).int().argmax())
        conditioning = prompt if self._last_turn is None else narrowed(prompt, ids, self._last_turn)
        self._prompt = conditioning & ~self._special[ids]
        self._finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        self._counts = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        self._announced, self._prefill = False, True
        self._residual = {}
        self._state = None if self._intervention.read_layers else self._condition({})
        return steered

    def _begin_continuation(self, ids: Tensor, valid: Mask) -> Mask:
        assert self._state is not None and self._finished is not None
        if len(ids) != len(self._finished):
            raise ValueError(
                f"the batch changed from {len(self._finished)} to {len(ids)} rows between forwards; "
                "steering state belongs to rows, so start a new prefill"
            )
        if ids.shape[1] > 1 and not self._announced:
            raise ValueError(
                f"{ids.shape[1]} tokens at once on a non-empty cache (chunked prefill or assisted decoding) cannot be "
                "steered; prefill in one forward and decode token by token"
            )
        if ids.shape[1] == 1 and not self._announced:
            self._finished = self._finished | self._stop[ids[:, 0]]
        self._announced, self._prefill, self._first = False, False, 0
        self._prefilled = None  # decoded with a cache: a longer prefill is the next turn
        return valid & ~self._finished[:, None]

    def _end(self, stack: nn.Module, _args: tuple, output: Any) -> None:
        if stack is self._decoder.stack:
            self._follow(getattr(output, "past_key_values", None))

    def _follow(self, cache: Any) -> None:
        """From now on the rows are those of ``cache``."""
        if cache is self._cache:
            return
        if self._cache is not None:
            self._cache.__class__ = self._cache._plain
        if cache is not None:
            follow_rows(cache, self._take_rows, self._take_back)
        self._cache = cache

    def _layer_hook(self, layer: int):
        reads, writes = self._intervention.read_layers, self._intervention.write_layers

        def hook(module: nn.Module, _args: tuple, output: Any) -> Any:
            if module is not self._decoder.layers[layer]:
                return None
            residual = residual_of(output)
            if self._prefill and layer in reads:
                self._residual[layer] = residual.to(self._special.device)
                if len(self._residual) == len(set(reads)):
                    self._state = self._condition(self._residual)
                    self._residual = {}
            if layer not in writes:
                return None
            edited = self._edited(layer, residual)
            return None if edited is None else with_residual(output, edited)

        return hook

    def _condition(self, residual: dict[int, Tensor]) -> RowState:
        assert self._prompt is not None
        return self._intervention.condition(residual, self._prompt, tally=self.tally)

    def _edited(self, layer: int, residual: Tensor) -> Tensor | None:
        assert self._edit is not None and self._state is not None
        first = self._first
        steered = self._edit[:, first:]
        seen = residual[:, first:].to(steered.device)
        delta = self._intervention.delta(layer, seen, self._state, steered, tally=self.tally)
        if self._edits is not None:
            last = steered.new_zeros(len(steered)) if delta is None else (delta[:, -1] != 0).any(-1)
            self._edits.setdefault(layer, []).append(last)
        if delta is None:
            return None
        delta = delta.to(residual.device, residual.dtype)
        if first == 0:
            return residual + delta
        edited = residual.clone()
        edited[:, first:] += delta
        return edited


def _members(ids: Sequence[int], vocabulary: int, device: torch.device) -> Bool[Tensor, " vocabulary"]:
    """Which token ids are among ``ids``: looked up at every step, faster than `torch.isin`."""
    members = torch.zeros(vocabulary, dtype=torch.bool)
    members[[index for index in ids if index < vocabulary]] = True  # a tokenizer may know more tokens than the model
    return members.to(device)


def follow_rows(cache: Any, take: Callable[[Int[Tensor, " row"]], None], take_back: Callable[[int, int], None]) -> None:
    """From now on ``take(index)`` is called whenever row r of ``cache`` becomes what row ``index[r]`` was, and
    ``take_back(removed, left)`` whenever its newest tokens are removed.

    The cache keeps its identity and type: its class is exchanged for a subclass of it (``_plain`` is the class it had),
    so that copies still work; what is done to the rows of a copy is not told.
    """
    plain = type(cache)

    class RowCache(plain):
        _plain = plain

        def reorder_cache(self, beam_idx: Tensor) -> Any:
            if self is cache:
                take(beam_idx)
            return super().reorder_cache(beam_idx)

        def batch_select_indices(self, indices: Tensor) -> Any:
            if self is cache:
                take(indices)
            return super().batch_select_indices(indices)

        def batch_repeat_interleave(self, repeats: int) -> Any:
            if self is cache:
                take(torch.arange(len(self.layers[0].keys)).repeat_interleave(repeats))
            return super().batch_repeat_interleave(repeats)

        def crop(self, *args: Any, **kwargs: Any) -> Any:
            before = int(self.get_seq_length())
            result = super().crop(*args, **kwargs)
            left = int(self.get_seq_length())
            if self is cache and left < before:
                take_back(before - left, left)
            return result

    cache.__class__ = RowCache


@dataclass(frozen=True, eq=False)
class Runtime:
    """All that generation and scoring know of a model. ``max_length``: context length in tokens; ``intervention``:
    None for a model that is not steered."""

    model: Any  # a PreTrainedModel, or PEFT's, which runs like the model inside
    chat: ChatFormat
    max_length: int
    intervention: Intervention | None = None

    @property
    def device(self) -> torch.device:
        return input_device(self.model)

    def steering(self) -> AbstractContextManager[Steering | None]:
        """Hooks for forwards of ``model``; a null context where there is no intervention."""
        if self.intervention is None:
            return nullcontext()
        chat = self.chat
        return Steering(
            self.model,
            self.intervention,
            special_ids=chat.special_ids,
            stop_ids=chat.stop_ids,
            last_turn=chat.last_turn,
        )
