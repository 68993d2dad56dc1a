"""Statistics against SciPy's own calls, closed forms, tables by hand and brute force."""

import itertools
import math

import numpy as np
import pytest
from histories import curve, history, rising
from scipy import stats

from bayesian_active_learning import history as history_
from bayesian_active_learning import statistics as st
from bayesian_active_learning.history import History

# Remission of leukaemia under 6-MP in weeks (Freireich et al. 1963), a textbook table.
WEEKS = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
RELAPSED = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]


def numbers(values: dict, metric: str = "accuracy") -> st.Numbers:
    """function -> list over seeds 0, 1, ... (or seed -> number)."""
    cells = {
        name: dict(each) if isinstance(each, dict) else dict(enumerate(each))
        for name, each in values.items()
    }
    return st.Numbers("a number", metric, cells)


def noisy(functions: dict[str, float], num_seeds: int = 6, num_rounds: int = 12) -> History:
    """Curves that rise by a function's rate, with noise of their own."""
    random = np.random.default_rng(3)
    cells = {}
    for name, rate in functions.items():
        for seed in range(num_seeds):
            rise = 0.9 - 0.6 * np.exp(-rate * np.arange(num_rounds))
            cells[name, seed] = rise + 0.02 * random.normal(size=num_rounds)
    return history(cells)


# One number per seed.


def test_area_is_the_mean_height():
    labels = np.array([20, 30, 50, 100])
    assert st.area_under_budget_curve(labels, [0.7] * 4) == pytest.approx(0.7)
    assert st.area_under_budget_curve(labels, labels / 100) == pytest.approx(0.6)
    step = st.area_under_budget_curve([0, 10, 20], [0.0, 1.0, 1.0])
    assert step == pytest.approx(0.75)
    # Half of the first segment, all of the second, a fifth of the third.
    part = st.area_under_budget_curve(labels, [0.0, 0.4, 0.4, 0.9], 25, 60)
    by_hand = (5 * (0.2 + 0.4) / 2 + 20 * 0.4 + 10 * (0.4 + 0.5) / 2) / 35
    assert part == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([20, 30], [0.1]), r"got \(2,\) and \(1,\)"),
        (([20], [0.1]), "R at least 2"),
        (([20, 20], [0.1, 0.2]), "ascend strictly"),
        (([20, 30], [0.1, math.nan]), "finite"),
        (([20, 30], [0.1, 0.2], 10, 30), "from 20 to 30 labels, which does not cover 10 to 30"),
        (([20, 30], [0.1, 0.2], 30, 30), "must not be empty, got 30 to 30"),
    ],
)
def test_area_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        st.area_under_budget_curve(*arguments)


def test_areas_take_the_range_of_all_curves():
    told = history({("a", 0): [0.2, 0.4, 0.6], ("b", 0): [0.2, 0.2, 0.2, 1.0], ("b", 1): [1, 0, 1]})
    found = st.area(told)
    assert st.common_range(told) == (20, 40)
    assert found.values == {"a": {0: pytest.approx(0.4)}, "b": {0: 0.2, 1: pytest.approx(0.5)}}
    assert found.name == "area under the curve (20 to 40 labels)"
    assert st.area(told, end=30).values["a"][0] == pytest.approx(0.3)


def test_no_common_range():
    apart = History({}, {("a", 0): curve([0.1, 0.2]), ("b", 1): curve([0.1, 0.2], first=30)})
    with pytest.raises(ValueError, match=r"a, seed 0, ends at 30, b, seed 1, begins at 30"):
        st.common_range(apart)
    with pytest.raises(ValueError, match="a, seed 0, has no finite accuracy"):
        st.common_range(history({("a", 0): [math.nan, math.nan]}))


def test_value_at_interpolates_and_leaves_no_seed_out():
    told = history({("a", 0): [0.2, 0.4, 0.8], ("a", 1): [0.3, math.nan, 0.5]})
    found = st.value_at(told, 30)
    assert found.values == {"a": {0: 0.4, 1: pytest.approx(0.4)}}
    assert st.value_at(told, 35).values["a"][0] == pytest.approx(0.6)
    with pytest.raises(ValueError, match="a, seed 0, goes from 20 to 40: .* about 50 labels"):
        st.value_at(told, 50)


