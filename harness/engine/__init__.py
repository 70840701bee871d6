"""Engines: what generates a suite's answers in the place of transformers, in its own process or behind an address."""
