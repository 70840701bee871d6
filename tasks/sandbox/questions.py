"""The sandbox's data files: triples, two-turn questions, instructions, multiple choice, safety prompts."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from harness.data.triples import Message
from tasks.sandbox.corpus import answer, base_answer, draw_topic, fact_sentences, prompt_for, scene, scene_ending
from tasks.sandbox.grammar import SCENES, TOPICS, TOPICS_OF, Request, truth
from tasks.sandbox.oracle import rate
from tasks.sandbox.world import FIRST, SLOTS, World

SIZES = {
    "triples": 500,
    "triples_heldout": 100,
    "questions_a_category": 10,
    "instructions_a_family": 40,
    "facts": 100,
    "scenes": 80,
    "harmful": 30,
    "harmless": 30,
}
# Category of a two-turn question -> topics its first turn is drawn from. FastChat samples categories that it
# does not know at temperature 0.7.
CATEGORIES = {
    "animals": ("animal",),
    "tools": ("tool",),
    "chores": ("task",),
    "feelings": ("feeling",),
    "outings": ("outing",),
    "stories": ("story",),
    "safety": ("crime",),
    "mixed": tuple(sorted(TOPICS)),
}
MARGIN = 4.0  # least difference of the ratings of a triple's answers
_LM_EVAL = Path(__file__).parent / "assets" / "lm_eval"  # its YAML files and loader are written by hand


def write_data(folder: Path, seed: int, world: World = FIRST) -> None:
    """Write every text asset into the existing ``folder``: the same bytes for the same seed, world and version."""
    _lines(folder / "triples.jsonl", triples(seed, "train", SIZES["triples"], set(), world))
    seen: set[str] = set()
    for part in ("mt_bench", "alpaca_eval", "safety", "lm_eval"):
        (folder / part).mkdir()
    # First: requests that only sound unsafe are few, and the other sets can do without them.
    for name, prompts in safety_prompts(seed, seen).items():
        _lines(folder / "safety" / f"{name}.jsonl", prompts)
    _lines(folder / "mt_bench" / "question.jsonl", mt_bench_questions(seed, seen))
    instructions = alpaca_instructions(seed, seen, world)
    text = json.dumps(instructions, indent=1, ensure_ascii=False) + "\n"
    (folder / "alpaca_eval" / "reference_outputs.json").write_text(text, encoding="utf-8")
    # Last, so that the other sets are what they would be without it.
    held_out = triples(seed, "heldout", SIZES["triples_heldout"], seen, world, part="evaluation")
    _lines(folder / "triples_heldout.jsonl", held_out)
    _lines(folder / "lm_eval" / "sandbox_facts.jsonl", facts(seed))
    _lines(folder / "lm_eval" / "sandbox_scenes.jsonl", scenes(seed))
    for source in sorted(_LM_EVAL.iterdir()):
        if source.suffix in (".py", ".yaml"):
            shutil.copyfile(source, folder / "lm_eval" / source.name)


def triples(
    seed: int, name: str, count: int, seen: set[str], world: World, *, part: str = "triples"
) -> list[dict[str, Any]]:
    """Preference triples with distinct prompts, a third of them about the second turn of a conversation.

    Both answers come from the world's speakers and make the same true statements (where one refuses and the other
    complies, statements at the same places). The chosen one starts in the register that the family prefers, the
    rejected one in another, and the oracle rates the chosen one at least ``MARGIN`` higher: clear preferences.
    """
    rng = Random(f"{name}:{seed}")
    rows = []
    while len(rows) < count:
        history: list[Message] = []
        if rng.random() < 1 / 3:
            request, text = prompt_for(rng, draw_topic(rng), part)
            reply = base_answer(rng, request, world)
            history = [Message(role="user", content=text), Message(role="assistant", content=reply)]
        request, text = prompt_for(rng, draw_topic(rng), part, follow_up=bool(history))
        prompt = [*history, Message(role="user", content=text)]
        # Held-out triples share no user turn with anything; training triples only no whole prompt.
        keys = [json.dumps(prompt)] if part == "triples" else [m["content"] for m in prompt if m["role"] == "user"]
        if seen & set(keys):
            continue
        seen |= set(keys)
        preferred = world.preferred[request.family]
        others = [register for register in world.spoken[request.family] if register != preferred]
        chosen = rejected = ""
        while rate(request, chosen, world)[0] < rate(request, rejected, world)[0] + MARGIN:
            content, other = rng.getrandbits(32), rng.choice(others)
            chosen = answer(rng, request, preferred, world=world, content=Random(content))
            rejected = answer(rng, request, other, world=world, content=Random(content))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": request.topic})
    return rows


def mt_bench_questions(seed: int, seen: set[str]) -> list[dict[str, Any]]:
    """Two-turn questions in FastChat's question.jsonl format; the second turn follows up with any topic."""
    rng = Random(f"mt_bench:{seed}")
    rows = []
    for category, topics in CATEGORIES.items():
        for _ in range(SIZES["questions_a_category"]):
            first = _fresh(rng, rng.choice(topics), seen)[1]
            second = _fresh(rng, draw_topic(rng), seen, follow_up=True)[1]
            rows.append({"question_id": len(rows) + 1, "category": category, "turns": [first, second]})
    return rows


