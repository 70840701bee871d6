"""A first suite for a model and preference triples of one's own: what they are like, and a commented file that runs."""

import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from harness.data.refs import BaseShape, ModelRef
from harness.data.split import Split, split_parts, write_split
from harness.data.triples import Triple, TripleFile, contaminated, normal, prompt_count
from harness.experiment.check import check_base, check_suite
from harness.experiment.room import Room
from harness.experiment.suite import load_suite
from harness.files import check_can_make, write_text
from harness.method import METHODS
from harness.plugins import load_plugins

HELD_OUT = 0.2
"""Share of the prompts on which methods are measured and never fitted."""
MEASURED = 60
"""Prompts that every variant answers."""
SAMPLE = 1000
"""Triples whose tokens are counted for what is said of lengths."""
USUAL = ("base", "caa", "sft", "dpo")
SEARCH = {"learning_rate": [2.0e-5, 2.0e-4, 1.0e-3], "scale": [0.5, 1.0, 2.0], "alpha": [0.2, 0.5, 1.0]}
"""What tuning tries on each budget's own triples; the middle value is the variant's own."""
LEAST_TUNED = 8
"""Triples below which nothing is tuned: there would be too few to choose by."""


@dataclass(frozen=True)
class Wishes:
    """What was asked for; ``saes`` are folders by the names ``early`` and ``late``."""

    path: Path
    name: str
    base: ModelRef
    triples: Path
    methods: tuple[str, ...] = ()
    budgets: tuple[int, ...] = ()
    seeds: int = 2
    saes: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Looked:
    """What was found out about model and triples; lengths are in tokens, of the first SAMPLE triples."""

    shape: BaseShape
    room: Room
    source: TripleFile
    lengths: tuple[int, ...]
    answers: tuple[int, ...]
    too_long: int

    @property
    def lines(self) -> list[str]:
        """Sentences for whoever starts."""
        triples, context = list(self.source.distinct.values()), self.room.max_length
        fit = "all fit" if not self.too_long else f"{self.too_long} do not fit and are left out (too_long: skip)"
        sizes = f"{median(self.lengths):.0f} tokens in the median, {max(self.lengths)} at most"
        return [
            f"model: {self.shape.name}, {self.shape.n_layers} layers of width {self.shape.d_model}, context of "
            f"{context} tokens, chat format {self.room.chat.kind}",
            f"triples: {len(triples)} different ones on {prompt_count(triples)} prompts in {self.source.rows.name}",
            f"lengths: prompt and answer have {sizes} (first {len(self.lengths)} triples); {fit}",
            *(f"note: {note}" for note in self.source.notes),
        ]


def look(wishes: Wishes) -> Looked:
    """Read the triples, and of the model what is known without its weights; ValueError for what cannot be used."""
    source, shape = TripleFile.read(wishes.triples), check_base(wishes.base)
    room = Room.of(wishes.base)
    lengths, answers = [], []
    for triple in list(source.distinct.values())[:SAMPLE]:
        answer = max(len(room.chat.response_ids(text)) + 1 for text in (triple.chosen, triple.rejected))
        answers.append(answer)
        lengths.append(room.prompt_tokens(triple.prompt) + answer)
    return Looked(shape, room, source, tuple(lengths), tuple(answers), len(room.long_triples(source)))


def start(wishes: Wishes, looked: Looked) -> list[Path]:
    """Split the triples, write the suite and check it as a run would; the files written, or ValueError and none."""
    data = wishes.path.with_name(f"{wishes.path.stem}-data")
    for path in (wishes.path, data):
        if path.exists():
            raise ValueError(f"{str(path)!r} exists already and is never overwritten; give another name")
    check_can_make(wishes.path, "the suite")
    shares = {"train": 1 - HELD_OUT, "heldout": HELD_OUT}
    parts = _unseen(split_parts(looked.source, shares, seed=0))
    budgets = _budgets(wishes.budgets, looked, parts.parts["train"])
    text = _suite(wishes, looked, data, budgets, parts.parts["heldout"])
    write_split(parts, wishes.triples, shares, 0, data)
    try:
        write_text(wishes.path, text)
        check_suite(load_suite(wishes.path))
    except ValueError:
        wishes.path.unlink(missing_ok=True)
        shutil.rmtree(data)
        raise
    return [wishes.path, *(data / f"{name}.jsonl" for name in shares)]


def _unseen(split: Split) -> Split:
    """``split`` without held-out triples of which a later user turn is also said in training: a run would refuse them.

    They are left over. ValueError where nothing is held out then.
    """
    train, held_out = split.parts["train"], split.parts["heldout"]
    said = {normal(text) for text in contaminated(train, [text for one in held_out for text in _user_turns(one)])}
    kept = [one for one in held_out if not said.intersection(map(normal, _user_turns(one)))]
    if not kept:
        raise ValueError(f"{split.source.rows.name}: no held-out prompt is without a turn that is also trained on")
    left = [one for one in held_out if one not in kept]
    return replace(split, parts={"train": train, "heldout": kept}, left=[*split.left, *left])


def _user_turns(triple: Triple) -> list[str]:
    return [message["content"] for message in triple.prompt if message["role"] == "user"]


def _budgets(asked: Sequence[int], looked: Looked, train: Sequence[Triple]) -> tuple[int, ...]:
    left = {item.name for item in looked.room.long_triples(looked.source)}
    there = sum(triple.key not in left for triple in train)
    for budget in asked:
        if not 1 <= budget <= there:
            raise ValueError(
                f"--budget {budget}: there are {there} triples to fit on, after {HELD_OUT:.0%} are held out"
            )
    return tuple(asked) or tuple(size for size in (100, 300) if size <= there) or (there,)


