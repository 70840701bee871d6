"""AlpacaEval's length-controlled win rate by the package's own regression, on inputs of the data folder.

The package models the preference for an answer as logistic in tanh(standardised length difference), the difficulty of
the instruction and a constant, and predicts it with the length term set to zero; the mean of these predictions is the
length-controlled win rate (Y. Dubois et al., "Length-Controlled AlpacaEval", 2024). So every instruction has a
predicted preference, and the win rate is a mean like any other. Its difficulties, and the verdicts on two models with
gamed lengths that regularise the published form, are on the hub; here they are files (`dspa-bench data list`).

Without that file of verdicts the regularisation is rebuilt. A logistic regression depends on verdicts y in [0, 1] with
features x by sum(y x) alone, the rest of its likelihood being of x; and x is known, as the lengths of those answers are
(gamed_lengths.json) and the difficulties. The two sums follow from any model with published annotations and weights:
the gradient is zero there. So the rebuilt verdicts are the likeliest ones with these sums.
"""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from unittest.mock import patch

from harness.files import load_json, read_text
from harness.quiet import silenced

if TYPE_CHECKING:
    import pandas as pd

Form = Literal["v1", "rebuilt", "noreg"]
"""Of the regression: as published; with rebuilt instead of the true gamed verdicts; with none."""
LEAST = 5
"""Verdicts that the regression needs: it is cross-validated in five parts."""
GAMED = "alpaca_eval/df_gamed.csv"
DIFFICULTIES = "alpaca_eval/instruction_difficulty.csv"
RECOVERED = "alpaca_eval/instruction_difficulty_recovered.json"
ORDER = ("alpaca_eval/model_outputs/gpt4_1106_preview.json", "alpaca_eval/model_outputs/text_davinci_003.json")
"""Outputs in the order of AlpacaEval's instructions, which the hub's files count by."""

GAMED_LENGTHS = Path(__file__).with_name("gamed_lengths.json")
"""By how many characters the reference v2 is longer than gpt4_1106_preview when asked to be concise or verbose.

Counted in the outputs of AlpacaEval's repository (results/gpt4_1106_preview_*/model_outputs.json, commit cd543a1).
"""
GAMED_SUMS = (-182.733, 412.951)
"""sum(y tanh(length)) and sum(y difficulty) of the gamed verdicts.

The means of what published weights and annotations of alpaca-7b and gemma-2b-it give, which differ by 0.02 and 0.36; of
50 published models the deviation is 0.07 and 0.16.
"""
_ADVICE = "get it with `dspa-bench data fetch alpaca_eval`"


class UnavailableError(ValueError):
    """Why there is no length-controlled win rate, and what would mend it."""


@dataclass(frozen=True)
class LengthControl:
    """Local inputs of the regression: ``difficulty`` by instruction, and the gamed verdicts, true or rebuilt."""

    form: Form
    difficulty: Mapping[str, float]
    index: Mapping[str, int]
    gamed: "pd.DataFrame | None"

    @classmethod
    def load(cls, folder: Path, form: Form | None = None) -> "LengthControl":
        """Inputs from the data folder: of ``form``, or of the published form if they are there, else of the rebuilt.

        Raises UnavailableError naming what is missing, ValueError for a damaged file.
        """
        gamed = _gamed(folder / GAMED) if (folder / GAMED).is_file() else None
        if form == "v1" and gamed is None:
            raise UnavailableError(f"{folder / GAMED} is missing; {_ADVICE}")
        index, difficulty = _difficulties(folder, gamed)
        if form is None:
            form = "rebuilt" if gamed is None else "v1"
        if form == "rebuilt":
            gamed = _rebuilt({place: difficulty[text] for text, place in index.items()})
        return cls(form, difficulty, index, None if form == "noreg" else gamed)

    @property
    def suffix(self) -> str:
        """What tells a win rate of this form from the published form's, at the end of a metric's name."""
        return "" if self.form == "v1" else f"_{self.form}"

    @property
    def statement(self) -> str:
        """What kind of length-controlled win rate this is, in a sentence."""
        if self.form == "v1":
            return "Length-controlled win rates are AlpacaEval's own regression in its published form."
        if self.form == "rebuilt":
            return (
                "Length-controlled win rates are AlpacaEval's own regression with its regularisation rebuilt from "
                f"published weights, because {GAMED} is not in the data folder (`dspa-bench data fetch alpaca_eval`): "
                "on published models that were not used they differ from the published figures by 0.002 points in the "
                "median, by at most 0.2 against the reference v2, and by more than 0.5 for 2 of 51 against v1."
            )
        return (
            "Length-controlled win rates are AlpacaEval's own regression without its regularisation: they differ from "
            "the published figures by a median of 1.1 points against the reference v2 and of 3.1 against v1, at most "
            "by 13.7 and 17.8, and are mostly lower."
        )

    def covers(self, instructions: list[str]) -> None:
        """Raise UnavailableError unless the difficulty of every instruction is known."""
        unknown = [text for text in instructions if text not in self.difficulty]
        if unknown:
            raise UnavailableError(
                f"{len(unknown)} of {len(instructions)} instructions are not AlpacaEval's own, so their difficulty is "
                f"not known; first: {unknown[0][:60]!r}"
            )

    def predict(self, annotations: "pd.DataFrame") -> list[float]:
        """Preference for the model of every row (0..1) at equal lengths, in order.

        ``annotations`` are those of one model in AlpacaEval's format; the regression is fitted on the rows that have a
        preference. Raises UnavailableError when it cannot be fitted.
        """
        self.covers(list(annotations["instruction"]))
        if annotations["generator_1"].iloc[0] == annotations["generator_2"].iloc[0]:
            return [0.5] * len(annotations)  # by definition, as in the package
        pairs = zip(annotations["output_1"], annotations["output_2"], strict=True)
        judged = len(annotations["preference"].dropna())
        if judged < LEAST:
            raise UnavailableError(f"at least {LEAST} verdicts are needed, there are {judged}")
        if len({len(reference) - len(output) for reference, output in pairs}) == 1:
            raise UnavailableError("all answers differ from their references by the same length")
        table = annotations.copy()
        table.index = [self.index[text] for text in annotations["instruction"]]  # what the package knows them by
        self._fit(table)
        found = [float(value) for value in table["glm_preference"]]
        if set(found) == {0.5}:
            raise UnavailableError(f"{judged} verdicts are too few or too even: the regression keeps none of its terms")
        return found

    def _fit(self, table: "pd.DataFrame") -> None:
        """Let the package add glm_preference; the file that it would download (df_gamed.csv) is made here."""
        import pandas as pd
        import sklearn
        from alpaca_eval.metrics import glm_winrate

        inputs = self.gamed
        if inputs is None:  # then only the difficulties mean anything
            texts = sorted(self.index, key=self.index.__getitem__)
            rows = {"index": range(len(texts)), "instruction_difficulty": [self.difficulty[text] for text in texts]}
            inputs = pd.DataFrame({**rows, "model": "none"})
        text = inputs.to_csv(index=False)
        name = "length_controlled_noreg" if self.form == "noreg" else "length_controlled_v1"
        # The package turns metadata routing on for the whole process and uses names that sklearn is about to retire.
        with (
            silenced(),
            warnings.catch_warnings(action="ignore", category=FutureWarning),
            sklearn.config_context(),
            patch.object(glm_winrate, "hf_hub_download", lambda **_: io.StringIO(text)),
        ):
            glm_winrate.get_length_controlled_winrate(
                table, glm_name=name, save_weights_dir=None, is_warn_extreme_changes=False
            )


