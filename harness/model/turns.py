"""The last user turn of a prompt, found in its token ids alone, whoever rendered them."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.data.triples import Conversation, Message

LastTurn = Callable[[Sequence[int]], tuple[int, int]]
"""What `ChatFormat.last_turn` is."""
_TAIL = 64  # tokens at the end that are decoded first
_FIRST, _ANSWER, _SECOND = "qfirstq", "qanswerq", "qsecondq"  # stand for what the turns say
_EXAMPLE = ("one two", "three", "four five six seven")


@dataclass(frozen=True)
class TurnMarks:
    """How a chat format's text, as the tokenizer decodes it, shows the content of a user turn: it lies between
    ``opener`` and the next ``closer``, or the end of the text."""

    tokenizer: PreTrainedTokenizerBase
    opener: str
    closer: str

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        render: Callable[[Conversation], str],
        encode: Callable[[Conversation], list[int]],
    ) -> "TurnMarks":
        """From how a conversation is written, ``render`` as text and ``encode`` as ids, up to the assistant header.

        Raises ValueError where the text does not tell a user's turn from the assistant's: when a template leaves turns
        out, or a tokenizer has no ids of its own for the words of the headers.
        """
        marks = cls(tokenizer, *_headers(tokenizer, render(_conversation(_FIRST, _ANSWER, _SECOND))))
        said = tokenizer.encode(_EXAMPLE[-1], add_special_tokens=False)
        for turns in (_EXAMPLE, _EXAMPLE[-1:]):
            ids = encode(_conversation(*turns))
            start, end = marks.last_turn(ids)
            if marks.text(ids[start:end]).strip() != marks.text(said).strip():
                raise ValueError(
                    f"the chat format does not show where the last user turn is: read between {marks.opener!r} and "
                    f"{marks.closer!r} it is {marks.text(ids[start:end])!r} instead of {marks.text(said)!r}; condition "
                    "on the whole conversation, or use a chat format whose headers the tokenizer has tokens for"
                )
        return marks

    def text(self, ids: Sequence[int]) -> str:
        """Ids as text, special tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def last_turn(self, ids: Sequence[int]) -> tuple[int, int]:
        """(start, end) of the tokens with the last user turn's content, the space around it left out; a token in which
        content and header have merged belongs to it. (0, len(ids)) without an opener, start = end for an empty turn.
        """
        size, skipped, found = _TAIL, len(ids), -1
        while skipped and found < 0:  # from the end, for earlier turns may be long
            skipped, size = max(0, len(ids) - size), 4 * size
            found = self.text(ids[skipped:]).rfind(self.opener)
        if found < 0:
            return 0, len(ids)
        start, end = self._content(ids[skipped:], found)
        return skipped + start, skipped + end

    def _content(self, ids: Sequence[int], found: int) -> tuple[int, int]:
        """The same for ids whose text has its last opener at ``found``."""
        text = self.text(ids)
        header = found + len(self.opener)
        closed = text.find(self.closer, header)
        content = text[header:] if closed < 0 else text[header:closed]
        if not content.strip():
            start = self._tokens_of(ids, text[:header])
            return start, start
        first = header + len(content) - len(content.lstrip())
        last = header + len(content.rstrip())
        start, end = self._tokens_of(ids, text[:header]), self._tokens_of(ids, text[:last])
        if start and len(self.text(ids[:start])) > first:
            return start - 1, end  # the header's last token goes on into the content
        while start < end - 1 and len(self.text(ids[: start + 1])) <= first:
            start += 1  # space
        return start, end

    def _tokens_of(self, ids: Sequence[int], text: str) -> int:
        """The fewest first tokens that contain ``text``, a beginning of what the ids say: by bisection."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if self.text(ids[:middle]).startswith(text):
                high = middle
            else:
                low = middle + 1
        return low


def narrowed(prompt: Bool[Tensor, "batch pos"], ids: Int[Tensor, "batch pos"], last_turn: LastTurn) -> Tensor:
    """Of each row's ``prompt`` tokens, which must be all of them, those of its last user turn; as a mask like it."""
    narrow = torch.zeros_like(prompt)
    for row, (places, tokens) in enumerate(zip(prompt.cpu(), ids.cpu(), strict=True)):
        columns = places.nonzero()[:, 0]
        start, end = last_turn(tokens[columns].tolist())
        narrow[row, columns[start:end].to(narrow.device)] = True
    return narrow


def _conversation(*turns: str) -> Conversation:
    roles = ("user", "assistant")
    return tuple(Message(role=roles[i % 2], content=turn) for i, turn in enumerate(turns))  # type: ignore[typeddict-item]


def _headers(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, str]:
    """(opener, closer) from the text of a user's, an assistant's and a user's turn with the header of the next."""
    parts = re.split("|".join((_FIRST, _ANSWER, _SECOND)), text)
    if len(parts) != 4:
        raise ValueError(
            f"the chat template does not write every turn of a conversation, as it is; it made {text!r}; condition on "
            "the whole conversation"
        )
    markers = {str(token) for token in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab())} - {""}  # type: ignore[operator]
    before, answered, again, after = (_elements(part, markers) for part in parts)
    opener = _common(before[::-1], again[::-1])[::-1]
    # What the assistant's header ends with, too, tells nothing.
    alike = max(len(_common(opener[::-1], other[::-1])) for other in (answered, after))
    # Where the tokenizer has tokens for headers, their text from such a token on is enough, whatever is in front.
    short = (opener[-n:] for n in range(alike + 1, len(opener) + 1) if opener[-n] in markers)
    opener = next(short, opener if len(opener) > alike else [])
    closer = _common(answered, after)
    ends = next((element for element in closer if not element.isspace()), "")
    closer_text = ends if ends in markers else "".join(closer)

    def decoded(mark: str) -> str:
        ids = tokenizer.encode(mark, add_special_tokens=False)
        if tokenizer.unk_token_id in ids:
            return ""  # any unknown word would look like it
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip(" ").rstrip()

    found = decoded("".join(opener)), decoded(closer_text)
    if "" in found:
        raise ValueError(
            "the chat format does not show where the last user turn is: the headers of its turns "
            f"({''.join(opener)!r} and {closer_text!r}) are empty, alike, or unknown to the tokenizer; condition on "
            "the whole conversation"
        )
    return found


def _elements(text: str, markers: set[str]) -> list[str]:
    """Characters, and the tokenizer's special tokens as one each."""
    pattern = "|".join([*map(re.escape, sorted(markers, key=len, reverse=True)), "."])
    return re.findall(pattern, text, flags=re.DOTALL)


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    return list(_while_alike(one, other))


def _while_alike(one: Sequence[str], other: Sequence[str]) -> Iterator[str]:
    for a, b in zip(one, other, strict=False):
        if a != b:
            return
        yield a
