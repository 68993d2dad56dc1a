"""Uncertainty-weighted embeddings (UWE): features as long as the prediction is uncertain."""

import functools

import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions.centres import squared_space
from bayesian_active_learning.acquisition_functions.distances import (
    nearest,
    prepare_points,
    squared_norms,
)
from bayesian_active_learning.acquisition_functions.k_center import (
    farthest_first,
    labelled_points,
)
from bayesian_active_learning.acquisition_functions.scores import find_score
from bayesian_active_learning.acquisition_functions.seeding import d2_sampling
from bayesian_active_learning.acquisition_functions.selection import needed
from bayesian_active_learning.types import (
    Array,
    ArrayLike,
    Candidates,
    Key,
    Score,
    Selection,
    Strategy,
)
from bayesian_active_learning.utils import check_one_of

_UNCERTAINTIES = ("max_entropy", "margin_ratio", "least_confidence", "margin")
_SELECTIONS = ("k_center_greedy_unlb", "k_center_greedy", "kmeans_pp")


def uwe(
    *, uncertainty: str | Score = "max_entropy", selection: str = "k_center_greedy_unlb"
) -> Strategy:
    """Diverse batches of features scaled by the uncertainty of their predictions.

    The embedding of a candidate is e_i = u_i z_i: its features z_i times the uncertainty of
    its prediction, mapped so that the candidates' smallest is 0 and their largest 1 (all 1
    where all candidates are equally uncertain). Then, by euclidean distances of embeddings:

    - "k_center_greedy_unlb": the longest embedding first, then the one farthest from its
      nearest pick; labelled examples take no part;
    - "k_center_greedy": as `coreset`, with the labelled examples as centres, their
      uncertainties mapped like the candidates' (below 0 where they are more certain than
      any candidate); the longest first where nothing is labelled;
    - "kmeans_pp": the longest first, then by `kmeans_pp`.

    `Selection.scores` is the distance when picked, and the norm for a first pick without
    centres.

    He et al. 2024, "Hybrid Active Learning with Uncertainty-Weighted Embeddings", TMLR,
    openreview.net/forum?id=jD761b5OaE; with the options of its code, and "margin" beside them.

    Args:
      uncertainty: "max_entropy", "margin_ratio", "least_confidence" or "margin", or a function
        `[N, K, C] -> [N]`. It is given the predictions without dropout, K = 1, where scores
        of disagreement such as BALD are all 0.
      selection: one of the three names above.

    Returns:
      A strategy that needs predictions and features, and for "k_center_greedy" those of the
      labelled examples. Time O(B N D), memory O(N D). The key is for "kmeans_pp" only.

    Raises:
      ValueError: an unknown uncertainty or selection.
    """
    check_one_of("selection", selection, _SELECTIONS)
    if isinstance(uncertainty, str):
        check_one_of("uncertainty", uncertainty, _UNCERTAINTIES)
    needs = {"predictions", "features"}
    if selection == "k_center_greedy":
        needs |= {"labelled_predictions", "labelled_features", "labelled_mask"}
    select = functools.partial(
        _select_uwe, uncertainty=find_score(uncertainty), selection=selection
    )
    return Strategy(select=select, needs=frozenset(needs))


def _select_uwe(
    key: Key, candidates: Candidates, *, batch_size: int, uncertainty: Score, selection: str
) -> Selection:
    """The `select` of `uwe`; the key is consumed."""
    mask = jnp.asarray(candidates.mask, bool)
    features = prepare_points("euclidean", needed(candidates, "features"), mask)
    values = _uncertainty(uncertainty, needed(candidates, "predictions"), mask)
    least = jnp.min(values, where=mask, initial=jnp.inf)
    spread = jnp.max(values, where=mask, initial=-jnp.inf) - least

    def embed(values: Array, features: Array) -> Array:
        scaled = jnp.where(spread == 0, 1, (values - least) / jnp.where(spread == 0, 1, spread))
        return scaled[:, None] * features

    points = jnp.where(mask[:, None], embed(values, features), 0)
    norms = jnp.sqrt(squared_norms(points))
    if selection == "kmeans_pp":
        return d2_sampling(
            key,
            squared_space(points),
            candidates,
            batch_size,
            norms=norms,
        )
    if selection == "k_center_greedy":
        labelled, there = labelled_points("euclidean", candidates)
        labelled_values = _uncertainty(
            uncertainty, needed(candidates, "labelled_predictions"), there
        )
        labelled = jnp.where(there[:, None], embed(labelled_values, labelled), 0)
        distances = nearest("euclidean", points, labelled, there)[0]
    else:
        distances = jnp.full(len(mask), jnp.inf, points.dtype)
    return farthest_first("euclidean", points, mask, batch_size, distances=distances, first=norms)


def _uncertainty(score: Score, log_probs: Array, mask: ArrayLike) -> Array:
    """Scores `[N]` of single predictions `[N, C]`; whatever is masked out is taken for uniform."""
    uniform = -jnp.log(jnp.asarray(log_probs.shape[-1], log_probs.dtype))
    return score(jnp.where(jnp.asarray(mask)[:, None], log_probs, uniform)[:, None, :])