def _suite(wishes: Wishes, looked: Looked, data: Path, budgets: Sequence[int], held_out: Sequence[Triple]) -> str:
    """The suite file, with comments on what else could be asked for."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tasks")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    folder = wishes.path.parent
    base = wishes.base.model_dump(exclude_defaults=True)
    if wishes.base.path is not None:
        base["path"] = _place(wishes.base.path, folder)
    saes = {name: _place(path, folder) for name, path in wishes.saes.items()}
    names = wishes.methods or (*USUAL, *(["dspa"] if saes else []))
    tuned = min(budgets) >= LEAST_TUNED
    variants = [_variant(name, looked.shape, tuple(saes), tuned=tuned) for name in dict.fromkeys(("base", *names))]
    text = environment.get_template("suite.yaml.j2").render(
        {
            "triples": " ".join(str(wishes.triples).split()),
            "held_out": f"{HELD_OUT:.0%}",
            "file": _word(wishes.path),
            "name": wishes.name,
            "base": _flow(base),
            "model": _word(wishes.base.path or wishes.base.id),
            "text": _word(data / "train.jsonl"),
            "saes_to_be": _word(folder / "saes"),
            "saes": saes,
            "train": _place(data / "train.jsonl", folder),
            "heldout": _place(data / "heldout.jsonl", folder),
            "long": ", too_long: skip" if looked.too_long else "",
            "budgets": list(budgets),
            "seeds": wishes.seeds,
            "limit": min(MEASURED, prompt_count(held_out)),
            "tokens": max(16, min(256, sorted(looked.answers)[int(0.9 * (len(looked.answers) - 1))])),
            "tuned": any(variant["tune"] for variant in variants),
            "variants": variants,
            "early": _depth(looked.shape, 0.3),
            "late": _depth(looked.shape, 0.75),
            "workers": max(1, min(2, (os.cpu_count() or 1) // 2)),
        }
    )
    return text.rstrip() + "\n"


def _variant(name: str, shape: BaseShape, saes: Sequence[str], *, tuned: bool) -> dict[str, str]:
    """Name, settings and what is tuned of a variant, as they follow from the names of the method's parameters."""
    fields = METHODS[name].model_fields
    params: dict[str, Any] = {}
    if "tuning" in fields and fields["tuning"].default != "lora":
        params["tuning"] = "lora"
    if "layer" in fields and fields["layer"].is_required():
        params["layer"] = _depth(shape, 0.75)
    for key, sae in (("input_sae", "early"), ("output_sae", "late"), ("sae", "late"), ("saes", "late")):
        if key in fields and fields[key].is_required():
            if sae not in saes:
                raise ValueError(f"method {name!r} needs SAEs: give --input-sae FOLDER and --output-sae FOLDER")
            params[key] = [*saes] if key == "saes" else sae
    missing = [key for key, info in fields.items() if info.is_required() and key not in {*params, *SEARCH}]
    if missing:
        raise ValueError(
            f"method {name!r} needs {', '.join(missing)}, which init cannot guess; leave it out, and add it to the "
            f"suite by hand (see `dspa-bench describe {name}`)"
        )
    searched = [key for key in SEARCH if key in fields and fields[key].annotation is float]
    tune = {key: SEARCH[key] for key in searched[:1]} if METHODS[name].uses_triples else {}
    params |= {key: values[1] for key, values in tune.items()}
    return {"name": name, "params": _flow(params) if params else "", "tune": _flow(tune) if tune and tuned else ""}


def _depth(shape: BaseShape, share: float) -> int:
    return min(max(round(share * shape.n_layers) - 1, 0), shape.n_layers - 1)


def _flow(values: Mapping[str, Any]) -> str:
    """A mapping in YAML's flow style, in one line."""
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in values.items()) + "}"


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    text = str(value)
    plain = not isinstance(value, str) or re.fullmatch(r"[A-Za-z0-9_./~-][A-Za-z0-9_./@ -]*", text)
    return text if plain else json.dumps(text)


def _place(path: str | Path, folder: Path) -> str:
    """``path`` as the suite names it: from its own folder on where it lies below that, else in full."""
    whole, home = (Path(os.path.normpath(Path(one).absolute())) for one in (path, folder))
    return _scalar(whole.relative_to(home).as_posix() if whole.is_relative_to(home) else str(whole))


def _word(of: object) -> str:
    """A word of a command in a comment, for the folder in which ``init`` was run."""
    return re.sub(r"\s", " ", shlex.quote(str(of)))


def suite_path(where: Path) -> Path:
    """The file to write for what a user gave: a folder's ``suite.yaml``, or a file."""
    return where if where.suffix in (".yaml", ".yml") else where / "suite.yaml"


def usual_name(path: Path) -> str:
    """A name for the suite at ``path``: the file's, or its folder's for one called suite."""
    stem = path.stem if path.stem != "suite" else path.absolute().parent.name
    return re.sub(r"[^A-Za-z0-9.-]+", "-", stem).strip("-.") or "mine"


def method_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Methods given with spaces, commas or several times; ValueError for one that is not known."""
    load_plugins()
    names = tuple(dict.fromkeys(name for text in texts for name in re.split(r"[,\s]+", text) if name))
    for name in names:
        _ = METHODS[name]
    return names
