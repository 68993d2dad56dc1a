"""The scores: a table worked out by hand, then one list of scores x one list of behaviours."""

import functools
import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning.utils import exp_times, log_mean_exp

SCORES = {
    "bald": af.bald,
    "max_entropy": af.max_entropy,
    "variation_ratios": af.variation_ratios,
    "variation_ratios_mode": af.variation_ratios_mode,
    "mean_std": af.mean_std,
    "least_confidence": af.least_confidence,
    "margin": af.margin,
    "margin_ratio": af.margin_ratio,
    "expected_entropy": af.expected_entropy,
}
COMPILED = {name: jax.jit(score) for name, score in SCORES.items()}  # eager calls are slow
SIZES = [(num_classes, num_samples) for num_classes in (2, 10, 1000) for num_samples in (1, 2, 100)]
each_score = pytest.mark.parametrize("name", SCORES)
pytestmark = pytest.mark.filterwarnings("ignore:bald. with one posterior sample:UserWarning")


def reference(name: str, log_probs: np.ndarray) -> np.ndarray:
    """float64, one candidate, sample and class at a time, from the textbook definitions."""
    probs = np.exp(np.asarray(log_probs, np.float64))
    return np.array([_reference_of_one(name, candidate) for candidate in probs])


def _entropy(probs: np.ndarray) -> float:
    return -float(np.sum(probs[probs > 0] * np.log(probs[probs > 0])))


def _reference_of_one(name: str, probs: np.ndarray) -> float:
    mean = probs.sum(axis=0) / len(probs)
    if name == "bald":
        return _entropy(mean) - sum(_entropy(sample) for sample in probs) / len(probs)
    if name == "max_entropy":
        return _entropy(mean)
    if name == "variation_ratios":
        return 1 - max(mean)
    if name == "variation_ratios_mode":
        votes = [sample.tolist().index(max(sample)) for sample in probs]
        return 1 - max(votes.count(vote) for vote in votes) / len(votes)
    if name == "least_confidence":
        return 1 - max(mean)
    if name in ("margin", "margin_ratio"):
        first, second = sorted(mean)[-1], sorted(mean)[-2]
        return 1 - (first - second) if name == "margin" else second / first
    if name == "expected_entropy":
        return sum(_entropy(sample) for sample in probs) / len(probs)
    assert name == "mean_std"
    return float(np.mean([np.sqrt(np.mean((p - p.mean()) ** 2)) for p in probs.T]))


def random_log_probs(
    num_samples: int, num_classes: int, n: int = 5, scale: float = 3.0
) -> np.ndarray:
    generator = np.random.default_rng(num_samples * 10_007 + num_classes)
    logits = scale * generator.normal(size=(n, num_samples, num_classes))
    logits += scale * generator.normal(size=(n, 1, num_classes))
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


LN2 = np.log(2)
H = 2 * LN2 - 0.75 * np.log(3)  # entropy of (3/4, 1/4)
TABLE: list[tuple[list[list[float]], list[float]]] = [
    # probabilities [K, C]; then the scores in the order of SCORES
    ([[0.5, 0.5], [0.5, 0.5]], [0.0, LN2, 0.5, 0.0, 0.0, 0.5, 1.0, 1.0, LN2]),
    ([[1.0, 0.0], [0.0, 1.0]], [LN2, LN2, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 0.0]),
    ([[1.0, 0.0], [1.0, 0.0]], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    # A tie votes for class 0.
    (
        [[1.0, 0.0], [0.5, 0.5]],
        [H - LN2 / 2, H, 0.25, 0.0, 0.25, 0.25, 0.5, 1 / 3, LN2 / 2],
    ),
    # Three classes: the mean is (5/8, 1/4, 1/8).
    (
        [[0.75, 0.0, 0.25], [0.5, 0.5, 0.0]],
        [
            5 / 8 * np.log(8 / 5) + LN2 / 2 + 3 * LN2 / 8 - (H + LN2) / 2,
            5 / 8 * np.log(8 / 5) + LN2 / 2 + 3 * LN2 / 8,
            *(3 / 8, 0.0, (1 / 8 + 1 / 4 + 1 / 8) / 3),
            *(3 / 8, 5 / 8, 2 / 5, (H + LN2) / 2),
        ],
    ),
]


def test_the_table_of_scores_is_complete() -> None:
    assert af.SCORES == SCORES


@pytest.mark.parametrize("row", range(len(TABLE)))
def test_hand_computed_table(row: int) -> None:
    probs, expected = TABLE[row]
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.asarray(probs, np.float32))[None]
    for (name, score), value in zip(COMPILED.items(), expected, strict=True):
        np.testing.assert_allclose(score(log_probs), [value], atol=1e-7, err_msg=name)


