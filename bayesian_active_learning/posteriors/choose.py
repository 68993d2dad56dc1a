"""The posterior that a command line names, made from what a round has fitted."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bayesian_active_learning import inference, specs, training
from bayesian_active_learning.posteriors.ensemble import ensemble, fit_ensemble
from bayesian_active_learning.posteriors.laplace import STRUCTURES
from bayesian_active_learning.posteriors.laplace import laplace as last_layer_laplace
from bayesian_active_learning.posteriors.swag import fit_swag
from bayesian_active_learning.posteriors.swag import swag as swag_posterior
from bayesian_active_learning.types import Key, Model, Posterior, Source, Variables
from bayesian_active_learning.utils import check_one_of, check_positive


class Fitted(NamedTuple):
    """A trained network, and what it was trained with."""

    model: Model
    variables: Variables
    optimizer: optax.GradientTransformation
    source: Source
    rows: np.ndarray  # labelled
    labels: np.ndarray
    config: training.FitConfig
    capacity: int


class PosteriorRule(NamedTuple):
    """How to come from a fitted network to K networks.

    build: (key, fitted) -> Posterior; trains what it needs beyond `fitted`.
    max_samples: how many samples differ; None where there is no limit.
    dropout: True where samples differ by dropout masks.
    check: of the settings of the fit; raises ValueError where they do not go together.
    """

    build: Callable[[Key, Fitted], Posterior]
    max_samples: int | None = None
    dropout: bool = False
    check: Callable[[training.FitConfig], object] = lambda config: None

    def num_samples(self, wanted: int) -> int:
        """`wanted`, or as many as there are."""
        return wanted if self.max_samples is None else min(wanted, self.max_samples)


class PosteriorSpec(NamedTuple):
    """A named posterior: `make(**options) -> PosteriorRule`."""

    make: Callable[..., PosteriorRule]
    summary: str
    paper: str


def mc_dropout() -> PosteriorRule:
    """Dropout at test time, see `inference.mc_dropout`."""
    return PosteriorRule(_build_mc_dropout, dropout=True)


def deterministic() -> PosteriorRule:
    """One network with dropout off: K is 1, and BALD identically 0."""
    return PosteriorRule(_build_deterministic, max_samples=1)


def laplace(*, structure: str = "kron", prior_precision: float = 0.0) -> PosteriorRule:
    """Last-layer Laplace, see `posteriors.laplace`.

    Args:
      structure: "full", "kron" or "diag".
      prior_precision: 0 for twice the weight decay of the fit, as that function explains.
    """
    check_one_of("structure", structure, STRUCTURES)
    if not 0 <= prior_precision < math.inf:
        raise ValueError(f"prior_precision must be 0 or above and finite, got {prior_precision}")
    return PosteriorRule(
        functools.partial(_build_laplace, structure=structure, prior_precision=prior_precision),
        check=functools.partial(_precision, prior_precision),
    )


def deep_ensemble(*, members: int = 5, dropout: bool = False) -> PosteriorRule:
    """Networks trained apart, the one at hand and members - 1 more, see `posteriors.ensemble`."""
    if members < 2:
        raise ValueError(f"an ensemble needs at least 2 members, got {members}")
    build = functools.partial(_build_ensemble, members=members, dropout=dropout)
    return PosteriorRule(
        build, max_samples=None if dropout else members, dropout=dropout, check=_check_ensemble
    )


def swag(
    *, rank: int = 20, learning_rate: float = 0.01, snapshots: int = 20, every: int = 10
) -> PosteriorRule:
    """A Gaussian through `snapshots` points of SGD that goes on from the fit, one after
    `every` steps, see `posteriors.swag`."""
    check_positive(learning_rate=learning_rate, every=every)
    if snapshots < 2:
        raise ValueError(f"SWAG needs at least 2 snapshots, got {snapshots}")
    if rank < 0 or rank == 1:
        raise ValueError(f"the rank of SWAG must be 0 or at least 2, got {rank}")
    build = functools.partial(
        _build_swag,
        rank=rank,
        optimizer=optax.sgd(learning_rate),
        snapshots=snapshots,
        every=every,
    )
    return PosteriorRule(build)


def make_posterior(spec: str) -> PosteriorRule:
    """The rule that a command line names: `name` or `name:key=value,key=value`.

    Raises ValueError on unknown names and options and on values of the wrong type.
    """
    return specs.make(spec, POSTERIORS, "posterior")


def _build_mc_dropout(key: Key, fitted: Fitted) -> Posterior:
    del key
    return inference.mc_dropout(fitted.model, fitted.variables)


def _build_deterministic(key: Key, fitted: Fitted) -> Posterior:
    del key
    return inference.deterministic(fitted.model, fitted.variables)


def _build_laplace(
    key: Key, fitted: Fitted, *, structure: str, prior_precision: float
) -> Posterior:
    del key
    precision = _precision(prior_precision, fitted.config)
    return last_layer_laplace(
        fitted.model,
        fitted.variables,
        fitted.source,
        fitted.rows,
        structure=structure,
        prior_precision=precision,
    )


def _precision(prior_precision: float, config: training.FitConfig) -> float:
    """Twice the weight decay where none is given."""
    precision = prior_precision or 2 * config.weight_decay
    if not precision > 0:
        raise ValueError(
            "laplace needs a prior precision above 0: with weight_decay 0, give one by "
            "laplace:prior_precision=..."
        )
    return precision


def _check_ensemble(config: training.FitConfig) -> None:
    if config.monitor != "none":
        raise ValueError(
            f"an ensemble does not stop early: monitor must be 'none', got {config.monitor!r}"
        )


def _build_ensemble(key: Key, fitted: Fitted, *, members: int, dropout: bool) -> Posterior:
    others = fit_ensemble(
        key,
        fitted.model,
        fitted.optimizer,
        fitted.source,
        fitted.rows,
        fitted.labels,
        num_members=members - 1,
        config=fitted.config._replace(monitor="none"),
        capacity=fitted.capacity,
    )
    together = jax.tree.map(
        lambda one, rest: jnp.concatenate([one[None], rest]), fitted.variables, others.variables
    )
    return ensemble(fitted.model, together, dropout=dropout)


def _build_swag(
    key: Key,
    fitted: Fitted,
    *,
    rank: int,
    optimizer: optax.GradientTransformation,
    snapshots: int,
    every: int,
) -> Posterior:
    moments = fit_swag(
        key,
        fitted.model,
        optimizer,
        fitted.source,
        fitted.rows,
        fitted.labels,
        variables=fitted.variables,
        config=fitted.config._replace(
            schedule="constant",
            monitor="none",
            epochs=0,
            min_steps=snapshots * every,
            check_every=every,
        ),
        rank=rank,
        capacity=fitted.capacity,
    )
    return swag_posterior(fitted.model, moments)


POSTERIORS: dict[str, PosteriorSpec] = {
    "mc_dropout": PosteriorSpec(
        mc_dropout,
        "dropout at test time, one network for each set of masks",
        "Gal & Ghahramani 2016, arXiv:1506.02142",
    ),
    "deterministic": PosteriorSpec(
        deterministic, "one network, dropout off: no uncertainty about parameters", "none"
    ),
    "ensemble": PosteriorSpec(
        deep_ensemble,
        "networks trained apart",
        "Lakshminarayanan, Pritzel & Blundell 2017, arXiv:1612.01474",
    ),
    "laplace": PosteriorSpec(
        laplace,
        "a Gaussian around the last layer",
        "Daxberger et al. 2021, arXiv:2106.14806",
    ),
    "swag": PosteriorSpec(
        swag, "a Gaussian through points of SGD", "Maddox et al. 2019, arXiv:1902.02476"
    ),
}
"""Posteriors by the name they have on the command line."""
