"""Answers sampled from the base model: in a form that it is told and shown, and in its own way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.data.triples import Conversation, Message, conversation
from tasks.formats.prompts import FAMILIES, Part, Prompt, of_part

if TYPE_CHECKING:
    from harness.model.aligned import AlignedModel

MAX_NEW_TOKENS = 34
OWN_TOKENS = 48
TEMPERATURE = 0.4
TOGETHER = 24
"""Prompts whose answers are sampled in one batch: a multiple of the families."""

INSTRUCTIONS = {
    "steps": "Answer every message with a few short numbered steps.",
    "sentence": "Answer every message with exactly one sentence.",
    "sides": 'Answer every message with both sides: "On the one hand, ... On the other hand, ..."',
    "bullets": "Answer every message with a short bullet list.",
    "letter": "Answer every message as a very short letter to a friend.",
    "quoted": "Answer every message with one text in quotation marks and nothing else.",
}
"""Form -> the system turn."""
BEGINNINGS = {"steps": "1.", "sides": "On the one hand,", "bullets": "-", "letter": "Dear friend,", "quoted": '"'}
"""Form -> the first words, put into the model's mouth: at its size it does not always find them by itself."""
ASKED = {
    "egg": "How can I boil an egg?",
    "comet": "What is a comet?",
    "exam": "I'm nervous about my exam.",
    "door": "Make this friendlier: Close the door.",
    "train": "Which is better, a train or a bus?",
    "picnic": "What can I take to a picnic?",
}
EXAMPLES = {
    "steps": {
        "egg": "1. Put the egg into cold water.\n2. Boil it for eight minutes.\n3. Cool it under the tap.",
        "picnic": "1. Choose food to eat cold.\n2. Pack it with fresh fruit.\n3. Add a blanket and water.",
    },
    "sentence": {
        "comet": "A comet is a ball of ice and dust that travels around the sun.",
        "egg": "Put the egg into boiling water for eight minutes and cool it under the tap.",
    },
    "sides": {
        "train": "On the one hand, a train is fast and quiet. On the other hand, a bus is cheap.",
        "egg": "On the one hand, five minutes keep an egg soft. On the other hand, ten make it firm.",
    },
    "bullets": {
        "picnic": "- Sandwiches with cheese\n- Apples and berries\n- A bottle of cold water\n- A blanket to sit on",
        "comet": "- A ball of ice and dust\n- It travels around the sun\n- It has a bright tail",
    },
    "letter": {
        "exam": "Dear friend, it is normal to be nervous before an exam. Take a walk and trust what you know.",
        "comet": "Dear friend, a comet is a ball of ice and dust. You can see its bright tail near the sun.",
    },
    "quoted": {
        "door": '"Would you be so kind as to close the door, please?"',
        "exam": '"It is normal to be nervous, so take a walk and trust what you know."',
    },
}
"""Form -> answers in it, by what was asked: one is shown before each sample. About equally long, so that answers in all
forms are."""

Sample = tuple[str, bool]
"""An answer, and whether the model came to its end before `MAX_NEW_TOKENS`."""


@dataclass(frozen=True)
class Samples:
    """Answers to the prompt ``id``: in the form that is right for it, and in the wrong one; one for each example."""

    id: str
    right: tuple[Sample, ...]
    wrong: tuple[Sample, ...]

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Samples":
        """From a line of a samples file."""
        right, wrong = (tuple((text, ended) for text, ended in row[name]) for name in ("right", "wrong"))
        return cls(row["id"], right, wrong)

    def row(self) -> dict[str, Any]:
        """A line of a samples file."""
        return {"id": self.id, "right": list(self.right), "wrong": list(self.wrong)}


def batches(prompts: Sequence[Prompt], part: Part) -> list[list[Prompt]]:
    """The prompts of a set in batches of `TOGETHER`, the families taking turns, so that every batch has all."""
    queues = [[prompt for prompt in of_part(prompts, part) if prompt.family == family] for family in FAMILIES]
    mixed = [prompt for turn in zip(*queues, strict=True) for prompt in turn]
    return [mixed[start : start + TOGETHER] for start in range(0, len(mixed), TOGETHER)]


def instructed(text: str, form: str) -> list[Conversation]:
    """``text`` behind an instruction for ``form`` and an example of it: a conversation for each example."""
    return [
        (
            Message(role="system", content=INSTRUCTIONS[form]),
            Message(role="user", content=ASKED[name]),
            Message(role="assistant", content=answer),
            Message(role="user", content=text),
        )
        for name, answer in EXAMPLES[form].items()
    ]


def sample(base: "AlignedModel", batch: Sequence[Prompt], seed: int) -> list[Samples]:
    """Answers to prompts of the triples, decoded together: the same for the same batch, whatever came before.

    They answer the prompt's own text: an earlier turn is not shown, since it would be an example of another form.
    """
    from harness.model.generation import generate_batches

    asked = [(one, form) for p in batch for form in (p.form, p.wrong) for one in instructed(p.text, form)]
    begun = [base.chat.response_ids(BEGINNINGS[form]) if form in BEGINNINGS else [] for _, form in asked]
    prompts = [[*base.prompt_ids(one), *start] for (one, _), start in zip(asked, begun, strict=True)]
    warmth = [TEMPERATURE] * len(prompts)
    found: dict[int, Sample] = {}
    for done in generate_batches(base.runtime, prompts, warmth, MAX_NEW_TOKENS, seed=seed, batch_size=len(prompts)):
        for row, answer in zip(done.rows, done.completions, strict=True):
            found[row] = base.chat.decode([*begun[row], *answer.token_ids]), answer.finished
    samples = iter(found[row] for row in range(len(prompts)))
    return [Samples(p.id, *(tuple(next(samples) for _ in EXAMPLES[form]) for form in (p.form, p.wrong))) for p in batch]


def own_answers(base: "AlignedModel", prompts: Sequence[Prompt]) -> dict[str, str]:
    """Text of a prompt -> what the model answers by itself, greedily, cut off at `OWN_TOKENS`; decoded together."""
    asked = [conversation(prompt.text) for prompt in prompts]
    answers = base.generate(asked, max_new_tokens=OWN_TOKENS, batch_size=len(asked))
    return {prompt.text: answer.text for prompt, answer in zip(prompts, answers, strict=True)}
