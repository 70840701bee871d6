"""MT-Bench's judge prompts, read from FastChat's judge_prompts.jsonl, which the user gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from harness.data.triples import Conversation, Message
from harness.files import read_jsonl
from harness.judging.judge import Comparison, Rating

_ANSWERS = {
    "single-v1": ("answer",),
    "single-math-v1": ("answer",),
    "pair-v2": ("answer_a", "answer_b"),
    "pair-math-v1": ("answer_a", "answer_b"),
}
"""The prompts for one turn and their blanks for answers; those for two turns have ``-multi-turn`` behind the name."""
_TWO_TURNS = "-multi-turn"
_TURN = ["user", "assistant"]


@dataclass(frozen=True)
class FastChatPrompts:
    """FastChat's eight prompts: single and pair, with and without references, for one and for two user turns."""

    templates: Mapping[str, tuple[str, str]]
    """{name: (system message, user message with blanks)}."""

    @classmethod
    def load(cls, path: Path) -> "FastChatPrompts":
        """Read FastChat's file; ValueError (file:line) for a prompt that is missing or not as FastChat has it.

        Other prompts in the file are not looked at.
        """
        wanted = [name + turns for name in _ANSWERS for turns in ("", _TWO_TURNS)]
        templates = {}
        for number, row in read_jsonl(path, "judge prompts"):
            if row.get("name") in wanted:
                try:
                    templates[row["name"]] = _template(row)
                except ValueError as problem:
                    raise ValueError(f"{path}:{number}: {problem}") from None
        missing = [name for name in wanted if name not in templates]
        if missing:
            raise ValueError(
                f"{path}: no prompt {', '.join(missing)}; give judge_prompts.jsonl of FastChat's llm_judge"
            )
        return cls(templates)

    def prompt(self, request: Rating | Comparison) -> Conversation | None:
        """The system and the user message for ``request``, or None where FastChat has no prompt for it.

        It has them for one or two turns of the user, each answered, and nothing else. Raises ValueError when one turn
        has a reference, another none.
        """
        if isinstance(request, Rating):
            shown, name = (request.conversation,), "single-math-v1" if request.references else "single-v1"
        else:
            shown, name = (request.first, request.second), "pair-math-v1" if request.references else "pair-v2"
        if not all([m["role"] for m in c] in (_TURN, _TURN * 2) for c in shown):
            return None
        said, references = [m["content"] for m in shown[0][::2]], request.references
        if references and len(references) != len(said):
            raise ValueError(f"{name} needs a reference for each of the {len(said)} turns, there are {len(references)}")
        answers = {blank: [m["content"] for m in c[1::2]] for blank, c in zip(_ANSWERS[name], shown, strict=True)}
        system, text = self.templates[name if len(said) == 1 else name + _TWO_TURNS]
        user = text.format(**_blanks(said, answers, references))
        return Message(role="system", content=system), Message(role="user", content=user)


def _blanks(said: Sequence[str], answers: Mapping[str, Sequence[str]], references: Sequence[str]) -> dict[str, str]:
    """{blank: what belongs there}. FastChat numbers references always, all else in prompts for two turns only."""
    values = {f"ref_answer_{n}": text for n, text in enumerate(references, 1)}
    for blank, texts in {"question": said, **answers}.items():
        values |= {blank if len(texts) == 1 else f"{blank}_{n}": text for n, text in enumerate(texts, 1)}
    return values


def _template(row: Mapping[str, Any]) -> tuple[str, str]:
    name, system, text = row["name"], row.get("system_prompt"), row.get("prompt_template")
    if not isinstance(system, str) or not isinstance(text, str):
        raise ValueError(f"{name}: system_prompt and prompt_template must be strings")
    marked = "[[rating]]" if name.startswith("single") else "[[A]]"
    if row.get("output_format") != marked:
        raise ValueError(f"{name}: output_format must be {marked!r}, got {row.get('output_format')!r}")
    parsed = [(blank, form, convert) for _, blank, form, convert in Formatter().parse(text) if blank is not None]
    if formed := [blank for blank, form, convert in parsed if form or convert]:
        raise ValueError(f"{name}: the blank {{{formed[0]}}} must be plain, without ':' and '!'")
    blanks = {blank for blank, _, _ in parsed}
    turns = [""] * (2 if name.endswith(_TWO_TURNS) else 1)
    answers = dict.fromkeys(_ANSWERS[name.removesuffix(_TWO_TURNS)], turns)
    wanted = _blanks(turns, answers, turns if "math" in name else [])
    if blanks != wanted.keys():
        raise ValueError(f"{name}: the blanks must be {', '.join(sorted(wanted))}, got {', '.join(sorted(blanks))}")
    return system, text
