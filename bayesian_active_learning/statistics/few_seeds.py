"""When seeds are too few to conclude, in words that say why."""

import math

from bayesian_active_learning.history.comparison import FEW_SEEDS
from bayesian_active_learning.history.summary import ENOUGH_SEEDS

ALPHA = 0.05
FEW_FOR_BOOTSTRAP = 10
MANY_SEEDS = 50  # runs of CDALBench, arXiv:2408.00426


def seed_warnings(pairs: int, *, comparisons: int = 1, alpha: float = ALPHA) -> tuple[str, ...]:
    """What `pairs` paired seeds cannot show, each with its reason; empty from MANY_SEEDS on.

    comparisons: how many the family has over which Holm's correction goes.
    """
    if pairs < 2:
        have = "no seed in common" if pairs < 1 else "one pair of seeds"
        return (f"{have}: neither a test nor an interval is possible",)
    count = f"{pairs} pairs of seeds"
    found = []
    if pairs < FEW_SEEDS:
        found.append(f"{count} prove next to nothing: no interval is given, no verdict drawn")
    elif pairs < ENOUGH_SEEDS:
        found.append(f"{count} are few: whether the differences are normal cannot be seen")
    # All differences of one sign: 2 of the 2^n ways to choose signs are as extreme.
    least = 2.0 ** (1 - pairs)
    if least * comparisons > alpha:
        enough = 1 + math.ceil(math.log2(comparisons / alpha))
        family = f" after Holm's correction over {comparisons}" if comparisons > 1 else ""
        found.append(
            f"with {count} the signed-rank test never gives less than p = "
            f"{min(1.0, least * comparisons):.3g}{family}, whatever the data; {enough} pairs could "
            f"get below {alpha:g}"
        )
    if FEW_SEEDS <= pairs < FEW_FOR_BOOTSTRAP:
        found.append(
            f"the bootstrap interval of {count} is too narrow (it has no correction for estimating "
            "the spread from them): rather trust the t-interval"
        )
    if pairs < MANY_SEEDS:
        found.append(
            f"CDALBench (arXiv:2408.00426) asks for {MANY_SEEDS} runs: with 3, a function can look "
            "significantly better or worse than random by luck"
        )
    return tuple(found)
