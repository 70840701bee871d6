"""MT-Bench's judge prompts, read from FastChat's judge_prompts.jsonl, which the user gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from harness.data.triples import Conversation, Message
from harness.files import read_jsonl
from harness.judging.judge import Comparison, Rating

_FORMATS = {"single-v1": "[[rating]]", "single-math-v1": "[[rating]]", "pair-v2": "[[A]]", "pair-math-v1": "[[A]]"}
"""The prompts for one turn, and how their verdicts are marked; those for two have ``-multi-turn`` behind the name."""
_TWO_TURNS = "-multi-turn"


@dataclass(frozen=True)
class _Template:
    system: str
    text: str


@dataclass(frozen=True)
class FastChatPrompts:
    """FastChat's eight prompts: single and pair, with and without references, for one and for two user turns."""

    templates: Mapping[str, _Template]

    @classmethod
    def load(cls, path: Path) -> "FastChatPrompts":
        """Read FastChat's file; ValueError (file:line) for a prompt that is missing or not as FastChat has it.

        Other prompts in the file are not looked at.
        """
        wanted = [name + turns for name in _FORMATS for turns in ("", _TWO_TURNS)]
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

    @staticmethod
    def cover(*conversations: Conversation) -> bool:
        """Whether FastChat has a prompt for them: one or two turns of the user, each answered, and nothing else."""
        roles = [[message["role"] for message in c] for c in conversations]
        return all(r in (["user", "assistant"], ["user", "assistant"] * 2) for r in roles)

    def rating(self, request: Rating) -> Conversation:
        """The system and the user message for ``request``; ValueError when one turn has a reference, another none."""
        name = "single-math-v1" if request.references else "single-v1"
        return self._fill(name, request.references, {"answer": request.conversation})

    def comparison(self, request: Comparison) -> Conversation:
        """As `rating`, for two conversations."""
        name = "pair-math-v1" if request.references else "pair-v2"
        return self._fill(name, request.references, {"answer_a": request.first, "answer_b": request.second})

    def _fill(self, name: str, references: Sequence[str], shown: Mapping[str, Conversation]) -> Conversation:
        said = [m["content"] for m in next(iter(shown.values())) if m["role"] == "user"]
        if references and len(references) != len(said):
            raise ValueError(f"{name} needs a reference for each of the {len(said)} turns, there are {len(references)}")
        values = _numbered("question", said)
        for blank, messages in shown.items():
            values |= _numbered(blank, [m["content"] for m in messages if m["role"] == "assistant"])
        values |= {f"ref_answer_{n}": text for n, text in enumerate(references, 1)}
        template = self.templates[name if len(said) == 1 else name + _TWO_TURNS]
        return (
            Message(role="system", content=template.system),
            Message(role="user", content=template.text.format(**values)),
        )


def _numbered(blank: str, texts: Sequence[str]) -> dict[str, str]:
    """FastChat numbers the blanks of a prompt for two turns, and only these."""
    return {blank: texts[0]} if len(texts) == 1 else {f"{blank}_{n}": text for n, text in enumerate(texts, 1)}


def _template(row: Mapping[str, Any]) -> _Template:
    name, system, text = row["name"], row.get("system_prompt"), row.get("prompt_template")
    if not isinstance(system, str) or not isinstance(text, str):
        raise ValueError(f"{name}: system_prompt and prompt_template must be strings")
    marked = _FORMATS[name.removesuffix(_TWO_TURNS)]
    if row.get("output_format") != marked:
        raise ValueError(f"{name}: output_format must be {marked!r}, got {row.get('output_format')!r}")
    blanks = {blank for _, blank, _, _ in Formatter().parse(text) if blank is not None}
    wanted = _blanks(name)
    if blanks != wanted:
        raise ValueError(f"{name}: the blanks must be {', '.join(sorted(wanted))}, got {', '.join(sorted(blanks))}")
    return _Template(system, text)


def _blanks(name: str) -> set[str]:
    answers = ("answer",) if name.startswith("single") else ("answer_a", "answer_b")
    turns = (1, 2) if name.endswith(_TWO_TURNS) else (1,)
    references = {f"ref_answer_{n}" for n in turns} if "math" in name else set()
    numbers = [f"_{n}" for n in turns] if len(turns) == 2 else [""]
    return references | {f"{blank}{number}" for blank in ("question", *answers) for number in numbers}
