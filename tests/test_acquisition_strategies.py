"""One list of all strategies x one list of behaviours; then `make_strategy`.

A new strategy joins by its line in STRATEGIES; what it needs comes from `make_candidates`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from candidates import scored

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning import specs
from bayesian_active_learning.acquisition_functions.selection import PER_CANDIDATE
from bayesian_active_learning.types import Candidates, Key, Selection, Strategy, StrategySpec

N, K, C, D, B, E, L = 12, 4, 3, 2, 5, 3, 4
RANKINGS = {name for name, spec in af.STRATEGIES.items() if spec.make().select is af.select_top}
LOGARITHMS = ("log_probs", "committee_log_probs", "predictions")  # -inf is the log of 0
each_strategy = pytest.mark.parametrize("name", af.STRATEGIES)
VARIANTS = (  # options that choose another way through the code
    "cluster_margin:within=score",
    "coreset:metric=cosine,score=input_gradient",
    "mixture:first=bald,second=margin",
    "power:score=epig",
    "probcover:delta=1.0",
    "random_mix:order=random_first,mix=0.5",
    "uncertainty_uniform:by=rank",
)
each_way = pytest.mark.parametrize("name", [*af.STRATEGIES, *VARIANTS])


def random_log_probs(generator: np.random.Generator, *shape: int) -> np.ndarray:
    logits = 3 * generator.normal(size=shape).astype(np.float32)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def make_candidates(
    strategy: Strategy,
    seed: int = 0,
    n: int = N,
    mask: Any = None,
    num_samples: int = K,
    num_classes: int = C,
    num_labelled: int = L - 1,
) -> Candidates:
    """Candidates whose rows are not their positions, with just what `strategy` needs."""
    generator = np.random.default_rng(seed)
    log_probs = random_log_probs(generator, n, num_samples, num_classes)
    labels = generator.integers(num_classes, size=L)
    # Tie-free, in the same bits wherever a row stands.
    distinct = generator.permutation(n).astype(np.float32)
    fields = {
        "scores": distinct,
        "log_probs": log_probs,
        "predictions": random_log_probs(generator, n, num_classes),
        "features": generator.normal(size=(n, D)).astype(np.float32),
        "input_gradients": distinct + 1,
        "committee_log_probs": random_log_probs(generator, n, E, num_classes),
        "unlabelled_log_odds": distinct - 3,
        "labels": generator.integers(num_classes, size=n),
        "labelled_mask": np.arange(L) < num_labelled,
        "labelled_labels": labels,
        "labelled_scores": generator.permutation(L).astype(np.float32),
        "labelled_predictions": random_log_probs(generator, L, num_classes),
        "labelled_features": generator.normal(size=(L, D)).astype(np.float32),
        "target_log_probs": random_log_probs(generator, 2, num_samples, num_classes),
        "latents": generator.normal(size=(n, D)).astype(np.float32),
        "labelled_latents": generator.normal(size=(L, D)).astype(np.float32),
    }
    return Candidates(
        rows=(1000 + generator.permutation(3 * n)[:n]).astype(np.int32),
        mask=np.ones(n, bool) if mask is None else np.asarray(mask),
        **{need: fields[need] for need in strategy.needs},
    )


def per_candidate(candidates: Candidates) -> dict[str, np.ndarray]:
    """The floating-point fields `[N, ...]` that are there."""
    found = {name: getattr(candidates, name) for name in PER_CANDIDATE if name != "labels"}
    return {name: np.asarray(value) for name, value in found.items() if value is not None}


def permuted(candidates: Candidates, order: np.ndarray) -> Candidates:
    """The same pool in another order."""
    changed = {
        field: np.asarray(value)[order]
        for field in ("rows", "mask", *PER_CANDIDATE)
        if (value := getattr(candidates, field)) is not None
    }
    return candidates._replace(**changed)


@functools.cache
def compiled(strategy: Strategy) -> Any:
    return (
        strategy.select if strategy.host else jax.jit(strategy.select, static_argnames="batch_size")
    )


def select(strategy: Strategy, candidates: Candidates, batch_size: int = B, seed: int = 0) -> Any:
    return compiled(strategy)(jax.random.key(seed), candidates, batch_size=batch_size)


@each_strategy
def test_record_is_complete(name: str) -> None:
    spec = af.STRATEGIES[name]
    strategy = af.make_strategy(name)
    assert spec.summary and spec.paper
    assert strategy.needs <= set(Candidates._fields) - {"rows", "mask"}
    assert bool({"scores", "labelled_scores"} & strategy.needs) == (strategy.score is not None)
    if any(need.startswith("labelled_") for need in strategy.needs):
        assert "labelled_mask" in strategy.needs


@each_way
def test_picks_are_distinct_masked_in_and_best_first(name: str) -> None:
    strategy = af.make_strategy(name)
    mask = np.arange(N) % 3 != 0
    candidates = make_candidates(strategy, mask=mask)
    selection = select(strategy, candidates)
    assert [np.asarray(field).shape for field in selection] == [(B,)] * 4
    assert selection.positions.dtype == jnp.int32
    assert np.asarray(selection.valid).all()
    assert mask[np.asarray(selection.positions)].all()
    if name in RANKINGS:
        assert (np.diff(selection.scores) <= 0).all()
        assert not np.asarray(selection.filler).any()
    rows = af.acquire(selection, candidates)
    assert rows.dtype == np.int32
    assert len(set(rows.tolist())) == B
    np.testing.assert_array_equal(rows, np.asarray(candidates.rows)[selection.positions])


@each_strategy
def test_what_is_masked_out_plays_no_part(name: str) -> None:
    """Neither picked nor felt: padding may hold anything."""
    strategy = af.make_strategy(name)
    mask = np.arange(N) % 2 == 0
    candidates = make_candidates(strategy, mask=mask)
    expected = af.acquire(select(strategy, candidates), candidates)
    for bad in (np.nan, np.inf, 1e30):
        changed = {
            field: np.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, bad).astype(
                value.dtype
            )
            for field, value in per_candidate(candidates).items()
        }
        padding = candidates._replace(**changed)
        np.testing.assert_array_equal(af.acquire(select(strategy, padding), padding), expected)
        everything = af.acquire(select(strategy, padding, 6), padding)
        assert set(everything.tolist()) == set(np.asarray(candidates.rows)[mask].tolist())


@each_strategy
@pytest.mark.parametrize("batch_size", [1, B, N + 7])
def test_fewer_candidates_than_asked_for(name: str, batch_size: int) -> None:
    strategy = af.make_strategy(name)
    for num_left in (0, 1, 4, N):
        candidates = make_candidates(strategy, mask=np.arange(N) >= N - num_left)
        selection = select(strategy, candidates, batch_size)
        count = min(batch_size, num_left)
        expected = [True] * count + [False] * (batch_size - count)
        assert np.asarray(selection.valid).tolist() == expected
        assert np.asarray(selection.positions)[count:].tolist() == [-1] * (batch_size - count)
        assert not np.asarray(selection.filler)[count:].any()
        assert len(af.acquire(selection, candidates)) == count


@each_strategy
@pytest.mark.parametrize("n", [0, 1])
def test_tiny_pools(name: str, n: int) -> None:
    strategy = af.make_strategy(name)
    candidates = make_candidates(strategy, n=n)
    assert len(af.acquire(select(strategy, candidates, 3), candidates)) == n


@each_strategy
def test_nothing_labelled_yet(name: str) -> None:
    strategy = af.make_strategy(name)
    if "labelled_mask" not in strategy.needs:
        pytest.skip("does not look at labelled rows")
    candidates = make_candidates(strategy, num_labelled=0)
    assert len(af.acquire(select(strategy, candidates), candidates)) == B


@each_strategy
@pytest.mark.parametrize(("num_samples", "num_classes"), [(1, 3), (3, 2), (2, 1000)])
def test_other_sizes(name: str, num_samples: int, num_classes: int) -> None:
    strategy = af.make_strategy(name)
    candidates = make_candidates(strategy, num_samples=num_samples, num_classes=num_classes)
    assert len(af.acquire(select(strategy, candidates), candidates)) == B


@each_strategy
@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_deterministic_in_the_key(name: str, make_key: Any) -> None:
    strategy = af.make_strategy(name)
    candidates = make_candidates(strategy)
    first, second = (
        compiled(strategy)(make_key(3), candidates, batch_size=B).positions for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@each_way
def test_jit_equals_eager_and_compiles_once_over_rounds(name: str) -> None:
    strategy = af.make_strategy(name)
    if strategy.host:
        pytest.skip("runs on the host")
    traces = []

    def counted(key: Key, candidates: Candidates, *, batch_size: int) -> Selection:
        traces.append(1)
        return strategy.select(key, candidates, batch_size=batch_size)

    jitted = jax.jit(counted, static_argnames="batch_size")
    for seed in range(3):
        candidates = make_candidates(strategy, seed, mask=np.arange(N) >= 3 * seed)
        ours = jitted(jax.random.key(seed), candidates, batch_size=B)
        if not seed:
            theirs = strategy.select(jax.random.key(seed), candidates, batch_size=B)
            np.testing.assert_array_equal(ours.positions, theirs.positions)
            np.testing.assert_array_equal(ours.valid, theirs.valid)
            np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
    assert len(traces) == 1


@each_way
def test_permuting_the_pool_permutes_the_picks(name: str) -> None:
    strategy = af.make_strategy(name)
    candidates = make_candidates(strategy, mask=np.arange(N) != 5)
    order = np.random.default_rng(1).permutation(N)
    shuffled = permuted(candidates, order)
    np.testing.assert_array_equal(
        af.acquire(select(strategy, candidates), candidates),
        af.acquire(select(strategy, shuffled), shuffled),
    )


@each_way
def test_bad_values_are_refused_with_their_row(name: str) -> None:
    strategy = af.make_strategy(name)
    candidates = make_candidates(strategy)
    for field, values in per_candidate(candidates).items():
        for bad in (np.nan, np.inf) if field in LOGARITHMS else (np.nan, np.inf, -np.inf):
            spoilt = values.copy()
            spoilt[7, ...] = bad
            changed = candidates._replace(**{field: spoilt})
            message = f"of rows {np.asarray(candidates.rows)[7]} are NaN or infinite"
            with pytest.raises(ValueError, match=message):
                af.acquire(select(strategy, changed), changed)


@pytest.mark.parametrize(
    "name", [*af.STRATEGIES, "uwe:selection=k_center_greedy", "knearest:score=loss"]
)
def test_bad_values_of_labelled_and_target_inputs_are_refused_with_their_place(name: str) -> None:
    """Also where no pick came near them; padding may hold anything."""
    strategy = af.make_strategy(name)
    candidates = make_candidates(strategy)
    floats = [
        need
        for need in sorted(strategy.needs)
        if need.startswith(("labelled_", "target_")) and getattr(candidates, need).dtype.kind == "f"
    ]
    if not floats:
        pytest.skip("is told nothing of labelled or target inputs that could be NaN")
    for field in floats:
        for bad in (np.nan, np.inf):
            spoilt = np.array(getattr(candidates, field))
            spoilt[1, ...] = bad
            changed = candidates._replace(**{field: spoilt})
            place = "positions (\\[1\\] of the labelled rows|1 are NaN or infinite)"
            with pytest.raises(ValueError, match=place):
                af.acquire(select(strategy, changed), changed)
        if field.startswith("labelled_"):
            padding = np.array(getattr(candidates, field))
            padding[L - 1] = np.nan
            changed = candidates._replace(**{field: padding})
            np.testing.assert_array_equal(
                af.acquire(select(strategy, changed), changed),
                af.acquire(select(strategy, candidates), candidates),
            )


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_bad_scores_are_ranked_first(bad: float) -> None:
    """So that they show even where the candidates' scores are not at hand."""
    strategy = af.make_strategy("bald")
    candidates = make_candidates(strategy)
    scores = np.array(candidates.scores)
    scores[7] = bad
    selection = select(strategy, candidates._replace(scores=scores))
    with pytest.raises(ValueError, match="are NaN or infinite"):
        af.acquire(selection, candidates._replace(scores=None))


