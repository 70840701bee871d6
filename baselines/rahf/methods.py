"""rahf_scit and rahf_dual: Representation Alignment from Human Feedback, a contrast of activities fitted by LoRA."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from baselines.rahf import stage1
from baselines.rahf.stage2 import Distance, FitCollator, activity_passes, fit_rows, fit_trainer
from baselines.rows import answer_rows
from baselines.sft import supervised_flops, train_on_answers
from baselines.training import TrainedMethod
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.triples import Triple
from harness.method import BaseShape, register_method
from harness.model.aligned import AlignedModel
from harness.model.decoder import find_decoder
from harness.quiet import hiding_deprecations

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DEPTHS = (10 / 32, 12 / 32, 14 / 32, 16 / 32, 18 / 32)  # the released layers over LLaMA-7B's depth
_STEPS_PER_TRIPLE, _PAPER_BATCH = 0.02, 64
STAGE_1_SHARE = 48 * 768 / (48 * 768 + 12 * 64 * 512 * _STEPS_PER_TRIPLE)  # of the bill that the DSPA paper gives


class RAHF(TrainedMethod):
    """What both variants share: how stage 1 is trained, and all of stage 2.

    Options inherited from the trained methods are stage 1's, but for the LoRA ones: those are stage 2's, and stage 1's
    as well with ``tuning: lora``. Optimiser, weight decay, gradient norm, accumulation, checkpointing, bf16 and tracker
    are both stages'.

    Stage 2 is the paper's: lr 3e-4 constant, batches of 64, alpha 5, LoRA of rank 8 on q and v, 450 steps at 22.5k
    pairs. Ours: without ``layers`` they lie at the released depths, 10/32 to 18/32 of the model's (the DSPA paper takes
    8, 10, 12, 14 for Gemma-2-2B and 10, 12, 14, 16, 18 for 9B); without ``steps`` there are as many rows as in 0.02
    steps a triple of 64 rows, whatever the batch; the LoRA sits on the blocks in front of the last target layer,
    because one on that block itself, whose input is the target, would get no gradient. The coin is thrown anew whenever
    a triple comes up.

    The artifact is the stage-1 model with the LoRA merged: the fit is to that model's activities, so the LoRA means
    nothing on the base. A FLOP limit is split between the stages in the DSPA paper's ratio, 82 : 18, and takes the
    place of both ``epochs`` and ``steps``.
    """

    trained_stages: ClassVar[frozenset[str]] = frozenset({"stage 1", "stage 2"})
    depths: ClassVar[tuple[float, ...]] = _DEPTHS
    n_models: ClassVar[int] = 1  # tuned in stage 1
    learning_rate: Annotated[float, Field(gt=0, description="of stage 1")] = 2e-5
    epochs: Annotated[float, Field(gt=0, description="passes over the rows of stage 1")] = 2.0
    batch_size: Annotated[int, Field(ge=1, description="rows (an answer each) per forward in stage 1")] = 64
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    lora_targets: str | list[str] = Field(default_factory=lambda: ["q_proj", "v_proj"])

    layers: Annotated[tuple[int, ...] | None, Field(description="h^l is the input to block l, from 1 on")] = None
    alpha: Annotated[float, Field(gt=0, description="multiple of the activity difference that is fitted")] = 5.0
    distance: Distance = Field("plain", description="of a fitted activity from its target: the L2 norm, or its square")
    fit_learning_rate: Annotated[float, Field(gt=0, description="of stage 2, constant")] = 3e-4
    fit_batch_size: Annotated[int, Field(ge=1, description="triples per forward in stage 2")] = 64
    steps: Annotated[int | None, Field(ge=1, description="optimiser steps of stage 2")] = None

    def check_processes(self, processes: int, *, sharded: bool = False) -> None:
        """Also of stage 2 each needs a triple of every forward."""
        super().check_processes(processes, sharded=sharded)
        if self.fit_batch_size < processes:
            raise ValueError(
                f"{self.name}: fit_batch_size {self.fit_batch_size} cannot be divided among {processes} processes; "
                f"give at least {processes}, or fewer processes"
            )

    def check(self, base: BaseShape) -> None:
        """The layers must be inputs of blocks that the base has and that something comes before."""
        super().check(base)
        if isinstance(self.lora_targets, str):
            raise ValueError(
                f"{self.name}: lora_targets {self.lora_targets!r} must be a list of module names, such as "
                "[q_proj, v_proj]: stage 2 restricts the LoRA to some of the layers, which PEFT does for lists alone"
            )
        layers = self.target_layers(base.n_layers)
        if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(1, base.n_layers)):
            raise ValueError(
                f"{self.name}: layers {list(layers)} do not fit {base.name}: allowed are different ones from 1 to "
                f"{base.n_layers - 1}; layer l is the input to block l, and that of block 0 cannot be trained"
            )

    def fit_activities(
        self,
        base: AlignedModel,
        triples: Sequence[Triple],
        tuned: AlignedModel,
        *,
        meter: Meter,
        seed: int,
        instructions: tuple[str, str] | None = None,
        bad: AlignedModel | None = None,
    ) -> AlignedModel:
        """Stage 2 on the model ``tuned`` in stage 1: the artifact. The contrast is as in `fit_trainer`."""
        from peft import get_peft_model
        from transformers import set_seed
        from trl import SFTConfig

        layers, steps = self.target_layers(_depth(base)), self.optimiser_steps(len(triples))
        set_seed(seed)
        with hiding_deprecations():
            adapter = self.lora(layers_to_transform=list(range(max(layers))))
            policy = get_peft_model(_plain(tuned, meter).requires_grad_(False), adapter)
        other = None if bad is None else _plain(bad, meter)
        trainer = fit_trainer(layers, alpha=self.alpha, distance=self.distance, bad=other)
        rows, collator = fit_rows(base, triples, instructions), FitCollator(base.chat.pad_id, seed)
        options = {
            "learning_rate": self.fit_learning_rate,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0.0,
            "per_device_train_batch_size": self.fit_batch_size,
            "max_steps": steps if meter.flops_limit is None else -1,
        }
        given: dict[str, Any] = {"stage": "stage 2", "policy": policy, "data_collator": collator}
        most = meter.train_params
        fitted = self.train(base, trainer, SFTConfig, rows, options, meter=meter, seed=seed, **given)
        meter.train_params = max(most, meter.train_params)
        # What was trained on, also where the suite left it open.
        params = self.model_dump(mode="json") | {"layers": list(layers), "steps": steps}
        stops = {stage: one.params.get("stopped_at") for stage, one in (("stage 1", tuned), ("stage 2", fitted))}
        return fitted.derive(
            params=params | ({"stopped_at": stops} if any(stops.values()) else {}),
            model=_merged(fitted.model, meter),
            delta="weights",
        )

    def predict_activities(
        self, base: AlignedModel, triples: Sequence[Triple], rates: Rates, instructions: tuple[str, str] | None = None
    ) -> int:
        """FLOPs of `fit_activities`."""
        last = max(self.target_layers(_depth(base)))
        adapter = self.lora(layers_to_transform=list(range(last)))
        trained = self.rate(rates, adapter, last)
        rows = fit_rows(base, triples, instructions)
        passes, lengths = activity_passes(rows, rates.body(last), trained), [row["length"] for row in rows]
        updates_an_epoch = ceil(len(triples) / (self.fit_batch_size * self.accumulation))
        epochs = self.optimiser_steps(len(triples)) / updates_an_epoch
        merged = [last, *([_depth(base)] * self.n_models if self.tuning == "lora" else [])]
        products = sum(self._merge_flops(rates, blocks) for blocks in merged)
        return products + self.training_flops(lengths, passes, batch_size=self.fit_batch_size, epochs=epochs)

    def _merge_flops(self, rates: Rates, blocks: int) -> int:
        """FLOPs of merging a LoRA on the first ``blocks``: B A of every weight it sits on."""
        modules = (named for block in find_decoder(rates.model).layers[:blocks] for named in block.named_modules())
        targets = [m for name, m in modules if isinstance(m, nn.Linear) and name.split(".")[-1] in self.lora_targets]
        return sum(2 * self.lora_rank * m.in_features * m.out_features for m in targets)

    def target_layers(self, n_layers: int) -> tuple[int, ...]:
        """``layers``, or those of a base with ``n_layers`` blocks that lie at the released depths."""
        if self.layers is not None:
            return self.layers
        return tuple(sorted({min(max(1, round(depth * n_layers)), n_layers - 1) for depth in self.depths}))

    def optimiser_steps(self, n_triples: int) -> int:
        """``steps``, or as many of stage 2 as make the released number of rows a triple."""
        rows_a_step = self.fit_batch_size * self.accumulation
        return self.steps or max(1, round(_STEPS_PER_TRIPLE * n_triples * _PAPER_BATCH / rows_a_step))


@register_method("rahf_scit")
class RAHFSCIT(RAHF):
    """arXiv 2312.15997, the single-model variant: contrastive instruction tuning, then the fit of activities.

    Stage 1 teaches one model to give the preferred answer under a good instruction and the other under a bad one
    (`contrastive_loss`). Stage 2 fits a LoRA, without instruction, to the activities moved by alpha times the
    difference between the instructions. ``mode: paper`` is stage 1's printed objective, ``released`` the official
    code's with its ``smoothing``. Stage 1 is trained as there: full parameters, lr 2e-5, warm-up 0.1, 2 epochs, batches
    of 64; its linear decay is the library's default there too. Ours are the wording of the instructions, and P as the
    mean over an answer's tokens and its end of turn.

    In the official code the P(p) of the contrast are not shifted by one token, which leaves that term near ln 2, and
    are means over padded lengths; both instructions are taken to be equally long; answers end in a literal " </s>".
    None of that is here.
    """

    mode: Literal["paper", "released"] = Field(
        "paper", description="objective of stage 1: as printed, or as in the official code"
    )
    smoothing: Annotated[float, Field(ge=0, lt=0.5, description="of mode `released`")] = 0.2
    good_instruction: Annotated[
        str, Field(min_length=1, description="under which stage 1 teaches the preferred answer")
    ] = stage1.GOOD
    bad_instruction: Annotated[str, Field(min_length=1, description="under which stage 1 teaches the other answer")] = (
        stage1.BAD
    )

    @property
    def fit_instructions(self) -> tuple[str, ...]:
        return self.good_instruction, self.bad_instruction

    def check(self, base: BaseShape) -> None:
        """Also refuses instructions with words that the base model's tokenizer does not know."""
        super().check(base)
        stage1.check_instructions((self.good_instruction, self.bad_instruction), base.unknown_words)

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Both stages; ``seed`` decides the order of the rows, the coin, the LoRA's start and its dropout."""
        from trl import SFTConfig

        instructions = (self.good_instruction, self.bad_instruction)
        trainer = stage1.contrastive_trainer(self.smoothing if self.mode == "released" else 0.0)
        rows = stage1.contrastive_rows(base, triples, instructions)
        given: dict[str, Any] = {"stage": "stage 1", "followed": True}
        given["data_collator"] = stage1.contrastive_collator(base.chat.pad_id)
        with limited(meter, STAGE_1_SHARE):
            first = self.train(base, trainer, SFTConfig, rows, meter=meter, seed=seed, **given)
        return self.fit_activities(base, triples, first, meter=meter, seed=seed, instructions=instructions)

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """Both stages, from the lengths of prompts, instructions and answers."""
        instructions = (self.good_instruction, self.bad_instruction)
        tuned = stage1.contrastive_flops(self, stage1.contrastive_rows(base, triples, instructions), rates)
        return {"stage 1": tuned, "stage 2": self.predict_activities(base, triples, rates, instructions)}


