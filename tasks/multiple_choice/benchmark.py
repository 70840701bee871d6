"""Multiple choice: lm-eval's tasks of that type, and the paper's five."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.benchmark import register_benchmark
from tasks.lm_eval import LMEval

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "tasks": ("mmlu", "arc_easy", "truthfulqa_mc2", "hellaswag", "winogrande"),
        "num_fewshot": {"mmlu": 5, "arc_easy": 25, "hellaswag": 10, "winogrande": 5},
        "metric": {"arc_easy": "acc_norm", "hellaswag": "acc_norm"},
    },
    # The files of these tasks say the rest.
    "paper_local": {
        "tasks": ("mmlu_local", "arc_easy_local", "truthfulqa_mc2_local", "hellaswag_local", "winogrande_local")
    },
}
"""arXiv 2603.21461: MMLU 5-shot, ARC-Easy 25 (acc_norm), TruthfulQA mc2 0, HellaSwag 10 (acc_norm), Winogrande 5."""


@register_benchmark("multiple_choice")
class MultipleChoice(LMEval):
    """One metric per task name, in percent: 0 or 100 an item for accuracies, in between for TruthfulQA's mc2.

    The value is the first of ``acc`` and ``acc_norm`` in the task's own list, or ``metric``. All else is as in
    `LMEval`, which takes tasks of other types.
    """

    files: ClassVar[str | None] = "lm_eval"
    output_types: ClassVar[frozenset[str]] = frozenset({"multiple_choice"})
    preferred: ClassVar[tuple[str, ...]] = ("acc", "acc_norm")

    preset: Literal["paper", "paper_local"] | None = Field(
        None, description="the paper's five tasks, examples and metrics; from the hub or the data folder's files"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, settings: Any) -> Any:
        """A preset stands for the settings that it names."""
        if not isinstance(settings, dict) or settings.get("preset") not in PRESETS:
            if isinstance(settings, dict) and not settings.get("tasks") and settings.get("preset") is None:
                raise ValueError(f"missing 'tasks' (lm-eval names); give them, or 'preset': {' or '.join(PRESETS)}")
            return settings
        preset = PRESETS[settings["preset"]]
        if twice := set(preset) & set(settings):
            name, keys = settings["preset"], ", ".join(sorted(twice))
            raise ValueError(f"preset {name!r} sets {keys}; leave them out, or leave out the preset")
        return {**settings, **preset}

    @property
    def _elsewhere(self) -> str:
        return "; benchmark `lm_eval` takes others"
