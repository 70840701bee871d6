"""Multiple choice: lm-eval's tasks on an artifact, one record per item; local/ has tasks that read the data folder."""

from pathlib import Path

from harness.evaluators import register_task_folder
from tasks.multiple_choice.benchmark import MultipleChoice

__all__ = ["MultipleChoice"]

register_task_folder(Path(__file__).parent / "local")