@each_strategy
@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_must_be_positive(name: str, batch_size: int) -> None:
    strategy = af.make_strategy(name)
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        select(strategy, make_candidates(strategy), batch_size)


@each_strategy
def test_small_integers_are_taken_for_the_numbers_they_are(name: str) -> None:
    """Squares of uint8 wrap around at 256."""
    strategy = af.make_strategy(name)
    if "features" not in strategy.needs:
        pytest.skip("reads no features")
    candidates = make_candidates(strategy)
    whole = np.random.default_rng(3).integers(0, 256, size=(N, D))
    floats = candidates._replace(features=whole.astype(np.float32))
    integers = candidates._replace(features=whole.astype(np.uint8))
    ours, theirs = select(strategy, integers), select(strategy, floats)
    np.testing.assert_array_equal(ours.positions, theirs.positions)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-5)


@each_strategy
def test_works_in_float64(name: str) -> None:
    with jax.enable_x64(True):
        strategy = af.make_strategy(name)
        candidates = make_candidates(strategy)
        selection = select(strategy, candidates)
        assert selection.positions.dtype == jnp.int32
        assert len(af.acquire(selection, candidates)) == B


def test_top_k_by_hand() -> None:
    candidates = scored([0.1, 0.9, 0.5, 0.9, 0.7], mask=[True, True, True, True, False])
    selection = af.select_top(jax.random.key(0), candidates, batch_size=3)
    assert np.asarray(selection.positions).tolist() == [1, 3, 2]  # the tie: lower position first
    np.testing.assert_allclose(selection.scores, [0.9, 0.9, 0.5])
    assert af.acquire(selection, candidates).tolist() == [101, 103, 102]


