"""Loads the items that lie beside this file.

lm-eval resolves `data_files` against the working directory but `!function` against the YAML's folder, so with
this loader the tasks work wherever the folder is.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict


def facts(**_: Any) -> DatasetDict:
    """Items of ``sandbox_facts``; lm-eval passes the task's metadata, which is not needed."""
    return _load("sandbox_facts.jsonl")


def scenes(**_: Any) -> DatasetDict:
    """Items of ``sandbox_scenes``."""
    return _load("sandbox_scenes.jsonl")


def _load(name: str) -> DatasetDict:
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return DatasetDict({"test": Dataset.from_list([json.loads(line) for line in lines])})