def test_mean_of_last_by_hand():
    told = history({("a", 0): [0.2, 0.4, 0.8, 0.9], ("b", 0): [0.1, 0.3, 0.5]})
    found = st.mean_of_last(told, 2)
    assert found.values == {"a": {0: pytest.approx(0.6)}, "b": {0: pytest.approx(0.4)}}
    assert found.name == "last 2 rounds (30 to 40 labels)"
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        st.mean_of_last(told, 0)


# Labels to an accuracy.


def test_kaplan_meier_of_the_textbook():
    found = st.kaplan_meier(WEEKS, RELAPSED)
    drops = dict(zip(found.times.tolist(), found.share.tolist(), strict=True))
    table = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    assert {week: round(drops[week], 3) for week in table} == table
    assert drops[35] == drops[23]
    assert st.survival_quantile(found, 0.5) == 23
    assert st.survival_quantile(found, 0.25) == 13
    assert st.survival_quantile(found, 0.75) is None
    # Exponential Greenwood by hand.
    low, high = [], []
    share, total = 1.0, 0.0
    for week in sorted(set(WEEKS)):
        at_risk = sum(each >= week for each in WEEKS)
        events = sum(e for w, e in zip(WEEKS, RELAPSED, strict=True) if w == week)
        share *= 1 - events / at_risk
        total += events / at_risk / (at_risk - events)
        half = 1.959964 * math.sqrt(total) / math.log(share)
        low.append(share ** math.exp(-half))
        high.append(share ** math.exp(half))
    np.testing.assert_allclose(found.low, low, rtol=1e-5)
    np.testing.assert_allclose(found.high, high, rtol=1e-5)
    assert st.median_interval(found) == (13, None)


def test_without_censoring_the_median_is_the_usual_one():
    random = np.random.default_rng(0)
    for size in range(1, 9):
        values = random.integers(0, 6, size).astype(float)
        found = st.survival_quantile(st.kaplan_meier(values, [True] * size), 0.5)
        assert found == np.median(values)


def test_labels_to_thresholds_keep_runs_that_never_get_there():
    told = history(
        {
            ("a", 0): [0.5, 0.9, 0.9, 0.9],
            ("a", 1): [0.5, 0.9, 0.8, 0.9],
            ("a", 2): [0.5, 0.6, 0.7, 0.8],
            ("b", 0): [0.5, 0.6, 0.7, 0.8],
        }
    )
    once, never = st.labels_to_thresholds(told, [0.9])
    assert once.reached == {0: 30, 1: 30, 2: None} and once.censored_at == {2: 50}
    assert (once.lower, once.median, once.upper) == (30, 30, None)
    assert never.function == "b" and never.median is None and never.interval == (None, None)
    twice, _ = st.labels_to_thresholds(told, [0.9], sustained=2)
    # Seed 1 touches it at the end: two rounds from 40 labels on is the last that is seen.
    assert twice.reached == {0: 30, 1: None, 2: None} and twice.censored_at == {1: 40, 2: 40}
    assert twice.median is None
    short, _ = st.labels_to_thresholds(told, [0.9], sustained=9)
    assert short.censored_at == {0: 0, 1: 0, 2: 0}


def test_runs_that_end_together_have_the_median_of_the_summary():
    random = np.random.default_rng(1)
    for size in (1, 2, 3, 4, 5, 6, 7, 8):
        told = history({("a", seed): random.uniform(size=9) for seed in range(size)})
        (found,) = st.labels_to_thresholds(told, [0.8])
        expected = history_.median_labels_to_threshold(told.cells.values(), 0.8)
        assert found.median == expected


def test_a_run_that_stopped_early_is_not_one_that_failed():
    told = history({("a", 0): [0.5, 0.9], ("a", 1): [0.5, 0.5, 0.5, 0.9], ("a", 2): [0.5]})
    (found,) = st.labels_to_thresholds(told, [0.9])
    # Of the two that go beyond 20 labels one is there at 30, the other at 50.
    assert found.censored_at == {2: 20} and found.median == 40
    assert history_.median_labels_to_threshold(told.cells.values(), 0.9) == 50


