"""The methods DSPA is compared with: one file a method, each registered under its name."""

from baselines.base import Base
from baselines.caa import CAA
from baselines.dpo import DPO
from baselines.fpo import FPO
from baselines.given import Adapter, Checkpoint
from baselines.kto import KTO
from baselines.orpo import ORPO
from baselines.prompt import Prompt
from baselines.rahf.methods import RAHFSCIT, RAHFDual
from baselines.repe import RepE
from baselines.sails import SAILS
from baselines.sft import SFT
from baselines.simpo import SimPO
from baselines.static_sae import StaticSAE

__all__ = [
    "CAA",
    "DPO",
    "FPO",
    "KTO",
    "ORPO",
    "RAHFSCIT",
    "SAILS",
    "SFT",
    "Adapter",
    "Base",
    "Checkpoint",
    "Prompt",
    "RAHFDual",
    "RepE",
    "SimPO",
    "StaticSAE",
]
