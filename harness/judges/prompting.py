"""A judge that is a language model: a question for each request, verdicts read from the texts that come back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import Field, PrivateAttr

from harness.judges import parsing, prompts
from harness.judges.base import Answer, Comparison, JudgeConfig, Rating, Verdict
from harness.judges.chat import Reply
from harness.judges.fastchat_prompts import FastChatPrompts
from harness.judges.replies import Replies, reply_key
from harness.preferences import Conversation
from harness.refs import InputPath

R = TypeVar("R", Rating, Comparison, Answer)
Received = Callable[[int, Reply], None]
"""Told a reply, with the index of its conversation."""


class PromptedJudge(JudgeConfig, ABC):
    """The four verbs over `_ask`: a subclass says how conversations get replies, who it is, and what that means.

    Replies that can be read are kept in the folder of `at`, each as it comes, and never asked for again; of equal
    questions in one batch only one is asked. A reply that cannot be read is a verdict with an error, and its question
    is asked again by the next run.
    """

    mt_bench_prompts: InputPath | None = Field(
        None,
        description="FastChat's judge_prompts.jsonl, for ratings and comparisons of conversations of one or two turns; "
        "without it, and for all other requests, the prompts are this project's own",
    )
    _kept: Replies | None = PrivateAttr(None)

    @property
    @abstractmethod
    def label(self) -> str: ...

    @property
    @abstractmethod
    def statement(self) -> str: ...

    @abstractmethod
    def _ask(self, conversations: Sequence[Conversation], received: Received) -> None:
        """Get a reply to each of the (different) ``conversations``; each ends with a user turn.

        ``received(index, reply)`` is to be called once for each, as soon as its reply is there or has failed.
        """

    @property
    def identity(self) -> dict[str, Any]:
        """All that a reply depends on besides what was sent; part of the key that it is kept by.

        To be extended where a setting names something whose content may change, such as a folder of weights.
        """
        return {"kind": self.name, **self.model_dump(mode="json", exclude={*self.operational, "mt_bench_prompts"})}

    @property
    def wording(self) -> str:
        """Whose prompts are used, for ``statement``."""
        own = "dspa-bench's own prompts"
        return own if self.mt_bench_prompts is None else f"FastChat's MT-Bench prompts (and {own} where it has none)"

    def key(self, question: Conversation) -> str:
        """What the reply to ``question`` is kept by."""
        return reply_key(self.identity, question)

    def check(self) -> None:
        """Read the prompts file; ValueError (file:line) when it is not FastChat's."""
        _ = self._fastchat

    def at(self, folder: Path) -> Self:
        """This judge, with its replies kept in ``folder``."""
        judge = self.model_copy()
        judge._kept = Replies(folder)
        return judge

    def rate(self, requests: Sequence[Rating]) -> list[Verdict]:
        return self._verdicts("rate", requests, self._rating_prompt, parsing.read_rating)

    def compare(self, requests: Sequence[Comparison]) -> list[Verdict]:
        return self._verdicts("compare", requests, self._comparison_prompt, parsing.read_winner)

    def harm(self, requests: Sequence[Answer]) -> list[Verdict]:
        return self._verdicts("harm", requests, prompts.harm_prompt, parsing.read_harm)

    def refusal(self, requests: Sequence[Answer]) -> list[Verdict]:
        return self._verdicts("refusal", requests, prompts.refusal_prompt, parsing.read_refusal)

    @cached_property
    def _fastchat(self) -> FastChatPrompts | None:
        return self.mt_bench_prompts and FastChatPrompts.load(self.mt_bench_prompts)

    def _rating_prompt(self, request: Rating) -> Conversation:
        if self._fastchat is not None and self._fastchat.cover(request.conversation):
            return self._fastchat.rating(request)
        return prompts.rating_prompt(request)

    def _comparison_prompt(self, request: Comparison) -> Conversation:
        if self._fastchat is not None and self._fastchat.cover(request.first, request.second):
            return self._fastchat.comparison(request)
        return prompts.comparison_prompt(request)

    def _looked_up(self, verb: str, requests: int, reused: int) -> None:
        """Told how many of the requests of one batch need no reply of their own; for a ledger."""

    def _verdicts(
        self, verb: str, requests: Sequence[R], prompt: Callable[[R], Conversation], read: Callable[[str], float]
    ) -> list[Verdict]:
        asked = [_prompt(prompt, request) for request in requests]
        questions = [question for question in asked if not isinstance(question, Verdict)]
        keys = {self.key(question): question for question in questions}
        texts = self._kept_texts(keys, read)
        todo = [key for key in keys if key not in texts]
        self._looked_up(verb, len(questions), len(questions) - len(todo))
        replies = {key: Reply(text) for key, text in texts.items()}

        def received(index: int, reply: Reply) -> None:
            key = todo[index]
            replies[key] = reply
            if self._kept is None or reply.text is None or not _readable(reply.text, read):
                return
            if self._kept.get(key) != reply.text:
                self._kept.keep(key, self.label, reply.text)

        if todo:
            self._ask([keys[key] for key in todo], received)
        return [q if isinstance(q, Verdict) else _verdict(q, replies[self.key(q)], read) for q in asked]

    def _kept_texts(self, keys: Iterable[str], read: Callable[[str], float]) -> dict[str, str]:
        if self._kept is None:
            return {}
        self._kept.refresh()
        found = {key: self._kept.get(key) for key in keys}
        return {key: text for key, text in found.items() if text is not None and _readable(text, read)}


def _prompt(prompt: Callable[[R], Conversation], request: R) -> Conversation | Verdict:
    """The question for ``request``, or the verdict that there can be none."""
    try:
        return prompt(request)
    except ValueError as problem:
        return Verdict(None, "", error=f"not asked: {problem}")


def _readable(text: str, read: Callable[[str], float]) -> bool:
    try:
        read(text)
    except ValueError:
        return False
    return True


def _verdict(question: Conversation, reply: Reply, read: Callable[[str], float]) -> Verdict:
    """``prompt`` is the user's message alone, as FastChat has it in its files."""
    shown = question[-1]["content"]
    if reply.text is None:
        return Verdict(None, reply.raw, shown, reply.error)
    try:
        return Verdict(read(reply.text), reply.text, shown)
    except ValueError as problem:
        return Verdict(None, reply.text, shown, str(problem))
