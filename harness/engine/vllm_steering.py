"""Steering inside vLLM: each request of a continuous batch gets the condition of its own prompt, and its own edits.

vLLM's model runner flattens what it forwards: some tokens of a prompt here (a chunk of its prefill), one token of an
answer there. `RunnerSteering` knows which tokens are whose, keeps the residual stream of a prompt until all of it was
passed, has the intervention compute its condition as in `harness.model.steering`, and adds the intervention's deltas
from the last prompt token on. A request that was preempted keeps its condition; as it is prefilled again, the tokens of
its answer are edited again and not counted twice.

All of it happens in one operator of torch's, `OPERATOR`, behind each layer that is read or written, so that a compiled
model has it too, and captured graphs are to be split at it. It holds for the V1 model runner without speculative
decoding, asynchronous scheduling and prefix caching (edited tokens have other keys and values than the same tokens
without edits).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.model.artifact import read_description, read_intervention
from harness.model.chat import ChatFormat
from harness.model.decoder import find_decoder
from harness.model.intervention import Intervention, RowState
from harness.model.pretrained import read_tokenizer
from harness.model.turns import narrowed

EXTRA = "dspa_bench"
"""The key of a request's ``extra_args`` whose value is the artifact's folder."""
OPERATOR = "dspa_bench::steer"
"""(hidden, residual, layer): reads the stream, and edits ``residual`` in place."""
KNOWN = ("Gemma2ForCausalLM", "LlamaForCausalLM")
"""Architectures whose decoder layers are known to hand on (hidden, residual), the sum of which is the stream."""


@dataclass(eq=False)
class Steered:
    """An artifact at work: its ``intervention``, the ``chat`` format of its base, and what it counts, if it does."""

    intervention: Intervention
    chat: ChatFormat
    tally: Any

    @property
    def layers(self) -> frozenset[int]:
        """Those that are read or written."""
        return frozenset((*self.intervention.read_layers, *self.intervention.write_layers))

    @classmethod
    def load(
        cls, artifact: Path, model: str, device: str, *, revision: str | None = None, counts: bool = True
    ) -> "Steered":
        """``model`` (and ``revision``): what vLLM was started with, whose tokenizer writes the chats.

        ValueError for an artifact without an intervention, and one that edits prompts by a condition on them: of a
        prompt that comes in chunks the first are over before there is a condition.
        """
        description = read_description(artifact)
        intervention = read_intervention(artifact, description["intervention"], device)
        if intervention is None:
            raise ValueError(f"{artifact} does not steer")
        if intervention.positions == "all" and intervention.read_layers:
            raise ValueError(f"{artifact} edits the prompt by a condition on it, which vLLM cannot (positions: all)")
        chat = ChatFormat.of(read_tokenizer(model, revision=revision), description["base"].get("chat", "auto"))
        return cls(intervention, chat, intervention.tally() if counts else None)


@dataclass(eq=False)
class Row:
    """One request: the ids of its ``prompt``, and what is known of it so far.

    ``parts`` are the residual streams of the prompt's chunks that were passed, by layer, ``state`` the condition once
    there is one, ``counted`` the number of its tokens whose edits are in the tally.
    """

    steered: Steered
    prompt: Tensor
    parts: dict[int, list[Tensor]] = field(default_factory=dict)
    passed: int = 0
    state: RowState | None = None
    counted: int = 0

    def __post_init__(self) -> None:
        if not self.steered.intervention.read_layers:
            self._conclude({})

    @property
    def first_edited(self) -> int:
        """The place of the first token that is edited."""
        return 0 if self.steered.intervention.positions == "all" else len(self.prompt) - 1

    def see(self, layer: int, stream: Tensor) -> None:
        """Take the stream after a read layer of the next tokens of the prompt; the last ones conclude."""
        self.parts.setdefault(layer, []).append(stream.clone())
        whole = {one: torch.cat(parts) for one, parts in self.parts.items() if sum(map(len, parts)) == len(self.prompt)}
        if whole.keys() == set(self.steered.intervention.read_layers):
            self._conclude({one: stream[None] for one, stream in whole.items()})
            self.parts.clear()

    def _conclude(self, residual: dict[int, Tensor]) -> None:
        intervention, chat, ids = self.steered.intervention, self.steered.chat, self.prompt[None]
        counted = torch.ones_like(ids, dtype=torch.bool)
        if getattr(intervention, "condition_on", "conversation") == "last_turn":
            counted = narrowed(counted, ids, chat.last_turn)
        for special in chat.special_ids:
            counted &= ids != special
        self.state = intervention.condition(residual, counted, tally=self.steered.tally)


@dataclass(frozen=True, eq=False)
class Span:
    """The tokens of a request in this forward: from ``begin`` to ``end`` of the batch, the first at ``place`` of it."""

    name: str
    row: Row
    begin: int
    end: int
    place: int


class RunnerSteering:
    """The steering of one model runner behind ``layers``; artifacts are loaded as requests name them.

    ``serving`` is for a server, which runs long: artifacts stay loaded, and nothing is counted. ValueError for an
    architecture that is not `KNOWN`.
    """

    def __init__(self, runner: Any, layers: Iterable[int], *, serving: bool = False) -> None:
        architecture = type(runner.get_model()).__name__
        if architecture not in KNOWN:
            raise ValueError(f"steering in vLLM knows {', '.join(KNOWN)}; this is {architecture}")
        self._runner, self._layers, self._serving = runner, frozenset(layers), serving
        self._artifacts: dict[str, Steered] = {}
        self._rows: dict[str, Row] = {}
        self._spans: list[Span] = []
        self._ids = torch.empty(0)
        self._passed: set[int] = set()
        self._stacked: dict[Steered, tuple[tuple[str, ...], RowState]] = {}
        decoder = find_decoder(runner.get_model())
        for layer in self._layers:
            decoder.layers[layer].register_forward_hook(partial(_call_operator, layer))

    @property
    def asked(self) -> bool:
        """Whether a request that is under way names an artifact."""
        given = (getattr(one.sampling_params, "extra_args", None) or {} for one in self._runner.requests.values())
        return any(EXTRA in one for one in given)

    def removed(self, name: str) -> None:
        """The request is over."""
        self._rows.pop(name, None)

    def read_tally(self, artifact: str) -> Any:
        """What was counted for the artifact since the last time; None where nothing was."""
        steered = self._artifacts.get(artifact)
        if steered is None or steered.tally is None:
            return None
        found, steered.tally = steered.tally.read(), steered.intervention.tally()
        return found

    @contextmanager
    def forward(self, ids: Tensor) -> Iterator[None]:
        """In the block the runner forwards the tokens ``ids``; RuntimeError where that passed by the operator."""
        self._ids, self._spans = ids, list(self._found_spans())
        self._passed.clear()
        _forwarding.append(self)
        try:
            yield
            needed = {layer for span in self._spans for layer in span.row.steered.layers}
            if left := needed - self._passed:
                raise RuntimeError(f"layers {sorted(left)} were not steered: the model was compiled without it")
        finally:
            _forwarding.pop()
            self._spans = []

    def _found_spans(self) -> Iterator[Span]:
        runner = self._runner
        batch = runner.input_batch
        for index, name in enumerate(batch.req_ids[: batch.num_reqs]):
            request = runner.requests[name]
            artifact = (getattr(request.sampling_params, "extra_args", None) or {}).get(EXTRA)
            if artifact is None:
                continue
            row = self._rows.get(name)
            if row is None:
                prompt = torch.tensor(request.prompt_token_ids, device=self._ids.device)
                row = self._rows[name] = Row(self._steered(artifact), prompt)
            begin, end = (int(runner.query_start_loc.np[index + one]) for one in (0, 1))
            place = int(batch.num_computed_tokens_cpu[index])
            if row.state is None:
                if place == 0:  # also of one that was preempted in the midst of its prompt
                    row.parts.clear()
                    row.passed = 0
                if place != row.passed:
                    raise ValueError(f"{place} tokens of a prompt were not passed here; switch prefix caching off")
                row.passed = min(place + end - begin, len(row.prompt))
            yield Span(name, row, begin, end, place)

    def _steered(self, artifact: str) -> Steered:
        if artifact not in self._artifacts:
            if not self._serving:  # SAEs of cells that are over take memory
                used = {row.steered for row in self._rows.values()}
                self._artifacts = {name: one for name, one in self._artifacts.items() if one in used}
                self._stacked = {one: kept for one, kept in self._stacked.items() if one in used}
            there, device = self._runner.model_config, str(self._ids.device)
            found = self._artifacts[artifact] = Steered.load(
                Path(artifact), there.model, device, revision=there.revision, counts=not self._serving
            )
            if not found.layers <= self._layers:
                raise ValueError(
                    f"{artifact} works at layers {sorted(found.layers)}, vLLM's are {sorted(self._layers)}"
                )
        return self._artifacts[artifact]

    def at(self, layer: int, hidden: Tensor, residual: Tensor) -> None:
        """What is to be done behind a layer, whose stream is ``hidden + residual``."""
        self._passed.add(layer)
        if not self._spans:
            return
        stream = hidden + residual
        for span in self._spans:
            row = span.row
            if row.state is None and layer in row.steered.intervention.read_layers:
                row.see(layer, stream[span.begin : min(span.end, span.begin + len(row.prompt) - span.place)])
        for steered in {id(span.row.steered): span.row.steered for span in self._spans}.values():
            if layer in steered.intervention.write_layers:
                self._edit(layer, steered, stream, residual)

    def _edit(self, layer: int, steered: Steered, stream: Tensor, residual: Tensor) -> None:
        """Add the deltas of ``steered`` to ``residual``, in place."""
        single: list[Span] = []
        for span in self._spans:
            if span.row.steered is not steered:
                continue
            start = max(span.place, span.row.first_edited)
            if span.place + span.end - span.begin <= start:
                continue
            if span.place + span.end - span.begin == start + 1 and start >= span.row.counted:
                single.append(span)
            else:
                self._edit_several(layer, steered, span, start, stream, residual)
        if single:
            at = torch.tensor([span.end - 1 for span in single], device=stream.device)
            state = self._stack(steered, single)
            self._add(layer, steered, at[:, None], state, stream, residual, steered.tally)
            self._count(layer, steered, single)

    def _edit_several(
        self, layer: int, steered: Steered, span: Span, start: int, stream: Tensor, residual: Tensor
    ) -> None:
        """Several tokens of one request: a prompt that is edited, or an answer that is prefilled again. Those that were
        counted before come first."""
        self._unstack(steered)
        state = span.row.state
        assert state is not None
        end = span.place + span.end - span.begin
        border = min(max(start, span.row.counted), end)
        for first, last, tally in ((start, border, None), (border, end, steered.tally)):
            if first < last:
                at = torch.arange(first, last, device=stream.device) - span.place + span.begin
                self._add(layer, steered, at[None], state, stream, residual, tally)
        self._count(layer, steered, [span])

    def _add(
        self, layer: int, steered: Steered, at: Tensor, state: RowState, stream: Tensor, residual: Tensor, tally: Any
    ) -> None:
        ids = self._ids[at]
        edited = torch.ones_like(ids, dtype=torch.bool)
        for special in steered.chat.special_ids:
            edited &= ids != special
        delta = steered.intervention.delta(layer, stream[at], state, edited, tally=tally)
        if delta is not None:
            residual.index_add_(0, at.flatten(), delta.flatten(0, 1).to(residual.dtype))

    def _count(self, layer: int, steered: Steered, spans: Sequence[Span]) -> None:
        if layer == max(steered.intervention.write_layers):
            for span in spans:
                span.row.counted = max(span.row.counted, span.place + span.end - span.begin)

    def _stack(self, steered: Steered, spans: Sequence[Span]) -> RowState:
        """The states of the spans' rows, stacked; kept as they are while the batch is the same."""
        names = tuple(span.name for span in spans)
        there = self._stacked.get(steered)
        if there is None or there[0] != names:
            self._unstack(steered)
            states = [span.row.state for span in spans]
            assert all(state is not None for state in states)
            keys = states[0].keys() if states[0] is not None else ()
            there = names, {key: torch.cat([state[key] for state in states if state is not None]) for key in keys}
            self._stacked[steered] = there
        return there[1]

    def _unstack(self, steered: Steered) -> None:
        """Give the rows back their states, which an intervention may have changed in place."""
        names, stacked = self._stacked.pop(steered, ((), {}))
        for index, name in enumerate(names):
            if name in self._rows:
                self._rows[name].state = {key: value[index : index + 1] for key, value in stacked.items()}


