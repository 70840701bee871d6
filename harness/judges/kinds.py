"""The harness's own judges; importing this registers them. Not done by the package, because some need torch."""

from harness.judges.local import LocalJudge
from harness.judges.openai import OpenAIJudge
from harness.judges.reward import RewardJudge

__all__ = ["LocalJudge", "OpenAIJudge", "RewardJudge"]
