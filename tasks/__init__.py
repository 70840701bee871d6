"""What models are evaluated on: one benchmark a module, and the sandbox that needs no download."""

from tasks.alpaca_eval import AlpacaEval
from tasks.mt_bench import MTBench
from tasks.multiple_choice import MultipleChoice
from tasks.preference import Preference
from tasks.safety import Safety
from tasks.sandbox.oracle import SandboxOracle

__all__ = ["AlpacaEval", "MTBench", "MultipleChoice", "Preference", "Safety", "SandboxOracle"]
