"""``dspa-bench score``: the metrics of judgments that are already there."""

from pathlib import Path
from typing import Annotated

import typer

score = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Score verdicts that are already there; nothing is generated or judged.",
)


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
) -> None:
    """Print CSV: model, metric, value, n, failures, with the means that FastChat's show_result prints.

    Failures (score -1, winner "error") are counted and never scored.
    """
    from harness.cli.score_mt_bench import score_mt_bench_command

    score_mt_bench_command(judgments, questions, baseline)


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
) -> None:
    """Print CSV: model, metric, value, n, failures, with the figures of the package's leaderboard.csv.

    Verdicts that are null are failures. How lengths were controlled, or why not, is said on stderr.
    """
    from harness.cli.score_alpaca_eval import score_alpaca_eval_command

    score_alpaca_eval_command(annotations, data)


@score.command("agreement", epilog="Example: `dspa-bench score agreement gpt-4_single.jsonl my-judge_single.jsonl`")
def agreement(
    first: Annotated[Path, typer.Argument(help="One judge's file: FastChat's judgments or AlpacaEval's annotations.")],
    second: Annotated[Path, typer.Argument(help="Another judge's file of the same kind, on the same answers.")],
) -> None:
    """Print CSV: model, metric, value, low, high, n, failures, of how far two judges agree, with 95 % intervals.

    Ratings: correlations, mean differences, the same side of 5.5. Verdicts: the share of equal ones and Cohen's kappa,
    with and without ties. Of several models also Kendall's tau of their means (n counts models then). Failures are
    answers for which either file has no verdict.
    """
    from harness.cli.score_agreement import score_agreement_command

    score_agreement_command(first, second)
