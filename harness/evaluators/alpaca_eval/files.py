"""AlpacaEval's files: outputs of a model, and annotations of what was compared with what."""

import json
import math
from pathlib import Path
from typing import Any

from harness.files import read_text


def load_outputs(path: str | Path, what: str) -> list[dict[str, str]]:
    """A model's outputs: instruction, output, generator, dataset. ValueError (file: entry) for a malformed one."""
    rows = _rows(path, what, "objects with instruction and output")
    return [_output(row, f"{path}: entry {number}") for number, row in enumerate(rows, 1)]


def load_annotations(path: str | Path) -> list[dict[str, Any]]:
    """Annotations as the package writes them; ``preference`` is 1..2 (0 means a tie, as of old), or nan.

    Each has instruction, output_1, output_2, generator_1, generator_2 and annotator. A preference that is outside of
    1..2 is nan: it is no verdict, and the package drops it.
    """
    rows = _rows(path, "AlpacaEval annotation", "annotations with output_1, output_2 and preference")
    return [_annotation(row, f"{path}: entry {number}") for number, row in enumerate(rows, 1)]


def _rows(path: str | Path, what: str, expected: str) -> list[Any]:
    try:
        rows = json.loads(read_text(path, what))
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path}:{problem.lineno}: not valid JSON ({problem.msg})") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected a non-empty JSON list of {expected}")
    return rows


def _output(row: Any, place: str) -> dict[str, str]:
    _need_texts(row, ("instruction", "output"), place)
    return {
        "instruction": row["instruction"],
        "output": row["output"],
        "generator": str(row.get("generator", "reference")),
        "dataset": str(row.get("dataset", "")),
    }


def _annotation(row: Any, place: str) -> dict[str, Any]:
    _need_texts(row, ("instruction", "output_1", "output_2"), place)
    if "preference" not in row:
        raise ValueError(f"{place}: 'preference' is missing; a failed verdict is null")
    preference = row["preference"]
    if preference is not None and (isinstance(preference, bool) or not isinstance(preference, int | float)):
        raise ValueError(f"{place}: 'preference' must be a number from 1 to 2, or null; got {preference!r}")
    if preference is not None and not (preference == 0 or 1 <= preference <= 2):
        preference = None
    return {
        **{key: row[key] for key in ("instruction", "output_1", "output_2")},
        "generator_1": str(row.get("generator_1", "reference")),
        "generator_2": str(row.get("generator_2", "model")),
        "annotator": str(row.get("annotator", "unknown")),
        "preference": math.nan if preference is None else float(preference),
    }


def _need_texts(row: Any, keys: tuple[str, ...], place: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected an object with {', '.join(keys)}, got {type(row).__name__}")
    for key in keys:
        if not isinstance(row.get(key), str):
            raise ValueError(f"{place}: {key!r} must be a string, got {row.get(key)!r}")
    if not row["instruction"].strip():
        raise ValueError(f"{place}: 'instruction' is empty")