def test_survival_refuses():
    with pytest.raises(ValueError, match=r"got \(2,\), \(1,\)"):
        st.kaplan_meier([1.0, 2.0], [True])
    with pytest.raises(ValueError, match="times must be finite"):
        st.kaplan_meier([1.0, math.inf], [True, True])
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 1"):
        st.survival_quantile(st.kaplan_meier([1.0], [True]), 1)
    with pytest.raises(ValueError, match="not 'nll'"):
        st.labels_to_thresholds(rising(num_seeds=1), [0.9], metric="nll")


# Speed-up.


def test_labels_to_value_on_the_line_between_rounds():
    labels, values = np.array([20, 30, 50]), np.array([0.2, 0.6, 0.5])
    assert st.labels_to_value(labels, values, 0.3) == pytest.approx(22.5)
    assert st.labels_to_value(labels, values, 0.1) == 20
    assert st.labels_to_value(labels, values, 0.6) == 30
    assert st.labels_to_value(labels, values, 0.61) is None
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        st.labels_to_value(labels, values[:2], 0.1)


def test_speed_up_by_hand():
    told = history(
        {
            ("random", 0): [0.1, 0.2, 0.3, 0.4, 0.5],
            ("random", 1): [0.1, 0.2, 0.3, 0.4, 0.5],
            ("random", 2): [0.1, 0.2, 0.3, 0.4, 0.5],
            ("fast", 0): [0.1, 0.5, 0.6],  # 0.5 at 30 instead of 60, 0.3 at 25 instead of 40
            ("fast", 1): [0.1, 0.1, 0.5],
            ("fast", 7): [0.9, 0.9, 0.9],
            ("slow", 0): [0.1, 0.1, 0.1, 0.1, 0.3],
            ("slow", 2): [0.1, 0.1, 0.1, 0.1, 0.1],
        }
    )
    found = {(each.function, each.labels): each for each in st.speed_ups(told, [40, 60])}
    fast = found["fast", 60]
    assert fast.fractions == {0: pytest.approx(30 / 60), 1: pytest.approx(40 / 60)}
    assert fast.unpaired == (2, 7) and fast.targets == {0: 0.5, 1: 0.5}
    assert fast.median == pytest.approx((0.5 + 40 / 60) / 2)
    assert found["fast", 40].fractions[0] == pytest.approx(25 / 40)
    slow = found["slow", 60]
    assert slow.fractions == {0: None, 2: None} and slow.median is None
    assert slow.more_than == {0: pytest.approx(1.0), 2: pytest.approx(1.0)}
    late = found["slow", 40]
    assert late.fractions == {0: pytest.approx(60 / 40), 2: None} and late.median is None
    assert st.factor(0.5) == 2 and st.factor(None) is None and st.factor(0.0) == math.inf


def test_a_noisy_curve_is_exactly_as_fast_as_itself():
    told = noisy({"random": 0.3})
    twins = {("twin", seed): one for (_, seed), one in told.cells.items()}
    for each in st.speed_ups(told._replace(cells=told.cells | twins), [50, 90, 130]):
        assert set(each.fractions.values()) == {1.0} and each.median == 1.0


def test_speed_up_refuses():
    told = history({("random", 0): [0.1, 0.2], ("a", 0): [0.1, 0.2]})
    with pytest.raises(ValueError, match="random, seed 0, says nothing about 40 labels"):
        st.speed_ups(told, [40])
    with pytest.raises(ValueError, match="no curve of 'bald' in this history; it has random, a"):
        st.speed_ups(told, [30], "bald")
    with pytest.raises(ValueError, match="not 'nll'"):
        st.speed_ups(told, [30], metric="nll")
    none = History({}, {(name, 0): curve([0.1, 0.2], first=0) for name in ("random", "a")})
    with pytest.raises(ValueError, match="random, seed 0, needs no labels"):
        st.speed_ups(none, [0])


# In pairs.

FIRST = np.array([0.91, 0.93, 0.90, 0.95, 0.92, 0.94, 0.90])
SECOND = np.array([0.90, 0.90, 0.91, 0.91, 0.90, 0.89, 0.84])


