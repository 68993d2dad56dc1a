"""What a history shows, in words: a caption, a table, and what may be concluded."""

from collections.abc import Iterable, Mapping, Sequence

from bayesian_active_learning.history.comparison import (
    FEW_SEEDS,
    common_rounds,
    curves_by_function,
    paired_difference,
)
from bayesian_active_learning.history.records import Curve, History
from bayesian_active_learning.history.thresholds import (
    labels_to_threshold,
    quartiles_labels_to_threshold,
)

ENOUGH_SEEDS = 5

DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "digits (8x8), NOT MNIST"}
POOLS = ("repeated", "curated", "unbalanced", "redundant")  # those of data_utils


def dataset_label(history: History) -> str:
    """Which data the history is about, such that nothing else passes for MNIST."""
    name = str(history.config.get("identity", {}).get("dataset", ""))
    base, comma, change = name.partition(", ")  # "mnist, 20 % wrong labels"
    pool, _, data = base.partition("_")  # "repeated_mnist:copies=4"
    data, colon, settings = data.partition(":")
    if pool in POOLS and data in DATASETS:
        base = f"{pool.capitalize()} {DATASETS[data]}{colon and f' ({settings})'}"
    return DATASETS.get(base, base) + comma + change or "unnamed data"


def caption(history: History) -> str:
    """Data, seeds and protocol in a line; what the config does not say is left out."""
    facts: Mapping = history.config.get("identity", {})
    parts = [dataset_label(history), _seeds_in_words(history)]
    if "acquisition_size" in facts:
        parts.append(f"acquisition size {facts['acquisition_size']:,}")
    if "num_samples" in facts:
        # A deterministic network or an ensemble has no more than it has.
        most = "at most " if "posterior" in facts else ""
        parts.append(f"{most}{facts['num_samples']:,} posterior samples")
    if "posterior" in facts:
        parts.append(f"posterior {facts['posterior']}")
    if "initial" in facts:
        parts.append(f"initial set by {facts['initial']}")
    if "pool_size" in facts:
        size = facts["pool_size"]
        parts.append(f"pool subset {size:,}" if size else "whole pool scored")
    text = ", ".join(parts)
    held_out = num_validation(history)
    if held_out is None:
        return text
    return f"{text}; {f'{held_out:,}' if held_out else 'no'} validation labels" + (
        " not counted" if held_out else ""
    )


def num_validation(history: History) -> int | None:
    """How many labels each cell held out beside those it counts; None if unknown."""
    facts = history.config.get("identity", {})
    if "splits" in facts:
        return len(facts["splits"].get("validation", ()))
    return facts.get("num_validation")


def summary_table(
    history: History,
    thresholds: Sequence[float] = (0.90, 0.95),
    sustained: int = 3,
    *,
    metric: str = "accuracy",
) -> str:
    """A plain-text table, one row a function: seeds, labels to each threshold (touched
    first, and kept for `sustained` rounds), final test accuracy."""
    found = curves_by_function(history, metric)
    rows = summary_rows(history, thresholds, sustained, metric=metric)
    few = f"quartiles from {FEW_SEEDS} seeds on"
    notes = [
        f"Labels, initial ones included: median over seeds (with {few}). A seed that does not "
        "get there counts as infinite.",
        "Final test accuracy: mean and standard deviation over seeds at the last label count "
        "that all of them have.",
        *_stopped_early(found),
    ]
    return "\n".join([caption(history), "", *text_table(rows), "", *notes])


def summary_rows(
    history: History,
    thresholds: Sequence[float] = (0.90, 0.95),
    sustained: int = 3,
    *,
    metric: str = "accuracy",
) -> list[list[str]]:
    """The rows of `summary_table`, the first of them its header."""
    found = curves_by_function(history, metric)
    columns = [(threshold, length) for threshold in thresholds for length in {1: 0, sustained: 0}]
    header = ["function", "seeds"]
    for threshold, length in columns:
        words = "first" if length == 1 else f"for {length} rounds"
        header.append(f"{_percent(threshold)} % {words}")
    rows = [[*header, "final test accuracy"]]
    for function, by_seed in found.items():
        curves = list(by_seed.values())
        reach = [_labels_in_words(curves, *column, metric) for column in columns]
        rows.append([function, str(len(curves)), *reach, _final_in_words(curves, metric)])
    return rows


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a plain-text table; the first of `rows` is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def notice(history: History, *, baseline: str = "random", rounds: int = 10) -> str:
    """What may and may not be concluded: too few seeds, other data than MNIST, and each
    function against `baseline` in pairs (see `paired_difference`)."""
    found = curves_by_function(history)
    fewest = min(map(len, found.values()))
    lines = []
    if DATASETS["digits"] in dataset_label(history):
        lines.append(
            "This is digits (8x8), NOT MNIST: nothing here says anything about MNIST or the paper."
        )
    advice = f"run with --seeds {ENOUGH_SEEDS}"
    if fewest == 1:
        lines.append(
            "One seed proves nothing: the functions may differ by the luck of one split and one "
            f"set of initial parameters; {advice}."
        )
    elif fewest < FEW_SEEDS:
        lines.append(f"{fewest} seeds prove next to nothing: differences may be luck; {advice}.")
    elif fewest < ENOUGH_SEEDS:
        lines.append(f"{fewest} seeds are few: small differences may be luck; {advice}.")
    others = [name for name in found if name != baseline]
    if baseline in found and others:
        lines += [_paired_in_words(history, name, baseline, rounds) for name in others]
    return "\n".join(lines)


