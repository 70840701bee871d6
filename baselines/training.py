"""What every trained method shares: TRL's options, the model to train, the training itself, and what it will cost."""

import copy
import importlib
import importlib.util
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from baselines.metered import Metered, fused_head, unpatch
from harness.compute import Meter
from harness.compute.rates import Rate, Rates
from harness.method import BaseShape, MethodConfig
from harness.model.aligned import AlignedModel
from harness.quiet import hiding_deprecations

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

_ENDLESS = 10**6  # epochs: the FLOP limit ends the training


@dataclass(frozen=True)
class Pass:
    """FLOPs of one pass over a batch, given the numbers of its rows; texts are padded to the batch's longest."""

    rate: Rate
    """Of the decoder's layers."""
    lengths: Sequence[int]
    """Of each row's (longer) text, in tokens."""
    texts: int
    """In a row."""
    head: int
    """FLOPs of the LM head a position."""
    scored: Sequence[int] | None = None
    """Positions of each row that the LM head works on; all, padding included, where it is None."""

    def __call__(self, batch: Sequence[int]) -> int:
        size, length = self.texts * len(batch), max(self.lengths[row] for row in batch)
        positions = size * length if self.scored is None else sum(self.scored[row] for row in batch)
        return self.rate.of(size, length) + self.head * positions


