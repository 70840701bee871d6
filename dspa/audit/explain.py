"""What a judge model makes of the latents: an explanation from the snippets, then one of six categories."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dspa.audit.snippets import Snippet
from harness.data.triples import Message
from harness.judging.prompted import Reply

Category = Literal["Safety", "Discourse", "Intent", "Structure", "Grammatical", "Content"]
FOLDED = {"Safety": "Content", "Intent": "Discourse"}
CATEGORIES = ("Content", "Discourse", "Grammatical", "Structure")
"""The rows of the table, after Safety and Intent are folded (arXiv 2603.21461)."""
PAPER_COUNTS = {
    "Content": {"ablate": 5, "augment": 7, "random": 18},
    "Discourse": {"ablate": 34, "augment": 28, "random": 15},
    "Grammatical": {"ablate": 10, "augment": 10, "random": 11},
    "Structure": {"ablate": 1, "augment": 5, "random": 6},
}

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


@runtime_checkable
class Endpoint(Protocol):
    """See `harness.judging.endpoint.ChatEndpoint`."""

    def ask_all(self, conversations: Sequence[Sequence[Message]]) -> list[Reply]: ...


def explain(endpoint: Endpoint, snippets: Mapping[int, Sequence[Snippet]]) -> tuple[dict[int, Explanation], int]:
    """(latent -> explanation, tokens the endpoint counted). A latent without snippets gets an error, no request.

    What cannot be read is an error and never guessed; a latent without an explanation is not classified.
    """
    found = {i: Explanation(error="it fires nowhere in the texts") for i, shown in snippets.items() if not shown}
    asked = [i for i in snippets if i not in found]
    replies = endpoint.ask_all([_conversation(_EXPLAIN, passages(snippets[i])) for i in asked])
    spent = sum(r.prompt_tokens + r.completion_tokens for r in replies)
    described: dict[int, _Explained] = {}
    for latent, reply in zip(asked, replies, strict=True):
        answer = _read(reply, _Explained)
        if isinstance(answer, str):
            found[latent] = Explanation(error=f"explanation: {answer}")
        else:
            described[latent] = answer
    replies = endpoint.ask_all(
        [_conversation(_CLASSIFY, _described(e, passages(snippets[i]))) for i, e in described.items()]
    )
    spent += sum(r.prompt_tokens + r.completion_tokens for r in replies)
    for (latent, answer), reply in zip(described.items(), replies, strict=True):
        category = _read(reply, _Classified)
        evidence = [answer.evidence] if isinstance(answer.evidence, str) else answer.evidence
        found[latent] = Explanation(
            answer.reliable,
            " ".join(answer.explanation.split()),
            tuple(evidence),
            None if isinstance(category, str) else category.category,
            f"category: {category}" if isinstance(category, str) else None,
        )
    return found, spent


def passages(snippets: Sequence[Snippet]) -> str:
    """Snippets as the judge is shown them: one a line, numbered, with their activation."""
    lines = (" ".join(s.text.split()) for s in snippets)
    return "\n".join(
        f"{n}. ({s.activation:.2f}) {line}" for n, (s, line) in enumerate(zip(snippets, lines, strict=True), 1)
    )


def folded(category: Category) -> str:
    """The row of the table a category counts in."""
    return FOLDED.get(category, category)


def category_counts(
    explanations: Mapping[int, Explanation], sets: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, int]]:
    """Row -> set -> number of latents; the last row counts those without a category."""
    rows = {row: dict.fromkeys(sets, 0) for row in (*CATEGORIES, "not classified")}
    for name, latents in sets.items():
        for latent in latents:
            category = explanations[latent].category
            rows["not classified" if category is None else folded(category)][name] += 1
    return rows


def _conversation(instruction: str, shown: str) -> list[Message]:
    return [Message(role="system", content=instruction), Message(role="user", content=shown)]


def _described(answer: _Explained, shown: str) -> str:
    doubt = "" if answer.reliable else " (The describer was not sure.)"
    return f"Description: {answer.explanation}{doubt}\n\nPassages:\n{shown}"


def _read(reply: Reply, shape: type[_Shape]) -> _Shape | str:
    """The JSON object in an answer, or why there is none that fits."""
    if reply.text is None:
        return str(reply.error)
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
    return f"{problem} ({reply.text[:80]!r})"
