"""Stage 2 of RAHF: a LoRA is fitted to activities moved along their difference between good and bad."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from baselines.metered import Metered
from baselines.rahf.stage1 import instructed, padded_texts
from baselines.rows import Row, token_triples
from harness.compute.rates import Rate
from harness.data.triples import Triple
from harness.model.aligned import AlignedModel
from harness.model.batching import pad_rows, positions_of
from harness.model.decoder import captured, find_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Distance = Literal["plain", "squared"]
"""Of a fitted activity from its target: the L2 norm, as the official code has it, or its square, as printed."""
Activity = Float[Tensor, "layer row pos d_model"]


def moved_activity(own: Activity, plus: Activity, minus: Activity, alpha: float) -> Activity:
    """The target of stage 2: h + alpha v with v = h(p+) - h(p-), token by token of the answer."""
    return own + alpha * (plus - minus)


def activity_loss(
    fitted: Activity, target: Activity, mask: Int[Tensor, "row pos"], distance: Distance = "plain"
) -> Float[Tensor, ""]:
    """Mean over layers and all answer tokens (``mask`` 1) of || fitted - target ||_2, or of its square; in fp32."""
    # Padding is taken out before the norm, whose gradient is undefined at the zero that a pad token can give.
    difference = (fitted.float() - target.float())[:, mask.bool()]
    if distance == "squared":
        return difference.square().sum(-1).mean()
    return torch.linalg.vector_norm(difference, dim=-1).mean()


def fit_rows(base: AlignedModel, triples: Sequence[Triple], instructions: tuple[str, str] | None) -> list[Row]:
    """One row a triple: prompt, both answers and, with ``instructions``, the prompts with the good and the bad one."""
    rows: list[Row] = [
        {"prompt": prompt, "answers": [chosen, rejected]} for prompt, chosen, rejected in token_triples(base, triples)
    ]
    if instructions is not None:
        for row, good, bad in zip(rows, *instructed(base, triples, instructions), strict=True):
            row["contrast"] = [good[0], bad[0]]
    for row in rows:
        prompts = row.get("contrast", [row["prompt"]])
        row["length"] = max(map(len, prompts)) + max(map(len, row["answers"]))
    return rows


class FitCollator:
    """Rows -> texts without instruction and, below each other, those with the good and with the bad one.

    The answer of a row is the chosen or the rejected one by a coin that ``seed`` decides, thrown each time.
    """

    def __init__(self, pad_id: int, seed: int) -> None:
        self._pad_id, self._coin = pad_id, random.Random(seed)

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        answers = [row["answers"][self._coin.randrange(2)] for row in rows]
        ids, mask = padded_texts([row["prompt"] for row in rows], answers, self._pad_id)
        _, answer_mask = pad_rows(answers, self._pad_id, side="right")
        batch = {"input_ids": ids, "attention_mask": mask, "answer_mask": answer_mask}
        if "contrast" in rows[0]:
            prompts = [row["contrast"][0] for row in rows] + [row["contrast"][1] for row in rows]
            contrast_ids, contrast_mask = padded_texts(prompts, answers * 2, self._pad_id)
            batch |= {"contrast_ids": contrast_ids, "contrast_mask": contrast_mask}
        return batch

    def skip(self, rows: int) -> None:
        """Throw the coin for so many rows that an earlier sitting has seen."""
        for _ in range(rows):
            self._coin.randrange(2)


def fit_trainer(
    layers: Sequence[int], *, alpha: float, distance: Distance, bad: "PreTrainedModel | None"
) -> type[Metered]:
    """A trainer of a PEFT model on `activity_loss`; with the adapter off, its model is the frozen M.

    v is M's difference between the two instructions, or with a ``bad`` model the difference between M and that one, on
    the text without instruction.
    """
    from transformers import Trainer

    class FitTrainer(Metered, Trainer):
        reference_passes = ("attention_mask", "contrast_mask" if bad is None else "attention_mask")
        batches = ()  # passes of several depths

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.model_accepts_loss_kwargs = False  # the loss is a batch's mean: the trainer is to divide it

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
            mask = inputs["answer_mask"]
            policy = self.accelerator.unwrap_model(model)
            text = (inputs["input_ids"], inputs["attention_mask"], mask.shape[1])
            with self.accelerator.autocast():
                with torch.no_grad(), policy.disable_adapter():
                    own = activities(policy, layers, *text)
                    if bad is None:
                        contrast = (inputs["contrast_ids"], inputs["contrast_mask"], mask.shape[1])
                        plus, minus = activities(policy, layers, *contrast).chunk(2, dim=1)
                    else:
                        plus, minus = own, activities(bad, layers, *text)
                    target = moved_activity(own, plus, minus, alpha)
                loss = activity_loss(activities(policy, layers, *text), target, mask, distance)
                return self.mean_over(loss, mask.sum())

        def _clip_grad_norm(self, model: Any) -> Any:
            # DDP averages what was found in its own forward; the activities are in parts of the model.
            found = (p.grad for p in model.parameters() if p.grad is not None)
            self.meter.ranks.average(found)
            return super()._clip_grad_norm(model)

    return FitTrainer


def activities(
    model: nn.Module,
    layers: Sequence[int],
    ids: Int[Tensor, "row pos"],
    mask: Int[Tensor, "row pos"],
    last_columns: int,
) -> Float[Tensor, "layer row column d_model"]:
    """h^l, the input to block l (from 1 on), in the last columns of each text; no block from the last of ``layers`` on
    is run."""
    decoder = find_decoder(model)
    with captured(decoder, [layer - 1 for layer in layers], stop=True, last_columns=last_columns) as residual:
        decoder.stack(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False)
    return torch.stack([residual[layer - 1] for layer in layers])


def activity_passes(rows: Sequence[Mapping[str, Any]], forward: Rate, training: Rate) -> Callable[[list[int]], int]:
    """FLOPs of a batch of `fit_rows` (by their numbers): the frozen model's activities, its contrast's, the LoRA's.

    ``forward`` and ``training`` are the rates of the frozen and of the trained pass, up to the last target layer. The
    coins thrown here are others than the trainer's.
    """
    coin = random.Random(0)

    def flops(batch: list[int]) -> int:
        answer = max(len(rows[r]["answers"][coin.randrange(2)]) for r in batch)
        own = max(len(rows[r]["prompt"]) for r in batch) + answer
        prompts = [len(prompt) for r in batch for prompt in rows[r].get("contrast", ())]
        contrast = forward.of(2 * len(batch), max(prompts) + answer) if prompts else forward.of(len(batch), own)
        return forward.of(len(batch), own) + training.of(len(batch), own) + contrast

    return flops
