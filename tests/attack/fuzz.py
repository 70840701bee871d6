"""Random damage by hypothesis: any value at any key of a suite, its judge, its triples or an artifact.

The property: the program refuses it well (see `Outcome.refused_well`), or accepts it. What is accepted may make no
sense, but is something that it can be told to do.
"""

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.attack.ground import RUN, SUITE, ground, rows, write_lines, write_suite
from tests.attack.program import Outcome, call
from tests.attack.table import Row

EXAMPLES = 300
"""Of each target, in `make attack`; the environment's DSPA_BENCH_FUZZ_EXAMPLES wins."""
NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from([10**9, 10**30, -(10**30), 1e308, 1e-308, -0.0]), st.floats(width=32)
)
TEXTS = st.one_of(
    st.text(max_size=12),
    # no '/' and '..': preference data may be a folder, and reading all of a disk takes a while
    st.sampled_from(["", " ", "a/b", "model", "triples.jsonl", "early", "\ud800", "\0", "x" * 300]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)
"""What stands at a key by mistake."""
CHANGES = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["value", "remove", "add"]), TEXTS, VALUES), min_size=1, max_size=3
)
"""Which of the places (modulo their number), what happens there, the name of an added key, and the value."""


def damaged(document: Any, changes: list[tuple[int, str, str, Any]]) -> Any:
    """A copy of a JSON document that went through ``changes``."""
    document = copy.deepcopy(document)
    for number, kind, name, value in changes:
        places = list(_places(document))
        if not places:
            return value
        holder, key = places[number % len(places)]
        if kind == "remove":
            del holder[key]
        elif kind == "value":
            holder[key] = value
        elif isinstance(holder, dict):
            holder[name] = value
        else:
            holder.insert(key, value)
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """(list or object, index or key) of everything in a document."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from _places(document[key])


def _suite(here: Path, changes: list) -> tuple[str, ...]:
    write_suite(here, damaged(SUITE, changes))
    return RUN


def _judge(here: Path, changes: list) -> tuple[str, ...]:
    write_suite(here, SUITE | {"judge": damaged(SUITE["judge"], changes)})
    return RUN


def _triples(here: Path, changes: list) -> tuple[str, ...]:
    found = damaged(rows(8), changes)
    write_lines(here / "triples.jsonl", found if isinstance(found, list) else [found])
    return RUN


def _artifact(here: Path, changes: list) -> tuple[str, ...]:
    whole = json.loads((here / "steered" / "aligned.json").read_text("utf-8"))
    (here / "steered" / "aligned.json").write_text(json.dumps(damaged(whole, changes)), "utf-8")
    return ("generate", "steered", "--prompt", "w1", "--max-new-tokens", "1")


TARGETS: dict[str, tuple[Callable[[Path, list], tuple[str, ...]], str]] = {
    "suite": (_suite, "suite.yaml"),
    "judge": (_judge, "suite.yaml"),
    "triples": (_triples, "triples.jsonl"),
    "artifact": (_artifact, "steered/aligned.json"),
}
"""What is damaged -> how, and the file that is put back afterwards."""


def fuzz(target: str, whole: Path, examples: int, *, random: bool = False) -> tuple[Row, list[str]]:
    """The row of a target and what went wrong, shrunk to the smallest damage; the same examples unless ``random``."""
    damage, file = TARGETS[target]
    here = whole.parent / "fuzzed"
    shutil.copytree(whole, here)
    counts = [0, 0]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=not random,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(CHANGES)
    def property_(changes: list) -> None:
        shutil.copyfile(whole / file, here / file)
        outcome: Outcome = call(damage(here, changes), here)
        told = f"{changes}: exit code {outcome.code}, written {outcome.written}: {outcome.said}"
        assert outcome.refused_well or outcome.accepted, told
        counts[outcome.accepted] += 1

    wrong: list[str] = []
    try:
        property_()
    except AssertionError as problem:
        wrong.append(f"{target}: {problem}")
    finally:
        shutil.rmtree(here)
    return Row(f"random damage: {target}", sum(counts) + len(wrong), *counts, len(wrong)), wrong


def run() -> list[Row]:
    """Every target, with new examples each time."""
    examples = int(os.environ.get("DSPA_BENCH_FUZZ_EXAMPLES", EXAMPLES))
    found = []
    with ground() as whole:
        for target in TARGETS:
            row, wrong = fuzz(target, whole, examples, random=True)
            found.append(row)
            for problem in wrong:
                print(f"WRONG {problem}")
    return found
