"""``dspa-bench score mt-bench``: the means of FastChat's judgment files."""

import sys
from pathlib import Path

from harness.data import data_folder
from harness.evaluators.fastchat.files import is_pair_file, load_judgments, load_pair_judgments, load_questions
from harness.measure.rescoring import Categories, pair_scores, single_scores, write_scores


def score_mt_bench_command(file: Path, questions: Path | None, baseline: str | None) -> None:
    """Print the scores of a judgment file of either kind; raises ValueError for what cannot be scored."""
    pairs = is_pair_file(file)
    if baseline is not None and not pairs:
        raise ValueError(f"{file}: --baseline is for pairwise judgments, and these are ratings of one answer each")
    categories = _categories(file, questions)
    if pairs:
        scores = pair_scores(load_pair_judgments(file), categories, baseline)
    else:
        scores = single_scores(load_judgments(file), categories)
    write_scores(scores)


def _categories(file: Path, questions: Path | None) -> Categories:
    """{question_id: category}; without ``questions`` from beside the judgments, as FastChat lays them out, or from the
    data folder."""
    if questions is None:
        usual = file.absolute().parents[1] / "question.jsonl", data_folder() / "mt_bench" / "question.jsonl"
        questions = next((path for path in usual if path.is_file()), None)
        if questions is None:
            print("no scores per category: give --questions, or `dspa-bench data fetch mt_bench`", file=sys.stderr)
            return {}
    return {question.question_id: question.category for question in load_questions(questions)}