def test_top_k_takes_minus_zero_for_zero() -> None:
    candidates = scored([-0.0, 0.0, -0.0, 0.0])
    for function in (
        af.select_top,
        jax.jit(af.select_top, static_argnames="batch_size"),
    ):
        selection = function(jax.random.key(0), candidates, batch_size=4)
        assert np.asarray(selection.positions).tolist() == [0, 1, 2, 3]


def test_top_k_prefers_the_worst_candidate_to_padding() -> None:
    candidates = scored([0.0, -np.inf, -3e38], mask=[False, True, True])
    selection = af.select_top(jax.random.key(0), candidates, batch_size=2)
    assert sorted(np.asarray(selection.positions).tolist()) == [1, 2]
    assert np.asarray(selection.valid).all()


def test_top_k_without_scores_says_so() -> None:
    candidates = scored([0.0])._replace(scores=None)
    with pytest.raises(ValueError, match="needs Candidates.scores, got None"):
        af.select_top(jax.random.key(0), candidates, batch_size=1)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"first axis of mask \[3\], got \[2\]"):
        af.select_top(jax.random.key(0), scored([1, 2], mask=[True] * 3), batch_size=1)


def test_score_strategies_share_one_select() -> None:
    """So that comparing functions compiles the selection once."""
    assert af.make_strategy("bald").select is af.make_strategy("mean_std").select
    assert af.make_strategy("bald").score is af.bald


