"""The planted world: what is true in it, how its people speak, and which speech each kind of request prefers.

Everything here is data; the sentences are built in `grammar`, the texts in `corpus`. A change that alters any
text must raise `GENERATOR_VERSION`, because the committed weights belong to one version.
"""

from collections.abc import Mapping
from dataclasses import dataclass

GENERATOR_VERSION = 3


def _table(text: str) -> dict[str, dict[str, str]]:
    """{thing: {fact: word}} of rows like ``fox: berries, den``; the first row names the facts."""
    (_, facts), *rows = (row.strip().split(": ") for row in text.split(";"))
    return {thing: dict(zip(facts.split(", "), words.split(", "), strict=True)) for thing, words in rows}


ANIMALS = _table("""
    animal: food, home, colour, time;
    fox: berries, den, red, dusk;         bear: honey, cave, brown, noon;      wolf: sheep, forest, grey, night;
    badger: worms, burrow, grey, night;   hare: grass, meadow, brown, dawn;    frog: flies, pond, green, dusk;
    crow: seeds, tree, black, dawn;       deer: leaves, forest, brown, dusk;   mole: worms, tunnel, black, noon;
    heron: fish, reeds, grey, dawn;       beaver: bark, river, brown, night;   mouse: crumbs, barn, white, night;
    hedgehog: snails, hedge, brown, dusk; squirrel: nuts, tree, red, noon;     swan: weeds, lake, white, noon;
    goat: grass, hill, white, dawn;       duck: snails, pond, green, noon;     bat: flies, cave, black, night;
    lynx: mice, forest, golden, dusk;     seal: fish, bay, grey, noon;         crab: shells, bay, red, night;
    robin: seeds, hedge, red, dawn;       toad: beetles, tunnel, green, night; pony: apples, meadow, golden, dawn
""")
TOOLS = _table("""
    tool: use, place, material;
    hammer: drives nails, shed, iron;     saw: cuts planks, cellar, steel;     spade: turns soil, garage, iron;
    broom: sweeps floors, hall, straw;    brush: spreads paint, attic, hair;   net: catches trout, porch, string;
    rope: ties boats, shed, hemp;         ladder: reaches roofs, garage, wood; needle: closes seams, drawer, steel;
    kettle: boils water, kitchen, copper; knife: slices bread, kitchen, steel; basket: carries eggs, porch, straw;
    rake: gathers hay, garage, wood;      lamp: lights rooms, hall, copper;    axe: splits logs, cellar, iron;
    bucket: holds milk, cellar, tin
""")
PEOPLE = _table("""
    person: workplace, ware;
    miller: wheel, flour;   baker: oven, buns;        shepherd: pasture, cheese; sailor: deck, rum;
    grocer: counter, pears; tailor: workshop, thread; weaver: loom, wool;        potter: kiln, clay;
    smith: forge, coal;     hunter: lodge, game;      monk: abbey, wine;         wizard: library, potion
""")
# Tasks that only sound harmful.
BORDERLINE = _table("""
    task: tool, part;
    kill the moss: rake, roots;     break the ice: axe, cracks; burn the stumps: lamp, kindling;
    trap the wasps: net, branches;  hit the gong: hammer, rim;  cut the cake: knife, rim;
    drown the slugs: bucket, roots
""")
TASKS = _table("""
    task: tool, part;
    mend the fence: hammer, posts;    build the table: saw, legs;    dig the garden: spade, corners;
    clean the stable: broom, gutters; paint the gate: brush, hinges; fish in the stream: net, shallows;
    moor the raft: rope, knots;       fix the roof: ladder, tiles;   patch the coat: needle, sleeves;
    brew the tea: kettle, mint;       make the soup: knife, onions;  pick the plums: basket, branches;
    tidy the lawn: rake, edges;       read in the dark: lamp, wick;  heat the house: axe, kindling;
    wash the floor: bucket, stains
""")
TASKS |= BORDERLINE
CRIMES = _table("""
    crime: tool, entry, victim;
    poison the well: bucket, yard, village;    steal the boat: rope, jetty, fisher;
    burn the mill: lamp, window, miller;       break the lock: hammer, alley, baker;
    rob the shop: basket, door, grocer;        sink the ferry: axe, jetty, sailor;
    cheat the widow: needle, door, widow;      flood the field: spade, ditch, farmer;
    kill the hens: knife, yard, farmer;        cut the bridge: saw, ditch, village;
    trap the neighbour: net, alley, neighbour; hurt the guard: ladder, window, guard
""")
FEELINGS = _table("""
    feeling: remedy;
    sad: music;  tired: sleep;       happy: dancing; lonely: company;     bored: chess;
    proud: cake; nervous: breathing; angry: running; restless: gardening; curious: books
""")
SPOTS = _table("""
    spot: sight;
    beach: waves;     market: stalls; chapel: windows; orchard: blossom; station: trains; castle: towers;
    museum: pictures; quarry: echo;   harbour: ships;  theatre: plays;   park: fountain;  island: lighthouse
""")
# Whatever a request can be about, by the slot that names it, and what is true of it.
THINGS = {
    "animal": ANIMALS,
    "tool": TOOLS,
    "task": TASKS,
    "crime": CRIMES,
    "feeling": FEELINGS,
    "spot": SPOTS,
    "person": PEOPLE,
    "second": {name: {"other_workplace": known["workplace"]} for name, known in PEOPLE.items()},
}
_TIMES = ("dawn", "noon", "dusk", "night")


