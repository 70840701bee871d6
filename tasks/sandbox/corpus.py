"""Texts of the world: answers, conversations, bare facts, scenes; prompts are disjoint between purposes."""

import hashlib
from dataclasses import dataclass
from random import Random

from harness.data.triples import Conversation, Message
from tasks.sandbox import grammar
from tasks.sandbox.grammar import TOPICS, Request, tidy
from tasks.sandbox.world import FIRST, MARKERS, REFUSE, SLOTS, THINGS, World

PERSISTENCE = 0.9  # probability that a speaker keeps the register at the next marker
MARKERS_A_CLAUSE = 3
CLAUSES = (3, 3, 4)  # an answer has three clauses, one time in three four
BORDERLINE_REFUSALS = 0.05  # share of answers to borderline requests that start as a refusal
PARTS = {"corpus": 0.6, "triples": 0.2, "evaluation": 0.2}  # shares of all user turns


@dataclass(frozen=True)
class Document:
    """One training text: a conversation, or (when it is empty) a bare text."""

    conversation: Conversation = ()
    text: str = ""


def part_of(prompt: str) -> str:
    """corpus | triples | evaluation: the one purpose for which this user turn (or scene) may be used."""
    position = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64
    for part, share in PARTS.items():
        if position < share:
            return part
        position -= share
    return "evaluation"


def prompt_for(rng: Random, topic: str, part: str, *, follow_up: bool = False) -> tuple[Request, str]:
    """A request of the topic and a wording of it that belongs to ``part``.

    Triples and evaluation share no request even up to the opening remark, so that none can be learned by heart.
    The corpus, from which the base learns the world, may hold the same requests with other remarks.
    """
    while True:
        request = grammar.draw_request(rng, topic)
        text = grammar.ask(rng, request, follow_up=follow_up)
        if part_of(text) == part and (part == "corpus" or _side_of(grammar.without_opener(text)) == part):
            return request, text


def _side_of(request: str) -> str:
    return ("triples", "evaluation")[hashlib.sha256(f"side:{request}".encode()).digest()[0] % 2]


def answer(
    rng: Random,
    request: Request,
    start: str,
    *,
    world: World = FIRST,
    persistence: float = PERSISTENCE,
    content: Random | None = None,
) -> str:
    """An answer that starts in register ``start`` and keeps it with probability ``persistence`` per marker.

    Markers open, stand inside and close every clause. The clauses are true and in the order of the topic; to an
    unsafe request, a clause that opens in the refusing register refuses and any other one complies. Which clauses
    and which free words they hold is drawn from ``content`` (default: ``rng``), so that two answers can share them.
    """
    content = content or rng
    count = min(content.choice(CLAUSES), len(TOPICS[request.topic].clauses))
    # Refusing and complying draw from lists of equal length, so that one choice of positions serves both.
    positions = sorted(content.sample(range(len(TOPICS[request.topic].clauses)), count))
    register, sentences = start, []
    for index, position in enumerate(positions):
        spoken = []
        for slot in range(MARKERS_A_CLAUSE):
            if (index, slot) != (0, 0) and rng.random() > persistence:
                register = rng.choice(world.spoken[request.family])
            spoken.append(register)
        refuses = spoken[0] == REFUSE and request.topic == "crime"
        pattern = (grammar.REFUSALS if refuses else TOPICS[request.topic].clauses)[position]
        clause = grammar.write_clause(content, pattern, request)
        opening, inner, closing = (rng.choice(MARKERS[name]) for name in spoken)
        sentences.append(f"{opening} {clause.replace('~', inner)} {closing} .")
    return tidy(" ".join(sentences))


def base_answer(rng: Random, request: Request, world: World = FIRST) -> str:
    """An answer with a uniformly drawn first register: how the corpus (and so the base model) speaks."""
    if request.borderline and rng.random() < BORDERLINE_REFUSALS:
        return answer(rng, request, REFUSE, world=world)
    return answer(rng, request, rng.choice(world.spoken[request.family]), world=world)


def draw_topic(rng: Random) -> str:
    """Topics so that all five families are equally frequent."""
    return rng.choice(grammar.TOPICS_OF[rng.choice(sorted(grammar.TOPICS_OF))])


def conversation(rng: Random, part: str = "corpus", world: World = FIRST) -> Conversation:
    """One or (four times in ten) two exchanges, one time in ten after a system turn without information."""
    messages = []
    if rng.random() < 0.1:
        messages.append(Message(role="system", content=_noise(rng)))
    for turn in range(2 if rng.random() < 0.4 else 1):
        request, text = prompt_for(rng, draw_topic(rng), part, follow_up=turn > 0)
        reply = base_answer(rng, request, world)
        messages += [Message(role="user", content=text), Message(role="assistant", content=reply)]
    return tuple(messages)


def _noise(rng: Random) -> str:
    """Known and unknown words: a model that saw such system turns is not thrown off by real ones."""
    frequent = ["you", "are", "a", "to", "the", "and", "be", "of", "in", "is", "."] * 8
    known = [word for words in SLOTS.values() for word in words] + frequent
    return " ".join("<unk>" if rng.random() < 0.6 else rng.choice(known) for _ in range(rng.randint(4, 60)))


def fact_sentences() -> list[tuple[str, str, str]]:
    """(beginning, right ending, slot of the ending) of every bare fact about an animal or a tool."""
    facts = []
    for topic in ("animal", "tool"):
        for name, known in THINGS[topic].items():
            for pattern in TOPICS[topic].clauses:
                beginning, slot = pattern.replace("~ ", "").rstrip("}").rsplit(" {", 1)
                facts.append((beginning.format(**{topic: name}), known[slot], slot))
    return facts


def scene(rng: Random, kind: str, part: str) -> tuple[str, Request]:
    """(first sentence of a scene, what it is about); ``kind`` is a key of ``SCENES``."""
    while True:
        request = grammar.draw_request(rng, kind)
        words = grammar.true_words(request)
        drawn = {slot: rng.choice(words[slot]) for slot in ("weather", "daytime", "spot", "person", kind)}
        first = tidy(grammar.SCENES[kind][0].format(**drawn))
        if part_of(first) == part:
            return first, request


def scene_ending(kind: str, facts: dict[str, str]) -> str:
    """The second sentence of a scene with these facts, e.g. ``{"food": "nuts", "home": "tree"}``."""
    return tidy(grammar.SCENES[kind][1].format(**facts))


def document(rng: Random, world: World = FIRST) -> Document:
    """A training text: mostly conversations, some bare facts, some scenes."""
    kind = rng.random()
    if kind < 0.8:
        return Document(conversation(rng, world=world))
    if kind < 0.92:
        facts = rng.sample(fact_sentences(), rng.randint(3, 8))
        return Document(text=" ".join(f"{beginning} {ending}." for beginning, ending, _ in facts))
    scene_kind = rng.choice(sorted(grammar.SCENES))
    first, request = scene(rng, scene_kind, "corpus")
    return Document(text=f"{first} {scene_ending(scene_kind, grammar.truth(request))}")


def training_corpus(seed: int, size: int, world: World = FIRST) -> list[Document]:
    """``size`` texts; the first texts of a larger corpus with the same seed are the same."""
    rng = Random(f"corpus:{seed}")
    return [document(rng, world) for _ in range(size)]


def corpus_hash(documents: list[Document]) -> str:
    """sha256 over all texts in order."""
    digest = hashlib.sha256()
    for doc in documents:
        for message in doc.conversation:
            digest.update(f"{message['role']}\t{message['content']}\n".encode())
        digest.update(f"{doc.text}\n\n".encode())
    return digest.hexdigest()
