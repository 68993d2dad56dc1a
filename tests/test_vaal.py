import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning import training, vaal
from bayesian_active_learning.models import vae
from bayesian_active_learning.training import TrainingDiverged
from bayesian_active_learning.types import Candidates, Variables
from bayesian_active_learning.vaal import VaalConfig, fit_vaal

KEY = jax.random.key(0)
# Two configurations, so that two sets of compiled functions serve all tests.
IMAGES = VaalConfig(batch_size=16, epochs=100, max_steps=120, beta=1e-3)  # 8x8
SHORT = VaalConfig(batch_size=8, epochs=1, max_steps=7, block_size=5)  # vectors of 40


def same(first, second) -> bool:
    """Equal bit by bit."""
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), first, second))


def copied(tree):
    return jax.tree.map(lambda x: np.array(x), tree)


def two_modes(shape: tuple[int, ...], each: int, noise: float) -> np.ndarray:
    """`each` rows about one centre, then as many about another; standardised."""
    generator = np.random.default_rng(0)
    centres = np.repeat(generator.normal(size=(2, *shape)), each, axis=0)
    inputs = centres + noise * generator.normal(size=centres.shape)
    return ((inputs - inputs.mean()) / inputs.std()).astype(np.float32)


@functools.cache
def vectors() -> np.ndarray:
    return two_modes((40,), each=300, noise=0.3)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    above = positive[:, None] > negative
    return float(np.mean(above + 0.5 * (positive[:, None] == negative)))


# The networks.


def parameter_count(network: str, shape: tuple[int, ...], z_dim: int = 32) -> int:
    inputs = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    params = jax.eval_shape(vae.autoencoder(network, z_dim).init, KEY, inputs).params
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_parameters_of_the_mnist_variant():
    encoder = 3 * 3 * 1 * 32 + 2 * 32 + 3 * 3 * 32 * 64 + 2 * 64  # no biases: BatchNorm has two
    heads = 2 * (64 * 7 * 7 * 32 + 32)
    decoder = (32 + 1) * 64 * 7 * 7 + 4 * 4 * 64 * 32 + 2 * 32 + 4 * 4 * 32 * 1
    assert encoder + heads + decoder == 356_512
    assert parameter_count("small", (28, 28, 1)) == 356_512


def test_parameters_of_the_32x32_variant_and_of_the_discriminator():
    encoder = 4 * 4 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024) + 2 * (128 + 256 + 512 + 1024)
    heads = 2 * (1024 * 2 * 2 * 32 + 32)
    decoder = (32 + 1) * 1024 * 4 * 4 + 4 * 4 * (1024 * 512 + 512 * 256 + 256 * 128)
    decoder += 2 * (512 + 256 + 128) + 128 * 3 + 3
    assert parameter_count("large", (32, 32, 3)) == encoder + heads + decoder
    latents = jax.ShapeDtypeStruct((2, 32), jnp.float32)
    params = jax.eval_shape(vae.discriminator().init, KEY, latents)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == 32 * 512 + 512 + 3 * (512 * 512 + 512) + 512 + 1


@pytest.mark.parametrize(
    "network, shape",
    [
        ("small", (8, 8, 1)),
        ("small", (9, 7, 2)),
        ("small", (28, 28, 1)),
        ("large", (32, 32, 3)),
        ("large", (33, 18, 1)),
        ("mlp", (5,)),
        ("mlp", (4, 4, 2)),
    ],
)
def test_reconstructions_have_the_shape_of_the_inputs(network: str, shape: tuple[int, ...]):
    coder = vae.autoencoder(network, 4)
    inputs = jax.ShapeDtypeStruct((3, *shape), jnp.float32)
    variables = jax.eval_shape(coder.init, KEY, inputs)
    outputs, state = jax.eval_shape(coder.apply, variables, jnp.zeros((3, 4)), inputs)
    assert outputs.reconstruction.shape == (3, *shape)
    assert outputs.mean.shape == outputs.log_variance.shape == (3, 4)
    assert jax.tree.structure(state) == jax.tree.structure(variables.state)
    assert jax.eval_shape(coder.encode, variables, inputs).shape == (3, 4)


