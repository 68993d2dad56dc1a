"""Records and callable aliases shared by all layers. Imports nothing of ours.

Axis letters, the same everywhere: N candidates, K posterior samples (the paper's
T), C classes, D features, B batch or acquisition size, L labelled, M test inputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
ArrayLike = jax.Array | np.ndarray
Key = jax.Array  # made by jax.random.key or jax.random.PRNGKey
PyTree = Any

Score = Callable[[Array], Array]
"""`[N, K, C]` normalised log-probabilities -> `[N]`, higher = more worth labelling."""


class Source(Protocol):
    """Inputs by row: an array, a memory map, records read on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class Variables(NamedTuple):
    """Haiku's pair: what is trained, and what is carried (BatchNorm averages)."""

    params: PyTree
    state: PyTree


class Outputs(NamedTuple):
    """What a network returns: `logits [B, C]`, and `features [B, D]`, the input of
    its last linear layer."""

    logits: Array
    features: Array


class Model(NamedTuple):
    """A network as two pure functions; any framework fits.

    init:  (key, inputs [B, ...]) -> Variables
    apply: (variables, key, inputs, *, mode) -> (Outputs, state), `mode` static:
           "train"  dropout masks per example,
           "sample" one posterior sample: masks depend on the key only and are
                    shared by all examples,
           "mean"   no dropout (key may be None).
           "sample" and "mean" return the state that they were given.
    """

    init: Callable[[Key, Array], Variables]
    apply: Callable[..., tuple[Outputs, PyTree]]


class Posterior(NamedTuple):
    """What gives K networks: MC dropout, an ensemble, Laplace, SWAG.

    draw:   (shared, key, K) -> a pytree whose leaves have a leading axis K
    apply:  (shared, one element of the draws, inputs [B, ...]) -> Outputs
    shared: arrays that all samples have in common. They travel as an argument, so
            that new parameters do not mean a new compilation; `draw` and `apply`
            are the same function objects from round to round.
    """

    draw: Callable[[PyTree, Key, int], PyTree]
    apply: Callable[[PyTree, PyTree, Array], Outputs]
    shared: PyTree


class Candidates(NamedTuple):
    """What a strategy may ask for; None where it is not among its `needs`.

    Predictions without a sample axis come from the network with dropout off. E is the
    number of committee members.
    """

    rows: ArrayLike  # [N] int32
    mask: ArrayLike  # [N] bool, False = padding
    scores: ArrayLike | None = None  # [N], of the strategy's own score function
    log_probs: ArrayLike | None = None  # [N, K, C]
    predictions: ArrayLike | None = None  # [N, C] log-probabilities
    features: ArrayLike | None = None  # [N, D], input of the last linear layer
    input_gradients: ArrayLike | None = None  # [N], sum |d cross-entropy(f(x), argmax) / dx|
    committee_log_probs: ArrayLike | None = None  # [N, E, C], networks trained apart
    unlabelled_log_odds: ArrayLike | None = None  # [N], VAAL: log (1 - D) / D at mu(x)
    latents: ArrayLike | None = None  # [N, Z], latent means mu(x) of a VAE without discriminator
    labels: ArrayLike | None = None  # [N], for upper bounds in plots only
    labelled_mask: ArrayLike | None = None  # [L] bool, False = padding
    labelled_labels: ArrayLike | None = None  # [L]
    labelled_scores: ArrayLike | None = None  # [L]
    labelled_predictions: ArrayLike | None = None  # [L, C] log-probabilities
    labelled_features: ArrayLike | None = None  # [L, D]
    labelled_latents: ArrayLike | None = None  # [L, Z]
    target_log_probs: ArrayLike | None = None  # [M, K, C], inputs like those to be predicted
    target_labels: ArrayLike | None = None  # [M], for upper bounds in plots only


class Selection(NamedTuple):
    """What a strategy picked, best first. Positions index the candidate arrays;
    `acquire` is the one function that turns them into rows."""

    positions: ArrayLike  # [B] int32
    scores: ArrayLike  # [B], as seen when picked
    valid: ArrayLike  # [B] bool, False = fewer candidates than asked for
    filler: ArrayLike  # [B] bool, True = not chosen by the rule itself


class Strategy(NamedTuple):
    """select: (key, candidates, *, batch_size) -> Selection, `batch_size` static.

    needs: names of the `Candidates` fields that `select` reads.
    score: for strategies that need "scores", the function that gives them.
    host:  True = not jittable (a solver, scikit-learn).
    min_samples: posterior samples K below which the rule says nothing.
    max_candidates: N above which the rule refuses for want of memory; None = no limit.
    packages: what `select` imports and the library does not depend on, by import name.
    settings: (name, value) pairs for whoever provides the needs, see providers.SETTINGS.
    """

    select: Callable[..., Selection]
    needs: frozenset[str]
    score: Score | None = None
    host: bool = False
    settings: tuple[tuple[str, Any], ...] = ()
    min_samples: int = 1
    max_candidates: int | None = None
    packages: tuple[str, ...] = ()


class StrategySpec(NamedTuple):
    """A named strategy: `make(**options) -> Strategy`."""

    make: Callable[..., Strategy]
    summary: str
    paper: str