@each_score
@pytest.mark.parametrize(("num_classes", "num_samples"), SIZES)
def test_matches_brute_force(name: str, num_classes: int, num_samples: int) -> None:
    log_probs = np.concatenate(
        [random_log_probs(num_samples, num_classes, n=3, scale=scale) for scale in (0.1, 3.0)]
    )
    expected = reference(name, log_probs)
    single = COMPILED[name](jnp.asarray(log_probs, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, atol=1e-5, rtol=0)
    with jax.enable_x64(True):
        double = COMPILED[name](jnp.asarray(log_probs))
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(double, expected, atol=1e-6, rtol=0)


@each_score
def test_jit_vmap_and_plain_agree(name: str) -> None:
    score = SCORES[name]
    log_probs = jnp.asarray(random_log_probs(7, 4, n=6), jnp.float32)
    plain = score(log_probs)
    assert plain.shape == (6,)
    np.testing.assert_allclose(jax.jit(score)(log_probs), plain, atol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(score)(log_probs.reshape(2, 3, 7, 4)).reshape(6), plain, atol=1e-6
    )
    one_by_one = jax.vmap(lambda candidate: score(candidate[None])[0])(log_probs)
    np.testing.assert_allclose(one_by_one, plain, atol=1e-6)


@each_score
def test_higher_where_samples_disagree(name: str) -> None:
    disagree, agree = [[0.9, 0.1], [0.1, 0.9]], [[0.9, 0.1], [0.9, 0.1]]
    scores = SCORES[name](np.log(np.asarray([agree, disagree], np.float32)))
    if name == "expected_entropy":  # the one that does not look at disagreement
        np.testing.assert_allclose(scores[1], scores[0], rtol=1e-6)
    else:
        assert scores[1] > scores[0] + 0.1


@each_score
def test_samples_and_candidates_may_come_in_any_order(name: str) -> None:
    log_probs = random_log_probs(7, 4, n=6).astype(np.float32)
    scores = COMPILED[name](log_probs)
    np.testing.assert_allclose(COMPILED[name](log_probs[::-1]), scores[::-1], atol=1e-6)
    np.testing.assert_allclose(COMPILED[name](log_probs[:, ::-1]), scores, atol=1e-6)
    np.testing.assert_allclose(COMPILED[name](log_probs[:, :, ::-1]), scores, atol=1e-6)


def extreme(kind: str) -> jax.Array:
    """`[3, 3, 4]`: samples that agree, that disagree, and a mixture."""
    certain = jnp.eye(4)[jnp.array([[0, 0, 0], [0, 1, 2], [3, 3, 0]])]
    if kind == "-inf":
        return jnp.log(certain)
    return jax.nn.log_softmax(jnp.where(certain == 1, 1e4, -1e4))


@each_score
@pytest.mark.parametrize("kind", ["-inf", "1e4"])
def test_values_and_gradients_are_finite_at_certainty(name: str, kind: str) -> None:
    log_probs = extreme(kind)
    gradient = jax.grad(lambda x: COMPILED[name](x).sum())(log_probs)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(
        COMPILED[name](log_probs), reference(name, np.asarray(log_probs)), atol=1e-6
    )


@each_score
def test_gradient_through_extreme_logits_is_finite(name: str) -> None:
    logits = jnp.array([[[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], [[0.0, 0.0, -1e4], [1e4, 1e4, 0.0]]])
    gradient = jax.jit(jax.grad(lambda x: SCORES[name](jax.nn.log_softmax(x)).sum()))(logits)
    assert np.isfinite(gradient).all()


@each_score
@pytest.mark.parametrize("num_samples", [1, 4])
def test_gradient_is_finite_where_nothing_varies(name: str, num_samples: int) -> None:
    log_probs = jnp.full((2, num_samples, 4), jnp.log(0.25))
    gradient = jax.grad(lambda x: COMPILED[name](x).sum())(log_probs)
    assert np.isfinite(gradient).all()


@each_score
def test_gradient_matches_finite_differences(name: str) -> None:
    with jax.enable_x64(True):
        log_probs = jnp.asarray(random_log_probs(3, 4, n=2, scale=1.0))
        check_grads(
            COMPILED[name], (log_probs,), order=1, modes=["fwd", "rev"], atol=1e-5, rtol=1e-5
        )


@pytest.mark.filterwarnings("ignore:invalid value")
@each_score
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_stay_visible_in_their_row_only(name: str, bad: float) -> None:
    log_probs = random_log_probs(3, 4, n=3).astype(np.float32)
    log_probs[1, 2, 0] = bad
    scores = np.asarray(jax.jit(SCORES[name])(log_probs))
    assert np.isfinite(scores).tolist() == [True, False, True]


@each_score
def test_half_precision_is_raised_and_integers_are_refused(name: str) -> None:
    log_probs = jnp.asarray(random_log_probs(5, 10), jnp.bfloat16)
    scores = COMPILED[name](log_probs)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, COMPILED[name](log_probs.astype(jnp.float32)), atol=1e-6)
    with pytest.raises(ValueError, match=r"floating-point log_probs of shape \[N, K, C\]"):
        SCORES[name](jnp.zeros((2, 3, 4), jnp.int32))


@each_score
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 5, 3, 4), (5, 0, 4), (5, 3, 0)])
def test_wrong_shapes_are_refused_at_trace_time(name: str, shape: tuple[int, ...]) -> None:
    for function in (SCORES[name], jax.jit(SCORES[name])):
        with pytest.raises(ValueError, match=r"expected log_probs of shape \[N, K, C\]"):
            function(jnp.zeros(shape))