def test_the_network_goes_by_the_shape():
    for shape, network in {
        (40,): "mlp", (8, 8, 1): "small", (28, 28, 1): "small", (32, 32, 3): "large"
    }.items():  # fmt: skip
        assert vae.network_for(shape) == network
    assert vae.network_for((32, 32, 3), "small") == "small"


def test_initial_weights_are_kaimings():
    start = vaal._compiled("small", 32)[0](jax.random.key(3), np.zeros((2, 8, 8, 1), np.float32))
    params, judge = start.variables.params, start.discriminator
    for weights, fan_in in [
        (params["~"]["down_2"], 9 * 32),
        (params["~"]["up_1"], 4 * 64),  # an output pixel of `upsample` sees 2x2 taps
        (params["expand"]["w"], 32),
        (judge["dense_2"]["w"], 512),
    ]:
        assert abs(weights.std() / np.sqrt(2 / fan_in) - 1) < 0.05
        assert abs(weights.mean() / weights.std()) < 0.05
    assert not any(np.any(layer["b"]) for layer in (*judge.values(), params["mean"]))
    norm = params["down_1_norm"]
    assert (norm["scale"] == 1).all() and (norm["offset"] == 0).all()
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(start.variables.state))
    flat = [np.asarray(layer["w"]).ravel()[:9] for layer in judge.values()]
    assert len(np.unique(np.concatenate(flat))) == 45  # no draw is used twice


def native_down(images, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=numbers)


