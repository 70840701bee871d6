"""AlignedModel: a base model plus what alignment added to it (adapter, weights, intervention, instruction)."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.data.refs import ModelRef, model_ref
from harness.data.triples import Conversation, Triple, conversation
from harness.files import folder_hash
from harness.model.artifact import (
    hash_tensors,
    moved_saes,
    read_description,
    read_intervention,
    read_network,
    write_artifact,
)
from harness.model.base import BaseModel
from harness.model.chat import ChatFormat, with_instruction
from harness.model.decoder import input_device
from harness.model.generation import Batch, generate_batches, temperatures_of
from harness.model.intervention import Intervention
from harness.model.loglikelihood import ScoredBatch, score_batches
from harness.model.steering import Runtime, Steering
from harness.model.trace import Trace, trace_answer
from harness.references import references
from harness.responder import Completion

Delta = Literal["none", "adapter", "weights"]


MAX_NEW_TOKENS = 256
"""Of an answer, where nothing else is asked for."""


@dataclass(frozen=True, eq=False, repr=False)
class AlignedModel:
    """What an alignment method returns and a benchmark evaluates.

    ``model`` is what runs: the base's own weights, a PEFT model around them (``delta='adapter'``) or fine-tuned
    ones (``delta='weights'``). ``budget`` and ``bill`` are provenance and do not enter the fingerprint. ``encoded``
    holds the triples that were tokenised so far, (instruction, key of a triple) -> its ids, four bytes a token: whoever
    asks for the same ones often gives an empty one.
    """

    base: BaseModel
    model: PreTrainedModel
    method: str = "base"
    params: Mapping[str, Any] = field(default_factory=dict)
    delta: Delta = "none"
    intervention: Intervention | None = None
    system_prompt: str | None = None
    budget: Mapping[str, Any] | None = None
    bill: Mapping[str, Any] | None = None
    encoded: dict[tuple[str | None, str], tuple[array, array, array]] | None = None

    @classmethod
    def from_base(cls, ref: ModelRef, *, device: str = "cpu") -> "AlignedModel":
        """The untouched base model."""
        base = BaseModel.load(ref, device=device)
        return cls(base, base.model)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        base: BaseModel | ModelRef | str | Path | None = None,
        saes: Mapping[str, str | Path] | None = None,
        device: str = "cpu",
    ) -> "AlignedModel":
        """Load an artifact folder.

        ``base`` says where the base is now (a folder, GGUF file or Hugging Face id[@revision], in the artifact's own
        dtype and chat format, unless it is a ModelRef), ``saes`` where SAEs are: their names in the method's
        settings, such as input_sae -> folder. Neither changes what the model is: the contents must be the same.

        Raises ValueError for a folder without aligned.json, an unknown schema, a base or SAE that is not there or is
        another, or changed tensors.
        """
        description = read_description(path)
        saved = dict(description["base"])
        expected = saved.pop("hash")
        if not isinstance(base, BaseModel):
            base = BaseModel.load(find_base(path, saved, base), device=device)
        device = str(base.device)
        if base.identity != expected:
            raise ValueError(
                f"{path}: made on base {saved['path'] or saved['id']} with hash {expected[:12]}, "
                f"but the base given has {base.identity[:12]}; give the base it was made on"
            )
        kept = {name: description[name] for name in ("method", "params", "delta", "system_prompt", "budget", "bill")}
        model, steering = read_network(path, kept["delta"], base), description["intervention"]
        if steering is not None:
            steering = moved_saes(path, steering, saes or {})
            for name, ref in references(kept["params"]):
                ref["path"] = str(Path((saes or {}).get(name, str(ref["path"]))).resolve())
        elif saes:
            raise ValueError(f"{path}: it needs no SAE, but one is given for {', '.join(saes)}")
        aligned = cls(base, model, intervention=read_intervention(path, steering, device), **kept)
        if aligned.fingerprint != description["fingerprint"]:
            others = [
                name
                for name, ref in references((steering or {}).get("params"))
                if description.get("saes", {}).get(name) not in (None, folder_hash(ref["path"]))
            ]
            if others:
                raise ValueError(f"{path}: another SAE than it was made with: {', '.join(others)}; give the same one")
            raise ValueError(
                f"{path}: the tensors do not match the fingerprint in aligned.json; the artifact was changed"
            )
        return aligned

    def save(self, path: str | Path) -> None:
        """Write an artifact folder (see `harness.model.artifact.write_artifact`)."""
        steering = self.intervention
        saes = () if steering is None else references(json.loads(json.dumps(steering.params())))
        description = {
            "method": self.method,
            "base": {**self.base.pinned.model_dump(), "hash": self.base.identity},
            "budget": self.budget,
            "params": dict(self.params),
            "fingerprint": self.fingerprint,
            "delta": self.delta,
            "intervention": None if steering is None else {"kind": steering.name, "params": steering.params()},
            "saes": {name: folder_hash(ref["path"]) for name, ref in saes},
            "system_prompt": self.system_prompt,
            "bill": self.bill,
        }
        tensors = None if steering is None else steering.tensors()
        write_artifact(path, description, model=self.model, tokenizer=self.tokenizer, tensors=tensors)

    def derive(self, **changes: Any) -> "AlignedModel":
        """A copy with some fields changed."""
        return replace(self, **changes)

    def unaligned(self) -> "AlignedModel":
        """The base model that alignment started from."""
        return AlignedModel(self.base, self.base.model)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.base.tokenizer

    @property
    def chat(self) -> ChatFormat:
        return self.base.chat

    @property
    def device(self) -> torch.device:
        """Where token ids go, and what steers it lives."""
        return input_device(self.model)

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that decides the outputs: base, weight delta, intervention, chat format, dtype.

        Batch size and device are not in it; provenance neither.
        """
        return self._fingerprint

    @cached_property  # apart, because a protocol's property can be no cached one
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        parts = [self.base.identity, self.chat.identity, str(self.model.dtype), self.system_prompt, self.delta]
        digest.update(json.dumps(parts).encode())
        if self.delta == "adapter":
            settings = {name: config.to_dict() for name, config in self.model.peft_config.items()}  # type: ignore[union-attr]
            digest.update(_adapter_settings(settings).encode())
        hash_tensors(digest, self.delta_tensors())
        if self.intervention is not None:
            named = [self.intervention.name, self.intervention.identity()]
            digest.update(json.dumps(named, sort_keys=True).encode())
            hash_tensors(digest, self.intervention.tensors())
        return digest.hexdigest()

    def delta_tensors(self) -> dict[str, Tensor]:
        """The weights that differ from the base's: the adapter's, or all of a fine-tuned model's."""
        if self.delta == "adapter":
            from peft import get_peft_model_state_dict

            return get_peft_model_state_dict(self.model)
        return dict(self.model.state_dict()) if self.delta == "weights" else {}

    @property
    def runtime(self) -> Runtime:
        """What generation and scoring need of it."""
        return Runtime(self.model, self.chat, self.base.max_length, self.intervention)

    def steering(self) -> AbstractContextManager[Steering | None]:
        """Hooks for forwards of ``self.model``; a null context where there is no intervention."""
        return self.runtime.steering()

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Token ids the model answers to, with its instruction (if any) as system turn."""
        return self.chat.prompt_ids(with_instruction(conversation, self.system_prompt))

    def triple_ids(self, triple: Triple) -> tuple[list[int], list[int], list[int]]:
        """Ids of prompt, chosen and rejected answer (without end-of-turn), the same for every method.

        Raises ValueError when the longer of the two texts does not fit the context: nothing is cut.
        """
        place = self.system_prompt, triple.key
        if self.encoded is not None and place in self.encoded:
            prompt, chosen, rejected = self.encoded[place]
            return list(prompt), list(chosen), list(rejected)
        prompt = self.prompt_ids(triple.prompt)
        chosen, rejected = self.chat.response_ids(triple.chosen), self.chat.response_ids(triple.rejected)
        longest = len(prompt) + max(len(chosen), len(rejected)) + 1
        if longest > self.base.max_length:
            raise ValueError(
                f"triple {triple.key[:12]} ({triple.prompt[-1]['content'][:40]!r}...) has {longest} tokens, more than "
                f"the context of {self.base.max_length}; leave it out of the triples file"
            )
        if self.encoded is not None:
            self.encoded[place] = array("i", prompt), array("i", chosen), array("i", rejected)
        return prompt, chosen, rejected

    def __repr__(self) -> str:
        steered = "" if self.intervention is None else f", steered by {self.intervention.name}"
        delta = {"none": "", "adapter": ", with an adapter", "weights": ", with weights of its own"}[self.delta]
        fitted = "" if self.budget is None else f", fitted on {self.budget['n']} triples"
        return f"<AlignedModel: {self.method} on {self.base.ref.path or self.base.ref.id}{delta}{steered}{fitted}>"

    def generate(
        self,
        conversations: str | Sequence[str | Conversation],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float | Sequence[float] = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[Completion]:
        """Answer each conversation; a text is one user turn, and a text alone the only conversation.

        Greedy at temperature 0, else sampled from softmax(logits / temperature). A row's answer depends on its
        conversation, temperature and ``seed`` alone, not on batch or order. A prompt that leaves no room for
        ``max_new_tokens`` in the context gives a Completion with ``error``.
        """
        asked = [conversations] if isinstance(conversations, str) else conversations
        conversations = [conversation(one) for one in asked]
        batches = self.generate_batches(
            conversations, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, batch_size=batch_size
        )
        answers = {row: one for batch in batches for row, one in zip(batch.rows, batch.completions, strict=True)}
        return [answers[row] for row in range(len(conversations))]

    def generate_batches(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        temperature: float | Sequence[float] = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> Iterator[Batch]:
        """The same, a batch at a time as it is answered, longest prompts first; what has no room comes before all."""
        temperatures = temperatures_of(temperature, len(conversations), max_new_tokens, batch_size)
        prompts = [self.prompt_ids(c) for c in conversations]
        return generate_batches(self.runtime, prompts, temperatures, max_new_tokens, seed=seed, batch_size=batch_size)

    def trace(self, asked: str | Conversation, answer: str | Sequence[int] | Completion) -> Trace:
        """What steering edits, token by token, where the model answers ``asked`` (a text is one user turn) with
        ``answer``: text, token ids, or what `generate` gave. See `harness.model.trace.trace_answer`."""
        if isinstance(answer, Completion):
            answer = answer.token_ids
        ids = self.chat.response_ids(answer) if isinstance(answer, str) else answer
        return trace_answer(self.runtime, self.prompt_ids(conversation(asked)), ids)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]], *, batch_size: int = 64) -> list[tuple[float, bool]]:
        """(log p(continuation | context), is greedy) of raw text pairs; steering conditions on the context alone.

        Trailing spaces of the context count as the continuation's, as in lm-eval, so that words stay whole.
        """
        return self.loglikelihood_tokens(self.token_requests(pairs), batch_size=batch_size)

    def token_requests(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """(context, continuation) as `loglikelihood` hands them to `loglikelihood_tokens`."""
        requests = []
        for context, continuation in pairs:
            if not context or not continuation:
                raise ValueError("loglikelihood needs a non-empty context and continuation")
            kept = context.rstrip() or context
            context, continuation = kept, context[len(kept) :] + continuation
            context_ids = list(self.tokenizer(context)["input_ids"])  # type: ignore[arg-type]
            whole = list(self.tokenizer(context + continuation)["input_ids"])  # type: ignore[arg-type]
            requests.append((context_ids, whole[len(context_ids) :]))
        return requests

    def loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        batch_size: int = 64,
        progress: Callable[[int], object] | None = None,
    ) -> list[tuple[float, bool]]:
        """The same for token ids; ``progress`` is called with the number of requests just finished."""
        scores: dict[int, tuple[float, bool]] = {}
        for batch in self.score_batches(requests, batch_size=batch_size):
            scores.update(batch.scores)
            if progress is not None:
                progress(len(batch.scores))
        return [scores[row] for row in range(len(requests))]

    def score_batches(
        self, requests: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int = 64
    ) -> Iterator[ScoredBatch]:
        """The same, a batch at a time as it is scored.

        Raises ValueError for an empty context or continuation and for more tokens than the context length.
        """
        for context, continuation in requests:
            if not context or not continuation:
                raise ValueError("loglikelihood needs a non-empty context and continuation")
            if len(context) + len(continuation) - 1 > self.base.max_length:
                raise ValueError(
                    f"{len(context)} + {len(continuation)} tokens exceed the context of {self.base.max_length}; "
                    "shorten the context"
                )
        return score_batches(self.runtime, requests, batch_size=batch_size)


def find_base(artifact: str | Path, saved: Mapping[str, Any], given: ModelRef | str | Path | None = None) -> ModelRef:
    """Where the base of ``artifact`` is: as ``given``, else as ``saved``, its entry in aligned.json without the hash.

    Raises ValueError for a damaged entry, and where the base is gone.
    """
    try:
        ref = ModelRef(**saved)
    except ValidationError as problem:
        wrong = ", ".join(".".join(map(str, error["loc"])) or error["msg"] for error in problem.errors())
        raise ValueError(f"{artifact}: 'base' in aligned.json is damaged: {wrong}; fit the artifact again") from None
    if isinstance(given, ModelRef):
        return given
    if given is not None:
        return model_ref(str(given), ref.chat).model_copy(update={"dtype": ref.dtype})
    if ref.path is not None and not Path(ref.path).exists():
        raise ValueError(
            f"{artifact}: its base is not at {ref.path!r}; say where it is: --base FOLDER, in Python base=FOLDER"
        )
    return ref


def _adapter_settings(configs: dict[str, dict[str, Any]]) -> str:
    """What of PEFT's configuration decides the outputs; where the base lies and how it was trained does not."""
    left_out = {"base_model_name_or_path", "inference_mode", "revision", "peft_version", "task_type", "auto_mapping"}
    kept = {name: {k: v for k, v in config.items() if k not in left_out} for name, config in configs.items()}
    return json.dumps(kept, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
