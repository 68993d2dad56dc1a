"""Ensembles, last-layer Laplace and SWAG: what every posterior promises, and what each is."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayesian_active_learning import acquisition_functions as af
from bayesian_active_learning import inference, models, training
from bayesian_active_learning import posteriors as ps
from bayesian_active_learning.types import Model, Outputs, Posterior, Variables
from bayesian_active_learning.utils import log_mean_exp

KEY = jax.random.key(7)
N, K, C, D = 40, 4, 3, 5
MLP, LINEAR = models.mlp(C, hidden_sizes=(D,)), models.mlp(C, hidden_sizes=())
SOURCE = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
LABELS = np.argmax(SOURCE[:, :C], axis=1)
ROWS, LABELLED = np.arange(N), np.arange(60, 90)
STRUCTURES = ("diag", "kron", "full")
SGD = optax.sgd(0.5)
CONFIG = training.FitConfig(
    batch_size=8, epochs=0, min_steps=12, check_every=3, weight_decay=0.1, schedule="constant"
)


@functools.cache
def values(model: Model = MLP, seed: int = 2) -> Variables:
    """Some variables, without compiling `init`."""
    like = jax.eval_shape(model.init, KEY, jnp.zeros((1, 6)))
    generator = np.random.default_rng(seed)
    arrays = jax.tree.map(lambda x: 0.7 * generator.normal(size=x.shape).astype(x.dtype), like)
    return jax.tree.map(jnp.asarray, arrays)


def stacked(count: int = K) -> Variables:
    return ps.stack_variables([values(MLP, seed) for seed in range(count)])


def moments_of(snapshots: list[Variables], rank: int) -> ps.SwagMoments:
    moments, update = ps.swag_moments(snapshots[0], rank), jax.jit(ps.update_swag_moments)
    for snapshot in snapshots:
        moments = update(moments, snapshot)
    return moments


def some_moments(scale: float = 1.0) -> ps.SwagMoments:
    snapshots = [jax.tree.map(lambda x: scale * x, values(MLP, s)) for s in range(5)]
    return moments_of(snapshots, rank=3)


def scaled(factor: float) -> Variables:
    return jax.tree.map(lambda x: factor * x, values())


# Each takes a model and a factor on its parameters, as new ones come with each round.
KINDS: dict[str, Callable[[Model, float], Posterior]] = {
    "ensemble": lambda m, f: ps.ensemble(m, jax.tree.map(lambda x: f * x, stacked())),
    "dropout ensemble": lambda m, f: ps.ensemble(
        m, jax.tree.map(lambda x: f * x, stacked(2)), dropout=True
    ),
    **{
        f"laplace {name}": lambda m, f, name=name: ps.laplace(
            m, scaled(f), SOURCE, LABELLED, structure=name
        )
        for name in STRUCTURES
    },
    "swag": lambda m, f: ps.swag(m, some_moments(f)),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_structure = pytest.mark.parametrize("structure", STRUCTURES)


def log_probs(posterior: Posterior, key: jax.Array = KEY, **changes: Any) -> np.ndarray:
    arguments = {"rows": ROWS, "num_samples": K, "chunk_size": N} | changes
    return inference.log_probs(key, posterior, SOURCE, **arguments)


# What holds for each of them.


@each_kind
def test_samples_are_whole_networks_that_belong_to_the_key(kind: str):
    posterior = KINDS[kind](MLP, 1.0)
    found = log_probs(posterior)
    assert found.shape == (N, K, C) and found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1, atol=1e-5)
    assert np.ptp(found, axis=1).max() > 0.1  # the samples differ
    assert np.array_equal(log_probs(posterior), found)
    order = np.random.default_rng(4).permutation(N)
    for chunk_size in (7, 30):
        again = log_probs(posterior, rows=ROWS[order], chunk_size=chunk_size)
        np.testing.assert_allclose(again, found[order], atol=1e-5)
    if kind != "ensemble":  # whose K = E members are always the same
        assert np.abs(log_probs(posterior, jax.random.key(8)) - found).max() > 0.1


@each_kind
def test_scores_and_means_are_had_as_from_any_posterior(kind: str):
    posterior = KINDS[kind](MLP, 1.0)
    dense = log_probs(posterior)
    (bald,) = inference.score_pool(KEY, posterior, SOURCE, ROWS, [af.bald], num_samples=K)
    np.testing.assert_allclose(bald, af.bald(dense), atol=1e-5)
    assert bald.max() > 0.01
    both = [posterior, inference.deterministic(MLP, values())]
    mean, _ = inference.predict(KEY, both, SOURCE, ROWS, num_samples=[K, 1])
    np.testing.assert_allclose(mean, log_mean_exp(dense, axis=1), atol=1e-5)
    assert log_probs(posterior, num_samples=1).shape == (N, 1, C)


def counting(model: Model, traces: list[str]) -> Model:
    def apply(variables: Variables, key: Any, inputs: Any, *, mode: str) -> tuple[Outputs, Any]:
        traces.append(mode)
        return model.apply(variables, key, inputs, mode=mode)

    return Model(model.init, apply)


@each_kind
def test_new_parameters_are_no_new_compilation(kind: str):
    traces: list[str] = []
    model = counting(MLP, traces)
    posteriors = [KINDS[kind](model, factor) for factor in (1.0, 1.1, 1.2)]
    assert len({(posterior.draw, posterior.apply) for posterior in posteriors}) == 1
    del traces[:]
    found = [log_probs(posterior) for posterior in posteriors]
    assert traces == ["sample" if kind == "dropout ensemble" else "mean"]
    assert np.abs(found[0] - found[1]).max() > 1e-2


# Ensembles.


def alone(variables: Variables, key: jax.Array | None = None) -> np.ndarray:
    mode = "mean" if key is None else "sample"
    outputs, _ = MLP.apply(variables, key, SOURCE[ROWS], mode=mode)
    return np.asarray(jax.nn.log_softmax(outputs.logits))


def test_an_ensembles_samples_are_its_members_in_their_order():
    found = log_probs(ps.ensemble(MLP, stacked()))
    for number in range(K):
        np.testing.assert_allclose(found[:, number], alone(values(MLP, number)), atol=1e-5)


def test_fewer_samples_are_a_random_subset_without_repeats():
    posterior = ps.ensemble(MLP, stacked())
    seen = set()
    for number in range(20):
        members = posterior.draw(posterior.shared, jax.random.key(number), 2).member.tolist()
        assert members == sorted(set(members)) and len(members) == 2
        seen.add(tuple(members))
    assert seen == {(a, b) for b in range(K) for a in range(b)}


def test_with_dropout_members_take_turns_and_every_sample_has_its_own_masks():
    posterior = ps.ensemble(MLP, stacked(2), dropout=True)
    draw = posterior.draw(posterior.shared, KEY, K)
    assert draw.member.tolist() == [0, 1, 0, 1]
    found = log_probs(posterior)
    for number, key in enumerate(draw.key):
        np.testing.assert_allclose(found[:, number], alone(values(MLP, number % 2), key), atol=1e-5)
    assert np.abs(found[:, 0] - found[:, 2]).max() > 0.1


def fit_ensemble(**changes: Any) -> ps.EnsembleFit:
    arguments = {"model": MLP, "optimizer": SGD, "config": CONFIG, "num_members": 3} | changes
    model, optimizer = arguments.pop("model"), arguments.pop("optimizer")
    labels = LABELS[LABELLED]
    return ps.fit_ensemble(KEY, model, optimizer, SOURCE, LABELLED, labels, **arguments)


def same(first: Any, second: Any) -> bool:
    """Equal bit by bit."""
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), first, second))


def member(variables: Variables, number: int) -> Variables:
    return jax.tree.map(lambda x: x[number], variables)


def test_members_are_fits_with_keys_of_their_own():
    traces: list[str] = []
    model = counting(MLP, traces)
    labels = LABELS[LABELLED]
    training.fit(KEY, model, SGD, SOURCE, LABELLED, labels, config=CONFIG)
    first = traces.count("train")
    found = fit_ensemble(model=model)
    assert traces.count("train") == first  # no member compiled anything
    for number, key in enumerate(jax.random.split(KEY, 3)):
        result = training.fit(key, model, SGD, SOURCE, LABELLED, labels, config=CONFIG)
        assert same(member(found.variables, number), result.variables)
        assert found.train_loss[number] == result.train_loss
        assert (found.steps[number], found.best_step[number]) == (12, 12)
    assert found.validation == ((), (), ())
    assert not same(member(found.variables, 0).params, member(found.variables, 1).params)
    assert len(set(found.train_loss)) == 3
    warm = fit_ensemble(variables=found.variables)
    assert np.mean(warm.train_loss) < np.mean(found.train_loss)


def test_together_members_are_those_of_one_after_another(monkeypatch: pytest.MonkeyPatch):
    apart, together = fit_ensemble(), fit_ensemble(together=True)
    for one, other in zip(
        *map(jax.tree.leaves, (apart.variables, together.variables)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(apart.train_loss, together.train_loss, rtol=1e-4)
    assert (apart.steps, apart.best_step) == (together.steps, together.best_step)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert same(fit_ensemble(), together)
    warm = fit_ensemble(variables=apart.variables)  # goes on, so it cannot be together
    assert warm.steps == apart.steps


@pytest.mark.parametrize("together", [False, True])
def test_a_member_that_diverges_is_named(together: bool):
    with pytest.raises(training.TrainingDiverged) as caught:
        fit_ensemble(optimizer=optax.sgd(1e38), together=together)
    assert caught.value.__notes__ == ["member 0 of 3 of the ensemble"]


# Laplace: the covariance of a sample's (class, feature) changes, against NumPy in float64.


def extended(variables: Variables, rows: np.ndarray) -> np.ndarray:
    """phi~ [n, D + 1] of the one hidden layer."""
    hidden = {name: np.asarray(x, np.float64) for name, x in variables.params["dense_1"].items()}
    features = np.maximum(SOURCE[rows].astype(np.float64) @ hidden["w"] + hidden["b"], 0)
    return np.concatenate([features, np.ones((len(rows), 1))], axis=1)


def probabilities(variables: Variables, rows: np.ndarray) -> np.ndarray:
    head = [np.asarray(variables.params["head"][n], np.float64) for n in "wb"]
    logits = extended(variables, rows) @ np.concatenate([head[0], head[1][None]])
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def covariance_of(posterior: Posterior) -> np.ndarray:
    """`[C (D + 1), C (D + 1)]`, from a draw of each unit vector: draws are linear in noise."""
    shared = posterior.shared
    if hasattr(shared, "root"):
        root = np.asarray(shared.root, np.float64).reshape(C * (D + 1), -1)
    elif hasattr(shared, "class_vectors"):
        vectors = np.kron(
            np.asarray(shared.class_vectors, np.float64),
            np.asarray(shared.feature_vectors, np.float64),
        )
        root = vectors * np.asarray(shared.deviations, np.float64).T.ravel()
    else:
        root = np.diag(np.asarray(shared.deviations, np.float64).T.ravel())
    return root @ root.T


def laplace(rows: Any = LABELLED, variables: Variables | None = None, **options: Any) -> Posterior:
    return ps.laplace(MLP, variables or values(), SOURCE, rows, **options)


def brute_curvature(variables: Variables, rows: np.ndarray) -> np.ndarray:
    """H as a plain sum over rows, classes in blocks."""
    total = np.zeros((C * (D + 1), C * (D + 1)))
    for phi, p in zip(extended(variables, rows), probabilities(variables, rows)):
        total += np.kron(np.diag(p) - np.outer(p, p), np.outer(phi, phi))
    return total


@pytest.mark.parametrize("prior_precision", [0.02, 3.0])
def test_full_is_the_inverse_hessian_of_what_training_minimises(prior_precision: float):
    """N times (mean cross-entropy + c / N |w|^2) with prior_precision = 2 c, by jax.hessian."""
    phi, labels = extended(values(), LABELLED), LABELS[LABELLED]
    with jax.enable_x64(True):
        head = values().params["head"]
        start = np.concatenate([np.asarray(head["w"]), np.asarray(head["b"])[None]])

        def objective(flat: jax.Array) -> jax.Array:
            logits = jnp.asarray(phi) @ flat.reshape(C, D + 1).T
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            count, decay = len(labels), prior_precision / 2
            return count * (-picked.mean() + decay / count * jnp.sum(flat**2))

        hessian = np.asarray(
            jax.jit(jax.hessian(objective))(jnp.asarray(start.T.ravel(), jnp.float64))
        )
    found = covariance_of(laplace(structure="full", prior_precision=prior_precision))
    np.testing.assert_allclose(found, np.linalg.inv(hessian), rtol=2e-4, atol=1e-5)


def test_kron_and_diag_are_what_they_say():
    curvature, precision = brute_curvature(values(), LABELLED), 0.5
    prior = precision * np.eye(len(curvature))
    diagonal = np.diag(1 / (np.diag(curvature) + precision))
    np.testing.assert_allclose(
        covariance_of(laplace(structure="diag", prior_precision=precision)), diagonal, rtol=1e-4
    )
    phi, p = extended(values(), LABELLED), probabilities(values(), LABELLED)
    mean = np.mean([np.diag(row) - np.outer(row, row) for row in p], axis=0)
    expected = np.linalg.inv(np.kron(mean, phi.T @ phi) + prior)
    found = covariance_of(laplace(prior_precision=precision))  # "kron" is the default
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)
    # It is an approximation here, so that the next test says something.
    assert np.abs(expected - np.linalg.inv(curvature + prior)).max() > 0.05


def test_kron_is_exact_for_one_row_and_for_equal_predictions():
    flat = Variables({**values().params, "head": jax.tree.map(jnp.zeros_like,
                     values().params["head"])}, values().state)  # fmt: skip
    for variables, rows in ((values(), LABELLED[:1]), (flat, LABELLED)):
        expected = np.linalg.inv(brute_curvature(variables, rows) + np.eye(C * (D + 1)))
        for structure in ("kron", "full"):
            found = covariance_of(laplace(rows, variables, structure=structure))
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)


@each_structure
def test_sampled_logits_have_the_closed_forms_moments(structure: str):
    """Mean: the trained network. Covariance of an input's logits: (I (x) phi~)^T S (I (x) phi~)."""
    posterior, count = laplace(structure=structure, prior_precision=2.0), 40_000
    change = posterior.draw(posterior.shared, KEY, count)
    assert (change.weights.shape, change.bias.shape) == ((count, D, C), (count, C))
    phi, covariance = extended(values(), ROWS[:3]), covariance_of(posterior)
    changes = np.concatenate([change.weights, np.asarray(change.bias)[:, None]], axis=1)
    logits = np.einsum("nd,kdc->knc", phi, changes)
    for number in range(3):
        lift = np.kron(np.eye(C), phi[number])  # [C, C (D + 1)]
        expected = lift @ covariance @ lift.T
        scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
        found = np.cov(logits[:, number].T)
        assert np.abs((found - expected) / scale).max() < 0.03  # 4 standard errors
        assert np.abs(logits[:, number].mean(0) / np.sqrt(np.diag(expected))).max() < 0.03


