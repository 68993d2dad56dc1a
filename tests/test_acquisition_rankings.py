"""Stochastic batches, mixtures and committees: pools where the right answer is known, and
frequencies against the probabilities that the rule states."""

import functools
import itertools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from candidates import pool, scored
from scipy import stats

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning.types import Candidates, Selection, Strategy

RULES = {"power": af.power, "softmax": af.softmax, "softrank": af.softrank}
each_rule = pytest.mark.parametrize("rule", RULES)


@functools.cache
def compiled(select: Any) -> Any:
    return jax.jit(select, static_argnames="batch_size")  # eager calls are slow


def pick(strategy: Strategy, candidates: Candidates, batch_size: int, seed: int = 0) -> Selection:
    selection = compiled(strategy.select)(jax.random.key(seed), candidates, batch_size=batch_size)
    af.acquire(selection, candidates)
    return selection


def positions(
    strategy: Strategy, candidates: Candidates, batch_size: int, seed: int = 0
) -> list[int]:
    return np.asarray(pick(strategy, candidates, batch_size, seed).positions).tolist()


def many(strategy: Strategy, candidates: Candidates, batch_size: int, num_keys: int) -> np.ndarray:
    """`[num_keys, B]` positions."""
    keys = jax.random.split(jax.random.key(1), num_keys)
    select = jax.jit(
        jax.vmap(lambda key: strategy.select(key, candidates, batch_size=batch_size).positions)
    )
    return np.asarray(select(keys))


def chance(observed: Any, probabilities: Any) -> float:
    """p-value of counts under their probabilities, by chi-square."""
    observed, probabilities = np.asarray(observed, float), np.asarray(probabilities, float)
    return float(stats.chisquare(observed, probabilities / probabilities.sum() * observed.sum())[1])


# stochastic


WEIGHTS: dict[str, tuple[float, Any]] = {
    "power": (2.0, [0.25, 1.0, 1.0, 4.0]),
    "softmax": (0.7, np.exp(0.7 * np.array([0.5, 1.0, 1.0, 2.0]))),
    "softrank": (1.5, np.array([4.0, 2.5, 2.5, 1.0]) ** -1.5),  # the tie shares ranks 2 and 3
}


@each_rule
def test_picks_follow_the_stated_probabilities(rule: str) -> None:
    """Draws without replacement, one after another, each in proportion to the weights left."""
    beta, weights = WEIGHTS[rule]
    candidates = scored([0.5, 1.0, np.nan, 1.0, 2.0], mask=[True, True, False, True, True])
    found = many(RULES[rule]("bald", beta=beta), candidates, 2, 4000)
    counts = Counter(map(tuple, found.tolist()))
    share = dict(zip([0, 1, 3, 4], np.asarray(weights) / np.sum(weights)))
    pairs = list(itertools.permutations(share, 2))
    expected = [share[i] * share[j] / (1 - share[i]) for i, j in pairs]
    observed = [counts.pop(pair, 0) for pair in pairs]
    assert not counts
    assert chance(observed, expected) > 1e-3
    assert chance(observed, np.ones(12)) < 1e-12  # and not those of `random`


def test_power_draws_zero_scores_last_in_random_order_as_filler() -> None:
    candidates = scored([0.0, 1e-37, -1e-9, 5.0, 0.0, 0.3], mask=[True] * 5 + [False])
    strategy = af.power("bald", beta=0.5)
    found = many(strategy, candidates, 7, 600)
    assert (np.sort(found[:, :2]) == [1, 3]).all()
    assert (np.sort(found[:, 2:5]) == [0, 2, 4]).all()
    orders = Counter(map(tuple, found[:, 2:5].tolist()))
    assert chance([orders[order] for order in itertools.permutations([0, 2, 4])], np.ones(6)) > 1e-3
    selection = pick(strategy, candidates, 7)
    assert np.asarray(selection.filler).tolist() == [False] * 2 + [True] * 3 + [False] * 2
    assert np.asarray(selection.valid).tolist() == [True] * 5 + [False] * 2


