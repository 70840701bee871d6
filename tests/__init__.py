"""How annotations are checked while tests run (``--jaxtyping-packages`` in pyproject.toml)."""

from collections.abc import Callable
from typing import Any, Self, get_args

from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import AbstractArray
from pydantic import ValidationInfo

WHOLLY = ("dspa", "baselines")
"""Packages in which every annotation is checked; elsewhere those of functions that have a shape in one. Benchmarks,
judges and commands meet stand-ins and data from files there, which the program's own errors are to refuse."""

# jaxtyping decorates methods one by one, where Self has no class yet; ValidationInfo is no run-time protocol.
_checked = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: Any, ValidationInfo: Any})))


def checked(function: Callable) -> Callable:
    """``function`` with its annotations checked at every call."""
    # "check_single_arg" is jaxtyping's own, by which it finds the argument to name in its error.
    wholly = function.__module__.partition(".")[0] in (*WHOLLY, "check_single_arg")
    return _checked(function) if wholly or any(map(_has_shape, function.__annotations__.values())) else function


def _has_shape(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_shape, get_args(hint)))
