"""Length-controlled win rates: the package's own figures on local inputs, and the published ones."""

import json
import math
import random
import warnings
from unittest.mock import patch

import pandas as pd
import pytest
import sklearn

from harness.evaluators.alpaca_eval.evaluate import length_controlled_figures
from harness.evaluators.alpaca_eval.length_control import GAMED, GAMED_SUMS, LengthControl, UnavailableError
from harness.measure.rescoring import annotation_scores
from harness.quiet import silenced

N = 60


@pytest.fixture
def folder(tmp_path):
    """Difficulties of 60 instructions, and verdicts on two models with gamed lengths."""
    draw = random.Random(3)
    place = tmp_path / "alpaca_eval"
    (place / "model_outputs").mkdir(parents=True)
    rows = [{"instruction": f"Do {i}", "output": "o"} for i in range(N)]
    (place / "model_outputs" / "gpt4_1106_preview.json").write_text(json.dumps(rows), encoding="utf-8")
    difficulty = [draw.gauss(0, 1) for _ in range(N)]
    pd.Series(difficulty, name="difficulty").to_csv(place / "instruction_difficulty.csv")
    gamed = [
        {
            "index": i,
            "model": model,
            "instruction_difficulty": difficulty[i],
            "preference": draw.random() ** 2,
            "std_delta_len": shift + draw.gauss(0, 0.5),
            "not_gamed_baseline": False,
        }
        for model, shift in (("verbose", -1), ("concise", 1))
        for i in range(N)
    ]
    pd.DataFrame(gamed).to_csv(tmp_path / GAMED, index=False)
    return tmp_path


@pytest.fixture
def annotations():
    draw = random.Random(5)
    rows = [
        {
            "instruction": f"Do {i}",
            "output_1": "r" * draw.randint(5, 80),
            "output_2": "m" * draw.randint(5, 80),
            "generator_1": "base",
            "generator_2": "mine",
            "annotator": "a",
            "preference": 1 + draw.random() ** 3,
        }
        for i in range(N)
    ]
    return pd.DataFrame(rows)


def of_the_package(annotations, path, form):
    """The package on its own terms: rows in the order of the instructions, its file on disk."""
    from alpaca_eval.metrics import glm_winrate

    table = annotations.copy()
    with (
        silenced(),
        warnings.catch_warnings(action="ignore"),
        sklearn.config_context(),
        patch.object(glm_winrate, "hf_hub_download", lambda **_: path),
    ):
        figures = glm_winrate.get_length_controlled_winrate(table, glm_name=form, save_weights_dir=None)
    return figures["length_controlled_winrate"], list(table["glm_preference"])


@pytest.mark.parametrize("form", ["v1", "noreg"])
def test_predictions_are_the_packages(folder, annotations, form):
    expected, predictions = of_the_package(annotations, folder / GAMED, f"length_controlled_{form}")
    found = LengthControl.load(folder, form).predict(annotations)
    assert found == pytest.approx(predictions, abs=1e-9)
    assert 100 * sum(found) / N == pytest.approx(expected, abs=1e-9)
    assert not sklearn.get_config()["enable_metadata_routing"]


def test_the_published_form_is_taken_where_its_inputs_are(folder):
    assert LengthControl.load(folder).form == "v1"
    (folder / GAMED).unlink()
    with pytest.raises(UnavailableError, match=r"df_gamed\.csv is missing; get it with"):
        LengthControl.load(folder, "v1")
    with pytest.raises(UnavailableError, match="not those of AlpacaEval's 805 instructions"):
        LengthControl.load(folder)
    assert LengthControl.load(folder, "noreg").suffix == "_noreg"


def test_rows_are_known_by_their_instruction_not_by_their_place(folder, annotations):
    control = LengthControl.load(folder)
    some = annotations.iloc[10:]
    expected = control.predict(some)
    shuffled = some.sample(frac=1, random_state=1)
    found = dict(zip(shuffled["instruction"], control.predict(shuffled), strict=True))
    # Folds of the cross-validation go by place, so the strength of the penalty may differ a little.
    assert [found[text] for text in some["instruction"]] == pytest.approx(expected, abs=0.02)


def test_a_longer_answer_of_the_same_worth_gains_nothing(folder, annotations):
    """Where verdicts follow length alone, the win rate is high and the length-controlled one near even."""
    lengths = annotations["output_2"].str.len() * 0 + 80
    table = annotations.assign(output_2="m" * 80)
    gap = (table["output_1"].str.len() - lengths) / 40
    table["preference"] = [1 + 1 / (1 + math.exp(2 * math.tanh(value))) for value in gap]
    assert table["preference"].mean() - 1 > 0.68
    found = LengthControl.load(folder, "noreg").predict(table)
    assert sum(found) / N < 0.6


def test_why_there_is_none(folder, annotations):
    control = LengthControl.load(folder)
    with pytest.raises(UnavailableError, match=r"1 of 60 instructions are not AlpacaEval's own.*'Be new'"):
        control.predict(annotations.replace({"instruction": {"Do 7": "Be new"}}))
    with pytest.raises(UnavailableError, match="at least 5 verdicts are needed, there are 4"):
        control.predict(annotations.assign(preference=[1.5] * 4 + [math.nan] * 56))
    with pytest.raises(UnavailableError, match="by the same length"):
        control.predict(annotations.assign(output_1="aa", output_2="b"))
    with pytest.raises(UnavailableError, match="60 verdicts are too few or too even: the regression"):
        LengthControl.load(folder, "noreg").predict(annotations.assign(preference=1.5))
    itself = annotations.assign(generator_1="mine", output_2=annotations["output_1"])
    assert control.predict(itself) == [0.5] * N
    with pytest.raises(UnavailableError, match="instruction difficulties are missing"):
        LengthControl.load(folder / "elsewhere")


