"""Tuning inside a cell, on its own triples alone: trials on one part of them, scored on another."""

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness.compute import Meter
from harness.data.triples import Budget, Conversation, Message, Triple, contaminated, prompt_count, split_budget
from harness.experiment.forecast import Forecaster
from harness.experiment.plan import cell_triples, derive_seed
from harness.experiment.processes import fit_over
from harness.experiment.search import Told, suggest
from harness.experiment.space import Space, Values
from harness.experiment.suite import Suite
from harness.heap import give_back_memory
from harness.judging import Judge, Rating
from harness.measure.margins import score_triples
from harness.method import MethodConfig
from harness.model.aligned import AlignedModel
from harness.model.base import base_shape
from harness.run_folder.plan import PlannedCell
from harness.run_folder.tuning import Best, Trial, TuningFolder


def parts_of(suite: Suite, cell: PlannedCell, budget: Budget) -> tuple[list[Triple], list[Triple]]:
    """(fit part, validation part) of the triples of ``cell``; the same for every method at one budget and seed."""
    seed = derive_seed(suite.file.seed, str(cell.seed), "validation")
    return split_budget(budget.triples, suite.file.tune.validation, seed)


def forecast(
    suite: Suite, cell: PlannedCell, run: Path, triples: Sequence[Triple], forecaster: Forecaster
) -> tuple[int, int | None, bool]:
    """(fits, FLOPs, exact): at most how many fits the trials of a tuned ``cell`` take, and what they will execute.

    Exact where all trials are known beforehand (a grid), up to the methods' own predictions; else the variant's own
    values stand for all. None where a method predicts nothing. Scoring is not in it.
    """
    variant = suite.variant_of(cell)
    space, budget = variant.space, cell_triples(suite, cell, triples)
    assert space is not None
    part = Budget(tuple(parts_of(suite, cell, budget)[0]), budget.seed)

    def flops(method: MethodConfig) -> int | None:
        try:
            predicted = forecaster.of(method, part, cell.flops_limit).flops
        except ValueError:  # a bill that pays for no triple: the fit will say so
            return None
        limited = cell.flops_limit is not None and not method.single_pass
        return predicted if predicted is None or not limited else min(predicted, cell.flops_limit or predicted)

    exact = suite.file.tune.search == "grid"
    if not exact:
        fits, one = space.fits(variant.trials, variant.method.online), flops(variant.method)
        return fits, None if one is None else fits * one, False
    methods = [suite.method_of(cell, run, point) for point in (space.own, *space.grid())]
    distinct = {json.dumps(m.model_dump(mode="json", exclude=set(m.online)), sort_keys=True): m for m in methods}
    bills = [flops(method) for method in distinct.values()]
    known = [bill for bill in bills if bill is not None]
    return len(bills), sum(known) if len(known) == len(bills) else None, True


