"""fpo: Feature-level constrained Preference Optimization, DPO that holds SAE features of rejected answers in place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from baselines.metered import Metered, collected, fused_head, measured_batches
from baselines.rows import IGNORED, answer_lengths, preference_rows
from baselines.training import TrainedMethod, reference_pass
from dspa.map.sparse import SparseRows
from dspa.saes.sae import ResidualSAE, check_sae, load_sae, sae_sizes
from harness.compute import Meter, signature_of
from harness.compute.rates import Rates
from harness.data.refs import SAERef
from harness.data.triples import Triple
from harness.method import BaseShape, register_method
from harness.model.aligned import AlignedModel
from harness.model.decoder import Decoder, captured, find_decoder


@dataclass(frozen=True, eq=False)
class Reference:
    """The base's means (see `answer_means`) of the first n triples: all chosen answers, then all rejected ones.

    Kept on the CPU.
    """

    logp: Float[Tensor, " two_n"]
    latents: SparseRows

    def __len__(self) -> int:
        return len(self.logp) // 2

    def of(self, triples: Int[Tensor, " batch"]) -> tuple[Float[Tensor, " row"], Float[Tensor, "row d_sae"]]:
        """(mean log-likelihood, mean latents) on the device of ``triples``, rows as TRL has them: chosen, rejected."""
        rows = torch.cat([triples, triples + len(self)]).cpu()
        return self.logp[rows].to(triples.device), self.latents.select(rows).to(triples.device).dense()


def answer_means(
    model: nn.Module, decoder: Decoder, sae: ResidualSAE, batch: Mapping[str, Tensor]
) -> tuple[Float[Tensor, " row"], Float[Tensor, "row d_sae"]]:
    """Log-likelihood a token, and mean latents, of each row's answer; one forward, through which gradients flow.

    ``model`` has TRL's fused LM head, ``decoder`` is where its layers are. Both means are over the tokens of
    ``completion_mask``: padding and prompt are in neither.
    """
    answer = batch["completion_mask"].bool()
    with captured(decoder, [sae.layer]) as residual:
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["input_ids"].masked_fill(~answer, IGNORED),
            fused_lm_head=True,
            use_cache=False,
        )
    return output.log_probs.float().sum(1) / answer.sum(1), mean_latents(sae, residual[sae.layer], answer)


def mean_latents(
    sae: ResidualSAE, residual: Float[Tensor, "row pos d_model"], answer: Bool[Tensor, "row pos"]
) -> Float[Tensor, "row d_sae"]:
    """cbar: mean of the SAE's activations over each row's answer tokens, in fp32 whatever the precision around it.

    Row by row, so that activations of all tokens together never exist.
    """
    with torch.autocast(residual.device.type, enabled=False):
        return torch.stack([sae.encode(tokens[which]).mean(0) for tokens, which in zip(residual, answer, strict=True)])


def top_features(mean: Float[Tensor, "row d_sae"], k: int) -> Int[Tensor, "row k"]:
    """I_k: the k largest of cbar, largest first; of equals those that come first, so inactive ones fill up a row."""
    return mean.argsort(dim=1, descending=True, stable=True)[:, :k]


def collator(base: AlignedModel) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """TRL's batches, [chosen; rejected], with the triples' numbers as ``triple``."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    pad = DataCollatorForPreference(pad_token_id=base.chat.pad_id)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {**pad(rows), "triple": torch.tensor([row["triple"] for row in rows])}

    return collate