class TrainedMethod(MethodConfig):
    """Base of the methods that train through TRL: the options that all of them pass on to its arguments.

    The learning rate is that of `rate_share`: no optimiser step has a rate of 0, the first included. A meter with a
    FLOP limit replaces ``epochs``: training goes on until the limit is reached, stops at the first optimiser step after
    it, and the learning rate follows the share of the limit that is used up.
    """

    own_network: ClassVar[bool] = True
    tuning: Literal["lora", "full"] = Field("full", description="what is trained: an adapter, or all weights")
    epochs: Annotated[float, Field(gt=0, description="passes over the triples; a FLOP limit takes its place")] = 1.0
    learning_rate: Annotated[float, Field(gt=0, description="the highest of the schedule")] = 5e-6
    lr_schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="how the learning rate falls after the warm-up"
    )
    warmup_ratio: Annotated[
        float, Field(ge=0, lt=1, description="share of the training in which the learning rate rises")
    ] = 0.1
    batch_size: Annotated[int, Field(ge=1, description="triples per forward")] = 16
    accumulation: Annotated[int, Field(ge=1, description="forwards per optimiser step")] = 1
    optimiser: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "rmsprop", "sgd"] = Field(
        "adamw_torch_fused", description="as TRL names it"
    )
    weight_decay: Annotated[float, Field(ge=0, description="of the optimiser")] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, description="longer gradients are cut to this length")] = 1.0
    lora_rank: Annotated[int, Field(ge=1, description="rank of the adapter's matrices")] = 8
    lora_alpha: Annotated[float, Field(gt=0, description="the adapter counts lora_alpha / lora_rank times")] = 16
    lora_dropout: Annotated[
        float, Field(ge=0, lt=1, description="share of the adapter's inputs that are dropped in training")
    ] = 0.0
    lora_targets: str | list[str] = Field("all-linear", description="modules with an adapter, as PEFT names them")
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, more FLOPs"
    )
    bf16: bool = Field(False, description="train in mixed precision (bfloat16)")
    attention: Literal["eager", "sdpa"] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="how the model attends in training (eager is faster for short texts on a CPU), if not as the base",
    )
    report_to: Literal["none", "wandb", "mlflow", "trackio"] = Field("none", description="tracker that TRL logs to")

    def check_processes(self, processes: int, *, sharded: bool = False) -> None:
        """Each process needs a triple of every forward, and a part of the optimiser's state."""
        if self.batch_size < processes:
            raise ValueError(
                f"{self.name}: batch_size {self.batch_size} is the triples of a forward over all processes, and cannot "
                f"be divided among {processes} of them; give at least {processes}, or fewer processes"
            )
        if sharded and self.keeps_weights and self.optimiser == "adafactor":
            raise ValueError(
                f"{self.name}: the state of optimiser 'adafactor' cannot be dealt out; take another one, or leave out "
                "per_fit.sharded"
            )

    def check(self, base: BaseShape) -> None:
        """Raise ValueError when the tracker to report to is not installed, or the adapter would have no place,
        or the attention would not be the model's."""
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise ValueError(
                f"{self.name}: report_to {self.report_to!r} needs the package {self.report_to!r}, which is not "
                "installed; install it or set report_to to 'none'"
            )
        text = base.config and base.config.get_text_config()
        if self.attention == "sdpa" and getattr(text, "attn_logit_softcapping", None):
            raise ValueError(
                f"{self.name}: attention 'sdpa' would leave out the soft cap of the attention of {base.name}; "
                "use 'eager', or leave it out"
            )
        if self.tuning == "lora" and self.lora_targets != "all-linear" and base.config is not None:
            _check_targets(self.lora_targets, base.config)

    @property
    def keeps_weights(self) -> bool:
        """With full fine-tuning."""
        return self.tuning == "full"

    @property
    def texts_at_once(self) -> int:
        """Both answers of each triple of a forward."""
        return 0 if self.gradient_checkpointing else 2 * self.batch_size

    def arguments(self, config_class: type, scratch: str, seed: int, *, on_cpu: bool, **own: Any) -> Any:
        """An instance of TRL's ``config_class`` with these options; ``own`` are the method's and win."""
        shared = {
            "output_dir": scratch,
            "num_train_epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": self.lr_schedule,
            "warmup_steps": self.warmup_ratio,
            "per_device_train_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "optim": self.optimiser,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "gradient_checkpointing": self.gradient_checkpointing,
            "bf16": self.bf16,
            "max_length": None,  # lengths were checked against the context: nothing is cut
            "train_sampling_strategy": "group_by_length",  # similar lengths together, so that little is padding
            "remove_unused_columns": False,  # keeps `length` for the sampler
            "seed": seed,
            "data_seed": seed,
            "use_cpu": on_cpu,
            "save_strategy": "no",
            "logging_strategy": "no" if self.report_to == "none" else "steps",
            "logging_steps": 1,
            "logging_nan_inf_filter": False,  # it would log the mean of the steps before
            "report_to": self.report_to,
            "run_name": f"{self.name}, seed {seed}",
            "disable_tqdm": True,
            "dataloader_pin_memory": not on_cpu,
        }
        return config_class(**(shared | own))

    def policy(self, base: AlignedModel, seed: int) -> "PreTrainedModel":
        """The model to train: a copy of the base, or with LoRA an adapter around modules that share its parameters.

        Dropout of the base model is off, in its dropout modules and at the rates that its attention modules keep as
        numbers, so that only the adapter's own (``lora_dropout``) acts. ``seed`` decides the adapter's start.
        """
        from transformers import set_seed

        adapter = self.adapter()
        model = copy.deepcopy(base.model).requires_grad_(True) if adapter is None else sharing_copy(base.model)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name in [n for n, v in vars(module).items() if n.endswith("dropout") and isinstance(v, float)]:
                setattr(module, name, 0.0)
        if adapter is None:
            return model
        from peft import get_peft_model

        set_seed(seed)
        with hiding_deprecations():
            return get_peft_model(model, adapter)  # type: ignore[return-value]

    def adapter(self) -> "LoraConfig | None":
        """PEFT's configuration of the adapter that is tuned; None where all weights are."""
        return self.lora() if self.tuning == "lora" else None

    def lora(self, **own: Any) -> "LoraConfig":
        """PEFT's configuration with the ``lora_*`` options, and those of the method's ``own``."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=self.lora_dropout,
            target_modules=self.lora_targets,
            task_type="CAUSAL_LM",
            **own,
        )

    def train(
        self,
        base: AlignedModel,
        trainer_class: "type[Metered]",
        config_class: type,
        rows: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any] | None = None,
        *,
        meter: Meter,
        seed: int,
        stage: str = "train",
        followed: bool = False,
        policy: "PreTrainedModel | None" = None,
        **given: Any,
    ) -> AlignedModel:
        """Train on ``rows`` and derive the artifact; the base is unchanged, also when training raises.

        With a ``sitting`` of the meter the training has a curve, and goes on where an earlier sitting was killed;
        ``followed`` by another training of the fit, its result is kept for that.
        ``options`` go to TRL's configuration and ``given`` to the trainer; ``policy`` replaces the model to train.
        Where a FLOP limit ended the training, the artifact's ``params`` say so under ``stopped_at``.
        """
        from datasets import Dataset
        from transformers import set_seed

        own = {**(options or {}), **({} if meter.flops_limit is None else {"num_train_epochs": _ENDLESS})}
        log = {} if meter.sitting is None else {"logging_strategy": "steps"}
        on_cpu = base.device.type == "cpu"
        if meter.ranks.size > 1:
            own |= {"ddp_find_unused_parameters": False} | ({"ddp_backend": "gloo"} if on_cpu else {})
        set_seed(seed)
        policy = self.policy(base, seed) if policy is None else policy
        with (
            meter.stage(stage),
            tempfile.TemporaryDirectory() as scratch,
            fused_head(base.model),
            attending(policy, self.attention),
            hiding_deprecations(),
        ):
            trainer: Any = trainer_class(
                model=policy,
                args=self.arguments(config_class, scratch, seed, on_cpu=on_cpu, **log, **own),
                train_dataset=Dataset.from_list([dict(row) for row in rows]),
                processing_class=copy.deepcopy(base.tokenizer),  # TRL gives it a pad token
                meter=meter,
                **given,
            )
            meter.train_params = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
            trainer.train_through(stage, followed=followed)
            # Each training is a run of its own, which rank 0 has begun; mlflow's ends by itself.
            if self.report_to in ("wandb", "trackio") and meter.ranks.rank == 0:
                importlib.import_module(self.report_to).finish()
            model = trainer.whole_model()
        unpatch(model)
        params = self.model_dump(mode="json")
        return base.derive(
            method=self.name,
            params=params | ({"stopped_at": trainer.stopped_at} if trainer.stopped_at else {}),
            model=model.eval(),
            delta="adapter" if self.tuning == "lora" else "weights",
        )

    def training_flops(
        self,
        lengths: Sequence[int],
        *passes: Callable[[list[int]], int],
        batch_size: int | None = None,
        epochs: float | None = None,
    ) -> int:
        """FLOPs of ``passes`` over every batch of a training on rows of these ``lengths``, grouped by length.

        ``batch_size`` (rows a forward) and ``epochs`` are the method's, unless given. The trainer's own draw is another
        one, and so are its batches; their padding is much the same.
        """
        from transformers.trainer_pt_utils import get_length_grouped_indices

        size, epochs, flops = batch_size or self.batch_size, epochs or self.epochs, 0
        forwards = ceil(len(lengths) / size)
        updates = ceil(epochs * ceil(forwards / self.accumulation))
        for epoch in range(ceil(epochs)):
            draw = torch.Generator().manual_seed(epoch)
            order = get_length_grouped_indices(list(lengths), size * self.accumulation, generator=draw)
            steps = min(updates, ceil(forwards / self.accumulation))
            updates -= steps
            for index in range(min(forwards, steps * self.accumulation)):
                flops += sum(one(order[index * size : (index + 1) * size]) for one in passes)
        return flops

    def trained_pass(
        self, rates: Rates, lengths: Sequence[int], scored: Sequence[int] | None = None, *, texts: int = 1
    ) -> Pass:
        """Forward and backward of what is tuned, and of the LM head: TRL's fused one, on the ``scored`` positions of
        each row (its answer tokens), or else a plain one on all positions."""
        head = self.head_flops(rates, fused=scored is not None)
        return Pass(self.body_rate(rates), lengths, texts, head, scored)

    def body_rate(self, rates: Rates) -> Rate:
        """Forward and backward of what is tuned, without the LM head."""
        return self.rate(rates, self.adapter())

    def rate(self, rates: Rates, adapter: "LoraConfig | None", layers: int | None = None) -> Rate:
        """The same of another adapter, and of the first ``layers`` alone."""
        how = {"checkpointing": self.gradient_checkpointing, "attention": self.attention}
        return rates.training(adapter, layers=layers, **how)

    def head_flops(self, rates: Rates, *, fused: bool = True) -> int:
        """FLOPs a position of the LM head in training: its product, the gradient of its input and, tuned, of its
        weights.

        TRL's ``fused`` one does its product once more in the backward.
        """
        return rates.head * (2 + (self.tuning == "full") + fused)


def reference_pass(rates: Rates, lengths: Sequence[int], scored: Sequence[int], *, texts: int = 1) -> Pass:
    """The forward of a frozen model, and of its fused LM head on the ``scored`` positions of each row."""
    return Pass(rates.body(), lengths, texts, rates.head, scored)


@contextmanager
def attending(model: "PreTrainedModel", how: str | None) -> Iterator[None]:
    """``model`` attends by ``how`` inside, where it is not None."""
    if how is None:
        yield
        return
    whole: Any = getattr(model, "get_base_model", lambda: model)()
    before = whole.config._attn_implementation
    whole.set_attn_implementation(how)
    try:
        yield
    finally:
        whole.set_attn_implementation(before)


def sharing_copy(model: "PreTrainedModel") -> "PreTrainedModel":
    """A copy whose parameters are new objects on the same memory: modules can be replaced, weights must not change."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, shared)  # type: ignore[arg-type]


def _check_targets(targets: str | list[str], config: Any) -> None:
    """Raise ValueError where PEFT would find none of ``targets`` (endings of names, or one pattern) in a model."""
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
    if not targets:
        raise ValueError(f"lora_targets is empty; give some of: {known}")
    pattern = targets if isinstance(targets, str) else None
    for target in [targets] if isinstance(targets, str) else targets:
        try:
            found = re.compile(pattern or rf"(.*\.)?{re.escape(target)}")
        except re.error as problem:
            raise ValueError(f"lora_targets: {target!r} is no regular expression: {problem}") from None
        if not any(found.fullmatch(name) for name in names):
            raise ValueError(f"lora_targets: the model has no layer {target!r}; it has: {known}")
