"""A reward model as judge: trained here on triples of its own, or an existing one; it rates and compares."""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from harness.data.refs import ModelRef, TriplesPath
from harness.data.triples import Conversation, Triple, TripleFile, split_by_prompt, triples_hash
from harness.files import atomic_folder, read_text, write_text
from harness.judging.judge import Answer, Comparison, JudgeConfig, Rating, Verb, Verdict, register_judge
from harness.judging.reward_model import (
    AnswerFormat,
    RewardModel,
    Training,
    check_can_score,
    check_classifier,
    check_scores_answers,
    train_reward_model,
)
from harness.model.base import base_identity, check_device, check_weights

LEAST_HELD_OUT = 10
"""Held-out triples below this say nothing about accuracy and give no scale for ratings."""
_NAMED = 30
"""So many of the triples that are left out are named."""


@dataclass(frozen=True)
class Calibration:
    """How often a reward model is right on held-out triples, and how its scores are spread there.

    ``accuracy``: % of ``triples`` held-out triples whose chosen answer scores higher (an equal score counts half).
    ``low`` and ``high`` are Wilson's 95 % interval over the ``prompts`` different prompts among them, so triples with
    the same prompt are not taken for independent. ``scores`` are those of all their answers, in ascending order.
    ``trained_on`` is the number of triples that the model was trained on here (0: it was there before).
    """

    accuracy: float
    low: float
    high: float
    triples: int
    prompts: int
    trained_on: int
    scores: tuple[float, ...]

    @classmethod
    def of(
        cls, triples: Sequence[Triple], chosen: Sequence[float], rejected: Sequence[float], *, trained_on: int
    ) -> "Calibration":
        """From the scores of the chosen and rejected answers of triples that were not trained on."""
        from statsmodels.stats.proportion import proportion_confint

        right = [float(a > b) + 0.5 * float(a == b) for a, b in zip(chosen, rejected, strict=True)]
        accuracy, prompts = float(np.mean(right)), len({json.dumps(t.prompt) for t in triples})
        low, high = np.array(proportion_confint(accuracy * prompts, prompts, method="wilson"), float).tolist()
        known = tuple(sorted([*chosen, *rejected]))
        return cls(100 * accuracy, 100 * low, 100 * high, len(triples), prompts, trained_on, known)

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """That of a reward.json; ValueError naming the file when it is missing or damaged."""
        try:
            values = json.loads(read_text(path, "reward model's calibration"))["calibration"]
            return cls(**(values | {"scores": tuple(values["scores"])}))
        except (KeyError, TypeError, json.JSONDecodeError) as problem:
            raise ValueError(f"{path}: damaged ({problem}); remove its folder and run again") from None

    def share_below(self, score: float) -> float:
        """Where ``score`` stands among the known ones: 0 at the lowest or below, 1 at the highest or above.

        Linear between neighbours; known scores that are equal share the middle of their ranks.
        """
        values, shares = self._curve
        return float(np.interp(score, values, shares))

    @property
    def at_chance(self) -> bool:
        """Whether the interval reaches down to guessing."""
        return self.low <= 50

    @cached_property
    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        values, first, counts = np.unique(self.scores, return_index=True, return_counts=True)
        return values, (first + (counts - 1) / 2) / (len(self.scores) - 1)