@torch.no_grad()
def measure_reference(
    base: AlignedModel,
    rows: Sequence[Mapping[str, Any]],
    sae: ResidualSAE,
    *,
    keep: int | None,
    batch_size: int,
    bf16: bool,
    meter: Meter,
) -> Reference:
    """The base's means of both answers of ``rows`` (as TRL's DPOTrainer takes them), by `measured_batches`.

    ``keep`` is how many latents of each answer are kept, the strongest (None: all that are active). With a FLOP limit
    only the first rows are passed.
    """
    from trl.trainer.utils import add_fused_lm_head

    collate, decoder, device = collator(base), find_decoder(base.model), base.device
    parts: list[tuple[list[int], Tensor, SparseRows]] = []
    with fused_head(base.model):
        add_fused_lm_head(base.model)
        for which in measured_batches([row["length"] for row in rows], batch_size, meter):
            batch = {name: t.to(device) for name, t in collate([{**rows[i], "triple": i} for i in which]).items()}
            labelled, (size, length) = int(batch["completion_mask"].sum()), batch["input_ids"].shape
            form = (size * length, size * length**2, labelled)
            with (
                meter.step(
                    signature_of(batch, labelled), tokens=int(batch["attention_mask"].sum()), kind="forward", form=form
                ),
                torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16),
            ):
                logp, mean = answer_means(base.model, decoder, sae, batch)
            if keep is not None:
                index = top_features(mean, keep)
                mean = torch.zeros_like(mean).scatter(1, index, mean.gather(1, index))
            parts.append((which, logp.cpu(), SparseRows.from_dense(mean).to("cpu")))
    parts = collected(parts, meter)
    answers = [(kind, i) for which, _, _ in parts for kind in (0, 1) for i in which]  # 0: chosen, 1: rejected
    order = torch.tensor(sorted(range(len(answers)), key=answers.__getitem__), dtype=torch.long)
    latents = SparseRows.concatenate([part for _, _, part in parts], sae.d_sae)
    return Reference(torch.cat([logp for _, logp, _ in parts])[order], latents.select(order))


def fpo_loss(
    chosen_ratio: Float[Tensor, " batch"],
    rejected_ratio: Float[Tensor, " batch"],
    chosen_distance: Float[Tensor, " batch"],
    rejected_distance: Float[Tensor, " batch"],
    *,
    alpha: float,
    beta: float,
) -> Float[Tensor, " batch"]:
    """FPO (arXiv 2411.07618, section 3): -log sigmoid(beta [(m_w - m_l) - alpha (D_l - stopgrad D_w)]).

    ``ratio`` is m_y, the log-likelihood ratio of policy and reference a token of the answer; ``distance`` is D_y (see
    `feature_distance`). No gradient flows through D_w.
    """
    margin = alpha * (rejected_distance - chosen_distance.detach())
    return -logsigmoid(beta * (chosen_ratio - rejected_ratio - margin))


def feature_distance(
    policy: Float[Tensor, "row d_sae"], reference: Float[Tensor, "row d_sae"], index: Int[Tensor, "row k"]
) -> Float[Tensor, " row"]:
    """D_y (section 3): mean over the features I_k (``index``) of (cbar_ref - cbar_pi)^2."""
    return ((reference - policy).gather(1, index) ** 2).mean(1)


