"""What tests compare with: brute force by the definitions, and the losses of the papers."""

from tests.reference.brute_force import ReferenceDSPA, dense_map, hooked

__all__ = ["ReferenceDSPA", "dense_map", "hooked"]