@each_structure
def test_a_sample_is_the_network_with_a_changed_last_layer(structure: str):
    posterior = laplace(structure=structure)
    change = posterior.draw(posterior.shared, KEY, K)
    found = log_probs(posterior)
    for number in range(K):
        head = {
            "w": values().params["head"]["w"] + change.weights[number],
            "b": values().params["head"]["b"] + change.bias[number],
        }
        expected = alone(Variables({**values().params, "head": head}, values().state))
        np.testing.assert_allclose(found[:, number], expected, atol=1e-4)


@each_structure
def test_more_labels_mean_less_variance_and_none_mean_the_prior(structure: str):
    def variances(rows: Any) -> np.ndarray:
        covariance = covariance_of(laplace(rows, structure=structure, prior_precision=4.0))
        lifts = [np.kron(np.eye(C), phi) for phi in extended(values(), ROWS)]
        return np.array([np.diag(lift @ covariance @ lift.T) for lift in lifts])

    phi = extended(values(), ROWS)
    prior = np.repeat((phi**2).sum(1)[:, None] / 4, C, axis=1)
    np.testing.assert_allclose(variances([]), prior, rtol=1e-5)
    some, all_of_them = variances(LABELLED[:10]), variances(LABELLED)
    assert (some < prior).all() and (all_of_them < some).mean() > 0.99
    twice = variances(np.concatenate([LABELLED, LABELLED]))  # the same rows, counted twice
    assert (twice < all_of_them).all()