def test_the_message_for_a_missing_sample_axis_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"got \[5, 4\] \(one posterior sample is \[N, 1, C\]\)"):
        af.bald(jnp.zeros((5, 4)))


@each_score
def test_small_shapes(name: str) -> None:
    assert COMPILED[name](jnp.zeros((0, 3, 4))).shape == (0,)
    np.testing.assert_array_equal(COMPILED[name](jnp.zeros((2, 3, 1))), [0.0, 0.0])  # one class
    assert COMPILED[name](jnp.log(jnp.full((1, 1, 2), 0.5))).shape == (1,)


@each_score
def test_one_compilation_serves_all_calls(name: str) -> None:
    traces = []

    def counted(log_probs: jax.Array) -> jax.Array:
        traces.append(1)
        return SCORES[name](log_probs)

    compiled = jax.jit(counted)
    for seed in range(3):
        compiled(jax.nn.log_softmax(jax.random.normal(jax.random.key(seed), (4, 3, 5))))
    assert len(traces) == 1


@each_score
def test_works_under_strict_ranks_and_nan_checks(name: str) -> None:
    with jax.numpy_rank_promotion("raise"), jax.debug_nans(True):
        SCORES[name](extreme("-inf")).block_until_ready()
        SCORES[name](extreme("-inf").at[:, :, 3].set(-jnp.inf)).block_until_ready()


@each_score
def test_signature_and_docstring(name: str) -> None:
    first, *options = inspect.signature(SCORES[name]).parameters.values()
    assert first.name == "log_probs"
    for option in options:
        assert option.kind is option.KEYWORD_ONLY and option.default is not option.empty
    doc = inspect.getdoc(SCORES[name]) or ""
    for word in ("[N, K, C]", "`[N]`", "Raises", "20"):
        assert word in doc


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_bald_is_zero_without_disagreement_and_ln_c_at_most(num_classes: int) -> None:
    one_sample = jnp.asarray(random_log_probs(1, num_classes), jnp.float32)
    np.testing.assert_array_equal(af.bald(one_sample), np.zeros(5))
    np.testing.assert_array_equal(COMPILED["bald"](one_sample), np.zeros(5))
    same = jnp.repeat(one_sample, 50, axis=1)
    np.testing.assert_allclose(COMPILED["bald"](same), np.zeros(5), atol=1e-6)
    each_its_own = jnp.log(jnp.eye(num_classes))[None]  # K = C samples, all certain
    np.testing.assert_allclose(COMPILED["bald"](each_its_own), [np.log(num_classes)], rtol=1e-6)


