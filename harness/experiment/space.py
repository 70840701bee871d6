"""How variants are tuned and what may be tried: for each hyper-parameter a list of values or a range."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.method import MethodConfig

Values = dict[str, Any]
"""Hyper-parameter -> value, as the suite file writes it."""


class TuneSection(BaseModel):
    """How the variants that have ``tune`` are tuned; docs/numbers.md says what it guarantees.

    ``floor``: nats per token by which log p(chosen) may fall below the base model's; null: no floor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    trials: int = Field(default=8, ge=2, le=10_000, description="of each variant, its own params included")
    search: Literal["tpe", "random", "grid"] = "tpe"
    validation: float = Field(default=0.25, gt=0, lt=1, description="share of a budget's prompts to score trials on")
    score: Literal["preference_margin", "judge"] = "preference_margin"
    floor: float | None = Field(default=0.5, ge=0, allow_inf_nan=False)
    max_new_tokens: int | None = Field(default=None, ge=1, description="of the answers that the judge rates")

    @model_validator(mode="after")
    def _has_tokens_for_the_judge(self) -> "TuneSection":
        if self.score == "judge" and self.max_new_tokens is None:
            raise ValueError("score: judge needs 'max_new_tokens', the length of the answers to be rated")
        if self.score != "judge" and self.max_new_tokens is not None:
            raise ValueError("'max_new_tokens' is for score: judge; nothing is generated here")
        return self


class Range(BaseModel):
    """``low`` to ``high``, both included; ``log``: as many tries in each power of ten. Whole numbers where the method
    takes only these."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False


@dataclass(frozen=True)
class Choices:
    """A list of values; ``resolved`` are they as the method dumps them."""

    values: tuple[Any, ...]
    resolved: tuple[Any, ...]

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.values)

    def value_of(self, resolved: Any) -> Any:
        """The value that the method dumps as ``resolved``; LookupError where none of them is."""
        return self.values[_index(self.resolved, resolved)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)


@dataclass(frozen=True)
class Span:
    """A range of floats, or of whole numbers."""

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def size(self) -> int | None:
        """How many values there are; None where there is no end of them."""
        return int(self.high) - int(self.low) + 1 if self.whole else None

    def value_of(self, resolved: Any) -> Any:
        """``resolved`` itself where it lies in the range; LookupError elsewhere."""
        if isinstance(resolved, bool) or not isinstance(resolved, int | float):
            raise LookupError
        if not self.low <= resolved <= self.high:
            raise LookupError
        return resolved

    def __iter__(self) -> Iterator[int]:
        return iter(range(int(self.low), int(self.high) + 1))


@dataclass(frozen=True)
class Space:
    """The hyper-parameters of one variant that are tuned, and the variant's ``own`` values, which are always tried."""

    dimensions: Mapping[str, Choices | Span]
    own: Values
    samples: tuple[tuple[str, MethodConfig], ...]
    """Methods with each value of a list and each end of a range, the others at the variant's own: to be checked."""

    @classmethod
    def of(cls, given: Mapping[str, Any], params: Values, build: Callable[[Values, str], MethodConfig]) -> "Space":
        """Read ``given`` (hyper-parameter -> list, or low, high, log).

        ``build(values, key)`` makes the method with some values changed and says what is wrong with ``key``; so does
        this, as ValueError with (key, text).
        """
        method = build({}, "")
        resolved = method.model_dump(mode="json")
        dimensions: dict[str, Choices | Span] = {}
        own, samples = {}, []
        for key, values in given.items():
            if key not in type(method).model_fields:
                raise SpaceError(key, f"unknown key {key!r}; known: {', '.join(type(method).model_fields)}")
            if isinstance(values, list):
                dimensions[key], made = _choices(key, values, build)
            elif isinstance(values, dict):
                dimensions[key], made = _span(key, values, build)
            else:
                raise SpaceError(key, f"give a list of values, or low, high and log (got {values!r})")
            samples += [(key, one) for one in made]
            try:
                own[key] = dimensions[key].value_of(resolved[key])
            except LookupError:
                own[key] = params.get(key, resolved[key])
        return cls(dimensions, own, tuple(samples))

    @cached_property
    def holds_own(self) -> bool:
        """Whether the variant's own values are among those of the space."""
        return all(self.contains(key, value) for key, value in self.own.items())

    def contains(self, key: str, value: Any) -> bool:
        """Whether ``value`` is one that the space has for ``key``."""
        dimension = self.dimensions[key]
        if isinstance(dimension, Choices):
            return same(value) in map(same, dimension.values)
        try:
            return dimension.value_of(value) is not None
        except LookupError:
            return False

    @property
    def points(self) -> int | None:
        """How many combinations there are to try, the variant's own included; None where there is no end of them."""
        sizes = [dimension.size for dimension in self.dimensions.values()]
        whole = [size for size in sizes if size is not None]
        return None if len(whole) < len(sizes) else math.prod(whole) + (not self.holds_own)

    def grid(self) -> Iterator[Values]:
        """All combinations but the variant's own, the last key fastest; not for a space with a range of floats."""
        for values in itertools.product(*self.dimensions.values()):
            point = dict(zip(self.dimensions, values, strict=True))
            if same(point) != same(self.own):
                yield point

    def fits(self, trials: int, online: frozenset[str]) -> int:
        """An upper bound for the fits that ``trials`` take where those that differ in ``online`` alone share one."""
        offline = {key: dimension for key, dimension in self.dimensions.items() if key not in online}
        sizes = [dimension.size for dimension in offline.values()]
        whole = [size for size in sizes if size is not None]
        if len(whole) < len(sizes):
            return trials
        return min(trials, math.prod(whole) + (not all(self.contains(key, self.own[key]) for key in offline)))