def scattered_up(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Every input pixel stamps the kernel at twice its place; a frame of 1 is cut off."""
    batch, height, width, _ = images.shape
    canvas = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            stamp = np.einsum("bc,klcf->bklf", images[:, i, j].astype(np.float64), kernel)
            canvas[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += stamp
    return canvas[:, 1:-1, 1:-1]


@pytest.mark.parametrize("height, width, size", [(8, 7, 3), (6, 7, 4)])
def test_downsample_in_value_and_both_gradients(height: int, width: int, size: int):
    generator = np.random.default_rng(0)
    images = generator.normal(size=(2, height, width, 3)).astype(np.float32)
    kernel = generator.normal(size=(size, size, 3, 5)).astype(np.float32)
    shape = jax.eval_shape(native_down, images, kernel).shape
    cotangent = generator.normal(size=shape).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(function):
        value, pullback = jax.vjp(function, images, kernel)
        return value, *pullback(cotangent)

    found, expected = value_and_gradients(vae.downsample), value_and_gradients(native_down)
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("height, width", [(3, 4)])
def test_upsample_stamps_the_kernel_and_is_the_adjoint_of_downsample(height: int, width: int):
    generator = np.random.default_rng(0)
    images = generator.normal(size=(2, height, width, 3)).astype(np.float32)
    kernel = generator.normal(size=(4, 4, 3, 5)).astype(np.float32)
    cotangent = generator.normal(size=(2, 2 * height, 2 * width, 5)).astype(np.float32)

    @jax.jit
    def value_gradient_and_adjoint():
        value, pullback = jax.vjp(vae.upsample, images, kernel)
        exchanged = kernel.transpose(0, 1, 3, 2)
        return value, pullback(cotangent)[0], vae.downsample(jnp.asarray(cotangent), exchanged)

    found, images_bar, adjoint = value_gradient_and_adjoint()
    np.testing.assert_allclose(found, scattered_up(images, kernel), atol=1e-4)
    np.testing.assert_allclose(images_bar, adjoint, atol=1e-4)


# What is minimised.


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def reference_loss(inputs, reconstruction, mean, log_variance, beta: float) -> float:
    squares = [float(a - b) ** 2 for a, b in zip(inputs.ravel(), reconstruction.ravel())]
    pairs = [(float(m), float(v)) for m, v in zip(mean.ravel(), log_variance.ravel())]
    # KL(N(m, e^v) || N(0, 1)) of one latent of one example.
    divergences = [0.5 * (np.exp(v) + m * m - 1 - v) for m, v in pairs]
    return float(np.mean(squares) + beta * np.sum(divergences))


def test_losses_against_their_definitions():
    generator = np.random.default_rng(0)
    inputs, reconstruction = generator.normal(size=(2, 4, 3, 3, 2)).astype(np.float32)
    mean, log_variance = generator.normal(size=(2, 4, 5)).astype(np.float32)
    outputs = vae.AutoencoderOutputs(*map(jnp.asarray, (reconstruction, mean, log_variance)))
    for beta in (0.0, 1.0, 0.3):
        expected = reference_loss(inputs, reconstruction, mean, log_variance, beta)
        np.testing.assert_allclose(
            vaal.autoencoder_loss(inputs, outputs, beta), expected, rtol=1e-5
        )
    labelled, unlabelled = 2 * generator.normal(size=(2, 6)).astype(np.float32)
    d_labelled, d_unlabelled = sigmoid(labelled), sigmoid(unlabelled)
    np.testing.assert_allclose(
        vaal.adversary_loss(labelled, unlabelled),
        -np.log(d_labelled).mean() - np.log(d_unlabelled).mean(),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        vaal.discriminator_loss(labelled, unlabelled),
        -np.log(d_labelled).mean() - np.log(1 - d_unlabelled).mean(),
        rtol=1e-5,
    )
    # Sure and wrong: long past where D is 0 or 1 in float32.
    far = np.float32([-200.0])
    np.testing.assert_allclose(vaal.adversary_loss(far, far), 400, rtol=1e-6)
    np.testing.assert_allclose(vaal.discriminator_loss(far, -far), 400, rtol=1e-6)


WEIGHTS = vaal._Weights(*map(jnp.float32, (1e-2, 0.5, 3.0, 1e-3)))


CODER = vae.autoencoder("mlp", 32)
HALVES = (slice(0, 8), slice(8, 16))


@jax.jit
def steps(progress, noises, labelled, unlabelled, weights):
    first, loss = vaal._autoencoder_step(CODER, progress, noises, labelled, unlabelled, weights)
    second, judged = vaal._discriminator_step(CODER, first, labelled, unlabelled, weights)
    return first, second, loss, judged


@functools.cache
def one_step():
    """(before, after the autoencoder's step, after the discriminator's, both losses)."""
    halves = [vectors()[half] for half in HALVES]
    before = vaal._compiled("mlp", 32)[0](KEY, halves[0][:2])
    noises = jax.random.normal(KEY, (2, 8, 32))
    return before, noises, *steps(before, noises, *halves, WEIGHTS)


def test_a_step_leaves_the_other_network_as_it_was():
    before, _, first, second, _, _ = one_step()
    assert same(first.discriminator, before.discriminator)
    assert same(first.discriminator_optimizer, before.discriminator_optimizer)
    for old, new in zip(jax.tree.leaves(before.variables), jax.tree.leaves(first.variables)):
        assert not np.array_equal(old, new)
    assert same(second.variables, first.variables)  # running averages included
    assert same(second.optimizer, first.optimizer)
    for name, layer in first.discriminator.items():
        assert not np.array_equal(layer["w"], second.discriminator[name]["w"])
    # Adam's first step is the learning rate, each network's own.
    for old, new, rate in (
        (before.variables.params, first.variables.params, 1e-2),
        (first.discriminator, second.discriminator, 1e-3),
    ):
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), old, new)
        np.testing.assert_allclose(max(jax.tree.leaves(moved)), rate, rtol=1e-2)


def test_losses_of_a_step_are_made_of_both_sets():
    before, noises, first, _, loss, judged = one_step()
    apply, encode = jax.jit(CODER.apply), jax.jit(CODER.encode)
    judge = jax.jit(vae.discriminator().apply)
    expected, state, logits = 0.0, before.variables.state, []
    for half, noise in zip(HALVES, noises):
        outputs, state = apply(Variables(before.variables.params, state), noise, vectors()[half])
        expected += reference_loss(vectors()[half], *copied(outputs), beta=0.5)
        logits.append(judge(before.discriminator, outputs.mean))
    d_labelled, d_unlabelled = map(sigmoid, logits)
    expected += 3.0 * (-np.log(d_labelled).mean() - np.log(d_unlabelled).mean())
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(first.variables.state), jax.tree.leaves(state)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)  # both batches are averaged
    means = [encode(first.variables, vectors()[half]) for half in HALVES]
    d_labelled, d_unlabelled = (sigmoid(judge(before.discriminator, mean)) for mean in means)
    expected = -np.log(d_labelled).mean() - np.log(1 - d_unlabelled).mean()
    np.testing.assert_allclose(judged, expected, rtol=1e-4)


def test_z_is_drawn_with_the_deviation_of_its_latent():
    """The decoder's first layer, asked directly: z = mean + exp(log_variance / 2) * noise."""
    before, noises, *_ = one_step()
    params = before.variables.params
    inputs = vectors()[HALVES[0]]
    apply = jax.jit(CODER.apply)
    outputs, _ = apply(before.variables, noises[0], inputs)
    latents = outputs.mean + jnp.exp(0.5 * outputs.log_variance) * noises[0]
    zero = params | {name: {"w": 0 * params[name]["w"], "b": 0 * params[name]["b"]}
                     for name in ("mean", "log_variance")}  # fmt: skip
    # With both heads at 0, z is the noise itself: the same z gives the same output.
    found, _ = apply(Variables(zero, before.variables.state), latents, inputs)
    np.testing.assert_allclose(found.reconstruction, outputs.reconstruction, atol=1e-4)


def test_updates_are_adams():
    params, rate = {"w": jnp.array([1.0, -2.0, 3.0])}, 5e-4
    adam = optax.adam(rate)
    ours, theirs = (params, vaal._ADAM.init(params)), (params, adam.init(params))
    for step in range(3):
        grads = {"w": jnp.array([0.1, 5.0, -1.0]) * (step + 1)}
        ours = vaal._updated(grads, ours[1], ours[0], jnp.float32(rate))
        updates, state = adam.update(grads, theirs[1])
        theirs = optax.apply_updates(theirs[0], updates), state
        np.testing.assert_allclose(ours[0]["w"], theirs[0]["w"], rtol=1e-6)


@pytest.mark.parametrize(
    "epochs, max_steps, labelled, unlabelled, expected",
    [
        (15, None, 100, 49_900, 15 * 781),
        (15, 2000, 100, 49_900, 2000),
        (15, None, 63, 64, 15),
        (15, None, 3, 60, 1),
        (2, 3, 100, 100, 3),
    ],
)
def test_num_steps(epochs, max_steps, labelled, unlabelled, expected):
    config = VaalConfig(epochs=epochs, max_steps=max_steps)
    assert vaal.num_steps(config, labelled, unlabelled) == expected


# What it finds.


@functools.cache
def fitted_images() -> tuple[vaal.VaalState, np.ndarray]:
    inputs = two_modes((8, 8, 1), each=150, noise=0.3)
    return fit_vaal(KEY, inputs, np.arange(40), np.arange(40, 300), config=IMAGES), inputs


def test_the_unseen_mode_is_the_unlabelled_one():
    state, inputs = fitted_images()
    assert state.config.network == "small" and state.steps == 120
    found = vaal.unlabelled_probability(state, inputs, np.arange(40, 300))
    assert found.dtype == np.float32 and ((found >= 0) & (found <= 1)).all()
    assert auc(found[110:], found[:110]) > 0.95


def test_the_unseen_mode_is_the_unlabelled_one_with_vectors_and_the_papers_weights():
    state = fit_vectors(labelled=range(150), unlabelled=range(150, 600), epochs=99, max_steps=150)
    assert state.config.network == "mlp"
    found = vaal.unlabelled_probability(state, vectors(), np.arange(150, 600))
    assert auc(found[150:], found[:150]) > 0.9


def test_without_a_discriminator_the_core_set_of_latents_finds_the_unseen_mode():
    """Labelled rows are of one mode, the pool has a tenth of the other one."""
    labelled, pool = np.arange(100), np.arange(100, 320)  # 300 to 319 are of the other mode
    sets = {"labelled": labelled, "unlabelled": pool, "epochs": 99, "max_steps": 150}
    state = fit_vectors(**sets, adversary=0.0)
    latents, known = (vaal.latent_means(state, vectors(), rows) for rows in (pool, labelled))
    assert latents.shape == (220, 32) and latents.dtype == np.float32
    means = CODER.encode(state.variables, jnp.asarray(vectors()[pool]))
    np.testing.assert_allclose(latents, means, atol=1e-4)
    chunks = vaal.latent_means(state, vectors(), pool, chunk_size=64)
    np.testing.assert_allclose(chunks, latents, atol=1e-5)
    candidates = Candidates(
        pool.astype(np.int32),
        np.ones(len(pool), bool),
        latents=latents,
        labelled_latents=known,
        labelled_mask=np.ones(len(labelled), bool),
    )
    select = af.make_strategy("vae_coreset").select
    selection = select(KEY, candidates, batch_size=3)
    picked = af.acquire(selection, candidates)
    assert picked[0] >= 300
    for pick, score in zip(picked, selection.scores):
        nearest = np.linalg.norm(latents[:, None] - known, axis=2).min(axis=1)
        assert pool[np.argmax(nearest)] == pick  # the second not just the next of the ranking
        np.testing.assert_allclose(score, nearest.max(), rtol=1e-4)
        known = np.append(known, latents[[pick - 100]], axis=0)
    # The discriminator had no say: with another one the latents are the same.
    other = fit_vectors(**sets, adversary=0.0, discriminator_rate=0.1)
    assert same(other.variables, state.variables)
    assert not same(other.discriminator, state.discriminator)


def test_scores_do_not_depend_on_the_chunk_or_the_order():
    state, inputs = fitted_images()
    rows = np.array([299, 0, 120, 41, 77, 200, 3])
    found = vaal.unlabelled_log_odds(state, inputs, rows)
    assert np.ptp(found) > 0.1
    for chunk_size in (1, 3, 7):
        again = vaal.unlabelled_log_odds(state, inputs, rows, chunk_size=chunk_size)
        np.testing.assert_allclose(again, found, atol=1e-4)
    back = vaal.unlabelled_log_odds(state, inputs, rows[::-1], chunk_size=7)
    np.testing.assert_allclose(back[::-1], found, atol=1e-4)
    assert vaal.unlabelled_probability(state, inputs, []).shape == (0,)


def test_probabilities_are_stable_at_both_ends(monkeypatch: pytest.MonkeyPatch):
    log_odds = np.float32([-3e38, -80, -1, 0, 1, 16, 80, 3e38])
    monkeypatch.setattr(vaal, "unlabelled_log_odds", lambda *args, **options: log_odds)
    found = vaal.unlabelled_probability(None, None, None)
    expected = 1 / (1 + np.exp(-np.clip(log_odds.astype(np.float64), -700, 700)))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-40)
    assert found[1] > 0


