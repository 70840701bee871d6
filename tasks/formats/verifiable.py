"""The judge of the forms: a program that reads whether an answer has the form that its prompt's family prefers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from harness.data.refs import InputPath, ModelRef
from harness.data.triples import Conversation
from harness.judging import Answer, Comparison, JudgeConfig, Rating, Verb, Verdict, register_judge
from tasks.formats.content import Content, content_of, repetition_of, shared_words
from tasks.formats.forms import form_found, scores, words
from tasks.formats.prompts import ASSETS, Prompt, read_prompts

if TYPE_CHECKING:
    from harness.model.aligned import AlignedModel

VERSION = 1
FORM_FREE = 0.2  # what an answer with good content earns whatever its form
TIE = 0.25  # ratings closer than this count as equal in a comparison
MAX_NATS = 2.61
"""Default of ``max_nats``: see there."""


@dataclass(frozen=True)
class Assessment:
    """What was found in one answer to a prompt; ``nats`` (a token, under the base) is None where nobody looked."""

    prompt: Prompt
    answer: str
    content: Content
    nats: float | None
    max_nats: float

    @property
    def form(self) -> float:
        """How much the answer has the form that is preferred, 0..1."""
        return scores(self.answer)[self.prompt.form]

    @property
    def surprise(self) -> float:
        """1 up to ``max_nats``, 0 from twice as many on, linear between; 1 where nobody looked."""
        return 1.0 if self.nats is None else min(1.0, max(0.0, 2 - self.nats / self.max_nats))

    @property
    def rating(self) -> float:
        """1 + 9 x content x (0.2 + 0.8 x form), in 1..10."""
        return 1 + 9 * self.content.factor * self.surprise * (FORM_FREE + (1 - FORM_FREE) * self.form)

    def __str__(self) -> str:
        """Every check with its value, for the report."""
        shared = ", ".join(shared_words(self.prompt.text, self.answer)[:4]) or "none"
        nats = "not asked for" if self.nats is None else f"{self.nats:.2f} nats a token of {self.max_nats:g}"
        return (
            f"{self.prompt.family} prompt, preferred form {self.prompt.form}; found: {form_found(self.answer)}; "
            f"form {self.form:.2f}; "
            f"length {self.content.length:.2f} ({len(words(self.answer))} words); "
            f"repetition {self.content.repetition:.2f} ({repetition_of(self.answer):.2f} of three-word runs differ); "
            f"topic {self.content.topic:.2f} (shared: {shared}); echo {self.content.echo:.2f}; "
            f"surprise {self.surprise:.2f} ({nats}); rating {self.rating:.2f}"
        )


@register_judge("verifiable")
class Verifiable(JudgeConfig):
    """Deterministic and free: the form is checked by a program, the content only kept in check.

    It knows the prompts of ``families`` alone, by the last user turn; another one is an error. With ``base`` it also
    scores every answer by that model, unsteered: what it finds too unlikely is no good text.
    """

    verbs: ClassVar[frozenset[Verb]] = frozenset({"rate", "compare"})
    operational: ClassVar[frozenset[str]] = frozenset({"batch_size", "device"})

    families: InputPath = Field(ASSETS / "prompts.jsonl", description="JSONL of prompts, each with its family")
    base: ModelRef | None = Field(
        None, description="causal LM that says how likely an answer is; without, nobody looks"
    )
    max_nats: Annotated[float, Field(gt=0)] = Field(
        MAX_NATS,
        description="mean surprise per token (nats) up to which an answer is good text; by default the 99th percentile "
        "of the answers of SmolLM2-135M-Instruct to the training prompts (see assets/manifest.json)",
    )
    batch_size: Annotated[int, Field(ge=1, description="answers scored together")] = 32
    device: str = Field("cpu", description="torch device of `base`")

    @property
    def label(self) -> str:
        """With the start of the base's hash where it has one."""
        return f"verifiable-v{VERSION}" + (f"-{self._content[:8]}" if self.base else "")

    @property
    def statement(self) -> str:
        looked = (
            f"and by the unsteered {self._base_name} whether it is likely text (up to {self.max_nats:g} nats a token)"
            if self.base
            else "(how likely a text it is, nobody looked at)"
        )
        return (
            "These numbers come from a program. It knows of every prompt which form of answer its family prefers "
            "(how-to: numbered steps; facts: one sentence; choices: both sides named; ideas: a bullet list; feelings: "
            "a letter; rewriting: the text alone in quotation marks) and reads whether the answer has it. Of the "
            f"content it checks only length, repetition, words shared with the prompt and echo, {looked}: not whether "
            "it is true, helpful or kind. The numbers show how well a method finds a known preference; they say "
            "nothing about how people or a strong model would rate the answers."
        )

    def check(self) -> None:
        """Refuses a missing or damaged prompts file, a base that cannot be read, a device that is not there."""
        _ = self._prompts
        if self.base is not None:
            from harness.model.base import check_device, check_weights

            check_device(self.device)
            check_weights(self.base)

    def rate(self, requests: Sequence[Rating]) -> list[Verdict]:
        found = self._assessed([request.conversation for request in requests])
        return [_failed(one) if isinstance(one, str) else Verdict(one.rating, str(one)) for one in found]

    def compare(self, requests: Sequence[Comparison]) -> list[Verdict]:
        found = self._assessed([side for request in requests for side in (request.first, request.second)])
        return [_comparison(*pair) for pair in zip(found[::2], found[1::2], strict=True)]

    def harm(self, requests: Sequence[Answer]) -> list[Verdict]:
        return [_failed("the judge of forms cannot say how harmful an answer is")] * len(requests)

    def refusal(self, requests: Sequence[Answer]) -> list[Verdict]:
        return [_failed("the judge of forms cannot say whether an answer refuses")] * len(requests)

    def _assessed(self, conversations: Sequence[Conversation]) -> list[Assessment | str]:
        """What is found in the last answer of each conversation, or why nothing can be."""
        nats = self._nats(conversations)
        found: list[Assessment | str] = []
        for conversation, surprise in zip(conversations, nats, strict=True):
            text, answer = _last_request(conversation), conversation[-1]["content"]
            if text not in self._prompts:
                found.append(f"the judge knows only the prompts of {self.families.name}; not {text[:60]!r}")
            elif isinstance(surprise, str):
                found.append(surprise)
            else:
                prompt = self._prompts[text]
                content = content_of(text, answer, prompt.family)
                found.append(Assessment(prompt, answer, content, surprise, self.max_nats))
        return found

    def _nats(self, conversations: Sequence[Conversation]) -> list[float | str | None]:
        """Mean surprise per token of each last answer under the base, or why it cannot be told; None without a base,
        for an unknown prompt, and for an answer without a token."""
        found: list[float | str | None] = [None] * len(conversations)
        if self.base is None:
            return found
        requests: dict[int, tuple[list[int], list[int]]] = {}
        for index, conversation in enumerate(conversations):
            if _last_request(conversation) not in self._prompts:
                continue
            prompt = self._model.prompt_ids(conversation[:-1])
            answer = self._model.chat.response_ids(conversation[-1]["content"])
            if len(prompt) + len(answer) > self._model.base.max_length:
                found[index] = f"{len(prompt) + len(answer)} tokens do not fit the context of the judge's base model"
            elif answer:
                requests[index] = prompt, answer
        scored = self._model.loglikelihood_tokens(list(requests.values()), batch_size=self.batch_size)
        for (index, (_, answer)), (value, _) in zip(requests.items(), scored, strict=True):
            found[index] = -value / len(answer)
        return found

    @cached_property
    def _prompts(self) -> dict[str, Prompt]:
        return {prompt.text: prompt for prompt in read_prompts(self.families)}

    @cached_property
    def _model(self) -> "AlignedModel":
        from harness.model.aligned import AlignedModel

        assert self.base is not None
        return AlignedModel.from_base(self.base, device=self.device)

    @cached_property
    def _content(self) -> str:
        from harness.model.base import base_identity

        assert self.base is not None
        return base_identity(self.base)

    @property
    def _base_name(self) -> str:
        assert self.base is not None
        return f"base model ({self._content[:8]}, {self.base.dtype})"


def _last_request(conversation: Conversation) -> str:
    """What the last answer answers: the turn before it, as the user wrote it."""
    return conversation[-2]["content"].strip() if len(conversation) > 1 else ""


def _comparison(first: Any, second: Any) -> Verdict:
    if isinstance(first, str) or isinstance(second, str):
        return _failed("; ".join(dict.fromkeys(one for one in (first, second) if isinstance(one, str))))
    a, b = first.rating, second.rating
    return Verdict(1.5 if abs(a - b) < TIE else 1.0 if a > b else 2.0, f"first: {first} | second: {second}")


def _failed(reason: str) -> Verdict:
    return Verdict(None, "", error=reason)