@register_method("fpo")
class FPO(TrainedMethod):
    """arXiv 2411.07618. Length-normalised DPO plus a penalty on how far mean SAE activations of the rejected answer
    move from the reference's, beyond those of the chosen one.

    alpha 0.5, beta 0.1, lr 5e-7, 150 warm-up steps, 50 features chosen by the policy and Adam are the paper's and its
    code's for Gemma-2-2B (for 9B RMSprop: ``optimiser: rmsprop``); its SAE is Gemma Scope 16k of layer 25 (9B: 41).
    With log-ratios a token, beta 0.1 makes the loss nearly linear: sweep it. Ours are: the batch, LoRA, that the
    end-of-turn token is part of the answer in both means, and that all answer tokens count, whatever their norm.

    The reference is the base (LoRA: the same weights without the adapter), passed once before the training; of each
    answer only its mean log-likelihood and its active features are kept. ``index_set: reference`` chooses the features
    by the reference's activations and keeps those alone. Under a FLOP limit the number of triples that the training
    reaches is not known before, so the reference passes end at a quarter of the limit, which is about what they take
    of one full-parameter epoch, and the training is on the triples passed until then.
    """

    sae: SAERef = Field(description="SAE whose features of rejected answers are held in place")
    alpha: Annotated[float, Field(ge=0, description="weight of the feature constraint")] = 0.5
    beta: Annotated[float, Field(gt=0, description="how strongly the reference holds the model")] = 0.1
    k: Annotated[int, Field(ge=1, description="features in the constraint, of each answer")] = 50
    index_set: Literal["policy", "reference"] = Field("policy", description="whose activations choose the features")
    learning_rate: Annotated[float, Field(gt=0)] = 5e-7
    warmup_steps: Annotated[
        int, Field(ge=0, description="the warm-up is warmup_ratio of the training, but no longer than this")
    ] = 150

    def check(self, base: BaseShape) -> None:
        """Also refuses an SAE that does not fit the base, and more features than it has."""
        super().check(base)
        _, d_sae = check_sae(self.sae, base)
        if self.k > d_sae:
            raise ValueError(f"fpo: k is {self.k}, but SAE {self.sae} has {d_sae} features; give at most {d_sae}")

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Train a copy of the base; ``seed`` decides the order of the triples and the LoRA initialisation."""
        from trl import DPOConfig, DPOTrainer

        class Trainer(FeatureConstrained, DPOTrainer):
            pass

        sae = load_sae(self.sae, str(base.device))
        rows = preference_rows(base, triples)
        with meter.stage("reference"):
            keep = self.k if self.index_set == "reference" else None
            reference = measure_reference(
                base, rows, sae, keep=keep, batch_size=self.batch_size, bf16=self.bf16, meter=meter
            )
        numbered = [{**row, "triple": number} for number, row in enumerate(rows[: len(reference)])]
        options = {"loss_type": ["sigmoid_norm"], "beta": self.beta, "disable_dropout": False}
        given: dict[str, Any] = {"method": self, "sae": sae, "reference": reference, "data_collator": collator(base)}
        # TRL would load a reference model of its own; neither is ever passed.
        aligned = self.train(
            base, Trainer, DPOConfig, numbered, options, meter=meter, seed=seed, ref_model=base.model, **given
        )
        if len(reference) == len(rows):
            return aligned
        assert meter.epochs is not None
        meter.epochs *= len(reference) / len(rows)
        return aligned.derive(params={**aligned.params, "triples_used": len(reference)})

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """Both answers with their prompt, passed once through the reference and trained on, and the answers' encoding.

        The SAE is frozen, so its encoding costs two products in a training step and one in a forward.
        """
        _, d_model, d_sae = sae_sizes(self.sae)
        rows = preference_rows(base, triples)
        lengths = [row["length"] for row in rows]
        scored = answer_lengths(rows)
        encoding = [2 * d_model * d_sae * tokens for tokens in scored]
        reference = reference_pass(rates, lengths, scored, texts=2)
        order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
        batches = (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))
        trained = (
            self.trained_pass(rates, lengths, scored, texts=2),
            lambda batch: 2 * sum(encoding[row] for row in batch),
        )
        return {
            "reference": sum(encoding) + sum(map(reference, batches)),
            "train": self.training_flops(lengths, *trained),
        }


class FeatureConstrained(Metered):
    """In front of TRL's DPOTrainer: our loss, from one pass through its fused LM head that the SAE reads."""

    def __init__(self, *args: Any, method: FPO, sae: ResidualSAE, reference: Reference, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.method, self.sae, self.reference = method, sae, reference
        self.decoder = find_decoder(kwargs["model"])
        self._latest: tuple[Tensor, ...] = ()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """A step, and behind it, where it is on no bill, what is logged of it."""
        loss = super().training_step(*args, **kwargs)
        if self.args.logging_strategy != "no":
            with self.meter.aside():
                self._note(*map(self.of_all, self._latest))
        self._latest = ()
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The warm-up is a share of the training, and no longer than the method says."""
        if self.meter.flops_limit is None:
            self.args.warmup_steps = min(self.args.get_warmup_steps(num_training_steps), self.method.warmup_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Mean `fpo_loss` of a batch whose rows are [chosen, rejected]."""
        assert not return_outputs, "only an evaluation through TRL asks for outputs"
        method = self.method
        logp, latents = answer_means(model, self.decoder, self.sae, inputs)
        reference_logp, reference_latents = self.reference.of(inputs["triple"])
        chooser = latents.detach() if method.index_set == "policy" else reference_latents
        distances = feature_distance(latents, reference_latents, top_features(chooser, method.k)).chunk(2)
        ratios = (logp - reference_logp).chunk(2)
        self._latest = (*ratios, *distances)
        return fpo_loss(*ratios, *distances, alpha=method.alpha, beta=method.beta).mean()

    @torch.no_grad()
    def _note(self, chosen: Tensor, rejected: Tensor, chosen_distance: Tensor, rejected_distance: Tensor) -> None:
        """For the log, under TRL's names where it has them."""
        margin = chosen - rejected
        for name, value in (
            ("rewards/margins", self.method.beta * margin),
            ("rewards/accuracies", (margin > 0).float()),
            ("feature_distance/chosen", chosen_distance),
            ("feature_distance/rejected", rejected_distance),
        ):
            self._metrics["train"][name].append(float(value.mean()))  # type: ignore[attr-defined]