# The result is a function of the key and the data, and of nothing else.


def fit_vectors(key=KEY, labelled=range(9), unlabelled=range(9, 60), source=None, **changes):
    source = vectors() if source is None else source
    config = SHORT._replace(**changes)
    return fit_vaal(key, source, np.array(labelled), np.array(unlabelled), config=config)


def test_same_key_same_bytes():
    first = fit_vectors()
    assert same(first[1:], fit_vectors()[1:])
    mixed = np.random.default_rng(0).permutation
    shuffled = fit_vectors(labelled=mixed(range(9)), unlabelled=mixed(range(9, 60)))
    assert same(shuffled[1:], first[1:])
    other = fit_vectors(jax.random.key(1))
    assert not same(other.variables, first.variables)
    assert not same(other.discriminator, first.discriminator)


class Watched:
    """A source that can only be read by rows, and remembers which."""

    def __init__(self, values: np.ndarray):
        self.values, self.shape, self.dtype, self.read = values, values.shape, values.dtype, []

    def __getitem__(self, rows):
        assert isinstance(rows, np.ndarray) and len(np.unique(rows)) == len(rows)
        self.read.append(rows)
        return self.values[rows]


def test_rows_of_neither_set_are_never_read_and_none_is_read_whole():
    values = vectors().copy()
    values[[3, 50]] = np.nan
    sets = {"labelled": [0, 7], "unlabelled": [*range(10, 49), 55]}
    source = Watched(values)
    found = fit_vectors(source=source, **sets)
    assert {int(row) for rows in source.read for row in rows} <= {*sum(sets.values(), [])}
    assert max(len(rows) for rows in source.read) <= SHORT.block_size * SHORT.batch_size
    assert same(found[1:], fit_vectors(**sets)[1:])
    assert np.isfinite(vaal.unlabelled_log_odds(found, source, sets["unlabelled"])).all()