@register_method("rahf_dual")
class RAHFDual(RAHF):
    """arXiv 2312.15997, the variant with two models: one tuned on the chosen answers, one on the rejected.

    Stage 2 fits a LoRA on the good model to h_good + alpha (h_good - h_bad), without any instruction. Stage 1's lr of
    2e-5, cosine decay, 3 epochs and batches of 128 are the official code's for this variant, and so are the six depths
    of stage 2, 10/32 to 20/32 of the model's. The rest of stage 2 is as in `rahf_scit`. The official code's differs
    there: lr 9e-6 for 2,500 steps of 8 pairs whatever their number, both answers of a pair instead of one by a coin, 64
    tokens of each, and a good instruction in front of the prompt. (9e-6 is its lr of stage 2, not of stage 1: at that
    rate a LoRA hardly moves in the few steps that some hundred pairs make.)
    """

    depths: ClassVar[tuple[float, ...]] = (*_DEPTHS, 20 / 32)
    n_models: ClassVar[int] = 2
    epochs: Annotated[float, Field(gt=0, description="passes over the rows of stage 1")] = 3.0
    lr_schedule: Literal["linear", "cosine", "constant"] = "cosine"
    batch_size: Annotated[int, Field(ge=1, description="rows (an answer each) per forward in stage 1")] = 128

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Both stages; ``seed`` decides the order of the rows, the coin, the LoRA's start and its dropout."""
        tuned = []
        # Half of stage 1's share each: the second share is one of what the first leaves.
        shares = (STAGE_1_SHARE / 2, STAGE_1_SHARE / (2 - STAGE_1_SHARE))
        for answers, share in zip(_sides(triples), shares, strict=True):
            with limited(meter, share):
                rows = answer_rows(base, answers)
                tuned.append(train_on_answers(self, base, rows, meter=meter, seed=seed, stage="stage 1", followed=True))
        good, bad = tuned
        return self.fit_activities(base, triples, good, meter=meter, seed=seed, bad=bad)

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """Both trainings of stage 1, and stage 2."""
        tuned = sum(supervised_flops(self, answer_rows(base, answers), rates) for answers in _sides(triples))
        return {"stage 1": tuned, "stage 2": self.predict_activities(base, triples, rates)}


