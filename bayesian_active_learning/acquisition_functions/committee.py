"""Picks by what other networks say: a committee, the input's gradient, VAAL's
discriminator, a VAE without one.

A committee is a deep ensemble: E networks trained apart. Its disagreement measures map
`[N, E, C]` log-probabilities to `[N]`, higher = more worth labelling, and are scores like
those of posterior samples.
"""

import functools
from typing import Any

import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions.distances import METRICS
from bayesian_active_learning.acquisition_functions.k_center import coreset
from bayesian_active_learning.acquisition_functions.scores import (
    mutual_information,
    variation_ratios_mode,
    vote_counts,
)
from bayesian_active_learning.acquisition_functions.selection import highest, needed, sortable
from bayesian_active_learning.types import Array, ArrayLike, Candidates, Key, Selection, Strategy
from bayesian_active_learning.utils import check_one_of, check_positive


def vote_entropy(log_probs: ArrayLike) -> Array:
    """Entropy of the members' hard votes, -sum_c (V_c/E) log(V_c/E).

    Each member votes for its most probable class, the lowest one on a tie. Dagan & Engelson
    divide by log min(E, C), the largest value there is; left out here, it changes no
    ranking. Takes few values, so ties are common. Its gradient is 0.

    Dagan & Engelson 1995, Committee-based sampling for training probabilistic classifiers;
    Settles 2009, Active learning literature survey.

    Args:
      log_probs: `[N, E, C]` normalised log-probabilities of E members.

    Returns:
      `[N]` nats, between 0 (unanimous, also E = 1) and ln min(E, C).

    Raises:
      ValueError: the shape is not `[N, E, C]` or the dtype not floating point.
    """
    counts = vote_counts(log_probs)
    num_members = jnp.shape(log_probs)[1]
    terms = counts * jnp.log(num_members / jnp.maximum(counts, 1.0))  # 0 for no votes
    return jnp.sum(terms, axis=-1) / num_members


def variation_ratio(log_probs: ArrayLike) -> Array:
    """Share of the members that do not vote for the most popular class, 1 - f_mode / E.

    `variation_ratios_mode` with members in the place of posterior samples.

    Freeman 1965, Elementary Applied Statistics; Beluch et al. 2018, The power of ensembles
    for active learning in image classification.

    Args:
      log_probs: `[N, E, C]` normalised log-probabilities of E members.

    Returns:
      `[N]`, between 0 and 1 - 1/min(E, C).

    Raises:
      ValueError: the shape is not `[N, E, C]` or the dtype not floating point.
    """
    return variation_ratios_mode(log_probs)


def consensus_kl(log_probs: ArrayLike) -> Array:
    """Mean divergence of the members from their consensus, mean_e KL(p_e || mean_e p_e).

    The Jensen-Shannon divergence of the members: `bald` with members in the place of
    posterior samples.

    McCallum & Nigam 1998, Employing EM and pool-based active learning for text
    classification.

    Args:
      log_probs: `[N, E, C]` normalised log-probabilities of E members.

    Returns:
      `[N]` nats, between 0 and ln min(E, C).

    Raises:
      ValueError: the shape is not `[N, E, C]` or the dtype not floating point.
    """
    return mutual_information(log_probs)


_DISAGREEMENTS = {
    "vote_entropy": vote_entropy,
    "variation_ratio": variation_ratio,
    "consensus_kl": consensus_kl,
}


def qbc(*, disagreement: str = "consensus_kl", members: int = 5) -> Strategy:
    """Query by committee: the candidates that the members disagree about most.

    Ties go to the lower position. Three members can split in three ways only, so votes
    leave most of the choice to the order of the pool; hence the default, which has hardly
    any ties. The key is not used. In a run the members are trained as the run's network is,
    but for early stopping and warm starts, with which it is refused, like an ensemble.

    Seung, Opper & Sompolinsky 1992, Query by committee; the measures as they say.

    Args:
      disagreement: "consensus_kl", "vote_entropy" or "variation_ratio".
      members: E, for whoever provides "committee_log_probs"; at least 2.

    Returns:
      A strategy that needs "committee_log_probs" `[N, E, C]`. `select` raises ValueError
      for a committee of one, which agrees with itself everywhere.

    Raises:
      ValueError: an unknown measure, or a committee of one.
    """
    check_one_of("disagreement", disagreement, _DISAGREEMENTS)
    if members < 2:
        raise ValueError(f"a committee needs at least 2 members, got {members}")
    return Strategy(
        _SELECT_QBC[disagreement],
        frozenset({"committee_log_probs"}),
        settings=(("members", members),),
    )


def input_gradient() -> Strategy:
    """The candidates whose predicted class is most sensitive to their inputs.

    The score is sum |d CE(f(x), argmax f(x)) / dx| over the inputs x, for each input by
    itself: high where the prediction is uncertain and changes quickly. "gradients" of the
    ActiveLearningComparison toolkit, whose code picks the lowest by mistake. Ties to the
    lower position; the key is not used.

    Returns:
      A strategy that needs "input_gradients" `[N]`.
    """
    return Strategy(_SELECT_GRADIENT, frozenset({"input_gradients"}))