def every_sign(differences: np.ndarray) -> float:
    """The signed-rank p-value from all 2^n choices of signs."""
    kept = differences[differences != 0]
    ranks = stats.rankdata(np.abs(kept))
    sums = [
        sum(r for r, up in zip(ranks, ups) if up)
        for ups in itertools.product([0, 1], repeat=len(kept))
    ]
    mine = ranks[kept > 0].sum()
    low = np.mean([total <= mine + 1e-9 for total in sums])
    high = np.mean([total >= mine - 1e-9 for total in sums])
    return min(1.0, 2 * min(low, high))


def test_paired_test_is_scipys():
    found = st.paired_test(FIRST, SECOND, bootstrap_seed=5)
    expected = stats.ttest_rel(FIRST, SECOND)
    assert found.mean == pytest.approx(np.mean(FIRST - SECOND))
    assert found.t_statistic == pytest.approx(expected.statistic)
    assert found.t_p == pytest.approx(expected.pvalue)
    assert found.t_interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    # Ties (0.01 and -0.01) are ranked as such, not by rounding errors.
    assert found.signed_rank_p == pytest.approx(every_sign(np.round(FIRST - SECOND, 9)))
    bootstrap = stats.bootstrap(
        (np.round(FIRST - SECOND, 12),), np.mean, method="BCa", rng=np.random.default_rng(5)
    )
    assert found.bootstrap_interval == pytest.approx(tuple(bootstrap.confidence_interval))


def test_bootstrap_is_repeatable_and_near_all_resamples():
    first, second = np.array([1.0, 2.0, 4.0, 9.0]), np.zeros(4)
    found = [
        st.paired_test(
            first, second, bootstrap_seed=seed, bootstrap="percentile"
        ).bootstrap_interval
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1]
    means = np.sort([np.mean(each) for each in itertools.product(first, repeat=4)])
    for interval in found:
        np.testing.assert_allclose(interval, np.quantile(means, [0.025, 0.975]), atol=0.3)
    with pytest.raises(ValueError, match="unknown bootstrap 'jackknife'; known: BCa, percentile"):
        st.paired_test(first, second, bootstrap_seed=0, bootstrap="jackknife")


@pytest.mark.parametrize("size", [2, 5, 20, 60])
def test_identical_numbers_do_not_differ(size: int):
    values = np.random.default_rng(0).uniform(size=size)
    found = st.paired_test(values, values + 1e-15, bootstrap_seed=0)
    assert found.t_p == found.signed_rank_p == 1 and found.mean == 0
    if size > 2:
        assert found.t_interval == found.bootstrap_interval == (0, 0)


def test_differences_without_spread():
    found = st.paired_test([0.3, 0.5, 0.9], [0.4, 0.6, 1.0], bootstrap_seed=0)
    assert found.t_statistic == -math.inf and found.t_p == 0
    assert found.bootstrap_interval == pytest.approx((-0.1, -0.1))
    assert found.signed_rank_p == 0.25


def test_few_pairs():
    one = st.paired_test([0.3], [0.1], bootstrap_seed=0)
    assert one.mean == pytest.approx(0.2) and one[2:] == (None,) * 6
    two = st.paired_test([0.3, 0.5], [0.1, 0.4], bootstrap_seed=0)
    assert two.t_interval is None and two.bootstrap_interval is None
    assert two.t_p == pytest.approx(stats.ttest_rel([0.3, 0.5], [0.1, 0.4]).pvalue)
    with pytest.raises(ValueError, match=r"got \(2,\) and \(1,\)"):
        st.paired_test([0.1, 0.2], [0.1], bootstrap_seed=0)
    with pytest.raises(ValueError, match="must be finite"):
        st.paired_test([0.1, math.nan], [0.1, 0.2], bootstrap_seed=0)


def test_holm_is_the_closed_bonferroni_test():
    random = np.random.default_rng(0)
    for size in range(1, 7):
        p = random.uniform(size=size) ** 2
        subsets = [
            subset
            for length in range(1, size + 1)
            for subset in itertools.combinations(range(size), length)
        ]
        # A hypothesis falls where every family that holds it does, by Bonferroni.
        expected = [
            max(min(1, len(s) * min(p[list(s)])) for s in subsets if place in s)
            for place in range(size)
        ]
        np.testing.assert_allclose(st.holm(p), expected)
    assert st.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert st.holm([]).shape == (0,)
    with pytest.raises(ValueError, match=r"in 0..1, got \[0.5, nan\]"):
        st.holm([0.5, math.nan])


