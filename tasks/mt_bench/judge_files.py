"""``dspa-bench mt-bench judge``: judgments of answer files that are already there."""

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, cast

from harness.evaluators.fastchat import files as fastchat
from harness.experiment.plan import Identity, decisive_settings, differences, identity_hash
from harness.experiment.suite import Suite, load_suite
from harness.files import check_can_make, read_json, write_json
from harness.judging import Judge
from harness.measure.rescoring import Score, pair_scores, single_scores, write_scores
from harness.run_folder.layout import RunFolder
from tasks.mt_bench.answers import Answers, keep_answers
from tasks.mt_bench.benchmark import MTBench
from tasks.mt_bench.judging import Judging

Mode = Literal["single", "pairwise-baseline", "pairwise-all"]

IDENTITY = "judged_by.json"
"""What the judgments in the folder depend on besides the answers."""


def judge_command(
    answers: Path,
    suite_path: Path,
    out: Path,
    *,
    mode: Mode,
    baseline: str | None,
    models: Sequence[str],
    overrides: Sequence[str],
) -> int:
    """Judge, write FastChat's files and print the scores; returns the exit code."""
    suite = load_suite(suite_path, overrides)
    judge = _checked_judge(suite, mode)
    benchmark = cast(Any, suite.benchmarks.get("mt_bench") or MTBench.model_validate({}))
    benchmark.check()
    files = fastchat.load_model_answers(answers)
    questions = benchmark.judging(judge, None).questions
    chosen = _chosen(list(files), mode, baseline, models)
    given = {name: Answers.of(name, files[name], questions) for name in chosen}
    _check_complete(answers, given)
    if not out.exists():
        check_can_make(out)
    folder = RunFolder(out)
    identity = _identity(benchmark.judging(judge, None))
    with folder.lock():
        _check_same(out, identity)
        write_json(out / IDENTITY, identity)
        judge = judge.at(folder.judging)
        judge.prepare()
        for name in given:
            keep_answers(out, name, files[name])
        fastchat.write_questions(out / "question.jsonl", questions)
        scores, reasons = _judge(benchmark.judging(judge, out), list(given.values()), mode, baseline)
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


def _check_same(out: Path, here: Identity) -> None:
    """Judgments in one folder are by one judge on the same questions; those that are there are not judged again."""
    found = differences(read_json(out / IDENTITY) or {}, here)
    if found:
        raise ValueError(f"{str(out)!r} has judgments made otherwise; give another --out\n  " + "\n  ".join(found))


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


def _check_complete(answers: Path, given: Mapping[str, Answers]) -> None:
    for name, found in given.items():
        if found.failed:
            (question, turn), _ = next(iter(found.failed.items()))
            raise ValueError(
                f"{answers / name}.jsonl: no answer to turn {turn} of question {question}; complete the file, or name "
                "the other models with --model"
            )


def _judge(
    judging: Judging, given: Sequence[Answers], mode: Mode, baseline: str | None
) -> tuple[list[Score], list[str]]:
    """The scores of what was judged now or before, and why verdicts failed."""
    categories = {question.question_id: question.category for question in judging.questions}
    if mode == "single":
        judgments, failed = judging.rate(given)
        rated = [judgment for of_model in judgments.values() for judgment in of_model.values()]
        return single_scores(rated, categories), [why for of_model in failed.values() for why in of_model.values()]
    pairs = list(combinations(given, 2)) if baseline is None else [(one, given[-1]) for one in given[:-1]]
    compared = judging.compare(pairs)
    return pair_scores(list(compared.judgments.values()), categories, baseline), list(compared.failed.values())