def test_blocks_are_single_steps_one_after_another():
    """Seven steps in blocks of five, and one by one on the minibatches of the same keys."""
    rows = np.arange(9), np.arange(9, 60)
    init_key, *batch_keys, noise_key = jax.random.split(KEY, 4)
    progress = vaal._compiled("mlp", 32)[0](init_key, vectors()[:2])
    batches = [training.minibatches(key, len(part), 8) for key, part in zip(batch_keys, rows)]
    weights = vaal._Weights(*map(jnp.float32, (5e-4, 1.0, 1.0, 5e-4)))
    losses, before = [], copied(progress)
    for step in range(7):
        inputs = [vectors()[part[next(drawn)]] for part, drawn in zip(rows, batches)]
        noises = jax.random.normal(jax.random.fold_in(noise_key, step), (2, 8, 32))
        _, progress, *both = steps(progress, noises, *inputs, weights)
        losses.append(both)
    found = fit_vectors()
    assert found.steps == 7
    ours = [found.autoencoder_loss, found.discriminator_loss]
    np.testing.assert_allclose(ours, np.mean(losses[5:], axis=0), rtol=1e-4)  # the last block
    for ours, theirs, start in zip(
        *map(jax.tree.leaves, ((found.variables, found.discriminator),
                               (progress.variables, progress.discriminator),
                               (before.variables, before.discriminator)))
    ):  # fmt: skip
        # Adam may turn rounding errors of gradients near 0 into steps; nearly all agree.
        assert np.linalg.norm(ours - theirs) <= 0.01 * np.linalg.norm(theirs - start)


