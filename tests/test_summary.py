import math

import numpy as np
import pytest
from histories import FIVE, IDENTITY, curve, history, rising
from scipy import stats

from bayesian_active_learning import history as history_
from bayesian_active_learning.history import History

WITH_THREE = {
    ("bald", 0): [0.80, 0.91, 0.92, 0.93, 0.96],
    ("bald", 1): [0.80, 0.85, 0.91, 0.92, 0.93],
    ("bald", 2): [0.80, 0.91, 0.89, 0.92, 0.92],
    ("random", 0): [0.70, 0.75, 0.80, 0.85, 0.86],
    ("random", 1): [0.70, 0.75, 0.80, 0.85, 0.91],
    ("random", 2): [0.70, 0.75, 0.80, 0.85, 0.86],
}


def cells(text: str) -> dict[str, list[str]]:
    """Function -> the cells of its row."""
    lines = text.split("\n\n")[1].splitlines()
    starts = [0] + [i + 2 for i, part in enumerate(lines[1]) if lines[1][i : i + 2] == "  "]
    ends = [*[start - 2 for start in starts[1:]], None]
    rows = [[line[a:b].strip() for a, b in zip(starts, ends)] for line in lines]
    return {row[0]: row[1:] for row in [rows[0], *rows[2:]]}


# Comparison.


def test_student_t_is_scipys():
    found = [history_.student_t(degrees) for degrees in range(1, 31)]
    np.testing.assert_allclose(found, stats.t.ppf(0.975, np.arange(1, 31)), atol=5e-5)
    assert history_.student_t(31) == history_.student_t(30) > stats.t.ppf(0.975, 31)
    with pytest.raises(ValueError, match="at least 1 degree of freedom, got 0"):
        history_.student_t(0)


