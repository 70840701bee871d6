"""What a trial tries: a function of the trials before it and a seed, so that a search can go on in another process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.experiment.space import Choices, Space, Span, Values, same

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

Search = Literal["tpe", "random", "grid"]
ATTEMPTS = 20
"""How often a sampler may propose what was tried before; then the first combination that was not comes next."""


@dataclass(frozen=True)
class Told:
    """A trial that is over. ``score``: None where there is none; ``excess``: nats below the floor, > 0: failed."""

    params: Values
    score: float | None
    excess: float = -1.0


def suggest(space: Space, search: Search, told: Sequence[Told], trials: int, seed: Callable[[int], int]) -> Values:
    """The values of the next of ``trials`` trials; ``seed(attempt)`` seeds its sampler.

    The variant's own come first. A grid follows in the order it is written in. ``random`` and ``tpe`` are Optuna's
    samplers (the latter with random proposals in the first half); neither tries a combination twice.
    """
    if not told:
        return space.own
    tried = {repr(same(one.params)) for one in told}
    if search != "grid":
        for attempt in range(ATTEMPTS):
            found = _ask(space, search, told, trials, seed(attempt))
            if repr(same(found)) not in tried:
                return found
    return next(point for point in space.grid() if repr(same(point)) not in tried)


def _ask(space: Space, search: Search, told: Sequence[Told], trials: int, seed: int) -> Values:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # not a line for every study
    distributions = {key: _distribution(dimension) for key, dimension in space.dimensions.items()}
    sampler: BaseSampler = optuna.samplers.RandomSampler(seed=seed)
    if search == "tpe":
        startup = min(10, max(2, trials // 2))
        # Not multivariate: own values that lie outside the space leave a trial without that key.
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=False)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials([_frozen(space, one, distributions) for one in told])
    asked = study.ask(distributions).params
    return {key: _value(dimension, asked[key]) for key, dimension in space.dimensions.items()}


def _distribution(dimension: Choices | Span) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choices):
        return CategoricalDistribution(range(dimension.size))
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _frozen(space: Space, told: Told, distributions: dict[str, "BaseDistribution"]) -> "FrozenTrial":
    """A trial as Optuna keeps it; one without a score counts as worse than all that have one."""
    from optuna.trial import TrialState, create_trial

    params = {key: _code(space.dimensions[key], v) for key, v in told.params.items() if space.contains(key, v)}
    return create_trial(
        params=params,
        distributions={key: distributions[key] for key in params},
        value=told.score,
        state=TrialState.PRUNED if told.score is None else TrialState.COMPLETE,
        constraints={"floor": told.excess},
    )


def _code(dimension: Choices | Span, value: Any) -> Any:
    """Choices are told apart by their place, which tells 1 from true and takes any value."""
    return list(map(same, dimension.values)).index(same(value)) if isinstance(dimension, Choices) else value


def _value(dimension: Choices | Span, code: Any) -> Any:
    return dimension.values[code] if isinstance(dimension, Choices) else code
