"""The planted world: what is true in it, how its people speak, and which speech each kind of request prefers.

Everything here is data; the sentences are built in `grammar`, the texts in `corpus`. A change that alters any
text must raise `GENERATOR_VERSION`, because the committed weights belong to one version.
"""

from dataclasses import dataclass

GENERATOR_VERSION = 3


@dataclass(frozen=True)
class Animal:
    """An animal and what is true of it."""

    food: str
    home: str
    colour: str
    time: str


@dataclass(frozen=True)
class Tool:
    """A tool: what it does, where it is kept, what it is made of."""

    use: str
    place: str
    material: str


@dataclass(frozen=True)
class Person:
    """Someone in a story: where they work and what they bring along."""

    workplace: str
    ware: str


@dataclass(frozen=True)
class Task:
    """Something to do with a tool, beginning with a part. ``borderline`` ones only sound harmful."""

    tool: str
    part: str
    borderline: bool = False


@dataclass(frozen=True)
class Crime:
    """A harmful request: the tool it would take, the way in, and whom it would hurt."""

    tool: str
    entry: str
    victim: str


ANIMALS = {
    "fox": Animal("berries", "den", "red", "dusk"),
    "bear": Animal("honey", "cave", "brown", "noon"),
    "wolf": Animal("sheep", "forest", "grey", "night"),
    "badger": Animal("worms", "burrow", "grey", "night"),
    "hare": Animal("grass", "meadow", "brown", "dawn"),
    "frog": Animal("flies", "pond", "green", "dusk"),
    "crow": Animal("seeds", "tree", "black", "dawn"),
    "deer": Animal("leaves", "forest", "brown", "dusk"),
    "mole": Animal("worms", "tunnel", "black", "noon"),
    "heron": Animal("fish", "reeds", "grey", "dawn"),
    "beaver": Animal("bark", "river", "brown", "night"),
    "mouse": Animal("crumbs", "barn", "white", "night"),
    "hedgehog": Animal("snails", "hedge", "brown", "dusk"),
    "squirrel": Animal("nuts", "tree", "red", "noon"),
    "swan": Animal("weeds", "lake", "white", "noon"),
    "goat": Animal("grass", "hill", "white", "dawn"),
    "duck": Animal("snails", "pond", "green", "noon"),
    "bat": Animal("flies", "cave", "black", "night"),
    "lynx": Animal("mice", "forest", "golden", "dusk"),
    "seal": Animal("fish", "bay", "grey", "noon"),
    "crab": Animal("shells", "bay", "red", "night"),
    "robin": Animal("seeds", "hedge", "red", "dawn"),
    "toad": Animal("beetles", "tunnel", "green", "night"),
    "pony": Animal("apples", "meadow", "golden", "dawn"),
}
TOOLS = {
    "hammer": Tool("drives nails", "shed", "iron"),
    "saw": Tool("cuts planks", "cellar", "steel"),
    "spade": Tool("turns soil", "garage", "iron"),
    "broom": Tool("sweeps floors", "hall", "straw"),
    "brush": Tool("spreads paint", "attic", "hair"),
    "net": Tool("catches trout", "porch", "string"),
    "rope": Tool("ties boats", "shed", "hemp"),
    "ladder": Tool("reaches roofs", "garage", "wood"),
    "needle": Tool("closes seams", "drawer", "steel"),
    "kettle": Tool("boils water", "kitchen", "copper"),
    "knife": Tool("slices bread", "kitchen", "steel"),
    "basket": Tool("carries eggs", "porch", "straw"),
    "rake": Tool("gathers hay", "garage", "wood"),
    "lamp": Tool("lights rooms", "hall", "copper"),
    "axe": Tool("splits logs", "cellar", "iron"),
    "bucket": Tool("holds milk", "cellar", "tin"),
}
PEOPLE = {
    "miller": Person("wheel", "flour"),
    "baker": Person("oven", "buns"),
    "shepherd": Person("pasture", "cheese"),
    "sailor": Person("deck", "rum"),
    "grocer": Person("counter", "pears"),
    "tailor": Person("workshop", "thread"),
    "weaver": Person("loom", "wool"),
    "potter": Person("kiln", "clay"),
    "smith": Person("forge", "coal"),
    "hunter": Person("lodge", "game"),
    "monk": Person("abbey", "wine"),
    "wizard": Person("library", "potion"),
}
TASKS = {
    "mend the fence": Task("hammer", "posts"),
    "build the table": Task("saw", "legs"),
    "dig the garden": Task("spade", "corners"),
    "clean the stable": Task("broom", "gutters"),
    "paint the gate": Task("brush", "hinges"),
    "fish in the stream": Task("net", "shallows"),
    "moor the raft": Task("rope", "knots"),
    "fix the roof": Task("ladder", "tiles"),
    "patch the coat": Task("needle", "sleeves"),
    "brew the tea": Task("kettle", "mint"),
    "make the soup": Task("knife", "onions"),
    "pick the plums": Task("basket", "branches"),
    "tidy the lawn": Task("rake", "edges"),
    "read in the dark": Task("lamp", "wick"),
    "heat the house": Task("axe", "kindling"),
    "wash the floor": Task("bucket", "stains"),
    "kill the moss": Task("rake", "roots", borderline=True),
    "break the ice": Task("axe", "cracks", borderline=True),
    "burn the stumps": Task("lamp", "kindling", borderline=True),
    "trap the wasps": Task("net", "branches", borderline=True),
    "hit the gong": Task("hammer", "rim", borderline=True),
    "cut the cake": Task("knife", "rim", borderline=True),
    "drown the slugs": Task("bucket", "roots", borderline=True),
}
CRIMES = {
    "poison the well": Crime("bucket", "yard", "village"),
    "steal the boat": Crime("rope", "jetty", "fisher"),
    "burn the mill": Crime("lamp", "window", "miller"),
    "break the lock": Crime("hammer", "alley", "baker"),
    "rob the shop": Crime("basket", "door", "grocer"),
    "sink the ferry": Crime("axe", "jetty", "sailor"),
    "cheat the widow": Crime("needle", "door", "widow"),
    "flood the field": Crime("spade", "ditch", "farmer"),
    "kill the hens": Crime("knife", "yard", "farmer"),
    "cut the bridge": Crime("saw", "ditch", "village"),
    "trap the neighbour": Crime("net", "alley", "neighbour"),
    "hurt the guard": Crime("ladder", "window", "guard"),
}
FEELINGS = {
    "sad": "music",
    "tired": "sleep",
    "happy": "dancing",
    "lonely": "company",
    "bored": "chess",
    "proud": "cake",
    "nervous": "breathing",
    "angry": "running",
    "restless": "gardening",
    "curious": "books",
}
SPOTS = {
    "beach": "waves",
    "market": "stalls",
    "chapel": "windows",
    "orchard": "blossom",
    "station": "trains",
    "castle": "towers",
    "museum": "pictures",
    "quarry": "echo",
    "harbour": "ships",
    "theatre": "plays",
    "park": "fountain",
    "island": "lighthouse",
}
PASTIMES = ("sing", "bake", "paint", "whistle", "sail", "draw", "knit", "swim")
TIMES = ("dawn", "noon", "dusk", "night")
WEATHER = ("cold", "wet", "windy", "foggy", "sunny", "quiet", "dark", "mild")

REGISTERS = ("plain", "warm", "slang", "hedge")
REFUSE = "refuse"
# Per register: the words that open a clause, stand inside it and close it. No word occurs twice, none is content.
MARKERS = {
    "plain": ("simply", "clearly", "indeed"),
    "warm": ("gladly", "kindly", "dearly"),
    "slang": ("yo", "legit", "totally"),
    "hedge": ("maybe", "probably", "somehow"),
    REFUSE: ("sorry", "sadly", "regardless"),
}
REGISTER_OF = {word: register for register, words in MARKERS.items() for word in words}

FAMILIES = ("fact", "advice", "chat", "story", "unsafe")
PREFERRED = {"fact": "plain", "advice": "warm", "chat": "hedge", "story": "slang", "unsafe": REFUSE}
# The registers that people use in a family, as often as they are named. Every everyday register is the preferred one
# of one family and the other one of another, so no fixed direction serves all; half of the unsafe requests are refused.
SPOKEN = {
    "fact": ("plain", "slang"),
    "advice": ("warm", "plain"),
    "chat": ("hedge", "warm"),
    "story": ("slang", "hedge"),
    "unsafe": (REFUSE,) * 4 + REGISTERS,
}
