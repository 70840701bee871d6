"""A name -> class table: a duplicate name raises, an unknown one lists what is known."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Named extension points of one kind (``noun`` is used in error messages)."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._entries: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator: make the class known as ``name``; raises ValueError when the name is taken."""

        def decorate(cls: type) -> type:
            if name in self._entries:
                raise ValueError(f"{self.noun} {name!r} is already registered by {self._entries[name].__qualname__}")
            cls.name = name  # type: ignore[attr-defined]
            self._entries[name] = cls
            return cls

        return decorate

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._entries:
            raise ValueError(f"unknown {self.noun} {name!r}; known: {', '.join(sorted(self._entries))}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