class SpaceError(ValueError):
    """What is wrong with one key of a variant's ``tune``."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key, self.text = key, text


def same(value: Any) -> Any:
    """A key that is equal for equal values and tells 1 from true."""
    if isinstance(value, dict):
        return tuple(sorted((key, same(one)) for key, one in value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(same, value))
    return isinstance(value, bool), value


def _index(values: tuple[Any, ...], wanted: Any) -> int:
    for index, value in enumerate(values):
        if same(value) == same(wanted):
            return index
    raise LookupError(wanted)


def _choices(key: str, values: list[Any], build: Callable[[Values, str], MethodConfig]) -> tuple[Choices, list]:
    methods = [build({key: value}, key) for value in values]
    resolved = [method.model_dump(mode="json")[key] for method in methods]
    if len(values) < 2 or len({repr(same(one)) for one in resolved}) < len(values):
        raise SpaceError(key, "give a list of at least two different values")
    return Choices(tuple(values), tuple(resolved)), methods


def _span(key: str, values: Values, build: Callable[[Values, str], MethodConfig]) -> tuple[Span, list]:
    try:
        found = Range.model_validate(values)
    except ValidationError as problem:
        texts = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in problem.errors(include_url=False)]
        raise SpaceError(key, f"a range has low, high and perhaps log; {'; '.join(texts)}") from None
    if found.low >= found.high:
        raise SpaceError(key, f"low must be less than high, got {found.low:g} and {found.high:g}")
    if found.log and found.low <= 0:
        raise SpaceError(key, f"a range by powers of ten begins above 0, got low: {found.low:g}")
    # A fraction between the ends says whether the method takes any number or whole ones alone.
    between = found.low + (found.high - found.low) * 0.381966
    between = between + 0.25 if between == int(between) else between
    ends = [build({key: end}, key) for end in (_plain(found.low), _plain(found.high))]
    try:
        build({key: between}, key)
        whole = False
    except ValueError:
        whole = True
    if whole and not (found.low.is_integer() and found.high.is_integer()):
        raise SpaceError(key, f"{key} takes whole numbers, got {found.low:g} and {found.high:g}")
    return Span(found.low, found.high, found.log, whole), ends


def _plain(number: float) -> int | float:
    return int(number) if number.is_integer() else number
