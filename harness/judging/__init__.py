"""Judges: one protocol, several kinds; verdicts with an error keep their reason and never become a score."""

from harness.judging.judge import JUDGES, Answer, Comparison, Judge, JudgeConfig, Rating, Verb, Verdict, register_judge

__all__ = ["JUDGES", "Answer", "Comparison", "Judge", "JudgeConfig", "Rating", "Verb", "Verdict", "register_judge"]
