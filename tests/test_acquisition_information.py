"""BatchBALD and EPIG against enumeration in float64, and pools with a known right answer."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning.acquisition_functions import joint, joint_greedy
from bayesian_active_learning.types import Candidates, Selection

KEY = jax.random.key(0)
bald = jax.jit(af.bald)
SMALL, SMALL_TARGETS = (7, 4, 3), (2, 4, 3)  # one shape for most tests, to compile once
LARGER = (12, 10, 4)


def random_probs(seed: int, *shape: int, scale: float = 2.0) -> np.ndarray:
    weights = np.exp(scale * np.random.default_rng(seed).normal(size=shape))
    return weights / weights.sum(axis=-1, keepdims=True)


def candidates_of(probs: np.ndarray, targets: Any = None, mask: Any = None) -> Candidates:
    with np.errstate(divide="ignore"):
        return Candidates(
            rows=np.arange(100, 100 + len(probs), dtype=np.int32),
            mask=np.ones(len(probs), bool) if mask is None else np.asarray(mask),
            log_probs=np.log(probs).astype(np.float32),
            target_log_probs=None if targets is None else np.log(targets).astype(np.float32),
        )


def pick(spec: str, candidates: Candidates, batch_size: int, seed: int = 0) -> Selection:
    strategy = af.make_strategy(spec)
    candidates = candidates._replace(
        **dict.fromkeys({"log_probs", "target_log_probs"} - strategy.needs)
    )
    return strategy.select(jax.random.key(seed), candidates, batch_size=batch_size)


def positions_of(selection: Selection) -> list[int]:
    return np.asarray(selection.positions).tolist()


# Definitions, one configuration of labels after another


def joint_entropy(inputs: Any) -> float:
    """H[y_1, ..., y_n] of inputs with probabilities `[K, C]` each."""
    total = 0.0
    for labels in itertools.product(*(range(probs.shape[1]) for probs in inputs)):
        chance = np.mean(
            [
                np.prod([probs[k, label] for probs, label in zip(inputs, labels)])
                for k in range(len(inputs[0]))
            ]
        )
        total -= chance * np.log(chance) if chance > 0 else 0.0
    return total


def about_parameters(inputs: Any) -> float:
    """I[y_1, ..., y_n; w]"""
    entropies = [
        -sum(p * np.log(p) for p in row if p > 0) / len(probs) for probs in inputs for row in probs
    ]
    return joint_entropy(inputs) - sum(entropies)


def about_targets(inputs: Any, targets: Any) -> float:
    """The mean over targets of I[y_1, ..., y_n; y*]"""
    return float(
        np.mean(
            [
                joint_entropy(inputs) + joint_entropy([target]) - joint_entropy([*inputs, target])
                for target in targets
            ]
        )
    )


def greedy(value: Any, pool: np.ndarray, batch_size: int) -> tuple[list[int], list[float]]:
    """Positions and gains of plain greedy maximisation of `value(inputs)`."""
    chosen: list[int] = []
    gains = []
    before = 0.0
    for _ in range(batch_size):
        values = {
            i: value([pool[j] for j in [*chosen, i]]) for i in range(len(pool)) if i not in chosen
        }
        best = max(values, key=lambda i: values[i])
        chosen.append(best)
        gains.append(values[best] - before)
        before = values[best]
    return chosen, gains


# BatchBALD


@pytest.mark.parametrize("seed", range(4))
def test_batch_bald_is_exhaustive_greedy(seed: int) -> None:
    pool = random_probs(seed, *SMALL)
    selection = pick("batch_bald", candidates_of(pool), 3)
    expected, gains = greedy(about_parameters, pool, 3)
    assert positions_of(selection) == expected
    np.testing.assert_allclose(selection.scores, gains, atol=2e-6)
    assert (np.diff(selection.scores) <= 0).all()
    best = max(about_parameters(subset) for subset in itertools.combinations(pool, 3))
    assert np.sum(selection.scores) >= (1 - 1 / np.e) * best


def test_batch_bald_over_many_chunks_is_plain_greedy() -> None:
    """Enough candidates that most are passed over, some masked; gains by whole arrays."""
    n, num_samples, num_classes = 400, 6, 3
    pool = random_probs(0, n, num_samples, num_classes)
    mask = np.arange(n) % 5 != 0
    table, left, expected, gains = np.full((1, num_samples), 1 / num_samples), mask.copy(), [], []
    own = -(pool * np.log(pool)).sum(-1).mean(-1)
    for _ in range(4):
        both = np.einsum("sk,nkc->nsc", table, pool).reshape(n, -1)
        before = table.sum(axis=1)
        gain = (before * np.log(before)).sum() - (both * np.log(both)).sum(-1) - own
        best = int(np.argmax(np.where(left, gain, -1)))
        left[best] = False
        expected.append(best)
        gains.append(gain[best])
        table = (table[:, None] * pool[best].T).reshape(-1, num_samples)
    selection = pick("batch_bald", candidates_of(pool, mask=mask), 4)
    assert positions_of(selection) == expected
    np.testing.assert_allclose(selection.scores, gains, atol=2e-6)
    assert (np.diff(selection.scores) <= 0).all()


def test_a_batch_of_one_is_bald() -> None:
    candidates = candidates_of(random_probs(1, *SMALL))
    scores = np.asarray(bald(candidates.log_probs))
    selection = pick("batch_bald", candidates, 1)
    assert positions_of(selection) == [scores.argmax()]
    assert selection.scores[0] == scores.max()


def bits_pool(*inputs: tuple[int, float], bits: int = 3) -> np.ndarray:
    """`[N, 2^bits, 2]`: each input shows one bit of the parameters with some probability."""
    samples = np.arange(2**bits)
    shown = [
        np.where((samples >> bit) & 1, sure, 1 - sure) if bit >= 0 else np.full(2**bits, 0.5)
        for bit, sure in inputs
    ]
    return np.stack([np.stack([1 - probs, probs], axis=-1) for probs in shown])


def test_batch_bald_does_not_ask_the_same_twice() -> None:
    """The two best by BALD are one question; the third best is another."""
    candidates = candidates_of(bits_pool((-1, 0), (1, 0.8), (0, 0.95), (0, 0.95), (-1, 0)))
    assert positions_of(pick("bald", _with_bald(candidates), 2)) == [2, 3]
    # The same question once more is still worth more than nothing at all.
    selection = pick("batch_bald", candidates, 5)
    assert positions_of(selection)[:3] == [2, 1, 3]
    np.testing.assert_allclose(selection.scores[3:], 0, atol=1e-6)


def _with_bald(candidates: Candidates) -> Candidates:
    return candidates._replace(scores=np.asarray(bald(candidates.log_probs)))


def test_sampled_gains_are_near_the_exact_ones() -> None:
    """Two picks of five by sampling, judged by enumeration."""
    pool = random_probs(3, *LARGER)
    selection = pick("batch_bald:max_exact=16", candidates_of(pool), 5)
    chosen = positions_of(selection)
    values = [0.0] + [about_parameters(pool[chosen[:size]]) for size in range(1, 6)]
    errors = np.abs(selection.scores - np.diff(values))
    assert (errors[:3] < 1e-6).all()
    assert 1e-6 < errors[3:].max() < 0.02  # it did sample


def test_sampled_tables_have_no_bias() -> None:
    """Few configurations, many times: what they say about others, and with targets' labels."""
    num_samples, runs = 3, 400
    pool = jnp.asarray(random_probs(4, 5, num_samples, 3), jnp.float32)
    prior = joint.prior(num_samples, jnp.float32)

    def sampled(key: Any) -> Any:
        first, second, third = jax.random.split(key, 3)
        table = joint.sampled_prior(10, num_samples, jnp.float32)
        assert len(table.weights) == 12  # a multiple of K
        table = joint.extended_by_draws(first, table, pool[0])
        table = joint.extended_by_draws(second, table, pool[1])
        informed = joint.with_targets(third, table, pool[3:])
        return (
            joint.information(table, prior.posteriors, pool[2:3])[0],
            joint.information(informed, table.posteriors, pool[2:3])[0],
        )

    picks = [np.asarray(pool[i], np.float64) for i in range(5)]
    gain = about_parameters(picks[:3]) - about_parameters(picks[:2])
    expected = (
        about_parameters(picks[2:3]) - gain,
        about_targets(picks[:3], picks[3:]) - about_targets(picks[:2], picks[3:]),
    )
    for values, value in zip(jax.lax.map(sampled, jax.random.split(KEY, runs)), expected):
        error = np.std(values) / np.sqrt(runs)
        assert abs(np.mean(values) - value) < 4 * error < 0.2 * value


