"""What was found, as text for a report: plain tables, and sentences that say the rules."""

from collections.abc import Iterable, Sequence

import numpy as np

from bayesian_active_learning.history.comparison import FEW_SEEDS
from bayesian_active_learning.history.summary import text_table
from bayesian_active_learning.statistics.budgets import NormalisedErrors, Penalties
from bayesian_active_learning.statistics.comparison import Comparison
from bayesian_active_learning.statistics.groups import GroupComparison
from bayesian_active_learning.statistics.numbers import Numbers
from bayesian_active_learning.statistics.paired import Interval, PairedComparison, t_interval
from bayesian_active_learning.statistics.speed_up import SpeedUp, factor
from bayesian_active_learning.statistics.survival import LabelsToThreshold


def describe(comparison: Comparison) -> str:
    """The whole comparison as a plain-text report."""
    parts = [comparison.caption]
    if comparison.thresholds:
        parts.append(describe_thresholds(comparison.thresholds))
    parts.append(describe_numbers(comparison.numbers[0]))
    if comparison.pairs:
        parts.append(describe_pairs(comparison.pairs))
    if comparison.speed_ups:
        parts.append(describe_speed_ups(comparison.speed_ups))
    if comparison.penalties is not None:
        parts.append(describe_penalties(comparison.penalties))
    if comparison.groups is not None:
        parts.append(describe_groups(comparison.groups))
    if comparison.normalised_errors is not None:
        parts.append(describe_normalised_errors(comparison.normalised_errors))
    parts.append(describe_warnings(comparison.warnings))
    return "\n\n".join(parts) + "\n"


def describe_thresholds(found: Sequence[LabelsToThreshold]) -> str:
    """Labels to each accuracy, by function."""
    rows = [
        [
            each.function,
            f"{100 * each.threshold:g} %" + _kept(each.sustained),
            f"{sum(at is not None for at in each.reached.values())} of {len(each.reached)}",
            _labels(each.median),
            _range(each.lower, each.upper) if len(each.reached) >= FEW_SEEDS else "-",
            _range(*each.interval) if len(each.reached) >= FEW_SEEDS else "-",
        ]
        for each in found
    ]
    header = ["function", "test accuracy", "seeds there", "median", "quartiles", "95 % of median"]
    return _section(
        "Labels to a test accuracy",
        [header, *rows],
        "Initial labels included. Kaplan-Meier estimate over seeds: one that does not get there "
        "counts as not reached by its last label count, and is never left out; '-' is beyond what "
        f"was seen, and no spread is given below {FEW_SEEDS} seeds.",
    )


def describe_numbers(numbers: Numbers) -> str:
    """One number per seed, by function: mean, spread and interval."""
    scale, rows = _scale(numbers.metric), []
    for name, by_seed in numbers.values.items():
        values = np.array(list(by_seed.values()))
        interval = t_interval(values) if len(values) >= FEW_SEEDS else None
        rows.append(
            [
                name,
                str(len(values)),
                f"{scale * values.mean():.2f}",
                f"{scale * values.std(ddof=1):.2f}" if len(values) > 1 else "-",
                _interval(interval, numbers.metric),
            ]
        )
    header = ["function", "seeds", f"mean{_unit(numbers.metric)}", "sd", "95 % t-interval"]
    title = f"Test {numbers.metric}: {numbers.name}"
    return _section(title, [header, *rows], numbers.rule)


def describe_pairs(pairs: Sequence[PairedComparison]) -> str:
    """Differences in pairs of seeds, by measure and function."""
    rows, last = [], ""
    for pair in pairs:
        rows.append([pair.measure if pair.measure != last else "", *_pair_row(pair)])
        last = pair.measure
    header = [
        *("measure", "function", "pairs", f"difference{_unit(pairs[0].metric, points=True)}"),
        *("95 % t-interval", "bootstrap", "better in", "p (t)", "p (signed rank)", "verdict"),
    ]
    return _section(
        f"Test {pairs[0].metric} minus that of {pairs[0].second}, seed by seed",
        [header, *rows],
        "Tests are two-sided and corrected by Holm over the functions of each measure, not over "
        "measures: choose the one to report before looking. The verdict is the t-test's; no "
        f"interval and no verdict below {FEW_SEEDS} pairs.",
    )


def describe_speed_ups(found: Sequence[SpeedUp]) -> str:
    """Fractions of the other function's labels, at several of its label counts."""
    rows = []
    for each in found:
        matched = sum(value is not None for value in each.fractions.values())
        speed = factor(each.median)
        rows.append(
            [
                each.function,
                f"{each.labels:,}",
                f"{100 * float(np.mean(list(each.targets.values()))):.1f} %"
                if each.targets
                else "-",
                "-" if each.median is None else f"{each.median:.2f}",
                _range(each.lower, each.upper, ".2f") if len(each.fractions) >= FEW_SEEDS else "-",
                "-" if speed is None else f"{speed:.2f}",
                f"{matched} of {len(each.fractions)}",
            ]
        )
    other = found[0].against
    header = [
        *("function", f"labels of {other}", "its accuracy"),
        *("fraction needed", "quartiles", "speed-up", "seeds that match"),
    ]
    return _section(
        f"Fraction of {other}'s labels that match its accuracy",
        [header, *rows],
        f"Seed by seed: both curves are timed where they first come up to what {other} has at that "
        "label count, on straight lines between rounds; median over seeds. A seed that never "
        "matches counts as not matched by its last label count; '-' is beyond what was seen.",
    )


