"""Figures from verdicts."""
