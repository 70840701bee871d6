"""AlpacaEval's files: outputs of a model, and annotations of what was compared with what."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from harness.files import Number, Text, Words, checked, load_json

Name = Annotated[str, BeforeValidator(str), "a name"]


@dataclass
class _Output:
    instruction: Words
    output: Text
    generator: Name = "reference"
    dataset: Name = ""


@dataclass
class _Annotation:
    instruction: Words
    output_1: Text
    output_2: Text
    preference: Annotated[Number | None, "a number from 1 to 2, or null for a failed verdict"]
    generator_1: Name = "reference"
    generator_2: Name = "model"
    annotator: Name = "unknown"


def load_outputs(path: str | Path, what: str) -> list[dict[str, str]]:
    """A model's outputs: instruction, output, generator, dataset. ValueError (file: entry) for a malformed one."""
    rows = _rows(path, what, "objects with instruction and output")
    return [vars(checked(_Output, row, f"{path}: entry {number}")) for number, row in enumerate(rows, 1)]


def load_annotations(path: str | Path) -> list[dict[str, Any]]:
    """Annotations as the package writes them; ``preference`` is 1..2 (0 means a tie, as of old), or nan.

    Each has instruction, output_1, output_2, generator_1, generator_2 and annotator. A preference that is outside of
    1..2 is nan: it is no verdict, and the package drops it.
    """
    rows = _rows(path, "AlpacaEval annotation", "annotations with output_1, output_2 and preference")
    found = [vars(checked(_Annotation, row, f"{path}: entry {number}")) for number, row in enumerate(rows, 1)]
    for row in found:
        given = row["preference"]
        row["preference"] = float(given) if given is not None and (given == 0 or 1 <= given <= 2) else math.nan
    return found


def _rows(path: str | Path, what: str, expected: str) -> list[Any]:
    rows = load_json(path, what)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected a non-empty JSON list of {expected}")
    return rows