def alpaca_instructions(seed: int, seen: set[str], world: World) -> list[dict[str, str]]:
    """Instructions of the four everyday families with reference outputs, in AlpacaEval's format.

    A reference is an answer of an average speaker of the world: true, in a register drawn as in the corpus.
    """
    rng = Random(f"alpaca_eval:{seed}")
    rows = []
    for family in [f for f in world.preferred if f != "unsafe"]:
        for _ in range(SIZES["instructions_a_family"]):
            request, text = _fresh(rng, rng.choice(TOPICS_OF[family]), seen)
            output = answer(rng, request, rng.choice(world.spoken[family]), world=world)
            rows.append({"instruction": text, "output": output, "generator": "sandbox_reference", "dataset": family})
    return rows


def safety_prompts(seed: int, seen: set[str]) -> dict[str, list[dict[str, str]]]:
    """``harmful``: unsafe requests. ``harmless``: some that only sound unsafe (burn the stumps)."""
    rng = Random(f"safety:{seed}")
    harmful = [_fresh(rng, "crime", seen)[1] for _ in range(SIZES["harmful"])]
    harmless: list[str] = []
    while len(harmless) < SIZES["harmless"]:
        request, text = prompt_for(rng, "task", "evaluation")
        if request.borderline and text not in seen:
            seen.add(text)
            harmless.append(text)
    return {
        name: [{"id": f"{name}-{index}", "prompt": text} for index, text in enumerate(texts, 1)]
        for name, texts in (("harmful", harmful), ("harmless", harmless))
    }


def facts(seed: int) -> list[dict[str, Any]]:
    """Four-way multiple choice: the last words of a bare fact; the other choices are true of other things."""
    rng = Random(f"facts:{seed}")
    return [
        _item(rng, beginning, ending, [word for word in SLOTS[slot] if word != ending])
        for beginning, ending, slot in rng.sample(fact_sentences(), SIZES["facts"])
    ]


def scenes(seed: int) -> list[dict[str, Any]]:
    """Four-way multiple choice: the second sentence of a scene; wrong ones have a fact or more of another."""
    rng = Random(f"scenes:{seed}")
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(rows) < SIZES["scenes"]:
        kind = sorted(SCENES)[len(rows) % len(SCENES)]
        first, request = scene(rng, kind, "evaluation")
        if first in seen:
            continue
        seen.add(first)
        right = truth(request)
        changeable = ("food", "home") if kind == "animal" else ("tool", "place", "part")
        wrong: set[str] = set()
        while len(wrong) < 3:
            changed = rng.sample(changeable, rng.randint(1, len(changeable)))
            other = {slot: rng.choice([w for w in SLOTS[slot] if w != right[slot]]) for slot in changed}
            wrong.add(scene_ending(kind, right | other))
        rows.append(_item(rng, first, scene_ending(kind, right), sorted(wrong)))
    return rows


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _item(rng: Random, query: str, right: str, wrong: list[str]) -> dict[str, Any]:
    choices = [right, *rng.sample(wrong, 3)]
    rng.shuffle(choices)
    return {"query": query, "choices": choices, "gold": choices.index(right)}


def _fresh(rng: Random, topic: str, seen: set[str], *, follow_up: bool = False) -> tuple[Request, str]:
    """A request whose wording no evaluation set has used yet."""
    while True:
        request, text = prompt_for(rng, topic, "evaluation", follow_up=follow_up)
        if text not in seen:
            seen.add(text)
            return request, text


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
