"""What FPO compares: mean log-likelihood and mean SAE activations of each answer, and the base's, measured once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from baselines.metered import measured_batches, unpatched
from baselines.rows import IGNORED
from dspa.map.sparse import SparseRows
from dspa.saes.sae import ResidualSAE
from harness.compute import Meter, signature_of
from harness.intervention import Decoder, captured, find_decoder
from harness.model import AlignedModel


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
    answers: list[tuple[int, int]] = []  # (0 chosen | 1 rejected, row) of each entry of what follows
    logps: list[Tensor] = []
    latents: list[SparseRows] = []
    with unpatched(base.model):
        add_fused_lm_head(base.model)
        for which in measured_batches([row["length"] for row in rows], batch_size, meter):
            batch = {name: t.to(device) for name, t in collate([{**rows[i], "triple": i} for i in which]).items()}
            signature = signature_of(batch, int(batch["completion_mask"].sum()))
            with (
                meter.step(signature, tokens=int(batch["attention_mask"].sum()), kind="forward"),
                torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16),
            ):
                logp, mean = answer_means(base.model, decoder, sae, batch)
            if keep is not None:
                index = top_features(mean, keep)
                mean = torch.zeros_like(mean).scatter(1, index, mean.gather(1, index))
            answers += [(kind, i) for kind in (0, 1) for i in which]
            logps.append(logp.cpu())
            latents.append(SparseRows.from_dense(mean).to("cpu"))
    order = torch.tensor(sorted(range(len(answers)), key=answers.__getitem__), dtype=torch.long)
    return Reference(torch.cat(logps)[order], SparseRows.concatenate(latents, sae.d_sae).select(order))