@each_rule
def test_batches_by_epig_are_those_by_its_scores(rule: str) -> None:
    log_probs, targets = random_log_probs(9, 4, 3), random_log_probs(3, 4, 3)
    candidates = pool(9, log_probs=log_probs, target_log_probs=targets, mask=np.arange(9) != 2)
    by_name = af.make_strategy(f"{rule}:score=epig,beta=2")
    assert by_name.needs == {"log_probs", "target_log_probs"} and by_name.min_samples == 2
    scores = np.asarray(af.epig(candidates.log_probs, candidates.target_log_probs))
    given = RULES[rule](beta=2.0)
    for seed in range(3):
        found, expected = (
            pick(by_name, candidates, 5, seed),
            pick(given, candidates._replace(scores=scores), 5, seed),
        )
        np.testing.assert_array_equal(found.positions, expected.positions)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


def test_epig_for_other_targets_is_a_score_too() -> None:
    strategy = af.power(af.epig_score(targets="test", num_targets=7), beta=2.0)
    assert dict(strategy.settings) == {"targets": "test", "num_targets": 7}
    assert strategy.select is af.power("epig", beta=2.0).select  # compiled once for both
    with pytest.raises(ValueError, match="unknown targets 'x'; known: pool, test"):
        af.epig_score(targets="x")


@pytest.mark.parametrize(
    "spec", [*RULES, "random_mix", "uncertainty_mix", "uncertainty_uniform", "coreset"]
)
def test_input_gradients_are_a_score_like_any_other(spec: str) -> None:
    """As the same numbers handed in as scores."""
    values = np.random.default_rng(0).permutation(9) + 0.5
    features = np.random.default_rng(1).normal(size=(9, 2))
    nothing = {"labelled_features": np.zeros((1, 2)), "labelled_mask": np.array([False])}
    candidates = pool(9, features=features)._replace(**nothing)
    by_name = af.make_strategy(f"{spec}:score=input_gradient")
    by_scores = af.make_strategy(f"{spec}:score=margin")
    assert by_name.needs == by_scores.needs - {"scores"} | {"input_gradients"}
    assert by_name.score is None
    for seed in range(3):
        found = pick(by_name, candidates._replace(input_gradients=values), 5, seed)
        expected = pick(by_scores, candidates._replace(scores=values), 5, seed)
        np.testing.assert_array_equal(found.positions, expected.positions)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)


@each_rule
def test_no_noise_is_the_ranking_and_scores_are_reported_unperturbed(rule: str) -> None:
    scores = np.random.default_rng(0).permutation(50) / 50 + 0.01
    candidates, reversed_scores = scored(scores), scored(scores[::-1])
    plain = positions(af.top_k(af.bald), candidates, 8)
    assert positions(RULES[rule](beta=float("inf")), candidates, 8) == plain
    noise = af.make_strategy(f"{rule}:beta=1e-50")
    assert positions(noise, candidates, 8) == positions(noise, reversed_scores, 8) != plain
    selection = pick(RULES[rule](), candidates, 8)
    assert np.asarray(selection.positions).tolist() != plain
    assert not np.asarray(selection.filler).any()
    np.testing.assert_allclose(selection.scores, scores[np.asarray(selection.positions)], rtol=1e-6)


@each_rule
def test_scores_with_equal_settings_share_one_select(rule: str) -> None:
    make = RULES[rule]
    assert make("bald", beta=8).select is make("margin", beta=8.0).select
    assert make("bald", beta=8).select is not make("bald", beta=4).select
    assert (
        af.make_strategy(f"{rule}_bald").select is af.make_strategy(f"{rule}:score=margin").select
    )
    assert af.make_strategy(f"{rule}_bald:beta=2").score is af.bald
    assert af.make_strategy(f"{rule}:score=margin,beta=2").score is af.margin

    def own(log_probs: jax.Array) -> jax.Array:
        return log_probs[:, 0, 0]

    assert make(own).score is own


