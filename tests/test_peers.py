"""Scores and picks from predictions against those of baal, batchbald_redux and scikit-activeml.

`make peers` installs them in an environment of their own and runs these tests; elsewhere each
skips for want of its peer. All is compared in float64, on the same random arrays, after the
conversions that the tables and tests state (axis order, sign, running sums). Where a peer
means something else, or is wrong, a test in the last section shows by how much.
"""

import gc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import (
    baal,
    committee,
    first_axis,
    last_axis,
    log_tensor,
    peer,
    pick,
    pool,
    random_probs,
    redundant_probs,
    redux,
)

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning import metrics
from bayesian_active_learning.acquisition_functions import joint
from bayesian_active_learning.types import Candidates

pytestmark = pytest.mark.peers
SHAPES = {"binary": (40, 7, 2), "ten": (30, 20, 10), "many": (6, 5, 200)}
PROBABILITIES = 1e-12  # float64 on both sides


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield
    gc.unfreeze()  # see `redux`


# Scores


def _baal(name: str, **options: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda probs: getattr(baal(), name)(**options).get_uncertainties(last_axis(probs))


def _redux(name: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda probs: getattr(redux(), name)(log_tensor(probs)).numpy()


def _redux_bald(probs: np.ndarray) -> np.ndarray:
    batch = redux().get_bald_batch(log_tensor(probs), len(probs))
    return np.asarray(batch.scores)[np.argsort(batch.indices)]


def _uncertainty(method: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda probs: pool().uncertainty_scores(probs.mean(axis=1), method=method)


def _votes(name: str) -> Callable[[np.ndarray], np.ndarray]:
    def scores(probs: np.ndarray) -> np.ndarray:
        classes = [range(probs.shape[2])] if name == "vote_entropy" else []
        return getattr(pool(), name)(probs.argmax(axis=2), *classes)

    return scores


SCORES = {
    # Highest first in both, in nats.
    "baal BALD": (af.bald, _baal("BALD")),
    "baal Entropy": (af.max_entropy, _baal("Entropy")),
    # Lowest first there.
    "baal Margin": (af.margin, lambda probs: 1 - _baal("Margin")(probs)),
    "baal Certainty": (af.least_confidence, lambda probs: 1 - _baal("Certainty")(probs)),
    # The reduction of the variances [N, C] is an option there.
    "baal Variance": (
        af.mean_std,
        _baal("Variance", reduction=lambda variances: np.sqrt(variances).mean(axis=1)),
    ),
    "batchbald_redux compute_entropy": (af.max_entropy, _redux("compute_entropy")),
    "batchbald_redux compute_conditional_entropy": (
        af.expected_entropy,
        _redux("compute_conditional_entropy"),
    ),
    "batchbald_redux get_bald_batch": (af.bald, _redux_bald),
    "scikit-activeml entropy": (af.max_entropy, _uncertainty("entropy")),
    "scikit-activeml least_confident": (af.least_confidence, _uncertainty("least_confident")),
    "scikit-activeml margin_sampling": (af.margin, _uncertainty("margin_sampling")),
    "scikit-activeml vote_entropy": (af.vote_entropy, _votes("vote_entropy")),
    "scikit-activeml variation_ratios": (af.variation_ratio, _votes("variation_ratios")),
    "scikit-activeml average_kl_divergence": (
        af.consensus_kl,
        lambda probs: pool().average_kl_divergence(first_axis(probs), eps=1e-300),
    ),
    "scikit-activeml batch_bald, batch of one": (
        af.bald,
        lambda probs: pool().batch_bald(first_axis(probs), 1, eps=1e-300)[0],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SCORES)
def test_scores(name: str, shape: str):
    ours, theirs = jax.jit(SCORES[name][0]), SCORES[name][1]
    probs = random_probs(0, *SHAPES[shape])
    expected = theirs(probs.copy())
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(ours(np.log(probs)), expected, rtol=0, atol=PROBABILITIES)
    single = ours(np.log(probs).astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=0, atol=2e-6)


def test_epig():
    probs, targets = random_probs(1, 30, 12, 5), random_probs(2, 9, 12, 5)
    theirs = baal().EPIG().get_uncertainties(last_axis(probs), last_axis(targets))
    ours = af.epig(np.log(probs), np.log(targets))
    assert theirs.dtype == np.float32  # whatever it is given
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


def test_metrics():
    theirs, torch = peer("baal.utils.metrics"), peer("torch")
    rng = np.random.default_rng(3)
    probs, labels = rng.dirichlet(np.ones(4), 200), rng.integers(0, 4, 200)
    for ours, metric in (
        (metrics.expected_calibration_error(np.log(probs), labels, num_bins=10), theirs.ECE()),
        (metrics.accuracy(np.log(probs), labels), theirs.Accuracy()),
    ):
        metric.update(torch.from_numpy(probs), torch.from_numpy(labels))
        assert float(ours) == pytest.approx(metric.value, abs=1e-7)  # their mean is in float32


# Rankings: the same picks in the same order


def query(strategy: Any, probs: np.ndarray, batch_size: int, **more: Any) -> list[int]:
    """What scikit-activeml picks when a committee predicts `probs`."""
    count = len(probs)
    asked = {"batch_size": batch_size, f"fit_{next(iter(more))}": False, **more}
    return strategy.query(np.arange(count)[:, None], np.full(count, np.nan), **asked).tolist()


def _baal_first(name: str) -> Callable[[np.ndarray, int], list[int]]:
    return lambda probs, size: getattr(baal(), name)()(last_axis(probs))[:size].tolist()


def _uncertain(method: str) -> Callable[[np.ndarray, int], list[int]]:
    return lambda probs, size: query(
        pool().UncertaintySampling(method), probs, size, clf=committee(probs)
    )


def _ensemble(name: str, **options: Any) -> Callable[[np.ndarray, int], list[int]]:
    def picks(probs: np.ndarray, size: int) -> list[int]:
        strategy = getattr(pool(), name)(sample_predictions_method_name="sample", **options)
        return query(strategy, probs, size, ensemble=committee(probs))

    return picks


RANKINGS = {
    "baal BALD": ("bald", _baal_first("BALD")),
    "baal Entropy": ("max_entropy", _baal_first("Entropy")),
    "baal Margin": ("margin", _baal_first("Margin")),
    "baal Certainty": ("least_confidence", _baal_first("Certainty")),
    "batchbald_redux get_bald_batch": (
        "bald",
        lambda probs, size: redux().get_bald_batch(log_tensor(probs), size).indices,
    ),
    "scikit-activeml entropy": ("max_entropy", _uncertain("entropy")),
    "scikit-activeml least_confident": ("variation_ratios", _uncertain("least_confident")),
    "scikit-activeml margin_sampling": ("margin", _uncertain("margin_sampling")),
    "scikit-activeml GreedyBALD": ("bald", _ensemble("GreedyBALD", eps=1e-300)),
    "scikit-activeml QueryByCommittee": ("qbc", _ensemble("QueryByCommittee", eps=1e-300)),
}


@pytest.mark.parametrize("name", RANKINGS)
def test_rankings(name: str):
    spec, theirs = RANKINGS[name]
    probs = random_probs(4, *SHAPES["ten"])
    field = "committee_log_probs" if spec == "qbc" else "log_probs"
    ours = pick(spec, 12, **{field: np.log(probs)})
    assert ours.positions.tolist() == theirs(probs, 12)


STOCHASTIC = {
    "PowerSampling": "power_bald:beta=2",
    "GibbsSampling": "softmax_bald:beta=2",
    "RankBasedSampling": "softrank_bald:beta=2",
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_batches_follow_their_distribution(name: str):
    """beta is 1 / temperature. They draw one after another without replacement, each time in
    proportion to one distribution: so must our ordered pairs be spread."""
    stats = pytest.importorskip("scipy.stats")
    probs = random_probs(5, 30, 8, 3, scale=3.0)
    probs = probs[np.argsort(af.bald(np.log(probs)))[-18::3]]  # none without a chance
    sampler = getattr(baal("stochastics"), name)(baal().BALD(), query_size=2, temperature=0.5)
    _, chances = sampler.get_ranks(last_axis(probs))
    pairs = chances[:, None] * chances / (1 - chances[:, None])
    strategy = af.make_strategy(STOCHASTIC[name])
    candidates = Candidates(np.arange(6), np.ones(6, bool), strategy.score(np.log(probs)))
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.vmap(lambda key: strategy.select(key, candidates, batch_size=2).positions)(keys)
    counts = np.zeros((6, 6))
    np.add.at(counts, tuple(np.asarray(drawn).T), 1)
    apart = ~np.eye(6, dtype=bool)
    assert counts[~apart].sum() == 0
    assert pairs[apart].min() * len(keys) > 5  # or chi-square says nothing
    assert stats.chisquare(counts[apart], len(keys) * pairs[apart]).pvalue > 1e-3


def test_power_aliases():
    aliases, probs = baal("aliases"), random_probs(5, 6, 8, 3)
    for alias, score in ((aliases.PowerBALD, af.bald), (aliases.PowerEntropy, af.max_entropy)):
        scores = np.asarray(score(np.log(probs)))
        _, chances = alias(query_size=2).get_ranks(last_axis(probs))
        np.testing.assert_allclose(chances, scores / scores.sum(), atol=PROBABILITIES)


# BatchBALD. Theirs report the information of the batch so far, ours the gain of each pick.


joint_entropy = jax.jit(af.joint_entropy)


def test_joint_entropy():
    probs = random_probs(6, 5, 9, 4)
    theirs = redux("joint_entropy").ExactJointEntropy.empty(9, dtype=peer("torch").double)
    theirs.add_variables(log_tensor(probs[:4]))
    before = float(theirs.compute())
    assert float(joint_entropy(np.log(probs[:4]))) == pytest.approx(before, abs=1e-10)
    after = float(theirs.compute_batch(log_tensor(probs[4:]))[0])
    assert float(joint_entropy(np.log(probs))) == pytest.approx(after, abs=1e-10)


@pytest.mark.parametrize("limit", [10, 1_000, 40_000])
def test_batch_bald_switches_to_sampling_where_they_do(limit: int):
    module, torch = redux("joint_entropy"), peer("torch")
    one = log_tensor(random_probs(7, 1, 4, 10))
    theirs = module.DynamicJointEntropy(limit, 6, 4, 10, dtype=torch.double)
    exact = 1
    for _ in range(6):
        theirs.add_variables(one)
        exact += isinstance(theirs.inner, module.ExactJointEntropy)
    assert af.num_exact(10, limit) == exact


def redux_batch(probs: np.ndarray, size: int, configs: int) -> tuple[list[int], np.ndarray]:
    module, torch = redux(), peer("torch")
    torch.manual_seed(0)
    batch = module.get_batchbald_batch(log_tensor(probs), size, configs, dtype=torch.double)
    return batch.indices, np.asarray(batch.scores)


def skactiveml_batch(probs: np.ndarray, size: int, configs: int) -> tuple[list[int], np.ndarray]:
    utilities = pool().batch_bald(first_axis(probs), size, configs, random_state=0, eps=1e-300)
    return np.nanargmax(utilities, axis=1).tolist(), np.nanmax(utilities, axis=1)


BATCH_BALD = {"batchbald_redux": redux_batch, "scikit-activeml": skactiveml_batch}


@pytest.mark.parametrize("name", BATCH_BALD)
@pytest.mark.parametrize("shape", [(20, 8, 2), (20, 12, 4)], ids=str)
def test_batch_bald_exact(name: str, shape: tuple[int, ...]):
    probs = redundant_probs(8, *shape)
    picks, information = BATCH_BALD[name](probs, 6, 40_000)
    ours = pick("batch_bald:max_exact=40000", 6, log_probs=np.log(probs))
    assert ours.positions.tolist() == picks
    np.testing.assert_allclose(np.cumsum(ours.scores), information, rtol=0, atol=1e-10)
    top = pick("bald", 6, log_probs=np.log(probs))
    assert set(picks) != set(top.positions.tolist())  # or BatchBALD had nothing to do


def test_batch_bald_query():
    probs = redundant_probs(8, 20, 12, 4)
    theirs = _ensemble("BatchBALD", n_MC_samples=40_000, eps=1e-300)(probs, 6)
    assert pick("batch_bald", 6, log_probs=np.log(probs)).positions.tolist() == theirs


@pytest.mark.parametrize("name", BATCH_BALD)
def test_batch_bald_sampled(name: str):
    """More than 40,000 configurations from the sixth pick on: each samples its own."""
    probs = random_probs(9, 10, 10, 10)
    picks, information = BATCH_BALD[name](probs, 7, 40_000)
    ours = pick("batch_bald:num_configs=40000", 7, log_probs=np.log(probs))
    assert af.num_exact(10, 40_000) == 5 < len(picks)
    assert ours.positions.tolist()[:5] == picks[:5]
    np.testing.assert_allclose(np.cumsum(ours.scores)[:5], information[:5], rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.cumsum(ours.scores), information, rtol=0, atol=0.02)


def test_sampled_joint_entropy():
    module, torch = redux("joint_entropy"), peer("torch")
    torch.manual_seed(0)
    probs = random_probs(6, 5, 9, 4)
    theirs = module.SampledJointEntropy.sample(torch.from_numpy(probs[:4]), 90_000)
    exact = float(joint_entropy(np.log(probs)))
    assert float(theirs.compute_batch(log_tensor(probs[4:]))[0]) == pytest.approx(exact, abs=0.02)
    table = joint.sampled_prior(90_000, 9, jnp.float64)
    for key, one in zip(jax.random.split(jax.random.key(0), 4), probs[:4]):
        table = joint.extended_by_draws(key, table, jnp.asarray(one))
    prior = joint.prior(9, jnp.float64)
    told = joint.information(table, prior.posteriors, jnp.asarray(probs[4:]))
    # H[y_1..y_4, y] = H[y_1..y_4] + H[y] - I[y; y_1..y_4]
    parts = joint_entropy(np.log(probs[:4])) + joint_entropy(np.log(probs[4:]))
    assert float(parts - told[0]) == pytest.approx(exact, abs=0.02)


def test_batch_bald_of_baal():
    """It reports H[y_1..y_i, y] - H[y | w], which lacks the picks' own expected entropies,
    for every pick but the first (whose score is BALD), from samples only; num_samples=3 picks 4."""
    theirs = baal().BatchBALD(num_samples=3, num_draw=4_000)
    peer("torch").manual_seed(0)
    probs = random_probs(10, 12, 10, 4)
    theirs = theirs.get_uncertainties(last_axis(probs))
    ours = pick("batch_bald", 4, log_probs=np.log(probs))
    assert set(np.flatnonzero(theirs)) == set(ours.positions.tolist())
    noise = np.asarray(af.expected_entropy(np.log(probs)))[ours.positions]
    before = np.cumsum(noise) - noise
    information = theirs[ours.positions] - before
    np.testing.assert_allclose(np.cumsum(ours.scores), information, rtol=0, atol=0.02)


# Where they differ: by definition, or by a mistake that is not to be repeated


def test_baal_averages_variances_and_not_standard_deviations():
    probs = random_probs(0, *SHAPES["ten"])
    theirs = _baal("Variance")(probs)
    np.testing.assert_allclose(theirs, probs.var(axis=1).mean(axis=1), atol=PROBABILITIES)
    ours = af.mean_std(np.log(probs))
    assert (np.asarray(ours) ** 2 <= theirs + 1e-12).all()  # Jensen: another ranking, too
    assert np.argsort(ours).tolist() != np.argsort(theirs).tolist()


def test_baal_adds_to_probabilities_on_accelerators():
    """log(p + 1e-5): C 1e-5 too low where members are sure of different classes. It takes
    logits only: probabilities, which the other heuristics take, are an error."""
    heuristic, torch = baal("heuristics_gpu").BALDGPUWrapper, peer("torch")
    logits = 50 * np.eye(10)[None, np.arange(20) % 10]
    theirs = float(heuristic.compute_score(None, torch.from_numpy(last_axis(logits)))[0])
    ours = float(af.bald(jax.nn.log_softmax(logits))[0])
    assert ours == pytest.approx(np.log(10), abs=PROBABILITIES)
    assert ours - theirs == pytest.approx(9e-5, rel=1e-3)
    with pytest.raises(TypeError, match="allclose"):
        heuristic.compute_score(None, torch.from_numpy(last_axis(random_probs(0, 5, 4, 3))))


def test_baal_stochastic_heuristics_have_no_short_call():
    """Others are called with predictions; here only `get_ranks` works, and gives no scores."""
    with pytest.raises(TypeError, match="get_ranks"):
        baal("aliases").PowerBALD(query_size=2)(last_axis(random_probs(5, 6, 8, 3)))


def test_baal_ranks_the_first_pick_of_batch_bald_last():
    """Scores of the information so far, sorted from the highest: of the num_samples + 1 picks
    the first, the highest BALD score, is what a batch of num_samples leaves out."""
    theirs = baal().BatchBALD(num_samples=3, num_draw=4_000)
    peer("torch").manual_seed(0)
    probs = random_probs(10, 12, 10, 4)
    ranks, _ = theirs.get_ranks(last_axis(probs))
    ours = pick("batch_bald", 4, log_probs=np.log(probs)).positions
    assert ranks[:4].tolist() == ours[::-1].tolist()
    assert ours[0] not in ranks[:3]


def test_batchbald_redux_takes_zero_probabilities_for_nan():
    """0 log 0 is 0: a network sure of itself must not make the scores NaN."""
    probs = random_probs(0, 12, 8, 4)
    probs[3, 0] = [1, 0, 0, 0]
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs)
    assert np.isnan(_redux("compute_conditional_entropy")(probs)).tolist() == [
        row == 3 for row in range(12)
    ]
    assert redux().get_bald_batch(log_tensor(probs), 1).indices == [3]
    expected = _baal("BALD")(probs)
    np.testing.assert_allclose(af.bald(log_probs), expected, rtol=0, atol=PROBABILITIES)
    best = int(np.argmax(expected))
    assert best != 3
    assert pick("bald", 1, log_probs=log_probs).positions.tolist() == [best]
    assert pick("batch_bald", 1, log_probs=log_probs).positions.tolist() == [best]


@pytest.mark.parametrize("name", ["average_kl_divergence", "batch_bald"])
def test_scikit_activeml_clips_what_it_is_given(name: str):
    """Probabilities below eps = 1e-7 become eps, in the caller's own array."""
    probs = random_probs(0, 12, 8, 4)
    probs[:, 0] = [1, 0, 0, 0]
    given = first_axis(probs)
    arguments = () if name == "average_kl_divergence" else (1,)
    theirs = np.ravel(getattr(pool(), name)(given, *arguments))
    assert given.min() == pytest.approx(1e-7, rel=1e-6) and probs.min() == 0
    with np.errstate(divide="ignore"):
        ours = np.asarray(af.bald(np.log(probs)))
    assert 1e-8 < np.abs(ours - theirs).max() < 1e-5


def test_scikit_activeml_samples_once_for_each_member():
    """By default: where C^i > K, K configurations in all. Its third pick is then far off."""
    probs = random_probs(9, 10, 10, 10)
    exact = skactiveml_batch(probs, 3, 40_000)[1][2]
    default = pool().batch_bald(first_axis(probs), 3, random_state=0)
    ours = np.sum(pick("batch_bald:max_exact=10", 3, log_probs=np.log(probs)).scores)
    assert abs(np.nanmax(default[2]) - exact) > 0.05
    assert ours == pytest.approx(exact, abs=0.01)
