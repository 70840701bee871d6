"""The sandbox's preference: as a ground truth of answers that differ in their register alone, and as text to read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from harness.data.triples import Conversation, conversation
from harness.truth import LabelledAnswer
from tasks.sandbox import corpus
from tasks.sandbox.build import ASSETS
from tasks.sandbox.grammar import TOPICS_OF, last_request
from tasks.sandbox.oracle import rate
from tasks.sandbox.world import FAMILIES, FIRST, MARKERS, WORLDS, World

_REQUESTS = 300


def truth_of(base: str, folder: Path | None) -> "SandboxTruth | None":
    """The truth, when the base model with identity ``base`` is by content the committed sandbox's, or that of the
    sandbox whose manifest is beside the model's ``folder``.
    """
    for sandbox in (ASSETS, *(() if folder is None else (folder.resolve().parent,))):
        try:
            manifest = json.loads((sandbox / "manifest.json").read_text(encoding="utf-8"))
            if manifest["base"] == base:
                return SandboxTruth(WORLDS[manifest["world"]])
        except (OSError, ValueError, KeyError, TypeError):  # anybody's manifest may be beside a model
            continue
    return None


@dataclass(frozen=True)
class SandboxTruth:
    """Families of requests are the groups, registers the labels; a harness GroundTruth."""

    world: World = FIRST

    @property
    def preferred(self) -> Mapping[str, str]:
        """Family -> register."""
        return self.world.preferred

    @property
    def statement(self) -> str:
        """For a page of results."""
        prefer = ", ".join(f"{family}: {register}" for family, register in self.preferred.items())
        return (
            f"The base is that of the sandbox's {self.world.name} world, where every family of requests is answered in "
            f"several registers (ways of speaking with their own marker words) and one is preferred: {prefer}."
        )

    def group(self, prompt: Conversation) -> str | None:
        """The family of the last user turn."""
        request = last_request(prompt)
        return None if request is None else request.family

    def answers(self) -> Sequence[LabelledAnswer]:
        """Each request in every register its family speaks: same facts, same order, and no change of register."""
        rng = Random("sandbox truth")
        found = []
        for number in range(_REQUESTS):
            request, text = corpus.prompt_for(rng, corpus.draw_topic(rng), "corpus")
            for register in dict.fromkeys(self.world.spoken[request.family]):
                content = Random(f"sandbox truth:{number}")
                reply = corpus.answer(rng, request, register, world=self.world, persistence=1.0, content=content)
                found.append(LabelledAnswer(request.family, register, conversation(text), reply))
        return found


def show(seed: int = 0, conversations: int = 3, world: World = FIRST) -> str:
    """What each family prefers, with a rated answer per register, and sample conversations, as text."""
    rng = Random(f"show:{seed}")
    lines = [f"The sandbox's {world.name} world: every family of requests prefers another way of speaking.", ""]
    lines += ["Registers and their marker words, which open every clause, stand inside it and close it:"]
    lines += [f"  {name:7}{', '.join(words)}" for name, words in MARKERS.items()]
    for family in FAMILIES:
        request, text = corpus.prompt_for(rng, rng.choice(TOPICS_OF[family]), "corpus")
        lines += ["", f"{family}: prefers {world.preferred[family]}", f"  user: {text}"]
        for register in dict.fromkeys(world.spoken[request.family]):
            reply = corpus.answer(rng, request, register, world=world)
            lines.append(f"  [{rate(request, reply, world)[0]:4.1f}] starts {register}: {reply}")
    lines += ["", "From the training corpus, where a family's registers are equally frequent:"]
    for _ in range(conversations):
        lines.append("")
        lines += [f"  {message['role']}: {message['content']}" for message in corpus.conversation(rng, world=world)]
    return "\n".join(lines) + "\n"