def test_one_compilation_serves_all_rounds(compilations: Callable[[], int]):
    fit_vectors()
    keys = [jax.random.key(number) for number in range(4)]
    fitted = compilations()
    for number, key in enumerate(keys):
        size = 1 + 13 * number  # from fewer than a batch to most of the rows
        state = fit_vectors(
            key,
            range(size),
            range(size, 60),
            max_steps=1 + 3 * number,
            beta=0.1 * number,
            learning_rate=1e-4 * (1 + number),
        )
        if number == 0:
            assert compilations() == fitted
        vaal.unlabelled_probability(state, vectors(), np.arange(size, 60), chunk_size=8)
        if number == 0:
            before = compilations()  # those for this chunk included
    assert compilations() == before > 0


def test_dtypes_hold_in_double_precision():
    with jax.enable_x64(True):
        start, block, log_odds = vaal._compiled.__wrapped__("mlp", 32)
        inputs = jax.ShapeDtypeStruct((5, 8, 40), jnp.float32)
        progress = jax.eval_shape(start, KEY, jax.ShapeDtypeStruct((2, 40), jnp.float32))
        found, history = jax.eval_shape(block, progress, KEY, 0, 5, inputs, inputs, WEIGHTS)
        assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, progress)
        assert history.dtype == jnp.float32
        read = vaal._read(vectors().astype(np.float64), np.arange(3))
        assert read.dtype == np.float32


# What goes wrong.


