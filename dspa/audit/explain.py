"""What a judge model makes of the latents: an explanation from the snippets, then one of six categories."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dspa.audit.snippets import Snippet
from harness.data.triples import Message
from harness.judging.prompted import Reply

Category = Literal["Safety", "Discourse", "Intent", "Structure", "Grammatical", "Content"]
_FOLDED = {"Safety": "Content", "Intent": "Discourse"}
PAPER_COUNTS = {
    "Content": {"ablate": 5, "augment": 7, "random": 18},
    "Discourse": {"ablate": 34, "augment": 28, "random": 15},
    "Grammatical": {"ablate": 10, "augment": 10, "random": 11},
    "Structure": {"ablate": 1, "augment": 5, "random": 6},
}
"""The rows of the table, after Safety and Intent are folded (arXiv 2603.21461)."""
UNCLASSIFIED = "not classified"
Ask = Callable[[Sequence[Sequence[Message]]], list[Reply]]
"""See `harness.judging.chat_endpoint.ChatEndpoint.ask_all`."""

_EXPLAIN = """\
A feature is one direction that was found inside a language model. You see passages in which it is active, the strongest
first. The tokens on which it is active stand in [[double brackets]]; everything else is context. The number before a
passage is the strongest activation in it.

Say what the bracketed tokens have in common that the rest of the text has not: a meaning, a use, a position, a form.
Stay as narrow as the passages allow. If they have nothing clear in common, say so: the feature is then not reliable.

Answer with one JSON object and nothing else:
{"reliable": true or false, "explanation": "one sentence", "evidence": ["a few bracketed tokens or phrases, quoted"]}"""

_CLASSIFY = """\
A feature of a language model was described as below, from passages in which the tokens that activate it stand in
[[double brackets]]. Put it into the one category that fits best:

Safety: harm, risk, law, refusals, sensitive or toxic matters.
Discourse: how speech is conducted: tone, register, politeness, hedging, turn-taking, openings, connectives.
Intent: what a speaker wants to do: asking, instructing, offering, promising, planning.
Structure: layout of the text: lists, headings, quotation, code, markup, beginnings and ends, punctuation as layout.
Grammatical: word classes, inflection, function words, parts of words, syntax.
Content: topics, things, people, places, events, facts.

Answer with one JSON object and nothing else: {"category": "one of the six names"}"""


class _Explained(BaseModel):
    model_config = ConfigDict(strict=True)
    reliable: bool
    explanation: Annotated[str, Field(min_length=1)]
    evidence: str | list[str]


class _Classified(BaseModel):
    model_config = ConfigDict(strict=True)
    category: Category


_Shape = TypeVar("_Shape", bound=BaseModel)


@dataclass(frozen=True)
class Explanation:
    """A judge's word on one latent. A part is None when it could not be had; ``error`` then says why."""

    reliable: bool | None = None
    explanation: str | None = None
    evidence: tuple[str, ...] = ()
    category: Category | None = None
    error: str | None = None


def explain(ask: Ask, snippets: Mapping[int, Sequence[Snippet]]) -> tuple[dict[int, Explanation], int]:
    """(latent -> explanation, tokens the endpoint counted). A latent without snippets gets an error, no request.

    What cannot be read is an error and never guessed; a latent without an explanation is not classified.
    """
    passages = {i: _passages(shown) for i, shown in snippets.items() if shown}
    found = {i: Explanation(error="it fires nowhere in the texts") for i in snippets if i not in passages}
    described, unread, spent = _asked(ask, _EXPLAIN, passages, _Explained)
    found |= {i: Explanation(error=f"explanation: {why}") for i, why in unread.items()}
    questions = {}
    for latent, answer in described.items():
        doubt = "" if answer.reliable else " (The describer was not sure.)"
        questions[latent] = f"Description: {answer.explanation}{doubt}\n\nPassages:\n{passages[latent]}"
    classified, unread, more = _asked(ask, _CLASSIFY, questions, _Classified)
    for latent, answer in described.items():
        found[latent] = Explanation(
            answer.reliable,
            " ".join(answer.explanation.split()),
            (answer.evidence,) if isinstance(answer.evidence, str) else tuple(answer.evidence),
            classified[latent].category if latent in classified else None,
            f"category: {unread[latent]}" if latent in unread else None,
        )
    return found, spent + more


def _asked(
    ask: Ask, instruction: str, shown: Mapping[int, str], shape: type[_Shape]
) -> tuple[dict[int, _Shape], dict[int, str], int]:
    """(latent -> answer, latent -> why there is none that can be read, tokens counted)"""
    asked = [[Message(role="system", content=instruction), Message(role="user", content=s)] for s in shown.values()]
    replies = ask(asked)
    read: dict[int, _Shape] = {}
    unread: dict[int, str] = {}
    for latent, reply in zip(shown, replies, strict=True):
        try:
            read[latent] = _read(reply, shape)
        except ValueError as problem:
            unread[latent] = str(problem)
    return read, unread, sum(r.prompt_tokens + r.completion_tokens for r in replies)


def _passages(snippets: Sequence[Snippet]) -> str:
    """Snippets as the judge is shown them: one a line, numbered, with their activation."""
    return "\n".join(f"{n}. ({s.activation:.2f}) {s.line}" for n, s in enumerate(snippets, 1))


def category_counts(
    explanations: Mapping[int, Explanation], sets: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, int]]:
    """Row -> set -> number of latents; the last row counts those without a category."""
    rows = {row: dict.fromkeys(sets, 0) for row in (*PAPER_COUNTS, UNCLASSIFIED)}
    for name, latents in sets.items():
        for latent in latents:
            category = explanations[latent].category or UNCLASSIFIED
            rows[_FOLDED.get(category, category)][name] += 1
    return rows


def _read(reply: Reply, shape: type[_Shape]) -> _Shape:
    """The JSON object in an answer; ValueError saying why when there is none that fits."""
    if reply.text is None:
        raise ValueError(reply.error)
    text = reply.text.rpartition("</think>")[2]  # what a reasoning model thinks first may hold JSON, too
    problem = "no JSON object in the answer"
    for start in (i for i, character in enumerate(text) if character == "{"):
        try:
            return shape.model_validate(json.JSONDecoder().raw_decode(text[start:])[0])
        except json.JSONDecodeError:
            continue
        except ValidationError as invalid:
            first = invalid.errors()[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            break
    raise ValueError(f"{problem} ({reply.text[:80]!r})")