def install(layers: Iterable[int], *, serving: bool = False) -> None:
    """Have every V1 model runner of this process steer, behind ``layers``, the requests that name an artifact.

    To be called before models are loaded; see `RunnerSteering`.
    """
    from vllm.platforms import current_platform  # type: ignore
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as Runner  # type: ignore

    if hasattr(Runner, _MARK):
        return
    loading: Any = Runner
    if current_platform.device_type == "cpu":
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner as loading  # type: ignore

    define_operator()
    load, forward, removed = loading.load_model, Runner._model_forward, Runner._on_request_state_removed

    def load_model(self: Any, *args: Any, **more: Any) -> None:
        load(self, *args, **more)
        setattr(self, _MARK, RunnerSteering(self, layers, serving=serving))

    def steered_forward(self: Any, input_ids: Any = None, *args: Any, **more: Any) -> Any:
        steering = getattr(self, _MARK)
        if steering is None or not steering.asked:
            return forward(self, input_ids, *args, **more)
        with steering.forward(input_ids):
            return forward(self, input_ids, *args, **more)

    def forgotten(self: Any, req_id: str, req_state: Any) -> None:
        removed(self, req_id, req_state)
        if (steering := getattr(self, _MARK)) is not None:
            steering.removed(req_id)

    setattr(Runner, _MARK, None)
    loading.load_model = load_model
    Runner._model_forward, Runner._on_request_state_removed = steered_forward, forgotten


def define_operator() -> None:
    """Make `OPERATOR` known to torch; once in a process."""

    @torch.library.custom_op(OPERATOR, mutates_args=("residual",))
    def steer(hidden: Tensor, residual: Tensor, layer: int) -> None:
        for steering in _forwarding:
            steering.at(layer, hidden, residual)

    @steer.register_fake
    def _(hidden: Tensor, residual: Tensor, layer: int) -> None:
        """Nothing is given back."""


def _call_operator(layer: int, module: nn.Module, args: tuple, output: tuple[Tensor, Tensor]) -> None:
    """A forward hook: torch traces it together with the layer."""
    torch.ops.dspa_bench.steer(*output, layer)


def read_tally(worker: Any, artifact: str) -> Any:
    """What the runner of a vLLM worker counted for ``artifact`` since the last time; None where nothing was."""
    steering = getattr(worker.model_runner, _MARK, None)
    return None if steering is None else steering.read_tally(artifact)


_MARK = "_dspa_bench_steering"
_forwarding: list[RunnerSteering] = []
"""The steering of the runner that is forwarding steered requests; else empty."""