def vaal(
    *,
    epochs: int = 15,
    max_steps: int = 1000,
    beta: float = 1.0,
    network: str = "auto",
    z_dim: int = 32,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
    discriminator_rate: float = 0.0,
    adversary: float = 1.0,
) -> Strategy:
    """Variational adversarial active learning: the candidates least like the labelled ones.

    The highest log (1 - D(mu(x))) / D(mu(x)), with D a discriminator's probability that the
    latent mean mu(x) belongs to a labelled input (the order of 1 - D, without the ties that
    it has close to 1). Ties to the lower position; the key is not used.

    Sinha, Ebrahimi & Darrell 2019, arXiv:1904.00370.

    Args:
      epochs, max_steps, beta, network, z_dim, batch_size, learning_rate, adversary: of the
        training, for whoever provides the log-odds; see `vaal.VaalConfig`.
      discriminator_rate: likewise; 0 is the learning_rate.

    Returns:
      A strategy that needs "unlabelled_log_odds" `[N]`.

    Raises:
      ValueError: options that are not positive (beta, adversary, discriminator_rate: negative).
    """
    for name, value in (("adversary", adversary), ("discriminator_rate", discriminator_rate)):
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    return Strategy(
        _SELECT_UNLABELLED,
        frozenset({"unlabelled_log_odds"}),
        settings=_vae_settings(
            epochs=epochs,
            max_steps=max_steps,
            beta=beta,
            network=network,
            z_dim=z_dim,
            batch_size=batch_size,
            learning_rate=learning_rate,
            discriminator_rate=discriminator_rate or None,
            adversary=adversary,
        ),
    )


def vae_coreset(
    *,
    metric: str = "euclidean",
    epochs: int = 15,
    max_steps: int = 1000,
    beta: float = 1.0,
    network: str = "auto",
    z_dim: int = 32,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
) -> Strategy:
    """VAAL without its discriminator: `coreset` on the latent means of a plain VAE.

    Each pick is the candidate whose latent mean mu(x) is farthest from the nearest latent mean
    of a labelled input or an earlier pick, argmax_i min_j |mu(x_i) - mu(x_j)|; the VAE is
    trained on labelled and unlabelled inputs alike, without labels. It says what VAAL's game
    adds to its embedding.

    `vaal_minus_disc` of the TorchAL toolkit (Munjal et al. 2022, arXiv:2002.09564), which takes
    the B farthest from the labelled inputs at once, near-duplicates included.

    Args:
      metric: "euclidean", "manhattan" or "cosine" (1 - cos).
      epochs, max_steps, beta, network, z_dim, batch_size, learning_rate: of the training, for
        whoever provides the latents; see `vaal.VaalConfig`.

    Returns:
      A strategy that needs "latents" `[N, Z]`, "labelled_latents" `[L, Z]` and "labelled_mask".
      `Selection.scores` is the distance when picked. The key is not used.

    Raises:
      ValueError: an unknown metric, options that are not positive (beta: negative).
    """
    check_one_of("metric", metric, METRICS)
    return Strategy(
        functools.partial(_select_latents, coreset(metric=metric)),
        frozenset({"latents", "labelled_latents", "labelled_mask"}),
        settings=_vae_settings(
            epochs=epochs,
            max_steps=max_steps,
            beta=beta,
            network=network,
            z_dim=z_dim,
            batch_size=batch_size,
            learning_rate=learning_rate,
            adversary=0.0,
        ),
    )


def _vae_settings(**given: Any) -> tuple[tuple[str, Any], ...]:
    """What the provider is told; the rest it checks itself, see `vaal.check_config`."""
    names = ("epochs", "max_steps", "z_dim", "batch_size", "learning_rate")
    check_positive(**{name: given[name] for name in names})
    if not given["beta"] >= 0:
        raise ValueError(f"beta must not be negative, got {given['beta']}")
    return (("vaal", tuple(given.items())),)


def _select_qbc(
    disagreement: str, key: Key, candidates: Candidates, *, batch_size: int
) -> Selection:
    del key
    log_probs = needed(candidates, "committee_log_probs")
    if log_probs.ndim == 3 and log_probs.shape[1] == 1:
        raise ValueError(
            "expected committee_log_probs [N, E, C] of at least 2 members, got "
            f"{list(log_probs.shape)}: one member has nobody to disagree with"
        )
    scores = _DISAGREEMENTS[disagreement](log_probs)
    return highest(sortable(scores), -jnp.inf, scores, candidates, batch_size)


def _select_field(field: str, key: Key, candidates: Candidates, *, batch_size: int) -> Selection:
    del key
    scores = needed(candidates, field)
    return highest(sortable(scores), -jnp.inf, scores, candidates, batch_size)


def _select_latents(
    strategy: Strategy, key: Key, candidates: Candidates, *, batch_size: int
) -> Selection:
    """`strategy` on latents in the place of features."""
    latents = {
        "features": needed(candidates, "latents"),
        "labelled_features": needed(candidates, "labelled_latents"),
    }
    return strategy.select(key, candidates._replace(**latents), batch_size=batch_size)


# Made once, so that each compiles once.
_SELECT_QBC = {name: functools.partial(_select_qbc, name) for name in _DISAGREEMENTS}
_SELECT_GRADIENT = functools.partial(_select_field, "input_gradients")
_SELECT_UNLABELLED = functools.partial(_select_field, "unlabelled_log_odds")