@each_rule
def test_bad_numbers_are_picked_first(rule: str) -> None:
    for bad in (np.nan, np.inf):
        scores = np.full(50, 0.5)
        scores[13] = bad
        select = compiled(RULES[rule]().select)
        selection = select(jax.random.key(0), scored(scores), batch_size=8)
        assert selection.positions[0] == 13


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("power:beta=0", "beta must be positive, got 0"),
        ("softmax:beta=-1", "beta must be positive, got -1"),
        ("softrank:beta=nan", "beta must be positive, got nan"),
        ("power:score=random", "unknown score 'random'; known: bald, .*, epig, input_gradient"),
        ("power_bald:score=margin", "unknown option of 'power_bald': 'score'; known: beta"),
        ("random_mix:mix=1.5", "mix must be between 0 and 1, got 1.5"),
        ("random_mix:mix=nan", "mix must be between 0 and 1, got nan"),
        ("random_mix:order=last", "unknown order 'last'; known: top_first, random_first"),
        ("random_mix:score=x", "unknown score 'x'"),
        ("uncertainty_mix:score=x", "unknown score 'x'"),
        ("uncertainty_uniform:score=x", "unknown score 'x'"),
        ("uncertainty_uniform:bins=0", "bins must be between 1 and 16777216, got 0"),
        ("uncertainty_uniform:bins=99999999", "bins must be between 1 and 16777216"),
        ("uncertainty_uniform:by=x", "unknown kind of bin 'x'; known: score, rank"),
        ("mixture:weight=2", "weight must be between 0 and 1, got 2"),
        ("mixture:second=x", "unknown acquisition function 'x'"),
        ("mixture:first=vaal,second=vae_coreset", "of a mixture have different settings: {'vaal"),
        ("qbc:disagreement=x", "unknown disagreement 'x'; known: vote_entropy, variation_ratio"),
    ],
)
def test_refused_options(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        af.make_strategy(spec)


# mixtures


SCORES = np.random.default_rng(2).permutation(40).astype(np.float32)
BEST = np.argsort(-SCORES).tolist()


def shuffled(seed: int = 0) -> list[int]:
    """The order in which `random` picks."""
    return positions(af.random(), scored(SCORES), 40, seed)


@pytest.mark.parametrize(
    ("batch_size", "mix", "num_top"), [(10, 0.2, 8), (5, 0.8, 1), (7, 0.5, 3), (4, 0.1, 3)]
)
def test_random_mix_fills_the_top_with_random_ones(
    batch_size: int, mix: float, num_top: int
) -> None:
    strategy = af.random_mix(mix=mix)
    assert strategy.score is af.least_confidence
    found = positions(strategy, scored(SCORES), batch_size)
    assert found[:num_top] == BEST[:num_top]
    rest = [position for position in shuffled() if position not in BEST[:num_top]]
    assert found[num_top:] == rest[: batch_size - num_top]


def test_random_mix_draws_the_rest_uniformly() -> None:
    candidates = scored(SCORES[:8], mask=np.arange(8) != 3)
    found = many(af.random_mix(mix=0.5), candidates, 4, 3000)
    top = [position for position in BEST if position < 8 and position != 3][:2]
    assert (found[:, :2] == top).all()
    left = [position for position in range(8) if position not in (3, *top)]
    for column in (2, 3):
        counts = Counter(found[:, column].tolist())
        assert set(counts) == set(left)
        assert chance(list(counts.values()), np.ones(5)) > 1e-3


@pytest.mark.parametrize(("batch_size", "mix", "num_random"), [(10, 0.3, 3), (9, 0.5, 4)])
def test_random_mix_may_start_at_random(batch_size: int, mix: float, num_random: int) -> None:
    found = positions(af.random_mix(mix=mix, order="random_first"), scored(SCORES), batch_size)
    assert found[:num_random] == shuffled()[:num_random]
    rest = [position for position in BEST if position not in found[:num_random]]
    assert found[num_random:] == rest[: batch_size - num_random]


@pytest.mark.parametrize("order", ["top_first", "random_first"])
def test_random_mix_at_its_ends_is_random_and_the_ranking(order: str) -> None:
    candidates = scored(SCORES, mask=np.arange(40) < 6)
    top = [position for position in BEST if position < 6]
    for seed in range(3):
        chosen = pick(af.random_mix(mix=1.0, order=order), candidates, 9, seed)
        expected = [position for position in shuffled(seed) if position < 6]
        assert np.asarray(chosen.positions).tolist() == [*expected, -1, -1, -1]
        assert not np.asarray(chosen.filler).any()
        np.testing.assert_array_equal(chosen.scores[:6], SCORES[np.asarray(chosen.positions[:6])])
        assert positions(af.random_mix(mix=0.0, order=order), candidates, 9, seed)[:6] == top


def test_mixtures_show_bad_numbers() -> None:
    scores = np.array(SCORES)
    scores[17] = np.nan
    strategies = [af.random_mix(mix=mix, order="random_first") for mix in (0.0, 1.0)]
    for strategy in (*strategies, af.uncertainty_mix(), af.uncertainty_uniform()):
        selection = compiled(strategy.select)(jax.random.key(0), scored(scores), batch_size=9)
        assert selection.positions[0] == 17


def test_mixture_is_two_strategies_one_after_the_other() -> None:
    """The farthest is also the most uncertain: the second one takes the next."""
    candidates = pool(
        6,
        mask=[True] * 5 + [False],
        scores=[0.9, 0.1, 0.8, 0.2, 0.3, 1.0],
        features=[[9], [0.5], [1], [7.8], [4], [99]],
        labelled_features=[[0]],
    )._replace(labelled_mask=np.array([True]))
    strategy = af.mixture(af.make_strategy("coreset"), af.make_strategy("margin"), weight=0.5)
    selection = pick(strategy, candidates, 4)
    assert np.asarray(selection.positions).tolist() == [0, 4, 2, 3]
    np.testing.assert_allclose(selection.scores, [9, 4, 0.8, 0.2])
    assert positions(strategy, candidates, 5) == [0, 4, 2, 3, 1]  # two, and three
    assert positions(strategy, candidates, 8)[:5] == [0, 4, 3, 2, 1]
    named = af.make_strategy("mixture:first=coreset,second=margin")
    assert named.select is strategy.select and named.score is af.margin
    assert named.needs == {"scores", "features", "labelled_features", "labelled_mask"}
    for weight, alone in ((1.0, af.coreset()), (0.0, af.make_strategy("margin"))):
        ends = af.mixture(af.coreset(), af.make_strategy("margin"), weight=weight)
        assert positions(ends, candidates, 3) == positions(alone, candidates, 3)
    on_the_host = af.make_strategy("mixture:first=typiclust,second=batch_bald")
    assert on_the_host.host and on_the_host.min_samples == 2
    assert af.make_strategy("mixture:first=coreset_robust").max_candidates == 8192
    assert af.make_strategy("mixture:first=epig,second=qbc").settings == (
        *af.top_epig().settings,
        *af.qbc().settings,
    )


def test_mixture_of_two_scores_asks_for_what_both_are_had_from() -> None:
    log_probs = random_log_probs(9, 4, 3)
    strategy = af.make_strategy("mixture:first=bald,second=margin")
    assert strategy.needs == {"scores", "log_probs"} and strategy.score is af.margin
    candidates = pool(9, log_probs=log_probs, scores=af.margin(log_probs))
    informative = np.asarray(af.bald(log_probs))
    first = np.argsort(-informative)[:2].tolist()
    rest = [each for each in np.argsort(-np.asarray(candidates.scores)) if each not in first]
    selection = pick(strategy, candidates, 5)
    assert np.asarray(selection.positions).tolist() == [*first, *rest[:3]]
    np.testing.assert_allclose(selection.scores[:2], informative[first], rtol=1e-5)
    np.testing.assert_allclose(selection.scores[2:], np.asarray(candidates.scores)[rest[:3]])


def test_mixture_with_scores_of_labelled_examples() -> None:
    """They stay with their score function, whichever comes first."""
    knearest, bald = af.knearest(score="margin"), af.make_strategy("bald")
    for mixed in (af.mixture(knearest, bald), af.mixture(bald, knearest)):
        assert mixed.needs == knearest.needs | {"log_probs"} and mixed.score is af.margin
    with pytest.raises(ValueError, match="both strategies of a mixture need scores of the"):
        af.mixture(knearest, af.knearest(score="bald"))


def test_the_random_part_of_a_mixture_is_uniform_over_what_is_left() -> None:
    found = many(af.make_strategy("mixture"), scored([0.5, 0.9, 0.1, 0.2, 0.4]), 2, 3000)
    assert (found[:, 0] == 1).all()
    counts = np.bincount(found[:, 1], minlength=5)
    assert counts[1] == 0 and chance(np.delete(counts, 1), np.ones(4)) > 1e-3


def test_uncertainty_mix_takes_both_ends() -> None:
    """Of an odd batch the top takes one more; ties go to the lower position."""
    candidates = scored([0.1, 0.9, 0.5, 0.9, 0.7, 0.1, 0.6])
    strategy = af.uncertainty_mix()
    assert strategy.score is af.least_confidence
    assert positions(strategy, candidates, 5) == [1, 3, 4, 0, 5]
    assert positions(strategy, candidates, 1) == [1]
    few = candidates._replace(mask=np.arange(7) < 3)
    assert positions(strategy, few, 5) == [1, 2, 0, -1, -1]
    assert not np.asarray(pick(strategy, candidates, 5).filler).any()


CLUSTERED = np.concatenate([np.linspace(0, 0.29, 88), np.linspace(0.31, 0.59, 7), [0.9]])
BINS = {"score": np.repeat([0, 1, 2], [88, 7, 1]), "rank": np.repeat([0, 1, 2], 32)}


@pytest.mark.parametrize("by", BINS)
def test_uncertainty_uniform_gives_bins_turns(by: str) -> None:
    """Against turns taken in a plain loop: what a small bin cannot give comes from the others."""
    order = np.random.default_rng(3).permutation(96)
    candidates, bins = scored(CLUSTERED[order]), BINS[by][order]
    strategy = af.uncertainty_uniform(bins=3, by=by)
    left, picks = np.bincount(bins), np.zeros(3, int)
    cases = {6: [(2, 3, 1), (3, 2, 1)], 20: [(12, 7, 1)]} if by == "score" else {}
    for batch_size in (6, 20) if by == "score" else (6,):
        while picks.sum() < batch_size:
            ready = np.flatnonzero(picks < left)[: batch_size - picks.sum()]
            picks[ready] += 1
        for seed in range(3):
            found = np.bincount(bins[positions(strategy, candidates, batch_size, seed)])
            assert sorted(found) == sorted(picks)
            assert tuple(found.tolist()) in cases.get(batch_size, [tuple(found.tolist())])
        assert (picks <= left).all()


def test_uncertainty_uniform_draws_evenly_in_a_bin_and_over_bins() -> None:
    candidates = scored([0.0, 0.1, 0.2, 0.9, 1.0, 7.0, 0.5], mask=[True] * 5 + [False] * 2)
    found = many(af.uncertainty_uniform(bins=2), candidates, 1, 4000)[:, 0]
    counts = np.bincount(found, minlength=7)
    assert counts[5:].tolist() == [0, 0]
    assert chance(counts[:5], [1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4]) > 1e-3
    assert chance(counts[:5], np.ones(5)) < 1e-6


def test_uncertainty_uniform_reaches_all_bins_with_a_small_batch() -> None:
    """Walking the bins from one end would never leave it."""
    candidates = scored(np.arange(20))
    found = many(af.uncertainty_uniform(bins=10, by="rank"), candidates, 3, 2000)
    assert all(len(set(picks)) == 3 for picks in (found // 2).tolist())
    assert chance(np.bincount(found.ravel(), minlength=20), np.ones(20)) > 1e-3


def test_uncertainty_uniform_cuts_ranks_like_array_split_and_ties_at_random() -> None:
    generator = np.random.default_rng(4)
    scores, mask = generator.permutation(30).astype(np.float32), np.arange(30) % 4 != 0
    groups = np.array_split(np.flatnonzero(mask)[np.argsort(scores[mask])], 5)
    for seed in range(5):
        found = positions(af.uncertainty_uniform(bins=5, by="rank"), scored(scores, mask), 5, seed)
        assert [np.isin(group, found).sum() for group in groups] == [1] * 5
    more = positions(af.uncertainty_uniform(bins=40, by="rank"), scored(scores, mask), 22)
    assert sorted(more) == np.flatnonzero(mask).tolist()

    constant = many(af.uncertainty_uniform(bins=3, by="rank"), scored(np.full(6, 0.5)), 1, 3000)
    assert chance(np.bincount(constant[:, 0], minlength=6), np.ones(6)) > 1e-3


def test_uncertainty_uniform_with_constant_and_huge_scores() -> None:
    strategy = af.uncertainty_uniform(bins=3)
    assert sorted(positions(strategy, scored(np.full(6, 0.5)), 6)) == list(range(6))
    huge = scored([-3e38, 3e38, 0.0, 1.0, -2.0, 3e38])  # a range beyond float32
    bins = np.array([0, 2, 1, 1, 1, 2])
    for seed in range(3):
        assert sorted(bins[positions(strategy, huge, 3, seed)]) == [0, 1, 2]


# committees, and rankings by other fields


def votes(*classes: int, num_classes: int = 3, confidence: float = 0.8) -> np.ndarray:
    """`[E, C]` log-probabilities of members that vote for these classes."""
    rest = (1 - confidence) / (num_classes - 1)
    return np.log(np.where(np.eye(num_classes)[list(classes)] == 1, confidence, rest))


def test_votes_by_hand() -> None:
    tie = np.log([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])  # 0, 0, 1
    log_probs = jnp.asarray(np.stack([votes(1, 1, 1), votes(0, 2, 2), votes(2, 0, 1), tie]))
    split = np.log(3) - 2 / 3 * np.log(2)
    np.testing.assert_allclose(af.vote_entropy(log_probs), [0, split, np.log(3), split], atol=1e-6)
    np.testing.assert_allclose(af.variation_ratio(log_probs), [0, 1 / 3, 2 / 3, 1 / 3], atol=1e-6)


def random_log_probs(*shape: int) -> np.ndarray:
    logits = 2 * np.random.default_rng(5).normal(size=shape)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("shape", [(20, 5, 3), (4, 1, 3), (6, 4, 1000), (3, 3, 1), (0, 3, 4)])
def test_disagreement_matches_brute_force(shape: tuple[int, ...]) -> None:
    log_probs = random_log_probs(*shape)
    entropies, ratios, divergences = [], [], []
    for members in np.exp(log_probs):
        counts = Counter(member.tolist().index(max(member)) for member in members)
        shares = [count / len(members) for count in counts.values()]
        entropies.append(-sum(share * np.log(share) for share in shares))
        ratios.append(1 - max(shares))
        consensus = sum(members) / len(members)
        divergences.append(
            sum(p * np.log(p / q) for member in members for p, q in zip(member, consensus))
            / len(members)
        )
    measures = (af.vote_entropy, af.variation_ratio, af.consensus_kl)
    all_three = jax.jit(lambda log_probs: [measure(log_probs) for measure in measures])
    found = all_three(jnp.asarray(log_probs, jnp.float32))
    for values, expected in zip(found, (entropies, ratios, divergences)):
        np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.mark.parametrize("measure", [af.vote_entropy, af.variation_ratio, af.consensus_kl])
def test_disagreement_as_a_score(measure: Any) -> None:
    compiled = jax.jit(measure)
    certain = np.where(np.eye(3)[[[0, 0, 0], [0, 1, 1]]] == 1, 0.0, -np.inf)
    log_probs = jnp.asarray(certain, jnp.float32)
    assert np.isfinite(jax.grad(lambda x: compiled(x).sum())(log_probs)).all()
    values = np.asarray(compiled(log_probs))
    assert values[0] == 0 and 0.3 < values[1] < 0.7
    for bad in (np.nan, np.inf):
        spoilt = np.asarray(compiled(log_probs.at[0, 1, 1].set(bad)))
        assert np.isfinite(spoilt).tolist() == [False, True]
    with pytest.raises(ValueError, match=r"expected log_probs of shape \[N, K, C\], got \[3, 3\]"):
        measure(jnp.zeros((3, 3)))


def test_qbc_picks_by_its_measure() -> None:
    """Each measure prefers another candidate, and the entropy of the mean a fourth."""
    unsure = np.log(np.tile([[0.34, 0.33, 0.33]], (4, 1)))  # all of one mind: no disagreement
    three_ways = votes(0, 0, 1, 2, confidence=0.4)  # 2-1-1
    two_ways = votes(0, 0, 1, 1, confidence=0.5)  # 2-2: the same mode, less vote entropy
    firm = votes(0, 0, 0, 1, confidence=0.99)  # 3-1, but far apart
    log_probs = np.stack([unsure, two_ways, three_ways, firm])
    candidates = pool(4, committee_log_probs=log_probs)
    assert np.argmax(af.max_entropy(log_probs)) == 0
    assert positions(af.qbc(), candidates, 4) == [3, 1, 2, 0]
    assert positions(af.qbc(disagreement="vote_entropy"), candidates, 4) == [2, 1, 3, 0]
    # 2-2 and 2-1-1 are equal by the ratio: the lower position first.
    selection = pick(af.qbc(disagreement="variation_ratio"), candidates, 4)
    assert np.asarray(selection.positions).tolist() == [1, 2, 3, 0]
    np.testing.assert_allclose(selection.scores, [0.5, 0.5, 0.25, 0.0])
    assert af.make_strategy("qbc:disagreement=consensus_kl").select is af.qbc().select


def test_a_committee_of_one_is_refused() -> None:
    candidates = pool(2, committee_log_probs=random_log_probs(2, 1, 3))
    with pytest.raises(ValueError, match=r"at least 2 members, got \[2, 1, 3\]: one member has"):
        pick(af.qbc(), candidates, 1)


@pytest.mark.parametrize(
    ("name", "field"), [("input_gradient", "input_gradients"), ("vaal", "unlabelled_log_odds")]
)
def test_rankings_by_a_field_take_the_highest(name: str, field: str) -> None:
    values = [0.1, 0.9, 0.5, 0.9, 0.95]
    candidates = pool(5, [True] * 4 + [False], **{field: values})
    strategy = af.make_strategy(name)
    assert strategy.needs == {field} and strategy.score is None
    selection = pick(strategy, candidates, 3)
    assert np.asarray(selection.positions).tolist() == [1, 3, 2]
    np.testing.assert_allclose(selection.scores, [0.9, 0.9, 0.5])
    with pytest.raises(ValueError, match=f"needs Candidates.{field}, got None"):
        pick(strategy, pool(5), 3)