def test_random_is_uniform_over_sets_and_depends_on_the_key() -> None:
    candidates = scored(np.zeros(5), mask=[True, True, False, True, True])
    keys = jax.random.split(jax.random.key(0), 3000)
    strategy = af.make_strategy("random")
    picks = jax.vmap(lambda key: strategy.select(key, candidates, batch_size=2).positions)(keys)
    first, second = np.asarray(picks).T
    counts = np.array([[np.sum((first == i) & (second == j)) for j in range(5)] for i in range(5)])
    assert counts[2].sum() == counts[:, 2].sum() == np.trace(counts) == 0
    observed = counts[counts > 0]
    assert len(observed) == 12  # ordered pairs of the 4 candidates, 250 each expected
    chi_square = np.sum((observed - 250) ** 2 / 250)
    assert chi_square < 31.3  # 11 degrees of freedom, one in a thousand


def test_random_noise_goes_with_the_row_not_the_position() -> None:
    strategy = af.make_strategy("random")
    rows = np.arange(2_000, dtype=np.int32)
    forward = Candidates(rows=rows, mask=np.ones(len(rows), bool))
    backward = forward._replace(rows=rows[::-1])
    smaller = Candidates(rows=rows[:50], mask=np.ones(50, bool))
    first, second = select(strategy, forward, 100), select(strategy, backward, 100)
    np.testing.assert_array_equal(
        af.acquire(first, forward), rows[::-1][np.asarray(second.positions)]
    )
    few, all_rows = select(strategy, smaller, 50), select(strategy, forward, len(rows))
    noise = np.zeros(len(rows), np.float32)
    noise[np.asarray(all_rows.positions)] = all_rows.scores
    np.testing.assert_array_equal(few.scores, noise[np.asarray(few.positions)])
    assert 0 <= noise.min() < 0.01 and 0.99 < noise.max() <= 1


