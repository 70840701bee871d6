"""Agreement of two judges: against scipy and scikit-learn, by hand, and on FastChat's and AlpacaEval's files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from harness.cli.app import app
from harness.measure.agreement import STATISTICS, Pair, agreement, cohen_kappa, kendall, pearson
from harness.measure.rescoring import match
from harness.measure.statistics import estimate_statistic


def rating_pairs(n: int = 120, *, noise: float = 1.0) -> list[Pair]:
    """Two turns of 20 questions answered by three models of different strength under one seed."""
    rng = np.random.default_rng(3)
    pairs = []
    for index in range(n):
        quality = rng.uniform(1, 10)
        first, second = (float(np.clip(np.round(quality + rng.normal(0, noise)), 1, 10)) for _ in range(2))
        pairs.append(Pair(f"m{index % 3}", 0, index // 6, first, second))
    return pairs


def figures(pairs, kind):
    return {figure.statistic: figure for figure in agreement(pairs, kind)}


def test_rating_figures_are_those_of_scipy_and_scikit_learn():
    pairs = rating_pairs()
    a, b = np.array([p.first for p in pairs]), np.array([p.second for p in pairs])
    found = figures(pairs, "rating")
    assert found["pearson"].value == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)
    assert found["spearman"].value == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert found["mean_abs_difference"].value == pytest.approx(np.abs(a - b).mean(), abs=1e-12)
    assert found["mean_difference"].value == pytest.approx((b - a).mean(), abs=1e-12)
    assert found["same_side"].value == pytest.approx(100 * ((a > 5.5) == (b > 5.5)).mean(), abs=1e-12)
    assert found["kappa_side"].value == pytest.approx(cohen_kappa_score(a > 5.5, b > 5.5), abs=1e-12)
    means = [[np.mean([getattr(p, side) for p in pairs if p.model == m]) for m in ("m0", "m1", "m2")]
             for side in ("first", "second")]  # fmt: skip
    assert found["kendall"].value == pytest.approx(stats.kendalltau(*means).statistic, abs=1e-12)
    assert (found["pearson"].n, found["kendall"].n) == (120, 3)
    for figure in found.values():
        assert figure.low <= figure.value <= figure.high, figure.statistic
    assert found.keys() <= STATISTICS.keys()


def test_verdict_figures_treat_ties_explicitly():
    values = [(100, 100), (100, 100), (0, 0), (50, 100), (0, 50), (50, 50), (100, 0), (75, 100), (25, 0)]
    pairs = [Pair("m", 0, index, *map(float, pair)) for index, pair in enumerate(values)]
    found = figures(pairs, "verdict")
    verdicts = np.sign(np.array(values) - 50)
    assert found["equal"].value == pytest.approx(100 * 6 / 9)
    assert found["kappa"].value == pytest.approx(cohen_kappa_score(*verdicts.T))
    decided = verdicts[(verdicts != 0).all(axis=1)]
    assert (found["equal_decided"].value, found["equal_decided"].n) == (pytest.approx(100 * 5 / 6), 6)
    assert found["kappa_decided"].value == pytest.approx(cohen_kappa_score(*decided.T))
    assert found["ties_first"].value == found["ties_second"].value == pytest.approx(100 * 2 / 9)
    assert "kendall" not in found, "one model has no order"


def test_weights_count_as_repetitions():
    rng = np.random.default_rng(1)
    a, b, w = rng.normal(size=30), rng.normal(size=30), rng.integers(0, 4, 30)
    assert pearson(a, b, w.astype(float)) == pytest.approx(stats.pearsonr(a.repeat(w), b.repeat(w)).statistic)
    x, y = rng.integers(0, 3, 30), rng.integers(0, 3, 30)
    assert cohen_kappa(x, y, w.astype(float)) == pytest.approx(cohen_kappa_score(x.repeat(w), y.repeat(w)))
    tied = np.round(a), np.round(b)
    assert kendall(*tied) == pytest.approx(stats.kendalltau(*tied).statistic)


def test_spearman_in_a_replicate_is_that_of_the_drawn_pairs():
    from harness.measure.agreement import _midranks

    rng = np.random.default_rng(2)
    a, b, w = rng.integers(0, 6, 40), rng.integers(0, 6, 40), rng.integers(0, 3, 40)
    ranks = (_midranks(np.unique(x, return_inverse=True)[1], w.astype(float)) for x in (a, b))
    expected = stats.spearmanr(a.repeat(w), b.repeat(w)).statistic
    assert pearson(*ranks, w.astype(float)) == pytest.approx(expected)


def test_what_is_undefined_is_nan_and_no_pairs_are_refused():
    constant = [Pair("m", 0, index, 5.0, float(index)) for index in range(6)]
    found = figures(constant, "rating")
    assert math.isnan(found["pearson"].value) and math.isnan(found["spearman"].low)
    tied = figures([Pair("m", 0, index, 50.0, 50.0) for index in range(4)], "verdict")
    assert (tied["equal"].value, tied["equal_decided"].n) == (100.0, 0)
    assert math.isnan(tied["equal_decided"].value) and math.isnan(tied["kappa"].value)
    with pytest.raises(ValueError, match="judged by both"):
        agreement([], "rating")


def test_the_bootstrap_is_a_loop_over_drawn_seeds_and_drawn_prompts():
    rng = np.random.default_rng(5)
    values = rng.normal(size=(3, 40)).round(3) + rng.normal(size=40)
    seeds, clusters = np.divmod(np.arange(120), 40)
    means = [values[np.ix_(rng.integers(3, size=3), rng.integers(40, size=40))].mean() for _ in range(4000)]
    flat = values.ravel()
    found = estimate_statistic(lambda w: float(np.average(flat, weights=w)), list(seeds), list(clusters))
    assert found[0] == pytest.approx(values.mean())
    assert found[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.05)


def test_nothing_to_resample_gives_no_interval():
    value, low, high = estimate_statistic(lambda w: float(w.sum()), [0, 0], ["q", "q"])
    assert value == 2.0 and math.isnan(low) and math.isnan(high)
    with pytest.raises(ValueError, match="1 seeds and 2 clusters"):
        estimate_statistic(lambda w: 0.0, [0], [0, 1])


def judgment(question: int, model: str, score: float, turn: int = 1, **changes) -> dict:
    row = {"question_id": question, "model": model, "judge": ["j", "single-v1"], "user_prompt": "", "judgment": ""}
    return row | {"score": score, "turn": turn, "tstamp": 0.0} | changes


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def command(*files) -> tuple[int, list[list[str]], str]:
    result = CliRunner().invoke(app, ["score", "agreement", *map(str, files)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, [line.split(",") for line in result.stdout.splitlines()], result.stderr


def test_the_command_counts_failures_of_either_file_and_names_what_only_one_has(tmp_path):
    first = [judgment(q, "a", q) for q in range(1, 7)] + [judgment(9, "a", 3)]
    second = [judgment(q, "a", q + (q % 2)) for q in range(1, 5)] + [judgment(5, "a", -1), judgment(6, "a", 2)]
    first[0]["score"] = -1
    code, rows, warning = command(write(tmp_path / "a.jsonl", first), write(tmp_path / "b.jsonl", second))
    assert code == 0
    assert rows[0] == ["model", "metric", "value", "low", "high", "n", "failures"]
    found = {row[1]: row for row in rows[1:]}
    assert float(found["mean_difference"][2]) == pytest.approx((0 + 1 + 0 - 4) / 4)
    assert found["pearson"][5:] == ["4", "2"]
    assert "1 answers in" in warning and "0 in" in warning


def test_files_that_do_not_go_together_are_refused(tmp_path):
    mine = write(tmp_path / "a.jsonl", [judgment(1, "a", 5)])
    with pytest.raises(ValueError, match=r"no answer in common.*first is about a, the second about b"):
        command(mine, write(tmp_path / "b.jsonl", [judgment(1, "b", 5)]))
    with pytest.raises(ValueError, match="is judged twice"):
        command(mine, write(tmp_path / "c.jsonl", [judgment(1, "a", 5), judgment(1, "a", 6)]))
    annotations = tmp_path / "d.json"
    annotations.write_text(json.dumps([{"instruction": "i", "output_1": "x", "output_2": "y", "preference": 2}]))
    with pytest.raises(ValueError, match=r"FastChat's ratings of single answers.*AlpacaEval's annotations"):
        command(mine, annotations)
    with pytest.raises(ValueError, match="does not exist"):
        command(mine, tmp_path / "nothing.jsonl")


def test_annotations_match_by_what_was_compared(tmp_path):
    def rows(preferences, output="y"):
        return [
            {"instruction": f"i{n}", "output_1": "x", "output_2": output, "generator_2": "m", "preference": p}
            for n, p in enumerate(preferences)
        ]

    for name, content in {"a": rows([2, 1, 0, None]), "b": rows([2, 2, 1.5, 1]), "c": rows([2], "other")}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    matched = match(tmp_path / "a.json", tmp_path / "b.json")
    assert [(p.first, p.second) for p in matched.pairs["m"]] == [(100, 100), (0, 100), (50, 50)]
    assert (matched.failed, matched.alone, matched.kind) == ({"m": 1}, (0, 0), "verdict")
    with pytest.raises(ValueError, match="no answer in common"):
        match(tmp_path / "a.json", tmp_path / "c.json")


def test_pairwise_judgments_agree_by_their_winner(tmp_path):
    def row(question, g1, g2):
        return {"question_id": question, "model_1": "a", "model_2": "b", "g1_winner": g1, "g2_winner": g2,
                "judge": ["j", "pair-v2"], "g1_user_prompt": "", "g1_judgment": "", "g2_user_prompt": "",
                "g2_judgment": "", "turn": 1, "tstamp": 0.0}  # fmt: skip

    first = write(tmp_path / "a.jsonl", [row(1, "model_1", "model_1"), row(2, "tie", "tie"), row(3, "error", "tie")])
    second = write(
        tmp_path / "b.jsonl", [row(1, "model_2", "model_2"), row(2, "model_1", "model_2"), row(3, "tie", "tie")]
    )
    code, rows, _ = command(first, second)
    found = {r[1]: r for r in rows[1:]}
    assert code == 0
    assert (found["equal"][2], found["equal"][5:]) == ("50", ["2", "1"])


def test_a_pair_is_the_same_whichever_model_a_file_names_first(tmp_path):
    other = {"model_1": "model_2", "model_2": "model_1"}

    def row(question, winner, turned=False):
        a, b = ("b", "a") if turned else ("a", "b")
        winner = other.get(winner, winner) if turned else winner
        return {"question_id": question, "model_1": a, "model_2": b, "g1_winner": winner, "g2_winner": winner,
                "judge": ["j", "pair-v2"], "g1_user_prompt": "", "g1_judgment": "", "g2_user_prompt": "",
                "g2_judgment": "", "turn": 1, "tstamp": 0.0}  # fmt: skip

    said = ["model_1", "tie", "model_2", "model_1", "error"]
    straight = write(tmp_path / "a.jsonl", [row(n, winner) for n, winner in enumerate(said)])
    turned = write(tmp_path / "b.jsonl", [row(n, winner, True) for n, winner in enumerate(said)])
    mixed = write(tmp_path / "c.jsonl", [row(n, winner, n % 2 == 1) for n, winner in enumerate(said)])
    for second in (turned, mixed):
        matched = match(Path(straight), Path(second))
        assert [(p.first, p.second) for p in matched.pairs["a"]] == [(100, 100), (50, 50), (0, 0), (100, 100)]
        assert (matched.failed, matched.alone) == ({"a": 1}, (0, 0))
    twice = write(tmp_path / "d.jsonl", [row(1, "tie"), row(1, "tie", True)])
    with pytest.raises(ValueError, match="the same answer is judged twice"):
        match(Path(twice), Path(straight))


def test_published_verdicts_agree_with_themselves_and_failures_stay_failures(data_folder):
    gpt4, failures = (
        data_folder / "mt_bench" / f"judgments_{name}.jsonl" for name in ("gpt-4_single", "with_failures")
    )
    _, rows, _ = command(gpt4, gpt4)
    found = {(row[0], row[1]): row for row in rows[1:]}
    assert len({row[0] for row in rows[1:]}) == 3, "two models and all"
    assert found["all", "pearson"][2:6] == ["1", "1", "1", "320"]
    _, rows, _ = command(failures, failures)
    assert {tuple(row[5:]) for row in rows[1:]} == {("40", "120")}
    with pytest.raises(ValueError, match="no answer in common"):
        command(gpt4, failures)


def test_published_annotations_agree_with_themselves(data_folder):
    folder = data_folder / "alpaca_eval" / "annotations_v2"
    _, rows, _ = command(folder / "alpaca-7b.json", folder / "alpaca-7b.json")
    found = {row[1]: row for row in rows[1:]}
    assert found["equal"][2:] == ["100", "100", "100", "805", "0"]
    assert found["kappa"][2] == "1"
    with pytest.raises(ValueError, match="the first is about alpaca-7b, the second about gemma-2b-it"):
        command(folder / "alpaca-7b.json", folder / "gemma-2b-it.json")
