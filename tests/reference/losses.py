"""Preference losses as pure functions of log-likelihoods, one value a row: what TRL's trainers are to compute.

Log-likelihoods are natural logarithms, sums over the tokens of an answer (end of turn included) unless a mean is asked
for. A batch's loss is the mean over its rows, except where a function says otherwise.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(
    chosen_ratio: Float[Tensor, " batch"], rejected_ratio: Float[Tensor, " batch"], *, beta: float
) -> Float[Tensor, " batch"]:
    """DPO (arXiv 2305.18290, eq. 7): -log sigmoid(beta (r_w - r_l)), r = log pi(y|x) - log pi_ref(y|x)."""
    return -logsigmoid(beta * (chosen_ratio - rejected_ratio))


def ipo_loss(
    chosen_ratio: Float[Tensor, " batch"],
    rejected_ratio: Float[Tensor, " batch"],
    chosen_length: Int[Tensor, " batch"],
    rejected_length: Int[Tensor, " batch"],
    *,
    beta: float,
) -> Float[Tensor, " batch"]:
    """IPO (arXiv 2310.12036, eq. 17): (h - 1/(2 beta))^2, h = r_w/|y_w| - r_l/|y_l|; beta is the paper's tau.

    The division by the length in tokens is not in the paper; TRL has it, with the authors' agreement.
    """
    return (chosen_ratio / chosen_length - rejected_ratio / rejected_length - 1 / (2 * beta)) ** 2


def sigmoid_norm_loss(
    chosen_ratio: Float[Tensor, " batch"],
    rejected_ratio: Float[Tensor, " batch"],
    chosen_length: Int[Tensor, " batch"],
    rejected_length: Int[Tensor, " batch"],
    *,
    beta: float,
) -> Float[Tensor, " batch"]:
    """Length-normalised DPO (arXiv 2411.15124, eq. 6): DPO on the mean log-ratio a token."""
    return dpo_loss(chosen_ratio / chosen_length, rejected_ratio / rejected_length, beta=beta)


def simpo_loss(
    chosen_mean: Float[Tensor, " batch"], rejected_mean: Float[Tensor, " batch"], *, beta: float, gamma_ratio: float
) -> Float[Tensor, " batch"]:
    """SimPO (arXiv 2405.14734, eq. 6) on mean log-likelihoods: -log sigmoid(beta (m_w - m_l) - gamma).

    ``gamma_ratio`` is gamma / beta; TRL's ``simpo_gamma`` is gamma itself.
    """
    return -logsigmoid(beta * (chosen_mean - rejected_mean) - beta * gamma_ratio)


def odds_ratio_loss(
    chosen_mean: Float[Tensor, " batch"], rejected_mean: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """ORPO's odds-ratio term (arXiv 2403.07691, eq. 7): -log sigmoid(log odds_w - log odds_l), odds = P / (1 - P).

    P = exp(mean log-likelihood), eq. 1; a mean of exactly 0 (P = 1) has no finite odds.
    """
    return -logsigmoid(_log_odds(chosen_mean) - _log_odds(rejected_mean))


def orpo_loss(
    chosen_mean: Float[Tensor, " batch"],
    rejected_mean: Float[Tensor, " batch"],
    chosen_length: Int[Tensor, " batch"],
    *,
    beta: float,
) -> Float[Tensor, ""]:
    """ORPO (eq. 6): cross-entropy of the chosen answers, mean over all their tokens, + beta * the odds-ratio term."""
    cross_entropy = -(chosen_mean * chosen_length).sum() / chosen_length.sum()
    return cross_entropy + beta * odds_ratio_loss(chosen_mean, rejected_mean).mean()


def kto_loss(
    ratio: Float[Tensor, " row"],
    desirable: Bool[Tensor, " row"],
    unrelated_ratio: Float[Tensor, " row"],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " row"]:
    """KTO (arXiv 2402.01306, eq. 7, without its constant): weight * (1 - sigmoid(+-beta (r - z0))).

    z0 = max(0, mean of r over ``unrelated_ratio``), the log-ratios of answers to other prompts; no gradient flows
    through it. The sign is - for undesirable answers.
    """
    reference_point = unrelated_ratio.mean().clamp(min=0).detach()
    sign = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(sign * beta * (ratio - reference_point)))


def _log_odds(mean: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    return mean - torch.log(-torch.expm1(mean))
