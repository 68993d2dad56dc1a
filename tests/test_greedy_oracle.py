"""The upper bound that looks at labels: by hand, by enumeration, and refused elsewhere."""

import jax
import numpy as np
import pytest
from driver import CONFIG, go

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning import providers
from bayesian_active_learning.types import Candidates

N, M, K, C = 7, 5, 6, 3


def predictions(seed: int, n: int) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).normal(size=(n, K, C))
    return (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)


def test_by_bayes_rule_in_float64():
    log_probs, targets = predictions(0, N), predictions(1, M)
    generator = np.random.default_rng(2)
    labels, target_labels = generator.integers(C, size=N), generator.integers(C, size=M)
    expected = np.zeros(N)
    for i in range(N):
        weights = np.exp(log_probs[i, :, labels[i]].astype(float))
        weights /= weights.sum()
        for j in range(M):
            likely = np.exp(targets[j, :, target_labels[j]].astype(float))
            expected[i] += np.log(weights @ likely / likely.mean()) / M
    found = af.realised_gain(log_probs, labels, targets, target_labels)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_its_expectation_is_epig():
    """Over labels drawn from the model, of candidate and target together."""
    log_probs, targets = predictions(3, N), predictions(4, M)
    joint = np.einsum("nkc,mkd->nmcd", np.exp(log_probs), np.exp(targets)) / K
    expected = np.zeros(N)
    for j in range(M):
        for c in range(C):
            for d in range(C):
                gain = af.realised_gain(
                    log_probs, np.full(N, c), targets[[j]], np.full(1, d, np.int32)
                )
                expected += joint[:, j, c, d] * np.asarray(gain) / M
    np.testing.assert_allclose(af.epig(log_probs, targets), expected, atol=1e-5)


def test_takes_the_label_that_helps_where_uncertainty_is_misled():
    """Candidate 0 is the least certain; but its true label speaks for the wrong sample. That of
    candidate 1 speaks for the right one, and candidate 2 says nothing."""
    sure, unsure = np.log([0.99, 0.01]), np.log([0.01, 0.99])
    targets = np.stack([[sure, unsure]]).astype(np.float32)  # sample 0 is right: label 0
    log_probs = np.stack(
        [[sure, unsure], [np.log([0.9, 0.1]), np.log([0.6, 0.4])], np.log([[0.5, 0.5]] * 2)]
    ).astype(np.float32)
    candidates = Candidates(
        rows=np.arange(3),
        mask=np.ones(3, bool),
        log_probs=log_probs,
        labels=np.array([1, 0, 0]),
        target_log_probs=targets,
        target_labels=np.array([0]),
    )
    strategy = af.greedy_oracle()
    selection = strategy.select(jax.random.key(0), candidates, batch_size=3)
    assert selection.positions.tolist() == [1, 2, 0]
    assert np.argmax(af.bald(log_probs)) == 0
    assert selection.scores[0] > 0 == selection.scores[1] > selection.scores[2]


def test_impossible_targets_stay_finite():
    log_probs = np.array([[[0.0, -np.inf], [-np.inf, 0.0]]], np.float32)
    found = af.realised_gain(log_probs, np.array([0]), log_probs, np.array([1]))
    assert np.isfinite(found).all() and found[0] < -10


def test_shapes_are_checked():
    log_probs = predictions(0, N)
    with pytest.raises(ValueError, match=r"expected \[N, K, C\], \[N\], \[M, K, C\] and \[M\]"):
        af.realised_gain(log_probs, np.zeros(3, int), log_probs, np.zeros(N, int))


def test_is_refused_where_labels_are_asked_for():
    with pytest.raises(ValueError, match="greedy_oracle looks at the labels it chooses among"):
        af.make_strategy("greedy_oracle")
    with pytest.raises(ValueError, match="greedy_oracle looks at the labels it chooses among"):
        af.canonical("greedy_oracle")  # what the command does first
    with pytest.raises(ValueError, match="greedy_oracle looks at the labels it chooses among"):
        go("greedy_oracle", labels=15)
    with pytest.raises(ValueError, match="needs labels, target_labels, which is not provided"):
        go("best", labels=15, config=CONFIG, strategies={"best": af.greedy_oracle()})
    assert not {"labels", "target_labels"} & set(providers.PROVIDERS)