@dataclass(frozen=True)
class Scored:
    """``score`` is what is maximised, ``chosen`` the mean log p(chosen) in nats per token, None where nothing asks for
    it; FLOPs and seconds of it."""

    score: float
    chosen: float | None
    flops: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Tuning:
    """The tuning of one cell. ``base`` is what is aligned, ``budget`` all triples that the cell may see.

    Every method of one budget and seed gets the same split by prompt. A trial is fitted on the fit part, with the seed
    of the cell's fit, and scored on the validation part. ``notify`` is told each stage. ``base_scores`` keeps the
    base's own score by split, for the other cells that have it; what it took is in the figures of each of them.
    """

    suite: Suite
    cell: PlannedCell
    run: Path
    base: AlignedModel
    budget: Budget
    judge: Judge | None
    forecaster: Forecaster
    evaluation_prompts: Sequence[str]
    notify: Callable[[str], object]
    base_scores: dict[str, Scored] = field(default_factory=dict)
    _fits: dict[Hashable, AlignedModel] = field(default_factory=dict)

    def best(self, folder: TuningFolder) -> Best:
        """Do the trials that ``folder`` lacks, and say which of all wins; what is done already is not done again.

        The winner has the highest score among those that pass the floor, the first of equals. Where none passes, the
        variant's own values stand. ValueError when an evaluation prompt is among the validation prompts, when a triple
        does not fit the context, and when every trial failed (the next call then begins anew).
        """
        if (found := folder.best) is not None:
            return found
        seen = contaminated(self._validation, self.evaluation_prompts)
        if seen:
            raise ValueError(f"{len(seen)} evaluation prompts are among the validation prompts, first: {seen[0]!r}")
        if self._split not in self.base_scores:
            self.notify("tuning, base")
            self.base_scores[self._split] = self._score(self.base)
        base = self.base_scores[self._split]
        trials = list(folder.trials)
        for number in range(len(trials) + 1, self._trials + 1):
            self.notify(f"tuning, trial {number} of {self._trials}")
            told = [Told(trial.params, trial.score, self._excess(trial.chosen, base)) for trial in trials]
            search = self.suite.file.tune.search
            params = suggest(self._space, search, told, self._trials, lambda attempt, n=number: self._seed(n, attempt))
            trials.append(self._trial(number, params, trials, base))
            give_back_memory()
            folder.append(trials[-1])
        if all(trial.error is not None for trial in trials):
            folder.restart()
            raise ValueError(f"all {len(trials)} trials of the tuning failed, first: {trials[0].error}")
        best = self._decided(trials, base)
        folder.finish(best)
        return best

    @property
    def _space(self) -> Space:
        space = self.suite.variant_of(self.cell).space
        assert space is not None
        return space

    @property
    def _trials(self) -> int:
        return self.suite.variant_of(self.cell).trials

    @cached_property
    def _parts(self) -> tuple[list[Triple], list[Triple]]:
        return parts_of(self.suite, self.cell, self.budget)

    @property
    def _validation(self) -> list[Triple]:
        return self._parts[1]

    @cached_property
    def _split(self) -> str:
        texts = [[triple.key for triple in part] for part in self._parts]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def _seed(self, number: int, attempt: int) -> int:
        return derive_seed(self.suite.file.seed, self.cell.name, "trial", str(number), str(attempt))

    def _excess(self, chosen: float | None, base: Scored) -> float:
        """Nats per token below the floor; negative above it."""
        floor = self.suite.file.tune.floor
        return -1.0 if floor is None or chosen is None or base.chosen is None else base.chosen - floor - chosen

    def _trial(self, number: int, params: Values, earlier: Sequence[Trial], base: Scored) -> Trial:
        """Fit and score; what a method, its check or its fit refuses with ValueError is the trial's error.

        Anything else that is raised is no verdict on the values: it ends the cell, and the next run tries again.
        """
        begin, flops, shares = time.monotonic(), 0, None
        found, error = None, None
        try:
            method = self.suite.method_of(self.cell, self.run, params)
            method.check(base_shape(self.suite.file.base))
            key = self._offline(method)
            sharing = [one.trial for one in earlier if one.shares is None and (one.error is None or one.fit_flops)]
            shares = next((n for n in sharing if key == self._offline_of(earlier[n - 1])), None) if key else None
            aligned = self._fitted(method, key)
            flops = 0 if shares is not None or aligned.bill is None else aligned.bill["executed_flops"]
            found = self._score(aligned.derive(encoded=self.base.encoded))
        except ValueError as problem:
            error = " ".join(str(problem).split())
        return Trial(
            trial=number,
            params=params,
            score=found and found.score,
            chosen=found and found.chosen,
            passed=found is not None and self._excess(found.chosen, base) <= 0,
            error=error,
            shares=shares,
            fit_flops=flops,
            score_flops=found.flops if found else 0,
            seconds=round(time.monotonic() - begin, 3),
        )

    def _fitted(self, method: MethodConfig, key: str | None) -> AlignedModel:
        """The fit of ``method``, or that of an earlier one which differs in ``online`` settings alone, adjusted."""
        if key is not None and key in self._fits:
            return method.adjust(self._fits[key])
        seed, limit = derive_seed(self.suite.file.seed, self.cell.name, "fit"), self.cell.flops_limit
        part = Budget(tuple(self._parts[0]), self.budget.seed)
        forecast = self.forecaster.of(method, part, limit, base=self.base)
        how = {"flops_limit": limit, "sample_profile": False}
        aligned = fit_over(self.suite.file.execution.per_fit, method, self.base, forecast.budget, seed, **how)
        if key is not None:
            self._fits[key] = aligned
        return aligned

    def _offline(self, method: MethodConfig) -> str | None:
        """What fits are shared by; None where no two trials can share one, so that none is kept in memory."""
        dimensions = self._space.dimensions
        shareable = any(key in method.online for key in dimensions)
        if not shareable or any(d.size is None for key, d in dimensions.items() if key not in method.online):
            return None
        return json.dumps(method.model_dump(mode="json", exclude=set(method.online)), sort_keys=True)

    def _offline_of(self, trial: Trial) -> str | None:
        return self._offline(self.suite.method_of(self.cell, self.run, trial.params))

    def _score(self, model: AlignedModel) -> Scored:
        """ValueError for a triple that does not fit the context and for log-likelihoods that are not finite."""
        begin, meter, asked = time.monotonic(), Meter(sample_profile=False), self.suite.file.tune
        chosen = margin = None
        if asked.score == "preference_margin" or asked.floor is not None:
            chosen, margin = self._likelihoods(model, meter)
        score = self._rated(model, meter) if margin is None or asked.score == "judge" else margin
        return Scored(score, chosen, meter.executed_flops, time.monotonic() - begin)

    def _likelihoods(self, model: AlignedModel, meter: Meter) -> tuple[float, float]:
        """Mean log p(chosen) and mean margin of the validation triples, in nats per token."""
        with meter.stage("validation"), meter.step("log-likelihoods", tokens=0, kind="forward"):
            scores = score_triples(model, self._validation)
        if (wrong := next((one.error for one in scores if one.error is not None), None)) is not None:
            raise ValueError(wrong)
        return sum(one.chosen for one in scores) / len(scores), sum(one.margin for one in scores) / len(scores)

    def _rated(self, model: AlignedModel, meter: Meter) -> float:
        """The judge's mean rating of greedy answers to the validation prompts.

        A prompt without room for an answer is left out, for every trial alike. RuntimeError where the judge has no
        verdict, so that the next run asks it again.
        """
        tokens = self.suite.file.tune.max_new_tokens
        assert self.judge is not None and tokens is not None
        prompts: dict[str, Conversation] = {json.dumps(t.prompt): t.prompt for t in self._validation}
        asked = list(prompts.values())
        with meter.stage("validation"), meter.step("answers", tokens=0, kind="forward"):
            answers = model.generate(asked, max_new_tokens=tokens)
        requests = [
            Rating((*prompt, Message(role="assistant", content=answer.text)))
            for prompt, answer in zip(asked, answers, strict=True)
            if answer.error is None
        ]
        if not requests:
            raise ValueError(f"no validation prompt leaves room for an answer: {answers[0].error}")
        verdicts = self.judge.rate(requests)
        values = [verdict.value for verdict in verdicts if verdict.value is not None]
        if len(values) < len(verdicts):
            first = next(verdict.error for verdict in verdicts if verdict.value is None)
            raise RuntimeError(f"no rating of {len(verdicts) - len(values)} of {len(verdicts)} answers, first: {first}")
        return sum(values) / len(values)

    def _decided(self, trials: Sequence[Trial], base: Scored) -> Best:
        passed = [(trial.score, trial) for trial in trials if trial.passed and trial.score is not None]
        winner = max(passed, key=lambda one: one[0])[1] if passed else trials[0]  # max: the first of equals
        kept, validation = self._parts
        return Best(
            winner=winner.trial,
            fallback=not passed,
            params=winner.params,
            base_score=base.score,
            base_chosen=base.chosen,
            n_fit=len(kept),
            n_validation=len(validation),
            fit_prompts=prompt_count(kept),
            validation_prompts=prompt_count(validation),
            split_hash=self._split,
            executed_flops=base.flops + sum(trial.executed_flops for trial in trials),
            seconds=round(base.seconds + sum(trial.seconds for trial in trials), 3),
        )
