"""The published place of `ConditionalDifferenceMap` (design.md, "Contracts"), which others import from here."""

from dspa.map.condiff import ConditionalDifferenceMap

__all__ = ["ConditionalDifferenceMap"]