def test_damaged_inputs_are_named(folder):
    (folder / GAMED).write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"df_gamed\.csv: not AlpacaEval's df_gamed\.csv: missing index"):
        LengthControl.load(folder)
    (folder / GAMED).unlink()
    (folder / "alpaca_eval/instruction_difficulty.csv").write_text(",d\n0,1.0\n", encoding="utf-8")
    with pytest.raises(ValueError, match="60 instructions, but 1 difficulties"):
        LengthControl.load(folder)
    (folder / "alpaca_eval/instruction_difficulty_recovered.json").write_text('[{"index": 1}]', encoding="utf-8")
    with pytest.raises(ValueError, match=r"recovered\.json: not a list of instruction difficulties"):
        LengthControl.load(folder)


LEADERBOARD = "alpaca_eval/leaderboards/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv"


def published_predictions(data, model, difficulty):
    """The package's own weights of ``model`` on these difficulties: what the leaderboard's figure was made of."""
    from scipy.special import expit

    weights = pd.read_csv(data / "alpaca_eval/lc_weights_baseline_gpt4_1106_preview.csv", index_col=0)
    constant, slope = weights.loc[model, ["not_gamed_baseline.astype(float)", "instruction_difficulty"]]
    return [float(expit(constant + slope * value)) for value in difficulty]


@pytest.mark.parametrize("model", ["alpaca-7b", "gemma-2b-it"])
def test_published_annotations_give_the_published_figures(data_folder, model):
    path = data_folder / "alpaca_eval" / "annotations_v2" / f"{model}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    scores, notes = annotation_scores(rows, data_folder)
    found = {score.metric: score.value for score in scores}
    row = pd.read_csv(data_folder / LEADERBOARD, index_col=0).loc[model]
    assert found["win_rate"] == pytest.approx(row["win_rate"], abs=1e-9)
    assert found["standard_error"] == pytest.approx(row["standard_error"], abs=1e-9)
    assert found["discrete_win_rate"] == pytest.approx(row["discrete_win_rate"], abs=1e-9)
    assert found["avg_length"] == row["avg_length"]
    control = LengthControl.load(data_folder)
    predictions = published_predictions(data_folder, model, [control.difficulty[r["instruction"]] for r in rows])
    figure = length_controlled_figures(predictions)["length_controlled_winrate"]
    assert figure == pytest.approx(row["length_controlled_winrate"], abs=1e-3)
    # Fitted anew, with rebuilt verdicts: near, and never passed off as the same.
    assert "lc_win_rate" not in found
    assert found["lc_win_rate_rebuilt"] == pytest.approx(row["length_controlled_winrate"], abs=0.1)
    assert notes == [f"{model}: {control.statement}"] and "rebuilt from published weights" in notes[0]


def test_the_gamed_sums_are_where_the_published_weights_have_no_gradient(data_folder):
    """At a model's weights its own verdicts and, at 0.1, the gamed ones balance the penalty, of which the constant says
    how strong it is."""
    import numpy as np
    from scipy.special import expit

    control = LengthControl.load(data_folder, "rebuilt")
    length = np.tanh(control.gamed["std_delta_len"])
    gamed = np.stack([length, control.gamed["instruction_difficulty"]], axis=1)
    weights = pd.read_csv(data_folder / "alpaca_eval/lc_weights_baseline_gpt4_1106_preview.csv", index_col=0)
    sums = []
    for model in ("alpaca-7b", "gemma-2b-it"):
        table = pd.read_json(data_folder / f"alpaca_eval/annotations_v2/{model}.json")
        gap = table["output_1"].str.len() - table["output_2"].str.len()
        difficulty = [control.difficulty[text] for text in table["instruction"]]
        own = np.stack([np.tanh(gap / gap.std()), difficulty, np.ones(len(gap))], axis=1)
        found = weights.loc[model].to_numpy()
        gradient = own.T @ (table["preference"].replace({0.0: 1.5}) - 1 - expit(own @ found))
        penalty = np.sign(found) * abs(gradient[2])
        sums.append(gamed.T @ expit(gamed @ found[:2]) + 10 * (penalty - gradient)[:2])
    assert np.mean(sums, axis=0) == pytest.approx(GAMED_SUMS, abs=0.01)
    assert gamed.T @ control.gamed["preference"] == pytest.approx(GAMED_SUMS, abs=1e-6)


def test_the_published_weights_of_all_models_give_their_published_figures(data_folder):
    weights = pd.read_csv(data_folder / "alpaca_eval/lc_weights_baseline_gpt4_1106_preview.csv", index_col=0)
    figures = pd.read_csv(data_folder / LEADERBOARD, index_col=0)["length_controlled_winrate"]
    difficulty = LengthControl.load(data_folder).difficulty.values()
    off = {}
    for model in weights.index.intersection(figures.index):
        predictions = published_predictions(data_folder, model, difficulty)
        off[model] = abs(100 * sum(predictions) / len(predictions) - figures[model])
    assert len(off) == 199
    assert sorted(name for name, error in off.items() if error > 1e-2) == [
        "NullModel",
        "dbrx-instruct",
        "llama-2-70b-chat-hf",
        "platolm-7b",
    ]
