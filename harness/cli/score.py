"""``dspa-bench score``: the metrics of judgments that are already there."""

import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import AsJSON, command_group, print_json

if TYPE_CHECKING:
    from harness.measure.rescoring import Categories, Score

score = command_group("Score verdicts that are already there; nothing is generated or judged.")


@score.command("mt-bench", epilog="Example: `dspa-bench score mt-bench model_judgment/gpt-4_single.jsonl`")
def mt_bench(
    judgments: Annotated[Path, typer.Argument(help="FastChat's judgments: of single answers, or of pairs.")],
    questions: Annotated[
        Path | None,
        typer.Option(
            help="FastChat's question.jsonl, for categories.",
            show_default="beside the judgments' folder, or the data folder's",
        ),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Of pairs only those with this model.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Print CSV (or JSON): model, metric, value, n, failures, with the means that FastChat's show_result prints.

    Failures (score -1, winner "error") are counted and never scored.
    """
    from harness.evaluators.fastchat.files import is_pair_file, load_judgments, load_pair_judgments
    from harness.measure.rescoring import pair_scores, single_scores

    pairs = is_pair_file(judgments)
    if baseline is not None and not pairs:
        raise ValueError(f"{judgments}: --baseline is for pairwise judgments, and these are ratings of one answer each")
    categories = _categories(judgments, questions)
    if pairs:
        compared = load_pair_judgments(judgments)
        _print(pair_scores(compared, categories, baseline), as_json)
        judged = [judgment.question_id for judgment in compared]
    else:
        rated = load_judgments(judgments)
        _print(single_scores(rated, categories), as_json)
        judged = [judgment.question_id for judgment in rated]
    unknown = [question for question in judged if categories and question not in categories]
    if unknown:
        text = f"{len(unknown)} of {len(judged)} judgments are of questions that are not among those given"
        print(f"{text} (first: {min(unknown)}): they count in no category, and in all other figures", file=sys.stderr)


def _print(scores: "Sequence[Score]", as_json: bool) -> None:
    from harness.measure.rescoring import write_scores

    if as_json:
        print_json([asdict(score) for score in scores])
    else:
        write_scores(scores)


def _categories(file: Path, questions: Path | None) -> "Categories":
    """{question_id: category}; without ``questions`` from beside the judgments, as FastChat lays them out, or from the
    data folder."""
    from harness.data import data_folder
    from harness.evaluators.fastchat.files import load_questions

    usual = file.absolute().parent.parent / "question.jsonl", data_folder() / "mt_bench" / "question.jsonl"
    questions = questions or next((path for path in usual if path.is_file()), None)
    if questions is None:
        print("no scores per category: give --questions, or `dspa-bench data fetch mt_bench`", file=sys.stderr)
        return {}
    return {question.question_id: question.category for question in load_questions(questions)}


@score.command("alpaca-eval", epilog="Example: `dspa-bench score alpaca-eval alpaca_eval/annotations.json`")
def alpaca_eval(
    annotations: Annotated[Path, typer.Argument(help="AlpacaEval's annotations, of one or more models.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data folder with the inputs of the length-controlled win rate.",
            show_default="$DSPA_BENCH_DATA, else ~/.cache/dspa-bench",
        ),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Print CSV (or JSON): model, metric, value, n, failures, with the figures of the package's leaderboard.csv.

    Verdicts that are null are failures. How lengths were controlled, or why not, is said on stderr.
    """
    from harness.data import data_folder
    from harness.evaluators.alpaca_eval.files import load_annotations
    from harness.measure.rescoring import annotation_scores

    scores, notes = annotation_scores(load_annotations(annotations), data_folder() if data is None else data)
    _print(scores, as_json)
    for note in notes:
        print(note, file=sys.stderr)


@score.command("agreement", epilog="Example: `dspa-bench score agreement gpt-4_single.jsonl my-judge_single.jsonl`")
def agreement(
    first: Annotated[Path, typer.Argument(help="One judge's file: FastChat's judgments or AlpacaEval's annotations.")],
    second: Annotated[Path, typer.Argument(help="Another judge's file of the same kind, on the same answers.")],
    as_json: AsJSON = False,
) -> None:
    """Print CSV (or JSON): model, metric, value, low, high, n, failures, of how far two judges agree.

    Values have 95 % intervals.

    Ratings: correlations, mean differences, the same side of 5.5. Verdicts: the share of equal ones and Cohen's kappa,
    with and without ties. Of several models also Kendall's tau of their means (n counts models then). Failures are
    answers for which either file has no verdict.
    """
    from harness.measure.agreement import agreement as agreement_of
    from harness.measure.rescoring import match

    matched = match(first, second)
    groups: dict[str, list] = dict(matched.pairs)
    if len(groups) > 1:
        groups["all"] = [pair for pairs in matched.pairs.values() for pair in pairs]
    failures = matched.failed | {"all": sum(matched.failed.values())}
    columns = ("model", "metric", "value", "low", "high", "n", "failures")
    rows: list[tuple] = []
    for model, pairs in groups.items():
        if not pairs:
            rows.append((model, "", math.nan, math.nan, math.nan, 0, failures[model]))
        for one in agreement_of(pairs, matched.kind) if pairs else ():
            rows.append((model, one.statistic, one.value, one.low, one.high, one.n, failures[model]))
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow("" if x != x else f"{x:.15g}" if isinstance(x, float) else x for x in row)
    if any(matched.alone):
        print(f"judged in one file only, and not in these figures: {matched.alone[0]} answers in {first}, "
              f"{matched.alone[1]} in {second}", file=sys.stderr)  # fmt: skip