# make_strategy


def make_tempered(
    *, beta: float = 1.0, score: str = "bald", steps: int = 3, exact: bool = False, cap: Any = None
) -> Strategy:
    """Options of every kind; carries them in a score that can be looked at."""
    options = {"beta": beta, "score": score, "steps": steps, "exact": exact, "cap": cap}
    strategy = af.top_k(lambda log_probs: options)  # type: ignore[arg-type, return-value]
    return strategy


def make_demanding(*, size: int) -> Strategy:
    return af.random()


TABLE = {
    **af.STRATEGIES,
    "tempered": StrategySpec(make_tempered, "for tests", "none"),
    "demanding": StrategySpec(make_demanding, "for tests", "none"),
}


def options_of(spec: str) -> Any:
    score: Any = af.make_strategy(spec, TABLE).score
    return score(None)


def test_options_are_read_as_the_type_of_their_default() -> None:
    defaults = {"beta": 1.0, "score": "bald", "steps": 3, "exact": False, "cap": None}
    assert options_of("tempered") == defaults
    assert options_of("tempered:beta=8,score=margin , exact=TRUE") == {
        **defaults,
        "beta": 8.0,
        "score": "margin",
        "exact": True,
    }
    assert isinstance(options_of("tempered:beta=8")["beta"], float)
    assert options_of("tempered:cap=1e-3")["cap"] == 1e-3
    assert options_of("tempered:cap=2")["cap"] == 2
    assert options_of("tempered:cap=auto")["cap"] == "auto"


def test_equal_specs_give_the_same_object() -> None:
    assert af.make_strategy("bald") is af.make_strategy("bald")
    assert af.make_strategy("bald") is not af.make_strategy("max_entropy")
    spelt = ["tempered:beta=2,steps=4", "tempered:steps=4,beta=2.0", "tempered:steps=4,beta=2e0"]
    assert len({id(af.make_strategy(spec, TABLE)) for spec in spelt}) == 1
    assert af.make_strategy("tempered", TABLE) is af.make_strategy("tempered:beta=1", TABLE)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("tempered", "tempered"),
        ("tempered: beta=1, steps=4", "tempered:steps=4"),
        ("tempered:steps=4,beta=2e0", "tempered:beta=2,steps=4"),
        ("tempered:beta=0.5", "tempered:beta=0.5"),
        ("tempered:exact=TRUE,cap=auto", "tempered:exact=True,cap=auto"),
        ("demanding:size=3", "demanding:size=3"),
    ],
)
def test_one_way_to_write_a_spec(spec: str, expected: str) -> None:
    assert specs.canonical(spec, TABLE, "function") == expected
    assert specs.canonical(expected, TABLE, "function") == expected
    assert af.make_strategy(expected, TABLE) is af.make_strategy(spec, TABLE)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bold", "unknown acquisition function 'bold'; known: bald, max_entropy, .*random"),
        ("", "unknown acquisition function ''; known: bald"),
        ("bald:beta=1", "unknown option 'beta' of 'bald'; it has none"),
        ("tempered:gamma=1", "unknown option of 'tempered': 'gamma'; known: beta, score, steps"),
        ("tempered:beta", "cannot read 'tempered:beta': expected tempered or tempered:key=value"),
        ("tempered:", "cannot read 'tempered:'"),
        ("tempered:beta=", "cannot read"),
        ("tempered:beta=1,", "cannot read"),
        ("tempered:beta=1,beta=2", "option 'beta' of 'tempered' is given twice"),
        ("tempered:beta=large", "option 'beta' of 'tempered' must be of type float, got 'large'"),
        ("tempered:steps=1.5", "option 'steps' of 'tempered' must be of type int, got '1.5'"),
        ("tempered:exact=1", "option 'exact' of 'tempered' must be true or false, got '1'"),
        ("demanding", "'demanding' needs size=..."),
    ],
)
def test_refused_specs(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        af.make_strategy(spec, TABLE)


def test_required_option_given() -> None:
    assert af.make_strategy("demanding:size=3", TABLE).needs == frozenset()
