"""The methods DSPA is compared with: one file a method, each registered under its name."""

from baselines.base import Base
from baselines.dpo import DPO
from baselines.prompt import Prompt
from baselines.static_sae import StaticSAE

__all__ = ["DPO", "Base", "Prompt", "StaticSAE"]