def test_bald_keeps_small_values_that_cancellation_would_lose() -> None:
    logits = np.tile(np.linspace(-1, 1, 10), (1, 2, 1))
    logits[0, 1, 0] += 1e-3
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    with jax.enable_x64(True):
        exact = float(af.bald(jnp.asarray(log_probs))[0])
    assert 0 < exact < 1e-8
    single = af.bald(jnp.asarray(log_probs, jnp.float32))
    np.testing.assert_allclose(single, [exact], rtol=1e-2)


def test_bounds_hold_on_random_inputs() -> None:
    for num_classes, num_samples in [(2, 100), (10, 2), (1000, 2)]:
        log_probs = jnp.asarray(random_log_probs(num_samples, num_classes, n=20), jnp.float32)
        bounds = {
            "bald": np.log(min(num_classes, num_samples)),
            "max_entropy": np.log(num_classes),
            "variation_ratios": 1 - 1 / num_classes,
            "variation_ratios_mode": 1 - 1 / min(num_classes, num_samples),
            "mean_std": 0.5,
            "least_confidence": 1 - 1 / num_classes,
            "margin": 1.0,
            "margin_ratio": 1.0,
            "expected_entropy": np.log(num_classes),
        }
        assert bounds.keys() == SCORES.keys()
        for name, upper in bounds.items():
            scores = np.asarray(COMPILED[name](log_probs))
            assert scores.min() >= -1e-6, name
            assert scores.max() <= upper + 1e-5, name


def test_mode_form_breaks_ties_towards_the_lowest_class_and_has_no_gradient() -> None:
    tie = jnp.log(jnp.array([[[0.5, 0.5], [0.4, 0.6], [0.9, 0.1]]]))
    np.testing.assert_allclose(af.variation_ratios_mode(tie), [1 / 3], rtol=1e-6)
    gradient = jax.grad(lambda x: af.variation_ratios_mode(x).sum())(tie)
    np.testing.assert_array_equal(gradient, np.zeros_like(tie))


def test_mean_std_gradient_is_zero_where_a_class_does_not_vary() -> None:
    gradient = jax.grad(lambda x: af.mean_std(x).sum())(jnp.log(jnp.full((1, 4, 4), 0.25)))
    np.testing.assert_array_equal(gradient, np.zeros((1, 4, 4)))


def test_least_confidence_is_variation_ratios_and_may_be_normalised() -> None:
    values = random_log_probs(3, 4)
    log_probs = jnp.asarray(values, jnp.float32)
    plain = COMPILED["least_confidence"]
    normalised = functools.partial(af.least_confidence, normalised=True)
    np.testing.assert_array_equal(plain(log_probs), COMPILED["variation_ratios"](log_probs))
    expected = 4 / 3 * reference("variation_ratios", values)
    np.testing.assert_allclose(normalised(log_probs), expected, rtol=1e-5)
    for num_classes in (2, 10, 1000):
        uniform = jnp.full((1, 2, num_classes), -jnp.log(num_classes))
        np.testing.assert_allclose(normalised(uniform), [1.0], rtol=1e-6)
    np.testing.assert_array_equal(normalised(jnp.zeros((2, 3, 1))), [0.0, 0.0])


def test_margins_look_at_two_classes_and_rank_differently() -> None:
    probs = [[0.5, 0.3, 0.2], [0.3, 0.15, 0.55], [0.1, 0.18, 0.72], [0.4, 0.4, 0.2]]
    log_probs = jnp.log(jnp.array(probs))[:, None]
    np.testing.assert_allclose(COMPILED["margin"](log_probs), [0.8, 0.75, 0.46, 1.0], rtol=1e-6)
    ratios = COMPILED["margin_ratio"](log_probs)
    np.testing.assert_allclose(ratios, [3 / 5, 6 / 11, 1 / 4, 1.0], rtol=1e-6)
    flat = jnp.log(jnp.array([[[0.3, 0.2, 0.2, 0.15, 0.15]], [[0.56, 0.44, 0.0, 0.0, 0.0]]]))
    assert np.argmax(COMPILED["margin"](flat)) == 0  # leads 0.10 and 0.12
    assert np.argmax(COMPILED["margin_ratio"](flat)) == 1  # quotients 0.67 and 0.79


def test_margin_keeps_small_values_that_subtraction_would_lose() -> None:
    log_probs = jax.nn.log_softmax(jnp.array([[[30.0, 0.0, 0.0]]]))
    np.testing.assert_allclose(af.margin(log_probs), [3 * np.exp(-30.0)], rtol=1e-4)
    np.testing.assert_allclose(af.margin_ratio(log_probs), [np.exp(-30.0)], rtol=1e-4)


