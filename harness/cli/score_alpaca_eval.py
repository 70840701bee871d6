"""``dspa-bench score alpaca-eval``: the figures of AlpacaEval's leaderboard from annotation files."""

import sys
from pathlib import Path

from harness.data import data_folder
from harness.evaluators.alpaca_eval.files import load_annotations
from harness.measure.rescoring import annotation_scores, write_scores


def score_alpaca_eval_command(file: Path, data: Path | None) -> None:
    """Print the scores; how lengths were controlled, or why not, goes to stderr."""
    scores, notes = annotation_scores(load_annotations(file), data_folder() if data is None else data)
    write_scores(scores)
    for note in notes:
        print(note, file=sys.stderr)
