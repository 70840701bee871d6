"""``dspa-bench mt-bench judge``: judgments of answer files that are already there."""

import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, cast

from harness.evaluators.fastchat import files as fastchat
from harness.experiment.plan import Identity, decisive_settings, differences, identity_hash
from harness.experiment.suite import Suite
from harness.files import check_can_make, read_json, write_json
from harness.judging import Judge
from harness.measure.rescoring import Score, pair_scores, single_scores, write_scores
from harness.run_folder.layout import RunFolder
from tasks.mt_bench.benchmark import MTBench
from tasks.mt_bench.judging import Answers, Judging, keep_answers

Mode = Literal["single", "pairwise-baseline", "pairwise-all"]

IDENTITY = "judged_by.json"
"""What the judgments in the folder depend on besides the answers."""


def judge_command(
    answers: Path, suite: Suite, out: Path, *, mode: Mode, baseline: str | None, models: Sequence[str]
) -> int:
    """Judge, write FastChat's files and print the scores; returns the exit code."""
    judge = _checked_judge(suite, mode)
    benchmark = cast(Any, suite.benchmarks.get("mt_bench") or MTBench.model_validate({}))
    benchmark.check()
    files = fastchat.load_model_answers(answers)
    judging: Judging = benchmark.judging(judge, None)
    chosen = _chosen(list(files), mode, baseline, models)
    advice = "complete the file, or name the other models with --model"
    given = [Answers.complete(answers / f"{name}.jsonl", files[name], judging.questions, advice) for name in chosen]
    if not out.exists():
        check_can_make(out)
    folder = RunFolder(out)
    identity = _identity(judging)
    with folder.lock():
        # Judgments in one folder are by one judge on the same questions; those that are there are not judged again.
        found = differences(read_json(out / IDENTITY) or {}, identity)
        if found:
            raise ValueError(f"{str(out)!r} has judgments made otherwise; give another --out\n  " + "\n  ".join(found))
        write_json(out / IDENTITY, identity)
        judge = judge.at(folder.judging)
        judge.prepare()
        for name in chosen:
            keep_answers(out, name, files[name])
        fastchat.write_questions(out / "question.jsonl", judging.questions)
        scores, reasons = _judge(benchmark.judging(judge, out), given, mode, baseline)
    write_scores(scores)
    print(f"judge: {judge.statement}\njudgments: {out / 'model_judgment'}", file=sys.stderr)
    if reasons:
        print(f"{len(reasons)} verdicts failed, first: {reasons[0]}; the same command tries again", file=sys.stderr)
    return 1 if reasons else 0


def _checked_judge(suite: Suite, mode: Mode) -> Judge:
    verb = "rate" if mode == "single" else "compare"
    if suite.judge is None:
        raise ValueError(f"{suite.source.path}: there is no judge; add `judge:` to the suite")
    if verb not in suite.judge.verbs:
        raise ValueError(f"judge {suite.judge.name!r} cannot {verb}, which --mode {mode} asks for; take another judge")
    suite.judge.check()
    return suite.judge


def _identity(judging: Judging) -> Identity:
    """The judge's settings, and the content of what it is shown beside the answers."""
    questions = [vars(question) for question in judging.questions]
    references = {str(number): turns for number, turns in judging.references.items()}
    shown = {"questions": identity_hash({"": questions}), "references": identity_hash(references)}
    identity = {"judge": {"kind": judging.judge.name, **decisive_settings(judging.judge)}, "shown": shown}
    return json.loads(json.dumps(identity))


def _chosen(there: Sequence[str], mode: Mode, baseline: str | None, models: Sequence[str]) -> list[str]:
    """The models to be judged, the baseline last."""
    if (baseline is not None) != (mode == "pairwise-baseline"):
        raise ValueError("--baseline MODEL belongs to --mode pairwise-baseline; give both or neither")
    for name in (*models, *([baseline] if baseline else [])):
        if name not in there:
            raise ValueError(f"there are no answers of {name!r}; there are those of {', '.join(there)}")
    chosen = [name for name in there if (not models or name in models) and name != baseline]
    if baseline is not None:
        chosen.append(baseline)
    if mode != "single" and len(chosen) < 2:
        raise ValueError(
            f"--mode {mode} compares two models or more, and only {chosen[0]} is there; add another's answers"
        )
    return chosen


def _judge(
    judging: Judging, given: Sequence[Answers], mode: Mode, baseline: str | None
) -> tuple[list[Score], list[str]]:
    """The scores of what was judged now or before, and why verdicts failed."""
    categories = {question.question_id: question.category for question in judging.questions}
    if mode == "single":
        ratings, failed = judging.rate(given)
        scores = single_scores(list(ratings.values()), categories)
    else:
        pairs = list(combinations(given, 2)) if baseline is None else [(one, given[-1]) for one in given[:-1]]
        judgments, failed = judging.compare(pairs)
        scores = pair_scores(list(judgments.values()), categories, baseline)
    return scores, list(failed.values())
