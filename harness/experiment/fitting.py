"""A metered fit: what a cell, a trial of its tuning and ``dspa-bench fit`` do with a method."""

from transformers import set_seed

from harness.compute import Meter
from harness.compute.ranks import ALONE, Ranks
from harness.compute.sitting import Sitting
from harness.compute.trace import Trace
from harness.data.triples import Budget
from harness.method import MethodConfig
from harness.model.aligned import AlignedModel
from harness.model.pretrained import not_finite_in


def fit(
    method: MethodConfig,
    base: AlignedModel,
    budget: Budget | None,
    seed: int,
    *,
    flops_limit: int | None = None,
    predicted: dict[str, int] | None = None,
    sample_profile: bool = True,
    trace: Trace | None = None,
    sitting: Sitting | None = None,
    ranks: Ranks = ALONE,
) -> AlignedModel:
    """Align ``base`` by ``method`` on ``budget`` (None for a method without triples), under a meter with the limit.

    The result carries the bill (with what was ``predicted`` beside it) and the identity of its triples. Without
    ``sample_profile`` the bill has no operators; the steps that are sampled also go to ``trace``. With a ``sitting`` a
    training has a curve and checkpoints, and goes on where it was killed; ValueError when they are another fit's.
    ValueError also where what was fitted holds a NaN or an infinite number. ``ranks`` are the processes that share this
    fit (see `harness.experiment.processes`): each calls this, and gets the same.
    """
    # For code that draws from the global generators: what was done before in this process leaves no trace.
    set_seed(seed)
    triples = () if budget is None else budget.triples
    if sitting is not None:
        whose = {"method": method.name, "params": method.model_dump(mode="json", context={"contents": True})}
        data = None if budget is None else budget.hash
        sitting.check({**whose, "base": base.fingerprint, "triples": data, "seed": seed, "flops": flops_limit})
    how = {"sample_profile": sample_profile, "trace": trace, "sitting": sitting, "ranks": ranks}
    meter = Meter(base.model, flops_limit=flops_limit, **how)
    with meter.running():
        aligned = method.fit(base, triples, meter=meter, seed=seed)
    kept = {} if aligned.intervention is None else aligned.intervention.tensors()
    if (wrong := not_finite_in({**aligned.delta_tensors(), **kept})) is not None:
        raise ValueError(
            f"the fit of {method.name} ended with NaN or infinite numbers in {wrong}; lower its learning rate, or what "
            "scales its steering"
        )
    if method.single_pass:
        meter.epochs = 1.0
    bill = meter.bill(method=method.name, n_triples=len(triples), predicted=predicted).model_dump(mode="json")
    provenance = None if budget is None else {"n": len(triples), "seed": budget.seed, "hash": budget.hash}
    return aligned.derive(budget=provenance, bill=bill, encoded=None)
