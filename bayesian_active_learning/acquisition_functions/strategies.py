"""The table of strategies by name, and `make_strategy`, which reads a command line's specs."""

import functools
from collections.abc import Mapping

from bayesian_active_learning import specs
from bayesian_active_learning.acquisition_functions import (
    clustering,
    committee,
    coverage,
    k_center,
    k_center_robust,
    mixtures,
    neighbours,
    rankings,
    seeding,
    stochastic,
    uncertainty_weighted,
)
from bayesian_active_learning.acquisition_functions import scores as scores_
from bayesian_active_learning.acquisition_functions.bait import bait
from bayesian_active_learning.acquisition_functions.batch_bald import batch_bald
from bayesian_active_learning.acquisition_functions.epig import batch_epig, top_epig
from bayesian_active_learning.acquisition_functions.greedy_oracle import UPPER_BOUNDS
from bayesian_active_learning.types import Strategy, StrategySpec

_GAL = "Gal, Islam & Ghahramani 2017, arXiv:1703.02910"
_KIRSCH = "Kirsch et al. 2023, arXiv:2106.12059"
_MUNJAL = "Munjal et al. 2022, arXiv:2002.09564 (TorchAL)"
_SMITH = "Bickford Smith et al. 2023, arXiv:2304.08151"


def _mixture(
    *, first: str = "least_confidence", second: str = "random", weight: float = 0.5
) -> Strategy:
    """`mixtures.mixture` of two names of STRATEGIES."""
    return mixtures.mixture(make_strategy(first), make_strategy(second), weight=weight)