def test_the_switch_to_sampling_is_where_num_exact_says() -> None:
    assert [af.num_exact(10, most) for most in (1, 9, 10, 9_999, 10_000, 40_000)] == [
        *(1, 1, 2, 4, 5, 5)
    ]
    assert (af.num_exact(2, 40_000), af.num_exact(1, 4), af.num_exact(1000, 40_000)) == (16, 3, 2)
    larger = candidates_of(random_probs(5, *LARGER))
    small = candidates_of(random_probs(5, *SMALL), random_probs(6, *SMALL_TARGETS))
    for spec, candidates, size, exact in (
        ("batch_bald:max_exact=16", larger, 5, af.num_exact(4, 16)),
        ("batch_epig:max_exact=1", small, 3, af.num_exact(3, 1 // (2 * 3))),
    ):
        first, second = (np.asarray(pick(spec, candidates, size, seed).scores) for seed in (0, 1))
        np.testing.assert_array_equal(first[:exact], second[:exact])
        assert first[exact] != second[exact]


def test_sampling_does_not_feel_the_order_of_the_pool() -> None:
    for spec, shape, size in (
        ("batch_bald:max_exact=16", LARGER, 5),
        ("batch_epig:max_exact=1", SMALL, 3),
    ):
        pool, targets = random_probs(5, *shape), random_probs(6, *SMALL_TARGETS)
        order = np.random.default_rng(0).permutation(len(pool))
        ours = pick(spec, candidates_of(pool, targets), size)
        theirs = pick(spec, candidates_of(pool[order], targets), size)
        assert positions_of(ours) == order[np.asarray(theirs.positions)].tolist()
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)


@pytest.mark.parametrize("spec", ["batch_bald:max_exact=3,num_configs=50", "batch_epig", "epig"])
def test_one_sample_tells_nothing(spec: str) -> None:
    """All gains are exactly 0, so the order is that of the positions."""
    candidates = candidates_of(random_probs(7, 9, 1, 3), random_probs(8, 2, 1, 3))
    selection = pick(spec, candidates, 5)
    assert positions_of(selection) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(selection.scores, 0)


@pytest.mark.parametrize("spec", ["batch_bald", "batch_epig", "batch_epig:max_exact=1", "epig"])
def test_certain_predictions_and_nan(spec: str) -> None:
    """Probabilities of 0 and 1 are no trouble; NaN is picked first, to be refused."""
    certain = np.eye(3)[np.random.default_rng(0).integers(3, size=SMALL[:2])]
    candidates = candidates_of(certain, certain[: SMALL_TARGETS[0]])
    selection = pick(spec, candidates, 3)
    assert np.isfinite(selection.scores).all()
    first = certain[positions_of(selection)[0]]
    value = (
        about_parameters([first]) if spec == "batch_bald" else about_targets([first], certain[:2])
    )
    assert selection.scores[0] == pytest.approx(value, abs=1e-6)
    np.asarray(candidates.log_probs)[6] = np.nan
    selection = pick(spec, candidates, 3)
    assert positions_of(selection)[0] == 6 and np.isnan(selection.scores[0])
    assert len(set(positions_of(selection))) == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("batch_bald:max_exact=0", "max_exact must be positive, got 0"),
        ("batch_bald:num_configs=-1", "num_configs must be positive, got -1"),
        ("batch_epig:num_configs=0", "num_configs must be positive, got 0"),
        ("batch_epig:num_targets=0", "num_targets must be positive, got 0"),
        ("epig:targets=pond", "unknown targets 'pond'; known: pool, test"),
    ],
)
def test_refused_options(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        af.make_strategy(spec)


def test_targets_are_settings_for_the_provider() -> None:
    for spec in ("epig", "batch_epig"):
        strategy = af.make_strategy(f"{spec}:targets=test,num_targets=7")
        assert dict(strategy.settings) == {"targets": "test", "num_targets": 7}
        assert dict(af.make_strategy(spec).settings) == {"targets": "pool", "num_targets": 100}


def test_joint_information_by_enumeration() -> None:
    pool = random_probs(3, 4, 4, 3)
    found = af.joint_information(KEY, np.log(pool).astype(np.float32))
    whole = [about_parameters(pool[: count + 1]) for count in range(4)]
    np.testing.assert_allclose(np.cumsum(found), whole, atol=1e-5)
    assert found[0] == pytest.approx(float(bald(np.log(pool[:1]).astype(np.float32))[0]), abs=1e-6)


def test_joint_information_of_copies_is_nothing_new() -> None:
    """Samples that are sure and disagree: the first label tells all, its copies nothing."""
    probs = np.zeros((3, 2, 2))
    probs[:, 0, 0] = probs[:, 1, 1] = 1
    with np.errstate(divide="ignore"):
        found = af.joint_information(KEY, np.log(probs).astype(np.float32))
    np.testing.assert_allclose(found, [np.log(2), 0, 0], atol=1e-6)


def test_joint_information_of_a_batch_is_its_scores() -> None:
    """Sampled as well, from another key: within the error of the draws."""
    pool = random_probs(4, *LARGER)
    spec = "batch_bald:max_exact=20,num_configs=20000"
    selection = pick(spec, candidates_of(pool), 5)
    batch = np.log(pool[positions_of(selection)]).astype(np.float32)
    found = af.joint_information(KEY, batch, max_exact=20, num_configs=20_000)
    np.testing.assert_allclose(found[:3], selection.scores[:3], atol=2e-6)  # 1, 4, 16 <= 20
    np.testing.assert_allclose(found, selection.scores, atol=0.01)
    exact = about_parameters(pool[positions_of(selection)])
    assert float(found.sum()) == pytest.approx(exact, abs=0.02)
    assert found.sum() < bald(batch).sum()


def test_joint_information_refuses() -> None:
    with pytest.raises(ValueError, match=r"\[B, K, C\]"):
        af.joint_information(KEY, np.zeros((2, 3)))
    with pytest.raises(ValueError, match="num_configs"):
        af.joint_information(KEY, np.zeros((2, 3, 4)), num_configs=0)


def test_joint_entropy_by_enumeration() -> None:
    pool = random_probs(9, 3, 4, 3)
    pool[0, :, 0] = 0  # a label that cannot be
    pool[0] /= pool[0].sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        entropy = jax.jit(af.joint_entropy)(np.log(pool).astype(np.float32))
    assert entropy == pytest.approx(joint_entropy(pool), abs=1e-5)
    with pytest.raises(ValueError, match=r"3\^3 = 27 configurations are more than max_exact=26"):
        af.joint_entropy(np.log(pool[1:2].repeat(3, axis=0)), max_exact=26)
    with pytest.raises(
        ValueError, match=r"expected log_probs of shape \[B, K, C\] .* got \[4, 3\]"
    ):
        af.joint_entropy(np.log(pool[1]))


def test_highest_gain_looks_no_further_than_it_must() -> None:
    bounds = jnp.array([0.1, 0.9, 0.8, 0.5, 0.7, 0.3, 9.0])
    gains = jnp.array([0.1, 0.4, 0.6, 0.5, 0.6, 0.3, 9.0, 0.0])  # past the end: 0
    left = jnp.arange(7) < 6
    position, gain, after = joint_greedy.highest_gain(
        lambda positions: gains[positions], bounds, left, slack=0.0, chunk=2
    )
    assert (int(position), float(gain)) == (2, pytest.approx(0.6))  # the tie: lower position
    # 1 and 2 first, then 4 and 3, whose bound of 0.7 was above 0.6; never 5 and 0.
    np.testing.assert_allclose(after, [0.1, 0.4, 0.6, 0.5, 0.6, 0.3, 9.0])
    wide = joint_greedy.highest_gain(
        lambda positions: gains[positions] - 0.05, bounds, left, slack=0.3, chunk=2
    )
    np.testing.assert_allclose(wide[2][np.array([0, 5])], [0.05, 0.25])


# EPIG


def test_epig_by_enumeration() -> None:
    pool, targets = random_probs(10, *SMALL), random_probs(11, *SMALL_TARGETS)
    scores = af.epig(np.log(pool), np.log(targets))
    expected = [about_targets([one], targets) for one in pool]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert (scores <= bald(np.log(pool).astype(np.float32)) + 1e-6).all()
    with jax.enable_x64(True):
        np.testing.assert_allclose(af.epig(np.log(pool), np.log(targets)), expected, rtol=1e-9)


def test_information_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 3 rows: the last of all 10 overlaps, or only the first 7 are live. Chunks of 3
    candidates, of which the last is short."""
    pool, beliefs = random_probs(12, 8, 3, 3), random_probs(13, 10, 2, 3)
    ours, theirs = (np.einsum("sk,nkc->snc", beliefs[:, i], pool) for i in (0, 1))
    for live, size, budget in (
        (10, 10, 3 * 8 * 3),
        (10, 1, 3 * 8 * 3),
        (7, 1, 3 * 8 * 3),
        (7, 10, 1),
    ):
        monkeypatch.setattr(joint, "BUDGET", budget)
        weights = np.where(np.arange(10) < live, random_probs(14, 10), 0)
        table = joint.Table(*(jnp.asarray(x, jnp.float32) for x in (weights, beliefs[:, 0])), live)
        expected = weights @ (ours * np.log(ours / theirs[:size])).sum(-1)
        reference = jnp.asarray(beliefs[:size, 1], jnp.float32)
        found = joint.information(table, reference, jnp.asarray(pool, jnp.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    monkeypatch.setattr(joint, "BUDGET", 256 * 9)
    assert joint.chunk_size(3, largest=8) == 3
    targets = random_probs(15, 5, 3, 3)
    scores = af.epig(np.log(pool), np.log(targets))
    np.testing.assert_allclose(scores, [about_targets([one], targets) for one in pool], atol=1e-6)


def test_small_epig_keeps_its_digits() -> None:
    pool = 1 / 3 + 1e-3 * (random_probs(14, *SMALL) - 1 / 3)
    targets = random_probs(15, *SMALL_TARGETS)
    pool, targets = (np.log(probs).astype(np.float32) for probs in (pool, targets))
    scores = np.asarray(af.epig(pool, targets))
    with jax.enable_x64(True):
        expected = np.asarray(af.epig(pool.astype(np.float64), targets.astype(np.float64)))
    assert expected.max() < 1e-6  # a thousandth of what differences of entropies could tell
    np.testing.assert_allclose(scores, expected, rtol=2e-2)


def test_epig_has_gradients_at_impossible_labels() -> None:
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.eye(3, dtype=np.float32)[np.array([[0, 1], [2, 2]])])
    gradients = jax.jit(jax.grad(lambda *both: af.epig(*both).sum(), argnums=(0, 1)))(
        jnp.asarray(log_probs), jnp.asarray(log_probs)
    )
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("shape", "targets", "message"),
    [
        ((4, 3), (2, 3, 2), r"expected log_probs of shape \[N, K, C\].*, got \[4, 3\]"),
        ((4, 3, 2), (2, 3), r"expected target_log_probs of shape \[M, K, C\].*, got \[2, 3\]"),
        ((4, 3, 2), (0, 3, 2), r"at least one target .* \[4, 3, 2\], got \[0, 3, 2\]"),
        ((4, 3, 2), (2, 5, 2), r"with the samples of log_probs \[4, 3, 2\], got \[2, 5, 2\]"),
    ],
)
def test_epig_refuses(shape: Any, targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        af.epig(np.zeros(shape), np.zeros(targets))


def test_epig_asks_about_what_the_targets_need() -> None:
    """Bits 0 and 2 decide the targets, bit 1 does not: BALD's first is EPIG's last. The two
    best by EPIG are one question, so the batch takes one of them and the next best."""
    targets = bits_pool((0, 0.9), (2, 0.9))
    pool = bits_pool((1, 0.99), (2, 0.9), (0, 0.95), (-1, 0), (0, 0.95))
    candidates = candidates_of(pool, targets)
    assert positions_of(pick("bald", _with_bald(candidates), 1)) == [0]
    top = pick("epig", candidates, 5)
    assert positions_of(top)[:3] == [2, 4, 1]
    expected = [about_targets([pool[i]], targets) for i in positions_of(top)]
    np.testing.assert_allclose(top.scores, expected, atol=1e-6)
    batch = pick("batch_epig", candidates, 5)
    assert positions_of(batch)[:3] == [2, 1, 4]


@pytest.mark.parametrize("seed", range(3))
def test_batch_epig_is_exhaustive_greedy(seed: int) -> None:
    pool, targets = random_probs(seed, *SMALL), random_probs(seed + 50, *SMALL_TARGETS)
    candidates = candidates_of(pool, targets)
    expected, gains = greedy(lambda inputs: about_targets(inputs, targets), pool, 3)
    exact = pick("batch_epig", candidates, 3)
    assert positions_of(exact) == expected
    np.testing.assert_allclose(exact.scores, gains, atol=2e-6)
    sampled = pick("batch_epig:max_exact=1", candidates, 3)
    chosen = [pool[i] for i in positions_of(sampled)]
    values = [0.0] + [about_targets(chosen[:size], targets) for size in (1, 2, 3)]
    np.testing.assert_allclose(sampled.scores, np.diff(values), atol=0.02)


def test_a_batch_of_one_is_epig() -> None:
    candidates = candidates_of(random_probs(20, *SMALL), random_probs(21, *SMALL_TARGETS))
    scores = np.asarray(af.epig(candidates.log_probs, candidates.target_log_probs))
    selection = pick("batch_epig", candidates, 1)
    assert positions_of(selection) == [scores.argmax()]
    assert selection.scores[0] == pytest.approx(scores.max(), abs=1e-7)


def test_batch_epig_sees_that_one_label_makes_another_useful(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The target is the exclusive or of two bits: alone the second tells nothing. Candidates
    are looked at one by one, so one that is wrongly passed over is not found by chance."""
    monkeypatch.setattr(joint, "CHUNK", 1)
    first, second = np.arange(4) & 1, np.arange(4) >> 1
    either = first ^ second
    shown = np.stack([0.46 + 0.08 * either, 0.05 + 0.8 * first + 0.1 * either, second])
    pool = np.stack([1 - shown, shown], axis=-1)
    targets = np.eye(2)[either][None]
    assert about_targets(pool[2:], targets) == pytest.approx(0)
    expected, gains = greedy(lambda inputs: about_targets(inputs, targets), pool, 2)
    assert expected == [1, 2] and gains[1] > 50 * gains[0]
    selection = pick("batch_epig", candidates_of(pool, targets), 2)
    assert positions_of(selection) == expected
    np.testing.assert_allclose(selection.scores, gains, atol=1e-6)


@pytest.mark.parametrize("spec", ["batch_bald:max_exact=5", "batch_epig:max_exact=5"])
def test_passing_over_candidates_changes_no_pick(spec: str, monkeypatch: pytest.MonkeyPatch):
    """Sampled picks from many chunks, against a look at every candidate."""
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(60, 6, 3)) * generator.uniform(0.1, 4, size=(60, 1, 1))
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    candidates = Candidates(
        rows=np.arange(60),
        mask=np.ones(60, bool),
        log_probs=log_probs,
        target_log_probs=log_probs[50:54],
    )
    monkeypatch.setattr(joint, "CHUNK", 8)
    strategy = af.make_strategy(f"{spec},num_configs=3000")
    looked: list[float] = []
    highest_gain = joint_greedy.highest_gain

    def select(slack: float | None) -> Any:
        def spied(*arguments: Any, **options: Any) -> Any:
            looked.append(options["slack"])
            return highest_gain(*arguments, **options | ({} if slack is None else {"slack": slack}))

        monkeypatch.setattr(joint_greedy, "highest_gain", spied)
        jax.clear_caches()  # the rules are compiled inside
        return strategy.select(jax.random.key(1), candidates, batch_size=5)

    ours, everything, first_chunk = select(None), select(1e9), select(-1e9)
    assert max(looked) > 0.01  # sampled picks are among them
    np.testing.assert_array_equal(ours.positions, everything.positions)
    np.testing.assert_allclose(ours.scores, everything.scores, atol=1e-6)
    if spec.startswith("batch_bald"):  # whose first chunk alone would not do
        assert ours.positions.tolist() != first_chunk.positions.tolist()