def _paired_in_words(history: History, first: str, second: str, rounds: int) -> str:
    found = paired_difference(history, first, second, rounds=rounds)
    if found is None:
        return f"{first} minus {second}: not comparable, no seed and label count in common."
    used, count = found.labels, len(found.seeds)
    place = (
        f"the last {len(used)} rounds in common ({used[0]:,} to {used[-1]:,} labels)"
        if len(used) > 1
        else f"the one round in common ({used[0]:,} labels)"
    )
    text = (
        f"{first} minus {second}, test accuracy over {place}, "
        f"{_plural(count, 'paired seed')}: {100 * found.mean:+.2f} percentage points"
    )
    if found.interval is None:
        return f"{text}; too few seeds for an interval."
    low, high = found.interval
    verdict = (
        f"{first} is better than {second} here"
        if low > 0
        else f"{first} is worse than {second} here"
        if high < 0
        else f"{first} is not shown to differ from {second}"
    )
    return f"{text}, 95 % t-interval {100 * low:+.2f} to {100 * high:+.2f}: {verdict}."


def _labels_in_words(curves: Sequence[Curve], threshold: float, sustained: int, metric: str) -> str:
    reached = sum(
        labels_to_threshold(curve.labels, curve.test[metric], threshold, sustained=sustained)
        is not None
        for curve in curves
    )
    if not reached:
        return "not reached"
    some = f"{reached} of {len(curves)} seeds" if reached < len(curves) else ""
    low, median, high = quartiles_labels_to_threshold(curves, threshold, sustained, metric=metric)
    if median is None:
        return f"not reached (only {some})"
    text = f"{median:g}"
    if len(curves) >= FEW_SEEDS:
        text += f" (from {low:g})" if high is None else f" ({low:g} to {high:g})"
    return f"{text}, {some}" if some else text


def _final_in_words(curves: Sequence[Curve], metric: str) -> str:
    counts, values = common_rounds(curves, metric)
    if not len(counts):
        return "no label count in common"
    final = 100 * values[:, -1]
    spread = f" ± {final.std(ddof=1):.2f}" if len(final) > 1 else ""
    return f"{final.mean():.2f}{spread} % at {counts[-1]:,} labels"


def _stopped_early(found: Mapping[str, Mapping[int, Curve]]) -> list[str]:
    """A warning where seeds of a function, or functions, end at different label counts."""
    ends = {
        name: sorted({int(curve.labels[-1]) for curve in curves.values()})
        for name, curves in found.items()
    }
    if len({count for counts in ends.values() for count in counts}) == 1:
        return []
    words = (
        f"{name} {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")
        for name, counts in ends.items()
    )
    return [
        "NOT ALL CURVES END AT THE SAME LABEL COUNT, so 'not reached' may mean 'not yet': "
        f"{', '.join(words)}."
    ]


def _seeds_in_words(history: History) -> str:
    by_function: dict[str, list[int]] = {}
    for (function, seed), curve in history.cells.items():
        if len(curve.labels):
            by_function.setdefault(function, []).append(seed)
    groups: dict[str, list[str]] = {}
    for name, seeds in by_function.items():
        groups.setdefault(_ranges(seeds), []).append(name)
    if not groups:
        return "no seeds"
    if len(groups) == 1:
        (text,) = groups
        return f"seed {text}" if text.isdecimal() else f"seeds {text}"
    return "seeds " + " and ".join(f"{text} ({', '.join(names)})" for text, names in groups.items())


def _ranges(seeds: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    groups: list[list[int]] = []
    for seed in sorted(seeds):
        if groups and seed == groups[-1][-1] + 1:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    parts: list[str] = []
    for group in groups:
        ends = f"{group[0]}-{group[-1]}"
        parts += [ends] if len(group) > 2 else map(str, group)
    return ", ".join(parts)


def _percent(threshold: float) -> str:
    return f"{100 * threshold:g}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")
