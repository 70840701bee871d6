"""Bridges to other packages' evaluators: lm-eval, FastChat's MT-Bench and server, AlpacaEval."""

from pathlib import Path

TASK_FOLDERS: list[Path] = []
"""Folders of lm-eval task files that packages bring along, so that their tasks are known by name."""


def register_task_folder(folder: Path) -> None:
    """From now on `dspa-bench lm-eval` and the multiple_choice benchmark find the YAMLs in ``folder``.

    A task of the same name in a folder that the user gives wins. A second time is fine.
    """
    if folder not in TASK_FOLDERS:
        TASK_FOLDERS.append(folder)