@each_structure
def test_rows_are_streamed_and_the_prior_survives_large_curvature(structure: str):
    whole = covariance_of(laplace(structure=structure))
    for chunk_size in (1, 7):
        found = covariance_of(laplace(structure=structure, chunk_size=chunk_size))
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-6)
    # Features of the order 1e3 and a prior of 1e-2: along (1, ..., 1) over classes the
    # softmax has no curvature at all, and only the prior is left.
    loud = jax.tree.map(lambda x: x, values())
    loud.params["dense_1"] = jax.tree.map(lambda x: 1e3 * x, loud.params["dense_1"])
    loud.params["head"] = jax.tree.map(lambda x: 1e-3 * x, loud.params["head"])
    found = covariance_of(laplace(variables=loud, structure=structure, prior_precision=1e-2))
    assert np.isfinite(found).all() and np.linalg.eigvalsh(found).max() < 101
    if structure != "diag":
        shift = np.kron(np.ones(C), np.eye(D + 1)[0]) / np.sqrt(C)
        np.testing.assert_allclose(shift @ found @ shift, 100, rtol=1e-2)


def test_many_classes_fit_in_kron():
    model = models.mlp(400, hidden_sizes=(8,))
    variables = values(model)
    found = inference.log_probs(
        KEY, ps.laplace(model, variables, SOURCE, LABELLED), SOURCE, ROWS[:3], num_samples=2
    )
    assert found.shape == (3, 2, 400) and np.isfinite(found).all()
    with pytest.raises(ValueError, match=r'"full" needs a matrix of 3600 x 3600, 103,680,000 byte'):
        ps.laplace(model, variables, SOURCE, LABELLED, structure="full", max_bytes=10**8)


