"""The logistic head and its Laplace posterior, against float64 by other ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from bayesian_active_learning import inference
from bayesian_active_learning.posteriors import fit_logistic, logistic, sample_logistic

L, D, C, USED = 20, 6, 4, 14


def problem(seed: int = 0):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(L, D)).astype(np.float32)
    labels = generator.integers(C, size=L)
    return inputs, labels, np.arange(L) < USED


def fit(prior: float = 0.3, posterior: float | None = None, seed: int = 0):
    return fit_logistic(
        *problem(seed), num_classes=C, prior_precision=prior, posterior_precision=posterior
    )


def log_posterior(prior: float, weights: np.ndarray) -> float:
    """Of problem 0, in float64, without its constant."""
    inputs, labels, mask = problem()
    inputs, labels = inputs[mask].astype(float), labels[mask]
    logits = inputs @ weights
    chosen = logits[np.arange(USED), labels]
    return (chosen - scipy.special.logsumexp(logits, axis=1)).sum() - prior / 2 * (weights**2).sum()


def mode(prior: float) -> np.ndarray:
    """By a quasi-Newton method in the weights themselves, in float64."""

    def loss(flat):
        return -log_posterior(prior, flat.reshape(D, C))

    return scipy.optimize.minimize(loss, np.zeros(D * C), tol=1e-10).x.reshape(D, C)


@pytest.mark.parametrize("prior", [0.01, 0.3, 10.0])
def test_mode_is_that_of_another_solver(prior: float):
    found, best = fit(prior), mode(prior)
    missed = log_posterior(prior, best) - log_posterior(prior, np.asarray(found.weights, float))
    assert missed < 1e-5
    # A log-posterior that curves by at least `prior` leaves so much freedom to the weights: in
    # float32 a weak prior's are the processor's to the third digit, its predictions' are not.
    assert np.linalg.norm(found.weights - best) < np.sqrt(2 * 1e-5 / prior)
    if prior >= 0.1:
        np.testing.assert_allclose(found.weights, best, atol=1e-3)
    used = problem()[0][:USED].astype(float)
    np.testing.assert_allclose(
        scipy.special.softmax(used @ found.weights, axis=1),
        scipy.special.softmax(used @ best, axis=1),
        atol=3e-3,
    )
    assert 0 < found.steps < 20


def test_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs, labels, mask = problem()
    peer = linear_model.LogisticRegression(C=1 / 0.3, fit_intercept=False, tol=1e-8, max_iter=1000)
    peer.fit(inputs[mask], labels[mask])
    # scikit-learn's coefficients are those of the classes; ours too, as priors are symmetric.
    np.testing.assert_allclose(fit(0.3).weights, peer.coef_.T, atol=2e-3)


def test_what_is_masked_plays_no_part():
    inputs, labels, mask = problem()
    changed = np.where(mask[:, None], inputs, 1e30).astype(np.float32)
    found = fit_logistic(changed, labels, mask, num_classes=C, prior_precision=0.3)
    np.testing.assert_allclose(found.weights, fit().weights, atol=5e-4)
    short = fit_logistic(
        inputs[:USED], labels[:USED], mask[:USED], num_classes=C, prior_precision=0.3
    )
    np.testing.assert_allclose(found.weights, short.weights, atol=5e-4)


def test_no_labels_leave_the_prior():
    inputs, labels, _ = problem()
    empty = fit_logistic(inputs, labels, np.zeros(L, bool), num_classes=C, prior_precision=4.0)
    assert (np.asarray(empty.weights) == 0).all()
    samples = np.asarray(sample_logistic(jax.random.key(0), empty, 4000))
    np.testing.assert_allclose(samples.std(axis=0), 0.5, atol=0.03)


@pytest.mark.parametrize("posterior", [None, 0.7])
def test_samples_have_the_covariance_of_the_inverse_hessian(posterior: float | None):
    inputs, _, mask = problem()
    used = inputs[mask].astype(float)
    probs = scipy.special.softmax(used @ mode(0.3), axis=1)
    hessian = (posterior or 0.3) * np.eye(D * C)
    for x, p in zip(used, probs, strict=True):
        hessian += np.kron(np.outer(x, x), np.diag(p) - np.outer(p, p))
    samples = np.asarray(sample_logistic(jax.random.key(0), fit(0.3, posterior), 100_000))
    assert samples.shape == (100_000, D, C)
    flat = samples.reshape(len(samples), -1).astype(float)
    # Whitened by the exact factor, the sample covariance must be the identity.
    whitened = (flat - mode(0.3).ravel()) @ np.linalg.cholesky(hessian)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(D * C), atol=0.025)


def test_is_a_posterior_like_the_others():
    found = fit()
    inputs, _, _ = problem()
    key = jax.random.key(3)
    log_probs = inference.log_probs(key, logistic(found), inputs, np.arange(L), num_samples=5)
    samples = sample_logistic(key, found, 5)
    expected = jax.nn.log_softmax(jnp.einsum("nd,kdc->nkc", inputs, samples))
    np.testing.assert_allclose(log_probs, expected, atol=1e-4)


def test_vmap_is_one_fit_after_another():
    pairs = [problem(seed) for seed in (0, 1)]
    stacked = [np.stack(each) for each in zip(*pairs, strict=True)]
    together = jax.vmap(lambda *each: fit_logistic(*each, num_classes=C, prior_precision=0.3))(
        *stacked
    )
    for place, pair in enumerate(pairs):
        alone = fit_logistic(*pair, num_classes=C, prior_precision=0.3)
        np.testing.assert_allclose(together.weights[place], alone.weights, atol=1e-4)


def test_separable_data_end_at_the_prior():
    """Without a prior the weights would be infinite."""
    inputs = np.array([[1.0], [-1.0]], np.float32)
    found = fit_logistic(
        inputs, np.array([0, 1]), np.ones(2, bool), num_classes=2, prior_precision=1e-4
    )
    assert np.isfinite(found.weights).all()
    # w_0 = -w_1 = w solves 2 sigmoid(-2 w) = prior w.
    root = scipy.optimize.brentq(lambda w: 2 * scipy.special.expit(-2 * w) - 1e-4 * w, 0.1, 50)
    np.testing.assert_allclose(found.weights[0, 0], root, rtol=2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(3, int)}, r"expected inputs \[L, D\], labels \[L\] and mask \[L\]"),
        ({"inputs": np.zeros(L)}, r"got \[20\], \[20\] and \[20\]"),
        ({"prior_precision": 0.0}, "prior_precision must be above 0|prior_precision must be pos"),
        ({"posterior_precision": -1.0}, "posterior_precision must be"),
        ({"num_classes": 0}, "num_classes must be"),
    ],
)
def test_refusals(change: dict, message: str):
    inputs, labels, mask = problem()
    given = {"inputs": inputs, "labels": labels, "mask": mask}
    options = {"num_classes": C, "prior_precision": 0.3}
    for name, value in change.items():
        (given if name in given else options)[name] = value
    with pytest.raises(ValueError, match=message):
        fit_logistic(**given, **options)