def test_compare_with_uses_shared_seeds_only_and_says_so():
    base = dict.fromkeys(range(8), 0.5)
    found = st.compare_with(
        numbers(
            {
                "random": base,
                "good": {seed: 0.6 + 0.01 * seed for seed in range(2, 9)},
                "same": base,
                "apart": {20: 0.9},
            }
        ),
        bootstrap_seed=0,
    )
    good, same, apart = found
    assert good.seeds == (2, 3, 4, 5, 6, 7) and good.unpaired == (0, 1, 8)
    assert good.verdict == "better" and (good.wins, good.losses) == (6, 0)
    assert good.test is not None and good.t_p_holm == pytest.approx(2 * good.test.t_p)
    assert good.signed_rank_p_holm == pytest.approx(2 * 2 / 2**6)
    assert same.t_p_holm == same.signed_rank_p_holm == 1
    assert same.verdict == "not shown to differ" and (same.wins, same.losses) == (0, 0)
    assert apart.test is None and apart.verdict == "too few seeds" and apart.t_p_holm is None
    assert apart.unpaired == (0, 1, 2, 3, 4, 5, 6, 7, 20)
    assert "no seed in common" in apart.warnings[0]
    with pytest.raises(ValueError, match="no curve of 'bald' here; there are random"):
        st.compare_with(numbers({"random": base}), "bald", bootstrap_seed=0)


@pytest.mark.parametrize(
    ("metric", "verdict", "wins"), [("accuracy", "better", 5), ("nll", "worse", 0)]
)
def test_verdicts_know_which_way_is_better(metric: str, verdict: str, wins: int):
    high, low = [0.9, 0.8, 0.85, 0.95, 0.9], [0.5, 0.45, 0.5, 0.5, 0.52]
    (found,) = st.compare_with(numbers({"random": low, "a": high}, metric), bootstrap_seed=0)
    assert (found.verdict, found.wins) == (verdict, wins)
    assert found.test is not None and found.test.mean > 0
    assert st.higher_is_better("f1") and not st.higher_is_better("ece_mean")


def test_the_verdict_is_of_the_corrected_test():
    shift = np.array([0.010, 0.030, 0.020, 0.040, -0.005, 0.010])
    base = np.linspace(0.5, 0.6, 6)
    both = {"random": base, "a": base + shift}
    assert 0.02 < stats.ttest_rel(both["a"], base).pvalue < 0.05
    (alone,) = st.compare_with(numbers(both), bootstrap_seed=0)
    assert alone.verdict == "better"
    many = both | {f"b{place}": base for place in range(4)}
    assert st.compare_with(numbers(many), bootstrap_seed=0)[0].verdict == "not shown to differ"


def test_last_rounds_agree_with_the_summary():
    told = rising(("bald", "random"), num_seeds=4)
    (found,) = st.compare_with(st.mean_of_last(told, 10), bootstrap_seed=0)
    expected = history_.paired_difference(told)
    assert expected is not None and found.test is not None
    assert found.test.mean == pytest.approx(expected.mean)
    assert found.test.t_interval == pytest.approx(expected.interval, rel=1e-4)


@pytest.mark.parametrize("pairs", range(2, 9))
def test_warned_that_the_signed_rank_test_cannot_reach(pairs: int):
    least = stats.wilcoxon(np.arange(1.0, pairs + 1)).pvalue
    text = " ".join(st.seed_warnings(pairs))
    assert (f"never gives less than p = {least:.3g}" in text) == (least > 0.05)
    assert ("never gives" in text) == (pairs < 6)


def test_seed_warnings():
    assert "neither a test nor an interval" in st.seed_warnings(1)[0]
    assert any("prove next to nothing" in text for text in st.seed_warnings(2))
    text = " ".join(st.seed_warnings(7, comparisons=4))
    assert "p = 0.0625 after Holm's correction over 4" in text and "8 pairs could" in text
    assert [text[:9] for text in st.seed_warnings(20)] == ["CDALBench"]
    assert st.seed_warnings(50) == ()


# Over settings and budgets.


