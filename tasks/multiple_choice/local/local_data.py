"""Loads the multiple-choice files of the data folder (mc/ in it) in the form that the published tasks have.

lm-eval calls these from the YAMLs beside this file, with the task's metadata and ``dataset_kwargs``.
"""

import csv
import io
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from datasets import Dataset, DatasetDict
from lm_eval.utils import apply_template

from harness.data import data_file
from harness.files import load_json, read_jsonl, read_text

_LETTERS = "ABCD"
Row = dict[str, Any]


def mmlu(subject: str, **_: Any) -> DatasetDict:
    """One subject: the test questions, and the five of ``dev`` as examples; ``answer`` is an index."""
    splits = DatasetDict()
    for split in ("test", "dev"):
        splits[split] = _rows(f"mmlu/{split}/{subject}_{split}.csv", _mmlu, subject)
    return splits


def arc_easy(**_: Any) -> DatasetDict:
    """ARC-Easy's test questions; the files hold no others, so examples are drawn from them too."""
    return DatasetDict({"test": _rows("arc_easy.jsonl", _arc)})


def arc_challenge(**_: Any) -> DatasetDict:
    """ARC-Challenge's test questions; likewise."""
    return DatasetDict({"test": _rows("arc_challenge.jsonl", _arc)})


def hellaswag(**_: Any) -> DatasetDict:
    """1,000 of the validation items, unprocessed: lm-eval's own preprocessing follows."""
    return DatasetDict({"test": _rows("hellaswag_val_1000.jsonl", _whole)})


def winogrande(**_: Any) -> DatasetDict:
    """The validation items with the option already in the place of the gap."""
    return DatasetDict({"test": _rows("winogrande.jsonl", _whole)})


def truthfulqa(**_: Any) -> DatasetDict:
    """All questions with the choices and labels of mc1 and mc2."""
    return DatasetDict({"test": _rows("truthfulqa/mc_task.json", _truthfulqa)})


@cache
def truthfulqa_template() -> str:
    """The published task's prompt, which is not repeated here: lm-eval's own YAML has it."""
    stock = Path(lm_eval.tasks.__file__).parent / "truthfulqa" / "truthfulqa_mc1.yaml"
    return str(yaml.safe_load(stock.read_text(encoding="utf-8"))["doc_to_text"])


def truthfulqa_text(doc: Row) -> str:
    """The prompt of a question."""
    return apply_template(truthfulqa_template(), doc)


def _rows(name: str, read: Callable[..., Iterator[Row]], *more: Any) -> Dataset:
    return Dataset.from_list(list(read(data_file(f"mc/{name}", "multiple_choice"), *more)))


def _whole(path: Path) -> Iterator[Row]:
    return (row for _, row in read_jsonl(path, "multiple-choice"))


def _mmlu(path: Path, subject: str) -> Iterator[Row]:
    text = read_text(path, "MMLU")
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        if len(row) != 6 or row[5] not in tuple(_LETTERS):
            raise ValueError(f"{path}: record {number} is not question,A,B,C,D,answer: {row}")
        yield {"question": row[0], "choices": row[1:5], "answer": _LETTERS.index(row[5]), "subject": subject}


def _arc(path: Path) -> Iterator[Row]:
    start = "Question: "  # the template adds it
    for number, row in read_jsonl(path, "multiple-choice"):
        if not row["query"].startswith(start):
            raise ValueError(f"{path}:{number}: the query does not begin with {start!r}")
        yield {"question": row["query"].removeprefix(start), "choices": row["choices"], "gold": row["gold"]}


def _truthfulqa(path: Path) -> Iterator[Row]:
    for row in load_json(path, "TruthfulQA"):
        targets = {
            name: {"choices": list(row[name]), "labels": list(row[name].values())}
            for name in ("mc1_targets", "mc2_targets")
        }
        yield {"question": row["question"], **targets}
