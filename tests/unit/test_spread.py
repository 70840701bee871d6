"""harness.measure.spread against the analysis of variance, dense algebra and simulated truth."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.formula.api import ols

from harness.measure.simulation import EFFECTS, main, simulate
from harness.measure.spread import Spread, spread_of


def _values(rng, seeds, prompts, *, between_seeds=1.0, between_prompts=1.0):
    shared = between_seeds * rng.standard_normal((seeds, 1)) + between_prompts * rng.standard_normal((1, prompts))
    return shared + rng.standard_normal((seeds, prompts))


def _covers(rng, make_counts, data_sets=400, **effects):
    covered = 0
    for _ in range(data_sets):
        counts = make_counts(rng)
        counts = counts[:, counts.any(axis=0)]
        sums = counts * _values(rng, *counts.shape, **effects)
        covered += abs(sums.sum() / counts.sum()) <= spread_of(sums, counts).half_width(0.05)
    return covered / data_sets


def test_a_balanced_table_has_the_variance_of_the_analysis_of_variance():
    values = _values(np.random.default_rng(0), 4, 15, between_seeds=3.0, between_prompts=3.0)
    frame = pd.DataFrame([(s, c, v) for (s, c), v in np.ndenumerate(values)], columns=["seed", "prompt", "value"])
    table = sm.stats.anova_lm(ols("value ~ C(seed) + C(prompt)", frame).fit())
    a, b, e = table["sum_sq"] / table["df"]
    spread = spread_of(values, np.ones_like(values))
    assert spread.se**2 == pytest.approx((a + b - e) / 60)
    assert spread.df == pytest.approx((a + b - e) ** 2 / (a**2 / 3 + b**2 / 14))


def test_a_factor_that_varies_less_than_the_noise_does_not_lower_the_other():
    values = np.random.default_rng(3).standard_normal((3, 40))
    values -= values.mean(axis=1, keepdims=True)  # all seeds have the same mean
    spread = spread_of(values, np.ones_like(values))
    assert spread.se == pytest.approx(values.mean(axis=0).std(ddof=1) / math.sqrt(40))
    assert spread.df == pytest.approx(39)


def test_seeds_that_are_equal_leave_the_t_interval_over_prompts():
    values = np.repeat(np.random.default_rng(1).standard_normal((1, 20)), 2, axis=0)
    for seeds in (values, np.vstack([values, values[:1]])):
        spread = spread_of(seeds, np.ones_like(seeds))
        assert spread.df == pytest.approx(19)
        assert spread.half_width(0.05) == pytest.approx(stats.t.ppf(0.975, 19) * values[0].std(ddof=1) / math.sqrt(20))


def test_uneven_weights_have_the_degrees_of_freedom_of_their_quadratic_form():
    counts = np.array([[1.0], [4.0], [2.0], [2.0]])
    sums = counts * np.array([[0.3], [-1.0], [2.0], [0.4]])
    weights = (counts / counts.sum())[:, 0]
    centre = np.eye(4) - weights
    form = centre.T @ np.diag(weights**2) @ centre
    spread, means = spread_of(sums, counts), (sums / counts)[:, 0]
    assert spread.df == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form))
    assert spread.se**2 == pytest.approx(means @ form @ means * (weights**2).sum() / np.trace(form))


def test_a_p_value_is_where_the_interval_ends_at_zero():
    for parts in [((0.3, 4.2),), ((0.3, 1.0), (0.2, 17.0))]:
        spread = Spread(parts)
        for mean in (0.2, -1.5, 40.0):
            assert spread.half_width(spread.p_value(mean)) == pytest.approx(abs(mean))
    assert Spread(((0.25, 1.0), (0.0, 9.0))).p_value(3.0) == pytest.approx(2 * stats.t.sf(6, 1))
    assert Spread(((0.0, 9.0),)).p_value(0.0) == Spread(((0.3, 9.0),)).p_value(0.0) == 1
    assert Spread(((0.0, 9.0),)).p_value(0.1) == 0
    assert math.isnan(Spread(()).p_value(0.1)) and math.isnan(Spread(()).half_width(0.05)) and math.isnan(Spread(()).se)


@pytest.mark.parametrize("between_seeds", [0.0, 0.3, 2.0])
def test_missing_measurements_and_turns_leave_the_interval_covering(between_seeds):
    def some_missing(rng):
        return rng.integers(0, 4, (3, 30)).clip(0, 2).astype(float)

    assert 0.9 <= _covers(np.random.default_rng(4), some_missing, between_seeds=between_seeds) <= 0.995


@pytest.mark.parametrize("between_seeds", [0.0, 1.0])
def test_a_seed_with_a_quarter_of_the_prompts_or_with_its_own_is_not_trusted_too_much(between_seeds):
    def quarter(_):
        counts = np.ones((3, 40))
        counts[2, 10:] = 0
        return counts

    def own(_):
        return np.kron(np.eye(3), np.ones((1, 15)))

    for counts in (quarter, own):
        assert _covers(np.random.default_rng(5), counts, between_seeds=between_seeds) >= 0.91


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_and_tests_err_as_documented(seeds, effect):
    case = simulate("ratings", seeds, 40, EFFECTS[effect], data_sets=400)
    assert 0.905 <= case.covers <= 1  # 0.92 less three standard errors of 400
    assert case.errs <= 0.085
    assert case.errs_strictly <= 0.02


def test_the_simulation_prints_a_row_for_each_kind_of_table_and_refuses_nothing_to_draw(capsys):
    main(["--data-sets", "2"])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + 3 * 2 * 2
    assert {row.count("|") for row in rows} == {7}
    with pytest.raises(SystemExit):
        main(["--data-sets", "0"])
    assert "give at least 1" in capsys.readouterr().err