STRATEGIES: dict[str, StrategySpec] = {
    "bald": StrategySpec(
        functools.partial(rankings.top_k, scores_.bald),
        "mutual information between label and parameters",
        f"Houlsby et al. 2011, arXiv:1112.5745; {_GAL}",
    ),
    "max_entropy": StrategySpec(
        functools.partial(rankings.top_k, scores_.max_entropy),
        "entropy of the mean predictive",
        f"Shannon 1948; {_GAL}",
    ),
    "variation_ratios": StrategySpec(
        functools.partial(rankings.top_k, scores_.variation_ratios),
        "one minus the largest probability of the mean predictive",
        f"Freeman 1965; {_GAL}",
    ),
    "variation_ratios_mode": StrategySpec(
        functools.partial(rankings.top_k, scores_.variation_ratios_mode),
        "share of samples that do not vote for the most popular class (the author's code)",
        f"Freeman 1965; {_GAL}",
    ),
    "mean_std": StrategySpec(
        functools.partial(rankings.top_k, scores_.mean_std),
        "standard deviation of the class probabilities, averaged over classes",
        f"Kampffmeyer et al. 2016; Kendall et al. 2015, arXiv:1511.02680; {_GAL}",
    ),
    "random": StrategySpec(rankings.random, "uniform without replacement, the baseline", _GAL),
    "least_confidence": StrategySpec(
        functools.partial(rankings.top_k, scores_.least_confidence),
        "one minus the confidence in the predicted class (the same as variation_ratios)",
        "Lewis & Gale 1994; Culotta & McCallum 2005",
    ),
    "margin": StrategySpec(
        functools.partial(rankings.top_k, scores_.margin),
        "smallest lead of the best class over the second best (BvSB)",
        "Scheffer et al. 2001; Joshi et al. 2009",
    ),
    "margin_ratio": StrategySpec(
        functools.partial(rankings.top_k, scores_.margin_ratio),
        "largest ratio of the second best class to the best",
        "Joshi et al. 2009; Monarch 2021",
    ),
    "expected_entropy": StrategySpec(
        functools.partial(rankings.top_k, scores_.expected_entropy),
        "mean entropy of the samples: the aleatoric part of max_entropy",
        "Kendall & Gal 2017, arXiv:1703.04977; Depeweg et al. 2018, arXiv:1710.07283",
    ),
    "input_gradient": StrategySpec(
        committee.input_gradient,
        "sum of the absolute gradient of the loss of the predicted class by the input",
        "ActiveLearningComparison toolkit",
    ),
    "power": StrategySpec(stochastic.power, "draws in proportion to a power of any score", _KIRSCH),
    "power_bald": StrategySpec(
        functools.partial(stochastic.power, "bald"),
        "draws in proportion to a power of BALD",
        _KIRSCH,
    ),
    "softmax": StrategySpec(
        stochastic.softmax, "draws in proportion to the exponential of any score", _KIRSCH
    ),
    "softmax_bald": StrategySpec(
        functools.partial(stochastic.softmax, "bald"),
        "draws in proportion to the exponential of BALD",
        _KIRSCH,
    ),
    "softrank": StrategySpec(
        stochastic.softrank, "draws in inverse proportion to the rank by any score", _KIRSCH
    ),
    "softrank_bald": StrategySpec(
        functools.partial(stochastic.softrank, "bald"),
        "draws in inverse proportion to the rank by BALD",
        _KIRSCH,
    ),
    "batch_bald": StrategySpec(
        batch_bald,
        "greedy mutual information between the labels of a batch and the parameters",
        "Kirsch et al. 2019, arXiv:1906.08158",
    ),
    "batch_epig": StrategySpec(
        batch_epig,
        "greedy mutual information between the labels of a batch and those of target inputs",
        f"{_SMITH}; Kirsch et al. 2019, arXiv:1906.08158",
    ),
    "epig": StrategySpec(
        top_epig, "mutual information between a label and those of target inputs", _SMITH
    ),
    "random_mix": StrategySpec(
        mixtures.random_mix,
        "part of the batch at random, the rest by the top of a score",
        "ActiveLearningComparison toolkit",
    ),
    "mixture": StrategySpec(
        _mixture,
        "part of the batch by one strategy, the rest by another",
        "ActiveLearningComparison toolkit",
    ),
    "uncertainty_mix": StrategySpec(
        mixtures.uncertainty_mix, "half from the top of a score, half from its bottom", _MUNJAL
    ),
    "uncertainty_uniform": StrategySpec(
        mixtures.uncertainty_uniform, "evenly over the range of a score, cut into bins", _MUNJAL
    ),
    "qbc": StrategySpec(
        committee.qbc,
        "query by committee: most disagreement among networks trained apart",
        "Seung et al. 1992; Dagan & Engelson 1995; McCallum & Nigam 1998; Freeman 1965",
    ),
    "vaal": StrategySpec(
        committee.vaal,
        "least like the labelled inputs, by an adversarial discriminator's word",
        "Sinha et al. 2019, arXiv:1904.00370",
    ),
    "vae_coreset": StrategySpec(
        committee.vae_coreset,
        "greedy k-center of a VAE's latent means: VAAL without its discriminator",
        f"{_MUNJAL}; Sinha et al. 2019, arXiv:1904.00370",
    ),
    "badge": StrategySpec(
        seeding.badge,
        "k-means++ seeding of hallucinated gradients of the last layer: uncertain and diverse",
        "Ash et al. 2020, arXiv:1906.03671",
    ),
    "cog": StrategySpec(
        k_center.cog, "features farthest from the mean of all features", "TorchAL toolkit"
    ),
    "coreset": StrategySpec(
        k_center.coreset,
        "greedy k-center of the features, labelled examples as centres",
        "Gonzalez 1985; Sener & Savarese 2018, arXiv:1708.00489",
    ),
    "coreset_robust": StrategySpec(
        k_center_robust.coreset_robust,
        "k-center of the features that may leave a few outliers, by an integer programme",
        "Sener & Savarese 2018, arXiv:1708.00489",
    ),
    "kmeans": StrategySpec(
        clustering.kmeans,
        "candidates nearest to as many k-means centres: a cold start",
        "Lloyd 1982; Arthur & Vassilvitskii 2007",
    ),
    "kmeans_pp": StrategySpec(
        seeding.kmeans_pp,
        "k-means++ seeding of the features",
        "Arthur & Vassilvitskii 2007",
    ),
    "knearest": StrategySpec(
        neighbours.knearest,
        "nearest neighbours of the labelled examples that are still uncertain",
        "ActiveLearningComparison toolkit",
    ),
    "uwe": StrategySpec(
        uncertainty_weighted.uwe,
        "greedy k-center of features scaled by uncertainty",
        "He et al. 2024, TMLR, openreview.net/forum?id=jD761b5OaE",
    ),
    "bait": StrategySpec(
        bait,
        "least error of the last layer on the candidates, by Fisher information; drops half again",
        "Ash et al. 2021, arXiv:2106.09675",
    ),
    "cluster_margin": StrategySpec(
        clustering.cluster_margin,
        "smallest margins, in turn from each cluster of the pool",
        "Citovsky et al. 2021, arXiv:2107.14263",
    ),
    "lcmd": StrategySpec(
        coverage.lcmd,
        "the farthest point of the largest cluster around labelled and picked points",
        "Holzmueller et al. 2023, arXiv:2203.09410",
    ),
    "probcover": StrategySpec(
        coverage.probcover,
        "balls that cover the most candidates not yet covered",
        "Yehuda et al. 2022, arXiv:2205.11320",
    ),
    "typiclust": StrategySpec(
        clustering.typiclust,
        "the most typical candidate of each cluster without a label",
        "Hacohen et al. 2022, arXiv:2202.02794",
    ),
}


def make_strategy(spec: str, table: Mapping[str, StrategySpec] = STRATEGIES) -> Strategy:
    """The strategy that a command line names: `name` or `name:key=value,key=value`.

    Options are the keyword arguments of the table's `make`; a value is read as the type
    of that argument's default. Equal specs give the same object, so that whatever was
    compiled for it is found again.

    Args:
      spec: for example "bald".
      table: where names are looked up; `{**STRATEGIES, "mine": StrategySpec(...)}` adds one.

    Raises:
      ValueError: an unknown name or option (the known ones are listed), a malformed,
        repeated or missing option, or a value of the wrong type.
    """
    _refuse_upper_bounds(spec, table)
    return specs.make(spec, table, "acquisition function")


def canonical(spec: str, table: Mapping[str, StrategySpec] = STRATEGIES) -> str:
    """The one way to write what `spec` names: options in order, none that has its default.

    Raises:
      ValueError: as `make_strategy` does of names and options.
    """
    _refuse_upper_bounds(spec, table)
    return specs.canonical(spec, table, "acquisition function")


def _refuse_upper_bounds(spec: str, table: Mapping[str, StrategySpec]) -> None:
    name = spec.partition(":")[0]
    if name in UPPER_BOUNDS and name not in table:
        raise ValueError(
            f"{name} looks at the labels it chooses among: it is an upper bound for comparisons, "
            "in experiments.embeddings alone"
        )
