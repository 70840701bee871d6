"""The sandbox's ground truth: answers that differ in nothing but their register."""

from collections.abc import Mapping, Sequence
from random import Random

from harness.data.triples import Conversation, conversation
from harness.model.base import folder_hash
from harness.truth import LabelledAnswer
from tasks.sandbox.build import ASSETS
from tasks.sandbox.corpus import answer, draw_topic, prompt_for
from tasks.sandbox.grammar import understand
from tasks.sandbox.world import PREFERRED, SPOKEN

_REQUESTS = 300


def truth_of(base: str) -> "SandboxTruth | None":
    """The truth, when the base model with identity ``base`` is the sandbox's own by content."""
    return SandboxTruth() if base == folder_hash(ASSETS / "model") else None


class SandboxTruth:
    """Families of requests are the groups, registers the labels; a harness GroundTruth."""

    preferred: Mapping[str, str] = PREFERRED

    @property
    def statement(self) -> str:
        """For a page of results."""
        prefer = ", ".join(f"{family}: {register}" for family, register in PREFERRED.items())
        return (
            "The base is the sandbox's, where every family of requests is answered in several registers (ways of "
            f"speaking with their own marker words) and one is preferred: {prefer}."
        )

    def group(self, prompt: Conversation) -> str | None:
        """The family of the last user turn."""
        users = [message["content"] for message in prompt if message["role"] == "user"]
        request = understand(users[-1]) if users else None
        return None if request is None else request.family

    def answers(self) -> Sequence[LabelledAnswer]:
        """Each request in every register its family speaks: same facts, same order, and no change of register."""
        rng = Random("sandbox truth")
        found = []
        for number in range(_REQUESTS):
            request, text = prompt_for(rng, draw_topic(rng), "corpus")
            for register in dict.fromkeys(SPOKEN[request.family]):
                reply = answer(rng, request, register, persistence=1.0, content=Random(f"sandbox truth:{number}"))
                found.append(LabelledAnswer(request.family, register, conversation(text), reply))
        return found