def test_mean_interval_is_scipys():
    values = np.array([0.1, 0.4, 0.2, 0.35, 0.3])
    expected = stats.t.interval(0.95, 4, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(history_.mean_interval(values), expected, rtol=1e-4)


def test_common_rounds_are_those_of_all_curves():
    curves = [curve([0.1, 0.2, 0.3, 0.4]), curve([0.5, math.nan, 0.7], first=30)]
    labels, values = history_.common_rounds(curves)
    assert labels.tolist() == [30, 50]
    assert values.tolist() == [[0.2, 0.4], [0.5, 0.7]]
    labels, values = history_.common_rounds([curve([0.1]), curve([0.1], first=30)])
    assert labels.shape == (0,) and values.shape == (2, 0)


def test_common_rounds_take_the_later_value_of_a_label_count():
    repeated = curve([0.1, 0.2, 0.3])._replace(labels=np.array([20, 20, 30]))
    assert history_.common_rounds([repeated])[1].tolist() == [[0.2, 0.3]]


def test_common_rounds_refuses_nothing():
    with pytest.raises(ValueError, match="no curves to compare"):
        history_.common_rounds([])


def test_curves_by_function_refuses_empty_and_unknown():
    with pytest.raises(ValueError, match="no round has been evaluated"):
        history_.curves_by_function(history({("bald", 0): []}))
    with pytest.raises(ValueError, match="bald, seed 0, has no test metric 'f1'; it has accuracy"):
        history_.curves_by_function(history({("bald", 0): [0.5]}), "f1")


def test_paired_difference_by_hand():
    found = history_.paired_difference(history(WITH_THREE), rounds=2)
    differences = [0.945 - 0.855, 0.925 - 0.88, 0.92 - 0.855]
    expected = stats.ttest_rel(differences, [0, 0, 0]).confidence_interval(0.95)
    assert found is not None and found.seeds == (0, 1, 2) and found.labels == (50, 60)
    assert found.mean == pytest.approx(np.mean(differences))
    assert found.interval == pytest.approx(tuple(expected), rel=1e-4)


def test_paired_difference_uses_paired_seeds_and_common_labels_only():
    some = {key: values for key, values in WITH_THREE.items() if key != ("random", 1)}
    some["random", 2] = some["random", 2][:2]
    found = history_.paired_difference(history(some))
    assert found is not None and found.seeds == (0, 2) and found.labels == (20, 30)
    assert found.mean == pytest.approx(np.mean([0.10, 0.16, 0.10, 0.16]))
    assert found.interval is None


def test_paired_difference_without_anything_in_common():
    apart = history({("bald", 0): [0.5], ("random", 1): [0.5]})
    assert history_.paired_difference(apart) is None
    assert "not comparable, no seed and label count in common" in history_.notice(apart)
    shifted = History(
        apart.config, {("bald", 0): curve([0.5]), ("random", 0): curve([0.5], first=9)}
    )
    assert history_.paired_difference(shifted) is None


def test_paired_difference_refusals():
    with pytest.raises(ValueError, match="no curve of 'entropy' in this history; it has bald"):
        history_.paired_difference(history(WITH_THREE), "entropy")
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        history_.paired_difference(history(WITH_THREE), rounds=0)


# Words.


def test_caption():
    assert history_.caption(rising()) == (
        "MNIST, seeds 0-4, acquisition size 10, 100 posterior samples, pool subset 2,000; "
        "100 validation labels not counted"
    )


@pytest.mark.parametrize(
    "identity, words",
    [
        ({"pool_size": 0}, "whole pool scored; 100 validation"),
        ({"num_validation": 0}, "; no validation labels"),
        ({"splits": {"validation": [1, 2, 3]}}, "; 3 validation labels not counted"),
        ({"dataset": "digits"}, "digits (8x8), NOT MNIST, seed 0"),
        ({"dataset": "fashion_mnist"}, "Fashion-MNIST, seed 0"),
        ({"dataset": "npz:mine.npz"}, "npz:mine.npz, seed 0"),
        ({"dataset": ""}, "unnamed data, seed 0"),
    ],
)
def test_caption_follows_the_identity(identity: dict, words: str):
    assert words in history_.caption(history({("bald", 0): [0.5]}, **identity))


@pytest.mark.parametrize(
    "seeds, words",
    [((0,), "seed 0"), ((1, 0), "seeds 0, 1"), ((0, 1, 2, 5, 7, 8, 9), "seeds 0-2, 5, 7-9")],
)
def test_caption_names_seeds(seeds: tuple[int, ...], words: str):
    found = history({("bald", seed): [0.5] for seed in seeds})
    assert history_.caption(found).startswith(f"MNIST, {words}, acq")


def test_caption_names_seeds_by_function_where_they_differ():
    found = history({("bald", 0): [0.5], ("bald", 1): [0.5], ("random", 0): [0.5], ("x", 0): [0.1]})
    assert "seeds 0, 1 (bald) and 0 (random, x)" in history_.caption(found)


def test_caption_without_a_config():
    assert history_.caption(History({}, {})) == "unnamed data, no seeds"


def test_table():
    text = history_.summary_table(history(WITH_THREE), sustained=2)
    assert text.startswith(history_.caption(history(WITH_THREE)) + "\n\n")
    found = cells(text)
    assert found["function"] == [
        "seeds",
        *("90 % first", "90 % for 2 rounds", "95 % first", "95 % for 2 rounds"),
        "final test accuracy",
    ]
    final = 100 * np.array([0.96, 0.93, 0.92])
    assert found["bald"] == [
        "3",
        "30 (30 to 35)",
        "40 (35 to 45)",
        "not reached (only 1 of 3 seeds)",
        "not reached",
        f"{final.mean():.2f} ± {final.std(ddof=1):.2f} % at 60 labels",
    ]
    assert found["random"][1:3] == ["not reached (only 1 of 3 seeds)", "not reached"]
    assert "initial ones included" in text and "NOT ALL CURVES" not in text


def test_table_with_an_upper_quartile_out_of_reach():
    found = history({("bald", 0): [0.9], ("bald", 1): [0.1, 0.9], ("bald", 2): [0.1, 0.1]})
    assert cells(history_.summary_table(found, [0.9], 1))["bald"][1] == "30 (from 25), 2 of 3 seeds"


def test_table_of_one_and_two_seeds_gives_no_quartiles():
    found = history(
        {("bald", 0): [0.8, 0.95], ("random", 0): [0.9, 0.9], ("random", 1): [0.8, 0.9]}
    )
    rows = cells(history_.summary_table(found, [0.9], 1))
    assert rows["bald"] == ["1", "30", "95.00 % at 30 labels"]
    assert rows["random"] == ["2", "25", "90.00 ± 0.00 % at 30 labels"]


def test_table_warns_about_unequal_lengths():
    found = history({("bald", 0): [0.9, 0.8, 0.7], ("bald", 1): [0.5], ("random", 0): [0.5]})
    text = history_.summary_table(found)
    assert "may mean 'not yet': bald 20 to 40, random 20." in text
    assert cells(text)["bald"][-1] == "70.00 ± 28.28 % at 20 labels"


def test_table_without_a_common_label_count():
    found = History(
        {"identity": IDENTITY}, {("a", 0): curve([0.5]), ("a", 1): curve([0.5], first=7)}
    )
    assert cells(history_.summary_table(found))["a"][-1] == "no label count in common"


def test_table_refusals():
    with pytest.raises(ValueError, match="the history is empty"):
        history_.summary_table(History({}, {}))
    with pytest.raises(ValueError, match="threshold must be in 0..1"):
        history_.summary_table(rising(num_rounds=2), [90])


# What may be concluded.


@pytest.mark.parametrize(
    "num_seeds, words",
    [
        (1, "One seed proves nothing"),
        (2, "2 seeds prove next to nothing"),
        (3, "3 seeds are few"),
        (4, "4 seeds are few"),
    ],
)
def test_notice_asks_for_more_seeds(num_seeds: int, words: str):
    first = history_.notice(rising(num_seeds=num_seeds, num_rounds=5)).splitlines()[0]
    assert first.startswith(words) and first.endswith("run with --seeds 5.")


def test_notice_of_five_seeds_compares_each_function_with_random():
    lines = history_.notice(rising()).splitlines()
    assert [line.split()[0] for line in lines] == list(FIVE[:-1])
    assert all("last 10 rounds in common (910 to 1,000 labels), 5 paired" in line for line in lines)


def verdict(differences: list[float]) -> str:
    cells = {("bald", seed): [0.5 + value] for seed, value in enumerate(differences)}
    cells |= {("random", seed): [0.5] for seed in range(len(differences))}
    return history_.notice(history(cells)).splitlines()[-1]


def test_notice_says_who_is_better():
    better = verdict([0.02, 0.03, 0.02, 0.03, 0.02])
    assert "+2.40 percentage points, 95 % t-interval +1.72 to +3.08" in better
    assert better.endswith("bald is better than random here.")
    assert "the one round in common (20 labels)" in better
    worse = verdict([-0.02, -0.03, -0.02, -0.03, -0.02])
    assert "-2.40" in worse and worse.endswith("bald is worse than random here.")
    neither = verdict([-0.02, 0.03, 0.02, -0.03, 0.02])
    assert neither.endswith("bald is not shown to differ from random.")
    assert verdict([0.1]).endswith(
        "1 paired seed: +10.00 percentage points; too few seeds for an interval."
    )


def test_notice_of_digits_disclaims_mnist():
    text = history_.notice(rising(num_rounds=2, dataset="digits"))
    assert text.startswith(
        "This is digits (8x8), NOT MNIST: nothing here says anything about MNIST"
    )


def test_notice_without_a_baseline():
    assert history_.notice(rising(FIVE[:2])) == ""