def _gamed(path: Path) -> "pd.DataFrame":
    import pandas as pd

    table = pd.read_csv(io.StringIO(read_text(path, "gamed verdicts")))
    columns = {"index", "model", "instruction_difficulty", "preference", "std_delta_len", "not_gamed_baseline"}
    if missing := sorted(columns - set(table.columns)):
        raise ValueError(f"{path}: not AlpacaEval's df_gamed.csv: missing {', '.join(missing)}")
    return table


def _rebuilt(difficulty: Mapping[int, float]) -> "pd.DataFrame":
    """A table like df_gamed.csv with the same weight in the regression; ``difficulty`` is by place."""
    import numpy as np
    import pandas as pd
    from scipy.optimize import root
    from scipy.special import expit

    gaps = load_json(GAMED_LENGTHS, "gamed lengths")
    if sorted(difficulty) != list(range(len(gaps["concise"]))):
        raise UnavailableError(f"the difficulties are not those of AlpacaEval's {len(gaps['concise'])} instructions")
    values = [difficulty[place] for place in range(len(difficulty))]
    rows = [
        pd.DataFrame(
            {
                "index": range(len(values)),
                "model": model,
                "std_delta_len": np.array(gap) / np.std(gap, ddof=1),
                "instruction_difficulty": values,
                "not_gamed_baseline": False,
            }
        )
        for model, gap in gaps.items()
    ]
    table = pd.concat(rows, ignore_index=True)
    features = np.stack([np.tanh(table["std_delta_len"]), table["instruction_difficulty"]], axis=1)  # [row, feature]
    found = root(lambda weights: features.T @ expit(features @ weights) - GAMED_SUMS, x0=[-2.0, 1.0])
    if not found.success:
        raise ValueError(f"no gamed verdicts fit these instruction difficulties: {found.message}")
    table["preference"] = expit(features @ found.x)
    return table


def _difficulties(folder: Path, gamed: "pd.DataFrame | None") -> tuple[dict[str, int], dict[str, float]]:
    """(place, difficulty) of every instruction; those of ``gamed`` where given, as the package takes them."""
    import pandas as pd

    if gamed is None and (folder / RECOVERED).is_file():
        rows = load_json(folder / RECOVERED, "instruction difficulty")
        try:
            index = {row["instruction"]: int(row["index"]) for row in rows}
            return index, {row["instruction"]: float(row["instruction_difficulty"]) for row in rows}
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"{folder / RECOVERED}: not a list of instruction difficulties: {problem!r}") from None
    if gamed is None and not (folder / DIFFICULTIES).is_file():
        raise UnavailableError(
            f"instruction difficulties are missing in {folder / 'alpaca_eval'}; "
            "get them with `dspa-bench data fetch alpaca_eval`"
        )
    order = next((folder / path for path in ORDER if (folder / path).is_file()), None)
    if order is None:
        raise UnavailableError(f"{folder / ORDER[0]} is missing; get it with `dspa-bench data fetch alpaca_eval`")
    index = {row["instruction"]: place for place, row in enumerate(load_json(order, "AlpacaEval"))}
    if gamed is not None:
        found = gamed.drop_duplicates("index").set_index("index")["instruction_difficulty"]
    else:
        text = read_text(folder / DIFFICULTIES, "instruction difficulties")
        found = pd.read_csv(io.StringIO(text), index_col=0).iloc[:, 0]
    by_place = {int(place): float(value) for place, value in zip(found.index, found, strict=True)}
    difficulty = {text: by_place[place] for text, place in index.items() if place in by_place}
    if len(difficulty) < len(index):
        raise ValueError(f"{folder / 'alpaca_eval'}: {len(index)} instructions, but {len(difficulty)} difficulties")
    return index, difficulty
