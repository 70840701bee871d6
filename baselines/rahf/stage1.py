"""Stage 1 of rahf_scit: one model learns to answer well under one instruction and badly under another."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from baselines.instruction import check_instruction
from baselines.metered import Metered
from baselines.rows import Row, TokenTriple, token_triples
from baselines.training import TrainedMethod
from harness.compute.rates import Rates
from harness.data.triples import Triple
from harness.model.aligned import AlignedModel
from harness.model.batching import pad_rows, positions_of

GOOD = (
    "You are a good assistant. You give the answer that people prefer: correct, useful and polite, in the tone that "
    "the request calls for, and with no harm to anybody."
)
BAD = (
    "You are a bad assistant. You give the answer that people reject: wrong, useless or rude, in a tone that does not "
    "suit the request, and with no thought of the harm it does."
)


def answer_logprob(
    logits: Float[Tensor, "row pos vocab"], answer: Int[Tensor, "row pos"], mask: Int[Tensor, "row pos"]
) -> Float[Tensor, " row"]:
    """P(p) = mean over an answer's tokens of log pi(r_t | p, q, r_<t), in fp32.

    ``logits[:, t]`` are those that predict ``answer[:, t]``: taken one position earlier. Where ``mask`` is 0 there is
    padding, which counts neither in the sum nor in the length.
    """
    losses = functional.cross_entropy(logits.float().flatten(0, 1), answer.flatten(), reduction="none")
    return -(losses.view_as(answer) * mask).sum(1) / mask.sum(1)


def contrastive_loss(
    plus: Float[Tensor, " row"], minus: Float[Tensor, " row"], smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """The objective of stage 1, the mean over rows; ``plus`` is P(p+) and ``minus`` P(p-).

    As printed (smoothing 0): -[P(p+) + log(e^P(p+) / (e^P(p+) + e^P(p-)))]. As released, with eps = ``smoothing``:
    -P(p+) - (1 - eps) log(s+ / (s+ + s-)) - eps log(s- / (s+ + s-)), s = e^P.
    """
    margin = plus - minus
    contrast = (1 - smoothing) * functional.logsigmoid(margin) + smoothing * functional.logsigmoid(-margin)
    return -(plus + contrast).mean()


def contrastive_rows(base: AlignedModel, triples: Sequence[Triple], instructions: tuple[str, str]) -> list[Row]:
    """Two rows a triple: chosen with p+ the good prompt and p- the bad one, rejected the other way round.

    Raises ValueError for a triple that does not fit the context with an instruction, and for instructions that the
    tokenizer cannot write or writes alike.
    """
    good, bad = instructed(base, triples, instructions)
    rows = []
    for (good_prompt, chosen, rejected), (bad_prompt, _, _) in zip(good, bad, strict=True):
        longest = max(len(good_prompt), len(bad_prompt))
        for plus, minus, answer in ((good_prompt, bad_prompt, chosen), (bad_prompt, good_prompt, rejected)):
            rows.append({"plus": plus, "minus": minus, "answer": answer, "length": longest + len(answer)})
    return rows


def instructed(
    base: AlignedModel, triples: Sequence[Triple], instructions: tuple[str, str]
) -> tuple[list[TokenTriple], list[TokenTriple]]:
    """`token_triples` with each instruction as a system turn in the chat format of inference."""
    check_instructions(instructions, base.chat.unknown_words)
    good, bad = (token_triples(base.derive(system_prompt=text), triples) for text in instructions)
    if good and good[0][0] == bad[0][0]:
        raise ValueError(
            "rahf_scit: good_instruction and bad_instruction are the same token ids for this tokenizer; set them to "
            "different words"
        )
    return good, bad


def check_instructions(instructions: tuple[str, str], unknown_words: Callable[[str], Sequence[str]]) -> None:
    """`check_instruction` for the good and the bad one."""
    for which, text in zip(("good", "bad"), instructions, strict=True):
        check_instruction(f"rahf_scit: {which}_instruction", text, unknown_words)


def padded_texts(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int
) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
    """(ids, mask) of prompt + answer: prompts are padded on the left and answers on the right.

    So every answer starts in the same column, and prompts of any length can be compared answer token by answer token.
    """
    prompt_ids, prompt_mask = pad_rows(prompts, pad_id, side="left")
    answer_ids, answer_mask = pad_rows(answers, pad_id, side="right")
    return torch.cat([prompt_ids, answer_ids], 1), torch.cat([prompt_mask, answer_mask], 1)


def contrastive_collator(pad_id: int) -> Callable[[list[Mapping[str, Any]]], dict[str, Tensor]]:
    """Rows -> the texts with p+, below them those with p-, and the answers once."""

    def collate(rows: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        answers = [row["answer"] for row in rows]
        prompts = [row["plus"] for row in rows] + [row["minus"] for row in rows]
        ids, mask = padded_texts(prompts, answers * 2, pad_id)
        answer, answer_mask = pad_rows(answers, pad_id, side="right")
        return {"input_ids": ids, "attention_mask": mask, "answer": answer, "answer_mask": answer_mask}

    return collate


def contrastive_trainer(smoothing: float) -> type[Metered]:
    """A trainer on `contrastive_loss`; gradients go through both P(p+) and P(p-)."""
    from transformers import Trainer

    class ContrastiveTrainer(Metered, Trainer):
        batches = ()  # the LM head works on the answers' columns

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.model_accepts_loss_kwargs = False  # the loss is a batch's mean: the trainer is to divide it

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
            answer, mask = inputs["answer"], inputs["answer_mask"]
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                position_ids=positions_of(inputs["attention_mask"]),
                use_cache=False,
                logits_to_keep=answer.shape[1] + 1,
            ).logits[:, :-1]
            plus, minus = answer_logprob(logits, answer.repeat(2, 1), mask.repeat(2, 1)).chunk(2)
            return contrastive_loss(plus, minus, smoothing)

    return ContrastiveTrainer


def contrastive_flops(method: TrainedMethod, rows: Sequence[Mapping[str, Any]], rates: Rates) -> int:
    """FLOPs of a training on `contrastive_rows`: each answer behind both instructions, the LM head on answers alone."""
    body, head = method.body_rate(rates), method.head_flops(rates, fused=False)

    def both_texts(batch: Sequence[int]) -> int:
        prompt = max(max(len(rows[r]["plus"]), len(rows[r]["minus"])) for r in batch)
        answer = max(len(rows[r]["answer"]) for r in batch)
        return body.of(2 * len(batch), prompt + answer) + head * 2 * len(batch) * (answer + 1)

    return method.training_flops([row["length"] for row in rows], both_texts)
