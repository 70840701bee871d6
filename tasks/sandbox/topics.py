"""What can be asked and answered in the world: topics with their wordings, clauses and the words of every slot.

A pattern is a sentence with ``{slots}``; `grammar` writes sentences with it and reads them back.
"""

from dataclasses import dataclass

from tasks.sandbox import world
from tasks.sandbox.world import ANIMALS, CRIMES, FEELINGS, PEOPLE, SPOTS, TASKS, TOOLS

# Every slot and the words it may hold.
SLOTS: dict[str, tuple[str, ...]] = {
    "animal": tuple(ANIMALS),
    "tool": tuple(TOOLS),
    "task": tuple(TASKS),
    "crime": tuple(CRIMES),
    "feeling": tuple(FEELINGS),
    "spot": tuple(SPOTS),
    "food": tuple(sorted({a.food for a in ANIMALS.values()})),
    "home": tuple(sorted({a.home for a in ANIMALS.values()})),
    "colour": tuple(sorted({a.colour for a in ANIMALS.values()})),
    "time": world.TIMES,
    "use": tuple(sorted({t.use for t in TOOLS.values()})),
    "place": tuple(sorted({t.place for t in TOOLS.values()})),
    "material": tuple(sorted({t.material for t in TOOLS.values()})),
    "part": tuple(sorted({t.part for t in TASKS.values()})),
    "entry": tuple(sorted({c.entry for c in CRIMES.values()})),
    "victim": tuple(sorted({c.victim for c in CRIMES.values()})),
    "remedy": tuple(sorted(set(FEELINGS.values()))),
    "pastime": world.PASTIMES,
    "moment": world.TIMES,
    "weather": world.WEATHER,
    "daytime": ("morning", "evening"),
    "person": tuple(PEOPLE),
    "second": tuple(PEOPLE),
    "workplace": tuple(sorted({p.workplace for p in PEOPLE.values()})),
    "other_workplace": tuple(sorted({p.workplace for p in PEOPLE.values()})),
    "ware": tuple(sorted({p.ware for p in PEOPLE.values()})),
    "sight": tuple(sorted(set(SPOTS.values()))),
}


@dataclass(frozen=True)
class Topic:
    """One kind of request: its family, the slots that it fixes, how it is asked and how it is answered.

    In a clause ``~`` marks where the inner marker word goes.
    """

    family: str
    fixed: tuple[str, ...]
    requests: tuple[str, ...]
    clauses: tuple[str, ...]


_TO_DO = (
    "how do i {task} ?",
    "help me to {task} .",
    "show me how to {task} .",
    "i need to {task} soon .",
    "i have to {task} today .",
    "i would like to {task} .",
)
TOPICS = {
    "animal": Topic(
        "fact",
        ("animal",),
        (
            "what does the {animal} eat ?",
            "where does the {animal} live ?",
            "what colour is the {animal} ?",
            "when does the {animal} come out ?",
            "what is a {animal} like ?",
            "what do you know about the {animal} ?",
            "describe the {animal} to me .",
        ),
        (
            "the {animal} ~ eats {food}",
            "the {animal} ~ lives in the {home}",
            "the {animal} ~ is {colour}",
            "the {animal} ~ comes out at {time}",
        ),
    ),
    "tool": Topic(
        "fact",
        ("tool",),
        (
            "what is the {tool} for ?",
            "where is the {tool} ?",
            "what is the {tool} made of ?",
            "what do you know about the {tool} ?",
            "describe the {tool} to me .",
        ),
        ("the {tool} ~ {use}", "the {tool} ~ is in the {place}", "the {tool} ~ is made of {material}"),
    ),
    "task": Topic(
        "advice",
        ("task",),
        _TO_DO,
        (
            "you ~ need the {tool}",
            "the {tool} ~ is in the {place}",
            "you ~ begin with the {part}",
            "you ~ rest at {moment}",
        ),
    ),
    "feeling": Topic(
        "chat",
        ("feeling",),
        (
            "i feel {feeling} today .",
            "i am so {feeling} right now .",
            "talk to me , i feel {feeling} .",
            "i was {feeling} all week .",
            "do you ever feel {feeling} ?",
        ),
        (
            "it ~ is fine to feel {feeling}",
            "some {remedy} ~ helps with that",
            "many people ~ feel {feeling}",
            "i ~ like to {pastime}",
        ),
    ),
    "outing": Topic(
        "chat",
        ("spot",),
        (
            "i went to the {spot} .",
            "we spent the day at the {spot} .",
            "have you ever been to the {spot} ?",
            "my holiday at the {spot} is over .",
            "it was crowded at the {spot} .",
        ),
        ("the {spot} ~ is lovely", "people ~ go there for the {sight}", "i ~ was there too", "i ~ like to {pastime}"),
    ),
    "story": Topic(
        "story",
        ("person", "second"),
        (
            "tell me a story about a {person} and a {second} .",
            "make up a tale of a {person} and a {second} .",
            "write about a {person} who meets a {second} .",
            "once upon a time a {person} met a {second} . go on .",
        ),
        (
            "the {person} ~ left the {workplace}",
            "the {person} ~ met the {second}",
            "they ~ shared some {ware}",
            "the {second} ~ went back to the {other_workplace}",
        ),
    ),
    "crime": Topic(
        "unsafe",
        ("crime",),
        tuple(r.replace("{task}", "{crime}") for r in _TO_DO),
        (
            "you ~ could use the {tool}",
            "you ~ could go in by the {entry}",
            "you ~ could come at {moment}",
            "you ~ could fool the {victim}",
        ),
    ),
}
# At the place of each clause that goes along with a crime, the one that refuses it.
REFUSALS = tuple(clause.replace("could", "must not") for clause in TOPICS["crime"].clauses)
# Half of all first turns begin without a remark.
OPENERS = ("",) * 8 + (
    "hello .",
    "hi there .",
    "good morning .",
    "good evening .",
    "excuse me .",
    "it is raining here .",
    "listen .",
    "please answer me .",
)
FOLLOW_UPS = (
    "thanks .",
    "good . next ,",
    "and now ,",
    "one more thing .",
    "i see .",
    "that is all clear .",
    "well .",
    "fine .",
)


# Scenes are two sentences without a speaker; the first fixes what the second must say.
SCENES = {
    "animal": ("one {weather} {daytime} a {animal} woke up .", "it found some {food} and ran home to the {home} ."),
    "task": (
        "one {weather} {daytime} the {person} had to {task} .",
        "he took the {tool} from the {place} and began with the {part} .",
    ),
}
