"""Functions against each other over settings and budgets, drawn from `statistics`."""

from typing import TYPE_CHECKING

import numpy as np

from bayesian_active_learning.plotting.predictions import heat_map
from bayesian_active_learning.plotting.styles import SMALL, function_label, function_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bayesian_active_learning.statistics import NormalisedErrors, Penalties


def penalty_matrix(axes: "Axes", penalties: "Penalties") -> None:
    """BADGE's matrix: how often the row's function beats the column's, and below it how often
    a function is beaten on average. See `statistics.penalty_matrix`."""
    most = max(1, int(penalties.settings.max()))
    values = np.vstack([penalties.matrix, penalties.column_means])
    names = [function_label(name) for name in penalties.functions]
    heat_map(axes, values / most, values, [*names, "column mean"], names, decimals=2)
    axes.axhline(len(names) - 0.5, color="black", linewidth=0.8)
    axes.set_xlabel("is beaten")
    axes.set_ylabel("beats")
    settings = f"{most} settings" if most > 1 else "one setting"
    axes.set_title(
        f"pairwise penalties over {settings}, p < {penalties.alpha:g}\n"
        "(lower column means are better)",
        fontsize=9,
    )


def normalised_errors(axes: "Axes", errors: "NormalisedErrors") -> None:
    """The share of budgets at which a function's error is at most so many times that of the
    function it is compared with: the further up and left, the better."""
    styles = function_styles(errors.ratios)
    for name, ratios in errors.ratios.items():
        style = styles[name]
        axes.step(
            np.concatenate([ratios[:1], ratios]),
            np.concatenate([[0.0], errors.cdf[name]]),
            where="post",
            color=style.colour,
            linestyle=style.dash,
            linewidth=1.5,
            label=function_label(name),
        )
    axes.axvline(1, color="#AAAAAA", linewidth=0.8)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"error, in units of that of {function_label(errors.against)}")
    axes.set_ylabel("share of budgets")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=SMALL, loc="lower right")
