"""What curves claim, and how sure that is: comparisons of functions over seeds.

Records and arrays in, records of numbers out, `describe` for the words; SciPy computes
what it has (extra `experiments`). `history` holds the summaries that need NumPy only.

- per seed: `area`, `value_at`, `mean_of_last` -> `Numbers`
- in pairs of seeds: `compare_with`, `paired_test`, `holm`
- labels to an accuracy, with runs that never get there: `labels_to_thresholds`
- the fraction of random's labels that do as well: `speed_ups`
- over settings and budgets: `penalty_matrix`, `normalised_errors`
- all functions at once: `kruskal_games_howell`
- all of it: `compare`; when seeds are too few: `seed_warnings`
"""

from bayesian_active_learning.statistics.budgets import (
    NormalisedErrors,
    Penalties,
    doubling_budgets,
    normalised_errors,
    penalty_matrix,
)
from bayesian_active_learning.statistics.comparison import Comparison, compare, quarters, to_plain
from bayesian_active_learning.statistics.few_seeds import seed_warnings
from bayesian_active_learning.statistics.groups import GroupComparison, kruskal_games_howell
from bayesian_active_learning.statistics.numbers import (
    Numbers,
    area,
    area_under_budget_curve,
    common_range,
    higher_is_better,
    mean_of_last,
    value_at,
)
from bayesian_active_learning.statistics.paired import (
    PairedComparison,
    PairedTest,
    compare_with,
    holm,
    paired_test,
    t_interval,
    t_test,
)
from bayesian_active_learning.statistics.speed_up import (
    SpeedUp,
    factor,
    labels_to_value,
    speed_ups,
)
from bayesian_active_learning.statistics.survival import (
    LabelsToThreshold,
    Survival,
    kaplan_meier,
    labels_to_thresholds,
    median_interval,
    survival_quantile,
)
from bayesian_active_learning.statistics.words import (
    describe,
    describe_groups,
    describe_normalised_errors,
    describe_numbers,
    describe_pairs,
    describe_penalties,
    describe_speed_ups,
    describe_thresholds,
    describe_warnings,
)

__all__ = [
    "Comparison",
    "GroupComparison",
    "LabelsToThreshold",
    "NormalisedErrors",
    "Numbers",
    "PairedComparison",
    "PairedTest",
    "Penalties",
    "SpeedUp",
    "Survival",
    "area",
    "area_under_budget_curve",
    "common_range",
    "compare",
    "compare_with",
    "describe",
    "describe_groups",
    "describe_normalised_errors",
    "describe_numbers",
    "describe_pairs",
    "describe_penalties",
    "describe_speed_ups",
    "describe_thresholds",
    "describe_warnings",
    "doubling_budgets",
    "factor",
    "higher_is_better",
    "holm",
    "kaplan_meier",
    "kruskal_games_howell",
    "labels_to_thresholds",
    "labels_to_value",
    "mean_of_last",
    "median_interval",
    "normalised_errors",
    "paired_test",
    "penalty_matrix",
    "quarters",
    "seed_warnings",
    "speed_ups",
    "survival_quantile",
    "t_interval",
    "t_test",
    "to_plain",
    "value_at",
]
