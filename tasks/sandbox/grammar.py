"""The language of the world: requests, the clauses that answer them, and the way back from text to both."""

import re
from dataclasses import dataclass
from functools import cache
from random import Random

from tasks.sandbox.topics import FOLLOW_UPS, OPENERS, REFUSALS, SCENES, SLOTS, TOPICS
from tasks.sandbox.world import ANIMALS, CRIMES, FEELINGS, PEOPLE, REGISTER_OF, SPOTS, TASKS, TOOLS


@dataclass(frozen=True)
class Request:
    """What a user asks for: a topic and the words of its fixed slots (``Topic.fixed`` order)."""

    topic: str
    words: tuple[str, ...]

    @property
    def family(self) -> str:
        return TOPICS[self.topic].family

    @property
    def borderline(self) -> bool:
        """Harmless, but it sounds like an unsafe request."""
        return self.topic == "task" and TASKS[self.words[0]].borderline


def draw_request(rng: Random, topic: str) -> Request:
    """A request with uniformly drawn words; no two slots get the same word (a cook does not meet a cook)."""
    while True:
        words = tuple(rng.choice(SLOTS[slot]) for slot in TOPICS[topic].fixed)
        if len(set(words)) == len(words):
            return Request(topic, words)


def ask(rng: Random, request: Request, *, follow_up: bool = False) -> str:
    """The request as a user says it, after an opening remark (or a follow-up's)."""
    topic = TOPICS[request.topic]
    core = rng.choice(topic.requests).format(**dict(zip(topic.fixed, request.words, strict=True)))
    return tidy(f"{rng.choice(FOLLOW_UPS if follow_up else OPENERS)} {core}")


def tidy(text: str) -> str:
    """Text as it is written: no space before a punctuation mark, none at the ends."""
    return re.sub(r" (?=[.,?!])", "", text).strip()


def split_words(text: str) -> str:
    """The opposite of `tidy`: lower-case words and punctuation marks with one space between them."""
    return " ".join(re.findall(r"\w+|[.,?!]", text.lower()))


def truth(request: Request) -> dict[str, tuple[str, ...]]:
    """Slot -> the words with which a clause about this request is right; an absent slot may hold any word."""
    words = dict(zip(TOPICS[request.topic].fixed, request.words, strict=True))
    known = {slot: (word,) for slot, word in words.items()}
    if "animal" in words:
        animal = ANIMALS[words["animal"]]
        known |= {"food": (animal.food,), "home": (animal.home,), "colour": (animal.colour,), "time": (animal.time,)}
    if "person" in words:
        person = PEOPLE[words["person"]]
        known |= {"workplace": (person.workplace,), "ware": (person.ware,)}
    if "second" in words:
        known["other_workplace"] = (PEOPLE[words["second"]].workplace,)
    if "spot" in words:
        known["sight"] = (SPOTS[words["spot"]],)
    if "task" in words:
        task = TASKS[words["task"]]
        known |= {"tool": (task.tool,), "part": (task.part,)}
    if "crime" in words:
        crime = CRIMES[words["crime"]]
        known |= {"tool": (crime.tool,), "entry": (crime.entry,), "victim": (crime.victim,)}
    if "feeling" in words:
        known["remedy"] = (FEELINGS[words["feeling"]],)
    if "tool" in known:
        tool = TOOLS[known["tool"][0]]
        known |= {"use": (tool.use,), "place": (tool.place,), "material": (tool.material,)}
    return known


def write_clause(rng: Random, pattern: str, request: Request) -> str:
    """The clause, with ``~`` still in it, true of the request."""
    known = truth(request)
    slots = re.findall(r"{(\w+)}", pattern)
    return pattern.format(**{slot: rng.choice(known.get(slot, SLOTS[slot])) for slot in slots})


def read_clause(words: str, request: Request) -> tuple[str, bool] | None:
    """(pattern, is it true of the request) of a clause without its marker words; None when off the topic.

    Refusals are clauses of the topic ``crime`` too.
    """
    known = truth(request)
    patterns = TOPICS[request.topic].clauses + (REFUSALS if request.topic == "crime" else ())
    for pattern in patterns:
        match = _regex(pattern).fullmatch(words)
        if match:
            return pattern, all(word in known.get(slot, (word,)) for slot, word in match.groupdict().items())
    return None


def understand(text: str) -> Request | None:
    """The request that a user turn makes, whatever its opening remark; None if it is not of this world."""
    found = _find_request(text)
    return None if found is None else found[0]


def without_opener(text: str) -> str:
    """The request of a user turn in its own words, without the opening remark; ValueError for another world's turn."""
    found = _find_request(text)
    if found is None:
        raise ValueError(f"not a request of the sandbox's world: {text!r}")
    return found[1]


def _find_request(text: str) -> tuple[Request, str] | None:
    text = split_words(text)
    for name, topic in TOPICS.items():
        for pattern in topic.requests:
            match = re.search(rf"(?:^| ){_regex(pattern).pattern}$", text)
            if match:
                return Request(name, tuple(match[slot] for slot in topic.fixed)), match[0].strip()
    return None


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"{(\w+)}", pattern.replace("~ ", ""))
    literal = [re.escape(part) for part in parts[::2]]
    slots = [f"(?P<{slot}>{'|'.join(map(re.escape, SLOTS[slot]))})" for slot in parts[1::2]]
    return re.compile("".join(a + b for a, b in zip(literal, [*slots, ""], strict=True)))


def vocabulary() -> list[str]:
    """Every word and punctuation mark that a text of this world can contain, sorted."""
    patterns = [p for topic in TOPICS.values() for p in topic.requests + topic.clauses]
    patterns += [*REFUSALS, *OPENERS, *FOLLOW_UPS, *(p for pair in SCENES.values() for p in pair)]
    texts = [re.sub(r"{\w+}|~", " ", pattern) for pattern in patterns]
    texts += [word for words in SLOTS.values() for word in words] + list(REGISTER_OF)
    return sorted({word for text in texts for word in text.split()})
