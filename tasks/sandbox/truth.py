"""The sandbox's preference: as a ground truth of answers that differ in their register alone, and as text to read."""

from collections.abc import Mapping, Sequence
from random import Random

from harness.data.triples import Conversation, conversation
from harness.files import folder_hash
from harness.truth import LabelledAnswer
from tasks.sandbox import corpus
from tasks.sandbox.build import ASSETS
from tasks.sandbox.grammar import TOPICS_OF, last_request
from tasks.sandbox.oracle import rate
from tasks.sandbox.world import FAMILIES, MARKERS, PREFERRED, SPOKEN

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
        request = last_request(prompt)
        return None if request is None else request.family

    def answers(self) -> Sequence[LabelledAnswer]:
        """Each request in every register its family speaks: same facts, same order, and no change of register."""
        rng = Random("sandbox truth")
        found = []
        for number in range(_REQUESTS):
            request, text = corpus.prompt_for(rng, corpus.draw_topic(rng), "corpus")
            for register in dict.fromkeys(SPOKEN[request.family]):
                reply = corpus.answer(
                    rng, request, register, persistence=1.0, content=Random(f"sandbox truth:{number}")
                )
                found.append(LabelledAnswer(request.family, register, conversation(text), reply))
        return found


def show(seed: int = 0, conversations: int = 3) -> str:
    """What each family prefers, with a rated answer per register, and sample conversations, as text."""
    rng = Random(f"show:{seed}")
    lines = ["The sandbox: a planted world in which every family of requests prefers another way of speaking.", ""]
    lines += ["Registers and their marker words, which open every clause, stand inside it and close it:"]
    lines += [f"  {name:7}{', '.join(words)}" for name, words in MARKERS.items()]
    for family in FAMILIES:
        request, text = corpus.prompt_for(rng, rng.choice(TOPICS_OF[family]), "corpus")
        lines += ["", f"{family}: prefers {PREFERRED[family]}", f"  user: {text}"]
        for register in dict.fromkeys(SPOKEN[request.family]):
            reply = corpus.answer(rng, request, register)
            lines.append(f"  [{rate(request, reply)[0]:4.1f}] starts {register}: {reply}")
    lines += ["", "From the training corpus, where a family's registers are equally frequent:"]
    for _ in range(conversations):
        lines.append("")
        lines += [f"  {message['role']}: {message['content']}" for message in corpus.conversation(rng)]
    return "\n".join(lines) + "\n"