def test_doubling_budgets():
    assert st.doubling_budgets(np.arange(20, 200, 10)) == (30, 40, 60, 100, 180)
    assert st.doubling_budgets([20, 30]) == (30,) and st.doubling_budgets([20]) == ()


def test_penalty_matrix_says_who_beats_whom():
    wiggle = np.array([0.00, 0.01, 0.02, 0.00, 0.01])
    cells = {}
    for seed, shift in enumerate(wiggle):
        cells["good", seed] = [0.1, 0.8 + shift, 0.8 + shift]
        cells["bad", seed] = [0.1, 0.5, 0.5]
        cells["late", seed] = [0.1, 0.5, 0.8 + shift]
    found = st.penalty_matrix([history(cells)])
    assert found.functions == ("good", "bad", "late") and found.budgets == ((30, 40),)
    expected = [[0, 1, 0.5], [0, 0, 0], [0, 0.5, 0]]
    assert found.matrix.tolist() == expected
    np.testing.assert_allclose(found.column_means, [0, 0.5, 0.5 / 3])
    assert found.orientation.startswith("entry [row, column]: how often the row's function beats")
    assert found.settings.tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    text = st.describe_penalties(found)
    row = next(line for line in text.splitlines() if line.startswith("good"))
    assert row.split() == ["good", "1.00", "0.50"] and found.orientation[1:] in text
    swapped = st.penalty_matrix([history(cells)], functions=["bad", "good"])
    assert swapped.matrix.tolist() == [[0, 0], [1, 0]]
    less = st.penalty_matrix([history(cells)], metric="nll")  # 1 - accuracy in these histories
    assert less.matrix.tolist() == expected


def test_penalty_matrix_is_the_loop_over_t_tests():
    told = [noisy({"a": 0.25, "b": 0.26, "c": 0.3}), noisy({"c": 0.2, "b": 0.2}, num_rounds=6)]
    found = st.penalty_matrix(told, budgets="all")
    expected = np.zeros((3, 3))
    for each in told:
        labels = next(iter(each.cells.values())).labels
        for i, j in itertools.permutations(range(3), 2):
            pair = [
                [c.test["accuracy"] for (f, _), c in each.cells.items() if f == "abc"[place]]
                for place in (i, j)
            ]
            if not all(pair):
                continue
            for place in range(1, len(labels)):
                one, two = ([float(values[place]) for values in curves] for curves in pair)
                won = np.mean(one) > np.mean(two) and stats.ttest_rel(one, two).pvalue < 0.05
                expected[i, j] += won / (len(labels) - 1)
    np.testing.assert_allclose(found.matrix, expected)
    assert 0 < expected[2, 0] < 1 and expected[2, 0] > expected[0, 2]
    assert found.settings.tolist() == [[0, 1, 1], [1, 0, 2], [1, 2, 0]]


def test_identical_curves_never_win():
    told = noisy({"a": 0.3})
    twins = {("twin", seed): one for (_, seed), one in told.cells.items()}
    found = st.penalty_matrix([told._replace(cells=told.cells | twins)], budgets="all")
    assert not found.matrix.any()


def test_penalties_over_shared_seeds():
    cells = {("a", seed): [0.1, 0.9] for seed in (0, 1, 5)}
    cells |= {("b", seed): [0.1, 0.1] for seed in (0, 1)} | {("c", 9): [0.1, 0.5]}
    cells |= {("d", seed): [0.1, 0.5] for seed in (5, 9)}  # one seed with a, one with c
    found = st.penalty_matrix([history(cells)])
    assert np.argwhere(found.matrix).tolist() == np.argwhere(found.settings)[:1].tolist()
    assert found.matrix[0, 1] == 1
    assert found.settings.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0] * 4, [0] * 4]
    assert any("2 pairs of seeds" in text for text in found.warnings)


def test_penalty_matrix_refuses():
    with pytest.raises(ValueError, match="needs two functions, got a"):
        st.penalty_matrix([history({("a", 0): [0.1, 0.2]})])
    two = history({("a", 0): [0.1, 0.2], ("b", 0): [0.1, 0.2]})
    with pytest.raises(ValueError, match="got 'some'"):
        st.penalty_matrix([two], budgets="some")
    with pytest.raises(ValueError, match="no two label counts in common"):
        st.penalty_matrix([history({("a", 0): [0.1, 0.2], ("b", 0): [0.1]})])