def describe_penalties(found: Penalties) -> str:
    """The penalty matrix with its orientation."""
    rows = [
        [name, *(f"{value:.2f}" if j != i else "" for j, value in enumerate(found.matrix[i]))]
        for i, name in enumerate(found.functions)
    ]
    means = ["column mean", *(f"{value:.2f}" for value in found.column_means)]
    most = int(found.settings.max())
    budgets = "; ".join(", ".join(f"{count:,}" for count in each) for each in found.budgets)
    return _section(
        "Pairwise penalties (Ash et al. 2020)",
        [["row beats column", *found.functions], *rows, means],
        f"{found.orientation[0].upper()}{found.orientation[1:]}. An entry is at most {most}: the "
        f"share of the label budgets ({budgets}) with p < {found.alpha:g} in a paired two-sided "
        "t-test, not corrected for their number.",
    )


def describe_groups(found: GroupComparison) -> str:
    """Kruskal-Wallis, and what Games-Howell sets apart."""
    lines = [
        f"All functions at once, without pairs: test {found.metric}, {found.measure}",
        "",
        f"Kruskal-Wallis over {len(found.functions)} functions with {_span(found.sizes)} seeds: "
        f"H = {found.kruskal_statistic:.2f}, p {_p(found.kruskal_p, equals=True)}.",
    ]
    if len(found.functions) > 1:
        header = ["Games-Howell p", *found.functions]
        rows = [
            [name, *("" if i == j else _p(p) for j, p in enumerate(found.games_howell_p[i]))]
            for i, name in enumerate(found.functions)
        ]
        lines += ["", *text_table([header, *rows]), ""]
    apart = "; ".join(f"{high} above {low}" for high, low in found.differing)
    lines.append(f"Set apart by both: {apart or 'none'}.")
    return "\n".join(lines)


def describe_normalised_errors(found: NormalisedErrors) -> str:
    """Quantiles of the error as a multiple of the other function's."""
    rows = []
    for name, ratios in found.ratios.items():
        if name != found.against:
            below = float(found.cdf[name][ratios < 1].max(initial=0))
            quantiles = [
                ratios[np.searchsorted(found.cdf[name], q - 1e-9)] for q in (0.25, 0.5, 0.75)
            ]
            cells = (ratios[0], *quantiles, ratios[-1])
            rows.append([name, *(f"{value:.2f}" for value in cells), f"{100 * below:.0f} %"])
    header = ["function", "least", "25 %", "median", "75 %", "most", "below 1"]
    number = sum(map(len, found.budgets))
    return _section(
        f"Test error divided by that of {found.against} (Ash et al. 2020)",
        [header, *rows],
        f"Quantiles over {number} label budgets of the ratio of mean errors over shared seeds; "
        "below 1 is better.",
    )


def describe_warnings(warnings: Iterable[str]) -> str:
    """What must not be concluded, a line each."""
    lines = [f"- {text}." for text in warnings]
    return "\n".join(["What must not be concluded", "", *(lines or ["- nothing stands out."])])


def _pair_row(pair: PairedComparison) -> list[str]:
    test = pair.test
    if test is None:
        return [pair.first, "0", *["-"] * 6, pair.verdict]
    return [
        pair.first,
        str(len(pair.seeds)),
        f"{_scale(pair.metric) * test.mean:+.2f}",
        _interval(test.t_interval, pair.metric, signed=True),
        _interval(test.bootstrap_interval, pair.metric, signed=True),
        f"{pair.wins} of {len(pair.seeds)}",
        _p(pair.t_p_holm),
        _p(pair.signed_rank_p_holm),
        pair.verdict,
    ]


def _section(title: str, rows: Sequence[Sequence[str]], note: str) -> str:
    return "\n".join([title, "", *text_table(rows), "", note])


def _scale(metric: str) -> float:
    return 100.0 if metric.startswith("accuracy") else 1.0


def _unit(metric: str, *, points: bool = False) -> str:
    return (" (points)" if points else " (%)") if metric.startswith("accuracy") else ""


def _interval(found: Interval | None, metric: str, *, signed: bool = False) -> str:
    if found is None:
        return "-"
    low, high = (f"{_scale(metric) * end:{'+' if signed else ''}.2f}" for end in found)
    return f"{low} to {high}"


def _range(low: float | None, high: float | None, form: str = "g") -> str:
    if low is None:
        return "-"
    return f"from {low:{form}}" if high is None else f"{low:{form}} to {high:{form}}"


def _labels(count: float | None) -> str:
    return "not reached" if count is None else f"{count:g}"


def _kept(sustained: int) -> str:
    return f", for {sustained} rounds" if sustained > 1 else ""


def _p(value: float | None, *, equals: bool = False) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{'= ' if equals else ''}{value:.3g}"


def _span(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low}" if low == high else f"{low} to {high}"
