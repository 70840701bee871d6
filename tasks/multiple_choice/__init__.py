"""Multiple choice: lm-eval's tasks on an artifact, one record per item."""

from tasks.multiple_choice.benchmark import MultipleChoice

__all__ = ["MultipleChoice"]
