"""What both RAHF variants share: how stage 1 is trained, and stage 2, the fit of a LoRA to moved activities."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from baselines.rahf_predict import activity_flops
from baselines.rahf_stage2 import Distance, fit_collator, fit_rows, fit_trainer
from baselines.training import TrainedMethod
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.method import BaseShape
from harness.model import AlignedModel
from harness.preferences import Triple
from harness.quiet import hiding_deprecations

if TYPE_CHECKING:
    from peft import LoraConfig
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

    learning_rate: Annotated[float, Field(gt=0, description="of stage 1")] = 2e-5
    epochs: Annotated[float, Field(gt=0, description="passes over the rows of stage 1")] = 2.0
    batch_size: Annotated[int, Field(ge=1, description="rows (an answer each) per forward in stage 1")] = 64
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    lora_targets: str | list[str] = Field(default_factory=lambda: ["q_proj", "v_proj"])

    layers: Annotated[tuple[int, ...] | None, Field(description="h^l is the input to block l, from 1 on")] = None
    alpha: Annotated[float, Field(gt=0, description="multiple of the activity difference that is fitted")] = 5.0
    distance: Distance = "plain"
    fit_learning_rate: Annotated[float, Field(gt=0, description="of stage 2, constant")] = 3e-4
    fit_batch_size: Annotated[int, Field(ge=1, description="triples per forward in stage 2")] = 64
    steps: Annotated[int | None, Field(ge=1, description="optimiser steps of stage 2")] = None

    def check(self, base: BaseShape) -> None:
        """The layers must be inputs of blocks that the base has and that something comes before."""
        super().check(base)
        if isinstance(self.lora_targets, str):
            raise ValueError(
                f"{self.name}: lora_targets {self.lora_targets!r} must be a list of module names, such as "
                "[q_proj, v_proj]: stage 2 restricts the LoRA to some of the layers, which PEFT does for lists alone"
            )
        layers = self._layers(base.n_layers)
        if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(1, base.n_layers)):
            raise ValueError(
                f"{self.name}: layers {list(layers)} do not fit {base.name}: allowed are different ones from 1 to "
                f"{base.n_layers - 1}; layer l is the input to block l, and that of block 0 cannot be trained"
            )

    def fit_activities(
        self,
        base: AlignedModel,
        triples: Sequence[Triple],
        model: "PreTrainedModel",
        *,
        meter: Meter,
        seed: int,
        stopped_at: Any,
        instructions: tuple[str, str] | None = None,
        bad: "PreTrainedModel | None" = None,
    ) -> AlignedModel:
        """Stage 2 on the stage-1 ``model``, which becomes the artifact's; the contrast is as in `fit_trainer`."""
        from peft import get_peft_model
        from transformers import set_seed
        from trl import SFTConfig

        layers = self._layers(base.model.config.get_text_config().num_hidden_layers)
        steps = self._steps(len(triples))
        set_seed(seed)
        with hiding_deprecations():
            policy = get_peft_model(model.requires_grad_(False), self._adapter(layers))
        most = meter.train_params
        fitted = self.train(
            base,
            fit_trainer(layers, alpha=self.alpha, distance=self.distance, bad=bad),
            SFTConfig,
            fit_rows(base, triples, instructions),
            meter=meter,
            seed=seed,
            stage="stage 2",
            policy=policy,  # type: ignore[arg-type]
            options={
                "learning_rate": self.fit_learning_rate,
                "lr_scheduler_type": "constant",
                "warmup_steps": 0.0,
                "per_device_train_batch_size": self.fit_batch_size,
                "max_steps": steps if meter.flops_limit is None else -1,
            },
            given={"data_collator": fit_collator(base.chat.pad_id, seed)},
        )
        meter.train_params = max(most, meter.train_params)
        # What was trained on, also where the suite left it open.
        params = self.model_dump(mode="json") | {"layers": list(layers), "steps": steps}
        stops = {"stage 1": stopped_at, "stage 2": fitted.params.get("stopped_at")}
        return fitted.derive(
            params=params | ({"stopped_at": stops} if any(stops.values()) else {}),
            model=fitted.model.merge_and_unload(),  # type: ignore[operator]
            delta="weights",
        )

    def predict_activities(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates, *contrast: Any) -> int:
        """FLOPs of `fit_activities`; ``contrast`` are the instructions, where it has any."""
        layers = self._layers(base.model.config.get_text_config().num_hidden_layers)
        rows, steps = fit_rows(base, triples, *contrast), self._steps(len(triples))
        return activity_flops(self, rows, rates, layers=layers, adapter=self._adapter(layers), steps=steps)

    def _adapter(self, layers: Sequence[int]) -> "LoraConfig":
        """Stage 2's LoRA, on the blocks in front of the last target layer."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=self.lora_dropout,
            target_modules=self.lora_targets,
            layers_to_transform=list(range(max(layers))),
            task_type="CAUSAL_LM",
        )

    def _layers(self, n_layers: int) -> tuple[int, ...]:
        if self.layers is not None:
            return self.layers
        spread = {min(max(1, round(depth * n_layers)), n_layers - 1) for depth in _DEPTHS}
        return tuple(sorted(spread))

    def _steps(self, n_triples: int) -> int:
        rows_a_step = self.fit_batch_size * self.accumulation
        return self.steps or max(1, round(_STEPS_PER_TRIPLE * n_triples * _PAPER_BATCH / rows_a_step))