def test_divergence_names_the_step():
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step \d") as info:
        fit_vectors(learning_rate=1e30)
    assert isinstance(info.value, ArithmeticError) and 0 <= info.value.step <= 2


def test_log_odds_that_are_not_finite_are_refused():
    state = fit_vectors()
    broken = state._replace(discriminator=jax.tree.map(lambda x: x + np.inf, state.discriminator))
    with pytest.raises(ArithmeticError, match="the log odds of row 7 are not finite"):
        vaal.unlabelled_probability(broken, vectors(), np.array([7]), chunk_size=8)


def with_bad_row(value: float) -> np.ndarray:
    values = vectors().copy()
    values[2, 1] = value
    return values


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fit_vectors(labelled=[]), "labelled_rows is empty; label a first set"),
        (lambda: fit_vectors(unlabelled=[]), "unlabelled_rows is empty"),
        (lambda: fit_vectors(labelled=[1, 9]), "must be disjoint, row 9 is in both"),
        (lambda: fit_vectors(labelled=[1, 2, 1]), "labelled_rows has row 1 more than once"),
        (lambda: fit_vectors(labelled=[-1]), r"labelled_rows must lie in 0\.\.599, got -1\.\.-1"),
        (lambda: fit_vectors(unlabelled=[600]), r"unlabelled_rows must lie in 0\.\.599, got 600"),
        (lambda: fit_vectors(labelled=[0.5]), "labelled_rows must be a list of integers"),
        (lambda: fit_vectors(labelled=[[1]]), "labelled_rows must be a list of integers"),
        (lambda: fit_vectors(source=with_bad_row(np.nan)), "the input of row 2 is NaN or infinite"),
        (lambda: fit_vectors(source=with_bad_row(np.inf)), "the input of row 2 is NaN or infinite"),
        (lambda: fit_vectors(source=np.zeros((600, 8, 8))), r"\(8, 8\); .*images\[..., None\]"),
        (
            lambda: fit_vectors(network="small"),
            r'network \'small\' wants images, got vectors \(40,\); use "mlp"',
        ),
        (
            lambda: vae.network_for((8, 8, 1), "large"),
            r"network 'large' wants images of 16x16 or more, got \(8, 8, 1\)",
        ),
        (lambda: fit_vectors(network="resnet"), "unknown network 'resnet'; known: auto, small"),
        (lambda: fit_vectors(batch_size=1), "batch_size must be at least 2"),
        (lambda: fit_vectors(z_dim=0), "z_dim must be positive, got 0"),
        (lambda: fit_vectors(epochs=1.5), "epochs must be an integer, got 1.5"),
        (lambda: fit_vectors(max_steps=0), "max_steps must be positive, got 0"),
        (lambda: fit_vectors(block_size=0), "block_size must be positive, got 0"),
        (lambda: fit_vectors(learning_rate=0.0), "learning_rate must be positive and finite"),
        (lambda: fit_vectors(discriminator_rate=0.0), "discriminator_rate must be positive and"),
        (lambda: fit_vectors(beta=-1.0), "beta must be at least 0 and finite, got -1.0"),
        (lambda: fit_vectors(adversary=np.nan), "adversary must be at least 0 and finite, got nan"),
        (lambda: vae.downsample(jnp.zeros((2, 8, 8)), jnp.zeros((3, 3, 1, 1))), "downsample expe"),
        (lambda: vae.upsample(jnp.zeros((2, 8, 8, 1)), jnp.zeros((3, 3, 1, 1))), "upsample expec"),
    ],
)
def test_refusals(call: Callable, message: str):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "rows, options, message",
    [
        ([600], {}, r"rows must lie in 0\.\.599, got 600"),
        ([2], {}, "the input of row 2 is NaN or infinite"),
        ([1], {"chunk_size": 0}, "chunk_size must be positive, got 0"),
    ],
)
def test_refusals_when_scoring(rows: list[int], options: dict, message: str):
    state = fit_vectors()
    with pytest.raises(ValueError, match=message):
        vaal.unlabelled_probability(state, with_bad_row(np.nan), rows, **options)