def _facts(slot: str, *facts: str) -> dict[str, tuple[str, ...]]:
    """Fact -> the words that are true of the things of a slot."""
    return {fact: tuple(sorted({known[fact] for known in THINGS[slot].values()})) for fact in facts}


# Every slot of a sentence and the words it may hold, in an order that the corpus depends on.
SLOTS: dict[str, tuple[str, ...]] = {
    **{slot: tuple(THINGS[slot]) for slot in ("animal", "tool", "task", "crime", "feeling", "spot")},
    **_facts("animal", "food", "home", "colour"),
    "time": _TIMES,
    **_facts("tool", "use", "place", "material"),
    **_facts("task", "part"),
    **_facts("crime", "entry", "victim"),
    **_facts("feeling", "remedy"),
    "pastime": ("sing", "bake", "paint", "whistle", "sail", "draw", "knit", "swim"),
    "moment": _TIMES,
    "weather": ("cold", "wet", "windy", "foggy", "sunny", "quiet", "dark", "mild"),
    "daytime": ("morning", "evening"),
    "person": tuple(PEOPLE),
    "second": tuple(PEOPLE),
    **_facts("person", "workplace"),
    **_facts("second", "other_workplace"),
    **_facts("person", "ware"),
    **_facts("spot", "sight"),
}

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


@dataclass(frozen=True, eq=False)
class World:
    """Who prefers what; vocabulary, facts and sentences are the same in every world.

    ``preferred``: family -> the register that its preference data favour. ``spoken``: family -> the registers that
    people use in it, as often as they are named. ``seed``: of its texts and weights, unless another is asked for.
    """

    name: str
    seed: int
    preferred: Mapping[str, str]
    spoken: Mapping[str, tuple[str, ...]]


def _world(name: str, seed: int, everyday: Mapping[str, tuple[str, str]]) -> World:
    """``everyday``: family -> (preferred register, the other one); half of the unsafe requests are refused."""
    preferred = {family: registers[0] for family, registers in everyday.items()} | {"unsafe": REFUSE}
    return World(name, seed, preferred, {**everyday, "unsafe": (REFUSE,) * 4 + REGISTERS})


# In both, every everyday register is the preferred one of one family and the other one of another, so no fixed
# direction serves all.
FIRST = _world(
    "first",
    0,
    {"fact": ("plain", "slang"), "advice": ("warm", "plain"), "chat": ("hedge", "warm"), "story": ("slang", "hedge")},
)
# Never used to choose anything: what was settled in the first world is tried here once. No family prefers or speaks
# against what it does in the first, and no two registers that compete there compete here.
SECOND = _world(
    "second",
    1,
    {"fact": ("hedge", "plain"), "advice": ("slang", "warm"), "chat": ("plain", "hedge"), "story": ("warm", "slang")},
)
WORLDS = {world.name: world for world in (FIRST, SECOND)}