def test_normalised_errors_by_hand():
    first = history(
        {
            ("random", 0): [0.1, 0.6, 0.8],
            ("random", 1): [0.1, 0.4, 0.6],
            ("a", 0): [0.1, 0.8, 0.7],  # errors 0.2 and 0.3 of 0.4 and 0.2: seed 0 alone
        }
    )
    second = history({("random", 0): [0.1, 0.5], ("a", 0): [0.1, 0.6], ("b", 0): [0.1, 0.5]})
    found = st.normalised_errors([first, second])
    assert found.budgets == ((30, 40), (30,))
    np.testing.assert_allclose(found.ratios["a"], [0.5, 0.8, 1.5])
    np.testing.assert_allclose(found.cdf["a"], [0.25, 0.75, 1.0])  # 1/2 of one setting, or 1
    assert found.ratios["b"].tolist() == [1.0] and set(found.ratios["random"]) == {1.0}
    perfect = history({("random", 0): [0.1, 1.0], ("a", 0): [0.1, 1.0], ("b", 0): [0.1, 0.9]})
    zero = st.normalised_errors([perfect])
    assert zero.ratios["a"].tolist() == [1.0] and zero.ratios["b"].tolist() == [math.inf]
    with pytest.raises(ValueError, match="no curve of 'bald' in a history; it has random"):
        st.normalised_errors([first], "bald")
    with pytest.raises(ValueError, match="'nll' is none"):
        st.normalised_errors([first], metric="nll")


# All functions at once.


def test_kruskal_games_howell():
    random = np.random.default_rng(2)
    values = {
        "low": random.normal(0.5, 0.01, 6),
        "high": random.normal(0.7, 0.08, 9),
        "near": random.normal(0.51, 0.03, 5),
    }
    found = st.kruskal_games_howell(numbers(values))
    expected = stats.kruskal(*values.values())
    assert found.kruskal_p == pytest.approx(expected.pvalue)
    assert found.kruskal_statistic == pytest.approx(expected.statistic)
    assert found.sizes == (6, 9, 5)
    for i, one in enumerate(values.values()):
        for j, two in enumerate(values.values()):
            if i == j:
                assert found.games_howell_p[i, j] == 1
                continue
            parts = [each.var(ddof=1) / len(each) for each in (one, two)]
            freedom = sum(parts) ** 2 / sum(
                part**2 / (len(each) - 1) for part, each in zip(parts, (one, two), strict=True)
            )
            difference = one.mean() - two.mean()
            q = abs(difference) / math.sqrt(sum(parts) / 2)
            p = stats.studentized_range.sf(q, 3, freedom)
            assert found.games_howell_p[i, j] == pytest.approx(p, abs=1e-6)
            assert found.differences[i, j] == pytest.approx(difference)
    assert found.differing == (("high", "low"), ("high", "near")) and found.warnings == ()


def test_games_howell_needs_kruskal_wallis():
    values = {"a": [0.5, 0.501, 0.502], "b": [0.8, 0.801, 0.802]}
    found = st.kruskal_games_howell(numbers(values), alpha=0.04)  # 3 against 3: p = 0.0495
    assert found.games_howell_p[0, 1] < 0.001 and found.differing == ()
    assert st.kruskal_games_howell(numbers(values)).differing == (("b", "a"),)
    assert "groups of 3 seeds are small" in found.warnings[0]


def test_groups_without_spread_and_single_seeds():
    same = st.kruskal_games_howell(numbers({"a": [0.5, 0.5], "b": [0.5, 0.5]}))
    assert same.kruskal_p == 1 and same.games_howell_p.tolist() == [[1, 1], [1, 1]]
    flat = st.kruskal_games_howell(numbers({"a": [0.5] * 4, "b": [0.6] * 4, "c": [0.9]}))
    assert flat.games_howell_p.tolist() == [[1, 0], [0, 1]] and flat.differing == (("b", "a"),)
    assert "with one seed: c" in flat.warnings[0]
    with pytest.raises(ValueError, match="got a with 1, b with 2"):
        st.kruskal_games_howell(numbers({"a": [0.5], "b": [0.5, 0.6]}))