def test_laplace_in_float64():
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), values())
        source = SOURCE.astype(np.float64)
        posterior = ps.laplace(MLP, variables, source, LABELLED, structure="full")
        found = inference.log_probs(KEY, posterior, source, ROWS[:2], num_samples=2)
        assert found.dtype == np.float64
        expected = np.linalg.inv(brute_curvature(values(), LABELLED) + np.eye(C * (D + 1)))
        np.testing.assert_allclose(covariance_of(posterior), expected, rtol=1e-9, atol=1e-12)


# SWAG.


def flat(params: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(params)])


def flat_columns(moments: ps.SwagMoments) -> np.ndarray:
    """`[rank, P]`."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(moments.deviations)]
    flattened = [leaf.reshape(len(leaf), int(np.prod(leaf.shape[1:]))) for leaf in leaves]
    return np.concatenate(flattened, axis=1)


def recorded(variables: Variables, config: training.FitConfig) -> tuple[list[int], list[Variables]]:
    steps, snapshots = [], []

    def record(step: int, variables: Variables) -> None:
        steps.append(step)
        snapshots.append(jax.tree.map(np.array, variables))

    training.fit(
        KEY, MLP, SGD, SOURCE, LABELLED, LABELS[LABELLED], config=config, variables=variables,
        on_block=record,
    )  # fmt: skip
    return steps, snapshots


def fit_swag(**changes: Any) -> ps.SwagMoments:
    arguments = {"config": CONFIG, "variables": values(), "rank": 3} | changes
    return ps.fit_swag(KEY, MLP, SGD, SOURCE, LABELLED, LABELS[LABELLED], **arguments)


@pytest.mark.parametrize("rank", [0, 3, 10])
def test_moments_are_those_of_the_recorded_snapshots(rank: int):
    config = CONFIG._replace(min_steps=17)  # 5 whole blocks of 3 and one that is cut short
    steps, snapshots = recorded(values(), config)
    assert steps == [3, 6, 9, 12, 15, 17]
    thetas = np.array([flat(snapshot.params) for snapshot in snapshots[:5]])
    assert np.ptp(thetas, axis=0).max() > 0.05
    moments = fit_swag(config=config, rank=rank)
    assert int(moments.num_snapshots) == 5
    np.testing.assert_allclose(flat(moments.mean), thetas.mean(0), atol=1e-6)
    np.testing.assert_allclose(flat(moments.squares) / 5, thetas.var(0), rtol=1e-3, atol=1e-9)
    deviations = np.array([thetas[n] - thetas[: n + 1].mean(0) for n in range(5)])
    found = flat_columns(moments)
    assert found.shape == (rank, thetas.shape[1])
    kept = deviations[-rank:] if rank else deviations[:0]
    expected = np.concatenate([kept, np.zeros((rank - len(kept), thetas.shape[1]))])
    # A ring: the same columns, in whatever order.
    np.testing.assert_allclose(found.T @ found, expected.T @ expected, atol=1e-6)


def test_a_variance_far_smaller_than_the_mean_is_kept():
    """The mean of squares minus the squared mean would leave rounding errors of 1e-5."""
    noise = 1e-3 * np.random.default_rng(0).normal(size=(50, 200))
    snapshots = [Variables({"w": jnp.asarray(10 + row, jnp.float32)}, {}) for row in noise]
    found = flat(moments_of(snapshots, rank=0).squares) / 50
    np.testing.assert_allclose(found, noise.var(0), rtol=0.02)


@pytest.mark.parametrize("rank", [0, 3, 10])
def test_drawn_parameters_have_the_closed_forms_moments(rank: int):
    generator = np.random.default_rng(1)
    mix = generator.normal(size=(6, 6))
    thetas = (generator.normal(size=(7, 6)) @ mix).astype(np.float32)
    snapshots = [
        Variables({"b": row[:2], "c": row[2:4], "w": row[4:].reshape(2, 1)}, {}) for row in thetas
    ]
    moments = moments_of(jax.tree.map(jnp.asarray, snapshots), rank)
    deviations = np.array([thetas[n] - thetas[: n + 1].mean(0) for n in range(7)])[-rank:]
    expected = np.diag(thetas.var(0))
    if rank:
        expected = 0.5 * (expected + deviations.T @ deviations / (min(rank, 7) - 1))
    posterior, count = ps.swag(MLP, moments), 40_000
    draws = posterior.draw(posterior.shared, KEY, count)
    drawn = np.concatenate([np.asarray(x).reshape(count, -1) for x in jax.tree.leaves(draws)], 1)
    scale = np.sqrt(np.diag(expected))
    assert np.abs((np.cov(drawn.T) - expected) / np.outer(scale, scale)).max() < 0.03
    assert np.abs((drawn.mean(0) - thetas.mean(0)) / scale).max() < 0.03


def test_swag_samples_are_networks_with_the_drawn_parameters():
    posterior = ps.swag(MLP, some_moments())
    draws = posterior.draw(posterior.shared, KEY, K)
    found = log_probs(posterior)
    for number in range(K):
        params = jax.tree.map(lambda x, k=number: x[k], draws)
        np.testing.assert_allclose(found[:, number], alone(Variables(params, {})), atol=1e-4)


def test_carried_averages_are_those_of_the_last_snapshot():
    snapshots = [Variables({"w": jnp.ones(2)}, {"average": jnp.float32(n)}) for n in (1, 2, 5)]
    moments = moments_of(snapshots, rank=2)
    assert float(moments.state["average"]) == 5
    seen = []

    def apply(variables: Variables, key: Any, inputs: Any, *, mode: str) -> tuple[Outputs, Any]:
        seen.append((float(variables.state["average"]), key, mode))
        return Outputs(inputs, inputs), variables.state

    ps.swag(Model(lambda *_: None, apply), moments).apply(moments, {"w": jnp.ones(2)}, SOURCE[:1])
    assert seen == [(5, None, "mean")]


def test_watching_the_blocks_changes_nothing():
    labels = LABELS[LABELLED]
    plain, watched = (
        training.fit(KEY, MLP, SGD, SOURCE, LABELLED, labels, config=CONFIG, on_block=on_block)
        for on_block in (None, lambda step, variables: 1 / 0 if step > 99 else None)
    )
    assert same(plain, watched)
    _, snapshots = recorded(values(), CONFIG)
    last = training.fit(KEY, MLP, SGD, SOURCE, LABELLED, labels, config=CONFIG, variables=values())
    assert same(snapshots[-1], last.variables)


def other_member() -> Variables:
    return values(models.mlp(C, hidden_sizes=(D + 1,)))


nan = Variables({**values().params, "head": jax.tree.map(lambda x: x * np.nan,
                values().params["head"])}, values().state)  # fmt: skip

REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (lambda: log_probs(ps.ensemble(MLP, stacked(2))), "2 members has no 4 different samples: ask"),
    (lambda: ps.ensemble(MLP, values()), r"one leading axis \[E, ...\], got leading axes \[3\], "),
    (lambda: ps.ensemble(MLP, Variables({}, {})), "got leading axes no arrays"),
    (lambda: ps.ensemble(MLP, Variables({"b": jnp.float32(1)}, {})), r"got leading axes \[\]"),
    (lambda: ps.stack_variables([]), "an ensemble needs at least one member, got none"),
    (lambda: ps.stack_variables([values(), other_member()]), "member 1 is another network than"),
    (lambda: fit_ensemble(num_members=0), "num_members must be positive, got 0"),
    (lambda: fit_ensemble(variables=stacked(2)), "variables of 2 members cannot start 3"),
    (
        lambda: fit_ensemble(variables=stacked(3), together=True),
        "members that are trained together start fresh: variables must be None",
    ),
    (
        lambda: fit_ensemble(config=CONFIG._replace(monitor="nll"), together=True),
        "replicas do not stop early: monitor must be 'none', not nll",
    ),
    (lambda: laplace(structure="low_rank"), "unknown structure 'low_rank'; known: diag, kron, fu"),
    (lambda: laplace(prior_precision=0), "prior_precision must be positive, got 0"),
    (lambda: laplace(prior_precision=np.inf), "prior_precision must be finite, got inf"),
    (lambda: laplace(chunk_size=0), "chunk_size must be positive, got 0"),
    (lambda: laplace([0, 120]), r"rows must lie in 0\.\.119, got 0\.\.120"),
    (lambda: laplace([0.5]), "rows must be a list of integers, got float64"),
    (lambda: laplace([[1, 2]]), r"rows must be a list of integers, got int64 \(1, 2\)"),
    (lambda: laplace(variables=nan), "outputs on the labelled rows are NaN or infinite"),
    (lambda: laplace(structure="full", max_bytes=100), "18 x 18, 2,592 bytes, for 5 features and"),
    (
        lambda: laplace(structure="full", prior_precision=1e-300),
        "prior_precision 1e-300 is too small beside the curvature",
    ),
    (lambda: ps.swag_moments(values(), 1), r"rank must be 0 \(diagonal only\) or at least 2"),
    (lambda: ps.swag_moments(values(), -2), "rank must be 0 .* got -2"),
    (lambda: ps.swag(MLP, moments_of([values()], 2)), "SWAG needs at least 2 snapshots, got 1"),
    (lambda: fit_swag(config=CONFIG._replace(min_steps=5)), "snapshots: 5 steps give 1 with check"),
    (
        lambda: fit_swag(config=CONFIG._replace(schedule="cosine")),
        "config.schedule must be 'constant', got 'cosine'",
    ),
    (
        lambda: fit_swag(config=CONFIG._replace(monitor="nll")),
        "config.monitor must be 'none', got 'nll'",
    ),
]  # fmt: skip


@pytest.mark.parametrize("call, message", REFUSALS)
def test_refusals(call: Callable[[], Any], message: str):
    with pytest.raises(ValueError, match=message):
        call()
