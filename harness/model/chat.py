"""Conversations -> token ids. The only place that knows chat templates, BOS and stop tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from harness.data.triples import Conversation, Message, conversation
from harness.model.turns import TurnMarks

ChatKind = Literal["tokenizer", "hh"]
_PROBE = "system-turn-probe"
_HEADER = "\n\nAssistant:"


@dataclass(frozen=True)
class ChatFormat:
    """How one model writes a conversation.

    ``tokenizer``: the tokenizer's own chat template. ``hh``: the plain dialogue form of HH-RLHF,
    "\\n\\nHuman: {q}\\n\\nAssistant: {a}" and EOS, for models without a template.
    """

    tokenizer: PreTrainedTokenizerBase
    kind: ChatKind

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, kind: str = "auto") -> "ChatFormat":
        """``auto`` takes the tokenizer's template where it has one, else ``hh``."""
        if kind not in (known := ("auto", *get_args(ChatKind))):
            raise ValueError(f"unknown chat format {kind!r}; known: {', '.join(known)}")
        if kind == "tokenizer" and tokenizer.chat_template is None:
            raise ValueError("chat format 'tokenizer' needs a tokenizer with a chat template; use 'hh' or add one")
        found = cls(tokenizer, "hh" if kind == "hh" or tokenizer.chat_template is None else "tokenizer")
        if found.kind == "tokenizer":
            found._check_template()
        return found

    def _check_template(self) -> None:
        """Raise ValueError for a template that ends in an error or does not write down what the user says."""
        try:
            text = str(self.tokenizer.apply_chat_template(_dicts(conversation(_PROBE)), tokenize=False))
        except Exception as problem:  # it is a program, and anything may be wrong with it
            reason = f"{type(problem).__name__}: {problem}"[:300]
        else:
            if _PROBE in text:
                return
            reason = "it leaves out what the user says"
        name = self.tokenizer.name_or_path
        raise ValueError(
            f"the chat template of {name!r} cannot be used: {reason}; mend it (chat_template.jinja or "
            "tokenizer_config.json), or set the chat format to hh"
        )

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Ids up to and including the assistant header: what the model answers to."""
        if self.kind == "hh":
            bos = self.tokenizer.bos_token_id
            return ([] if bos is None else [int(bos)]) + self._plain_ids(self.hh_text(conversation))  # type: ignore[arg-type]
        return self._rendered_ids(self.writable(conversation), generation_prompt=True)

    def writable(self, conversation: Conversation) -> Conversation:
        """As the template can write it: where it has no system turn, the system text opens the first user turn."""
        return conversation if self.kind == "hh" or self._has_system_turn else _fold_system(conversation)

    def hh_text(self, conversation: Conversation, *, generation_prompt: bool = True) -> str:
        """A conversation in the ``hh`` form as text, BOS left to the tokenizer; else it ends with its last turn."""
        names = {"user": "Human", "assistant": "Assistant"}
        text = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in _fold_system(conversation))
        return text + _HEADER if generation_prompt else text

    def response_ids(self, response: str) -> list[int]:
        """Ids of an answer as they follow ``prompt_ids``, without the token that ends the turn.

        In the ``hh`` form they are those of header and answer less the header's, so that an answer has the same ids
        here and in a later turn's history: some tokenizers put a space in front of every text. Where the header's last
        token would swallow the answer's first, they are those of a space and the answer by itself.
        """
        if self.kind == "tokenizer":
            return self._plain_ids(response)
        whole, header = self._plain_ids(f"{_HEADER} {response}"), self._header_ids
        return whole[len(header) :] if whole[: len(header)] == header else self._plain_ids(" " + response)

    def last_turn(self, ids: Sequence[int]) -> tuple[int, int]:
        """(start, end) of the tokens of the last user turn in a prompt: its content, without headers, earlier turns and
        the space around it.

        Read off the ids, so it holds for prompts that others rendered, too. A text without a user header is one turn:
        all of it. A system instruction that the format folds into the first user turn belongs to that turn; so does,
        of a turn that quotes the user header itself, only what follows it. Raises ValueError where the format does not
        show its turns (see `TurnMarks`).
        """
        return self._turn_marks.last_turn(ids)

    @cached_property
    def _turn_marks(self) -> TurnMarks:
        def render(conversation: Conversation) -> str:
            if self.kind == "hh":
                return self.hh_text(conversation)
            return str(
                self.tokenizer.apply_chat_template(_dicts(conversation), tokenize=False, add_generation_prompt=True)
            )

        return TurnMarks.of(self.tokenizer, render, self.prompt_ids)

    @cached_property
    def end_id(self) -> int:
        """The token that ends an assistant turn (appended to answers in training)."""
        return self.stop_ids[0]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the template's end-of-turn token first, then EOS."""
        ids: list[int] = []
        if self.kind == "tokenizer":
            # Followed by a user turn: some templates (Qwen3) write the last assistant turn differently.
            user, assistant = Message(role="user", content="a"), Message(role="assistant", content="a")
            prompt = self.prompt_ids((user,))
            whole = self._rendered_ids((user, assistant, user), generation_prompt=False)
            after = whole[len(prompt) + len(self.response_ids("a")) :]
            ids += [i for i in after[:1] if i in self._marker_ids]
        if self.tokenizer.eos_token_id is not None:
            ids.append(int(self.tokenizer.eos_token_id))  # type: ignore[arg-type]
        if not ids:
            raise ValueError("the tokenizer has neither an EOS token nor a template with an end-of-turn token")
        return tuple(dict.fromkeys(ids))

    @property
    def special_ids(self) -> tuple[int, ...]:
        """BOS, EOS and pad: outside every density and never edited. Template tokens are part of the prompt."""
        tokenizer = self.tokenizer
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return tuple(sorted({int(i) for i in known if i is not None}))  # type: ignore[arg-type]

    @property
    def pad_id(self) -> int:
        """The tokenizer's pad id, or a stop id where it has none (padding is always masked)."""
        pad = self.tokenizer.pad_token_id
        return self.stop_ids[0] if pad is None else int(pad)  # type: ignore[arg-type]

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """Text of generated ids, without special tokens and surrounding space."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    @property
    def identity(self) -> str:
        """Hash of what decides the ids (part of a model's fingerprint)."""
        text = f"{self.kind}\n{self.tokenizer.chat_template if self.kind == 'tokenizer' else ''}\n{self.stop_ids}"
        return hashlib.sha256(text.encode()).hexdigest()

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The words of ``text`` that the tokenizer has no token for, each once; none where it falls back on bytes."""
        unknown, words = self.tokenizer.unk_token_id, dict.fromkeys(text.split())
        return tuple(word.strip(",;:.!?") or word for word in words if unknown in self._plain_ids(word))

    @cached_property
    def _header_ids(self) -> list[int]:
        return self._plain_ids(_HEADER)

    @cached_property
    def _marker_ids(self) -> set[int]:
        added: dict[str, int] = self.tokenizer.get_added_vocab()  # type: ignore[operator]
        return set(self.tokenizer.all_special_ids) | set(added.values())

    @cached_property
    def _has_system_turn(self) -> bool:
        turns: Conversation = (Message(role="system", content=_PROBE), Message(role="user", content="a"))
        try:
            return _PROBE in str(self.tokenizer.apply_chat_template(_dicts(turns), tokenize=False))
        except TemplateError:  # Gemma's template raises: "System role not supported"
            return False

    def _plain_ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _rendered_ids(self, conversation: Conversation, *, generation_prompt: bool) -> list[int]:
        turns = _dicts(conversation)
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt)
        return self._plain_ids(str(text))


def with_instruction(conversation: Conversation, instruction: str | None) -> Conversation:
    """``conversation`` with an instruction as its system turn, in front of its own where it has one."""
    if instruction is None:
        return conversation
    if conversation[0]["role"] == "system":
        instruction, conversation = f"{instruction}\n\n{conversation[0]['content']}", conversation[1:]
    return (Message(role="system", content=instruction), *conversation)


def _dicts(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": m["role"], "content": m["content"]} for m in conversation]


def _fold_system(conversation: Conversation) -> Conversation:
    """Without a system turn in the template, the system text opens the first user turn."""
    if not conversation or conversation[0]["role"] != "system":
        return conversation
    system, first, *rest = conversation
    return (Message(role="user", content=f"{system['content']}\n\n{first['content']}"), *rest)
