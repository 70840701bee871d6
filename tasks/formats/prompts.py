"""The prompts: six families of requests, each of which prefers another form of answer, in four sets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, Literal

import yaml

from harness.files import Text, Words, checked, read_jsonl

ASSETS = Path(__file__).parent / "assets"
Part = Literal["triples", "triples_heldout", "mt_bench", "alpaca_eval"]

PREFERRED = {
    "howto": "steps",
    "fact": "sentence",
    "choice": "sides",
    "ideas": "bullets",
    "feelings": "letter",
    "rewrite": "quoted",
}
"""Family -> the form its answers should have. Every form is right in one family and wrong in the five others."""
FAMILIES, FORMS = tuple(PREFERRED), tuple(PREFERRED.values())
SIZES: dict[Part, int] = {"mt_bench": 16, "alpaca_eval": 13, "triples_heldout": 12, "triples": 80}
"""Prompts of a family in each set; in mt_bench half of them are second turns."""
FOLLOWING = 4  # of so many prompts of the triples one is a second turn


@dataclass(frozen=True)
class Prompt:
    """A user turn. ``wrong``: the form of its rejected answer, "" outside the triples.

    ``after``: the `id` of the prompt that the turn before asked; "" for a first turn.
    """

    id: Words
    part: Words
    family: Words
    text: Words
    wrong: Text = ""
    after: Text = ""

    @property
    def form(self) -> str:
        """The form that its answer should have."""
        return PREFERRED[self.family]


@cache
def all_prompts(seed: int = 0) -> tuple[Prompt, ...]:
    """Every prompt of every set, by set and family: a topic of topics.yaml in one of its family's wordings.

    No topic is used twice. In the triples every family's rejected answers have the five other families' forms equally
    often. A second turn follows a first turn of its own set and of another family.
    """
    parts: dict[Part, list[Prompt]] = {part: [] for part in SIZES}
    for family in FAMILIES:
        rng = Random(f"prompts:{family}:{seed}")
        texts = iter(_texts(family, rng))
        for part, size in SIZES.items():
            wrong = cycle(rng.sample([form for form in FORMS if form != PREFERRED[family]], len(FORMS) - 1))
            for index in range(size):
                second = (
                    index % 2 == 1
                    if part == "mt_bench"
                    else part != "alpaca_eval" and index % FOLLOWING == FOLLOWING - 1
                )
                name = f"{part}-{family}-{index + 1}"
                form = next(wrong) if part.startswith("triples") else ""
                parts[part].append(Prompt(name, part, family, next(texts), form, "first" if second else ""))
    return tuple(prompt for part, found in parts.items() for prompt in _following(found, Random(f"{part}:{seed}")))


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file; ValueError (file:line) for a line that is none, and for a text that stands there twice."""
    found: dict[str, Prompt] = {}
    for number, row in read_jsonl(path, "prompts"):
        prompt = checked(Prompt, row, f"{path}:{number}")
        if prompt.family not in PREFERRED:
            raise ValueError(f"{path}:{number}: unknown family {prompt.family!r}; known: {', '.join(FAMILIES)}")
        if prompt.text in found:
            raise ValueError(f"{path}:{number}: the text stands there twice: {prompt.text!r}")
        found[prompt.text] = prompt
    return list(found.values())


def of_part(prompts: Sequence[Prompt], part: Part) -> list[Prompt]:
    """The prompts of one set."""
    return [prompt for prompt in prompts if prompt.part == part]


def _texts(family: str, rng: Random) -> list[str]:
    """As many texts as all sets need of a family, each on another topic, the wordings taking turns."""
    entry = _topics()[family]
    topics = [" ".join(topic.split()) for topic in entry["topics"].split("|")]
    needed = sum(SIZES.values())
    assert len(set(topics)) == len(topics) >= needed, f"{family}: {len(topics)} topics, {needed} are needed"
    wordings = cycle(rng.sample(entry["wordings"], len(entry["wordings"])))
    return [_worded(next(wordings), topic) for topic in rng.sample(topics, needed)]


def _worded(wording: str, topic: str) -> str:
    x, _, y = (part.strip() for part in topic.partition(" / "))
    return wording.format(x=x, y=y, X=x[0].upper() + x[1:])


def _following(prompts: list[Prompt], rng: Random) -> list[Prompt]:
    """The prompts, with the second turns among them put behind first turns of the other families in turn."""
    firsts = {family: [p for p in prompts if p.family == family and not p.after] for family in FAMILIES}
    for found in firsts.values():
        rng.shuffle(found)
    placed, count = [], dict.fromkeys(FAMILIES, 0)
    for prompt in prompts:
        if prompt.after:
            # Each family's second turns go through the others in the same order, so all give the same number.
            step = 1 + count[prompt.family] % (len(FAMILIES) - 1)
            count[prompt.family] += 1
            family = FAMILIES[(FAMILIES.index(prompt.family) + step) % len(FAMILIES)]
            prompt = replace(prompt, after=firsts[family].pop().id)
        placed.append(prompt)
    return placed


@cache
def _topics() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((Path(__file__).parent / "topics.yaml").read_text(encoding="utf-8"))
