"""A sample of answers: the same prompts, every variant's words next to each other."""

from collections.abc import Iterable
from dataclasses import dataclass

from harness.benchmark import Record
from reports.runfolder import Cell, Run

QUESTIONS = 3
INSTRUCTIONS = 3
LENGTH = 600


@dataclass(frozen=True)
class Answer:
    """One variant's answer; ``text`` is None when there is none, ``note`` says what went wrong."""

    label: str
    text: str | None
    value: float | None
    note: str | None


@dataclass(frozen=True)
class Prompt:
    """A prompt under a ``heading``, the answers to it in the order of the suite, and a reference or None."""

    heading: str
    text: str
    metric: str
    answers: tuple[Answer, ...]
    reference: str | None


def sample_answers(run: Run) -> list[Prompt]:
    """Prompts of MT-Bench (all turns) and AlpacaEval with the answers at the largest budget, first done seed.

    Not chosen by result: the first question of each of the first categories and the first instructions, as the first
    variant that has them lists them. Reads ``category``, ``turn`` and ``prompt`` (the turn's text), or ``instruction``
    and ``reference``, and ``answer`` (absent where there is none) from the records' ``raw``; a question's cluster is
    its id.
    """
    cells = {variant: _first_cell(run, variant) for variant in run.variants}
    questions: list[Record] = []
    for record in _all(cells.values(), "mt_bench"):
        same_question = [r for r in questions if r.cluster == record.cluster]
        categories = {r.raw["category"] for r in questions}
        new = record.raw["category"] not in categories and len(categories) < QUESTIONS
        if new or (same_question and all(r.raw["turn"] != record.raw["turn"] for r in same_question)):
            questions.append(record)
    compared = (r for r in _all(cells.values(), "alpaca_eval") if r.metric == "alpaca_eval")
    instructions = {r.raw["instruction"]: r for r in compared}
    prompts = []
    for record in questions:
        heading = f"MT-Bench question {record.cluster} ({record.raw['category']}), turn {record.raw['turn']}"
        answers = _answers(run, cells, "mt_bench", record)
        text = _shorten(record.raw["prompt"])
        prompts.append(Prompt(heading, text, record.metric, answers, None))
    for index, record in enumerate(list(instructions.values())[:INSTRUCTIONS], start=1):
        answers = _answers(run, cells, "alpaca_eval", record)
        text, reference = _shorten(record.raw["instruction"]), _shorten(record.raw["reference"])
        prompts.append(Prompt(f"AlpacaEval instruction {index}", text, record.metric, answers, reference))
    return prompts


def _first_cell(run: Run, variant: str) -> Cell | None:
    cells = [cell for cell in run.cells_of(variant, run.budgets[-1]) if cell.done]
    return cells[0] if cells else None


def _all(cells: Iterable[Cell | None], benchmark: str) -> Iterable[Record]:
    return (record for cell in cells if cell for record in cell.records.get(benchmark, ()))


def _answers(run: Run, cells: dict[str, Cell | None], benchmark: str, wanted: Record) -> tuple[Answer, ...]:
    answers = []
    for variant, cell in cells.items():
        found = [r for r in _all([cell], benchmark) if (r.metric, r.item) == (wanted.metric, wanted.item)]
        record = found[0] if found else None
        text = record.raw.get("answer") if record else None
        note = "no cell is done" if cell is None else "not measured" if record is None else record.error
        shown = None if text is None else _shorten(text)
        answers.append(Answer(run.variants[variant], shown, record.value if record else None, note))
    return tuple(answers)


def _shorten(text: str) -> str:
    """``text``, or its beginning and how much was left out."""
    return text if len(text) <= LENGTH else f"{text[:LENGTH]} […{len(text) - LENGTH} more characters]"
