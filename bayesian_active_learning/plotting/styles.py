"""How figures look: a style for each function, words for axes, other people's numbers."""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bayesian_active_learning.history.records import History
from bayesian_active_learning.history.summary import num_validation

References = Mapping[str, Mapping[float, float]]
"""function -> accuracy (fraction) -> labels, for example `{"bald": {0.90: 145}}`."""

PAPER = "Gal et al. 2017"
PAPER_LABELS: References = {
    "bald": {0.90: 145, 0.95: 335},
    "variation_ratios": {0.90: 120, 0.95: 295},
    "max_entropy": {0.90: 165, 0.95: 355},
    "mean_std": {0.90: 230, 0.95: 695},
    "random": {0.90: 255, 0.95: 835},
}
"""Gal, Islam & Ghahramani 2017, arXiv:1703.02910, table 1 (MNIST, 3 repetitions)."""

GREY = "#555555"
SMALL = 8  # points, of all small text


class Style(NamedTuple):
    """How a function is drawn; (dash, marker) alone tells it from the others in grey."""

    colour: str
    dash: Any  # matplotlib's linestyle
    marker: str


# Okabe & Ito's palette, without its yellow, which is hardly visible on white; functions
# that are not here get its light blue and Tol's darker colours.
_STYLES = {
    "bald": Style("#0072B2", "-", "o"),
    "variation_ratios": Style("#D55E00", (0, (8, 2)), "^"),
    "max_entropy": Style("#009E73", (0, (6, 2, 1, 2)), "D"),
    "mean_std": Style("#CC79A7", (0, (1, 1.2)), "v"),
    "variation_ratios_mode": Style("#E69F00", (0, (8, 2, 1, 2, 1, 2)), "P"),
    "random": Style("#000000", (0, (4, 3)), "s"),
}
_LABELS = {
    "bald": "BALD",
    "variation_ratios": "variation ratios",
    "max_entropy": "max entropy",
    "mean_std": "mean STD",
    "variation_ratios_mode": "variation ratios (mode)",
    "badge": "BADGE",
    "bait": "BAIT",
    "batch_bald": "BatchBALD",
    "batch_epig": "batch EPIG",
    "cluster_margin": "Cluster-Margin",
    "coreset": "core-set",
    "epig": "EPIG",
    "greedy_oracle": "greedy oracle (sees labels)",
    "lcmd": "LCMD",
    "power_bald": "PowerBALD",
    "probcover": "ProbCover",
    "typiclust": "TypiClust",
    "uwe": "UWE",
    "vaal": "VAAL",
}
_OTHER_COLOURS = ("#56B4E9", "#882255", "#999933", "#332288", "#888888", "#117733", "#AA4499")
_OTHER_DASHES = ("-", (0, (8, 2)), (0, (3, 1.5)), (0, (6, 2, 1, 2)), (0, (1, 1.2)))
_OTHER_MARKERS = ("X", "*", "<", ">", "p", "h")
_OTHERS = tuple(
    Style(_OTHER_COLOURS[number % 7], _OTHER_DASHES[number % 5], _OTHER_MARKERS[number % 6])
    for number in range(30)
)
_HEADLINE = ("batch_bald", "power_bald", "epig", "badge", "coreset", "margin", "typiclust")
_STYLES |= dict(zip(_HEADLINE, _OTHERS))
_AXIS_WORDS = {
    "accuracy": "accuracy (%)",
    "nll": "NLL (nats)",
    "ece": "ECE",
    "brier": "Brier score",
}


def function_styles(functions: Iterable[str]) -> dict[str, Style]:
    """A style for each name: the same in every figure for the best-known functions, with
    options too where a function is there once, and for others as far as they do not get in
    each other's way.

    Raises ValueError for more functions than can be told apart.
    """
    names = list(dict.fromkeys(functions))
    bases = [name.partition(":")[0] for name in names]
    styles = {
        name: _STYLES[base]
        for name, base in zip(names, bases)
        if base in _STYLES and (name == base or bases.count(base) == 1)
    }
    others = sorted(name for name in names if name not in styles)
    if len(others) > len(_OTHERS) - len(_HEADLINE):
        raise ValueError(
            f"{len(names)} functions cannot be told apart in one figure; draw fewer, with "
            "history._replace(cells={...})"
        )
    free = list(_OTHERS[len(_HEADLINE) :])
    for name in others:
        styles[name] = free.pop(zlib.crc32(name.encode()) % len(free))
    return {name: styles[name] for name in names}


def function_label(name: str) -> str:
    """The name as figures show it. Never read as a formula, nor as a hidden label."""
    if name.startswith("_"):
        return f" {plain(name)}"
    base, _, options = name.partition(":")
    if base not in _LABELS:
        return plain(name)
    return plain(f"{_LABELS[base]} ({options})" if options else _LABELS[base])


def check_references(history: History, name: str, dataset: str) -> None:
    """Raises ValueError where the history is not about `dataset`."""
    ours = str(history.config.get("identity", {}).get("dataset", ""))
    if ours != dataset:
        raise ValueError(
            f"the numbers of {name} are about {dataset}, this history is about "
            f"{ours or 'unnamed data'}: they cannot stand in one figure"
        )


def hollow(marker: str, colour: str = GREY) -> dict[str, Any]:
    """Options of `axes.plot` for somebody else's numbers."""
    return {
        "marker": marker,
        "linestyle": "none",
        "markerfacecolor": "white",
        "markeredgecolor": colour,
        "markeredgewidth": 1.3,
    }


def labels_words(history: History) -> str:
    """The name of an axis of label counts."""
    held_out = num_validation(history)
    beside = f"; {held_out:,} validation labels not counted" if held_out else ""
    return f"labels (initial ones included{beside})"


def metric_words(metric: str) -> str:
    """The name and unit of an axis of a test metric."""
    base = metric.removesuffix("_mean")
    words = _AXIS_WORDS.get(base, base)
    return plain(f"test {words}" + (", dropout off" if base != metric else ""))


def plain(text: str) -> str:
    """Dollars as such, not as the ends of a formula."""
    return text.replace("$", r"\$")