@register_judge("reward")
class RewardJudge(JudgeConfig):
    """Rates answers and compares two by a sequence classifier with one output.

    With ``base``, `prepare` trains one on ``triples`` but for the held-out prompts; ``model`` names one that exists,
    and all triples are held out. Held-out triples measure its accuracy and give its scores a scale:

    * a rating is 1 + 9 x the share of the held-out answers that score lower (see `Calibration.share_below`);
    * of two answers the first is better with the Bradley-Terry probability p = sigmoid(difference of scores); the
      verdict is a tie where p is within ``tie`` of 1/2. Which is first plays no part.

    What is harmful, or a refusal, it cannot say: such verdicts are errors.
    """

    verbs: ClassVar[frozenset[Verb]] = frozenset({"rate", "compare"})
    operational: ClassVar[frozenset[str]] = frozenset({"score_batch_size", "device", "too_long"})  # triples decide

    triples: TriplesPath = Field(description="preference triples that no method is fitted on (see docs/data.md)")
    base: ModelRef | None = Field(None, description="causal LM to train a reward model from")
    training: Training = Field(default_factory=lambda: Training.model_validate({}))
    model: ModelRef | None = Field(None, description="instead of `base`: an existing reward model")
    too_long: Literal["refuse", "skip"] = Field(
        "refuse", description="triples that do not fit the reward model's context: refuse them, or leave them out"
    )
    tie: Annotated[float, Field(ge=0, lt=0.5, description="probabilities this near to 1/2 are ties")] = 0.05
    score_batch_size: Annotated[int, Field(ge=1, description="answers scored together")] = 32
    device: str = Field("cpu", description="torch device for training and scoring")
    _folder: Path | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if (self.base is None) == (self.model is None):
            raise ValueError("give exactly one of `base` (to train a reward model from) and `model` (an existing one)")
        if self.model is not None and "training" in self.model_fields_set:
            raise ValueError("`training` belongs to `base`; an existing `model` is taken as it is")
        return self

    def check(self) -> None:
        """Read files and configurations: triples that fit, enough of them held out, a model that can score."""
        check_device(self.device)
        if self._ref.device_map is not None:
            raise ValueError("a reward model is on one device; leave device_map out, and name the device as `device`")
        check_weights(self._ref)
        if self.base is not None:
            check_can_score(self.base)
        else:
            check_scores_answers(self._ref)
        check_classifier(self._ref, new_head=self.base is not None)
        _, problem = self._fitting
        if problem is not None and self.too_long == "refuse":
            raise ValueError(f"{problem}; leave them out with `too_long: skip`, or take a model with a longer context")
        trained, held_out = self._parts
        if len(held_out) < LEAST_HELD_OUT or (self.base is not None and not trained):
            raise ValueError(
                f"{self.triples}: of {len(trained) + len(held_out)} triples {len(held_out)} are held out and "
                f"{len(trained)} left to train on; at least {LEAST_HELD_OUT} must be held out and 1 left: give more "
                "triples, or change `training.held_out`"
            )

    def prompts(self) -> list[str]:
        """The user turns of its triples: no method may be trained on them."""
        return [m["content"] for part in self._parts for t in part for m in t.prompt if m["role"] == "user"]

    def at(self, folder: Path) -> Self:
        """This judge with its model in a subfolder of ``folder`` that is named by all that decides the weights."""
        judge = self.model_copy()
        judge._folder = folder / self.label
        return judge

    def prepare(self) -> None:
        """Train (unless ``model``) and measure on the held-out triples; nothing where the folder has it already."""
        folder = self._home
        if folder.is_dir():
            _ = self.calibration  # a damaged folder is refused now
            return
        start = time.monotonic()
        trained, held_out = self._parts
        with atomic_folder(folder) as partial:
            if self.base is not None:
                train_reward_model(self.base, self._form, trained, self.training, partial, device=self.device)
            scorer = RewardModel(self._trained_ref(partial), device=self.device)
            rows = [ids for pair in self._form.rows(held_out) for ids in pair]
            scores = scorer.scores(rows, batch_size=self.score_batch_size)
            if not all(map(math.isfinite, scores)):
                cure = "lower `training.learning_rate`" if self.base else "give another `model`, or it another `dtype`"
                raise ValueError(f"reward model {self.label} gives scores that are no finite numbers; {cure}")
            calibration = Calibration.of(held_out, scores[::2], scores[1::2], trained_on=len(trained))
            seconds = round(time.monotonic() - start, 1)
            written = {"settings": self._settings, "seconds": seconds, "calibration": asdict(calibration)}
            write_text(partial / "reward.json", json.dumps(written, indent=2) + "\n")

    @cached_property
    def label(self) -> str:
        """``reward-`` and the start of the hash of what decides the scores."""
        digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()
        return f"reward-{digest[:10]}"

    @property
    def statement(self) -> str:
        name = self._ref.id or "/".join(Path(str(self._ref.path)).parts[-2:])
        if self._folder is None or not self._folder.is_dir():
            return f"A reward model ({name}) that is not prepared yet."
        s = self.calibration
        origin = f"trained from {name} on {s.trained_on} preference triples" if self.base else f"{name}, taken as it is"
        return (
            f"These numbers come from a reward model, {origin}. On {s.triples} other triples it scores the chosen "
            f"answer above the rejected one in {s.accuracy:.1f} % [{s.low:.1f}, {s.high:.1f}]. A rating is 1 + 9 x the "
            "share of those triples' answers that score lower, so it ranks answers and is no absolute grade; of two "
            f"answers one is better when its Bradley-Terry probability is above {0.5 + self.tie:g}, otherwise they tie."
            + "".join(f" {warning}" for warning in self.warnings)
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of triples that are left out, and, once it is prepared, of an accuracy that may be a guess."""
        found = []
        if self._fitting[1] is not None:
            found.append(f"Reward model: {self._fitting[1]} and are left out (too_long: skip).")
        if self._folder is not None and self._folder.is_dir() and self.calibration.at_chance:
            s = self.calibration
            found.append(
                f"Warning: this reward model is no better than chance as far as {s.prompts} held-out prompts tell "
                f"({s.accuracy:.1f} % [{s.low:.1f}, {s.high:.1f}], and guessing gives 50 %): its verdicts mean nothing "
                "unless more triples show otherwise."
            )
        return tuple(found)

    @cached_property
    def calibration(self) -> Calibration:
        """Its accuracy on held-out triples and the scale of its scores. Raises ValueError before `prepare`."""
        return Calibration.read(self._home / "reward.json")

    def rate(self, requests: Sequence[Rating]) -> list[Verdict]:
        scored = self._scored([request.conversation for request in requests])
        return [_failed(score) if isinstance(score, str) else self._rating(score) for score in scored]

    def compare(self, requests: Sequence[Comparison]) -> list[Verdict]:
        scored = self._scored([side for request in requests for side in (request.first, request.second)])
        return [self._comparison(*pair) for pair in zip(scored[::2], scored[1::2], strict=True)]

    def harm(self, requests: Sequence[Answer]) -> list[Verdict]:
        return [_failed("a reward model cannot say how harmful an answer is")] * len(requests)

    def refusal(self, requests: Sequence[Answer]) -> list[Verdict]:
        return [_failed("a reward model cannot say whether an answer refuses")] * len(requests)

    def _rating(self, score: float) -> Verdict:
        share = self.calibration.share_below(score)
        return Verdict(1 + 9 * share, f"score {score:.4f}, above {100 * share:.1f} % of the held-out answers")

    def _comparison(self, first: float | str, second: float | str) -> Verdict:
        if isinstance(first, str) or isinstance(second, str):
            return _failed("; ".join(dict.fromkeys(s for s in (first, second) if isinstance(s, str))))
        p = 1 / (1 + math.exp(min(second - first, 700.0)))
        value = 1.5 if abs(p - 0.5) <= self.tie else 1.0 if p > 0.5 else 2.0
        return Verdict(value, f"scores {first:.4f} and {second:.4f}, the first is better with probability {p:.4f}")

    def _scored(self, conversations: Sequence[Conversation]) -> list[float | str]:
        """The score of each conversation's last answer, or why there is none."""
        rows: list[list[int] | str] = []
        for conversation in conversations:
            try:
                rows.append(self._scorer.form.ids(conversation))
            except ValueError as problem:
                rows.append(str(problem))
        fitting = [row for row in rows if not isinstance(row, str)]
        scores = iter(self._scorer.scores(fitting, batch_size=self.score_batch_size))
        found = [row if isinstance(row, str) else next(scores) for row in rows]
        return [f"its score is {s}" if isinstance(s, float) and not math.isfinite(s) else s for s in found]

    @property
    def _ref(self) -> ModelRef:
        ref = self.base or self.model
        assert ref is not None
        return ref

    @property
    def _home(self) -> Path:
        if self._folder is None:
            raise ValueError("a reward judge needs a folder: call at(folder), then prepare()")
        return self._folder

    def _trained_ref(self, folder: Path) -> ModelRef:
        return self.model or self._ref.model_copy(update={"path": str(folder), "id": None, "revision": None})

    @cached_property
    def _scorer(self) -> RewardModel:
        _ = self.calibration
        return RewardModel(self._trained_ref(self._home), device=self.device)

    @cached_property
    def _form(self) -> AnswerFormat:
        return AnswerFormat.of(self._ref)

    @cached_property
    def _parts(self) -> tuple[list[Triple], list[Triple]]:
        """(to train on, held out)."""
        triples, _ = self._fitting
        return split_by_prompt(triples, self.training.held_out, self.training.seed) if self.base else ([], triples)

    @cached_property
    def _fitting(self) -> tuple[list[Triple], str | None]:
        """The triples that fit the context, and in words how many and which do not."""
        found, long = TripleFile.read(self.triples), {}
        for number, triple in found.numbered:
            tokens = self._form.longest(triple)
            if tokens > self._form.max_length:
                long[number] = tokens
        if not long:
            return found.triples, None
        text = (
            f"{found.rows.name}: {len(long)} of {len(found.numbered)} triples do not fit the reward model's context of "
            f"{self._form.max_length} tokens: {found.named(list(long), _NAMED)}; the longest has {max(long.values())}"
        )
        return [triple for number, triple in found.numbered if number not in long], text

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """All that the weights and the scale depend on, by content."""
        ref = {**self._ref.model_dump(include={"dtype", "chat"}), "content": base_identity(self._ref)}
        triples = triples_hash([triple for part in self._parts for triple in part], in_order=True)
        training = {"base": ref, "training": self.training.model_dump()} if self.base else {"model": ref}
        return {"triples": triples, **training}


def _failed(reason: str) -> Verdict:
    return Verdict(None, "", error=reason)
