"""rahf_scit and rahf_dual: Representation Alignment from Human Feedback, a contrast of activities fitted by LoRA."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from baselines.rahf_predict import contrastive_flops
from baselines.rahf_shared import RAHF, STAGE_1_SHARE
from baselines.rahf_stage1 import BAD, GOOD, contrastive_collator, contrastive_rows, contrastive_trainer
from baselines.training import Metered, answer_rows, supervised_flops
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.method import register_method
from harness.model import AlignedModel
from harness.predicted import lora_config
from harness.preferences import Triple

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register_method("rahf_scit")
class RAHFSCIT(RAHF):
    """arXiv 2312.15997, the single-model variant: contrastive instruction tuning, then the fit of activities.

    Stage 1 teaches one model to give the preferred answer under a good instruction and the other under a bad one
    (`contrastive_loss`). Stage 2 fits a LoRA, without instruction, to the activities moved by alpha times the
    difference between the instructions. ``mode: paper`` is stage 1's printed objective, ``released`` the official
    code's with its ``smoothing``. Stage 1 is trained as there: full parameters, lr 2e-5, warm-up 0.1, 2 epochs, batches
    of 64. Ours are the linear schedule, the wording of the instructions, and P as the mean over an answer's tokens and
    its end of turn.

    In the official code the P(p) of the contrast are not shifted by one token, which leaves that term near ln 2, and
    are means over padded lengths; both instructions are taken to be equally long; answers end in a literal " </s>".
    None of that is here.
    """

    mode: Literal["paper", "released"] = "paper"
    smoothing: Annotated[float, Field(ge=0, lt=0.5, description="of mode `released`")] = 0.2
    good_instruction: Annotated[str, Field(min_length=1)] = GOOD
    bad_instruction: Annotated[str, Field(min_length=1)] = BAD

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Both stages; ``seed`` decides the order of the rows, the coin, the LoRA's start and its dropout."""
        from trl import SFTConfig

        instructions = (self.good_instruction, self.bad_instruction)
        with limited(meter, STAGE_1_SHARE):
            first = self.train(
                base,
                contrastive_trainer(self.smoothing if self.mode == "released" else 0.0),
                SFTConfig,
                contrastive_rows(base, triples, instructions),
                meter=meter,
                seed=seed,
                stage="stage 1",
                given={"data_collator": contrastive_collator(base.chat.pad_id)},
            )
        return self.fit_activities(
            base,
            triples,
            _plain(first),
            meter=meter,
            seed=seed,
            stopped_at=first.params.get("stopped_at"),
            instructions=instructions,
        )

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """Both stages, from the lengths of prompts, instructions and answers."""
        instructions = (self.good_instruction, self.bad_instruction)
        rows = contrastive_rows(base, triples, instructions)
        return {
            "stage 1": contrastive_flops(self, rows, rates, lora_config(self)),
            "stage 2": self.predict_activities(base, triples, rates, instructions),
        }


@register_method("rahf_dual")
class RAHFDual(RAHF):
    """arXiv 2312.15997, the variant with two models: one tuned on the chosen answers, one on the rejected.

    Stage 2 fits a LoRA on the good model to h_good + alpha (h_good - h_bad), without any instruction. The lr of 9e-6 is
    the official code's for this variant; we read it as stage 1's, because a LoRA does not move at that rate. The rest
    is as in `rahf_scit`.
    """

    learning_rate: Annotated[float, Field(gt=0, description="of stage 1")] = 9e-6

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Both stages; ``seed`` decides the order of the rows, the coin, the LoRA's start and its dropout."""
        from trl import SFTConfig, SFTTrainer

        class Trainer(Metered, SFTTrainer):
            labelled = ("labels",)

        tuned = []
        # Half of stage 1's share each: the second share is one of what the first leaves.
        for answers, share in zip(
            _sides(triples), (STAGE_1_SHARE / 2, STAGE_1_SHARE / (2 - STAGE_1_SHARE)), strict=True
        ):
            with limited(meter, share):
                rows = answer_rows(base, answers)
                tuned.append(self.train(base, Trainer, SFTConfig, rows, meter=meter, seed=seed, stage="stage 1"))
        good, bad = tuned
        return self.fit_activities(
            base,
            triples,
            _plain(good),
            meter=meter,
            seed=seed,
            stopped_at=good.params.get("stopped_at"),
            bad=_plain(bad),
        )

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """Both trainings of stage 1, and stage 2."""
        tuned = sum(supervised_flops(self, answer_rows(base, answers), rates) for answers in _sides(triples))
        return {"stage 1": tuned, "stage 2": self.predict_activities(base, triples, rates, None)}


def _sides(triples: Sequence[Triple]) -> tuple[Sequence[Triple], Sequence[Triple]]:
    """The triples, and the same with the answers in each other's place."""
    return triples, [Triple(t.prompt, chosen=t.rejected, rejected=t.chosen) for t in triples]


@contextmanager
def limited(meter: Meter, share: float) -> Iterator[None]:
    """Inside, the meter's FLOP limit (if any) is ``share`` of what is left of it."""
    whole = meter.flops_limit
    if whole is None:
        yield
        return
    used = meter.executed_flops
    meter.flops_limit = used + max(1, round(share * (whole - used)))
    try:
        yield
    finally:
        meter.flops_limit = whole


def _plain(tuned: AlignedModel) -> "PreTrainedModel":
    """The tuned weights without an adapter around them; merging one would write into the base's memory."""
    if tuned.delta == "weights":
        return tuned.model
    return copy.deepcopy(tuned.model).merge_and_unload()  # type: ignore[operator]