def test_total_uncertainty_is_aleatoric_plus_epistemic() -> None:
    log_probs = np.concatenate([random_log_probs(20, 10, scale=s) for s in (1e-3, 0.1, 3, 30)])
    parts = jax.jit(af.decompose)(jnp.asarray(log_probs, jnp.float32))
    np.testing.assert_allclose(parts.total, parts.aleatoric + parts.epistemic, atol=2e-6)
    for field, name in zip(parts._fields, ("max_entropy", "expected_entropy", "bald")):
        np.testing.assert_allclose(getattr(parts, field), reference(name, log_probs), atol=1e-5)
    assert (parts.epistemic > 0).all()
    assert af.total_uncertainty is af.max_entropy
    assert af.aleatoric_uncertainty is af.expected_entropy
    assert af.epistemic_uncertainty is af.bald


def test_scores_are_found_by_name() -> None:
    assert af.find_score("margin") is af.margin
    assert af.find_score(af.margin) is af.margin
    with pytest.raises(ValueError, match="unknown score 'margins'; known: bald, max_entropy, .*"):
        af.find_score("margins")


@pytest.mark.parametrize("zero", ["bald", "mean_std", "variation_ratios_mode"])
def test_one_sample_is_too_few_for_disagreement(zero: str) -> None:
    log_probs = jnp.asarray(random_log_probs(1, 4), jnp.float32)
    np.testing.assert_array_equal(SCORES[zero](log_probs), np.zeros(5))
    message = rf"^{zero}: with one posterior sample \(K = 1\) {zero} is identically 0.*use more"
    with pytest.warns(UserWarning, match=message):
        af.check_samples(zero, 1)
    with pytest.warns(UserWarning, match=f"^power:beta=8: with one .* {zero} is identically 0"):
        af.check_samples("power:beta=8", 1, SCORES[zero])


@pytest.mark.parametrize("score", [af.bald, jax.jit(af.bald)])
def test_bald_of_one_sample_warns(score: Any) -> None:
    log_probs = random_log_probs(1, 4)
    with pytest.warns(UserWarning, match=r"^bald: with one .* \(K = 1\) bald is") as found:
        score(log_probs)
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not np.asarray(af.decompose(log_probs).epistemic).any()  # 0 is what it is
        score(random_log_probs(2, 4))


def test_no_warning_where_samples_suffice() -> None:
    """Warnings are errors here."""
    for name, score in SCORES.items():
        af.check_samples(name, 2)
        af.check_samples("power", 2, score)
    log_probs = jnp.asarray(random_log_probs(1, 4), jnp.float32)
    for name in SCORES.keys() - {"bald", "mean_std", "variation_ratios_mode"}:
        assert (np.asarray(SCORES[name](log_probs)) > 0).all()
        af.check_samples(name, 1)
        af.check_samples("power", 1, SCORES[name])
    af.check_samples("random", 1)
    af.check_samples("bald", 1, af.margin)  # the function that is used counts
    with pytest.raises(ValueError, match="num_samples must be positive, got 0"):
        af.check_samples("bald", 0)


def test_log_mean_exp_and_exp_times() -> None:
    values = jnp.array([[-jnp.inf, -jnp.inf], [-jnp.inf, 0.0], [-1e4, -1e4], [jnp.nan, 0.0]])
    expected = np.array([-np.inf, -np.log(2), -1e4, np.nan])
    np.testing.assert_allclose(log_mean_exp(values, axis=1), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.where(jnp.isfinite(y := log_mean_exp(x, 1)), y, 0).sum())
    np.testing.assert_allclose(gradient(values[:3]), np.array([[0, 0], [0, 1], [0.5, 0.5]]))

    weights, logs = jnp.array([-jnp.inf, 0.0, jnp.nan]), jnp.array([-jnp.inf, -2.0, 1.0])
    np.testing.assert_allclose(exp_times(weights, logs), [0.0, -2.0, np.nan])
    gradients = jax.grad(lambda *xs: exp_times(*xs).sum(), argnums=(0, 1))(weights[:2], logs[:2])
    np.testing.assert_allclose(np.array(gradients), np.array([[0.0, -2.0], [0.0, 1.0]]))