def _sides(triples: Sequence[Triple]) -> tuple[Sequence[Triple], Sequence[Triple]]:
    """The triples, and the same with the answers in each other's place."""
    return triples, [Triple(t.prompt, chosen=t.rejected, rejected=t.chosen) for t in triples]


@contextmanager
def limited(meter: Meter, share: float) -> Iterator[None]:
    """Inside, the meter's FLOP limit (if any) is ``share`` of what is left of it."""
    whole, used = meter.flops_limit, meter.executed_flops
    if whole is not None:
        meter.flops_limit = used + max(1, round(share * (whole - used)))
    try:
        yield
    finally:
        meter.flops_limit = whole


def _depth(base: AlignedModel) -> int:
    return base.model.config.get_text_config().num_hidden_layers


def _plain(tuned: AlignedModel, meter: Meter) -> "PreTrainedModel":
    """The tuned weights without an adapter around them; merging one would write into the base's memory."""
    if tuned.delta == "weights":
        return tuned.model
    return _merged(copy.deepcopy(tuned.model), meter)


def _merged(model: "PreTrainedModel", meter: Meter) -> "PreTrainedModel":
    """The model inside an adapter, which is merged into it; the adapter's products are billed to stage 2."""
    size = sum(tensor.numel() for name, tensor in model.named_parameters() if "lora_" in name)
    with meter.stage("stage 2"), meter.step(("merge", size), tokens=0, kind="forward"):
        return model.merge_and_unload()  # type: ignore[operator]
